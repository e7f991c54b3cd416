"""The fused loss and gradient against autograd over the plain formula, eager and compiled."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ansn import ops


def _residual(p: Tensor, z: Tensor, w: Tensor) -> Tensor:
    return w * (p + z).square().sum(1) / p.shape[1]


def _error(p: Tensor, t: Tensor, w: Tensor) -> Tensor:
    return w * (p - t).square().sum(1) / p.shape[1]


@pytest.mark.parametrize("kind", ["regenerated", "target"])
@pytest.mark.parametrize(("rows", "dim"), [(128, 784), (1024, 784), (128, 3072)])
def test_loss_and_gradient(against, rows: int, dim: int, kind: str) -> None:
    """``w ||p - t||^2 / d`` and its gradient. Without a target the peers read a z that they stored, and "with randn"
    make it anew; "autograd" is ansn as training calls it, the peers too: the mean over the rows, differentiated."""
    torch.manual_seed(0)
    p, other, w = torch.randn(rows, dim), torch.randn(rows, dim), torch.rand(rows)
    leaf = p.clone().requires_grad_()
    plain = _error if kind == "target" else _residual
    compiled = torch.compile(plain, dynamic=False)
    target = other if kind == "target" else None

    def backward(loss: Callable[[], Tensor]) -> Callable[[], Tensor]:
        def run() -> Tensor:
            with torch.enable_grad():
                return torch.autograd.grad(loss(), leaf)[0]

        return run

    peers = {
        "eager": backward(lambda: plain(leaf, other, w).mean()),
        "compile": backward(lambda: compiled(leaf, other, w).mean()),
        "autograd": backward(lambda: ops.dsm_loss(leaf, target, weight=w, seed=1, reduction="mean")),
    }
    if target is None:
        peers["eager with randn"] = backward(lambda: plain(leaf, torch.randn_like(p), w).mean())
    against(
        f"loss and gradient {rows} x {dim}, {kind}",
        {"ansn": lambda: torch.ops.ansn.dsm_loss(p, target, w, 1, 0, 0, ops.PERTURB), **peers},
        nbytes=(2 if target is None else 3) * rows * dim * 4,
    )
