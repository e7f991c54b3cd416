"""Drift: the stream follows its law, the law itself has no divergence, sentences follow the rows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from experiments import drift as claim
from experiments.lab.claim import Row, Settings
from experiments.lab.exact import ExactDenoiser, known_noise
from experiments.lab.training import Trained


def test_stream_follows_its_law() -> None:
    data = claim.stream(4)
    a = data.map(1.0)
    # A turn by 90 degrees and a growth: A A^T = growth^2 I, and thin directions go where others were.
    torch.testing.assert_close(a @ a.T, data.growth**2 * torch.eye(4, dtype=torch.float64), atol=1e-9, rtol=0)
    turned, still = (c / c.trace() for c in (data.density(1.0).covariance(), data.density(0.0).covariance()))
    assert float((turned - still).norm()) > 0.3 * float(still.norm())
    steps = [x for _, x, _ in data.batches(4, 20_000, 4)]
    torch.testing.assert_close(torch.cov(steps[3].double().T), data.density(0.75).covariance(), rtol=0.08, atol=0.1)


def test_divergence_of_the_law_itself_is_zero() -> None:
    density = claim.stream(4).still
    noise = known_noise(density, 0.5, density.sample(1000, seed=3)[0].float())
    row = claim._current(Trained(1, 0.0, 0.0, ExactDenoiser(noise, density)), density, 0, quick=False)
    assert abs(row["excess"]) < 0.05
    assert row["fd"] < 4 * row["fd_floor"] + 0.1


@pytest.mark.parametrize(("gain", "word"), [(-0.1, "better"), (0.1, "worse")])
def test_answer_follows_the_rows(gain: float, word: str, tmp_path: Path) -> None:
    rows: list[Row] = [
        {"arm": arm, "covariance": how, "seed": seed, "time": time, "lr": 1e-3, "fd": 1.0, "fd_floor": 0.5,
         "excess": 0.3 + moved * (1 + 0.05 * seed)}
        for arm in ("scalar", "wiener rho=0.5") for seed in range(3) for time in (0.5, 1.0)
        for how, moved in (("fixed", 0.0), ("online", 0.0), ("forgetting 0.98", gain))
    ]  # fmt: skip
    assert f"forgetting against fixed: {word}: `scalar`" in claim.section(rows, tmp_path).answer


@pytest.mark.slow
def test_a_cell_runs() -> None:
    settings = Settings(quick=True)
    rows = claim.run(claim.cells(settings)[-1], settings)
    assert [row["time"] for row in rows] == 2 * [0.25, 0.5, 0.75, 1.0]
