"""Fields: their units, windows of a series, and what float32 can hold of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ansn.data import Dataset, load_dataset
from ansn.data.fields import field
from ansn.data.units import Affine


def saved(path: Path, array: NDArray[Any], **options: Any) -> Dataset:
    np.save(path / "x.npy", array)
    return load_dataset(path / "x.npy", **options)


@given(
    shape=st.lists(st.integers(1, 4), min_size=2, max_size=4),
    magnitude=st.integers(-30, 30),
    offset=st.floats(-1e6, 1e6),
    point=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_rows_come_back_and_have_unit_variance(
    shape: list[int], magnitude: int, offset: float, point: bool, seed: int
) -> None:
    noise = np.random.default_rng(seed).normal(size=(40, *shape))
    rows, everything = 10.0**magnitude * (offset + noise), np.arange(40)
    x, units = field(rows, everything, everything, "x.npy", "point" if point else True)
    assert x.dtype == torch.float32
    # of deviations, not of the offset, which may be a million times as large
    error = (units.decode(x).numpy() - rows) / 10.0**magnitude
    assert np.abs(error).max() < 1e-5
    across = x.flatten(1).T if point else x.transpose(0, 1).flatten(1)
    torch.testing.assert_close(across.std(1, correction=0), torch.ones(len(across)), rtol=1e-3, atol=0)
    volume = units.scale.expand(units.shape).log().sum()
    torch.testing.assert_close(units.log_volume(x), volume.expand(40))


def test_seconds_since_1970_are_told_apart(tmp_path: Path) -> None:
    t = 1.7e9 + np.random.default_rng(0).normal(size=(50, 2, 30))
    dataset = saved(tmp_path, t)
    assert isinstance(dataset.rows, torch.Tensor)
    np.testing.assert_allclose(dataset.to_data_units(dataset.rows), t, rtol=0, atol=1e-6)


def test_units_are_those_of_the_train_rows(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(5, 3, (40, 2, 30))
    train, test = (saved(tmp_path, rows, split=split, test_fraction=0.25) for split in ("train", "test"))
    assert isinstance(train.units, Affine)
    assert isinstance(test.units, Affine)
    assert torch.equal(train.units.offset, test.units.offset)
    together = torch.cat([d.to_data_units(d.rows) for d in (train, test)])  # type: ignore[arg-type]
    np.testing.assert_allclose(np.sort(together.numpy(), 0), np.sort(rows, 0), atol=1e-5)
    mean = train.to_data_units(train.rows).mean((0, 2))  # type: ignore[arg-type]
    torch.testing.assert_close(train.units.offset.flatten(), mean, rtol=0, atol=1e-6)


def test_a_channel_without_variance_keeps_its_value(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(40, 2, 30))
    rows[:, 1] = 0.1
    dataset = saved(tmp_path, rows)
    x = dataset.rows
    assert isinstance(x, torch.Tensor)
    assert bool(x[:, 1].abs().max() < 1e-6)
    np.testing.assert_allclose(dataset.to_data_units(x)[:, 1], 0.1, rtol=1e-9)


def test_channels_of_very_different_sizes_each_have_their_scale(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(40, 3, 6, 7)) * np.array([1e8, 1.0, 1e-9])[:, None, None]
    for options in ({}, {"standardise": "point"}):
        dataset = saved(tmp_path, rows, **options)
        x = dataset.rows
        assert isinstance(x, torch.Tensor)
        torch.testing.assert_close(x.std((0, 2, 3), correction=0), torch.ones(3), rtol=1e-3, atol=0)


def test_outliers_do_not_rule(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(400, 1, 30))
    rows[7, 0, 3] = 1e11
    with pytest.warns(UserWarning, match=r"channel 0 has outliers, the worst in row 7; its scale is that of its"):
        dataset = saved(tmp_path, rows)
    assert isinstance(dataset.rows, torch.Tensor)
    middle = dataset.rows[torch.arange(400) != 7]
    assert float(middle.std()) == pytest.approx(1, rel=0.05)


def test_as_they_are(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(5, 3, (40, 2, 30))
    dataset = saved(tmp_path, rows, standardise=False)
    np.testing.assert_array_equal(dataset.rows, rows.astype(np.float32))


@given(
    length=st.integers(20, 200),
    window=st.integers(2, 10),
    channels=st.sampled_from([None, 1, 3]),
    fraction=st.sampled_from([0.1, 0.25, "auto"]),
)
@settings(max_examples=60, deadline=None)
def test_windows_of_train_and_test_share_nothing(
    tmp_path_factory: pytest.TempPathFactory, length: int, window: int, channels: int | None, fraction: Any
) -> None:
    path = tmp_path_factory.mktemp("windows")
    if length < 40 * window:  # too short a series may have no test window
        length = 40 * window
    series = np.arange(length, dtype=np.float64)
    if channels:
        series = np.stack([series + 1e4 * c for c in range(channels)], 1)
    train, test = (
        saved(path, series, window=window, split=split, test_fraction=fraction) for split in ("train", "test")
    )
    seen = []
    for dataset in (train, test):
        assert (dataset.kind, dataset.shape) == ("field", (channels or 1, window))
        lines = dataset.to_data_units(dataset.rows).numpy()[:, 0]  # type: ignore[arg-type]
        np.testing.assert_allclose(np.diff(lines, axis=1), 1, atol=0.1)
        seen.append(set(np.rint(lines).astype(int).ravel().tolist()))
    assert not seen[0] & seen[1]
    assert max(seen[0]) < min(seen[1])
    assert len(seen[0] | seen[1]) > length - 3 * window


def test_a_window_longer_than_the_series_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"window: got 60"):
        saved(tmp_path, np.arange(50.0), window=60)
