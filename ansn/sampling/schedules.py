"""Which levels a solver of the flow visits, apart from the solver.

A schedule is a function ``(top, bottom, n)`` that returns n levels, float64 ``[n]`` on the CPU, decreasing from top to
bottom (both data standard deviations, > 0); n = 1 is the top alone. :func:`optimised` finds one for a model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ansn import levels
from ansn.denoiser import Denoiser, resting, unwrapped
from ansn.errors import whole
from ansn.sampling.common import known_alike, label_rows
from ansn.sampling.gaussian_flow import gaussian_2m
from ansn.sampling.multistep import dpmpp_2m

Schedule = Callable[[float, float, int], Tensor]


def polynomial(top: float, bottom: float, n: int, p: float = 3.0) -> Tensor:
    """Even steps in ``tau^(1/p)``: Karras et al. 2022, Eq. 5, with their rho = p; 1 is even in tau, a large p in
    ``ln tau``."""
    return _tensor((top,) if n == 1 else levels.karras(top, bottom, n=n, rho=p).tau)


def karras(top: float, bottom: float, n: int) -> Tensor:
    """:func:`polynomial` with Karras's p = 7."""
    return polynomial(top, bottom, n, 7.0)


def few_steps(top: float, bottom: float, n: int) -> Tensor:
    """:func:`polynomial` with p = 3 that ends at ``max(bottom, 4 / n^2)``, at most half the top.

    With few steps the low levels are not worth a step each: what the last one, to 0, blurs is of the order tau_N^2, and
    what a solver of second order loses on the way of the order 1 / n^2. From 20 levels on the end is that of a ladder
    to 0.01. Measured in docs/samplers.md.
    """
    return polynomial(top, max(bottom, min(4.0 / n**2, 0.5 * top)), n, 3.0)


def log_linear(top: float, bottom: float, n: int) -> Tensor:
    """Even steps in ``ln tau``: a geometric sequence."""
    return _tensor((top,) if n == 1 else levels.geometric(top, bottom, n=n).tau)


SCHEDULES: dict[str, Schedule] = {
    "few_steps": few_steps, "karras": karras, "log_linear": log_linear, "polynomial": polynomial
}  # fmt: skip
"""Those that need no model."""


def names() -> tuple[str, ...]:
    """What a draw knows by name: of :data:`SCHEDULES`, and :func:`optimised`."""
    return *SCHEDULES, "optimised"


@torch.no_grad()
def optimised(
    model: Denoiser,
    n: int,
    top: float,
    bottom: float,
    *,
    sampler: Callable[..., Tensor] = dpmpp_2m,
    rows: int = 64,
    seed: int = 0,
    **extra: Any,
) -> Tensor:
    """The n levels from which ``sampler`` comes nearest to the end of the flow, measured on ``rows`` draws.

    What is made small is the mean over the rows of ``rms(x - x_0)``, x_0 the end of a reference of 40 Karras levels
    from the same start. First all pairs of an exponent and a last level of :func:`polynomial`, then each level but the
    first in turn, moved by a part of the gap to its neighbours and kept where that is better. About 50 schedules are
    tried, ``50 n rows`` evaluations: as many as 50 ``rows`` samples take. Keep the result.

    ``sampler``: deterministic, of the flow. Deterministic itself: a function of the model, ``seed`` and the numbers.
    ``extra`` goes to the network, ``y`` a label or one of each row; rows are else of all regions and classes in turn.
    Raises TypeError or ValueError naming the argument. Returns float64 ``[n]`` on the CPU.
    """
    n, rows, model = whole("n", n, 1), whole("rows", rows, 1), unwrapped(model)
    if n == 1:
        return _tensor((top,))
    run = _runner(model, top, rows, seed, extra)
    # The two end differently: with D at the last level, or at tau = 0.
    end = run(gaussian_2m if sampler is gaussian_2m else dpmpp_2m, karras(top, bottom, _REFERENCE))

    def deviation(taus: Tensor) -> float:
        away = run(sampler, taus) - end
        return float(away.flatten(1).double().square().mean(1).sqrt().mean())

    lasts = sorted({min(max(bottom, share * top), 0.5 * top) for share in _LAST})
    candidates = [polynomial(top, last, n, p) for p in _EXPONENTS for last in lasts]
    best, taus = min(((deviation(taus), taus) for taus in candidates), key=lambda pair: pair[0])
    for share in (0.4, 0.2):
        for i in range(1, n):
            for tried in _moved(taus, i, share, bottom):
                value = deviation(tried)
                if value < best:
                    best, taus = value, tried
    return taus


_REFERENCE = 40
_EXPONENTS = (2.0, 3.0, 5.0, 7.0, 12.0)
_LAST = (0.0, 0.005, 0.01, 0.02, 0.04)


def _moved(taus: Tensor, i: int, share: float, bottom: float) -> list[Tensor]:
    """The schedule with level i moved up and down, in ``ln tau``, by a share of the gap to its neighbour."""
    logs = taus.log()
    below = logs[i + 1] if i + 1 < len(taus) else torch.tensor(bottom, dtype=torch.float64).log()
    out = []
    for other in (logs[i - 1], below):
        moved = logs.clone()
        moved[i] = logs[i] + share * (other - logs[i])
        if moved[i] != logs[i]:
            out.append(moved.exp())
    return out


def _runner(
    model: Denoiser, top: float, rows: int, seed: int, extra: dict[str, Any]
) -> Callable[[Callable[..., Tensor], Tensor], Tensor]:
    """``run(sampler, taus)`` from one and the same start, in the model's evaluation mode."""
    model = resting(model).of_rows(0, rows)
    noise, device, classes = model.noise, model.noise.tau.device, model.num_classes
    region = torch.arange(rows, device=device) % noise.covariance.regions if noise.covariance.regions > 1 else None
    y = label_rows(extra.get("y", torch.arange(rows) % classes if classes else None), rows)
    region, y = known_alike(model, region, y)
    extra = extra if y is None else extra | {"y": y}
    start = model.prior(rows, top, region=region, y=y, seed=seed)

    return lambda sampler, taus: sampler(model, start, taus, region=region, **extra)


def _tensor(taus: tuple[float, ...]) -> Tensor:
    return torch.tensor(taus, dtype=torch.float64)
