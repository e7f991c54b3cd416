"""One call of every operation at a given size, beside what a user would write in torch, with the bytes and flops
counted: what the scaling plots and the GPU check time.

Counts are the least possible: each input read once, each output written once, and of a triangle only its half.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ansn import ops

Call = Callable[[], object]


@dataclass(frozen=True)
class Workload:
    """``ours`` and ``eager`` are calls over fixed inputs; ``plain`` and ``arguments`` are eager's function, to compile;
    ``vendor`` is the best that the vendor's library alone does. ``dtype`` is the one that the flops are done in."""

    operation: str
    name: str
    size: dict[str, int]
    ours: Call
    plain: Callable[..., object]
    arguments: tuple
    nbytes: int
    flops: int = 0
    vendor: tuple[str, Call] | None = None
    dtype: torch.dtype = field(default=torch.float32)

    def eager(self) -> object:
        return self.plain(*self.arguments)


def _langevin(x: Tensor, denoised: Tensor, c: Tensor, b: Tensor) -> Tensor:
    return x + c * (denoised - x) + b * torch.randn_like(x)


def _diagonal(x: Tensor, scale: Tensor, tau: Tensor) -> Tensor:
    return x + tau * scale * torch.randn_like(x)


def _dense(x: Tensor, factor: Tensor, tau: Tensor) -> Tensor:
    return x + tau * (torch.randn_like(x) @ factor.mT)


def _dense_regions(x: Tensor, factor: Tensor, tau: Tensor) -> Tensor:
    # Rows arrive grouped, as many for each region: the batched product at its best.
    z = torch.randn_like(x).reshape(factor.shape[0], -1, x.shape[1])
    return x + tau * (z @ factor.mT).reshape(x.shape)


