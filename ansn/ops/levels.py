"""Levels of training, drawn: a function of (seed, row, step) alone (math section 5)."""

from __future__ import annotations

import torch
from torch import Tensor

from ansn.ops import _checks, _dispatch, native, reference
from ansn.ops.colored_step import colored_step


def levels(
    ladder: Tensor,
    rows: int,
    normal: tuple[float, float, float, float] | None = None,
    *,
    seed: int = 0,
    row: int = 0,
    step: int = 0,
) -> Tensor:
    """``[rows]``, dtype of ``ladder`` ``[N]``: one of its rungs, each as likely, or for ``normal = (mean, deviation,
    low, high)`` ``ln tau ~ N(mean, deviation^2)``, clipped.

    Row r is a function, to rounding, of the first normal of ``(seed, row + r, step)`` in the stream of levels. A
    composition of operations; in C++ one call. Raises TypeError or ValueError naming a counter.
    """
    if _dispatch.direct((ladder,)) and native.levels.why_not(ladder) is None:
        return native.levels.levels(ladder, rows, normal, _checks.counter(rows, seed, row, step, reference.LEVELS))
    start = torch.zeros(rows, 1, dtype=ladder.dtype, device=ladder.device)
    z = colored_step(start, b=1.0, seed=seed, row=row, step=step, stream=reference.LEVELS).squeeze(1)
    if normal is not None:
        mean, deviation, low, high = normal
        return torch.exp(mean + deviation * z).clamp(low, high)
    # Phi(z) is uniform; float64, so that the last rung is as likely as the others.
    count = ladder.shape[0]
    return ladder[(torch.special.ndtr(z.double()) * count).long().clamp(0, count - 1)]
