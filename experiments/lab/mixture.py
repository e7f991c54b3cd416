"""Gaussian mixtures under correlated noise: density, posterior mean and the level where modes merge, in closed form."""

from __future__ import annotations

import math

import torch
from scipy.optimize import brentq
from torch import Tensor


def basis(dim: int, seed: int = 0) -> Tensor:
    """A random orthonormal basis, columns, float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64))[0]


class Mixture:
    """``p(x) = sum_c w_c N(m_c, S_c)``, float64: means ``[C, d]``, covariances ``[C, d, d]``, weights ``[C]``."""

    def __init__(self, means: Tensor, covariances: Tensor, weights: Tensor | None = None) -> None:
        self.means, self.covariances = means.double(), covariances.double()
        count = len(self.means)
        self.weights = torch.full((count,), 1.0 / count, dtype=torch.float64) if weights is None else weights.double()

    @property
    def dim(self) -> int:
        return self.means.shape[1]

    def mean(self) -> Tensor:
        """``[d]``."""
        return self.weights @ self.means

    def covariance(self) -> Tensor:
        """Of the whole mixture, ``[d, d]``."""
        away = self.means - self.mean()
        return torch.einsum("c,cij->ij", self.weights, self.covariances) + (self.weights * away.T) @ away

    def sample(self, n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Points float64 ``[n, d]`` and the components they are of, int64 ``[n]``."""
        generator = torch.Generator().manual_seed(seed)
        owner = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        z = torch.randn(n, self.dim, generator=generator, dtype=torch.float64)
        return self.means[owner] + torch.einsum("bij,bj->bi", torch.linalg.cholesky(self.covariances)[owner], z), owner

    def log_density(self, x: Tensor, sigma: Tensor | None = None) -> Tensor:
        """``log p_Sigma(x)``, ``[B]``, under noise of covariance ``sigma``, ``[d, d]`` or ``[B, d, d]``."""
        return self._components(x, sigma)[0].logsumexp(1)

    def responsibilities(self, x: Tensor, sigma: Tensor | None = None) -> Tensor:
        """Posterior weights of the components, ``[B, C]``."""
        return self._components(x, sigma)[0].softmax(1)

    def denoised(self, x: Tensor, sigma: Tensor) -> Tensor:
        """``E[x | x~] = sum_c r_c (m_c + S_c (S_c + Sigma)^-1 (x~ - m_c))``, ``[B, d]``; ``sigma`` as above."""
        logs, solved = self._components(x, sigma)
        each = self.means + torch.einsum("cij,bcj->bci", self.covariances, solved)
        return (logs.softmax(1).unsqueeze(2) * each).sum(1)

    def _components(self, x: Tensor, sigma: Tensor | None) -> tuple[Tensor, Tensor]:
        """``log w_c N(x; m_c, P_c)`` ``[B, C]`` and ``P_c^-1 (x - m_c)`` ``[B, C, d]``, ``P_c = S_c + Sigma``."""
        total = self.covariances if sigma is None else self.covariances + sigma.double().unsqueeze(-3)
        factor = torch.linalg.cholesky(total)
        away = (x.double().unsqueeze(1) - self.means).unsqueeze(3)
        if factor.ndim == 3:  # one noise for all rows
            solved = torch.cholesky_solve(away.squeeze(3).permute(1, 2, 0), factor).permute(2, 0, 1).unsqueeze(3)
        else:
            solved = torch.cholesky_solve(away, factor)
        logdet = 2.0 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        square = (away * solved).sum((2, 3))
        return self.weights.log() - 0.5 * (square + logdet + self.dim * math.log(2 * math.pi)), solved.squeeze(3)


def critical(share: float) -> float:
    """Least squared Mahalanobis distance from the centre at which ``q N(-m, P) + share N(m, P)`` has two modes.

    Along m, in units of m, stationary points solve ``t = tanh(beta t + h)``, ``h = ln(share / q) / 2``, beta the
    squared distance. There are three iff ``beta > 1`` and ``|h| <= beta t_s - artanh t_s``, where
    ``t_s = sqrt(1 - 1 / beta)``; so 1 for equal weights, 2.22 for 0.8 to 0.2.
    """
    h = abs(0.5 * math.log(share / (1.0 - share)))

    def spare(beta: float) -> float:
        t = math.sqrt(1.0 - 1.0 / beta)
        return beta * t - math.atanh(t) - h

    return 1.0 if h == 0.0 else float(brentq(spare, 1.0 + 1e-9, 2.0 + 2.0 * h))


def merge_level(half: Tensor, within: Tensor, shape: Tensor, share: float = 0.5) -> float:
    """Level above which noise ``tau^2 R`` makes one mode of two: ``a^T (W + tau^2 R)^-1 a = critical(share)``; 0 if
    they are one without noise. Where a is an eigenvector: ``tau^2 = (a^2 / critical - w^2) / r``."""
    least = critical(share)

    def excess(log_tau: float) -> float:
        return float(half @ torch.linalg.solve(within + math.exp(2.0 * log_tau) * shape, half)) - least

    return 0.0 if excess(-30.0) <= 0.0 else math.exp(brentq(excess, -30.0, 30.0))
