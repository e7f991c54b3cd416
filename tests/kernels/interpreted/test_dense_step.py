"""The dense coloured step's Triton kernels, interpreted: against the NumPy formula and Philox, at every block."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ops.helpers import error_ratio, generator, numpy_factor, numpy_step, randn, random_factor
from tests.tolerances import RATIO

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("these run under TRITON_INTERPRET=1, which has to be set first", allow_module_level=True)

from ansn.kernels import dense_step as kernel

HALVES = (torch.float32, torch.bfloat16, torch.float16)


def allowed(operation: str, dtype: torch.dtype) -> float:
    """The table's figure; twice that for bfloat16, because the interpreter cuts where a GPU rounds to nearest."""
    return RATIO[operation][dtype] * (2 if dtype == torch.bfloat16 else 1)


@pytest.fixture(autouse=True)
def poison():
    """What torch.empty gives is NaN, or the largest integer."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def owners(rows: int, regions: int) -> torch.Tensor | None:
    """Regions of the rows, the second without any where there are three or more."""
    if regions == 1:
        return None
    region = torch.randint(regions, (rows,), generator=generator(rows))
    return torch.where(region == 1, 0, region) if regions > 2 else region


def step_error(rows, dim, regions, dtype, terms, lower=True, per_row=True, **options):
    factor = random_factor("lower" if lower else "full", regions, dim, options.pop("factor_dtype", torch.float32))
    region = owners(rows, regions)
    x, denoised, f = (randn(rows, dim, seed=i).to(dtype) for i in range(3))
    value = {
        name: (0.25 + torch.rand(rows if per_row else (), generator=generator(i))) if name in terms else None
        for i, name in enumerate("cab")
    }
    counter = {"seed": 2**40 + 5, "row": 2**32 - 3, "step": 7, "stream": 1}
    out = kernel.colored_step(
        x, denoised if "c" in terms else None, f if "a" in terms else None, value["c"], value["a"], value["b"], factor,
        region, lower, *counter.values(), **options,
    )  # fmt: skip
    assert out.dtype == dtype
    numbers = {k: None if v is None else v.double().numpy() for k, v in value.items()}
    return error_ratio(out, numpy_step(x, denoised, f, **numbers, factor=factor, region=region, **counter))


@settings(max_examples=10, deadline=None, derandomize=True)
@given(data=st.data())
def test_equals_the_formula(data):
    """Any shape, regions without rows, terms, dtypes; the noise made in the product (one block of columns) and before
    it."""
    rows, dim = data.draw(st.sampled_from([0, 1, 7, 33, 40])), data.draw(st.integers(1, 70))
    regions, dtype = data.draw(st.integers(1, 4)), data.draw(st.sampled_from(HALVES))
    terms = data.draw(st.sampled_from(["b", "a", "ab", "cb", "cab"]))
    options = {name: data.draw(st.booleans()) for name in ("lower", "per_row")}
    options["factor_dtype"] = data.draw(st.sampled_from([torch.float32, torch.float64]))
    assert step_error(rows, dim, regions, dtype, terms, **options) <= allowed("colored_step", dtype)


@pytest.mark.parametrize(
    ("rows", "dim", "regions"),
    [(130, 70, 1), (70, 129, 1), (40, 65, 1), (33, 33, 1), (40, 64, 1), (9, 65, 4), (9, 64, 4)],
)
def test_the_large_blocks(monkeypatch, rows, dim, regions):
    """The blocks of production sizes, with a remainder in every direction."""
    monkeypatch.setattr(kernel, "PROGRAMS", 1)
    expected = {130: (128, 64), 70: (128, 64), 40: (64, 64), 33: (64, 64), 9: (16, 64)}
    assert kernel.blocks_of(rows, dim, regions)[:2] == expected[rows]
    error = step_error(rows, dim, regions, torch.float32, "cab")
    assert error <= RATIO["colored_step"][torch.float32]


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize(("lower", "dtype"), [(True, torch.float32), (False, torch.float32), (True, torch.bfloat16)])
@pytest.mark.parametrize(("rows", "dim", "regions"), [(0, 5, 2), (1, 1, 1), (33, 70, 1), (40, 37, 3)])
def test_products_with_a_factor(transpose, lower, dtype, rows, dim, regions):
    factor = random_factor("lower" if lower else "full", regions, dim)
    v, region = randn(rows, dim).to(dtype), owners(rows, regions)
    matrices = numpy_factor(factor, region, rows, dim)
    wanted = np.einsum("bji,bj->bi" if transpose else "bij,bj->bi", matrices, v.double().numpy())
    assert error_ratio(kernel.apply_factor(v, factor, region, transpose, lower), wanted) <= allowed(
        "apply_factor", dtype
    )


def test_a_row_draws_the_same_whatever_the_batch():
    """The noise is the row's; which rows stand beside it, and how they are grouped, leaves its value to rounding."""
    factor, x = random_factor("lower", 3, 20), torch.zeros(12, 20)
    region = torch.tensor([2, 0, 0, 2, 2, 0, 2, 0, 2, 2, 0, 0])
    b = torch.ones(())
    whole = kernel.colored_step(x, None, None, None, None, b, factor, region, True, 3, 100, 5, 0)
    part = kernel.colored_step(x[4:7], None, None, None, None, b, factor, region[4:7], True, 3, 104, 5, 0)
    torch.testing.assert_close(part, whole[4:7], rtol=1e-6, atol=1e-6)


def test_nothing_to_colour_is_refused():
    with pytest.raises(ValueError, match=r"^colored_step: got neither"):
        kernel.colored_step(
            torch.zeros(2, 3), None, None, None, None, None, random_factor("lower", 1, 3), None, True, 0, 0, 0, 0
        )
