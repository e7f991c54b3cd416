"""The small Cholesky kernel on a GPU against the same text on the CPU. Skipped where there is no GPU."""

from __future__ import annotations

import pytest
import torch

from ansn import ops
from ansn.ops.native import cuda_cholesky, missing, module
from tests.ops.helpers import generator, randn
from tests.ops.test_cholesky_draw import covariances
from tests.tolerances import RATIO, rms_ratio

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that this torch sees"),
    pytest.mark.skipif(
        module is None or not module.build_info()["cuda"],
        reason=f"the native module holds no CUDA kernels ({missing or 'built without nvcc'})",
    ),
]


@pytest.mark.parametrize("dim", [1, 3, 4, 7, 16, 17, 31, 32, 33, 50, 64, 65, 100, 127, 128])
@pytest.mark.parametrize("kind", ["each", "one", "drawn"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_device_equals_serial(dim, kind, dtype):
    count, rows = {"each": (301, 301), "one": (1, 1000), "drawn": (37, 500)}[kind]
    matrix, x = covariances(count, dim), randn(rows, dim, seed=2, dtype=dtype)
    if count > 1:
        matrix[1, dim // 2, dim // 2] = -1.0
    region = torch.randint(count, (rows,), generator=generator(1)) if kind == "drawn" else None
    b = torch.linspace(0.5, 2, rows)
    want, factor, info = cuda_cholesky.cholesky_draw(matrix, x, b, region, True, 7, 2**32 - 5, 1, 2)
    with ops.backend("native"):
        got, found, status = ops.cholesky_draw(
            matrix.cuda(), x.cuda(), b=b.cuda(), region=None if region is None else region.cuda(),
            return_factor=True, seed=7, row=2**32 - 5, step=1, stream=2,
        )  # fmt: skip
        alone, _ = ops.cholesky(matrix.cuda())
    assert torch.equal(status.cpu(), info)
    good = info == 0
    assert rms_ratio(found.cpu()[good], factor[good]) <= 10 * RATIO["cholesky"][torch.float32]
    assert torch.equal(alone[good.cuda()], found[good.cuda()])
    assert torch.equal(torch.isnan(got.cpu()), torch.isnan(want))
    finite = ~torch.isnan(want)
    assert rms_ratio(got.cpu()[finite], want[finite]) <= 2 * RATIO["cholesky_draw"][dtype]


def test_no_synchronisation_and_other_streams():
    matrix, x = covariances(64, 32).cuda(), torch.zeros(64, 32, device="cuda")
    with ops.backend("native"):
        first, _ = ops.cholesky_draw(matrix, x, seed=3)
        torch.cuda.set_sync_debug_mode("error")
        try:
            with torch.cuda.stream(torch.cuda.Stream()):
                torch.cuda.current_stream().wait_stream(torch.cuda.default_stream())
                second, info = ops.cholesky_draw(matrix, x, seed=3, region=torch.arange(64, device="cuda"))
        finally:
            torch.cuda.set_sync_debug_mode("default")
        torch.cuda.synchronize()
    assert torch.equal(first, second)
    assert not info.any()
