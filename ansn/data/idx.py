"""IDX, the format of MNIST and Fashion-MNIST: 00 00, type, number of dimensions, big-endian sizes, values."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ansn.data.arrays import to_dataset
from ansn.data.dataset import Dataset
from ansn.data.files import find, in_folders, opened, read_exactly, read_up_to
from ansn.data.holdout import check_split, held_out
from ansn.errors import InputError

# The third byte of the file.
TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}

_STEMS = {"train": "train", "test": "t10k"}
_FOLDERS = {"mnist": ("mnist", "MNIST/raw"), "fashion-mnist": ("fashion-mnist", "FashionMNIST/raw")}
_CLASSES = {
    "mnist": tuple("0123456789"),
    "fashion-mnist": (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
}


def read_idx(path: Path) -> NDArray[Any]:
    """The array of an IDX file (plain, gzip or xz), native byte order.

    InputError: wrong magic, truncated, trailing bytes, corrupt compression.
    """
    with opened(path) as stream:
        magic = bytes(read_up_to(stream, 4))
        if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in TYPES or not 1 <= magic[3] <= 8:
            codes = " ".join(f"{code:02x}" for code in TYPES)
            raise InputError(
                f"{path}: got a start of {magic.hex(' ') or 'nothing'}, "
                f"expected IDX: 00 00, a type ({codes}), 1 to 8 dimensions"
            )
        sizes = bytes(read_up_to(stream, 4 * magic[3]))
        if len(sizes) < 4 * magic[3]:
            raise InputError(f"{path}: got a file that ends in its header, expected {magic[3]} sizes of 4 bytes")
        shape = tuple(int(size) for size in np.frombuffer(sizes, ">u4"))
        dtype = np.dtype(TYPES[magic[2]])
        promise = f"its header says {dtype.name} of shape {'x'.join(map(str, shape))}"
        data = read_exactly(stream, math.prod(shape) * dtype.itemsize, path, promise)
    return np.frombuffer(data, dtype).reshape(shape).astype(dtype.newbyteorder("="), copy=False)


def load_named(
    name: str, root: Path | None, *, split: str = "train", dequantise: bool = False, flip: bool = False
) -> Dataset:
    """ "mnist" or "fashion-mnist": 28x28 grey images and labels 0-9, from root or its usual sub-folders."""
    images, labels = _file_names(split)
    folder = in_folders(root, name, _FOLDERS[name], (images, labels))
    return _load_pair(folder, name, split, 10, (28, 28), _CLASSES[name], dequantise, flip)


def load_folder(folder: Path, *, split: str = "train", dequantise: bool = False, flip: bool = False) -> Dataset:
    """A folder with files named as MNIST's, of images of any size and labels of any number."""
    return _load_pair(folder, folder.name, split, None, None, None, dequantise, flip)


def is_idx_folder(folder: Path) -> bool:
    return any(find(folder, _file_names(split)[:1]) for split in _STEMS)


def load_file(
    path: Path,
    *,
    split: str = "train",
    test_fraction: float | None = None,
    num_classes: int | None = None,
    standardise: bool = False,
    dequantise: bool = False,
    flip: bool = False,
) -> Dataset:
    """One IDX file of images (or vectors); labels from a file beside it with labels-idx1 for images-idx3."""
    rows = read_idx(path)
    if rows.ndim == 1:
        raise InputError(f"{path}: got one dimension ({len(rows)}), as labels have, expected images, 3 dimensions")
    plain = re.sub(r"\.(gz|xz)$", "", path.name)
    beside = re.sub(r"images([-.])idx\d", r"labels\1idx1", plain)
    labels_path = find(path.parent, (beside,)) if beside != plain else None
    labels = None if labels_path is None else _matching_labels(labels_path, path, len(rows))
    if split != "train" or test_fraction:
        index = held_out(len(rows), split, test_fraction, path)
        rows, labels = rows[index], None if labels is None else labels[index]
    return to_dataset(
        rows, labels, path, num_classes=num_classes, standardise=standardise, dequantise=dequantise, flip=flip
    )


def _file_names(split: str) -> tuple[str, str]:
    check_split(split)
    return f"{_STEMS[split]}-images-idx3-ubyte", f"{_STEMS[split]}-labels-idx1-ubyte"


def _load_pair(
    folder: Path,
    name: str,
    split: str,
    num_classes: int | None,
    size: tuple[int, int] | None,
    classes: tuple[str, ...] | None,
    dequantise: bool,
    flip: bool,
) -> Dataset:
    found = []
    for file in _file_names(split):
        path = find(folder, (file,))
        if path is None:
            raise InputError(f"{folder}: got no {file} (plain, .gz or .xz), expected both images and labels")
        found.append(path)
    images_path, labels_path = found
    images = read_idx(images_path)
    if images.ndim != 3 or images.dtype != np.uint8 or (size is not None and images.shape[1:] != size):
        wanted = "Nx" + ("HxW" if size is None else f"{size[0]}x{size[1]}")
        shape = "x".join(map(str, images.shape))
        raise InputError(f"{images_path}: got {images.dtype} of shape {shape}, expected uint8 of shape {wanted}")
    labels = _matching_labels(labels_path, images_path, len(images))
    if num_classes is not None and len(labels) and int(labels.max()) >= num_classes:
        row = int(np.argmax(labels >= num_classes))
        raise InputError(f"{labels_path}: got label {labels[row]} in row {row}, expected 0 to {num_classes - 1}")
    return to_dataset(
        images,
        labels,
        images_path,
        name=name,
        num_classes=num_classes,
        classes=classes,
        dequantise=dequantise,
        flip=flip,
    )


def _matching_labels(path: Path, images_path: Path, count: int) -> NDArray[Any]:
    labels = read_idx(path)
    if labels.ndim != 1 or labels.dtype.kind not in "ui":
        shape = "x".join(map(str, labels.shape))
        raise InputError(f"{path}: got {labels.dtype} of shape {shape}, expected integers of one dimension")
    if len(labels) != count:
        raise InputError(f"{path}: got {len(labels)} labels, expected {count}, as many as images in {images_path.name}")
    return labels
