"""The samplers one by one: conventions, the last denoising, callbacks, injected noise, schedules, arguments."""

from __future__ import annotations

import functools
import itertools
import math

import pytest
import torch
from torch import Tensor

from ansn import Denoiser, networks, ops
from ansn.sampling import (
    algorithm_1,
    annealed_langevin,
    dpmpp_2m,
    dpmpp_2m_sde,
    euler,
    exponential_ab,
    gaussian_2m,
    heun,
    heun_churn,
    predictor_corrector,
)
from tests.native import oracle
from tests.oracles import ExactDenoiser, fixed_covariance, gaussian, noise_model, randn, spd
from tests.tolerances import EXACT, rms_ratio

D, B = 4, 6
TAU = (2.0, 0.8, 0.3)


def model(prediction: str = "denoiser", r: Tensor | int | None = None, **options) -> ExactDenoiser:
    covariance = fixed_covariance(spd(D, 3) if r is None else r, **options)
    return ExactDenoiser(noise_model(covariance, TAU), gaussian(randn(D), spd(D, 2)), prediction=prediction)


SAMPLERS = {
    "langevin": lambda *a, **k: annealed_langevin(*a, steps=3, **k),
    "algorithm_1": lambda *a, **k: algorithm_1(*a, steps=3, **k),
    "euler": euler,
    "heun": heun,
    "dpmpp_2m": dpmpp_2m,
    "gaussian_2m": functools.partial(gaussian_2m, denoise=True),  # without it: test_gaussian_flow
    "exponential_ab": exponential_ab,
    "dpmpp_2m_sde": dpmpp_2m_sde,
    "heun_churn": functools.partial(heun_churn, s_min=5.0),  # above every level here: see test_orders for churn
    "predictor_corrector": functools.partial(predictor_corrector, corrections=0),
}
FLOW = set(SAMPLERS) - {"langevin", "algorithm_1"}


# -- Langevin


def test_ncsn_convention_is_the_paper_s_at_twice_the_step():
    x = randn(B, D)
    one = annealed_langevin(model(), x, steps=4, eps=0.01, convention="ncsn", seed=1)
    two = annealed_langevin(model(), x, steps=4, eps=0.02, convention="paper", seed=1)
    assert rms_ratio(one, two) < EXACT
    assert rms_ratio(one, annealed_langevin(model(), x, steps=4, eps=0.01, convention="paper", seed=1)) > 1e-3


def test_default_step_is_a_fifth_of_the_smallest_level():
    """0.2 tau_N^2: the published 2e-5 at 0.01."""
    x = randn(B, D)
    default = annealed_langevin(model(), x, steps=4, seed=1)
    assert rms_ratio(annealed_langevin(model(), x, steps=4, eps=0.2 * TAU[-1] ** 2, seed=1), default) < EXACT
    assert pytest.approx(2e-5) == 0.2 * 0.01**2


def test_a_denoiser_and_a_whitened_network_give_the_same_chain():
    x = randn(B, D)
    for options in ({}, {"precondition": False}):
        chains = [annealed_langevin(model(p), x, steps=4, seed=2, **options) for p in ("denoiser", "whitened")]
        assert rms_ratio(*chains) < 1e-9


def test_isotropic_is_preconditioned_at_r_identity():
    x = randn(B, D)
    for r in (D, 4.0 * torch.eye(D).double()):
        chains = [annealed_langevin(model(r=r), x, steps=4, seed=2, precondition=p) for p in (True, False)]
        assert rms_ratio(*chains) < 1e-10


def test_the_isotropic_step_stays_under_the_narrowest_direction():
    """``x + (alpha/2) tau^2 p score + tau sqrt(alpha p) z`` with p the least eigenvalue of R, written out."""
    exact, x, alpha = model(), randn(B, D), 0.3
    p = float(torch.linalg.eigvalsh(spd(D, 3))[0])
    expected = x
    for i, tau in enumerate(TAU):
        for t in range(2):
            z = torch.as_tensor(oracle.noise(4, 0, B, D, 2 * i + t, ops.LANGEVIN))
            expected = expected + 0.5 * alpha * tau**2 * p * exact.score(expected, tau) + tau * math.sqrt(alpha * p) * z
    options = {"steps": 2, "eps": alpha * TAU[-1] ** 2, "precondition": False, "denoise": False, "seed": 4}
    assert rms_ratio(annealed_langevin(exact, x, **options), expected) < 1e-11


