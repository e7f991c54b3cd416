"""The dense structure: full matrices, d^2 numbers; R has a Cholesky factor, for which the kernels are made."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ansn import ops
from ansn.covariance.moments import Basis, Moments
from ansn.covariance.pencil import Pencil, Rules, floored, refusal
from ansn.covariance.structure import Structure, eigh, register
from ansn.errors import InputError


class DensePencil(Pencil):
    """Keeps a factor of R, ``[K, d, d]``, remade at every refresh; Q, s and l only once :meth:`track` was called, since
    an eigendecomposition costs some fifteen factorisations, and anew only where a refresh is full. Where it is not, and
    S does not count for want of points, l is :meth:`Rules.idle`: S is R then, whatever Q is.

    ``root``: ``"cholesky"`` (lower triangular) or ``"symmetric"`` (independent of the order of the coordinates, kept
    with its inverse).
    """

    factor: Tensor
    inverse: Tensor

    complete = False

    @property
    def lower(self) -> bool:
        """Whether the factor is lower triangular."""
        return self.root == "cholesky"

    def _allocate(self, dtype: torch.dtype, device: torch.device | str | None) -> None:
        size = (self.regions, self.structure.dim, self.structure.dim)
        self.register_buffer("factor", torch.zeros(size, dtype=dtype, device=device))
        if not self.lower:  # which a triangle does without; not persistent, since it is a function of the factor
            self.register_buffer("inverse", torch.zeros(size, dtype=dtype, device=device), persistent=False)

    def track(self, on: bool = True) -> None:
        """Make room for Q, s and l, or give it back."""
        if on and not self.complete:
            super()._allocate(self.factor.dtype, self.factor.device)
        elif self.complete and not on:
            for name in ("deviation", "l", "basis0"):
                delattr(self, name)
        self.complete = on

    @property
    def like(self) -> Tensor:
        return self.factor

    def color(
        self, z: Tensor, region: Tensor | None = None, *, transpose: bool = False, inverse: bool = False
    ) -> Tensor:
        """``L z``, ``L^T z``, ``L^-1 z`` or ``L^-T z``."""
        if inverse and not self.lower and torch.promote_types(z.dtype, self.factor.dtype) == self.factor.dtype:
            # Rows of more digits than it has are solved.
            return ops.apply_factor(z, self.inverse, region, transpose=transpose, lower=False)
        return ops.apply_factor(z, self.factor, region, transpose=transpose, inverse=inverse, lower=self.lower)

    def step(self, x: Tensor, denoised: Tensor | None = None, f: Tensor | None = None, **options: Any) -> Tensor:
        """``x + c (D - x) + L (a f + b z)``; arguments as of :func:`ansn.ops.colored_step`."""
        return ops.colored_step(x, denoised, f, factor=self.factor, lower=self.lower, **options)

    def noise_shape(self) -> Tensor:
        """``R = L L^T``, float64 ``[K, d, d]``."""
        factor = self.factor.double()
        return factor @ factor.mT

    def noise_variances(self) -> Tensor:
        return super().noise_variances() if self.complete else torch.linalg.eigvalsh(self.noise_shape())

    def log_volume(self) -> Tensor:
        return torch.linalg.slogdet(self.factor.double())[1]

    def noise_diagonal(self) -> Tensor:
        return self.factor.square().sum(2)

    def remake(self, moments: Moments, initial: Tensor, rules: Rules, full: bool) -> tuple[Tensor, Tensor]:
        warm = moments.points(rules.warmup)
        s = lower_half(moments, warm, initial)
        variances = s.diagonal(dim1=1, dim2=2).clone()
        level = variances.mean(1)
        full = full and self.complete
        found = self._decomposed(s, rules) if full or rules.gamma is not None or not self.lower else None
        factor, status = self._root(self._shape(s, level, rules, found) if self.lower else s, found)
        factor = factor.to(self.factor.dtype)
        l = rules.idle(level) if found is None else rules.ratio(found[1], floored(found[2]), moments)
        good = (status == 0).all() & self.holds(factor.diagonal(dim1=1, dim2=2), factor, l, moments.mean)
        self._take_factor(factor, good)
        if full and found is not None:
            self.take(*found, moments, rules, good)
        elif self.complete:
            idle = (warm & ~rules.enough(moments)).unsqueeze(1)
            self._copy("l", torch.where(idle, rules.idle(level), self.l), good)
            if rules.isotropic:  # the same in every basis
                self._copy("deviation", torch.where(idle, rules.noise(variances).sqrt(), self.deviation), good)
        return good, level

    def repair(self, moments: Moments, initial: Tensor, rules: Rules, full: bool) -> Tensor:
        """Raise the ridge a little at a time: rounding can push rank-deficient + eps I below 0."""
        warm = moments.points(rules.warmup)
        s = lower_half(moments, warm, initial)
        level = s.diagonal(dim1=1, dim2=2).mean(1)
        full = full and self.complete
        found = self._decomposed(s, rules) if full or rules.gamma is not None else None
        r = self._shape(s, level, rules, found)
        middle = r.diagonal(dim1=1, dim2=2).mean(1)
        jitter = middle * torch.finfo(r.dtype).eps
        for _ in range(7):
            factor, status = self._root(r, None)
            if not bool((status != 0).any()):
                if not bool(self.holds(factor.diagonal(dim1=1, dim2=2), factor, rules.idle(level), moments.mean)):
                    raise InputError(self.beyond(moments, level, middle))
                self._take_factor(factor)
                if full and found is not None:
                    self.take(*found, moments, rules)
                return level
            r.diagonal(dim1=1, dim2=2).add_(torch.where(status != 0, jitter, 0.0).unsqueeze(1))
            jitter = jitter * 10
        k = int((status != 0).nonzero()[0])
        if not bool(torch.isfinite(r[k]).all() | (level[k] == 0)):
            raise InputError(self.beyond(moments, level, middle))
        raise InputError(refusal(k, obstacle(r[k], int(status[k]), self.lower)))

    def _take_factor(self, factor: Tensor, good: Tensor | None = None) -> None:
        self._copy("factor", factor, good)
        self._invert()

    def _invert(self) -> None:
        if not self.lower:
            self._copy("inverse", torch.linalg.inv_ex(self.factor)[0], None)

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._invert()

    def _shape(self, s: Tensor, level: Tensor, rules: Rules, decomposed: tuple[Basis, Tensor, Tensor] | None) -> Tensor:
        """R, ``[K, d, d]``, of which the lower triangle counts; S may turn into it."""
        if rules.gamma is None:
            a, b = rules.affine(level)
            s.mul_(a).diagonal(dim1=1, dim2=2).add_(b.unsqueeze(1))
            return s
        assert decomposed is not None
        basis, _, noise = decomposed
        return (basis["basis0"] * noise.unsqueeze(1)) @ basis["basis0"].mT

    def _decomposed(self, s: Tensor, rules: Rules) -> tuple[Basis, Tensor, Tensor]:
        basis, values = decomposed(s)
        return basis, values, rules.noise(values)

    def _root(self, r: Tensor, found: tuple[Basis, Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
        """``L`` and a status int32 ``[K]``, 0 where there is one; of R, or of what was ``found``."""
        values = r.diagonal(dim1=1, dim2=2)
        if self.lower and r.device.type == "cpu" and is_diagonal(r):
            wrong = ~(values > 0)
            return torch.diag_embed(values.sqrt()), wrong.any(1).to(torch.int32) * (1 + wrong.int().argmax(1)).int()
        if self.lower:
            return ops.cholesky(r)
        if found is None:
            basis, noise = decomposed(r)
        else:
            basis, _, noise = found
        status = ((noise <= 0) | ~torch.isfinite(noise)).any(1).to(torch.int32)
        q = basis["basis0"]
        return (q * noise.clamp_min(0).sqrt().unsqueeze(1)) @ q.mT, status


SMALL = 128
"""Up to so many numbers a row, filter and mixture are one kernel; above, matrix products."""


@register
class Dense(Structure):
    """``S = M / (n - 1)``, scatter ``[K, d, d]``, of which the lower triangle alone counts."""

    name = "dense"
    summary = "full matrices, d^2 numbers; small data of many rows"
    roots = ("cholesky", "symmetric")
    pencil = DensePencil

    def by_axes(self, basis: Basis, like: Tensor) -> ops.Axes | None:
        """Rows of at most SMALL numbers are their one axis."""
        return ops.Axes([basis["basis0"]], [0], [self.dim]) if self.dim <= SMALL else None

    def turn(self, v: Tensor, basis: Basis, region: Tensor | None, inverse: bool) -> Tensor:
        return ops.apply_factor(v, basis["basis0"], region, transpose=inverse, lower=False)

    def turn_all(self, v: Tensor, basis: Basis, inverse: bool) -> Tensor:
        q = basis["basis0"].to(v.dtype)
        return v @ (q if inverse else q.mT)

    def points(self) -> int:
        """Two a dimension and a few; with one the error is up to 18 times the best."""
        return 14 + 2 * self.dim

    def parts(self, regions: int) -> dict[str, tuple[int, ...]]:
        return {"basis0": (regions, self.dim, self.dim)}

    def start(self, regions: int) -> Basis:
        return {"basis0": torch.eye(self.dim, dtype=torch.float64).repeat(regions, 1, 1)}

    def squares(self, values: Tensor, basis: Basis) -> Tensor:
        return (basis["basis0"].square() @ values.unsqueeze(2)).squeeze(2)

    def scatters(self, regions: int) -> dict[str, tuple[int, ...]]:
        return {"scatter": (regions, self.dim, self.dim)}

    def scatter(self, rows: Tensor, owner: Tensor | None, regions: int, basis: Basis) -> dict[str, Tensor]:
        if owner is None:
            return {"scatter": (rows.mT @ rows).tril().unsqueeze(0)}
        outer = (rows.unsqueeze(2) * rows.unsqueeze(1)).tril()
        return {"scatter": rows.new_zeros(regions, self.dim, self.dim).index_add_(0, owner, outer)}

    def update(self, moments: Moments, x: Tensor, region: Tensor | None, decay: float) -> None:
        moments.fused(x, region, decay)

    def covariance(self, moments: Moments, warm: Tensor, initial: Tensor) -> Tensor:
        lower = lower_half(moments, warm, initial).tril()
        return lower + lower.tril(-1).mT

    def spectrum(
        self, moments: Moments, basis: Basis, full: bool, warm: Tensor, initial: Tensor
    ) -> tuple[Basis, Tensor]:
        if full:
            return decomposed(lower_half(moments, warm, initial))
        s = self.covariance(moments, warm, initial)
        q = basis["basis0"].to(s.dtype)
        return basis, ((s @ q) * q).sum(1).clamp_min(0)

    def bytes(self, regions: int, state: torch.dtype, snapshot: torch.dtype) -> int:
        """At the peak of a refresh that decomposes: scatter, guess, S, two copies and the work of a decomposition (four
        matrices) and a root in the state's dtype; what the snapshot keeps, and two of it in the making."""
        return regions * self.dim * self.dim * (9 * state.itemsize + 6 * snapshot.itemsize)

    def guess(self, value: Tensor) -> Tensor:
        return value.clone() if value.ndim == 2 else torch.diag(value.expand(self.dim))


