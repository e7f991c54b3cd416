"""Schedules: spacing, ends, and one found for a model."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from ansn import AdaptiveCovariance, Denoiser, NoiseModel, levels, networks
from ansn.sampling import Draw, dpmpp_2m, heun, schedules
from tests.oracles import ExactDenoiser, Mixture, fixed_covariance, gaussian, noise_model, randn, spd

D = 3


@pytest.mark.parametrize("name", schedules.SCHEDULES)
@pytest.mark.parametrize("n", [1, 2, 5, 40])
def test_levels_decrease_from_the_top_to_the_bottom(name, n):
    taus = schedules.SCHEDULES[name](6.0, 0.01, n)
    assert taus.dtype == torch.float64
    assert taus.shape == (n,)
    assert float(taus[0]) == pytest.approx(6.0, rel=1e-12)
    assert bool((taus.diff() < 0).all())
    if n > 1 and name != "few_steps":
        assert float(taus[-1]) == pytest.approx(0.01, rel=1e-12)


def test_spacings():
    np.testing.assert_allclose(np.diff(schedules.log_linear(8.0, 0.02, 9).log()), -math.log(400) / 8, rtol=1e-10)
    np.testing.assert_allclose(np.diff(schedules.polynomial(8.0, 0.02, 9, p=1.0)), -7.98 / 8, rtol=1e-10)
    roots = schedules.polynomial(8.0, 0.02, 9, p=3.0) ** (1 / 3)
    np.testing.assert_allclose(np.diff(roots), (0.02 ** (1 / 3) - 2.0) / 8, rtol=1e-10)
    assert schedules.karras(8.0, 0.02, 9).tolist() == list(levels.karras(8.0, 0.02, n=9).tau)


@pytest.mark.parametrize(("n", "last"), [(2, 1.0), (4, 0.25), (8, 0.0625), (20, 0.01), (100, 0.01)])
def test_few_steps_end_higher(n, last):
    assert float(schedules.few_steps(2.0, 0.01, n)[-1]) == pytest.approx(last)


def exact() -> ExactDenoiser:
    target = Mixture(randn(4, D, seed=1) * 1.5, 0.05 * torch.stack([spd(D, k) for k in range(4)]))
    return ExactDenoiser(noise_model(fixed_covariance(spd(D, 9)), (6.0, 1.0, 0.01)), target)


@pytest.mark.parametrize("n", [4, 8])
def test_the_optimised_one_is_nearer_to_the_end_of_the_flow_on_draws_it_has_not_seen(n):
    model = exact()
    taus = schedules.optimised(model, n, 6.0, 0.01, seed=1)
    assert taus.shape == (n,)
    assert float(taus[0]) == pytest.approx(6.0, rel=1e-12)
    assert float(taus[-1]) >= 0.01 - 1e-12
    assert bool((taus.diff() < 0).all())
    x = model.noise.prior(400, 6.0, seed=2)
    end = dpmpp_2m(model, x, schedules.karras(6.0, 0.005, 300))

    def deviation(levels: torch.Tensor) -> float:
        return float((dpmpp_2m(model, x, levels) - end).square().mean(1).sqrt().mean())

    others = [schedule(6.0, 0.01, n) for schedule in schedules.SCHEDULES.values()]
    assert deviation(taus) < min(deviation(other) for other in others)


def test_the_optimised_one_is_a_function_of_its_arguments():
    model = exact()
    taus = schedules.optimised(model, 4, 6.0, 0.01, rows=8)
    assert torch.equal(schedules.optimised(model, 4, 6.0, 0.01, rows=8), taus)
    assert torch.equal(Draw(model, steps=4, schedule="optimised").taus, schedules.optimised(model, 4, 6.0, 0.01))
    own = schedules.optimised(model, 4, 6.0, 0.01, sampler=heun)
    assert torch.equal(Draw(model, "heun", 4, schedule="optimised").taus, own)
    assert torch.equal(
        Draw(model, "heun_churn", 4, schedule="optimised").taus, schedules.optimised(model, 4, 6.0, 0.01)
    )
    assert schedules.optimised(model, 1, 6.0, 0.01).tolist() == [6.0]
    with pytest.raises(ValueError, match=r"^n: got 0, expected at least 1$"):
        schedules.optimised(model, 0, 6.0, 0.01)


def test_the_optimised_one_knows_classes_and_regions_and_restores_the_mode():
    x = torch.rand(90, D, generator=torch.Generator().manual_seed(0))
    covariance = AdaptiveCovariance(D, 3).update(x, torch.arange(90) % 3).freeze()
    network = networks.MLP((D,), hidden=8, blocks=1, num_classes=3)
    model = Denoiser(network, NoiseModel(covariance, levels.karras(4.0, 0.05))).train()
    assert schedules.optimised(model, 3, 4.0, 0.05, rows=6).shape == (3,)
    assert all(m.training for m in model.modules())


@pytest.mark.parametrize("regions", [1, 3])
def test_the_optimised_one_takes_labels_that_were_learned(regions):
    """As a list, a tensor or a number; where the regions are the classes, a label is its row's region."""
    seen: list[Tensor | None] = []

    class Labelled(ExactDenoiser):
        def forward(self, x, sigma, region=None, **extra):
            assert torch.equal(region, extra["y"]) if regions > 1 else region is None
            seen.append(extra.pop("y"))
            return super().forward(x, sigma, region, **extra)

    x, owner = randn(90, D), torch.arange(90) % 3
    covariance = AdaptiveCovariance(D, regions).update(x, owner if regions > 1 else None).freeze()
    targets = [gaussian(k + torch.zeros(D), spd(D, k)) for k in range(regions)]
    model = Labelled(NoiseModel(covariance, levels.karras(4.0, 0.05)), *targets)
    model.num_classes = 3
    y, found = [2, 0, 2, 1], []
    for given in (y, torch.tensor(y), 2, torch.tensor(2)):
        seen.clear()
        found.append(schedules.optimised(model, 3, 4.0, 0.05, rows=4, y=given))
        assert all(one.tolist() == (y if len(found) < 3 else [2] * 4) for one in seen)
        assert seen
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[2], found[3])
    for wrong, message in (
        ([0, 1, 2, 3], r"got 0\.\.3, expected labels 0\.\.2"), (-1, r"got -1, expected labels 0\.\.2"),
        ([0, 1], r"got torch\.int64 of shape \[2\], expected a number or int64 \[4\]"),
        (torch.zeros(4), r"got torch\.float32 of shape \[4\], expected a number or int64 \[4\]"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"^y: {message}$"):
            schedules.optimised(model, 3, 4.0, 0.05, rows=4, y=wrong)


def test_a_gaussian_needs_no_high_levels():
    """The start is exact at any level there, and the flow's error falls with it."""
    model = ExactDenoiser(noise_model(fixed_covariance(D), (6.0, 0.01)), gaussian(torch.zeros(D), torch.eye(D)))
    rms = {}
    for top in (6.0, 1.0):
        out = dpmpp_2m(model, model.noise.prior(2000, top, seed=1), schedules.few_steps(top, 0.01, 6))
        rms[top] = abs(float(out.square().mean()) - 1.0)
    assert rms[1.0] < 0.05
