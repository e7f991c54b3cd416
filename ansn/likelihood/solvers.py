"""Integrators of the flow and its log-density: explicit Runge-Kutta methods, and scipy's with its own steps."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Slopes = Callable[[float, Tensor], tuple[Tensor, Tensor]]
"""``slopes(u, w)``: ``dw/du`` ``[b, d]`` and the rate of the log-density, float64 ``[P, b]``."""

# Butcher tableaux: what each stage takes of the slopes before it, its place in the step, the weights of the sum.
TABLEAUX: dict[str, tuple[list[list[float]], list[float], list[float]]] = {
    "heun": ([[], [1.0]], [0.0, 1.0], [1 / 2, 1 / 2]),
    "rk4": ([[], [1 / 2], [0.0, 1 / 2], [0.0, 0.0, 1.0]], [0.0, 1 / 2, 1 / 2, 1.0], [1 / 6, 1 / 3, 1 / 3, 1 / 6]),
}
SOLVERS = (*TABLEAUX, "rk45")


def integrated(slopes: Slopes, w: Tensor, us: list[float], solver: str, rtol: float) -> tuple[Tensor, Tensor, int]:
    """From ``us[0]`` to ``us[-1]``: w there, what the log-density gained ``[P, b]``, evaluations of the slopes."""
    if solver == "rk45":
        return _adaptive(slopes, w, us, rtol)
    before, places, weights = TABLEAUX[solver]
    gain: Tensor | float = 0.0
    for u, following in itertools.pairwise(us):
        h = following - u
        ways: list[Tensor] = []
        rates: list[Tensor] = []
        for row, place in zip(before, places, strict=True):
            moved = w + h * _combined(row, ways) if row else w
            way, rate = slopes(u + place * h, moved)
            ways.append(way)
            rates.append(rate)
        w = w + h * _combined(weights, ways)
        gain = gain + h * _combined(weights, rates)
    assert isinstance(gain, Tensor)
    return w, gain, len(weights) * (len(us) - 1)


def _adaptive(slopes: Slopes, w: Tensor, us: list[float], rtol: float) -> tuple[Tensor, Tensor, int]:
    """Dormand-Prince, the batch and its log-densities as one system."""
    from scipy.integrate import solve_ivp  # slow to import: only when used

    size = w.numel()
    # scipy asks for the number of unknowns; the slopes alone know how many estimates a row has.
    rates = slopes(us[0], w)[1].shape

    def flat(u: float, state: Any) -> Any:
        way, rate = slopes(u, torch.from_numpy(state[:size]).to(w).reshape(w.shape))
        return torch.cat((way.double().flatten(), rate.flatten())).cpu().numpy()

    start = torch.cat((w.double().flatten().cpu(), torch.zeros(rates.numel(), dtype=torch.float64)))
    done = solve_ivp(flat, (us[0], us[-1]), start.numpy(), method="RK45", rtol=rtol, atol=rtol)
    if not done.success:
        expected = "a larger rtol, or a model that is trained"
        raise ValueError(f"solver: got an rk45 that stopped ({done.message}), expected {expected}")
    end = torch.from_numpy(done.y[:, -1]).to(w.device)
    return end[:size].to(w).reshape(w.shape), end[size:].reshape(rates), done.nfev + 1


def _combined(coefficients: list[float], slopes: list[Tensor]) -> Tensor:
    return torch.stack([a * slope for a, slope in zip(coefficients, slopes, strict=True)]).sum(0)
