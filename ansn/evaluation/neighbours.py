"""Measures made of nearest neighbours: precision, recall, density, coverage, and repetition of the training data.

Sets are ``[n, p]``, and gone through a block of rows at a time.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ansn.evaluation.features import Array, checked, middle, parted
from ansn.evaluation.resampling import Parts, Statistic

_BLOCK, _SPARE, _PAIRS = 1024, 4, 4096
_EPS = float(np.finfo(np.float64).eps)


class Manifold(NamedTuple):
    """Precision and recall (Kynkaanniemi et al. 2019), density and coverage (Naeem et al. 2020)."""

    precision: float
    recall: float
    density: float
    coverage: float


def manifold_to(reference: Array, k: int = 5) -> Statistic:
    """Numbers of samples against one reference, whose balls are made once. With the ball of a row reaching to its k-th
    neighbour in its own set:

    precision: share of samples inside a ball of the reference; density: number of such balls over k, a mean over
    samples; recall: share of the reference inside a ball of a sample; coverage: share of reference balls that hold a
    sample.

    They depend on n and k: compare equal ones. Raises ValueError for sets of at most k rows.
    """
    reference = checked("reference", reference).astype(np.float64, copy=False)
    origin = middle(reference)
    moved = reference - origin
    size = np.square(moved).sum(1)
    (radius,) = _radii(reference, np.ones((1, len(reference)), dtype=bool), k)

    def found(samples: Array, parts: Parts) -> Array:
        samples = checked("samples", samples)
        own, inside = _radii(samples, parts, k), np.zeros(len(samples))
        recalled, covered = np.zeros((2, len(parts), len(reference)), dtype=bool)
        for first, block in parted(samples, _BLOCK, origin):
            here = slice(first, first + len(block))
            apart = np.square(block).sum(1)[:, None] + size
            error = (block.shape[1] + 8) * _EPS * apart  # of the squares below, each a sum of products
            apart -= 2.0 * (block @ moved.T)
            exact = functools.partial(_squares, samples[here], reference)
            hits = _within(apart, radius, error, exact).astype(np.float32)
            inside[here] = hits.sum(1)
            covered |= parts[:, here].astype(np.float32) @ hits > 0
            # Few pairs are near, or else all rows of the reference are soon recalled: the rest is not gone through.
            left = np.flatnonzero(~recalled.all(0))
            row, column = np.nonzero((apart - error)[:, left] <= own[:, here].max(0)[:, None])
            column = left[column]
            near, error = apart[row, column], error[row, column]
            for part, reach in zip(recalled, own[:, here], strict=True):
                part[column[_within(near, reach[row], error, exact, row, column)]] = True
        summed, counts = parts @ np.stack((inside > 0, inside), 1), parts.sum(1)
        return np.stack((summed[:, 0] / counts, recalled.mean(1), summed[:, 1] / counts / k, covered.mean(1)), 1)

    return found


def nearest(rows: Array, among: Array | Iterable[Array], k: int = 1) -> tuple[Array, NDArray[np.int64]]:
    """Distances and positions ``[n, k]`` of the k nearest rows of ``among``, nearest first.

    ``among``: rows, or parts of them that need not be in memory together. Raises ValueError if they are fewer than k.
    """
    distance, index = np.zeros((len(rows), 0)), np.zeros((len(rows), 0), dtype=np.int64)
    first = 0
    for part in [among] if isinstance(among, np.ndarray) else among:
        square, at = _candidates(rows, part, min(k + _SPARE, len(part)))
        distance, index = np.concatenate((distance, np.sqrt(square)), 1), np.concatenate((index, at + first), 1)
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


def _candidates(rows: Array, among: Array, k: int) -> tuple[Array, NDArray[np.int64]]:
    """Squared distances and positions ``[n, k]`` of the nearest rows of ``among``, up to the
    rounding of products."""
    centre = middle(among)

    @functools.cache
    def table(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        moved = torch.from_numpy(among - centre).to(dtype)
        return moved.T, moved.square().sum(1) / 2

    squares, places = [], []
    for first, block in parted(rows, 512, centre):
        which = np.repeat(np.arange(first, first + len(block)), k)
        # Products in float32, or in float64 where the near rows are too near for its rounding.
        for dtype in (torch.float32, torch.float64):
            moved, half = table(dtype)
            products = torch.addmm(half, torch.from_numpy(block).to(dtype), moved, alpha=-1.0)
            at = products.topk(k, largest=False)[1].numpy()
            square = _squares(rows, among, which, at.ravel()).reshape(at.shape)
            if (square.max(1) > 1e-3 * np.square(block).sum(1)).all():
                break
        squares.append(square)
        places.append(at)
    return np.concatenate(squares), np.concatenate(places)


def _within(
    apart: Array, reach: Array, error: Array, exact: Callable[..., Array], *places: NDArray[np.intp]
) -> Parts:
    """``apart <= reach`` of squares known to ``error``: where that decides, they are made again, in place, by ``exact``
    of their ``places`` (by default their indices)."""
    unsure = np.nonzero(np.abs(apart - reach) <= error)
    apart[unsure] = exact(*([place[unsure] for place in places] or unsure))
    return np.asarray(apart <= reach)


def _squares(a: Array, b: Array, rows: NDArray[np.intp], columns: NDArray[np.intp]) -> Array:
    """Squared distances ``[m]`` of m pairs of a row of ``a`` and one of ``b``, with no more than relative rounding."""
    out = np.empty(len(rows))
    for first in range(0, len(rows), _PAIRS):
        here = slice(first, first + _PAIRS)
        out[here] = np.square(a[rows[here]].astype(np.float64) - b[columns[here]]).sum(1)
    return out


def _radii(rows: Array, parts: Parts, k: int, among: int = 0) -> Array:
    """Squared distances ``[m, n]`` of rows to their k-th neighbour in each part, -1 where a row is not in it.

    ``among``: nearest rows of the whole to look for them in; where these are too few, in more.
    """
    if parts.sum(1).min() <= k:
        raise ValueError(f"k: got {k} neighbours of {parts.sum(1).min()} rows, expected fewer than rows")
    among = min(len(rows), among or (k + 1) * (1 if parts.all() else 14))
    distance, index = nearest(rows, rows, among)
    out = np.full(parts.shape, -1.0)
    for part, radius in zip(parts, out, strict=True):
        rank = part[index[part]].cumsum(1)  # the row itself is its first neighbour
        if rank[:, -1].min() <= k:
            return _radii(rows, parts, k, 4 * among)
        # The k-th lies on the ball's edge, and rounding must not throw it out.
        edge = np.take_along_axis(distance[part], (rank > k).argmax(1)[:, None], 1)[:, 0]
        radius[part] = np.square(edge) * (1 + 1e-9)
    return out
