"""Classifier-free guidance: two denoisers of one network, the class's and everybody's, extrapolated."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ansn.denoiser import Denoiser
from ansn.sampling.wrapper import Wrapper


class Guided(Wrapper):
    r"""``D = D_null + w (D_y - D_null)`` (Ho & Salimans 2022), at the levels inside ``interval`` only, ``D_y`` at the
    others (Kynkaanniemi et al. 2024).

    ``w = 1`` is the conditional model, ``w = 0`` the unconditional one, ``w > 1`` moves away from what all classes
    share. Both come out of one call of the network on a batch of twice the rows.

    With one covariance ``D_null`` is the denoiser of all the data. Where the covariance has a region for each class
    the region gives noise and preconditioning to both; ``D_null`` is then what the network learned of rows of
    every class, each standardised by its own region's mean and scale, read in this region's units: a class without
    features of its own rather than a model of the data. (Unconditional samples of such a model draw the class.)

    Args:
        model: a denoiser trained with label dropout.
        weight: w.
        interval: ``(lowest, highest)`` level where w acts, both included, data standard deviations.

    Called with ``y``, int64 ``[B]``. Raises ValueError for a model trained without label dropout, a weight that is not
    finite, an interval that is not ``0 <= lo <= hi``, and a call without ``y``.
    """

    def __init__(self, model: Denoiser, weight: float, interval: tuple[float, float] = (0.0, math.inf)) -> None:
        super().__init__(model)
        if not model.label_dropout:
            raise ValueError("guidance: got a model trained without label dropout, expected one of label_dropout > 0")
        if not math.isfinite(weight):
            raise ValueError(f"guidance: got {weight}, expected a finite weight")
        low, high = interval
        if not 0.0 <= low <= high:
            raise ValueError(f"guidance_interval: got {low}, {high}, expected 0 <= lowest <= highest level")
        self.weight, self.interval = float(weight), (float(low), float(high))

    def forward(
        self,
        x: Tensor,
        sigma: float | Tensor,
        region: Tensor | None = None,
        *,
        y: Tensor | None = None,
        **extra: Any,
    ) -> Tensor:
        """``D``, shape and dtype of ``x`` ``[B, *shape]``."""
        if y is None:
            raise ValueError(f"y: got None, but guidance needs a class, expected int64 [{x.shape[0]}]")
        tau = self._tau(x, sigma)
        low, high = self.interval
        inside = (tau >= low) & (tau <= high)
        # A level of the host is free to look at, a GPU's is not: there the second half is computed and not used.
        known = tau.device.type == "cpu" and not torch.compiler.is_compiling()
        if known and not bool(inside.any()):
            return self.model(x, sigma, region, y=y, **extra)
        twice = {"region": None if region is None else torch.cat((region, region))}
        labels = torch.cat((y, torch.full_like(y, self.num_classes or 0)))
        conditional, null = self.model(torch.cat((x, x)), torch.cat((tau, tau)), **twice, y=labels, **extra).chunk(2)
        weight = torch.where(inside, self.weight, 1.0).to(x.dtype).reshape((-1,) + (1,) * (x.ndim - 1))
        return torch.lerp(null, conditional, weight)

    def extra_repr(self) -> str:
        return f"weight={self.weight}, interval={self.interval}"
