"""The running moments in C++."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ansn.ops import _checks, _dispatch
from ansn.ops._operands import contiguous
from ansn.ops.native._module import DTYPE, address, module, why_not_cpu


def _why_not_update(weight: Tensor, weight2: Tensor, mean: Tensor, scatter: Tensor, x: Tensor, *_: Any) -> str | None:
    return why_not_cpu(x)


def _covariance_update_(
    weight: Tensor,
    weight2: Tensor,
    mean: Tensor,
    scatter: Tensor,
    x: Tensor,
    region: Tensor | None,
    decay: float,
) -> None:
    _checks.apart(weight, weight2)
    if x.stride(1) != 1:
        x = x.contiguous()
    region = contiguous(region)
    row = module.covariance_update(
        DTYPE[mean.dtype], weight.data_ptr(), weight2.data_ptr(), mean.data_ptr(), scatter.data_ptr(), x.data_ptr(),
        DTYPE[x.dtype], x.shape[0], x.shape[1], x.stride(0), address(region), mean.shape[0], decay, scatter.ndim == 2,
        torch.get_num_threads(),
    )  # fmt: skip
    if row >= 0:
        raise ValueError(_checks.not_finite(row))


_dispatch.register("covariance_update_", "native", _covariance_update_, _why_not_update)
