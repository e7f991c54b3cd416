"""Math section 8, item 6: with an exact denoiser, loss, moments and samplers have closed forms."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from ansn import dsm_loss
from ansn.sampling import annealed_langevin, euler, heun
from tests.oracles import (
    ExactDenoiser,
    Mixture,
    five_sigma,
    fixed_covariance,
    gaussian,
    noise_model,
    randn,
    spd,
)
from tests.tolerances import rms_ratio

D, N = 4, 40_000
MEAN, S, R = randn(D, seed=1), spd(D, 2), spd(D, 3)
TARGETS = {
    "gaussian": gaussian(MEAN, S),
    "mixture": Mixture(
        torch.stack([2 * randn(D, seed=4), -2 * randn(D, seed=5), torch.zeros(D)]),
        torch.stack([0.3 * S, spd(D, 6), 0.1 * R]),
        torch.tensor([0.5, 0.3, 0.2]),
    ),
}
KINDS = [(target, prediction) for target in TARGETS for prediction in ("denoiser", "whitened")]


def exact(target: str, prediction: str = "denoiser", r: torch.Tensor = R, root: str = "cholesky") -> ExactDenoiser:
    return ExactDenoiser(noise_model(fixed_covariance(r, root=root)), TARGETS[target], prediction=prediction)


# -- the oracle itself


def test_the_oracle_is_the_posterior_mean():
    """By quadrature of ``E[x | x~]`` in one dimension, for a mixture."""
    target = Mixture(torch.tensor([[-1.0], [2.0]]), torch.tensor([[[0.2]], [[1.0]]]), torch.tensor([0.3, 0.7]))
    variance = 0.6

    def density(x: float) -> float:
        return 0.3 * stats.norm.pdf(x, -1, math.sqrt(0.2)) + 0.7 * stats.norm.pdf(x, 2, 1)

    for noisy in (-2.0, 0.1, 3.0):
        weights = [
            integrate.quad(lambda x, p=p: x**p * density(x) * stats.norm.pdf(noisy, x, math.sqrt(variance)), -9, 12)[0]  # noqa: B023
            for p in (0, 1)
        ]
        at = torch.tensor([[noisy]], dtype=torch.float64), torch.full((1, 1, 1), variance).double()
        assert target.denoised(*at).item() == pytest.approx(weights[1] / weights[0], rel=1e-6)
        assert target.log_density(*at).item() == pytest.approx(math.log(weights[0]), rel=1e-6)


def test_the_oracle_s_score_is_the_gradient():
    x = (2 * randn(20, D)).requires_grad_()
    sigma = (0.7**2 * R).expand(20, D, D)
    for target in TARGETS.values():
        (gradient,) = torch.autograd.grad(target.log_density(x, sigma).sum(), x)
        assert rms_ratio(target.score(x.detach(), sigma), gradient) < 1e-11


# -- denoiser, score, moments of f


@pytest.mark.parametrize(("target", "prediction"), KINDS)
@pytest.mark.parametrize("root", ["cholesky", "symmetric"])
def test_the_score_is_that_of_the_perturbed_density(target, prediction, root):
    """``score = Sigma^-1 (D - x~)`` is ``grad log p_Sigma``; D is the posterior mean; ``f = tau L^T score``."""
    model, x = exact(target, prediction, root=root), 2 * randn(30, D)
    tau = torch.linspace(0.1, 4.0, 30, dtype=torch.float64)
    sigma = tau.square().reshape(-1, 1, 1) * R
    score = TARGETS[target].score(x, sigma)
    assert rms_ratio(model.score(x, tau), score) < 1e-9
    assert rms_ratio(model(x, tau), TARGETS[target].denoised(x, sigma)) < 1e-10
    factor = model.noise.covariance.snapshot.factor[0]
    assert rms_ratio(model.f(x, tau), tau.unsqueeze(1) * (score @ factor)) < 1e-9


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("tau", [0.3, 2.0])
def test_moments_of_the_exact_f(target, tau):
    """``E f = 0`` and ``E[f . z] = -E ||f||^2``, within five standard errors."""
    model, x = exact(target, "whitened"), TARGETS[target].sample(N)
    perturbed, _ = model.noise.perturb(x, tau=tau, step=0)
    z = model.noise.covariance.whiten(perturbed - x) / tau
    f = model.f(perturbed, tau)
    assert five_sigma(f, 0.0)
    assert five_sigma((f * z).sum(1) + f.square().sum(1), 0.0)


# -- the loss at its floor


def floor(metric: str, tau: float, scale: float) -> float:
    """The loss of the posterior mean of a Gaussian: ``w tr(W Cov[x | x~] W^T) / d``."""
    sigma = tau**2 * R
    posterior = S - S @ torch.linalg.solve(S + sigma, S)
    if metric == "pixel":
        return float((1 + tau**2) / (tau * scale) ** 2 * posterior.trace() / D)
    weighted = torch.linalg.solve(sigma, posterior)
    if metric == "paper":
        weighted = torch.linalg.solve(sigma, weighted.T)
    return float(0.5 * weighted.trace() / D)


@pytest.mark.parametrize("metric", ["pixel", "whitened", "paper"])
@pytest.mark.parametrize("prediction", ["denoiser", "whitened"])
@pytest.mark.parametrize("tau", [0.3, 2.0])
def test_the_loss_is_at_its_floor(metric, prediction, tau):
    """And no other denoiser is under it: any linear change of the exact one loses."""
    model, x = exact("gaussian", prediction), TARGETS["gaussian"].sample(N, seed=1)
    perturbed, level = model.noise.perturb(x, tau=tau, step=3)
    rows = dsm_loss(model, x, perturbed, level, metric, reduction="none")
    assert five_sigma(rows, floor(metric, tau, float(model.noise.covariance.scale[0])))

    class Changed(ExactDenoiser):
        def _network(self, x, tau, region, extra):
            return super()._network(x, tau, region, extra) + 0.3 * torch.sin(x)

    changed = Changed(model.noise, TARGETS["gaussian"], prediction=prediction)
    gap = dsm_loss(changed, x, perturbed, level, metric, reduction="none") - rows
    assert float(gap.mean()) > 5 * float(gap.std()) / math.sqrt(N)


# -- Langevin


@pytest.mark.parametrize(("convention", "alpha"), [("paper", 0.2), ("paper", 1.0), ("ncsn", 0.2)])
@pytest.mark.parametrize("prediction", ["denoiser", "whitened"])
def test_langevin_has_its_stationary_variance(convention, alpha, prediction):
    """``r / (1 - alpha/(4 r))`` for each whitened eigenvalue r of the perturbed covariance, in units of tau^2.

    The sampler is affine in x and z here, so one step tells its two matrices, and they the stationary covariance.
    """
    model, tau = exact("gaussian", prediction), 0.8
    taus, eps = torch.tensor([tau], dtype=torch.float64), alpha * tau**2
    options = {"steps": 1, "eps": eps, "convention": convention, "denoise": False}
    eye, factor = torch.eye(D).double(), model.noise.covariance.snapshot.factor[0]

    def step(x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        return annealed_langevin(model, x, taus, noise_sampler=lambda _: z, **options)

    rest = step(MEAN.unsqueeze(0), torch.zeros(1, D))
    assert rms_ratio(rest[0], MEAN) < 1e-12
    drift = step(MEAN + eye, torch.zeros(D, D)) - MEAN
    spread = step(MEAN.expand(D, -1), eye) - MEAN
    stationary = torch.zeros(D, D, dtype=torch.float64)
    for _ in range(20_000):
        stationary = drift.T @ stationary @ drift + spread.T @ spread
    inverse = torch.linalg.inv(factor)
    whitened_data = inverse @ S @ inverse.T
    values, vectors = torch.linalg.eigh(whitened_data)
    r = 1 + values / tau**2
    actual = alpha * (2 if convention == "ncsn" else 1)
    expected = tau**2 * (vectors * (r / (1 - actual / (4 * r)))) @ vectors.T
    assert rms_ratio(inverse @ stationary @ inverse.T, expected) < 1e-9


def test_langevin_reaches_it():
    """The same, by running chains with the package's own noise: each whitened direction within five standard errors."""
    model, tau, alpha = exact("gaussian"), 0.8, 0.8
    taus = torch.tensor([tau], dtype=torch.float64)
    start = TARGETS["gaussian"].sample(6000) + tau * model.noise.covariance.color(randn(6000, D))
    x = annealed_langevin(model, start, taus, steps=60, eps=alpha * tau**2, denoise=False, seed=3)
    inverse = torch.linalg.inv(model.noise.covariance.snapshot.factor[0])
    values, vectors = torch.linalg.eigh(inverse @ S @ inverse.T)
    u = (x - MEAN) @ inverse.T @ vectors / tau
    r = 1 + values / tau**2
    assert five_sigma(u, 0.0)
    assert five_sigma(u.square(), r / (1 - alpha / (4 * r)))


