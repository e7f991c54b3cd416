"""The coloured step in C++: with a dense factor, the identity or a diagonal; and the factor applied to given rows."""

from __future__ import annotations

import torch
from torch import Tensor

from ansn.ops._operands import contiguous
from ansn.ops.native._module import DTYPE, address, module, placed


def _vendor(rows: int, cols: int, triangular: bool, transpose: bool, alone: bool) -> bool:
    """Whether torch's product is faster: it reads the whole matrix and a right-hand side in memory, where this kernel
    skips a triangle's other half and makes the right-hand side itself. Measured: benchmarks/bench_small.py.

    ``alone``: the right-hand side is there and nothing is added to the product.
    """
    if not triangular or cols < 64:
        return alone or cols > 64
    few = 64 if transpose else 16 if cols < 2048 else 2
    return rows < few and (alone or cols >= 256)


def dense_step(
    x: Tensor | None,
    denoised: Tensor | None,
    f: Tensor | None,
    c: float | Tensor | None,
    a: float | Tensor | None,
    b: float | Tensor | None,
    factor: Tensor,
    region: Tensor | None,
    transpose: bool,
    lower: bool,
    counter: tuple[int, int, int, int] = (0, 0, 0, 0),
) -> Tensor:
    """``x + c (D - x) + A_k (a f + b z)``, ``A`` the factor or its transpose; without x, the product alone.

    Contiguous float32, bfloat16 or float16 ``[B, d]``; ``counter`` is (seed, row, step, stream).
    """
    like = f if x is None else x
    assert like is not None
    rows, cols = like.shape
    regions = factor.shape[0]
    alone = x is None and b is None and type(a) is float and a == 1.0
    if regions == 1 and like.dtype == factor.dtype == torch.float32 and _vendor(rows, cols, lower, transpose, alone):
        matrix = factor[0].t() if transpose else factor[0]
        pushed = (
            f if alone and f is not None else elementwise(torch.empty_like(like), None, None, f, None, a, b, counter)
        )
        out = torch.nn.functional.linear(pushed, matrix)
        return out if x is None else elementwise(out, x, denoised, out, c, 1.0, None, counter)
    if factor.dtype not in (torch.float32, torch.float64):
        factor = factor.float()
    # Either order of the elements is read as it lies: torch's Cholesky factors are column-major.
    if not factor.is_contiguous() and not factor.mT.is_contiguous():
        factor = factor.contiguous()
    matrix = factor.mT if transpose else factor
    triangle = ("upper" if transpose else "lower") if lower else "none"
    held: list[Tensor] = []
    (c, c_stride), (a, a_stride), (b, b_stride) = placed(c, held), placed(a, held), placed(b, held)
    region = None if regions == 1 else contiguous(region)
    region_stride, row_stride, col_stride = matrix.stride()
    if cols == 1:
        row_stride = col_stride = 1
    out = torch.empty_like(like)
    module.dense_step(
        DTYPE[out.dtype], out.data_ptr(), address(x), address(denoised), address(f), rows, cols,
        c, a, b, c_stride, a_stride, b_stride,
        matrix.data_ptr(), DTYPE[factor.dtype], row_stride, col_stride, region_stride, regions, triangle,
        address(region), *counter, torch.get_num_threads(),
    )  # fmt: skip
    return out


def elementwise(
    out: Tensor,
    x: Tensor | None,
    denoised: Tensor | None,
    f: Tensor | None,
    c: float | Tensor | None,
    a: float | Tensor | None,
    b: float | Tensor | None,
    counter: tuple[int, int, int, int],
    diagonal: Tensor | None = None,
    region: Tensor | None = None,
) -> Tensor:
    """The step with A the identity or diagonal, float32 ``[K, d]``, written to ``out`` (which may be an operand);
    ``x = None`` is zero."""
    rows, cols = out.shape
    held: list[Tensor] = []
    (c, c_stride), (a, a_stride), (b, b_stride) = placed(c, held), placed(a, held), placed(b, held)
    region = contiguous(region)
    module.colored_step(
        DTYPE[out.dtype], out.data_ptr(), address(x), address(denoised), address(f), rows, cols,
        c, a, b, c_stride, a_stride, b_stride,
        address(diagonal), address(region), 1 if diagonal is None else diagonal.shape[0], *counter,
        torch.get_num_threads(),
    )  # fmt: skip
    return out
