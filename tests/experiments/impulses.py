"""What a linear sampler makes of a mean and a variance, by one impulse of noise at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def moments(sampler: Callable[..., Tensor], rows: Tensor, draws: int, variance: float) -> tuple[Tensor, Tensor]:
    """Of each direction, from mean 1 and this variance; ``rows``: the directions. ``sampler(start, noise_sampler=)``
    draws so many times."""

    def run(start: Tensor, at: int | None) -> Tensor:
        impulse: Any = lambda number: rows if number == at else torch.zeros_like(rows)  # noqa: E731
        return sampler(start, noise_sampler=impulse).diagonal()

    mean = run(rows, None)
    return mean, sum(run(torch.zeros_like(rows), at) ** 2 for at in range(draws)) + variance * mean**2
