"""Quality against cost: one distance of several samplers at several numbers of network evaluations."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from ansn.evaluation.compare import KINDS, Resampling, measure
from ansn.evaluation.features import Array, Features
from ansn.sampling.driver import METHODS, Draw
from ansn.training.pictures import draw
from ansn.training.runs import Run

ALL = "all"
EVALUATIONS = (4, 6, 8, 12, 20, 40)


def chosen(methods: Sequence[str]) -> tuple[str, ...]:
    """The methods named; :data:`ALL`: every one. Raises ValueError for one that does not exist."""
    for name in methods:
        if name not in (*METHODS, ALL):
            raise ValueError(f"sweep: got {name!r}, expected {ALL} or some of {', '.join(METHODS)}")
    return tuple(METHODS) if ALL in methods else tuple(methods)


def sweep(
    run: Run,
    methods: Sequence[str],
    evaluations: Sequence[int],
    space: Features,
    train: Array,
    held_out: Array | None,
    n: int,
    *,
    resampling: Resampling,
    seed: int = 0,
    batch_size: int = 256,
    tell: Callable[[str], None] = lambda _: None,
    measured: tuple[str, int, Array, float] | None = None,
) -> Iterator[dict[str, Any]]:
    """Rows of :attr:`ansn.evaluation.measurement.Evaluation.quality`: Frechet distances of ``n`` samples in ``space``,
    by :func:`ansn.evaluation.compare.measure`.

    For each method and number of evaluations the most steps that take no more; a method of which one step takes more
    has no row there. ``train``, ``held_out``: features of the data. ``value`` is None where samples are not finite.
    ``measured``: method, steps, features and seconds of samples that are there already, also of another n: they are
    that row's, so that one sampler has one number.
    """
    kind = KINDS["frechet"]
    statistic = kind.against(train)
    for method in chosen(methods):
        rows: Array | None
        drawn = set()
        for wanted in evaluations:
            try:
                way = Draw.within(run.model, method, wanted)
            except ValueError:
                continue
            steps = int(way.options.get("steps", len(way.taus)))
            if steps in drawn:
                continue
            drawn.add(steps)
            if measured is not None and measured[:2] == (method, steps):
                rows, seconds = measured[2:]
            else:
                tell(f"drawing {n} samples by {method}, {way.evaluations} evaluations each")
                start = time.perf_counter()
                x = draw(run, n, seed, method=method, steps=steps, batch_size=batch_size)
                seconds = time.perf_counter() - start
                rows = space(x) if bool(torch.isfinite(x).all()) else None
            count = n if rows is None else len(rows)
            row: dict[str, Any] = {
                "name": f"{kind.numbers[0].name}, {space.name}", "method": method, "steps": steps,
                "evaluations": way.evaluations, "seconds": seconds, "n": count, "drawn": count,
                "value": None, "floor": None, "low": None, "high": None,
            }  # fmt: skip
            if rows is not None:
                (found,) = measure(kind.numbers, statistic, rows, held_out, resampling)
                row |= {key: getattr(found, key) for key in ("n", "value", "floor", "low", "high")}
            yield row
