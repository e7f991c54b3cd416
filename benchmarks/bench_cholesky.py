"""Many small Cholesky factors, alone and with the draw, against torch's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ansn import ops


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


def _eager(matrix: Tensor, x: Tensor, b: Tensor) -> Tensor:
    factor = torch.linalg.cholesky_ex(matrix)[0]
    return x + b * (factor @ torch.randn_like(x).unsqueeze(2)).squeeze(2)


@pytest.mark.parametrize("per_matrix", [1, 16])
@pytest.mark.parametrize(("count", "dim"), [(1024, 4), (1024, 16), (1024, 32), (1024, 64), (256, 128)])
def test_draw(against, count: int, dim: int, per_matrix: int) -> None:
    """``x + b L z``, proposals of many chains with a covariance each; the bytes are the lower triangles, x and out."""
    matrix, b = covariances(count, dim), torch.tensor(0.5)
    rows = count * per_matrix
    x = torch.randn(rows, dim)
    region = None if per_matrix == 1 else torch.arange(count).repeat_interleave(per_matrix)
    grouped = x.reshape(count, per_matrix, dim)

    def eager() -> Tensor:
        if per_matrix == 1:
            return _eager(matrix, x, b)
        factor = torch.linalg.cholesky_ex(matrix)[0]
        return grouped + b * (torch.randn_like(grouped) @ factor.mT)

    against(
        f"Cholesky and draw {count} x {dim}, {per_matrix} a matrix",
        {"ansn": lambda: ops.cholesky_draw(matrix, x, b=b, region=region, seed=1), "eager": eager},
        nbytes=(count * dim * (dim + 1) // 2 + 2 * rows * dim) * 4,
    )
