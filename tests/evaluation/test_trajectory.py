"""What a sampler's callback told is what the sampler did."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import ansn
from ansn.evaluation import trajectory
from ansn.evaluation.trajectory import at_data_scale, record
from ansn.sampling.driver import Draw
from ansn.training import Run
from ansn.training.pictures import draw
from tests.evaluation.pages import digits_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return digits_run(tmp_path_factory.mktemp("run"))


def test_states_are_the_samplers_own(run: Run) -> None:
    way = record(run, 3, states=4, seed=5, method="euler", steps=10)
    assert way.x.shape == way.denoised.shape == (4, 3, 1, 8, 8)
    assert torch.equal(way.samples, draw(run, 3, 5, method="euler", steps=10))
    # The ladder is float64 there, float32 here.
    torch.testing.assert_close(way.x[0], run.model.noise.prior(3, way.tau[0], seed=5), rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        for tau, x, d in zip(way.tau, way.x, way.denoised, strict=True):
            torch.testing.assert_close(run.model(x, torch.tensor(tau)), d, rtol=1e-5, atol=1e-5)
    # Euler's last step goes to its D.
    torch.testing.assert_close(way.samples, way.denoised[-1], rtol=1e-5, atol=1e-5)
    assert list(way.tau) == sorted(way.tau, reverse=True)


@pytest.mark.parametrize(("states", "steps"), [(1, 5), (7, 2), (5, 300)])
def test_any_number_of_levels(states: int, steps: int, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []
    call = trajectory._Recorder.__call__

    def watched(self: trajectory._Recorder, state: dict[str, Any]) -> None:
        call(self, state)
        held.append(len(self.states))

    monkeypatch.setattr(trajectory._Recorder, "__call__", watched)
    way = record(run, 2, states=states, method="euler", steps=steps)
    assert len(way.tau) == min(states, steps)
    assert max(held) <= trajectory._KEPT
    assert way.tau[0] == pytest.approx(float(Draw(run.model, "euler", steps).taus[0]))


def test_wrong_arguments_are_named(run: Run) -> None:
    with pytest.raises(ValueError, match="states: got 0"):
        record(run, 2, states=0)


def test_perturbed_data_is_shrunk_to_the_spread_of_the_data() -> None:
    """tr R = tr S up to the ridge, so the total variance is the data's at every level; 3 % is over 5 deviations."""
    x = torch.randn(4000, 6, generator=torch.Generator().manual_seed(0)) * torch.tensor([3.0, 2, 1, 1, 0.5, 0.2]) + 7
    covariance = ansn.AdaptiveCovariance(6, eps=0.0).update(x).freeze()
    noise = ansn.NoiseModel(covariance, ansn.levels.karras(5.0, 0.1))
    tau = torch.tensor([5.0, 1.0, 0.1])
    perturbed = torch.stack([noise.perturb(x, tau=t, step=0)[0] for t in tau.tolist()])
    shown = at_data_scale(perturbed, tau, covariance.center[0])
    total = x.var(0).sum()
    torch.testing.assert_close(shown.var(1).sum(1), total.expand(3), rtol=0.05, atol=0)
    torch.testing.assert_close(shown.mean(1), x.mean(0).expand(3, 6), rtol=0, atol=0.15)
