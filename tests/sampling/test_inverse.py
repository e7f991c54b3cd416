"""Denoisers that know a measurement, against closed forms: Gaussian data under noise of another shape, and mixtures."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ansn import AdaptiveCovariance, Denoiser, NoiseModel, levels, networks, sample
from ansn.sampling import (
    METHODS,
    Blur,
    Downsample,
    Guided,
    Linear,
    Mask,
    Posterior,
    Replacement,
    mmps,
    pigdm,
)
from ansn.sampling import gaussian as gaussian_module
from tests.oracles import (
    ExactDenoiser,
    Mixture,
    covariance_within_five_sigma,
    five_sigma,
    gaussian,
    noise_model,
    randn,
    spd,
)
from tests.tolerances import BATCH_INVARIANCE, rms_ratio

D, M, SIGMA = 6, 3, 0.3
S, MEAN = spd(D, 2), randn(D, seed=4)
OPERATOR, Y = Linear(randn(M, D, seed=7)), randn(M, seed=9)
EXACT_ONES: dict[str, dict[str, Any]] = {
    "adapted": {},
    "adapted, gradient": {"gradient": True},
    "jacobian": {"covariance": "jacobian", "cg_steps": M},
}


def learned(s: Tensor = S, mean: Tensor = MEAN, rho: float = 0.4, **options: Any) -> AdaptiveCovariance:
    """A frozen covariance that knows S and the mean exactly, and whose R is another matrix."""
    covariance = AdaptiveCovariance(
        len(s), rho=rho, eps=0.01, initial=s, factor_dtype=torch.float64, **options
    ).freeze()
    covariance.center.copy_(mean)
    return covariance


def exact(prediction: str = "denoiser", **options: Any) -> ExactDenoiser:
    noise = noise_model(learned(**options), levels.karras(6.0, 0.01, n=20).tau)
    return ExactDenoiser(noise, gaussian(MEAN, S), prediction=prediction)


def posterior(s: Tensor, mean: Tensor, y: Tensor, noise: Tensor | None = None, x: Tensor | None = None) -> Any:
    """``E[x | x~, y]`` and its covariance from precisions; without noise, of y alone."""
    a = OPERATOR.matrix
    precision = torch.linalg.inv(s) + a.T @ a / SIGMA**2
    right = torch.linalg.solve(s, mean) + a.T @ y / SIGMA**2
    if noise is not None and x is not None:
        precision = precision + torch.linalg.inv(noise)
        right = right + torch.linalg.solve(noise, x)
    return torch.linalg.solve(precision, right), torch.linalg.inv(precision)


@pytest.mark.parametrize("options", EXACT_ONES.values(), ids=EXACT_ONES.keys())
@pytest.mark.parametrize(("prediction", "root"), [("denoiser", "cholesky"), ("whitened", "symmetric")])
def test_gaussian_data_exactly(options, prediction, root):
    """``E[x | x~, y]`` at one level and at one a row, with a measurement for all and with one a row."""
    model = exact(prediction, root=root)
    r = model.noise.covariance.noise_shape()[0]
    x, ys = 3.0 * randn(5, D, seed=10), randn(5, M, seed=11)
    for tau in (torch.tensor(0.01), torch.tensor(0.5), torch.tensor([0.1, 0.3, 1.0, 3.0, 6.0])):
        taus = tau.double().expand(5)
        for y in (Y, ys):
            found = Posterior(model, OPERATOR, y, SIGMA, **options)(x, tau.double())
            rows = y.expand(5, M)
            expected = torch.stack([posterior(S, MEAN, rows[i], taus[i] ** 2 * r, x[i])[0] for i in range(5)])
            assert rms_ratio(found, expected) < 1e-9


HOLES = torch.rand(5, D, generator=torch.Generator().manual_seed(1)) < 0.5
HOLES[0], HOLES[1] = False, True  # of one row nothing is known, of one all


def conditional(mean: Tensor, v: Tensor, known: Tensor, y: Tensor, sigma: float) -> Tensor:
    """``E[x | y]`` of a Gaussian whose ``known`` coordinates are measured."""
    seen = v[known][:, known] + sigma**2 * torch.eye(int(known.sum()), dtype=torch.float64)
    return mean + v[:, known] @ torch.linalg.solve(seen, (y - mean)[known])


@pytest.mark.parametrize("solver", ["factored", "iterated"])
@pytest.mark.parametrize("sigma", [0.0, SIGMA])
@pytest.mark.parametrize("options", [{}, {"gradient": True}, {"covariance": "jacobian", "cg_steps": D}], ids=str)
def test_a_mask_a_row_gives_each_row_its_own_conditional(options, sigma, solver, monkeypatch):
    """The holes of y may hold NaN; rows stacked on each other share masks and measurements."""
    if solver == "iterated":
        monkeypatch.setattr(gaussian_module, "_DENSE_NUMBERS", 0)
    model = exact()
    r, y, x = model.noise.covariance.noise_shape()[0], randn(5, D, seed=11), 3.0 * randn(10, D, seed=10)
    knowing = Posterior(model, Mask(HOLES, (D,)), y.where(HOLES, torch.nan), sigma, **options)
    for tau in (torch.tensor(0.5).double(), torch.tensor([0.3, 0.5, 1.0, 2.0, 3.0] * 2).double()):
        expected = []
        for i, t in enumerate(tau.expand(10)):
            v = torch.linalg.inv(torch.linalg.inv(S) + torch.linalg.inv(t**2 * r))
            mean = v @ (torch.linalg.solve(S, MEAN) + torch.linalg.solve(t**2 * r, x[i]))
            expected.append(conditional(mean, v, HOLES[i % 5], y[i % 5], sigma))
        assert rms_ratio(knowing(x, tau), torch.stack(expected)) < 1e-7


@pytest.mark.parametrize("name", ["replacement", "adapted", "pigdm", "mmps"])
def test_a_sample_answers_to_its_own_mask(name):
    """Whatever the batches; and as with its mask alone, where no noise of the measurement is drawn."""
    model, truth = exact(), randn(5, D, seed=5)
    for sigma in (0.0, SIGMA):
        knowing = KNOWING[name](model, Mask(HOLES, (D,)), truth, sigma)
        whole = sample(knowing, 5, "heun", 6, seed=2)
        for batch_size in (1, 3):
            assert rms_ratio(sample(knowing, 5, "heun", 6, seed=2, batch_size=batch_size), whole) < 1e-5
        for i in range(1, 5) if sigma == 0.0 else ():
            alone = KNOWING[name](model, Mask(HOLES[i]), truth[i][HOLES[i]], sigma)
            assert rms_ratio(sample(alone, 5, "heun", 6, seed=2)[i], whole[i]) < 1e-4
        assert torch.equal(knowing.operator.known, HOLES), "a draw changed the caller's masks"


def test_samples_with_holes_are_of_their_conditional():
    """Two rows' masks, many samples of each: mean within five standard errors."""
    known, y = HOLES[2:4].repeat(1000, 1), randn(2, D, seed=5).repeat(1000, 1)
    out = sample(Posterior(exact(), Mask(known, (D,)), y, SIGMA), 2000, "heun", 24, batch_size=2000)
    for i in range(2):
        assert five_sigma(out[i::2], conditional(MEAN, S, known[i], y[i], SIGMA))


