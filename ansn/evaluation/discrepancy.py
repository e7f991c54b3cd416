"""Distances between two sets of rows that see more than two moments: kernel, energy, sliced Wasserstein.

Sets are float64 ``[n, p]``. Pairs are made a block at a time, so that memory does not grow with n squared.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ansn.evaluation.features import Array, checked, checked_pair

_BLOCK = 2048

Distance = Callable[[Array], float]


def kernel_to(b: Array) -> Distance:
    """``E k(a, a') + E k(b, b') - 2 E k(a, b)``, ``k(u, v) = (u.v / p + 1)^3`` (Binkowski et al. 2018), to one
    reference ``b``, whose own pairs are gone through once: the unbiased estimate of a squared maximum mean discrepancy.
    It may be below 0, and is 0 in the mean for equal distributions, whatever n.

    Features are used as they are; their scale matters. Raises ValueError as :func:`frechet_distance` does.
    """
    b = checked("b", b)

    def kernel(u: Array, v: Array) -> Array:
        return np.asarray((u @ v.T / b.shape[1] + 1.0) ** 3)

    own = _within(kernel, b)

    def distance(a: Array) -> float:
        a = checked_pair(a, b)
        return _within(kernel, a) + own - 2.0 * _mean(kernel, a, b)

    return distance


def energy_distance(a: Array, b: Array) -> float:
    """``2 E |a - b| - E |a - a'| - E |b - b'|`` (Szekely and Rizzo 2013), unbiased: 0 in the mean for equal
    distributions and above 0 for any others, in the units of the features.

    Raises ValueError as :func:`frechet_distance` does.
    """
    return energy_to(b)(a)


def energy_to(b: Array) -> Distance:
    """:func:`energy_distance` to one reference, whose own pairs are gone through once."""
    from sklearn.metrics.pairwise import euclidean_distances  # slow to import: only when used

    b = checked("b", b)
    own = _within(euclidean_distances, b)

    def distance(a: Array) -> float:
        a = checked_pair(a, b)
        return 2.0 * _mean(euclidean_distances, a, b) - _within(euclidean_distances, a) - own

    return distance


def sliced_to(b: Array, projections: int = 256, seed: int = 0) -> Distance:
    """Sliced 2-Wasserstein distance to one reference ``b``, whose projections are sorted once: the root of ``W2^2`` of
    one-dimensional projections, averaged over random directions (Bonneel et al. 2015). Of equal distributions it falls
    like ``n^-1/2``, so compare equal n only.

    POT has it too, at the price of a compiled package; here it is a sort. Different n are compared at the quantiles of
    the smaller. Raises ValueError as :func:`frechet_distance` does, and for no projections.
    """
    b = checked("b", b)
    if projections < 1:
        raise ValueError(f"projections: got {projections}, expected at least 1")
    directions = np.random.default_rng(seed).normal(size=(b.shape[1], projections))
    directions /= np.linalg.norm(directions, axis=0)
    projected = np.sort(b @ directions, axis=0)

    def distance(a: Array) -> float:
        a = checked_pair(a, b)
        n = min(len(a), len(b))
        at = (np.arange(n) + 0.5) / n
        total = 0.0
        for first in range(0, projections, 32):
            some = slice(first, first + 32)
            x = _quantiles(np.sort(a @ directions[:, some], axis=0), at)
            total += float(np.square(x - _quantiles(projected[:, some], at)).mean(0).sum())
        return float(np.sqrt(total / projections))

    return distance


def _quantiles(ordered: Array, at: Array) -> Array:
    """Quantiles of sorted columns, the i-th row of N being that of ``(i + 1/2) / N`` (Hazen)."""
    if len(ordered) == len(at):
        return ordered
    place = np.clip(at * len(ordered) - 0.5, 0.0, len(ordered) - 1.0)
    below = np.floor(place).astype(np.int64)
    above = np.minimum(below + 1, len(ordered) - 1)
    return np.asarray(ordered[below] + (place - below)[:, None] * (ordered[above] - ordered[below]))


def _within(pairs: Callable[[Array, Array], Array], a: Array) -> float:
    """Mean over pairs of different rows of one set."""
    diagonal = sum(float(np.trace(pairs(part, part))) for part in _blocks(a))
    return (len(a) * _mean(pairs, a, a) - diagonal / len(a)) / (len(a) - 1)


def _mean(pairs: Callable[[Array, Array], Array], a: Array, b: Array) -> float:
    """Mean over all pairs of a row of each set, also where both are one."""
    return sum(float(pairs(u, v).sum()) for u in _blocks(a) for v in _blocks(b)) / (len(a) * len(b))


def _blocks(rows: Array) -> list[Array]:
    return [rows[first : first + _BLOCK] for first in range(0, len(rows), _BLOCK)]
