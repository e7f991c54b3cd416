"""The C++ back end: passes addresses and strides to ``ansn._native`` and says what it cannot run.

Addresses are read here only, inside the registered implementations. If the module was not built, every
operation says so when ``native`` is asked for, and ``auto`` goes on with ``reference``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ansn.ops import _dispatch

try:
    from ansn import _native as module  # type: ignore[attr-defined]
except ImportError as error:
    module = None  # type: ignore[assignment]
    missing: str | None = f"the C++ module ansn._native is not there ({error}); build it with `pip install -e .`"
else:
    missing = None

_DTYPE = {torch.float32: "f32", torch.float64: "f64", torch.bfloat16: "bf16", torch.float16: "f16"}


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _why_not_cpu(tensor: Tensor) -> str | None:
    return missing if tensor.is_cpu else f"x is on {tensor.device}, expected the CPU"


def _why_not_colored_step(x: Tensor, denoised: Tensor | None, f: Tensor | None, *args: Any) -> str | None:
    dtype, factor = x.dtype, args[3]
    if dtype == torch.float64:
        return "float64 is the reference's, whose normals have float64 precision"
    if denoised is not None and denoised.dtype != dtype:
        return f"denoised is {denoised.dtype} and x {dtype}, expected one dtype"
    if f is not None and f.dtype != dtype:
        return f"f is {f.dtype} and x {dtype}, expected one dtype"
    if factor is not None and factor.ndim == 3:
        return "the factor is dense; this kernel takes the identity or a diagonal"
    return _why_not_cpu(x)


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return tensor if tensor is None or tensor.is_contiguous() else tensor.contiguous()


def _stride(coefficient: Tensor | None) -> int:
    """0: one for all rows, 1: one for each."""
    return 0 if coefficient is None or coefficient.ndim == 0 else 1


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
    x, denoised, f = x.contiguous(), _contiguous(denoised), _contiguous(f)
    c, a, b = _contiguous(c), _contiguous(a), _contiguous(b)
    rows, cols = x.shape
    out = torch.empty_like(x)
    diagonal = index = None
    if factor is not None:
        diagonal = factor.float().contiguous()
        index = None if factor.shape[0] == 1 else _contiguous(region)
    module.colored_step(
        _DTYPE[x.dtype], out.data_ptr(), x.data_ptr(), _address(denoised), _address(f), rows, cols,
        cols, cols, cols, cols, _address(c), _address(a), _address(b), _stride(c), _stride(a), _stride(b),
        _address(diagonal), _address(index), seed, row, step, stream, torch.get_num_threads(),
    )  # fmt: skip
    return out


def _why_not_update(weight: Tensor, weight2: Tensor, mean: Tensor, scatter: Tensor, x: Tensor, *_: Any) -> str | None:
    return _why_not_cpu(x)


def _covariance_update_(
    weight: Tensor,
    weight2: Tensor,
    mean: Tensor,
    scatter: Tensor,
    x: Tensor,
    region: Tensor | None,
    decay: float,
) -> None:
    if decay != 1.0:
        weight *= decay
        weight2 *= decay * decay
        scatter *= decay
    count, cols = mean.shape
    x = x.contiguous()
    if region is None or count == 1:
        groups: list[tuple[int, Tensor | None, int]] = [(0, None, x.shape[0])]
    else:
        # Rows of one region made adjacent by a stable sort; each group keeps the batch's order.
        order = torch.argsort(region, stable=True)
        sizes = torch.bincount(region, minlength=count).tolist()
        parts = torch.split(order, sizes)
        groups = [(k, parts[k], sizes[k]) for k in range(count)]
    for k, rows, b in groups:
        if b == 0:
            continue
        module.covariance_update(
            _DTYPE[mean.dtype], float(weight[k]), mean[k].data_ptr(), scatter[k].data_ptr(), x.data_ptr(),
            _DTYPE[x.dtype], b, cols, cols, _address(rows), scatter.ndim == 2, torch.get_num_threads(),
        )  # fmt: skip
        weight[k] += b
        weight2[k] += b


_dispatch.register("colored_step", "native", _colored_step, _why_not_colored_step)
_dispatch.register("covariance_update_", "native", _covariance_update_, _why_not_update)

__all__ = ["missing", "module"]
