"""Mode collapse: merging and transport against brute force, what the judge sees, answers that follow the rows."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from experiments import mode_collapse as claim
from experiments.lab.claim import Row, Settings
from tests import oracles


def _modes(share: float, beta: float) -> int:
    """Maxima of a mixture of two unit Gaussians at +-sqrt(beta), counted on a grid."""
    m = math.sqrt(beta)
    y = np.linspace(-m - 3, m + 3, 200_001)
    p = share * np.exp(-0.5 * (y - m) ** 2) + (1 - share) * np.exp(-0.5 * (y + m) ** 2)
    return int(((p[1:-1] > p[:-2]) & (p[1:-1] >= p[2:])).sum())


@pytest.mark.parametrize("share", [0.5, 0.6, 0.8, 0.95])
def test_modes_merge_where_a_grid_says(share: float) -> None:
    beta = claim.critical(share)
    assert _modes(share, beta * 1.02) == 2
    assert _modes(share, beta * 0.98) == 1


def test_merge_level_along_an_eigenvector() -> None:
    own = claim.scene("two", 0.1, 5.0, 0.5)
    assert own.within is not None
    r = own.density.covariance()
    found = claim.merge_level(own.halves[0], own.within, r)
    assert found == pytest.approx(math.sqrt((0.1**2 - 0.02**2) / (0.1**2 + 0.02**2)), rel=1e-6)
    assert claim.merge_level(0.1 * own.halves[0], own.within, r) == 0.0  # within one width: never apart


def test_merge_level_of_a_shape_that_does_not_commute() -> None:
    own = claim.scene("two", 0.5, 4.0, 0.8)
    assert own.within is not None
    shape = oracles.spd(claim.DIM, seed=3)
    tau = claim.merge_level(own.halves[0], own.within, shape, 0.8)
    total = own.within + tau**2 * shape
    beta = float(own.halves[0] @ torch.linalg.solve(total, own.halves[0]))
    assert _modes(0.8, beta * 1.02) == 2
    assert _modes(0.8, beta * 0.98) == 1


def test_mixing_rate_of_one_gaussian() -> None:
    assert claim.mixing_rate(0.0, 0.7, 1.3, 0.5) == pytest.approx(0.5 * 0.25 * 1.3 / (0.49 + 0.25 * 1.3), rel=1e-3)


def test_mixing_rate_falls_with_the_barrier() -> None:
    rates = [claim.mixing_rate(1.0, 0.2, 1.0, tau) for tau in (3.0, 1.0, 0.5, 0.3)]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.03 * rates[0]


def test_annealed_share_of_a_long_run_is_the_weight_and_of_none_the_start() -> None:
    assert claim.annealed_share(1.0, 0.2, 1.0, [3.0, 2.0, 1.5, 1.2], 500, 0.8, cells=200) > 0.5
    assert claim.annealed_share(3.0, 0.5, 1.0, [0.5, 0.1], 100, 0.8) == pytest.approx(1.0, abs=1e-3)
    fine = np.geomspace(4.0, 0.1, 30).tolist()
    assert claim.annealed_share(1.0, 0.2, 1.0, fine, 100, 0.8, cells=200) == pytest.approx(0.8, abs=0.01)


def test_annealed_share_against_simulated_particles() -> None:
    rng = np.random.default_rng(0)
    half, width, share, steps, n = 1.0, 0.25, 0.8, 10, 20_000
    taus = np.geomspace(1.0, 0.05, 6)
    y = half + math.sqrt(width**2 + taus[0] ** 2) * rng.normal(size=n)
    for tau in taus:
        v = width**2 + tau**2
        for _ in range(10 * steps):  # a tenth of the step: near continuous time
            logs = math.log(share / (1 - share)) + 2 * half * y / v
            score = (half * np.tanh(0.5 * logs) - y) / v
            y = y + 0.5 * claim.ALPHA / 10 * tau**2 * score + math.sqrt(claim.ALPHA / 10) * tau * rng.normal(size=n)
    expected = claim.annealed_share(half, width, 1.0, taus.tolist(), steps, share)
    assert (y > 0).mean() == pytest.approx(expected, abs=0.015)


def test_flow_share_goes_from_the_start_to_the_weight() -> None:
    assert claim.flow_share(1.0, 0.2, 1.0, 0.1, 0.8) == pytest.approx(1.0, abs=1e-4)
    assert claim.flow_share(1.0, 0.2, 1.0, 1e3, 0.8) == pytest.approx(0.8, abs=1e-3)


def test_freezing_level_is_where_the_rate_says() -> None:
    level = claim.freezing_level(1.0, 0.2, 1.0, 100)
    assert claim.ALPHA * 100 * claim.mixing_rate(1.0, 0.2, 1.0, level) == pytest.approx(1.0, rel=0.02)
    assert claim.freezing_level(1.0, 0.2, 1.0, 1) == math.inf


@pytest.mark.parametrize(("modes", "half", "ratio"), [("eight", 1.0, 5.0), ("rotated", 1.0, 8.0)])
def test_judge_of_exact_samples_is_near_zero_and_sees_what_lies_between(modes: str, half: float, ratio: float) -> None:
    own = claim.scene(modes, half, ratio, 0.5).density
    exact = claim.judge(own.sample(4000, seed=1)[0], modes, half, ratio, 0.5)
    assert exact["tv"] < 0.05
    assert exact["outside"] < 0.005
    factor = torch.linalg.cholesky(own.covariance())
    gaussian = own.mean() + torch.randn(4000, claim.DIM, dtype=torch.float64) @ factor.T
    assert claim.judge(gaussian, modes, half, ratio, 0.5)["outside"] > 0.4
    assert claim.judge(gaussian * math.nan, modes, half, ratio, 0.5)["tv"] == math.inf


def test_rotated_components_have_an_isotropic_covariance() -> None:
    s = claim.scene("rotated", 1.0, 8.0, 0.5).density.covariance()
    torch.testing.assert_close(s, s[0, 0] * torch.eye(claim.DIM, dtype=torch.float64), atol=1e-12, rtol=0)


def _rows(gain: float) -> list[Row]:
    """Learned and exact rows in which rho = 1, and isotropic noise under the Wiener skip, is below isotropic noise by
    ``gain``."""
    rows: list[Row] = []
    for seed in range(5):
        for shape in ("rho=0", "rho=1", "whitened", "wiener rho=0"):
            level = 0.5 - gain * (shape in ("rho=1", "wiener rho=0")) - 2 * gain * (shape == "whitened") + 0.001 * seed
            base: dict[str, Any] = {
                "modes": "two", "half": 0.1, "ratio": 5.0, "share": 0.5, "shape": shape, "seed": seed,
                "evaluations": 20,
            }  # fmt: skip
            base |= dict.fromkeys(("tv", "weights", "cov", "sw2"), level + 1e-4 * (seed % 2) * (shape != "rho=0"))
            base |= dict.fromkeys(("tv_floor", "weights_floor", "cov_floor", "sw2_floor"), 0.01)
            for sampler in ("flow", "flow early"):
                rows.append({**base, "kind": "learned", "sampler": sampler, "lr": 1e-3})
            for sampler in ("flow", "flow low"):
                told = {"kind": "exact", "sampler": sampler, "evaluations": 40, "merge": 0.1, "bottom": 0.01}
                rows.append({**base, **told})
    return rows


def test_section_follows_the_rows(tmp_path: Path) -> None:
    better, worse = (claim.section(_rows(gain), tmp_path) for gain in (0.2, -0.2))
    assert better.answer.startswith("Yes: ")
    assert worse.answer.startswith("No:")
    for told, of in (
        ("had the better modes in 1 of 1", better), ("wiener rho=0 against rho=0: better in 1 of 1 settings", better),
        ("wiener rho=0 against rho=0: worse in 1 of 1 settings", worse), ("kept modes better in 0 of 1 pairs", worse),
        ("had the better modes in 0 of 1", worse), ("0 of 1 pairs of a setting and a rho, worse in 1", worse),
    ):  # fmt: skip
        assert told in of.answer
    assert all((tmp_path / file).exists() for _, file in better.figures)


def test_cells_run() -> None:
    settings = Settings(quick=True)
    cell = claim._cell("learned", "two", 0.1, shape="rho=1", steps=4, seeds=1)
    rows = claim.run(cell, settings)
    assert [row["sampler"] for row in rows] == ["flow early", "flow"]
    assert all(math.isfinite(row["tv"]) for row in rows)