@pytest.mark.parametrize("precondition", [True, False])
def test_denoise_is_one_more_evaluation_at_the_last_level(precondition):
    exact, x = model(), randn(B, D)
    options = {"steps": 2, "seed": 4, "precondition": precondition}
    raw = annealed_langevin(exact, x, denoise=False, **options)
    assert rms_ratio(annealed_langevin(exact, x, denoise=True, **options), exact(raw, TAU[-1])) < EXACT


def test_algorithm_1_is_the_isotropic_chain_at_r_identity():
    x = randn(B, D)
    exact = model("whitened", r=D)
    options = {"steps": 3, "eps": 0.01, "seed": 4}
    assert rms_ratio(algorithm_1(exact, x, **options), annealed_langevin(exact, x, denoise=False, **options)) < 1e-11


@pytest.mark.parametrize("name", ["langevin", "algorithm_1"])
def test_an_injected_noise_replaces_the_counters(name):
    """The contract's own normals, injected, give the chain of the counters; steps are numbered through all levels."""
    numbers: list[int] = []

    def contract(number: int) -> Tensor:
        numbers.append(number)
        return torch.as_tensor(oracle.noise(8, 20, B, D, number, ops.LANGEVIN))

    x = randn(B, D)
    own = SAMPLERS[name](model(), x, seed=8, row=20)
    assert rms_ratio(SAMPLERS[name](model(), x, noise_sampler=contract), own) < 1e-11
    assert numbers == list(range(3 * len(TAU)))


@pytest.mark.parametrize("name", ["langevin", "algorithm_1"])
def test_a_row_of_a_chain_does_not_know_its_batch(name):
    x = randn(B, D)
    whole = SAMPLERS[name](model(), x, seed=8)
    assert rms_ratio(SAMPLERS[name](model(), x[2:4], seed=8, row=2), whole[2:4]) < 1e-11
    assert not torch.equal(SAMPLERS[name](model(), x, seed=9), whole)


# -- flow


def test_euler_written_out_as_k_diffusion_has_it():
    exact, x = model(), randn(B, D)
    sigmas = [*TAU, 0.0]
    expected = x
    for sigma, following in itertools.pairwise(sigmas):
        denoised = exact(expected, sigma * expected.new_ones([B]))
        expected = expected + (expected - denoised) / sigma * (following - sigma)
    assert rms_ratio(euler(exact, x), expected) < EXACT


def test_heun_written_out_as_k_diffusion_has_it():
    exact, x = model(), randn(B, D)
    sigmas = [*TAU, 0.0]
    expected = x
    for sigma, following in itertools.pairwise(sigmas):
        slope = (expected - exact(expected, sigma * expected.new_ones([B]))) / sigma
        guess = expected + slope * (following - sigma)
        if following == 0:
            expected = guess
        else:
            there = (guess - exact(guess, following * expected.new_ones([B]))) / following
            expected = expected + 0.5 * (slope + there) * (following - sigma)
    assert rms_ratio(heun(exact, x), expected) < EXACT


@pytest.mark.parametrize(("name", "evaluations"), [("euler", 3), ("heun", 5), ("langevin", 10), ("algorithm_1", 9)])
def test_number_of_evaluations(name, evaluations):
    class Counting(ExactDenoiser):
        calls = 0

        def _network(self, *args):
            self.calls += 1
            return super()._network(*args)

    prediction = "whitened" if name == "algorithm_1" else "denoiser"
    exact = Counting(model().noise, gaussian(randn(D), spd(D, 2)), prediction=prediction)
    SAMPLERS[name](exact, randn(B, D))
    assert exact.calls == evaluations


