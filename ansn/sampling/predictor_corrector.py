"""Predictor and corrector (Song et al. 2021, Algorithm 1): a step down to the next level, Langevin steps at it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ansn import ops
from ansn.denoiser import Denoiser
from ansn.sampling.common import Callback, NoiseSampler, StepNoise, bar, ladder, targets, tell

PREDICTORS = ("flow", "ancestral", "reverse")


@torch.no_grad()
def predictor_corrector(
    model: Denoiser,
    x: Tensor,
    taus: Tensor | None = None,
    *,
    predictor: str = "ancestral",
    corrections: int = 1,
    alpha: float = 0.2,
    region: Tensor | None = None,
    seed: int = 0,
    row: int = 0,
    noise_sampler: NoiseSampler | None = None,
    callback: Callback | None = None,
    progress: bool = False,
    **extra: Any,
) -> Tensor:
    r"""From each level to the next by a predictor, and ``corrections`` Langevin steps there; the last step, to
    tau = 0, is ``x <- D``. In whitened units, so that both have the perturbed density as their target::

        x <- x + c (D - x) + b L z                                              (predictor, table below)
        x <- x + (alpha / 2)(D - x) + tau' sqrt(alpha) L z                      (corrector)

    ============== ======================= ==========================================
    ``predictor``  c                       b
    ============== ======================= ==========================================
    ``flow``       ``1 - tau' / tau``      0
    ``ancestral``  ``1 - tau'^2 / tau^2``  ``tau' sqrt(1 - tau'^2 / tau^2)``
    ``reverse``    ``1 - tau'^2 / tau^2``  ``sqrt(tau^2 - tau'^2)`` (reverse diffusion)
    ============== ======================= ==========================================

    Args:
        corrections: Langevin steps a level, 0 or more.
        alpha: their dimensionless step, 0 < alpha < 4, as in :func:`ansn.sampling.annealed_langevin`. Song's
            signal-to-noise ratio r is ``alpha = 4 r^2 ||z||^2 / ||f||^2``, so his 0.16 is about 0.1 where f is as
            large as z; his ratio of norms over the batch would make a sample depend on its batch, and one of each
            row alone would bias the step.

    ``N + (N - 1) corrections`` evaluations; noise numbers count all steps of both kinds. ``x`` ``[B, *shape]``,
    ``taus`` ``[N]`` and the rest as in :func:`ansn.sampling.annealed_langevin`. Returns x's shape and dtype.
    """
    _check(predictor, corrections, alpha)
    taus = ladder(model, x, taus)
    following = targets(taus)
    shrink, spread = _predictor(predictor, taus, following)
    noise = StepNoise.of(model, region, seed, row, ops.REVERSE, noise_sampler)
    for i in bar(range(len(taus)), progress, "Predictor-corrector"):
        denoised = model(x, taus[i], region, **extra)
        tell(callback, i * (corrections + 1), taus[i], x, denoised)
        if i + 1 == len(taus):
            return denoised
        x = noise.step(x, i * (corrections + 1), spread[i], denoised=denoised, c=shrink[i])
        for number in range(i * (corrections + 1) + 1, (i + 1) * (corrections + 1)):
            denoised = model(x, following[i], region, **extra)
            tell(callback, number, following[i], x, denoised)
            x = noise.step(x, number, following[i] * alpha**0.5, denoised=denoised, c=0.5 * alpha)
    return x


def _predictor(name: str, taus: Tensor, following: Tensor) -> tuple[Tensor, Tensor]:
    """Coefficients c and b of every step, ``[N]`` each."""
    if name == "flow":
        return 1.0 - following / taus, torch.zeros_like(taus)
    shrink = 1.0 - (following / taus) ** 2
    return shrink, torch.sqrt(shrink) * (following if name == "ancestral" else taus)


def _check(predictor: str, corrections: int, alpha: float) -> None:
    if predictor not in PREDICTORS:
        raise ValueError(f"predictor: got {predictor!r}, expected one of {', '.join(PREDICTORS)}")
    if corrections < 0:
        raise ValueError(f"corrections: got {corrections}, expected 0 or more")
    if not 0 < alpha < 4:  # beyond it the step of a Gaussian diverges
        raise ValueError(f"alpha: got {alpha}, expected 0 < alpha < 4")
