"""The separable structure: step, filter and moments, and the denoiser of a mixture of K regions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ansn import ops
from benchmarks.workloads import Workload

B, C, COUNT = 128, 0.1, 1000.0
IMAGE, DIGIT = (3, 32, 32), (1, 28, 28)
PLACES = pytest.mark.parametrize(("shape", "threads"), [(IMAGE, 0), (DIGIT, 0), (IMAGE, 1)])


def _basis(shape: tuple[int, ...], regions: int = 1) -> ops.Axes:
    axes = [a for a, n in enumerate(shape) if n > 1]
    bases = (torch.linalg.qr(torch.randn(regions, shape[a], shape[a]))[0] for a in axes)  # by columns
    return ops.Axes([basis.contiguous() for basis in bases], axes, shape)


def _turn(v: Tensor, q: ops.Axes, inward: bool) -> Tensor:
    """``Q v`` or ``Q^T v`` of ``[(K,) B, d]`` as a user of torch writes it: few large products, nothing is moved."""
    (channels, height, width), (*first, rows, columns) = q.shape, q.bases
    rows, columns = (rows, columns) if v.ndim == 3 else (rows[0], columns[0])
    v = v.reshape(*columns.shape[:-2], -1, width) @ (columns if inward else columns.mT)
    v = v.reshape(*rows.shape[:-2], -1, height, width)
    v = (rows.mT if inward else rows).unsqueeze(-3) @ v
    if first:
        v = (first[0][0].mT if inward else first[0][0]) @ v.reshape(-1, channels, height * width)
    return v.reshape(*rows.shape[:-2], -1, channels * height * width)


def _name(what: str, shape: tuple[int, ...]) -> str:
    return f"{what} {B} x {' x '.join(map(str, shape))}"


def _flops(shape: tuple[int, ...], turns: float = 1.0) -> int:
    """Of as many products with Q, for each row."""
    return int(turns * B * 2 * math.prod(shape) * sum(n for n in shape if n > 1))


def _rows(shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows, other rows, a number for each coordinate, a level for each row."""
    dim = math.prod(shape)
    return torch.randn(B, dim), torch.randn(B, dim), torch.rand(1, dim) + 0.1, torch.rand(B) + 0.1


@PLACES
def test_step(against, shape: tuple[int, ...], threads: int) -> None:
    """``x + c (D - x) + b Q (s z)``."""
    q, (x, denoised, deviation, b) = _basis(shape), _rows(shape)

    def plain(x: Tensor, denoised: Tensor, deviation: Tensor, b: Tensor) -> Tensor:
        return x + C * (denoised - x) + _turn(deviation * (b[:, None] * torch.randn_like(x)), q, False)

    def ours() -> Tensor:
        return ops.separable_step(x, denoised, q=q, deviation=deviation, c=C, b=b, seed=1)

    given = x, denoised, deviation, b
    work = Workload("separable_step", "", {}, ours, plain, given, 3 * x.nbytes, _flops(shape))
    against(_name("separable step", shape), work, aim=None if threads else 3, threads=threads)


def test_step_beside_our_dense_one(against) -> None:
    q, (x, denoised, deviation, b) = _basis(IMAGE), _rows(IMAGE)
    factor = torch.eye(x.shape[1]).add_(0.01).tril_()[None]
    contenders = {
        "ansn": lambda: ops.separable_step(x, denoised, q=q, deviation=deviation, c=C, b=b, seed=1),
        "ansn's dense step": lambda: ops.colored_step(x, denoised, c=C, b=b, factor=factor, seed=1),
    }
    against(_name("separable, beside dense, step", IMAGE), contenders, aim=20)


