"""IDX, the format of MNIST and Fashion-MNIST: 00 00, type, number of dimensions, big-endian sizes, values."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ansn.data.arrays import to_dataset
from ansn.data.dataset import Dataset
from ansn.data.files import find, in_folders, opened, read_exactly, read_up_to
from ansn.data.holdout import AUTO, TEST_FILES, check_split, held_out, origin
from ansn.errors import InputError

# The third byte of the file.
TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}

_STEMS = {"train": ("train",), "test": ("t10k", "test")}
_NAME = re.compile(r"(?P<prefix>.*?)(?P<stem>train|t10k|test)-images[-.]idx3-ubyte(?:\.gz|\.xz)?")
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
    check_split(split)
    stem = _STEMS[split][0]
    folder = in_folders(root, name, _FOLDERS[name], _file_names(stem))
    images, labels, path = _read_pair(folder, stem, (28, 28))
    options: dict[str, Any] = {"num_classes": 10, "classes": _CLASSES[name], "levels": 256, "notes": [TEST_FILES]}
    if len(labels) and int(labels.max()) >= 10:
        row = int(np.argmax(labels >= 10))
        labels_path = find(folder, _file_names(stem)[1:])
        raise InputError(f"{labels_path}: got label {labels[row]} in row {row}, expected 0 to 9")
    return to_dataset(images, labels, path, name=name, dequantise=dequantise, flip=flip, **options)


def load_folder(folder: Path, *, split: str = "train", dequantise: bool = False, flip: bool = False) -> Dataset:
    """A folder with files named as MNIST's, or as those with a word before (emnist-letters-train-images-idx3-ubyte), of
    images of any size and labels of any number.

    InputError: several data sets in the folder, images or labels missing, as `read_idx`.
    """
    check_split(split)
    sets = _sets(folder)
    prefix = "" if "" in sets else min(sets)
    if "" not in sets and len(sets) > 1:
        raise InputError(
            f"{folder}: got {len(sets)} data sets ({', '.join(sorted(sets))}), expected one; "
            f"give the images of one: {folder}/{prefix}train-images-idx3-ubyte"
        )
    return _load_set(folder, prefix, sets[prefix], split, dequantise=dequantise, flip=flip)


def is_idx_folder(folder: Path) -> bool:
    return bool(_sets(folder))


def load_file(
    path: Path,
    *,
    split: str = "train",
    test_fraction: float | Literal["auto"] | None = None,
    num_classes: int | None = None,
    dequantise: bool = False,
    flip: bool = False,
) -> Dataset:
    """One IDX file of images (or vectors); labels from a file beside it with labels-idx1 for images-idx3.

    Where it is named as MNIST's train file is, the test split is the file of its name with t10k or test.
    """
    check_split(split)
    match = _NAME.fullmatch(path.name)
    if match and match["stem"] == "train" and test_fraction in (None, AUTO) and num_classes is None:
        stems = _sets(path.parent)[match["prefix"]]
        if len(stems) > 1 and _labels_beside(path) is not None:
            return _load_set(path.parent, match["prefix"], stems, split, dequantise=dequantise, flip=flip)
    rows = read_idx(path)
    if rows.ndim == 1:
        raise InputError(f"{path}: got one dimension ({len(rows)}), as labels have, expected images, 3 dimensions")
    rows, notes = _upright(rows, path)
    labels_path = _labels_beside(path)
    labels = None if labels_path is None else _matching_labels(labels_path, path, len(rows))
    train, index = (held_out(len(rows), s, test_fraction, path) for s in ("train", split))
    notes += origin(len(rows), test_fraction)
    return to_dataset(
        rows,
        labels,
        path,
        splits=(train, index),
        num_classes=num_classes,
        dequantise=dequantise,
        flip=flip,
        notes=notes,
    )


def _sets(folder: Path) -> dict[str, list[str]]:
    """Words before the names of the folder's image files, each with the splits' words that come with it."""
    found: dict[str, list[str]] = {}
    for name in sorted(os.listdir(folder)) if os.access(folder, os.R_OK) else []:
        if match := _NAME.fullmatch(name):
            stems = found.setdefault(match["prefix"], [])
            stems += [match["stem"]] if match["stem"] not in stems else []
    return found


def _file_names(stem: str) -> tuple[str, str]:
    return f"{stem}-images-idx3-ubyte", f"{stem}-labels-idx1-ubyte"


def _load_set(folder: Path, prefix: str, stems: list[str], split: str, **options: Any) -> Dataset:
    """One split of a data set with files of both, or of one; classes and grey levels are those of both."""
    wanted = {name: next((s for s in _STEMS[name] if s in stems), None) for name in _STEMS}
    if wanted[split] is None:
        wanted[split] = _STEMS[split][0]  # reported as missing
    parts = {name: _read_pair(folder, prefix + stem, None) for name, stem in wanted.items() if stem is not None}
    images, labels, path = parts[split]
    train = index = np.arange(len(images))
    same = len({part[0].shape[1:] for part in parts.values()}) == 1
    if len(parts) == 2 and same and all(len(part[0]) for part in parts.values()):
        images = np.concatenate([parts[name][0] for name in _STEMS])
        labels = np.concatenate([parts[name][1] for name in _STEMS])
        count = len(parts["train"][0])
        train, rest = np.arange(count), np.arange(count, len(images))
        index = train if split == "train" else rest
    images, notes = _upright(images, path)
    notes += [TEST_FILES] if len(parts) == 2 else []
    name = prefix.strip("-_. ") or folder.name
    return to_dataset(images, labels, path, splits=(train, index), name=name, notes=notes, **options)


def _upright(images: NDArray[Any], path: Path) -> tuple[NDArray[Any], list[str]]:
    """EMNIST's files hold each picture with rows and columns exchanged."""
    if "emnist" not in path.name.lower() or images.ndim != 3:
        return images, []
    return images.swapaxes(1, 2), ["EMNIST's pictures, stored with rows and columns exchanged, are turned upright"]


def _read_pair(folder: Path, stem: str, size: tuple[int, int] | None) -> tuple[NDArray[np.uint8], NDArray[Any], Path]:
    """(images, labels, path of the images)."""
    found = []
    for file in _file_names(stem):
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
    return images, _matching_labels(labels_path, images_path, len(images)), images_path


def _labels_beside(path: Path) -> Path | None:
    plain = re.sub(r"\.(gz|xz)$", "", path.name)
    beside = re.sub(r"images([-.])idx\d", r"labels\1idx1", plain)
    return find(path.parent, (beside,)) if beside != plain else None


def _matching_labels(path: Path, images_path: Path, count: int) -> NDArray[Any]:
    labels = read_idx(path)
    if labels.ndim != 1 or labels.dtype.kind not in "ui":
        shape = "x".join(map(str, labels.shape))
        raise InputError(f"{path}: got {labels.dtype} of shape {shape}, expected integers of one dimension")
    if len(labels) != count:
        raise InputError(f"{path}: got {len(labels)} labels, expected {count}, as many as images in {images_path.name}")
    return labels
