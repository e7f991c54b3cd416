"""Batched Cholesky factors: known factors, status of what has none, gradient."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ansn import ops
from tests.ops.helpers import back_ends, needs_native, on, one_line, randn
from tests.tolerances import RATIO, rms_ratio


def known(regions: int, dim: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.Tensor:
    """Lower factors with a positive diagonal: the answer."""
    lower = randn(regions, dim, dim, seed=seed).tril(-1) / dim**0.5
    return (lower + torch.diag_embed(0.5 + randn(regions, dim, seed=seed + 1).abs())).to(dtype)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    regions=st.integers(0, 5),
    dim=st.integers(1, 40),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 9),
)
def test_every_back_end_finds_the_factor(regions, dim, dtype, seed):
    expected = known(regions, dim, seed=seed)
    for name in back_ends("cholesky"):
        factor, info = on(name, lambda: ops.cholesky((expected @ expected.mT).to(dtype)))
        assert factor.dtype == dtype
        assert info.dtype == torch.int32
        assert info.tolist() == [0] * regions
        assert rms_ratio(factor @ factor.mT, expected @ expected.mT) <= RATIO["cholesky"][dtype]
        assert torch.equal(factor, factor.tril())
        assert factor.is_contiguous()
        # The factor itself is as far off as the matrix's condition number lets it be.
        assert rms_ratio(factor, expected) <= 100 * RATIO["cholesky"][dtype]


@pytest.mark.parametrize("name", back_ends("cholesky"))
def test_only_the_lower_triangle_is_read(name):
    expected = known(2, 6)
    matrix = expected @ expected.mT
    poisoned = torch.where(torch.ones(6, 6).triu(1).bool(), float("nan"), matrix)
    factor, info = on(name, lambda: ops.cholesky(poisoned))
    assert info.tolist() == [0, 0]
    assert rms_ratio(factor, expected) < RATIO["cholesky"][torch.float64] * 100


@pytest.mark.parametrize("name", back_ends("cholesky"))
def test_status_names_the_minor_and_raises_nothing(name):
    """One bad matrix leaves the others' factors right."""
    expected = known(3, 4)
    matrix = expected @ expected.mT
    matrix[1, 2, 2] = -1.0
    factor, info = on(name, lambda: ops.cholesky(matrix))
    assert info.tolist() == [0, 3, 0]
    assert rms_ratio(factor[[0, 2]], expected[[0, 2]]) < 1e-10
    assert on(name, lambda: ops.cholesky(torch.full((1, 2, 2), float("nan")).double()))[1].item() > 0


@needs_native
def test_orders_that_native_does_not_take():
    matrix = torch.eye(129).unsqueeze(0)
    with ops.backend("native"), pytest.raises(RuntimeError, match="cannot run on back end 'native': d is 129"):
        ops.cholesky(matrix)
    assert torch.equal(ops.cholesky(matrix)[0], matrix)


@pytest.mark.parametrize("dim", [1, 4])
def test_gradient(dim):
    """Through a symmetric matrix, as finite differences need."""
    expected = known(2, dim)
    half = (expected @ expected.mT).requires_grad_()
    assert torch.autograd.gradcheck(lambda m: ops.cholesky(0.5 * (m + m.mT))[0], (half,))
    assert torch.autograd.gradgradcheck(lambda m: ops.cholesky(0.5 * (m + m.mT))[0].tril(), (half,))


def test_gradient_equals_torch_own():
    expected = known(2, 5)
    matrix = expected @ expected.mT
    weights = randn(2, 5, 5, seed=3).tril()
    ours, theirs = matrix.clone().requires_grad_(), matrix.clone().requires_grad_()
    (ops.cholesky(ours)[0] * weights).sum().backward()
    (torch.linalg.cholesky(theirs) * weights).sum().backward()
    assert rms_ratio(ours.grad, theirs.grad) < 1e-10


@pytest.mark.parametrize(
    ("kind", "matrix"),
    [
        (TypeError, torch.eye(3).unsqueeze(0).half()),
        (TypeError, [[1.0]]),
        (ValueError, torch.eye(3)),
        (ValueError, torch.zeros(2, 3, 4)),
    ],
)
def test_wrong_arguments_are_named(kind, matrix):
    with pytest.raises(kind) as error:
        ops.cholesky(matrix)
    one_line(error, "matrix")
