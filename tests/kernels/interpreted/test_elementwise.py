"""The elementwise coloured step and the loss in Triton, interpreted, against NumPy in float64."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ansn import ops
from tests.native import oracle
from tests.ops.helpers import error_ratio, generator, numpy_step, randn
from tests.tolerances import RATIO

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("these run under TRITON_INTERPRET=1, which has to be set first", allow_module_level=True)

from ansn.kernels import colored_step as step_kernel
from ansn.kernels import dsm_loss as loss_kernel

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Around a vector (4 or 8), a block of groups, and a row longer than a block.
COLS = st.sampled_from([1, 2, 3, 4, 7, 8, 12, 33, 64, 100, 784, 1031, 2056])


@settings(max_examples=30, deadline=None, derandomize=True)
@given(data=st.data())
def test_step_equals_the_formula(data):
    """Any terms, scalar or per row; no, one or three diagonals; a dtype for each tensor; counters that wrap."""
    rows, cols, regions = data.draw(st.integers(0, 9)), data.draw(COLS), data.draw(st.integers(0, 3))
    dtypes = [data.draw(st.sampled_from(DTYPES)) for _ in range(3)]
    x, denoised, f = (randn(rows, cols, seed=i).to(t) for i, t in enumerate(dtypes))
    terms = data.draw(st.sets(st.sampled_from("cab")))
    coefficient = {
        n: torch.rand(rows if data.draw(st.booleans()) else (), generator=generator(i)) if n in terms else None
        for i, n in enumerate("cab")
    }
    diagonal = 0.5 + torch.rand(regions, cols, generator=generator(5)) if regions else None
    region = torch.randint(regions, (rows,), generator=generator(6)) if regions else None
    counters = {"seed": 2**62 + 3, "row": 2**32 - 2, "step": 3_000_000_000, "stream": ops.LANGEVIN}
    out = step_kernel.colored_step(x, denoised, f, *coefficient.values(), diagonal, region, **counters)
    expected = numpy_step(
        x, denoised if "c" in terms else None, f if "a" in terms else None, factor=diagonal, region=region,
        **{n: None if v is None else v.double().numpy() for n, v in coefficient.items()}, **counters,
    )  # fmt: skip
    assert error_ratio(out, expected) <= RATIO["colored_step"][dtypes[0]]


@pytest.mark.parametrize("cols", [784, 33])
def test_what_lies_behind_the_step_is_left_alone(cols, monkeypatch):
    """The store of the last block ends with the last row."""
    store, x = torch.full((4 * cols + 64,), 7.25), randn(3, cols, dtype=torch.float32)
    wanted = step_kernel.colored_step(x, b=torch.tensor(0.5), seed=1)
    monkeypatch.setattr(torch, "empty_like", lambda _: store[: 3 * cols].view(3, cols))
    assert torch.equal(step_kernel.colored_step(x, b=torch.tensor(0.5), seed=1), wanted)
    assert bool((store[3 * cols :] == 7.25).all())


@pytest.mark.parametrize("cols", [33, 64, 2056])
def test_step_with_64_bit_indices(cols, monkeypatch):
    """The path of more than 2^31 groups, taken early: the same result, bit for bit."""
    x, b = randn(20, cols, dtype=torch.float32), torch.rand(20)
    wanted = step_kernel.colored_step(x, b=b, seed=1)
    monkeypatch.setattr(step_kernel, "BIG", 0)
    assert torch.equal(step_kernel.colored_step(x, b=b, seed=1), wanted)


def test_absent_terms_are_not_read():
    x, nothing = torch.ones(3, 5), torch.full((3, 5), float("nan"))
    assert torch.equal(step_kernel.colored_step(x, nothing, nothing), x)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(data=st.data())
def test_loss_and_gradient_equal_the_formula(data):
    rows, cols, dtype = data.draw(st.integers(0, 3)), data.draw(COLS), data.draw(st.sampled_from(DTYPES))
    prediction, target = randn(rows, cols).to(dtype), randn(rows, cols, seed=1).to(data.draw(st.sampled_from(DTYPES)))
    weight = 0.5 + torch.rand(rows if data.draw(st.booleans()) else (), generator=generator(2))
    given_target = data.draw(st.booleans())
    loss, gradient = loss_kernel.dsm_loss(prediction, target if given_target else None, weight, 2**40, 5, 2**31, 1)
    wide = prediction.double().numpy()
    residual = wide - target.double().numpy() if given_target else wide + oracle.noise(2**40, 5, rows, cols, 2**31, 1)
    scale = np.broadcast_to(weight.double().numpy(), (rows,))[:, None] / cols
    assert (loss.dtype, gradient.dtype) == (torch.float32, dtype)
    assert error_ratio(gradient, 2 * scale * residual) <= RATIO["dsm_loss"][dtype]
    assert error_ratio(loss, (scale * residual**2).sum(1)) <= RATIO["dsm_loss"][torch.float32]


def test_a_long_row_in_stretches(monkeypatch):
    """The sums of its stretches are added; a row's loss is the same in any batch, bit for bit."""
    monkeypatch.setattr(loss_kernel, "STRETCH", 1024)
    prediction, weight = randn(3, 5000, dtype=torch.float32), torch.tensor([1.0, 0.5, 2.0])
    loss, gradient = loss_kernel.dsm_loss(prediction, None, weight, 3, 7, 1, 0)
    residual = prediction.double().numpy() + oracle.noise(3, 7, 3, 5000, 1, 0)
    scale = weight.double().numpy()[:, None] / 5000
    assert error_ratio(loss, (scale * residual**2).sum(1)) <= RATIO["dsm_loss"][torch.float32]
    assert error_ratio(gradient, 2 * scale * residual) <= RATIO["dsm_loss"][torch.float32]
    alone, _ = loss_kernel.dsm_loss(prediction[1:2], None, weight[1:2], 3, 8, 1, 0)
    assert torch.equal(alone, loss[1:2])


@pytest.fixture(autouse=True)
def poison():
    """What torch.empty gives is NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
