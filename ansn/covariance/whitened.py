r"""A noise shape R that is given, beside an S that is learned (math section 10)::

    R = W W^T,    y = W^-1 x,    S = W S' W^T,    S' = Q diag(l) Q^T the covariance of y,    B = W Q

R and S need not commute: S' has any structure, and its noise is isotropic.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ansn import ops
from ansn.covariance.moments import Basis, Moments
from ansn.covariance.pencil import Pencil, Rules, uncast
from ansn.covariance.structure import Structure


class WhitenedPencil(Pencil):
    """``B = W Q`` and s = 1. Variances are the eigenvalues of S and of R, each in its own basis, which the two do not
    share; :meth:`spread` and :meth:`matrix` are ``B diag(w) B^T``."""

    structure: Whitened
    factor: Tensor

    def _allocate(self, dtype: torch.dtype, device: torch.device | str | None) -> None:
        super()._allocate(dtype, device)
        self.register_buffer("factor", self.structure.factor.to(device, dtype))

    def fit(self, state_dict: dict[str, Any], prefix: str) -> None:
        name, ours = f"{prefix}factor", self.factor
        if name in state_dict:
            theirs = state_dict[name]
            slack = 100 * max(torch.finfo(v.dtype).eps for v in (theirs, ours)) * float(ours.abs().max())
            if theirs.shape != ours.shape or not torch.allclose(theirs.to(ours), ours, rtol=0, atol=slack):
                raise ValueError("noise: got a state of another noise shape, expected the one that is given")
            state_dict[name] = ours  # not as the state rounds it

    def inward(self, v: Tensor, region: Tensor | None = None) -> Tensor:
        flat = self._flat(v)
        with uncast(flat):
            return self._back(self._inner(self.structure.colored(flat, inverse=True), region, True), v)

    def dual(self, c: Tensor, region: Tensor | None = None) -> Tensor:
        flat = self._flat(c)
        with uncast(flat):
            return self._back(self.structure.colored(self._inner(flat, region, False), transpose=True, inverse=True), c)

    def directions(self, c: Tensor, region: Tensor | None = None) -> Tensor:
        """In the basis of S alone: of a unit coordinate, an eigenvector."""
        vectors = torch.linalg.eigh(self.matrix(self.l.double()))[1]
        return self._back(ops.apply_factor(self._flat(c), vectors.to(c.dtype), region, lower=False), c)

    def color(
        self, z: Tensor, region: Tensor | None = None, *, transpose: bool = False, inverse: bool = False
    ) -> Tensor:
        flat = self._flat(z)
        with uncast(flat):
            return self._back(self.structure.colored(flat, transpose=transpose, inverse=inverse), z)

    def step(self, x: Tensor, denoised: Tensor | None = None, f: Tensor | None = None, **options: Any) -> Tensor:
        options.pop("region", None)  # one R for all
        return ops.colored_step(x, denoised, f, factor=self.factor, **options)

    def filter(
        self, v: Tensor, tau: float | Tensor, region: Tensor | None = None, *, center: Tensor | None = None
    ) -> Tensor:
        flat = self._flat(v)
        away = flat if center is None else flat - self._of(center, region).to(flat.dtype)
        c = self.inward(away, region)
        noise = torch.as_tensor(tau, dtype=c.dtype, device=c.device).square().reshape(-1, 1)
        rest = noise / (self._of(self.l, region).to(c.dtype) + noise) * c
        return self._back(flat - self.outward(rest, region), v)

    def start(self, mean: Tensor, tau: float | Tensor, region: Tensor | None = None, **counters: Any) -> Tensor:
        level = torch.as_tensor(tau, dtype=self.l.dtype, device=mean.device).reshape(-1, 1)
        z = self._inner(ops.colored_step(torch.zeros_like(mean), b=1.0, **counters), region, True)
        return mean + self.outward((self._of(self.l, region) + level * level).sqrt().to(z.dtype) * z, region)

    def log_volume(self) -> Tensor:
        factor = self.factor.double()
        return (factor if factor.ndim == 2 else factor.diagonal(dim1=1, dim2=2)).log().sum(1).expand(self.regions)

    def noise_shape(self) -> Tensor:
        factor = self.factor.double()
        r = factor @ factor.mT if factor.ndim == 3 else torch.diag_embed(factor.square())
        return r.expand(self.regions, -1, -1)

    def noise_diagonal(self) -> Tensor:
        return self.noise_shape().diagonal(dim1=1, dim2=2).to(self.like.dtype)

    def noise_variances(self) -> Tensor:
        return torch.linalg.eigvalsh(self.noise_shape()).to(self.like.dtype)

    def variances(self) -> Tensor:
        return torch.linalg.eigvalsh(self.matrix(self.l.double())).to(self.l.dtype)

    def one(self, region: int, dtype: torch.dtype) -> Pencil:
        out = type(self)(self.structure, 1, self.root, dtype, self.like.device)
        some = slice(region, region + 1)
        out.install({name: part[some] for name, part in self.basis.items()}, self.deviation[some], self.l[some])
        return out

    def remake(self, moments: Moments, initial: Tensor, rules: Rules, full: bool) -> tuple[Tensor, Tensor]:
        good, level = super().remake(moments, initial, rules, full)
        return good, self.structure.squares(self.l, self.basis).mean(1).to(level.dtype)

    def _inner(self, v: Tensor, region: Tensor | None, inverse: bool) -> Tensor:
        return self.structure.inner.turn(v, self.basis, region, inverse)


class Whitened(Structure):
    """A structure of ``y = W^-1 x``, W lower triangular or, of ``noise`` ``[d]``, diagonal; ``turn`` is B.

    Raises ValueError unless ``noise`` is R, ``[d]`` variances > 0 or ``[d, d]``, symmetric and positive definite.
    """

    summary = "of coordinates in which a noise shape that is given is isotropic"
    roots = ("cholesky",)
    pencil = WhitenedPencil

    def __init__(self, inner: Structure, noise: Tensor) -> None:
        super().__init__(inner.shape)
        self.inner, self.oriented = inner, inner.oriented
        self.name = f"{inner.name} under a given noise"  # type: ignore[misc]
        if noise.shape not in ((self.dim,), (self.dim, self.dim)):
            expected = f"a variance, [{self.dim}] or [{self.dim}, {self.dim}]"
            raise ValueError(f"noise: got shape {list(noise.shape)}, expected {expected}")
        noise = noise.detach().double()
        symmetric = noise.ndim == 1 or torch.allclose(noise, noise.mT, rtol=0, atol=1e-6 * float(noise.abs().max()))
        root, status = (noise.sqrt(), (noise <= 0).any()) if noise.ndim == 1 else torch.linalg.cholesky_ex(noise)
        if bool(status) or not symmetric or not bool(torch.isfinite(root).all()):
            got = "variances that are not all finite and > 0" if noise.ndim == 1 else "a matrix that is no covariance"
            raise ValueError(f"noise: got {got}, expected a noise shape: symmetric and positive definite")
        self.factor = root.unsqueeze(0)
        self.level = float(root.square().sum()) / self.dim
        self._factors: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def colored(self, v: Tensor, transpose: bool = False, inverse: bool = False) -> Tensor:
        """``W v``, ``W^T v``, ``W^-1 v`` or ``W^-T v``, ``[B, d]``."""
        key = v.device, v.dtype
        if key not in self._factors:
            with torch.inference_mode(False):
                self._factors[key] = self.factor.to(v.device, v.dtype)
        return ops.apply_factor(v, self._factors[key], transpose=transpose, inverse=inverse)

    def turn(self, v: Tensor, basis: Basis, region: Tensor | None, inverse: bool) -> Tensor:
        if inverse:
            return self.inner.turn(self.colored(v, transpose=True), basis, region, True)
        return self.colored(self.inner.turn(v, basis, region, False))

    def points(self) -> int:
        return self.inner.points()

    def parts(self, regions: int) -> dict[str, tuple[int, ...]]:
        return self.inner.parts(regions)

    def start(self, regions: int) -> Basis:
        return self.inner.start(regions)

    def scatters(self, regions: int) -> dict[str, tuple[int, ...]]:
        return self.inner.scatters(regions)

    def scatter(self, rows: Tensor, owner: Tensor | None, regions: int, basis: Basis) -> dict[str, Tensor]:
        return self.inner.scatter(self.colored(rows, inverse=True), owner, regions, basis)

    def update(self, moments: Moments, x: Tensor, region: Tensor | None, decay: float) -> None:
        moments.gather(x, region, decay)

    def spectrum(
        self, moments: Moments, basis: Basis, full: bool, warm: Tensor, initial: Tensor
    ) -> tuple[Basis, Tensor]:
        return self.inner.spectrum(moments, basis, full, warm, initial)

    def initial(self, value: Tensor) -> Tensor:
        """A guess that is R of this variance."""
        if value.ndim:
            raise ValueError(f"initial: got shape {list(value.shape)}, expected a number beside noise")
        return self.inner.initial(value / self.level)

    def orient(self, moments: Moments, x: Tensor, region: Tensor | None) -> None:
        self.inner.orient(moments, self.colored(x.detach().flatten(1).to(moments.mean), inverse=True), region)

    def reorient(self, moments: Moments) -> None:
        self.inner.reorient(moments)

    def carried(self, scatters: dict[str, Tensor], before: Basis, after: Basis) -> dict[str, Tensor]:
        return self.inner.carried(scatters, before, after)

    def bytes(self, regions: int, state: torch.dtype, snapshot: torch.dtype) -> int:
        return self.inner.bytes(regions, state, snapshot) + self.factor.numel() * (8 + snapshot.itemsize)
