"""Measures made of nearest neighbours: precision, recall, density, coverage, and repetition of the training data.

Sets are float64 ``[n, p]``; searches are scikit-learn's, a block of rows at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ansn.evaluation.features import Array, checked


class Manifold(NamedTuple):
    """Precision and recall (Kynkaanniemi et al. 2019), density and coverage (Naeem et al. 2020)."""

    precision: float
    recall: float
    density: float
    coverage: float


def manifold_to(reference: Array, k: int = 5) -> Callable[[Array], Manifold]:
    """Numbers of samples against one reference, whose balls are made once. With the ball of a row reaching to its k-th
    neighbour in its own set:

    precision: share of samples inside a ball of the reference; density: number of such balls over k, a mean over
    samples; recall: share of the reference inside a ball of a sample; coverage: share of reference balls that hold a
    sample.

    They depend on n and k: compare equal ones. Raises ValueError for sets of at most k rows.
    """
    from sklearn.metrics import pairwise_distances_chunked  # slow to import: only when used

    reference = checked("reference", reference)
    _check_k(reference, k)
    radius = _radius(reference, k)

    def found(samples: Array) -> Manifold:
        samples = checked("samples", samples)
        _check_k(samples, k)
        own = _radius(samples, k)
        inside, nearest = np.zeros(len(samples)), np.full(len(reference), np.inf)
        recalled = np.zeros(len(reference), dtype=bool)
        first = 0
        for block in pairwise_distances_chunked(samples, reference, working_memory=128):
            last = first + len(block)
            inside[first:last] = (block <= radius).sum(1)
            recalled |= (block <= own[first:last, None]).any(0)
            nearest = np.minimum(nearest, block.min(0))
            first = last
        precision, covered = float((inside > 0).mean()), float((nearest <= radius).mean())
        return Manifold(precision, float(recalled.mean()), float(inside.mean() / k), covered)

    return found


def nearest(rows: Array, among: Array | Iterable[Array], k: int = 1) -> tuple[Array, NDArray[np.int64]]:
    """Distances and positions ``[n, k]`` of the k nearest rows of ``among``, nearest first.

    ``among``: rows, or parts of them that need not be in memory together. Raises ValueError if they are fewer than k.
    """
    from sklearn.neighbors import NearestNeighbors

    distance, index = np.zeros((len(rows), 0)), np.zeros((len(rows), 0), dtype=np.int64)
    first = 0
    for part in [among] if isinstance(among, np.ndarray) else among:
        search = NearestNeighbors(n_neighbors=min(k, len(part)), algorithm="brute").fit(part)
        found, at = search.kneighbors(rows)
        distance, index = np.concatenate((distance, found), 1), np.concatenate((index, at + first), 1)
        best = np.argsort(distance, 1, kind="stable")[:, :k]
        distance, index = np.take_along_axis(distance, best, 1), np.take_along_axis(index, best, 1)
        first += len(part)
    if first < k:
        raise ValueError(f"k: got {k} neighbours of {first} rows, expected no more than rows")
    return distance, index


def memorisation(usual: Array, quantile: float = 0.01) -> Callable[[Array], tuple[float, float]]:
    """Numbers of samples' distances ``[n, 1]`` to their nearest training rows, beside the held-out rows' ``usual``
    ``[m]``: the share below their ``quantile``, about ``quantile`` for a model that generalises and 1 for one that
    repeats its training data, and the ratio of the medians.

    Raises ValueError for a quantile outside (0, 1).
    """
    if not 0.0 < quantile < 1.0:
        raise ValueError(f"quantile: got {quantile}, expected 0 < quantile < 1")
    threshold, median = np.quantile(usual, quantile), float(np.median(usual))

    def found(distance: Array) -> tuple[float, float]:
        ratio = float(np.median(distance)) / median if median > 0 else float("nan")
        return float((distance < threshold).mean()), ratio

    return found


def _check_k(rows: Array, k: int) -> None:
    if len(rows) <= k:
        raise ValueError(f"k: got {k} neighbours of {len(rows)} rows, expected fewer than rows")


def _radius(rows: Array, k: int) -> Array:
    # The row itself is its first neighbour. The k-th lies on the ball's edge, and rounding must not throw it out.
    return nearest(rows, rows, k + 1)[0][:, k] * (1 + 1e-9)
