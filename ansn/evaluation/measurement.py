"""A number with its meaning, and all numbers of one evaluation, as they lie in `evaluation.json`."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ansn import schema

FORMAT = 1  # of evaluation.json


@dataclass(frozen=True)
class Measurement:
    """One number, and what it takes to read it.

    Attributes:
        name: what was measured; value: the number, of ``n`` samples (of ``n`` held-out rows for a likelihood).
        features: the space that rows were compared in, None where there is none.
        reference, reference_n: the split that the rows were compared with, and how many of it.
        floor, floor_n: the same number for ``floor_n`` held-out rows in place of samples; None without held-out data.
        low, high: 95 % interval of the number at this n, or None.
        better: ``"lower"``, ``"higher"`` or ``"closer to X"``.
        note: how the interval was made, and what else the number must not be read without.
        baseline: the same number for as many samples of the run's Gaussian mixture; None where they were not compared.
    """

    name: str
    value: float
    n: int
    features: str | None = None
    reference: str = ""
    reference_n: int = 0
    floor: float | None = None
    floor_n: int | None = None
    low: float | None = None
    high: float | None = None
    better: str = "lower"
    note: str = ""
    baseline: float | None = None

    def __str__(self) -> str:
        told = f"{self.name} {self.value:.4g}"
        if self.low is not None and self.high is not None:
            told += f" ({self.low:.4g} to {self.high:.4g})"
        parts = [f"n = {self.n}"]
        if self.floor is not None:
            parts.append(f"floor {self.floor:.4g} at n = {self.floor_n}")
        if self.baseline is not None:
            parts.append(f"baseline {self.baseline:.4g}")
        if self.reference:
            parts.append(f"against {self.reference_n} of {self.reference}")
        if self.features:
            parts.append(f"features {self.features}")
        parts.append(f"{self.better} is better")
        return f"{told}, {', '.join(parts)}" + (f"; {self.note}" if self.note else "")


@dataclass(frozen=True)
class Evaluation:
    """All that `ansn-evaluate` found of one run. Every value is one of JSON's.

    Attributes:
        settings: of the evaluation, the seed among them. command: the line that makes it again.
        run: the settings of the run. provenance: checkpoint, package versions, machine, feature spaces.
        measurements: the numbers.
        quality: rows of quality against cost, ``{name, method, steps, evaluations, seconds, drawn, n, value, floor,
            low, high}``: ``name`` says which distance in which features, ``evaluations`` are those of the network for
            a sample, ``seconds`` those of the draw of all ``drawn`` samples. Empty without a sweep.
        neighbours: nearest training rows of the first samples, ``{index: [n][k], distance: [n][k], space}``, nearest
            first, or None.
        left_out: a sentence for each number that was not measured, and why.
    """

    settings: Mapping[str, Any]
    command: str
    run: Mapping[str, Any]
    provenance: Mapping[str, Any]
    measurements: tuple[Measurement, ...] = ()
    quality: tuple[Mapping[str, Any], ...] = ()
    neighbours: Mapping[str, Any] | None = None
    left_out: tuple[str, ...] = ()

    def to_json(self) -> str:
        """Indented JSON; numbers that are not finite become null, which JSON has in their place."""
        return json.dumps({"format": FORMAT, **_plain(dataclasses.asdict(self))}, indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> Evaluation:
        """The inverse of :meth:`to_json`, with NaN for a measurement's value that was not finite.

        Raises InputError, a ValueError, for text that is no evaluation.
        """
        stored: _Stored = schema.parse(text, _Stored, "evaluation")
        made = []
        for values in stored.measurements:
            known = values.get("value", 0.0) is not None
            one: Measurement = schema.build(Measurement, values if known else {**values, "value": 0.0}, "measurement")
            made.append(one if known else dataclasses.replace(one, value=math.nan))
        near = stored.neighbours
        return cls(
            stored.settings, stored.command, stored.run, stored.provenance, tuple(made), stored.quality,
            None if near is None else dataclasses.asdict(near), stored.left_out,
        )  # fmt: skip


@dataclass(frozen=True)
class _Neighbours:
    index: list[list[int]]
    distance: list[list[float]]
    space: str

    def __post_init__(self) -> None:
        sizes = [[len(row) for row in self.index], [len(row) for row in self.distance]]
        if sizes[0] != sizes[1] or len(set(sizes[0])) > 1:
            raise ValueError("index, distance: got rows of several lengths, expected as many of both for each sample")


@dataclass(frozen=True)
class _Stored:
    """JSON of :class:`Evaluation`."""

    format: Literal[1]
    settings: dict[str, Any]
    command: str
    run: dict[str, Any]
    provenance: dict[str, Any]
    measurements: list[dict[str, Any]]
    quality: tuple[dict[str, int | float | str | None], ...]
    left_out: tuple[str, ...]
    neighbours: _Neighbours | None = None


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _plain(v) for key, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value
