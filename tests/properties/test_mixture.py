"""Regions that are found, and the denoiser of a mixture: noise, start, samplers, likelihood, posteriors."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ansn
from ansn import AdaptiveCovariance, Denoiser, NoiseModel, levels, networks
from ansn.covariance import Mixture, find
from ansn.sampling import METHODS, Guided, Mask, Posterior, dpmpp_2m, gaussian_2m, mmps
from ansn.sampling.schedules import few_steps
from tests import oracles
from tests.oracles import ExactDenoiser, covariance_within_five_sigma, five_sigma, randn, spd
from tests.tolerances import rms_ratio

D = 3
WIDE: dict[str, Any] = {"eps_floor": 0.0, "factor_dtype": torch.float64}
MODES = oracles.Mixture(
    torch.tensor([[-4.0, 0.0, 1.0], [4.0, 2.0, -1.0]]),
    torch.stack([spd(D, k, 0.05, 0.6) for k in range(2)]),
    torch.tensor([0.7, 0.3]),
)


def noise_of(target: oracles.Mixture = MODES, rows: int = 2000, **options: Any) -> NoiseModel:
    """Frozen noise, and a mixture that was found in the target's rows."""
    x, k = target.sample(rows), len(target.weights)
    covariance = AdaptiveCovariance(D, rho=0.0, **WIDE).update(x).freeze()
    mixture = find(x, k, "dense", **WIDE)[0]
    mixture.covariance.freeze()
    return NoiseModel(covariance, levels.flow(x, covariance, mixture=mixture, **options), mixture=mixture)


def closed(mixture: Mixture) -> oracles.Mixture:
    """What a mixture has learned, written out."""
    return oracles.Mixture(mixture.means.flatten(1), mixture.covariance.covariance(), mixture.weights)


def silent(noise: NoiseModel, **options: Any) -> Denoiser:
    """A denoiser whose network gives zero."""
    return Denoiser(networks.MLP((D,), 8, 1).double(), noise, **options)


@pytest.fixture(scope="module")
def noise() -> NoiseModel:
    return noise_of()


def shares_are(out: Tensor, target: oracles.Mixture) -> bool:
    """Shares, means and covariances of the modes within five standard errors."""
    owner = torch.cdist(out.double(), target.means).argmin(1)
    hit = nn.functional.one_hot(owner, len(target.weights)).double() - target.weights
    error = (target.weights * (1 - target.weights) / len(out)).sqrt()
    parts = [out[owner == k] - mean for k, mean in enumerate(target.means)]
    return bool((hit.mean(0).abs() < 5 * error).all()) and all(
        five_sigma(part, 0.0) and covariance_within_five_sigma(part, s)
        for part, s in zip(parts, target.covariances, strict=True)
    )


# -- the noise model


def test_the_noise_model_finds_regions_or_a_mixture() -> None:
    x = MODES.sample(800).float()
    found = NoiseModel.for_data(x, regions=2, rho=0.7)
    auto = NoiseModel.for_data(x, "dense", regions="auto")
    for noise in (found, auto):
        assert noise.covariance.regions == 2
        assert noise.mixture is None
        region = noise.assign(x)
        assert region is not None
        near = torch.cdist(x, noise.covariance.center).argmin(1)
        assert torch.equal(region, near)
        assert noise.covariance.count.sort().values.tolist() == pytest.approx([240, 560], abs=50)
    assert (found.covariance.rules.rho, auto.covariance.rules.rho) == (0.7, 0.5)
    beside = NoiseModel.for_data(x, mixture=2)
    assert beside.mixture is not None
    assert (beside.covariance.regions, beside.covariance.rules.rho, beside.mixture.regions) == (1, 0.0, 2)
    assert NoiseModel.for_data(x, "dense", mixture=2, gamma=0.0).covariance.rules.gamma == 0.0
    seen = float(beside.mixture.covariance.count.sum())
    assert float(beside.update(x[:50]).mixture.covariance.count.sum()) == seen + 50  # type: ignore[union-attr]
    assert beside.covariance.seen == 50
    assert beside.assign(x) is None


