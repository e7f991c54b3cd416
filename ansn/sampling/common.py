"""What the samplers share: the progress bar, the callback's dictionary, the schedule's checks, the coloured noise."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from ansn import ops
from ansn.covariance import AdaptiveCovariance
from ansn.denoiser import Denoiser

Callback = Callable[[dict[str, Any]], None]
"""Called at each step with ``{"i": step, "sigma": tau, "x": x~, "denoised": D(x~, tau)}``, k-diffusion's keys."""

NoiseSampler = Callable[[int], Tensor]
"""``noise_sampler(step)`` returns white noise ``z ~ N(0, I)``, x's shape, that replaces the counter-based draw."""

T = TypeVar("T")


def bar(steps: Iterable[T], progress: bool, text: str) -> Iterable[T]:
    """The steps, behind a progress bar if asked."""
    if not progress:
        return steps
    from rich.progress import track  # slow to import: only when used

    return track(list(steps), description=text, transient=True)


def tell(callback: Callback | None, i: int, tau: Tensor, x: Tensor, denoised: Tensor) -> None:
    if callback is not None:
        callback({"i": i, "sigma": tau, "x": x, "denoised": denoised})


def decreasing(levels: Tensor) -> Tensor:
    """The levels. Raises ValueError, naming ``taus``, unless they are ``[N]``, finite, > 0 and decrease strictly."""
    wrong = levels.ndim != 1 or len(levels) < 1
    if not wrong and not torch.compiler.is_compiling():  # a graph cannot branch on values
        wrong = bool(((levels <= 0) | ~levels.isfinite()).any()) or bool((levels.diff() >= 0).any())
    if wrong:
        told = textwrap.shorten(str(levels.tolist()), 80)
        raise ValueError(f"taus: got {told}, expected a tensor [N] of finite levels > 0 that decrease strictly")
    return levels


def label_rows(y: int | Tensor | Sequence[int] | None, n: int) -> Tensor | None:
    """Labels int64 ``[n]`` of a number, a sequence or a tensor. Raises ValueError naming ``y``."""
    if y is None:
        return None
    labels = torch.as_tensor(y)
    labels = labels.expand(n) if labels.ndim == 0 else labels
    if labels.shape != (n,) or labels.dtype != torch.int64:
        raise ValueError(f"y: got {labels.dtype} of shape {list(labels.shape)}, expected a number or int64 [{n}]")
    return labels


def known_alike(model: Denoiser, region: Tensor | None, y: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Region and label of rows, int64 ``[B]`` on the model's device: one and the same where the regions are the classes
    (math section 6). Raises ValueError for a label that was never learned, or that is no region there."""
    regions = model.noise.covariance.regions
    same = region is not None and model.num_classes == regions
    if y is not None:
        model.check_labels(y)
        if same and bool((y == regions).any()):
            raise ValueError(f"y: got {regions}, expected labels 0..{regions - 1}: the class is the region too")
        y = y.to(model.noise.tau.device)
    if not same:
        return region, y
    return (region, region) if y is None else (y, y)


def ladder(model: Denoiser, x: Tensor, taus: Tensor | None) -> Tensor:
    """Decreasing levels ``[N]`` in x's arithmetic; the noise model's own by default."""
    levels = decreasing(model.noise.tau if taus is None else torch.as_tensor(taus))
    return levels.to(device=x.device, dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)


def towards(x: Tensor, goal: Tensor, c: Tensor) -> Tensor:
    """``x + c (goal - x)``; ``c`` ``[]``. In one torch call where all have one dtype; else c keeps its own."""
    return torch.lerp(x, goal, c) if c.dtype == x.dtype == goal.dtype else ops.colored_step(x, goal, c=c)


def targets(taus: Tensor) -> Tensor:
    """Where each step leads: the next level, and 0 from the last one; ``[N]``."""
    return torch.cat((taus[1:], taus.new_zeros(1)))


@dataclass(frozen=True)
class StepNoise:
    """Noise of a stochastic sampler: ``z`` of ``(seed, row + r, number, stream)``, coloured as in training.

    ``covariance``: None for white noise. ``sampler`` replaces the draw.
    """

    covariance: AdaptiveCovariance | None
    region: Tensor | None
    seed: int
    row: int
    stream: int
    sampler: NoiseSampler | None = None

    @classmethod
    def of(
        cls, model: Denoiser, region: Tensor | None, seed: int, row: int, stream: int, sampler: NoiseSampler | None
    ) -> StepNoise:
        return cls(model.noise.covariance, region, seed, row, stream, sampler)

    def step(self, x: Tensor, number: int, b: float | Tensor, **drift: Any) -> Tensor:
        """``x + c (D - x) + L (a f + b z)``; ``drift`` holds ``denoised`` and ``c``, or ``f`` and ``a``, or neither.

        With a noise sampler the noise enters as a second step, through f.
        """
        if self.sampler is None:
            counters: dict[str, Any] = {"seed": self.seed, "row": self.row, "step": number, "stream": self.stream}
            return self._step(x, **drift, b=b, **counters)
        if drift:
            x = self._step(x, **drift)
        return self._step(x, f=self.sampler(number).to(x), a=b)

    def _step(self, x: Tensor, **options: Any) -> Tensor:
        if self.covariance is None:
            return ops.colored_step(x, **options)
        return self.covariance.step(x, region=self.region, **options)


def colored_noise_sampler(
    model: Denoiser, x: Tensor, region: Tensor | None = None, seed: int = 0, row: int = 0
) -> Callable[[Any, Any], Tensor]:
    """k-diffusion's ``noise_sampler(sigma, sigma_next)``, giving ``L z`` of x's shape ``[B, *shape]`` and dtype:
    noise of the training's own shape; ``region`` int64 ``[B]``, row r of x being row ``row + r`` of the draw.

    Hand it to k-diffusion's stochastic samplers, whose white noise would be wrong for this denoiser. Call number i
    draws ``z`` of ``(seed, row + r, i)``, whatever the levels: make a new one for each batch. Where k-diffusion takes
    no noise sampler (churn in ``sample_heun``), leave its noise at 0.
    """
    noise = StepNoise.of(model, region, seed, row, ops.REVERSE, None)
    calls = itertools.count()
    return lambda sigma, sigma_next: noise.step(torch.zeros_like(x), next(calls), 1.0)
