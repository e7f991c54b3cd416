"""Mixtures in closed form under the package's own noise and samplers: what is left of an error is the sampler's."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

import ansn
from experiments.lab.mixture import Mixture
from experiments.lab.training import diagonal_start


def known_covariance(parts: list[Mixture], **options: Any) -> ansn.AdaptiveCovariance:
    """A frozen covariance that has learned each part's mean and covariance exactly, one region a part.

    It has seen the 2 d points ``m +- a L_j``, L_j the columns of a factor of S, as often as it takes for the covariance
    to trust S: their mean is m, and with the right a their unbiased covariance S. ``options``: of
    :class:`ansn.AdaptiveCovariance`.
    """
    dim = parts[0].dim
    covariance = ansn.AdaptiveCovariance(dim, len(parts), eps_floor=0.0, **options)
    times = math.ceil(covariance.structure.points() / (2 * dim))
    scale = math.sqrt((2 * dim * times - 1) / (2 * times))
    rows = []
    for part in parts:
        away = scale * torch.linalg.cholesky(part.covariance()).T
        rows.append(part.mean() + torch.cat((away, -away) * times))
    region = torch.arange(len(parts)).repeat_interleave(2 * dim * times) if len(parts) > 1 else None
    return covariance.update(torch.cat(rows), region).freeze()


def known_noise(
    parts: list[Mixture], shape: str, x: Tensor, region: Tensor | None = None, bottom: float = 0.01
) -> ansn.NoiseModel:
    """Noise of a shape (``rho=R``, ``diagonal``, or ``whitened``: the data's own) made of exact moments, from the level
    that rows ``x`` of the data give."""
    options: dict[str, Any] = {"rho": 0.5, "structure": "diagonal"}
    if shape == "whitened":  # isotropic noise on whitened data is noise of exactly the data's shape
        options = {"rho": 1.0, "eps": 0.0}
    elif shape != "diagonal":
        options = {"rho": float(shape.removeprefix("rho="))}
    covariance = known_covariance(parts, **options)
    start = ansn.levels.tau_start(x, covariance, region=region)
    if shape == "diagonal":  # its start knows no correlations
        start = max(start, diagonal_start(x, covariance))
    return ansn.NoiseModel(covariance, ansn.levels.karras(start, bottom))


class ExactDenoiser(ansn.Denoiser):
    """``E[x | x~]`` of a mixture, or of the part that is known to have been drawn (region k), where a trained network
    would stand."""

    regional = True

    def __init__(self, noise: ansn.NoiseModel, parts: list[Mixture]) -> None:
        super().__init__(nn.Identity(), noise, precondition=False)
        self.parts = parts
        shape = noise.covariance.noise_shape().double()
        self._shape = shape if shape.ndim == 3 else torch.diag_embed(shape)

    def forward(self, x: Tensor, sigma: float | Tensor, region: Tensor | None = None, **extra: Any) -> Tensor:
        """As :class:`ansn.Denoiser`; ``sigma`` one level for all rows, alone or once a row."""
        given = torch.as_tensor(sigma).reshape(-1)
        if not bool((given == given[0]).all()):
            raise ValueError("sigma: got several levels, expected one for all rows")
        tau, flat = float(given[0]), x.double()
        if region is None:
            return self.parts[0].denoised(flat, tau**2 * self._shape[0]).to(x.dtype)
        out = torch.empty_like(flat)
        for k, part in enumerate(self.parts):
            rows = region == k
            out[rows] = part.denoised(flat[rows], tau**2 * self._shape[k])
        return out.to(x.dtype)
