"""The coloured step: draw, Langevin update, denoising and flow step in one operation (math section 3)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ansn.ops import _checks, _dispatch, reference
from ansn.ops.apply_factor import apply_factor


def _values(*args: Any) -> None:
    factor, region = args[6:8]
    if factor is not None:
        _checks.region_values(region, factor.shape[0])


_run = _dispatch.define(
    "colored_step(Tensor x, Tensor? denoised, Tensor? f, Tensor? c, Tensor? a, Tensor? b, Tensor? factor,"
    " Tensor? region, bool lower, SymInt seed, SymInt row, SymInt step, SymInt stream) -> Tensor",
    _values,
)
_dispatch.register("colored_step", "reference", reference.colored_step)


@torch.library.register_fake("ansn::colored_step")
def _(x: Tensor, *_args: Any) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


class _ColoredStep(_dispatch.Function):
    """Linear in x, D and f: the gradients are ``(1 - c) g``, ``c g`` and ``a L^T g``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, denoised: Tensor | None, f: Tensor | None, *args: Any) -> Tensor:
        c, a, _, factor, region, lower = args[:6]
        numbers = [None if isinstance(v, Tensor) else v for v in (c, a)]
        ctx.save_for_backward(*(v if isinstance(v, Tensor) else None for v in (c, a)), factor, region)
        ctx.numbers, ctx.lower, ctx.has_denoised, ctx.has_f = numbers, lower, denoised is not None, f is not None
        return _run(x, denoised, f, *args)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        g = grads[0].contiguous()
        *tensors, factor, region = ctx.saved_tensors
        c, a = (
            number if tensor is None else tensor.reshape(-1, 1).to(g.dtype)
            for number, tensor in zip(ctx.numbers, tensors, strict=True)
        )
        gx, gd, gf = g, None, None
        if ctx.has_denoised and c is not None:
            gd = g * c
            gx = g - gd
        if ctx.has_f and a is not None:
            gf = g if factor is None else apply_factor(g, factor, region, transpose=True, lower=ctx.lower)
            gf = gf * a
        return gx, gd, gf, *([None] * 10)


def colored_step(
    x: Tensor,
    denoised: Tensor | None = None,
    f: Tensor | None = None,
    *,
    c: float | Tensor | None = None,
    a: float | Tensor | None = None,
    b: float | Tensor | None = None,
    factor: Tensor | None = None,
    region: Tensor | None = None,
    lower: bool = True,
    seed: int = 0,
    row: int = 0,
    step: int = 0,
    stream: int = reference.PERTURB,
) -> Tensor:
    """``out = x + c (D - x) + L_k (a f + b z)``, row by row (math section 3).

    Args:
        x: ``[B, ...]``, float32, float64, bfloat16 or float16; trailing dimensions are flattened to ``d``.
        denoised: ``D``, shape of x; counts with ``c``.
        f: whitened prediction, shape of x; counts with ``a``.
        c, a, b: dimensionless coefficients, numbers or tensors ``[]`` or ``[B]``; None or 0 leaves the term out.
        factor: ``L``: None for the identity, ``[K, d]`` diagonal, ``[K, d, d]`` dense.
        region: int64 ``[B]``, which of the K factors each row uses; not looked at when K = 1.
        lower: a dense factor is lower triangular (its upper half holds zeros, and a back end may skip them).
        seed, row, step, stream: counters of the noise ``z`` (math section 7): row ``r`` of ``x`` draws the normals of
            ``(seed, row + r, step, stream)``, whatever the batch it sits in.

    Returns a new tensor, x's shape and dtype. Arithmetic is float32 (float64 for float64 input). A dense product of few
    rows may be torch's, by its own setting of precision: rows are then the same to rounding in another batch.
    Differentiable in x, denoised and f; ValueError where another would need a gradient. Raises TypeError or ValueError
    naming the argument.
    """
    _checks.batched("x", x)
    rows = x.shape[0]
    if denoised is not None:
        _checks.like("denoised", denoised, x)
    if f is not None:
        _checks.like("f", f, x)
    counters = _checks.counter(rows, seed, row, step, stream)
    flat = _checks.flat(x)
    if factor is not None:
        _checks.factor(factor, rows, flat.shape[1], region, x.device)
    terms: list[Any] = [_checks.term(name, value, rows, x) for name, value in (("c", c), ("a", a), ("b", b))]
    run = _ColoredStep.apply if _checks.needs_grad(x, denoised, f) else _run
    out = run(
        flat,
        None if denoised is None else _checks.flat(denoised),
        None if f is None else _checks.flat(f),
        *terms,
        factor,
        region,
        lower,
        *counters,
    )
    return out if x.ndim == 2 else out.reshape(x.shape)


def step_by(
    color: Callable[[Tensor], Tensor],
    x: Tensor,
    denoised: Tensor | None = None,
    f: Tensor | None = None,
    *,
    c: float | Tensor | None = None,
    a: float | Tensor | None = None,
    b: float | Tensor | None = None,
    **counters: Any,
) -> Tensor:
    """:func:`colored_step` with any root of R, ``color(z) = L z``, of operations that autograd follows."""
    if b is None and (f is None or a is None):
        return colored_step(x, denoised, c=c)
    zero = torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32))
    f = None if f is None else f.to(zero.dtype)
    pushed = color(colored_step(zero, f=f, a=a, b=b, **counters))
    return colored_step(x, denoised, pushed.to(x.dtype), c=c, a=1.0)
