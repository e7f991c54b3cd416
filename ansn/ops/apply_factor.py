"""Products and solves with a factor: colour (``L v``), whiten (``L^-1 v``) and their transposes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ansn.ops import _checks, _dispatch, reference

_run = _dispatch.define(
    "apply_factor(Tensor v, Tensor factor, Tensor? region, bool transpose, bool inverse, bool lower) -> Tensor",
    lambda v, factor, region, *_: _checks.region_values(region, factor.shape[0]),
)
_dispatch.register("apply_factor", "reference", reference.apply_factor)


@torch.library.register_fake("ansn::apply_factor")
def _(v: Tensor, *_args: Any) -> Tensor:
    return torch.empty_like(v, memory_format=torch.contiguous_format)


class _ApplyFactor(_dispatch.Function):
    """The adjoint of a product with ``A`` is the product with ``A^T``; the factor is data and has no gradient."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, factor: Tensor, region: Tensor | None, *flags: bool) -> Tensor:
        ctx.save_for_backward(factor, region)
        ctx.flags = flags
        return _run(v, factor, region, *flags)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        factor, region = ctx.saved_tensors
        transpose, inverse, lower = ctx.flags
        out = _applied(grads[0].contiguous(), factor, region, not transpose, inverse, lower)
        return out, None, None, None, None, None


def _applied(v: Tensor, *args: Any) -> Tensor:
    run = _ApplyFactor.apply if _checks.needs_grad(v) else _run
    return run(v, *args)


def apply_factor(
    v: Tensor,
    factor: Tensor,
    region: Tensor | None = None,
    *,
    transpose: bool = False,
    inverse: bool = False,
    lower: bool = True,
) -> Tensor:
    """``A_k v`` for each row, where A is ``L``, ``L^T``, ``L^-1`` or ``L^-T``.

    ``v`` is ``[B, ...]`` (trailing dimensions flattened), ``factor`` ``[K, d, d]`` or ``[K, d]`` (diagonal),
    ``region`` int64
    ``[B]``. ``lower``: a dense factor is lower triangular. Returns v's shape and dtype; differentiable in v alone.
    Raises TypeError or ValueError naming the argument.
    """
    _checks.batched("v", v)
    flat = _checks.flat(v)
    _checks.factor(factor, v.shape[0], flat.shape[1], region, v.device)
    out = _applied(flat, factor, region, transpose, inverse, lower)
    return out if v.ndim == 2 else out.reshape(v.shape)
