"""Factor and draw in one: against the formula, with and without regions, and where a matrix has no factor."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ansn import ops
from tests.native import oracle
from tests.ops.helpers import DTYPES, back_ends, error_ratio, generator, needs_native, on, one_line, randn
from tests.ops.test_cholesky import known
from tests.tolerances import RATIO, rms_ratio


def covariances(regions: int, dim: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    factor = known(regions, dim, seed=seed)
    return (factor @ factor.mT).to(dtype)


def expected_draw(matrix, x, b, region, counters):
    """``x + b L z`` by NumPy's Cholesky and the NumPy Philox, in float64."""
    factors = np.linalg.cholesky(matrix.double().numpy())
    rows, dim = x.shape
    index = (np.arange(rows) if len(matrix) == rows else np.zeros(rows, int)) if region is None else region.numpy()
    z = oracle.noise(counters["seed"], counters["row"], rows, dim, counters["step"], counters["stream"])
    push = np.einsum("bij,bj->bi", factors[index], z)
    return x.double().numpy() + np.asarray(b, np.float64).reshape(-1, 1) * push, factors


@settings(max_examples=80, deadline=None, derandomize=True)
@given(data=st.data())
def test_every_back_end_equals_the_formula(data):
    dtype = data.draw(st.sampled_from(DTYPES))
    regions, dim = data.draw(st.integers(1, 35)), data.draw(st.sampled_from([1, 2, 3, 4, 5, 7, 8, 16, 17, 33]))
    kind = data.draw(st.sampled_from(["one each", "one for all", "drawn"]))
    rows = regions if kind == "one each" else data.draw(st.integers(0, 50))
    regions = 1 if kind == "one for all" else regions
    region = torch.randint(regions, (rows,), generator=generator(rows)) if kind == "drawn" else None
    matrix = covariances(regions, dim, torch.float64 if dtype == torch.float64 else torch.float32)
    x = randn(rows, dim, seed=3, dtype=dtype)
    b = data.draw(st.sampled_from([0, 0.5, torch.tensor(0.25), torch.linspace(0.5, 2, rows)]))
    counters = {
        "seed": data.draw(st.integers(0, 2**63 - 1)),
        "row": data.draw(st.sampled_from([0, 9, 2**32 - 3])),
        "step": data.draw(st.integers(0, 2**32 - 1)),
        "stream": ops.LANGEVIN,
    }
    expected, factors = expected_draw(matrix, x, b, region, counters)
    for name in back_ends("cholesky_draw"):
        got = on(name, lambda: ops.cholesky_draw(matrix, x, b=b, region=region, return_factor=True, **counters))
        if got is None:
            continue
        out, factor, info = got
        assert out.dtype == dtype
        assert info.dtype == torch.int32
        assert info.tolist() == [0] * regions
        assert error_ratio(out, expected) <= RATIO["cholesky_draw"][dtype], (name, dtype, kind)
        # The factor itself is as far off as the matrix's condition number lets it be.
        assert error_ratio(factor, factors) <= 100 * RATIO["cholesky"][matrix.dtype]
        assert torch.equal(factor, factor.tril())
        alone = on(name, lambda: ops.cholesky_draw(matrix, x, b=b, region=region, **counters))
        assert torch.equal(alone[0], out)


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [20, 3, 200])
def test_native_runs_what_it_is_for(dtype, rows):
    """The test above skips what a back end refuses; these it may not refuse."""
    matrix, x = covariances(20, 11), randn(rows, 11, dtype=dtype)
    region = None if rows == 20 else torch.randint(20, (rows,), generator=generator())
    counters = {"seed": 1, "row": 2, "step": 3, "stream": 1}
    with ops.backend("native"):
        out, _ = ops.cholesky_draw(matrix, x, region=region, **counters)
    expected, _ = expected_draw(matrix, x, 1.0, region, counters)
    assert error_ratio(out, expected) <= RATIO["cholesky_draw"][dtype]


@pytest.mark.parametrize("name", back_ends("cholesky_draw"))
@pytest.mark.parametrize("rows", [37, 5, 400])
def test_a_matrix_without_factor_spoils_its_rows_only(name, rows):
    """Status as LAPACK gives it; every other row stays bit for bit what it was."""
    matrix, x = covariances(37, 6), randn(rows, 6, dtype=torch.float32)
    region = None if rows == 37 else torch.randint(37, (rows,), generator=generator())
    good, status = on(name, lambda: ops.cholesky_draw(matrix, x, region=region, seed=1))
    assert not status.any()
    matrix[3, 2, 2] = -1.0
    matrix[20] = float("nan")
    matrix[36, 5, 5] = 0.0
    out, info = on(name, lambda: ops.cholesky_draw(matrix, x, region=region, seed=1))
    assert {k: int(info[k]) for k in range(37) if info[k]} == {3: 3, 20: 1, 36: 6}
    bad = torch.isin(torch.arange(37) if region is None else region, torch.tensor([3, 20, 36]))
    assert bad.any()
    assert out[bad].isnan().all()
    assert torch.equal(out[~bad], good[~bad])


