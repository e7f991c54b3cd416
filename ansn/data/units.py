"""Units: between the numbers that a model sees and those of the file that the data came in.

A field is shifted and scaled (`Affine`). A table has a `Column` for each column of the file: numbers are standardised,
categories are one number a word (one-hot), what is discrete is spread over its step by noise (dequantised), so that it
has a density.
"""

from __future__ import annotations

import dataclasses
import math
import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ansn import schema
from ansn.data import streams

KINDS = ("number", "whole", "binary", "category", "time", "constant")
"""Kinds of columns: a continuous number, a whole one, one of two values, one of several words, a date or time, and one
value only, which the model does not see."""

SPREAD = 0.5
"""Width of the noise of categories and of one of two values, in their distance: below 1, so that the largest coordinate
of a category is always the word's."""

_LOST = 1e5  # deviations from 0 from which float32 has fewer than some hundred steps of one
_WIDE = 1e4  # deviations from 0, a thousandth of what float32 can tell apart
MAX_CLASSES = 65536
"""More are a mistake: a continuous target, or an identifier, taken for a label."""

_DIGITS = 30  # decimals of a cell
_FORM = re.compile("(?:[^%]|%[A-Za-z])*")

_HEAVY = 30.0  # deviations of the bulk from which the standard deviation is an outlier's
_EPOCH = datetime(1970, 1, 1)


class Units(Protocol):
    """From numbers of the model ``x [n, *shape]`` to those of the file, and back."""

    @property
    def grain(self) -> Tensor | None:
        """float32 ``[*shape]``, width of the noise that spreads what is discrete; None where nothing is."""

    def decode(self, x: Tensor) -> Tensor:
        """float64, the data's units."""

    def encode(self, values: Tensor, seed: int | None = None) -> Tensor:
        """float32 ``[n, *shape]`` of float64 values, NaN of what is NaN; ``seed``: what is discrete gets its noise."""

    def log_volume(self, x: Tensor) -> Tensor:
        """float64 ``[n]``, ``ln |d data / d x|``, in steps of what is discrete: ``ln p(x)`` less this is the
        log-density of numbers and the log-probability of discrete values."""

    def to_json(self) -> dict[str, Any]:
        """JSON values, for :func:`from_json`."""


