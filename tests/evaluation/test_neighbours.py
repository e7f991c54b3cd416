"""Precision, recall, density, coverage and memorisation on sets whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from ansn.evaluation.neighbours import Manifold, manifold_to, memorisation, nearest
from ansn.evaluation.resampling import of_all

Array = NDArray[np.float64]


def manifold(samples: Array, reference: Array, k: int = 5) -> Manifold:
    return Manifold(*of_all(manifold_to(reference, k), samples))


def memorised(samples: Array, train: Array, test: Array, quantile: float = 0.01) -> float:
    """The share of samples that are nearer to a training row than all but ``quantile`` of the held-out rows."""
    return memorisation(nearest(test, train)[0][:, 0], quantile)(nearest(samples, train)[0])[0]


def modes(n: int, seed: int, centres: tuple[float, ...] = (0.0, 20.0, 40.0, 60.0)) -> Array:
    """n rows in the plane, the same number about each centre of a line."""
    rng = np.random.default_rng(seed)
    at = np.repeat(np.array(centres), n // len(centres))
    return np.stack((at, np.zeros_like(at)), 1) + rng.normal(size=(len(at), 2))


def test_by_hand() -> None:
    """k = 1 on a line: balls of the reference reach 1 about 0 and 1, 4 about 5; of the samples 2 about 3 and 5, 15
    about 20."""
    reference = np.array([[0.0], [1.0], [5.0]])
    samples = np.array([[3.0], [5.0], [20.0]])
    found = manifold(samples, reference, 1)
    # 3 and 5 lie in the ball of 5 alone, 20 in none. Of the reference, 1 and 5 are within 2 of a sample, 5 within 15 of
    # the last.
    assert found.precision == pytest.approx(2 / 3)
    assert found.density == pytest.approx(2 / 3)
    assert found.coverage == pytest.approx(1 / 3)
    assert found.recall == pytest.approx(2 / 3)


def test_a_set_against_itself_is_perfect() -> None:
    x = modes(200, 0)
    found = manifold(x, x.copy())
    assert (found.precision, found.recall, found.coverage) == (1.0, 1.0, 1.0)
    # Each row lies in its own ball and in those of which it is a neighbour: k + 1 of them in the mean.
    assert found.density == pytest.approx(6 / 5)


def test_equal_distributions_have_density_one_and_the_coverage_of_naeem() -> None:
    """Coverage of equal distributions at equal n is ``1 - prod_j (n - k + 1 - j) / (2 n - j) ~ 1 - 2^-k``: lemma 2 of
    Naeem et al. (2020); the mean density is 1."""
    found = [manifold(modes(400, s), modes(400, s + 100)) for s in range(10)]
    assert np.mean([f.density for f in found]) == pytest.approx(1.0, abs=0.05)
    assert np.mean([f.coverage for f in found]) == pytest.approx(1 - 2.0**-5, abs=0.01)


def test_a_dropped_mode_lowers_recall_and_coverage_alone() -> None:
    reference = modes(400, 0)
    whole, dropped = manifold(modes(400, 1), reference), manifold(modes(399, 1, (0.0, 20.0, 40.0)), reference)
    for name in ("recall", "coverage"):
        assert getattr(dropped, name) == pytest.approx(0.75 * getattr(whole, name), abs=0.05)
    assert dropped.precision > 0.9
    assert dropped.density > 0.9


def test_added_junk_lowers_precision_and_density_alone() -> None:
    reference, samples = modes(400, 0), modes(400, 1)
    junk = np.random.default_rng(2).normal(size=(400, 2)) * 0.01 + np.array([30.0, 500.0])
    whole, spoiled = manifold(samples, reference), manifold(np.concatenate((samples, junk)), reference)
    for name in ("precision", "density"):
        assert getattr(spoiled, name) == pytest.approx(0.5 * getattr(whole, name), abs=0.02)
    assert spoiled.recall >= whole.recall - 0.02
    assert spoiled.coverage == whole.coverage


def test_one_outlier_in_the_reference_fools_precision_more_than_density() -> None:
    """What density is for (Naeem et al. 2020): the wide ball of an outlier holds junk."""
    rng = np.random.default_rng(0)
    reference = np.concatenate((rng.normal(size=(200, 2)), [[300.0, 0.0]]))
    junk = np.array([150.0, 0.0]) + rng.normal(size=(200, 2))
    found = manifold(junk, reference)
    assert found.precision == 1.0
    assert found.density == pytest.approx(1 / 5)


def test_order_rotation_and_blocks_do_not_matter() -> None:
    a, b = modes(120, 0), modes(80, 1)
    rotation = np.array([[0.6, -0.8], [0.8, 0.6]])
    found = manifold(a, b)
    rng = np.random.default_rng(0)
    assert manifold(rng.permutation(a), rng.permutation(b)) == pytest.approx(found)
    assert manifold(a @ rotation, b @ rotation) == pytest.approx(found)


def test_nearest_rows_nearest_first() -> None:
    among = np.array([[0.0], [10.0], [11.0], [30.0]])
    distance, index = nearest(np.array([[10.4], [29.0]]), among, 3)
    assert index.tolist() == [[1, 2, 0], [3, 2, 1]]
    assert np.allclose(distance, [[0.4, 0.6, 10.4], [1.0, 18.0, 19.0]])
    assert index.dtype == np.int64


def test_parts_are_searched_as_one() -> None:
    rng = np.random.default_rng(0)
    rows, among = rng.normal(size=(9, 3)), rng.normal(size=(40, 3))
    whole, parts = nearest(rows, among, 4), nearest(rows, (p for p in np.split(among, [3, 17, 18])), 4)
    assert np.array_equal(whole[1], parts[1])
    assert np.allclose(whole[0], parts[0])


def test_repeated_rows_against_themselves_are_perfect() -> None:
    """Balls of radius 0: nothing but equal rows is in them, and all equal rows are."""
    x = np.random.default_rng(1).normal(size=(40, 4)).repeat(10, 0)
    for rows in (x, x + 1e4, (x + 1e4).astype(np.float32), np.concatenate((x, x - 1e5))):
        for samples in (rows, rows.copy()):
            assert manifold(samples, rows) == (1.0, 1.0, 2.0, 1.0)
    # A ball of radius 0 holds no row beside it, however near.
    assert manifold(x + 1e-7, x) == (0.0, 0.0, 0.0, 0.0)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("mean", [0.0, 1e4, 1e7])
def test_rounding_decides_nothing_far_from_the_origin(mean: float, dtype: type) -> None:
    """By differences of all pairs in float64; in float32 many rows far out are equal."""
    rng = np.random.default_rng(3)
    far = np.where(np.arange(150) % 2, mean, 0.0)[:, None]
    a, b = ((rng.normal(size=(150, 3)) + far).astype(dtype) for _ in range(2))

    def apart(u: Array, v: Array) -> Array:
        return np.square(u[:, None].astype(np.float64) - v.astype(np.float64)).sum(2)

    own, radius = (np.sort(apart(rows, rows), 1)[:, 5] for rows in (a, b))
    hits, recalled = apart(a, b) <= radius, apart(a, b) <= own[:, None]
    expected = (hits.any(1).mean(), recalled.any(0).mean(), hits.sum(1).mean() / 5, hits.any(0).mean())
    assert manifold(a, b) == pytest.approx(expected, abs=1e-12)


def test_nearest_rows_of_clusters_far_apart() -> None:
    """Where float32 cannot tell the rows of a cluster from each other."""
    rng = np.random.default_rng(4)
    rows, among = (rng.normal(size=(60, 3)) + np.where(np.arange(60) % 2, 1e5, -1e5)[:, None] for _ in range(2))
    expected = np.sort(np.linalg.norm(rows[:, None] - among, axis=2), 1)[:, :3]
    assert np.allclose(nearest(rows, among, 3)[0], expected, rtol=1e-9)


def test_copies_of_training_rows_are_memorised() -> None:
    train, test, fresh = (np.random.default_rng(s).normal(size=(600, 8)) for s in range(3))
    assert memorised(train[:100] + 1e-6, train, test) == 1.0
    mixed = np.concatenate((fresh[:75], train[:25]))
    assert memorised(mixed, train, test) == pytest.approx(0.25, abs=0.05)


def test_new_rows_are_memorised_as_often_as_the_quantile_says() -> None:
    """1 % of them, and 20 % at another quantile: within four standard errors of 3000 rows and of 3000 held-out ones."""
    train, test, fresh = (np.random.default_rng(s).normal(size=(n, 4)) for s, n in ((0, 500), (1, 3000), (2, 3000)))
    for quantile in (0.01, 0.2):
        error = np.sqrt(2 * quantile * (1 - quantile) / 3000)
        assert memorised(fresh, train, test, quantile) == pytest.approx(quantile, abs=4 * error)
    # Worse samples are not memorised ones.
    assert memorised(3 * fresh, train, test) < 0.01


def test_the_ratio_of_distances_is_one_for_new_rows_and_nothing_for_copies() -> None:
    usual = np.abs(np.random.default_rng(0).normal(size=500)) + 0.1
    found = memorisation(usual)
    assert found(usual[:, None])[1] == pytest.approx(1.0)
    assert found(3 * usual[:, None])[1] == pytest.approx(3.0)
    assert found(0 * usual[:, None]) == (1.0, 0.0)


def test_wrong_arguments_are_named() -> None:
    x = modes(40, 0)
    with pytest.raises(ValueError, match="k: got 5 neighbours of 4 rows"):
        manifold(x[:4], x)
    with pytest.raises(ValueError, match=r"quantile: got 1\.0"):
        memorised(x, x, x, 1.0)
    with pytest.raises(ValueError, match="k: got 5 neighbours of 4 rows"):
        nearest(x, x[:4], 5)
    with pytest.raises(ValueError, match="samples: got values that are not finite"):
        manifold(np.full_like(x, np.nan), x)
