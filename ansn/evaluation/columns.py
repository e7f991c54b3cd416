"""Tables compared column by column and pair by pair, in the units of the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ansn.data.units import Column
from ansn.evaluation.compare import Number, Resampling, measure
from ansn.evaluation.features import Array
from ansn.evaluation.measurement import Measurement
from ansn.evaluation.resampling import each, of_all, resampled

ORDERED = ("number", "whole", "binary", "time")
"""Kinds of columns that a correlation has a meaning for."""


def marginals(
    columns: Sequence[Column], data: Array, samples: Array, held_out: Array | None, resampling: Resampling
) -> list[Measurement]:
    """A distance of each column's distribution from the data's, beside that of held-out rows; values ``[n, columns]``
    in data units, NaN where not known.

    Numbers: Wasserstein-1, ``int |F - G| / sd`` in standard deviations of the data; binary ones and categories: total
    variation, ``1/2 sum_k |p_k - q_k|``.
    """
    known = [data[:, j][~np.isnan(data[:, j])] for j in range(len(columns))]
    quantiles: dict[tuple[int, int], Array] = {}
    words = [c.kind in ("binary", "category") for c in columns]
    levels = [np.unique(np.append(v, samples[:, j])) for j, v in enumerate(known)]

    def one(j: int, values: Array) -> float:
        values, reference = values[~np.isnan(values)], known[j]
        if not len(values) or not len(reference):
            return np.nan
        if words[j]:
            return 0.5 * float(np.abs(_shares(values, levels[j]) - _shares(reference, levels[j])).sum())
        n, spread = len(values), float(reference.std())
        if (j, n) not in quantiles:
            quantiles[j, n] = np.quantile(reference, (np.arange(n) + 0.5) / n, method="hazen")
        return float(np.abs(np.sort(values) - quantiles[j, n]).mean()) / (spread or 1.0)

    def distances(rows: Array) -> list[float]:
        return [one(j, rows[:, j]) for j in range(len(columns))]

    numbers = [Number(c.name, high=1.0) if w else Number(c.name) for c, w in zip(columns, words, strict=True)]
    return measure(numbers, each(distances), samples, held_out, resampling)


def _shares(values: Array, levels: Array) -> Array:
    """Shares of the levels; a value that is none of them counts for the next."""
    places = np.searchsorted(levels, values).clip(0, len(levels) - 1)
    return np.asarray(np.bincount(places, minlength=len(levels)) / len(values))


@dataclass(frozen=True)
class Correlations:
    """Pearson's correlations of the columns ``names``, ``[C, C]`` each: of the data, of samples with their standard
    errors, of as many held-out rows; ``measured``: how far the samples' are from the data's, in all."""

    names: tuple[str, ...]
    data: Array
    samples: Array
    error: Array
    held_out: Array | None
    measured: tuple[Measurement, ...]

    def worst(self, count: int) -> list[tuple[int, int]]:
        """Pairs of columns whose correlations differ most, the most first."""
        rows, columns = np.triu_indices(len(self.names), 1)
        order = np.argsort(-np.abs(self.samples - self.data)[rows, columns], kind="stable")[:count]
        return [(int(rows[i]), int(columns[i])) for i in order]


def correlations(
    columns: Sequence[Column], data: Array, samples: Array, held_out: Array | None, resampling: Resampling
) -> Correlations | None:
    """Of columns of the kinds ORDERED that vary in the data; None where these are fewer than two."""
    keep = [j for j, c in enumerate(columns) if c.kind in ORDERED and np.nanstd(data[:, j]) > 0]
    if len(keep) < 2:
        return None
    data, samples = data[:, keep], samples[:, keep]
    held = None if held_out is None else held_out[:, keep]
    upper = np.triu_indices(len(keep), 1)
    wanted = correlation(data)[upper]

    def differences(rows: Array) -> list[float]:
        apart = np.abs(correlation(rows)[upper] - wanted)
        return [float(np.sqrt(np.square(apart).mean())), float(apart.max())]

    numbers = (
        Number("correlations, root mean square difference"), Number("correlations, largest difference", high=2.0),
    )  # fmt: skip
    measured = measure(numbers, each(differences), samples, held, resampling)
    flat = each(lambda rows: correlation(rows).ravel().tolist())
    found, error = resampled(flat, samples, resampling.halves, resampling.seed)
    size = (len(keep), len(keep))
    return Correlations(
        tuple(columns[j].name for j in keep), correlation(data), found.reshape(size), error.reshape(size),
        None if held is None else of_all(flat, held[: len(samples)]).reshape(size), tuple(measured),
    )  # fmt: skip


def correlation(x: Array) -> Array:
    """Pearson's ``[C, C]`` of ``[n, C]``, of the rows where both are known; 0 for a column that does not vary."""
    known = ~np.isnan(x)
    count = np.maximum(known.sum(0), 1)
    centred = np.where(known, x - np.where(known, x, 0.0).sum(0) / count, 0.0)
    spread = np.sqrt(np.square(centred).sum(0) / count)
    z = centred / np.where(spread > 0, spread, 1.0)
    both = np.maximum(known.T.astype(np.float64) @ known, 1.0)
    return np.asarray(np.clip(z.T @ z / both, -1.0, 1.0))