@pytest.mark.parametrize("options", EXACT_ONES.values(), ids=EXACT_ONES.keys())
def test_regions_bring_their_own_covariance(options):
    covariance = AdaptiveCovariance(D, 2, rho=0.4, factor_dtype=torch.float64)
    x = randn(400, D, seed=1) @ torch.linalg.cholesky(S).T
    covariance.update(torch.cat((x, 2.0 * x[:, range(D - 1, -1, -1)] + 1.0)), torch.arange(2).repeat_interleave(400))
    covariance.freeze()
    means, s, r = covariance.mean, covariance.covariance(), covariance.noise_shape()
    model = ExactDenoiser(noise_model(covariance), *(gaussian(means[k], s[k]) for k in range(2)))
    region, tau, at = torch.tensor([0, 1, 1, 0]), 0.7, randn(4, D, seed=2)
    found = Posterior(model, OPERATOR, Y, SIGMA, **options)(at, tau, region)
    expected = [posterior(s[k], means[k], Y, tau**2 * r[k], at[i])[0] for i, k in enumerate(region.tolist())]
    assert rms_ratio(found, torch.stack(expected)) < 1e-9


@pytest.mark.parametrize("options", [EXACT_ONES["adapted"], EXACT_ONES["jacobian"]], ids=["adapted", "jacobian"])
def test_samples_are_of_the_exact_posterior(options):
    """Mean and covariance within five standard errors; the isotropic V, on the same data, is not that."""
    mean, covariance = posterior(S, MEAN, Y)
    out = sample(Posterior(exact(), OPERATOR, Y, SIGMA, **options), 2000, "heun", 24, batch_size=2000)
    assert five_sigma(out, mean)
    assert covariance_within_five_sigma(out - mean, covariance)
    other = sample(Posterior(exact(), OPERATOR, Y, SIGMA, "isotropic"), 1000, "heun", 8, batch_size=1000)
    assert not five_sigma(other, mean)


