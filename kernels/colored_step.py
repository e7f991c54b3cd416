"""The coloured step with L the identity or a diagonal: one pass over memory, the noise made in registers.

    out[r, j] = x + c_r (D - x) + L_j (a_r f + b_r z)

A row is cut into groups of VEC columns (16 bytes where the row length allows it), and the groups of all rows form one
list that is dealt to the programs in blocks. A thread owns whole groups, so one Philox call serves four columns, and
every access to x, D, f and out is one vector.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ansn.kernels.philox import COUNTERS, counters, group_normals

ABSENT, SCALAR, PER_ROW = 0, 1, 2  # how a coefficient comes
GROUPS, NUM_WARPS = 256, 4  # of one program
BIG = 2**31  # groups from which on their index takes 64 bits


@triton.jit
def _coefficient(pointer, first_row, over, HOW: tl.constexpr):
    """One number for all rows, or a column ``[G, 1]`` of each group's own."""
    if HOW == 1:
        return tl.load(pointer)
    else:
        return tl.load(pointer + first_row + over)[:, None]


@triton.jit(do_not_specialize=list(COUNTERS))
def colored_step_kernel(
    out, x, denoised, f, c, a, b, diagonal, region,
    groups, row_groups, cols,
    seed_low, seed_high, row0, step, stream,
    C: tl.constexpr, A: tl.constexpr, B: tl.constexpr, DIAGONAL: tl.constexpr, REGIONS: tl.constexpr,
    VEC: tl.constexpr, EVEN: tl.constexpr, LONG: tl.constexpr, BIG: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    """C, A, B: 0 absent, 1 a scalar, 2 one for each row. EVEN: VEC divides cols. LONG: row_groups >= GROUPS.

    ``groups`` = rows * row_groups; BIG: it does not fit 31 bits.
    """
    lane = tl.arange(0, GROUPS)
    item = tl.arange(0, VEC)
    # Where the block starts. Every thread divides once: in 64 bits, which is slow, only where there are so many groups.
    first = tl.program_id(0).to(tl.int64) * GROUPS
    if BIG:
        first_row = first // row_groups
        at = (first - first_row * row_groups).to(tl.int32) + lane
    else:
        start = first.to(tl.uint32)
        of_row = tl.cast(row_groups, tl.uint32)  # not `.to`: Triton makes an argument that is 1 a plain number
        first_row = start // of_row
        at = (start - first_row * of_row).to(tl.int32) + lane
    # A block no longer than a row crosses at most one row's end, so nothing is divided for each group.
    if LONG:
        over = (at >= row_groups).to(tl.int32)
    else:
        over = at // row_groups
    group = at - over * row_groups
    # 64 bits are for the block's first row and group; what the lanes add to them fits 32.
    inside = lane < tl.minimum(groups - first, GROUPS).to(tl.int32)
    # Lanes past the end take the first row's coefficients, which exist, and store nothing.
    over = tl.where(inside, over, 0)
    first_row = first_row.to(tl.int64)
    column = group[:, None] * VEC + item[None, :]
    if EVEN:
        base = first * VEC
        offset = lane[:, None] * VEC + item[None, :]
        mask = inside[:, None]
        length = tl.cast(row_groups, tl.int64) * VEC  # cols, and the compiler knows that VEC divides it
    else:
        base = first_row * cols
        offset = (over * cols)[:, None] + column
        mask = inside[:, None] & (column < cols)
        length = tl.cast(cols, tl.int64)
    out += base
    x += base

    here = tl.load(x + offset, mask=mask, other=0.0).to(tl.float32)
    result = here
    if C != 0:
        there = tl.load(denoised + base + offset, mask=mask, other=0.0).to(tl.float32)
        result += _coefficient(c, first_row, over, C).to(tl.float32) * (there - here)
    if A != 0 or B != 0:
        push = tl.zeros((GROUPS, VEC), tl.float32)
        if A != 0:
            push = tl.load(f + base + offset, mask=mask, other=0.0).to(tl.float32)
            push *= _coefficient(a, first_row, over, A).to(tl.float32)
        if B != 0:
            z = group_normals(group, row0 + first_row.to(tl.int32) + over, step, stream, seed_low, seed_high, VEC)
            push += _coefficient(b, first_row, over, B).to(tl.float32) * z
        if DIAGONAL:
            place = diagonal + column
            if REGIONS:
                place += (tl.load(region + first_row + over) * length)[:, None]
            push *= tl.load(place, mask=mask, other=0.0).to(tl.float32)
        result += push
    tl.store(out + offset, result.to(out.dtype.element_ty), mask=mask)


def group_width(cols: int, *tensors: Tensor | None) -> int:
    """Columns of a group: 16 bytes of the narrowest dtype where rows stay aligned to it, at least one Philox quad."""
    narrow = min(t.element_size() for t in tensors if t is not None)
    return 8 if narrow == 2 and cols % 8 == 0 else 4


def _how(coefficient: Tensor | None) -> int:
    return ABSENT if coefficient is None else SCALAR if coefficient.ndim == 0 else PER_ROW


def colored_step(
    x: Tensor,
    denoised: Tensor | None = None,
    f: Tensor | None = None,
    c: Tensor | None = None,
    a: Tensor | None = None,
    b: Tensor | None = None,
    diagonal: Tensor | None = None,
    region: Tensor | None = None,
    seed: int = 0,
    row: int = 0,
    step: int = 0,
    stream: int = 0,
) -> Tensor:
    """``out = x + c (D - x) + L (a f + b z)`` on contiguous ``[B, d]`` tensors; ``diagonal`` ``[K, d]`` is L.

    x, denoised and f: float32, bfloat16 or float16, each its own. c, a, b: ``[]`` or ``[B]``, on x's device.
    region: int64 ``[B]``, values in ``0..K-1`` (not checked). A new tensor of x's dtype. No synchronisation with the
    host.
    """
    rows, cols = x.shape
    out = torch.empty_like(x)
    if x.numel() == 0:
        return out
    has_c = denoised is not None and c is not None
    has_a = f is not None and a is not None
    width = group_width(cols, x, denoised if has_c else None, f if has_a else None)
    row_groups = triton.cdiv(cols, width)
    groups = rows * row_groups
    colored_step_kernel[(triton.cdiv(groups, GROUPS),)](
        out, x, denoised, f, c, a, b, diagonal, region,
        groups, row_groups, cols, *counters(seed, row, step, stream),
        C=_how(c) if has_c else ABSENT, A=_how(a) if has_a else ABSENT, B=_how(b),
        DIAGONAL=diagonal is not None, REGIONS=diagonal is not None and diagonal.shape[0] > 1,
        VEC=width, EVEN=cols % width == 0, LONG=row_groups >= GROUPS, BIG=groups + GROUPS >= BIG, GROUPS=GROUPS,
        num_warps=NUM_WARPS, enable_fp_fusion=True,
    )  # fmt: skip
    return out
