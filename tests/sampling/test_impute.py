"""Missing numbers given the known ones, against closed forms: Gaussian data, and data with several likely values."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from ansn import AdaptiveCovariance, Denoiser, Mixture, NoiseModel, levels
from ansn.sampling.impute import IMPUTATIONS, impute
from tests import oracles
from tests.oracles import ExactDenoiser, five_sigma, gaussian, noise_model, randn, spd

D = 5
S, MEAN = spd(D, 2, 0.1, 4.0), randn(D, seed=4)
KNOWN = torch.tensor([True, False, True, False, False])
ANGLES = 2 * math.pi * torch.arange(8) / 8
CIRCLE = oracles.Mixture(torch.stack([2 * ANGLES.cos(), 2 * ANGLES.sin()], 1), 0.15**2 * torch.eye(2).expand(8, 2, 2))


def exact(rho: float = 0.4) -> Denoiser:
    covariance = AdaptiveCovariance(D, rho=rho, eps=0.01, initial=S, factor_dtype=torch.float64).freeze()
    covariance.center.copy_(MEAN)
    return ExactDenoiser(noise_model(covariance, levels.karras(8.0, 0.01, n=20).tau), gaussian(MEAN, S))


def with_holes(n: int, known: Tensor = KNOWN) -> Tensor:
    return randn(1, D, seed=9).float().masked_fill(~known, torch.nan).repeat(n, 1)


def circle(regions: int = 0) -> Denoiser:
    """The exact denoiser of the circle, whose noise model knows one Gaussian, or a mixture of some."""
    x = CIRCLE.sample(2000)
    covariance = AdaptiveCovariance(2, rho=0.0, factor_dtype=torch.float64).update(x).freeze()
    mixture = Mixture.for_data(x.float(), regions) if regions else None
    return ExactDenoiser(NoiseModel(covariance, levels.karras(8.0, 0.02, n=20), 0, mixture), CIRCLE)


@pytest.mark.parametrize("options", [{}, {"method": "adapted"}], ids=str)
@pytest.mark.parametrize("known", [KNOWN, ~KNOWN])
def test_gaussian_data_has_its_conditional_mean_and_covariance(options: dict[str, Any], known: Tensor):
    """To the sampler's own error: ancestral steps at 80 levels, which an exact one would not have."""
    if options:
        options = options | {"batch_size": 2000, "steps": 60}
    x = with_holes(1500, known)
    out = impute(exact(), x, **{"steps": 80, "particles": 4} | options)[0].double()
    slope = torch.linalg.solve(S[known][:, known], S[known][:, ~known])
    expected = MEAN[~known] + (x[0, known].double() - MEAN[known]) @ slope
    left = S[~known][:, ~known] - S[~known][:, known] @ slope
    away = out[:, ~known] - expected
    assert five_sigma(away, 0.0)
    # Ancestral steps are of first order: they end a few per cent too narrow or too wide.
    root = torch.linalg.cholesky(left)
    white = torch.linalg.solve_triangular(root, away.T, upper=False).T
    assert (white.T.cov() - torch.eye(len(left))).abs().max() < 5 * (2 / 1500) ** 0.5 + 0.05


def test_weights_of_the_exact_posterior_hardly_differ():
    """Where the data is the Gaussian that the noise model knows, nothing is resampled but for the steps' error: draws
    of one system stay as independent as those of several."""
    out = impute(exact(), with_holes(150), 10, particles=40, steps=80).double()
    assert out.unique(dim=0).shape[0] == 10
    between = out[:, :, 1].mean(0).var() / (out[:, :, 1].var(0).mean() / 10)
    assert 0.6 < between < 1.6


@pytest.mark.parametrize("method", IMPUTATIONS)
def test_what_is_known_comes_back_to_the_bit(method: str):
    nothing = torch.zeros(D, dtype=torch.bool)
    x = torch.cat((with_holes(2), with_holes(2, ~KNOWN), randn(1, D).float(), with_holes(1, nothing)))
    out = impute(exact(), x, 3, method=method, steps=30)
    known = ~x.isnan()
    assert out.shape == (3, 6, D)
    assert out.dtype == torch.float32
    assert all(torch.equal(drawn[known], x[known]) for drawn in out)
    assert torch.isfinite(out).all()
    assert (out[0] != out[1])[~known].all(), "draws of one row differ"