@PLACES
def test_filter(against, shape: tuple[int, ...], threads: int) -> None:
    """``x - Q (1 / (l / tau^2 + 1)) Q^T (x - m)``."""
    q, (x, _, values, tau), center = _basis(shape), _rows(shape), torch.randn(1, math.prod(shape))

    def plain(x: Tensor, values: Tensor, tau: Tensor, center: Tensor) -> Tensor:
        return x - _turn(_turn(x - center, q, True) / (values / (tau * tau)[:, None] + 1), q, False)

    def ours() -> Tensor:
        return ops.separable_apply(x, q, weights=values, tau=tau, center=center, rest=True)

    work = Workload(
        "separable_apply", "", {}, ours, plain, (x, values, tau, center), 2 * x.nbytes, _flops(shape, turns=2)
    )
    against(_name("separable filter", shape), work, aim=None if threads else 3, threads=threads)


@PLACES
def test_update(against, shape: tuple[int, ...], threads: int) -> None:
    """Moments in the basis, float64: a product with Q, and of each axis the lower triangle of its scatter."""
    q, x, dim = _basis(shape), torch.randn(B, math.prod(shape)), math.prod(shape)
    q = q._replace(bases=[basis.double() for basis in q.bases])

    def state() -> list[Tensor]:
        return [torch.zeros(1, n, dtype=torch.float64) for n in (dim, dim)] + [
            torch.zeros(1, shape[a], shape[a], dtype=torch.float64) for a in q.axes
        ]

    weight = torch.full((1,), COUNT, dtype=torch.float64)
    mean, scatter, *along = state()

    def plain(x: Tensor, mean: Tensor, scatter: Tensor, *along: Tensor) -> None:
        wide = x.double()
        batch = wide.mean(0)
        rows = torch.cat((wide - batch, (COUNT * B / (COUNT + B)) ** 0.5 * (batch - mean)))
        scatter.add_(_turn(rows, q, True).square().sum(0))
        for a, sums in zip(q.axes, along, strict=True):
            unfolded = rows.reshape(-1, *shape).movedim(a + 1, 0).flatten(1)
            sums.add_(unfolded @ unfolded.mT, alpha=shape[a] / dim)
        mean.add_(batch - mean, alpha=B / (COUNT + B))

    def ours() -> None:
        ops.separable_update_(weight, weight.clone(), mean, scatter, along, x, q)

    nbytes = x.nbytes + 2 * sum(part.nbytes for part in (mean, scatter, *along))
    work = Workload(
        "separable_update_", "", {}, ours, plain, (x, *state()), nbytes, _flops(shape, turns=1.5), dtype=torch.float64
    )
    against(_name("separable update", shape), work, aim=None if threads else 3, threads=threads)


@pytest.mark.parametrize(("sigma", "threads"), [(0.1, 0), (3.0, 0), (0.1, 1)])
def test_mixture(against, sigma: float, threads: int) -> None:
    """K = 10. At a low level most rows are one region's, and the way back is one product, not K."""
    regions, dim = 10, math.prod(DIGIT)
    q, x, sigma2 = _basis(DIGIT, regions), torch.randn(B, dim), torch.full((B,), sigma**2)
    center, variances = torch.randn(regions, dim), torch.rand(regions, dim)
    logs = torch.zeros(regions, dtype=torch.float64)

    def plain(x: Tensor, center: Tensor, variances: Tensor, logs: Tensor, sigma2: Tensor) -> Tensor:
        inside = _turn(x - center[:, None], q, True)
        noisy = variances[:, None] + sigma2[:, None]
        misfit = (inside.square() / noisy).sum(2).double() + noisy.log().sum(2).double()
        shares = (logs[:, None] - 0.5 * misfit).softmax(0).to(x.dtype)
        return x - _turn(shares[:, :, None] * sigma2[:, None] / noisy * inside, q, False).sum(0)

    def ours() -> tuple[Tensor, Tensor]:
        return ops.mixture(x, q, center, variances, logs, sigma2)

    back = int((ours()[1].softmax(0) >= 1e-12).sum()) / B
    work = Workload(
        "mixture", "", {}, ours, plain, (x, center, variances, logs, sigma2),
        2 * x.nbytes + center.nbytes + variances.nbytes, _flops(DIGIT, turns=regions + back),
    )  # fmt: skip
    name = f"mixture K = {regions}, {B} x {' x '.join(map(str, DIGIT))}, sigma {sigma:g}"
    against(name, work, aim=None if threads else 3, threads=threads)
