"""Eq. 2.2 and 2.4 against closed forms on Gaussian data, in float64."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

import ansn
from ansn import Denoiser, networks, score_matching_loss, sliced_score_matching_loss
from tests.oracles import five_sigma, fixed_covariance, gaussian, noise_model, randn, spd
from tests.tolerances import EXACT, rms_ratio

D, B = 4, 32
S, MEAN = spd(D, 2), randn(D, seed=3)
Loss = Callable[..., Tensor]
PLAIN = functools.partial(sliced_score_matching_loss, variance_reduced=False)
HUTCHINSON = functools.partial(score_matching_loss, trace="hutchinson")


def exact_rows(n: int = B) -> Tensor:
    """Rows whose own mean and covariance are MEAN and S."""
    white = torch.linalg.qr(torch.cat((torch.ones(n, 1, dtype=torch.float64), randn(n, D)), 1))[0][:, 1:]
    return MEAN + math.sqrt(n) * white @ torch.linalg.cholesky(S).T


def linear(a: Tensor, b: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: -(x - b) @ a.T


def curved(x: Tensor) -> Tensor:
    """A score whose Jacobian is not symmetric and differs from row to row."""
    return torch.tanh(x @ randn(D, D, seed=7)) @ randn(D, D, seed=8) - x


def test_a_linear_score_has_the_value_of_the_closed_form() -> None:
    """``(-tr A + 1/2 tr A^T A S + 1/2 ||A (m - b)||^2) / d``, any A."""
    a, b = randn(D, D, seed=4), randn(D, seed=5)
    expected = -a.trace() + 0.5 * (a.T @ a @ S).trace() + 0.5 * (a @ (MEAN - b)).square().sum()
    assert score_matching_loss(linear(a, b), exact_rows()).item() == pytest.approx(float(expected) / D, rel=EXACT)


def test_the_slope_vanishes_at_the_score_of_the_data_and_there_alone() -> None:
    a, b = torch.linalg.inv(S).requires_grad_(), MEAN.clone().requires_grad_()
    for off, zero in ((0.0, True), (0.1, False)):
        slopes = torch.autograd.grad(score_matching_loss(linear(a + off, b), exact_rows()), (a, b))
        assert (max(float(slope.abs().max()) for slope in slopes) < 1e-12) is zero


def test_it_is_fisher_s_divergence_but_for_a_constant() -> None:
    """Eq. 2.1 less ``1/2 E||grad log p||^2``, of scores that are not linear: integrated over a normal by its rule."""
    nodes, weights = (torch.from_numpy(v) for v in np.polynomial.hermite_e.hermegauss(60))
    x, p = nodes.unsqueeze(1), weights / weights.sum()
    for score in (lambda x: -x + torch.sin(x), lambda x: -(x**3)):
        divergence = 0.5 * (score(x) + x).square().sum(1) - 0.5 * x.square().sum(1)
        rows = score_matching_loss(score, x, reduction="none")
        assert float(p @ rows.detach()) == pytest.approx(float(p @ divergence), rel=1e-9)


@pytest.mark.parametrize("probe", ["rademacher", "gaussian"])
@pytest.mark.parametrize("loss", [HUTCHINSON, sliced_score_matching_loss, PLAIN], ids=["hutchinson", "vr", "plain"])
def test_probes_are_unbiased(loss: Loss, probe: str) -> None:
    """Each of many copies of a row has probes of its own."""
    x, many = randn(3, D), 2000
    exact = score_matching_loss(curved, x, reduction="none")
    found = loss(curved, x.repeat(many, 1), reduction="none", probe=probe).reshape(many, 3)
    assert five_sigma(found, exact)
    assert (found.std(0) > 1e-3).all()
    several = loss(curved, x, reduction="none", probe=probe, probes=100)
    assert ((several - exact).abs() < 5 * found.std(0) / 10).all()


def test_the_variances_of_the_probes() -> None:
    """``2 ||Q||^2`` of a normal z and ``z . Q z``; near the right score of well-conditioned data the reduced form has
    the lower one, and it is Hutchinson's, number by number."""
    s = spd(D, 2, 0.5, 2.0)
    a, x, many = torch.linalg.inv(s) + 0.01, gaussian(MEAN, s).sample(500), 300
    score = linear(a, MEAN)
    along = score(x)
    forms = {sliced_score_matching_loss: -a.expand(20, D, D)}
    forms[PLAIN] = -a + 0.5 * along.unsqueeze(2) * along.unsqueeze(1)
    found: list[float] = []
    for loss, q in forms.items():
        draws = loss(score, x.repeat(many, 1), reduction="none", probe="gaussian").detach().reshape(many, 500)
        found.append(float(draws.var(0).mean()))
        symmetric = (q + q.mT) / 2
        assert found[-1] == pytest.approx(float(2 * symmetric.square().sum((1, 2)).mean() / D**2), rel=0.05)
    assert found[0] < 0.9 * found[1]
    told: dict[str, Any] = {"probes": 3, "seed": 5, "row": 2, "step": 7}
    assert torch.equal(sliced_score_matching_loss(score, x, **told), HUTCHINSON(score, x, **told))


