"""CIFAR-10, binary version: records of one label byte and 3072 bytes, red, green and blue planes of 32x32."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ansn.data.arrays import to_dataset
from ansn.data.dataset import Dataset
from ansn.data.files import cpu_count, find, in_folders, opened, read_up_to
from ansn.data.holdout import check_split
from ansn.errors import InputError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FILES = {"train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)), "test": ("test_batch.bin",)}
_RECORD = 1 + 3 * 32 * 32
_MOST_RECORDS = 1_000_000  # a hundred times a real file: stops a bomb


def load_named(root: Path | None, *, split: str = "train", dequantise: bool = False, flip: bool = False) -> Dataset:
    """ "cifar10" from root, or its sub-folder cifar10 or cifar-10-batches-bin."""
    check_split(split)
    folder = in_folders(root, "cifar10", ("cifar10", "cifar-10-batches-bin"), FILES[split])
    return load_folder(folder, split=split, dequantise=dequantise, flip=flip)


def is_cifar10_folder(folder: Path) -> bool:
    return any(find(folder, files[:1]) for files in FILES.values())


def load_folder(folder: Path, *, split: str = "train", dequantise: bool = False, flip: bool = False) -> Dataset:
    """All five train files or the test file of a folder.

    InputError: a file missing, corrupt, empty, cut inside a record, with a label above 9, or with another
    number
    of records than the first.
    """
    check_split(split)
    paths = []
    for name in FILES[split]:
        path = find(folder, (name,))
        if path is None:
            raise InputError(f"{folder}: got no {name} (plain, .gz or .xz), expected {', '.join(FILES[split])}")
        paths.append(path)
    # Decompression releases the interpreter: one core a file.
    with ThreadPoolExecutor(min(len(paths), cpu_count())) as pool:
        parts = list(pool.map(read_records, paths))
    for path, part in zip(paths, parts, strict=True):
        if len(part) != len(parts[0]):
            raise InputError(f"{path}: got {len(part)} records, expected {len(parts[0])}, as in {paths[0].name}")
    records = np.concatenate(parts) if len(parts) > 1 else parts[0]
    return to_dataset(
        np.ascontiguousarray(records[:, 1:]).reshape(-1, 3, 32, 32),
        records[:, 0],
        folder,
        name="cifar10",
        num_classes=10,
        classes=CLASSES,
        dequantise=dequantise,
        flip=flip,
    )


def read_records(path: Path) -> NDArray[np.uint8]:
    """Records of one file (plain, gzip or xz), uint8 [N, 3073]."""
    with opened(path) as stream:
        data = read_up_to(stream, _MOST_RECORDS * _RECORD)
        if stream.read(1):
            raise InputError(f"{path}: got more than {_MOST_RECORDS} records, expected the 10000 of a CIFAR-10 file")
    if not data or len(data) % _RECORD:
        raise InputError(f"{path}: got {len(data)} bytes, expected one or more whole records of {_RECORD} bytes")
    records = np.frombuffer(data, np.uint8).reshape(-1, _RECORD)
    if int(records[:, 0].max()) > 9:
        row = int(np.argmax(records[:, 0] > 9))
        raise InputError(f"{path}: got label {records[row, 0]} in record {row}, expected 0 to 9")
    return records
