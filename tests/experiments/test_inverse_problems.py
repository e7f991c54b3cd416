"""Inverse problems: coloured noise that is made white, figures of a true posterior, sentences that follow the rows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from experiments import inverse_problems as claim
from experiments.lab.claim import Row, Settings

SHAPE = (1, 8, 8)


@pytest.mark.parametrize("name", ["whole", "half"])
def test_coloured_noise_is_white_where_it_is_known(name: str) -> None:
    c, operator = claim.colour(SHAPE), claim.operators(SHAPE, "coloured")[name]
    assert float(c.diagonal().mean()) == pytest.approx(1.0)
    white, w = claim.whitened(operator, c)
    a = operator(torch.eye(64, dtype=torch.float64).view(64, *SHAPE)).flatten(1).T
    seen = w @ a @ c @ a.T @ w.T
    torch.testing.assert_close(seen, torch.eye(len(seen), dtype=torch.float64), rtol=0, atol=1e-9)
    x = torch.randn(3, *SHAPE, dtype=torch.float64)
    torch.testing.assert_close(white(x), operator(x).flatten(1) @ w.T, rtol=1e-9, atol=1e-9)


def test_figures_of_draws_of_the_posterior_are_one() -> None:
    """Truth and samples drawn alike given y: spread and residual are 1 to the accuracy of 300 images."""
    operator, sigma = claim.operators(SHAPE, "white")["half"], 0.3
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 9, *SHAPE, generator=generator)
    y = operator(x[:, 0]) + sigma * torch.randn(300, 32, generator=generator)
    # Unit Gaussian data: given y, known pixels are N(y / (1 + sigma^2), sigma^2 / (1 + sigma^2)).
    known = operator.adjoint(torch.ones(1, 32))
    mean, spread = operator.adjoint(y) / (1 + sigma**2), 1 - known + known * sigma / (1 + sigma**2) ** 0.5
    drawn = mean.unsqueeze(1) + spread * x[:, 1:]
    found = claim.figures_of(x[:, 0], drawn, operator, y, sigma)
    # 300 x 32 independent values: rms within five times 1 / sqrt(2 n), about 0.04.
    assert found["spread"] == pytest.approx(1.0, abs=0.04)
    assert found["residual"] == pytest.approx(1.0, abs=0.04)
    assert found["psnr_mean"] > found["psnr_sample"]
    sure = claim.figures_of(x[:, 0], mean.unsqueeze(1) + 0.5 * spread * x[:, 1:], operator, y, sigma)
    assert sure["spread"] > 1.5


def _rows(noise: str, shaped: float) -> list[Row]:
    methods = {"isotropic": 15.0, "adapted": 16.0, **({claim.IGNORANT: 14.0} if noise == "coloured" else {})}
    return [
        {"noise": noise, "data": "digits", "arm": arm, "seed": seed, "problem": "half", "sigma": 0.1, "method": method,
         "psnr_mean": db + (shaped if "rho" in arm else 0.0) + 0.01 * seed, "spread": 1.0}
        for arm in ("scalar", "scalar rho=0.5") for seed in range(3) for method, db in methods.items()
    ]  # fmt: skip


def test_sentences_follow_the_rows(tmp_path: Path) -> None:
    white = claim.section(_rows("white", -1.0), tmp_path)
    assert "white, digits: learned less isotropic V 1 " in white.answer
    assert "worse: `scalar rho=0.5`" in white.findings[0]
    assert white.missing == "coloured noise"
    both = claim.section(_rows("white", -1.0) + _rows("coloured", 1.0), tmp_path)
    assert any(line.startswith("coloured, digits: trained under") and "better: `s" in line for line in both.findings)
    assert any("knowing C against taking it for white: 2 " in line for line in both.findings)
    assert not both.missing


@pytest.mark.slow
def test_a_cell_runs(tmp_path: Path) -> None:
    settings = Settings(quick=True, out=tmp_path)
    rows = claim.run(claim.cells(settings)[0], settings)
    assert {row["method"] for row in rows} == {*claim.KNOWN, claim.IGNORANT}
    assert all(row["spread"] > 0 and row["residual"] > 0 for row in rows)
