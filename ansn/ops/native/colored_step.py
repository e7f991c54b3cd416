"""The coloured step in C++."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ansn.ops import _dispatch
from ansn.ops._operands import contiguous
from ansn.ops.native._module import why_not_cpu
from ansn.ops.native.dense_step import dense_step, elementwise


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
    c: float | Tensor | None,
    a: float | Tensor | None,
    b: float | Tensor | None,
    factor: Tensor | None,
    region: Tensor | None,
    lower: bool,
    seed: int,
    row: int,
    step: int,
    stream: int,
) -> Tensor:
    x, denoised, f, counter = x.contiguous(), contiguous(denoised), contiguous(f), (seed, row, step, stream)
    if factor is None or (b is None and (f is None or a is None)):
        return elementwise(torch.empty_like(x), x, denoised, f, c, a, b, counter)
    if factor.ndim == 3:
        return dense_step(x, denoised, f, c, a, b, factor, region, False, lower, counter)
    region = None if factor.shape[0] == 1 else region
    return elementwise(torch.empty_like(x), x, denoised, f, c, a, b, counter, factor.float().contiguous(), region)


_dispatch.register("colored_step", "native", _colored_step, _why_not_colored_step)
