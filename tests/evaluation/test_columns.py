"""Columns and correlations of tables, against definitions and against what the rows were made of."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import wasserstein_distance

from ansn.data.units import Column
from ansn.evaluation.columns import correlation, correlations, marginals
from ansn.evaluation.compare import Resampling

COLUMNS = [
    Column("a"), Column("b", "whole"), Column("sort", "category", words=("x", "y", "z"), shares=(0.5, 0.25, 0.25)),
    Column("when", "time"),
    Column("yes", "binary"),
]  # fmt: skip
HALVES = Resampling(8, 0)


def table(seed: int, n: int, *, shift: float = 0.0, share: float = 0.5) -> np.ndarray:
    rng = np.random.default_rng(seed)
    a = rng.normal(size=n)
    yes = rng.random(n) < share
    when = 1.7e9 + 1e3 * rng.normal(size=n)
    return np.stack([a + shift, np.rint(5 * a), rng.integers(0, 3, n), when, yes], 1)


def test_distances_are_what_they_are_called() -> None:
    data, samples = table(0, 500), table(1, 300, shift=0.5, share=0.9)
    found = {m.name: m for m in marginals(COLUMNS, data, samples, None, HALVES)}
    expected = wasserstein_distance(data[:, 0], samples[:, 0]) / data[:, 0].std()
    assert found["a"].value == pytest.approx(expected, rel=0.01)
    assert found["yes"].value == pytest.approx(abs(data[:, 4].mean() - samples[:, 4].mean()))
    p, q = (np.bincount(x[:, 2].astype(int), minlength=3) / len(x) for x in (data, samples))
    assert found["sort"].value == pytest.approx(0.5 * np.abs(p - q).sum())
    assert all(m.low is not None and m.low <= m.value <= (m.high or 0) for m in found.values())


def test_an_equal_column_is_at_its_floor_and_a_shifted_one_far_above() -> None:
    data, samples, held = table(0, 4000), table(1, 1000, shift=0.5), table(2, 1000)
    found = {m.name: m for m in marginals(COLUMNS, data, samples, held, HALVES)}
    assert all(m.floor is not None and m.floor_n == 1000 for m in found.values())
    for name in ("b", "sort", "when", "yes"):
        assert found[name].value < 3 * (found[name].floor or 0) + 0.03
    assert found["a"].value == pytest.approx(0.5, abs=0.1)
    assert (found["a"].low or 0) > 5 * (found["a"].floor or 1)


def test_what_is_not_known_does_not_count() -> None:
    data, samples = table(0, 400), table(1, 400)
    holes = np.concatenate((data, np.full((100, 5), np.nan)))
    whole, cut = (marginals(COLUMNS, x, samples, None, HALVES) for x in (data, holes))
    assert [m.value for m in whole] == [m.value for m in cut]
    np.testing.assert_allclose(correlation(holes), correlation(data), atol=1e-12)


def test_correlations_are_pearsons_and_the_pair_that_differs_is_found() -> None:
    data, samples, held = table(0, 2000), table(1, 1000), table(2, 1000)
    samples[:, 1] = np.random.default_rng(3).permutation(samples[:, 1])
    found = correlations(COLUMNS, data, samples, held, HALVES)
    assert found is not None
    assert found.names == ("a", "b", "when", "yes")
    np.testing.assert_allclose(found.data, np.corrcoef(data[:, [0, 1, 3, 4]].T), atol=1e-9)
    assert found.worst(1) == [(0, 1)]
    largest = found.measured[1]
    assert largest.value > 0.9
    assert largest.floor is not None
    assert largest.floor < 0.2
    assert found.held_out is not None
    assert found.held_out[0, 1] == pytest.approx(found.data[0, 1], abs=0.02)
    assert correlations(COLUMNS[2:3], data[:, 2:3], samples[:, 2:3], None, HALVES) is None
