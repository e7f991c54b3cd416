r"""A multistep solver of the probability flow about the flow of Gaussian data, which it follows exactly.

In the pencil's coordinates, ``x = m + B y``, noise has variance ``tau^2`` and data l, and Gaussian data of the learned
mean and covariance flows so that ``w = y / sqrt(l + tau^2)`` stands still. Any denoiser is that of this data and a
rest, ``D = m + A (x - m) + g`` with ``A = S (S + tau^2 R)^-1``, and its flow is::

    dw/du = - B^-1 g / tau,      u = asinh(tau / sqrt(l))

Under the Wiener skip ``g / tau`` is ``s G / sqrt(1 + tau^2)``, what the network gives. Exponential
integrators about a linear part that was learned from the data are those of DPM-Solver-v3 (Zheng et al. 2023); that the
Gaussian part goes far is Wang and Vastola's finding (2023).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ansn.denoiser import Denoiser
from ansn.ops import _checks
from ansn.sampling.common import Callback, bar, ladder, targets, tell


@torch.no_grad()
def gaussian_2m(
    model: Denoiser,
    x: Tensor,
    taus: Tensor | None = None,
    *,
    denoise: bool = False,
    region: Tensor | None = None,
    callback: Callback | None = None,
    progress: bool = False,
    **extra: Any,
) -> Tensor:
    """Two-step Adams-Bashforth for ``q = B^-1 g / tau`` in u, order 2: with ``h = u - u'`` in each direction::

        w <- w + h (q_i + h / (2 h_before) (q_i - q_{i-1})),      y = sqrt(l + tau'^2) w

    The first step is Euler's; the last goes to tau = 0 by the same rule, so that small directions keep their variance:
    Gaussian data is exact with any number of levels. ``denoise``: end with D instead, as the other solvers do; for
    posteriors, which meet their measurement by it, and for data of modes far narrower than the whole.

    Arguments else as in :func:`ansn.sampling.euler`; N evaluations, two products with B each besides the denoiser's.
    Needs no Wiener skip, only the covariance; compiling it needs one that keeps its pencil
    (:meth:`AdaptiveCovariance.track`).
    """
    covariance, taus = model.noise.covariance, ladder(model, x, taus)
    if x.shape[1:] != covariance.shape:
        raise ValueError(f"x: got shape {list(x.shape)}, expected [B, {', '.join(map(str, covariance.shape))}]")
    _checks.region(region, x.shape[0], covariance.regions, x.device)
    pencil, mean = covariance.pencil, covariance.mean_of(region, len(x)).to(x.dtype).reshape(x.shape)
    # Where the data has no variance sqrt(l) w stays small.
    l = (pencil.l if region is None else pencil.l[region]).to(taus.dtype).clamp_min(1e-6 * taus[-1] ** 2)
    root, following = l.sqrt(), targets(taus)
    y, before, since = pencil.inward(x - mean, region).flatten(1), x, l

    for i in bar(range(len(taus)), progress, "Gaussian 2M"):
        denoised = model(x, taus[i], region, **extra)
        tell(callback, i, taus[i], x, denoised)
        if denoise and i + 1 == len(taus):
            return denoised
        here, there = l + taus[i] ** 2, l + following[i] ** 2
        q = (pencil.inward(denoised - mean, region).flatten(1) - (l / here) * y) / taus[i]
        h = torch.asinh(taus[i] / root) - torch.asinh(following[i] / root)
        ahead = q if i == 0 else q + h / (2.0 * since) * (q - before)
        y = there.sqrt() * (y / here.sqrt() + h * ahead)
        x = mean + pencil.outward(y, region).reshape(x.shape).to(x.dtype)
        before, since = q, h
    return x
