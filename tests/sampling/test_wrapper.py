"""What every denoiser around a denoiser has in common."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from ansn import Denoiser, networks
from ansn.sampling import Guided, Mask, Posterior, Replacement, mmps
from ansn.sampling.wrapper import Wrapper
from tests.oracles import fixed_covariance, noise_model, randn, spd
from tests.tolerances import rms_ratio

D = 4
MASK, Y = Mask(torch.tensor([True, False, True, False])), torch.tensor([0.3, -0.2])
WRAPPERS: dict[str, Any] = {
    "guided": lambda m: Guided(m, 2.0),
    "replacement": lambda m: Replacement(m, MASK, Y, 0.1),
    "posterior": lambda m: Posterior(m, MASK, Y, 0.1),
    "mmps": lambda m: mmps(m, MASK, Y, 0.1),
}
OTHERS: dict[str, Any] = {
    "guided": [lambda m: Guided(m, 3.0), lambda m: Guided(m, 2.0, (0.1, 1.0))],
    "replacement": [lambda m: Replacement(m, MASK, 2 * Y, 0.1), lambda m: Replacement(m, MASK, Y, 0.2)],
    "posterior": [lambda m: Posterior(m, MASK, Y, 0.1, "isotropic"), lambda m: Posterior(m, MASK, Y, gradient=True)],
    "mmps": [lambda m: mmps(m, MASK, Y, 0.1, cg_steps=2), lambda m: mmps(m, MASK, Y + 1, 0.1)],
}


def model(prediction: str = "whitened") -> Denoiser:
    torch.manual_seed(0)
    network = networks.MLP((D,), hidden=8, blocks=1, num_classes=3)
    for layer in (network.output, network.layers[0].film.linear, network.layers[0].linear2):
        nn.init.normal_(layer.weight)  # a new network gives 0, and the same for every class
    return Denoiser(network, noise_model(fixed_covariance(spd(D))), prediction, label_dropout=0.1).double()


@pytest.mark.parametrize("make", WRAPPERS.values(), ids=WRAPPERS.keys())
def test_it_reads_as_a_denoiser(make):
    """``D = x~ + tau L f = x~ + Sigma score``, whatever the inner network predicts."""
    inner, x, tau = model(), randn(3, D, seed=1), 0.8
    outer, y = make(inner), torch.tensor([0, 1, 2])
    assert outer.prediction == "denoiser"
    assert outer.noise is inner.noise
    assert outer.network is inner.network
    assert (outer.num_classes, outer.label_dropout) == (3, 0.1)
    denoised = outer(x, tau, y=y)
    assert rms_ratio(denoised.detach(), inner(x, tau, y=y).detach()) > 1e-3
    covariance = outer.noise.covariance
    assert rms_ratio((x + tau * covariance.color(outer.f(x, tau, y=y))).detach(), denoised.detach()) < 1e-9
    r = covariance.noise_shape()[0]
    assert rms_ratio((x + tau**2 * outer.score(x, tau, y=y) @ r).detach(), denoised.detach()) < 1e-9


@pytest.mark.parametrize("name", WRAPPERS)
def test_two_that_differ_can_be_told_apart(name):
    def told(m: Denoiser) -> str:
        return f"{m} {[(k, v.tolist()) for k, v in sorted(m.state_dict().items())]}"

    inner = model()
    assert told(WRAPPERS[name](inner)) == told(WRAPPERS[name](inner))
    for other in OTHERS[name]:
        assert told(other(inner)) != told(WRAPPERS[name](inner))


def test_a_changed_copy_leaves_the_original():
    inner = model()
    outer = Posterior(inner, MASK, torch.stack((Y, 2 * Y)), 0.1)
    part = outer.of_rows(1, 1)
    assert torch.equal(part.measured, 2 * Y[None])
    assert len(outer.measured) == 2
    nested = Guided(outer, 2.0)
    assert torch.equal(nested.of_rows(1, 1).model.measured, 2 * Y[None])
    assert nested.model is outer
    assert Guided(inner, 2.0).of_rows(1, 1).model is inner


def test_a_wrapper_must_say_what_d_is():
    with pytest.raises(NotImplementedError):
        Wrapper(model())(randn(1, D), 0.5)


@pytest.mark.parametrize("make", WRAPPERS.values(), ids=WRAPPERS.keys())
@pytest.mark.parametrize("prediction", ["whitened", "denoiser"])
def test_the_model_inside_is_left_as_it_was(make, prediction):
    noise = noise_model(fixed_covariance(spd(D)))
    inner = Denoiser(model().network, noise, prediction, skip="scalar", label_dropout=0.1)
    before = set(inner.state_dict())
    make(inner)
    assert set(inner.state_dict()) == before
    assert inner.skip == "scalar"
