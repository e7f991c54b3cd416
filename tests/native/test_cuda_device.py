"""The small Cholesky kernel on a GPU against the same text on the CPU. Skipped where there is no GPU."""

from __future__ import annotations

import pytest
import torch

from ansn import ops
from ansn.ops.native import cuda_cholesky, missing, module
from tests.ops.test_cholesky import known
from tests.tolerances import RATIO, rms_ratio

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that this torch sees"),
    pytest.mark.skipif(
        module is None or not module.build_info()["cuda"],
        reason=f"the native module holds no CUDA kernels ({missing or 'built without nvcc'})",
    ),
]


def covariances(count: int, dim: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    factor = known(count, dim)
    return (factor @ factor.mT).to(dtype)


@pytest.mark.parametrize("dim", [1, 3, 4, 7, 16, 17, 31, 32, 33, 50, 64, 65, 100, 127, 128])
@pytest.mark.parametrize("count", [1, 37, 301])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_device_equals_serial(dim, count, dtype):
    matrix = covariances(count, dim, dtype)
    if count > 1:
        matrix[1, dim // 2, dim // 2] = -1.0
    factor, info = cuda_cholesky.cholesky(matrix)
    with ops.backend("native"):
        found, status = ops.cholesky(matrix.cuda())
    assert torch.equal(status.cpu(), info)
    good = info == 0
    assert rms_ratio(found.cpu()[good], factor[good]) <= 10 * RATIO["cholesky"][dtype]


def test_no_synchronisation_and_other_streams():
    matrix = covariances(64, 32).cuda()
    with ops.backend("native"):
        first, _ = ops.cholesky(matrix)
        torch.cuda.set_sync_debug_mode("error")
        try:
            with torch.cuda.stream(torch.cuda.Stream()):
                torch.cuda.current_stream().wait_stream(torch.cuda.default_stream())
                second, info = ops.cholesky(matrix)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        torch.cuda.synchronize()
    assert torch.equal(first, second)
    assert not info.any()
