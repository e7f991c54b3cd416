"""What a denoiser is before its network has learned, and what else the network may see (math sections 4 and 12).

A skip is a function ``(noise, x, tau, region, mean)`` that returns an estimate of the clean data, x's shape and dtype;
an input a function of :class:`Seen` that returns a tensor of the data's shape, of order one. To add one, decorate it
with :func:`skip` or :func:`further_input`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from ansn.noise import NoiseModel


@dataclass(frozen=True)
class Seen:
    """What an input is made of: noisy data ``[B, *shape]``, ``tau`` ``[B]``, region int64 ``[B]`` or None, the data's
    mean and deviation (they broadcast against x), and the skip's estimate."""

    noise: NoiseModel
    x: Tensor
    tau: Tensor
    region: Tensor | None
    mean: Tensor
    scale: Tensor
    estimate: Tensor


Estimate = Callable[["NoiseModel", Tensor, Tensor, "Tensor | None", Tensor], Tensor]


@dataclass(frozen=True)
class Skip:
    """``estimate`` and, for ``--help``, a ``summary``."""

    estimate: Estimate
    summary: str


SKIPS: dict[str, Skip] = {}
INPUTS: dict[str, Callable[[Seen], Tensor]] = {}


def skip(summary: str) -> Callable[[Estimate], Estimate]:
    """Make an estimate known under its function's name."""

    def known(function: Estimate) -> Estimate:
        SKIPS[function.__name__] = Skip(function, summary)
        return function

    return known


def further_input(function: Callable[[Seen], Tensor]) -> Callable[[Seen], Tensor]:
    """Make an input known under its function's name."""
    INPUTS[function.__name__] = function
    return function


def column(tau: Tensor, x: Tensor) -> Tensor:
    """``[B]`` as ``[B, 1, ...]`` of x's dtype."""
    return tau.to(x.dtype).reshape((-1,) + (1,) * (x.ndim - 1))


@skip("EDM's, alike in every direction")
def scalar(noise: NoiseModel, x: Tensor, tau: Tensor, region: Tensor | None, mean: Tensor) -> Tensor:
    """``m + (x~ - m) / (1 + tau^2)`` (Karras et al. 2022, Table 1), in units where the data has unit variance."""
    wide = column(tau, x)
    return mean + (x - mean) / (1.0 + wide * wide)


@skip("the best denoiser of Gaussian data")
def wiener(noise: NoiseModel, x: Tensor, tau: Tensor, region: Tensor | None, mean: Tensor) -> Tensor:
    """``m + S (S + tau^2 R)^-1 (x~ - m)``."""
    return noise.covariance.filter(x, tau, region, center=noise.covariance.center)


@skip("the best denoiser of a mixture of Gaussians, one for each region")
def mixture(noise: NoiseModel, x: Tensor, tau: Tensor, region: Tensor | None, mean: Tensor) -> Tensor:
    """:meth:`ansn.Mixture.denoise` of the regions that the noise model knows, under its isotropic noise."""
    assert noise.mixture is not None
    return noise.mixture.denoise(x, tau * noise.deviation)


@further_input
def estimate(seen: Seen) -> Tensor:
    """``(D_skip - m) / s``."""
    return (seen.estimate - seen.mean) / seen.scale