# -- all of them


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_callback_gets_k_diffusion_s_keys(name):
    told: list[dict] = []
    x = randn(B, D)
    end = SAMPLERS[name](model(), x, callback=told.append)
    each = len(told) // len(TAU)  # Langevin: steps at each level
    assert [set(d) for d in told] == [{"i", "sigma", "x", "denoised"}] * (len(TAU) * each)
    assert [d["i"] for d in told] == list(range(len(told)))
    assert [float(d["sigma"]) for d in told[::each]] == pytest.approx(list(TAU))
    assert torch.equal(told[0]["x"], x)
    for d in told:
        assert rms_ratio(d["denoised"], model()(d["x"], d["sigma"])) < EXACT
    if name in FLOW:  # the last step goes to tau = 0
        assert torch.equal(told[-1]["denoised"], end)


@pytest.mark.parametrize("name", SAMPLERS)
def test_x_is_left_alone_and_nothing_is_recorded(name):
    x = randn(B, D).requires_grad_()
    before = x.detach().clone()
    out = SAMPLERS[name](model(), x)
    assert not out.requires_grad
    assert torch.equal(x.detach(), before)


@pytest.mark.parametrize("name", SAMPLERS)
def test_levels_may_be_given(name):
    x = randn(B, D)
    default = SAMPLERS[name](model(), x)
    assert torch.equal(SAMPLERS[name](model(), x, torch.tensor(TAU, dtype=torch.float64)), default)
    assert torch.equal(SAMPLERS[name](model(), x, list(TAU)), SAMPLERS[name](model(), x, torch.tensor(TAU)))
    one = SAMPLERS[name](model(), x, torch.tensor([0.5]).double())
    assert bool(one.isfinite().all())
    if name in FLOW:
        assert rms_ratio(one, model()(x, 0.5)) < EXACT


@pytest.mark.parametrize("name", SAMPLERS)
def test_extra_arguments_reach_the_network(name):
    seen: list[Tensor] = []

    class Network(torch.nn.Module):
        conditioning = "none"

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            seen.append(y)
            return 0.1 * x

    y = torch.arange(B)
    SAMPLERS[name](Denoiser(Network(), model().noise), randn(B, D), y=y)
    assert seen
    assert all(s is y for s in seen)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize(
    "taus", [[], [1.0, 2.0], [1.0, 1.0], [1.0, 0.0], [[1.0, 0.5]], [1.0, math.nan], [math.inf, 1.0]]
)
def test_levels_that_do_not_decrease_are_refused(name, taus):
    with pytest.raises(ValueError, match=r"^taus: got \[.*, expected a tensor \[N\] of finite levels > 0"):
        SAMPLERS[name](model(), randn(B, D), torch.tensor(taus))


@pytest.mark.parametrize(
    ("argument", "options"),
    [
        ("steps", {"steps": 0}),
        ("eps", {"eps": 0.0}),
        ("eps", {"eps": float("nan")}),
        ("convention", {"convention": "song"}),
    ],
)
def test_wrong_arguments_are_named(argument, options):
    with pytest.raises(ValueError, match=f"^{argument}: got"):
        annealed_langevin(model(), randn(B, D), **{"steps": 1, **options})


def test_a_langevin_step_of_the_score_compiles_into_one_graph():
    """Network and coloured step together, with a step number that changes; the corrected one is in test_compile.py."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    network = networks.MLP((D,), hidden=16, blocks=1)
    torch.nn.init.normal_(network.output.weight)
    denoiser = Denoiser(network, noise_model(fixed_covariance(spd(D, 3), dtype=torch.float32), TAU)).eval()

    def step(x: Tensor, tau: Tensor, number: int) -> Tensor:
        return ops.colored_step(x, f=denoiser.score(x, tau), a=0.1, b=tau * 0.4, seed=1, step=number, stream=1)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    x, outputs = randn(B, D, dtype=torch.float32), []
    with torch.no_grad():
        for number in range(3):
            tau = torch.tensor(0.5 / (number + 1))
            outputs.append(step(x, tau, number))
            assert rms_ratio(compiled(x, tau, number), outputs[-1]) < 1e-5
    assert not torch.equal(outputs[0], outputs[1])
