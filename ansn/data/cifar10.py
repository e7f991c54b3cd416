"""The binary versions of CIFAR-10 and CIFAR-100, records of label bytes and 3072 bytes, red, green and blue planes of
32x32, and of STL-10, planes of 96x96 column by column and labels in a file beside."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ansn.data.arrays import to_dataset
from ansn.data.dataset import Dataset
from ansn.data.files import cpu_count, find, in_folders, opened, read_up_to
from ansn.data.holdout import TEST_FILES, check_split
from ansn.errors import InputError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FILES = {"train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)), "test": ("test_batch.bin",)}
_FILES_100 = {"train": ("train.bin",), "test": ("test.bin",)}
_FILES_STL = {split: (f"{split}_X.bin", f"{split}_y.bin") for split in ("train", "test")}
_STL_CLASSES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
_PIXELS, _STL_PIXELS = 3 * 32 * 32, 3 * 96 * 96
_MOST_RECORDS = 1_000_000  # a hundred times a real file: stops a bomb


def load_named(root: Path | None, *, split: str = "train", dequantise: bool = False, flip: bool = False) -> Dataset:
    """ "cifar10" from root, or its sub-folder cifar10 or cifar-10-batches-bin."""
    check_split(split)
    folder = in_folders(root, "cifar10", ("cifar10", "cifar-10-batches-bin"), FILES[split])
    return load_folder(folder, split=split, dequantise=dequantise, flip=flip)


def is_cifar10_folder(folder: Path) -> bool:
    """Whether the folder holds files of CIFAR-10, CIFAR-100 or STL-10 in binary."""
    return any(find(folder, files[:1]) for files in (*FILES.values(), *_FILES_STL.values())) or _is_cifar100(folder)


def load_folder(folder: Path, *, split: str = "train", dequantise: bool = False, flip: bool = False) -> Dataset:
    """All five train files or the test file of CIFAR-10; CIFAR-100 with its fine labels; STL-10's labelled images.

    InputError: a file missing, corrupt, empty, cut inside a record, with a label out of range, or with another number
    of records than the first.
    """
    check_split(split)
    classes: tuple[str, ...]
    if any(find(folder, files[:1]) for files in FILES.values()):
        records = _records_of_all(_found(folder, FILES[split]))
        images, labels, name, classes = records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0], "cifar10", CLASSES
    elif _is_cifar100(folder):
        (path,) = _found(folder, _FILES_100[split])
        records = read_records(path, labels=2, classes=100)
        images, labels, name = records[:, 2:].reshape(-1, 3, 32, 32), records[:, 1], "cifar100"
        classes = _names(folder, "fine_label_names.txt", tuple(map(str, range(100))))
    else:
        rows_path, labels_path = _found(folder, _FILES_STL[split])
        rows = _read(rows_path, _STL_PIXELS)
        counted = _read(labels_path, 1)[:, 0]
        low, high = int(counted.min()), int(counted.max())
        if len(counted) != len(rows) or low < 1 or high > 10:
            raise InputError(
                f"{labels_path}: got {len(counted)} labels of {low} to {high}, expected {len(rows)} of 1 to 10"
            )
        images, labels, name = rows.reshape(-1, 3, 96, 96).swapaxes(2, 3), counted - 1, "stl10"
        classes = _names(folder, "class_names.txt", _STL_CLASSES)
    return to_dataset(
        np.ascontiguousarray(images),
        labels,
        folder,
        name=name,
        num_classes=len(classes),
        classes=classes,
        levels=256,
        notes=[TEST_FILES, *(["unlabeled_X.bin left out"] if find(folder, ("unlabeled_X.bin",)) else [])],
        dequantise=dequantise,
        flip=flip,
    )


def read_records(path: Path, labels: int = 1, classes: int = 10) -> NDArray[np.uint8]:
    """Records of one file (plain, gzip or xz), uint8 [N, labels + 3072], the last label in 0..classes-1."""
    records = _read(path, labels + _PIXELS)
    label = records[:, labels - 1]
    if int(label.max()) >= classes:
        row = int(np.argmax(label >= classes))
        raise InputError(f"{path}: got label {label[row]} in record {row}, expected 0 to {classes - 1}")
    return records


def _found(folder: Path, names: tuple[str, ...]) -> list[Path]:
    paths = []
    for name in names:
        path = find(folder, (name,))
        if path is None:
            raise InputError(f"{folder}: got no {name} (plain, .gz or .xz), expected {', '.join(names)}")
        paths.append(path)
    return paths


def _is_cifar100(folder: Path) -> bool:
    """By its list of names, as train.bin alone may be anything, or by whole records of it."""
    paths = [path for files in _FILES_100.values() if (path := find(folder, files))]
    named = (folder / "fine_label_names.txt").is_file()
    return bool(paths) and (named or all(path.stat().st_size % (2 + _PIXELS) == 0 for path in paths))


def _names(folder: Path, file: str, usual: tuple[str, ...]) -> tuple[str, ...]:
    """The names in the file, one a line, where it is there and has as many as usual."""
    path = folder / file
    names = path.read_text("utf-8", "replace").split() if path.is_file() else []
    return tuple(names) if len(names) == len(set(names)) == len(usual) else usual


def _records_of_all(paths: list[Path]) -> NDArray[np.uint8]:
    """The files' records end to end, as many of each."""
    # Decompression releases the interpreter: one core a file.
    with ThreadPoolExecutor(min(len(paths), cpu_count())) as pool:
        parts = list(pool.map(read_records, paths))
    for path, part in zip(paths, parts, strict=True):
        if len(part) != len(parts[0]):
            raise InputError(f"{path}: got {len(part)} records, expected {len(parts[0])}, as in {paths[0].name}")
    return np.concatenate(parts) if len(parts) > 1 else parts[0]


def _read(path: Path, size: int) -> NDArray[np.uint8]:
    """Records of ``size`` bytes of one file (plain, gzip or xz), uint8 [N, size]."""
    with opened(path) as stream:
        data = read_up_to(stream, _MOST_RECORDS * size)
        if stream.read(1):
            raise InputError(f"{path}: got more than {_MOST_RECORDS} records, expected tens of thousands at most")
    if not data or len(data) % size:
        raise InputError(f"{path}: got {len(data)} bytes, expected one or more whole records of {size} bytes")
    return np.frombuffer(data, np.uint8).reshape(-1, size)