def test_the_start_is_the_perturbed_posterior():
    """``N(E[x | y], V[x | y] + tau^2 R)``; row r is that of (seed, row + r)."""
    model = Posterior(exact(), OPERATOR, Y, SIGMA)
    mean, covariance = posterior(S, MEAN, Y)
    x = model.prior(4000, 1.5, seed=3)
    total = covariance + 1.5**2 * model.noise.covariance.noise_shape()[0]
    assert five_sigma(x, mean)
    assert covariance_within_five_sigma(x - mean, total)
    assert rms_ratio(model.prior(4, 1.5, seed=3, row=20), x[20:24]) < 1e-12
    assert not torch.equal(model.prior(4, 1.5, seed=4), x[:4])
    assert torch.equal(model.prior(4, 1.5, start="uniform"), model.noise.prior(4, 1.5, start="uniform"))
    model.noise.class_means = torch.stack([MEAN + 1.0, MEAN])
    assert five_sigma(model.prior(4000, 1.5, seed=3, y=torch.zeros(4000).long()), posterior(S, MEAN + 1.0, Y)[0])


MIXTURE = Mixture(
    torch.tensor([[-2.0, -2.0], [2.0, 2.0]]), 0.1 * torch.eye(2).expand(2, 2, 2), torch.tensor([0.5, 0.5])
)


def mixture_model() -> ExactDenoiser:
    """R learned from the mixture: long along the diagonal."""
    covariance = AdaptiveCovariance(2, rho=0.5, factor_dtype=torch.float64).update(MIXTURE.sample(4000)).freeze()
    return ExactDenoiser(noise_model(covariance, levels.karras(8.0, 0.02, n=20).tau), MIXTURE)


def test_the_jacobian_s_covariance_is_that_of_x_given_the_noise():
    """``Sigma J^T = V[x | x~]`` (Tweedie, R not the identity), against the mixture's second moments."""
    model, tau, x = mixture_model(), 1.3, randn(5, 2, seed=3)
    sigma = tau**2 * model.noise.covariance.noise_shape()[0]
    _, spread = mmps(model, Linear(torch.eye(2)), torch.zeros(2), 0.1)._linearised(x, torch.full((5,), tau), None, {})
    for i in range(5):
        logs, solved = MIXTURE._components(x[i : i + 1], sigma.unsqueeze(0))
        weights, s = logs.softmax(1)[0], MIXTURE.covariances
        means = MIXTURE.means + torch.einsum("cij,cj->ci", s, solved[0])
        inner = s - s @ torch.linalg.solve(s + sigma, s)
        mean = (weights.unsqueeze(1) * means).sum(0)
        second = torch.einsum("c,cij->ij", weights, inner + means.unsqueeze(2) * means.unsqueeze(1))
        expected = second - mean.outer(mean)
        found = torch.stack([spread(e.expand(5, 2))[i] for e in torch.eye(2, dtype=torch.float64)])
        assert rms_ratio(found, expected) < 1e-5  # tau in float32


def test_pigdm_is_the_gradient_of_its_likelihood_put_on_the_score():
    """``D + Sigma grad log N(y; A D(x~), sigma_y^2 I + A V A^T)``, V isotropic and fixed."""
    model, tau, x = mixture_model(), 1.3, randn(5, 2, seed=3).requires_grad_()
    operator, y, noise = Linear(randn(1, 2, seed=5)), torch.tensor([0.4], dtype=torch.float64), 0.2
    a, scale = operator.matrix, float(model.noise.covariance.scale[0])
    system = noise**2 + scale**2 * tau**2 / (1 + tau**2) * float((a @ a.T).squeeze())
    denoised = model(x, tau)
    likelihood = -0.5 * (y - operator(denoised)).square().sum() / system
    (gradient,) = torch.autograd.grad(likelihood, x)
    sigma = tau**2 * model.noise.covariance.noise_shape()[0]
    found = pigdm(model, operator, y, noise)(x.detach(), tau)
    assert rms_ratio(found, (denoised + gradient @ sigma).detach()) < 1e-5


@pytest.mark.parametrize("name", ["adapted", "jacobian"])
def test_a_measurement_picks_the_mode(name):
    """One coordinate measured near a mode decides the other; measured in the middle it leaves both."""
    model, first = mixture_model(), Linear(torch.tensor([[1.0, 0.0]]))
    knowing = {"adapted": Posterior, "jacobian": mmps}[name]
    for side in (-2.0, 2.0):
        out = sample(knowing(model, first, torch.tensor([side]), 0.3), 200, "heun", 12)
        assert float((out[:, 1] * side > 0).double().mean()) > 0.98
        assert float((out[:, 1].mean() - side).abs()) < 0.15
    out = sample(knowing(model, first, torch.tensor([0.0]), 2.0), 400, "heun", 12)
    assert 0.35 < float((out[:, 1] > 0).double().mean()) < 0.65


