"""The operations in a separable basis in C++."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ansn.ops import _checks, _dispatch
from ansn.ops._operands import contiguous, plain, stride
from ansn.ops.native._module import DTYPE, address, module, placed, why_not_cpu


def _axes(bases: Sequence[Tensor], axes: Sequence[int], shape: Sequence[int]) -> tuple[list[tuple[int, int, int]], str]:
    """What the module takes: axes of one point left out, neighbours without a basis taken together."""
    named = dict(zip(axes, bases, strict=True))
    out: list[tuple[int, int, int]] = []
    for a, n in enumerate(shape):
        basis = named.get(a)
        if basis is not None:
            out.append((n, basis.data_ptr(), 0 if basis.shape[0] == 1 else n * n))
        elif n > 1 and out and not out[-1][1]:
            out[-1] = (n * out[-1][0], 0, 0)
        elif n > 1:
            out.append((n, 0, 0))
    return out or [(1, 0, 0)], DTYPE[bases[0].dtype] if bases else "f32"


def _why_not_axes(bases: Sequence[Tensor], axes: Sequence[int], shape: Sequence[int]) -> str | None:
    if len(shape) > module.most_axes and sum(n > 1 or a in axes for a, n in enumerate(shape)) > module.most_axes:
        return f"rows have {len(shape)} axes; this kernel takes {module.most_axes}"
    for a, basis in zip(axes, bases, strict=True):
        if shape[a] > module.longest_axis:
            return f"axis {a} has {shape[a]} points; this kernel takes {module.longest_axis}, torch is faster above"
        if not basis.is_contiguous() or basis.dtype != bases[0].dtype or basis.dtype not in _STATES:
            return f"the basis of axis {a} is not contiguous, or of another dtype than float32 or float64"
    return None


_STATES = (torch.float32, torch.float64)


def _count(*values: Tensor | None) -> int:
    return max((t.shape[0] for t in values if t is not None), default=1)


def _per_region(value: Tensor | None) -> int:
    """Elements from one region's row to the next."""
    return 0 if value is None or value.shape[0] == 1 else value.shape[1]


def _why_not_apply(v: Tensor, *args: Any) -> str | None:
    return why_not_cpu(v, "v") or _why_not_axes(*args[7:])


def _apply(
    v: Tensor, center: Tensor | None, weights: Tensor | None, tau2: Any, region: Tensor | None,
    inward: bool, outward: bool, rest: bool, bases: Sequence[Tensor], axes: Sequence[int], shape: Sequence[int],
) -> Tensor:  # fmt: skip
    dtype = torch.float64 if v.dtype == torch.float64 else torch.float32
    # Contiguous copies are bound to names so that they outlive the call that uses their addresses.
    v, region, center, weights = v.contiguous(), contiguous(region), plain(center, dtype), plain(weights, dtype)
    held: list[Tensor] = []
    tau2, each = placed(tau2 if isinstance(tau2, float) else plain(tau2, dtype), held)
    out = torch.empty_like(v)
    known, basis_dtype = _axes(bases, axes, shape)
    module.separable_apply(
        DTYPE[v.dtype], out.data_ptr(), v.data_ptr(), *v.shape, known, basis_dtype,
        address(region), 1 if region is None else _count(center, weights, *bases),
        address(center), _per_region(center), address(weights), _per_region(weights), tau2, each,
        inward, outward, rest, torch.get_num_threads(),
    )  # fmt: skip
    return out


def _why_not_step(x: Tensor, denoised: Tensor | None, f: Tensor | None, *args: Any) -> str | None:
    if x.dtype == torch.float64:
        return "float64 is the reference's, whose normals have float64 precision"
    for name, value in (("denoised", denoised), ("f", f)):
        if value is not None and value.dtype != x.dtype:
            return f"{name} is {value.dtype} and x {x.dtype}, expected one dtype"
    return why_not_cpu(x) or _why_not_axes(*args[5:8])


