"""The running moments on a GPU: each region's symmetric rank-(b + 1) update, triangle only (math section 1).

    A = [x - bm; sqrt(n b / (n + b)) delta],  M <- decay M + A^T A,  m <- m + b / (n + b) delta,  n <- decay n + b

Two launches for all regions, after a sort of the rows where there are several, and the host never learns a count:

1. ``_centre_kernel``, a program for each region and block of columns: the batch mean, summed in float64, the rows of A
   in sorted order into a scratch of B + K rows, and the new mean. A diagonal scatter is done here too.
2. ``_scatter_kernel``, a program for each region and tile of the lower triangle: the product of two column blocks of A,
   added to the tile once, so that a small batch is not rounded away row by row. The weights are written here, after (1)
   has read them.

Few rows a region make the product a sum of outer products, bound by memory; many make it ``tl.dot``: float32 in IEEE
arithmetic, float64 on the double-precision matrix units.

No atomics, and every sum in one order: results are the same bits in every run.
"""

from __future__ import annotations

import struct

import torch
import triton
import triton.language as tl
from torch import Tensor

from ansn.kernels.row_map import alignment, register_limit
from ansn.ops._operands import sort_rows

PROGRAMS = 264
"""Programs that fill an H100 or H200, two for each of 132 multiprocessors: fewer, and tiles get smaller."""


@triton.jit
def _group(offsets, k, rows, GROUPED: tl.constexpr):
    """First and last position of region k, int64."""
    if GROUPED:
        return tl.load(offsets + k), tl.load(offsets + k + 1)
    else:
        return tl.zeros((), tl.int64), rows.to(tl.int64)


@triton.jit
def _add_weights(weight, weight2, k, size, decay):
    """``n <- decay n + b`` and ``n2 <- decay^2 n2 + b`` for a region."""
    size = size.to(tl.float64)
    tl.store(weight + k, decay * tl.load(weight + k) + size)
    tl.store(weight2 + k, decay * decay * tl.load(weight2 + k) + size)


