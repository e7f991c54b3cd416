"""The diagonal structure: variances of the coordinates, d numbers; the per-pixel control."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ansn import ops
from ansn.covariance.moments import Basis, Moments
from ansn.covariance.pencil import Pencil
from ansn.covariance.structure import Structure, register


class DiagonalPencil(Pencil):
    """The basis is the coordinates' own, so a step is one kernel."""

    def noise_shape(self) -> Tensor:
        """Variances of R, float64 ``[K, d]``."""
        return self.deviation.double().square()

    def step(self, x: Tensor, denoised: Tensor | None = None, f: Tensor | None = None, **options: Any) -> Tensor:
        """``x + c (D - x) + L (a f + b z)``; arguments as of :func:`ansn.ops.colored_step`."""
        return ops.colored_step(x, denoised, f, factor=self.deviation, **options)


@register
class Diagonal(Structure):
    """``S = diag(lambda)``, scatter ``[K, d]``. Its roots are one."""

    name = "diagonal"
    summary = "variances of the coordinates, d numbers; the per-pixel control"
    roots = ("basis", "symmetric", "cholesky")
    pencil = DiagonalPencil
    directed = False

    def turn(self, v: Tensor, basis: Basis, region: Tensor | None, inverse: bool) -> Tensor:
        return v

    def by_axes(self, basis: Basis, like: Tensor) -> ops.Axes:
        return ops.Axes((), (), self.shape)

    def squares(self, values: Tensor, basis: Basis) -> Tensor:
        return values

    def guess(self, value: Tensor) -> Tensor:
        return value.diagonal().clone() if value.ndim == 2 else value.expand(self.dim).clone()

    def covariance(self, moments: Moments, warm: Tensor, initial: Tensor) -> Tensor:
        """Variances, ``[K, d]``."""
        return self.spectrum(moments, {}, True, warm, initial)[1]

    def update(self, moments: Moments, x: Tensor, region: Tensor | None, decay: float) -> None:
        moments.fused(x, region, decay)


def isotropic(scale: Tensor, shape: tuple[int, ...]) -> Pencil:
    """The pencil of ``S = R = s^2 I``, s ``[K]``."""
    variances = scale.square().unsqueeze(1).expand(-1, torch.Size(shape).numel())
    out = DiagonalPencil(Diagonal(shape), len(scale), "basis", scale.dtype, scale.device)
    out.install({}, variances, torch.ones_like(variances))
    return out
