"""What a denoiser is before its network has learned, and what else the network may see (math sections 4 and 12).

A skip is a function of :class:`Seen` that returns an estimate of the clean data, x's shape and dtype; an input one that
returns a tensor of the data's shape, of order one. To add one, decorate it with :func:`skip` or :func:`further_input`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ansn.noise import NoiseModel


@dataclass
class Seen:
    """What skips and inputs are made of.

    Given: noisy data x ``[B, *shape]``, ``tau`` ``[B]``, region int64 ``[B]`` or None, the data's mean and deviation,
    ``[B or 1, *shape]`` and ``[B or 1, 1, ...]``, and ``level`` ``[B]``, the noise's deviation over the data's: tau,
    unless R is given. Made of these: ``centered`` is ``x - mean``; ``tau_column`` the level as ``[B, 1, ...]``,
    ``variance`` ``v^2 = 1 + level^2`` and ``deviation`` v as columns, too; ``noisy`` what every network sees, ``(x -
    mean) / (v scale)``. ``estimate``: the skip's; an input may read it.
    """

    noise: NoiseModel
    x: Tensor
    tau: Tensor
    region: Tensor | None
    mean: Tensor
    scale: Tensor
    level: Tensor
    estimate: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.centered = self.x - self.mean
        self.tau_column = column(self.level, self.x)
        self.variance = 1.0 + self.tau_column * self.tau_column
        self.deviation = torch.sqrt(self.variance)
        self.noisy = self.centered / (self.deviation * self.scale)


Maker = Callable[[Seen], Tensor]


@dataclass(frozen=True)
class Skip:
    """``estimate`` and, for ``--help``, a ``summary``."""

    estimate: Maker
    summary: str


SKIPS: dict[str, Skip] = {}
INPUTS: dict[str, Maker] = {}


def skip(summary: str) -> Callable[[Maker], Maker]:
    """Make an estimate known under its function's name."""

    def known(function: Maker) -> Maker:
        SKIPS[function.__name__] = Skip(function, summary)
        return function

    return known


def further_input(function: Maker) -> Maker:
    """Make an input known under its function's name."""
    INPUTS[function.__name__] = function
    return function


def column(tau: Tensor, x: Tensor) -> Tensor:
    """``[B]`` as ``[B, 1, ...]`` of x's dtype."""
    return tau.to(x.dtype).reshape((-1,) + (1,) * (x.ndim - 1))


@skip("EDM's, alike in every direction")
def scalar(seen: Seen) -> Tensor:
    """``m + (x~ - m) / (1 + tau^2)`` (Karras et al. 2022, Table 1), in units where the data has unit variance."""
    return torch.addcdiv(seen.mean, seen.centered, seen.variance)


@skip("the best denoiser of Gaussian data")
def wiener(seen: Seen) -> Tensor:
    """``m + S (S + tau^2 R)^-1 (x~ - m)``."""
    covariance = seen.noise.covariance
    return covariance.filter(seen.x, seen.tau, seen.region, center=covariance.center)


@skip("the best denoiser of a mixture of Gaussians, one for each region")
def mixture(seen: Seen) -> Tensor:
    """:meth:`ansn.Mixture.denoise` of the regions that the noise model knows, under its isotropic noise."""
    assert seen.noise.mixture is not None
    return seen.noise.mixture.denoise(seen.x, seen.tau * seen.noise.deviation)


@further_input
def estimate(seen: Seen) -> Tensor:
    """``(D_skip - m) / s``."""
    return (seen.estimate - seen.mean) / seen.scale
