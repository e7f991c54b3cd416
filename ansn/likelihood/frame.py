"""Coordinates in which data and noise are both uncorrelated: the flow of a Gaussian stands still in them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ansn.covariance import AdaptiveCovariance


@dataclass(frozen=True)
class Frame:
    """``x = m + W c`` with ``W W^T = R`` and ``W diag(l) W^T = S``: noise of variance ``tau^2``, data of variance l.

    Attributes: ``mean`` m ``[d]``; ``out`` W and ``back`` its inverse, ``[d, d]``, or ``[d]`` for a diagonal
    structure; ``variances`` l ``[d]``; ``log_volume`` ``ln |det W|``, float64. The first four have one dtype.
    """

    mean: Tensor
    out: Tensor
    back: Tensor
    variances: Tensor
    log_volume: Tensor

    @classmethod
    def of(cls, covariance: AdaptiveCovariance, region: int, dtype: torch.dtype) -> Frame:
        """The frame of one region's snapshot. ``L^-1 S L^-T = Q diag(l) Q^T``, ``W = L Q``; made in float64."""
        factor = covariance.factor[region].double()
        s = covariance.covariance()[region].double()
        if factor.ndim == 1:
            variances, out, back = s / factor**2, factor, 1.0 / factor
        else:
            half = torch.linalg.solve(factor, s)
            whitened = torch.linalg.solve(factor, half.mT)
            variances, basis = torch.linalg.eigh((whitened + whitened.mT) / 2)
            out, back = factor @ basis, torch.linalg.solve(factor.mT, basis).mT
        mean = covariance.center[region].to(dtype)
        return cls(mean, out.to(dtype), back.to(dtype), variances.clamp_min(0).to(dtype), log_volume(factor))

    def outward(self, c: Tensor) -> Tensor:
        """``W c``, row by row, ``[..., d]``."""
        return c * self.out if self.out.ndim == 1 else c @ self.out.mT

    def inward(self, v: Tensor) -> Tensor:
        """``W^-1 v``, row by row, ``[..., d]``."""
        return v * self.back if self.back.ndim == 1 else v @ self.back.mT

    def dual(self, c: Tensor) -> Tensor:
        """``W^-T c``, row by row, ``[..., d]``: ``dual(a) . outward(b) = a . b``."""
        return c * self.back if self.back.ndim == 1 else c @ self.back

    def spread(self, tau: float) -> Tensor:
        """``s = sqrt(l + tau^2)``, the deviations of the perturbed data if it were Gaussian, ``[d]``."""
        return (self.variances + tau**2).sqrt()


def log_volume(factor: Tensor) -> Tensor:
    """``ln |det L|`` of one region's factor, ``[d, d]`` or ``[d]``, in float64; a frame's W is L and a rotation."""
    wide = factor.double()
    return wide.log().sum() if wide.ndim == 1 else torch.linalg.slogdet(wide)[1]
