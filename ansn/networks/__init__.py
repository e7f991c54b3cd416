"""Networks: plain `nn.Module`s that know nothing of noise covariances.

Common call: `network(x, level=None, y=None)` returns [B, C, *sizes], the data's shape. x has that shape too or, for a
network built with `inputs` > 1, is [B, inputs * C, *sizes]: further inputs of the data's shape, one after the other
along axis 1. `network.conditioning` says what `level` is: "log", a float tensor [B] of log(tau)/4; "index", int64 [B]
into the ladder; "none", ignored. `y` is int64 [B], only for a network built with `num_classes`; its value num_classes
(or y = None) stands for "no class".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from .checks import check_choice
from .mlp import MLP
from .published import from_published
from .refinenet import NCSN, NCSNv2, NCSNv2Deeper, NCSNv2Deepest
from .unet import UNet

__all__ = ["MLP", "NCSN", "NETWORKS", "NCSNv2", "NCSNv2Deeper", "NCSNv2Deepest", "UNet", "build", "from_published"]

NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "mlp": MLP,
    "unet": UNet.for_shape,
    "ncsn": NCSN.for_shape,
    "ncsnv2": NCSNv2.for_shape,
    "ncsnv2-deeper": NCSNv2Deeper.for_shape,
    "ncsnv2-deepest": NCSNv2Deepest.for_shape,
}
"""Name -> builder, called as `builder(shape, num_classes=..., **options)`."""


def build(name: str, shape: tuple[int, ...], num_classes: int | None = None, **options: Any) -> nn.Module:
    """Build the network `name` for samples of `shape`.

    Args:
        name: "mlp" (any shape), "unet" (lines (C, L), images (C, H, W), volumes (C, D, H, W)), "ncsn", "ncsnv2",
            "ncsnv2-deeper" or "ncsnv2-deepest" (images).
        shape: of one sample, without the batch.
        num_classes: number of labels, or None.
        options: the other arguments of the network's class.

    Raises:
        ValueError: unknown name, a shape the network cannot take, or a wrong option value.
        TypeError: an option that the network does not have.
    """
    return NETWORKS[check_choice("name", name, NETWORKS)](tuple(shape), num_classes=num_classes, **options)
