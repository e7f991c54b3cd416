"""The dense draw ``x + tau L z`` against torch eager, torch.compile and torch.distributions, and the product alone."""

from __future__ import annotations

import pytest
import torch

from ansn import ops

SIZES = [(1, 784), (16, 784), (128, 64), (128, 784), (1024, 784), (128, 3072), (1024, 3072)]


def _draw(x: torch.Tensor, factor: torch.Tensor, tau: torch.Tensor) -> torch.Tensor:
    return x + tau * torch.randn_like(x) @ factor.T


def _lower(dim: int) -> torch.Tensor:
    """``[1, d, d]``: rows of about unit length, as a factor of a matrix with unit diagonal has."""
    return torch.randn(1, dim, dim).tril() / dim**0.5 + torch.eye(dim)


def _least(rows: int, dim: int, regions: int = 1) -> tuple[int, int]:
    """Bytes and flops of a product with a triangle for each region."""
    return 4 * (regions * dim * (dim + 1) // 2 + 2 * rows * dim), rows * dim * (dim + 1)


@pytest.mark.parametrize(("rows", "dim"), SIZES)
def test_dense_draw(against, rows: int, dim: int) -> None:
    """Against the draws that a user would write; "matmul" is the BLAS's full
    product with z given."""
    torch.manual_seed(0)
    x, factor, tau = torch.randn(rows, dim), _lower(dim), torch.tensor(0.5)
    matrix = factor[0]
    compiled = torch.compile(_draw, dynamic=False)
    normal = torch.distributions.MultivariateNormal(torch.zeros(dim), scale_tril=matrix, validate_args=False)
    z, turned = torch.randn(rows, dim), matrix.T
    contenders = {
        "ansn": lambda: ops.colored_step(x, b=tau, factor=factor, seed=1, step=2),
        "eager": lambda: _draw(x, matrix, tau),
        "compile": lambda: compiled(x, matrix, tau),
        "matmul": lambda: z @ turned,
    }
    if rows * dim * dim <= 1e8:  # a matrix-vector product for each row: seconds a call beyond
        contenders["MultivariateNormal"] = lambda: x + tau * normal.sample((rows,))
    against(f"dense draw {rows} x {dim}", contenders, *_least(rows, dim))


@pytest.mark.parametrize(("rows", "dim"), [(128, 784), (128, 3072)])
def test_product(against, rows: int, dim: int) -> None:
    """``L v`` of a given v against the full product."""
    torch.manual_seed(0)
    v, factor = torch.randn(rows, dim), _lower(dim)
    matrix = factor[0]
    against(
        f"factor product {rows} x {dim}",
        {"ansn": lambda: ops.apply_factor(v, factor), "matmul": lambda: v @ matrix.T},
        *_least(rows, dim),
    )


@pytest.mark.parametrize(("rows", "dim", "regions"), [(128, 784, 10), (1024, 64, 100)])
def test_dense_draw_by_region(against, rows: int, dim: int, regions: int) -> None:
    """Each row has its region's factor; the peer loops over the regions present, as the reference does."""
    torch.manual_seed(0)
    x, factor, tau = torch.randn(rows, dim), _lower(dim).repeat(regions, 1, 1), torch.tensor(0.5)
    region = torch.randint(regions, (rows,))

    def looped() -> torch.Tensor:
        out, z = x.clone(), torch.randn_like(x)
        for k in region.unique():
            index = (region == k).nonzero().squeeze(1)
            out[index] += tau * z[index] @ factor[k].T
        return out

    against(
        f"dense draw {rows} x {dim}, {regions} regions",
        {
            "ansn": lambda: ops.colored_step(x, b=tau, factor=factor, region=region, seed=1, step=2),
            "eager loop": looped,
            "eager bmm": lambda: x + tau * torch.bmm(factor[region], torch.randn_like(x).unsqueeze(2)).squeeze(2),
        },
        *_least(rows, dim, regions),
    )
