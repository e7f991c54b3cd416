"""What the samplers share: the progress bar, the callback's dictionary and the schedule's checks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from rich.progress import track
from torch import Tensor

from ansn.denoiser import Denoiser

Callback = Callable[[dict[str, Any]], None]
"""Called at each step with ``{"i": step, "sigma": tau, "x": x~, "denoised": D(x~, tau)}``, k-diffusion's keys."""

NoiseSampler = Callable[[int], Tensor]
"""``noise_sampler(step)`` returns white noise ``z ~ N(0, I)``, x's shape, that replaces the counter-based draw."""

T = TypeVar("T")


def bar(steps: Iterable[T], progress: bool, text: str) -> Iterable[T]:
    """The steps, behind a progress bar if asked."""
    return track(list(steps), description=text, transient=True) if progress else steps


def tell(callback: Callback | None, i: int, tau: Tensor, x: Tensor, denoised: Tensor) -> None:
    if callback is not None:
        callback({"i": i, "sigma": tau, "x": x, "denoised": denoised})


def ladder(model: Denoiser, x: Tensor, taus: Tensor | None) -> Tensor:
    """Decreasing levels ``[N]`` in x's arithmetic; the noise model's own by default."""
    levels = model.noise.tau if taus is None else torch.as_tensor(taus)
    wrong = levels.ndim != 1 or len(levels) < 1
    if not wrong and not torch.compiler.is_compiling():  # a graph cannot branch on values
        wrong = bool((levels <= 0).any()) or bool((levels.diff() >= 0).any())
    if wrong:
        raise ValueError("taus: expected a tensor [N] of levels > 0 that decrease strictly")
    return levels.to(device=x.device, dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)
