"""Measurements: every number of samples against data goes through :func:`measure`, which adds floor and interval."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ansn.evaluation.classes import Judge, decided
from ansn.evaluation.discrepancy import energy_to, kernel_to, sliced_to
from ansn.evaluation.features import Array, Features
from ansn.evaluation.measurement import Measurement
from ansn.evaluation.metrics import frechet_to
from ansn.evaluation.neighbours import Manifold, manifold_to, memorisation
from ansn.evaluation.resampling import Statistic, each, of_all, resampled

LEAST = 16  # rows that halves and neighbourhoods can be made of
FID_SAMPLES = 50_000
_NORMAL = 1.96


@dataclass(frozen=True)
class Number:
    """What a statistic's number is called, which way is better, and where it cannot be."""

    name: str
    better: str = "lower"
    low: float = 0.0
    high: float = np.inf


@dataclass(frozen=True)
class Kind:
    """A way to compare rows with a reference: ``against`` makes the statistic of rows that gives ``numbers``.

    ``pairs``: it goes through all pairs, so that rows are capped. ``even``: it wants a reference of as many rows.
    """

    numbers: tuple[Number, ...]
    against: Callable[[Array], Statistic]
    pairs: bool = True
    even: bool = False


KINDS = {
    "frechet": Kind((Number("Frechet distance"),), frechet_to, pairs=False),
    "kernel": Kind((Number("kernel distance", low=-np.inf),), kernel_to),
    "energy": Kind((Number("energy distance", low=-np.inf),), energy_to),
    "sliced": Kind((Number("sliced Wasserstein-2 distance"),), sliced_to, pairs=False),
    "manifold": Kind(
        tuple(
            Number("density", "closer to 1") if name == "density" else Number(name, "higher", high=1.0)
            for name in Manifold._fields
        ),
        manifold_to,
        even=True,
    ),
}


@dataclass(frozen=True)
class Resampling:
    """How intervals are made: by ``halves`` random halves of the rows under ``seed``; see
    :func:`ansn.evaluation.resampling.resampled`."""

    halves: int = 40
    seed: int = 0

    def __str__(self) -> str:
        return f"95 % interval by {self.halves} halves, seed {self.seed}"


def measure(
    numbers: Sequence[Number],
    statistic: Statistic,
    rows: Array,
    held_out: Array | None,
    resampling: Resampling,
    *,
    whole: bool = False,
    note: str = "",
    baseline: Array | None = None,
    **about: Any,
) -> list[Measurement]:
    """The statistic's numbers of ``rows`` with their intervals, beside those of as many ``held_out`` rows (the floor)
    and of ``baseline``, as many rows of a simpler model.

    Distances fall with n, so more rows than are held out are cut into disjoint blocks of as many, whose mean is taken;
    that also steadies it, like ``1 / sqrt(blocks)``. ``whole``: they are not, and the floor has another n.

    The interval is about the mean over draws of n samples, with the reference held fixed; it knows nothing of another
    training run. Near the floor it is wider than need be (:func:`ansn.evaluation.resampling.resampled`). A share that
    is 0 or 1 in every half has ``3 / n`` for its reach, n all the rows (Hanley and Lippman-Hand 1983).

    ``about``: ``features``, ``reference``, ``reference_n`` of the measurements.
    """
    held = None if held_out is None or len(held_out) < LEAST else held_out[: len(rows)]
    size = len(rows) if held is None or whole else len(held)
    parts = [slice(first, first + size) for first in range(0, len(rows) - size + 1, size)]
    found = [resampled(statistic, rows[part], resampling.halves, resampling.seed) for part in parts]
    values, errors = np.mean([v for v, _ in found], axis=0), np.sqrt(np.mean([e * e for _, e in found], axis=0))
    simpler = None if baseline is None else np.mean([of_all(statistic, baseline[part]) for part in parts], axis=0)
    reach = _NORMAL * errors / np.sqrt(len(parts))
    # A share of none, or of all, is the same in every half, which says nothing: within 3 / n at 95 %.
    shares = np.array([number.high == 1.0 for number in numbers])
    reach = np.where(shares & (reach == 0.0), 3.0 / (size * len(parts)), reach)
    floors = None if held is None else of_all(statistic, held)
    told = [note, str(resampling)]
    if len(parts) > 1:
        told.append(f"mean over {len(parts)} blocks of {size} samples, as many as the floor has")
    if held is not None and len(held) != size:
        told.append(f"the floor is of {len(held)} rows only")
    return [
        Measurement(
            number.name, float(values[i]), size, floor=None if floors is None else float(floors[i]),
            floor_n=None if held is None else len(held), baseline=None if simpler is None else float(simpler[i]),
            low=max(number.low, float(values[i] - reach[i])), high=min(number.high, float(values[i] + reach[i])),
            better=number.better, note="; ".join(filter(None, told)), **about,
        )
        for i, number in enumerate(numbers)
    ]  # fmt: skip


