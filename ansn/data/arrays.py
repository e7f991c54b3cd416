"""NumPy arrays (.npy, .npz, never pickled), and the one place where any array becomes a data set."""

from __future__ import annotations

import lzma
import math
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray

from ansn.data.dataset import Dataset
from ansn.data.files import opened, read_exactly
from ansn.data.holdout import check_split, held_out
from ansn.errors import InputError

_IMAGE_KEYS = ("x", "images", "data")
_LABEL_KEYS = ("y", "labels")
_MAX_CLASSES = 65536  # more is a mistake: a continuous target, or an identifier, taken for a label


def load(
    path: Path,
    *,
    split: str = "train",
    test_fraction: float | None = None,
    standardise: bool = False,
    num_classes: int | None = None,
    dequantise: bool = False,
    flip: bool = False,
) -> Dataset:
    """.npy: one array. .npz: rows under "x", "images" or "data" (or the only array), labels under "y" or
    "labels".

    An .npz may hold its own splits as x_train, y_train, x_test, y_test. InputError as in `to_dataset`.
    """
    check_split(split)
    with opened(path) as stream:
        start = stream.read(4)
    if start[:4] == b"PK\x03\x04" or path.suffix == ".npz":
        rows, labels, split_here = _read_npz(path, split)
    else:
        with opened(path) as stream:
            rows, labels, split_here = read_npy(stream, path), None, False
    if not split_here:
        rows, labels = _take(rows, labels, split, test_fraction, path)
    return to_dataset(
        rows,
        labels,
        path,
        num_classes=num_classes,
        standardise=standardise,
        dequantise=dequantise,
        flip=flip,
    )


