"""Bits a dimension of known discrete distributions, and what the number says of itself."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import ansn
from ansn import AdaptiveCovariance, Denoiser, networks
from ansn.data import Dataset
from ansn.data.units import Column, Table
from tests.oracles import ExactDenoiser, Mixture, fixed_covariance, gaussian, noise_model, randn, spd

SHAPE, LEVELS = (1, 1, 2), 33


def cell_probabilities(mean: float, deviation: float, delta: float, shift: float) -> Tensor:
    """Of a normal variable in the cells ``(v + shift -+ 1/2) delta``, ``[LEVELS]``."""
    edges = (torch.arange(LEVELS + 1, dtype=torch.float64) - 0.5 + shift) * delta
    return torch.special.ndtr((edges - mean) / deviation).diff()


def image_model(target: Mixture, r: Tensor, tau: tuple[float, ...] = (30.0, 1e-4)) -> ExactDenoiser:
    covariance = fixed_covariance(r, s=target.covariance(), shape=SHAPE, center=target.weights @ target.means)
    return ExactDenoiser(noise_model(covariance, tau), target)


@pytest.mark.parametrize("dequantise", [True, False])
def test_a_discretised_gaussian(dequantise: bool):
    """Independent pixels N(0.5, 0.1^2) in cells of 1/33 or 1/32: the code length of rows drawn from it is the entropy,
    and the bound's own gap, ``delta^2 / (24 deviation^2)`` nats a dimension, 0.004 here, comes on top."""
    delta = 1 / LEVELS if dequantise else 1 / (LEVELS - 1)
    p = cell_probabilities(0.5, 0.1, delta, 0.5 if dequantise else 0.0)
    assert p.sum() == pytest.approx(1.0, abs=1e-5)
    values = torch.multinomial(p, 8000, replacement=True, generator=torch.Generator().manual_seed(0))
    rows = values.reshape(-1, *SHAPE)
    target = gaussian(torch.full((2,), 0.5), 0.01 * torch.eye(2))
    model = image_model(target, 0.01 * torch.eye(2, dtype=torch.float64))
    data = Dataset(rows.to(torch.uint8), levels=LEVELS, dequantise=dequantise)
    one, many = (ansn.bits_per_dim(model, data, steps=1, samples=k) for k in (1, 8))
    entropy = float(torch.special.entr(p).sum()) / math.log(2)
    gap = delta**2 / (24 * 0.01) / math.log(2)
    assert abs(one.value - entropy - gap) < 5 * one.error
    assert one.error < 0.02
    assert (one.n, one.dim, one.dequantisation, one.trace) == (4000, 2, "uniform", "exact")
    assert one.nats_per_dim == pytest.approx(-one.value * math.log(2))
    # Against the code length of these very rows only the draws of y are left, whose log-density varies by
    # delta |x - m| / (deviation^2 sqrt(12)), 0.13 bits a dimension over 8000 of them: five deviations are 0.0065.
    own = -float(p[values].log().mean()) / math.log(2)
    assert one.value == pytest.approx(own + gap, abs=0.0065)
    assert many.value == pytest.approx(own + gap / 8, abs=0.0065 / math.sqrt(8))


def spikes(levels: int, width: float) -> Mixture:
    """All grey levels of two pixels alike likely, each a narrow Gaussian."""
    at = torch.arange(levels, dtype=torch.float64) / (levels - 1)
    means = torch.cartesian_prod(at, at)
    return Mixture(means, (width**2 * torch.eye(2, dtype=torch.float64)).expand(len(means), -1, -1))


