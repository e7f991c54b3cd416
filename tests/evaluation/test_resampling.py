"""Standard errors by halves: against known ones, and how often the intervals hold the truth."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from ansn.evaluation.metrics import frechet_distance
from ansn.evaluation.resampling import deviations

Array = NDArray[np.float64]


def deviation(statistic: Callable[[Array], float], rows: Array, resamples: int = 40, seed: int = 0) -> float:
    return float(deviations(lambda half: [statistic(half)], rows, resamples, seed)[0])


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
