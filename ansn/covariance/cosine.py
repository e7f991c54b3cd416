"""The cosine structure: frequencies are uncorrelated, channels mix at each; for stationary fields of any size."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ansn import ops
from ansn.covariance.moments import Basis, Moments, owners, summed
from ansn.covariance.separable import cosine_matrix, cosines, squared_cosines
from ansn.covariance.structure import Structure, by_region, eigh, register

LONG = 128
"""Where all axes have at most so many points, cosines are a product with a matrix; else an FFT."""

CHANNELS = 16
"""A first axis of at most so many points, before others, is the channels'."""


@register
class Cosine(Structure):
    """``S = Q diag(lambda) Q^T``, Q the orthonormal cosines (DCT-II) of every axis but the channels', times an
    orthogonal ``C x C`` block at each frequency: ``C d`` numbers, exact moments in a basis that never changes.

    Scatter ``[K, d / C, C, C]`` of the channels' cosine coordinates; the block's eigenvectors are part of the snapshot.
    With one channel there are no blocks: scatter ``[K, d]``.
    """

    name = "cosine"
    summary = "cosines along each axis, channels mixed at each frequency; stationary fields of any size"

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__(shape)
        self.channels = self.shape[0] if len(self.shape) > 1 and self.shape[0] <= CHANNELS else 1
        self.axes = self.shape[1:] if len(self.shape) > 1 and self.shape[0] <= CHANNELS else self.shape
        self.frequencies = math.prod(self.axes)
        first = len(self.shape) - len(self.axes)
        long = max(self.axes) > LONG
        self.waved = [] if long else [first + a for a, n in enumerate(self.axes) if n > 1]
        self._matrices = {torch.device("cpu"): [cosine_matrix(self.shape[a]) for a in self.waved]}

    def points(self) -> int:
        """Two a channel, as of a dense structure of one frequency."""
        return 16 + 2 * (self.channels - 1)

    def parts(self, regions: int) -> dict[str, tuple[int, ...]]:
        if self.channels == 1:
            return {}
        return {"mix": (regions, self.frequencies, self.channels, self.channels)}

    def start(self, regions: int) -> Basis:
        eye = torch.eye(self.channels, dtype=torch.float64)
        return {name: eye.repeat(*size[:2], 1, 1) for name, size in self.parts(regions).items()}

    def by_axes(self, basis: Basis, like: Tensor) -> ops.Axes | None:
        return self._by_matrix(like) if self.channels == 1 else None

    def _by_matrix(self, like: Tensor) -> ops.Axes | None:
        """The cosines as matrices, of which a product takes less than an FFT up to LONG points."""
        if not self.waved:
            return None
        if like.device not in self._matrices:
            with torch.inference_mode(False):
                self._matrices[like.device] = [matrix.to(like.device) for matrix in self._matrices[torch.device("cpu")]]
        return ops.Axes(self._matrices[like.device], self.waved, self.shape)

    def turn(self, v: Tensor, basis: Basis, region: Tensor | None, inverse: bool) -> Tensor:
        if inverse:
            return self._mixed(self._waves(v, True), basis, region, True)
        return self._waves(self._mixed(v, basis, region, False), False)

    def _waves(self, v: Tensor, inverse: bool) -> Tensor:
        q = self._by_matrix(v)
        if q is not None:
            return ops.separable_apply(v, q, inward=inverse, outward=not inverse)
        out = v.reshape(len(v), self.channels, *self.axes)
        for a, n in enumerate(self.axes):
            out = cosines(out, a + 2, inverse) if n > 1 else out
        return out.reshape(v.shape)

    def _mixed(self, v: Tensor, basis: Basis, region: Tensor | None, inverse: bool) -> Tensor:
        if self.channels == 1:
            return v
        mix = basis["mix"].to(v.dtype)
        mix = mix[:1] if region is None or len(mix) == 1 else mix[region]
        by_frequency = v.reshape(-1, self.channels, self.frequencies).mT.unsqueeze(3)  # [B, F, C, 1]
        return ((mix.mT if inverse else mix) @ by_frequency).squeeze(3).mT.reshape(v.shape)

    def squares(self, values: Tensor, basis: Basis) -> Tensor:
        each = owners(len(values), values.device)
        out = self._mixed(values, {"mix": basis["mix"].square()}, each, False) if basis else values
        out = out.reshape(-1, self.channels, *self.axes)
        for a, n in enumerate(self.axes):
            out = squared_cosines(out, a + 2) if n > 1 else out
        return out.reshape(values.shape)

    def scatters(self, regions: int) -> dict[str, tuple[int, ...]]:
        return {"scatter": self.parts(regions).get("mix", (regions, self.dim))}

    def scatter(self, rows: Tensor, owner: Tensor | None, regions: int, basis: Basis) -> dict[str, Tensor]:
        waves = self._waves(rows, True)
        if self.channels == 1:
            return {"scatter": summed(waves.square(), owner, regions)}
        parts = by_region(waves.reshape(-1, self.channels, self.frequencies), owner, regions)
        blocks = [part.movedim(2, 0) for part in parts]  # [F, b, C]
        return {"scatter": torch.stack([block.mT @ block for block in blocks])}

    def spectrum(
        self, moments: Moments, basis: Basis, full: bool, warm: Tensor, initial: Tensor
    ) -> tuple[Basis, Tensor]:
        if self.channels == 1:
            return super().spectrum(moments, basis, full, warm, initial)
        blocks = moments.per_point("scatter")
        if full:
            values, vectors = eigh(blocks)
            basis = {"mix": vectors}
        else:
            q = basis["mix"].to(blocks.dtype)
            values = ((blocks @ q) * q).sum(2)
        flat = values.clamp_min(0).mT.reshape(moments.regions, self.dim)
        return basis, torch.where(warm.unsqueeze(1), flat, initial)
