"""The batched rank-1 update, one row for each of K regions, against what a user would write in torch, and against the
Welford adaptation of NumPyro and BlackJAX where they are installed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ansn import ops
from benchmarks import peers


def _addcmul(n: Tensor, mean: Tensor, scatter: Tensor, x: Tensor) -> None:
    delta = x - mean
    scatter.addcmul_((delta * (n / (n + 1))).unsqueeze(2), delta.unsqueeze(1))
    mean += delta / (n + 1)
    n += 1


def _baddbmm(n: Tensor, mean: Tensor, scatter: Tensor, x: Tensor) -> None:
    delta = x - mean
    scatter.baddbmm_((delta * (n / (n + 1))).unsqueeze(2), delta.unsqueeze(1))
    mean += delta / (n + 1)
    n += 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize(("regions", "dim"), [(1024, 64), (64, 784)])
def test_one_row_a_region(against, regions: int, dim: int, dtype: torch.dtype) -> None:
    """The bytes are the lower triangles, read and written. The peers move both triangles; JAX's are float32."""
    torch.manual_seed(0)
    x = torch.randn(regions, dim)
    weight = torch.full((regions,), 1000.0, dtype=torch.float64)
    region = torch.arange(regions)

    def state() -> tuple[Tensor, Tensor]:
        return torch.zeros(regions, dim, dtype=dtype), torch.eye(dim, dtype=dtype).repeat(regions, 1, 1)

    moments = (weight, weight.clone(), *state())
    n, wide = weight.to(dtype).unsqueeze(1), x.to(dtype)
    plain = {name: (n.clone(), *state()) for name in ("eager addcmul", "eager baddbmm", "compile")}
    compiled = torch.compile(_addcmul, dynamic=False)
    contenders: dict[str, Callable[[], object]] = {
        "ansn": lambda: ops.covariance_update_(*moments, x, region),
        "eager addcmul": lambda: _addcmul(*plain["eager addcmul"], wide),
        "eager baddbmm": lambda: _baddbmm(*plain["eager baddbmm"], wide),
        "compile": lambda: compiled(*plain["compile"], wide),
    }
    if dtype == torch.float32:
        contenders |= peers.available({"NumPyro": peers.numpyro(x, regions), "BlackJAX": peers.blackjax(x, regions)})
    against(
        f"rank-1 update K = {regions}, d = {dim} {str(dtype).removeprefix('torch.')}",
        contenders,
        nbytes=regions * dim * (dim + 1) * dtype.itemsize,
    )
