"""IDX data sets with other names than MNIST's, and the splits of one file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ansn.data import load_dataset
from tests.data.test_errors import refused
from tests.data.writers import idx_bytes, some_images, write, write_mnist


def write_set(
    folder: Path, prefix: str, stem: str, images: np.ndarray, labels: np.ndarray, suffix: str = ".gz"
) -> Path:
    write(folder / f"{prefix}{stem}-labels-idx1-ubyte{suffix}", idx_bytes(labels.astype(np.uint8)))
    return write(folder / f"{prefix}{stem}-images-idx3-ubyte{suffix}", idx_bytes(images))


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("one_file", [True, False])
def test_emnist_is_upright_and_split(tmp_path: Path, suffix: str, one_file: bool) -> None:
    images, labels = some_images(6, 8, 8), np.array([1, 26, 3, 1, 2, 3])
    stored = np.ascontiguousarray(images.swapaxes(1, 2))
    path = write_set(tmp_path, "emnist-letters-", "train", stored[:4], labels[:4], suffix)
    write_set(tmp_path, "emnist-letters-", "test", stored[4:], labels[4:], suffix)
    for split, part in (("train", slice(0, 4)), ("test", slice(4, 6))):
        for options in ({}, {"test_fraction": "auto"} if one_file else {}):
            dataset = load_dataset(path if one_file else tmp_path, split=split, **options)
            assert torch.equal(dataset.rows, torch.from_numpy(images[part])[:, None])  # type: ignore[arg-type]
            assert dataset.classes == ("1", "2", "3", "26")
            assert [dataset.classes[k] for k in dataset.labels] == [str(k) for k in labels[part]]  # type: ignore[union-attr]
            assert (dataset.name, dataset.levels) == ("emnist-letters", 256)
            assert "turned upright" in dataset.notes[0]


def test_other_prefixes_are_taken_as_they_are(tmp_path: Path) -> None:
    images = some_images(3, 4, 5)
    write_set(tmp_path, "mine_", "train", images, np.arange(3))
    dataset = load_dataset(tmp_path)
    assert torch.equal(dataset.rows, torch.from_numpy(images)[:, None])  # type: ignore[arg-type]
    assert (dataset.name, dataset.notes) == ("mine", ())
    refused(tmp_path, "got no mine_t10k-images-idx3-ubyte (plain, .gz or .xz)", split="test")
    write_set(tmp_path, "other-", "train", images, np.arange(3))
    refused(tmp_path, "got 2 data sets (mine_, other-), expected one; give the images of one")
    assert len(load_dataset(tmp_path / "other-train-images-idx3-ubyte.gz")) == 3


def test_one_file_has_the_test_split_beside_it_or_a_share(tmp_path: Path) -> None:
    write_mnist(tmp_path, some_images(30, 6, 6), np.zeros(30, np.uint8))
    path = tmp_path / "train-images-idx3-ubyte.gz"
    sizes = [len(load_dataset(path, split=split, test_fraction="auto")) for split in ("train", "test")]
    assert sizes == [27, 3]
    refused(path, "test_fraction", split="test")
    write_mnist(tmp_path, some_images(7, 6, 6), np.ones(7, np.uint8), split="test")
    for options in ({}, {"test_fraction": "auto"}):
        parts = [load_dataset(path, split=split, **options) for split in ("train", "test")]  # type: ignore[arg-type]
        assert [len(part) for part in parts] == [30, 7]
        assert [part.classes for part in parts] == [("0", "1")] * 2
        assert [int(part.labels[0]) for part in parts] == [0, 1]  # type: ignore[index]
    assert len(load_dataset(path, split="test", test_fraction=0.2)) == 6


def test_both_splits_have_one_range(tmp_path: Path) -> None:
    for split, top in (("train", 16), ("test", 9)):
        images = np.full((2, 4, 4), top, np.uint8)
        write_mnist(tmp_path, images, np.zeros(2, np.uint8), split=split)
    for split, value in (("train", 1.0), ("test", 9 / 16)):
        dataset = load_dataset(tmp_path, split=split)
        assert dataset.levels == 17
        assert dataset.batch(torch.arange(2))[0].max() == pytest.approx(value)
