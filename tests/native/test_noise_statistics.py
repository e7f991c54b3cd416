"""The native normals as a sample: distribution, tails, and independence across every word of the counter and the key.

Seeds are fixed, so a test passes or fails for good; bounds are for one false alarm in about a million.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import special, stats

native = pytest.importorskip("ansn._native", reason="the native module is not built")

BINS = 1 << 16
SIGMAS = 5.0
TAILS = (4.0, 5.0, 5.5)
ROW = 1 << 18  # quads of one row taken at a time


def chunks(count: int) -> Iterator[NDArray[np.float32]]:
    """About ``count`` normals, from as many rows as that takes."""
    for row in range(count // (4 * ROW)):
        yield native.normals(2026, row, row % 7, row % 3, ROW).ravel()


def check_distribution(count: int) -> None:
    """Four moments, Kolmogorov-Smirnov and chi-square at 65 536 equally likely points, and counts of far values."""
    sums, bins, n = np.zeros(4), np.zeros(BINS, np.int64), 0
    beyond = {(sign, t): 0 for sign in (-1, 1) for t in TAILS}
    for z in chunks(count):
        wide = z.astype(np.float64)
        square = wide * wide
        sums += wide.sum(), square.sum(), square @ wide, square @ square
        bins += np.bincount(np.minimum((special.ndtr(wide) * BINS).astype(np.int64), BINS - 1), minlength=BINS)
        far = wide[np.abs(wide) > TAILS[0]]
        for sign, t in beyond:
            beyond[sign, t] += int((sign * far > t).sum())
        n += z.size
    for power, (found, expected, variance) in enumerate(zip(sums / n, (0, 1, 0, 3), (1, 2, 15, 96), strict=True), 1):
        assert abs(found - expected) < SIGMAS * np.sqrt(variance / n), f"moment {power}: {found}"
    mean, second, third, fourth = sums / n
    variance = second - mean**2
    skewness = (third - 3 * mean * second + 2 * mean**3) / variance**1.5
    kurtosis = (fourth - 4 * mean * third + 6 * mean**2 * second - 3 * mean**4) / variance**2 - 3
    assert abs(skewness) < SIGMAS * np.sqrt(6 / n)
    assert abs(kurtosis) < SIGMAS * np.sqrt(24 / n)
    distance = np.abs(np.cumsum(bins) / n - np.arange(1, BINS + 1) / BINS).max()
    assert stats.kstwobign.sf(distance * np.sqrt(n)) > 1e-6, f"Kolmogorov-Smirnov distance {distance}"
    chi_square = ((bins - n / BINS) ** 2).sum() / (n / BINS)
    assert 1e-6 < stats.chi2.sf(chi_square, BINS - 1) < 1 - 1e-6, f"chi-square {chi_square}"
    for (sign, t), found in beyond.items():
        expected = n * stats.norm.sf(t)
        low, high = stats.poisson.ppf(1e-6, expected), stats.poisson.isf(1e-6, expected)
        assert low <= found <= high, f"{found} beyond {sign * t} sigma, expected {low} to {high}"


def test_distribution():
    check_distribution(8_000_000)


@pytest.mark.slow
def test_distribution_of_a_hundred_million():
    check_distribution(100_000_000)


# Counters (seed, row, step, stream) that differ from the first in one word by one, or in the key's high word.
BASE = (77, 5, 6, 1)
NEIGHBOURS = {
    "base": BASE,
    "seed": (78, 5, 6, 1),
    "seed's high word": (77 + 2**32, 5, 6, 1),
    "row": (77, 6, 6, 1),
    "step": (77, 5, 7, 1),
    "stream": (77, 5, 6, 2),
    "row and step": (77, 6, 7, 1),
    "step and row swapped": (77, 6, 5, 1),
}


def hermite(first: int, last: int) -> tuple[NDArray[np.float64], list[str]]:
    """He1 to He3, orthonormal under the normal density, of every lane of quads [first, last) and of the next ones."""
    columns, names = [], []
    for name, counter in NEIGHBOURS.items():
        z = native.normals(*counter, last + 1).astype(np.float64)[first:]
        for part, label in ((z[:-1], name), (z[1:], f"{name}, next quad")):
            for lane in range(4):
                v = part[:, lane]
                columns += [v, (v * v - 1) / np.sqrt(2), (v * v - 3) * v / np.sqrt(6)]
                names += [f"{label}, lane {lane}, He{degree}" for degree in (1, 2, 3)]
    return np.stack(columns), names


def check_independence(quads: int, chunk: int = 50_000) -> None:
    """Products of He1 to He3 of two different normals average to zero, with standard error 1 / sqrt(quads).

    Each normal is paired with its neighbours in the row and in each word of the counter and the key: He1 with He1 tells
    correlations, He2 with He2 those of the squares, the mixed ones the other cross-moments.
    """
    gram: Any = 0.0
    for first in range(0, quads, chunk):
        features, names = hermite(first, min(first + chunk, quads))
        gram = gram + features @ features.T / quads
    pairs = [(i, j) for i, j in itertools.combinations(range(len(names)), 2) if i // 3 != j // 3]
    worst = max(pairs, key=lambda pair: abs(gram[pair]))
    limit = 6.5 / np.sqrt(quads)  # 18 000 pairs, and products of He3 have heavy tails
    assert abs(gram[worst]) < limit, f"{names[worst[0]]} and {names[worst[1]]}: {gram[worst]}, limit {limit}"


def test_neighbours_are_independent():
    check_independence(40_000)


@pytest.mark.slow
def test_neighbours_are_independent_to_a_thousandth():
    check_independence(1_000_000)


def test_every_bit_of_key_and_counter_changes_half_of_the_words():
    """One bit flipped in row, step, stream or seed flips each bit of the four words with probability 1/2."""
    base, quads = [0x9E3779B97F4A7C15, 123456789, 42, 1], 2048
    before = native.philox_words(*base, quads)
    for position, width in enumerate((64, 32, 32, 32)):
        for bit in range(width):
            other = list(base)
            other[position] ^= 1 << bit
            changed = np.unpackbits((before ^ native.philox_words(*other, quads)).view(np.uint8), axis=1).mean(axis=0)
            assert np.abs(changed - 0.5).max() < 6.0 * 0.5 / np.sqrt(quads), f"argument {position}, bit {bit}"


def test_correlated_streams_are_seen(monkeypatch):
    """A generator that forgets its stream, and one with 1 % of its row in common, fail."""
    real = native.normals

    class Forgetful:
        @staticmethod
        def normals(seed: int, row: int, step: int, stream: int, quads: int) -> NDArray[np.float32]:
            return real(seed, row, step, 0, quads)

    class Leaking:
        @staticmethod
        def normals(seed: int, row: int, step: int, stream: int, quads: int) -> NDArray[np.float32]:
            z = real(seed, row, step, stream, quads)
            z[: quads // 20] = real(seed, 0, step, stream, quads)[: quads // 20]
            return z

    for wrong in (Forgetful, Leaking):
        monkeypatch.setitem(globals(), "native", wrong)
        with pytest.raises(AssertionError, match="limit"):
            check_independence(40_000)
