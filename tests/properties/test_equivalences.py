"""Math section 8, items 3 to 5: R = I is NCSNv2, any R is that in whitened coordinates, rotations of L do not show."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ansn import Denoiser, NoiseModel, dsm_loss, levels, ops
from ansn.sampling import algorithm_1, annealed_langevin, euler, heun
from tests.native import oracle
from tests.oracles import fixed_covariance, noise_model, randn, spd
from tests.tolerances import EXACT, rms_ratio

D, B, STEPS = 5, 7, 6
TAU = (2.0, 0.9, 0.4, 0.15)


class Field(nn.Module):
    """A smooth whitened prediction ``f(u, ln(tau)/4)``: what a trained network might be."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.v = randn(D, D, seed=11), randn(D, D, seed=12)

    def forward(self, u: Tensor, level: Tensor) -> Tensor:
        return -torch.tanh(u @ self.w / (1 + (4 * level).exp().unsqueeze(1))) @ self.v / 2


class Through(nn.Module):
    """``f_x(x) = B f_u(A x)``: the same field seen in other coordinates."""

    def __init__(self, field: nn.Module, inside: Tensor, outside: Tensor) -> None:
        super().__init__()
        self.field, self.inside, self.outside = field, inside, outside

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        return self.field(x @ self.inside.T, level) @ self.outside.T


def whitened_model(field: nn.Module, factor: Tensor) -> Denoiser:
    """ANSN with ``L`` any square root, not only a triangular one."""
    covariance = fixed_covariance(factor @ factor.T, root="symmetric")
    covariance.snapshot.factor.copy_(factor)
    covariance.snapshot.inverse.copy_(torch.linalg.inv(factor))
    return Denoiser(field, noise_model(covariance, TAU), "whitened", precondition=False)


# -- item 3: R = I


def ncsnv2_langevin(score: Callable, x: Tensor, eps: float, convention: str, seed: int) -> Tensor:
    """NCSNv2's ``anneal_Langevin_dynamics`` with its last denoising; ``paper``: half the drift, sqrt of the step."""
    for c, sigma in enumerate(TAU):
        step = eps * (sigma / TAU[-1]) ** 2
        for s in range(STEPS):
            z = torch.as_tensor(oracle.noise(seed, 0, B, D, c * STEPS + s, ops.LANGEVIN))
            drift, spread = (step, math.sqrt(2 * step)) if convention == "ncsn" else (step / 2, math.sqrt(step))
            x = x + drift * score(x, sigma) + spread * z
    return x + TAU[-1] ** 2 * score(x, TAU[-1])


@pytest.mark.parametrize("convention", ["ncsn", "paper"])
@pytest.mark.parametrize("prediction", ["whitened", "denoiser"])
@pytest.mark.parametrize("precondition", [True, False])
def test_at_r_identity_the_sampler_is_ncsnv2_s(convention, prediction, precondition):
    field = Field()
    model = Denoiser(field, NoiseModel(fixed_covariance(D), levels.Levels(TAU)), prediction, precondition=False)

    def score(x: Tensor, sigma: float) -> Tensor:
        out = field(x, torch.full((B,), math.log(sigma) / 4, dtype=torch.float64))
        return out / sigma if prediction == "whitened" else (out - x) / sigma**2

    x, eps = randn(B, D), 0.1 * TAU[-1] ** 2
    got = annealed_langevin(model, x, steps=STEPS, eps=eps, convention=convention, precondition=precondition, seed=5)
    assert rms_ratio(got, ncsnv2_langevin(score, x, eps, convention, seed=5)) < 1e-11


def test_at_r_identity_the_loss_is_ncsnv2_s():
    """``1/2 sigma^2 ||s + (x~ - x)/sigma^2||^2``, summed over coordinates; ours is the mean of them."""
    field = Field()
    model = Denoiser(field, NoiseModel(fixed_covariance(D), levels.Levels(TAU), seed=3), "whitened", precondition=False)
    x = randn(B, D)
    perturbed, level = model.noise.perturb(x, step=8)
    sigma = level.tau.unsqueeze(1)
    z = torch.as_tensor(oracle.noise(3, 0, B, D, 8, ops.PERTURB))
    assert rms_ratio(perturbed, x + sigma * z) < EXACT
    score = field(perturbed, level.tau.log() / 4) / sigma
    theirs = 0.5 * (sigma * (score + (perturbed - x) / sigma**2)).square().sum(1)
    assert rms_ratio(D * dsm_loss(model, x, perturbed, level, reduction="none"), theirs) < 1e-11


# -- item 4: whitened coordinates


