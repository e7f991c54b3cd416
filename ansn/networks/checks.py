"""Argument checks that the networks share: one clear line that names the argument, what came and what was
expected.

Checks of values (is every label in range?) read the tensor, so they run only where that costs nothing: on the
CPU and outside `torch.compile`. Checks of shapes and dtypes always run.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ansn.errors import whole

SIZES = {1: "L", 2: "H, W", 3: "D, H, W"}
"""The sizes of a line, an image and a volume, by the number of axes."""


def check_shape(network: str, shape: Sequence[int], axes: Sequence[int]) -> None:
    """Raise ValueError unless one sample's `shape` is (C, sizes) with a number of sizes in `axes`."""
    if len(shape) - 1 not in axes:
        expected = " or ".join(f"(C, {SIZES[n]})" for n in axes)
        raise ValueError(f"shape: got {tuple(shape)}, expected {expected} for {network}; the MLP takes any shape")


def check_size(name: str, size: Sequence[int], min_size: int, why: str = "") -> None:
    """Raise ValueError unless every axis has at least `min_size` positions."""
    if min(size) < min_size:
        raise ValueError(f"{name}: got {by(size)}, expected at least {by([min_size] * len(size))}{why}")


def check_x(x: Tensor, channels: int, axes: int, min_size: int) -> None:
    """Raise ValueError unless `x` is floating and [B, channels, sizes] with `axes` sizes, all >= min_size."""
    if x.ndim != 2 + axes or x.shape[1] != channels:
        raise ValueError(f"x: got shape {list(x.shape)}, expected [B, {channels}, {SIZES[axes]}]")
    check_size("x", x.shape[2:], min_size)
    check_floating("x", x)


def check_floating(name: str, value: Tensor) -> None:
    """Raise ValueError unless `value` has a floating dtype."""
    if not value.is_floating_point():
        raise ValueError(f"{name}: got {value.dtype}, expected a floating dtype")


def by(size: Sequence[int]) -> str:
    """Sizes as people write them: 28x28."""
    return "x".join(map(str, size))


def check_level_index(level: Tensor | None, num_levels: int, batch: int) -> Tensor:
    """Return `level` if it is int64 [batch] with values in 0..num_levels-1; raise ValueError otherwise."""
    if level is None:
        raise ValueError(f"level: got None, expected int64 [{batch}], an index into {num_levels} levels")
    _check_vector("level", level, batch)
    if level.dtype != torch.int64:
        raise ValueError(f"level: got {level.dtype}, expected int64, an index into {num_levels} levels")
    _check_range("level", level, num_levels - 1)
    return level


def check_log_level(level: Tensor | None, batch: int) -> Tensor:
    """Return `level` if it is floating [batch] (log(tau) / 4); raise ValueError otherwise."""
    if level is None:
        raise ValueError(f"level: got None, expected log(tau)/4, floating [{batch}]")
    _check_vector("level", level, batch)
    check_floating("level", level)
    return level


def check_labels(y: Tensor | None, num_classes: int | None, batch: int) -> None:
    """Raise ValueError unless `y` is None or int64 [batch] in 0..num_classes (the last: "no class")."""
    if y is None:
        return
    if num_classes is None:
        raise ValueError("y: got labels, expected None: this network was built without num_classes")
    _check_vector("y", y, batch)
    if y.dtype != torch.int64:
        raise ValueError(f"y: got {y.dtype}, expected int64 labels")
    _check_range("y", y, num_classes)


def check_sigma(sigma: Tensor, batch: int) -> None:
    """Raise ValueError unless `sigma` is floating [batch]."""
    _check_vector("sigma", sigma, batch)
    check_floating("sigma", sigma)


def check_positive(name: str, value: int) -> int:
    """Return `value` as an int if it is a whole number >= 1; raise ValueError otherwise."""
    try:
        return whole(name, value, 1)
    except (TypeError, ValueError):
        raise ValueError(f"{name}: got {value!r}, expected a positive integer") from None


def check_num_classes(num_classes: int | None) -> int | None:
    """Return `num_classes` if it is None or an int >= 1; raise ValueError otherwise."""
    return None if num_classes is None else check_positive("num_classes", num_classes)


def check_choice(name: str, value: str, choices: Iterable[str]) -> str:
    """Return `value` if it is one of `choices`; raise ValueError otherwise."""
    if value not in choices:
        raise ValueError(f"{name}: got {value!r}, expected one of {', '.join(choices)}")
    return value


def check_dropout(dropout: float) -> float:
    """Return `dropout` if it lies in [0, 1); raise ValueError otherwise."""
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"dropout: got {dropout!r}, expected a probability in [0, 1)")
    return float(dropout)


def _check_vector(name: str, value: Tensor, batch: int) -> None:
    if not isinstance(value, Tensor):
        raise ValueError(f"{name}: got {type(value).__name__}, expected a tensor [{batch}]")
    if value.ndim != 1 or value.shape[0] != batch:
        raise ValueError(f"{name}: got shape {list(value.shape)}, expected [{batch}]")


def _check_range(name: str, value: Tensor, largest: int) -> None:
    if torch.compiler.is_compiling() or value.device.type != "cpu" or value.numel() == 0:
        return
    low, high = int(value.min()), int(value.max())
    if low < 0 or high > largest:
        raise ValueError(f"{name}: got values {low}..{high}, expected 0..{largest}")
