"""Every solver has its order, against the exact flow of a Gaussian and of a mixture; the stochastic ones, the data.

All solvers end with ``D`` at the last level (one where it is asked to), so the exact answer is the flow carried from
the first level to the last, and then D. Steps are even in ``ln tau``.
"""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import Tensor

from ansn.sampling import (
    METHODS,
    Draw,
    dpmpp_2m,
    dpmpp_2m_sde,
    euler,
    exponential_ab,
    gaussian_2m,
    heun,
    heun_churn,
    predictor_corrector,
)
from ansn.sampling.multistep import adams_bashforth_weights
from tests.oracles import (
    ExactDenoiser,
    Mixture,
    covariance_within_five_sigma,
    five_sigma,
    fixed_covariance,
    gaussian,
    noise_model,
    randn,
    spd,
)
from tests.tolerances import rms_ratio

D, TOP, BOTTOM = 3, 3.0, 0.1
MEAN = randn(D, seed=1)
S = spd(D, 2)
VALUES, VECTORS = torch.linalg.eigh(S)
SPREAD = torch.tensor([0.3, 0.8, 1.5], dtype=torch.float64)
R = (VECTORS * SPREAD) @ VECTORS.T  # commutes with S, so that the Gaussian's flow has a closed form
GAUSSIAN = gaussian(MEAN, S)
MIXTURE = Mixture(
    torch.stack((MEAN, MEAN + 1.5, MEAN - torch.tensor([2.0, 0.0, 1.0]))), torch.stack((0.2 * S, 0.1 * R, 0.3 * S))
)

ORDERS = {
    "euler": (euler, 1),
    "heun": (heun, 2),
    "dpmpp_2m": (dpmpp_2m, 2),
    "gaussian_2m": (functools.partial(gaussian_2m, denoise=True), 2),
    "ab1": (functools.partial(exponential_ab, order=1), 1),
    "ab2": (functools.partial(exponential_ab, order=2), 2),
    "ab3": (functools.partial(exponential_ab, order=3), 3),
}


def model(target: Mixture) -> ExactDenoiser:
    return ExactDenoiser(noise_model(fixed_covariance(R)), target)


def start(rows: int = 8) -> Tensor:
    return MEAN + randn(rows, D, seed=7) @ torch.linalg.cholesky(S + TOP**2 * R).T


def levels_of(n: int) -> Tensor:
    """Even in ``ln tau``, after a first step of ``h^1.5``: Euler starts every multistep solver, and its local error
    ``h_1^2`` would else be all that is seen of order 3."""
    h = math.log(TOP / BOTTOM) / n
    first = TOP * math.exp(-(h**1.5))
    rest = torch.linspace(math.log(first), math.log(BOTTOM), n, dtype=torch.float64).exp()
    return torch.cat((torch.tensor([TOP], dtype=torch.float64), rest))


@functools.cache
def exact(name: str) -> Tensor:
    """``D(x(tau_N), tau_N)``: in closed form for the Gaussian, by an eighth-order Runge-Kutta for the mixture."""
    net = model({"gaussian": GAUSSIAN, "mixture": MIXTURE}[name])
    x = start()
    if name == "gaussian":
        scale = ((VALUES + BOTTOM**2 * SPREAD) / (VALUES + TOP**2 * SPREAD)).sqrt()
        end = MEAN + ((x - MEAN) @ VECTORS * scale) @ VECTORS.T
    else:

        def slope(lam: float, flat: np.ndarray) -> np.ndarray:
            at = torch.as_tensor(flat).reshape(x.shape)
            return (net(at, math.exp(-lam)) - at).numpy().ravel()

        span = (-math.log(TOP), -math.log(BOTTOM))
        solved = integrate.solve_ivp(slope, span, x.numpy().ravel(), method="DOP853", rtol=1e-11, atol=1e-12)
        end = torch.as_tensor(solved.y[:, -1]).reshape(x.shape)
    return net(end, BOTTOM)


@pytest.mark.parametrize("target", ["gaussian", "mixture"])
@pytest.mark.parametrize("name", ORDERS)
def test_order_of_convergence(name, target):
    """Halving the steps divides the error by 2 to the order."""
    sampler, order = ORDERS[name]
    net = model({"gaussian": GAUSSIAN, "mixture": MIXTURE}[target])
    errors = [rms_ratio(sampler(net, start(), levels_of(n)), exact(target)) for n in (80, 160, 320)]
    for coarse, fine in itertools.pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.2), errors
    assert errors[-1] < {1: 2e-2, 2: 1e-3, 3: 1e-4}[order], errors


@pytest.mark.parametrize("order", [1, 2, 3])
def test_adams_bashforth_integrates_polynomials(order):
    """``sum_j w_j t_j^p = int_0^h exp(-(h - s)) s^p ds / (1 - exp(-h))`` for every power that the values determine."""
    taus = torch.tensor([4.0, 2.9, 1.1, 0.9, 0.2], dtype=torch.float64)
    lam = -taus.log()
    weights = adams_bashforth_weights(taus, order)
    for i in range(len(taus) - 1):
        h, values = float(lam[i + 1] - lam[i]), min(order, i + 1)
        for p in range(values):
            wanted = integrate.quad(lambda s, h=h, p=p: math.exp(s - h) * s**p, 0.0, h)[0] / -math.expm1(-h)
            got = sum(float(weights[i, j]) * float(lam[i - j] - lam[i]) ** p for j in range(values))
            assert got == pytest.approx(wanted, abs=1e-12)
    torch.testing.assert_close(weights.sum(1), torch.ones(len(taus), dtype=torch.float64))
    assert weights[-1].tolist() == [1.0, *[0.0] * (order - 1)]


