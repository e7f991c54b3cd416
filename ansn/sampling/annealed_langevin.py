"""Annealed Langevin dynamics: corrected, and Algorithm 1 of the paper as printed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ansn import ops
from ansn.denoiser import Denoiser
from ansn.sampling.common import Callback, NoiseSampler, StepNoise, bar, ladder, tell

CONVENTIONS = ("paper", "ncsn")


@torch.no_grad()
def annealed_langevin(
    model: Denoiser,
    x: Tensor,
    taus: Tensor | None = None,
    *,
    steps: int = 100,
    eps: float | None = None,
    convention: str = "paper",
    precondition: bool = True,
    denoise: bool = True,
    region: Tensor | None = None,
    seed: int = 0,
    row: int = 0,
    noise_sampler: NoiseSampler | None = None,
    callback: Callback | None = None,
    progress: bool = False,
    **extra: Any,
) -> Tensor:
    r"""Algorithm 1, corrected: Langevin steps at each level under the training noise's own shape (math section 3).

    With the dimensionless step ``alpha = eps / tau_N^2`` (the paper's ``alpha_i = eps sigma_i^2 / sigma_L^2`` is
    ``alpha tau_i^2``)::

        x <- x + (alpha / 2) (D - x) + tau_i sqrt(alpha) L z                                (precondition=True)
        x <- x + (alpha / 2) tau_i^2 p score + tau_i sqrt(alpha p) z, p = min eig R         (precondition=False)

    Both have the perturbed density as their target; the isotropic one must keep its step under the narrowest
    direction of R.
    At R = I they agree.

    Args:
        x: start ``[B, *shape]``, whose shape and dtype the result has.
        taus: decreasing ``[N]``, data standard deviations; by default the noise model's ladder.
        steps: T, steps a level.
        eps: the paper's step size; None for ``0.2 tau_N^2``, which its numbers (2e-5 at 0.01) are.
        convention: ``"paper"`` is the above, ``"ncsn"`` drift ``alpha`` and noise ``sqrt(2 alpha)``: twice the
            step for the same eps.
        denoise: finish with ``x <- D(x, tau_N)`` (Technique 3 of NCSNv2's appendix); the printed algorithm does not.
        region: int64 ``[B]``. seed, row: row r of x draws the noise of ``(seed, row + r, step)``.
        noise_sampler: replaces that draw; see :data:`ansn.sampling.NoiseSampler`.
    """
    taus = ladder(model, x, taus)
    alpha = _alpha(eps, taus, steps) * _convention(convention)
    covariance = model.noise.covariance
    isotropic = 1.0 if precondition else covariance.eigenvalues()[:, 0].min().to(taus)
    noise = StepNoise(covariance if precondition else None, region, seed, row, ops.LANGEVIN, noise_sampler)
    for i in bar(range(len(taus)), progress, "Langevin"):
        tau = taus[i]
        for t in range(steps):
            number = i * steps + t
            spread = tau * torch.sqrt(alpha * isotropic)
            if precondition and model.prediction == "denoiser":
                denoised = model(x, tau, region, **extra)
                drift: dict[str, Any] = {"denoised": denoised, "c": 0.5 * alpha}
                tell(callback, number, tau, x, denoised)
            else:
                f = model.f(x, tau, region, **extra)
                if precondition:
                    drift = {"f": f, "a": 0.5 * alpha * tau}
                else:
                    score = covariance.whiten(f, region, transpose=True) / tau
                    drift = {"f": score, "a": 0.5 * spread**2}
                if callback is not None:
                    tell(callback, number, tau, x, model.denoised_from(x, tau, region, f))
            x = noise.step(x, number, spread, **drift)
    return model(x, taus[-1], region, **extra) if denoise else x


@torch.no_grad()
def algorithm_1(
    model: Denoiser,
    x: Tensor,
    taus: Tensor | None = None,
    *,
    steps: int = 100,
    eps: float = 2e-5,
    literal: bool = False,
    region: Tensor | None = None,
    seed: int = 0,
    row: int = 0,
    noise_sampler: NoiseSampler | None = None,
    callback: Callback | None = None,
    progress: bool = False,
    **extra: Any,
) -> Tensor:
    """Algorithm 1 of the paper as printed, but for its ``return x_T = 0``::

        x <- x + alpha_i / (2 sigma_i) s_theta(x) + sqrt(alpha_i) z,   alpha_i = eps sigma_i^2 / sigma_L^2

    ``s_theta`` is the whitened prediction f. The noise is isotropic and nothing denoises at the end: this samples the
    right density only when the training noise was isotropic with R = I. ``literal``: ``s_theta`` is what minimises
    Eq. 3.1 as printed, ``Sigma score = D - x~``. That pair samples at the temperature 1 / sigma and, for R = S, without
    the data's shape (docs/errata.md, the literal pair). ``x`` ``[B, *shape]``, ``taus`` ``[N]`` and the rest as in
    :func:`annealed_langevin`. Returns x's shape and dtype.
    """
    taus = ladder(model, x, taus)
    alpha = _alpha(eps, taus, steps)
    noise = StepNoise(None, None, seed, row, ops.LANGEVIN, noise_sampler)
    for i in bar(range(len(taus)), progress, "Algorithm 1"):
        sigma = taus[i]
        for t in range(steps):
            drift: dict[str, Any]
            if literal:
                denoised = model(x, sigma, region, **extra)
                drift = {"denoised": denoised, "c": 0.5 * alpha * sigma}
                tell(callback, i * steps + t, sigma, x, denoised)
            else:
                f = model.f(x, sigma, region, **extra)
                drift = {"f": f, "a": 0.5 * alpha * sigma}
                if callback is not None:
                    tell(callback, i * steps + t, sigma, x, model.denoised_from(x, sigma, region, f))
            x = noise.step(x, i * steps + t, sigma * torch.sqrt(alpha), **drift)
    return x


def _alpha(eps: float | None, taus: Tensor, steps: int) -> Tensor:
    if steps < 1:
        raise ValueError(f"steps: got {steps}, expected at least 1 a level")
    if eps is not None and not eps > 0:
        raise ValueError(f"eps: got {eps}, expected > 0")
    return torch.full_like(taus[-1], 0.2) if eps is None else eps / taus[-1] ** 2


def _convention(name: str) -> float:
    if name not in CONVENTIONS:
        raise ValueError(f"convention: got {name!r}, expected one of {', '.join(CONVENTIONS)}")
    return 2.0 if name == "ncsn" else 1.0
