"""Float64 NumPy oracles of the native kernels, written from the formulas and sharing no code with them."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

MASK32 = 0xFFFFFFFF


def philox_words(seed: int, rows: Any, quads: Any, step: int, stream: int) -> NDArray[np.uint32]:
    """Philox4x32-10 words, shape [..., 4], for broadcastable integer arrays of rows and column quads."""
    quads, rows = np.broadcast_arrays(np.asarray(quads, np.uint64), np.asarray(rows, np.uint64))
    mask = np.uint64(MASK32)
    c = [quads & mask, rows & mask, np.full_like(quads, step & MASK32), np.full_like(quads, stream & MASK32)]
    key = [seed & MASK32, (seed >> 32) & MASK32]
    for _ in range(10):
        p0 = c[0] * np.uint64(0xD2511F53)
        p1 = c[2] * np.uint64(0xCD9E8D57)
        c = [
            (p1 >> np.uint64(32)) ^ c[1] ^ np.uint64(key[0]),
            p1 & mask,
            (p0 >> np.uint64(32)) ^ c[3] ^ np.uint64(key[1]),
            p0 & mask,
        ]
        key = [(key[0] + 0x9E3779B9) & MASK32, (key[1] + 0xBB67AE85) & MASK32]
    return np.stack(c, axis=-1).astype(np.uint32)


def box_muller(words: NDArray[np.uint32]) -> NDArray[np.float64]:
    """Standard normals [..., 4] of words [..., 4]; u = (word + 1/2) 2^-32, with an exact logarithm near 1."""
    w = words.astype(np.float64)
    z = np.empty_like(w)
    for k in (0, 2):
        u = (w[..., k] + 0.5) * 2.0**-32
        complement = (MASK32 - w[..., k] + 0.5) * 2.0**-32
        radius = np.sqrt(-2.0 * np.where(u > 0.5, np.log1p(-complement), np.log(u)))
        angle = 2.0 * np.pi * (w[..., k + 1] + 0.5) * 2.0**-32
        z[..., k] = radius * np.cos(angle)
        z[..., k + 1] = radius * np.sin(angle)
    return z


def noise(seed: int, row0: int, rows: int, cols: int, step: int, stream: int) -> NDArray[np.float64]:
    """z of shape [rows, cols] for global rows row0, row0 + 1, ... (modulo 2^32)."""
    quads = np.arange((cols + 3) // 4)
    index = np.array([(row0 + r) & MASK32 for r in range(rows)], np.uint64)
    words = philox_words(seed, index[:, None], quads[None, :], step, stream)
    return box_muller(words).reshape(rows, 4 * len(quads))[:, :cols]


def covariance(
    count: float, mean: NDArray[Any], scatter: NDArray[Any], x: NDArray[Any]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(mean, scatter) after the rows of x joined a state of `count` points: Chan's formula in float64."""
    mean, x, b = np.asarray(mean, np.float64), np.asarray(x, np.float64), len(x)
    batch_mean = x.mean(axis=0)
    centred, delta = x - batch_mean, batch_mean - mean
    grown = scatter + centred.T @ centred + count * b / (count + b) * np.outer(delta, delta)
    return mean + b / (count + b) * delta, grown
