"""Score matching without perturbed pairs: the paper's Eq. 2.2 and 2.4."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ansn import traces
from ansn.denoiser import Denoiser
from ansn.errors import whole
from ansn.ops import _checks

Score = Callable[[Tensor], Tensor]
"""``[B, *shape]`` to ``[B, *shape]``, row by row; of a denoiser at a level ``lambda x: model.score(x, tau)``."""


def score_matching_loss(
    score: Score,
    x: Tensor,
    *,
    trace: str = "exact",
    probes: int = 1,
    probe: str = "rademacher",
    reduction: str = "mean",
    seed: int = 0,
    row: int = 0,
    step: int = 0,
) -> Tensor:
    r"""``(tr ds/dx + 1/2 ||s||^2) / d`` at each row, Eq. 2.2 a dimension (Hyvarinen 2005, Theorem 1).

    Its mean over rows of a density p is ``1/2 E||s - grad log p||^2 / d`` less a constant of p alone,
    ``1/2 E||grad log p||^2 / d``: the minimiser is p's score. Of rows that :meth:`NoiseModel.perturb` has perturbed at
    a level, that is the score which :func:`ansn.dsm_loss` learns, without x. Of bare data on a thin set, or on grey
    values, there is no minimum: the trace goes to minus infinity.

    Args:
        score: from rows to scores, called once on all of x, see :data:`Score`. Its first derivatives have to have
            derivatives: those of a network that ``torch.compile`` made have none.
        x: ``[B, *shape]``, in the units in which the score is one a unit.
        trace: ``"exact"``, d gradients, whose graphs are all in memory until the loss has been differentiated;
            ``"hutchinson"``, one a probe: ``z . ds/dx z``, ``E z z^T = I``.
        probes: z's a row. probe: ``"rademacher"``, without variance on the Jacobian's diagonal, or ``"gaussian"``.
        reduction: ``"mean"`` over rows, or ``"none"`` for ``[B]``.
        seed, row, step: row r of x draws the probes of ``(seed, row + r, step)``, whatever the batch: give the training
            step.

    Returns float32 (float64 for float64 x), differentiable in the score's weights, and in x. Without gradients enabled
    it is the same number. Raises TypeError or ValueError naming the argument.
    """
    if trace not in traces.TRACES:
        raise ValueError(f"trace: got {trace!r}, expected one of {', '.join(traces.TRACES)}")
    return _loss(score, x, trace, True, probes, probe, reduction, (seed, row, step))


def sliced_score_matching_loss(
    score: Score,
    x: Tensor,
    *,
    variance_reduced: bool = True,
    probes: int = 1,
    probe: str = "rademacher",
    reduction: str = "mean",
    seed: int = 0,
    row: int = 0,
    step: int = 0,
) -> Tensor:
    r"""Sliced score matching (Song et al. 2019, arXiv:1905.07088), a dimension, mean over the probes z of a row::

        (z . ds/dx z + 1/2 ||s||^2) / d       (variance_reduced=True, their SSM-VR: Eq. 2.4 as the paper prints it)
        (z . ds/dx z + 1/2 (z . s)^2) / d     (variance_reduced=False, their SSM)

    Both have the mean of :func:`score_matching_loss`; the first is that function under ``trace="hutchinson"``, number
    by number. Where the Jacobian J is symmetric a normal z gives the variances ``2 ||J||^2 / d^2`` and
    ``2 ||J + 1/2 s s^T||^2 / d^2``: at the score of Gaussian data the first is the lower one on average where S^-1 has
    more than two effective dimensions, ``tr(S^-1)^2 > 2 ||S^-1||^2``. Arguments, result and errors are those of
    :func:`score_matching_loss`.
    """
    return _loss(score, x, "hutchinson", variance_reduced, probes, probe, reduction, (seed, row, step))


def _loss(
    score: Score,
    x: Tensor,
    trace: str,
    whole_norm: bool,
    probes: int,
    probe: str,
    reduction: str,
    counter: tuple[int, int, int],
) -> Tensor:
    """The losses above; ``whole_norm``: with the norm of s and not that of its slices. ``counter``: seed, row, step."""
    if probe not in traces.PROBES:
        raise ValueError(f"probe: got {probe!r}, expected one of {', '.join(traces.PROBES)}")
    if reduction not in ("mean", "none"):
        raise ValueError(f"reduction: got {reduction!r}, expected 'mean' or 'none'")
    probes = whole("probes", probes, 1)
    _checks.batched("x", x)
    graph = torch.is_grad_enabled()
    with torch.inference_mode(False), torch.enable_grad():
        x = x.clone() if x.is_inference() else x
        x = x if x.requires_grad else x.detach().requires_grad_()
        s = _called(score, x)
        flat = s.flatten(1)
        if trace == "exact":
            slopes, norms = traces.exact(s, x, graph), flat.square().sum(1, dtype=torch.float64)
        else:
            seed, row, step = counter
            z = traces.probes(x, probes, probe, seed=seed, row=row, step=step)
            slopes = traces.hutchinson(s, x, z, z, graph)
            norms = flat.square().sum(1, dtype=torch.float64) if whole_norm else (z * flat).double().sum(2).square()
        loss = (slopes + 0.5 * norms).mean(0) / flat.shape[1]
        loss = loss.to(torch.promote_types(x.dtype, torch.float32))
        loss = loss if reduction == "none" else loss.sum() / max(len(x), 1)
    return loss if graph else loss.detach()


def _called(score: Score, x: Tensor) -> Tensor:
    """``s(x)``, checked."""
    if isinstance(score, Denoiser) or not callable(score):
        kind = type(score).__name__
        raise TypeError(f"score: got {kind}, expected a function of x alone, such as lambda x: model.score(x, tau)")
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels of attention have no second derivative
        s = score(x)
    if not isinstance(s, Tensor) or s.shape != x.shape:
        raise ValueError(f"score: got {_checks.describe(s)} of x, expected a tensor of its shape, {list(x.shape)}")
    if not s.requires_grad:
        raise ValueError("score: got an output that does not follow x, expected one with a gradient in it")
    return s