@pytest.mark.parametrize("precondition", [True, False])
def test_a_small_step_has_the_perturbed_density(precondition):
    """Preconditioned or isotropic, the target is one: ``N(m, S + tau^2 R)``, to first order in the step."""
    model, tau = exact("gaussian"), 1.0
    taus = torch.tensor([tau], dtype=torch.float64)
    errors = []
    for alpha in (0.1, 0.05):
        options = {"steps": 1, "eps": alpha, "precondition": precondition, "denoise": False}
        zero, eye = torch.zeros(D, D), torch.eye(D).double()
        drift = annealed_langevin(model, MEAN + eye, taus, noise_sampler=lambda _, z=zero: z, **options) - MEAN
        spread = annealed_langevin(model, MEAN.expand(D, -1), taus, noise_sampler=lambda _, z=eye: z, **options) - MEAN
        # v = A v A^T + B, solved as a linear system.
        system = torch.eye(D * D).double() - torch.kron(drift.T.contiguous(), drift.T.contiguous())
        v = torch.linalg.solve(system, (spread.T @ spread).reshape(-1)).reshape(D, D)
        errors.append(rms_ratio(v, S + tau**2 * R))
    assert errors[1] < 0.03
    assert errors[0] / errors[1] == pytest.approx(2.0, rel=0.1)