def test_a_row_of_which_nothing_is_known_is_a_sample():
    out = impute(exact(0.0), torch.full((1500, D), torch.nan), steps=80, particles=4)[0].double()
    assert five_sigma(out, MEAN)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(S), (out - MEAN).T, upper=False).T
    assert (white.T.cov() - torch.eye(D)).abs().max() < 5 * (2 / 1500) ** 0.5 + 0.05


def shares_off(out: Tensor, x: float) -> float:
    """Total variation of the shares of the Gaussians of one height, from those given x."""
    weights = (-((x - CIRCLE.means[:, 0]) ** 2) / 2 / 0.15**2).softmax(0)
    heights, of = (CIRCLE.means[:, 1] * 1000).round().unique(return_inverse=True)
    truth = torch.zeros(len(heights), dtype=torch.float64).index_add(0, of, weights)
    nearest = (out[:, 1:].double() - heights / 1000).abs().argmin(1)
    found = torch.bincount(nearest, minlength=len(heights)) / len(out)
    return 0.5 * float((found - truth).abs().sum())


@pytest.mark.parametrize("regions", [0, 3])
def test_several_likely_values_have_their_shares(regions: int):
    """300 draws scatter by 0.04; the posterior without weights is off by ten times that."""
    model = circle(regions)
    for x in (0.5, 1.8):
        rows = torch.tensor([[x, torch.nan]]).repeat(300, 1)
        assert shares_off(impute(model, rows, particles=8)[0], x) < 0.12
    off = impute(model, rows, method="adapted", sampler="heun", steps=20, batch_size=300)[0]
    assert shares_off(off, 1.8) > 0.3


def test_draws_are_functions_of_the_seed_and_the_row_alone():
    x = torch.cat((with_holes(3), randn(2, D).float(), with_holes(2, ~KNOWN)))
    out = impute(exact(), x, 2, steps=8, seed=1)
    assert torch.allclose(impute(exact(), x, 2, steps=8, seed=1, batch_size=1), out, atol=1e-5)
    assert torch.allclose(impute(exact(), x[[0, 1, 2, 5, 6]], 2, steps=8, seed=1), out[:, [0, 1, 2, 5, 6]], atol=1e-5)
    assert not torch.allclose(impute(exact(), x, 2, steps=8, seed=2), out, atol=1e-2)
    assert torch.equal(impute(exact(), x[3:5], 2), x[3:5].expand(2, 2, D)), "nothing is missing"


def test_images_and_classes():
    """Any shape; the label reaches the network."""
    torch.manual_seed(0)

    class Classes(torch.nn.Module):
        num_classes = 2

        def forward(self, x: Tensor, level: Tensor, y: Tensor) -> Tensor:
            return torch.zeros_like(x) + 5.0 * y.reshape(-1, 1, 1, 1)

    covariance = AdaptiveCovariance((1, 4, 4), rho=0.0, initial=torch.eye(16)).freeze()
    model = Denoiser(Classes(), NoiseModel(covariance, levels.Levels((3.0, 1.0, 0.3)), 0))
    x = torch.rand(2, 1, 4, 4)
    x[:, :, :2] = torch.nan
    for method in (None, "adapted"):
        out = impute(model, x, y=torch.tensor([0, 1]), steps=4, particles=4, method=method)
        assert out.shape == (1, 2, 1, 4, 4)
        assert out[0, 1, :, :2].mean() > out[0, 0, :, :2].mean() + 1


def test_wrong_arguments_are_named():
    model, x = exact(), with_holes(2)
    for name, call in (
        ("x", lambda: impute(model, x[:, :3])), ("x", lambda: impute(model, x.masked_fill(x.isnan(), torch.inf))),
        ("method", lambda: impute(model, x, method="mean")), ("draws", lambda: impute(model, x, 0)),
        ("y", lambda: impute(model, x, y=torch.zeros(3).long())), ("particles", lambda: impute(model, x, particles=1)),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=rf"^{name}: got .*, expected "):
            call()
    with pytest.raises(TypeError, match=r"^x: got torch.int64, expected floats"):
        impute(model, torch.zeros(2, D, dtype=torch.int64))
    with pytest.raises(TypeError, match=r"^schedule: got an unknown option of particles, expected none$"):
        impute(model, x, schedule="karras")