# -- with a network, as users have it


SHAPE = (1, 4, 4)
IMAGE_OPERATORS = {"mask": Mask(torch.arange(16).reshape(4, 4) % 3 == 0, SHAPE), "downsample": Downsample(SHAPE, 2),
                   "blur": Blur(SHAPE, 0.6)}  # fmt: skip
KNOWING = {"replacement": Replacement, "adapted": Posterior, "pigdm": pigdm, "mmps": mmps}


def trained(**options: Any) -> Denoiser:
    torch.manual_seed(0)
    network = networks.MLP(SHAPE, hidden=24, blocks=1, **options)
    nn.init.normal_(network.output.weight, std=0.1)
    x = torch.rand(300, *SHAPE, generator=torch.Generator().manual_seed(0))
    covariance = AdaptiveCovariance(SHAPE).update(x).freeze()
    dropout = 0.1 if "num_classes" in options else 0.0
    return Denoiser(network, NoiseModel(covariance, levels.karras(4.0, 0.02)), label_dropout=dropout)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", KNOWING)
def test_every_sampler_takes_it(method, name):
    """The samples come near the measurement, which those of the model alone do not."""
    model, operator, y = trained(), IMAGE_OPERATORS["mask"], torch.full((6,), 0.9)
    steps = METHODS[method].steps if METHODS[method].flow else 2
    knowing = KNOWING[name](model, operator, y, 0.05)
    out, plain = (sample(m, 16, method, steps, seed=1) for m in (knowing, model))
    assert bool(torch.isfinite(out).all())
    near, far = ((operator(x) - y).square().mean() for x in (out, plain))
    # Algorithm 1's steps of 2e-5 do not get anywhere in two.
    assert float(near) < (0.3 if method != "paper" else 1.5) * float(far)


@pytest.mark.parametrize("operator", IMAGE_OPERATORS.values(), ids=IMAGE_OPERATORS.keys())
@pytest.mark.parametrize("name", KNOWING)
def test_samples_answer_to_their_own_measurement(operator, name):
    """Measurement i is sample i's, whatever the batches."""
    model, truth = trained(), torch.rand(7, *SHAPE, generator=torch.Generator().manual_seed(5))
    knowing = KNOWING[name](model, operator, operator(truth), 0.1)
    whole = sample(knowing, 7, "heun", 6, seed=2)
    for batch_size in (1, 3):
        parts = sample(knowing, 7, "heun", 6, seed=2, batch_size=batch_size)
        assert float((parts - whole).abs().max()) < BATCH_INVARIANCE
    one = KNOWING[name](model, operator, operator(truth)[0], 0.1)
    assert float((sample(one, 1, "heun", 6, seed=2) - whole[:1]).abs().max()) < BATCH_INVARIANCE
    assert knowing.measured.shape[0] == 7, "a draw changed the caller's measurements"


@pytest.mark.parametrize("operator", IMAGE_OPERATORS.values(), ids=IMAGE_OPERATORS.keys())
def test_replacement_without_noise_agrees_with_the_measurement(operator):
    model, truth = trained(), torch.rand(4, *SHAPE, generator=torch.Generator().manual_seed(5))
    out = sample(Replacement(model, operator, operator(truth)), 4, "heun", 6)
    assert float((operator(out) - operator(truth)).abs().max()) < 1e-4
    # A blur of this width can be undone: without noise it is.
    invertible = operator.size == truth[0].numel()
    assert (float((out - truth).abs().max()) < 1e-4) == invertible


def test_replacement_of_a_mask_is_pixel_by_pixel_and_fades_below_the_noise():
    model, mask, x = trained(), IMAGE_OPERATORS["mask"], torch.rand(3, *SHAPE)
    y, scale = torch.rand(3, 6), float(model.noise.covariance.scale[0])
    plain = model(x, 0.5)
    full = Replacement(model, mask, y)(x, 0.5)
    assert torch.allclose(mask(full), y, atol=1e-5)
    assert torch.equal(full.flatten(1)[:, 1], plain.flatten(1)[:, 1])
    sigma = 2.0 * 0.5 * scale  # twice the noise of x~
    shrunk = scale**2 / (scale**2 + sigma**2)
    expected = mask(plain) + 0.5 * shrunk * (y - mask(plain))
    assert torch.allclose(mask(Replacement(model, mask, y, sigma)(x, 0.5)), expected, atol=1e-5)


