"""Samplers on Gaussian data: linear maps of each direction, so mean, variance and KL are recursions in float64.

Data ``N(0, S)`` and noise ``tau^2 R`` are diagonalised together, ``S = U diag(l) U^T``, ``R = U diag(r) U^T``: samplers
are equivariant under U, and the KL invariant, so a shape is nothing but its *effective spectrum* ``l / r``. Arrays
broadcast, directions last.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Flow = Callable[[Array, Array], Array]


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


def euler(l: Array, taus: Array) -> Array:
    """What Euler's method multiplies the start by, ``[..., d]``; r = 1, so ``l`` is the effective spectrum; ``taus``
    ``[..., N]``. N evaluations, the last step goes to 0."""
    out = np.ones(())
    for i in range(taus.shape[-1]):
        tau, ahead = taus[..., i, None], _ahead(taus, i)
        out = out * (1.0 - (1.0 - ahead / tau) * _away(l, tau))
    return out


def heun(l: Array, taus: Array) -> Array:
    """The same of Heun's method; 2 N - 1 evaluations."""
    out = np.ones(())
    for i in range(taus.shape[-1]):
        tau, ahead = taus[..., i, None], _ahead(taus, i)
        away = _away(l, tau)
        if i + 1 == taus.shape[-1]:
            return out * (1.0 - away)
        step = ahead - tau
        slope = away / tau
        there = (1.0 + step * slope) * _away(l, ahead) / ahead
        out = out * (1.0 + 0.5 * step * (slope + there))
    return out


def dpmpp_2m(l: Array, taus: Array) -> Array:
    """The same of DPM-Solver++(2M); N evaluations."""
    out, before = np.ones(()), np.zeros(())
    logs = -np.log(taus)
    for i in range(taus.shape[-1]):
        tau, ahead = taus[..., i, None], _ahead(taus, i)
        value = out * (1.0 - _away(l, tau))
        if i + 1 == taus.shape[-1]:
            return value
        forward = value
        if i > 0:
            ratio = (logs[..., i + 1] - logs[..., i]) / (2.0 * (logs[..., i] - logs[..., i - 1]))
            forward = value + ratio[..., None] * (value - before)
        out = out + (1.0 - ahead / tau) * (forward - out)
        before = value
    return out


FLOWS: dict[str, Flow] = {"euler": euler, "heun": heun, "dpmpp_2m": dpmpp_2m}


def evaluations(method: str, levels: int) -> int:
    """Of the network, for so many levels."""
    return 2 * levels - 1 if method == "heun" else levels


def ladder(top: Array, bottom: Array, n: int, exponent: Array) -> Array:
    """``[..., n]`` levels, even in ``tau^(1/exponent)``; infinity is geometric, as are the samplers' schedules."""
    top, bottom, exponent = np.broadcast_arrays(top, bottom, exponent)
    if n == 1:
        return np.asarray(top[..., None], dtype=np.float64)
    ramp = np.linspace(0.0, 1.0, n)
    logs = np.exp(np.log(top)[..., None] * (1.0 - ramp) + np.log(bottom)[..., None] * ramp)
    power = np.where(np.isinf(exponent), 1.0, exponent)[..., None]
    ends = top[..., None] ** (1.0 / power), bottom[..., None] ** (1.0 / power)
    bent = (ends[0] + ramp * (ends[1] - ends[0])) ** power
    return np.where(np.isinf(exponent)[..., None], logs, bent)


def _away(l: Array, tau: Array) -> Array:
    """``1 - D/x = tau^2 / (l + tau^2)``."""
    square = np.square(tau)
    return np.asarray(square / (l + square))


def _ahead(taus: Array, i: int) -> Array:
    return taus[..., i + 1, None] if i + 1 < taus.shape[-1] else np.zeros_like(taus[..., i, None])
