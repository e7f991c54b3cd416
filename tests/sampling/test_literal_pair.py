"""Eq. 3.1 and Algorithm 1 as printed, together: what that pair samples on Gaussian data (docs/errata.md)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ansn import sample
from ansn.sampling import algorithm_1
from tests.oracles import (
    ExactDenoiser,
    beside,
    covariance_within_five_sigma,
    fixed_covariance,
    gaussian,
    noise_model,
    randn,
    spd,
)
from tests.tolerances import rms_ratio

D, SIGMA, EPS = 4, 0.6, 1.0  # of one level alpha = eps, whatever its sigma
S = spd(D, 2)
ZERO = torch.zeros(D, dtype=torch.float64)
SHAPES = {"R = I": torch.eye(D, dtype=torch.float64), "R = S": S, "another": beside(S, 1)}


def model(r: Tensor, prediction: str = "denoiser") -> ExactDenoiser:
    covariance = fixed_covariance(r, root="symmetric")
    return ExactDenoiser(noise_model(covariance, (SIGMA,)), gaussian(ZERO, S), prediction=prediction)


def stationary(r: Tensor, eps: float) -> Tensor:
    """``(R^-1 S / sigma + sigma I) (I - K / 2)^-1``, K the share of the way to the mean that a step goes."""
    total = S + SIGMA**2 * r
    pull = 0.5 * eps / SIGMA**2 * SIGMA**3 * r @ torch.linalg.inv(total)
    eye = torch.eye(D, dtype=torch.float64)
    return (torch.linalg.inv(r) @ S / SIGMA + SIGMA * eye) @ torch.linalg.inv(eye - pull / 2)


def one_step(x: Tensor, of: ExactDenoiser, z: Tensor) -> Tensor:
    return algorithm_1(of, x, steps=1, eps=EPS, literal=True, noise_sampler=lambda _: z)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("prediction", ["denoiser", "whitened"])
def test_the_covariance_stands_still(shape: str, prediction: str) -> None:
    """Exactly: of a step's map A and its noise gain G, ``A C A^T + G G^T = C``."""
    of, eye = model(SHAPES[shape], prediction), torch.eye(D, dtype=torch.float64)
    a, g = one_step(eye, of, torch.zeros_like(eye)).T, one_step(torch.zeros_like(eye), of, eye).T
    c = stationary(SHAPES[shape], EPS)
    assert rms_ratio(a @ c @ a.T + g @ g.T, c) < 1e-12
    assert torch.linalg.eigvals(a).abs().max() < 1  # so it is the only one, and every start ends there


@pytest.mark.parametrize("shape", SHAPES)
def test_samples_have_it(shape: str) -> None:
    """Drawn by name from a start that is nowhere near."""
    drawn = sample(
        model(SHAPES[shape]), 4000, method="paper", steps=150, eps=EPS, literal=True, batch_size=4000, seed=1
    )
    assert covariance_within_five_sigma(drawn, stationary(SHAPES[shape], EPS))


def test_it_is_hotter_by_one_over_sigma_and_loses_the_data_s_shape() -> None:
    """As the step goes to 0: ``(S + sigma^2 I) / sigma`` at R = I, and ``(1 / sigma + sigma) I`` at R = S."""
    eye = torch.eye(D, dtype=torch.float64)
    assert rms_ratio(stationary(eye, 1e-13), (S + SIGMA**2 * eye) / SIGMA) < 1e-10
    assert rms_ratio(stationary(S, 1e-13), (1 / SIGMA + SIGMA) * eye) < 1e-10


def test_the_network_that_minimises_the_printed_loss_is_sigma_times_the_score() -> None:
    """``1/2 || Sigma^-1 (s + x~ - x) ||^2`` of a linear s is least at ``-Sigma (S + Sigma)^-1 x~``, by least squares,
    and so is every other weight in front of the residual."""
    r = SHAPES["another"]
    noise = noise_model(fixed_covariance(r), (SIGMA,))
    x = gaussian(ZERO, S).sample(200_000, seed=3)
    perturbed, _ = noise.perturb(x, tau=SIGMA, step=0)
    sigma = SIGMA**2 * r
    expected = -sigma @ torch.linalg.inv(S + sigma)
    for weight in (torch.linalg.inv(sigma), torch.linalg.inv(torch.linalg.cholesky(sigma)), randn(D, D)):
        goal = (x - perturbed) @ weight.T
        found = torch.linalg.solve(weight, torch.linalg.lstsq(perturbed, goal).solution.T)
        assert rms_ratio(found, expected) < 0.02
