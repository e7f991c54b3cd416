"""Small calls, where the time is the call's own, against what a user would write in torch: every size from 1 x 1 on."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ansn import AdaptiveCovariance, Denoiser, NoiseModel, levels, ops
from ansn.sampling import Draw

SIZES = [(1, 1), (1, 4), (1, 64), (16, 64), (128, 64), (512, 2), (1, 784), (128, 784), (1, 3072), (128, 3072)]
MEAN, DEVIATION = -0.5, 1.2
C, B = 0.1, 0.3

pytestmark = pytest.mark.parametrize(("rows", "dim"), SIZES)


def _factor(kind: str, dim: int) -> Tensor | None:
    if kind == "none":
        return None
    if kind == "diagonal":
        return torch.rand(1, dim) + 0.5
    return torch.randn(1, dim, dim).tril() / dim**0.5 + torch.eye(dim)


def _color(z: Tensor, factor: Tensor | None) -> Tensor:
    if factor is None:
        return z
    return z * factor if factor.ndim == 2 else z @ factor[0].T


@pytest.mark.parametrize("kind", ["none", "diagonal", "dense"])
def test_step(against, kind: str, rows: int, dim: int) -> None:
    """``x + c (D - x) + b L z``, coefficients that are numbers."""
    x, denoised, factor = torch.randn(rows, dim), torch.randn(rows, dim), _factor(kind, dim)
    matrix = factor[0].T if factor is not None and kind == "dense" else factor

    def naive() -> Tensor:
        z = torch.randn_like(x)
        pushed = z if matrix is None else z @ matrix if kind == "dense" else z * matrix
        return x + C * (denoised - x) + B * pushed

    ours = {"ansn": lambda: ops.colored_step(x, denoised, c=C, b=B, factor=factor, seed=1, step=2)}
    against(f"small step, {kind}, {rows} x {dim}", ours | {"eager": naive})


@pytest.mark.parametrize("basis", ["lower", "full, transposed"])
def test_product(against, basis: str, rows: int, dim: int) -> None:
    """``L v`` of a triangular factor, and ``Q^T v`` of a basis."""
    v, factor, lower = torch.randn(rows, dim), _factor("dense", dim), basis == "lower"
    assert factor is not None
    matrix = factor[0].T if lower else factor[0]
    ours = {"ansn": lambda: ops.apply_factor(v, factor, lower=lower, transpose=not lower)}
    against(f"small product, {basis}, {rows} x {dim}", ours | {"eager": lambda: v @ matrix})


@pytest.mark.parametrize("structure", ["diagonal", "dense"])
def test_perturb(against, structure: str, rows: int, dim: int) -> None:
    """Levels, noise and ``x + tau L z``, beside EDM's lines for them."""
    x, factor = torch.randn(rows, dim), _factor(structure, dim)
    noise = NoiseModel(AdaptiveCovariance((dim,), structure=structure), levels.karras(5.0, 0.01))

    def naive() -> tuple[Tensor, Tensor]:
        tau = (torch.randn(rows, 1) * DEVIATION + MEAN).exp()
        return x + tau * _color(torch.randn_like(x), factor), tau

    against(f"small perturb, {structure}, {rows} x {dim}", {"ansn": lambda: noise.perturb(x, step=1), "eager": naive})


def test_levels(against, rows: int, dim: int) -> None:
    noise = NoiseModel(AdaptiveCovariance((dim,), structure="diagonal"), levels.karras(5.0, 0.01))
    ours = {"ansn": lambda: noise.draw_levels(rows, seed=0, step=1)}
    against(f"small levels {rows}, {dim}", ours | {"eager": lambda: (torch.randn(rows) * DEVIATION + MEAN).exp()})


def test_loss(against, rows: int, dim: int) -> None:
    """Loss and gradient, through autograd."""
    leaf, target, weight = torch.randn(rows, dim, requires_grad=True), torch.randn(rows, dim), torch.rand(rows)

    def ours() -> tuple[Tensor, ...]:
        return torch.autograd.grad(ops.dsm_loss(leaf, target, weight=weight, reduction="mean"), leaf)

    def naive() -> tuple[Tensor, ...]:
        return torch.autograd.grad((weight[:, None] * (leaf - target) ** 2).mean(), leaf)

    against(f"small loss {rows} x {dim}", {"ansn": ours, "eager": naive})


@pytest.mark.parametrize("structure", ["diagonal", "dense"])
def test_filter(against, structure: str, rows: int, dim: int) -> None:
    """``S (S + tau^2 R)^-1 v`` of a pencil, one level for all."""
    v, tau = torch.randn(rows, dim), torch.tensor(0.7)
    pencil = AdaptiveCovariance((dim,), structure=structure).track().pencil
    matrix, weights = torch.randn(dim, dim), torch.rand(1, dim)

    def naive() -> Tensor:
        shrink = weights / (weights + tau**2)
        return v * shrink if structure == "diagonal" else (v @ matrix * shrink) @ matrix.T

    against(f"small filter, {structure}, {rows} x {dim}", {"ansn": lambda: pencil.filter(v, tau), "eager": naive})


class _Null(nn.Module):
    conditioning = "none"

    def forward(self, x: Tensor) -> Tensor:
        return x


def test_sampler(against, rows: int, dim: int) -> None:
    """Twelve steps of DPM-Solver++(2M) around a network that costs nothing, beside a loop."""
    noise = NoiseModel(AdaptiveCovariance((dim,), structure="diagonal"), levels.karras(5.0, 0.01))
    draw = Draw(Denoiser(_Null(), noise, skip="scalar"), "dpmpp_2m", 12)
    taus = draw.taus.tolist()

    def loop() -> Tensor:
        x, before, last = torch.randn(rows, dim) * (1 + taus[0] ** 2) ** 0.5, None, 0.0
        for tau, following in zip(taus, [*taus[1:], 0.0], strict=True):
            v = (1.0 + tau**2) ** 0.5
            denoised = x / v**2 + tau / v * (x / v)
            if not following:
                return denoised
            ratio = following / tau
            ahead = denoised if before is None else denoised + last * (denoised - before)
            x, before, last = ratio * x + (1.0 - ratio) * ahead, denoised, 0.5
        return x

    with torch.no_grad():
        against(f"small sampler {rows} x {dim}", {"ansn": lambda: draw.batch(0, rows), "eager": loop})
