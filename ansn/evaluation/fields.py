"""Fields compared by their statistics over space: power spectrum, autocorrelation, one-point distribution.

Each is a profile that every row has one of, so that means over rows have errors, and a distance of two mean profiles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ansn.evaluation.compare import Number, Resampling, measure
from ansn.evaluation.features import Array
from ansn.evaluation.measurement import Measurement
from ansn.evaluation.resampling import each

POWER, AUTOCORRELATION, VALUES = "power spectrum", "autocorrelation", "one-point distribution"
_BINS = 60
_BLOCK = 1 << 21  # numbers that are transformed at once


@dataclass(frozen=True)
class Profile:
    """One statistic of a channel: for each row of data, samples and held-out data its values ``[n, K]`` at ``at``
    ``[K]``; ``measured``: how far the samples' mean is from the data's."""

    name: str
    at: Array
    data: Array
    samples: Array
    held_out: Array | None
    measured: Measurement


def profiles(
    data: Array, samples: Array, held_out: Array | None, resampling: Resampling, *, channel: str = "",
    names: tuple[str, ...] = (POWER, AUTOCORRELATION, VALUES),
) -> Iterator[Profile]:  # fmt: skip
    """Of one channel's rows ``[n, *size]``, size of 1 to 3 dimensions, in any unit, finite.

    Distances: the root mean square of ``ln P / P_data`` over the wave numbers; the root mean square difference of
    autocorrelations; Wasserstein-1 of the values in standard deviations of the data's.
    """
    mean, spread = float(data.mean()), float(data.std()) or 1.0
    low, high = np.quantile(data, (0.0, 1.0))
    edges = np.linspace(low - 0.1 * (high - low), high + 0.1 * (high - low) + 1e-9 * spread, _BINS + 1)
    size = data.shape[1:]
    ways: dict[str, tuple[Array, Callable[[Array], Array], Callable[[Array, Array], float]]] = {
        POWER: (np.arange(1, max(size) // 2 + 1) / max(size), lambda x: power(x) * spread**2, _log_ratio),
        AUTOCORRELATION: (np.arange(max(size) // 2 + 1.0), autocovariance, _correlation_apart),
        VALUES: (
            (edges[1:] + edges[:-1]) / 2,
            lambda x: densities(x + mean / spread, edges / spread) / spread,
            lambda a, b: float(np.abs(np.cumsum(a - b)).sum()) * float(edges[1] - edges[0]) ** 2 / spread,
        ),
    }
    for name in names:
        at, way, apart = ways[name]
        rows = [None if x is None else _made(way, (x - mean) / spread) for x in (data, samples, held_out)]
        whole, mine, held = rows
        assert whole is not None
        assert mine is not None
        target = whole.mean(0)
        statistic = each(lambda some, apart=apart, target=target: [apart(some.mean(0), target)])  # type: ignore[misc]
        number = Number(f"{name}{channel}")
        (found,) = measure((number,), statistic, mine, held, resampling)
        yield Profile(name, at, whole, mine, held, found)


def power(x: Array) -> Array:
    """Power spectrum of rows ``[n, *size]``, ``[n, max(size) // 2]``: ``|FFT|^2 / sum w^2`` of the row less its mean,
    under a Hann window w, averaged over shells of the wave number 1, 2, ..., in cycles over the longest side."""
    axes, size = tuple(range(1, x.ndim)), x.shape[1:]
    window = _outer([np.hanning(s + 2)[1:-1] if s > 1 else np.ones(1) for s in size])
    flat = (x - (x * window).sum(axes, keepdims=True) / window.sum()) * window
    squared = np.square(np.abs(np.fft.fftn(flat, axes=axes))) / np.square(window).sum()
    k = np.rint(_length([np.fft.fftfreq(s) * max(size) for s in size])).astype(np.int64)
    return _shells(squared, k, max(size) // 2)[:, 1:]


def autocovariance(x: Array) -> Array:
    """Mean of ``x(r) x(r + d)`` over all places of rows ``[n, *size]`` and directions of d, ``[n, max(size) // 2 + 1]``
    for the distances 0, 1, ...; no place is taken twice: rows are not periodic."""
    axes, size = tuple(range(1, x.ndim)), x.shape[1:]
    wide = tuple(2 * s for s in size)

    def products(v: Array) -> Array:
        return np.fft.irfftn(np.square(np.abs(np.fft.rfftn(v, wide, axes))), wide, axes)

    count = np.rint(products(np.ones((1, *size))))
    lags = [np.fft.fftfreq(w) * w for w in wide]
    far = np.rint(_length(lags)).astype(np.int64)
    for axis, lag in enumerate(lags):  # beyond half of a side there are few pairs
        far = np.where(np.moveaxis(np.abs(lag)[(...,) + (None,) * (len(size) - 1)], 0, axis) > size[axis] / 2, -1, far)
    return _shells(products(x) / np.maximum(count, 1.0), far, max(size) // 2)


def densities(x: Array, edges: Array) -> Array:
    """Histogram of the values of each row ``[n, *size]``, as a density ``[n, bins]``; what is beyond counts at the
    ends."""
    places = np.searchsorted(edges, x.reshape(len(x), -1), "right").clip(1, len(edges) - 1) - 1
    bins = len(edges) - 1
    count = np.bincount((places + bins * np.arange(len(x))[:, None]).ravel(), minlength=bins * len(x))
    return np.asarray(count.reshape(len(x), bins) / places.shape[1] / np.diff(edges))


def _made(way: Callable[[Array], Array], x: Array) -> Array:
    some = max(1, _BLOCK // x[0].size)
    return np.concatenate([way(x[i : i + some]) for i in range(0, len(x), some)])


def _outer(sides: list[Array]) -> Array:
    made = np.ones(())
    for side in sides:
        made = made[..., None] * side
    return made


def _length(sides: list[Array]) -> Array:
    """Length of the vectors with these coordinates, one axis each."""
    return np.asarray(np.sqrt(sum(np.square(v) for v in np.meshgrid(*sides, indexing="ij"))))


def _shells(x: Array, shell: NDArray[np.int64], last: int) -> Array:
    """Means over the places of each shell 0..last, ``[n, last + 1]``; shells that are empty have the one before."""
    use = (shell >= 0) & (shell <= last)
    count = np.bincount(shell[use], minlength=last + 1)
    total = np.stack([np.bincount(shell[use], row, minlength=last + 1) for row in x[:, use]])
    filled = np.maximum.accumulate(np.where(count > 0, np.arange(last + 1), 0))
    return np.asarray((total / np.maximum(count, 1))[:, filled])


def _log_ratio(a: Array, b: Array) -> float:
    least = 1e-12 * b.max() + 1e-300
    return float(np.sqrt(np.square(np.log(np.maximum(a, least) / np.maximum(b, least))).mean()))


def _correlation_apart(a: Array, b: Array) -> float:
    return float(np.sqrt(np.square(a / (a[0] or 1.0) - b / (b[0] or 1.0)).mean()))