@pytest.mark.parametrize("triangular", [True, False])
def test_any_shape_is_ncsnv2_in_whitened_coordinates(triangular):
    """Loss, every state of every sampler, scores: ``x_t = L u_t`` along whole trajectories, same noise."""
    field, r = Field(), spd(D)
    factor = torch.linalg.cholesky(r)
    if not triangular:
        factor = factor @ torch.linalg.qr(randn(D, D, seed=4))[0]
    inverse, eye = torch.linalg.inv(factor), torch.eye(D).double()
    in_x = whitened_model(Through(field, inverse, eye), factor)
    in_u = whitened_model(field, eye)

    u = 2.0 * randn(B, D)
    x = u @ factor.T
    perturbed_u, level = in_u.noise.perturb(u, tau=0.7, step=1)
    perturbed_x, _ = in_x.noise.perturb(x, tau=0.7, step=1)
    assert rms_ratio(perturbed_x, perturbed_u @ factor.T) < EXACT
    assert rms_ratio(dsm_loss(in_x, x, perturbed_x, level), dsm_loss(in_u, u, perturbed_u, level)) < 1e-11
    assert rms_ratio(in_x.score(x, 0.7), in_u.score(u, 0.7) @ inverse) < 1e-10

    noise = randn(len(TAU) * STEPS, B, D, seed=9)
    samplers: list[Callable] = [
        lambda m, start, **k: annealed_langevin(m, start, steps=STEPS, eps=0.004, seed=2, **k),
        lambda m, start, **k: annealed_langevin(
            m, start, steps=STEPS, eps=0.004, noise_sampler=lambda i: noise[i], **k
        ),
        heun,
        euler,
    ]
    for sampler in samplers:
        paths: list[list[Tensor]] = [[], []]
        ends = [
            sampler(m, start, callback=lambda d, path=path: path.append(d["x"].clone()))
            for m, start, path in zip((in_x, in_u), (x, u), paths, strict=True)
        ]
        assert len(paths[0]) == len(paths[1]) >= len(TAU)
        for at_x, at_u in zip(*paths, strict=True):
            assert rms_ratio(at_x, at_u @ factor.T) < 1e-10
        assert rms_ratio(ends[0], ends[1] @ factor.T) < 1e-10


# -- item 5: rotations of the factor


def test_a_rotation_of_the_factor_does_not_show():
    """``L -> L Q, f -> Q^T f, z -> Q^T z``: the same losses, scores and samples."""
    field, factor = Field(), torch.linalg.cholesky(spd(D))
    q = torch.linalg.qr(randn(D, D, seed=4))[0]
    eye = torch.eye(D).double()
    plain = whitened_model(field, factor)
    turned = whitened_model(Through(field, eye, q.T), factor @ q)
    assert rms_ratio(turned.noise.covariance.noise_shape(), plain.noise.covariance.noise_shape()) < EXACT

    x, z = randn(B, D), randn(B, D, seed=1)
    tau = torch.linspace(0.2, 2.0, B, dtype=torch.float64)
    perturbed = x + tau.unsqueeze(1) * plain.noise.covariance.color(z)
    assert rms_ratio(x + tau.unsqueeze(1) * turned.noise.covariance.color(z @ q), perturbed) < EXACT
    assert rms_ratio(turned.f(perturbed, tau), plain.f(perturbed, tau) @ q) < EXACT
    assert rms_ratio(turned(perturbed, tau), plain(perturbed, tau)) < EXACT
    assert rms_ratio(turned.score(perturbed, tau), plain.score(perturbed, tau)) < 1e-10
    _, level = plain.noise.perturb(x, tau=tau, step=0)
    for metric in ("pixel", "paper"):
        losses = [dsm_loss(m, x, perturbed, level, metric, reduction="none") for m in (turned, plain)]
        assert rms_ratio(*losses) < 1e-10
    residual = [0.5 * (m.f(perturbed, tau) + n).square().mean(1) for m, n in ((turned, z @ q), (plain, z))]
    assert rms_ratio(*residual) < EXACT

    noise = randn(len(TAU) * STEPS, B, D, seed=9)
    options = {"steps": STEPS, "eps": 0.004}
    a = annealed_langevin(turned, x, noise_sampler=lambda i: noise[i] @ q, **options)
    b = annealed_langevin(plain, x, noise_sampler=lambda i: noise[i], **options)
    assert rms_ratio(a, b) < 1e-10
    assert rms_ratio(heun(turned, x), heun(plain, x)) < 1e-10


# -- Algorithm 1


def test_algorithm_1_as_printed():
    """In plain NumPy: ``x + alpha/(2 sigma) s(x) + sqrt(alpha) z``, ``alpha = eps sigma^2 / sigma_L^2``."""
    w = randn(D, D, seed=3)

    class Score(nn.Module):
        conditioning = "none"

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(x @ w)

    noise = NoiseModel(fixed_covariance(spd(D)), levels.Levels(TAU))
    model = Denoiser(Score(), noise, "whitened", precondition=False)
    start, eps = randn(B, D), 2e-3
    x = start.numpy().copy()
    for i, sigma in enumerate(TAU):
        alpha = eps * sigma**2 / TAU[-1] ** 2
        for t in range(STEPS):
            z = oracle.noise(6, 30, B, D, i * STEPS + t, ops.LANGEVIN)
            x = x + alpha / (2 * sigma) * np.tanh(x @ w.numpy()) + np.sqrt(alpha) * z
    got = algorithm_1(model, start, steps=STEPS, eps=eps, seed=6, row=30)
    assert rms_ratio(got, torch.as_tensor(x)) < 1e-11
