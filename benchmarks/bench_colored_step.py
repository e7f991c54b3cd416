"""The coloured step and its factor alone: no factor, diagonal, dense, by region."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ansn import ops
from benchmarks import peers, workloads

SIZES = [(128, 784, 0), (1024, 784, 0), (128, 3072, 0), (128, 784, 1), (128, 3072, 1)]


@pytest.mark.parametrize(("rows", "dim", "threads"), SIZES)
def test_langevin_step(against, rows: int, dim: int, threads: int) -> None:
    """``x + c (D - x) + b z``. torch's and NumPy's normals are serial; JAX's are not."""
    work = workloads.langevin("cpu", rows, dim)
    x, denoised = work.arguments[:2]
    z, out = torch.empty_like(x), torch.empty_like(x)
    random = np.random.Generator(np.random.SFC64(0))

    def numpy() -> None:
        to, noise = out.numpy(), z.numpy()
        random.standard_normal(dtype=np.float32, out=noise)
        np.subtract(denoised.numpy(), x.numpy(), out=to)
        to *= np.float32(0.1)
        to += x.numpy()
        noise *= np.float32(0.3)
        to += noise

    def jax(jax, x, denoised):
        return x + 0.1 * (denoised - x) + 0.3 * jax.random.normal(jax.random.key(0), x.shape)

    others = {"eager in place": lambda: torch.lerp(x, denoised, 0.1, out=out).add_(z.normal_(), alpha=0.3)}
    others |= {"NumPy": numpy} | ({} if threads else peers.jax(jax, x, denoised))
    name = f"Langevin step {rows} x {dim}"
    against(name, work, others, aim=None if threads else 5, threads=threads, compiled=not threads)


@pytest.mark.parametrize(("rows", "dim", "threads"), SIZES[::2] + SIZES[3:4])
def test_diagonal_draw(against, rows: int, dim: int, threads: int) -> None:
    """``x + tau L z``, L diagonal and a level for each row: the perturbation of the per-pixel control."""
    work = workloads.diagonal_draw("cpu", rows, dim)
    against(f"diagonal draw {rows} x {dim}", work, threads=threads, compiled=not threads)


@pytest.mark.parametrize(("rows", "dim", "threads"), [(16, 784, 0), *SIZES])
def test_dense_draw(against, rows: int, dim: int, threads: int) -> None:
    """``x + tau L z``."""
    work = workloads.dense_draw("cpu", rows, dim)
    aim = 1.8 if rows == 128 and not threads else None
    against(f"dense draw {rows} x {dim}", work, aim=aim, threads=threads, compiled=(rows, dim) == (128, 784))


@pytest.mark.parametrize(("rows", "dim", "threads"), SIZES[::2] + SIZES[3:4])
def test_product(against, rows: int, dim: int, threads: int) -> None:
    """``L v`` of a given v; torch's product is of the whole matrix, SciPy's of the triangle."""
    work = workloads.color("cpu", rows, dim)
    v, factor = (tensor.numpy() for tensor in work.arguments)
    others = {"SciPy's strmm": lambda: peers.product(factor, v)}
    against(f"factor product {rows} x {dim}", work, others, threads=threads, compiled=False)


@pytest.mark.parametrize(("rows", "dim", "regions"), [(128, 784, 10), (1024, 64, 100)])
def test_dense_draw_by_region(against, rows: int, dim: int, regions: int) -> None:
    """Each row has its region's factor; the peer loops over the regions present, as the reference does."""
    x, tau, region = torch.randn(rows, dim), torch.tensor(0.5), torch.randint(regions, (rows,))
    factor = torch.linalg.cholesky(torch.eye(dim) + 0.5).repeat(regions, 1, 1)

    def looped() -> torch.Tensor:
        out, z = x.clone(), torch.randn_like(x)
        for k in region.unique():
            index = (region == k).nonzero().squeeze(1)
            out[index] += tau * z[index] @ factor[k].T
        return out

    def ours() -> torch.Tensor:
        return ops.colored_step(x, b=tau, factor=factor, region=region, seed=1, step=2)

    against(f"dense draw by region {rows} x {dim}, {regions} regions", {"ansn": ours, "eager loop": looped})
