"""Data: a name or a path becomes a `Dataset`, whose batches are functions of (seed, step)."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from inspect import signature
from pathlib import Path

from ansn.data import arrays, cifar10, digits, idx, table, toy2d
from ansn.data.dataset import Dataset, iterate
from ansn.data.files import opened
from ansn.errors import InputError

__all__ = ["NAMES", "Dataset", "iterate", "load_dataset"]

NAMES = ("digits", "mnist", "fashion-mnist", "cifar10", "toy2d")


def load_dataset(
    name_or_path: str | os.PathLike[str],
    *,
    root: str | os.PathLike[str] | None = None,
    split: str = "train",
    dequantise: bool | None = None,
    flip: bool | None = None,
    test_fraction: float | None = None,
    num_classes: int | None = None,
    standardise: bool | None = None,
    label_column: str | int | None = None,
    ignore_columns: Sequence[str | int] | None = None,
    header: bool | None = None,
    image_size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    memory_limit: int | None = None,
    num_workers: int | None = None,
    kind: str | None = None,
    samples: int | None = None,
    data_seed: int | None = None,
) -> Dataset:
    """A data set by name, or from a file or folder. Options left at None take the format's default.

    Names:
        "digits": scikit-learn's 8x8 digits, no file needed.
        "mnist", "fashion-mnist": IDX files; "cifar10": the binary version; in ``root`` or its usual
            sub-folders.
        "toy2d", "toy2d:KIND": points of a mixture in the plane, generated.
    Paths: .npy, .npz, .csv, an IDX file, a folder of IDX or CIFAR-10 files, a folder of images. Everything
        but .npz may be plain, gzip or xz; compression and IDX are recognised by content.

    Args:
        root: folder of the named data sets' files.
        split: "train" or "test".
        dequantise: 8-bit images: (v + u) / 256, u uniform in [0, 1), in place of v / 255.
        flip: images: mirror left to right with probability 1/2.
        test_fraction: data without splits of its own: share of the rows held out as the test split.
        num_classes: arrays: number of classes, if it is more than the largest label + 1.
        standardise: columns to mean 0 and variance 1 (default: CSV yes, arrays no).
        label_column, ignore_columns, header: CSV, see `ansn.data.table.load`.
        image_size (pixels), channels, memory_limit (bytes), num_workers: folder of images, see
            `ansn.data.folder.load`.
        kind, samples, data_seed: toy2d, see `ansn.data.toy2d.load`.

    Raises:
        InputError (a ValueError): one line naming the file, what came and what was expected; also for an
            option that does not apply to this data.
    """
    given = {
        "dequantise": dequantise,
        "flip": flip,
        "test_fraction": test_fraction,
        "num_classes": num_classes,
        "standardise": standardise,
        "label_column": label_column,
        "ignore_columns": ignore_columns,
        "header": header,
        "image_size": image_size,
        "channels": channels,
        "memory_limit": memory_limit,
        "num_workers": num_workers,
        "kind": kind,
        "samples": samples,
        "data_seed": data_seed,
    }
    load, options = _named(name_or_path, root)
    if load is None:
        load, options = _by_content(Path(name_or_path)), {}
    takes = signature(load).parameters
    for option, value in given.items():
        if value is None or (value is False and option not in takes):  # "no" to what cannot be is no mistake
            continue
        if option not in takes:
            known = ", ".join(name for name, p in takes.items() if p.kind is p.KEYWORD_ONLY)
            raise InputError(f"{option}: got {value!r} for {name_or_path}, expected no such option; it takes {known}")
        if option in options:
            raise InputError(f"{option}: got {options[option]!r} in {name_or_path} and {value!r}, expected one of them")
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
        return toy2d.load, {"kind": name[6:]} if ":" in name else {}
    return None, {}


def _by_content(path: Path) -> Callable[..., Dataset]:
    """The loader of the path's format."""
    if os.path.isdir(path):  # unlike Path.is_dir, False for names too long or forbidden
        if idx.is_idx_folder(path):
            return partial(idx.load_folder, path)
        if cifar10.is_cifar10_folder(path):
            return partial(cifar10.load_folder, path)
        from ansn.data import folder  # slow to import: only when used

        return partial(folder.load, path)
    if not os.path.exists(path):
        raise InputError(f"{path}: got no such file or folder, expected one or a name ({', '.join(NAMES)})")
    if not os.path.isfile(path):
        raise InputError(f"{path}: got a pipe, socket or device, expected a file, which can be read twice, or a folder")
    with opened(path) as stream:
        start = stream.read(8)
    name = path.name.removesuffix(".gz").removesuffix(".xz").lower()
    if start.startswith((b"\x93NUMPY", b"PK\x03\x04")) or name.endswith((".npy", ".npz")):
        return partial(arrays.load, path)
    if name.endswith((".csv", ".tsv")):
        return partial(table.load, path)
    if start.startswith(b"\0\0") or "-idx" in name or ".idx" in name or name.endswith("-ubyte"):
        return partial(idx.load_file, path)
    raise InputError(
        f"{path}: got an unknown format, expected .npy, .npz, .csv, IDX, or a folder (of images, IDX or CIFAR-10)"
    )
