"""The running covariance: a batch into one region, and one row into each of K regions."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from ansn import ops
from benchmarks import peers, workloads
from benchmarks.workloads import Workload

F32, F64 = "float32", "float64"


def _work(name: str, *size: int) -> Workload:
    """With a state of the dtype called so, which both sides compute in."""
    dtype = getattr(torch, name)
    work = workloads.update("cpu", *size)
    mean, scatter, x, count = work.arguments
    weight = torch.full((1 if x.ndim == mean.ndim + 1 else len(x),), count, dtype=torch.float64)
    regions = torch.arange(len(weight)) if len(weight) > 1 else None
    state = mean.to(dtype), scatter.to(dtype)
    held = [part.clone().reshape(len(weight), *part.shape[part.ndim - k :]) for k, part in enumerate(state, 1)]
    return dataclasses.replace(
        work, ours=lambda: ops.covariance_update_(weight, weight.clone(), *held, x, regions),
        arguments=(*state, x, count), dtype=dtype,
        nbytes=x.nbytes + dtype.itemsize * (scatter.numel() + scatter.numel() // x.shape[1]),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "dim", "dtype", "threads"),
    [(128, 64, F64, 0), (128, 784, F64, 0), (128, 784, F32, 0), (128, 3072, F64, 0), (128, 3072, F32, 0),
     (128, 784, F64, 1), (128, 784, F32, 1)],
)  # fmt: skip
def test_one_region(against, rows: int, dim: int, dtype: str, threads: int) -> None:
    """torch's product is of the whole matrix, in place; SciPy's ``syrk`` is of the triangle."""
    work = _work(dtype, rows, dim)
    mean, scatter, x, count = work.arguments
    other = mean.clone().numpy(), scatter.clone().numpy(), x.numpy(), count

    def jax(jax, scatter, x):
        batch = x.mean(0)
        rows = jax.numpy.concatenate((x - batch, 10.0 * batch[None]))
        return scatter + rows.T @ rows

    others = {"SciPy's syrk": lambda: peers.update(*other)}
    others |= peers.jax(jax, scatter, x) if dtype == F32 and not threads else {}
    aim = 1.6 if (dim, dtype, threads) == (784, F32, 0) else None
    name = f"covariance update {rows} x {dim} {dtype}"
    against(name, work, others, aim=aim, threads=threads, compiled=not threads)


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize(("regions", "dim"), [(1024, 64), (64, 784)])
def test_one_row_a_region(against, regions: int, dim: int, dtype: str) -> None:
    """The peers move both triangles."""
    work = _work(dtype, regions, dim, regions)
    mean, scatter, x, n = work.arguments
    spare = scatter.clone()

    def addcmul() -> None:
        delta = x.to(mean.dtype) - mean
        spare.addcmul_((n / (n + 1) * delta).unsqueeze(2), delta.unsqueeze(1))
        mean.add_(delta, alpha=1 / (n + 1))

    def jax(jax, scatter, x):
        return scatter + (n / (n + 1) * x)[:, :, None] * x[:, None, :]

    others = {"eager addcmul": addcmul} | (peers.jax(jax, scatter, x) if dtype == F32 else {})
    name = f"rank-1 update K = {regions}, d = {dim} {dtype}"
    against(name, work, others, aim=1.8 if dtype == F32 else None)