@pytest.mark.parametrize(
    "options",
    [
        {"mixture": 2, "rho": 0.5}, {"mixture": 2, "gamma": 0.5}, {"mixture": 2, "regions": 2},
        {"mixture": "auto", "regions": "auto"}, {"mixture": 2, "region": torch.arange(60) % 2, "regions": 2},
    ],
    ids=str,
)  # fmt: skip
def test_a_mixture_beside_other_noise_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^mixture: got "):
        NoiseModel.for_data(randn(60, D), "dense", **options)


@pytest.mark.parametrize("tau", [0.5, 4.0])
def test_the_prior_is_the_mixture_under_noise(noise: NoiseModel, tau: float) -> None:
    assert noise.mixture is not None
    target = closed(noise.mixture)
    start = noise.prior(20_000, tau, seed=1).double()
    variance = float(tau * noise.deviation) ** 2
    mean = target.weights @ target.means
    assert five_sigma(start, mean)
    whole = target.covariance() + variance * torch.eye(D).double()
    assert covariance_within_five_sigma(start - mean, whole)
    if tau < 1:
        wide = target.covariances + variance * torch.eye(D).double()
        assert shares_are(start, oracles.Mixture(target.means, wide, target.weights))
    parts = torch.cat((noise.prior(5, tau, seed=1), noise.prior(7, tau, seed=1, row=5)))
    assert rms_ratio(parts, start[:12]) < 1e-12


# -- samplers


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.flow])
def test_found_regions_under_exact_conditional_denoisers_are_the_data(method: str) -> None:
    """``k ~ w_k``, noise of shape ``R_k``: the mixture, weights included, under every sampler of the flow."""
    covariance = find(MODES.sample(2000), 2, "dense", rho=0.7, **WIDE)[0].covariance.freeze()
    model = ExactDenoiser(
        NoiseModel(covariance, levels.karras(4.0, 0.01)),
        *(oracles.gaussian(m, s) for m, s in zip(covariance.mean, covariance.covariance(), strict=True)),
    )
    out = ansn.sample(model, 2000, method, 100 if method == "euler" else 30, batch_size=2000, seed=1)
    known = oracles.Mixture(covariance.mean, covariance.covariance(), covariance.count / covariance.count.sum())
    owner = torch.cdist(out.double(), known.means).argmin(1)
    assert torch.equal(owner, model.noise.draw_regions(2000, seed=1))
    for k, part in enumerate(out[owner == k] - known.means[k] for k in range(2)):
        assert five_sigma(part, 0.0)
        assert rms_ratio(part.mT @ part / len(part), known.covariances[k]) < 0.2


def test_a_silent_network_samples_the_mixture_from_its_own_start(noise: NoiseModel) -> None:
    """Teleport: the start is far lower than one Gaussian's, and what comes out is the mixture."""
    model, x = silent(noise), MODES.sample(1000)
    assert noise.mixture is not None
    alone = levels.tau_start(x, noise.covariance)
    largest = float(noise.mixture.covariance.scale.max() / noise.covariance.scale[0])
    assert noise.levels.start is not None
    assert largest <= noise.levels.start < 0.5 * alone
    assert model.top == noise.levels.start
    out = ansn.sample(model, 6000, "gaussian_2m", 8, batch_size=6000, seed=2)
    assert shares_are(out, closed(noise.mixture))


