"""The trace of a Jacobian by reverse products: exact, and Hutchinson's estimate of it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ansn import ops

TRACES = ("hutchinson", "exact")
PROBES = ("rademacher", "gaussian")


def probes(x: Tensor, count: int, kind: str, *, seed: int, row: int = 0, step: int = 0) -> Tensor:
    """``z`` ``[P, B, d]`` with ``E z z^T = I``, in x's dtype; x ``[B, ...]``. Probe p of row r is a function of
    (seed, row + r, step P + p) alone; ``kind`` as in :data:`PROBES`."""
    zero = torch.zeros_like(x).flatten(1)
    steps = range(step * count, (step + 1) * count)
    z = torch.stack([ops.colored_step(zero, b=1.0, seed=seed, row=row, step=s, stream=ops.PROBES) for s in steps])
    return z if kind == "gaussian" else torch.where(z < 0, -1.0, 1.0).to(x.dtype)


def hutchinson(y: Tensor, x: Tensor, left: Tensor, right: Tensor, graph: bool = False) -> Tensor:
    """``left_p . dy/dx right_p``, float64 ``[P, B]``; y and x ``[B, ...]``, ``graph``: to be differentiated again."""
    return torch.stack([
        (_pulled(y, x, a, graph) * b).sum(1, dtype=torch.float64) for a, b in zip(left, right, strict=True)
    ])  # fmt: skip


def exact(y: Tensor, x: Tensor, graph: bool = False) -> Tensor:
    """``tr dy/dx``, float64 ``[1, B]``: one gradient a coordinate. The memory is that of one, or with ``graph`` of
    all."""
    total = torch.zeros(1, len(x), dtype=torch.float64, device=x.device)
    for j in range(math.prod(x.shape[1:])):
        unit = torch.zeros_like(x).flatten(1)  # a new one each time: the graph keeps it
        unit[:, j] = 1.0
        total = total + _pulled(y, x, unit, graph)[:, j]
    return total


def _pulled(y: Tensor, x: Tensor, v: Tensor, graph: bool) -> Tensor:
    """``(dy/dx)^T v`` row by row, ``[B, d]``."""
    pulled = torch.autograd.grad(
        y, x, v.reshape(x.shape), retain_graph=True, create_graph=graph, allow_unused=True, materialize_grads=True
    )
    return pulled[0].flatten(1)