def test_rademacher_s_probes_have_no_error_on_a_diagonal() -> None:
    def score(x: Tensor) -> Tensor:
        return torch.sin(x) * torch.arange(1, D + 1) - x**3

    x = randn(5, D)
    exact = score_matching_loss(score, x, reduction="none").detach()
    assert rms_ratio(HUTCHINSON(score, x, reduction="none").detach(), exact) < EXACT
    assert rms_ratio(HUTCHINSON(score, x, reduction="none", probe="gaussian").detach(), exact) > 0.1


def test_training_finds_the_inverse_of_the_covariance() -> None:
    """By the exact loss of rows whose own moments are S and the mean; near it by one slice a row."""
    inverse, eye, x = torch.linalg.inv(S), torch.eye(D, dtype=torch.float64), exact_rows(10_000)
    for loss, close in ((score_matching_loss, 1e-4), (sliced_score_matching_loss, 0.1), (PLAIN, 0.1)):
        a, b = eye.clone().requires_grad_(), torch.zeros(D, dtype=torch.float64).requires_grad_()
        optimizer = torch.optim.LBFGS([a, b], max_iter=60, line_search_fn="strong_wolfe")

        def closure(loss: Loss = loss, a: Tensor = a, b: Tensor = b, optimizer: Any = optimizer) -> Tensor:
            optimizer.zero_grad()
            value = loss(linear(a, b), x)
            value.backward()
            return value

        optimizer.step(closure)
        assert rms_ratio(a.detach(), inverse) < close
        assert rms_ratio(b.detach(), MEAN) < close


@pytest.mark.parametrize(("prediction", "skip"), [("denoiser", "wiener"), ("denoiser", "scalar"), ("whitened", None)])
def test_a_denoiser_is_trained_through_its_score(prediction: str, skip: str | None) -> None:
    """Value and gradient in every weight, through our operations twice, as torch.func has them in plain torch."""
    torch.manual_seed(0)
    network = networks.MLP((D,), hidden=8, blocks=1).double()
    nn.init.normal_(network.output.weight, std=0.3)
    model = Denoiser(network, noise_model(fixed_covariance(spd(D), s=spd(D, 0, 0.3, 4.0))), prediction, skip=skip)
    x, tau = randn(6, D), torch.linspace(0.3, 2.0, 6, dtype=torch.float64)
    got = score_matching_loss(lambda x: model.score(x, tau), x)
    names, weights = zip(*network.named_parameters(prefix="network"), strict=True)

    def plain(weights: tuple[Tensor, ...]) -> Tensor:
        def score(row: Tensor, level: Tensor) -> Tensor:
            given = (row[None], level[None])
            out = functional_call(Scored(model), {f"of.{n}": w for n, w in zip(names, weights, strict=True)}, given)
            return out[0]

        jacobian = vmap(jacrev(score))(x, tau)
        return (jacobian.diagonal(0, 1, 2).sum(1) + 0.5 * vmap(score)(x, tau).square().sum(1)).mean() / D

    expected = plain(weights)
    assert got.item() == pytest.approx(expected.item(), rel=1e-9)
    for ours, theirs in zip(torch.autograd.grad(got, weights), torch.autograd.grad(expected, weights), strict=True):
        assert rms_ratio(ours, theirs) < 1e-9


class Scored(nn.Module):
    """Called for the score."""

    def __init__(self, of: Denoiser) -> None:
        super().__init__()
        self.of = of

    def forward(self, x: Tensor, tau: Tensor) -> Tensor:
        return self.of.score(x, tau)


