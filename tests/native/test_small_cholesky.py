"""The GPU's small Cholesky kernel, its lanes visited one after the other on the CPU, against NumPy in float64.

What a GPU does beyond this text is to run the lanes of a phase at once, so every result must be the same, bit for bit,
in whatever order they are visited.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ansn.ops.native import cuda_cholesky
from ansn.ops.native._module import DTYPE, module
from tests.ops.helpers import needs_native, randn
from tests.tolerances import RATIO, rms_ratio

pytestmark = needs_native
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def covariance(count: int, dim: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    root = randn(count, dim, dim, seed=dim) / math.sqrt(dim)
    return (root @ root.mT + 0.2 * torch.eye(dim, dtype=torch.float64)).to(dtype)


def serial(matrix, visit=0):
    """The kernel with NaN in all outputs, and with a given order of visits."""
    count, dim = matrix.shape[:2]
    factor = torch.full_like(matrix, math.nan)
    info = torch.full((count,), -7, dtype=torch.int32)
    work = matrix.data_ptr(), count, dim, factor.data_ptr(), info.data_ptr()
    module.small_cholesky_serial(DTYPE[matrix.dtype], *work, visit=visit)
    return factor, info


@each_dtype
@pytest.mark.parametrize("dims", [range(1, 33), range(33, 65), range(65, 129)], ids=["to 32", "to 64", "to 128"])
def test_factor_of_every_size(dims, dtype):
    for dim in dims:
        whole = covariance(3, dim, dtype)
        # only the lower triangle is read
        factor, info = serial(torch.where(torch.ones(dim, dim).triu(1).bool(), math.nan, whole))
        assert info.tolist() == [0, 0, 0], dim
        assert torch.equal(factor, factor.tril()), dim
        allowed = RATIO["cholesky"][dtype]
        assert rms_ratio(factor.double() @ factor.double().mT, whole) <= allowed, dim
        assert rms_ratio(factor, torch.from_numpy(np.linalg.cholesky(whole.double().numpy()))) <= 10 * allowed, dim


@each_dtype
@pytest.mark.parametrize("dim", [3, 13, 16, 30, 47, 64, 97, 128])
def test_the_lanes_order_changes_no_bit(dim, dtype):
    """Within a phase no lane reads what another writes."""
    matrix = covariance(2, dim, dtype)
    matrix[1, dim // 2, dim // 2] = -1.0
    first = serial(matrix)
    assert first[1].tolist() == [0, dim // 2 + 1]
    for visit in (1, 5, 10, 127):  # 127 (63, 31, 15): backwards
        again = serial(matrix, visit=visit)
        assert torch.equal(first[0].view(torch.uint8), again[0].view(torch.uint8))
        assert torch.equal(first[1], again[1])


@pytest.mark.parametrize("dim", [1, 4, 5, 18, 35, 66, 128])
@pytest.mark.parametrize("value", [-1.0, 0.0, math.nan])
def test_status_names_the_minor(dim, value):
    """And the factors of the others keep their bits. The minor is the one that LAPACK names."""
    for minor in {0, dim // 2, dim - 1}:
        matrix = covariance(3, dim)
        good, _ = serial(matrix)
        matrix[1, minor, minor] = value
        factor, info = serial(matrix)
        reported = torch.linalg.cholesky_ex(matrix)[1]
        assert info.tolist() == [0, minor + 1, 0] == reported.tolist()
        assert torch.equal(factor[[0, 2]], good[[0, 2]])


@pytest.mark.parametrize("dim", [16, 64, 128])
def test_ill_conditioned(dim):
    """Condition number 1e5: the residual stays at float32's rounding, as LAPACK's does."""
    q = torch.linalg.qr(randn(4, dim, dim))[0]
    matrix = (q * torch.logspace(0, -5, dim, dtype=torch.float64)) @ q.mT
    matrix = (0.5 * (matrix + matrix.mT)).float()
    factor, info = serial(matrix)
    lapack = torch.linalg.cholesky(matrix).double()
    assert info.tolist() == [0] * 4
    residual = rms_ratio(factor.double() @ factor.double().mT, matrix.double())
    assert residual <= max(2 * rms_ratio(lapack @ lapack.mT, matrix.double()), 1e-7)


@each_dtype
def test_the_launcher_passes_what_the_kernel_wants(dtype):
    """The function that queues on a GPU, given tensors on the CPU."""
    matrix = covariance(5, 12, dtype)
    factor, info = cuda_cholesky.cholesky(matrix.mT)  # transposed: equal, and not contiguous
    assert torch.equal(factor, serial(matrix)[0])
    assert info.tolist() == [0] * 5
    for count, dim in ((0, 3), (2, 0)):
        assert cuda_cholesky.cholesky(torch.zeros(count, dim, dim))[0].shape == (count, dim, dim)


def test_wrong_arguments_are_named():
    good = dict(dtype="f32", matrix=8, matrices=1, d=4, factor=8, info=8)
    for name, value in [("dtype", "f16"), ("d", 129), ("matrices", -1), ("matrix", 0), ("factor", 0), ("info", 0)]:
        with pytest.raises(ValueError, match=f"^{name} "):
            module.small_cholesky_serial(**{**good, name: value})
