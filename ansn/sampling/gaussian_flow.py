r"""A multistep solver of the probability flow about the flow of Gaussian data, which it follows exactly.

In the eigenbasis that data and noise share, ``x = m + Q y`` with l the ratio of their variances (in each direction),
Gaussian data of the learned mean and covariance flows so that ``w = y / sqrt(l + tau^2)`` stands still. Any denoiser is
that of this data and a rest, ``D = m + A (x - m) + g`` with ``A = S (S + tau^2 R)^-1``, and its flow is::

    dw/du = - Q^T g / tau,      u = asinh(tau / sqrt(l))

A network under the Wiener skip gives ``g / tau`` up to a factor between the data's scale and itself. Exponential
integrators about a linear part that was learned from the data are those of DPM-Solver-v3 (Zheng et al. 2023); that the
Gaussian part goes far is Wang and Vastola's finding (2023).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ansn import ops
from ansn.denoiser import Denoiser
from ansn.sampling.common import Callback, bar, ladder, targets, tell


@torch.no_grad()
def gaussian_2m(
    model: Denoiser,
    x: Tensor,
    taus: Tensor | None = None,
    *,
    region: Tensor | None = None,
    callback: Callback | None = None,
    progress: bool = False,
    **extra: Any,
) -> Tensor:
    """Two-step Adams-Bashforth for ``q = Q^T g / tau`` in u, order 2: with ``h = u - u'`` in each direction::

        w <- w + h (q_i + h / (2 h_before) (q_i - q_{i-1})),      y = sqrt(l + tau'^2) w

    The first step is Euler's; the last goes to tau = 0 by the same rule and not by denoising, so that small directions
    keep their variance: Gaussian data is exact with any number of levels. Arguments as in
    :func:`ansn.sampling.euler`; N evaluations, four products with Q each. Needs no Wiener skip, only the covariance.
    """
    covariance, taus = model.noise.covariance, ladder(model, x, taus)
    basis, ratio = covariance.spectrum()
    which: Tensor | slice = slice(None) if region is None or covariance.regions == 1 else region
    mean = covariance.center[which].to(x.dtype).reshape(-1, *covariance.shape)
    # Where the data has no variance w is y / tau, and stays small.
    l = ratio[which].to(taus.dtype).clamp_min(1e-6 * taus[-1] ** 2)
    root, following = l.sqrt(), targets(taus)
    y, before, since = _turn(x - mean, basis, region, True), x, l

    for i in bar(range(len(taus)), progress, "Gaussian 2M"):
        denoised = model(x, taus[i], region, **extra)
        tell(callback, i, taus[i], x, denoised)
        here, there = l + taus[i] ** 2, l + following[i] ** 2
        q = (_turn(denoised - mean, basis, region, True) - (l / here) * y) / taus[i]
        h = torch.asinh(taus[i] / root) - torch.asinh(following[i] / root)
        ahead = q if i == 0 else q + h / (2.0 * since) * (q - before)
        y = there.sqrt() * (y / here.sqrt() + h * ahead)
        x = mean + _turn(y, basis, region, False).reshape(x.shape).to(x.dtype)
        before, since = q, h
    return x


def _turn(v: Tensor, basis: Tensor | None, region: Tensor | None, transpose: bool) -> Tensor:
    """``Q^T v`` or ``Q v``, ``[B, d]``."""
    flat = v.flatten(1)
    return flat if basis is None else ops.apply_factor(flat, basis, region, transpose=transpose, lower=False)
