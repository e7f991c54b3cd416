"""Kernel, energy and sliced distances: closed forms of Gaussians, invariances, and what unbiased means."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from ansn.evaluation import discrepancy
from ansn.evaluation.discrepancy import energy_distance, kernel_to, sliced_to
from ansn.evaluation.metrics import frechet_distance
from ansn.evaluation.resampling import of_all

Array = NDArray[np.float64]
Distance = Callable[[Array, Array], float]


def kernel_distance(a: Array, b: Array) -> float:
    return float(of_all(kernel_to(b), a)[0])


def sliced_wasserstein(a: Array, b: Array, projections: int = 256, seed: int = 0) -> float:
    return float(of_all(sliced_to(b, projections, seed), a)[0])


DISTANCES: list[Distance] = [kernel_distance, energy_distance, sliced_wasserstein]
UNBIASED: list[Distance] = [kernel_distance, energy_distance]


def normal(n: int, p: int, seed: int, mean: float = 0.0, deviation: float = 1.0) -> Array:
    return mean + deviation * np.random.default_rng(seed).normal(size=(n, p))


def turned(rows: Array, seed: int) -> Array:
    rotation = np.linalg.qr(np.random.default_rng(seed).normal(size=(rows.shape[1],) * 2))[0]
    return np.asarray(rows @ rotation)


@pytest.mark.parametrize("distance", DISTANCES)
def test_a_set_and_its_copy_are_as_near_as_sets_can_be(distance: Distance) -> None:
    """The unbiased ones are then below 0: a row is one of its own pairs across the sets and none within them."""
    a = normal(80, 3, 0)
    assert distance(a, a) == pytest.approx(distance(a, a.copy()), abs=1e-6)
    assert distance(a, a) <= 1e-12
    assert distance(a, a) < distance(a, normal(80, 3, 1)) < distance(a, normal(80, 3, 1, mean=2.0))


@pytest.mark.parametrize("distance", DISTANCES)
def test_the_order_of_rows_and_of_sets_does_not_matter(distance: Distance) -> None:
    a, b = normal(70, 4, 0), normal(50, 4, 1, mean=0.5)
    value = distance(a, b)
    mixed = np.random.default_rng(2).permutation(a)
    assert distance(mixed, b) == pytest.approx(value, rel=1e-9)
    assert distance(b, a) == pytest.approx(value, rel=1e-9)


@pytest.mark.parametrize("distance", UNBIASED)
def test_a_common_rotation_does_not_matter(distance: Distance) -> None:
    a, b = normal(70, 4, 0), normal(50, 4, 1, mean=0.5)
    assert distance(turned(a, 3), turned(b, 3)) == pytest.approx(distance(a, b), rel=1e-9)


def test_a_common_rotation_moves_the_sliced_distance_by_its_directions_only() -> None:
    a, b = normal(400, 3, 0), normal(400, 3, 1) @ np.diag([3.0, 1.0, 1.0])
    values = [sliced_wasserstein(turned(a, s), turned(b, s), 2000) for s in range(4)]
    # The mean over 2000 directions of squares that spread over (0, 4): one percent of standard error.
    assert max(values) / min(values) == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("distance", DISTANCES)
def test_blocks_do_not_show(distance: Distance, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = normal(37, 3, 0), normal(23, 3, 1, mean=0.3)
    whole = distance(a, b)
    monkeypatch.setattr(discrepancy, "_BLOCK", 7)
    assert distance(a, b) == pytest.approx(whole, rel=1e-9)


@pytest.mark.parametrize("distance", [energy_distance, sliced_wasserstein, frechet_distance])
@pytest.mark.parametrize("far", [1e6, -1e9])
def test_a_common_shift_does_not_matter(distance: Distance, far: float) -> None:
    """To the digits that the shifted rows have left: of the coordinates a spacing of ``far`` float64s."""
    a, b = normal(70, 4, 0) + far, normal(50, 4, 1, mean=0.01) + far
    # The oracle has the very rows, brought back without rounding.
    assert distance(a, b) == pytest.approx(distance(a - far, b - far), rel=1e-9)


@pytest.mark.parametrize("far", [1e3, 1e6])
def test_kernel_distance_keeps_its_digits_far_from_0(far: float) -> None:
    """Its kernel is a cube of products, so it does change with a shift: against rational numbers."""
    a, b = normal(5, 2, 0) + far, normal(4, 2, 1, mean=0.5) + far
    exact = [[[Fraction(float(v)) for v in row] for row in rows] for rows in (a, b)]

    def mean(u: list[list[Fraction]], v: list[list[Fraction]], same: bool) -> Fraction:
        pairs = [(p, q) for i, p in enumerate(u) for j, q in enumerate(v) if not (same and i == j)]
        total = sum((sum((x * y for x, y in zip(p, q, strict=True)), Fraction(0)) / 2 + 1) ** 3 for p, q in pairs)
        return Fraction(total) / len(pairs)

    expected = mean(exact[0], exact[0], True) + mean(exact[1], exact[1], True) - 2 * mean(*exact, False)
    assert kernel_distance(a, b) == pytest.approx(float(expected), rel=1e-9)


def test_kernel_distance_by_its_definition() -> None:
    a, b = normal(6, 2, 0), normal(5, 2, 1)

    def k(u: Array, v: Array) -> float:
        return float((u @ v / 2 + 1) ** 3)

    def within(rows: Array) -> float:
        return float(np.mean([k(u, v) for i, u in enumerate(rows) for j, v in enumerate(rows) if i != j]))

    expected = within(a) + within(b) - 2 * np.mean([k(u, v) for u in a for v in b])
    assert kernel_distance(a, b) == pytest.approx(expected, rel=1e-12)


def test_energy_distance_of_one_feature_is_scipys() -> None:
    """scipy has the root of the biased form, in which a row is a pair with itself."""
    a, b = normal(40, 1, 0), normal(60, 1, 1, mean=0.7, deviation=2.0)
    biased = 0.0
    for rows in (a, b):
        pairs = np.abs(rows - rows.T)
        biased += pairs.sum() / (len(rows) * (len(rows) - 1)) - pairs.mean()
    expected = stats.energy_distance(a[:, 0], b[:, 0]) ** 2
    assert energy_distance(a, b) + biased == pytest.approx(expected, rel=1e-9)


def test_energy_distance_of_gaussians() -> None:
    """``E |x - y|`` of normals is that of a folded normal."""

    def folded(mean: float, deviation: float) -> float:
        z = mean / deviation
        return deviation * math.sqrt(2 / math.pi) * math.exp(-z * z / 2) + mean * math.erf(z / math.sqrt(2))

    values = [energy_distance(normal(500, 1, s), normal(500, 1, s + 100, 1.0, 2.0)) for s in range(20)]
    expected = 2 * folded(1.0, math.sqrt(5.0)) - folded(0.0, math.sqrt(2.0)) - folded(0.0, math.sqrt(8.0))
    assert np.mean(values) == pytest.approx(expected, abs=5 * np.std(values) / math.sqrt(20))
    assert np.std(values) < 0.2 * expected


@pytest.mark.parametrize("distance", UNBIASED)
def test_unbiased_distances_of_equal_distributions_average_to_nothing(distance: Distance) -> None:
    """Also at n = 12, and so some are below 0."""
    values = np.array([distance(normal(12, 2, s), normal(15, 2, s + 5000)) for s in range(400)])
    assert abs(values.mean()) < 4 * values.std() / math.sqrt(len(values))
    assert 0.2 < (values < 0).mean() < 0.9


@pytest.mark.parametrize("p", [1, 4])
def test_sliced_distance_of_gaussians(p: int) -> None:
    """Isotropic normals: ``|m|^2 / p + (s_a - s_b)^2``, the mean square of the shift's projections and the spreads'."""
    a, b = normal(8000, p, 0), normal(8000, p, 1, mean=2.0, deviation=3.0)
    # Standard errors of moments at 8000 rows are under 0.04, those of 300 directions under 6 %.
    assert sliced_wasserstein(a, b, 300) ** 2 == pytest.approx(4.0 + 4.0, rel=0.2 if p > 1 else 0.03)


def test_sliced_distance_of_one_feature_is_the_wasserstein_distance_of_the_sorted_rows() -> None:
    a, b = normal(30, 1, 0), normal(30, 1, 1, mean=1.0)
    expected = math.sqrt(np.mean((np.sort(a[:, 0]) - np.sort(b[:, 0])) ** 2))
    assert sliced_wasserstein(a, b) == pytest.approx(expected, rel=1e-12)
    # Rows said twice are the same distribution.
    assert sliced_wasserstein(np.repeat(a, 2, 0), np.repeat(b, 2, 0)) == pytest.approx(expected, rel=1e-12)


def test_sliced_distance_of_different_n_is_near_that_of_equal_n() -> None:
    a, b = normal(3000, 2, 0), normal(9000, 2, 1, mean=1.0)
    assert sliced_wasserstein(a, b) == pytest.approx(sliced_wasserstein(a, b[:3000]), abs=0.05)


def test_quantiles_of_different_n_are_hazens() -> None:
    x, at = normal(2, 31, 0), (np.arange(12) + 0.5) / 12
    expected = np.quantile(x, at, axis=1, method="hazen").T
    assert np.allclose(discrepancy._quantiles(np.sort(x), 12), expected, atol=1e-12)


def test_sliced_distance_is_a_function_of_its_seed() -> None:
    a, b = normal(50, 5, 0), normal(50, 5, 1)
    assert sliced_wasserstein(a, b, 10, seed=1) == sliced_wasserstein(a, b, 10, seed=1)
    assert sliced_wasserstein(a, b, 10, seed=1) != sliced_wasserstein(a, b, 10, seed=2)


@pytest.mark.parametrize("distance", DISTANCES)
def test_wrong_sets_are_named(distance: Distance) -> None:
    a = np.zeros((5, 3))
    with pytest.raises(ValueError, match="b: got 2 features, expected a's 3"):
        distance(a, np.zeros((5, 2)))
    with pytest.raises(ValueError, match="a: got values that are not finite"):
        distance(np.full((5, 3), np.nan), a)
    with pytest.raises(ValueError, match="at least two rows"):
        distance(a, a[:1])
    with pytest.raises(ValueError, match="projections: got 0"):
        sliced_wasserstein(a, a, 0)
