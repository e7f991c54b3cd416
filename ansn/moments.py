"""Running moments ``(n, m, M)`` of K regions: update, merge, reset (math section 1)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ansn import ops
from ansn.structures import Structure


class RunningMoments(nn.Module):
    """Count, mean and centred scatter of each region, exact and mergeable.

    Buffers: ``weight`` and ``weight2`` float64 ``[K]`` (sums of the weights and of their squares, both n without
    forgetting), ``mean`` ``[K, d]``, ``scatter`` in the structure's storage; of a dense scatter only the lower
    triangle counts.
    """

    weight: Tensor
    weight2: Tensor
    mean: Tensor
    scatter: Tensor

    def __init__(
        self,
        dim: int,
        regions: int,
        structure: Structure,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.structure = structure
        for name, size, kind in (
            ("weight", (regions,), torch.float64),
            ("weight2", (regions,), torch.float64),
            ("mean", (regions, dim), dtype),
            ("scatter", structure.storage(regions, dim), dtype),
        ):
            self.register_buffer(name, torch.zeros(size, dtype=kind, device=device))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> RunningMoments:
        keep_dtypes(self, fn)
        return self

    def update(self, x: Tensor, region: Tensor | None = None, decay: float = 1.0) -> None:
        """Merge the rows of ``x`` ``[B, ...]``; see :func:`ansn.ops.covariance_update_`."""
        ops.covariance_update_(self.weight, self.weight2, self.mean, self.scatter, x, region, decay=decay)

    def divisor(self) -> Tensor:
        """Unbiased divisor ``W - sum w^2 / W``: n - 1 without forgetting; float64 ``[K]``."""
        return self.weight - self.weight2 / self.weight.clamp_min(torch.finfo(torch.float64).tiny)

    def covariance(self) -> Tensor:
        """``S_k``, in the structure's storage; 0 for a region of fewer than two points."""
        divisor = self.divisor()
        return self.structure.covariance(self.scatter, torch.where(divisor > 0, divisor, torch.inf))

    @torch.no_grad()
    def decay_(self, factor: float) -> None:
        """Forget: scale the weights by ``factor`` and their squares by its square."""
        self.weight *= factor
        self.weight2 *= factor * factor
        self.scatter *= factor

    @torch.no_grad()
    def merge(self, other: RunningMoments) -> None:
        """Add what ``other`` gathered (Chan): ``M <- M_a + M_b + n_a n_b / n (m_b - m_a)(m_b - m_a)^T``."""
        total = self.weight + other.weight
        share = torch.where(total > 0, other.weight / total.clamp_min(torch.finfo(torch.float64).tiny), 0.0)
        delta = other.mean - self.mean
        root = (self.weight * share).sqrt().to(delta.dtype).unsqueeze(1)
        self.scatter += other.scatter + self.structure.outer(root * delta)
        self.mean += share.to(delta.dtype).unsqueeze(1) * delta
        self.weight += other.weight
        self.weight2 += other.weight2

    @torch.no_grad()
    def reset(self) -> None:
        """Forget everything."""
        for buffer in self.buffers():
            buffer.zero_()


def keep_dtypes(module: nn.Module, fn: Callable[[Tensor], Tensor]) -> None:
    """``nn.Module._apply`` for buffers whose precision is part of their meaning: ``.half()`` moves, never converts
    them."""
    for name, buffer in module._buffers.items():
        if buffer is not None:
            # An empty tensor tells where fn moves things without paying for a conversion.
            target = fn(buffer.new_empty(0)).device
            module._buffers[name] = fn(buffer) if target.type == "meta" else buffer.to(target)
    for child in module.children():
        child._apply(fn)
