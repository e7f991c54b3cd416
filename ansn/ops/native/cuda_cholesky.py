"""Small Cholesky factors on a GPU, alone and with the draw: the CUDA branch of :mod:`ansn.ops.native.cholesky`."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ansn.ops._operands import sort_rows, stride
from ansn.ops.native._module import DTYPE, address, missing, module

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
    if matrix.dtype != torch.float32:
        return f"matrix is {matrix.dtype}; the CUDA kernel takes float32"
    if matrix.shape[1] > LARGEST:
        return f"d is {matrix.shape[1]}; the CUDA kernel takes matrices of at most {LARGEST}"
    problem = _problem(matrix.device.index)
    return None if problem is None else f"the CUDA kernels do not run on {matrix.device}: {problem}"


def _queued(matrix: Tensor, *args: Any) -> None:
    device = matrix.device
    module.small_cholesky_cuda(*args, device.index, torch.cuda.current_stream(device).cuda_stream)


def _serial(_matrix: Tensor, *args: Any) -> None:
    module.small_cholesky_serial(*args)


def _launch(matrix: Tensor) -> Callable[..., None]:
    """The GPU's; for matrices on the CPU the same text, lane after lane (tests)."""
    return _queued if matrix.is_cuda else _serial


def cholesky(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Factors and status; nothing waits for the device."""
    matrix = matrix.contiguous()
    count, dim = matrix.shape[:2]
    factor, info = torch.empty_like(matrix), torch.zeros(count, dtype=torch.int32, device=matrix.device)
    no_draw = (0,) * 11
    _launch(matrix)(matrix, matrix.data_ptr(), count, dim, factor.data_ptr(), info.data_ptr(), "f32", *no_draw)
    return factor, info


def cholesky_draw(
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
    """Factor and draw in one launch. Rows whose region is none of the K are NaN."""
    # Contiguous copies are bound to names so that they outlive the call that uses their addresses.
    matrix, x, b = matrix.contiguous(), x.contiguous(), b.contiguous()
    count, dim = matrix.shape[:2]
    info = torch.zeros(count, dtype=torch.int32, device=matrix.device)
    factor = matrix.new_empty((count if with_factor else 0, dim, dim))
    order = offsets = None
    if region is None:
        out = torch.empty_like(x)
    else:
        out = torch.full_like(x, math.nan)
        order, offsets = sort_rows(region, count)
    _launch(matrix)(
        matrix, matrix.data_ptr(), count, dim, factor.data_ptr() if with_factor else 0, info.data_ptr(),
        DTYPE[x.dtype], x.data_ptr(), out.data_ptr(), x.shape[0], b.data_ptr(), stride(b), address(order),
        address(offsets), seed, row, step, stream,
    )  # fmt: skip
    return out, factor, info
