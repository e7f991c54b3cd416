"""Products and solves with a factor, against NumPy's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ansn import ops
from tests.ops.helpers import (
    DTYPES,
    back_ends,
    error_ratio,
    generator,
    numpy_factor,
    on,
    one_line,
    randn,
    random_factor,
)
from tests.tolerances import EXACT, RATIO, rms_ratio

KINDS = ("diagonal", "lower", "full")
MODES = [(transpose, inverse) for transpose in (False, True) for inverse in (False, True)]


@settings(max_examples=80, deadline=None, derandomize=True)
@given(data=st.data())
def test_every_back_end_equals_numpy(data):
    dtype, kind = data.draw(st.sampled_from(DTYPES)), data.draw(st.sampled_from(KINDS))
    rows, dim, regions = data.draw(st.integers(0, 9)), data.draw(st.integers(1, 33)), data.draw(st.integers(1, 4))
    transpose, inverse = data.draw(st.sampled_from(MODES))
    v = randn(rows, dim, dtype=dtype)
    factor = random_factor(kind, regions, dim, torch.float64 if dtype == torch.float64 else torch.float32)
    region = None if regions == 1 else torch.randint(regions, (rows,), generator=generator())
    matrices = numpy_factor(factor, region, rows, dim)
    matrices = matrices.transpose(0, 2, 1) if transpose else matrices
    wide = v.double().numpy()[..., None]
    expected = (np.linalg.solve(matrices, wide) if inverse else matrices @ wide)[..., 0]
    for name in back_ends("apply_factor"):
        out = on(
            name,
            lambda: ops.apply_factor(v, factor, region, transpose=transpose, inverse=inverse, lower=kind != "full"),
        )
        # What the native kernel is for, it may not refuse; triton's refusals are its own tests' business.
        refuses = {"reference": False, "native": inverse or kind == "diagonal" or dtype == torch.float64}
        assert (out is None) == refuses.get(name, out is None), (name, dtype, kind)
        if out is None:
            continue
        assert out.dtype == dtype
        assert error_ratio(out, expected) <= RATIO["apply_factor"][dtype]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("transpose", [False, True])
def test_solving_undoes_the_product(kind, transpose):
    v, factor = randn(5, 2, 3), random_factor(kind, 2, 6, torch.float64)
    options = {"region": torch.tensor([1, 0, 0, 1, 1]), "transpose": transpose, "lower": kind != "full"}
    there = ops.apply_factor(v, factor, **options)
    assert there.shape == v.shape
    assert rms_ratio(ops.apply_factor(there, factor, **options, inverse=True), v) < EXACT


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("transpose", "inverse"), MODES)
@pytest.mark.parametrize("regions", [1, 2])
def test_gradients(kind, transpose, inverse, regions):
    v, factor = randn(3, 4).requires_grad_(), random_factor(kind, regions, 4, torch.float64)
    region = None if regions == 1 else torch.tensor([1, 0, 1])

    def apply(v):
        return ops.apply_factor(v, factor, region, transpose=transpose, inverse=inverse, lower=kind != "full")

    assert torch.autograd.gradcheck(apply, (v,))
    assert torch.autograd.gradgradcheck(apply, (v,))


def test_a_solve_does_not_read_above_the_diagonal():
    factor = random_factor("lower", 1, 5, torch.float64)
    poisoned = torch.where(torch.ones(5, 5).triu(1).bool(), float("nan"), factor)
    v = randn(2, 5)
    for transpose in (False, True):
        out = ops.apply_factor(v, poisoned, inverse=True, transpose=transpose)
        assert torch.equal(out, ops.apply_factor(v, factor, inverse=True, transpose=transpose))


V = torch.zeros(3, 4)


@pytest.mark.parametrize(
    ("argument", "kind", "arguments"),
    [
        ("v", TypeError, (np.zeros((3, 4)), torch.ones(1, 4))),
        ("v", ValueError, (torch.zeros(4), torch.ones(1, 4))),
        ("factor", TypeError, (V, None)),
        ("factor", TypeError, (V, torch.ones(1, 4, dtype=torch.int32))),
        ("factor", ValueError, (V, torch.ones(1, 3))),
        ("region", ValueError, (V, torch.ones(2, 4))),
        ("region", ValueError, (V, torch.ones(2, 4), torch.tensor([0, 1, 2]))),
    ],
)
def test_wrong_arguments_are_named(argument, kind, arguments):
    with pytest.raises(kind) as error:
        ops.apply_factor(*arguments)
    one_line(error, argument)
