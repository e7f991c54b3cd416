"""Solvers of the probability flow ``dx/dtau = (x - D)/tau`` (math section 3): Euler and Heun."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ansn.denoiser import Denoiser
from ansn.sampling.common import Callback, bar, ladder, targets, tell, towards


@torch.no_grad()
def euler(
    model: Denoiser,
    x: Tensor,
    taus: Tensor | None = None,
    *,
    region: Tensor | None = None,
    callback: Callback | None = None,
    progress: bool = False,
    **extra: Any,
) -> Tensor:
    """Euler's method, order 1: ``x <- x + (1 - tau'/tau)(D - x)``; one evaluation a level, the last step goes to
    tau = 0.

    ``x`` ``[B, *shape]`` is perturbed at ``taus[0]`` (:meth:`NoiseModel.prior`); ``taus`` ``[N]`` decreasing, data
    standard deviations, the noise model's ladder by default; ``region`` int64 ``[B]``. Returns x's shape and dtype.
    """
    taus = ladder(model, x, taus)
    shrink = (1.0 - targets(taus) / taus).unbind()
    for i, tau in enumerate(bar(taus.unbind(), progress, "Euler")):
        denoised = model(x, tau, region, **extra)
        tell(callback, i, tau, x, denoised)
        x = towards(x, denoised, shrink[i])
    return x


@torch.no_grad()
def heun(
    model: Denoiser,
    x: Tensor,
    taus: Tensor | None = None,
    *,
    region: Tensor | None = None,
    callback: Callback | None = None,
    progress: bool = False,
    **extra: Any,
) -> Tensor:
    """Heun's method, order 2 (Karras et al. 2022, Algorithm 1): two evaluations a level but one at the last, which
    goes to tau = 0.

    ``x`` ``[B, *shape]`` and ``taus`` ``[N]`` as in :func:`euler`; 2 N - 1 evaluations. Returns x's shape and dtype.
    """
    taus = ladder(model, x, taus)
    levels, weights = taus.unbind(), heun_weights(taus, targets(taus))
    for i, tau in enumerate(bar(levels, progress, "Heun")):
        denoised = model(x, tau, region, **extra)
        tell(callback, i, tau, x, denoised)
        if i + 1 == len(taus):
            return denoised
        x = heun_step(model, x, denoised, levels[i + 1], weights[i], region, extra)
    return x


def heun_weights(taus: Tensor, following: Tensor) -> list[tuple[Tensor, ...]]:
    """``c = 1 - tau'/tau``, ``c / 2`` and ``2 tau' / (c tau)`` of each step ``tau -> tau'``, ``[N]``."""
    c = 1.0 - following / taus
    return list(zip(c.unbind(), (0.5 * c).unbind(), (2.0 * following / (c * taus)).unbind(), strict=True))


def heun_step(
    model: Denoiser,
    x: Tensor,
    denoised: Tensor,
    following: Tensor,
    weights: tuple[Tensor, ...],
    region: Tensor | None,
    extra: dict[str, Any],
) -> Tensor:
    """From x to level ``following``: half of the step along the slope here, half along that at Euler's guess; weights
    of :func:`heun_weights`."""
    c, half, divisor = weights
    guess = towards(x, denoised, c)
    change = model(guess, following, region, **extra) - guess
    return torch.addcdiv(towards(x, denoised, half), change, divisor)