@pytest.mark.parametrize("name", back_ends("cholesky_draw"))
def test_only_the_lower_triangle_is_read(name):
    matrix, x = covariances(5, 19), randn(5, 19, dtype=torch.float32)
    poisoned = torch.where(torch.ones(19, 19).triu(1).bool(), float("nan"), matrix)
    out, info = on(name, lambda: ops.cholesky_draw(poisoned, x))
    assert not info.any()
    assert torch.equal(out, on(name, lambda: ops.cholesky_draw(matrix, x))[0])


@pytest.mark.parametrize("name", back_ends("cholesky_draw"))
def test_a_row_does_not_know_its_batch(name):
    matrix, x = covariances(40, 9), randn(40, 9, dtype=torch.float32)
    whole, _ = on(name, lambda: ops.cholesky_draw(matrix, x, seed=1, row=100))
    part, _ = on(name, lambda: ops.cholesky_draw(matrix[3:30], x[3:30], seed=1, row=103))
    assert rms_ratio(part, whole[3:30]) < 1e-6


@pytest.mark.parametrize("name", back_ends("cholesky_draw"))
def test_draws_have_the_covariance(name):
    """40000 draws: every entry within five standard errors."""
    matrix = covariances(1, 4)
    draws, _ = on(name, lambda: ops.cholesky_draw(matrix, torch.zeros(40000, 4)))
    products = draws.double().unsqueeze(2) * draws.double().unsqueeze(1)
    error = products.std(0) / 200
    assert bool(((products.mean(0) - matrix[0].double()).abs() <= 5 * error).all())


@pytest.mark.parametrize("name", back_ends("cholesky_draw"))
def test_shapes_strides_and_no_rows(name):
    matrix, x = covariances(4, 6), randn(4, 1, 2, 3, dtype=torch.float32)
    out, _ = on(name, lambda: ops.cholesky_draw(matrix, x))
    assert out.shape == x.shape
    strided = matrix.mT.contiguous().mT
    assert torch.equal(on(name, lambda: ops.cholesky_draw(strided, x.reshape(4, 6)))[0], out.reshape(4, 6))
    region = torch.empty(0, dtype=torch.int64)
    empty, factor, info = on(
        name, lambda: ops.cholesky_draw(matrix, torch.empty(0, 2, 3), region=region, return_factor=True)
    )
    assert empty.shape == (0, 2, 3)
    assert rms_ratio(factor @ factor.mT, matrix) < RATIO["cholesky"][torch.float32]
    assert info.tolist() == [0] * 4


def test_a_gradient_is_refused():
    matrix, x = covariances(2, 3), torch.zeros(2, 3)
    for name, value in (("matrix", matrix), ("x", x)):
        with pytest.raises(ValueError, match="no gradient") as error:
            ops.cholesky_draw(**{"matrix": matrix, "x": x, name: value.clone().requires_grad_()})
        one_line(error, name)
    with torch.no_grad():
        out, _ = ops.cholesky_draw(matrix, x.clone().requires_grad_())
    assert not out.requires_grad


@pytest.mark.parametrize(
    ("argument", "kind", "options"),
    [
        ("matrix", TypeError, {"matrix": torch.zeros(3, 4, 4).half()}),
        ("matrix", ValueError, {"matrix": torch.zeros(3, 4, 5)}),
        ("matrix", ValueError, {"matrix": torch.zeros(3, 5, 5)}),
        ("x", TypeError, {"x": torch.zeros(3, 4, dtype=torch.int32)}),
        ("x", ValueError, {"x": torch.zeros(3)}),
        ("region", ValueError, {"matrix": torch.zeros(2, 4, 4)}),
        ("region", ValueError, {"region": torch.tensor([0, 1, 3])}),
        ("region", ValueError, {"region": torch.tensor([0, 1])}),
        ("b", ValueError, {"b": torch.ones(4)}),
        ("b", TypeError, {"b": "big"}),
        ("seed", ValueError, {"seed": -1}),
    ],
)
def test_wrong_arguments_are_named(argument, kind, options):
    with pytest.raises(kind) as error:
        ops.cholesky_draw(**{"matrix": torch.eye(4).repeat(3, 1, 1), "x": torch.zeros(3, 4), **options})
    one_line(error, argument)
