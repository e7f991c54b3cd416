"""Factor and draw in one operation: ``x + b L z`` straight from the covariance, for many small matrices."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ansn.ops import _checks, _dispatch, reference

_dispatch.library.define(
    "cholesky_draw(Tensor matrix, Tensor x, Tensor b, Tensor? region, bool with_factor, SymInt seed, SymInt row,"
    " SymInt step, SymInt stream) -> (Tensor, Tensor, Tensor)"
)
_dispatch.register("cholesky_draw", "reference", reference.cholesky_draw)


def _run(
    matrix: Tensor, x: Tensor, b: Tensor, region: Tensor | None, *args: Any
) -> tuple[Tensor, Tensor, Tensor]:
    _checks.region_values(region, matrix.shape[0])
    return _dispatch.call("cholesky_draw", matrix.device, matrix, x, b, region, *args)


_dispatch.library.impl("cholesky_draw", _run, "CPU")
_dispatch.library.impl("cholesky_draw", _run, "CUDA")


@torch.library.register_fake("ansn::cholesky_draw")
def _(
    matrix: Tensor, x: Tensor, _b: Tensor, _region: Tensor | None, with_factor: bool, *_counter: Any
) -> tuple[Tensor, Tensor, Tensor]:
    count, dim = matrix.shape[:2]
    return (
        torch.empty_like(x, memory_format=torch.contiguous_format),
        matrix.new_empty((count if with_factor else 0, dim, dim)),
        matrix.new_empty((count,), dtype=torch.int32),
    )


def cholesky_draw(
    matrix: Tensor,
    x: Tensor,
    *,
    b: float | Tensor = 1.0,
    region: Tensor | None = None,
    return_factor: bool = False,
    seed: int = 0,
    row: int = 0,
    step: int = 0,
    stream: int = reference.PERTURB,
) -> tuple[Tensor, ...]:
    """``out_r = x_r + b_r L_k z_r`` with ``L_k L_k^T = matrix_k``, the factor made and used without being written.

    The use: many small covariances with few rows each, such as the proposals of many adaptive Metropolis chains.

    Args:
        matrix: ``[K, d, d]``, float32 or float64, symmetric; the lower triangle is read.
        x: ``[B, ...]``, float32, float64, bfloat16 or float16; trailing dimensions are flattened to ``d``.
        b: dimensionless coefficient, a number or a tensor ``[]`` or ``[B]``.
        region: int64 ``[B]``, which matrix each row uses. None: row r uses matrix r (K = B), or all the one (K = 1).
        return_factor: also return ``L``.
        seed, row, step, stream: counters of the noise ``z`` (math section 7), as in :func:`ansn.ops.colored_step`.

    Returns ``(out, info)``, or ``(out, factor, info)``: out of x's shape and dtype; factor ``[K, d, d]`` of matrix's
    dtype, zero above the diagonal; info int32 ``[K]`` as :func:`ansn.ops.cholesky` gives it. Rows whose matrix is not
    positive definite are NaN, their factors meaningless; nothing is raised and nothing waits for the device.
    Not differentiable: ValueError where a gradient would be needed (``cholesky`` has one).
    Raises TypeError or ValueError naming the argument.
    """
    _checks.batched("x", x)
    _checks.square("matrix", matrix)
    flat = _checks.flat(x)
    rows, dim = flat.shape
    count = matrix.shape[0]
    if matrix.shape[1] != dim or matrix.device != x.device:
        raise ValueError(f"matrix: got {_checks.describe(matrix)}, expected [K, {dim}, {dim}] on {x.device}")
    if region is not None or count not in (1, rows):
        _checks.region(region, rows, count, x.device)
    _checks.without_gradient(matrix=matrix, x=x, b=b)
    _checks.counter(seed, row, step, stream)
    scale = _checks.coefficient("b", b, rows, x)
    if scale is None:
        scale = torch.zeros((), dtype=reference.compute_dtype(x), device=x.device)
    out, factor, info = torch.ops.ansn.cholesky_draw(
        matrix, flat, scale, region, return_factor, seed, row, step, stream
    )
    out = out.reshape(x.shape)
    return (out, factor, info) if return_factor else (out, info)
