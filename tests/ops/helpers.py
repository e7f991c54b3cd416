"""What the operations' tests share: running on one back end, random inputs, and a NumPy coloured step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from torch import Tensor

from ansn import ops
from ansn.ops import native, triton
from tests.native import oracle

T = TypeVar("T")

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

needs_native = pytest.mark.skipif(native.module is None, reason=f"no native back end: {native.missing}")


def back_ends(operation: str) -> tuple[str, ...]:
    """Back ends with a kernel for CPU tensors: Triton's run on those under its interpreter only."""
    return tuple(n for n in ops.registered(operation) if n != "triton" or triton.interpreting())


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64).to(dtype)


def on(name: str, call: Callable[[], T], refusals: set[str] | None = None) -> T | None:
    """``call()`` on back end ``name``; None where it refuses, in one line that names operation and back end.

    The reasons of refusals are added to ``refusals``.
    """
    with ops.backend(name):
        try:
            return call()
        except RuntimeError as error:
            if f"cannot run on back end {name!r}: " in str(error) and "\n" not in str(error):
                if refusals is not None:
                    refusals.add(str(error).split(": ", 2)[2])
                return None
            raise


def one_line(error: pytest.ExceptionInfo[Exception], name: str) -> None:
    """The message is one line that opens with the argument's name."""
    text = str(error.value)
    assert text.startswith(f"{name}:"), text
    assert "\n" not in text


def random_factor(
    kind: str, regions: int, dim: int, dtype: torch.dtype = torch.float32, seed: int = 7
) -> Tensor | None:
    """ "none", "diagonal" ``[K, d]``, "lower" or "full" ``[K, d, d]``; well conditioned."""
    if kind == "none":
        return None
    if kind == "diagonal":
        return (0.5 + randn(regions, dim, seed=seed).abs()).to(dtype)
    matrix = randn(regions, dim, dim, seed=seed) / (2 * dim**0.5) + torch.eye(dim, dtype=torch.float64)
    return (matrix.tril() if kind == "lower" else matrix).to(dtype)


def random_axes(
    shape: Sequence[int], axes: Sequence[int], regions: int = 1, dtype: torch.dtype = torch.float64
) -> ops.Axes:
    """An orthonormal basis of some axes."""
    bases = (torch.linalg.qr(randn(regions, shape[a], shape[a], seed=a))[0].to(dtype) for a in axes)
    return ops.Axes([basis.contiguous() for basis in bases], list(axes), tuple(shape))


def numpy_factor(factor: Tensor | None, region: Tensor | None, rows: int, dim: int) -> np.ndarray:
    """A matrix for each row, float64 ``[B, d, d]``."""
    if factor is None:
        return np.broadcast_to(np.eye(dim), (rows, dim, dim))
    index = np.zeros(rows, np.int64) if region is None else region.numpy()
    matrices = factor.double().numpy()
    if matrices.ndim == 2:
        matrices = np.stack([np.diag(row) for row in matrices])
    return matrices[index]


def numpy_step(x: Tensor, denoised: Tensor | None = None, f: Tensor | None = None, **options: Any) -> np.ndarray:
    """``x + c (D - x) + L (a f + b z)`` in float64, from the formula and the NumPy Philox; shares no code with the
    package."""
    rows, dim = x.shape
    wide = x.double().numpy()
    coefficient = {
        name: np.asarray(0.0 if options.get(name) is None else options[name], np.float64).reshape(-1, 1)
        for name in "cab"
    }
    out, push = wide.copy(), np.zeros_like(wide)
    if denoised is not None:
        out = out + coefficient["c"] * (denoised.double().numpy() - wide)
    if f is not None:
        push = push + coefficient["a"] * f.double().numpy()
    if options.get("b") is not None:
        counters = options.get("seed", 0), options.get("row", 0), rows, dim, options.get("step", 0)
        push = push + coefficient["b"] * oracle.noise(*counters, options.get("stream", ops.PERTURB))
    return out + np.einsum("bij,bj->bi", numpy_factor(options.get("factor"), options.get("region"), rows, dim), push)


def error_ratio(value: Tensor, expected: np.ndarray) -> float:
    """RMS error over the larger of the RMS of what was expected and 1, the inputs' size; infinite where not finite."""
    difference = value.double().numpy() - expected
    if not np.isfinite(difference).all():
        return float("inf")
    if not difference.size:
        return 0.0
    return float(np.sqrt(np.mean(difference**2)) / max(np.sqrt(np.mean(np.asarray(expected) ** 2)), 1.0))
