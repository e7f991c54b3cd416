"""Math section 8, item 1: the running covariance is the covariance, however the points came."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.covariance import EmpiricalCovariance

from ansn import AdaptiveCovariance
from tests.oracles import haario_recursion, randn
from tests.tolerances import EXACT, rms_ratio


def learned(*batches: torch.Tensor, dim: int, **options) -> AdaptiveCovariance:
    covariance = AdaptiveCovariance(dim, **options)
    for batch in batches:
        covariance.update(batch)
    return covariance


splits = st.lists(st.integers(1, 20), min_size=2, max_size=6).filter(lambda sizes: sum(sizes) > 2)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(sizes=splits, dim=st.integers(1, 9), offset=st.sampled_from([0.0, 1.0, 100.0]), seed=st.integers(0, 99))
def test_batched_update_equals_the_two_pass_covariance(sizes, dim, offset, seed):
    x = offset + randn(sum(sizes), dim, seed=seed)
    covariance = learned(*x.split(sizes), dim=dim)
    expected = np.cov(x.numpy().T).reshape(dim, dim)
    # The two passes themselves lose digits in proportion to the offset.
    assert rms_ratio(covariance.covariance()[0], torch.as_tensor(expected)) < EXACT * max(1.0, offset)
    assert rms_ratio(covariance.mean[0], x.mean(0)) < EXACT
    assert covariance.count.tolist() == [sum(sizes)]
    variances = learned(*x.split(sizes), dim=dim, structure="diagonal").covariance()[0]
    assert rms_ratio(variances, torch.as_tensor(np.diag(expected).copy())) < EXACT * max(1.0, offset)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(sizes=splits, seed=st.integers(0, 99), data=st.data())
def test_splitting_and_order_do_not_matter(sizes, seed, data):
    x = randn(sum(sizes), 5, seed=seed)
    order = data.draw(st.permutations(range(len(x))))
    one = learned(x, dim=5).covariance()
    assert rms_ratio(learned(*x.split(sizes), dim=5).covariance(), one) < EXACT
    assert rms_ratio(learned(*x[list(order)].split(sizes), dim=5).covariance(), one) < EXACT
    single = learned(*x.split(1), dim=5).covariance()
    assert rms_ratio(single, one) < EXACT


@settings(max_examples=25, deadline=None, derandomize=True)
@given(sizes=splits, seed=st.integers(0, 99))
def test_merging_equals_seeing_everything(sizes, seed):
    """Two ranks, each with its own part; which of them merges the other does not matter."""
    x = 2.0 + randn(sum(sizes), 4, seed=seed)
    first, second = x[: sizes[0]], x[sizes[0] :]
    whole = learned(x, dim=4)
    for a, b in ((first, second), (second, first)):
        merged = learned(a, dim=4).merge(learned(b, dim=4))
        assert rms_ratio(merged.covariance(), whole.covariance()) < EXACT
        assert rms_ratio(merged.mean, whole.mean) < EXACT
        assert torch.equal(merged.count, whole.count)
        assert merged.seen == whole.seen


def test_translation_does_not_matter():
    x = randn(50, 6)
    assert rms_ratio(learned(*(x + 1e3).split(7), dim=6).covariance(), learned(x, dim=6).covariance()) < 1e-10


@pytest.mark.parametrize("seed", range(3))
def test_a_linear_map_maps_the_covariance(seed):
    """``C(A X) = A C(X) A^T`` at eps = 0, and of Haario's form too."""
    x, a = randn(40, 5, seed=seed), randn(5, 5, seed=seed + 10)
    options = {"dim": 5, "rho": 1.0, "eps": 0.0, "factor_dtype": torch.float64}
    before, after = learned(*x.split(9), **options), learned(*(x @ a.T).split(9), **options)
    for reading in ("covariance", "haario"):
        expected = a @ getattr(before, reading)()[0] @ a.T
        assert rms_ratio(getattr(after, reading)()[0], expected) < 1e-11
    assert rms_ratio(after.freeze().noise_shape()[0], a @ before.freeze().noise_shape()[0] @ a.T) < 1e-11


@pytest.mark.parametrize("dim", [1, 3, 8])
@pytest.mark.parametrize("eps", [0.0, 0.01])
def test_equals_the_recursion_of_haario(dim, eps):
    """Point by point for t >= 2 (Eq. 2.8 with its misprints mended)."""
    x = 0.5 + randn(40, dim)
    covariance = AdaptiveCovariance(dim, eps=eps).update(x[:2])
    recursion = haario_recursion(x.numpy(), eps)
    assert rms_ratio(covariance.haario()[0], torch.as_tensor(recursion[0])) < EXACT
    for t in range(2, len(x)):
        covariance.update(x[t : t + 1])
        assert rms_ratio(covariance.haario()[0], torch.as_tensor(recursion[t - 1])) < 1e-11


def test_equals_scikit_learn():
    """EmpiricalCovariance has the divisor n."""
    x = randn(64, 7) @ randn(7, 7, seed=1)
    theirs = EmpiricalCovariance().fit(x.numpy()).covariance_ * 64 / 63
    assert rms_ratio(learned(*x.split(10), dim=7).covariance()[0], torch.as_tensor(theirs)) < EXACT


@pytest.mark.parametrize("structure", ["dense", "diagonal"])
def test_forgetting_equals_the_weighted_covariance(structure):
    """lambda = 0.8: a batch's rows weigh 0.8^age; numpy's aweights have the same divisor ``W - sum w^2 / W``."""
    batches = [randn(b, 3, seed=b) + b for b in (4, 9, 1, 6)]
    covariance = learned(*batches, dim=3, structure=structure, forgetting=0.8)
    weights = np.concatenate([np.full(len(b), 0.8 ** (3 - i)) for i, b in enumerate(batches)])
    expected = torch.as_tensor(np.cov(torch.cat(batches).numpy().T, aweights=weights))
    got = covariance.covariance()[0]
    assert rms_ratio(got, expected if structure == "dense" else expected.diagonal()) < EXACT


def test_forgetting_follows_data_that_moves():
    old, new = randn(400, 3), 10.0 + 0.1 * randn(400, 3, seed=1)
    covariance = learned(*old.split(20), *new.split(20), dim=3, forgetting=0.5)
    assert rms_ratio(covariance.mean[0], new[-60:].mean(0)) < 1e-2
    assert float(covariance.covariance()[0].trace()) < 0.2


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_a_long_stream_stays_accurate(dtype, tolerance):
    """3000 batches whose mean is far from zero: the mean correction inside the product keeps a float32 state sound."""
    x = 3.0 + randn(3000, 16, 6, dtype=torch.float32) * torch.linspace(0.1, 1.0, 6)
    covariance = AdaptiveCovariance(6, dtype=dtype, refresh=1e9)
    for batch in x:
        covariance.update(batch)
    expected = torch.cov(x.double().reshape(-1, 6).T)
    assert rms_ratio(covariance.covariance()[0], expected) < tolerance


def test_images_are_vectors():
    x = randn(12, 1, 2, 3)
    images = AdaptiveCovariance((1, 2, 3)).update(x)
    assert torch.equal(images.covariance(), AdaptiveCovariance(6).update(x.reshape(12, 6)).covariance())