@pytest.mark.parametrize(("tau_min", "slack"), [(0.03, 1e-3), (0.3, 0.1)])
def test_spikes_under_the_lowest_noise(tau_min: float, slack: float):
    """Four grey levels, spikes that are narrow beside the noise: ``q(y | v)`` is the density around v, and the bound is
    the entropy, 2 bits; also where the noise (0.11 of the 1/3 between levels) makes neighbours overlap, since
    ``P(v | y)`` is then the posterior but for the correlation that R puts on q. A uniform y falls between them."""
    target = spikes(4, 1e-4)
    r = torch.tensor([[0.14, 0.05], [0.05, 0.14]], dtype=torch.float64)
    rows = torch.randint(0, 4, (60, *SHAPE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    data, model = Dataset(rows, levels=4), image_model(target, r, (30.0, tau_min))
    options: dict[str, Any] = {"trace": "exact", "steps": 24}
    found = ansn.bits_per_dim(model, data, dequantisation="noise", **options)
    assert found.value == pytest.approx(2.0, abs=slack + 5 * found.error)
    assert found.error < 0.05
    assert found.dequantisation == "noise"
    if tau_min == 0.03:
        assert ansn.bits_per_dim(model, data, dequantisation="uniform", **options).value > 4


def test_continuous_data_in_the_units_of_the_file():
    """A standardised table: the density of ``offset + scale x`` is the one of x over the scales."""
    target = gaussian(torch.zeros(3), spd(3, 1))
    covariance = fixed_covariance(target.covariances[0])
    model = ExactDenoiser(noise_model(covariance, (10.0, 1e-4)), target)
    x = target.sample(300)
    scale = torch.tensor([2.0, 0.5, 30.0], dtype=torch.float64)
    columns = tuple(Column(f"c{j}", offset=1.0, scale=float(v)) for j, v in enumerate(scale))
    data = Dataset(x.float(), units=Table(columns))
    found = ansn.bits_per_dim(model, data, steps=1)
    expected = target.log_density(x, torch.zeros(300, 3, 3)).mean() - scale.log().sum()
    assert found.nats == pytest.approx(float(expected), abs=1e-4)
    assert found.value == pytest.approx(-float(expected) / (3 * math.log(2)), abs=1e-4)
    assert found.dequantisation == "none"
    with pytest.raises(ValueError, match="dequantisation: got 'uniform' for continuous data, expected None"):
        ansn.bits_per_dim(model, data, dequantisation="uniform")


def test_whole_numbers_of_a_table_are_spread_anew_at_each_point():
    """Of one column the mean log-probability, of which the bound falls short by ``step^2 / 24`` for one point, and by
    less for more; the rows of a later chunk have noise of their own."""
    target = gaussian(torch.zeros(1), torch.eye(1))
    model = ExactDenoiser(noise_model(fixed_covariance(torch.eye(1).double()), (10.0, 1e-4)), target)
    edges = torch.arange(-6.5, 7.0, dtype=torch.float64)
    p = torch.special.ndtr(edges).diff()
    rows = torch.multinomial(p, 3000, replacement=True, generator=torch.Generator().manual_seed(0)).unsqueeze(1) - 6.0
    data = Dataset(rows, units=Table((Column("n", "whole", step=1.0),)))
    expected = float(p.log()[rows.long() + 6].mean())
    one, many = (ansn.bits_per_dim(model, data, steps=1, samples=k) for k in (1, 16))
    assert one.dequantisation == "uniform"
    assert one.nats == pytest.approx(expected - 1 / 24, abs=0.03)
    assert one.nats + 0.02 < many.nats < expected + 0.01


def test_rows_with_missing_cells_are_left_out():
    target = gaussian(torch.zeros(3), spd(3, 1))
    model = ExactDenoiser(noise_model(fixed_covariance(target.covariances[0]), (10.0, 1e-4)), target)
    x = target.sample(40).float()
    whole = ansn.bits_per_dim(model, Dataset(x[10:]), steps=1)
    x[:10, 1] = math.nan
    data = Dataset(x)
    found = ansn.bits_per_dim(model, data, steps=1)
    assert (found.n, found.nats) == (30, pytest.approx(whole.nats, rel=1e-9))
    with pytest.raises(ValueError, match=r"^index: got no rows without missing cells, expected at least one$"):
        ansn.bits_per_dim(model, data, torch.arange(10), steps=1)


# -- errors, labels, rows


def digits(count: int = 12, **options: Any) -> Dataset:
    return ansn.load_dataset("digits", **options).select(torch.arange(count))


def digits_model(data: Dataset, regions: int = 1, classes: int | None = None) -> Denoiser:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = networks.MLP(data.shape, 16, 1, num_classes=classes)
        torch.nn.init.normal_(network.output.weight, std=0.05)
    covariance = AdaptiveCovariance(data.shape, regions, eps_floor=data.quantisation)
    x, labels = ansn.load_dataset("digits").batch(torch.arange(1000))
    covariance.update(x, labels if regions > 1 else None)
    return Denoiser(network, noise_model(covariance, (6.0, 0.01)))


def test_standard_errors_are_of_rows_and_of_probes():
    data = digits(40)
    model = digits_model(data)
    options: dict[str, Any] = {"steps": 2, "trace": "hutchinson"}
    one, many = (ansn.bits_per_dim(model, data, probes=p, **options) for p in (2, 32))
    exact = ansn.bits_per_dim(model, data.select(torch.arange(4)), steps=2, trace="exact")
    assert exact.probe_error == 0.0
    assert math.isnan(ansn.bits_per_dim(model, data, probes=1, **options).probe_error)
    assert math.isnan(ansn.bits_per_dim(model, data.select(torch.arange(1)), steps=2).error)
    # Thirty-one degrees of freedom a row against one: the ratio of 4 is certain to a fifth.
    assert one.probe_error / many.probe_error == pytest.approx(4.0, rel=0.3)
    assert one.probe_error < one.error
    seeds = torch.tensor(
        [ansn.bits_per_dim(model, data, steps=2, dequantisation="noise", seed=s).value for s in range(8)]
    )
    assert seeds.std() < 5 * one.error


def test_rows_do_not_depend_on_the_batch():
    data = digits(7, dequantise=True, flip=True)
    model = digits_model(data)
    whole = ansn.bits_per_dim(model, data, steps=2, samples=2)
    again = ansn.bits_per_dim(model, data, steps=2, samples=2, batch_size=3)
    assert again.value == pytest.approx(whole.value, abs=1e-5)
    assert whole.evaluations == 2 * 4 * 2
    first = ansn.bits_per_dim(model, data, torch.arange(3), steps=2)
    assert first.value == ansn.bits_per_dim(model, data.select(torch.arange(3)), steps=2).value


def test_labels_are_told_to_a_network_that_takes_them():
    data = digits()
    model = digits_model(data, regions=10, classes=10)
    told = ansn.bits_per_dim(model, data, steps=2)
    assert told.conditional
    mixed = ansn.bits_per_dim(model, data, steps=2, conditional=False)
    assert not mixed.conditional
    assert mixed.evaluations == 10 * told.evaluations
    more = digits_model(data, regions=12, classes=12)  # two of which are of no row
    assert ansn.bits_per_dim(more, data, steps=2, conditional=False).evaluations == mixed.evaluations
    noisy = ansn.bits_per_dim(model, data, steps=2, dequantisation="noise")
    assert math.isfinite(noisy.value)
    bare = Dataset(data.rows, levels=17)
    with pytest.raises(ValueError, match="dataset: got one without labels"):
        ansn.bits_per_dim(model, bare)
    likeliest = ansn.bits_per_dim(model, bare, steps=2, dequantisation="noise", conditional=False)
    assert likeliest.value == pytest.approx(noisy.value, rel=0.1)
    assert not ansn.bits_per_dim(digits_model(data), data, steps=2).conditional


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dequantisation": "gaussian"}, "dequantisation: got 'gaussian', expected one of uniform, noise"),
        ({"samples": 0}, "samples: got 0, expected at least 1"),
        ({"index": torch.arange(0)}, "index: got no rows"),
        ({"steps": 0}, "steps: got 0"),
        ({"samples": 2.0}, "samples: got 2.0, expected a whole number"),
        ({"batch_size": 2.0}, "batch_size: got 2.0, expected a whole number"),
    ],
)
def test_wrong_arguments_are_named(options: dict[str, Any], message: str):
    data = digits(3)
    with pytest.raises(TypeError if "whole" in message else ValueError, match=message):
        ansn.bits_per_dim(digits_model(data), data, **options)


@pytest.mark.parametrize("how", ["uniform", "noise"])
@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel], ids=["compile", "parallel"])
def test_a_wrapped_model_is_scored(wrap: Any, how: str):
    data = digits(3)
    model = digits_model(data)
    plain = ansn.bits_per_dim(model, data, steps=2, samples=2, dequantisation=how)
    assert ansn.bits_per_dim(wrap(model), data, steps=2, samples=np.int64(2), dequantisation=how) == plain
    with pytest.raises(TypeError, match=r"^model: got Linear, expected a Denoiser"):
        ansn.bits_per_dim(nn.Linear(2, 2), data)


def test_data_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"x: got shape \[4, 2\], expected \[B, 1, 8, 8\]"):
        ansn.bits_per_dim(digits_model(digits()), Dataset(randn(4, 2, dtype=torch.float32)))
