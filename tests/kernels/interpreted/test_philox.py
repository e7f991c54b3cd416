"""Philox and Box-Muller of the Triton kernels, interpreted: words bit-equal to NumPy, normals to 1e-5 for any word."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.native import oracle
from tests.tolerances import NORMALS

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("these run under TRITON_INTERPRET=1, which has to be set first", allow_module_level=True)

import triton
import triton.language as tl

from ansn.kernels import philox


@triton.jit(do_not_specialize=list(philox.COUNTERS))
def words_kernel(out, seed_low, seed_high, row0, step, stream, quad0, Q: tl.constexpr):
    row = tl.program_id(0)
    lane = tl.arange(0, Q)
    w0, w1, w2, w3 = philox.philox_words(quad0 + lane, row0 + row, step, stream, seed_low, seed_high)
    base = out + (row * Q + lane) * 4
    tl.store(base, w0)
    tl.store(base + 1, w1)
    tl.store(base + 2, w2)
    tl.store(base + 3, w3)


@triton.jit(do_not_specialize=list(philox.COUNTERS))
def block_kernel(out, seed_low, seed_high, row0, step, stream, VEC: tl.constexpr, G: tl.constexpr):
    group = tl.arange(0, G)
    z = philox.group_normals(group, row0, step, stream, seed_low, seed_high, VEC)
    tl.store(out + group[:, None] * VEC + tl.arange(0, VEC)[None, :], z)


@triton.jit
def normals_kernel(words, out, N: tl.constexpr):
    at = 4 * tl.arange(0, N)
    w = words + at
    z0, z1, z2, z3 = philox.normals_from_words(tl.load(w), tl.load(w + 1), tl.load(w + 2), tl.load(w + 3))
    tl.store(out + at, z0)
    tl.store(out + at + 1, z1)
    tl.store(out + at + 2, z2)
    tl.store(out + at + 3, z3)


def words(seed: int, row: int, quad: int, step: int, stream: int, rows: int = 1, quads: int = 4) -> np.ndarray:
    out = torch.zeros(rows, quads, 4, dtype=torch.uint32)
    words_kernel[(rows,)](out, *philox.counters(seed, row, step, stream), quad, Q=quads)
    return out.numpy()


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), 0, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((2**32 - 1,) * 4, 2**64 - 1, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), 0x299F31D0A4093822, "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_known_answers(counter, key, expected):
    quad, row, step, stream = counter
    signed = quad - 2**32 if quad >= 2**31 else quad
    got = words(key, row, signed, step, stream, quads=1)[0, 0]
    assert " ".join(f"{int(w):08x}" for w in got) == expected


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(0, 2**63 - 1), st.integers(0, 2**62), st.integers(0, 2**32 - 1), st.integers(0, 4))
def test_words_equal_numpy(seed, row, step, stream):
    """Rows wrap at 2^32; a step beyond 2^31 is one too."""
    rows = np.array([(row + i) % 2**32 for i in range(3)], np.uint64)
    expected = oracle.philox_words(seed, rows[:, None], np.arange(8)[None, :], step, stream)
    np.testing.assert_array_equal(words(seed, row, 0, step, stream, rows=3, quads=8), expected)


def test_normals_of_the_extreme_words():
    """Every word near 0, 2^31 and 2^32, where u is near 0, 1/2 and 1, as radius and as angle; and random ones."""
    near = np.arange(-2048, 2048)
    edges = np.concatenate([near + quarter * 2**30 for quarter in range(4)])
    generator = np.random.default_rng(0)
    pool = np.concatenate([edges % 2**32, generator.integers(0, 2**32, 2**16 - len(edges))]).astype(np.uint32)
    block = np.stack([pool, generator.permutation(pool), generator.permutation(pool), pool], axis=-1)
    out = torch.full((len(pool), 4), float("nan"))
    normals_kernel[(1,)](torch.from_numpy(block), out, N=len(pool))
    assert np.abs(out.double().numpy() - oracle.box_muller(block)).max() <= NORMALS


@pytest.mark.parametrize("width", [4, 8])
def test_a_block_is_in_column_order(width):
    out = torch.full((16, width), float("nan"))
    block_kernel[(1,)](out, *philox.counters(2**40 + 1, 9, 4, 1), VEC=width, G=16)
    expected = oracle.noise(2**40 + 1, 9, 1, 16 * width, 4, 1).reshape(16, width)
    assert np.abs(out.double().numpy() - expected).max() <= NORMALS
