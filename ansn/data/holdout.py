"""The test part of data that comes as one set: a fixed random share of the rows."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ansn.data import streams
from ansn.errors import InputError

TEST_FILES = "held out for measurements: the test files of the data"
"""A note."""

AUTO = "auto"
"""A tenth, of 20 rows or more."""

_SEED = 0  # fixed: train and test must be disjoint in every run
SHARE = 0.1
"""Held out where nothing is said."""

_LEAST = 20
SPLITS = ("train", "test")


def check_split(split: str) -> None:
    if split not in SPLITS:
        raise InputError(f"split: got {split!r}, expected 'train' or 'test'")


def held_out(n: int, split: str, test_fraction: float | Literal["auto"] | None, name: object) -> NDArray[np.int64]:
    """Rows of the split, int64, ascending: train and test are disjoint and cover 0..n-1.

    Without test_fraction every row is train, and asking for the test split is an InputError, as is a
    fraction that leaves either part empty.
    """
    check_split(split)
    fraction = _fraction(n, test_fraction)
    if not fraction:
        if split == "test":
            raise InputError(
                f"{name}: got no test split, expected one: test_fraction (--test-fraction 0.1) holds out rows"
            )
        return np.arange(n)
    tests = round(n * fraction) if 0 < fraction < 1 else 0
    if not 0 < tests < n:
        raise InputError(f"test_fraction: got {test_fraction} of {n} rows, expected one that leaves both splits rows")
    return split_at(n, tests, split)


def origin(n: int, test_fraction: float | Literal["auto"] | None) -> list[str]:
    """Where the held-out rows come from, as a note."""
    fraction = _fraction(n, test_fraction)
    if not fraction:
        return []
    return [f"{round(n * fraction):,} of {n:,} rows held out for measurements (test_fraction {fraction:g})"]


def _fraction(n: int, test_fraction: float | Literal["auto"] | None) -> float:
    if isinstance(test_fraction, str):
        return SHARE if n >= _LEAST else 0.0
    return test_fraction or 0.0


def split_at(n: int, tests: int, split: str) -> NDArray[np.int64]:
    """Rows of the split when ``tests`` of n rows, drawn once with a fixed seed, are the test split."""
    order = streams.permutation(n, _SEED, 0, streams.HOLD_OUT)
    return np.sort(order[:tests] if split == "test" else order[tests:])
