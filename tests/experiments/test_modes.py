"""Modes: merging against brute force, what the judge sees, answers that follow the rows."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments import modes as claim
from experiments.lab.claim import Row, Settings
from experiments.lab.mixture import critical, merge_level
from tests import oracles


def _modes(share: float, beta: float) -> int:
    """Maxima of a mixture of two unit Gaussians at +-sqrt(beta), counted on a grid."""
    m = math.sqrt(beta)
    y = np.linspace(-m - 3, m + 3, 200_001)
    p = share * np.exp(-0.5 * (y - m) ** 2) + (1 - share) * np.exp(-0.5 * (y + m) ** 2)
    return int(((p[1:-1] > p[:-2]) & (p[1:-1] >= p[2:])).sum())


@pytest.mark.parametrize("share", [0.5, 0.6, 0.8, 0.95])
def test_modes_merge_where_a_grid_says(share: float) -> None:
    beta = critical(share)
    assert _modes(share, beta * 1.02) == 2
    assert _modes(share, beta * 0.98) == 1


def test_merge_level_along_an_eigenvector() -> None:
    own = claim.scene("two", 0.1, 0.5)
    r = own.density.covariance()
    found = merge_level(own.halves[0], own.within, r)
    assert found == pytest.approx(math.sqrt((0.1**2 - 0.02**2) / (0.1**2 + 0.02**2)), rel=1e-6)
    assert merge_level(0.1 * own.halves[0], own.within, r) == 0.0  # within one width: never apart


def test_merge_level_of_a_shape_that_does_not_commute() -> None:
    own = claim.scene("two", 0.5, 0.8, 4.0)
    shape = oracles.spd(claim.DIM, seed=3)
    tau = merge_level(own.halves[0], own.within, shape, 0.8)
    beta = float(own.halves[0] @ torch.linalg.solve(own.within + tau**2 * shape, own.halves[0]))
    assert _modes(0.8, beta * 1.02) == 2
    assert _modes(0.8, beta * 0.98) == 1


def test_judge_of_exact_samples_is_near_zero_and_sees_what_lies_between() -> None:
    place = ("eight", 1.0, 0.5)
    own = claim.scene(*place).density
    exact = claim.judge(own.sample(4000, seed=1)[0], place)
    assert exact["tv"] < 0.05
    assert exact["cov"] < 0.25
    factor = torch.linalg.cholesky(own.covariance())
    gaussian = own.mean() + torch.randn(4000, claim.DIM, dtype=torch.float64) @ factor.T
    assert claim.judge(gaussian, place)["tv"] > 0.4
    assert claim.judge(gaussian * math.nan, place)["tv"] == math.inf


def _rows(regions: float, shaped: float) -> list[Row]:
    rows: list[Row] = []
    for kind, arms in (("noise", {"scalar rho=1": shaped}), ("skip", {"mixture seen": regions})):
        rows += [{"kind": kind, "modes": "two", "half": 0.1, "share": 0.8, "arm": arm, "seed": seed, "step": step,
                  "tv": tv + 0.001 * seed, "cov": 1.0, "tv_floor": 0.01, "sampler": "flow"}
                 for arm, tv in [("scalar", 0.3), *arms.items()] for seed in range(3)
                 for step in (75, 600)]  # fmt: skip
    for merge, tv in ((1.0, 0.01), (1e-4, 0.5)):
        rows += [{"kind": "exact", "modes": "two", "half": merge, "share": 0.5, "arm": "scalar", "seed": seed,
                  "sampler": "flow", "bottom": 0.01, "merge": merge, "tv": tv, "tv_floor": 0.01}
                 for seed in range(2)]  # fmt: skip
    return rows


def test_answer_follows_the_rows(tmp_path: Path) -> None:
    good, bad = (claim.section(_rows(*values), tmp_path) for values in ((0.01, 0.5), (0.5, 0.1)))
    assert "two modes `scalar` 0.3, `mixture seen` 0.011 (floor 0.01)" in good.answer
    assert "better in 0, worse in 1 of 1" in good.answer
    assert "better in 1, worse in 0 of 1" in bad.answer
    assert "1 of 1 runs predicted to keep their modes do, and 1 of 1" in good.findings[0]
    assert any("| skip | mixture seen | 0.011" in text for _, text in good.tables)


@pytest.mark.slow
def test_cells_run() -> None:
    settings = Settings(quick=True)
    for cell in claim.cells(settings)[1:3]:
        rows = claim.run(cell, settings)
        assert all(0 <= row["tv"] <= 1 for row in rows)
