"""Products with a dense factor in C++: a coloured step of a given right-hand side alone."""

from __future__ import annotations

import torch
from torch import Tensor

from ansn.ops import _dispatch
from ansn.ops.native._module import why_not_cpu
from ansn.ops.native.dense_step import dense_step


def _why_not_apply(
    v: Tensor, factor: Tensor, region: Tensor | None, transpose: bool, inverse: bool, lower: bool
) -> str | None:
    if inverse:
        return "solves are the reference's (LAPACK's triangular solve)"
    if v.dtype == torch.float64:
        return "float64 is the reference's; this kernel computes in float32"
    if factor.ndim != 3:
        return "the factor is diagonal; this kernel takes a dense one"
    return why_not_cpu(v, "v")


def _apply_factor(
    v: Tensor, factor: Tensor, region: Tensor | None, transpose: bool, inverse: bool, lower: bool
) -> Tensor:
    return dense_step(None, None, v.contiguous(), None, 1.0, None, factor, region, transpose, lower)


_dispatch.register("apply_factor", "native", _apply_factor, _why_not_apply)
