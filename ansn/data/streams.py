"""Random access randomness: any part of a data stream from its coordinates alone, so resuming needs no state.

All draws are raw words of Philox4x64-10 (``numpy.random.Philox``; bit generators keep their stream across
NumPy versions, its distributions do not promise to). key = (seed, stream); counter = lane * 2^128 + block;
a block is four 64-bit words.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

# Second key word: one number a purpose, so that no two purposes share words at the same seed.
ORDER, DEQUANTISE, FLIP, HOLD_OUT, TOY, MISSING, LABELS, COMPLETE = 1, 2, 3, 4, 5, 6, 7, 8


def words(seed: int, stream: int, count: int, *, first: int = 0, lane: int = 0) -> NDArray[np.uint64]:
    """Words ``first .. first + count - 1`` of the stream, uint64 [count].

    A slice of a longer request is the same words: ``words(s, t, 9)[4:] == words(s, t, 5, first=4)``.
    ValueError if seed is not in [0, 2^64).
    """
    check_seed(seed)
    block, skip = divmod(first, 4)
    counter = (lane << 128) + block
    # Little-endian 64-bit words of the 256-bit counter.
    limbs = np.array([(counter >> (64 * i)) & (2**64 - 1) for i in range(4)], dtype=np.uint64)
    bits = np.random.Philox(key=np.array([seed, stream], dtype=np.uint64), counter=limbs)
    return bits.random_raw(skip + count)[skip:]


def check_seed(seed: int) -> None:
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed: got {seed}, expected an integer from 0 to 2^64 - 1")


def uniforms(seed: int, stream: int, count: int, *, first: int = 0, lane: int = 0) -> NDArray[np.float64]:
    """float64 [count] in the open interval (0, 1): (w // 2^12 + 1/2) 2^-52, exact, so neither end occurs."""
    top = words(seed, stream, count, first=first, lane=lane) >> np.uint64(12)
    return (top.astype(np.float64) + 0.5) * 2.0**-52


@lru_cache(maxsize=4)
def permutation(n: int, seed: int, epoch: int, stream: int = ORDER) -> NDArray[np.int64]:
    """A uniformly random permutation of 0..n-1, int64 [n], read-only: the ranks of n words (lane = epoch)."""
    if epoch < 0:
        raise ValueError(f"epoch: got {epoch}, expected 0 or more")
    order = np.argsort(words(seed, stream, n, lane=epoch), kind="stable").astype(np.int64)
    order.setflags(write=False)
    return order


def batch_indices(n: int, step: int, batch_size: int, seed: int) -> NDArray[np.int64]:
    """Rows of global batch ``step``: positions step*B .. step*B + B-1 of the permutations of epoch 0, 1, ...

    Position p is row ``permutation(n, seed, p // n)[p % n]``; a batch may span several epochs.
    """
    if step < 0:
        raise ValueError(f"step: got {step}, expected 0 or more")
    if batch_size < 1:
        raise ValueError(f"batch_size: got {batch_size}, expected 1 or more")
    parts, position, left = [], step * batch_size, batch_size
    while left:
        epoch, start = divmod(position, n)
        part = permutation(n, seed, epoch)[start : start + left]
        parts.append(part)
        position, left = position + len(part), left - len(part)
    return np.concatenate(parts)
