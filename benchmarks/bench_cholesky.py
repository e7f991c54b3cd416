"""Many small Cholesky factors; "cold" goes round more matrices than the last cache holds."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import ansn.ops  # noqa: F401 - defines torch.ops.ansn
from benchmarks import peers, workloads

F32, F64 = "float32", "float64"


def _last_cache() -> int:
    """Bytes; a large one where the system does not say."""
    found = [path.read_text() for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    return max((1024 * int(text.strip().removesuffix("K")) for text in found), default=1 << 26)


@pytest.mark.parametrize(
    ("count", "dim", "dtype", "cold", "threads"),
    [(1024, 16, F32, 0, 0), (1024, 32, F32, 0, 0), (1024, 64, F32, 0, 0), (256, 128, F32, 0, 0),
     (1024, 16, F64, 0, 0), (1024, 32, F64, 0, 0), (1024, 64, F64, 0, 0), (10, 64, F64, 0, 0), (1, 64, F64, 0, 0),
     *itertools.product([1024], [16, 32, 64], [F32], [0], [1]),
     *itertools.product([1024], [16, 32, 64], [F32], [1], [0, 1]), (1024, 32, F64, 1, 0)],
)  # fmt: skip
def test_factor(against, count: int, dim: int, dtype: str, cold: bool, threads: int) -> None:
    """``L L^T = A``. The bytes are the lower triangles read and whole factors written."""
    work = workloads.factorise("cpu", count, dim)
    matrix = work.arguments[0].to(getattr(torch, dtype))
    held = [matrix.clone() for _ in range(1 + 2 * _last_cache() // matrix.nbytes)] if cold else [matrix]
    turns: Iterator[Tensor] = itertools.cycle(held)

    def of(function: Callable[[Tensor], object]) -> Callable[[], object]:
        return lambda: function(next(turns))

    def jax(jax, matrix):
        return jax.numpy.linalg.cholesky(matrix)

    others = {"ansn": of(torch.ops.ansn.cholesky), "eager": of(torch.linalg.cholesky_ex)}
    others["NumPy"] = of(lambda matrix: np.linalg.cholesky(matrix.numpy()))
    others |= peers.jax(jax, matrix, carried=False) if dtype == F32 and not (cold or threads) else {}
    aim = 8 if count == 1024 and dtype == F32 and not (cold or threads) else None
    name = f"{'cold ' * cold}Cholesky{', few,' if count < 100 else ''} {count} x {dim} {dtype}"
    against(name, others, nbytes=0 if cold else work.nbytes * matrix.itemsize // 4, aim=aim, threads=threads)
