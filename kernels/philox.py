"""Random numbers inside Triton kernels: Philox4x32-10 and Box-Muller, the same contract as ``csrc/cpu/philox.h``.

    key      64-bit seed, low word first
    counter  c0 = column quad j / 4, c1 = global row, c2 = step, c3 = stream
    uniform  u = (word + 1/2) 2^-32
    normals  Box-Muller on words (0, 1) and (2, 3):  z0 = r cos(2 pi u2), z1 = r sin(2 pi u2), r = sqrt(-2 ln u1)

The words are bit-equal to every other back end's, the normals within 1e-5 of the float64 formula. The polynomials are
those of that file, and for the same reason: the logarithm of a float32 ``u`` near 1 has no correct digit left, and the
library's sine and cosine spend most of their instructions on arguments that never come.

Counters reach a kernel as int32 scalars of fixed type (:func:`counters`), named in ``do_not_specialize``
(:data:`COUNTERS`): else Triton compiles anew for a step equal to 1, for one divisible by 16, and for one beyond 2^31.
"""

from __future__ import annotations

import triton
import triton.language as tl

COUNTERS = ("seed_low", "seed_high", "row0", "step", "stream")
"""Names of a kernel's counter parameters, in this order, for ``do_not_specialize``."""


def counters(seed: int, row: int, step: int, stream: int) -> tuple[int, int, int, int, int]:
    """The words ``(seed low, seed high, row, step, stream)``, modulo 2^32, as the int32 that have the same bits."""
    low, high, first, second, third = (
        ((word & 0xFFFFFFFF) ^ 0x80000000) - 0x80000000 for word in (seed, seed >> 32, row, step, stream)
    )
    return low, high, first, second, third


@triton.jit
def philox_words(quad, row, step, stream, seed_low, seed_high):
    """Four uint32 words of counter ``(quad, row, step, stream)``: 32-bit integers, blocks that broadcast or scalars."""
    # One shape for all: the interpreter does not broadcast a scalar against a block in every operation used here.
    c0 = (quad + 0 * row).to(tl.uint32)
    c1 = (row + 0 * quad).to(tl.uint32)
    c2 = (0 * c0) + step.to(tl.uint32)
    c3 = (0 * c0) + stream.to(tl.uint32)
    k0 = seed_low.to(tl.uint32)
    k1 = seed_high.to(tl.uint32)
    M0: tl.constexpr = 0xD2511F53
    M1: tl.constexpr = 0xCD9E8D57
    W0: tl.constexpr = 0x9E3779B9
    W1: tl.constexpr = 0xBB67AE85
    for _ in tl.static_range(10):
        # One 64-bit product is one instruction; umulhi and a low product are two.
        p0 = c0.to(tl.uint64) * M0
        p1 = c2.to(tl.uint64) * M1
        c0 = (p1 >> 32).to(tl.uint32) ^ c1 ^ k0
        c1 = p1.to(tl.uint32)
        c2 = (p0 >> 32).to(tl.uint32) ^ c3 ^ k1
        c3 = p0.to(tl.uint32)
        k0 = tl.add(k0, W0, sanitize_overflow=False)
        k1 = tl.add(k1, W1, sanitize_overflow=False)
    return c0, c1, c2, c3