def test_with_classes_or_a_measurement_sampling_starts_at_the_top() -> None:
    """The mixture knows neither: from its own start a class would get the other's rows."""
    noise = noise_of(tau_max=15.0)

    class Told(Denoiser):
        """The exact denoiser of a class, which is a mode."""

        def forward(self, x: Tensor, sigma: Any, region: Tensor | None = None, *, y: Tensor, **_: Any) -> Tensor:
            variance = (self._tau(x, sigma) * self.noise.deviation).square().reshape(-1, 1, 1)
            each = [oracles.gaussian(*p) for p in zip(MODES.means, MODES.covariances, strict=True)]
            both = torch.stack([g.denoised(x, variance * torch.eye(D).double()) for g in each])
            return both[y, torch.arange(len(x))]

    model = Told(networks.MLP((D,), 8, 1, num_classes=2).double(), noise)
    assert model.top == noise.levels.maximum > noise.levels.start  # type: ignore[operator]
    ours, low = (
        ansn.sample(model, 2000, "dpmpp_2m", 30, y=1, batch_size=2000, taus=taus).double().mean(0) - MODES.means[1]
        for taus in (None, few_steps(noise.levels.start, 0.01, 30))  # type: ignore[arg-type]
    )
    assert float(ours.abs().max()) < 0.1 < 1.0 < float(low.abs().max())
    operator = Mask(torch.tensor([True, False, False]))
    assert Posterior(silent(noise), operator, torch.zeros(1).double(), 0.1).top == noise.levels.maximum
    plain = NoiseModel(noise.covariance, noise.levels)
    assert Posterior(silent(plain), operator, torch.zeros(1).double(), 0.1).top == noise.levels.start


def test_a_mixture_of_one_region_flows_as_the_gaussian_does() -> None:
    target = oracles.gaussian(torch.ones(D), spd(D))
    noise = noise_of(target)
    assert noise.mixture is not None
    model, x = silent(noise), noise.prior(20, 3.0)
    s, mean = noise.mixture.covariance.covariance()[0], noise.mixture.covariance.mean[0]
    values, basis = torch.linalg.eigh(s)
    shrunk = (values / (values + (3.0 * noise.deviation) ** 2)).sqrt()
    for taus in ([3.0], [3.0, 0.4, 0.1]):
        out = gaussian_2m(model, x, torch.tensor(taus, dtype=torch.float64))
        assert rms_ratio(out - mean, (x - mean) @ basis * shrunk @ basis.T) < 1e-10


def test_where_regions_are_apart_few_levels_are_exact(noise: NoiseModel) -> None:
    """Each row flows with the region that it is of."""
    assert noise.mixture is not None
    tau = 0.6 / float(noise.deviation)
    x = noise.prior(200, tau, seed=3).double()
    target = closed(noise.mixture)
    sure = noise.mixture.responsibilities(x, 0.6).max(1)
    x, k = x[sure.values > 1 - 1e-10], sure.indices[sure.values > 1 - 1e-10]
    assert len(x) > 100
    out = gaussian_2m(silent(noise), x, torch.tensor([tau, 0.1], dtype=torch.float64))
    for region in range(2):
        values, basis = torch.linalg.eigh(target.covariances[region])
        shrunk = (values / (values + 0.36)).sqrt()
        mean, rows = target.means[region], k == region
        assert rms_ratio(out[rows] - mean, (x[rows] - mean) @ basis * shrunk @ basis.T) < 1e-6


def test_it_has_order_2_where_regions_compete() -> None:
    """Even where the denoiser is not the mixture's, and the likeliest region changes on the way."""
    noise = noise_of(oracles.Mixture(torch.tensor([[-0.9] * D, [0.9] * D]), torch.stack([spd(D, k) for k in (0, 1)])))
    target = oracles.Mixture(torch.tensor([[-1.0] * D, [0.7] * D]), torch.stack([spd(D, k) for k in (2, 3)]))
    model, x = ExactDenoiser(noise, target), noise.prior(8, 3.0, seed=2).double()

    def end(n: int) -> Tensor:
        at = torch.linspace(math.asinh(3.0 / 0.3), 0.0, n + 1, dtype=torch.float64)[:-1]
        return gaussian_2m(model, x, 0.3 * torch.sinh(at))

    exact = end(240)
    errors = [rms_ratio(end(n), exact) for n in (15, 30, 60)]
    for coarse, fine in itertools.pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(2.0, abs=0.35), errors