@triton.jit(do_not_specialize=["rows", "decay_bits"])
def _centre_kernel(
    x, order, offsets, weight, mean, scatter, centred, rows, groups, blocks, decay_bits,
    GROUPED: tl.constexpr, DIAGONAL: tl.constexpr, ALIGN: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    dim = groups * ALIGN
    state = mean.dtype.element_ty
    # A float argument would arrive in float32; the bits of a float64 arrive whole.
    decay = decay_bits.to(tl.int64).to(tl.float64, bitcast=True)
    k = (tl.program_id(0) // blocks).to(tl.int64)
    cols = (tl.program_id(0) % blocks) * COLS + tl.arange(0, COLS)
    inside = cols < dim
    first, last = _group(offsets, k, rows, GROUPED)
    here = k * dim + cols
    if first < last:
        total = tl.zeros((ROWS, COLS), tl.float64)
        for start in range(first, last, ROWS):
            position = start + tl.arange(0, ROWS)
            live = position < last
            row = tl.load(order + position, mask=live, other=0) if GROUPED else position
            value = tl.load(x + row[:, None] * dim + cols[None, :], mask=live[:, None] & inside[None, :], other=0.0)
            total += value.to(state).to(tl.float64)
        size = (last - first).to(tl.float64)
        batch_mean = (tl.sum(total, 0) / size).to(state)
        n = decay * tl.load(weight + k)
        old = tl.load(mean + here, mask=inside, other=0.0)
        delta = batch_mean.to(tl.float64) - old.to(tl.float64)
        tl.store(mean + here, (old.to(tl.float64) + size / (n + size) * delta).to(state), mask=inside)
        correction = (tl.sqrt(n * size / (n + size)) * delta).to(state)
        squares = tl.zeros((ROWS, COLS), state)
        for start in range(first, last, ROWS):
            position = start + tl.arange(0, ROWS)
            live = position < last
            mask = live[:, None] & inside[None, :]
            row = tl.load(order + position, mask=live, other=0) if GROUPED else position
            value = tl.load(x + row[:, None] * dim + cols[None, :], mask=mask, other=0.0).to(state)
            value = tl.where(mask, value - batch_mean[None, :], 0.0)
            if DIAGONAL:
                squares += value * value
            else:
                # k rows more than the position: every region before this one has a correction row too.
                tl.store(centred + (position + k)[:, None] * dim + cols[None, :], value, mask=mask)
        if DIAGONAL:
            added = tl.sum(squares, 0) + correction * correction
            kept = tl.load(scatter + here, mask=inside, other=0.0).to(tl.float64) * decay
            tl.store(scatter + here, (kept + added.to(tl.float64)).to(state), mask=inside)
        else:
            tl.store(centred + (last + k) * dim + cols, correction, mask=inside)
    elif DIAGONAL:
        kept = tl.load(scatter + here, mask=inside, other=0.0).to(tl.float64) * decay
        tl.store(scatter + here, kept.to(state), mask=inside)


@triton.jit(do_not_specialize=["rows", "decay_bits"])
def _weights_kernel(weight, weight2, offsets, rows, decay_bits, GROUPED: tl.constexpr):
    k = tl.program_id(0).to(tl.int64)
    first, last = _group(offsets, k, rows, GROUPED)
    _add_weights(weight, weight2, k, last - first, decay_bits.to(tl.int64).to(tl.float64, bitcast=True))


@triton.jit(do_not_specialize=["rows", "decay_bits"])
def _scatter_kernel(
    scatter, centred, weight, weight2, offsets, rows, groups, tiles, decay_bits,
    GROUPED: tl.constexpr, FORGET: tl.constexpr, DOT: tl.constexpr, ALIGN: tl.constexpr,
    TILE: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    dim = groups * ALIGN
    state = scatter.dtype.element_ty
    decay = decay_bits.to(tl.int64).to(tl.float64, bitcast=True)
    k = (tl.program_id(0) // tiles).to(tl.int64)
    tile = tl.program_id(0) % tiles
    # Tile (i, j), j <= i, is number i (i + 1) / 2 + j; the root is at most one off, which the integers put right.
    i = ((tl.sqrt(8.0 * tile.to(tl.float32) + 1.0) - 1.0) * 0.5).to(tl.int32)
    i = tl.where(i * (i + 1) // 2 > tile, i - 1, i)
    i = tl.where((i + 1) * (i + 2) // 2 <= tile, i + 1, i)
    j = tile - i * (i + 1) // 2
    first, last = _group(offsets, k, rows, GROUPED)
    if tile == 0:
        _add_weights(weight, weight2, k, last - first, decay)
    if FORGET or first < last:
        down = i * TILE + tl.arange(0, TILE)
        across = j * TILE + tl.arange(0, TILE)
        in_down = down < dim
        in_across = across < dim
        # Whole quads up to the one that holds the diagonal, which keeps accesses 16 bytes wide; what lies above the
        # diagonal in it is written back as it was.
        touched = ((across // 4)[None, :] <= (down // 4)[:, None]) & in_down[:, None] & in_across[None, :]
        at = scatter + k * dim * dim + down.to(tl.int64)[:, None] * dim + across[None, :]
        # With outer products the tile is read first, and its layout is the product's: nothing goes through shared
        # memory, and the loads are under way before the rest. Under tl.dot it would hold registers the product needs.
        if not DOT:
            old = tl.load(at, mask=touched, other=0.0)
            product = tl.where(touched, 0.0, old)
        else:
            product = tl.zeros((TILE, TILE), state)
        left = centred + k * dim + down
        right = centred + k * dim + across
        if DOT:
            lane = tl.arange(0, CHUNK)
            for start in range(first, last, CHUNK):
                position = start + lane
                live = (position < last)[:, None]
                u = tl.load(left[None, :] + position[:, None] * dim, mask=live & in_down[None, :], other=0.0)
                v = tl.load(right[None, :] + position[:, None] * dim, mask=live & in_across[None, :], other=0.0)
                product = tl.dot(tl.trans(u), v, product, input_precision="ieee", out_dtype=state)
        else:
            # A single row is its own mean: centred, it is zero.
            for position in range(tl.where(last - first > 1, first, last), last):
                u = tl.load(left + position * dim, mask=in_down, other=0.0)
                v = tl.load(right + position * dim, mask=in_across, other=0.0)
                product += u[:, None] * v[None, :]
        if first < last:
            u = tl.load(left + last * dim, mask=in_down, other=0.0)
            v = tl.load(right + last * dim, mask=in_across, other=0.0)
            product += u[:, None] * v[None, :]
        if DOT:
            old = tl.load(at, mask=touched, other=0.0)
        new = (old.to(tl.float64) * decay).to(state) if FORGET else old
        new = tl.where(across[None, :] <= down[:, None], new + product, old)
        tl.store(at, new, mask=touched)


def tiles_of(rows: int, dim: int, count: int, dtype: torch.dtype) -> tuple[bool, int, int]:
    """Whether to use ``tl.dot``, the tile and the warps, from what the host knows: B, d, K and the state's dtype."""
    tile = 64
    while tile > 16 and (tile >= 2 * dim or count * triangle(dim, tile) < PROGRAMS):
        tile //= 2
    warps = {64: 8 if dtype == torch.float64 else 4, 32: 4, 16: 1}[tile]
    return rows > 8 * count, tile, warps


def triangle(dim: int, tile: int) -> int:
    """Tiles of the lower triangle."""
    side = triton.cdiv(dim, tile)
    return side * (side + 1) // 2


def covariance_update_(
    weight: Tensor,
    weight2: Tensor,
    mean: Tensor,
    scatter: Tensor,
    x: Tensor,
    region: Tensor | None,
    decay: float,
) -> None:
    """``(n, n2, m, M)`` in place; the arguments of :func:`ansn.ops.covariance_update_`, already checked.

    ``x`` is contiguous ``[B, d]`` of any float dtype, the state float32 or float64; nothing is read by the host.
    """
    count, dim = mean.shape
    rows = x.shape[0]
    if dim == 0 or count == 0 or (rows == 0 and decay == 1.0):
        return
    grouped = count > 1
    order, offsets = sort_rows(region, count) if grouped and region is not None else (None, None)
    decay_bits = struct.unpack("<q", struct.pack("<d", decay))[0]
    diagonal = scatter.ndim == 2
    centred = scatter if diagonal else torch.empty(rows + count, dim, dtype=mean.dtype, device=x.device)
    align = alignment(dim)
    row_block = 32 if rows > 8 * count else 4
    blocks = triton.cdiv(dim, 64)
    _centre_kernel[(count * blocks,)](
        x, order, offsets, weight, mean, scatter, centred, rows, dim // align, blocks, decay_bits,
        GROUPED=grouped, DIAGONAL=diagonal, ALIGN=align, ROWS=row_block, COLS=64,
        num_warps=4 if row_block == 32 else 1, maxnreg=128, enable_fp_fusion=True,
    )  # fmt: skip
    if diagonal:
        _weights_kernel[(count,)](
            weight, weight2, offsets, rows, decay_bits, GROUPED=grouped, num_warps=1, enable_fp_fusion=True
        )
        return
    dot, tile, warps = tiles_of(rows, dim, count, mean.dtype)
    tiles = triangle(dim, tile)
    _scatter_kernel[(count * tiles,)](
        scatter, centred, weight, weight2, offsets, rows, dim // align, tiles, decay_bits,
        GROUPED=grouped, FORGET=decay != 1.0, DOT=dot, ALIGN=align, TILE=tile, CHUNK=16,
        num_warps=warps, num_stages=3, maxnreg=register_limit(warps, align, grouped), enable_fp_fusion=True,
    )  # fmt: skip
