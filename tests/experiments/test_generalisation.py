"""Generalisation: its closed forms, the parts of a seed, and a section that follows its rows."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from experiments import generalisation
from experiments.lab.claim import Settings
from experiments.lab.training import blur, one_copy


def _covariance(d: int, seed: int) -> torch.Tensor:
    a = torch.randn(d, 2 * d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return a @ a.T / (2 * d)


def test_blur_is_the_divergence_of_two_gaussians() -> None:
    s, noise = _covariance(5, 0), 0.3 * _covariance(5, 1)
    zero = torch.zeros(5, dtype=torch.float64)
    p, q = (torch.distributions.MultivariateNormal(zero, c) for c in (s, s + noise))
    expected = float(torch.distributions.kl_divergence(p, q)) / 5
    assert blur(s, noise) == pytest.approx(expected, rel=1e-12)
    assert blur(s, 1e-4 * noise) < 1e-6  # of second order in the noise


def test_gaussian_likelihood_is_that_of_scipy() -> None:
    from scipy import stats

    train, x = (torch.randn(n, 4, generator=torch.Generator().manual_seed(n)).double() for n in (50, 20))
    s = np.cov(train.numpy(), rowvar=False)
    shrunk = 0.9 * s + 0.1 * np.trace(s) / 4 * np.eye(4)
    expected = -stats.multivariate_normal(train.mean(0).numpy(), shrunk).logpdf(x.numpy()).mean() / 4
    assert generalisation.gaussian_nll(train, x, 0.1) == pytest.approx(expected, rel=1e-7)


def test_parts_of_a_seed_are_disjoint_and_its_own() -> None:
    one, again, other = (generalisation.parts("fields", 50, seed) for seed in (0, 0, 1))
    train, validation = one_copy(one.learned.train), one_copy(one.learned.test)
    assert len(train) == 50
    assert len(validation) == generalisation.VALIDATION
    assert float(torch.cdist(train, validation).min()) > 0
    torch.testing.assert_close(train, one_copy(again.learned.train), rtol=0, atol=0)
    assert not torch.equal(train, one_copy(other.learned.train))
    assert not torch.equal(one.test, other.test)
    with pytest.raises(ValueError, match="rows: got 1300, expected at most 1200"):
        generalisation.parts("digits", 1300, 0)


def _rows(sign: float) -> list[dict[str, Any]]:
    """Three seeds and steps; ``sign`` -1: rho = 0.5 has the lower negative log-likelihood and repeats less."""
    rows = []
    for seed in range(3):
        for shape, moved in (
            ("rho=0", 0.0), ("rho=0.5", sign), ("rho=1", -sign), ("whitened", 0.01 * seed - 0.01),
            ("wiener rho=0.5", sign),
        ):  # fmt: skip
            for step, away in ((100, 0.3), (200, 0.0), (400, 0.2)):
                value = -1.0 + away + 0.1 * moved * (1 + 0.05 * seed) + 0.01 * seed
                rows.append({
                    "problem": "digits", "size": 200, "shape": shape, "seed": seed, "lr": 1e-3, "step": step,
                    "train": value - 0.001 * step, "validation": value, "test": value + 0.02, "gaussian": -0.6,
                    "memorised": 0.3 + 0.1 * moved * (1 + 0.1 * seed), "ratio": 0.9, "memorised_held": 0.05,
                    "ratio_held": 1.0, "footing": 1e-5, "seconds": 1.0,
                    "integration": 1e-3 if seed == 0 and step == 400 else None,
                })  # fmt: skip
    return rows


def test_best_is_chosen_by_validation_rows() -> None:
    rows = [{"seed": 0, "step": s, "validation": v, "test": t} for s, v, t in ((1, 2.0, 1.0), (2, 1.0, 3.0))]
    rows.append({"seed": 0, "step": 3, "validation": math.inf, "test": 0.0})
    assert [row["step"] for row in generalisation.best(rows)] == [2]


def test_section_says_what_the_rows_say(tmp_path: Path) -> None:
    ahead, behind = (generalisation.section(_rows(sign), tmp_path) for sign in (-1.0, 1.0))
    assert ahead.answer.startswith("Yes: at each run's best checkpoint")
    assert behind.answer.startswith("No: it generalises worse")
    assert "rho = 0.5 is better in 1, worse in 0, undecided in 0 of 1" in ahead.answer
    assert "rho = 0.5 is better in 0, worse in 1, undecided in 0 of 1" in behind.answer
    assert "`wiener rho=0.5` is better in 1, worse in 0, undecided in 0 of 1" in ahead.answer
    assert "`wiener rho=0.5` is better in 0, worse in 1, undecided in 0 of 1" in behind.answer
    assert "more often than isotropic noise in 0 and less often in 1" in ahead.answer
    assert "more often than isotropic noise in 1 and less often in 0" in behind.answer
    assert any("is better than whitened" in line for line in ahead.findings)
    assert any("is worse than whitened" in line for line in behind.findings)
    # 0.1 nats a dimension and its unit: bits.
    assert f"{-0.105 / math.log(2):+.2g}" in ahead.answer
    for _, name in ahead.figures:
        assert (tmp_path / name).stat().st_size > 1000
    equal = generalisation.section(_rows(0.0), tmp_path)
    assert equal.answer.startswith("No difference seen")


@pytest.mark.slow
def test_a_cell_runs() -> None:
    rows = generalisation.run(generalisation.cells(Settings(quick=True))[1], Settings(quick=True))
    assert {row["step"] for row in rows} == {10, 20}
    assert all(math.isfinite(row["test"]) and 0 <= row["memorised"] <= 1 for row in rows)
