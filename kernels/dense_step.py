"""The coloured step with dense factors, and the products with them: a grouped triangular product (math section 3).

    out[r, i] = x + c (D - x) + sum_{k <= i} L[i, k] (a f[r, k] + b z[r, k])

A program makes a block of rows of one region times a block of columns i, over blocks of k up to the diagonal; those
above it are skipped, which is half of the work. x, D and c come in where the block is stored.

The noise is made in one of two ways, of the same normals: in the product, per block of k, so that z never is in memory
but is made again for every block of columns; or once, ``a f + b z`` in float32 by a kernel before. A normal costs some
40 instructions, and in the product serves as many multiply-adds as the block has columns: it is made there when there
is one block of columns, and once where there are more.

Several regions: the rows are sorted by region on the device (``row_map``), a block of rows is of one region, and the
grid has the size that the host can know; programs without a block return at once. Heavy blocks (large i) start first.

Products are float32 in IEEE arithmetic.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ansn.kernels import philox
from ansn.kernels.row_map import alignment, block_map, register_limit
from ansn.ops._operands import sort_rows, stride

PROGRAMS = 264
"""Programs that fill an H100 or H200, two for each of 132 multiprocessors: fewer, and blocks get smaller."""


@triton.jit
def _push(
    f, a, b, row, cols, mask, dim, row0, step, stream, seed_low, seed_high, a_stride, b_stride,
    HAS_F: tl.constexpr, HAS_A: tl.constexpr, HAS_NOISE: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, first,
):  # fmt: skip
    """``a f + b z`` of rows ``row`` and of the COLS columns from ``first``, float32."""
    push = tl.zeros((ROWS, COLS), tl.float32)
    if HAS_F:
        push = tl.load(f + row[:, None] * dim + cols[None, :], mask=mask, other=0.0).to(tl.float32)
        if HAS_A:
            push *= tl.load(a + row * a_stride)[:, None]
    if HAS_NOISE:
        quad = first // 4 + tl.arange(0, COLS // 4)
        z = philox.normals_block(quad[None, :], (row.to(tl.int32) + row0)[:, None], step, stream, seed_low, seed_high)
        push += tl.load(b + row * b_stride)[:, None] * tl.reshape(z, (ROWS, COLS))
    return push


@triton.jit(do_not_specialize=["rows", *philox.COUNTERS])
def _push_kernel(
    push, f, a, b, order, rows, groups, blocks, seed_low, seed_high, row0, step, stream, a_stride, b_stride,
    GROUPED: tl.constexpr, HAS_F: tl.constexpr, HAS_A: tl.constexpr, HAS_NOISE: tl.constexpr, ALIGN: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """``push[p] = a f + b z`` of row ``order[p]``: in sorted order, where the product reads it row by row."""
    dim = groups * ALIGN
    first = (tl.program_id(0) % blocks) * COLS
    position = (tl.program_id(0) // blocks).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    live = position < rows
    # Lanes beyond the end take row 0, whose coefficients exist, and store nothing.
    row = tl.load(order + position, mask=live, other=0) if GROUPED else tl.where(live, position, 0)
    cols = first + tl.arange(0, COLS)
    mask = live[:, None] & (cols < dim)[None, :]
    value = _push(
        f, a, b, row, cols, mask, dim, row0, step, stream, seed_low, seed_high, a_stride, b_stride,
        HAS_F, HAS_A, HAS_NOISE, ROWS, COLS, first,
    )  # fmt: skip
    tl.store(push + position[:, None] * dim + cols[None, :], value, mask=mask)


@triton.jit(do_not_specialize=["rows", *philox.COUNTERS])
def _product_kernel(
    out, x, denoised, f, c, a, b, factor, order, offsets, blocks, rows, groups, row_blocks,
    seed_low, seed_high, row0, step, stream, c_stride, a_stride, b_stride,
    GROUPED: tl.constexpr, READY: tl.constexpr, HAS_X: tl.constexpr, HAS_D: tl.constexpr, HAS_F: tl.constexpr,
    HAS_A: tl.constexpr, HAS_NOISE: tl.constexpr, LOWER: tl.constexpr, TRANSPOSE: tl.constexpr,
    ALIGN: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """READY: ``f`` is the float32 ``[B, d]`` push in sorted order. TRANSPOSE: ``L^T``; blocks start at the diagonal."""
    dim = groups * ALIGN
    column_blocks = tl.cdiv(dim, COLS)
    # The heavy column blocks are the last of L, the first of L^T.
    block = tl.program_id(0) // row_blocks
    column = (block if TRANSPOSE else column_blocks - 1 - block) * COLS
    entry = tl.program_id(0) % row_blocks
    if GROUPED:
        k = tl.load(blocks + entry)
        position = tl.load(blocks + row_blocks + entry) + tl.arange(0, ROWS)
        last = tl.load(offsets + tl.maximum(k, 0) + 1)
    else:
        k = tl.zeros((), tl.int64)
        position = entry.to(tl.int64) * ROWS + tl.arange(0, ROWS)
        last = rows.to(tl.int64)
    if k >= 0:
        live = position < last
        if GROUPED:
            row = tl.load(order + position, mask=live, other=0)
        else:
            row = tl.where(live, position, 0)
        cols = column + tl.arange(0, COLS)
        in_cols = cols < dim
        if LOWER and TRANSPOSE:
            begin = column // DEPTH * DEPTH
            end = dim
        elif LOWER:
            begin = 0
            end = tl.minimum(column + COLS, dim)
        else:
            begin = 0
            end = dim
        matrix = factor + k * dim * dim
        product = tl.zeros((ROWS, COLS), tl.float32)
        for start in range(begin, end, DEPTH):
            deep = start + tl.arange(0, DEPTH)
            in_deep = deep < dim
            mask = live[:, None] & in_deep[None, :]
            if READY:
                push = tl.load(f + position[:, None] * dim + deep[None, :], mask=mask, other=0.0)
            else:
                push = _push(
                    f, a, b, row, deep, mask, dim, row0, step, stream, seed_low, seed_high, a_stride, b_stride,
                    HAS_F, HAS_A, HAS_NOISE, ROWS, DEPTH, start,
                )  # fmt: skip
            # What lies beyond the edges is zero here, so the push may hold anything finite there.
            if TRANSPOSE:
                at = matrix + deep.to(tl.int64)[:, None] * dim + cols[None, :]
                part = tl.load(at, mask=in_deep[:, None] & in_cols[None, :], other=0.0).to(tl.float32)
            else:
                at = matrix + cols.to(tl.int64)[:, None] * dim + deep[None, :]
                part = tl.trans(tl.load(at, mask=in_cols[:, None] & in_deep[None, :], other=0.0).to(tl.float32))
            product = tl.dot(push, part, product, input_precision="ieee")
        here = row[:, None] * dim + cols[None, :]
        mask = live[:, None] & in_cols[None, :]
        if HAS_X:
            value = tl.load(x + here, mask=mask, other=0.0).to(tl.float32)
            if HAS_D:
                target = tl.load(denoised + here, mask=mask, other=0.0).to(tl.float32)
                value += tl.load(c + row * c_stride)[:, None] * (target - value)
            product += value
        tl.store(out + here, product.to(out.dtype.element_ty), mask=mask)


def blocks_of(rows: int, dim: int, count: int) -> tuple[int, int, int, int]:
    """Rows, columns and depth of a block and its warps: the largest that still fill the machine, from B, d and K."""
    present = max(1, min(count, rows))
    for height, width, depth, warps in ((128, 64, 16, 8), (64, 64, 16, 4), (32, 64, 16, 4), (32, 32, 16, 2)):
        programs = (triton.cdiv(rows, height) + present - 1) * triton.cdiv(dim, width)
        if height <= 2 * triton.cdiv(rows, present) and width < 2 * dim and programs >= PROGRAMS:
            return height, width, depth, warps
    return (16, 64, 32, 4) if rows <= 16 * present and dim > 32 else (32, 32, 16, 2)


def _product(
    out: Tensor,
    x: Tensor | None,
    denoised: Tensor | None,
    f: Tensor | None,
    coefficients: tuple[Tensor | None, Tensor | None, Tensor | None],
    factor: Tensor,
    region: Tensor | None,
    flags: tuple[bool, bool],
    counter: tuple[int, int, int, int],
) -> Tensor:
    rows, dim = out.shape
    if rows == 0 or dim == 0:
        return out
    count = factor.shape[0]
    c, a, b = coefficients
    lower, transpose = flags
    height, width, depth, warps = blocks_of(rows, dim, count)
    grouped = count > 1
    order = offsets = blocks = None
    row_blocks = triton.cdiv(rows, height)
    if grouped and region is not None:
        order, offsets = sort_rows(region, count)
        blocks = block_map(offsets, rows, height)
        row_blocks = blocks.shape[1]
    align = alignment(dim)
    column_blocks = triton.cdiv(dim, width)
    words = philox.counters(*counter)
    has = {"HAS_F": f is not None, "HAS_A": a is not None, "HAS_NOISE": b is not None}
    # A term by itself is read as it is: only noise, or a factor a, is worth a pass before the product.
    ready = (a is not None or b is not None) and column_blocks > 1
    if ready:
        push = torch.empty(rows, dim, dtype=torch.float32, device=out.device)
        strips = triton.cdiv(dim, 256)
        _push_kernel[(triton.cdiv(rows, 4) * strips,)](
            push, f, a, b, order, rows, dim // align, strips, *words, stride(a), stride(b),
            GROUPED=grouped, **has, ALIGN=align, ROWS=4, COLS=256, num_warps=4, enable_fp_fusion=True,
        )  # fmt: skip
        f, a, b = push, None, None
        has = dict.fromkeys(has, False)
    _product_kernel[(row_blocks * column_blocks,)](
        out, x, denoised, f, c, a, b, factor, order, offsets, blocks, rows, dim // align, row_blocks, *words,
        stride(c), stride(a), stride(b),
        GROUPED=grouped, READY=ready, HAS_X=x is not None, HAS_D=denoised is not None and c is not None, **has,
        LOWER=lower, TRANSPOSE=transpose, ALIGN=align, ROWS=height, COLS=width, DEPTH=depth,
        num_warps=warps, num_stages=3, maxnreg=register_limit(warps, align, grouped), enable_fp_fusion=True,
    )  # fmt: skip
    return out


def colored_step(
    x: Tensor,
    denoised: Tensor | None,
    f: Tensor | None,
    c: Tensor | None,
    a: Tensor | None,
    b: Tensor | None,
    factor: Tensor,
    region: Tensor | None,
    lower: bool,
    seed: int,
    row: int,
    step: int,
    stream: int,
) -> Tensor:
    """The arguments of ``ansn::colored_step`` with a dense factor ``[K, d, d]``, already checked; a new tensor.

    x, D and f are contiguous float32, bfloat16 or float16 ``[B, d]``, coefficients float32 ``[]`` or ``[B]``, the
    factor of any float dtype. Raises ValueError where there is nothing to colour.
    """
    if f is None or a is None:
        f = a = None
    counter = (seed, row, step, stream)
    if f is None and b is None:
        raise ValueError("colored_step: got neither a f nor b z, expected a term for the factor to colour")
    return _product(torch.empty_like(x), x, denoised, f, (c, a, b), factor, region, (lower, False), counter)


def apply_factor(v: Tensor, factor: Tensor, region: Tensor | None, transpose: bool, lower: bool) -> Tensor:
    """``L_k v`` or ``L_k^T v`` for each row; contiguous v ``[B, d]``, dense factors ``[K, d, d]``; a new tensor."""
    nothing = (None, None, None)
    return _product(torch.empty_like(v), None, None, v, nothing, factor, region, (lower, transpose), (0, 0, 0, 0))
