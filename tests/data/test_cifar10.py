"""CIFAR-100 and STL-10 in their binary versions; CIFAR-10's tests are with the other formats."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ansn.data import load_dataset
from tests.data.test_errors import refused
from tests.data.writers import PACKERS, some_images, write


def cifar100_bytes(images: np.ndarray, fine: np.ndarray) -> bytes:
    """Records of the coarse label, the fine one and three planes."""
    return b"".join(bytes([int(k) // 5, int(k)]) + image.tobytes() for image, k in zip(images, fine, strict=True))


@pytest.mark.parametrize("suffix", list(PACKERS))
@pytest.mark.parametrize("named", [True, False])
def test_cifar100(tmp_path: Path, suffix: str, named: bool) -> None:
    images, labels = some_images(8, 3, 32, 32), np.array([0, 99, 7, 7, 50, 1, 2, 3])
    write(tmp_path / f"train.bin{suffix}", cifar100_bytes(images, labels))
    write(tmp_path / f"test.bin{suffix}", cifar100_bytes(images[:3], labels[:3]))
    if not named and suffix:  # a compressed train.bin may be anything
        refused(tmp_path, "got no images among its 2 files")
        return
    if named:
        (tmp_path / "fine_label_names.txt").write_text("\n".join(f"name{i}" for i in range(100)) + "\n")
    for split, count in (("train", 8), ("test", 3)):
        dataset = load_dataset(tmp_path, split=split)
        assert (dataset.name, dataset.num_classes, dataset.levels) == ("cifar100", 100, 256)
        assert (dataset.classes or ())[99] == ("name99" if named else "99")
        assert torch.equal(dataset.rows, torch.from_numpy(images[:count]))  # type: ignore[arg-type]
        assert dataset.labels.tolist() == labels[:count].tolist()  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("data", "part"),
    [(lambda good: good[:-1], "whole records of 3074 bytes"), (lambda good: b"\0\x64" + good[2:], "got label 100")],
)
def test_broken_cifar100(tmp_path: Path, data: object, part: str) -> None:
    (tmp_path / "fine_label_names.txt").write_text("")
    good = cifar100_bytes(some_images(2, 3, 32, 32), np.zeros(2))
    write(tmp_path / "train.bin", data(good))  # type: ignore[operator]
    refused(tmp_path, "train.bin: ", part)
    refused(tmp_path, "got no test.bin (plain, .gz or .xz), expected test.bin", split="test")


def write_stl10(folder: Path, images: np.ndarray, labels: np.ndarray, split: str) -> None:
    """Planes column by column, labels from 1."""
    write(folder / f"{split}_X.bin", np.ascontiguousarray(images.swapaxes(2, 3)).tobytes())
    write(folder / f"{split}_y.bin", (labels + 1).astype(np.uint8).tobytes())


def test_stl10(tmp_path: Path) -> None:
    images, labels = some_images(4, 3, 96, 96), np.array([9, 0, 3, 3])
    write_stl10(tmp_path, images, labels, "train")
    write_stl10(tmp_path, images[:2], labels[:2], "test")
    write(tmp_path / "unlabeled_X.bin", b"")
    for split, count in (("train", 4), ("test", 2)):
        dataset = load_dataset(tmp_path, split=split)
        assert (dataset.name, dataset.classes[0], dataset.classes[9]) == ("stl10", "airplane", "truck")  # type: ignore[index]
        assert torch.equal(dataset.rows, torch.from_numpy(images[:count]))  # type: ignore[arg-type]
        assert dataset.labels.tolist() == labels[:count].tolist()  # type: ignore[union-attr]
        assert dataset.notes[-1] == "unlabeled_X.bin left out"
    for wrong in (np.array([-1, 0, 3, 3]), np.array([10, 0, 3, 3]), labels[:3]):
        write_stl10(tmp_path, images, wrong, "train")
        refused(tmp_path, f"train_y.bin: got {len(wrong)} labels of ", "expected 4 of 1 to 10")
