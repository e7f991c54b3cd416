"""Many small Cholesky factors in C++, alone and with the draw."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ansn.ops import _dispatch
from ansn.ops._operands import contiguous, stride
from ansn.ops.native import cuda_cholesky
from ansn.ops.native._module import DTYPE, address, module, why_not_cpu


def _why_not_cholesky(matrix: Tensor) -> str | None:
    if matrix.is_cuda:
        return cuda_cholesky.why_not(matrix)
    reason = why_not_cpu(matrix, "matrix")
    if reason is None and matrix.shape[1] > module.most_cholesky:
        reason = f"d is {matrix.shape[1]}; this kernel takes matrices of at most {module.most_cholesky}"
    return reason


def _cholesky(matrix: Tensor) -> tuple[Tensor, Tensor]:
    if matrix.is_cuda:
        return cuda_cholesky.cholesky(matrix)
    matrix = matrix.contiguous()
    count, dim = matrix.shape[:2]
    factor, info = torch.empty_like(matrix), torch.zeros(count, dtype=torch.int32)
    module.cholesky(
        DTYPE[matrix.dtype], matrix.data_ptr(), factor.data_ptr(), info.data_ptr(), count, dim, torch.get_num_threads()
    )
    return factor, info


def _why_not_draw(matrix: Tensor, x: Tensor, *_: Any) -> str | None:
    if torch.float64 in (matrix.dtype, x.dtype):
        return "float64 is the reference's, whose normals have float64 precision"
    return _why_not_cholesky(matrix)


def _cholesky_draw(
    matrix: Tensor,
    x: Tensor,
    b: Tensor,
    region: Tensor | None,
    with_factor: bool,
    seed: int,
    row: int,
    step: int,
    stream: int,
) -> tuple[Tensor, Tensor, Tensor]:
    if matrix.is_cuda:
        return cuda_cholesky.cholesky_draw(matrix, x, b, region, with_factor, seed, row, step, stream)
    # Contiguous copies are bound to names so that they outlive the call that uses their addresses.
    matrix, x, b, region = matrix.contiguous(), x.contiguous(), b.contiguous(), contiguous(region)
    count, dim = matrix.shape[:2]
    out, info = torch.empty_like(x), torch.zeros(count, dtype=torch.int32)
    factor = matrix.new_empty((count if with_factor else 0, dim, dim))
    module.cholesky_draw(
        DTYPE[x.dtype], matrix.data_ptr(), factor.data_ptr() if with_factor else 0, info.data_ptr(), count, dim,
        x.data_ptr(), out.data_ptr(), x.shape[0], b.data_ptr(), stride(b), address(region),
        seed, row, step, stream, torch.get_num_threads(),
    )  # fmt: skip
    return out, factor, info


_dispatch.register("cholesky", "native", _cholesky, _why_not_cholesky)
_dispatch.register("cholesky_draw", "native", _cholesky_draw, _why_not_draw)
