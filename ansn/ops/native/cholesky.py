"""Many small Cholesky factors in C++."""

from __future__ import annotations

import torch
from torch import Tensor

from ansn.ops import _dispatch
from ansn.ops.native import cuda_cholesky
from ansn.ops.native._module import DTYPE, module, why_not_cpu


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


_dispatch.register("cholesky", "native", _cholesky, _why_not_cholesky)
