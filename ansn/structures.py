"""Structures of a covariance: how the scatter is stored, shaped into R, factored and inspected.

A structure knows nothing of counts, regions' meaning or time; every function is batched over ``K`` regions. To add one
(block, Kronecker, low rank), write its class here, with a factor that :func:`ansn.ops.apply_factor` can apply.
"""

from __future__ import annotations

import abc

import torch
from torch import Tensor

from ansn import ops


class Structure(abc.ABC):
    """What :class:`ansn.AdaptiveCovariance` asks of a structure; ``S``, ``R`` and ``L`` are in this structure's
    storage."""

    name: str

    @abc.abstractmethod
    def storage(self, regions: int, dim: int) -> tuple[int, ...]:
        """Shape of scatter, S, R and factor."""

    @abc.abstractmethod
    def covariance(self, scatter: Tensor, divisor: Tensor) -> Tensor:
        """``S_k = M_k / divisor_k``, whole (the scatter of a dense state has its lower triangle only)."""

    @abc.abstractmethod
    def outer(self, v: Tensor) -> Tensor:
        """``v_k v_k^T`` of ``[K, d]``, as the scatter stores it."""

    @abc.abstractmethod
    def scaled_identity(self, scale: Tensor, dim: int) -> Tensor:
        """``scale_k I``."""

    @abc.abstractmethod
    def variances(self, s: Tensor) -> Tensor:
        """The diagonal, ``[K, d]``."""

    @abc.abstractmethod
    def power(self, s: Tensor, gamma: float, eps: Tensor) -> Tensor:
        """``S_k^gamma``; for a negative gamma ``(S_k + eps_k I)^gamma``."""

    @abc.abstractmethod
    def factor(self, r: Tensor, root: str) -> tuple[Tensor, Tensor]:
        """``L`` with ``L L^T = R`` and a status int32 ``[K]``, 0 where it worked."""

    @abc.abstractmethod
    def obstacle(self, r: Tensor, status: int, root: str) -> str:
        """What kept one region's R, in this structure's storage without K, from having a factor: for an error
        message."""

    @abc.abstractmethod
    def gram(self, factor: Tensor) -> Tensor:
        """``R = L L^T``."""

    @abc.abstractmethod
    def eigenvalues(self, r: Tensor) -> Tensor:
        """Eigenvalues, ascending, ``[K, d]``."""

    @abc.abstractmethod
    def spectrum(self, s: Tensor, r: Tensor, floor: Tensor) -> tuple[Tensor | None, Tensor]:
        """``Q`` and l with ``S = Q diag(l r) Q^T``, ``R = Q diag(r) Q^T``, of S and R with one eigenbasis:
        ``[K, d, d]`` (None where it is the coordinates' own) and ``[K, d]``. S counts as at least ``floor`` ``[K]`` in
        every direction."""

    def bytes(self, regions: int, dim: int, state: torch.dtype, factor: torch.dtype) -> int:
        """Bytes of scatter, factor and eigenbasis, and of a refresh: about six temporaries in the state's dtype,
        measured."""
        elements = 1
        for size in self.storage(regions, dim):
            elements *= size
        return elements * (7 * state.itemsize + 2 * factor.itemsize)