def compare(
    kinds: Sequence[str],
    space: Features,
    samples: Array,
    train: Array,
    held_out: Array | None,
    *,
    pairs: int,
    resampling: Resampling,
    baseline: Array | None = None,
) -> list[Measurement]:
    """The named kinds of numbers in one space; the arrays are features there, ``pairs`` the cap on rows of each."""
    order = np.random.default_rng(resampling.seed).permutation(len(train))
    out = []
    for kind in (KINDS[name] for name in kinds):
        most = pairs if kind.pairs else max(len(samples), len(train))
        rows, held = samples[:most], None if held_out is None else held_out[:most]
        size = len(rows) if held is None or len(held) < LEAST else min(len(rows), len(held))
        count = min(most, len(train), size if kind.even else len(train))
        reference = train if count == len(train) else train[np.sort(order[:count])]
        fid = kind is KINDS["frechet"] and _is_fid(space.name, len(rows), len(train))
        made = measure(
            kind.numbers, kind.against(reference), rows, held, resampling, whole=fid,
            baseline=None if baseline is None else baseline[:most],
            features=space.name, reference="train", reference_n=len(reference),
        )  # fmt: skip
        out += [dataclasses.replace(m, name="Frechet Inception distance (FID)") for m in made] if fid else made
    return out


def _is_fid(space: str, n: int, whole: int) -> bool:
    """Whether a Frechet distance to a whole split of ``whole`` rows may be called FID."""
    return space.startswith("inception-v3") and min(n, whole) >= FID_SAMPLES


def repetition(
    distance: Array, usual: Array, train_n: int, space: str, resampling: Resampling, quantile: float = 0.01
) -> list[Measurement]:
    """Memorisation: samples' ``distance`` ``[n, 1]`` to their nearest training row beside held-out rows' ``[m, 1]``."""
    numbers = (
        Number("memorised share", f"closer to {quantile:g}", high=1.0),
        Number("nearest training row, ratio of distances", "closer to 1"),
    )
    note = f"share below the held-out rows' {quantile:.0%} quantile; ratio of the medians"
    return measure(
        numbers, each(memorisation(usual[:, 0], quantile)), distance, usual, resampling, note=note,
        features=space, reference="train", reference_n=train_n,
    )  # fmt: skip


def modes(
    judge: Judge, samples: Array, held_out: Array | None, shares: Array, train_n: int, resampling: Resampling
) -> list[Measurement]:
    """Total variation ``1/2 sum_k |q_k - p_k|`` of the samples' class shares q, told by a classifier from features,
    from those of the training labels, p = ``shares`` ``[K]``."""

    def variation(rows: Array) -> list[float]:
        return [0.5 * float(np.abs(rows.mean(0) - shares).sum())]

    held = None if held_out is None else decided(judge, held_out, len(shares))
    return measure(
        (Number("mode weights, total variation", high=1.0),), each(variation),
        decided(judge, samples, len(shares)), held, resampling,
        note=f"classes told by {judge}", features=judge.name, reference="train", reference_n=train_n,
    )  # fmt: skip


def obedience(
    judge: Judge, samples: Array, asked: Array, held_out: Array | None, labels: Array | None, resampling: Resampling
) -> list[Measurement]:
    """Share of samples whose class, told by a classifier from features, is the one that was asked for."""

    def share(rows: Array) -> list[float]:
        return [float(rows.mean())]

    held = None if held_out is None or labels is None else (judge.decide(held_out) == labels)[:, None].astype(float)
    return measure(
        (Number("class accuracy", "higher", high=1.0),), each(share),
        (judge.decide(samples) == asked)[:, None].astype(float), held, resampling,
        note=f"classes told by {judge}", features=judge.name,
    )  # fmt: skip
