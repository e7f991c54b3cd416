"""The running moments in C++."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ansn.ops import _dispatch
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
    if decay != 1.0:
        weight *= decay
        weight2 *= decay * decay
        scatter *= decay
    count, cols = mean.shape
    x = x.contiguous()
    if region is None or count == 1:
        groups: list[tuple[int, Tensor | None, int]] = [(0, None, x.shape[0])]
    else:
        # Rows of one region made adjacent by a stable sort; each group keeps the batch's order.
        order = torch.argsort(region, stable=True)
        sizes = torch.bincount(region, minlength=count).tolist()
        parts = torch.split(order, sizes)
        groups = [(k, parts[k], sizes[k]) for k in range(count)]
    for k, rows, b in groups:
        if b == 0:
            continue
        module.covariance_update(
            DTYPE[mean.dtype], float(weight[k]), mean[k].data_ptr(), scatter[k].data_ptr(), x.data_ptr(),
            DTYPE[x.dtype], b, cols, cols, address(rows), scatter.ndim == 2, torch.get_num_threads(),
        )  # fmt: skip
        weight[k] += b
        weight2[k] += b


_dispatch.register("covariance_update_", "native", _covariance_update_, _why_not_update)
