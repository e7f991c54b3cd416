"""Gaussian data seen through noise and a linear measurement: ``V[x | x~]`` and the systems made of it."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ansn import ops
from ansn.covariance import AdaptiveCovariance, Pencil
from ansn.covariance.diagonal import isotropic
from ansn.covariance.moments import owners
from ansn.sampling.operators import Operator

_DENSE_SIZE = 1024  # largest system that is factored
_DENSE_NUMBERS = 2**26  # float64 numbers that factoring may take, half a GiB
_CG_STEPS = 100  # where it is too large; conjugate gradients then
_JITTER = 1e-10  # of the mean diagonal, the least noise: measurements that repeat each other have a singular system


class MeasuredGaussian(nn.Module):
    r"""``x ~ N(m, S)``, ``x~ = x + tau L z``, ``y = A x + sigma_y n``, with the pencil of S and R::

        V(tau) = V[x | x~] = S - S (S + tau^2 R)^-1 S = B diag(l / (1 + l / tau^2)) B^T,

    which has no cancellation at small tau; ``V(inf) = S``. Then ``E[x | x~, y] = D + V A^T u`` with
    ``(sigma_y^2 I + A V A^T) u = y - A D``.

    The m x m systems are factored in float64 while ``m <= 1024`` and they fit in half a GiB (one system a call where
    there is one region and one level, else one a row), else solved by conjugate gradients.

    Args:
        pencil: of S and R, of which a copy is kept.
        operator: A. sigma_y: standard deviation of the measurement's noise, data units.
    """

    seen: Tensor | None

    def __init__(self, pencil: Pencil, operator: Operator, sigma_y: float) -> None:
        super().__init__()
        self.operator, self.sigma_y, self.pencil = operator, sigma_y, copy.deepcopy(pencil)
        numbers = pencil.regions * operator.size * max(operator.size, pencil.structure.dim)
        fits = operator.size <= _DENSE_SIZE and numbers <= _DENSE_NUMBERS
        self.register_buffer("seen", self._seen() if fits else None)

    @classmethod
    def learned(cls, covariance: AdaptiveCovariance, operator: Operator, sigma_y: float) -> MeasuredGaussian:
        """S and R of a covariance: what it learned of the data, under its own noise."""
        return cls(covariance.pencil, operator, sigma_y)

    @classmethod
    def isotropic(cls, covariance: AdaptiveCovariance, operator: Operator, sigma_y: float) -> MeasuredGaussian:
        """``S = R = s^2 I`` with s the data's pixel deviation: ``V = s^2 tau^2 / (1 + tau^2) I``, PiGDM's ``r^2``."""
        return cls(isotropic(covariance.scale, covariance.shape), operator, sigma_y)

    def spread(self, v: Tensor, tau: Tensor, region: Tensor | None) -> Tensor:
        """``V(tau) v``, ``[B, ...]``; ``tau`` ``[1]`` or ``[B]``, in data standard deviations."""
        return self.pencil.spread(v, self.pencil.posterior(tau, region), region)

    def of_rows(self, row: int, rows: int) -> MeasuredGaussian:
        """What is measured of data points ``row .. row + rows``."""
        other = copy.copy(self)
        other._modules = {**self._modules, "operator": self.operator.of_rows(row, rows)}
        return other

    def solve(self, residual: Tensor, tau: Tensor, region: Tensor | None) -> Tensor:
        """``(sigma_y^2 I + A V(tau) A^T)^-1 residual``, ``[B, *operator.shape]``."""
        rows, size, dim, known = len(residual), self.operator.size, self.pencil.structure.dim, self.operator.known
        groups = 1 if tau.numel() == 1 and self.pencil.regions == 1 and known is None else rows
        if self.seen is None or groups * size * max(size, dim) > _DENSE_NUMBERS:
            return self._iterate(residual, tau, region)
        seen = self.seen if region is None or len(self.seen) == 1 else self.seen[region]
        if known is not None:
            seen = seen * known.repeat(rows // len(known), *[1] * (known.ndim - 1)).flatten(1).unsqueeze(2)
        system = (seen * self.pencil.posterior(tau, region).unsqueeze(1)) @ seen.mT
        diagonal = system.diagonal(dim1=1, dim2=2)
        diagonal += (_JITTER * diagonal.mean(1, keepdim=True)).clamp_min(self.sigma_y**2)
        diagonal[diagonal == 0.0] = 1.0  # of a row of which nothing is known
        factor, _ = torch.linalg.cholesky_ex(system)
        right = residual.flatten(1).double()
        if groups == 1:
            out = torch.cholesky_solve(right.mT, factor[0]).mT
        else:
            out = torch.cholesky_solve(right.unsqueeze(2), factor).squeeze(2)
        return out.to(residual.dtype).reshape(residual.shape)

    def draw(self, mean: Tensor, region: Tensor | None, *, seed: int, row: int) -> Tensor:
        """``x ~ N(mean, S)``; ``mean`` ``[B, d]``."""
        return self.pencil.start(mean, 0.0, region, seed=seed, row=row, stream=ops.CLEAN)

    def _seen(self) -> Tensor:
        """``A Q``, float64 ``[K, m, d]``, from m adjoints rather than d measurements; of masks a row, Q."""
        unit = torch.eye(self.operator.size, dtype=torch.float64, device=self.pencil.like.device)
        rows = unit
        if self.operator.known is None:
            rows = self.operator.adjoint(unit.unflatten(1, self.operator.shape)).flatten(1)
        each = self.pencil.regions
        owner = owners(each, rows.device, len(rows))
        return self.pencil.coordinates(rows.repeat(each, 1), owner).unflatten(0, (each, len(rows)))

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
