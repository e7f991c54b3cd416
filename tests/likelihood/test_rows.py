"""Scores of rows in the data's units, against closed forms of Gaussian data."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ansn import AdaptiveCovariance, Denoiser, NoiseModel, levels, networks
from ansn.data.units import Affine, Column, Table
from ansn.likelihood import log_likelihood, score_rows
from tests.oracles import ExactDenoiser, Mixture, fixed_covariance, gaussian, noise_model, randn, spd

D = 3
TAU = (10.0, 1e-3)
NORMAL = torch.distributions.Normal(torch.tensor(0.0).double(), torch.tensor(1.0).double())


def exact(s: Tensor, mean: Tensor | None = None) -> Denoiser:
    """An untrained network's skip, which is that of the Gaussian."""
    covariance = fixed_covariance(len(s), s=s, center=mean)
    return Denoiser(networks.MLP((len(s),), 8, 1).double(), noise_model(covariance, TAU))


def density(values: Tensor, mean: Tensor, s: Tensor) -> Tensor:
    return torch.distributions.MultivariateNormal(mean, s).log_prob(values)


def test_a_gaussian_s_density_in_the_units_of_the_file():
    """Centimetres and tonnes: the density has units, one over those of the columns."""
    s, mean, scale, offset = spd(D), randn(D), torch.tensor([100.0, 1e-3, 7.0]).double(), randn(D, seed=3) * 50
    table = Table(tuple(Column(f"c{j}", offset=float(offset[j]), scale=float(scale[j])) for j in range(D)))
    field = Affine(offset, scale, (D,))
    values = offset + scale * (mean + randn(20, D, seed=5))
    truth = density(values, offset + scale * mean, s * torch.outer(scale, scale))
    for units in (table, field):
        found = score_rows(exact(s, mean), values, units, steps=2)
        assert (found.value - truth).abs().max() < 1e-3
        assert (found.error == 0).all()
        assert (found.trace, found.draws) == ("exact", 1)
    bare = score_rows(exact(s, mean), (values - offset) / scale, steps=2)
    assert (bare.value - scale.log().sum() - truth).abs().max() < 1e-3


def test_whole_numbers_have_a_probability():
    """Of the Gaussian's mass in each cell: over all the whole numbers they add up to one, and each is its integral to
    five standard errors."""
    s = torch.tensor([[1.0]]).double()
    column = Column("n", "whole", offset=3.0, scale=1.5, step=1.0)
    values = torch.arange(-4.0, 11.0).double().unsqueeze(1)
    found = score_rows(exact(s), values, Table((column,)), draws=50, steps=1)
    edges = (torch.arange(-4.5, 11.0).double() - 3.0) / 1.5
    truth = NORMAL.cdf(edges).diff().log()
    assert found.value.exp().sum() == pytest.approx(1.0, abs=0.03)
    assert ((found.value - truth).abs() < 5 * found.error + 1e-3).all()
    assert (found.error > 0).all()


def test_the_error_is_that_of_other_seeds():
    column = Column("n", "whole", offset=0.0, scale=0.3, step=1.0)
    values = torch.zeros(1, 1).double()
    found = [score_rows(exact(torch.eye(1).double()), values, Table((column,)), seed=k, steps=1) for k in range(25)]
    spread = torch.stack([f.value for f in found]).std()
    said = torch.stack([f.error for f in found]).square().mean().sqrt()
    assert 0.5 < spread / said < 1.6
    one = score_rows(exact(torch.eye(1).double()), values, Table((column,)), draws=1, steps=1)
    assert one.error.isnan().all(), "one draw cannot tell"


def test_a_row_with_a_missing_number_has_no_score():
    s = spd(D)
    x = randn(5, D)
    whole = score_rows(exact(s), x[[0, 2, 3]])
    x[1, 2] = x[4, 0] = math.nan
    found = score_rows(exact(s), x)
    assert torch.equal(found.value.isnan(), torch.tensor([False, True, False, False, True]))
    assert torch.equal(found.error.isnan(), found.value.isnan())
    assert torch.equal(found.value[[0, 2, 3]], whole.value)
    with pytest.raises(ValueError, match=r"^x: got 1 rows and none without missing numbers, expected at least one$"):
        score_rows(exact(s), x[1:2])


def test_an_estimated_trace_has_an_error():
    """Of a mixture, whose Jacobian is not diagonal in the basis: within five of its errors of the exact one."""
    target = Mixture(3 * randn(2, 4), torch.stack([spd(4), spd(4, 1)]))
    model = ExactDenoiser(noise_model(fixed_covariance(4, s=target.covariance()), (10.0, 0.3)), target)
    x = target.sample(20)
    truth = score_rows(model, x, trace="exact", steps=6)
    found = score_rows(model, x, trace="hutchinson", probes=32, steps=6)
    assert found.trace == "hutchinson"
    assert (found.error > 0).all()
    assert ((found.value - truth.value).abs() < 5 * found.error + 1e-6).all()


def test_a_class_that_is_not_given_is_summed_over():
    torch.manual_seed(0)
    network = networks.MLP((2,), 16, 1, num_classes=3)
    torch.nn.init.normal_(network.output.weight, std=0.3)
    covariance = AdaptiveCovariance(2, rho=0.0, initial=torch.eye(2)).freeze()
    model = Denoiser(network, NoiseModel(covariance, levels.Levels((5.0, 1.0, 0.1)), 0))
    x, shares = randn(4, 2).float(), torch.tensor([0.5, 0.0, 0.5])
    each = [log_likelihood(model, x, y=torch.full((4,), k), trace="exact").log_density for k in (0, 2)]
    found = score_rows(model, x, shares=shares)
    assert torch.allclose(found.value, torch.stack(each).logsumexp(0) - math.log(2), atol=1e-5)
    assert torch.allclose(score_rows(model, x, y=torch.zeros(4).long()).value, each[0], atol=1e-6)
    with pytest.raises(ValueError, match=r"^y: got None for a network of 3 classes"):
        score_rows(model, x)


def test_the_result_does_not_depend_on_the_batch():
    target = gaussian(torch.zeros(D), spd(D))
    model = ExactDenoiser(noise_model(fixed_covariance(D), TAU), target)
    table = Table((Column("a", "whole", step=1.0), Column("b"), Column("c")))
    x = target.sample(6)
    x[:, 0] = x[:, 0].round()
    found = score_rows(model, x, table, trace="hutchinson", steps=2, seed=3)
    small = score_rows(model, x, table, trace="hutchinson", steps=2, seed=3, batch_size=2)
    assert torch.allclose(found.value, small.value, atol=1e-9)
    other = score_rows(model, x, table, trace="hutchinson", steps=2, seed=4)
    assert not torch.allclose(found.value, other.value, atol=1e-3)
