"""Small Cholesky factors on a GPU: the CUDA branch of :mod:`ansn.ops.native.cholesky`."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from ansn.ops.native._module import DTYPE, missing, module

LARGEST = 128
"""The largest d; cuSOLVER, through the reference, has the rest."""


@functools.cache
def _problem(device: int) -> str | None:
    return module.cuda_problem(device)


def why_not(matrix: Tensor) -> str | None:
    """Why the CUDA kernels cannot factor these matrices, or None."""
    if missing is not None:
        return missing
    if not module.build_info()["cuda"]:
        return "the native module was built without CUDA (needs nvcc; `ANSN_CUDA=ON pip install -e .` says what misses)"
    if matrix.shape[1] > LARGEST:
        return f"d is {matrix.shape[1]}; the CUDA kernel takes matrices of at most {LARGEST}"
    problem = _problem(matrix.device.index)
    return None if problem is None else f"the CUDA kernels do not run on {matrix.device}: {problem}"


def cholesky(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Factors and status; nothing waits for the device. On the CPU the same text runs lane after lane, for tests."""
    matrix, device = matrix.contiguous(), matrix.device
    count, dim = matrix.shape[:2]
    factor, info = torch.empty_like(matrix), torch.zeros(count, dtype=torch.int32, device=device)
    work = DTYPE[matrix.dtype], matrix.data_ptr(), count, dim, factor.data_ptr(), info.data_ptr()
    if matrix.is_cuda:
        module.small_cholesky_cuda(*work, device.index, torch.cuda.current_stream(device).cuda_stream)
    else:
        module.small_cholesky_serial(*work)
    return factor, info
