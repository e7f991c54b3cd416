"""Running moments: merge, weights, divisor, reset and precision; the update itself is tested with its operation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ansn.covariance import STRUCTURES, Moments
from tests.oracles import randn
from tests.tolerances import EXACT, rms_ratio


def moments(*batches, regions=1, structure="dense", decay=1.0, dtype=torch.float64) -> Moments:
    """Of points ``[2, 2]``, in a basis of no special kind where one is learned."""
    state = Moments(STRUCTURES[structure]((2, 2)), regions, dtype)
    state.face({name: torch.linalg.qr(randn(*part.shape, seed=7))[0] for name, part in state.basis.items()})
    for batch in batches:
        x, region = batch if isinstance(batch, tuple) else (batch, None)
        state.update(x, region, decay)
    return state


def covariance(state: Moments) -> torch.Tensor:
    """Zeros in a region without a covariance."""
    nothing = torch.zeros_like(state.structure.guess(torch.tensor(1.0).double()))
    return state.structure.covariance(state, state.points(2), nothing)


def same(a: Moments, b: Moments, tolerance: float = EXACT) -> bool:
    pairs = list(zip(a.buffers(), b.buffers(), strict=True))
    return all(rms_ratio(one, other) < tolerance for one, other in [*pairs, (covariance(a), covariance(b))])


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


@pytest.mark.parametrize("structure", STRUCTURES)
def test_merge_by_region(structure):
    """A region that only one side knows; one that neither knows."""
    x, region = randn(30, 4), torch.arange(30) % 2
    options = {"regions": 3, "structure": structure}
    a = moments((x[:10], torch.zeros(10, dtype=torch.int64)), **options)
    b = moments((x[10:], region[10:]), **options)
    whole = moments((x, torch.cat((torch.zeros(10, dtype=torch.int64), region[10:]))), **options)
    a.merge(b)
    assert same(a, whole)
    assert a.weight[2] == 0
    assert not bool(covariance(a)[2].any())


def test_merge_keeps_the_upper_triangle_out_of_it():
    a, b = moments(randn(5, 4)), moments(randn(6, 4, seed=1))
    a.merge(b)
    assert torch.equal(a.scatter, a.scatter.tril())


@pytest.mark.parametrize("structure", STRUCTURES)
def test_forgetting_weighs_what_every_structure_sums(structure):
    """Rows of weight decay^age about their weighted mean, and what lies between the batches' means."""
    batches = [randn(b, 4, seed=b) + b for b in (5, 1, 8)]
    state = moments(*batches, decay=0.7, structure=structure)
    w = torch.cat([torch.full((len(b), 1), 0.7 ** (2 - i), dtype=torch.float64) for i, b in enumerate(batches)])
    x = torch.cat(batches)
    mean = (w * x).sum(0) / w.sum()
    basis = state.basis or state.structure.start(1)
    for name, expected in state.structure.scatter(w.sqrt() * (x - mean), None, 1, basis).items():
        assert rms_ratio(getattr(state, name), expected) < EXACT
    assert rms_ratio(state.mean[0], mean) < EXACT


@pytest.mark.parametrize("decay", [0.5, 0.9])
def test_forgetting_has_the_unbiased_divisor(decay):
    """``W - sum w^2 / W`` over rows of weight decay^age, against the sums written out."""
    batches = [randn(b, 4, seed=b) for b in (5, 1, 8)]
    state = moments(*batches, decay=decay)
    w = np.concatenate([np.full(len(b), decay ** (2 - i)) for i, b in enumerate(batches)])
    x = torch.cat(batches).numpy()
    mean = w @ x / w.sum()
    expected = (w[:, None] * (x - mean)).T @ (x - mean) / (w.sum() - (w**2).sum() / w.sum())
    assert rms_ratio(covariance(state)[0], torch.as_tensor(expected)) < EXACT
    assert state.divisor()[0].item() == pytest.approx(w.sum() - (w**2).sum() / w.sum(), rel=1e-13)
    # numpy's own weighted covariance, whose aweights have this very divisor.
    assert rms_ratio(covariance(state)[0], torch.as_tensor(np.cov(x.T, aweights=w))) < EXACT


@pytest.mark.parametrize("structure", STRUCTURES)
def test_fewer_than_two_points_have_no_covariance(structure):
    one = moments(randn(1, 4), structure=structure)
    assert one.divisor().item() == 0
    for state in (moments(structure=structure), one):
        assert not bool(covariance(state).any())
        for name in state.scatters:  # nor is anything infinite that no point counts for
            assert not bool(state.per_point(name).any())


@pytest.mark.parametrize("structure", STRUCTURES)
def test_reset(structure):
    state = moments(randn(9, 4), structure=structure)
    basis = {name: part.clone() for name, part in state.basis.items()}
    state.reset()
    assert same(state, moments(structure=structure), 1e-300)
    assert all(torch.equal(state.basis[name], part) for name, part in basis.items())
    other = {name: torch.linalg.qr(part + 1.0)[0] for name, part in basis.items()}
    state.reset(other)
    assert all(torch.equal(state.basis[name], part) for name, part in other.items())


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_conversion_of_a_model_leaves_the_state_as_it_is(structure, dtype):
    state = moments(randn(9, 4), structure=structure, dtype=dtype)
    before = {name: b.clone() for name, b in state.named_buffers()}
    for convert in (lambda m: m.half(), lambda m: m.to(torch.bfloat16), lambda m: m.double(), lambda m: m.float()):
        convert(torch.nn.Sequential(state))
        for name, buffer in state.named_buffers():
            assert buffer.dtype == before[name].dtype
            assert torch.equal(buffer, before[name])
    assert all(b.device.type == "meta" for b in moments(dtype=dtype).to("meta").buffers())
