"""The running covariance against the update a user would write in torch, eager and compiled."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ansn import ops


def _plain(n: float, mean: Tensor, scatter: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Pebay/Chan in torch: the same rank-(b + 1) product, both triangles."""
    x = x.to(mean.dtype)
    b = x.shape[0]
    batch_mean = x.mean(0)
    delta = batch_mean - mean
    rows = torch.cat((x - batch_mean, ((n * b / (n + b)) ** 0.5 * delta).unsqueeze(0)))
    return mean + b / (n + b) * delta, torch.addmm(scatter, rows.mT, rows)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize(("rows", "dim"), [(128, 64), (128, 784), (128, 3072)])
def test_one_region(against, rows: int, dim: int, dtype: torch.dtype) -> None:
    """One region, rank b. The bytes are the state's lower triangle, read and written; the flops b d (d + 1)."""
    torch.manual_seed(0)
    x = torch.randn(rows, dim)
    weight = torch.full((1,), 1000.0, dtype=torch.float64)
    state = (weight, weight.clone(), torch.zeros(1, dim, dtype=dtype), torch.eye(dim, dtype=dtype).unsqueeze(0))
    mean, scatter = torch.zeros(dim, dtype=dtype), torch.eye(dim, dtype=dtype)
    compiled = torch.compile(_plain, dynamic=False)

    def eager() -> None:
        _, new = _plain(1000.0, mean, scatter, x)
        scatter.copy_(new)

    def fused() -> None:
        _, new = compiled(1000.0, mean, scatter, x)
        scatter.copy_(new)

    def in_place() -> None:
        # What a careful user writes: no copy of the state.
        wide = x.to(dtype)
        batch_mean = wide.mean(0)
        rows_ = torch.cat((wide - batch_mean, (10.0 * (batch_mean - mean)).unsqueeze(0)))
        scatter.addmm_(rows_.mT, rows_)

    against(
        f"covariance update {rows} x {dim} {str(dtype).removeprefix('torch.')}",
        {
            "ansn": lambda: ops.covariance_update_(*state, x),
            "eager": eager,
            "compile": fused,
            "eager in place": in_place,
        },
        nbytes=dim * (dim + 1) * dtype.itemsize,
        flops=rows * dim * (dim + 1),
        dtype=dtype,
    )