@triton.jit
def _radius(word):
    """``sqrt(-2 ln u)`` of ``u = (word + 1/2) 2^-32``, from the exact complement of u where u > 1/2."""
    complement = word ^ 0xFFFFFFFF  # not `~`: the interpreter of Triton 3.6 has none for uint32
    lower = word < complement
    small = tl.where(lower, word, complement)
    s = small.to(tl.int32, bitcast=True).to(tl.float32) * 2.3283064365386963e-10 + 1.1641532182693481e-10
    u = tl.where(lower, s, 1.0 - s)
    bits = u.to(tl.int32, bitcast=True)
    # u = 2^exponent (1 + f) with 1 + f in [sqrt(1/2), sqrt(2))
    exponent = (bits - 0x3F3504F3) >> 23
    mantissa = (bits - (exponent << 23)).to(tl.float32, bitcast=True)
    f = tl.where(u > 0.70710677, -s, mantissa - 1.0)
    p = 0.197907016 * f - 0.322524965
    p = p * f + 0.345564127
    p = p * f - 0.398266971
    p = p * f + 0.499378145
    p = p * f - 0.666692138
    p = p * f + 1.00000751
    p = p * f - 1.99999988
    return tl.sqrt(p * f + exponent.to(tl.float32) * -1.3862944)


@triton.jit
def _rotate(word, r):
    """``r cos``, ``r sin`` of ``2 pi (word + 1/2) 2^-32``: a half turn flips both signs, the rest is a quarter turn."""
    half_turn = tl.add(word, 0x40000000, sanitize_overflow=False) & 0x80000000
    rest = tl.sub(word, half_turn, sanitize_overflow=False).to(tl.int32, bitcast=True)
    angle = rest.to(tl.float32) * 1.4629180792671596e-9 + 7.314590396335798e-10
    y = angle * angle
    sine = 2.60510774e-06 * y - 0.000198090172
    sine = sine * y + 0.00833304971
    sine = sine * y - 0.166666582
    sine = sine * y + 1.0
    cosine = 2.31524173e-05 * y - 0.00138536294
    cosine = cosine * y + 0.0416635722
    cosine = cosine * y - 0.499999046
    cosine = cosine * y + 0.99999994
    signed_r = (r.to(tl.uint32, bitcast=True) ^ half_turn).to(tl.float32, bitcast=True)
    return signed_r * cosine, signed_r * (sine * angle)


@triton.jit
def normals_from_words(w0, w1, w2, w3):
    """Four float32 standard normals of four words, each within 1e-5 of the float64 formula, always finite."""
    z0, z1 = _rotate(w1, _radius(w0))
    z2, z3 = _rotate(w3, _radius(w2))
    return z0, z1, z2, z3


@triton.jit
def normals(quad, row, step, stream, seed_low, seed_high):
    """``z[row, 4 quad + i]`` for i = 0..3: four float32 blocks of the broadcast shape of ``quad`` and ``row``.

    ``row`` is the global row (``row0`` included), modulo 2^32; all are 32-bit integers.
    """
    w0, w1, w2, w3 = philox_words(quad, row, step, stream, seed_low, seed_high)
    return normals_from_words(w0, w1, w2, w3)


@triton.jit
def normals_block(quad, row, step, stream, seed_low, seed_high):
    """The same four in one block with a last dimension of 4, in column order: ``[G]`` to ``[G, 4]``.

    ``[R, Q]`` gives ``[R, Q, 4]``. The four of a quad are in the registers of one thread.
    """
    z0, z1, z2, z3 = normals(quad, row, step, stream, seed_low, seed_high)
    pairs = tl.join(tl.join(z0, z2), tl.join(z1, z3))  # [..., 2, 2], row-major z0 z1 z2 z3
    return tl.reshape(pairs, z0.shape + [4])  # noqa: RUF005 - Triton has no starred list


@triton.jit
def group_normals(group, row, step, stream, seed_low, seed_high, VEC: tl.constexpr):
    """``z[row, VEC group + i]`` for i < VEC = 4 or 8: ``[G]`` to ``[G, VEC]``; ``row`` is ``[G]`` or a scalar."""
    row = row + 0 * group
    if VEC == 4:
        return normals_block(group, row, step, stream, seed_low, seed_high)
    else:
        quad = group[:, None] * (VEC // 4) + tl.arange(0, VEC // 4)[None, :]
        z = normals_block(quad, row[:, None], step, stream, seed_low, seed_high)
        return tl.reshape(z, (group.shape[0], VEC))