def test_perturbed_rows_have_the_score_that_denoising_learns() -> None:
    """Of Gaussian data perturbed at tau, ``-(S + tau^2 R)^-1 (x~ - m)`` is where the loss has no slope."""
    r, tau = spd(D), 0.7
    noise = noise_model(fixed_covariance(r))
    a = torch.linalg.inv(S + tau**2 * r).requires_grad_()
    slopes = []
    for step in range(60):
        perturbed, _ = noise.perturb(gaussian(MEAN, S).sample(200, seed=step), tau=tau, step=step)
        slopes += torch.autograd.grad(score_matching_loss(linear(a, MEAN), perturbed), a)
    assert five_sigma(torch.stack(slopes), 0.0)


def test_attention_has_a_second_derivative() -> None:
    torch.manual_seed(0)
    network = networks.build("unet", (1, 8, 8), width=8, multipliers=(1, 2), attention=(False, True))
    x, level = randn(2, 1, 8, 8, dtype=torch.float32), torch.zeros(2)
    loss = sliced_score_matching_loss(lambda x: network(x, level), x)
    assert loss.dtype == torch.float32
    loss.backward()
    assert all(w.grad is None or w.grad.isfinite().all() for w in network.parameters())


@pytest.mark.parametrize("loss", [HUTCHINSON, PLAIN], ids=["hutchinson", "plain"])
def test_a_row_s_probes_do_not_depend_on_the_batch(loss: Loss) -> None:
    x = randn(5, 2, 2)
    score = lambda x: curved(x.flatten(1)).reshape(x.shape)  # noqa: E731
    whole = loss(score, x, reduction="none", probes=2, seed=3, step=4, row=10)
    assert torch.equal(loss(score, x[2:], reduction="none", probes=2, seed=3, step=4, row=12), whole[2:])
    assert loss(score, x, probes=2, seed=3, step=4, row=10).item() == pytest.approx(float(whole.mean()), rel=EXACT)
    for other in ({"seed": 4}, {"step": 5}, {"row": 11}):
        told = {"seed": 3, "step": 4, "row": 10} | other
        assert (loss(score, x, reduction="none", probes=2, **told) != whole).any()


def test_without_gradients_it_is_the_same_number() -> None:
    x = randn(5, D)
    weight = randn(D, D, seed=6).requires_grad_()
    expected = score_matching_loss(lambda x: torch.tanh(x @ weight), x)
    assert expected.requires_grad
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            got = score_matching_loss(lambda x: torch.tanh(x @ weight), x.clone())
        assert not got.requires_grad
        assert float(got) == pytest.approx(float(expected), rel=EXACT)
    inside = randn(5, D).requires_grad_()
    (slope,) = torch.autograd.grad(score_matching_loss(curved, inside), inside)
    assert slope.abs().max() > 0


@pytest.mark.parametrize(("options", "message"), [
    ({"trace": "auto"}, "trace: got 'auto', expected one of hutchinson, exact"),
    ({"probe": "sphere"}, "probe: got 'sphere', expected one of rademacher, gaussian"),
    ({"reduction": "sum"}, "reduction: got 'sum', expected 'mean' or 'none'"),
    ({"probes": 0}, "probes: got 0, expected at least 1"),
    ({"x": torch.zeros(3)}, r"x: got shape [3], expected [B, ...] with at least two dimensions"),
    ({"x": [1.0]}, "x: got list [1.0], expected a float32, float64, bfloat16 or float16 tensor"),
    ({"score": None}, "score: got NoneType, expected a function of x alone, such as lambda x: model.score(x, tau)"),
    ({"score": lambda x: x[:, :2]},
     "score: got float64 tensor of shape [3, 2] on cpu of x, expected a tensor of its shape, [3, 4]"),
    ({"score": lambda x: x.detach()},
     "score: got an output that does not follow x, expected one with a gradient in it"),
])  # fmt: skip
def test_wrong_arguments_are_a_line(options: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"score": curved, "x": randn(3, D)} | options
    with pytest.raises((TypeError, ValueError)) as error:
        score_matching_loss(**given)
    assert str(error.value) == message


def test_a_denoiser_itself_is_no_score() -> None:
    model = Denoiser(networks.MLP((D,), 8, 1).double(), noise_model(fixed_covariance(D)))
    for loss in (ansn.score_matching_loss, ansn.sliced_score_matching_loss):
        with pytest.raises(TypeError, match=r"^score: got Denoiser, expected a function of x alone, such as lambda"):
            loss(model, randn(3, D))  # type: ignore[arg-type]
