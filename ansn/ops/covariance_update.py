"""The running moments: one batched rank-b update of ``(n, mean, scatter)`` (math section 1)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ansn.ops import _checks, _dispatch, reference

_run = _dispatch.define(
    "covariance_update_(Tensor(a!) weight, Tensor(b!) weight2, Tensor(c!) mean, Tensor(d!) scatter, Tensor x,"
    " Tensor? region, float decay) -> ()",
    lambda weight, weight2, *_: _checks.apart(weight, weight2),
)


def _reference(
    weight: Tensor,
    weight2: Tensor,
    mean: Tensor,
    scatter: Tensor,
    x: Tensor,
    region: Tensor | None,
    decay: float,
) -> None:
    _checks.update_values(x, region, mean.shape[0])
    reference.covariance_update_(weight, weight2, mean, scatter, x, region, decay)


_dispatch.register("covariance_update_", "reference", _reference)


@torch.library.register_fake("ansn::covariance_update_")
def _(*_args: Any) -> None:
    return None


def covariance_update_(
    weight: Tensor,
    weight2: Tensor,
    mean: Tensor,
    scatter: Tensor,
    x: Tensor,
    region: Tensor | None = None,
    *,
    decay: float = 1.0,
) -> None:
    """Merge a batch into the moments of its regions, in place (Pebay/Chan; math section 1).

    With ``b`` rows of mean ``bm`` in a region, ``delta = bm - m`` and ``A = [x - bm; sqrt(n b / (n + b)) delta]``::

        M <- decay M + A^T A,  m <- m + b / (n + b) delta,  n <- decay n + b,  n2 <- decay^2 n2 + b

    Args:
        weight, weight2: float64 ``[K]``, sums of the weights and of their squares.
        mean: ``[K, d]``, float32 or float64, the state's dtype.
        scatter: ``[K, d, d]``, of which **only the lower triangle is used**, or ``[K, d]`` (diagonal); the state's
            dtype.
        x: ``[B, ...]``, any float dtype, flattened to ``[B, d]``. ``B = 0`` only decays.
        region: int64 ``[B]`` in ``0..K-1``; may be None when K = 1.
        decay: forgetting factor ``lambda`` in (0, 1], applied to every region before the merge.

    Raises TypeError or ValueError naming the argument; on the CPU also when x is not finite. The state is then
    untouched.
    """
    _checks.batched("x", x)
    # What needs no conversion takes no call: a small update is as short as its overhead.
    flat = x if x.ndim == 2 else x.flatten(1)
    if flat.requires_grad:
        flat = flat.detach()
    _checks.moments(weight, weight2, mean, scatter, flat, region, decay)
    _run(weight, weight2, mean, scatter, flat, region, decay)
