"""Rows whose sample covariance is of one structure exactly, so that a dense covariance of them is the same S."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ansn.covariance import AdaptiveCovariance, Structure
from ansn.covariance.moments import Basis


class Rotated(Structure):
    """One more structure, in one place: a random orthogonal basis that is fixed, with variances."""

    name = "rotated"
    summary = "a fixed rotation, for tests"

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__(shape)
        made = torch.Generator().manual_seed(0)
        self.q = torch.linalg.qr(torch.randn(self.dim, self.dim, generator=made, dtype=torch.float64))[0]

    def turn(self, v: Tensor, basis: Basis, region: Tensor | None, inverse: bool) -> Tensor:
        q = self.q.to(v)
        return v @ (q if inverse else q.mT)


def root_of(structure: Structure, seed: int = 0) -> Tensor:
    """A root ``Q diag(sqrt lambda)`` of an S of this structure, ``[d, d]``; its axes' variances are apart, so that the
    basis can be found from S alone."""
    made = torch.Generator().manual_seed(seed)
    basis = {
        part: torch.linalg.qr(torch.randn(size, generator=made, dtype=torch.float64))[0]
        for part, size in structure.parts(1).items()
    }
    fall = torch.ones(1, dtype=torch.float64)
    for n in structure.shape:
        fall = torch.kron(fall, torch.arange(1.0, n + 1.0, dtype=torch.float64) ** -1.0)
    variances = fall * torch.linspace(1.0, 1.3, structure.dim, dtype=torch.float64)
    turned = structure.turn(torch.eye(structure.dim, dtype=torch.float64), basis, None, False)
    return turned.T * variances.sqrt()


def rows_of(root: Tensor, n: int, seed: int = 1) -> Tensor:
    """``n`` rows whose covariance is ``root root^T`` to rounding, and whose mean is not 0."""
    made = torch.Generator().manual_seed(seed)
    y = torch.randn(n, len(root), generator=made, dtype=torch.float64)
    y = torch.linalg.qr(y - y.mean(0))[0] * math.sqrt(n - 1)
    return y @ root.T + torch.linspace(-0.5, 0.5, len(root), dtype=torch.float64)


def learned(kind: type[Structure] | str, x: Tensor, shape: tuple[int, ...], **options: object) -> AdaptiveCovariance:
    """Of rows, in three batches, frozen; with the root that does not depend on the choice of a basis."""
    covariance = AdaptiveCovariance(
        shape, 1, kind, root="symmetric", factor_dtype=torch.float64, eps_floor=0.0, **options,  # type: ignore[arg-type]
    )  # fmt: skip
    covariance.orient(x)
    for part in x.reshape(-1, *shape).split(len(x) // 3 + 1):
        covariance.update(part)
    return covariance.freeze().track()
