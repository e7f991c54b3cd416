"""What the axes of an array are, and whether it holds images, a table or fields."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ansn.errors import InputError

AXES = "NCDHWL"
"""Rows, channels, depth, height, width, length."""

_MOST_CHANNELS = 4  # of an image
_LINE = 16  # numbers a row from which it may be a line
_ALIKE = 0.8  # correlation of neighbours from which it is
_DARK = 0.1  # floats that are all below are no images
_LOOKED_AT = 4096  # rows


@dataclass(frozen=True)
class Layout:
    """Rows ``[N, C, ...]``, or ``[N, d]`` of a table, as a view, with what they were taken for and why."""

    rows: NDArray[Any]
    kind: str
    notes: tuple[str, ...] = ()


def arranged(rows: NDArray[Any], path: Path | str, kind: str | None, axes: str | None) -> Layout:
    """The array with its axes in order. ``kind``, ``axes``: as the user names them.

    Without them ``[N, d]`` is a table, or lines where neighbours are alike; integers from 0 and floats in [0, 1] are
    images, ``[N, H, W]``, ``[N, C, H, W]`` or ``[N, H, W, C]`` (an axis of 1 to 4 after N is taken for C before the
    last one is); other floats are fields: ``[N, C, L]`` of few long series, else ``[N, H, W]``, ``[N, C, H, W]``,
    ``[N, H, W, C]``, ``[N, D, H, W]``, ``[N, C, D, H, W]`` or ``[N, D, H, W, C]``.
    """
    if kind not in (None, "image", "table", "field"):
        raise InputError(f"kind: got {kind!r}, expected image, table or field")
    notes: list[str] = []
    if axes is None:
        axes, kind = _guessed(rows, path, kind, notes)
    given = axes.upper()
    wanted = [letter for letter in AXES if letter in given]
    sizes = [letter for letter in wanted if letter not in "NC"]
    known = sizes in ([], ["L"], ["W"], ["H", "W"], ["D", "H", "W"]) and (sizes or "C" in given)
    if len(given) != rows.ndim or sorted(given, key=AXES.find) != wanted or not known or "N" not in given:
        raise InputError(
            f"axes: got {axes!r} for {path} of shape {by(rows.shape)}, expected a letter an axis of N with C, CL, CHW"
            " or CDHW, such as NHWC"
        )
    view = rows.transpose([given.index(letter) for letter in wanted])
    if sizes and "C" not in given:
        view = view[:, None]
    if not sizes:
        kind = "table" if kind is None else kind
    elif kind is None:
        kind = "image" if len(sizes) == 2 and is_pictorial(view) else "field"
    fits = {"table": not sizes, "image": len(sizes) == 2, "field": bool(sizes)}[kind]
    if not fits:
        raise InputError(f"kind: got {kind} for {path}, axes {given}, expected another kind or other axes")
    return Layout(view, kind, tuple(notes))


def is_pictorial(rows: NDArray[Any]) -> bool:
    """Whether numbers look like grey values: integers from 0, or floats in [0, 1] that are not all next to 0, or whole
    floats from 0 to 255."""
    if rows.dtype == np.bool_ or rows.dtype.kind == "u":
        return True
    low, high = rows.min(), rows.max()
    if rows.dtype.kind == "i":
        return bool(low >= 0)
    in_bytes = low >= 0 and 1 < high <= 255 and bool((np.mod(rows, 1) == 0).all())
    return bool(low >= 0 and _DARK < high <= 1) or in_bytes


def by(shape: Any) -> str:
    """``3x32x32``."""
    return "x".join(map(str, shape)) or "()"


def _guessed(rows: NDArray[Any], path: Path | str, kind: str | None, notes: list[str]) -> tuple[str, str | None]:
    shape, few = rows.shape, range(1, _MOST_CHANNELS + 1)
    if rows.ndim == 2:
        if kind == "field" or (kind is None and _neighbours_alike(rows)):
            if kind is None:
                notes.append("neighbours in a row are alike: taken for lines (--kind table says otherwise)")
            return "NL", "field"
        return "NC", kind
    pictures = kind != "field" and is_pictorial(rows)
    if rows.ndim == 3:
        if shape[1] == 1 and rows.dtype.kind == "f" and kind != "image":
            return "NCL", "field"
        if pictures or kind == "image":
            return "NHW", kind
        if shape[1] <= 8 and 4 * shape[1] <= shape[2]:
            notes.append(f"axes taken for N C L, {shape[1]} series of {shape[2]} (--axes NHW: a map)")
            return "NCL", "field"
        notes.append(f"taken for maps of {shape[1]}x{shape[2]} (--axes NCL: series; --kind image: grey values)")
        return "NHW", "field"
    if rows.ndim == 4:
        if shape[1] in few:
            if shape[3] in few:
                notes.append(f"axes taken for N C H W, {shape[1]} channels (--axes NHWC says otherwise)")
            return "NCHW", kind
        if shape[3] in few:
            return "NHWC", kind
        if kind == "image":
            raise InputError(
                f"{path}: got images of shape {by(shape[1:])}, expected C 1 to 4, in [C, H, W] or [H, W, C]"
            )
        if 4 * shape[1] <= min(shape[2:]):
            notes.append(f"axes taken for N C H W, {shape[1]} channels (--axes NDHW: volumes)")
            return "NCHW", "field"
        notes.append(f"taken for volumes of {by(shape[1:])} (--axes NCHW: maps of {shape[1]} channels)")
        return "NDHW", "field"
    if rows.ndim == 5:
        return ("NDHWC" if shape[1] not in few and shape[4] in few else "NCDHW"), kind
    raise InputError(
        f"{path}: got an array of shape {by(shape)}, expected [N, d], [N, L], [N, C, L], [N, H, W], [N, C, H, W],"
        " [N, H, W, C], [N, D, H, W] or [N, C, D, H, W], or one long series with window (--window)"
    )


def _neighbours_alike(rows: NDArray[Any]) -> bool:
    """Whether the numbers of a row follow each other as those of a line do, and no two others at random."""
    if rows.shape[1] < _LINE or len(rows) < 3:
        return False
    some = rows[: _LOOKED_AT].astype(np.float64)
    deviation = some.std(0)
    if not np.isfinite(deviation).all() or (deviation == 0).mean() > 0.5:
        return False
    z = (some - some.mean(0)) / np.where(deviation > 0, deviation, 1.0)
    near, far = (z[:, k:] * z[:, :-k] for k in (1, rows.shape[1] // 2))
    return bool(np.median(near.mean(0)) > max(_ALIKE, np.median(far.mean(0)) + 0.1))