def test_order_one_is_euler_and_the_flow_ends_agree():
    net, taus = model(MIXTURE), levels_of(12)
    assert rms_ratio(exponential_ab(net, start(), taus, order=1), euler(net, start(), taus)) < 1e-13


def test_2m_written_out_as_k_diffusion_has_it():
    net, x, old = model(MIXTURE), start(), None
    taus = [*levels_of(7).tolist(), 0.0]
    for i, (sigma, following) in enumerate(itertools.pairwise(taus)):
        denoised = net(x, sigma)
        if old is None or following == 0.0:
            x = following / sigma * x + (1 - following / sigma) * denoised
        else:
            h = math.log(sigma / following)
            r = math.log(taus[i - 1] / sigma) / h
            x = following / sigma * x - math.expm1(-h) * ((1 + 1 / (2 * r)) * denoised - old / (2 * r))
        old = denoised
    assert rms_ratio(dpmpp_2m(net, start(), levels_of(7)), x) < 1e-12


# -- stochastic: no noise is the flow; with noise, the data


def test_without_noise_the_sde_is_2m():
    net, taus = model(MIXTURE), levels_of(9)
    for seed in (0, 1):
        assert rms_ratio(dpmpp_2m_sde(net, start(), taus, eta=0.0, seed=seed), dpmpp_2m(net, start(), taus)) < 1e-13


def test_without_churn_it_is_heun():
    net, taus = model(MIXTURE), levels_of(9)
    assert torch.equal(heun_churn(net, start(), taus, s_churn=0.0, seed=3), heun(net, start(), taus))
    outside = heun_churn(net, start(), taus, s_churn=5.0, s_min=50.0, seed=3)
    assert rms_ratio(outside, heun(net, start(), taus)) < 1e-13
    assert rms_ratio(heun_churn(net, start(), taus, s_churn=5.0, seed=3), outside) > 1e-3


def test_a_flow_predictor_alone_is_euler():
    net, taus = model(MIXTURE), levels_of(9)
    out = predictor_corrector(net, start(), taus, predictor="flow", corrections=0)
    assert rms_ratio(out, euler(net, start(), taus)) < 1e-13


STOCHASTIC = {
    "sde": functools.partial(dpmpp_2m_sde, eta=1.0),
    "sde half": functools.partial(dpmpp_2m_sde, eta=0.5),
    "churn": functools.partial(heun_churn, s_churn=20.0),
    "ancestral": functools.partial(predictor_corrector, corrections=0),
    "reverse": functools.partial(predictor_corrector, predictor="reverse", corrections=0),
    "flow and corrector": functools.partial(predictor_corrector, predictor="flow", alpha=0.5),
    "ancestral and corrector": functools.partial(predictor_corrector, corrections=2),
}
# First-order predictors have a bias of one part in the number of levels; five standard errors of a variance are 0.09.
LEVELS = {"ancestral": 200, "reverse": 200, "ancestral and corrector": 100, "flow and corrector": 100}


def schedule(n: int) -> Tensor:
    return torch.linspace(math.log(TOP), math.log(0.01), n, dtype=torch.float64).exp()


@pytest.mark.parametrize("name", STOCHASTIC)
def test_the_distribution_of_a_gaussian(name):
    """From the exact start to the data: mean and covariance within five standard errors."""
    rows = 6000
    x = MEAN + randn(rows, D, seed=11) @ torch.linalg.cholesky(S + TOP**2 * R).T
    out = STOCHASTIC[name](model(GAUSSIAN), x, schedule(LEVELS.get(name, 60)), seed=5)
    assert five_sigma(out - MEAN, 0.0)
    assert covariance_within_five_sigma(out - MEAN, S)


@pytest.mark.parametrize("name", STOCHASTIC)
def test_the_distribution_of_a_mixture(name):
    """One dimension: a Kolmogorov-Smirnov test against the mixture, which a sampler that favours a mode fails."""
    target = Mixture(torch.tensor([[-1.0], [2.0]]), torch.tensor([[[0.09]], [[0.25]]]), torch.tensor([0.3, 0.7]))
    net = ExactDenoiser(noise_model(fixed_covariance(torch.tensor([[1.5]]).double())), target)
    x = target.sample(4000, seed=2) + TOP * math.sqrt(1.5) * randn(4000, 1, seed=3)
    out = STOCHASTIC[name](net, x, schedule(LEVELS.get(name, 60)), seed=5)

    def cdf(at: np.ndarray) -> np.ndarray:
        return 0.3 * stats.norm.cdf(at, -1, 0.3) + 0.7 * stats.norm.cdf(at, 2, 0.5)

    assert stats.kstest(out[:, 0].numpy(), cdf).pvalue > 1e-6


# -- evaluations


OPTIONS = [(method, {}) for method in METHODS]


@pytest.mark.parametrize(
    ("method", "options"), [*OPTIONS, ("predictor_corrector", {"corrections": 3}), ("langevin", {"denoise": False})]
)
def test_evaluations_are_counted(method, options):
    seen: list[int] = []

    class Counting(ExactDenoiser):
        def _network(self, *args):
            seen.append(1)
            return super()._network(*args)

    prediction = "whitened" if method == "paper" else "denoiser"
    draw = Draw(Counting(model(GAUSSIAN).noise, GAUSSIAN, prediction=prediction), method, 5, **options)
    draw.batch(0, 2)
    assert len(seen) == draw.evaluations
