"""Many small Cholesky factors against torch's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import ansn.ops  # noqa: F401 - defines torch.ops.ansn


def covariances(count: int, dim: int, dtype: torch.dtype = torch.float32) -> Tensor:
    torch.manual_seed(0)
    a = torch.randn(count, dim, dim, dtype=dtype)
    return a @ a.mT / dim + torch.eye(dim, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize(
    ("count", "dim"),
    [(1024, 4), (1024, 8), (1024, 16), (1024, 32), (1024, 64), (256, 96), (256, 128), (1, 16), (1, 64), (1, 128)],
)
def test_factor(against, count: int, dim: int, dtype: torch.dtype) -> None:
    """``L L^T = A``. The bytes are the lower triangles read and whole factors written; flops are K d^3 / 3."""
    matrix = covariances(count, dim, dtype)
    against(
        f"Cholesky {count} x {dim} {str(dtype).removeprefix('torch.')}",
        {"ansn": lambda: torch.ops.ansn.cholesky(matrix), "eager": lambda: torch.linalg.cholesky_ex(matrix)},
        nbytes=count * (dim * (dim + 1) // 2 + dim * dim) * dtype.itemsize,
    )