def read_npy(stream: IO[bytes], path: Path | str) -> NDArray[Any]:
    """One .npy array of numbers in native byte order, exactly as long as its header says.

    InputError: not .npy, malformed header, object (pickled) or other non-numeric type, truncated, trailing
    bytes.
    """
    try:
        version = np.lib.format.read_magic(stream)
        if version == (1, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
        elif version == (2, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_2_0(stream)
        else:
            raise InputError(f"{path}: got .npy {version[0]}.{version[1]}, expected 1.0 or 2.0, as for numbers")
    except (InputError, EOFError, OSError, zipfile.BadZipFile, zlib.error, lzma.LZMAError):
        raise  # of the file around the array: told by whoever opened that
    except Exception as error:  # the header is a Python literal, and may break in as many ways
        raise InputError(f"{path}: got no readable .npy array ({error}), expected one") from None
    if dtype.hasobject:
        raise InputError(
            f"{path}: got pickled Python objects (dtype {dtype}), expected numbers; pickles are never read"
        )
    if dtype.kind not in "buif":
        raise InputError(f"{path}: got values of type {dtype}, expected integers, floats or booleans")
    count = math.prod(shape) * dtype.itemsize
    data = read_exactly(stream, count, path, f"its header says {dtype} of shape {_by(shape)}")
    array: NDArray[Any] = np.frombuffer(data, dtype=dtype).reshape(shape, order="F" if fortran else "C")
    return array.astype(dtype.newbyteorder("="), order="C", copy=False)


def _read_npz(path: Path, split: str) -> tuple[NDArray[Any], NDArray[Any] | None, bool]:
    """(rows, labels or None, whether the file itself holds the split)."""
    try:
        with zipfile.ZipFile(path) as archive:
            keys = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
            pick = f"x_{split}"
            split_here = pick in keys
            if split_here:
                label_keys: tuple[str, ...] = (f"y_{split}",)
            else:
                label_keys = _LABEL_KEYS
                pick = _pick(keys, path)
            arrays = {}
            for key in (pick, *(k for k in label_keys if k in keys)):
                with archive.open(f"{key}.npy") as stream:
                    arrays[key] = read_npy(stream, f"{path}[{key}]")
    except InputError:
        raise
    except Exception as error:  # a damaged directory fails in many ways
        raise InputError(f"{path}: got a corrupt .npz archive ({error}), expected a whole one") from None
    rows = arrays.pop(pick)
    if len(arrays) > 1:
        raise InputError(f"{path}: got labels twice, as {' and '.join(arrays)}, expected one of them")
    return rows, next(iter(arrays.values()), None), split_here


def _pick(keys: list[str], path: Path) -> str:
    known = [key for key in _IMAGE_KEYS if key in keys]
    others = [key for key in keys if key not in _LABEL_KEYS]
    if len(known) == 1:
        return known[0]
    if not known and len(others) == 1:
        return others[0]
    listed = ", ".join(keys) or "no arrays"
    raise InputError(f"{path}: got {listed}, expected rows under one of {', '.join(_IMAGE_KEYS)}, or a single array")


def _take(
    rows: NDArray[Any], labels: NDArray[Any] | None, split: str, test_fraction: float | None, path: Path
) -> tuple[NDArray[Any], NDArray[Any] | None]:
    if rows.ndim == 0 or (labels is not None and labels.shape[:1] != rows.shape[:1]):
        return rows, labels  # to_dataset says what is wrong
    if split == "train" and not test_fraction:
        return rows, labels
    index = held_out(len(rows), split, test_fraction, path)
    return rows[index], None if labels is None else labels[index]


def to_dataset(
    rows: NDArray[Any],
    labels: NDArray[Any] | None,
    path: Path | str,
    *,
    name: str | None = None,
    num_classes: int | None = None,
    classes: Sequence[str] | None = None,
    levels: int = 256,
    standardise: bool = False,
    dequantise: bool = False,
    flip: bool = False,
) -> Dataset:
    """Array to data set: [N, d] are vectors; [N, H, W], [N, C, H, W] and [N, H, W, C] are images, C from 1
    to 4; [N, 1, L] of floats are lines (more channels would look like a grey image), [N, C, D, H, W] volumes.

    Integer images hold 0..255 and stay uint8 (booleans become 0 and 255), float images hold [0, 1]. An axis
    of 1 to 4 right after N is taken for C before the last one is. Lines, volumes and vectors become float32 in the
    units they have, vectors standardised to mean 0 and variance 1 (divisor n) on request.

    InputError naming the file: empty, another shape, non-finite, image values out of range, labels of another
    count, not whole, or out of range; an option that does not fit the kind of data.
    """
    if rows.ndim not in (2, 3, 4, 5):
        raise InputError(
            f"{path}: got an array of shape {_by(rows.shape)}, "
            "expected [N, d], [N, 1, L], [N, H, W], [N, C, H, W], [N, H, W, C] or [N, C, D, H, W]"
        )
    if 0 in rows.shape:
        raise InputError(f"{path}: got no value in shape {_by(rows.shape)}, expected a row of at least one")
    if rows.dtype.kind == "f":
        check_finite(rows, path)
    checked, num_classes = checked_labels(labels, len(rows), path, num_classes)
    common: dict[str, Any] = {
        "name": name or Path(path).name,
        "labels": checked,
        "num_classes": num_classes,
        "classes": classes,
    }
    field = rows.ndim == 5 or (rows.ndim == 3 and rows.shape[1] == 1 and rows.dtype.kind == "f")
    if rows.ndim == 2 or field:
        for option, given in (("dequantise", dequantise), ("flip", flip)):
            if given:
                shape = _by(rows.shape[1:])
                raise InputError(f"{option}: got True for rows of {shape} values in {path}, expected images")
    if rows.ndim == 2:
        return vectors(rows.astype(np.float64), path, standardise=standardise, **common)
    if standardise:
        raise InputError(f"standardise: got True for rows of {_by(rows.shape[1:])} in {path}, expected vectors")
    if field:
        with np.errstate(over="ignore"):
            rows = rows.astype(np.float32, order="C")
        check_finite(rows, path)  # float32 holds less than float64
        return Dataset(torch.from_numpy(rows), **common)
    images = _as_images(rows, path)
    if dequantise and images.dtype != np.uint8:
        raise InputError(f"dequantise: got True for {rows.dtype} images in {path}, expected 8-bit ones")
    return Dataset(torch.from_numpy(images), levels=levels, dequantise=dequantise, flip=flip, **common)


def vectors(
    values: NDArray[np.float64],
    path: Path | str,
    *,
    standardise: bool,
    columns: Sequence[str] | None = None,
    **common: Any,
) -> Dataset:
    """Vectors float64 [N, d] as float32, with mean and standard deviation (divisor N) removed if asked.

    InputError naming the column: constant (its standard deviation is 0), or too large for float32.
    """
    names = tuple(columns) if columns is not None else tuple(f"x{j}" for j in range(values.shape[1]))
    offset, scale = np.zeros(len(names)), np.ones(len(names))
    if standardise:
        with np.errstate(over="ignore", invalid="ignore"):
            offset, scale = values.mean(0), values.std(0)
        constant = (values.min(0) == values.max(0)) | (scale == 0)
        if constant.any():
            j = int(np.argmax(constant))
            raise InputError(
                f"{path}: got a constant column {names[j]!r} ({values[0, j]:g} in {len(values)} rows), expected "
                "one that varies; leave it out (CSV: ignore_columns) or set standardise off"
            )
        if not np.isfinite(scale).all():
            j = int(np.argmin(np.isfinite(scale)))
            raise InputError(
                f"{path}: got a variance of column {names[j]!r} that overflows, expected values below about 1e150"
            )
        values = (values - offset) / scale
    with np.errstate(over="ignore"):
        x = values.astype(np.float32)
    if not np.isfinite(x).all():
        row, j = (int(v) for v in np.argwhere(~np.isfinite(x))[0])
        raise InputError(
            f"{path}: got {values[row, j]:g} in row {row}, column {names[j]!r}, expected what float32 can hold"
        )
    return Dataset(
        torch.from_numpy(x),
        columns=names,
        offset=torch.from_numpy(offset),
        scale=torch.from_numpy(scale),
        **common,
    )


def checked_labels(
    labels: NDArray[Any] | None, count: int, path: Path | str, num_classes: int | None = None
) -> tuple[torch.Tensor | None, int | None]:
    """Labels as int64 [count] and their number of classes (max + 1 if not given).

    InputError: another shape or count, values that are not whole, negative, or not below num_classes.
    """
    if labels is None:
        if num_classes is not None:
            raise InputError(f"num_classes: got {num_classes} for {path}, which has no labels, expected None")
        return None, None
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise InputError(f"{path}: got labels of shape {_by(labels.shape)}, expected one label a row, [{count}]")
    if len(labels) != count:
        raise InputError(f"{path}: got {count} rows but {len(labels)} labels, expected as many labels as rows")
    if labels.dtype.kind == "f" and not (np.isfinite(labels).all() and (labels == np.floor(labels)).all()):
        bad = labels[~(np.isfinite(labels) & (labels == np.floor(labels)))][0]
        raise InputError(f"{path}: got label {bad:g}, expected whole numbers from 0")
    low, high = int(labels.min()), int(labels.max())
    limit = num_classes if num_classes is not None else _MAX_CLASSES
    if low < 0 or high >= limit:
        raise InputError(f"{path}: got label {low if low < 0 else high}, expected 0 to {limit - 1}")
    return torch.from_numpy(labels.astype(np.int64)), num_classes if num_classes is not None else high + 1


def check_finite(rows: NDArray[Any], path: Path | str) -> None:
    finite = np.isfinite(rows)
    if not finite.all():
        place = tuple(int(i) for i in np.unravel_index(int(np.argmin(finite)), rows.shape))
        raise InputError(f"{path}: got {rows[place]} at index {list(place)}, expected finite numbers")


def _as_images(rows: NDArray[Any], path: Path | str) -> NDArray[Any]:
    """uint8 or float32 [N, C, H, W], contiguous."""
    if rows.ndim == 3:
        rows = rows[:, None]
    elif not 1 <= rows.shape[1] <= 4:
        if not 1 <= rows.shape[3] <= 4:
            raise InputError(
                f"{path}: got images of shape {_by(rows.shape[1:])}, expected C 1 to 4, in [C, H, W] or [H, W, C]"
            )
        rows = np.moveaxis(rows, 3, 1)
    if rows.dtype == np.bool_:
        rows = rows.astype(np.uint8) * np.uint8(255)
    elif rows.dtype != np.uint8:
        top = 1 if rows.dtype.kind == "f" else 255
        low, high = rows.min(), rows.max()
        if low < 0 or high > top:
            raise InputError(
                f"{path}: got {rows.dtype} image values from {low:g} to {high:g}, "
                "expected integers in 0 to 255 or floats in 0 to 1"
            )
        rows = rows.astype(np.float32 if rows.dtype.kind == "f" else np.uint8)
    return np.ascontiguousarray(rows)


def _by(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "()"
