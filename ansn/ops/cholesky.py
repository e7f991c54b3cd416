"""Batched Cholesky factors with a status for each matrix, and no host synchronisation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ansn.ops import _checks, _dispatch, reference

_run = _dispatch.define("cholesky(Tensor matrix) -> (Tensor, Tensor)")
_dispatch.register("cholesky", "reference", reference.cholesky)


@torch.library.register_fake("ansn::cholesky")
def _(matrix: Tensor) -> tuple[Tensor, Tensor]:
    factor = torch.empty_like(matrix, memory_format=torch.contiguous_format)
    return factor, matrix.new_empty(matrix.shape[:1], dtype=torch.int32)


class _Cholesky(_dispatch.Function):
    """``A_bar = sym(L^-T Phi(L^T L_bar) L^-1)``, Phi the lower triangle with half the diagonal (Murray 2016, Eq. 8)."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor) -> tuple[Tensor, Tensor]:
        factor, info = _run(matrix)
        ctx.save_for_backward(factor)
        ctx.mark_non_differentiable(info)
        return factor, info

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (factor,) = ctx.saved_tensors
        phi = (factor.mT @ grads[0]).tril()
        phi = phi - 0.5 * torch.diag_embed(phi.diagonal(dim1=-2, dim2=-1))
        right = torch.linalg.solve_triangular(factor, phi, upper=False, left=False)
        bar = torch.linalg.solve_triangular(factor.mT, right, upper=True)
        return 0.5 * (bar + bar.mT)


def cholesky(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Lower factors ``L L^T = A`` of ``[K, d, d]`` symmetric matrices, of which the lower triangle is read.

    Returns ``(factor, info)``: factor of matrix's shape and dtype, row-major; info int32 ``[K]``: 0, or the
    order of the first leading minor that is not positive; that region's factor is then meaningless. Nothing is raised
    for it and nothing waits for the device: read ``info`` when it suits. Differentiable in ``matrix``.
    """
    _checks.square("matrix", matrix)
    run = _Cholesky.apply if _checks.needs_grad(matrix) else _run
    return run(matrix)
