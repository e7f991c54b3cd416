"""The Triton back end: says which calls its kernels can run, and imports them (and triton) when the first one comes.

On CPU tensors the kernels run under Triton's interpreter only, that is with ``TRITON_INTERPRET=1`` in the environment
from the start; that is for tests.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ansn.ops import _checks, _dispatch, reference
from ansn.ops._operands import contiguous

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
FEW_ROWS, SMALL = 16, 256
"""Up to so many rows, or below so many dimensions, ``auto`` takes our dense product."""


def interpreting() -> bool:
    """Whether Triton's interpreter stands in for a GPU."""
    return os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")


@functools.cache
def missing() -> str | None:
    """What this machine lacks to run any Triton kernel, or None."""
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not there; torch's CUDA build brings it, else `pip install -e '.[gpu]'` (Linux)"
    if importlib.util.find_spec("ansn.kernels") is None:
        return "the package ansn.kernels is not there; install ansn anew with `pip install -e .`"
    if not interpreting() and not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return "triton needs a C compiler to launch kernels; install gcc or clang, or set CC"
    return None


def why_not(tensor: Tensor, name: str = "x") -> str | None:
    """Why no Triton kernel can run on ``tensor``'s device, or None."""
    if not tensor.is_cuda and not (tensor.is_cpu and interpreting()):
        return f"{name} is on {tensor.device}, expected CUDA (on the CPU: Triton's interpreter, TRITON_INTERPRET=1)"
    return missing()


def why_not_dtype(name: str, tensor: Tensor | None) -> str | None:
    """Why no Triton kernel takes ``tensor``'s dtype, or None."""
    if tensor is None or tensor.dtype in DTYPES:
        return None
    return f"{name} is {tensor.dtype}, expected float32, bfloat16 or float16; `reference` takes float64"


def _vendors(v: Tensor, matrices: Tensor) -> bool:
    """Whether ``auto`` leaves a dense float32 product of one region to the vendor's library: Triton's dot in IEEE
    arithmetic is no matrix unit's work either, and which is faster was not measured (docs/gpu-status.md)."""
    rows, dim = v.shape
    return _dispatch.current_backend() == "auto" and len(matrices) == 1 and rows > FEW_ROWS and dim >= SMALL


def _why_not_colored_step(x: Tensor, denoised: Tensor | None, f: Tensor | None, *_: Any) -> str | None:
    return why_not_dtype("x", x) or why_not_dtype("denoised", denoised) or why_not_dtype("f", f) or why_not(x)


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
    from ansn.kernels import colored_step, dense_step

    x, denoised, f = x.contiguous(), contiguous(denoised), contiguous(f)
    c, a, b = contiguous(c), contiguous(a), contiguous(b)
    factor, region = contiguous(factor), contiguous(region)
    counter = (seed, row, step, stream)
    if factor is not None and factor.ndim == 3:
        if b is not None or (f is not None and a is not None):
            if not _vendors(x, factor):
                return dense_step.colored_step(x, denoised, f, c, a, b, factor, region, lower, *counter)
            zero = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
            push = colored_step.colored_step(zero, None, f, None, a, b, None, None, *counter)
            f, a, b = push @ factor[0].float().mT, torch.ones((), device=x.device), None
        factor = region = None  # nothing for the factor to colour any more
    return colored_step.colored_step(x, denoised, f, c, a, b, factor, region, *counter)


def _why_not_dsm_loss(prediction: Tensor, target: Tensor | None, *_: Any) -> str | None:
    return (
        why_not_dtype("prediction", prediction) or why_not_dtype("target", target) or why_not(prediction, "prediction")
    )


def _dsm_loss(prediction: Tensor, target: Tensor | None, weight: Tensor, *counters: int) -> tuple[Tensor, Tensor]:
    from ansn.kernels.dsm_loss import dsm_loss

    return dsm_loss(prediction.contiguous(), contiguous(target), weight.contiguous(), *counters)


def _why_not_apply_factor(
    v: Tensor, factor: Tensor, region: Tensor | None, transpose: bool, inverse: bool, lower: bool
) -> str | None:
    if inverse or factor.ndim != 3:
        return "this kernel multiplies by a dense factor; it neither solves nor takes a diagonal"
    if _vendors(v, factor):
        return "a large product, which `auto` leaves to the vendor's library"
    return why_not_dtype("v", v) or why_not_dtype("factor", factor) or why_not(v, "v")


def _apply_factor(
    v: Tensor, factor: Tensor, region: Tensor | None, transpose: bool, inverse: bool, lower: bool
) -> Tensor:
    from ansn.kernels.dense_step import apply_factor

    return apply_factor(v.contiguous(), factor.contiguous(), contiguous(region), transpose, lower)


