"""Math section 8, item 2: R is positive definite, L is its root, and draws have that covariance; both families."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ansn import AdaptiveCovariance
from ansn.covariance import STRUCTURES
from tests.oracles import covariance_within_five_sigma, noise_model, randn
from tests.tolerances import rms_ratio

SHAPES = [{"rho": 0.0}, {"rho": 0.3}, {"rho": 1.0}, {"gamma": -0.5}, {"gamma": 0.0}, {"gamma": 0.5}, {"gamma": 1.0}]
FACTORS = [(name, root) for name, structure in STRUCTURES.items() for root in structure.roots]


def correlated(rows: int, dim: int, seed: int = 0) -> torch.Tensor:
    return randn(rows, dim, seed=seed) @ (torch.eye(dim).double() + 0.5 * randn(dim, dim, seed=seed + 1))


def shaped(x: torch.Tensor, structure: str = "dense", root: str = "cholesky", **options) -> AdaptiveCovariance:
    dim = x.shape[1]
    return AdaptiveCovariance(
        dim if dim % 2 else (2, dim // 2),
        structure=structure,
        root=root,
        **{"factor_dtype": torch.float64, "eps": 0.01, **options},
    ).update(x)


def full(value: torch.Tensor) -> torch.Tensor:
    return value if value.ndim == 3 else torch.diag_embed(value)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    rows=st.integers(2, 30), dim=st.integers(1, 8), kind=st.sampled_from(FACTORS), shape=st.sampled_from(SHAPES),
    eps=st.sampled_from([1e-6, 0.01, 1.0]), seed=st.integers(0, 99),
)  # fmt: skip
def test_r_is_at_least_the_ridge_and_l_its_root(rows, dim, kind, shape, eps, seed):
    """Fewer points than dimensions too: then S has no inverse, and R has."""
    covariance = shaped(correlated(rows, dim, seed), *kind, eps=eps, **shape)
    values = covariance.eigenvalues()
    assert float(values.min()) >= eps - 1e-12 * float(values.max())
    factor = covariance.color(torch.eye(dim, dtype=torch.float64)).T
    assert rms_ratio(factor @ factor.T, full(covariance.noise_shape())[0]) < 1e-12
    like = {"cholesky": factor.tril(), "symmetric": factor.T, "basis": factor}
    assert rms_ratio(factor, like[kind[1]]) < 1e-12
    if kind[1] == "basis":  # columns at right angles: a basis times deviations
        gram = factor.T @ factor
        assert rms_ratio(gram, gram.diagonal().diag()) < 1e-12
    z = randn(4, dim, seed=5)
    assert rms_ratio(covariance.whiten(covariance.color(z)), z) < 1e-7


@pytest.mark.parametrize("kind", FACTORS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_trace_is_the_data_s(kind, shape):
    """tr R = tr S + d eps: a level counts standard deviations of the data whatever the shape is."""
    x = correlated(40, 6)
    covariance = shaped(x, *kind, **shape)
    got = full(covariance.noise_shape()).diagonal(dim1=1, dim2=2).sum(1)
    assert got.item() == pytest.approx(float(x.var(0).sum()) + 6 * 0.01, rel=1e-12)


@pytest.mark.parametrize("root", ["cholesky", "symmetric"])
def test_the_ends_of_both_families(root):
    x = correlated(40, 5)
    s, eye = torch.cov(x.T), torch.eye(5).double()
    level = s.diagonal().mean()
    ends = {"isotropic": (level + 0.01) * eye, "full": s + 0.01 * eye}
    for shape, expected in (
        ({"rho": 0.0}, "isotropic"),
        ({"gamma": 0.0}, "isotropic"),
        ({"rho": 1.0}, "full"),
        ({"gamma": 1.0}, "full"),
    ):
        assert rms_ratio(shaped(x, root=root, **shape).noise_shape()[0], ends[expected]) < 1e-12
    middle = shaped(x, root=root, rho=0.3).noise_shape()[0]
    assert rms_ratio(middle, 0.7 * level * eye + 0.3 * s + 0.01 * eye) < 1e-12
    # Haario's C is s_d R at rho = 1.
    whole = shaped(x, root=root, rho=1.0)
    assert rms_ratio(whole.haario(), 2.4**2 / whole.dim * whole.noise_shape()) < 1e-12


@pytest.mark.parametrize("gamma", [-0.5, 0.5])
def test_the_spectral_family_keeps_the_eigenvectors(gamma):
    x = correlated(40, 5)
    s = torch.cov(x.T)
    values, vectors = np.linalg.eigh(s.numpy())
    powered = (values + (0.01 if gamma < 0 else 0.0)) ** gamma
    expected = (vectors * (powered * values.sum() / powered.sum() + 0.01)) @ vectors.T
    assert rms_ratio(shaped(x, gamma=gamma).noise_shape()[0], torch.as_tensor(expected)) < 1e-11


def test_the_symmetric_root_does_not_know_the_order_of_the_coordinates():
    x, order = correlated(40, 5), torch.tensor([3, 0, 4, 1, 2])
    for root, equal in (("symmetric", True), ("cholesky", False)):
        straight, mixed = (shaped(v, root=root).snapshot.factor[0] for v in (x, x[:, order]))
        assert (rms_ratio(mixed, straight[order][:, order]) < 1e-10) == equal


@pytest.mark.parametrize("kind", FACTORS)
@pytest.mark.parametrize("factor_dtype", [torch.float32, torch.float64])
def test_draws_have_the_covariance_tau2_r(kind, factor_dtype):
    """Every entry within five standard errors."""
    covariance = shaped(correlated(40, 4), *kind, factor_dtype=factor_dtype).freeze()
    noise = noise_model(covariance, seed=3)
    drawn, _ = noise.perturb(torch.zeros(20_000, 4, dtype=factor_dtype), tau=2.0, step=0)
    assert covariance_within_five_sigma(drawn, 4.0 * full(covariance.noise_shape())[0])


def test_inspection_against_numpy():
    """Condition number of R, effective rank exp(H(p)) and trace of S."""
    x = correlated(60, 6)
    covariance = shaped(x, rho=0.8)
    r, s = np.linalg.eigvalsh(covariance.noise_shape()[0].numpy()), np.linalg.eigvalsh(np.cov(x.numpy().T))
    assert covariance.condition_number().item() == pytest.approx(r[-1] / r[0], rel=1e-10)
    p = s / s.sum()
    assert covariance.effective_rank().item() == pytest.approx(math.exp(-(p * np.log(p)).sum()), rel=1e-10)
    assert covariance.pencil.variances().sum().item() == pytest.approx(s.sum(), rel=1e-12)
    assert rms_ratio(covariance.eigenvalues()[0], torch.as_tensor(r)) < 1e-10
    assert 1.0 < covariance.effective_rank().item() < 6.0
    assert shaped(randn(4000, 6)).effective_rank().item() == pytest.approx(6.0, rel=0.01)


def test_scale_is_the_data_s_pixel_deviation():
    x = correlated(60, 6)
    covariance = shaped(x, rho=0.8)
    assert covariance.scale.item() == pytest.approx(math.sqrt(float(x.var(0).mean())), rel=1e-12)
    assert rms_ratio(covariance.center[0], x.mean(0)) < 1e-12
