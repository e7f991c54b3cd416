"""The running moments: one batched rank-b update of ``(n, mean, scatter)`` (math section 1)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ansn.ops import _checks, _dispatch, reference

_dispatch.library.define(
    "covariance_update_(Tensor(a!) weight, Tensor(b!) weight2, Tensor(c!) mean, Tensor(d!) scatter, Tensor x,"
    " Tensor? region, float decay) -> ()"
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


def _run(weight: Tensor, weight2: Tensor, mean: Tensor, scatter: Tensor, x: Tensor, *args: Any) -> None:
    if weight.data_ptr() == weight2.data_ptr() and weight.numel():
        raise ValueError("weight2: got weight's memory, expected its own: both are updated in place")
    _dispatch.call("covariance_update_", x.device, weight, weight2, mean, scatter, x, *args)


_dispatch.library.impl("covariance_update_", _run, "CPU")
_dispatch.library.impl("covariance_update_", _run, "CUDA")


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
    rows, dim = flat.shape
    device = x.device
    for name, value in (("weight", weight), ("weight2", weight2), ("mean", mean), ("scatter", scatter)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name}: got {_checks.describe(value)}, expected a tensor, which is updated in place")
    if mean.ndim != 2 or mean.shape[1] != dim or mean.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"mean: got {_checks.describe(mean)}, expected float32 or float64 [K, {dim}]")
    count = mean.shape[0]
    if scatter.shape not in ((count, dim, dim), (count, dim)) or scatter.dtype != mean.dtype:
        raise ValueError(
            f"scatter: got {_checks.describe(scatter)}, expected {str(mean.dtype).removeprefix('torch.')}"
            f" [{count}, {dim}, {dim}] or [{count}, {dim}]"
        )
    for name, value in (("weight", weight), ("weight2", weight2)):
        if value.shape != (count,) or value.dtype != torch.float64:
            raise ValueError(f"{name}: got {_checks.describe(value)}, expected float64 [{count}]")
    for name, value in (("weight", weight), ("weight2", weight2), ("mean", mean), ("scatter", scatter)):
        if value.device != device or not value.is_contiguous():
            raise ValueError(f"{name}: got {_checks.describe(value)}, expected a contiguous tensor on {device}")
    if not isinstance(decay, (int, float)) or not 0.0 < decay <= 1.0:
        raise ValueError(f"decay: got {decay!r}, expected a number in (0, 1]")
    _checks.region(region, rows, count, device)
    torch.ops.ansn.covariance_update_.default(weight, weight2, mean, scatter, flat, region, decay)
