"""The launches whose machine code is watched: launchers called with meta tensors at the sizes that they are meant for.

To add a kernel, add a line: a name, and a call of its launcher. It is recorded, never run (:mod:`ansn.kernels.aot`).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ansn.kernels import dense_step
from ansn.kernels.colored_step import colored_step
from ansn.kernels.covariance_update import covariance_update_
from ansn.kernels.dsm_loss import dsm_loss
from ansn.kernels.mixture import mixture
from ansn.kernels.separable import form, separable_apply, separable_step

_F32, _F64, _BF16, _F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16


def _t(*shape: int, dtype: torch.dtype = _F32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _region(rows: int) -> Tensor:
    return _t(rows, dtype=torch.int64)


def _update(
    rows: int, dim: int, regions: int = 1, state: torch.dtype = _F32, decay: float = 1.0, diagonal: bool = False
) -> None:
    """The moment update of a float32 batch."""
    weights = _t(regions, dtype=_F64), _t(regions, dtype=_F64)
    scatter = _t(*((regions, dim) if diagonal else (regions, dim, dim)), dtype=state)
    region = _region(rows) if regions > 1 else None
    covariance_update_(*weights, _t(regions, dim, dtype=state), scatter, _t(rows, dim), region, decay)


def _dense(rows: int, dim: int, regions: int = 1, dtype: torch.dtype = _F32, terms: str = "b") -> None:
    """The coloured step with triangular factors: the terms c, a, b that are named, a coefficient for each row."""
    x = _t(rows, dim, dtype=dtype)
    c, a, b = (_t(rows) if name in terms else None for name in "cab")
    region = _region(rows) if regions > 1 else None
    dense_step.colored_step(x, x, x, c, a, b, _t(regions, dim, dim), region, True, 0, 0, 0, 0)


def _separable(kind: str, shape: tuple[int, ...], regions: int = 1, rows: int = 128, dtype: torch.dtype = _F32) -> None:
    """The filter, the step with a coefficient a row, the draw, or the mixture, of a basis along each axis."""
    axes = tuple(a for a, n in enumerate(shape) if n > 1)
    dim, found = math.prod(shape), form(axes, shape)
    assert found is not None
    bases = [_t(regions, shape[a], shape[a]) for a in axes]
    x, per_region, region = _t(rows, dim, dtype=dtype), _t(regions, dim), _region(rows) if regions > 1 else None
    if kind == "mixture":
        mixture(x, per_region, per_region, _t(regions, dtype=_F64), _t(rows), True, bases, found)
    elif kind == "filter":
        separable_apply(x, per_region, per_region, _t(rows), region, True, True, True, bases, found)
    else:
        c, a, b = (_t(rows) if name in kind else None for name in "cab")
        separable_step(x, x, x, c, a, b, per_region, region, bases, found, 0, 0, 0, 0)


CASES: dict[str, Callable[[], object]] = {
    "draw, f32, 1024 x 784": lambda: colored_step(_t(1024, 784), b=_t()),
    "draw, bf16, 1024 x 784": lambda: colored_step(_t(1024, 784, dtype=_BF16), b=_t(1024)),
    "draw, diagonal, f32, 1024 x 784": lambda: colored_step(_t(1024, 784), b=_t(1024), diagonal=_t(1, 784)),
    "Langevin, f32, 128 x 3072": lambda: colored_step(_t(128, 3072), _t(128, 3072), c=_t(), b=_t()),
    "Langevin, bf16, 128 x 3072": lambda: colored_step(
        _t(128, 3072, dtype=_BF16), _t(128, 3072, dtype=_BF16), c=_t(), b=_t()
    ),
    "every term, 8 diagonal regions, f32, 128 x 3072": lambda: colored_step(
        _t(128, 3072), _t(128, 3072), _t(128, 3072), _t(128), _t(128), _t(128), _t(8, 3072), _region(128)
    ),
    "Langevin, short rows, f16, 4096 x 64": lambda: colored_step(
        _t(4096, 64, dtype=_F16), _t(4096, 64, dtype=_F16), c=_t(), b=_t()
    ),
    "Langevin, odd rows, f32, 1024 x 785": lambda: colored_step(_t(1024, 785), _t(1024, 785), c=_t(), b=_t()),
    "Langevin, over 2^31 groups, bf16, 2^22 x 4096": lambda: colored_step(
        _t(2**22, 4096, dtype=_BF16), _t(2**22, 4096, dtype=_BF16), c=_t(), b=_t()
    ),
    "loss, target, f32, 128 x 3072": lambda: dsm_loss(_t(128, 3072), _t(128, 3072), _t(128)),
    "loss, z again, f32, 128 x 3072": lambda: dsm_loss(_t(128, 3072), None, _t(128)),
    "loss, z again, bf16, 128 x 3072": lambda: dsm_loss(_t(128, 3072, dtype=_BF16), None, _t(128)),
    "loss, odd rows, f32, 128 x 785": lambda: dsm_loss(_t(128, 785), _t(128, 785), _t(128)),
    "moments, f32, 128 x 784": lambda: _update(128, 784),
    "moments, f32, 128 x 3072": lambda: _update(128, 3072),
    "moments, f32, forgetting, odd rows, 128 x 3073": lambda: _update(128, 3073, decay=0.9),
    "moments, f64, forgetting, 128 x 3072": lambda: _update(128, 3072, state=_F64, decay=0.9),
    "moments, 1024 regions, f32, 1024 x 64": lambda: _update(1024, 64, 1024),
    "moments, 1024 regions, f64, forgetting, 1024 x 64": lambda: _update(1024, 64, 1024, _F64, 0.9),
    "moments, 64 regions, f32, 64 x 784": lambda: _update(64, 784, 64),
    "moments, 64 regions, f32, odd rows, 64 x 785": lambda: _update(64, 785, 64),
    "moments, 8 regions, f32, 1024 x 784": lambda: _update(1024, 784, 8, decay=0.9),
    "moments, 8 diagonal regions, f32, 1024 x 3072": lambda: _update(1024, 3072, 8, diagonal=True),
    "dense draw, f32, 128 x 64": lambda: _dense(128, 64),
    "dense draw, f32, 128 x 784": lambda: _dense(128, 784),
    "dense draw, f32, 128 x 3072": lambda: _dense(128, 3072),
    "dense draw, f32, 4096 x 3072": lambda: _dense(4096, 3072),
    "dense draw, f32, odd rows, 128 x 785": lambda: _dense(128, 785),
    "dense draw, 10 regions, f32, 128 x 64": lambda: _dense(128, 64, 10),
    "dense draw, 1024 regions, f32, 1024 x 64": lambda: _dense(1024, 64, 1024),
    "dense, every term, 8 regions, f32, 1024 x 784": lambda: _dense(1024, 784, 8, terms="cab"),
    "dense, every term, 8 regions, bf16, 4096 x 3072": lambda: _dense(4096, 3072, 8, _BF16, "cab"),
    "separable filter, f32, 128 x (3, 32, 32)": lambda: _separable("filter", (3, 32, 32)),
    "separable filter, 10 regions, bf16, 128 x (3, 32, 32)": lambda: _separable("filter", (3, 32, 32), 10, dtype=_BF16),
    "separable filter, f32, 128 x (1, 28, 28)": lambda: _separable("filter", (1, 28, 28)),
    "separable filter, f32, 1024 x (1, 64, 64)": lambda: _separable("filter", (1, 64, 64), 1, 1024),
    "separable step, every term, f32, 128 x (3, 32, 32)": lambda: _separable("cab", (3, 32, 32)),
    "separable draw, f32, 128 x (3, 32, 32)": lambda: _separable("b", (3, 32, 32)),
    "separable draw, f32, 1024 x (1, 28, 28)": lambda: _separable("b", (1, 28, 28), 1, 1024),
    "separable step, 10 regions, bf16, 128 x (1, 28, 28)": lambda: _separable("cb", (1, 28, 28), 10, dtype=_BF16),
    "separable draw, f32, 128 x 64": lambda: _separable("b", (64,)),
    "mixture, 10 regions, f32, 128 x (3, 32, 32)": lambda: _separable("mixture", (3, 32, 32), 10),
    "mixture, 10 regions, f32, 128 x (1, 28, 28)": lambda: _separable("mixture", (1, 28, 28), 10),
    "mixture, 10 regions, f32, 128 x (1, 8, 8)": lambda: _separable("mixture", (1, 8, 8), 10),
    "L^T v, 8 regions, f32, 1024 x 784": lambda: dense_step.apply_factor(
        _t(1024, 784), _t(8, 784, 784), _region(1024), True, True
    ),
}
