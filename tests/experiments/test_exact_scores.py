"""Exact scores: the recursions are the package's samplers, the search finds, the sentences follow the rows."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ansn
from experiments import exact_scores
from experiments.lab import linear
from experiments.lab.claim import Settings
from experiments.lab.mixture import basis
from tests.experiments.impulses import moments
from tests.oracles import ExactDenoiser, covariance_within_five_sigma, fixed_covariance, gaussian, noise_model

DIM = 4
L = np.array([1.7, 1.2, 0.6, 0.02])
TAUS = torch.tensor([3.0, 1.1, 0.4, 0.1], dtype=torch.float64)


def model(r: np.ndarray, root: str = "symmetric") -> ExactDenoiser:
    """Exact denoiser of N(0, U diag(L) U^T) under noise U diag(r) U^T."""
    u = basis(DIM, 3)
    covariance = fixed_covariance((u * torch.from_numpy(r)) @ u.T, root=root)
    return ExactDenoiser(
        noise_model(covariance, tuple(TAUS.tolist())),
        gaussian(torch.zeros(DIM, dtype=torch.float64), (u * torch.from_numpy(L)) @ u.T),
    )


@pytest.mark.parametrize("method", ["euler", "heun", "dpmpp_2m"])
@pytest.mark.parametrize("r", [np.ones(DIM), 0.5 + 0.5 * L, L], ids=["isotropic", "half", "full"])
def test_flow_is_the_packages_on_every_direction(method: str, r: np.ndarray) -> None:
    """Sampler applied to the eigenvectors: it multiplies each by what the recursion says."""
    sampler = getattr(ansn.sampling, method)
    out = sampler(model(r), basis(DIM, 3).T.contiguous(), TAUS) @ basis(DIM, 3)
    expected = linear.FLOWS[method](L / r, TAUS.numpy())
    torch.testing.assert_close(out, torch.diag(torch.from_numpy(expected)), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("precondition", [True, False])
@pytest.mark.parametrize("denoise", [True, False])
def test_annealed_langevin_is_the_packages(precondition: bool, denoise: bool) -> None:
    """The package's sampler, given one impulse of noise at a time, gives the recursion's mean and variance exactly."""
    r, steps, alpha = 0.3 + 0.7 * L, 2, 1.3
    u, tested = basis(DIM, 3), model(0.3 + 0.7 * L)
    options: dict[str, Any] = {
        "steps": steps, "eps": alpha * float(TAUS[-1]) ** 2, "precondition": precondition, "denoise": denoise,
    }  # fmt: skip
    sampler = lambda start, noise_sampler: (  # noqa: E731
        ansn.sampling.annealed_langevin(tested, start, TAUS, noise_sampler=noise_sampler, **options) @ u
    )
    mean, variance = moments(sampler, u.T.contiguous(), steps * len(TAUS), 2.0)
    g = None if precondition else np.full(DIM, r.min())
    found = linear.annealed(np.ones(DIM), np.full(DIM, 2.0), L, r, TAUS.numpy(), steps, alpha, g)
    if denoise:
        found = linear.denoised(*found, L, r, TAUS[-1].numpy())
    torch.testing.assert_close(torch.from_numpy(found[0]), mean, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(torch.from_numpy(found[1]), variance, rtol=1e-9, atol=1e-12)


def test_an_ensemble_has_the_recursions_covariance() -> None:
    r, u = np.ones(DIM), basis(DIM, 3)
    start = 3.0 * torch.randn(20_000, DIM, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    options: dict[str, Any] = {"steps": 3, "eps": 0.8 * float(TAUS[-1]) ** 2}
    end = ansn.sampling.annealed_langevin(model(r), start, TAUS, **options)
    found = linear.annealed(np.zeros(DIM), np.full(DIM, 9.0), L, r, TAUS.numpy(), 3, 0.8)
    variance = torch.from_numpy(linear.denoised(*found, L, r, TAUS[-1].numpy())[1])
    assert covariance_within_five_sigma(end, (u * variance) @ u.T)


def test_many_steps_are_one_closed_form() -> None:
    mean, variance = np.array([1.0, 1.0]), np.array([2.0, 0.1])
    total, noise = np.array([0.7, 3.0]), np.array([0.3, 0.3])
    found = linear.langevin(mean, variance, total, noise, noise, 17)
    for _ in range(17):
        keep = 1.0 - 0.5 * noise / total
        mean, variance = keep * mean, keep**2 * variance + noise
    np.testing.assert_allclose(found[0], mean, rtol=1e-12)
    np.testing.assert_allclose(found[1], variance, rtol=1e-12)


def test_kl_is_torchs() -> None:
    mean, variance = np.array([0.3, -0.2]), np.array([0.5, 2.0])
    normal = torch.distributions.Normal
    each = torch.distributions.kl_divergence(
        normal(torch.from_numpy(mean), torch.from_numpy(variance).sqrt()),
        normal(torch.zeros(2, dtype=torch.float64), torch.from_numpy(L[:2]).sqrt()),
    )
    assert float(linear.kl(mean, variance, L[:2])) == pytest.approx(float(each.sum()), rel=1e-12)


def test_ladders_are_the_packages() -> None:
    for exponent, schedule in ((7.0, ansn.sampling.schedules.karras), (math.inf, ansn.sampling.schedules.log_linear)):
        found = linear.ladder(np.array([5.0]), np.array([0.02]), 9, np.array([exponent]))[0]
        np.testing.assert_allclose(found, schedule(5.0, 0.02, 9).numpy(), rtol=1e-12)


def test_effective_spectra() -> None:
    l = linear.spectrum(1e4, 64)
    assert l.mean() == pytest.approx(1.0)
    assert l[0] / l[-1] == pytest.approx(1e4)
    for shape in ("full", "learned", "diagonal", "rho=0.5"):
        found, g = exact_scores.effective(1e4, shape, 1)
        assert (found[:-1] >= found[1:] - 1e-12).all()
        assert (g == 1.0).all()
    # A Wishart factor's edges, (1 +- sqrt(d / n))^2, and a little ridge.
    learned = exact_scores.effective(10.0, "learned", 0)[0]
    assert learned.max() / learned.min() < ((1 + 64**0.5 / 1000**0.5) / (1 - 64**0.5 / 1000**0.5)) ** 2 * 1.1
    diagonal = exact_scores.effective(1e4, "diagonal", 0)[0]
    assert diagonal.max() / diagonal.min() > 1e3


def test_equal_directions_are_counted() -> None:
    """Merging equal directions changes no KL."""
    of = exact_scores.directions(1.0, "full")
    assert of.weight[0] == exact_scores.DIM
    assert len(of.l) == len(exact_scores.WIDTHS)
    assert of.worst(np.zeros(()), np.ones_like(of.l)) == pytest.approx(
        max(32.0 * (1 / w**2 - 1 + 2 * math.log(w)) for w in exact_scores.WIDTHS)
    )


def test_search_refines_its_grid() -> None:
    grid = np.array([[1.0, 0.0, 0.0], [1.5, 0.0, 0.0], [2.0, 0.0, 0.0]])
    score = lambda points: (points[:, 0] - 1.4) ** 2  # noqa: E731
    found, at = exact_scores.best_of(score, grid)
    assert found < score(grid).min()
    assert at[0] == pytest.approx(1.4, abs=0.1)


def test_prediction() -> None:
    assert exact_scores.predicted(1.0, 10.0) == 1.0
    assert exact_scores.predicted(100.0, 10.0) == pytest.approx(2.0)


def _rows(counts: dict[str, dict[float, float]]) -> list[dict[str, Any]]:
    """Synthetic: evaluations of the full shape are 20, of the isotropic one what is given; tau_1 / tau_N = 100."""
    rows = []
    for sampler in (*exact_scores.SAMPLERS, "langevin, beyond", "unannealed"):
        for kappa, ratio in counts.get(sampler, counts["langevin"]).items():
            for shape, factor in (("isotropic", ratio), ("full", 1.0)):
                for target in exact_scores.TARGETS:
                    rows.append(
                        {"kappa": kappa, "shape": shape, "seed": 0, "sampler": sampler, "target": target,
                         "kappa_effective": kappa, "evaluations": 20.0 * factor, "tau_1": 10.0, "tau_n": 0.1,
                         "levels": 20, "steps": 1, "alpha": 1.0, "bend": 0.1, "denoise": 1}
                    )  # fmt: skip
    return rows


def test_sentences_follow_the_rows(tmp_path: Path) -> None:
    kappas = (1.0, 1e3, 1e6)
    as_predicted = {"langevin": {k: exact_scores.predicted(k, 100.0) for k in kappas}}
    like_kappa = {"langevin": {1.0: 1.0, 1e3: 300.0, 1e6: 3e5}}
    yes = exact_scores.section(_rows(as_predicted), tmp_path)
    no = exact_scores.section(_rows(like_kappa), tmp_path)
    assert "is confirmed: over" in yes.answer
    assert "refuted" not in yes.answer
    assert "not like kappa" in yes.answer
    assert "is refuted: over" in no.answer
    assert sum("too low at" in line for line in no.findings) == len(exact_scores.SAMPLERS)
    assert "faster than a logarithm" in no.answer
    assert any("as a logarithm does" in line for line in yes.findings)
    assert any("no logarithm" in line for line in no.findings)
    for _, name in yes.figures:
        assert (tmp_path / name).exists()


def test_a_cell_runs() -> None:
    rows = exact_scores.run({"kappa": 1.0, "shape": "full", "seed": 0}, Settings(quick=True))
    assert {row["sampler"] for row in rows} == {*exact_scores.SAMPLERS, "langevin, beyond", "unannealed"}
    assert all(0 < row["evaluations"] < 1000 for row in rows)
    for sampler in exact_scores.SAMPLERS:
        counts = [row["evaluations"] for row in rows if row["sampler"] == sampler]
        assert counts == sorted(counts)  # a smaller KL takes more
