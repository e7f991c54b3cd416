"""Levels of training in C++."""

from __future__ import annotations

import torch
from torch import Tensor

from ansn.ops import _dispatch
from ansn.ops.native import _module
from ansn.ops.native._module import address, module


def why_not(ladder: Tensor) -> str | None:
    """Why they cannot be drawn here, or None."""
    if _dispatch.current_backend() == "reference":
        return "another back end was chosen"
    return "float64 is the reference's" if ladder.dtype != torch.float32 else _module.missing


def levels(
    ladder: Tensor, rows: int, normal: tuple[float, float, float, float] | None, counter: tuple[int, int, int, int]
) -> Tensor:
    """As :func:`ansn.ops.levels`, whose arguments were checked."""
    out = torch.empty(rows, dtype=torch.float32)
    place, law = (ladder.contiguous(), (0.0, 0.0, 0.0, 0.0)) if normal is None else (None, normal)
    module.levels(
        out.data_ptr(), rows, address(place), ladder.shape[0], *law, *counter,
        torch.get_num_threads(),
    )  # fmt: skip
    return out
