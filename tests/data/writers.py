"""Bytes of the file formats, written from their published descriptions and not with the package's readers."""

from __future__ import annotations

import gzip
import lzma
import struct
from pathlib import Path

import numpy as np

PACKERS = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress}
IDX_CODES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}


def idx_bytes(values: np.ndarray) -> bytes:
    """00 00, type code, number of dimensions, sizes as big-endian uint32, values big-endian."""
    code = IDX_CODES[values.dtype.str[1:]]
    sizes = b"".join(struct.pack(">I", n) for n in values.shape)
    return bytes([0, 0, code, values.ndim]) + sizes + values.astype(values.dtype.newbyteorder(">")).tobytes()


def write(path: Path, data: bytes) -> Path:
    """Compressed as the name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    suffix = path.suffix if path.suffix in PACKERS else ""
    path.write_bytes(PACKERS[suffix](data))
    return path


def write_mnist(
    folder: Path, images: np.ndarray, labels: np.ndarray, split: str = "train", suffix: str = ".gz"
) -> Path:
    stem = {"train": "train", "test": "t10k"}[split]
    write(folder / f"{stem}-images-idx3-ubyte{suffix}", idx_bytes(images))
    write(folder / f"{stem}-labels-idx1-ubyte{suffix}", idx_bytes(labels))
    return folder


def cifar_bytes(images: np.ndarray, labels: np.ndarray) -> bytes:
    """Records of a label byte and three planes."""
    return b"".join(bytes([int(k)]) + image.tobytes() for image, k in zip(images, labels, strict=True))


def some_images(count: int, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)
