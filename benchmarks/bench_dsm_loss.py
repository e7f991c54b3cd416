"""The loss with its gradient: the operation beside the formulas of both, and through autograd, as training calls it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ansn import ops
from benchmarks import workloads

SIZES = pytest.mark.parametrize(("rows", "dim", "again"), [(128, 784, 0), (128, 3072, 0), (128, 3072, 1)])


def _name(start: str, rows: int, dim: int, again: bool) -> str:
    return f"{start} {rows} x {dim}, {'z made again' if again else 'target'}"


@SIZES
def test_loss_and_gradient(against, rows: int, dim: int, again: bool) -> None:
    """``w ||p - t||^2 / d`` and its gradient. Where z is made again, the peers read one that they stored."""
    against(_name("loss and gradient", rows, dim, again), workloads.loss("cpu", rows, dim, again))


@SIZES
def test_through_autograd(against, rows: int, dim: int, again: bool) -> None:
    """The mean over the rows, differentiated."""
    work = workloads.loss("cpu", rows, dim, again)
    p, target, weight = work.arguments
    leaf = p.clone().requires_grad_()

    def plain(leaf: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        return (weight * (leaf - target).square().sum(1) / leaf.shape[1]).mean()

    def ours(leaf: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        return ops.dsm_loss(leaf, None if again else target, weight=weight, seed=1, reduction="mean")

    def backward(loss: Tensor) -> Tensor:
        return torch.autograd.grad(loss, leaf)[0]

    fused, given = torch.compile(plain, dynamic=False), (leaf, target, weight)
    contenders = {"ansn": lambda: backward(ours(*given)), "eager": lambda: backward(plain(*given))}
    contenders["compile"] = lambda: backward(fused(*given))
    against(_name("loss through autograd", rows, dim, again), contenders, aim=3 if dim == 3072 else None)
