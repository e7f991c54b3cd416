"""Denoising score matching: weighted squared error and its gradient in one pass, z regenerated from its counter."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ansn.ops import _checks, _dispatch, reference

_run = _dispatch.define(
    "dsm_loss(Tensor prediction, Tensor? target, Tensor weight, SymInt seed, SymInt row, SymInt step, SymInt stream)"
    " -> (Tensor, Tensor)"
)
_dispatch.register("dsm_loss", "reference", reference.dsm_loss)


@torch.library.register_fake("ansn::dsm_loss")
def _(prediction: Tensor, target: Tensor | None, *_args: Any) -> tuple[Tensor, Tensor]:
    loss = prediction.new_empty(prediction.shape[:1], dtype=reference.compute_dtype(prediction, target))
    return loss, torch.empty_like(prediction, memory_format=torch.contiguous_format)


def _is_one(scale: Tensor) -> bool:
    """Whether it is the mean itself that is differentiated: the gradient is then right as it is, and a pass is saved
    that takes longer than the operation. Only where a look is free: on a GPU it would wait, and a graph has no values.
    """
    if torch.compiler.is_compiling() or type(scale) is not Tensor or not scale.is_cpu or _checks.transformed():
        return False
    return scale.ndim == 0 and float(scale) == 1.0


class _DsmLoss(_dispatch.Function):
    """The gradient is made in the forward pass, that of the mean with the mean's share already in it; where it is
    differentiated itself, again and in plain torch."""

    @staticmethod
    def forward(
        ctx: Any, prediction: Tensor, target: Tensor | None, weight: float | Tensor, mean: bool, *counter: int
    ) -> Tensor:
        if mean:
            weight = weight / max(prediction.shape[0], 1)
        loss, gradient = _run(prediction, target, weight, *counter)
        known = weight if isinstance(weight, Tensor) else None
        ctx.save_for_backward(gradient, prediction, target, known)
        ctx.number, ctx.counter = None if known is weight else weight, counter
        return loss.sum() if mean else loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        gradient, prediction, target, weight = ctx.saved_tensors
        # What is compiled has no second derivative.
        again = torch.is_grad_enabled() and not torch.compiler.is_compiling()
        if again:
            if weight is None:
                weight = torch.tensor(ctx.number, dtype=torch.float64, device=prediction.device)
            gradient = reference.dsm_loss(prediction, target, weight, *ctx.counter)[1]
        if again or not _is_one(grads[0]):
            # In the loss's precision: a loss scale alone may be more than float16 holds.
            gradient = (gradient * grads[0].reshape(-1, 1)).to(gradient.dtype)
        return gradient, *([None] * 7)


def dsm_loss(
    prediction: Tensor,
    target: Tensor | None = None,
    *,
    weight: float | Tensor = 1.0,
    reduction: str = "none",
    seed: int = 0,
    row: int = 0,
    step: int = 0,
    stream: int = reference.PERTURB,
) -> Tensor:
    """``loss_r = w_r ||p_r - t_r||^2 / d`` for each row (math section 4).

    Args:
        prediction: ``[B, ...]``, any float dtype, flattened to ``[B, d]``: the denoised x, or the whitened ``f``.
        target: prediction's shape, data, which may not require grad. None: ``t = -z``, regenerated from the counters
            with which :func:`ansn.ops.colored_step` drew it, which gives ``w ||f + z||^2 / d``.
        weight: number or tensor ``[]`` or ``[B]``, dimensionless.
        reduction: ``"none"``, or ``"mean"`` over the rows (0 of none), whose gradient needs no second pass where the
            loss itself is differentiated.
        seed, row, step, stream: counters of ``z`` (math section 7).

    Returns ``[B]``, or ``[]`` for the mean, float32 (float64 for float64 input); differentiable in ``prediction``.
    Raises TypeError or ValueError naming the argument.
    """
    if reduction not in ("none", "mean"):
        raise ValueError(f"reduction: got {reduction!r}, expected 'none' or 'mean'")
    _checks.batched("prediction", prediction)
    if target is not None:
        _checks.like("target", target, prediction, "prediction")
        _checks.without_gradient(target=target)
    rows = prediction.shape[0]
    counters = _checks.counter(rows, seed, row, step, stream)
    w = _checks.term("weight", weight, rows, prediction)
    if w is None:
        raise ValueError(f"weight: got {weight}, expected a number or tensor that is not zero")
    flat = _checks.flat(prediction)
    flat_target = None if target is None else _checks.flat(target)
    if not _checks.needs_grad(flat):
        loss = _run(flat, flat_target, w, *counters)[0]
        return loss.sum() / max(rows, 1) if reduction == "mean" else loss
    # float16 may not hold a gradient that has the mean's share but not yet the loss scale.
    fused = reduction == "mean" and flat.dtype != torch.float16
    loss = _DsmLoss.apply(flat, flat_target, w, fused, *counters)
    return loss.sum() / max(rows, 1) if reduction == "mean" and not fused else loss
