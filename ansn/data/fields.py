"""Fields: lines, maps and volumes of floats, each channel or point with an offset and a scale."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from ansn.data.files import require_memory
from ansn.data.units import Affine, bulk, warn_of_float32
from ansn.errors import InputError

_CHUNK = 1 << 19  # numbers converted at a time
_MOST = 64  # channels of which outliers are looked for

Index = NDArray[np.int64]


def field(
    rows: NDArray[Any], train: Index, index: Index, path: Path | str, standardise: bool | Literal["point"] = True
) -> tuple[torch.Tensor, Affine]:
    """Rows ``index`` of ``[N, C, ...]`` as float32 and their units: mean and deviation of each channel, or with "point"
    each point, over the rows ``train``, in float64. In pieces, so that no further copy is made; float32 rows are
    overwritten (``index`` ascends).

    InputError for what is not finite, or is not in float32.
    """
    # In the place of the rows where that can be: nobody else has them.
    reused = rows.dtype == np.float32 and rows.flags.c_contiguous and rows.flags.writeable
    require_memory(0 if reused else 4 * len(index) * math.prod(rows.shape[1:]), path)
    offset, scale = _moments(rows, train, path, standardise == "point")
    if standardise:
        _robust(rows, train, offset, scale, path)
    else:
        for c, (mean, deviation) in enumerate(zip(offset.ravel().tolist(), scale.ravel().tolist(), strict=True)):
            warn_of_float32(path, f"channel {c}", mean, deviation)
        offset, scale = (np.full((1, rows.shape[1], *(1,) * (rows.ndim - 2)), v) for v in (0.0, 1.0))
    out, at = rows[: len(index)] if reused else np.empty((len(index), *rows.shape[1:]), np.float32), 0
    for piece in _pieces(rows, index):
        part = rows[piece].astype(np.float64)
        check_finite(part, path, int(piece[0]))
        with np.errstate(over="ignore"):
            out[at : at + len(piece)] = (part - offset) / scale
        check_finite(out[at : at + len(piece)], path, int(piece[0]))  # float32 holds less than float64
        at += len(piece)
    units = Affine(torch.from_numpy(offset[0]), torch.from_numpy(scale[0]), tuple(rows.shape[1:]))
    return torch.from_numpy(out), units


def check_finite(rows: NDArray[Any], path: Path | str, first: int = 0) -> None:
    """InputError naming the first number that is not finite; ``first``: the place of the first row."""
    finite = np.isfinite(rows)
    if not finite.all():
        row, *rest = (int(i) for i in np.unravel_index(int(np.argmin(finite)), rows.shape))
        place = [first + row, *rest]
        raise InputError(f"{path}: got {rows[row][tuple(rest)]} at index {place}, expected finite numbers")


def _pieces(rows: NDArray[Any], index: Index) -> Sequence[Index]:
    step = max(1, _CHUNK // math.prod(rows.shape[1:]))
    return [index[k : k + step] for k in range(0, len(index), step)]


def _moments(
    rows: NDArray[Any], train: Index, path: Path | str, point: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    axes = (0,) if point else (0, *range(2, rows.ndim))
    near = rows[train[:1]].astype(np.float64).mean(axes, keepdims=True)  # so that nothing cancels in the squares
    total, square, count = np.zeros_like(near), np.zeros_like(near), 0
    for piece in _pieces(rows, train):
        part = rows[piece].astype(np.float64)
        check_finite(part, path, int(piece[0]))
        with np.errstate(over="ignore", invalid="ignore"):
            part -= near
            total += part.sum(axes, keepdims=True)
            square += np.square(part).sum(axes, keepdims=True)
        count += part.size // near.size
    with np.errstate(over="ignore", invalid="ignore"):
        variance = (square / count - (total / count) ** 2).clip(0)
    if not np.isfinite(variance).all():
        raise InputError(f"{path}: got a variance that overflows, expected values below about 1e150")
    # What varies by rounding alone, or not at all, has no scale: it takes that of the rest.
    offset = near + total / count
    variance[variance <= np.square(1e-12 * offset)] = float(variance.max()) or 1.0
    return offset, np.sqrt(variance)


def _robust(
    rows: NDArray[Any], train: Index, offset: NDArray[np.float64], scale: NDArray[np.float64], path: Path | str
) -> None:
    """Where outliers rule a channel, its offset and scale become those of the bulk; a warning names the worst."""
    if offset.size > _MOST or offset.size != rows.shape[1]:  # of points there are too few values each
        return
    some = train[:: max(1, len(train) * math.prod(rows.shape[1:]) // _CHUNK)]
    for c in range(rows.shape[1]):
        values = rows[some, c].astype(np.float64)
        at = (0, c, *(0,) * (rows.ndim - 2))
        most = bulk(values, float(scale[at]))
        if most is not None:
            middle = most[0]
            worst = int(train[int(np.argmax([np.abs(rows[i, c].astype(np.float64) - middle).max() for i in train]))])
            warnings.warn(
                f"{path}: channel {c} has outliers, the worst in row {worst}; its scale is that of its other values",
                stacklevel=5,
            )
            offset[at], scale[at] = most