def _loss(prediction: Tensor, target: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    # The gradient written out, which is less work than autograd's.
    residual = prediction - target
    scaled = (weight / prediction.shape[1]).unsqueeze(1) * residual
    return (scaled * residual).sum(1), 2.0 * scaled


def _update(mean: Tensor, scatter: Tensor, x: Tensor, count: float) -> None:
    b = x.shape[0]
    wide = x.to(mean.dtype)
    batch = wide.mean(0)
    delta = batch - mean
    rows = torch.cat((wide - batch, ((count * b / (count + b)) ** 0.5 * delta).unsqueeze(0)))
    scatter.addmm_(rows.mT, rows)
    mean.add_(delta, alpha=b / (count + b))


def _rank_one(mean: Tensor, scatter: Tensor, x: Tensor, count: float) -> None:
    delta = x.to(mean.dtype) - mean
    scatter.baddbmm_((count / (count + 1.0) * delta).unsqueeze(2), delta.unsqueeze(1))
    mean.add_(delta, alpha=1.0 / (count + 1.0))


def _update_diagonal(mean: Tensor, scatter: Tensor, x: Tensor, count: float) -> None:
    b = x.shape[0]
    wide = x.to(mean.dtype)
    batch = wide.mean(0)
    delta = batch - mean
    scatter.add_((wide - batch).square().sum(0) + count * b / (count + b) * delta.square())
    mean.add_(delta, alpha=b / (count + b))


def _factor(matrix: Tensor) -> Tensor:
    return torch.linalg.cholesky_ex(matrix)[0]


def _generator(device: str) -> torch.Generator:
    return torch.Generator(device).manual_seed(0)


def _randn(device: str, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=_generator(device), device=device)


def _spd(device: str, count: int, dim: int) -> Tensor:
    a = _randn(device, count, dim, dim) / (2 * dim**0.5)
    return a @ a.mT + torch.eye(dim, device=device)


def langevin(device: str, rows: int, dim: int) -> Workload:
    """``x + c (D - x) + b z``."""
    x, denoised, c, b = _randn(device, rows, dim), _randn(device, rows, dim), *torch.tensor([0.1, 0.3], device=device)
    ours = functools.partial(ops.colored_step, x, denoised, c=c, b=b, seed=1, step=2)
    size = {"B": rows, "d": dim}
    return Workload("colored_step", "Langevin step", size, ours, _langevin, (x, denoised, c, b), 12 * rows * dim)


def diagonal_draw(device: str, rows: int, dim: int) -> Workload:
    """``x + tau L z``, L diagonal, a level for each row."""
    x, scale = _randn(device, rows, dim), _randn(device, 1, dim).abs() + 0.5
    tau = _randn(device, rows).abs()
    ours = functools.partial(ops.colored_step, x, b=tau, factor=scale, seed=1, step=2)
    arguments = (x, scale, tau.unsqueeze(1))
    return Workload("colored_step", "diagonal draw", {"B": rows, "d": dim}, ours, _diagonal, arguments, 8 * rows * dim)


def dense_draw(device: str, rows: int, dim: int, regions: int = 1) -> Workload:
    """``x + tau L_k z``, L_k lower triangular."""
    x, tau = _randn(device, rows, dim), torch.tensor(0.7, device=device)
    factor = torch.linalg.cholesky(_spd(device, regions, dim))
    region = torch.arange(rows, device=device) // (rows // regions) if regions > 1 else None
    ours = functools.partial(ops.colored_step, x, b=tau, factor=factor, region=region, seed=1, step=2)
    z, matrix = _randn(device, rows, dim), factor[0].mT.contiguous()
    vendor = ("mm alone", functools.partial(torch.mm, z, matrix)) if regions == 1 else None
    size = {"B": rows, "d": dim} | ({"K": regions} if regions > 1 else {})
    return Workload(
        "colored_step", "dense draw" if regions == 1 else "dense draw, regions", size, ours,
        _dense if regions == 1 else _dense_regions, (x, factor[0] if regions == 1 else factor, tau),
        4 * (regions * dim * (dim + 1) // 2 + 2 * rows * dim), rows * dim * (dim + 1), vendor,
    )  # fmt: skip


def color(device: str, rows: int, dim: int) -> Workload:
    """``L v``, a given right-hand side."""
    v, factor = _randn(device, rows, dim), torch.linalg.cholesky(_spd(device, 1, dim))
    ours = functools.partial(ops.apply_factor, v, factor)
    return Workload(
        "apply_factor", "apply factor", {"B": rows, "d": dim}, ours, lambda v, factor: v @ factor.mT, (v, factor[0]),
        4 * (dim * (dim + 1) // 2 + 2 * rows * dim), rows * dim * (dim + 1),
    )  # fmt: skip


def update(device: str, rows: int, dim: int, regions: int = 1, kind: str = "dense") -> Workload:
    """The running covariance, float32 state: one region with ``rows`` rows, or ``regions`` with one row each."""
    count = 1000.0
    x = _randn(device, rows, dim)
    shape = (regions, dim) if kind == "diagonal" else (regions, dim, dim)
    mean, scatter = torch.zeros(regions, dim, device=device), torch.zeros(shape, device=device)
    weight = torch.full((regions,), count, dtype=torch.float64, device=device)
    region = torch.arange(regions, device=device) if regions > 1 else None
    ours = functools.partial(ops.covariance_update_, weight, weight.clone(), mean, scatter, x, region)
    state: tuple = (mean.clone(), scatter.clone(), x, count)
    if regions > 1:
        size, name, plain = {"K": regions, "d": dim}, "rank-1 update", _rank_one
        entries, flops = regions * (dim * (dim + 1) // 2), 0
    elif kind == "diagonal":
        size, name, plain, entries, flops = {"B": rows, "d": dim}, "diagonal update", _update_diagonal, dim, 0
    else:
        size, name, plain = {"B": rows, "d": dim}, f"rank-{rows} update", _update
        entries, flops = dim * (dim + 1) // 2, rows * dim * (dim + 1)
    if regions == 1:
        state = (mean[0].clone(), scatter[0].clone(), x, count)
    return Workload(
        "covariance_update_", name, size, ours, plain, state, 4 * (2 * entries + rows * dim), flops
    )  # fmt: skip


def _by_axes(v: Tensor, bases: tuple[Tensor, ...], inward: bool) -> Tensor:
    """``Q v``, or with ``inward`` ``Q^T v``, of ``[..., C, H, W]``; a basis of each axis."""
    for i, basis in enumerate(bases):
        v = torch.movedim(torch.movedim(v, i - 3, -1) @ (basis if inward else basis.mT), -1, i - 3)
    return v


def _separable_draw(x: Tensor, deviation: Tensor, tau: Tensor, *bases: Tensor) -> Tensor:
    return x + _by_axes(tau * deviation * torch.randn_like(x), bases, False)


def _separable_filter(x: Tensor, variances: Tensor, tau: Tensor, *bases: Tensor) -> Tensor:
    shrink = 1.0 / (variances / tau**2 + 1.0)
    return x - _by_axes(shrink * _by_axes(x, bases, True), bases, False)


def _separable_update(mean: Tensor, scatter: Tensor, x: Tensor, count: float, *rest: Tensor) -> None:
    half = len(rest) // 2
    bases, along, b = rest[:half], rest[half:], x.shape[0]
    batch = x.mean(0)
    delta = batch - mean
    rows = torch.cat((x - batch, ((count * b / (count + b)) ** 0.5 * delta).unsqueeze(0)))
    scatter.add_(_by_axes(rows, bases, True).square().sum(0))
    for i, sums in enumerate(along):
        unfolded = rows.movedim(i + 1, 0).flatten(1)
        sums.add_(unfolded @ unfolded.mT, alpha=len(sums) / mean.numel())
    mean.add_(delta, alpha=b / (count + b))


def _mixture(x: Tensor, center: Tensor, variances: Tensor, sigma2: Tensor, *bases: Tensor) -> Tensor:
    noisy = variances.flatten(1) + sigma2
    away = (x - center.unsqueeze(1)).reshape(len(center), *x.shape)
    inside = torch.stack([_by_axes(v, tuple(q[k] for q in bases), True) for k, v in enumerate(away)]).flatten(2)
    logs = -0.5 * (inside.square() / noisy.unsqueeze(1) + noisy.log().unsqueeze(1)).sum(2)
    shrunk = (sigma2 / noisy).unsqueeze(1) * inside * logs.softmax(0).unsqueeze(2)
    shrunk = shrunk.reshape(away.shape)
    return x - sum(_by_axes(v, tuple(q[k] for q in bases), False) for k, v in enumerate(shrunk))


def separable(device: str, what: str, rows: int, shape: tuple[int, int, int], regions: int = 1) -> Workload:
    """Of rows ``(C, H, W)``: the draw ``x + tau Q (s z)``, the Wiener filter, the moments (one region), or the denoiser
    of a mixture of K Gaussians."""
    dim = math.prod(shape)
    x, values = _randn(device, rows, *shape), _randn(device, regions, *shape).abs() + 0.5
    bases = tuple(torch.linalg.qr(_randn(device, regions, n, n))[0].contiguous() for n in shape)
    one, tau = tuple(q[0] for q in bases), torch.tensor(0.7, device=device)
    q, flat, size = ops.Axes(bases, (0, 1, 2), shape), x.flatten(1), {"B": rows, "d": dim} | ({"K": regions})
    way = 2 * rows * dim * sum(shape)  # flops of one product with Q
    arguments: tuple = (x, values[0], tau, *one)
    if what == "draw":
        ours = functools.partial(ops.separable_step, flat, q=q, deviation=values.flatten(1), b=tau, seed=1, step=2)
        return Workload("separable_step", "separable draw", size, ours, _separable_draw, arguments, 8 * rows * dim, way)
    if what == "filter":
        ours = functools.partial(ops.separable_apply, flat, q, weights=values.flatten(1), tau=tau, rest=True)
        name = "separable filter"
        return Workload("separable_apply", name, size, ours, _separable_filter, arguments, 8 * rows * dim, 2 * way)
    if what == "mixture":
        weights = torch.zeros(regions, dtype=torch.float64, device=device) - math.log(regions)
        center = _randn(device, regions, dim)
        ours = functools.partial(ops.mixture, flat, q, center, values.flatten(1), weights, tau)
        arguments = (x, center.reshape(values.shape), values, tau, *bases)
        return Workload("mixture", what, size, ours, _mixture, arguments, 8 * rows * dim, 2 * regions * way)
    mean, scatter = torch.zeros(1, dim, device=device), torch.zeros(1, dim, device=device)
    along = [torch.zeros(1, n, n, device=device) for n in shape]
    weight = torch.full((1,), 1000.0, dtype=torch.float64, device=device)
    ours = functools.partial(ops.separable_update_, weight, weight.clone(), mean, scatter, along, flat, q)
    state = (mean[0].reshape(shape).clone(), scatter[0].reshape(shape).clone(), x, 1000.0)
    arguments = (*state, *one, *(t[0].clone() for t in along))
    return Workload("separable_update_", "separable update", size, ours, _separable_update, arguments,
                    4 * rows * dim, 2 * way)  # fmt: skip


def factorise(device: str, regions: int, dim: int, dtype: torch.dtype = torch.float32) -> Workload:
    """Factors of K matrices."""
    matrix = _spd(device, regions, dim).to(dtype)
    ours = functools.partial(ops.cholesky, matrix)
    nbytes = matrix.element_size() * regions * (dim * (dim + 1) // 2 + dim * dim)
    name = "cholesky" if dtype == torch.float32 else f"cholesky, {str(dtype).removeprefix('torch.')}"
    work = (ours, _factor, (matrix,), nbytes, regions * dim**3 // 3)
    return Workload("cholesky", name, {"K": regions, "d": dim}, *work, dtype=dtype)


def loss(device: str, rows: int, dim: int, regenerate: bool = False) -> Workload:
    """The loss and its gradient; ``regenerate``: z made again, which a user of torch keeps in memory."""
    prediction, target = _randn(device, rows, dim), _randn(device, rows, dim)
    target = -target if regenerate else target
    weight = _randn(device, rows).abs()
    noise = None if regenerate else target
    # The operation itself: forward and gradient, without autograd around it, like the peer.
    ours = functools.partial(torch.ops.ansn.dsm_loss, prediction, noise, weight, 1, 0, 2, ops.PERTURB)
    name = "loss and gradient, z regenerated" if regenerate else "loss and gradient"
    nbytes = (8 if regenerate else 12) * rows * dim
    arguments = (prediction, target, weight)
    return Workload("dsm_loss", name, {"B": rows, "d": dim}, ours, _loss, arguments, nbytes)
