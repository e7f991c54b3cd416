"""The moment update's Triton kernels, interpreted: against weighted NumPy moments, at every tile and way of summing."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ansn.ops._operands import sort_rows
from tests.ops.helpers import DTYPES, generator, randn
from tests.ops.test_covariance_update import fresh, weighted
from tests.tolerances import RATIO, rms_ratio

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("these run under TRITON_INTERPRET=1, which has to be set first", allow_module_level=True)

from ansn.kernels import covariance_update as kernel
from ansn.kernels import row_map


@pytest.fixture(autouse=True)
def poison():
    """What torch.empty gives is NaN, or the largest integer."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def check(state, batches, owners, decay, dtype, dense, label):
    regions, dim = state[2].shape
    above = torch.ones(dim, dim).triu(1).bool()
    for k in range(regions):
        n, n2, mean, scatter = weighted(batches, owners, decay, k, dim)
        np.testing.assert_allclose([state[0][k], state[1][k]], [n, n2], rtol=1e-12)
        assert rms_ratio(state[2][k], torch.as_tensor(mean)) <= RATIO["covariance_update_"][dtype], label
        got, wanted = state[3][k], torch.as_tensor(scatter)
        if dense:
            assert bool(got[above].isnan().all()), "the upper triangle was written"
            got, wanted = got.masked_fill(above, 0.0), wanted.tril()
        else:
            wanted = wanted.diagonal()
        size = float(wanted.abs().max()) + 1e-9
        assert float((got.double() - wanted).abs().max()) <= RATIO["covariance_update_"][dtype] * size, label


@settings(max_examples=12, deadline=None, derandomize=True)
@given(data=st.data())
def test_equals_the_definition(data):
    """Any splits (empty ones too), regions without rows, structures, dtypes, forgetting."""
    dtype, x_dtype = data.draw(st.sampled_from(DTYPES[:2])), data.draw(st.sampled_from(DTYPES))
    regions, dim, dense = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 36)), data.draw(st.booleans())
    sizes = data.draw(st.lists(st.sampled_from([0, 1, 3, 33, 40]), min_size=1, max_size=2))
    decay = data.draw(st.sampled_from([1.0, 0.9]))
    batches = [(1.0 + randn(b, dim, seed=i)).to(x_dtype) for i, b in enumerate(sizes)]
    owners = [None if regions == 1 else torch.randint(regions, (b,), generator=generator(b)) for b in sizes]
    state = fresh(regions, dim, dtype, dense)
    for x, region in zip(batches, owners, strict=True):
        kernel.covariance_update_(*state, x, region, decay)
    check(state, batches, owners, decay, dtype, dense, (regions, dim, sizes))


@pytest.mark.parametrize("programs", [1, 6])
@pytest.mark.parametrize(("rows", "regions", "dim"), [(33, 1, 65), (41, 2, 129), (5, 3, 100), (3, 1, 70)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_large_tiles(monkeypatch, programs, rows, regions, dim, dtype):
    """The tiles of production sizes, several of them, by outer products (few rows) and by ``tl.dot`` (many)."""
    monkeypatch.setattr(kernel, "PROGRAMS", programs)
    tile = 64 if programs == 1 or regions > 1 else 32
    assert kernel.tiles_of(rows, dim, regions, dtype)[:2] == (rows > 8 * regions, tile)
    batches = [1.0 + randn(rows, dim, seed=i).float() for i in range(2)]
    # Region 1 of three gets no rows.
    owners = [None if regions == 1 else torch.arange(rows) % 2 * (regions - 1)] * 2
    state = fresh(regions, dim, dtype)
    for x, region in zip(batches, owners, strict=True):
        kernel.covariance_update_(*state, x, region, 0.75)
    check(state, batches, owners, 0.75, dtype, True, (programs, rows, regions, dim))


def test_every_tile_of_the_triangle_is_found_once():
    """The index arithmetic of the kernel, in float32 as there, for far more tiles than any size has."""
    tile = np.arange(3_000_000, dtype=np.int32)
    i = ((np.sqrt(np.float32(8) * tile.astype(np.float32) + np.float32(1)) - np.float32(1)) / 2).astype(np.int64)
    i = np.where(i * (i + 1) // 2 > tile, i - 1, i)
    i = np.where((i + 1) * (i + 2) // 2 <= tile, i + 1, i)
    j = tile - i * (i + 1) // 2
    assert bool(((j >= 0) & (j <= i)).all())
    assert bool((np.diff(i * (i + 1) // 2 + j) == 1).all())


@pytest.mark.parametrize("count", [1, 5, 200])
@pytest.mark.parametrize("rows", [0, 1, 33, 300])
def test_rows_are_grouped(rows, count):
    """Each row once, in its region's block, in the batch's order; rows of no region in none."""
    region = torch.randint(-1, count + 1, (rows,), generator=generator(rows))
    order, offsets = sort_rows(region, count)
    blocks = row_map.block_map(offsets, rows, 16)
    found: dict[int, list[int]] = {}
    for k, first in blocks.T.tolist():
        if k >= 0:
            assert first == int(offsets[k]) + len(found.setdefault(k, []))
            found[k] += order[first : min(first + 16, int(offsets[k + 1]))].tolist()
    wanted = {k: (region == k).nonzero().flatten().tolist() for k in range(count)}
    assert found == {k: v for k, v in wanted.items() if v}
