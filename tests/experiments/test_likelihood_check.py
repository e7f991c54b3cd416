"""The likelihood's check: its closed form is the oracle's, its cells run, its sentence is what the rows say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from experiments import likelihood_check as claim
from experiments.lab.claim import Settings
from tests.oracles import Mixture


def test_the_closed_form_is_the_oracle_s() -> None:
    model, x, truth = claim.closed_form("mixture", 3, 5)
    network, tau = model.network, model.noise.levels.minimum
    assert isinstance(network, claim.MixtureMean)
    density = network.density
    oracle = Mixture(density.means, density.covariances, density.weights)
    sigma = (tau**2 * network.r).expand(5, -1, -1)
    assert torch.allclose(truth, oracle.log_density(x, sigma), rtol=1e-12)
    assert torch.allclose(model(x, tau), oracle.denoised(x, sigma), rtol=1e-9)


@pytest.mark.slow
def test_cells_run_and_the_answer_is_theirs(tmp_path: Path) -> None:
    settings = Settings(quick=True)
    rows = [cell | row for cell in claim.cells(settings) for row in claim.run(cell, settings)]
    section = claim.section(rows, tmp_path)
    worst = max(row["worst"] for row in rows if row.get("solver") == "rk4" and row["steps"] == 16)
    assert f"within {worst:.2g} nats" in section.answer
    assert worst < 0.01
