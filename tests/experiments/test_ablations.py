"""Ablations: the shapes made of a score, the stream that drifts, errors by direction, and sections that follow rows."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import ansn
from experiments import ablations
from experiments.lab.claim import Settings
from experiments.lab.exact import ExactDenoiser
from experiments.lab.mixture import Mixture
from experiments.lab.training import Frame, Trained


def _exact(density: Mixture, rho: float = 0.0, rows: int = 20_000) -> tuple[ansn.Denoiser, Tensor]:
    x = density.sample(rows, seed=5)[0].float()
    covariance = ansn.AdaptiveCovariance(density.dim, rho=rho, eps=1e-6).update(x).freeze()
    return ExactDenoiser(ansn.NoiseModel(covariance, ansn.levels.karras(8.0, 0.01)), [density]), x


def _one(values: tuple[float, ...]) -> Mixture:
    return Mixture(torch.zeros(1, len(values)), torch.diag(torch.tensor(values))[None])


def test_shapes_of_a_gaussians_score() -> None:
    values = torch.tensor((2.0, 1.0, 0.3), dtype=torch.float64)
    model, x = _exact(_one((2.0, 1.0, 0.3)))
    found = ablations.shapes_of_score(model, x, 0.5)
    v = 0.25 * float(model.noise.covariance.noise_shape()[0].diagonal().mean())
    for name, expected in (
        ("score", 1 / (values + v)), ("fisher", values), ("posterior", values * v / (values + v))
    ):  # fmt: skip
        torch.testing.assert_close(found[name], torch.diag(expected), rtol=0.08, atol=0.03)


def test_fisher_is_the_width_of_modes_that_are_apart() -> None:
    within = torch.diag(torch.tensor((0.3, 1.0)))
    density = Mixture(torch.tensor([[-30.0, 0.0], [30.0, 0.0]]), within.expand(2, 2, 2))
    model, x = _exact(density)
    assert float(x.var(0)[0]) > 500
    # Noise of variance 0.45: far less than what is between the modes.
    found = ablations.shapes_of_score(model, x, 0.03)["fisher"]
    torch.testing.assert_close(found, within.double(), rtol=0.1, atol=0.05)


def test_with_shape_has_that_shape_and_the_trace_of_the_data() -> None:
    x = torch.randn(500, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([3.0, 1.0, 0.5])
    covariance = ansn.AdaptiveCovariance(3, rho=0.0, eps_floor=0.0).update(x).freeze()
    noise = ansn.NoiseModel(covariance, ansn.levels.karras(8.0, 0.01))
    r = torch.diag(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
    level, scale = float(covariance.covariance()[0].trace()) / 3, covariance.scale.clone()
    made = ablations.with_shape(noise, r, 0.5).covariance.noise_shape()[0]
    expected = (0.5 * r / 2 + (0.5 + 1e-3) * torch.eye(3, dtype=torch.float64)) * level
    torch.testing.assert_close(made, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(covariance.scale, scale)


def test_stream_follows_its_law() -> None:
    data = ablations.stream(4)
    a = data.map(1.0)
    # A turn by 90 degrees and a growth: A A^T = growth^2 I, and thin directions go where others were.
    torch.testing.assert_close(a @ a.T, data.growth**2 * torch.eye(4, dtype=torch.float64), atol=1e-9, rtol=0)
    turned, still = (c / c.trace() for c in (data.density(1.0).covariance(), data.density(0.0).covariance()))
    assert float((turned - still).norm()) > 0.3 * float(still.norm())
    whole = torch.cat([x for _, x, _ in data.batches(1, 40_000, 3)]).double()  # all of t = 0
    torch.testing.assert_close(torch.cov(whole.T), data.density(0.0).covariance(), rtol=0.05, atol=0.02)
    steps = [x for _, x, _ in data.batches(4, 20_000, 4)]
    torch.testing.assert_close(torch.cov(steps[3].double().T), data.density(0.75).covariance(), rtol=0.08, atol=0.1)


def test_error_of_the_best_linear_denoiser_is_one() -> None:
    model, x = _exact(_one((2.0, 1.0, 0.3, 0.01)), rho=1.0)
    found = ablations.Directions(x).error(model, x, 0.7)
    torch.testing.assert_close(found, torch.ones(4, dtype=torch.float64), rtol=0.05, atol=0)


def test_mended_samples_have_the_datas_moments_in_one_group_only() -> None:
    x = torch.randn(400, 8, generator=torch.Generator().manual_seed(1)) * torch.arange(1, 9)
    directions = ablations.Directions(x)
    samples = 1.0 + 2.0 * torch.randn(300, 8, generator=torch.Generator().manual_seed(2)).double()
    before, after = directions.into(samples), directions.into(directions.repaired(samples, 1))
    torch.testing.assert_close(after[:, 2:4].var(0), directions.values[2:4])
    torch.testing.assert_close(after[:, 2:4].mean(0), torch.zeros(2, dtype=torch.float64), atol=1e-9, rtol=0)
    kept = [0, 1, 4, 5, 6, 7]
    torch.testing.assert_close(after[:, kept], before[:, kept])


def test_switched_takes_each_network_at_its_levels() -> None:
    one, x = _exact(_one((1.0, 2.0)), rows=100)
    two, _ = _exact(_one((4.0, 1.0)), rows=100)
    both = ablations.Switched(one, two, 0.3)
    torch.testing.assert_close(both(x, 0.3), one(x, 0.3))
    torch.testing.assert_close(both(x, 0.29), two(x, 0.29))


def test_divergence_of_the_law_itself_is_zero() -> None:
    density = ablations.stream(4).still
    model, _ = _exact(density)
    row = ablations._current(Trained(1, 0.0, 0.0, model, Frame(), model), density, 0)
    assert abs(row["excess"]) < 0.05
    assert row["fd"] < 4 * row["fd_floor"] + 0.1


def _base(**more: Any) -> dict[str, Any]:
    return {"fd_floor": 0.2, "fd": 1.0, "nll": -1.0, "lr": 1e-3, **more}


def _rows(sign: float) -> list[dict[str, Any]]:
    """``sign`` -1: whatever is asked about is better than its control, 1 worse."""
    rows = []
    for seed in range(3):
        moved = sign * 0.1 * (1 + 0.05 * seed)
        common = {"seed": seed, "problem": "digits"}
        for step in (10, 20):
            for study, shape, variant, away in (
                ("family", "rho=0", "base", 0.0), ("family", "rho=0.5", "base", moved),
                ("option", "rho=0.5", "symmetric root", 2 * moved),
                ("score", "rho=0.5", "data", 0.0), ("score", "rho=0.5", "fisher", moved),
            ):  # fmt: skip
                rows.append(_base(**common, study=study, shape=shape, variant=variant, step=step, fd=1.0 + away))
        for shape, away in (("rho=0", 0.0), ("rho=0.5", moved)):
            told = {"shape": shape, "variant": "tuned", "step": 20, "fd": 1.0 + away, "choice": "default"}
            for levels, ladder in (("default", "default"), ("tuned", "default"), ("tuned", "tuned")):
                told |= {"levels": levels, "ladder": ladder, "log_mean": -0.5, "log_std": 1.2}
                rows.append(_base(**common, study="levels", **told))
        for how, away in (("fixed", 0.0), ("online", moved / 2), ("forgetting 0.98", moved)):
            for time in (0.5, 1.0):
                rows.append(_base(**common, study="drift", shape="rho=0.5", variant=how, step=int(20 * time),
                                  time=time, excess=0.5 + away))  # fmt: skip
        for step in (4, 8, 12):
            for weights in ("averaged", "latest")[: 1 if step < 12 else 2]:
                fd = 1.0 + (moved if step == 12 else 0.0)
                late = _base(**common, study="late", shape="rho=1", variant="rho=1", step=step, weights=weights)
                late |= {"early_below": fd - 0.05 - 0.001 * seed, "fd_more": 1.0}
                late |= dict.fromkeys(("fd", "early_above", "fd_held"), fd)
                for g in range(ablations.GROUPS):
                    late |= {f"variance_{g}": 1.0, f"repaired_{g}": fd - 0.01 * g * (1 + seed / 10)}
                    late |= {f"error_train_{g}": 0.9 - (moved if step == 12 else 0.0), f"error_test_{g}": 0.95}
                rows.append(late)
    return rows


def test_section_says_what_the_rows_say(tmp_path: Path) -> None:
    ahead, behind = (ablations.section(_rows(sign), tmp_path) for sign in (-1.0, 1.0))
    told = {
        "ahead of isotropic noise rho=0.5; behind it none": "ahead of isotropic noise none; behind it rho=0.5",
        "better symmetric root at rho=0.5; worse none": "better none; worse symmetric root at rho=0.5",
        "(better), before": "(worse), before",
        "beats one fixed": "does not beat a fixed one",
        "digits, fisher: better": "digits, fisher: worse",
        "refuted: it gets better": "worse late is confirmed",
    }
    for one, other in told.items():
        assert one in ahead.answer
        assert other in behind.answer
        assert one not in behind.answer
    assert any("learns its training rows by heart" in line for line in behind.findings)
    assert any("overfits less" in line for line in ahead.findings)
    assert any("lost late is lost below it" in line for line in behind.findings)
    assert not any("lost late is lost" in line for line in ahead.findings)
    for _, name in ahead.figures:
        assert (tmp_path / name).stat().st_size > 1000


def test_ladders_begin_and_end_where_they_say() -> None:
    model, _ = _exact(_one((1.0, 2.0)), rows=100)
    found = ablations.ladders(Trained(1, 0.0, 0.0, model, Frame(), model))
    assert len(found) == 13
    assert all(len(taus) == 12 and bool((taus.diff() < 0).all()) for taus in found.values())
    assert float(found["0.6 of the start, to 0.04, p = 7"][-1]) == pytest.approx(0.04)


@pytest.mark.parametrize("quick", [False, True])
def test_every_study_has_cells(quick: bool) -> None:
    studies = {cell["study"] for cell in ablations.cells(Settings(quick=quick))}
    assert studies == {"family", "option", "levels", "drift", "score", "late"}


@pytest.mark.slow
@pytest.mark.parametrize("study", ["family", "levels", "drift", "score", "late"])
def test_a_cell_runs(study: str) -> None:
    settings = Settings(quick=True)
    cell = next(cell for cell in reversed(ablations.cells(settings)) if cell["study"] == study)
    rows = [cell | row for row in ablations.run(cell, settings)]
    assert {row["seed"] for row in rows} == ({1} if study == "late" else {0, 1})
    assert all(math.isfinite(row["fd"]) for row in rows)