@pytest.mark.parametrize("name", KNOWING)
def test_inference_mode_changes_nothing(name):
    model, operator = trained(), IMAGE_OPERATORS["mask"]
    knowing, x = KNOWING[name](model, operator, torch.full((6,), 0.9), 0.1), torch.rand(3, *SHAPE)
    with torch.inference_mode():
        inside = knowing(x * 1.0, torch.tensor(0.7))
    with torch.no_grad():
        assert torch.equal(inside, knowing(x, torch.tensor(0.7)))
    assert all(p.grad is None for p in model.parameters())


def test_it_nests_with_guidance():
    """Labels and measurements each for its own row; what is affine in D, as the adapted posterior is, commutes with
    the extrapolation."""
    model, operator = trained(num_classes=3), IMAGE_OPERATORS["mask"]
    nn.init.normal_(model.network.layers[0].film.linear.weight)
    nn.init.normal_(model.network.layers[0].linear2.weight)
    y, labels = torch.rand(4, 6), torch.tensor([0, 1, 2, 0])
    knowing = Posterior(Guided(model, 2.0), operator, y, 0.1)
    out = sample(knowing, 4, "heun", 4, y=labels)
    outside = sample(Posterior(model, operator, y, 0.1), 4, "heun", 4, y=labels, guidance=2.0, batch_size=3)
    assert float((outside - out).abs().max()) < BATCH_INVARIANCE
    assert float((sample(knowing, 4, "heun", 4, y=labels, batch_size=1) - out).abs().max()) < BATCH_INVARIANCE
    plain = sample(Posterior(model, operator, y, 0.1), 4, "heun", 4, y=labels)
    assert float((out - plain).abs().max()) > 1e-3


WRONG: dict[str, tuple[Any, str]] = {
    "operator": (
        lambda m: Posterior(m, Mask(torch.ones(3, dtype=torch.bool)), torch.zeros(3)),
        "operator: got one that takes [3]",
    ),
    "measured": (lambda m: Posterior(m, IMAGE_OPERATORS["mask"], torch.zeros(5)), "measured: got shape [5], expected"),
    "masks": (
        lambda m: Posterior(m, Mask(torch.ones(3, *SHAPE, dtype=torch.bool), SHAPE), torch.zeros(2, *SHAPE)),
        "measured: got 2 measurements, expected 3, one a mask",
    ),
    "no measured": (lambda m: Posterior(m, IMAGE_OPERATORS["mask"], torch.zeros(0, 6)), "measured: got shape [0, 6]"),
    "sigma": (lambda m: Posterior(m, IMAGE_OPERATORS["mask"], torch.zeros(6), -1.0), "sigma_y: got -1.0"),
    "no number": (
        lambda m: Posterior(m, IMAGE_OPERATORS["mask"], torch.tensor([0, 1, math.nan, 0, 0, 0])),
        "measured: got nan at [2], expected finite numbers",
    ),
    "no number in one": (
        lambda m: Replacement(m, IMAGE_OPERATORS["mask"], torch.tensor([[0.0] * 6, [math.inf] * 6])),
        "measured: got inf in measurement 1, expected finite numbers",
    ),
    "sigma nan": (lambda m: Replacement(m, IMAGE_OPERATORS["mask"], torch.zeros(6), math.nan), "sigma_y: got nan"),
    "covariance": (
        lambda m: Posterior(m, IMAGE_OPERATORS["mask"], torch.zeros(6), 0.1, "full"),
        "covariance: got 'full', expected one of isotropic, adapted, jacobian",
    ),
    "cg_steps": (lambda m: mmps(m, IMAGE_OPERATORS["mask"], torch.zeros(6), 0.1, cg_steps=0), "cg_steps: got 0"),
    "too few": (
        lambda m: sample(Posterior(m, IMAGE_OPERATORS["mask"], torch.zeros(3, 6), 0.1), 4, steps=2),
        "measured: got 3 measurements, expected 4, one a sample",
    ),
    "rows": (
        lambda m: Posterior(m, IMAGE_OPERATORS["mask"], torch.zeros(3, 6), 0.1)(torch.zeros(2, *SHAPE), 0.5),
        "measured: got 3 measurements, expected 1 or 2",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("call", "message"), WRONG.values(), ids=WRONG.keys())
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError) as error:
        call(trained())
    assert str(error.value).startswith(message), str(error.value)
    assert "\n" not in str(error.value)
