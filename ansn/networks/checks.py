"""Argument checks that the networks share: one clear line that names the argument, what came and what was
expected.

Checks of values (is every label in range?) read the tensor, so they run only where that costs nothing: on the
CPU and outside `torch.compile`. Checks of shapes and dtypes always run.
"""

from __future__ import annotations

import torch
from torch import Tensor


def check_image(x: Tensor, channels: int, min_size: int) -> None:
    """Raise ValueError unless `x` is floating and [B, channels, H, W] with H, W >= min_size."""
    if x.ndim != 4:
        raise ValueError(f"x: expected images [B, {channels}, H, W], got shape {tuple(x.shape)}")
    if x.shape[1] != channels:
        raise ValueError(f"x: this network takes {channels} channel(s), got {x.shape[1]} (shape {tuple(x.shape)})")
    if min(x.shape[2:]) < min_size:
        raise ValueError(
            f"x: images of {x.shape[2]}x{x.shape[3]} are too small for this network, "
            f"which needs at least {min_size}x{min_size}"
        )
    if not x.is_floating_point():
        raise ValueError(f"x: expected a floating dtype, got {x.dtype}")


def check_level_index(level: Tensor | None, num_levels: int, batch: int) -> Tensor:
    """Return `level` if it is int64 [batch] with values in 0..num_levels-1; raise ValueError otherwise."""
    if level is None:
        raise ValueError(f"level: this network needs an int64 index [B] into its {num_levels} levels, got None")
    _check_vector("level", level, batch)
    if level.dtype != torch.int64:
        raise ValueError(f"level: expected int64 indices into the {num_levels} levels, got {level.dtype}")
    _check_range("level", level, num_levels - 1)
    return level


def check_log_level(level: Tensor | None, batch: int) -> Tensor:
    """Return `level` if it is floating [batch] (log(tau) / 4); raise ValueError otherwise."""
    if level is None:
        raise ValueError("level: this network needs log(tau)/4 as a float tensor [B], got None")
    _check_vector("level", level, batch)
    if not level.is_floating_point():
        raise ValueError(f"level: expected a floating dtype (log(tau)/4), got {level.dtype}")
    return level


def check_labels(y: Tensor | None, num_classes: int | None, batch: int) -> None:
    """Raise ValueError unless `y` is None or int64 [batch] in 0..num_classes (the last: "no class")."""
    if y is None:
        return
    if num_classes is None:
        raise ValueError("y: this network was built without num_classes, so it takes no labels")
    _check_vector("y", y, batch)
    if y.dtype != torch.int64:
        raise ValueError(f"y: expected int64 class labels, got {y.dtype}")
    _check_range("y", y, num_classes)


def check_sigma(sigma: Tensor, batch: int) -> None:
    """Raise ValueError unless `sigma` is floating [batch]."""
    _check_vector("sigma", sigma, batch)
    if not sigma.is_floating_point():
        raise ValueError(f"sigma: expected a floating dtype, got {sigma.dtype}")


def check_positive(name: str, value: int) -> int:
    """Return `value` if it is an int >= 1; raise ValueError otherwise."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}: expected a positive integer, got {value!r}")
    return value


def check_num_classes(num_classes: int | None) -> int | None:
    """Return `num_classes` if it is None or an int >= 1; raise ValueError otherwise."""
    return None if num_classes is None else check_positive("num_classes", num_classes)


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> str:
    """Return `value` if it is one of `choices`; raise ValueError otherwise."""
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}, got {value!r}")
    return value


def check_dropout(dropout: float) -> float:
    """Return `dropout` if it lies in [0, 1); raise ValueError otherwise."""
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"dropout: expected a probability in [0, 1), got {dropout!r}")
    return float(dropout)


def _check_vector(name: str, value: Tensor, batch: int) -> None:
    if not isinstance(value, Tensor):
        raise ValueError(f"{name}: expected a tensor [B] with B = {batch}, got {type(value).__name__}")
    if value.ndim != 1 or value.shape[0] != batch:
        raise ValueError(f"{name}: expected shape [B] with B = {batch}, got {tuple(value.shape)}")


def _check_range(name: str, value: Tensor, largest: int) -> None:
    if torch.compiler.is_compiling() or value.device.type != "cpu" or value.numel() == 0:
        return
    low, high = int(value.min()), int(value.max())
    if low < 0 or high > largest:
        raise ValueError(f"{name}: expected values in 0..{largest}, got {low}..{high}")
