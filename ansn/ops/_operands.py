"""What launchers of every back end do to operands before a kernel sees them."""

from __future__ import annotations

from typing import overload

import torch
from torch import Tensor


@overload
def contiguous(tensor: Tensor) -> Tensor: ...
@overload
def contiguous(tensor: Tensor | None) -> Tensor | None: ...
def contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def plain(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Contiguous, in ``dtype``; what is so already takes no call."""
    if tensor is None or (tensor.dtype == dtype and tensor.is_contiguous()):
        return tensor
    return tensor.to(dtype).contiguous()


def stride(coefficient: Tensor | None) -> int:
    """0: one for all rows, 1: one for each."""
    return 0 if coefficient is None or coefficient.ndim == 0 else 1


def sort_rows(region: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Rows grouped by region, without telling the host how many each has: ``order`` int64 ``[B]`` and ``offsets`` int64
    ``[K + 1]``.

    Rows of region k stand at positions ``offsets[k]`` to ``offsets[k + 1]``, position p is row ``order[p]`` of the
    batch; each group keeps the batch's order. A region index outside ``0..K-1`` is in no group.
    """
    regions, order = torch.sort(region, stable=True)
    return order, torch.searchsorted(regions, torch.arange(count + 1, device=region.device))
