"""The separable structure: a basis for each axis of the data, and a variance for each coordinate (math section 11)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ansn import ops
from ansn.covariance.moments import Basis, Moments, centred, summed
from ansn.covariance.structure import Structure, by_region, eigh, register
from ansn.ops.reference import along

LONG = 1024
"""An axis of more points has the cosine basis."""


@register
class Separable(Structure):
    r"""``S = Q diag(lambda) Q^T`` with ``Q = Q_1 (x) ... (x) Q_A``, one basis an axis: ``sum n_a^2 + d`` numbers.

    ``Q_a`` are the eigenvectors of the axis's second moments, ``lambda_j = E[(Q^T (x - m))_j^2]``: the eigenbasis of a
    Kronecker product whose variances are corrected one by one (George et al. 2018, for curvature). An axis of more than
    1024 points has the orthonormal cosines of :func:`cosines`. Scatters: ``axis0`` ... ``[K, n_a, n_a]``, over
    ``d / n_a``, and ``scatter`` ``[K, d]`` of the coordinates in the basis that the moments hold.

    A new basis carries the coordinates' scatter over by ``V' = (Q'^T Q)^{o2} V``: right where coordinates are
    uncorrelated; the trace is kept.
    """

    name = "separable"
    summary = "a basis for each axis (cosines over 1024 points), a variance for each coordinate; data of any size"

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__(shape)
        self.learned = [a for a, n in enumerate(self.shape) if 1 < n <= LONG]
        self.long = [a for a, n in enumerate(self.shape) if n > LONG]
        self.oriented = bool(self.learned)

    def points(self) -> int:
        """Two vectors of a learned axis for each of its points, as of a dense structure, where a row of data has
        ``d / n_a`` of them; and twenty rows for the variances."""
        largest = max((self.shape[a] for a in self.learned), default=1)
        return 20 + math.ceil(2 * largest**2 / self.dim)

    def parts(self, regions: int) -> dict[str, tuple[int, ...]]:
        return {f"basis{a}": (regions, self.shape[a], self.shape[a]) for a in self.learned}

    def start(self, regions: int) -> Basis:
        sizes = self.parts(regions).items()
        return {name: torch.eye(size[1], dtype=torch.float64).repeat(regions, 1, 1) for name, size in sizes}

    def by_axes(self, basis: Basis, like: Tensor) -> ops.Axes | None:
        return None if self.long else self._learned(basis)

    def _learned(self, basis: Basis) -> ops.Axes:
        return ops.Axes([basis[f"basis{a}"] for a in self.learned], self.learned, self.shape)

    def turn(self, v: Tensor, basis: Basis, region: Tensor | None, inverse: bool) -> Tensor:
        flat = v.reshape(len(v), -1)
        out = ops.separable_apply(flat, self._learned(basis), inward=inverse, outward=not inverse, region=region)
        for a in self.long:
            out = cosines(out.reshape(-1, *self.shape), a + 1, inverse)
        return out.reshape(v.shape)

    def squares(self, values: Tensor, basis: Basis) -> Tensor:
        out = values.reshape(-1, *self.shape)
        for a, n in enumerate(self.shape):
            if a in self.learned:
                out = along(out, a, basis[f"basis{a}"].to(values.dtype).square())
            elif n > 1:
                out = squared_cosines(out, a + 1)
        return out.reshape(values.shape)

    def scatters(self, regions: int) -> dict[str, tuple[int, ...]]:
        axes = {f"axis{a}": (regions, self.shape[a], self.shape[a]) for a in self.learned}
        return {**axes, "scatter": (regions, self.dim)}

    def scatter(self, rows: Tensor, owner: Tensor | None, regions: int, basis: Basis) -> dict[str, Tensor]:
        axes = {f"axis{a}": self._axis(rows, a, owner, regions) for a in self.learned}
        return axes | super().scatter(rows, owner, regions, basis)

    def axis_scatters(self, moments: Moments) -> list[Tensor]:
        return [getattr(moments, f"axis{a}") for a in self.learned]

    def _axis(self, rows: Tensor, a: int, owner: Tensor | None, regions: int) -> Tensor:
        n = self.shape[a]
        before = math.prod(self.shape[:a])
        unfolded = rows.reshape(len(rows), before, n, -1).movedim(2, 1).flatten(2)  # [b, n, d / n]
        if owner is not None and n * n <= self.dim:
            return summed(unfolded @ unfolded.mT, owner, regions) * (n / self.dim)
        # A row's own product would be larger than the row: one product a region.
        parts = [part.movedim(0, 1).flatten(1) for part in by_region(unfolded, owner, regions)]
        return torch.stack([part @ part.mT for part in parts]) * (n / self.dim)

    def orient(self, moments: Moments, x: Tensor, region: Tensor | None) -> None:
        owner = None if moments.regions == 1 else region
        flat = x.detach().flatten(1).to(moments.mean.dtype)
        count, _, away = centred(flat, owner, moments.regions)
        axes = {a: self._axis(away, a, owner, moments.regions) for a in self.learned}
        moments.face(self._bases(axes, count >= self.points()))

    def _bases(self, axes: dict[int, Tensor], enough: Tensor) -> Basis:
        """Eigenvectors of each region's axes; where it has not points enough, of all regions', each about its mean."""
        pooled = (torch.where(enough.reshape(-1, 1, 1), own, own.sum(0, keepdim=True)) for own in axes.values())
        return {f"basis{a}": eigenvectors(own) for a, own in zip(axes, pooled, strict=True)}

    def reorient(self, moments: Moments) -> None:
        before = {name: part.clone() for name, part in moments.basis.items()}
        after = self._bases({a: getattr(moments, f"axis{a}") for a in self.learned}, moments.points(self.points()))
        moments.scatters["scatter"].copy_(self.carried(moments.scatters, before, after)["scatter"])
        moments.face(after)

    def carried(self, scatters: dict[str, Tensor], before: Basis, after: Basis) -> dict[str, Tensor]:
        out = scatters["scatter"].reshape(-1, *self.shape)
        for a in self.learned:
            out = along(out, a, (after[f"basis{a}"].mT @ before[f"basis{a}"]).square())
        return scatters | {"scatter": out.reshape(scatters["scatter"].shape)}


def eigenvectors(matrices: Tensor) -> Tensor:
    """Of ``[K, n, n]``, by falling eigenvalue, each with its largest entry positive: a sign is a matter of rounding."""
    vectors = eigh(matrices)[1].flip(2)
    largest = vectors.gather(1, vectors.abs().argmax(1, keepdim=True))
    return vectors * torch.where(largest < 0, -1.0, 1.0)


def cosine_matrix(n: int) -> Tensor:
    """Orthonormal cosines as columns, ``[1, n, n]`` float64: Q of :func:`cosines`."""
    with torch.inference_mode(False):  # kept for calls that autograd follows
        return cosines(torch.eye(n, dtype=torch.float64, device="cpu"), 0, False).unsqueeze(0).contiguous()


def cosines(x: Tensor, axis: int, inverse: bool) -> Tensor:
    """Orthonormal DCT-II along an axis (``inverse``: to coordinates, ``Q^T x``) or back, by an FFT of the same length
    (Makhoul 1980)."""
    n = x.shape[axis]
    x = x.movedim(axis, -1)
    k = torch.arange(n, dtype=x.dtype, device=x.device)
    phase = torch.polar(torch.ones_like(k), -math.pi * k / (2 * n))
    scale = ((2.0 - (k == 0).to(x.dtype)) / n).sqrt()
    if inverse:
        folded = torch.cat((x[..., ::2], x[..., 1::2].flip(-1)), -1)
        out = (torch.fft.fft(folded) * phase).real * scale
        return out.movedim(-1, axis)
    y = x * (n * scale / torch.where(k == 0, 1.0, 2.0))
    # Hermitian in the sense of the fold: v_k = (y_k - i y_{n-k}) e^{i pi k / 2n}.
    flipped = torch.cat((torch.zeros_like(y[..., :1]), y[..., 1:].flip(-1)), -1)
    folded = torch.fft.ifft(torch.complex(y, -flipped) * phase.conj()).real
    half = (n + 1) // 2
    back = torch.empty_like(folded)
    back[..., ::2] = folded[..., :half]
    back[..., 1::2] = folded[..., half:].flip(-1)
    return back.movedim(-1, axis)


def squared_cosines(values: Tensor, axis: int) -> Tensor:
    """``sum_k Q_jk^2 values_k`` along an axis, Q the cosines: ``cos^2 = (1 + cos 2 theta) / 2``."""
    n = values.shape[axis]
    values = values.movedim(axis, -1)
    weights = values / n
    first = weights[..., :1]
    rest = weights[..., 1:]
    # cos(2 k theta_j) for 2 k < n are basis functions; above, cos((2n - m) theta_j) = -cos(m theta_j); at n it is 0.
    doubled = torch.zeros_like(weights)
    twice = 2 * torch.arange(1, n, device=values.device)
    low, high = twice < n, twice > n
    doubled[..., twice[low]] += rest[..., low]
    doubled[..., 2 * n - twice[high]] -= rest[..., high]
    scale = 2.0**0.5 * n**-0.5
    waves = cosines(doubled / scale, values.ndim - 1, False)
    return (first + rest.sum(-1, keepdim=True) + waves).movedim(-1, axis)
