"""Distances between two sets of rows that see more than two moments: kernel, energy, sliced Wasserstein.

Sets are float32 or float64 ``[n, p]``, numbers are made in float64. Pairs are made a block at a time, so that memory
does not grow with n squared, and once for all subsets that a statistic is asked for.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ansn.evaluation.features import Array, checked, checked_pair, middle, parted
from ansn.evaluation.resampling import Parts, Statistic, of_all

_BLOCK = 1024


def kernel_to(b: Array) -> Statistic:
    """``E k(a, a') + E k(b, b') - 2 E k(a, b)``, ``k(u, v) = (u.v / p + 1)^3`` (Binkowski et al. 2018), to one
    reference ``b``, whose own pairs are gone through once: the unbiased estimate of a squared maximum mean discrepancy.
    It may be below 0, and is 0 in the mean for equal distributions, whatever n.

    Features are used as they are; their scale matters. Raises ValueError as :func:`frechet_distance` does.
    """

    b = checked("b", b)
    centre = middle(b)
    level = centre @ centre / b.shape[1] + 1.0

    def kernel(u: Array, v: Array) -> Array:
        # k(u, v) - k(u, c) - k(c, v) + k(c, c) has the same discrepancy and none of the large cubes. With u and v less
        # c, q = u.v / p, a = u.c / p, b = v.c / p, l = c.c / p + 1, t = a + b + l and r = t + q, it is
        # q (r (r + t) + t^2) + 3 a b (a + b + 2 l).
        left, right = (u @ centre / u.shape[1])[:, None], v @ centre / u.shape[1]
        across, base = u @ v.T / u.shape[1], left + (right + level)
        root = base + across
        out = root + base
        out *= root
        base *= base
        out += base
        out *= across
        out += 3.0 * np.hstack((left * (left + 2.0 * level), left)) @ np.stack((right, right * right))
        return np.asarray(out)

    return _discrepancy(kernel, b, centre)


def energy_distance(a: Array, b: Array) -> float:
    """``2 E |a - b| - E |a - a'| - E |b - b'|`` (Szekely and Rizzo 2013), unbiased: 0 in the mean for equal
    distributions and above 0 for any others, in the units of the features.

    Raises ValueError as :func:`frechet_distance` does.
    """
    return float(of_all(energy_to(b), a)[0])


def energy_to(b: Array) -> Statistic:
    """:func:`energy_distance` to one reference, whose own pairs are gone through once."""
    from sklearn.metrics.pairwise import euclidean_distances  # slow to import: only when used

    b = checked("b", b)
    return _discrepancy(lambda u, v: -euclidean_distances(u, v), b, middle(b))


def _discrepancy(kernel: Callable[[Array, Array], Array], b: Array, origin: Array) -> Statistic:
    """``E k(a, a') + E k(b, b') - 2 E k(a, b)`` over pairs of different rows; ``kernel`` takes rows less ``origin``."""

    def within(a: Array, parts: Parts) -> Array:
        counts, total = parts.sum(1), np.zeros(len(parts))
        for first, u in parted(a, _BLOCK, origin):
            for second, v in parted(a[first:], _BLOCK, origin):
                pairs = kernel(u, v)
                if second == 0:
                    np.fill_diagonal(pairs, 0.0)
                left, right = parts[:, first : first + len(u)], parts[:, first + second :][:, : len(v)]
                total += (2.0 if second else 1.0) * ((left.astype(np.float64) @ pairs) * right).sum(1)
        return np.asarray(total / (counts * (counts - 1.0)))

    own = within(b, np.ones((1, len(b)), dtype=bool))

    def distance(a: Array, parts: Parts) -> Array:
        a = checked_pair(a, b)
        blocks = (u for _, u in parted(a, _BLOCK, origin))
        across = np.concatenate([sum(kernel(u, v).sum(1) for _, v in parted(b, _BLOCK, origin)) for u in blocks])
        return (within(a, parts) + own - 2.0 * (parts @ across) / (parts.sum(1) * len(b)))[:, None]

    return distance


def sliced_to(b: Array, projections: int = 256, seed: int = 0) -> Statistic:
    """Sliced 2-Wasserstein distance to one reference ``b``, whose projections are sorted once: the root of ``W2^2`` of
    one-dimensional projections, averaged over random directions (Bonneel et al. 2015). Of equal distributions it falls
    like ``n^-1/2``, so compare equal n only.

    POT has it too, at the price of a compiled package; here it is a sort. Different n are compared at the quantiles of
    the smaller. Raises ValueError as :func:`frechet_distance` does, and for no projections.
    """
    b = checked("b", b)
    if projections < 1:
        raise ValueError(f"projections: got {projections}, expected at least 1")
    origin = middle(b)
    directions = np.random.default_rng(seed).normal(size=(b.shape[1], projections))
    directions /= np.linalg.norm(directions, axis=0)

    def projected(rows: Array) -> Array:
        made = np.empty((projections, len(rows)))
        for first, block in parted(rows, origin=origin):
            made[:, first : first + len(block)] = (block @ directions).T
        return made

    reference = projected(b)
    reference.sort()

    def distance(a: Array, parts: Parts) -> Array:
        x = projected(checked_pair(a, b))
        order = x.argsort()
        x, found, target = np.take_along_axis(x, order, 1), [], reference
        for part in parts:
            count = int(part.sum())
            some, n = x[part[order]].reshape(projections, count), min(count, len(b))
            if target.shape[1] != n:
                target = _quantiles(reference, n)
            found.append(np.sqrt(np.square(_quantiles(some, n) - target).mean()))
        return np.array(found)[:, None]

    return distance


def _quantiles(ordered: Array, n: int) -> Array:
    """Quantiles of sorted rows at ``(i + 1/2) / n``, the i-th of N being that of ``(i + 1/2) / N`` (Hazen)."""
    count = ordered.shape[1]
    if count == n:
        return ordered
    place = np.clip((np.arange(n) + 0.5) / n * count - 0.5, 0.0, count - 1.0)
    below = np.floor(place).astype(np.int64)
    low = ordered[:, below]
    return np.asarray(low + (place - below) * (ordered[:, np.minimum(below + 1, count - 1)] - low))
