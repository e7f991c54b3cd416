"""The coloured step in C++."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ansn.ops import _dispatch
from ansn.ops._operands import contiguous, stride
from ansn.ops.native._module import DTYPE, address, module, why_not_cpu
from ansn.ops.native.dense_step import dense_step


def _why_not_colored_step(x: Tensor, denoised: Tensor | None, f: Tensor | None, *_: Any) -> str | None:
    dtype = x.dtype
    if dtype == torch.float64:
        return "float64 is the reference's, whose normals have float64 precision"
    if denoised is not None and denoised.dtype != dtype:
        return f"denoised is {denoised.dtype} and x {dtype}, expected one dtype"
    if f is not None and f.dtype != dtype:
        return f"f is {f.dtype} and x {dtype}, expected one dtype"
    return why_not_cpu(x)


def _colored_step(
    x: Tensor,
    denoised: Tensor | None,
    f: Tensor | None,
    c: Tensor | None,
    a: Tensor | None,
    b: Tensor | None,
    factor: Tensor | None,
    region: Tensor | None,
    lower: bool,
    seed: int,
    row: int,
    step: int,
    stream: int,
) -> Tensor:
    # Contiguous copies are bound to names so that they outlive the call that uses their addresses.
    x, denoised, f = x.contiguous(), contiguous(denoised), contiguous(f)
    out = torch.empty_like(x)
    pushed = b is not None or (f is not None and a is not None)
    if factor is not None and factor.ndim == 3 and pushed:
        counter = (seed, row, step, stream)
        return dense_step(out, x, denoised, f, c, a, b, factor, region, False, lower, counter)
    c, a, b = contiguous(c), contiguous(a), contiguous(b)
    rows, cols = x.shape
    diagonal = index = None
    if factor is not None and pushed:
        diagonal = factor.float().contiguous()
        index = None if factor.shape[0] == 1 else contiguous(region)
    module.colored_step(
        DTYPE[x.dtype], out.data_ptr(), x.data_ptr(), address(denoised), address(f), rows, cols,
        address(c), address(a), address(b), stride(c), stride(a), stride(b),
        address(diagonal), address(index), seed, row, step, stream, torch.get_num_threads(),
    )  # fmt: skip
    return out


_dispatch.register("colored_step", "native", _colored_step, _why_not_colored_step)