@pytest.mark.parametrize(("start", "much"), [(None, 0.1), (3.0, 1.001)])
def test_a_few_levels_are_nearer_with_the_mixture_than_with_one_gaussian(
    noise: NoiseModel, start: float | None, much: float
) -> None:
    """From where regions compete, at a high level, it is that of one Gaussian: no region's flow is the mixture's."""
    model, top = silent(noise), start or noise.levels.start or 0.0
    x = model.prior(300, top, seed=1).double()
    end = dpmpp_2m(model, x, few_steps(top, 1e-3, 100))
    alone = ExactDenoiser(NoiseModel(noise.covariance, noise.levels), closed(noise.mixture))  # type: ignore[arg-type]
    ours, theirs = (rms_ratio(gaussian_2m(m, x, few_steps(top, 0.02, 5)), end) for m in (model, alone))
    assert ours < much * theirs


# -- likelihood, guidance, posteriors


def test_the_likelihood_of_a_silent_network_is_the_mixture_s() -> None:
    noise, x = noise_of(tau_max=12.0, tau_min=0.05), MODES.sample(6, seed=4)
    assert noise.mixture is not None
    found = ansn.log_likelihood(silent(noise), x, steps=20, trace="exact").log_density
    exact = noise.mixture.log_prob(x, 0.05 * float(noise.deviation))
    assert float((found - exact).abs().max()) < 0.03


def test_the_likelihood_of_found_regions_is_summed_over_them() -> None:
    covariance = find(MODES.sample(2000), 2, "dense", rho=0.7, **WIDE)[0].covariance.freeze()
    noise, x = NoiseModel(covariance, levels.karras(12.0, 0.05)), MODES.sample(8, seed=4)
    found = ansn.log_likelihood(silent(noise), x, steps=10, trace="exact").log_density
    known = oracles.Mixture(
        covariance.mean,
        covariance.covariance() + 0.05**2 * covariance.noise_shape(),
        covariance.count / covariance.count.sum(),
    )
    assert float((found - known.log_density(x, torch.zeros(1, D, D).double())).abs().max()) < 1e-3


class Wide(nn.Module):
    """Takes the estimate and a class."""

    conditioning, num_classes, inputs = "none", 2, 2

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        half = x[:, :D] - 0.2 * x[:, D:]
        return torch.tanh(half) * (0.1 if y is None else 0.1 + 0.1 * y.unsqueeze(1))


def test_guidance_and_posteriors_take_it_as_it_is(noise: NoiseModel) -> None:
    """Also one whose network has further inputs; what they give is differentiable."""
    model = Denoiser(Wide(), noise, inputs=("estimate",), label_dropout=0.1)
    guided, y = Guided(model, 2.0), torch.tensor([0, 1, 1, 0])
    x, tau = noise.prior(4, 1.0, seed=2).double().requires_grad_(), torch.tensor([0.1, 0.5, 1.0, 3.0]).double()
    assert rms_ratio(Guided(model, 1.0)(x, tau, y=y).detach(), model(x, tau, y=y).detach()) < 1e-12
    assert torch.autograd.gradcheck(lambda v: guided(v, tau, y=y), (x,))
    measured = mmps(model, Mask(torch.tensor([True, False, False])), torch.ones(1).double(), 0.1)
    for drawn in (ansn.sample(model, 6, steps=6, y=1, guidance=2.0), ansn.sample(measured, 6, steps=6)):
        assert bool(torch.isfinite(drawn).all())


def test_a_posterior_over_the_mixture_is_the_mixture_s_posterior(noise: NoiseModel) -> None:
    """One coordinate is measured: which mode, and the rest of it."""
    operator = Mask(torch.tensor([True, False, False]))
    assert noise.mixture is not None
    target = closed(noise.mixture)
    k = int(target.means[:, 0].argmax())
    y = target.means[k, :1] + 0.3
    s, a = target.covariances[k], torch.eye(D).double()[:1]
    gain = s @ a.T / (s[0, 0] + 0.01)
    mean = target.means[k] + gain.squeeze(1) * 0.3
    out = ansn.sample(mmps(silent(noise), operator, y, 0.1), 2000, "dpmpp_2m", 30, batch_size=2000, seed=1).double()
    assert float((out.mean(0) - mean).abs().max()) < 0.05
    assert rms_ratio(torch.cov(out.T), s - gain @ a @ s) < 0.25
