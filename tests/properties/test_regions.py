"""Math section 8, item 7: one region is the global model; the mixture of conditional samplers is the data."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from ansn import AdaptiveCovariance, Denoiser, NoiseModel, dsm_loss, levels, sample
from tests.oracles import (
    ExactDenoiser,
    annealed_covariance,
    covariance_within_five_sigma,
    five_sigma,
    gaussian,
    randn,
    spd,
)
from tests.tolerances import rms_ratio

D = 3
SIZES = (600, 300, 100)


def modes() -> AdaptiveCovariance:
    """Three modes of different place, shape and weight (0.6, 0.3, 0.1)."""
    covariance = AdaptiveCovariance(D, regions=3, rho=0.7, factor_dtype=torch.float64)
    for k, n in enumerate(SIZES):
        x = 20.0 * k + randn(n, D, seed=k) @ torch.linalg.cholesky(spd(D, k)).T
        covariance.update(x, torch.full((n,), k))
    return covariance.freeze()


def exact(covariance: AdaptiveCovariance, prediction: str = "denoiser") -> ExactDenoiser:
    noise = NoiseModel(covariance, levels.karras(5.0, 0.02))
    targets = [gaussian(m, s) for m, s in zip(covariance.mean, covariance.covariance(), strict=True)]
    return ExactDenoiser(noise, *targets, prediction=prediction)


@pytest.mark.parametrize(
    ("method", "prediction"), [("heun", "denoiser"), ("heun", "whitened"), ("langevin", "denoiser")]
)
def test_the_conditional_mixture_is_the_data_weights_included(method, prediction):
    """Weights, and mean and covariance of each mode, within five standard errors."""
    covariance, n, steps = modes(), 6000, 60 if method == "heun" else 5
    out = sample(exact(covariance, prediction), n, method, steps, batch_size=n, seed=1)
    owner = torch.cdist(out, covariance.center.double()).argmin(1)
    for k, size in enumerate(SIZES):
        p = size / sum(SIZES)
        assert abs(float((owner == k).double().mean()) - p) < 5 * math.sqrt(p * (1 - p) / n)
        part = out[owner == k] - covariance.mean[k]
        assert five_sigma(part, 0.0)
        expected = covariance.covariance()[k]
        if method == "langevin":
            taus = levels.geometric(5.0, 0.02, dim=D).tau
            expected = annealed_covariance(expected, covariance.noise_shape()[k], taus, steps)
        assert covariance_within_five_sigma(part, expected)


def test_the_mixture_does_not_depend_on_the_batch_size():
    model = exact(modes())
    one, other = (sample(model, 30, "heun", 6, batch_size=size, seed=2) for size in (7, 30))
    assert rms_ratio(one, other) < 1e-10


def test_one_region_is_the_global_model():
    """A region tensor of zeros changes nothing: noise, denoiser, loss."""
    x, zeros = randn(40, D), torch.zeros(40, dtype=torch.int64)
    models = []
    for region in (None, zeros):
        covariance = AdaptiveCovariance(D, factor_dtype=torch.float64).update(x, region).freeze()
        torch.manual_seed(0)
        models.append(Denoiser(nn.Linear(D, D).double(), NoiseModel(covariance, levels.karras(5.0, 0.1))))
        models[-1].conditioning = "none"
    perturbed, level = models[0].noise.perturb(x, step=0)
    regional, known = models[1].noise.perturb(x, zeros, step=0)
    assert rms_ratio(regional, perturbed) < 1e-12
    for metric in ("pixel", "whitened", "paper"):
        losses = [
            dsm_loss(m, x, p, at, metric)
            for m, p, at in zip(models, (perturbed, regional), (level, known), strict=True)
        ]
        assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-12)


class Labelled(nn.Module):
    """A class-conditional network that remembers its labels."""

    conditioning, num_classes = "none", 3

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor | None] = []

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        self.seen.append(y)
        return torch.zeros_like(x)


def test_where_the_regions_are_the_classes_the_network_knows_them():
    """``k ~ w_k`` is drawn and told to the network; a label that is asked for is the region of start and noise."""
    network = Labelled()
    covariance = modes()
    model = Denoiser(network, NoiseModel(covariance, levels.karras(5.0, 0.1))).eval()
    out = sample(model, 60, "heun", 6, batch_size=25, seed=3)
    told = torch.cat([y for y in network.seen[::11]])
    assert torch.equal(told, model.noise.draw_regions(60, seed=3))
    assert torch.equal(torch.cdist(out, covariance.center).argmin(1), told)
    for k in range(3):
        network.seen.clear()
        out = sample(model, 8, "heun", 6, y=k)
        assert all(y is not None and y.tolist() == [k] * 8 for y in network.seen)
        assert torch.cdist(out, covariance.center).argmin(1).tolist() == [k] * 8