def _why_not_update(weight: Tensor, weight2: Tensor, mean: Tensor, scatter: Tensor, x: Tensor, *_: Any) -> str | None:
    if not scatter.is_contiguous() or not mean.is_contiguous():
        return "mean and scatter are updated in place and must be contiguous"
    # In float64 Triton's dot is the matrix units' work, and half of the vendor's.
    if scatter.ndim == 3 and scatter.dtype == torch.float32 and _vendors(x, scatter):
        return "a large product in float32, which `auto` leaves to the vendor's library"
    return why_not(x)


def _covariance_update_(
    weight: Tensor,
    weight2: Tensor,
    mean: Tensor,
    scatter: Tensor,
    x: Tensor,
    region: Tensor | None,
    decay: float,
) -> None:
    from ansn.kernels.covariance_update import covariance_update_

    _checks.update_values(x, region, mean.shape[0])  # under the interpreter
    covariance_update_(weight, weight2, mean, scatter, x.contiguous(), contiguous(region), decay)


def _why_not_axes(whole: bool, bases: Sequence[Tensor], axes: Sequence[int], shape: Sequence[int]) -> str | None:
    """``whole``: a program has a whole row."""
    from ansn.kernels import mixture, separable

    found = separable.form(tuple(axes), tuple(shape))
    if found is None:
        return (
            f"rows of the axes {list(shape)} with a basis along {list(axes)}; these kernels take three, of up to"
            f" {separable.LONGEST} points, the first of {separable.CHANNELS} where each has a basis, and"
            f" {separable.LARGEST} numbers that belong together, padding included"
        )
    if whole and reference.product(mixture.row_block(found)) > separable.LARGEST:
        return f"rows of the axes {list(shape)}; this kernel takes up to {separable.LARGEST} numbers, padding included"
    return None


def _why_not_separable_apply(v: Tensor, *args: Any) -> str | None:
    return why_not_dtype("v", v) or why_not(v, "v") or _why_not_axes(False, *args[7:])


def _separable_apply(
    v: Tensor, center: Tensor | None, weights: Tensor | None, tau2: Tensor | None, region: Tensor | None,
    inward: bool, outward: bool, rest: bool, bases: Sequence[Tensor], axes: Sequence[int], shape: Sequence[int],
) -> Tensor:  # fmt: skip
    from ansn.kernels.separable import form, separable_apply

    found, v, region = form(tuple(axes), tuple(shape)), v.contiguous(), contiguous(region)
    assert found is not None
    return separable_apply(v, center, weights, tau2, region, inward, outward, rest, bases, found)


def _why_not_separable_step(x: Tensor, denoised: Tensor | None, f: Tensor | None, *args: Any) -> str | None:
    return _why_not_colored_step(x, denoised, f) or _why_not_axes(False, *args[5:8])


def _separable_step(
    x: Tensor, denoised: Tensor | None, f: Tensor | None, c: Tensor | None, a: Tensor | None, b: Tensor | None,
    deviation: Tensor, region: Tensor | None, bases: Sequence[Tensor], axes: Sequence[int], shape: Sequence[int],
    *counters: int,
) -> Tensor:  # fmt: skip
    from ansn.kernels.separable import form, separable_step

    terms = (contiguous(t) for t in (denoised, f, c, a, b))
    found = form(tuple(axes), tuple(shape))
    assert found is not None
    return separable_step(x.contiguous(), *terms, deviation, contiguous(region), bases, found, *counters)


def _why_not_mixture(x: Tensor, *args: Any) -> str | None:
    return why_not_dtype("x", x) or why_not(x) or _why_not_axes(True, *args[5:])


def _mixture(
    x: Tensor, center: Tensor, variances: Tensor, log_weights: Tensor, sigma2: Tensor, denoise: bool,
    bases: Sequence[Tensor], axes: Sequence[int], shape: Sequence[int],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    from ansn.kernels.mixture import mixture
    from ansn.kernels.separable import form

    found = form(tuple(axes), tuple(shape))
    assert found is not None
    return mixture(x.contiguous(), center, variances, log_weights, sigma2, denoise, bases, found)


_dispatch.register("separable_apply", "triton", _separable_apply, _why_not_separable_apply)
_dispatch.register("separable_step", "triton", _separable_step, _why_not_separable_step)
_dispatch.register("mixture", "triton", _mixture, _why_not_mixture)
_dispatch.register("colored_step", "triton", _colored_step, _why_not_colored_step)
_dispatch.register("dsm_loss", "triton", _dsm_loss, _why_not_dsm_loss)
_dispatch.register("apply_factor", "triton", _apply_factor, _why_not_apply_factor)
_dispatch.register("covariance_update_", "triton", _covariance_update_, _why_not_update)
