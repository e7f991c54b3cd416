"""What a sampler did on the way: :func:`record` keeps x and the denoised D at a few levels, through its callback."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ansn.training.pictures import draw
from ansn.training.runs import Run

_KEPT = 64  # most states held while a sampler runs, which may take thousands of steps


@dataclass(frozen=True)
class Trajectory:
    """Some samples at T levels of their way, in the model's units.

    ``tau`` T decreasing levels; ``x``, ``denoised`` ``[T, n, *shape]``, what the network was given and what it made
    of it; ``samples`` ``[n, *shape]``, the end; ``method``, the sampler's name.
    """

    tau: tuple[float, ...]
    x: Tensor
    denoised: Tensor
    samples: Tensor
    method: str


class _Recorder:
    """A callback that keeps the first state of each level, and of too many levels every second one."""

    def __init__(self) -> None:
        self.states: list[tuple[float, Tensor, Tensor]] = []
        self.levels, self.every, self.last = 0, 1, -1.0

    def __call__(self, state: dict[str, Any]) -> None:
        tau = float(state["sigma"])
        if tau == self.last:
            return
        self.last = tau
        if self.levels % self.every == 0:
            self.states.append((tau, state["x"].detach().cpu().clone(), state["denoised"].detach().cpu().clone()))
            if len(self.states) > _KEPT:
                self.states, self.every = self.states[::2], 2 * self.every
        self.levels += 1


def record(run: Run, n: int, *, states: int = 7, seed: int = 0, **options: Any) -> Trajectory:
    """Draw ``n`` samples as :func:`ansn.training.pictures.draw` does and keep ``states`` levels of their way.

    The levels are evenly spaced among those the sampler visits, the first and about the last among them; ``options``
    go to the sampler. Samples ``0 .. n - 1`` are those of any draw with this seed.

    Raises ValueError naming the argument.
    """
    for name, value in (("n", n), ("states", states)):
        if value < 1:
            raise ValueError(f"{name}: got {value}, expected at least 1")
    recorder = _Recorder()
    samples = draw(run, n, seed, callback=recorder, batch_size=n, **options)
    kept = recorder.states
    if not kept:
        raise ValueError("method: got one that tells its callback of no step, expected one that does")
    index = torch.linspace(0, len(kept) - 1, min(states, len(kept)), dtype=torch.float64).round().long().tolist()
    tau, x, denoised = zip(*(kept[i] for i in index), strict=True)
    method = str(options.get("method", "dpmpp_2m"))
    return Trajectory(tuple(tau), torch.stack(x), torch.stack(denoised), samples, method)


def at_data_scale(x: Tensor, tau: Tensor, mean: Tensor) -> Tensor:
    """``m + (x - m) / sqrt(1 + tau^2)``: perturbed data shrunk to the spread of the data, so that it can be shown.

    The noise shape R has the trace of the data's covariance, so that ``x~`` has ``1 + tau^2`` times its variance.
    ``x`` ``[T, n, *shape]``, ``tau`` ``[T]``, ``mean`` ``[*shape]``.
    """
    shrink = (1.0 + tau.double() ** 2).rsqrt().reshape(-1, *(1,) * (x.ndim - 1))
    return mean + (x - mean) * shrink.to(x.dtype)
