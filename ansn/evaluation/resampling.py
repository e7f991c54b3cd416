"""How far a number would move with other samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ansn.evaluation.features import Array

Parts = NDArray[np.bool_]
# Rows ``[n, p]`` and m of their subsets, bool ``[m, n]``, to k numbers of each, ``[m, k]``: all at once, so that what
# the subsets share, above all pairs of rows, is made once.
Statistic = Callable[[Array, Parts], Array]


def each(statistic: Callable[[Array], Sequence[float]]) -> Statistic:
    """The statistic of subsets that share nothing: each is given its rows."""
    return lambda rows, parts: np.array([statistic(rows[part]) for part in parts], dtype=np.float64)


def of_all(statistic: Statistic, rows: Array) -> Array:
    """The numbers of all rows, ``[k]``."""
    return statistic(rows, np.ones((1, len(rows)), dtype=bool))[0]


def resampled(statistic: Statistic, rows: Array, resamples: int = 40, seed: int = 0) -> tuple[Array, Array]:
    """The numbers of all rows and their standard errors, by the delete-half jackknife (Shao and Wu 1989): the deviation
    of a statistic over random halves of the rows.

    Drawing half without replacement leaves the factor ``sqrt(m / (n - m)) = 1`` between a half's deviation about the
    whole and the whole's about the truth. A bootstrap with replacement repeats rows, which a Frechet distance or a
    neighbourhood takes for less variety: it is biased upwards there. A half's own bias does not enter, as deviations
    are taken about the halves' mean. Raises ValueError for fewer than four rows or two resamples.
    """
    if len(rows) < 4 or resamples < 2:
        raise ValueError(f"rows, resamples: got {len(rows)}, {resamples}, expected at least 4 and 2")
    rng, parts = np.random.default_rng(seed), np.zeros((1 + resamples, len(rows)), dtype=bool)
    parts[0] = True
    for half in parts[1:]:
        half[rng.permutation(len(rows))[: len(rows) // 2]] = True
    found = statistic(rows, parts)
    return found[0], np.asarray(np.std(found[1:], axis=0, ddof=1))
