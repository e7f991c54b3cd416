"""Arrays: what their axes are, and whether they hold images, a table or fields."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ansn.data import Dataset, layout, load_dataset
from tests.data.writers import some_images

RNG = np.random.default_rng(0)
PATH = Path("x.npy")


def saved(path: Path, array: NDArray[Any], **options: Any) -> Dataset:
    np.save(path / "x.npy", array)
    return load_dataset(path / "x.npy", **options)


def values(dataset: Dataset) -> NDArray[np.float64]:
    """All rows in the file's units."""
    x, _ = dataset.batch(torch.arange(len(dataset)))
    return dataset.to_data_units(x).double().numpy()


def series(n: int, length: int) -> NDArray[np.float64]:
    """Smooth lines."""
    t = np.linspace(0, 6, length)
    return np.sin(t + RNG.uniform(0, 6, (n, 1))) * RNG.uniform(0.5, 2, (n, 1)) + RNG.normal(0, 0.01, (n, length))


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((5, 28, 28), (1, 28, 28)),
        ((5, 28, 28, 1), (1, 28, 28)),
        ((5, 28, 28, 2), (2, 28, 28)),
        ((5, 28, 28, 3), (3, 28, 28)),
        ((5, 28, 28, 4), (4, 28, 28)),
        ((5, 3, 28, 28), (3, 28, 28)),
        ((5, 2, 28, 28), (2, 28, 28)),
    ],
)
def test_bytes_are_images(tmp_path: Path, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    array = some_images(*shape)
    dataset = saved(tmp_path, array)
    assert (dataset.kind, dataset.shape) == ("image", expected)
    last = len(shape) == 4 and shape[-1] < 5
    moved = np.moveaxis(array, -1, 1) if last else array.reshape(5, *expected)
    np.testing.assert_allclose(values(dataset), moved / 255, rtol=1e-6)


@pytest.mark.parametrize(
    ("array", "shape"),
    [
        (RNG.normal(280, 9, (6, 12, 16)), (1, 12, 16)),  # maps in kelvin
        (1e-17 * RNG.normal(0, 9, (6, 12, 16)), (1, 12, 16)),
        (1e-17 * RNG.uniform(0, 9, (6, 12, 16)), (1, 12, 16)),
        (RNG.normal(0, 9, (6, 12, 16, 3)), (3, 12, 16)),
        (RNG.normal(0, 9, (6, 2, 12, 16)), (2, 12, 16)),
        (RNG.normal(0, 9, (6, 10, 12, 14)), (1, 10, 12, 14)),
        (RNG.normal(0, 9, (6, 2, 10, 12, 14)), (2, 10, 12, 14)),
        (RNG.normal(0, 9, (6, 10, 12, 14, 2)), (2, 10, 12, 14)),
        (RNG.normal(0, 9, (6, 1, 30)), (1, 30)),
        (RNG.normal(0, 9, (6, 3, 30)), (3, 30)),
        (-some_images(6, 9, 9).astype(np.int16) - 1, (1, 9, 9)),
        (series(6, 40), (1, 40)),
    ],
)
def test_other_numbers_are_fields(tmp_path: Path, array: NDArray[Any], shape: tuple[int, ...]) -> None:
    dataset = saved(tmp_path, array)
    assert (dataset.kind, dataset.shape) == ("field", shape)
    last = array.shape[-1] == shape[0] and array.ndim > 3
    moved = np.moveaxis(array, -1, 1) if last else array.reshape(6, *shape)
    np.testing.assert_allclose(values(dataset), moved, rtol=0, atol=1e-5 * np.abs(moved).max())
    x, _ = dataset.batch(torch.arange(6))
    channels = x.transpose(0, 1).flatten(1)
    torch.testing.assert_close(channels.std(1, correction=0), torch.ones(len(channels)), rtol=1e-4, atol=0)


@given(shape=st.permutations("NCDHW"), drop=st.sets(st.sampled_from("CDH")), data=st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_axes_come_in_any_order(shape: list[str], drop: set[str], data: int) -> None:
    if "H" in drop:
        drop |= {"D"}  # a depth without a height is no shape
    sizes = {"N": 3, "C": 2, "D": 4, "H": 5, "W": 6}
    axes = "".join(letter for letter in shape if letter not in drop)
    ordered = "".join(letter for letter in "NCDHW" if letter in axes)
    array = np.random.default_rng(data).normal(size=[sizes[letter] for letter in ordered])
    found = layout.arranged(array.transpose([ordered.index(letter) for letter in axes]), PATH, None, axes.lower())
    assert found.kind == "field"
    np.testing.assert_array_equal(found.rows, array if "C" in axes else array[:, None])


def test_axes_and_kind_are_as_given(tmp_path: Path) -> None:
    lines = series(6, 40)
    assert saved(tmp_path, lines, kind="table").shape == (40,)
    assert saved(tmp_path, lines.T, axes="LN").shape == (1, 40)
    np.testing.assert_allclose(values(saved(tmp_path, lines.T, axes="LN"))[:, 0], lines, atol=1e-5)
    parts = [saved(tmp_path, lines.T, axes="ln", split=split, test_fraction=0.5) for split in ("train", "test")]
    np.testing.assert_allclose(np.sort(np.concatenate(list(map(values, parts)))[:, 0], 0), np.sort(lines, 0), atol=1e-5)
    grey = some_images(6, 9, 9)
    field = saved(tmp_path, grey, kind="field")
    assert (field.kind, field.shape) == ("field", (1, 9, 9))
    np.testing.assert_allclose(values(field)[:, 0], grey, atol=1e-3)
    unit = RNG.uniform(0, 1, (6, 9, 9))
    assert saved(tmp_path, unit).kind == "image"
    assert saved(tmp_path, unit, kind="field").kind == "field"
    assert saved(tmp_path, RNG.normal(0, 1, (6, 9, 12)), axes="NCL").shape == (9, 12)


def test_lines_are_told_from_tables(tmp_path: Path) -> None:
    for array, kind in (
        (series(50, 40), "field"),
        (series(50, 40).cumsum(1), "field"),
        (RNG.normal(size=(50, 40)), "table"),
        (RNG.normal(size=(50, 1)) + RNG.normal(0, 0.1, (50, 40)), "table"),  # all alike, near or far
        (RNG.normal(size=(50, 5)) @ RNG.normal(size=(5, 40)), "table"),
        (series(50, 12), "table"),  # short
        (series(2, 40), "table"),  # few
    ):
        dataset = saved(tmp_path, array)
        assert dataset.kind == kind
        assert any("taken for lines" in note for note in dataset.notes) == (kind == "field")


@pytest.mark.parametrize(
    ("array", "levels", "top"),
    [
        (RNG.integers(0, 2, (5, 8, 8)), 2, 1),
        (RNG.integers(0, 17, (5, 8, 8)).astype(np.uint8), 17, 16),
        (RNG.integers(0, 17, (5, 8, 8)).astype(np.int64), 17, 16),
        (RNG.integers(0, 256, (5, 8, 8)).astype(np.int32), 256, 255),
        (RNG.integers(0, 256, (5, 8, 8)).astype(np.float64), 256, 255),
        (RNG.integers(0, 4096, (5, 8, 8)).astype(np.uint16), None, 4095),
        (RNG.integers(0, 4096, (5, 8, 8)).astype(np.int32), None, 4095),
        (RNG.integers(0, 65536, (5, 8, 8)).astype(np.int32), None, 65535),
        (RNG.integers(0, 2, (5, 8, 8)).astype(np.bool_), 2, 1),
    ],
)
def test_greys_use_their_whole_range(tmp_path: Path, array: NDArray[Any], levels: int | None, top: int) -> None:
    array[0, 0, 0] = top
    dataset = saved(tmp_path, array)
    assert (dataset.kind, dataset.levels) == ("image", levels)
    np.testing.assert_allclose(values(dataset)[:, 0], array / top, rtol=1e-6)
    if top not in (255, 1):
        assert any(f"grey values up to {top}" in note for note in dataset.notes)


def test_labels_are_the_distinct_ones_and_have_names(tmp_path: Path) -> None:
    x = some_images(6, 5, 5)
    for labels, names, code in (
        (np.array([7, 100, 7, 7, 100, 7]), ("7", "100"), [0, 1, 0, 0, 1, 0]),
        (np.arange(1, 7), tuple("123456"), [0, 1, 2, 3, 4, 5]),
        (np.array(["dog", "cat", "dog", "cat", "cat", "cat"]), ("cat", "dog"), [1, 0, 1, 0, 0, 0]),
        (np.array([[1.0], [0], [1], [0], [0], [3]]), ("0", "1", "3"), [1, 0, 1, 0, 0, 2]),
        (np.array([True, False, True, False, False, True]), ("0", "1"), [1, 0, 1, 0, 0, 1]),
    ):
        np.savez(tmp_path / "x.npz", x=x, y=labels)
        dataset = load_dataset(tmp_path / "x.npz")
        assert (dataset.classes, dataset.num_classes) == (names, len(names))
        assert dataset.labels is not None
        assert dataset.labels.tolist() == code
        assert any(f"classes ({len(names)}), rows of each: {names[0]} " in line for line in dataset.understood())


@pytest.mark.parametrize(
    "keys", [("train_images", "train_labels", "test_images", "test_labels"), ("x_train", "y_train", "x_val", "y_val")]
)
def test_archives_with_splits(tmp_path: Path, keys: tuple[str, ...]) -> None:
    x, y = some_images(9, 28, 28, 3), np.array([[1], [3], [1], [5], [3], [1], [3], [5], [1]])
    parts = dict(zip(keys, (x[:6], y[:6], x[6:], y[6:]), strict=True))
    np.savez(tmp_path / "mnist.npz", **parts)
    path = tmp_path / "mnist.npz"
    train, test = (load_dataset(path, split=split, test_fraction="auto") for split in ("train", "test"))
    np.testing.assert_allclose(values(train), np.moveaxis(x[:6], 3, 1) / 255, rtol=1e-6)
    np.testing.assert_allclose(values(test), np.moveaxis(x[6:], 3, 1) / 255, rtol=1e-6)
    assert train.classes == test.classes == ("1", "3", "5")
    assert test.labels is not None
    assert test.labels.tolist() == [1, 2, 0]
