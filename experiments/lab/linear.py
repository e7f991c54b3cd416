"""Langevin's chains on Gaussian data: linear maps of each direction; mean, variance and KL are recursions in float64.

Data ``N(0, S)`` and noise ``tau^2 R`` are diagonalised together, ``S = U diag(l) U^T``, ``R = U diag(r) U^T``. Arrays
broadcast, directions last.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def spectrum(kappa: float, dim: int) -> Array:
    """Eigenvalues of condition number kappa, log-spaced and descending, of mean 1: tau counts data deviations."""
    values = np.logspace(0.0, -np.log10(kappa), dim)
    return np.asarray(values / values.mean())


def kl(mean: Array, variance: Array, target: Array, weight: Array | float = 1.0) -> Array:
    """``KL(N(mean, v) || N(0, l)) = 1/2 sum_j (v/l - 1 - ln(v/l) + mean^2/l)``, nats; ``weight``: how many directions
    each stands for."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        share = variance / target
        each = share - 1.0 - np.log(share) + np.square(mean) / target
        return np.asarray(0.5 * (weight * each).sum(-1))


def langevin(mean: Array, variance: Array, total: Array, drift: Array, noise: Array, steps: int) -> tuple[Array, Array]:
    """``steps`` times ``x <- x - drift / (2 total) x + sqrt(noise) z``, ``total = l + tau^2 r``: in closed form.

    ``a = 1 - drift / (2 total)`` multiplies the mean, and ``v <- a^2 v + noise`` sums to a geometric series. With
    ``g = r`` (preconditioned) or ``g = 1`` (isotropic steps) ``drift = noise = alpha tau^2 g``; Algorithm 1 as printed
    has the drift ``alpha tau^2 sqrt(r)`` and the noise ``alpha tau^2``.
    """
    cut = 0.5 * drift / total
    if steps <= 8:
        keep = 1.0 - cut
        square = keep * keep
        for _ in range(steps):
            mean, variance = keep * mean, square * variance + noise
        return mean, variance
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        kept = (1.0 - cut) ** steps
        gone = cut * (2.0 - cut)  # 1 - a^2 without cancellation
        series = np.where(gone == 0.0, float(steps), (1.0 - kept**2) / np.where(gone == 0.0, 1.0, gone))
        return kept * mean, kept**2 * variance + noise * series


def annealed(
    mean: Array,
    variance: Array,
    l: Array,
    r: Array,
    taus: Array,
    steps: int,
    alpha: Any,
    g: Array | float | None = None,
) -> tuple[Array, Array]:
    """Annealed Langevin down ``taus`` ``[..., N]``, before the last denoising (:func:`denoised`). ``g``: eigenvalues of
    the Langevin noise's shape, by default r (preconditioned)."""
    g = r if g is None else g
    for i in range(taus.shape[-1]):
        square = np.square(taus[..., i, None])
        force = alpha * square * g
        mean, variance = langevin(mean, variance, l + square * r, force, force, steps)
    return mean, variance


def denoised(mean: Array, variance: Array, l: Array, r: Array, tau: Array) -> tuple[Array, Array]:
    """``x <- D(x, tau)``: both by ``w = l / (l + tau^2 r)``, the variance by its square."""
    w = l / (l + np.square(tau)[..., None] * r)
    return w * mean, np.square(w) * variance


def chain(reading: str, l: Array, r: Array, taus: Array, steps: int, alpha: float) -> tuple[Array, Array]:
    """Mean and variance of every direction that annealed Langevin ends with, from ``N(m, tau_1^2 I)``, no denoising.

    ``reading``: ``shaped`` (steps of the noise's own shape), ``printed`` (Algorithm 1 with the whitened output f of a
    symmetric root), ``inverse`` (with ``D - x~``, the best output of Eq. 3.1 with the inverse), ``variance`` (a network
    trained with noise of variance sigma where the sampler takes sigma for the deviation).
    """
    mean, variance = np.zeros_like(l), np.full_like(l, taus[0] ** 2)
    if reading == "shaped":
        return annealed(mean, variance, l, r, taus, steps, alpha)
    for tau in taus:
        total, noise = l + tau**2 * r, np.full_like(l, alpha * tau**2)
        drift = {"printed": noise * np.sqrt(r), "inverse": noise * tau * r, "variance": noise}[reading]
        mean, variance = langevin(mean, variance, l + tau * r if reading == "variance" else total, drift, noise, steps)
    return mean, variance
