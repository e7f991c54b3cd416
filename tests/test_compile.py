"""``torch.compile(fullgraph=True)`` of what a user would compile: perturbation, loss, training step, sampler step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor, nn

import ansn
from ansn import AdaptiveCovariance, Denoiser, NoiseModel, ops
from ansn.covariance import STRUCTURES
from ansn.sampling import (
    annealed_langevin,
    dpmpp_2m,
    dpmpp_2m_sde,
    exponential_ab,
    gaussian_2m,
    heun,
    heun_churn,
    predictor_corrector,
)
from tests.oracles import randn
from tests.tolerances import rms_ratio

SHAPE = (1, 4, 4)
CLOSE = 1e-5
BACKENDS = ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]
MODES = [
    ({}, "pixel"),
    ({"skip": "scalar"}, "pixel"),
    ({"prediction": "whitened"}, "whitened"),
    ({}, "paper"),
]


class Network(nn.Module):
    """A convolution that knows its level."""

    conditioning = "log"

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 1, 3, padding=1)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(x) + level.reshape(-1, 1, 1, 1)))


def model(structure: str = "dense", **options: Any) -> Denoiser:
    torch.manual_seed(0)
    covariance = AdaptiveCovariance(SHAPE, structure=structure).update(randn(80, *SHAPE).float()).freeze()
    return Denoiser(Network(), NoiseModel(covariance, ansn.levels.karras(5.0, 0.05, n=6), seed=3), **options)


def batch(seed: int, rows: int = 6) -> Tensor:
    return randn(rows, *SHAPE, seed=seed).float()


def compiled(function: Callable[..., Any], backend: str) -> Callable[..., Any]:
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("structure", STRUCTURES)
def test_perturb(backend, structure):
    """The noise is that of the step at hand, not of the one at which the graph was made."""
    noise = model(structure=structure).noise
    graph = compiled(lambda x, step: noise.perturb(x, step=step), backend)
    for step in (0, 1, 2, 7):
        x = batch(step)
        (wanted, level), (got, same) = noise.perturb(x, step=step), graph(x, step)
        assert rms_ratio(got, wanted) < CLOSE
        assert rms_ratio(same.tau, level.tau) < CLOSE
        assert (same.seed, same.row, same.step) == (level.seed, level.row, level.step)


def test_perturb_that_counts_its_calls_is_compiled_once_for_all_of_them():
    """One graph needs the step, which the error says."""
    noise, graphs = model().noise, torch._dynamo.testing.CompileCounter()
    torch._dynamo.reset()
    graph = torch.compile(lambda x: noise.perturb(x), backend=graphs)
    assert [graph(batch(0))[1].step for _ in range(12)] == list(range(12))
    assert graphs.frame_count <= 4
    with pytest.raises(RuntimeError, match="step: got None in compiled code, expected the training step"):
        compiled(lambda x: noise.perturb(x), "eager")(batch(0))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("options", "metric"), MODES)
def test_loss(backend, options, metric):
    net = model(**options)
    graph = compiled(lambda x, xt, level: ansn.dsm_loss(net, x, xt, level, metric), backend)
    for step in range(3):
        x = batch(step)
        xt, level = net.noise.perturb(x, step=step)
        assert rms_ratio(graph(x, xt, level).detach(), ansn.dsm_loss(net, x, xt, level, metric).detach()) < CLOSE


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("options", "metric"), [*MODES, ({"structure": "diagonal"}, "pixel")])
def test_training_step(backend, options, metric):
    """Draw, forward and loss in one graph, backward through it; the weights follow those of the eager run."""

    def forward(net: Denoiser, x: Tensor, step: int) -> Tensor:
        xt, level = net.noise.perturb(x, step=step)
        return ansn.dsm_loss(net, x, xt, level, metric)

    eager, other = model(**options), model(**options)
    graph = compiled(lambda x, step: forward(other, x, step), backend)
    optimisers = [torch.optim.SGD(net.network.parameters(), lr=0.01) for net in (eager, other)]
    for step in range(4):
        losses = forward(eager, batch(step), step), graph(batch(step), step)
        for loss, optimiser in zip(losses, optimisers, strict=True):
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        assert rms_ratio(losses[1].detach(), losses[0].detach()) < CLOSE
    for a, b in zip(eager.network.parameters(), other.network.parameters(), strict=True):
        assert a.grad is not None
        assert rms_ratio(b.grad, a.grad) < 10 * CLOSE
        assert rms_ratio(b.detach(), a.detach()) < CLOSE


def langevin_step(net: Denoiser, x: Tensor, tau: Tensor, step: int) -> Tensor:
    """The corrected Langevin step, alpha = 0.2 (math section 3)."""
    return net.noise.covariance.step(x, net(x, tau), c=0.1, b=tau * 0.2**0.5, seed=1, step=step, stream=ops.LANGEVIN)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("prediction", ["denoiser", "whitened"])
def test_langevin_step(backend, prediction):
    net = model(prediction=prediction)
    graph = compiled(lambda x, tau, step: langevin_step(net, x, tau, step), backend)
    one = other = batch(0)
    with torch.no_grad():
        for step, tau in enumerate(net.noise.tau.float()):
            one, other = langevin_step(net, one, tau, step), graph(other, tau, step)
    assert rms_ratio(other, one) < CLOSE
    taus, start = net.noise.tau, batch(0)
    assert rms_ratio(one, annealed_langevin(net, start, taus, steps=1, seed=1, denoise=False, eps=None)) < CLOSE


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("structure", STRUCTURES)
def test_compiled_code_follows_the_spectrum(backend, structure):
    """The snapshot changes in place while training goes on: a graph made before reads the new one."""
    net = model(skip="wiener")
    covariance = AdaptiveCovariance(SHAPE, 1, structure)
    net = Denoiser(net.network, NoiseModel(covariance, net.noise.levels, seed=3), skip="wiener")
    graph = compiled(lambda x: net(x, 0.7), backend)
    for rows in (10, 20, 80):
        covariance.update(randn(rows, *SHAPE, seed=rows).float())
        assert rms_ratio(graph(batch(0)).detach(), net(batch(0), 0.7).detach()) < CLOSE


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("structure", ["dense", "cosine"])
def test_a_mixture_and_its_estimate_as_input(backend, structure):
    """And gradients in x; with what the mixture learns later, since it is learned in place."""
    x = torch.cat((batch(1, 60), batch(2, 40) + 3.0))
    covariance, mixture = AdaptiveCovariance(SHAPE, 1, structure, rho=0.0), ansn.Mixture.for_data(x, 2, structure)
    noise = NoiseModel(covariance.update(x), ansn.levels.karras(5.0, 0.05, n=6), mixture=mixture)
    torch.manual_seed(0)
    net = Denoiser(nn.Conv2d(2, 1, 3, padding=1), noise, inputs=("estimate",))
    net.conditioning = "none"
    graph = compiled(lambda x: net(x, 0.7), backend)
    for seed in (3, 4):
        at = batch(seed).requires_grad_()
        (wanted,), (got,) = (torch.autograd.grad(f(at).sum(), at) for f in (lambda x: net(x, 0.7), graph))
        assert rms_ratio(graph(at).detach(), net(at, 0.7).detach()) < CLOSE
        assert rms_ratio(got, wanted) < CLOSE
        noise.update(batch(7, 200) + 1.0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "sampler",
    [heun, annealed_langevin, dpmpp_2m, gaussian_2m, exponential_ab, dpmpp_2m_sde, heun_churn, predictor_corrector],
)
def test_a_whole_sampler(backend, sampler):
    """The library's own loop over three levels, its checks included."""
    net = model()
    taus = torch.tensor([2.0, 0.8, 0.5])
    options = {"steps": 2, "seed": 5} if sampler is annealed_langevin else {}
    graph = compiled(lambda x: sampler(net, x, taus, **options), backend)
    assert rms_ratio(graph(batch(1)), sampler(net, batch(1), taus, **options)) < CLOSE
