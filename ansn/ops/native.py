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
    return missing or (f"x is on {tensor.device}, expected the CPU" if tensor.device.type != "cpu" else None)


def _why_not_colored_step(x: Tensor, denoised: Tensor | None, f: Tensor | None, *args: Any) -> str | None:
    factor = args[3]
    if x.dtype == torch.float64:
        return "float64 is the reference's, whose normals have float64 precision"
    for name, value in (("denoised", denoised), ("f", f)):
        if value is not None and value.dtype != x.dtype:
            return f"{name} is {value.dtype} and x {x.dtype}, expected one dtype"
    if factor is not None and factor.ndim == 3:
        return "the factor is dense; this kernel takes the identity or a diagonal"
    return _why_not_cpu(x)


def _coefficient(value: Tensor | None) -> tuple[int, int]:
    return (0, 0) if value is None else (value.data_ptr(), int(value.ndim == 1 and value.shape[0] > 1))


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
    x, denoised, f, c, a, b = (None if t is None else t.contiguous() for t in (x, denoised, f, c, a, b))  # type: ignore[assignment]
    rows, cols = x.shape
    out = torch.empty_like(x)
    diagonal = None if factor is None else factor.float().contiguous()
    index = None if factor is None or factor.shape[0] == 1 else region
    c_at, c_stride = _coefficient(c)
    a_at, a_stride = _coefficient(a)
    b_at, b_stride = _coefficient(b)
    module.colored_step(
        _DTYPE[x.dtype], out.data_ptr(), x.data_ptr(), _address(denoised), _address(f), rows, cols,
        cols, cols, cols, cols, c_at, a_at, b_at, c_stride, a_stride, b_stride,
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