def _step(
    x: Tensor, denoised: Tensor | None, f: Tensor | None, c: Any, a: Any, b: Any,
    deviation: Tensor, region: Tensor | None, bases: Sequence[Tensor], axes: Sequence[int], shape: Sequence[int],
    *counters: int,
) -> Tensor:  # fmt: skip
    x, denoised, f, region = x.contiguous(), contiguous(denoised), contiguous(f), contiguous(region)
    held: list[Tensor] = []
    scale = plain(deviation, torch.float32)
    (c, c_stride), (a, a_stride), (b, b_stride) = (placed(value, held) for value in (c, a, b))
    out = torch.empty_like(x)
    known, basis_dtype = _axes(bases, axes, shape)
    module.separable_step(
        DTYPE[x.dtype], out.data_ptr(), x.data_ptr(), address(denoised), address(f), *x.shape,
        c, a, b, c_stride, a_stride, b_stride, address(scale),
        _per_region(scale), known, basis_dtype, address(region), 1 if region is None else _count(deviation, *bases),
        *counters, torch.get_num_threads(),
    )  # fmt: skip
    return out


def _why_not_update(weight: Tensor, *args: Any) -> str | None:
    return why_not_cpu(args[4]) or _why_not_axes(*args[6:9])


def _update(
    weight: Tensor, weight2: Tensor, mean: Tensor, scatter: Tensor, axis_scatters: Sequence[Tensor], x: Tensor,
    region: Tensor | None, bases: Sequence[Tensor], axes: Sequence[int], shape: Sequence[int], decay: float,
) -> None:  # fmt: skip
    _checks.apart(weight, weight2)
    x, region = x.contiguous(), contiguous(region)
    known, basis_dtype = _axes(bases, axes, shape)
    sums = iter(axis_scatters)
    addresses = [next(sums).data_ptr() if basis and axis_scatters else 0 for _, basis, _ in known]
    row = module.separable_update(
        DTYPE[mean.dtype], weight.data_ptr(), weight2.data_ptr(), mean.data_ptr(), scatter.data_ptr(), addresses,
        x.data_ptr(), DTYPE[x.dtype], *x.shape, x.stride(0), known, basis_dtype, address(region), len(mean), decay,
        torch.get_num_threads(),
    )  # fmt: skip
    if row >= 0:
        raise ValueError(_checks.not_finite(row))


def _why_not_mixture(x: Tensor, *args: Any) -> str | None:
    if x.dtype == torch.float64:
        return "float64 is the reference's; this kernel computes in float32"
    return why_not_cpu(x) or _why_not_axes(*args[5:])


def _mixture(
    x: Tensor, center: Tensor, variances: Tensor, log_weights: Tensor, sigma2: Tensor, denoise: bool,
    bases: Sequence[Tensor], axes: Sequence[int], shape: Sequence[int],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    x, center, variances, sigma2 = x.contiguous(), *(t.float().contiguous() for t in (center, variances, sigma2))
    log_weights = log_weights.double().contiguous()
    out = torch.empty_like(x) if denoise else x.new_empty(0)
    logs = torch.empty(len(center), len(x), dtype=torch.float64)
    known, basis_dtype = _axes(bases, axes, shape)
    module.mixture(
        DTYPE[x.dtype], out.data_ptr() if denoise else 0, logs.data_ptr(), x.data_ptr(), *x.shape, center.data_ptr(),
        variances.data_ptr(), log_weights.data_ptr(), len(center), sigma2.data_ptr(), stride(sigma2), known,
        basis_dtype, torch.get_num_threads(),
    )  # fmt: skip
    return out, logs


_dispatch.register("separable_apply", "native", _apply, _why_not_apply)
_dispatch.register("separable_step", "native", _step, _why_not_step)
_dispatch.register("separable_update_", "native", _update, _why_not_update)
_dispatch.register("mixture", "native", _mixture, _why_not_mixture)
