"""NumPy arrays (.npy, .npz, never pickled), and the one place where any array becomes a data set."""

from __future__ import annotations

import lzma
import math
import warnings
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from ansn.data import layout, scientific, table
from ansn.data.cells import Cells
from ansn.data.dataset import Dataset
from ansn.data.fields import Index, check_finite, field
from ansn.data.files import opened, read_exactly
from ansn.data.holdout import SHARE, check_split, held_out, origin
from ansn.data.units import MAX_CLASSES, warn_of_classes
from ansn.errors import InputError

_IMAGE_KEYS = ("x", "images", "data")
_LABEL_KEYS = ("y", "labels", "label", "target", "targets")
_SPLIT_KEYS = ("x_{}", "{}_x", "{}_images", "images_{}"), ("y_{}", "{}_y", "{}_labels", "labels_{}")
_FULL = 128  # largest grey value from which all 256 are meant
_AXES, _MOST = 32, 2**48  # axes and numbers, beside those of no size
_PIECE = 1 << 22  # bytes converted at a time

Splits = tuple[Index, Index]
"""Rows of train, by which units are found, and of the split that is asked for."""


def load(
    path: Path,
    *,
    split: str = "train",
    test_fraction: float | Literal["auto"] | None = None,
    kind: str | None = None,
    axes: str | None = None,
    variable: str | None = None,
    window: int | None = None,
    standardise: bool | Literal["point"] | None = None,
    num_classes: int | None = None,
    ignore_columns: Sequence[str | int] | None = None,
    column_kinds: Mapping[str, str] | None = None,
    dequantise: bool = False,
    flip: bool = False,
) -> Dataset:
    """.npy: one array. .npz: rows under "x", "images" or "data" (or the only array), labels under "y" or "labels".
    .h5, .nc, .mat: the array ``variable``, or the only one.

    An .npz may hold its own splits: x_train, y_train, x_test, y_test, or train_images, train_labels and so on.
    window: cut one long series, [T] or [T, C], into lines of this length. InputError as in `to_dataset`.
    """
    check_split(split)
    notes: list[str] = []
    with opened(path) as stream:
        start = stream.read(8)
    labels: NDArray[Any] | None = None
    splits: Splits | None = None
    if start[:4] == b"PK\x03\x04" or path.suffix == ".npz":
        rows, labels, splits = _read_npz(path, split, variable, notes)
    elif scientific.is_scientific(path, start):
        rows, notes = scientific.read(path, variable)
    else:
        with opened(path) as stream:
            rows = read_npy(stream, path)
    at = -1 if axes is None else axes.upper().find("N")
    if axes is not None and 0 < at < rows.ndim == len(axes):  # rows are counted, and split, along the first axis
        if splits is not None:
            raise InputError(f"axes: got {axes} for {path}, which has its own splits, expected N first")
        rows, axes = np.moveaxis(rows, at, 0), axes[at] + axes[:at] + axes[at + 1 :]
    if splits is not None and isinstance(test_fraction, float) and test_fraction:
        notes.append(f"test_fraction {test_fraction:g} not used: the file has its splits")
    if window is not None:
        rows, splits = _windows(rows, window, split, test_fraction, path, notes)
        axes, kind = "NCL", "field"
    elif splits is None and rows.ndim and (labels is None or labels.shape[:1] == rows.shape[:1]):
        train, index = (held_out(len(rows), s, test_fraction, path) for s in ("train", split))
        splits = train, index
        notes += origin(len(rows), test_fraction)
    return to_dataset(
        rows, labels, path, splits=splits, kind=kind, axes=axes, num_classes=num_classes, standardise=standardise,
        ignore_columns=ignore_columns, column_kinds=column_kinds, dequantise=dequantise, flip=flip, notes=notes,
    )  # fmt: skip


