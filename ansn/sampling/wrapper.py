"""A denoiser around a denoiser: whoever changes what D is derives from :class:`Wrapper`."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor

from ansn.denoiser import Denoiser, unwrapped


class Wrapper(Denoiser):
    """A denoiser made from another; subclasses give ``forward``.

    It has what samplers read: ``noise``, ``network``, ``prediction="denoiser"`` whatever the inner one predicts, and
    ``f`` and ``score``, which follow from the new D. Wrappers nest. What they change by is in their ``state_dict`` and
    ``repr``, so that two that differ can be told apart.
    """

    def __init__(self, model: Denoiser) -> None:
        model = unwrapped(model)
        super().__init__(
            model.network, model.noise, skip="scalar", inputs=model.inputs, label_dropout=model.label_dropout
        )
        self.model = model

    def forward(self, x: Tensor, sigma: float | Tensor, region: Tensor | None = None, **extra: Any) -> Tensor:
        raise NotImplementedError

    @property
    def top(self) -> float:
        return self.model.top

    def prior(self, n: int, tau: float, **options: Any) -> Tensor:
        return self.model.prior(n, tau, **options)

    def of_rows(self, row: int, rows: int) -> Denoiser:
        inner = self.model.of_rows(row, rows)
        return self if inner is self.model else self.changed(model=inner)

    def changed(self, **parts: Any) -> Wrapper:
        """A shallow copy with some of its modules, buffers or attributes replaced."""
        other = copy.copy(self)
        # nn.Module keeps these in dictionaries, which the copy would share.
        other._modules, other._buffers = dict(self._modules), dict(self._buffers)
        for name, value in parts.items():
            setattr(other, name, value)
        return other