class Dense(Structure):
    """Full matrices: ``[K, d, d]``."""

    name = "dense"

    def storage(self, regions: int, dim: int) -> tuple[int, ...]:
        return regions, dim, dim

    def covariance(self, scatter: Tensor, divisor: Tensor) -> Tensor:
        lower = scatter.tril() / divisor.to(scatter.dtype).reshape(-1, 1, 1)
        return lower + lower.tril(-1).mT

    def outer(self, v: Tensor) -> Tensor:
        return (v.unsqueeze(2) * v.unsqueeze(1)).tril()

    def scaled_identity(self, scale: Tensor, dim: int) -> Tensor:
        return torch.diag_embed(scale.unsqueeze(1).expand(-1, dim))

    def variances(self, s: Tensor) -> Tensor:
        return s.diagonal(dim1=1, dim2=2)

    def power(self, s: Tensor, gamma: float, eps: Tensor) -> Tensor:
        values, vectors = torch.linalg.eigh(s)
        return (vectors * _powers(values, gamma, eps).unsqueeze(1)) @ vectors.mT

    def factor(self, r: Tensor, root: str) -> tuple[Tensor, Tensor]:
        if root == "cholesky":
            return ops.cholesky(r)
        values, vectors = torch.linalg.eigh(r)
        status = (values[:, 0] <= 0).to(torch.int32)
        return (vectors * values.clamp_min(0).sqrt().unsqueeze(1)) @ vectors.mT, status

    def obstacle(self, r: Tensor, status: int, root: str) -> str:
        r, finite = r.double(), bool(torch.isfinite(r).all())
        if root != "cholesky" or not finite:
            return f"smallest eigenvalue {float(torch.linalg.eigvalsh(r)[0]):.3g}" if finite else "it is not finite"
        # The first pivot that is not positive is the smallest so far: r_jj less what the rows before it explain.
        j = status - 1
        before, _ = torch.linalg.cholesky_ex(r[:j, :j])
        explained = torch.linalg.solve_triangular(before, r[:j, j : j + 1], upper=False).square().sum()
        return f"smallest pivot {float(r[j, j] - explained):.3g}, coordinate {j}"

    def gram(self, factor: Tensor) -> Tensor:
        return factor @ factor.mT

    def eigenvalues(self, r: Tensor) -> Tensor:
        return torch.linalg.eigvalsh(r)

    def spectrum(self, s: Tensor, r: Tensor, floor: Tensor) -> tuple[Tensor | None, Tensor]:
        values = self.variances(s)
        if torch.equal(s, torch.diag_embed(values)):  # before any data: at d = 3072 the decomposition takes seconds
            basis = torch.eye(s.shape[1], dtype=s.dtype, device=s.device).expand_as(s)
            return basis, _ratio(values, self.variances(r), floor)
        values, vectors = torch.linalg.eigh(s)
        return vectors, _ratio(values, ((r @ vectors) * vectors).sum(1), floor)


class Diagonal(Structure):
    """Variances only: ``[K, d]``, the per-pixel control."""

    name = "diagonal"

    def storage(self, regions: int, dim: int) -> tuple[int, ...]:
        return regions, dim

    def covariance(self, scatter: Tensor, divisor: Tensor) -> Tensor:
        return scatter / divisor.to(scatter.dtype).reshape(-1, 1)

    def outer(self, v: Tensor) -> Tensor:
        return v.square()

    def scaled_identity(self, scale: Tensor, dim: int) -> Tensor:
        return scale.unsqueeze(1).expand(-1, dim).clone()

    def variances(self, s: Tensor) -> Tensor:
        return s

    def power(self, s: Tensor, gamma: float, eps: Tensor) -> Tensor:
        return _powers(s, gamma, eps)

    def factor(self, r: Tensor, root: str) -> tuple[Tensor, Tensor]:
        good = ((r > 0) & torch.isfinite(r)).all(1)
        return r.clamp_min(0).sqrt(), (~good).to(torch.int32)

    def obstacle(self, r: Tensor, status: int, root: str) -> str:
        if not bool(torch.isfinite(r).all()):
            return "it is not finite"
        return f"smallest variance {float(r.min()):.3g}, coordinate {int(r.argmin())}"

    def gram(self, factor: Tensor) -> Tensor:
        return factor.square()

    def eigenvalues(self, r: Tensor) -> Tensor:
        return r.sort(dim=1).values

    def spectrum(self, s: Tensor, r: Tensor, floor: Tensor) -> tuple[Tensor | None, Tensor]:
        return None, _ratio(s, r, floor)


def _powers(values: Tensor, gamma: float, eps: Tensor) -> Tensor:
    clipped = values.clamp_min(0)
    return (clipped + eps.unsqueeze(1)) ** gamma if gamma < 0 else clipped**gamma


def _ratio(s: Tensor, r: Tensor, floor: Tensor) -> Tensor:
    # Rounding can put an eigenvalue of a semidefinite R below 0.
    least = torch.finfo(r.dtype).eps * r.amax(1, keepdim=True)
    return torch.maximum(s, floor.unsqueeze(1)) / torch.maximum(r, least)


STRUCTURES: dict[str, Structure] = {s.name: s for s in (Dense(), Diagonal())}
