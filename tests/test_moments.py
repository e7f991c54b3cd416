"""Running moments: merge, weights, divisor, reset and precision; the update itself is tested with its operation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ansn.moments import RunningMoments
from ansn.structures import STRUCTURES
from tests.oracles import randn
from tests.tolerances import EXACT, rms_ratio

DENSE = STRUCTURES["dense"]


def moments(*batches, regions=1, dim=4, structure="dense", decay=1.0, dtype=torch.float64) -> RunningMoments:
    state = RunningMoments(dim, regions, STRUCTURES[structure], dtype)
    for batch in batches:
        x, region = batch if isinstance(batch, tuple) else (batch, None)
        state.update(x, region, decay)
    return state


def same(a: RunningMoments, b: RunningMoments, tolerance: float = EXACT) -> bool:
    pairs = [(a.weight, b.weight), (a.weight2, b.weight2), (a.mean, b.mean), (a.covariance(), b.covariance())]
    return all(rms_ratio(one, other) < tolerance for one, other in pairs)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_merge_equals_one_state(structure):
    """Chan: three parts, in any order and any bracket, are the whole; an empty one is nothing."""
    x = 3.0 + randn(60, 4)
    parts = x[:10], x[10:11], x[11:]
    whole = moments(x, structure=structure)
    for order in ((0, 1, 2), (2, 1, 0), (1, 2, 0)):
        left = moments(structure=structure)
        for i in order:
            left.merge(moments(parts[i], structure=structure))
        assert same(left, whole)
        right = moments(parts[order[1]], structure=structure)
        right.merge(moments(parts[order[2]], structure=structure))
        first = moments(parts[order[0]], structure=structure)
        first.merge(right)
        first.merge(moments(structure=structure))
        assert same(first, whole)


def test_merge_by_region():
    """A region that only one side knows; one that neither knows."""
    x, region = randn(30, 4), torch.arange(30) % 2
    a = moments((x[:10], torch.zeros(10, dtype=torch.int64)), regions=3)
    b = moments((x[10:], region[10:]), regions=3)
    whole = moments((x, torch.cat((torch.zeros(10, dtype=torch.int64), region[10:]))), regions=3)
    a.merge(b)
    assert same(a, whole)
    assert a.weight[2] == 0
    assert torch.equal(a.covariance()[2], torch.zeros(4, 4, dtype=torch.float64))


def test_merge_keeps_the_upper_triangle_out_of_it():
    a, b = moments(randn(5, 4)), moments(randn(6, 4, seed=1))
    a.merge(b)
    assert torch.equal(a.scatter, a.scatter.tril())


@pytest.mark.parametrize("decay", [0.5, 0.9])
def test_forgetting_has_the_unbiased_divisor(decay):
    """``W - sum w^2 / W`` over rows of weight decay^age, against the sums written out."""
    batches = [randn(b, 4, seed=b) for b in (5, 1, 8)]
    state = moments(*batches, decay=decay)
    w = np.concatenate([np.full(len(b), decay ** (2 - i)) for i, b in enumerate(batches)])
    x = torch.cat(batches).numpy()
    mean = w @ x / w.sum()
    expected = (w[:, None] * (x - mean)).T @ (x - mean) / (w.sum() - (w**2).sum() / w.sum())
    assert rms_ratio(state.covariance()[0], torch.as_tensor(expected)) < EXACT
    assert state.divisor()[0].item() == pytest.approx(w.sum() - (w**2).sum() / w.sum(), rel=1e-13)
    # numpy's own weighted covariance, whose aweights have this very divisor.
    assert rms_ratio(state.covariance()[0], torch.as_tensor(np.cov(x.T, aweights=w))) < EXACT


def test_fewer_than_two_points_have_no_covariance():
    assert torch.equal(moments().covariance(), torch.zeros(1, 4, 4).double())
    one = moments(randn(1, 4))
    assert one.divisor().item() == 0
    assert torch.equal(one.covariance(), torch.zeros(1, 4, 4).double())


def test_reset():
    state = moments(randn(9, 4))
    state.reset()
    assert all(not bool(b.any()) for b in state.buffers())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_conversion_of_a_model_leaves_the_state_as_it_is(dtype):
    state = moments(randn(9, 4), dtype=dtype)
    before = {name: b.clone() for name, b in state.named_buffers()}
    for convert in (lambda m: m.half(), lambda m: m.to(torch.bfloat16), lambda m: m.double(), lambda m: m.float()):
        convert(torch.nn.Sequential(state))
        for name, buffer in state.named_buffers():
            assert buffer.dtype == before[name].dtype
            assert torch.equal(buffer, before[name])
    assert all(b.device.type == "meta" for b in moments(dtype=dtype).to("meta").buffers())
