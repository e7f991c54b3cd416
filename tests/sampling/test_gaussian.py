"""The covariance of Gaussian data under noise of another shape, and the systems in measurement space."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ansn import AdaptiveCovariance
from ansn.covariance import STRUCTURES
from ansn.sampling import Linear, Mask, gaussian
from ansn.sampling.gaussian import MeasuredGaussian, conjugate_gradients
from tests.oracles import covariance_within_five_sigma, randn, spd
from tests.tolerances import rms_ratio

D, M = 6, 3
TAUS = (1e-3, 0.3, 2.0, 50.0)
OPERATOR = Linear(randn(M, D, seed=7))


def covariance(structure: str = "dense", regions: int = 1, **options) -> AdaptiveCovariance:
    """Frozen, with R not proportional to S and S of each region its own."""
    out = AdaptiveCovariance((2, 3), regions, structure, rho=0.4, eps=0.01, factor_dtype=torch.float64, **options)
    x = randn(300 * regions, D, seed=1) @ torch.linalg.cholesky(spd(D, 2)).T
    region = torch.arange(regions).repeat(300)
    x = x * (1.0 + region.unsqueeze(1))
    return out.update(x, region if regions > 1 else None).freeze()


def matrices(c: AdaptiveCovariance) -> tuple[Tensor, Tensor]:
    """S and R, ``[K, d, d]``."""
    both = c.covariance(), c.noise_shape()
    return both if both[0].ndim == 3 else tuple(torch.diag_embed(v) for v in both)  # type: ignore[return-value]


def given_noise(s: Tensor, r: Tensor, tau: float) -> Tensor:
    """``S - S (S + tau^2 R)^-1 S``, as the formula has it."""
    return s if math.isinf(tau) else s - s @ torch.linalg.solve(s + tau**2 * r, s)


CASES = {
    "dense": {}, "symmetric root": {"root": "symmetric"}, "diagonal": {"structure": "diagonal"},
    "regions": {"regions": 2}, "diagonal regions": {"structure": "diagonal", "regions": 2},
    "separable": {"structure": "separable"}, "cosine": {"structure": "cosine"},
    "separable regions": {"structure": "separable", "regions": 2},
    "cosine regions, symmetric root": {"structure": "cosine", "regions": 2, "root": "symmetric"},
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("tau", [*TAUS, math.inf])
def test_learned_covariance_given_the_noise(case, tau):
    """Absolute in units of S where the formula itself cancels: at small tau it loses ``S / tau^2`` of its digits."""
    c = covariance(**case)
    region = torch.arange(D) % c.regions if c.regions > 1 else None
    level = torch.tensor([tau], dtype=torch.float64)
    found = MeasuredGaussian.learned(c, OPERATOR, 0.1).spread(torch.eye(D, dtype=torch.float64), level, region)
    s, r = matrices(c)
    owners = [0] * D if region is None else region.tolist()
    expected = torch.stack([given_noise(s[k], r[k], tau)[i] for i, k in enumerate(owners)])
    assert float((found - expected).abs().max() / s.abs().max()) < 1e-12
    if math.isfinite(tau) and tau < 0.01:  # tau^2 R to first order
        noise = torch.stack([r[k][i] for i, k in enumerate(owners)])
        assert rms_ratio(found, tau**2 * noise) < 1e-3


def test_isotropic_is_pigdm_s():
    c = covariance()
    found = MeasuredGaussian.isotropic(c, OPERATOR, 0.1).spread(
        torch.eye(D, dtype=torch.float64), torch.tensor([2.0]), None
    )
    assert rms_ratio(found, c.scale[0] ** 2 * 4.0 / 5.0 * torch.eye(D).double()) < 1e-12


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("levels", ["one", "one a row"])
@pytest.mark.parametrize("limit", ["factored", "iterated"])
def test_the_system_is_solved(case, levels, limit, monkeypatch):
    if limit == "iterated":
        monkeypatch.setattr(gaussian, "_DENSE_NUMBERS", 0)
    c, rows, sigma = covariance(**case), 5, 0.2
    region = torch.arange(rows) % c.regions if c.regions > 1 else None
    tau = torch.tensor([0.7]) if levels == "one" else torch.linspace(0.1, 3.0, rows)
    right = randn(rows, M, seed=3)
    found = MeasuredGaussian.learned(c, OPERATOR, sigma).solve(right, tau, region)
    (s, r), a = matrices(c), OPERATOR.matrix
    for i, t in enumerate(tau.expand(rows).tolist()):
        k = 0 if region is None else int(region[i])
        system = sigma**2 * torch.eye(M) + a @ given_noise(s[k], r[k], t) @ a.T
        # tau is float32 here, as samplers have it.
        assert rms_ratio(found[i], torch.linalg.solve(system, right[i])) < 1e-6


def test_large_measurements_are_iterated(monkeypatch):
    monkeypatch.setattr(gaussian, "_DENSE_SIZE", M - 1)
    large = MeasuredGaussian.learned(covariance(), OPERATOR, 0.2)
    assert large.seen is None
    right, tau = randn(4, M, seed=3), torch.tensor([0.7])
    monkeypatch.undo()
    small = MeasuredGaussian.learned(covariance(), OPERATOR, 0.2)
    assert small.seen is not None
    assert rms_ratio(large.solve(right, tau, None), small.solve(right, tau, None)) < 1e-8


def test_measurements_that_repeat_each_other_without_noise():
    """A singular system with a solution: ``A V A^T u`` is the right side, and nothing is infinite."""
    twice = Linear(OPERATOR.matrix[:2].repeat(2, 1))
    measured = MeasuredGaussian.learned(covariance(), twice, 0.0)
    tau, right = torch.tensor([0.7]), randn(4, 2, seed=3).repeat(1, 2)
    again = twice(measured.spread(twice.adjoint(measured.solve(right, tau, None)), tau, None))
    assert rms_ratio(again, right) < 1e-5


def test_coordinates_that_never_vary_are_left_alone():
    x = torch.cat((randn(300, D - 1), torch.zeros(300, 1)), 1)
    c = AdaptiveCovariance(D, rho=0.5, eps_floor=0.0, factor_dtype=torch.float64).update(x).freeze()
    mask = Mask(torch.tensor([True] * 2 + [False] * (D - 3) + [True]))
    measured = MeasuredGaussian.learned(c, mask, 0.0)
    tau = torch.tensor([0.5])
    change = measured.spread(mask.adjoint(measured.solve(randn(4, 3, seed=2), tau, None)), tau, None)
    assert bool(torch.isfinite(change).all())
    assert float(change[:, -1].abs().max()) < 1e-6
    assert rms_ratio(change[:, :2], randn(4, 3, seed=2)[:, :2]) < 1e-6


@pytest.mark.parametrize("structure", STRUCTURES)
def test_draws_have_the_learned_covariance(structure):
    c = covariance(structure)
    measured = MeasuredGaussian.learned(c, OPERATOR, 0.1)
    x = measured.draw(torch.zeros(6000, D, dtype=torch.float64), None, seed=3, row=0)
    assert covariance_within_five_sigma(x, matrices(c)[0][0])
    later = measured.draw(torch.zeros(10, D, dtype=torch.float64), None, seed=3, row=7)
    assert rms_ratio(later, x[7:17]) < 1e-12


def test_conjugate_gradients_are_exact_after_as_many_steps_as_unknowns():
    """Rows of different difficulty, one of them zero; fewer steps are an approximation."""
    systems = torch.stack([spd(M, i, 0.1, 10.0) for i in range(4)])
    right = randn(4, M, seed=1)
    right[2] = 0.0
    product = lambda v: torch.einsum("bij,bj->bi", systems, v)  # noqa: E731
    expected = torch.linalg.solve(systems, right)
    assert rms_ratio(conjugate_gradients(product, right, M), expected) < 1e-10
    assert rms_ratio(conjugate_gradients(product, right, 50), expected) < 1e-10
    assert rms_ratio(conjugate_gradients(product, right, 1), expected) > 1e-2


def test_conjugate_gradients_stop_at_negative_curvature():
    right = randn(2, M)
    signs = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    u = conjugate_gradients(lambda v: signs * v, right, 5)
    assert rms_ratio(u[0], right[0]) < 1e-12
    assert float(u[1].abs().max()) == 0.0
