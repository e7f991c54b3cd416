"""The product with a dense factor in C++: the dense coloured step, and the factor applied to given rows."""

from __future__ import annotations

import torch
from torch import Tensor

from ansn.ops._operands import contiguous, sort_rows, stride
from ansn.ops.native._module import DTYPE, address, module


def why_not_dense(factor: Tensor) -> str | None:
    """Why the kernel cannot take the factor, or None."""
    if factor.ndim != 3:
        return "the factor is diagonal; this kernel takes a dense one"
    return None


def dense_step(
    out: Tensor,
    x: Tensor | None,
    denoised: Tensor | None,
    f: Tensor | None,
    c: Tensor | None,
    a: Tensor | None,
    b: Tensor | None,
    factor: Tensor,
    region: Tensor | None,
    transpose: bool,
    lower: bool,
    counter: tuple[int, int, int, int] = (0, 0, 0, 0),
) -> Tensor:
    """``out = x + c (D - x) + A_k (a f + b z)``, ``A`` the factor or its transpose; ``x = None`` leaves x and D out.

    Contiguous float32, bfloat16 or float16 ``[B, d]``; ``counter`` is (seed, row, step, stream). Returns ``out``.
    """
    rows, cols = out.shape
    if factor.dtype not in (torch.float32, torch.float64):
        factor = factor.float()
    # Either order of the elements is read as it lies: torch's Cholesky factors are column-major.
    if not factor.is_contiguous() and not factor.mT.is_contiguous():
        factor = factor.contiguous()
    matrix = factor.mT if transpose else factor
    triangle = ("upper" if transpose else "lower") if lower else "none"
    regions = factor.shape[0]
    # Contiguous copies are bound to names so that they outlive the call that uses their addresses.
    c, a, b = contiguous(c), contiguous(a), contiguous(b)
    order, offsets = (None, None) if region is None or regions == 1 else sort_rows(region, regions)
    row_stride, col_stride = matrix.stride(1), matrix.stride(2)
    if cols == 1:
        row_stride = col_stride = 1
    module.dense_step(
        DTYPE[out.dtype], out.data_ptr(), address(x), address(denoised), address(f), rows, cols,
        address(c), address(a), address(b), stride(c), stride(a), stride(b),
        matrix.data_ptr(), DTYPE[factor.dtype], row_stride, col_stride, matrix.stride(0), regions, triangle,
        address(order), address(offsets), *counter, torch.get_num_threads(),
    )  # fmt: skip
    return out
