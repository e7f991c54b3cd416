"""Inputs of every operation whose results are compared: odd shapes, all dtypes, regions, nothing at all, and matrices
without a factor. All are made on the CPU; the same call runs on a device, and in float64 on the CPU as the oracle."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ansn import ops
from ansn.ops.separable import Axes

F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
DTYPES = (F32, BF16, F16, F64)


@dataclass(frozen=True)
class Case:
    """``call(**inputs)`` returns tensors; ``dtype`` chooses the tolerance."""

    operation: str
    label: str
    dtype: torch.dtype
    inputs: dict[str, Any]
    call: Callable[..., tuple[Tensor, ...]]

    @property
    def name(self) -> str:
        return f"{self.label}, {str(self.dtype).removeprefix('torch.')}"

    def on(self, device: str) -> tuple[Tensor, ...]:
        """The call on a device."""
        moved = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in self.inputs.items()}
        return self.call(**moved)

    def oracle(self) -> tuple[Tensor, ...]:
        """The call in float64 on the reference back end of the CPU."""
        wide = {
            k: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in self.inputs.items()
        }
        with ops.backend("reference"):
            return self.call(**wide)


def _randn(*shape: int, seed: int = 0, dtype: torch.dtype = F32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


def _state(dtype: torch.dtype) -> torch.dtype:
    """Factors and coefficients are float32 beside half precision."""
    return F64 if dtype == F64 else F32


def _spd(count: int, dim: int, dtype: torch.dtype = F32) -> Tensor:
    a = _randn(count, dim, dim, seed=5) / (2 * dim**0.5)
    return (a @ a.mT + torch.eye(dim, dtype=a.dtype)).to(dtype)


def _factor(kind: str, count: int, dim: int, dtype: torch.dtype) -> Tensor | None:
    if kind == "identity":
        return None
    if kind == "diagonal":
        return (0.5 + _randn(count, dim, seed=6).abs()).to(dtype)
    matrix = _randn(count, dim, dim, seed=7, dtype=F64) / (2 * dim**0.5) + torch.eye(dim, dtype=F64)
    return (matrix.tril() if kind == "lower" else matrix).to(dtype)


def _region(rows: int, count: int) -> Tensor | None:
    """Without order, and none of the last region."""
    return (torch.arange(rows) * 5 + 1) % (count - 1) if count > 1 else None


def shapes(quick: bool) -> tuple[tuple[int, int], ...]:
    """Rows and d."""
    small = ((0, 5), (1, 1), (33, 65))
    return small if quick else (*small, (3, 7), (130, 300), (257, 1025))


def colored_step(quick: bool) -> Iterator[Case]:
    kinds = ("identity", "diagonal", "lower", "full")

    def call(x, denoised, f, factor, region, lower, **options):
        return (ops.colored_step(x, denoised, f, factor=factor, region=region, lower=lower, **options),)

    for rows, dim in shapes(quick):
        for kind in kinds:
            for count in (1, 4) if kind != "identity" else (1,):
                for dtype in DTYPES if count == 1 or dim < 100 else (F32,):
                    terms = {
                        "x": _randn(rows, dim, seed=1, dtype=dtype), "denoised": None, "f": None,
                        "factor": _factor(kind, count, dim, _state(dtype)), "region": _region(rows, count),
                        "lower": kind != "full",
                    }  # fmt: skip
                    size = f"{kind}, {rows} x {dim}" + (f", {count} regions" if count > 1 else "")
                    # Counters near the ends of their words; a level for each row.
                    draw = {"b": _randn(rows, seed=4).abs().to(_state(dtype)), "seed": 2**62 + 3, "row": 2**31 - 1}
                    draw |= {"step": 4_000_000_000, "stream": ops.LANGEVIN}
                    yield Case("colored_step", f"draw, {size}", dtype, terms | draw, call)
                    full = {"denoised": _randn(rows, dim, seed=2, dtype=dtype)}
                    full |= {"f": _randn(rows, dim, seed=3, dtype=dtype), "a": 0.25, "b": 0.75, "seed": 5, "step": 7}
                    full["c"] = torch.tensor(0.5, dtype=_state(dtype))
                    yield Case("colored_step", f"all terms, {size}", dtype, terms | full, call)


def apply_factor(quick: bool) -> Iterator[Case]:
    def call(v, factor, region, **options):
        return (ops.apply_factor(v, factor, region=region, **options),)

    for rows, dim in shapes(quick):
        for kind in ("diagonal", "lower", "full"):
            for transpose, inverse in ((False, False), (True, False), (False, True), (True, True)):
                for count in (1, 4):
                    for dtype in (F32, BF16, F64) if count == 1 and dim < 100 else (F32,):
                        inputs = {
                            "v": _randn(rows, dim, dtype=dtype), "factor": _factor(kind, count, dim, _state(dtype)),
                            "region": _region(rows, count), "transpose": transpose, "inverse": inverse,
                            "lower": kind != "full",
                        }  # fmt: skip
                        how = ("L^-T" if transpose else "L^-1") if inverse else "L^T" if transpose else "L"
                        label = f"{how}, {kind}, {rows} x {dim}, {count} regions"
                        yield Case("apply_factor", label, dtype, inputs, call)


def covariance_update_(quick: bool) -> Iterator[Case]:
    def call(mean, scatter, x, region, decay):
        mean, scatter = mean.clone(), scatter.clone()
        weight = torch.full((mean.shape[0],), 100.0, dtype=F64, device=mean.device)
        weight2 = weight.clone()
        ops.covariance_update_(weight, weight2, mean, scatter, x, region, decay=decay)
        # Above the diagonal anything may stand.
        return weight, weight2, mean, scatter.tril() if scatter.ndim == 3 else scatter

    def case(kind: str, rows: int, dim: int, count: int, region: Tensor | None, dtype: torch.dtype, x_dtype, decay):
        shape = (count, dim) if kind == "diagonal" else (count, dim, dim)
        scatter = 100.0 * (torch.ones(shape) if kind == "diagonal" else torch.eye(dim).expand(shape))
        inputs = {
            "mean": _randn(count, dim, seed=8, dtype=dtype), "scatter": scatter.to(dtype).contiguous(),
            "x": _randn(rows, dim, seed=9, dtype=x_dtype) + 3.0, "region": region, "decay": decay,
        }  # fmt: skip
        label = f"{kind}, {rows} x {dim}, {count} regions, x {str(x_dtype).removeprefix('torch.')}, decay {decay}"
        return Case("covariance_update_", label, dtype, inputs, call)

    for rows, dim in shapes(quick):
        for kind in ("dense", "diagonal"):
            for dtype in (F32, F64):
                for x_dtype in (F32, BF16, F16):
                    yield case(kind, rows, dim, 1, None, dtype, x_dtype, 1.0 if x_dtype == F32 else 0.5)
                if dim < 400:
                    yield case(kind, rows, dim, 4, _region(rows, 4), dtype, F32, 0.9)
                    yield case(kind, 64, dim, 64, torch.arange(64).flip(0), dtype, F32, 1.0)


def _matrices(dim: int, count: int, dtype: torch.dtype) -> Tensor:
    """Every fifth without a factor: the minor of order ``k % d + 1`` is not positive."""
    matrix = _spd(count, dim, dtype)
    for k in range(3, count, 5):
        matrix[k, k % dim, k % dim] = -1.0
    return matrix


def _sizes(quick: bool) -> tuple[int, ...]:
    return (1, 5, 33, 64) if quick else (1, 2, 5, 16, 31, 32, 33, 64, 100, 128, 200)


def cholesky(quick: bool) -> Iterator[Case]:
    def call(matrix):
        factor, info = ops.cholesky(matrix)
        # A failed factor means nothing.
        return torch.where((info == 0)[:, None, None], factor, 0.0), info

    for dim in _sizes(quick):
        for count in (0, 1, 7, 37):
            for dtype in (F32, F64):
                inputs = {"matrix": _matrices(dim, count, dtype)}
                yield Case("cholesky", f"{count} of {dim} x {dim}", dtype, inputs, call)


def dsm_loss(quick: bool) -> Iterator[Case]:
    def call(prediction, target, weight):
        p = prediction.detach().requires_grad_()
        loss = ops.dsm_loss(p, target, weight=weight, seed=2**40 + 1, row=9, step=3)
        (gradient,) = torch.autograd.grad(loss.sum(), p)
        return loss.detach(), gradient

    for rows, dim in (*shapes(quick), *(() if quick else ((130, 3072),))):
        for dtype in DTYPES:
            for given in (True, False):
                inputs = {
                    "prediction": _randn(rows, dim, seed=1, dtype=dtype),
                    "target": _randn(rows, dim, seed=2, dtype=dtype) if given else None,
                    "weight": (0.5 + _randn(rows, seed=3).abs()).to(_state(dtype)) if given else 0.5,
                }
                label = f"{rows} x {dim}, {'target' if given else 'z regenerated'}"
                yield Case("dsm_loss", label, dtype, inputs, call)


def _axes(shape: tuple[int, ...], count: int, dtype: torch.dtype) -> dict[str, Any]:
    """Orthonormal bases of every axis of more than one point, by argument, and the shape."""
    axes = [a for a, n in enumerate(shape) if n > 1]
    drawn = (torch.linalg.qr(_randn(count, shape[a], shape[a], seed=20 + a, dtype=F64))[0] for a in axes)
    bases = (basis.to(_state(dtype)).contiguous() for basis in drawn)  # the kernels take them by rows
    return {f"q{a}": basis for a, basis in zip(axes, bases, strict=True)} | {"shape": shape}


def _q(bases: dict[str, Tensor], shape: tuple[int, ...]) -> Axes:
    return Axes(list(bases.values()), [int(name[1:]) for name in bases], shape)


def _images(quick: bool) -> Iterator[tuple[int, tuple[int, ...], int, torch.dtype]]:
    """Rows, their shape, regions, dtype."""
    small = ((5, (1, 4, 6)), (33, (1, 8, 8)), (9, (3, 8, 8)))
    for rows, shape in small if quick else (*small, (0, (1, 5, 7)), (17, (1, 28, 28)), (130, (3, 32, 32)), (7, (13,))):
        for count in (1, 4):
            for dtype in DTYPES if quick or count == 1 else (F32,):
                yield rows, shape, count, dtype


def separable_apply(quick: bool) -> Iterator[Case]:
    def call(v, shape, weights, tau, center, region, rest, **bases):
        q = _q(bases, shape)
        return (ops.separable_apply(v, q, weights=weights, tau=tau, center=center, region=region, rest=rest),)

    for rows, shape, count, dtype in _images(quick):
        dim = math.prod(shape)
        for how in ("filter", "weights"):
            wiener = how == "filter"
            inputs = _axes(shape, count, dtype) | {
                "v": _randn(rows, dim, dtype=dtype), "region": _region(rows, count), "rest": wiener,
                "weights": (0.5 + _randn(count, dim, seed=2).abs()).to(_state(dtype)),
                "tau": _randn(rows, seed=3).abs().to(_state(dtype)) if wiener else None,
                "center": _randn(count, dim, seed=4, dtype=_state(dtype)) if wiener else None,
            }  # fmt: skip
            yield Case("separable_apply", f"{how}, {rows} x {shape}, {count} regions", dtype, inputs, call)


def separable_step(quick: bool) -> Iterator[Case]:
    def call(x, denoised, f, shape, deviation, region, a, b, c, **bases):
        counters = {"seed": 2**62 + 3, "row": 2**31 - 1, "step": 4_000_000_000, "stream": ops.LANGEVIN}
        options = {"a": a, "b": b, "c": c, "deviation": deviation, "region": region, "q": _q(bases, shape)}
        return (ops.separable_step(x, denoised, f, **options, **counters),)

    for rows, shape, count, dtype in _images(quick):
        dim = math.prod(shape)
        for terms in ("b", "abc"):
            x, denoised, f = (_randn(rows, dim, seed=i, dtype=dtype) for i in range(3))
            inputs = _axes(shape, count, dtype) | {
                "x": x, "denoised": denoised if "c" in terms else None, "f": f if "a" in terms else None,
                "deviation": (0.5 + _randn(count, dim, seed=2).abs()).to(_state(dtype)),
                "region": _region(rows, count),
            }  # fmt: skip
            inputs |= {n: _randn(rows, seed=4).abs().to(_state(dtype)) if n in terms else None for n in "abc"}
            yield Case("separable_step", f"{terms}, {rows} x {shape}, {count} regions", dtype, inputs, call)


def separable_update_(quick: bool) -> Iterator[Case]:
    def call(x, mean, shape, region, **bases):
        q, count = _q(bases, shape), len(mean)
        mean, scatter = mean.clone(), mean.abs() + 100.0
        along = [basis.new_zeros(count, basis.shape[1], basis.shape[1]) for basis in q.bases]
        weight = torch.full((count,), 100.0, dtype=F64, device=x.device)
        weight2 = weight.clone()
        ops.separable_update_(weight, weight2, mean, scatter, along, x, q, region, decay=0.9)
        return weight, weight2, mean, scatter, *along

    for rows, shape, count, dtype in _images(quick):
        if dtype in (F32, F64):
            inputs = _axes(shape, count, dtype) | {
                "x": _randn(rows, math.prod(shape), dtype=dtype) + 3.0, "region": _region(rows, count),
                "mean": _randn(count, math.prod(shape), seed=2, dtype=dtype),
            }  # fmt: skip
            yield Case("separable_update_", f"{rows} x {shape}, {count} regions", dtype, inputs, call)


def mixture(quick: bool) -> Iterator[Case]:
    def call(x, shape, center, variances, log_weights, sigma2, **bases):
        return ops.mixture(x, _q(bases, shape), center, variances, log_weights, sigma2)

    for rows, shape, count, dtype in _images(quick):
        dim = math.prod(shape)
        inputs = _axes(shape, count, dtype) | {
            "x": _randn(rows, dim, dtype=dtype), "center": _randn(count, dim, seed=2, dtype=_state(dtype)),
            "variances": (0.5 + _randn(count, dim, seed=3).abs()).to(_state(dtype)),
            "log_weights": torch.full((count,), 1.0 / count, dtype=F64).log(),
            "sigma2": (0.5 + _randn(rows, seed=4).abs()).to(_state(dtype)),
        }  # fmt: skip
        yield Case("mixture", f"{rows} x {shape}, {count} Gaussians", dtype, inputs, call)


def of(operation: str, quick: bool) -> list[Case]:
    """Cases of an operation. Raises KeyError for one that has none: a new operation must be checked too."""
    makers: dict[str, Callable[[bool], Iterator[Case]]] = {
        "colored_step": colored_step, "apply_factor": apply_factor, "covariance_update_": covariance_update_,
        "cholesky": cholesky, "dsm_loss": dsm_loss, "separable_apply": separable_apply,
        "separable_step": separable_step, "separable_update_": separable_update_, "mixture": mixture,
    }  # fmt: skip
    return list(makers[operation](quick))
