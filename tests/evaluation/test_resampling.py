"""Standard errors by halves: against known ones, and how often the intervals hold the truth."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import linalg
from scipy.spatial.distance import cdist

from ansn.evaluation.compare import KINDS
from ansn.evaluation.metrics import frechet_distance
from ansn.evaluation.neighbours import manifold_to
from ansn.evaluation.resampling import each, resampled

Array = NDArray[np.float64]


def deviation(statistic: Callable[[Array], float], rows: Array, resamples: int = 40, seed: int = 0) -> float:
    return float(resampled(each(lambda half: [statistic(half)]), rows, resamples, seed)[1][0])


def test_the_deviation_of_a_mean_is_the_standard_error() -> None:
    x = np.random.default_rng(0).normal(size=(400, 1)) * 3.0
    found = deviation(lambda rows: float(rows.mean()), x, resamples=400)
    # 400 halves know a deviation to 1 / sqrt(800) = 4 %.
    assert found == pytest.approx(float(x.std(ddof=1)) / 20.0, rel=0.15)


def test_it_is_a_function_of_the_seed_and_blind_to_what_is_constant() -> None:
    x = np.random.default_rng(0).normal(size=(50, 2))
    errors = [deviation(lambda rows: float(rows.max()), x, seed=s) for s in (0, 0, 1)]
    assert errors[0] == errors[1] != errors[2]
    assert deviation(lambda rows: 3.0, x) == 0.0


def test_intervals_hold_the_truth() -> None:
    """Frechet distance of one feature between samples of N(1, 1) and a fixed reference of N(0, 1): the mean over draws
    of the samples is in the interval of about 95 % of them.

    Of 200 draws a right interval holds it in fewer than 176 (88 %) with probability 1e-4; one whose standard error is
    off by a factor 0.75 holds it in 85 %.
    """
    n, draws = 60, 200
    reference = np.random.default_rng(10_000).normal(size=(3000, 1))

    def distance(rows: Array) -> float:
        return frechet_distance(rows, reference)

    samples = [1.0 + np.random.default_rng(s).normal(size=(n, 1)) for s in range(draws)]
    values = np.array([distance(x) for x in samples])
    errors = np.array([deviation(distance, x, seed=s) for s, x in enumerate(samples)])
    held = np.abs(values - values.mean()) < 1.96 * errors
    assert held.sum() >= 176
    # Nor are they as wide as they like.
    assert errors.mean() == pytest.approx(values.std(), rel=0.2)


def test_near_the_floor_intervals_are_too_wide_rather_than_too_narrow() -> None:
    """Where the distribution is the reference's, a distance is a square of what varies, and halves vary more."""
    reference = np.random.default_rng(10_000).normal(size=(3000, 2))

    def distance(rows: Array) -> float:
        return frechet_distance(rows, reference)

    samples = [np.random.default_rng(s).normal(size=(80, 2)) for s in range(60)]
    values = np.array([distance(x) for x in samples])
    errors = np.array([deviation(distance, x) for x in samples])
    assert (np.abs(values - values.mean()) < 1.96 * errors).mean() > 0.85
    assert errors.mean() < 4 * values.std()


def test_a_bootstrap_with_replacement_is_biased_and_halves_are_not() -> None:
    """Why halves: repeated rows are less variety. Mean of the resampled distances, less the distance."""
    rng = np.random.default_rng(0)
    reference, x = rng.normal(size=(4000, 8)), rng.normal(size=(200, 8))
    value = frechet_distance(x, reference)
    again = [frechet_distance(x[rng.integers(0, 200, 200)], reference) for _ in range(100)]
    assert np.mean(again) > 1.5 * value
    assert deviation(lambda rows: frechet_distance(rows, reference), x) < 0.5 * value


@pytest.mark.parametrize(("n", "resamples"), [(3, 40), (10, 1)])
def test_too_little_is_named(n: int, resamples: int) -> None:
    with pytest.raises(ValueError, match=f"rows, resamples: got {n}, {resamples}"):
        deviation(lambda rows: 0.0, np.zeros((n, 1)), resamples)


def plain(kind: str, rows: Array, reference: Array, k: int = 5) -> list[float]:
    """The numbers of a kind by their definitions, in float64 and from whole matrices."""
    rows, reference = rows.astype(np.float64), reference.astype(np.float64)
    n, m, p = len(rows), len(reference), rows.shape[1]
    own, across, theirs = (cdist(u, v) for u, v in ((rows, rows), (rows, reference), (reference, reference)))
    if kind == "frechet":
        covariances = [np.cov(x, rowvar=False) for x in (rows, reference)]
        root = np.sqrt(linalg.eigvals(covariances[0] @ covariances[1]).real.clip(0)).sum()
        shift = rows.mean(0) - reference.mean(0)
        return [shift @ shift + np.trace(covariances[0] + covariances[1]) - 2 * root]
    if kind == "energy":
        return [2 * across.mean() - own.sum() / (n * (n - 1)) - theirs.sum() / (m * (m - 1))]
    if kind == "kernel":
        own, across, theirs = (
            (u @ v.T / p + 1) ** 3 for u, v in ((rows, rows), (rows, reference), (reference, reference))
        )
        within = [(pairs.sum() - np.trace(pairs)) / (len(pairs) * (len(pairs) - 1)) for pairs in (own, theirs)]
        return [sum(within) - 2 * across.mean()]
    if kind == "sliced":
        directions = np.random.default_rng(0).normal(size=(p, 256))
        directions /= np.linalg.norm(directions, axis=0)
        at = (np.arange(min(n, m)) + 0.5) / min(n, m)
        u, v = (np.quantile(x @ directions, at, axis=0, method="hazen") for x in (rows, reference))
        return [float(np.sqrt(np.square(u - v).mean()))]
    reach, ball = (np.sort(d, 1)[:, k] * (1 + 1e-9) for d in (own, theirs))
    inside = (across <= ball).sum(1)
    return [(inside > 0).mean(), (across <= reach[:, None]).any(0).mean(), inside.mean() / k,
            (across <= ball).any(0).mean()]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("far", [0.3, 30.0])
def test_values_and_errors_are_those_of_each_half_alone(kind: str, far: float) -> None:
    """Pairs are made once for all halves, of float32 features: what plain float64 of each half's rows has."""
    rng = np.random.default_rng(0)
    rows, reference = (rng.normal(size=(n, 4)).astype(np.float32) for n in (230, 210))
    rows[::2] *= far  # with wide balls too
    rows[7] = rows[11]
    values, errors = resampled(KINDS[kind].against(reference), rows, 6, 3)
    expected = resampled(each(lambda half: plain(kind, half, reference)), rows, 6, 3)
    assert values == pytest.approx(expected[0], rel=1e-6, abs=1e-9)
    assert errors == pytest.approx(expected[1], rel=1e-5, abs=1e-9)


def test_a_small_part_has_its_own_neighbours() -> None:
    """They are looked for among the nearest of all rows, and where these do not hold enough of the part, farther."""
    rng = np.random.default_rng(0)
    rows, reference = rng.normal(size=(400, 3)), rng.normal(size=(50, 3))
    parts = np.zeros((2, 400), dtype=bool)
    parts[0, rng.permutation(400)[:9]] = parts[1, :250] = True
    found = manifold_to(reference)(rows, parts)
    assert found == pytest.approx(np.array([plain("manifold", rows[part], reference) for part in parts]))