def lower_half(moments: Moments, warm: Tensor, initial: Tensor) -> Tensor:
    """S as :meth:`Dense.covariance`, a new tensor whose lower triangle alone counts: what factors and decompositions
    read."""
    return torch.where(warm.reshape(-1, 1, 1), moments.per_point("scatter"), initial)


def is_diagonal(s: Tensor) -> bool:
    """Whether S is so, by its lower triangle, as it is before any data: at d = 3072 a decomposition takes seconds."""
    return not bool(s.diagonal(-1, 1, 2).any()) and not bool(s.tril(-1).any())


def decomposed(s: Tensor) -> tuple[Basis, Tensor]:
    """Eigenvectors and eigenvalues, at least 0, of ``[K, d, d]``, as of :func:`eigh`."""
    values = s.diagonal(dim1=1, dim2=2)
    if is_diagonal(s):
        return {"basis0": torch.eye(s.shape[1], dtype=s.dtype, device=s.device).expand_as(s)}, values.clamp_min(0)
    values, vectors = eigh(s)
    return {"basis0": vectors}, values.clamp_min(0)


def obstacle(r: Tensor, status: int, lower: bool) -> str:
    """What kept one region's R, ``[d, d]``, from having a factor: for an error message."""
    r, finite = r.double(), bool(torch.isfinite(r).all())
    if not lower or not finite:
        return f"smallest eigenvalue {float(torch.linalg.eigvalsh(r)[0]):.3g}" if finite else "it is not finite"
    # The first pivot that is not positive is the smallest so far: r_jj less what the rows before it explain.
    j = status - 1
    before, _ = torch.linalg.cholesky_ex(r[:j, :j])
    explained = torch.linalg.solve_triangular(before, r[j : j + 1, :j].mT, upper=False).square().sum()
    return f"smallest pivot {float(r[j, j] - explained):.3g}, coordinate {j}"
