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

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ansn.covariance import AdaptiveCovariance, Pencil
from ansn.denoiser import Denoiser
from ansn.ops import _checks
from ansn.sampling.common import Callback, bar, ladder, targets, tell

_SURE = 0.99  # probability of a region from which on a row follows it


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

    Where the noise model has a mixture, a row that starts in a region for certain (p above 0.99) follows that region's
    Gaussian, since there the mixture's flow is the region's; the others follow the Gaussian of the whole.

    ``x`` ``[B, *shape]`` and ``taus`` ``[N]`` as in :func:`ansn.sampling.euler`; N evaluations, three products with B
    each besides the denoiser's, with a mixture six. Returns x's shape and dtype.
    Needs no Wiener skip, only the covariance; compiling it needs one that keeps its pencil
    (:meth:`AdaptiveCovariance.track`).
    """
    covariance, taus = model.noise.covariance, ladder(model, x, taus)
    if x.shape[1:] != covariance.shape:
        raise ValueError(f"x: got shape {list(x.shape)}, expected [B, {', '.join(map(str, covariance.shape))}]")
    _checks.region(region, x.shape[0], covariance.regions, x.device)
    mixture, following, least = model.noise.mixture, targets(taus), 1e-6 * taus[-1] ** 2
    frames = [Frame.of(covariance, covariance.pencil, x, region, least)]
    sure = torch.zeros(len(x), *(1,) * (x.ndim - 1), dtype=torch.bool, device=x.device)
    if mixture is not None:
        share, likeliest = mixture.responsibilities(x, taus[0] * model.noise.deviation).max(1)
        sure = (share > _SURE).reshape(sure.shape)
        frames.append(Frame.of(mixture.covariance, mixture.pencil(model.noise.deviation), x, likeliest, least))
    before: list[tuple[Tensor, Tensor] | None] = [None] * len(frames)

    for i in bar(range(len(taus)), progress, "Gaussian 2M"):
        denoised = model(x, taus[i], region, **extra)
        tell(callback, i, taus[i], x, denoised)
        if denoise and i + 1 == len(taus):
            return denoised
        ahead = [f.ahead(x, denoised, taus[i], following[i], b) for f, b in zip(frames, before, strict=True)]
        before = [(q, taus[i]) for _, q in ahead]
        x = torch.where(sure, ahead[-1][0], ahead[0][0])
    return x


@dataclass(frozen=True)
class Frame:
    """Coordinates y in which Gaussian data of each row's region flows on its own: ``x = mean + B y``, ``[B, *shape]``,
    variances l ``[1 or B, d]``."""

    pencil: Pencil
    mean: Tensor
    region: Tensor | None
    l: Tensor

    @classmethod
    def of(
        cls, learned: AdaptiveCovariance, pencil: Pencil, x: Tensor, region: Tensor | None, least: Tensor
    ) -> Frame:
        """Of rows like x; l is at least ``least``, so that sqrt(l) w stays small where the data has no variance."""
        mean = learned.mean_of(region, len(x)).to(x.dtype).reshape(x.shape)
        l = (pencil.l if region is None else pencil.l[region]).to(least.dtype)
        return cls(pencil, mean, region, l.clamp_min(least))

    def rest(self, x: Tensor, denoised: Tensor, tau: Tensor) -> tuple[Tensor, Tensor]:
        """``q = B^-1 g / tau`` and y, ``[B, d]``."""
        y, clean = (self.pencil.inward(v - self.mean, self.region).flatten(1) for v in (x, denoised))
        return (clean - self.l / (self.l + tau**2) * y) / tau, y

    def ahead(
        self, x: Tensor, denoised: Tensor, tau: Tensor, to: Tensor, before: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor]:
        """x at level ``to``, and q here; ``before``: q at the level before, and that level."""
        q, y = self.rest(x, denoised, tau)
        h = self.time(tau, to)
        rate = q if before is None else q + h / (2.0 * self.time(before[1], tau)) * (q - before[0])
        y = (self.l + to**2).sqrt() * (y / (self.l + tau**2).sqrt() + h * rate)
        return self.mean + self.pencil.outward(y, self.region).reshape(x.shape).to(x.dtype), q

    def time(self, tau: Tensor, to: Tensor) -> Tensor:
        """``u - u'``, ``[1 or B, d]``."""
        root = self.l.sqrt()
        return torch.asinh(tau / root) - torch.asinh(to / root)
