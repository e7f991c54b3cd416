"""Statistics over space, of fields whose spectrum and covariance are known."""

from __future__ import annotations

import numpy as np
import pytest

from ansn.evaluation.compare import Resampling
from ansn.evaluation.fields import (
    AUTOCORRELATION,
    POWER,
    VALUES,
    autocovariance,
    densities,
    power,
    profiles,
)

SIZES = [(64,), (24, 20), (10, 8, 12)]


@pytest.mark.parametrize("size", SIZES)
def test_white_noise_has_its_variance_at_every_wave_number(size: tuple[int, ...]) -> None:
    x = 3.0 * np.random.default_rng(0).normal(size=(4000 if len(size) == 1 else 400, *size))
    found = power(x)
    assert found.shape == (len(x), max(size) // 2)
    np.testing.assert_allclose(found.mean(0)[1:], 9.0, rtol=0.1)
    np.testing.assert_allclose(power(x + 7.0), found, atol=1e-9)


def test_a_wave_has_its_power_at_its_wave_number() -> None:
    at = np.arange(64)
    x = np.cos(2 * np.pi * 5 * at / 64 + np.linspace(0, 6, 10)[:, None])
    assert (power(x).argmax(1) == 4).all()  # wave numbers count from 1
    plane = np.broadcast_to(x[:, None, :], (10, 64, 64))
    assert (power(plane).argmax(1) == 4).all()


@pytest.mark.parametrize("size", SIZES)
def test_autocovariance_is_the_mean_over_pairs(size: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).normal(size=(5, *size))
    found = autocovariance(x)
    assert found.shape == (5, max(size) // 2 + 1)
    np.testing.assert_allclose(found[:, 0], np.square(x).reshape(5, -1).mean(1))
    if len(size) == 1:
        np.testing.assert_allclose(found[:, 3], (x[:, 3:] * x[:, :-3]).mean(1))
    np.testing.assert_allclose(autocovariance(np.full((1, *size), 2.0)), 4.0)


def test_densities_hold_every_value_once() -> None:
    edges = np.linspace(-1.0, 1.0, 11)
    found = densities(np.random.default_rng(0).normal(size=(6, 4, 5)), edges)
    np.testing.assert_allclose((found * np.diff(edges)).sum(1), 1.0)


@pytest.mark.parametrize(("scale", "offset"), [(1.0, 0.0), (1e-17, 0.0), (10.0, 280.0)])
def test_distances_are_at_the_floor_in_any_unit_and_above_it_for_smoother_rows(scale: float, offset: float) -> None:
    def rows(seed: int, smooth: float) -> np.ndarray:
        x = np.random.default_rng(seed).normal(size=(300, 16, 16))
        return offset + scale * (x + smooth * np.roll(x, 1, 1)) / np.hypot(1.0, smooth)

    data, same, held = rows(0, 1.0), rows(1, 1.0), rows(2, 1.0)
    halves = Resampling(8, 0)
    for p, q in zip(profiles(data, same, held, halves), profiles(data, rows(3, 0.0), held, halves), strict=True):
        assert p.measured.floor is not None
        assert p.measured.value < 2.5 * p.measured.floor
        assert p.name == q.name
        if p.name != VALUES:
            assert q.measured.value > 4 * p.measured.value
    names = [p.name for p in profiles(data, same, None, halves)]
    assert names == [POWER, AUTOCORRELATION, VALUES]
    (shifted,) = profiles(data, same + scale, held, halves, names=(VALUES,))
    # What lies beyond the data's values counts at their end.
    assert shifted.measured.value == pytest.approx(1.0, abs=0.1)
