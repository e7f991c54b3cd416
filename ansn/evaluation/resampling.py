"""How far a number would move with other samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ansn.evaluation.features import Array


def deviations(
    statistics: Callable[[Array], Sequence[float]], rows: Array, resamples: int = 40, seed: int = 0
) -> Array:
    """Standard errors of ``statistics(rows)``, one for each, by the delete-half jackknife (Shao and Wu 1989): the
    deviation of a statistic over random halves of the rows.

    Drawing half without replacement leaves the factor ``sqrt(m / (n - m)) = 1`` between a half's deviation about the
    whole and the whole's about the truth. A bootstrap with replacement repeats rows, which a Frechet distance or a
    neighbourhood takes for less variety: it is biased upwards there. A half's own bias does not enter, as deviations
    are taken about the halves' mean. Raises ValueError for fewer than four rows or two resamples.
    """
    if len(rows) < 4 or resamples < 2:
        raise ValueError(f"rows, resamples: got {len(rows)}, {resamples}, expected at least 4 and 2")
    rng = np.random.default_rng(seed)
    halves = [statistics(rows[rng.permutation(len(rows))[: len(rows) // 2]]) for _ in range(resamples)]
    return np.asarray(np.std(np.asarray(halves, dtype=np.float64), axis=0, ddof=1))
