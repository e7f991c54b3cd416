"""What the claim about skips says follows from its rows, and turns with them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

import ansn
from ansn.skips import INPUTS, SKIPS, Seen
from experiments import skips
from experiments.lab.claim import Settings
from experiments.lab.training import Setup

Row = dict[str, Any]


def curves(speed: dict[str, float], name: str = "digits", **tuned: str) -> list[Row]:
    """Rows that fall like ``1000 / (speed * step)``."""
    return [
        {
            "problem": name, "arm": arm, "steps": 400, "seeds": 5, "for": tuned.get("for_", "fd+loss"), "seed": seed,
            "step": step, "fd": value, "loss": value, "nll": value, "tv": value, "cov": value, "fd_floor": 0.1,
            "tv_floor": 0.01, "cov_floor": 0.1, "fd_dpmpp_2m_4": value, "fd_gaussian_2m_4": value,
            "seconds": 0.01 * step, "lr": 1e-3, "start": 3.0, "torch": "0", "cpu": "none",
        }
        for arm, factor in speed.items() for seed in range(5) for step in (50, 100, 200, 400)
        for value in [1000.0 / (factor * step) * (1 + 0.01 * seed)]
    ]  # fmt: skip


def test_an_arm_twice_as_fast_is_twice_as_fast() -> None:
    rows = curves({"scalar": 1.0, "wiener, seen": 2.0})
    found = skips.gain(rows, "digits", "wiener, seen", "loss")
    assert found is not None
    assert math.exp(found.log.mean) == pytest.approx(2.0, rel=0.05)
    difference = skips.compared(rows, "digits", "wiener, seen", "loss")
    assert difference is not None
    assert difference.sign == -1
    assert skips.gain(rows, "digits", "mixture 10", "loss") is None


def test_losses_of_other_knowledge_are_not_compared() -> None:
    rows = curves({"scalar": 1.0, "regions 10": 2.0})
    assert skips.compared(rows, "digits", "regions 10", "loss") is None
    assert skips.compared(rows, "digits", "regions 10", "fd") is not None


def test_each_metric_is_told_at_its_own_rate() -> None:
    rows = curves({"scalar": 1.0}, for_="fd") + curves({"scalar": 3.0}, for_="loss")
    assert {r["fd"] for r in skips.of(rows, "digits", "scalar", "fd")}.isdisjoint(
        {r["fd"] for r in skips.of(rows, "digits", "scalar", "nll")}
    )


def test_the_section_turns_with_the_rows(tmp_path: Path) -> None:
    arms = dict.fromkeys(("scalar", "scalar, seen", "wiener", "wiener, seen", "mixture 10", "mixture 10, seen"), 1.0)
    rows = curves(arms | {"mixture 10, seen": 2.0}) + curves(arms | {"mixture 10": 3.0}, "two modes")
    found = skips.section(rows, tmp_path)
    assert "digits: mixture 10, seen" in found.answer
    assert "two modes: mixture 10 (" in found.answer
    assert any(line.startswith("Ten regions against one Gaussian: better: two modes") for line in found.findings)
    assert (tmp_path / found.figures[0][1]).exists()


SEEN = pytest.param("mixture 10, estimate and regions seen", marks=pytest.mark.slow)


@pytest.mark.parametrize("arm", [SEEN, "told 10", "told classes"])
def test_an_arm_runs(arm: str) -> None:
    rows = skips.run({"problem": "digits", "arm": arm, "steps": 2, "seeds": 1}, Settings(quick=True))
    assert rows[-1]["step"] == 2
    assert math.isfinite(rows[-1]["fd"])
    assert (rows[-1].get("nll") is None) == arm.startswith("told")


def test_words_before_a_shape() -> None:
    assert Setup("mixture10+estimate rho=0").begins == ("mixture", 10, ("estimate",), "rho=0")
    assert Setup("mixtureauto rho=0").begins == ("mixture", "auto", (), "rho=0")
    assert Setup("scalar+estimate+residual fixed rho=0.5").begins[2:] == (("estimate", "residual"), "fixed rho=0.5")
    assert Setup("whitened").begins == ("scalar", 0, (), "whitened")


def test_further_inputs_are_what_they_say() -> None:
    """Of Gaussian data: the residual of the best denoiser has less than unit variance, the deviation is the
    posterior's."""
    x = torch.randn(500, 3, dtype=torch.float64) @ torch.diag(torch.tensor([2.0, 1.0, 0.1], dtype=torch.float64))
    covariance = ansn.AdaptiveCovariance(3, rho=0.0, eps_floor=0.0, eps=0.0, factor_dtype=torch.float64)
    noise = ansn.NoiseModel(covariance.update(x).track().freeze(), ansn.levels.karras(5.0, 0.01))
    tau = torch.full((500,), 0.5, dtype=torch.float64)
    noisy, _ = noise.perturb(x, tau=tau, seed=1)
    mean, scale = covariance.center, covariance.scale
    seen = Seen(noise, noisy, tau, None, mean, scale, tau)
    seen.estimate = SKIPS["wiener"].estimate(seen)
    s, r = covariance.covariance()[0], covariance.noise_shape()[0] * 0.25
    posterior = torch.linalg.inv(torch.linalg.inv(s) + torch.linalg.inv(r)).diagonal().sqrt()
    torch.testing.assert_close(INPUTS["deviation"](seen)[0] * scale, posterior, rtol=1e-6, atol=0)
    assert bool((INPUTS["residual"](seen).var(0) < 1.0).all())
    torch.testing.assert_close(INPUTS["filtered"](seen), INPUTS["estimate"](seen))
