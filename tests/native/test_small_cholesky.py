"""The GPU's small Cholesky kernel, its lanes visited one after the other on the CPU, against NumPy in float64.

What a GPU does beyond this text is to run the lanes of a phase at once, so every result must be the same, bit for bit,
in whatever order they are visited.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ansn.ops._operands import sort_rows
from ansn.ops.native import cuda_cholesky
from tests.native import oracle
from tests.ops.helpers import error_ratio, generator, needs_native, randn
from tests.tolerances import RATIO, rms_ratio

pytestmark = needs_native
COUNTERS = (2**40 + 3, 2**32 - 2, 5, 1)  # seed, row, step, stream


def covariance(count: int, dim: int, seed: int = 0) -> torch.Tensor:
    root = randn(count, dim, dim, seed=seed) / math.sqrt(dim)
    return (root @ root.mT + 0.2 * torch.eye(dim, dtype=torch.float64)).float()


def serial(matrix, x, b=1.0, region=None, with_factor=True, visit=0, parts=1, counters=COUNTERS):
    """The kernel with NaN in all outputs, and with a given order of visits."""
    from ansn.ops.native._module import DTYPE, module

    count, dim = matrix.shape[:2]
    factor = torch.full((count if with_factor else 0, dim, dim), math.nan)
    info = torch.full((count,), -7, dtype=torch.int32)
    out = torch.full_like(x, math.nan)
    b = torch.as_tensor(b, dtype=torch.float32)
    order, offsets = (None, None) if region is None else sort_rows(region, count)
    module.small_cholesky_serial(
        matrix.data_ptr(), count, dim, factor.data_ptr() if with_factor else 0, info.data_ptr(), DTYPE[x.dtype],
        x.data_ptr(), out.data_ptr(), len(x), b.data_ptr(), b.ndim, 0 if order is None else order.data_ptr(),
        0 if offsets is None else offsets.data_ptr(), *counters, visit=visit, parts=parts,
    )  # fmt: skip
    return out, factor, info


def expected(matrix, x, b=1.0, region=None):
    factors = np.linalg.cholesky(matrix.double().numpy())
    rows, dim = x.shape
    index = np.zeros(rows, int) if len(matrix) == 1 else np.arange(rows)
    if region is not None:
        index = region.numpy()
    seed, row, step, stream = COUNTERS
    z = oracle.noise(seed, row, rows, dim, step, stream)
    push = np.einsum("rij,rj->ri", factors[index], z)
    return x.double().numpy() + np.reshape(np.asarray(b, np.float64), (-1, 1)) * push, factors


@pytest.mark.parametrize("dims", [range(1, 33), range(33, 65), range(65, 129)], ids=["to 32", "to 64", "to 128"])
def test_factor_and_draw_of_every_size(dims):
    for dim in dims:
        matrix, x = covariance(3, dim, seed=dim), randn(3, dim, seed=1, dtype=torch.float32)
        matrix = torch.where(torch.ones(dim, dim).triu(1).bool(), math.nan, matrix)  # only the lower triangle is read
        out, factor, info = serial(matrix, x)
        want, factors = expected(torch.nan_to_num(matrix).tril() + torch.nan_to_num(matrix).tril(-1).mT, x)
        assert info.tolist() == [0, 0, 0], dim
        assert torch.equal(factor, factor.tril()), dim
        product = torch.from_numpy(factors @ factors.transpose(0, 2, 1))
        assert rms_ratio(factor.double() @ factor.double().mT, product) <= RATIO["cholesky"][torch.float32], dim
        assert error_ratio(out, want) <= RATIO["cholesky_draw"][torch.float32], dim


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_rows_and_types(data):
    """Regions with many, few and no rows; one matrix for all; per-row b; storage types; parts that share the rows."""
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
    dim = data.draw(st.sampled_from([1, 4, 7, 16, 20, 33, 40, 65]))
    kind = data.draw(st.sampled_from(["each", "one", "drawn"]))
    count = 1 if kind == "one" else data.draw(st.integers(1, 9))
    rows = count if kind == "each" else data.draw(st.integers(0, 40))
    region = torch.randint(count, (rows,), generator=generator(rows)) if kind == "drawn" else None
    b = data.draw(st.sampled_from([0.0, 0.75, torch.linspace(0.5, 2, rows)]))
    matrix, x = covariance(count, dim), randn(rows, dim, seed=2, dtype=dtype)
    out, factor, info = serial(matrix, x, b, region, parts=data.draw(st.integers(1, 3)), with_factor=False)
    assert info.tolist() == [0] * count
    assert factor.numel() == 0
    assert error_ratio(out, expected(matrix, x, b, region)[0]) <= RATIO["cholesky_draw"][dtype]


@pytest.mark.parametrize("dim", [3, 13, 16, 30, 47, 64, 97, 128])
def test_the_lanes_order_changes_no_bit(dim):
    """Within a phase no lane reads what another writes."""
    matrix, x = covariance(2, dim), randn(7, dim, dtype=torch.float32)
    matrix[1, dim // 2, dim // 2] = -1.0
    region = torch.tensor([0, 0, 1, 0, 0, 0, 0])
    first = serial(matrix, x, region=region)
    assert first[2].tolist() == [0, dim // 2 + 1]
    for visit in (1, 5, 10, 63):  # 63 (31, 15): backwards
        again = serial(matrix, x, region=region, visit=visit)
        assert torch.equal(first[0].view(torch.int32), again[0].view(torch.int32))
        assert torch.equal(first[1].view(torch.int32), again[1].view(torch.int32))
        assert torch.equal(first[2], again[2])


@pytest.mark.parametrize("dim", [1, 4, 5, 18, 35, 66, 128])
@pytest.mark.parametrize("value", [-1.0, 0.0, math.nan])
def test_status_names_the_minor(dim, value):
    """And only the rows of that matrix are NaN. The minor is the one that LAPACK names."""
    for minor in {0, dim // 2, dim - 1}:
        matrix, x = covariance(3, dim), randn(3, dim, dtype=torch.float32)
        good = serial(matrix, x)
        matrix[1, minor, minor] = value
        out, factor, info = serial(matrix, x)
        reported = torch.linalg.cholesky_ex(matrix)[1]
        assert info.tolist() == [0, minor + 1, 0] == reported.tolist()
        assert torch.isnan(out[1]).all()
        assert torch.equal(out[[0, 2]], good[0][[0, 2]])
        assert torch.equal(factor[[0, 2]], good[1][[0, 2]])


@pytest.mark.parametrize("dim", [16, 64, 128])
def test_ill_conditioned(dim):
    """Condition number 1e5: the residual stays at float32's rounding, as LAPACK's does."""
    q = torch.linalg.qr(randn(4, dim, dim))[0]
    matrix = (q * torch.logspace(0, -5, dim, dtype=torch.float64)) @ q.mT
    matrix = (0.5 * (matrix + matrix.mT)).float()
    _, factor, info = serial(matrix, torch.zeros(0, dim))
    lapack = torch.linalg.cholesky(matrix).double()
    assert info.tolist() == [0] * 4
    residual = rms_ratio(factor.double() @ factor.double().mT, matrix.double())
    assert residual <= max(2 * rms_ratio(lapack @ lapack.mT, matrix.double()), 1e-7)


def test_rows_of_no_region_stay_unwritten():
    matrix, x = covariance(2, 5), randn(4, 5, dtype=torch.float32)
    out, _, _ = serial(matrix, x, region=torch.tensor([1, -1, 2, 0]))
    assert torch.isnan(out[[1, 2]]).all()
    assert torch.isfinite(out[[0, 3]]).all()


def test_the_launcher_passes_what_the_kernel_wants():
    """The function that queues on a GPU, given tensors on the CPU."""
    matrix, x = covariance(5, 12), randn(9, 12, dtype=torch.bfloat16)
    region = torch.tensor([4, 0, 0, 2, 4, 1, 3, 3, 3])
    b = torch.linspace(0.5, 1.5, 9)
    # transposed: equal, and not contiguous
    out, factor, info = cuda_cholesky.cholesky_draw(matrix.mT, x, b, region, True, *COUNTERS)
    want, factors = expected(matrix, x, b, region)
    assert error_ratio(out, want) <= RATIO["cholesky_draw"][torch.bfloat16]
    assert rms_ratio(factor, torch.from_numpy(factors)) <= 1e-4
    assert info.tolist() == [0] * 5
    alone, info = cuda_cholesky.cholesky(matrix)
    assert torch.equal(alone, factor)
    assert info.tolist() == [0] * 5
    for count, dim in ((0, 3), (2, 0)):
        assert cuda_cholesky.cholesky(torch.zeros(count, dim, dim))[0].shape == (count, dim, dim)


def test_wrong_arguments_are_named():
    from ansn.ops.native._module import module

    good = dict(matrix=8, matrices=1, d=4, factor=0, info=8, dtype="f32", x=8, out=8, rows=1, b=8, b_stride=0, order=0,
                offsets=0, seed=0, row0=0, step=0, stream=0)  # fmt: skip
    for name, value in [("d", 129), ("matrices", -1), ("rows", -1), ("dtype", "f64"), ("matrix", 0), ("info", 0),
                        ("x", 0), ("out", 0), ("b", 0), ("b_stride", 2), ("order", 8), ("parts", 0)]:  # fmt: skip
        with pytest.raises(ValueError, match=f"^{name} "):
            module.small_cholesky_serial(**{**good, name: value})
