"""A fixed R beside a learned S: it stays what it is, and every consumer uses both, against closed forms in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import ansn
from ansn import AdaptiveCovariance, NoiseModel, levels
from ansn.covariance import STRUCTURES, Structure
from ansn.sampling import Mask, Posterior
from tests.covariance.exact import Rotated, learned, root_of, rows_of
from tests.oracles import ExactDenoiser, gaussian, randn
from tests.tolerances import EXACT, rms_ratio

SHAPE, D, NOISE = (2, 3, 4), 24, 0.07
KINDS = [*STRUCTURES.values(), Rotated]


def made(kind: type[Structure]) -> tuple[AdaptiveCovariance, Tensor, Tensor, Tensor]:
    """A covariance that learned rows, its mean, S and R as matrices."""
    x = rows_of(root_of(kind(SHAPE)), 200)
    covariance = AdaptiveCovariance(
        SHAPE, 1, kind, noise=NOISE, eps_floor=0.0, root="symmetric", factor_dtype=torch.float64
    )
    covariance.orient(x)
    for part in x.split(60):
        covariance.update(part)
    return covariance.freeze().track(), x.mean(0), x.T.cov(), NOISE * torch.eye(D, dtype=torch.float64)


def whole(value: Tensor) -> Tensor:
    return value if value.ndim == 3 else torch.diag_embed(value)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_consumer_uses_both(kind: type[Structure]):
    covariance, mean, s, r = made(kind)
    assert rms_ratio(whole(covariance.noise_shape())[0], r) < EXACT
    assert rms_ratio(whole(covariance.covariance())[0], s) < 1e-10
    x, tau = randn(7, D), torch.linspace(0.1, 9.0, 7, dtype=torch.float64)
    model = ExactDenoiser(NoiseModel(covariance, levels.Levels((40.0, 0.1))), gaussian(mean, s))
    sigma = model.sigma(tau, None)
    assert rms_ratio(covariance.filter(x, tau, center=covariance.center), gaussian(mean, s).denoised(x, sigma)) < 1e-10
    z = covariance.whiten(model.noise.perturb(x, tau=tau, step=3)[0] - x) / tau.unsqueeze(1)
    assert rms_ratio(z.square().sum(1).sqrt(), (covariance.color(z) / NOISE**0.5).norm(dim=1)) < EXACT
    found = ansn.log_likelihood(model, x.reshape(7, *SHAPE), steps=2, trace="exact").log_density
    assert rms_ratio(found, gaussian(mean, s).log_density(x, (0.1**2 * r).expand(7, -1, -1))) < 1e-8
    known = covariance.pencil.posterior(torch.tensor([2.0]))
    total = s + 4.0 * r
    assert rms_ratio(covariance.pencil.matrix(known)[0], s - s @ torch.linalg.solve(total, s)) < 1e-8


def test_samples_and_posteriors_of_a_structure_are_those_of_the_matrix():
    pairs = [made(kind)[0] for kind in (STRUCTURES["separable"],)]
    x = rows_of(root_of(STRUCTURES["separable"](SHAPE)), 200)
    pairs.append(learned("dense", x, SHAPE, noise=NOISE))
    operator = Mask(torch.arange(D).reshape(SHAPE) % 3 == 0, SHAPE)
    y = operator(x[:1].reshape(1, *SHAPE))[0]
    out: list[Any] = []
    for covariance in pairs:
        ladder = levels.karras(30.0, 0.1, n=8)
        model = ExactDenoiser(NoiseModel(covariance, ladder), gaussian(x.mean(0), x.T.cov()))
        posterior = Posterior(model, operator, y, 0.1)
        out.append([ansn.sample(m, 4, name, 4, seed=1) for m in (model, posterior) for name in ("heun", "dpmpp_2m")])
    for ours, dense in zip(*out, strict=True):
        assert rms_ratio(ours, dense) < 1e-8


def test_it_stays_while_s_is_learned_and_few_points_count_with_their_trace():
    covariance = AdaptiveCovariance(D, noise=NOISE, eps_floor=0.0, factor_dtype=torch.float64).track()
    r = NOISE * torch.eye(D, dtype=torch.float64)
    x = 3.0 * randn(400, D)
    for part in (x[:10], x[10:100], x[100:]):
        covariance.update(part)
        assert rms_ratio(covariance.noise_shape()[0], r) < EXACT
        if covariance.seen == 10:  # S counts as R of its trace
            level = part.var(0).mean()
            assert rms_ratio(covariance.pencil.variances(), level.expand(1, D)) < EXACT
            shrunk = level / (level + 4.0 * NOISE) * x[:3]
            assert rms_ratio(covariance.filter(x[:3], 2.0), shrunk) < EXACT
    s = x.T.cov()
    assert rms_ratio(covariance.freeze().pencil.matrix(covariance.pencil.variances())[0], s) < EXACT
    loaded = AdaptiveCovariance(D, noise=NOISE, eps_floor=0.0, factor_dtype=torch.float64)
    loaded.load_state_dict(covariance.state_dict())
    assert torch.equal(loaded.color(x[:3]), covariance.color(x[:3]))


def test_an_s_and_an_r_that_are_both_given():
    s = randn(D, D) @ randn(D, D).T
    s = s @ s.T
    covariance = AdaptiveCovariance.fixed(torch.zeros(D), s, noise=2.0, factor_dtype=torch.float64)
    x, eye = randn(5, D), torch.eye(D, dtype=torch.float64)
    assert rms_ratio(covariance.filter(x, 1.5), x @ torch.linalg.solve(s + 4.5 * eye, s)) < 1e-9
    assert "noise = 2" in repr(covariance)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise": 0.0}, r"noise: got 0.0, expected a variance > 0"),
        ({"noise": float("inf")}, r"noise: got inf, expected a variance > 0"),
        ({"noise": 1.0, "rho": 0.5}, r"rho: got 0.5 beside noise = 1.0, expected one of the two"),
        ({"noise": 1.0, "eps": 0.5}, r"eps: got 0.5 beside noise = 1.0, expected one of the two"),
    ],
)
def test_wrong_arguments_are_named(options: dict[str, float], message: str):
    with pytest.raises(ValueError, match=message):
        AdaptiveCovariance(4, **options)  # type: ignore[arg-type]