@dataclass(frozen=True)
class Affine:
    """``data = offset + scale * x``: float64 tensors that broadcast to ``shape``, such as ``[C, 1, 1]``."""

    offset: Tensor
    scale: Tensor
    shape: tuple[int, ...]
    grain: None = None

    def __post_init__(self) -> None:
        if not bool(self.offset.isfinite().all() and self.scale.isfinite().all() and (self.scale > 0).all()):
            raise ValueError("offset, scale: got one that is not finite or above 0, expected finite scales above 0")
        for name, size in (("offset", self.offset.shape), ("scale", self.scale.shape)):
            if len(size) > len(self.shape) or any(
                a not in (1, b) for a, b in zip(size[::-1], self.shape[::-1], strict=False)
            ):
                raise ValueError(f"{name}: got shape {list(size)}, expected one that broadcasts to {list(self.shape)}")

    @property
    def wide(self) -> bool:
        """Whether float32 cannot tell the data's values apart."""
        return bool((self.offset.abs() / self.scale).max() > _WIDE)

    def decode(self, x: Tensor) -> Tensor:
        check_shape(x, self.shape)
        return self.offset.to(x.device) + self.scale.to(x.device) * x.double()

    def encode(self, values: Tensor, seed: int | None = None) -> Tensor:
        check_shape(values, self.shape)
        return ((values.double() - self.offset) / self.scale).float()

    def log_volume(self, x: Tensor) -> Tensor:
        volume = float(self.scale.log().expand(self.shape).sum())
        return torch.full((len(x),), volume, dtype=torch.float64, device=x.device)

    def to_json(self) -> dict[str, Any]:
        return {"offset": self.offset.tolist(), "scale": self.scale.tolist(), "shape": list(self.shape)}


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Its value t is a number of the file: of a ``time`` seconds since 1970 (UTC where the cells name no zone), of
    ``words`` their place. x = (t - offset) / scale, beyond ``limit`` (where it is not 0) by its logarithm,
    ``limit (1 + ln(|x| / limit))``. A category of K words is K numbers, ``((place = k) - share_k) / scale``.

    Attributes:
        step, anchor: distance of neighbouring values, over which they are spread by noise, and one of them; 0:
            continuous.
        digits: decimals of the file's cells; None: as many as the number has.
        values: what t can be, where that is known: samples take the nearest. words: what the file has for the places.
        form: how a time is written, as of `datetime.strftime`, and %q for the quarter.
    """

    name: str
    kind: str = "number"
    offset: float = 0.0
    scale: float = 1.0
    limit: float = 0.0
    step: float = 0.0
    anchor: float = 0.0
    digits: int | None = None
    values: tuple[float, ...] = ()
    words: tuple[str, ...] = ()
    shares: tuple[float, ...] = ()
    form: str = ""

    def __post_init__(self) -> None:
        words, numbers = len(self.words), (self.offset, self.scale, self.limit, self.step, self.anchor, *self.values)
        indices = {"category": range(2, MAX_CLASSES + 1), "binary": (0, 2), "constant": (0, 1)}.get(self.kind, (0,))
        rules = [
            ("kind", self.kind, self.kind in KINDS, f"one of {', '.join(KINDS)}"),
            ("numbers", numbers, all(map(math.isfinite, (*numbers, *self.shares))), "finite ones"),
            ("scale", self.scale, self.scale > 0, "more than 0"),
            ("limit, step", (self.limit, self.step), self.limit >= 0 and self.step >= 0, "0 or more"),
            ("digits", self.digits, self.digits is None or 0 <= self.digits <= _DIGITS, f"0 to {_DIGITS}"),
            ("values", self.values, list(self.values) == sorted(set(self.values)), "rising ones"),
            ("words", words, words in indices, f"those of kind {self.kind}"),
            ("shares", len(self.shares), len(self.shares) == (words if self.kind == "category" else 0), "one a word"),
            ("form", self.form, _FORM.fullmatch(self.form) is not None, "one of a date or time"),
        ]
        for name, value, good, expected in rules:
            if not good:
                raise ValueError(f"{self.name!r}, {name}: got {value}, expected {expected}")
        if self.kind == "binary" and words and self.values != (0.0, 1.0):
            raise ValueError(f"{self.name!r}, values: got {self.values}, expected 0 and 1, the places of its words")

    @property
    def width(self) -> int:
        """How many numbers of a row it is."""
        return {"constant": 0, "category": len(self.words)}.get(self.kind, 1)

    @property
    def spread(self) -> float:
        """Width of its noise, the file's units."""
        if self.kind in ("category", "binary"):
            return SPREAD * (self.step or 1.0)
        return 0.0 if self.kind == "constant" else self.step

    @property
    def grain(self) -> float:
        """Width of its noise in x."""
        return 0.0 if self.limit else self.spread / self.scale

    def encode(self, t: Tensor) -> Tensor:
        """float64 ``[n, width]`` of values ``[n]``."""
        if self.kind == "constant":
            return t.new_empty(len(t), 0)
        if self.kind == "category":
            places = torch.arange(len(self.words), device=t.device)
            x = ((t[:, None] == places).double() - t.new_tensor(self.shares)) / self.scale
            return x.masked_fill(t.isnan()[:, None], math.nan)
        x = (t - self.offset) / self.scale
        if self.limit:
            x = torch.where(x.abs() > self.limit, x.sign() * self.limit * (1 + (x.abs() / self.limit).log()), x)
        return x[:, None]

    def decode(self, x: Tensor) -> Tensor:
        """Values float64 ``[n]`` of ``[n, width]``."""
        if self.kind == "constant":
            return x.new_full((len(x),), self.offset)
        if self.kind == "category":
            place = (x * self.scale + x.new_tensor(self.shares)).nan_to_num().argmax(1).double()
            return place.masked_fill(x.isnan().any(1), math.nan)
        t = x[:, 0]
        if self.limit:
            t = torch.where(t.abs() > self.limit, t.sign() * self.limit * (t.abs() / self.limit - 1).exp(), t)
        t = self.offset + self.scale * t
        if self.values:
            values = t.new_tensor(self.values)
            between = (values[1:] + values[:-1]) / 2
            return values[torch.bucketize(t.nan_to_num(), between)].masked_fill(t.isnan(), math.nan)
        if self.kind in ("whole", "time") and self.step:
            return self.anchor + ((t - self.anchor) / self.step).round() * self.step
        return t if self.digits is None else torch.round(t, decimals=self.digits)

    def log_volume(self, x: Tensor) -> Tensor:
        """float64 ``[n]`` of ``[n, width]``, see :meth:`Units.log_volume`."""
        if self.kind == "constant":
            return x.new_zeros(len(x))
        if self.kind == "category":
            return x.new_full((len(x),), len(self.words) * math.log(self.scale / self.spread))
        discrete = self.kind != "number" and self.spread > 0
        out = x.new_full((len(x),), math.log(self.scale / (self.spread if discrete else 1.0)))
        if self.limit:
            out = out + (x[:, 0].abs() / self.limit - 1).clamp_min(0)
        return out

    def cell(self, value: float) -> str:
        """A value as the file writes it; nothing for NaN."""
        if not math.isfinite(value):
            return "" if math.isnan(value) else repr(value)
        if self.words:
            return self.words[int(value)]
        if self.form:
            try:
                time = (_EPOCH + timedelta(seconds=value)).replace(tzinfo=UTC)
            except OverflowError:
                return ""
            # strftime pads no year, and what has microseconds may have milliseconds only
            return time.strftime(self.form.replace("%Y", f"{time.year:04d}").replace("%q", str((time.month + 2) // 3)))
        if self.kind in ("whole", "binary", "constant") and value.is_integer() and not self.digits:
            return str(int(value))
        return repr(value) if self.digits is None else f"{value:.{self.digits}f}"

    def __str__(self) -> str:
        what = self.kind
        if self.words or self.kind == "binary":
            words = self.words or tuple(map(self.cell, self.values))
            shown = words if len(words) <= 6 else (*words[:3], "...", words[-1])
            what += f" of {len(words)} ({', '.join(shown)})" if len(words) > 2 else f" ({', '.join(shown)})"
        elif self.kind == "constant":
            what += f" ({self.cell(self.offset)})"
        return f"{self.name}: {what}"


@dataclass(frozen=True)
class Table:
    """The columns of a table in the file's order; ``label``: name and place of a further one, which holds the class."""

    columns: tuple[Column, ...]
    label: tuple[str, int] | None = None

    @classmethod
    def plain(cls, names: Sequence[str]) -> Table:
        """Continuous numbers, as they are."""
        return cls(tuple(map(Column, names)))

    @property
    def names(self) -> tuple[str, ...]:
        """Of the columns, without the label's."""
        return tuple(column.name for column in self.columns)

    @property
    def shape(self) -> tuple[int]:
        """``(d,)``, of a row as the model sees it."""
        return (sum(column.width for column in self.columns),)

    @cached_property
    def grain(self) -> Tensor | None:
        grains = [column.grain for column in self.columns for _ in range(column.width)]
        return torch.tensor(grains, dtype=torch.float32) if any(grains) else None

    @property
    def coordinates(self) -> tuple[str, ...]:
        """Names of the d numbers of a row: the column's, and for a category each word's."""
        several = (c.words if c.kind == "category" else ("",) * c.width for c in self.columns)
        pairs = zip(self.columns, several, strict=True)
        return tuple(f"{c.name} {word}".rstrip() for c, words in pairs for word in words)

    def decode(self, x: Tensor) -> Tensor:
        parts = self._parts(x)
        return torch.stack([c.decode(v) for c, v in zip(self.columns, parts, strict=True)], 1)

    def encode(self, values: Tensor, seed: int | None = None) -> Tensor:
        check_shape(values, (len(self.columns),))
        x = torch.cat([c.encode(v) for c, v in zip(self.columns, values.double().unbind(1), strict=True)], 1).float()
        grain = self.grain
        return x if seed is None or grain is None else x + spread(grain, len(x), seed, 0).to(x.device)

    def log_volume(self, x: Tensor) -> Tensor:
        parts = self._parts(x)
        return torch.stack([c.log_volume(v) for c, v in zip(self.columns, parts, strict=True)]).sum(0)

    def to_json(self) -> dict[str, Any]:
        default = dataclasses.asdict(Column(""))
        columns = [{k: v for k, v in dataclasses.asdict(c).items() if v != default[k]} for c in self.columns]
        return {"columns": columns, "label": self.label}

    def _parts(self, x: Tensor) -> tuple[Tensor, ...]:
        check_shape(x, self.shape)
        return x.double().split([column.width for column in self.columns], 1)


@dataclass(frozen=True)
class _Affine:
    """JSON of :class:`Affine`."""

    offset: Any
    scale: Any
    shape: tuple[int, ...]


def from_json(stored: Any) -> Affine | Table | None:
    """What :meth:`Units.to_json` gave. ValueError for what it did not."""
    if isinstance(stored, dict) and "columns" in stored:
        table: Table = schema.build(Table, stored, "units")
        return table
    plain: _Affine | None = schema.build(_Affine | None, stored, "units")
    if plain is None:
        return None
    try:
        offset, scale = (torch.tensor(value, dtype=torch.float64) for value in (plain.offset, plain.scale))
    except (TypeError, ValueError, RuntimeError):
        raise ValueError("units: got an offset or a scale of other values, expected numbers") from None
    return Affine(offset, scale, plain.shape)


def spread(grain: Tensor, rows: int, seed: int, position: int) -> Tensor:
    """float32 ``[rows, d]``, uniform in ``grain`` about 0: a function of (seed, position + row)."""
    d = len(grain)
    u = streams.uniforms(seed, streams.DEQUANTISE, rows * d, first=position * d).reshape(rows, d)
    return grain * torch.from_numpy((u - 0.5).astype(np.float32))


def warn_of_float32(path: Path | str, what: str, offset: float, scale: float) -> None:
    """A warning where values so far from 0, beside their deviation, are not told apart as they are."""
    if abs(offset) > _LOST * scale > 0:
        text = f"{what} varies by {scale:.3g} about {offset:.6g}, which float32 hardly tells apart: standardise it"
        warnings.warn(f"{path}: {text}", stacklevel=3)


def warn_of_classes(path: Path | str, names: Sequence[str], labels: Tensor) -> None:
    """A warning where a class of the data has no row to learn from."""
    counts = torch.bincount(labels, minlength=len(names)).tolist()
    without = [name for name, count in zip(names, counts, strict=True) if not count]
    if without:
        shown = ", ".join(without[:6]) + (", ..." if len(without) > 6 else "")
        warnings.warn(f"{path}: no training row is of class {shown}: it is never drawn", stacklevel=3)


def bulk(values: NDArray[np.float64], deviation: float) -> tuple[float, float] | None:
    """Middle and deviation of most of the values, where ``deviation``, that of all, is a few outliers'; else None."""
    low, quarter, middle, three, high = np.quantile(values, (0.05, 0.25, 0.5, 0.75, 0.95)).tolist()
    most = max((three - quarter) / 1.349, (high - low) / 3.29)
    return (middle, most) if most > 0 and deviation > _HEAVY * most else None


def check_shape(x: Tensor, shape: Iterable[int]) -> None:
    """ValueError unless ``x`` is ``[n, *shape]``."""
    if list(x.shape[1:]) != list(shape):
        raise ValueError(f"x: got shape {list(x.shape)}, expected [n, {', '.join(map(str, shape))}]")


def seconds(time: datetime) -> float:
    """Seconds since 1970, of the clock that the cell names no zone of, or UTC."""
    if time.tzinfo is not None:
        time = time.astimezone(UTC).replace(tzinfo=None)
    return (time - _EPOCH) / timedelta(seconds=1)
