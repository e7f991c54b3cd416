"""The test part of data that comes as one set: a fixed random share of the rows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ansn.data import streams
from ansn.errors import InputError

_SEED = 0  # fixed: train and test must be disjoint in every run
SPLITS = ("train", "test")


def check_split(split: str) -> None:
    if split not in SPLITS:
        raise InputError(f"split: got {split!r}, expected 'train' or 'test'")


def held_out(n: int, split: str, test_fraction: float | None, name: object) -> NDArray[np.int64]:
    """Rows of the split, int64, ascending: train and test are disjoint and cover 0..n-1.

    Without test_fraction every row is train, and asking for the test split is an InputError, as is a
    fraction that leaves either part empty.
    """
    check_split(split)
    if not test_fraction:
        if split == "test":
            raise InputError(f"test_fraction: got {test_fraction} for {name} without a test split, expected 0.1, say")
        return np.arange(n)
    tests = round(n * test_fraction) if 0 < test_fraction < 1 else 0
    if not 0 < tests < n:
        raise InputError(f"test_fraction: got {test_fraction} of {n} rows, expected one that leaves both splits rows")
    return split_at(n, tests, split)


def split_at(n: int, tests: int, split: str) -> NDArray[np.int64]:
    """Rows of the split when ``tests`` of n rows, drawn once with a fixed seed, are the test split."""
    order = streams.permutation(n, _SEED, 0, streams.HOLD_OUT)
    return np.sort(order[:tests] if split == "test" else order[tests:])