# -- probability flow


def flow_error(sampler, steps: int, target_r: torch.Tensor) -> float:
    """Against the exact map from tau_1 to 0: ``sqrt(l / (l + tau^2 r))`` in the eigenvectors that S and R share."""
    values, vectors = torch.linalg.eigh(S)
    model = ExactDenoiser(noise_model(fixed_covariance((vectors * target_r) @ vectors.T)), TARGETS["gaussian"])
    top = 2.0
    # Even steps down to 0, so that the last one, which leads to 0, is a step like the others.
    taus = torch.linspace(top, top / steps, steps, dtype=torch.float64)
    x = MEAN + randn(8, D) @ torch.linalg.cholesky(S + top**2 * R).T
    scale = (values / (values + top**2 * target_r)).sqrt()
    expected = MEAN + ((x - MEAN) @ vectors * scale) @ vectors.T
    return rms_ratio(sampler(model, x, taus), expected)


@pytest.mark.parametrize(("sampler", "order"), [(euler, 1), (heun, 2)])
@pytest.mark.parametrize("r", [torch.ones(D), torch.tensor([0.3, 0.6, 1.0, 2.0])], ids=["isotropic", "shaped"])
def test_the_flow_scales_each_eigenvalue_and_has_its_order(sampler, order, r):
    errors = [flow_error(sampler, n, r.double()) for n in (160, 320, 640)]
    assert errors[-1] < (5e-3 if order == 1 else 2e-5)
    for coarse, fine in itertools.pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("sampler", [heun, euler])
def test_the_flow_carries_a_mixture(sampler):
    """In one dimension the flow is the monotone map between quantiles."""
    target = Mixture(torch.tensor([[-1.0], [2.0]]), torch.tensor([[[0.09]], [[0.25]]]), torch.tensor([0.4, 0.6]))
    model = ExactDenoiser(noise_model(fixed_covariance(torch.tensor([[1.5]]).double())), target)
    top = 3.0
    taus = torch.linspace(top**0.25, 0.003**0.25, 600, dtype=torch.float64) ** 4
    x = torch.linspace(-4, 5, 31, dtype=torch.float64).unsqueeze(1)

    def cdf(at: np.ndarray, noise: float) -> np.ndarray:
        return 0.4 * stats.norm.cdf(at, -1, np.sqrt(0.09 + noise)) + 0.6 * stats.norm.cdf(at, 2, np.sqrt(0.25 + noise))

    mapped = sampler(model, x, taus).numpy()
    np.testing.assert_allclose(cdf(mapped, 0.0), cdf(x.numpy(), 1.5 * top**2), atol=1e-4 if sampler is heun else 1e-2)
