"""The experiment runs, its rows are what its tables say, and a wrong setting is one line."""

from __future__ import annotations

import csv
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tests.oracles import Mixture

SCRIPT = Path(__file__).parents[2] / "experiments" / "likelihood_check.py"


@pytest.fixture(scope="module")
def experiment() -> ModuleType:
    spec = importlib.util.spec_from_file_location("likelihood_check", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["likelihood_check"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_rows_and_tables(experiment: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(experiment, "_SOLVERS", {"rk4": [{"steps": 2}, {"steps": 8}], "rk45": [{"rtol": 0.1}]})
    settings = experiment.Settings(dims=(2, 3), rows=3, steps=2, seeds=(0,), images=3, out=tmp_path)
    first, second, third = experiment.run(settings)
    tables = {}
    for name in ("solvers", "probes", "digits"):
        with (tmp_path / f"likelihood_{name}.csv").open(newline="") as stream:
            tables[name] = list(csv.DictReader(stream))
    assert len(tables["solvers"]) == 2 * 2 * 3
    assert len(tables["probes"]) == (2 * 2 + 2) * 6
    assert [(r["rho"], r["split"]) for r in tables["digits"]] == [
        (rho, split) for rho in ("0", "0.5") for split in ("train", "test")
    ]
    gaussians = [float(r["max_error"]) for r in tables["solvers"] if r["target"] == "gaussian"]
    assert max(gaussians) < 1e-9
    mixtures = [float(r["mean_error"]) for r in tables["solvers"] if (r["target"], r["steps"]) == ("mixture", "8")]
    assert f"{mixtures[0]:.1e}" in first
    assert "| spectral, rademacher |" in second
    assert f"{float(tables['digits'][0]['bits_per_dim']):.3f}" in third
    # Two steps learn little: a uniform code of 17 grey levels takes 4.09 bits.
    assert 2 < float(tables["digits"][0]["bits_per_dim"]) < 6


def test_the_closed_form_is_the_oracle_s(experiment: ModuleType):
    model, x, truth = experiment.closed_form("mixture", 3, experiment.Settings(rows=5))
    network, tau = model.network, model.noise.levels.minimum
    density = network.density
    oracle = Mixture(density.means, density.covariances, density.weights)
    sigma = (tau**2 * network.r).expand(5, -1, -1)
    assert torch.allclose(truth, oracle.log_density(x, sigma), rtol=1e-12)
    assert torch.allclose(model(x, tau), oracle.denoised(x, sigma), rtol=1e-9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dims", "1"], "--dims: got (1,), expected one or more, each at least 2"),
        (["--rho", "2"], "--rho: got 2.0, expected a number in [0, 1]"),
        (["--probes", "1"], "--probes: got 1, expected at least 2"),
    ],
)
def test_wrong_settings_are_one_line_and_exit_code_2(
    experiment: ModuleType,
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
    assert experiment.main() == 2
    assert capsys.readouterr().err == f"likelihood_check: error: {message}\n"
