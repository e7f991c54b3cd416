"""Denoising score matching loss and its gradient in one pass, the target ``-z`` regenerated from its counter.

    loss_r = w_r / d sum_j e_j^2,   gradient_rj = 2 w_r / d e_j,   e = p - t  or  p + z

One program takes a stretch of one row, at a length that depends on d only, and adds in a fixed order; a row of several
stretches has its partial sums added by a second pass. So a row's loss depends neither on its batch nor on the run.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ansn.kernels.colored_step import group_width
from ansn.kernels.philox import COUNTERS, counters, group_normals

GROUPS, NUM_WARPS = 256, 4  # of one round of a program
STRETCH = 16384  # columns of one program


@triton.jit(do_not_specialize=list(COUNTERS))
def dsm_loss_kernel(
    partial, gradient, prediction, target, weight,
    row_groups, cols, inverse_cols, stretch_groups,
    seed_low, seed_high, row0, step, stream,
    PER_ROW: tl.constexpr, TARGET: tl.constexpr, VEC: tl.constexpr, EVEN: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    """Program (r, s): stretch s of row r; ``partial`` is ``[B, stretches]``. EVEN: VEC divides cols."""
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, GROUPS)
    item = tl.arange(0, VEC)
    scale = tl.load(weight + row * PER_ROW).to(tl.float32) * inverse_cols
    if EVEN:
        start = row * row_groups * VEC  # row * cols, and the compiler knows that VEC divides it
    else:
        start = row * cols
    global_row = row0 + row.to(tl.int32)
    total = tl.zeros((GROUPS, VEC), tl.float32)
    begin = tl.program_id(1) * stretch_groups
    end = tl.minimum(begin + stretch_groups, row_groups)
    for base in range(begin, end, GROUPS):
        group = base + lane
        column = group[:, None] * VEC + item[None, :]
        mask = (group < end)[:, None]
        if not EVEN:
            mask = mask & (column < cols)
        value = tl.load(prediction + start + column, mask=mask, other=0.0).to(tl.float32)
        if TARGET:
            residual = value - tl.load(target + start + column, mask=mask, other=0.0).to(tl.float32)
        else:
            z = group_normals(group, global_row, step, stream, seed_low, seed_high, VEC)
            residual = tl.where(mask, value + z, 0.0)
        total += residual * residual
        tl.store(gradient + start + column, (2.0 * scale * residual).to(gradient.dtype.element_ty), mask=mask)
    loss = tl.sum(tl.reshape(total, (GROUPS * VEC,)), 0) * scale
    tl.store(partial + row * tl.num_programs(1) + tl.program_id(1), loss)


def dsm_loss(
    prediction: Tensor,
    target: Tensor | None,
    weight: Tensor,
    seed: int = 0,
    row: int = 0,
    step: int = 0,
    stream: int = 0,
) -> tuple[Tensor, Tensor]:
    """``(loss [B] float32, gradient)`` of contiguous ``[B, d]`` float32, bfloat16 or float16; weight ``[]`` or ``[B]``.

    ``gradient`` has prediction's dtype. Without ``target``, ``t = -z`` of the counters. The host never waits.
    """
    rows, cols = prediction.shape
    gradient = torch.empty_like(prediction)
    if prediction.numel() == 0:
        return prediction.new_zeros(rows, dtype=torch.float32), gradient
    width = group_width(cols, prediction, target)
    row_groups = triton.cdiv(cols, width)
    stretches = triton.cdiv(cols, STRETCH)
    partial = torch.empty(rows, stretches, dtype=torch.float32, device=prediction.device)
    dsm_loss_kernel[(rows, stretches)](
        partial, gradient, prediction, target, weight,
        row_groups, cols, 1.0 / cols, STRETCH // width, *counters(seed, row, step, stream),
        PER_ROW=weight.ndim, TARGET=target is not None, VEC=width, EVEN=cols % width == 0, GROUPS=GROUPS,
        num_warps=NUM_WARPS, enable_fp_fusion=True,
    )  # fmt: skip
    return (partial[:, 0] if stretches == 1 else partial.sum(1)), gradient
