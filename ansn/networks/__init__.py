"""Networks: plain `nn.Module`s that know nothing of noise covariances.

Common call: `network(x, level=None, y=None)` returns a tensor of x's shape. `network.conditioning` says what
`level` is: "log", a float tensor [B] of log(tau)/4; "index", int64 [B] into the ladder; "none", ignored. `y`
is int64 [B], only for a network built with `num_classes`; its value num_classes (or y = None) stands for "no
class".
"""

from __future__ import annotations

from typing import Any

from torch import nn

from .mlp import MLP
from .refinenet import MIN_SIZE, NCSN, NCSNv2
from .unet import UNet

__all__ = ["MLP", "NAMES", "NCSN", "NCSNv2", "UNet", "build"]

NAMES = ("ncsn", "ncsnv2", "unet", "mlp")


def build(name: str, shape: tuple[int, ...], num_classes: int | None = None, **options: Any) -> nn.Module:
    """Build the network `name` for samples of `shape`.

    Args:
        name: "ncsn", "ncsnv2", "unet" (images, shape (C, H, W)) or "mlp" (any shape).
        shape: of one sample, without the batch.
        num_classes: number of labels, or None.
        options: the other arguments of the network's class.

    Raises:
        ValueError: unknown name, a shape the network cannot take, or a wrong option value.
        TypeError: an option that the network does not have.
    """
    if name not in NAMES:
        raise ValueError(f"name: expected one of {', '.join(map(repr, NAMES))}, got {name!r}")
    if name == "mlp":
        return MLP(shape, num_classes=num_classes, **options)
    if len(shape) != 3:
        raise ValueError(
            f"shape: {name!r} takes images (channels, height, width), got {tuple(shape)}; 'mlp' takes any shape"
        )
    channels, height, width = shape
    if name == "unet":
        return UNet(channels, num_classes=num_classes, image_size=(height, width), **options)
    if min(height, width) < MIN_SIZE:
        raise ValueError(
            f"shape: images of {height}x{width} are too small for {name!r}, which needs at least {MIN_SIZE}x{MIN_SIZE}"
        )
    network = NCSN if name == "ncsn" else NCSNv2
    return network(channels, num_classes=num_classes, **options)
