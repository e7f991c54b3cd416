r"""Multistep solvers of the probability flow in ``lambda = -ln tau``: one evaluation a level, order 2 and more.

In lambda the flow is linear but for D: ``dx/dlambda = D - x``, so over a step ``h = lambda' - lambda``::

    x(lambda') = exp(-h) x + int_0^h exp(-(h - s)) D(lambda + s) ds,      exp(-h) = tau' / tau

Only D is approximated, from its values at the levels before.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ansn.denoiser import Denoiser
from ansn.sampling.common import Callback, bar, ladder, targets, tell, towards

ORDERS = (1, 2, 3)


@torch.no_grad()
def dpmpp_2m(
    model: Denoiser,
    x: Tensor,
    taus: Tensor | None = None,
    *,
    region: Tensor | None = None,
    callback: Callback | None = None,
    progress: bool = False,
    **extra: Any,
) -> Tensor:
    """DPM-Solver++(2M), order 2 (Lu et al. 2022, Algorithm 2): with ``r = h_before / h``::

        D' = D_i + (D_i - D_{i-1}) / (2 r),      x <- x + (1 - tau'/tau)(D' - x)

    ``x`` ``[B, *shape]`` and ``taus`` ``[N]`` as in :func:`ansn.sampling.euler`; N evaluations. The first and the last
    step, which goes to tau = 0, are Euler's. Returns x's shape and dtype.
    """
    taus = ladder(model, x, taus)
    shrink, forward = (1.0 - targets(taus) / taus).unbind(), two_step_weights(taus).unbind()
    before = None
    for i, tau in enumerate(bar(taus.unbind(), progress, "DPM-Solver++(2M)")):
        denoised = model(x, tau, region, **extra)
        tell(callback, i, tau, x, denoised)
        if i + 1 == len(taus):
            return denoised
        ahead = denoised if before is None else towards(before, denoised, forward[i])
        x = towards(x, ahead, shrink[i])
        before = denoised
    return x


@torch.no_grad()
def exponential_ab(
    model: Denoiser,
    x: Tensor,
    taus: Tensor | None = None,
    *,
    order: int = 2,
    region: Tensor | None = None,
    callback: Callback | None = None,
    progress: bool = False,
    **extra: Any,
) -> Tensor:
    """Exponential Adams-Bashforth (Hochbruck and Ostermann 2010, section 2.5; DEIS of Zhang and Chen 2023 on D):
    the integral of the polynomial through the last ``order`` values of D, exactly.

    ``order``: 1 (Euler), 2 or 3; the first steps have the order that their values allow, and the last one, to
    tau = 0, is Euler's. ``x`` ``[B, *shape]`` and ``taus`` ``[N]`` as in :func:`ansn.sampling.euler`; N evaluations.
    Returns x's shape and dtype.
    """
    if order not in ORDERS:
        raise ValueError(f"order: got {order}, expected one of {', '.join(map(str, ORDERS))}")
    taus = ladder(model, x, taus)
    shrink, weights = (1.0 - targets(taus) / taus).unbind(), adams_bashforth_weights(taus, order)
    values: list[Tensor] = []  # of D, the newest first
    for i, tau in enumerate(bar(taus.unbind(), progress, "Adams-Bashforth")):
        denoised = model(x, tau, region, **extra)
        tell(callback, i, tau, x, denoised)
        if i + 1 == len(taus):
            return denoised
        values = [denoised, *values[: order - 1]]
        mean = weights[i, 0] * denoised
        for j, value in enumerate(values[1:], 1):
            mean = mean + weights[i, j] * value
        x = towards(x, mean, shrink[i])
    return x


def two_step_weights(taus: Tensor) -> Tensor:
    """``1 + h_i / (2 h_{i-1})`` for each of the N levels, which takes ``D_{i-1}`` beyond ``D_i``; 1 for the first and
    the last, which have no such step."""
    h = -taus.log().diff()
    return torch.cat((taus.new_ones(1), 1.0 + h[1:] / (2.0 * h[:-1]), taus.new_ones(1)))[: len(taus)]


def adams_bashforth_weights(taus: Tensor, order: int) -> Tensor:
    """Weights ``[N, order]`` of D's values, the newest first, in the mean that a step moves towards; rows sum to 1.

    ``w_j = int_0^h exp(-(h - s)) l_j(s) ds / (1 - exp(-h))``, l_j Lagrange's polynomials on the last levels. They
    solve ``sum_j w_j t_j^p = m_p``, ``p < order``, with t_j <= 0 where the values lie from here and m_p the moments
    ``int_0^h exp(-(h - s)) s^p ds = h^p - p m_{p-1}`` over ``m_0``.
    """
    at = -taus.double().log()
    weights = torch.zeros(len(taus), order, dtype=torch.float64, device=taus.device)
    weights[-1, 0] = 1.0
    power = torch.arange(order, device=taus.device).unsqueeze(1)
    for i in range(len(taus) - 1):
        values, h = min(order, i + 1), at[i + 1] - at[i]
        moments = [-torch.expm1(-h)]
        for p in range(1, values):
            moments.append(h**p - p * moments[-1])
        where = at[i + 1 - values : i + 1].flip(0) - at[i]
        matrix = where.unsqueeze(0) ** power[:values]
        # Not `solve`, whose look at the result waits for a GPU; the levels differ, so the matrix is regular.
        solution, _ = torch.linalg.solve_ex(matrix, torch.stack(moments) / moments[0])
        weights[i, :values] = solution
    return weights.to(taus.dtype)
