"""Gaussian data seen through noise and a linear measurement: ``V[x | x~]`` and the systems made of it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ansn import ops
from ansn.covariance import AdaptiveCovariance
from ansn.sampling.operators import Operator

_DENSE_SIZE = 1024  # largest system that is factored
_DENSE_NUMBERS = 2**26  # float64 numbers that factoring may take, half a GiB
_CG_STEPS = 100  # where it is too large; conjugate gradients then
_JITTER = 1e-10  # of the mean diagonal, the least noise: measurements that repeat each other have a singular system


class MeasuredGaussian(nn.Module):
    r"""``x ~ N(m, S)``, ``x~ = x + tau L z``, ``y = A x + sigma_y n``, with S and ``R = L L^T`` diagonalised together::

        S = U diag(l) U^T,   R = U U^T,
        V(tau) = V[x | x~] = S - S (S + tau^2 R)^-1 S = U diag(l / (1 + l / tau^2)) U^T,

    which has no cancellation at small tau and costs one eigendecomposition for all levels; ``V(inf) = S``. Then
    ``E[x | x~, y] = D + V A^T u`` with ``(sigma_y^2 I + A V A^T) u = y - A D``.

    The m x m systems are factored in float64 while ``m <= 1024`` and they fit in half a GiB (one system a call where
    there is one region and one level, else one a row), else solved by conjugate gradients.

    Args:
        basis: U, ``[K, d, d]``, or its diagonal ``[K, d]``. variances: l, ``[K, d]``.
        operator: A. sigma_y: standard deviation of the measurement's noise, data units.
    """

    basis: Tensor
    variances: Tensor
    seen: Tensor | None

    def __init__(self, basis: Tensor, variances: Tensor, operator: Operator, sigma_y: float) -> None:
        super().__init__()
        self.operator, self.sigma_y = operator, sigma_y
        self.register_buffer("basis", basis)
        self.register_buffer("variances", variances.double())
        self.register_buffer("seen", self._seen() if operator.size <= _DENSE_SIZE else None)

    @classmethod
    def learned(cls, covariance: AdaptiveCovariance, operator: Operator, sigma_y: float) -> MeasuredGaussian:
        """S and R of a covariance: what it learned of the data, under its own noise."""
        factor, s = covariance.factor.double(), covariance.covariance().double()
        if factor.ndim == 2:
            return cls(covariance.factor.clone(), s / factor.square(), operator, sigma_y)
        left = torch.linalg.solve(factor, s)
        whitened = torch.linalg.solve(factor, left.mT)  # L^-1 S L^-T
        values, vectors = torch.linalg.eigh(0.5 * (whitened + whitened.mT))
        basis = (factor @ vectors).to(covariance.factor.dtype)
        return cls(basis, values.clamp_min(0.0), operator, sigma_y)

    @classmethod
    def isotropic(cls, covariance: AdaptiveCovariance, operator: Operator, sigma_y: float) -> MeasuredGaussian:
        """``S = R = s^2 I`` with s the data's pixel deviation: ``V = s^2 tau^2 / (1 + tau^2) I``, PiGDM's ``r^2``."""
        basis = covariance.scale.unsqueeze(1).expand(-1, covariance.dim).clone()
        return cls(basis, torch.ones_like(basis), operator, sigma_y)

    def spread(self, v: Tensor, tau: Tensor, region: Tensor | None) -> Tensor:
        """``V(tau) v``, ``[B, ...]``; ``tau`` ``[1]`` or ``[B]``, in data standard deviations."""
        whole = ops.apply_factor(v, self.basis, region, transpose=True, lower=False)
        scaled = (whole.flatten(1) * self._weights(tau, region)).to(v.dtype).reshape(v.shape)
        return ops.apply_factor(scaled, self.basis, region, lower=False)

    def solve(self, residual: Tensor, tau: Tensor, region: Tensor | None) -> Tensor:
        """``(sigma_y^2 I + A V(tau) A^T)^-1 residual``, ``[B, *operator.shape]``."""
        rows, size, dim = len(residual), self.operator.size, self.variances.shape[1]
        groups = 1 if tau.numel() == 1 and len(self.variances) == 1 else rows
        if self.seen is None or groups * size * max(size, dim) > _DENSE_NUMBERS:
            return self._iterate(residual, tau, region)
        seen = self.seen if region is None or len(self.seen) == 1 else self.seen[region]
        system = (seen * self._weights(tau, region).unsqueeze(1)) @ seen.mT
        diagonal = system.diagonal(dim1=1, dim2=2)
        diagonal += (_JITTER * diagonal.mean(1, keepdim=True)).clamp_min(self.sigma_y**2)
        factor, _ = torch.linalg.cholesky_ex(system)
        right = residual.flatten(1).double()
        if groups == 1:
            out = torch.cholesky_solve(right.mT, factor[0]).mT
        else:
            out = torch.cholesky_solve(right.unsqueeze(2), factor).squeeze(2)
        return out.to(residual.dtype).reshape(residual.shape)

    def draw(self, mean: Tensor, region: Tensor | None, *, seed: int, row: int) -> Tensor:
        """``x ~ N(mean, S)``; ``mean`` ``[B, d]``."""
        scale = self.variances.sqrt().to(self.basis.dtype)
        root = self.basis * (scale if self.basis.ndim == 2 else scale.unsqueeze(1))
        return ops.colored_step(
            mean, b=1.0, factor=root, region=region, lower=False, seed=seed, row=row, stream=ops.CLEAN
        )

    def _weights(self, tau: Tensor, region: Tensor | None) -> Tensor:
        """Eigenvalues of V in the basis, float64 ``[1 or B, d]``."""
        values = self.variances if region is None or len(self.variances) == 1 else self.variances[region]
        return values / (1.0 + values / tau.double().square().unsqueeze(1))

    def _seen(self) -> Tensor:
        """``A U``, float64 ``[K, m, d]``, from m adjoints rather than d measurements."""
        unit = torch.eye(self.operator.size, dtype=torch.float64, device=self.basis.device)
        rows = self.operator.adjoint(unit.unflatten(1, self.operator.shape)).flatten(1)
        basis = self.basis.double()
        return rows * basis.unsqueeze(1) if basis.ndim == 2 else rows @ basis

    def _iterate(self, residual: Tensor, tau: Tensor, region: Tensor | None) -> Tensor:
        def system(p: Tensor) -> Tensor:
            return self.sigma_y**2 * p + self.operator(self.spread(self.operator.adjoint(p), tau, region))

        return conjugate_gradients(system, residual.double(), _CG_STEPS).to(residual.dtype)


def conjugate_gradients(
    system: Callable[[Tensor], Tensor], right: Tensor, steps: int, tolerance: float = 1e-10
) -> Tensor:
    """``u`` with ``system(u) = right``, each row a system of its own, symmetric and positive definite (Hestenes and
    Stiefel 1952); from 0, at most ``steps`` products.

    ``right`` ``[B, ...]``. A row stops where its residual has fallen by ``tolerance``, or where its system shows a
    direction of negative curvature: what a network's Jacobian, unlike the truth's, may have.
    """

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).flatten(1).sum(1).reshape((-1,) + (1,) * (a.ndim - 1))

    u, residual, direction = torch.zeros_like(right), right, right
    left = dot(right, right)
    goal = tolerance**2 * left
    for _ in range(steps):
        product = system(direction)
        curvature = dot(direction, product)
        going = (left > goal) & (curvature > 0)
        length = torch.where(going, left / curvature, 0.0)
        u = u + length * direction
        residual = residual - length * product
        after = dot(residual, residual)
        direction = residual + torch.where(going, after / left, 0.0) * direction
        left = torch.where(going, after, 0.0)
    return u
