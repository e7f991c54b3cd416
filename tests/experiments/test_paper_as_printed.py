"""The paper as printed: recursions and chains against brute force and the package, sentences against the rows."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ansn
from experiments import paper_as_printed as paper
from experiments.lab.claim import Settings
from experiments.lab.exact import ExactDenoiser, known_covariance
from experiments.lab.linear import kl
from experiments.lab.mixture import Mixture
from tests.experiments.impulses import moments
from tests.oracles import haario_recursion

QUICK = Settings(quick=True)
L = np.array([1.5, 0.8, 0.3])


def stream(n: int = 60, seed: int = 0) -> np.ndarray:
    return paper.data().sample(n, seed)[0].numpy()


def test_exact_recursion_is_haarios_and_the_definition() -> None:
    x = stream()
    found = paper.recursion(x, "exact", 1e-3)
    oracle = haario_recursion(x, 1e-3)
    assert len(found) == len(oracle)
    for ours, theirs in zip(found, oracle, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)
    definition = paper.SCALE * (np.cov(x.T) + 1e-3 * np.eye(paper.DIM))
    np.testing.assert_allclose(found[-1], definition, rtol=1e-9, atol=1e-12)


def test_sign_alone_adds_the_outer_square_of_the_mean() -> None:
    x = stream(4000)
    away = paper.recursion(x, "sign", 0.0)[-1] - paper.SCALE * np.cov(x.T)
    mean = x.mean(0)
    np.testing.assert_allclose(away, 2.0 * paper.SCALE * np.outer(mean, mean), rtol=0.1, atol=0.05)


def test_literal_recursion_is_indefinite() -> None:
    assert np.linalg.eigvalsh(paper.recursion(stream(), "literal", 1e-6)[-1])[0] < 0


def test_worst_deviation() -> None:
    s = np.diag([1.0, 4.0])
    assert paper.worst_deviation(np.diag([1.0, 1.0]), s) == pytest.approx(2.0)
    assert paper.worst_deviation(np.diag([1.0, 0.0]), s) == math.inf


def test_descent_is_gradient_descent() -> None:
    """Against steps of the gradient of ``E w (a x~ - x)^2 / 2`` at the same rates."""
    weight, steps = 1.0 / L**2, 7
    errors = []
    for rate in np.geomspace(1e-3, 1.999, 400) / (weight * 2.0 * L).max():
        a = np.zeros_like(L)
        for _ in range(steps):
            a = a - rate * weight * (2.0 * L * a - L)  # E x~^2 = 2 l, E x x~ = l
        errors.append((2.0 * L * (a - 0.5) ** 2).sum() / L.sum())
    assert paper.descent(L, weight, steps) == pytest.approx(min(errors), rel=1e-9)


@pytest.mark.parametrize("reading", ["printed", "shaped", "isotropic"])
def test_chains_are_the_packages(reading: str) -> None:
    """``algorithm_1`` and ``annealed_langevin`` on one impulse of noise at a time."""
    r, dim, steps, taus = L, len(L), 2, np.array([2.0, 0.5, 0.1])
    target = Mixture(torch.zeros(1, dim), torch.diag(torch.from_numpy(L))[None])
    covariance = known_covariance([target], rho=1.0, eps=0.0, root="symmetric", factor_dtype=torch.float64)
    model = ExactDenoiser(ansn.NoiseModel(covariance, ansn.levels.Levels(tuple(taus.tolist()))), [target])
    sampler: Any = ansn.sampling.algorithm_1
    if reading != "printed":
        shaped = reading == "shaped"
        sampler = partial(ansn.sampling.annealed_langevin, precondition=shaped, denoise=False)
    sampler = partial(sampler, model, steps=steps, eps=0.2 * taus[-1] ** 2)
    _, variance = moments(sampler, torch.eye(dim, dtype=torch.float64), steps * len(taus), taus[0] ** 2)
    found = paper.chain(reading, L, r, steps, 0.2, taus)[1]
    torch.testing.assert_close(torch.from_numpy(found), variance, rtol=1e-8, atol=1e-10)


def test_the_printed_algorithm_samples_the_root_of_the_covariance() -> None:
    """Under R = S and a small last level its stationary variance is sqrt(l), for small steps."""
    found = paper.chain("printed", L, L, 100_000, 0.02, np.geomspace(3.0, 0.01, 10))[1]
    np.testing.assert_allclose(found, np.sqrt(L), rtol=0.02)


def test_kl_of_moments_is_the_closed_form() -> None:
    target = paper.data()
    x = target.sample(50_000, 5)[0]
    twice = target.means + 2.0**0.5 * (x - target.means)
    assert paper.moments_kl(x, target) < 5e-3
    expected = float(kl(np.zeros(paper.DIM), np.full(paper.DIM, 2.0), np.ones(paper.DIM)))
    assert paper.moments_kl(twice, target) == pytest.approx(expected, rel=0.05)


def test_blind_field_is_the_mean_over_levels() -> None:
    """``E[(f* - f_blind) g(x~)] = 0`` over levels and x~: it is a conditional mean. And with one level it is f*."""
    taus = np.array([2.0, 0.3])
    generator, r = np.random.default_rng(0), np.ones(3)
    products = []
    for tau in taus:
        x = generator.standard_normal((200_000, 3)) * np.sqrt(L + tau**2 * r)
        away = paper.whitened(x, L, r, tau) - paper.blind(x, L, r, taus)
        products.append((away * np.tanh(x)).sum(1))
    every = np.stack(products).mean(0)
    assert abs(every.mean()) < 5 * every.std() / math.sqrt(len(every))
    x = generator.standard_normal((5, 3))
    np.testing.assert_allclose(paper.blind(x, L, r, taus[:1]), paper.whitened(x, L, r, 2.0), rtol=1e-12)


def _rows(literal: float, corrected: float, seeds: int = 3) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for name in paper.ITEMS:
        for seed in range(seeds):
            for reading, value in (("literal", literal), ("corrected", corrected)):
                told = {"quantity": name, "reading": reading, "seed": seed}
                rows.append(told | {"at": None, "value": value * (1.0 + 0.01 * seed)})
    return rows


def test_sentences_follow_the_rows(tmp_path: Path) -> None:
    count = len(paper.ITEMS)
    worse, better, same = (paper.section(_rows(*rows), tmp_path) for rows in ((2.0, 1.0), (1.0, 2.0), (1.0, 1.0)))
    assert (tmp_path / worse.figures[0][1]).exists()
    assert f"{count} have the literal reading worse" in worse.answer
    assert f"{count} have it better than the correction" in better.answer
    assert f"{count} show no difference" in same.answer
    assert "have it better" not in worse.answer
    assert "reading worse" not in better.answer


def test_an_interval_that_holds_nothing_is_no_difference() -> None:
    rows = _rows(2.0, 1.0)
    for row in rows:
        if row["reading"] == "literal" and row["seed"] == 1:
            row["value"] = -20.0
    verdict = paper._verdict(rows, "divisor")
    assert verdict is not None
    assert verdict.sign == 0


def test_a_chain_that_diverges_is_infinitely_wrong() -> None:
    rows = _rows(math.nan, 1.0, seeds=1)
    verdict = paper._verdict(rows, "shape")
    assert verdict is not None
    assert verdict.literal.mean == math.inf
    assert verdict.sign == 1


def test_exact_cells_run() -> None:
    rows = [row for part in ("loss", "sampling") for row in paper.run({"part": part, "run": 0}, QUICK)]
    numbers = {(row["quantity"], row["reading"]): row["value"] for row in rows if row["at"] is None}
    # The default metric takes the smallest share of the narrow directions, Eq. 3.1 with the inverse the largest.
    shares = [numbers["share", reading] for reading in ("corrected, default", "corrected", "literal")]
    assert shares == sorted(shares)
    assert numbers["shape", "corrected"] < 0.01 < numbers["shape", "literal"]


@pytest.mark.slow
def test_every_cell_runs(tmp_path: Path) -> None:
    cells = paper.cells(QUICK)
    rows = [cell | row for cell in cells for row in paper.run(cell, QUICK)]
    found = paper.section(rows, tmp_path)
    assert {row["quantity"] for row in rows} >= set(paper.ITEMS)
    assert found.tables[0][1].count("\n") == len(paper.ITEMS) + 1
