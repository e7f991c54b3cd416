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
from experiments import errata as claim
from experiments.lab.claim import Row, Settings
from experiments.lab.exact import ExactDenoiser, known_covariance
from experiments.lab.linear import chain, denoised, kl, spectrum
from experiments.lab.mixture import Mixture
from tests.experiments.impulses import moments
from tests.oracles import haario_recursion

L = np.array([1.5, 0.8, 0.3])


def stream(n: int = 60, seed: int = 0) -> np.ndarray:
    return claim.data().sample(n, seed)[0].numpy()


def test_exact_recursion_is_haarios_and_the_definition() -> None:
    x = stream()
    found, oracle = claim.recursion(x, "exact", 1e-3), haario_recursion(x, 1e-3)
    for ours, theirs in zip(found, oracle, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)
    definition = claim.SCALE * (np.cov(x.T) + 1e-3 * np.eye(claim.DIM))
    np.testing.assert_allclose(found[-1], definition, rtol=1e-9, atol=1e-12)


def test_sign_alone_adds_the_outer_square_of_the_mean_and_as_printed_it_is_indefinite() -> None:
    x = stream(4000)
    away = claim.recursion(x, "sign", 0.0)[-1] - claim.SCALE * np.cov(x.T)
    mean = x.mean(0)
    np.testing.assert_allclose(away, 2.0 * claim.SCALE * np.outer(mean, mean), rtol=0.1, atol=0.05)
    assert np.linalg.eigvalsh(claim.recursion(stream(), "literal", 1e-6)[-1])[0] < 0


@pytest.mark.parametrize("reading", ["printed", "shaped"])
def test_chains_are_the_packages(reading: str) -> None:
    """``algorithm_1`` and ``annealed_langevin`` on one impulse of noise at a time."""
    dim, steps, taus = len(L), 2, np.array([2.0, 0.5, 0.1])
    target = Mixture(torch.zeros(1, dim), torch.diag(torch.from_numpy(L))[None])
    covariance = known_covariance(target, rho=1.0, eps=0.0, root="symmetric", factor_dtype=torch.float64)
    model = ExactDenoiser(ansn.NoiseModel(covariance, ansn.levels.Levels(tuple(taus.tolist()))), target)
    sampler: Any = ansn.sampling.algorithm_1
    if reading != "printed":
        sampler = partial(ansn.sampling.annealed_langevin, denoise=False)
    sampler = partial(sampler, model, steps=steps, eps=0.2 * taus[-1] ** 2)
    _, variance = moments(sampler, torch.eye(dim, dtype=torch.float64), steps * len(taus), taus[0] ** 2)
    found = chain(reading, L, L, taus, steps, 0.2)[1]
    torch.testing.assert_close(torch.from_numpy(found), variance, rtol=1e-8, atol=1e-10)


def test_the_printed_algorithm_samples_the_root_of_the_covariance() -> None:
    """Under R = S and a small last level its stationary variance is sqrt(l), for small steps."""
    found = chain("printed", L, L, np.geomspace(3.0, 0.01, 10), 100_000, 0.02)[1]
    np.testing.assert_allclose(found, np.sqrt(L), rtol=0.02)


def test_a_long_series_is_the_recursion() -> None:
    """The closed form of many steps against single ones."""
    taus, r = np.array([1.0, 0.3]), np.ones(3)
    found = chain("shaped", L, r, taus, 20, 0.2)
    mean, variance = np.zeros(3), np.full(3, 1.0)
    for tau in taus:
        for _ in range(20):
            keep = 1.0 - 0.1 * tau**2 / (L + tau**2)
            variance = keep**2 * variance + 0.2 * tau**2
    np.testing.assert_allclose(found[1], variance, rtol=1e-10)
    assert float(kl(mean, L, L)) == 0.0
    assert float(denoised(mean, L, L, r, np.array(1e-9))[1][0]) == pytest.approx(L[0])
    assert spectrum(1e3, 16)[0] / spectrum(1e3, 16)[-1] == pytest.approx(1e3)


def _rows(literal: float, corrected: float, seeds: int = 4) -> list[Row]:
    return [{"seed": s, "quantity": "training", "reading": reading, "at": None, "value": value * (1 + 0.01 * s)}
            for s in range(seeds) for reading, value in (("literal", literal), ("corrected", corrected))] + [
        {"seed": 0, "quantity": "variances", "reading": reading, "at": at, "value": at}
        for reading in ("literal", "corrected") for at in (0.1, 1.0)
    ]  # fmt: skip


def test_sentences_follow_the_rows(tmp_path: Path) -> None:
    worse, better = (claim.section(_rows(*values), tmp_path) for values in ((20.0, 1.0), (1.0, 2.0)))
    assert "Of 1 errors" in worse.answer
    assert "worse in 1, in 1 of them tenfold or more, and better in 0" in worse.answer
    assert "worse in 0, in 0 of them tenfold or more, and better in 1" in better.answer
    found = claim.verdict(_rows(1.05, 1.0), "training")
    assert found is not None
    assert found[2] == 0, "a difference of less than a tenth does not count"


def test_a_chain_that_diverges_is_infinitely_wrong() -> None:
    rows = [{**row, "value": math.nan if row["reading"] == "literal" else 1.0} for row in _rows(1.0, 1.0, 1)]
    found = claim.verdict(rows, "training")
    assert found is not None
    assert math.isinf(found[0].mean)
    assert found[2] == 1


def test_exact_cells_run() -> None:
    settings = Settings(quick=True)
    rows = [row for cell in claim.cells(settings) if not cell["part"].startswith("training")
            for row in claim.run(cell, settings)]  # fmt: skip
    assert {row["quantity"] for row in rows} == {*claim.ITEMS, "variances"} - {"training"}
    assert all(claim.verdict(rows, name) for name in claim.ITEMS if name != "training")


@pytest.mark.slow
def test_a_network_is_trained_under_every_metric() -> None:
    for metric in claim.METRICS:
        rows = claim.training_rows(metric, Settings(quick=True))
        assert all(row["value"] > 0 for row in rows)
