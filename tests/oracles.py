"""Closed forms in float64 that the tests compare with: exact denoisers, Haario's recursion, weighted moments.

They are written from the formulas and share no code with the package, but for :class:`ExactDenoiser`, which puts a
closed form where a trained network would stand.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ansn import AdaptiveCovariance, Denoiser, NoiseModel, levels


class Mixture:
    """``p(x) = sum_c w_c N(m_c, S_c)``; a single component is a Gaussian. Noise ``N(0, Sigma)``, a matrix for each row.

    ``means`` ``[C, d]``, ``covariances`` ``[C, d, d]``, ``weights`` ``[C]``; everything float64.
    """

    def __init__(self, means: Tensor, covariances: Tensor, weights: Tensor | None = None) -> None:
        self.means, self.covariances = means.double(), covariances.double()
        count = len(self.means)
        self.weights = torch.full((count,), 1.0 / count, dtype=torch.float64) if weights is None else weights.double()

    def _components(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """``log w_c N(x; m_c, P_c)`` ``[B, C]`` and ``P_c^-1 (x - m_c)`` ``[B, C, d]``, with ``P_c = S_c + Sigma``."""
        total = self.covariances.unsqueeze(0) + sigma.unsqueeze(1)
        away = x.unsqueeze(1) - self.means.unsqueeze(0)
        solved = torch.linalg.solve(total, away.unsqueeze(3)).squeeze(3)
        logdet = torch.linalg.slogdet(total)[1]
        constant = x.shape[1] * math.log(2 * math.pi)
        return self.weights.log() - 0.5 * ((away * solved).sum(2) + logdet + constant), solved

    def log_density(self, x: Tensor, sigma: Tensor) -> Tensor:
        """``log p_Sigma(x)`` of the perturbed density, ``[B]``."""
        return self._components(x, sigma)[0].logsumexp(1)

    def score(self, x: Tensor, sigma: Tensor) -> Tensor:
        """``grad log p_Sigma = -sum_c r_c P_c^-1 (x - m_c)``, r the responsibilities."""
        logs, solved = self._components(x, sigma)
        return -(logs.softmax(1).unsqueeze(2) * solved).sum(1)

    def denoised(self, x: Tensor, sigma: Tensor) -> Tensor:
        """``E[x | x~] = sum_c r_c (m_c + S_c P_c^-1 (x~ - m_c))``."""
        logs, solved = self._components(x, sigma)
        means = self.means + torch.einsum("cij,bcj->bci", self.covariances, solved)
        return (logs.softmax(1).unsqueeze(2) * means).sum(1)

    def covariance(self) -> Tensor:
        """Of the whole, ``[d, d]``."""
        away = self.means - self.weights @ self.means
        return torch.einsum("c,cij->ij", self.weights, self.covariances + away.unsqueeze(2) * away.unsqueeze(1))

    def sample(self, n: int, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        owner = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        z = torch.randn(n, self.means.shape[1], generator=generator, dtype=torch.float64)
        return self.means[owner] + torch.einsum("bij,bj->bi", torch.linalg.cholesky(self.covariances)[owner], z)


def gaussian(mean: Tensor, covariance: Tensor) -> Mixture:
    return Mixture(mean.unsqueeze(0), covariance.unsqueeze(0))


class ExactDenoiser(Denoiser):
    """The posterior mean in closed form, where a trained network would stand; for ``prediction="whitened"`` its ``f``.

    ``targets``: the data's density, or one for each region, where the region is known.
    """

    regional = True

    def __init__(self, noise: NoiseModel, *targets: Mixture, prediction: str = "denoiser") -> None:
        super().__init__(nn.Identity(), noise, prediction, precondition=False)
        self.targets = targets

    def sigma(self, tau: Tensor, region: Tensor | None) -> Tensor:
        shapes = self.noise.covariance.noise_shape().double()
        shapes = shapes if shapes.ndim == 3 else torch.diag_embed(shapes)
        rows = shapes.expand(len(tau), -1, -1) if region is None else shapes[region]
        return tau.double().square().reshape(-1, 1, 1) * rows

    def _network(self, x: Tensor, tau: Tensor, region: Tensor | None, extra: dict[str, Any]) -> Tensor:
        flat, sigma = x.reshape(len(x), -1).double(), self.sigma(tau, region)
        out = torch.empty_like(flat)
        for k, target in enumerate(self.targets):
            rows = slice(None) if len(self.targets) == 1 else region == k
            out[rows] = target.denoised(flat[rows], sigma[rows])
        out = out.reshape(x.shape).to(x.dtype)
        if self.prediction == "denoiser":
            return out
        return self.noise.covariance.whiten(out - x, region) / tau.to(x.dtype).reshape((-1,) + (1,) * (x.ndim - 1))


def spd(dim: int, seed: int = 0, low: float = 0.1, high: float = 2.0) -> Tensor:
    """A symmetric matrix with eigenvalues spread from low to high, in a random basis, float64."""
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64))
    return (q * torch.logspace(math.log10(low), math.log10(high), dim, dtype=torch.float64)) @ q.T


def beside(s: Tensor, seed: int = 0, low: float = 0.1, high: float = 2.0) -> Tensor:
    """A matrix with the eigenvectors of s, as R has those of S, and eigenvalues of no relation to those of s."""
    order = torch.randperm(len(s), generator=torch.Generator().manual_seed(seed))
    basis = torch.linalg.eigh(s.double())[1]
    return (basis * torch.logspace(math.log10(low), math.log10(high), len(s), dtype=torch.float64)[order]) @ basis.T


def fixed_covariance(
    r: Tensor | int,
    *,
    s: Tensor | None = None,
    shape: tuple[int, ...] | None = None,
    center: Tensor | None = None,
    root: str = "cholesky",
    dtype: torch.dtype = torch.float64,
) -> AdaptiveCovariance:
    """A frozen covariance whose R is exactly the given matrix (or the identity in so many dimensions), and whose S is
    s, of the same eigenvectors (by default R)."""
    given = torch.eye(r, dtype=torch.float64) if isinstance(r, int) else r
    covariance = AdaptiveCovariance(
        shape or len(given), rho=1.0, eps=0.0, initial=given, root=root, dtype=torch.float64, factor_dtype=dtype
    ).freeze()
    if center is not None:
        covariance.center.copy_(center)
    if s is not None:
        covariance.initial.copy_(s)
        basis = torch.linalg.eigh(s + 0.61803 * given)[1]
        both = [basis.T @ matrix.double() @ basis for matrix in (given, s)]
        off = [float((matrix - matrix.diagonal().diag()).norm() / matrix.norm()) for matrix in both]
        assert max(off) < 1e-9, "R and S share their eigenvectors"
        noise, data = (matrix.diagonal().unsqueeze(0) for matrix in both)
        covariance.track().snapshot.install({"basis0": basis.unsqueeze(0)}, noise, data / noise)
    return covariance


def noise_model(covariance: AdaptiveCovariance, tau: tuple[float, ...] = (3.0, 1.0, 0.3), seed: int = 0) -> NoiseModel:
    return NoiseModel(covariance, levels.Levels(tau), seed)


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def annealed_covariance(s: Tensor, r: Tensor, taus: tuple[float, ...], steps: int, alpha: float = 0.2) -> Tensor:
    """Covariance that annealed Langevin ends with on ``N(m, S)``, from ``N(m, S + tau_1^2 R)``; S and R commute.

    In a shared direction of eigenvalues l and r each step multiplies the variance by
    ``(1 - alpha tau^2 r / (2 (l + tau^2 r)))^2`` and adds ``alpha tau^2 r``; the last denoising multiplies it by
    ``(l / (l + tau^2 r))^2``. A chain that is hurried down stays wider than the data: this says by how much.
    """
    values, vectors = torch.linalg.eigh(s)
    spread = (vectors.T @ r @ vectors).diagonal()
    variance = values + taus[0] ** 2 * spread
    for tau in taus:
        noise = tau**2 * spread
        for _ in range(steps):
            variance = (1 - 0.5 * alpha * noise / (values + noise)) ** 2 * variance + alpha * noise
    last = values + taus[-1] ** 2 * spread
    return (vectors * (variance * (values / last) ** 2)) @ vectors.T


def haario_recursion(x: np.ndarray, eps: float, first: int = 2) -> list[np.ndarray]:
    """``C_t`` after t = first, first + 1, ... points by Haario's recursion, with ``s_d = 2.4^2 / d``.

    ``C_{t+1} = (t-1)/t C_t + s_d/t (t m_{t-1} m_{t-1}^T - (t+1) m_t m_t^T + X_t X_t^T + eps I)``, m_t the mean of
    X_0..X_t and C_t the covariance of the t points X_0..X_{t-1}. It starts from the definition at ``first``.
    """
    dim = x.shape[1]
    scale = 2.4**2 / dim
    c = scale * (np.cov(x[:first].T).reshape(dim, dim) + eps * np.eye(dim))
    out = [c]
    for t in range(first, len(x)):
        before, after = x[:t].mean(0), x[: t + 1].mean(0)
        growth = t * np.outer(before, before) - (t + 1) * np.outer(after, after) + np.outer(x[t], x[t])
        c = (t - 1) / t * c + scale / t * (growth + eps * np.eye(dim))
        out.append(c)
    return out


def five_sigma(values: Tensor, expected: float | Tensor) -> bool:
    """Whether the mean of the rows is within five of its standard errors of what was expected."""
    error = values.double().std(0) / math.sqrt(len(values))
    return bool(((values.double().mean(0) - expected).abs() <= 5 * error + 1e-12).all())


def covariance_within_five_sigma(x: Tensor, expected: Tensor) -> bool:
    """Whether every entry of ``E[x x^T]`` is within five standard errors of the expected one; x ``[N, d]``, mean 0."""
    wide = x.double()
    return five_sigma(wide.unsqueeze(2) * wide.unsqueeze(1), expected)
