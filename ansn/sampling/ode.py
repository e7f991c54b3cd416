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

    ``x`` ``[B, *shape]`` is perturbed at ``taus[0]`` (:meth:`NoiseModel.prior`); ``taus`` decreasing ``[N]``, the
    noise model's ladder by default.
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

    Arguments as in :func:`euler`; 2 N - 1 evaluations.
    """
    taus = ladder(model, x, taus)
    for i in bar(range(len(taus)), progress, "Heun"):
        denoised = model(x, taus[i], region, **extra)
        tell(callback, i, taus[i], x, denoised)
        if i + 1 == len(taus):
            x = denoised
        else:
            step = taus[i + 1] - taus[i]
            slope = (x - denoised) / taus[i]
            guess = x + step * slope
            slope_there = (guess - model(guess, taus[i + 1], region, **extra)) / taus[i + 1]
            x = x + step * 0.5 * (slope + slope_there)
    return x
