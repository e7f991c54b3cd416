"""Mixtures in closed form under the package's own noise and samplers: what is left of an error is the sampler's."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

import ansn
from experiments.lab.mixture import Mixture


def known_covariance(density: Mixture, **options: Any) -> ansn.AdaptiveCovariance:
    """A frozen covariance that has learned the density's mean and covariance exactly.

    It has seen the 2 d points ``m +- a L_j``, L_j the columns of a factor of S, as often as it takes for the covariance
    to trust S: their mean is m, and with the right a their unbiased covariance S. ``options``: of
    :class:`ansn.AdaptiveCovariance`.
    """
    dim = density.dim
    covariance = ansn.AdaptiveCovariance(dim, eps_floor=0.0, **options)
    times = math.ceil(covariance.structure.points() / (2 * dim))
    away = math.sqrt((2 * dim * times - 1) / (2 * times)) * torch.linalg.cholesky(density.covariance()).T
    return covariance.update(density.mean() + torch.cat((away, -away) * times)).freeze()


def known_noise(density: Mixture, rho: float, x: Tensor, bottom: float = 0.01) -> ansn.NoiseModel:
    """Noise of exact moments, from the level that rows ``x`` of the data give down to ``bottom``."""
    covariance = known_covariance(density, rho=rho)
    return ansn.NoiseModel(covariance, ansn.levels.karras(ansn.levels.tau_start(x, covariance), bottom))


class ExactDenoiser(ansn.Denoiser):
    """``E[x | x~]`` of a mixture where a trained network would stand."""

    def __init__(self, noise: ansn.NoiseModel, density: Mixture) -> None:
        super().__init__(nn.Identity(), noise, precondition=False)
        self.density = density
        shape = noise.covariance.noise_shape()[0].double()
        self._shape = shape if shape.ndim == 2 else torch.diag(shape)

    def forward(self, x: Tensor, sigma: float | Tensor, region: Tensor | None = None, **extra: Any) -> Tensor:
        """As :class:`ansn.Denoiser`; ``sigma`` one level for all rows, alone or once a row."""
        given = torch.as_tensor(sigma).reshape(-1)
        if not bool((given == given[0]).all()):
            raise ValueError("sigma: got several levels, expected one for all rows")
        return self.density.denoised(x.double(), float(given[0]) ** 2 * self._shape).to(x.dtype)
