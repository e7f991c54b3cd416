"""Data: a name or a path becomes a `Dataset`, whose batches are functions of (seed, step)."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any, Literal

from ansn.data import arrays, cells, cifar10, digits, foreign, idx, scientific, table, toy2d
from ansn.data.dataset import Dataset, iterate
from ansn.data.files import opened, plain_name
from ansn.errors import InputError

__all__ = ["NAMES", "Dataset", "iterate", "load_dataset"]

FILES = ("mnist", "fashion-mnist", "cifar10")
"""Names of data whose files have to be given."""
NAMES = ("digits", *FILES, "toy2d")


def load_dataset(
    name_or_path: str | os.PathLike[str],
    *,
    root: str | os.PathLike[str] | None = None,
    split: str = "train",
    dequantise: bool | None = None,
    flip: bool | None = None,
    test_fraction: float | Literal["auto"] | None = None,
    kind: str | None = None,
    axes: str | None = None,
    window: int | None = None,
    num_classes: int | None = None,
    standardise: bool | Literal["point"] | None = None,
    label_column: str | int | None = None,
    ignore_columns: Sequence[str | int] | None = None,
    column_kinds: Mapping[str, str] | None = None,
    header: bool | None = None,
    image_size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    split_folders: Mapping[str, str] | None = None,
    memory_limit: int | None = None,
    num_workers: int | None = None,
    samples: int | None = None,
    data_seed: int | None = None,
) -> Dataset:
    """A data set by name, or from a file or folder. Options left at None take the format's default.

    Names:
        "digits": scikit-learn's 8x8 digits, no file needed.
        "mnist", "fashion-mnist": IDX files; "cifar10": the binary version; in ``root`` or its usual
            sub-folders.
        "toy2d", "toy2d:KIND": points of a mixture in the plane, generated.
    Paths:
        tables: .csv, .tsv, .parquet (with pyarrow), .xlsx (with openpyxl);
        arrays: .npy, .npz, .h5, .nc and .mat (PATH:VARIABLE, with h5py), which hold a table, images or fields;
        images: a folder of them, an IDX file, a folder of IDX, CIFAR-10, CIFAR-100 or STL-10 files.
        Everything but .npz may be plain, gzip or xz; compression and formats are recognised by content.
    What was understood is in ``Dataset.understood()``; what is doubtful is a warning.

    Args:
        root: folder of the named data sets' files.
        split: "train" or "test".
        dequantise: 8-bit images: (v + u) / 256, u uniform in [0, 1), in place of v / 255.
        flip: images: mirror left to right with probability 1/2.
        test_fraction: data without splits of its own: share of the rows held out as the test split; "auto": a tenth of
            20 rows or more.
        kind, axes, window: arrays: "image", "table" or "field"; a letter an axis, such as NHWC or NCL; length of the
            lines that one long series is cut into. See `ansn.data.layout`.
        num_classes: arrays: labels are 0 to below it; by default the distinct ones are the classes.
        standardise: tables and fields: columns or channels to mean 0 and variance 1 (the default), or "point", each
            point of a field.
        label_column, ignore_columns, column_kinds, header: tables, see `ansn.data.table.load`.
        image_size (pixels), channels, split_folders, memory_limit (bytes), num_workers: folder of images, see
            `ansn.data.folder.load`.
        samples, data_seed: toy2d, see `ansn.data.toy2d.load`.

    Raises:
        InputError (a ValueError): one line naming the file, what came and what was expected; also for an
            option that does not apply to this data.
    """
    given = dict(locals())
    for name in ("name_or_path", "root", "split"):
        del given[name]
    load, options = _named(name_or_path, root)
    if load is None:
        load, options = _by_content(name_or_path)
    takes = signature(load).parameters
    for option, value in given.items():
        if value is None or (value in (False, "auto") and option not in takes):  # "no" to what cannot be is no mistake
            continue
        if option == "kind" and option not in takes:
            only = "table" if getattr(load, "func", load) in (table.load, toy2d.load) else "image"
            if value != only:
                raise InputError(f"kind: got {value} for {name_or_path}, which holds {only}s, expected {only}")
            continue
        if option not in takes:
            known = ", ".join(name for name, p in takes.items() if p.kind is p.KEYWORD_ONLY)
            raise InputError(f"{option}: got {value!r} for {name_or_path}, expected no such option; it takes {known}")
        options[option] = value
    return load(split=split, **options)


def _named(
    name: str | os.PathLike[str], root: str | os.PathLike[str] | None
) -> tuple[Callable[..., Dataset] | None, dict[str, object]]:
    """(loader, its options) of a known name, or (None, {})."""
    place = None if root is None else Path(root)
    if name == "digits":
        return digits.load, {}
    if name in ("mnist", "fashion-mnist"):
        return partial(idx.load_named, name, place), {}
    if name == "cifar10":
        return partial(cifar10.load_named, place), {}
    if isinstance(name, str) and (name == "toy2d" or name.startswith("toy2d:")):
        return partial(toy2d.load, name[6:] if ":" in name else None), {}
    return None, {}


def _by_content(name: str | os.PathLike[str]) -> tuple[Callable[..., Dataset], dict[str, Any]]:
    """The loader of the path's format, and its options."""
    text, variable = scientific.split_variable(os.fspath(name))
    path, options = Path(text), {} if variable is None else {"variable": variable}
    if os.path.isdir(path):  # unlike Path.is_dir, False for names too long or forbidden
        if idx.is_idx_folder(path):
            return partial(idx.load_folder, path), {}
        if cifar10.is_cifar10_folder(path):
            return partial(cifar10.load_folder, path), {}
        from ansn.data import folder  # slow to import: only when used

        return partial(folder.load, path), {}
    if not os.path.exists(path):
        raise InputError(f"{path}: got no such file or folder, expected one or a name ({', '.join(NAMES)})")
    if not os.path.isfile(path):
        raise InputError(f"{path}: got a pipe, socket or device, expected a file, which can be read twice, or a folder")
    with opened(path) as stream:
        start = stream.read(1024)
    name = plain_name(path)
    named = name.endswith(".npz") or scientific.is_scientific(path, start)
    if options and not named:
        raise InputError(f"{name}: got {variable!r} after the path of a file without named arrays, expected the path")
    if cells.is_table(path):
        return partial(table.load, path), {}
    error = foreign.advice(path, start)
    if error is not None:
        raise InputError(f"{error}")
    if named or start.startswith(b"\x93NUMPY") or name.endswith(".npy"):
        return partial(arrays.load, path), options
    if start.startswith(b"PK\x03\x04"):
        return partial(arrays.load, path), {}
    if start.startswith(b"\0\0") or "-idx" in name or ".idx" in name or name.endswith("-ubyte"):
        return partial(idx.load_file, path), {}
    raise InputError(
        f"{path}: got an unknown format, expected .csv, .tsv, .parquet, .xlsx, .npy, .npz, .h5, .nc, .mat, IDX, or a"
        " folder (of images, IDX, CIFAR-10, CIFAR-100 or STL-10)"
    )
