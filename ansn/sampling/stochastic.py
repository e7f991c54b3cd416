"""Stochastic solvers: the flow with noise put back at every step, coloured as in training.

In whitened units each is the solver of isotropic diffusion; ``L`` enters with the noise alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ansn import ops
from ansn.denoiser import Denoiser
from ansn.sampling.common import Callback, NoiseSampler, StepNoise, bar, ladder, targets, tell, towards
from ansn.sampling.multistep import two_step_weights
from ansn.sampling.ode import heun_step, heun_weights


@torch.no_grad()
def dpmpp_2m_sde(
    model: Denoiser,
    x: Tensor,
    taus: Tensor | None = None,
    *,
    eta: float = 1.0,
    region: Tensor | None = None,
    seed: int = 0,
    row: int = 0,
    noise_sampler: NoiseSampler | None = None,
    callback: Callback | None = None,
    progress: bool = False,
    **extra: Any,
) -> Tensor:
    """SDE-DPM-Solver++(2M) (Lu et al. 2022, Algorithm 4; k-diffusion's midpoint form): D' as in
    :func:`ansn.sampling.dpmpp_2m`, ``h = ln(tau/tau')``::

        x <- x + (1 - exp(-(1 + eta) h))(D' - x) + tau' sqrt(1 - exp(-2 eta h)) L z

    ``eta``: noise, >= 0; 0 is the flow (DPM-Solver++(2M)), 1 the reverse diffusion. N evaluations.
    ``x`` ``[B, *shape]``, ``taus`` ``[N]`` and the rest as in :func:`ansn.sampling.annealed_langevin`; step i draws
    noise number i. Returns x's shape and dtype.
    """
    if not eta >= 0:
        raise ValueError(f"eta: got {eta}, expected >= 0")
    taus = ladder(model, x, taus)
    following, forward = targets(taus), two_step_weights(taus).unbind()
    shrink = 1.0 - (following / taus) ** (1.0 + eta)
    spread = following * torch.sqrt(1.0 - (following / taus) ** (2.0 * eta))
    noise = StepNoise.of(model, region, seed, row, ops.REVERSE, noise_sampler)
    before = None
    for i in bar(range(len(taus)), progress, "DPM-Solver++(2M) SDE"):
        denoised = model(x, taus[i], region, **extra)
        tell(callback, i, taus[i], x, denoised)
        if i + 1 == len(taus):
            return denoised
        ahead = denoised if before is None else towards(before, denoised, forward[i])
        x = noise.step(x, i, spread[i], denoised=ahead, c=shrink[i])
        before = denoised
    return x


@torch.no_grad()
def heun_churn(
    model: Denoiser,
    x: Tensor,
    taus: Tensor | None = None,
    *,
    s_churn: float = 10.0,
    s_min: float = 0.0,
    s_max: float = float("inf"),
    s_noise: float = 1.0,
    region: Tensor | None = None,
    seed: int = 0,
    row: int = 0,
    noise_sampler: NoiseSampler | None = None,
    callback: Callback | None = None,
    progress: bool = False,
    **extra: Any,
) -> Tensor:
    """Heun's method with churn (Karras et al. 2022, Algorithm 2). Before each step the level is raised to
    ``tau^ = (1 + gamma) tau``, ``gamma = min(s_churn / N, sqrt(2) - 1)``, by noise of its own::

        x^ = x + sqrt(tau^^2 - tau^2) s_noise L z,      then Heun's step from tau^ to tau'

    ``s_churn`` >= 0 (0 is :func:`ansn.sampling.heun`); ``s_min``, ``s_max``: the levels that are raised, data
    standard deviations; ``s_noise`` > 0, slightly above 1 against a denoiser that removes too much.
    2 N - 1 evaluations. ``x`` ``[B, *shape]``, ``taus`` ``[N]`` and the rest as in
    :func:`ansn.sampling.annealed_langevin`; step i draws noise number i. Returns x's shape and dtype.
    """
    for name, value in (("s_churn", s_churn), ("s_min", s_min), ("s_max", s_max)):
        if not value >= 0:
            raise ValueError(f"{name}: got {value}, expected >= 0")
    if not s_noise > 0:
        raise ValueError(f"s_noise: got {s_noise}, expected > 0")
    taus = ladder(model, x, taus)
    gamma = min(s_churn / len(taus), 2**0.5 - 1)
    raised = torch.where((taus >= s_min) & (taus <= s_max), (1.0 + gamma) * taus, taus)
    spread, weights = s_noise * torch.sqrt(raised**2 - taus**2), heun_weights(raised, targets(taus))
    noise = StepNoise.of(model, region, seed, row, ops.REVERSE, noise_sampler)
    for i in bar(range(len(taus)), progress, "Heun with churn"):
        if gamma > 0:
            x = noise.step(x, i, spread[i])
        denoised = model(x, raised[i], region, **extra)
        tell(callback, i, raised[i], x, denoised)
        if i + 1 == len(taus):
            return denoised
        x = heun_step(model, x, denoised, taus[i + 1], weights[i], region, extra)
    return x
