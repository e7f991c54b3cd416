"""The elementwise coloured step against torch eager, torch.compile and the reference."""

from __future__ import annotations

import pytest
import torch

from ansn import ops

SIZES = [(128, 784), (1024, 784), (128, 3072)]


def _langevin(x: torch.Tensor, denoised: torch.Tensor, c: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return x + c * (denoised - x) + b * torch.randn_like(x)


def _draw(x: torch.Tensor, scale: torch.Tensor, tau: torch.Tensor) -> torch.Tensor:
    return x + tau * scale * torch.randn_like(x)


@pytest.mark.parametrize(("rows", "dim"), SIZES)
def test_langevin_step(against, rows: int, dim: int) -> None:
    """``x + c (D - x) + b z``: reads x and D, writes out."""
    torch.manual_seed(0)
    x, denoised, c, b = torch.randn(rows, dim), torch.randn(rows, dim), torch.tensor(0.1), torch.tensor(0.3)
    compiled = torch.compile(_langevin, dynamic=False)
    against(
        f"Langevin step {rows} x {dim}",
        {
            "ansn": lambda: ops.colored_step(x, denoised, c=c, b=b, seed=1, step=2),
            "eager": lambda: _langevin(x, denoised, c, b),
            "compile": lambda: compiled(x, denoised, c, b),
        },
        nbytes=3 * rows * dim * 4,
    )


@pytest.mark.parametrize(("rows", "dim"), SIZES)
def test_diagonal_draw(against, rows: int, dim: int) -> None:
    """``x + tau L z``, L diagonal and a level for each row: the perturbation of the per-pixel control."""
    torch.manual_seed(0)
    x, scale, tau = torch.randn(rows, dim), torch.rand(1, dim) + 0.5, torch.rand(rows)
    column = tau.unsqueeze(1)
    compiled = torch.compile(_draw, dynamic=False)
    against(
        f"diagonal draw {rows} x {dim}",
        {
            "ansn": lambda: ops.colored_step(x, b=tau, factor=scale, seed=1, step=2),
            "eager": lambda: _draw(x, scale, column),
            "compile": lambda: compiled(x, scale, column),
        },
        nbytes=2 * rows * dim * 4,
    )