def read_npy(stream: IO[bytes], path: Path | str, text: bool = False) -> NDArray[Any]:
    """One .npy array of numbers (``text``: or strings) in native byte order, float16 as float32, exactly as long as its
    header says.

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
    if dtype.kind not in ("buifU" if text else "buif"):
        raise InputError(f"{path}: got values of type {dtype}, expected integers, floats or booleans")
    sizes = all(type(size) is int and size >= 0 for size in shape) and len(shape) <= _AXES
    if not (sizes and dtype.itemsize and math.prod(max(size, 1) for size in shape) < _MOST):
        raise InputError(f"{path}: got {dtype} of shape {layout.by(shape)[:80]}, expected sizes that an array can have")
    count = math.prod(shape) * dtype.itemsize
    data = read_exactly(stream, count, path, f"its header says {dtype} of shape {layout.by(shape)}")
    values: NDArray[Any] = _widened(data, dtype) if dtype.str[1:] == "f2" else np.frombuffer(data, dtype=dtype)
    array = values.reshape(shape, order="F" if fortran else "C")
    return array.astype(array.dtype.newbyteorder("="), order="C", copy=False)


def _widened(data: bytearray, dtype: np.dtype[Any]) -> NDArray[np.float32]:
    """Numbers of float16 as float32. From the end, and what is done is given back: the two are never there in full."""
    out = np.empty(len(data) // 2, np.float32)
    while data:
        start = (len(data) - 1) // _PIECE * _PIECE
        out[start // 2 : len(data) // 2] = np.frombuffer(data[start:], dtype)
        del data[start:]
    return out


def _read_npz(
    path: Path, split: str, variable: str | None, notes: list[str]
) -> tuple[NDArray[Any], NDArray[Any] | None, Splits | None]:
    """(rows, labels or None, rows of the splits or None): where the file has splits, rows and labels of all."""
    try:
        with zipfile.ZipFile(path) as archive:
            keys = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
            rows_of, labels_of = _split_keys(keys)
            if variable is not None:
                rows_of, labels_of = {}, {}
                picked, label_keys = [variable], [key for key in _LABEL_KEYS if key in keys and key != variable]
                if variable not in keys:
                    raise InputError(f"{path}: got no array {variable!r}, expected one of {', '.join(keys)}")
            elif "train" in rows_of:
                picked = list(rows_of.values())
                label_keys = [labels_of[name] for name in rows_of if name in labels_of]
            else:
                picked, label_keys = [_pick(keys, path)], [key for key in _LABEL_KEYS if key in keys]
            arrays = {}
            for key in (*picked, *label_keys):
                with archive.open(f"{key}.npy") as stream:
                    arrays[key] = read_npy(stream, f"{path}[{key}]", key in label_keys)
    except InputError:
        raise
    except Exception as error:  # a damaged directory fails in many ways
        raise InputError(f"{path}: got a corrupt .npz archive ({error}), expected a whole one") from None
    if "train" not in rows_of:
        if len(label_keys) > 1:
            raise InputError(f"{path}: got labels twice, as {' and '.join(label_keys)}, expected one of them")
        left = [key for key in keys if key not in (*picked, *label_keys)]
        notes += [f"arrays left out: {', '.join(left)}"] if left else []
        return arrays[picked[0]], arrays[label_keys[0]] if label_keys else None, None
    if split not in rows_of:
        raise InputError(f"{path}: got {', '.join(picked)}, expected rows of the {split} split too")
    if label_keys and len(label_keys) < len(picked):
        raise InputError(f"{path}: got labels only as {', '.join(label_keys)}, expected them for {', '.join(picked)}")
    first, at, places = arrays[picked[0]], 0, {}
    for name, key in rows_of.items():
        rows = arrays[key]
        if rows.shape[1:] != first.shape[1:] or rows.dtype != first.dtype:
            got = f"{rows.dtype} of shape {layout.by(rows.shape)} in {key}"
            raise InputError(f"{path}: got {got}, expected {first.dtype} rows of {layout.by(first.shape[1:])}")
        if label_keys and len(arrays[labels_of[name]]) != len(rows):
            got = f"{len(rows)} rows but {len(arrays[labels_of[name]])} labels in {key}"
            raise InputError(f"{path}: got {got}, expected as many labels as rows")
        places[name], at = np.arange(at, at + len(rows)), at + len(rows)
    notes.append(f"splits of the file: {', '.join(f'{key} ({len(arrays[key]):,} rows)' for key in picked)}")
    left = [key for key in keys if key not in (*picked, *label_keys)]
    notes += [f"arrays left out: {', '.join(left)}"] if left else []
    labels = np.concatenate([arrays[key] for key in label_keys]) if label_keys else None
    return np.concatenate([arrays[key] for key in picked]), labels, (places["train"], places[split])


def _split_keys(keys: Sequence[str]) -> list[dict[str, str]]:
    """The keys of rows and of labels by split; a validation split is the test split where that is missing."""
    lower, found = {key.lower(): key for key in keys}, []
    for forms in _SPLIT_KEYS:
        named = {s: [lower[f.format(s)] for f in forms if f.format(s) in lower] for s in ("train", "test", "val")}
        one = {name: made[0] for name, made in named.items() if made}
        validation = one.pop("val", None)
        if validation is not None and "test" not in one:
            one["test"] = validation
        found.append(one)
    return found


def _pick(keys: list[str], path: Path) -> str:
    known = [key for key in _IMAGE_KEYS if key in keys]
    others = [key for key in keys if key not in _LABEL_KEYS]
    if len(known) == 1:
        return known[0]
    if not known and len(others) == 1:
        return others[0]
    listed = ", ".join(keys) or "no arrays"
    raise InputError(f"{path}: got {listed}, expected rows under one of {', '.join(_IMAGE_KEYS)}, or a single array")


def _windows(
    series: NDArray[Any], length: int, split: str, test_fraction: float | Literal["auto"] | None, path: Path,
    notes: list[str],
) -> tuple[NDArray[Any], Splits]:  # fmt: skip
    """Lines ``[N, C, length]``, each half over the next, and the places of train and of the split: the end of the
    series is the test split, of which no line of train has a part."""
    fraction = SHARE if isinstance(test_fraction, str) else test_fraction or 0.0
    named = ("train", "test") if fraction or split == "test" else ("train",)
    starts = [scientific.window_starts(len(series), length, split=name, fraction=fraction) for name in named]
    if series.ndim == 2 and series.shape[1] > len(series):
        warnings.warn(f"{path}: one series of {len(series)} with {series.shape[1]} channels: [T, C]?", stacklevel=4)
    lines = scientific.windows(series, length, np.concatenate(starts))
    notes.append(f"{len(lines):,} lines of {length:,} from one series of {len(series):,}, each half over the next")
    if fraction:
        notes.append(f"the last {len(starts[1]):,} of them held out for measurements")
    train = np.arange(len(starts[0]))
    return lines, (train, train if split == "train" else len(train) + np.arange(len(starts[1])))


def to_dataset(
    rows: NDArray[Any],
    labels: NDArray[Any] | None,
    path: Path | str,
    *,
    splits: Splits | None = None,
    kind: str | None = None,
    axes: str | None = None,
    name: str | None = None,
    num_classes: int | None = None,
    classes: Sequence[str] | None = None,
    levels: int | None = None,
    standardise: bool | Literal["point"] | None = None,
    ignore_columns: Sequence[str | int] | None = None,
    column_kinds: Mapping[str, str] | None = None,
    dequantise: bool = False,
    flip: bool = False,
    notes: Sequence[str] = (),
) -> Dataset:
    """Array to data set: images, a table or fields, as :func:`ansn.data.layout.arranged` takes them.

    Images: integers from 0 stay uint8 up to 255, of ``levels`` grey values (by default 256, or as many as there are
    where all are below 128), and are divided by the largest number of their bits above; floats hold [0, 1], or whole
    numbers up to 255; booleans are 0 and 1. Tables: see `ansn.data.table.load`. Fields become float32 with an offset
    and a scale for each channel, or with ``standardise="point"`` each point.

    Args:
        splits: rows of train and of the split; ranges and classes are of all rows.
        num_classes: labels are 0 to below it, whichever occur; by default the distinct labels are the classes, in
            ascending order. classes: their names.

    InputError naming the file: empty, another shape, non-finite, labels of another count or that are no whole numbers
    or words; an option that does not fit the kind of data.
    """
    if 0 in rows.shape:
        raise InputError(f"{path}: got no value in shape {layout.by(rows.shape)}, expected a row of at least one")
    taken = layout.arranged(rows, path, kind, axes)
    rows, everything = taken.rows, np.arange(len(rows))
    train, index = (everything, everything) if splits is None else splits
    code, names = categories(labels, len(rows), path, num_classes, classes)
    if code is not None and names is not None and num_classes is None and taken.kind != "table":
        warn_of_classes(path, names, code[torch.from_numpy(train)])
    for options, fits in (
        ({"dequantise": dequantise, "flip": flip}, "image"),
        ({"standardise": standardise}, "field" if taken.kind == "image" else taken.kind),
        ({"ignore_columns": ignore_columns, "column_kinds": column_kinds}, "table"),
    ):
        for option, given in options.items():
            if given and taken.kind != fits:
                raise InputError(f"{option}: got {given} for {path}, which holds {taken.kind}s, expected {fits}s")
    standardise = True if standardise is None else standardise
    lines, name = [*notes, *taken.notes], name or Path(path).name
    if taken.kind == "table":
        cells = Cells([f"x{j}" for j in range(rows.shape[1])], [c.astype(np.float64) for c in rows.T], lines)
        return table.from_cells(
            cells, path, splits=(train, index), standardise=standardise,  # type: ignore[arg-type]
            ignore_columns=ignore_columns,
            column_kinds=column_kinds, labels=None if code is None or names is None else (code, names), name=name,
        )  # fmt: skip
    common: dict[str, Any] = {
        "name": name, "labels": None if code is None else code[torch.from_numpy(index)], "classes": names,
        "num_classes": None if names is None else len(names),
    }  # fmt: skip
    if taken.kind == "field":
        x, units = field(rows, train, index, path, standardise)
        return Dataset(x, kind="field", units=units, notes=lines, **common)
    images, levels = _as_images(rows, path, levels, lines)
    if dequantise and images.dtype != np.uint8:
        raise InputError(f"dequantise: got True for {rows.dtype} images in {path}, expected 8-bit ones")
    images = np.ascontiguousarray(images if len(index) == len(images) else images[index])
    return Dataset(torch.from_numpy(images), levels=levels, dequantise=dequantise, flip=flip, notes=lines, **common)


def categories(
    labels: NDArray[Any] | None,
    count: int,
    path: Path | str,
    num_classes: int | None = None,
    classes: Sequence[str] | None = None,
) -> tuple[torch.Tensor | None, tuple[str, ...] | None]:
    """Labels as int64 [count] of 0..K-1 and the K names: of whole numbers or words the distinct ones, ascending; with
    ``num_classes`` the numbers as they are.

    InputError: another shape or count, values that are neither, or not below num_classes.
    """
    if labels is None:
        if num_classes is not None:
            raise InputError(f"num_classes: got {num_classes} for {path}, which has no labels, expected None")
        return None, None
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise InputError(f"{path}: got labels of shape {layout.by(labels.shape)}, expected one label a row, [{count}]")
    if len(labels) != count:
        raise InputError(f"{path}: got {count} rows but {len(labels)} labels, expected as many labels as rows")
    if labels.dtype.kind == "f" and not (np.isfinite(labels).all() and (labels == np.floor(labels)).all()):
        bad = labels[~(np.isfinite(labels) & (labels == np.floor(labels)))][0]
        raise InputError(f"{path}: got label {bad:g}, expected whole numbers or words")
    if num_classes is not None:
        if labels.dtype.kind == "U":
            raise InputError(f"{path}: got labels that are words, expected numbers from 0 to {num_classes - 1}")
        outside = next((int(v) for v in (labels.min(), labels.max()) if not 0 <= v < num_classes), None)
        if outside is not None:
            raise InputError(f"{path}: got label {outside}, expected 0 to {num_classes - 1}")
        names = map(str, range(num_classes)) if classes is None else classes
        return torch.from_numpy(labels.astype(np.int64)), tuple(names)
    distinct, code = np.unique(labels, return_inverse=True)
    if len(distinct) > MAX_CLASSES:
        raise InputError(f"{path}: got {len(distinct)} different labels, expected at most {MAX_CLASSES} classes")
    words = (str(v if labels.dtype.kind == "U" else int(v)) for v in distinct)
    return torch.from_numpy(code.astype(np.int64)), tuple(words) if classes is None else tuple(classes)


def _as_images(
    rows: NDArray[Any], path: Path | str, levels: int | None, notes: list[str]
) -> tuple[NDArray[Any], int]:
    """uint8 or float32 [N, C, H, W], and the number of grey values."""
    if rows.shape[1] > 4:
        raise InputError(f"{path}: got {rows.shape[1]} channels, expected images of 1 to 4; --kind field takes any")
    if rows.dtype == np.bool_:
        return rows.astype(np.uint8), 2
    floats = rows.dtype.kind == "f"
    if floats:
        check_finite(rows, path)
    low, high = rows.min(), rows.max()
    whole = not floats or (high > 1 and bool((np.mod(rows, 1) == 0).all()))
    if low < 0 or (floats and high > (255 if whole else 1)):
        raise InputError(
            f"{path}: got {rows.dtype} image values from {low:g} to {high:g}, expected integers from 0 or floats in 0"
            " to 1; --kind field takes any"
        )
    if not whole:
        notes.append("floats from 0 to 1, taken for grey values (--kind field: in their own scale)")
        return rows.astype(np.float32, copy=False), 256
    top = int(high)
    notes += ["whole numbers up to 255, taken for grey values"] if floats else []
    if top > 255:
        full = 2 ** top.bit_length() - 1
        notes.append(f"grey values up to {top}, taken for {top.bit_length()} bits: {full} becomes 1")
        return (rows / np.float64(full)).astype(np.float32), 256
    if levels is None and top < _FULL:
        levels = max(2, top + 1)
        notes.append(f"grey values up to {top}: {levels - 1} becomes 1")
    return rows.astype(np.uint8), levels or 256
