"""A compact U-Net (Ronneberger et al. 2015), as in diffusion models (Dhariwal & Nichol 2021), for lines (C, L),
images (C, H, W) and volumes (C, D, H, W): the same network with convolutions along one, two or three axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .checks import (
    SIZES,
    by,
    check_choice,
    check_dropout,
    check_num_classes,
    check_positive,
    check_shape,
    check_size,
    check_x,
)
from .embedding import FiLM, build_embedding, embed_condition

Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d
CONVOLUTIONS: dict[int, type[Conv]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
# Attention's time grows with the square of the positions, on some devices its memory too. Beyond as many as a 64x64
# image or a 16x16x16 volume has, it is not there unless asked for.
MOST_ATTENDED = 4096


def group_count(channels: int) -> int:
    """The most groups, at most 32, that divide `channels` into groups of four or more."""
    return max(g for g in range(1, 33) if channels % g == 0 and (g == 1 or channels // g >= 4))


def zero_init(layer: Conv | nn.Linear) -> Conv | nn.Linear:
    """Zero the weight and bias, so that the residual branch (or the network) starts as zero."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def convolution(inputs: int, outputs: int, periodic: Sequence[bool], stride: int = 1) -> Conv:
    """Of size 3, one axis for each flag; where it is set the last position is the first one's neighbour, elsewhere
    zeros are. The parameters are those of a plain convolution."""
    padding: Any = tuple(int(not p) for p in periodic)
    layer = CONVOLUTIONS[len(periodic)](inputs, outputs, 3, stride, padding)
    if any(periodic):
        layer.register_forward_pre_hook(partial(_wrap, [axis for axis, p in enumerate(periodic, 2) if p]))
    return layer


def _wrap(axes: Sequence[int], layer: nn.Module, args: tuple[Tensor]) -> Tensor:
    """One position more at both ends of these axes. Faster than `F.pad`, and it takes any of the axes."""
    (x,) = args
    for axis in axes:
        n = x.shape[axis]
        x = torch.cat([x.narrow(axis, n - 1, 1), x, x.narrow(axis, 0, 1)], axis)
    return x


def fold(x: Tensor, periodic: Sequence[bool] = (False, False, False)) -> Tensor:
    """[B, C, n_1, ...] to [B, 2^axes C, ceil(n_1 / 2), ...]: blocks of two positions along every axis into channels, as
    `F.pixel_unshuffle` does for images. An odd edge is padded with zeros, along a periodic axis with the first
    position."""
    axes = x.ndim - 2
    for axis, p in zip(range(2, x.ndim), periodic, strict=False):
        if p and x.shape[axis] % 2:
            x = torch.cat([x, x.narrow(axis, 0, 1)], axis)
    x = F.pad(x, [pad for n in reversed(x.shape[2:]) for pad in (0, n % 2)])  # begins at the last axis
    for i in range(axes):
        x = x.unflatten(2 + 2 * i, (-1, 2))
    return x.permute(0, 1, *range(3, 3 + 2 * axes, 2), *range(2, 2 + 2 * axes, 2)).flatten(1, 1 + axes)


def unfold(x: Tensor, size: Sequence[int]) -> Tensor:
    """The inverse of `fold`, cropped to `size`."""
    axes = x.ndim - 2
    x = x.unflatten(1, (-1, *[2] * axes))
    x = x.permute(0, 1, *(j for i in range(2, 2 + axes) for j in (i + axes, i)))
    for i, n in enumerate(size, 2):
        x = x.flatten(i, i + 1).narrow(i, 0, n)
    return x


class ResBlock(nn.Module):
    """shortcut(x) + conv2(dropout(SiLU(FiLM(norm2(conv1(SiLU(norm1(x)))), e)))), size 3, conv2 zero-initialised.

    norm is GroupNorm; FiLM is h (1 + s) + t with s, t linear in the embedding e [B, dim] (absent with dim 0);
    the shortcut, of size 1, is there where the channels change. Input [B, inputs, ...]; output [B, outputs, ...].
    """

    def __init__(self, inputs: int, outputs: int, periodic: Sequence[bool], dim: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(group_count(inputs), inputs)
        self.conv1 = convolution(inputs, outputs, periodic)
        # FiLM brings its own scale and shift; a norm with one too would be the same thing twice.
        self.norm2 = nn.GroupNorm(group_count(outputs), outputs, affine=dim == 0)
        self.film = FiLM(dim, outputs) if dim else None
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zero_init(convolution(outputs, outputs, periodic))
        self.shortcut = CONVOLUTIONS[len(periodic)](inputs, outputs, 1) if inputs != outputs else None

    def forward(self, x: Tensor, embedding: Tensor | None) -> Tensor:
        h = self.norm2(self.conv1(F.silu(self.norm1(x))))
        if self.film is not None and embedding is not None:
            scale, shift = (v.unflatten(1, (-1, *[1] * (h.ndim - 2))).to(h.dtype) for v in self.film(embedding))
            h = torch.addcmul(shift, h, scale)
        h = self.conv2(self.dropout(F.silu(h)))
        return h + (x if self.shortcut is None else self.shortcut(x))


class SelfAttention(nn.Module):
    """x + W_o attention(W_q h, W_k h, W_v h), h = GroupNorm(x), over the positions as tokens.

    W_o is zero-initialised. Heads of about 32 channels. Input and output [B, C, ...].
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads = max(h for h in range(1, max(1, channels // 32) + 1) if channels % h == 0)
        self.norm = nn.GroupNorm(group_count(channels), channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.project = zero_init(nn.Linear(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        channels, size = x.shape[1], x.shape[2:]
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # a view where x is channels_last
        q, k, v = self.qkv(tokens).unflatten(2, (3, self.heads, channels // self.heads)).permute(2, 0, 3, 1, 4)
        h = F.scaled_dot_product_attention(q, k, v)  # [B, heads, positions, C / heads]
        h = self.project(h.transpose(1, 2).flatten(2))
        return x + h.transpose(1, 2).unflatten(2, size)


class Stage(nn.Module):
    """Residual blocks at one resolution, each followed by self-attention where `attention` is set."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        periodic: Sequence[bool],
        blocks: int,
        attention: bool,
        dim: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            ResBlock(inputs if i == 0 else outputs, outputs, periodic, dim, dropout) for i in range(blocks)
        )
        self.attention = nn.ModuleList(SelfAttention(outputs) for _ in range(blocks if attention else 0))

    def forward(self, x: Tensor, embedding: Tensor | None) -> Tensor:
        for i, block in enumerate(self.blocks):
            x = block(x, embedding)
            if len(self.attention):
                x = self.attention[i](x)
        return x


class UNet(nn.Module):
    r"""U-Net told the noise level (and the class) by FiLM.

    Stage s has width * multipliers[s] channels at 1/2^s of the inner resolution. Down: `blocks` residual blocks, then
    a convolution of size 3 and stride 2. Up: convolution of size 1 to the finer stage's channels, nearest upsampling to
    exactly the skip's size (so any size will do: 28 -> 14 -> 7 -> 4 -> 7 -> 14 -> 28, or 2 -> 1 -> 1 -> 1 -> 2),
    concatenation with the skip, `blocks` residual blocks. The output convolution is zero-initialised: a new network
    returns 0.

    Args:
        channels: of the data.
        width: channels of the first stage, at least 4.
        multipliers: one per stage.
        blocks: residual blocks per stage, on the way down and on the way up.
        attention: one flag per stage, obeyed at any cost. None for the coarsest only, and not even there where
            `image_size` makes that more than 4096 positions, such as an image of 512x512 or a line of 100,000 with
            three stages: attention over n positions takes time n^2.
        num_classes: number of labels, or None.
        dropout: probability, in the residual blocks.
        stem_stride: 1, or 2 to fold blocks of two positions along every axis into channels first and unfold them
            last (an odd edge is padded with zeros and cropped off again). About four times faster for images.
        conditioning: "log" (level = log(tau)/4, [B]) or "none".
        image_size: one size per axis, or one for all: decides on `attention` where that is None. `forward` still
            takes other sizes.
        axes: 1 for lines, 2 for images, 3 for volumes.
        inputs: number of tensors of the data's shape in x, one after the other along its axis 1.
        periodic: whether the last position of an axis is the first one's neighbour, for all axes or one flag for each
            (a map of the Earth: False, True). The network commutes with cyclic shifts along such an axis by multiples
            of stem_stride 2^(stages - 1), where the axis is a multiple of it too. Others wrap around as well, but
            their seam is not like every other place.

    Raises:
        ValueError: a wrong option, or in `forward` a wrong shape, dtype, level or label.
    """

    def __init__(
        self,
        channels: int = 1,
        width: int = 32,
        multipliers: Sequence[int] = (1, 2, 2),
        blocks: int = 1,
        attention: Sequence[bool] | None = None,
        num_classes: int | None = None,
        dropout: float = 0.0,
        stem_stride: int = 1,
        conditioning: str = "log",
        image_size: int | Sequence[int] | None = None,
        axes: int = 2,
        inputs: int = 1,
        periodic: bool | Sequence[bool] = False,
    ) -> None:
        super().__init__()
        self.channels = check_positive("channels", channels)
        self.inputs = check_positive("inputs", inputs)
        if check_positive("width", width) < 4:
            raise ValueError(f"width: got {width}, expected at least 4 channels")
        if not multipliers:
            raise ValueError("multipliers: got none, expected one for each stage")
        widths = [width * check_positive("multipliers", m) for m in multipliers]
        check_positive("blocks", blocks)
        if stem_stride not in (1, 2):
            raise ValueError(f"stem_stride: got {stem_stride!r}, expected 1 or 2")
        self.conditioning = check_choice("conditioning", conditioning, ("log", "none"))
        self.num_classes = check_num_classes(num_classes)
        check_dropout(dropout)
        if axes not in CONVOLUTIONS:
            raise ValueError(f"axes: got {axes!r}, expected 1, 2 or 3")
        self.axes = axes
        self.stem_stride = stem_stride
        self.periodic = [periodic] * axes if isinstance(periodic, bool) else [bool(flag) for flag in periodic]
        if len(self.periodic) != axes:
            raise ValueError(f"periodic: got {len(self.periodic)} flags, expected one for each of {axes} axes")
        positions = 0  # of the coarsest stage
        if image_size is not None:
            size = [image_size] * axes if isinstance(image_size, int) else list(image_size)
            if len(size) != axes:
                raise ValueError(f"image_size: got {by(size)}, expected {axes} sizes ({SIZES[axes]})")
            check_size("image_size", size, 1)
            positions = math.prod(math.ceil(n / (stem_stride * 2 ** (len(widths) - 1))) for n in size)
        if attention is None:
            attention = [False] * (len(widths) - 1) + [positions <= MOST_ATTENDED]
        if len(attention) != len(widths):
            raise ValueError(f"attention: got {len(attention)} flags, expected one for each of {len(widths)} stages")

        self.embedding = build_embedding(4 * width, conditioning, num_classes)
        dim = self.embedding.dim if self.embedding is not None else 0
        conv = CONVOLUTIONS[axes]
        folded = channels * stem_stride**axes
        self.stem = convolution(inputs * folded, widths[0], self.periodic)
        self.down_stages = nn.ModuleList(
            Stage(c, c, self.periodic, blocks, flag, dim, dropout) for c, flag in zip(widths, attention, strict=True)
        )
        self.downsamples = nn.ModuleList(convolution(c, coarser, self.periodic, 2) for c, coarser in pairwise(widths))
        self.upsamples = nn.ModuleList(conv(coarser, c, 1) for c, coarser in pairwise(widths))
        self.up_stages = nn.ModuleList(
            Stage(2 * c, c, self.periodic, blocks, flag, dim, dropout)
            for c, flag in zip(widths[:-1], attention[:-1], strict=True)
        )
        self.norm = nn.GroupNorm(group_count(widths[0]), widths[0])
        self.output = zero_init(convolution(widths[0], folded, self.periodic))

    @classmethod
    def for_shape(cls, shape: tuple[int, ...], **options: Any) -> Self:
        """The network for data of shape (C, L), (C, H, W) or (C, D, H, W). ValueError for another one."""
        check_shape(cls.__name__, shape, [*CONVOLUTIONS])
        return cls(shape[0], axes=len(shape) - 1, image_size=shape[1:], **options)

    def forward(self, x: Tensor, level: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        """x [B, inputs * C, *sizes] floating, one size per axis, level floating [B] (ignored with conditioning "none"),
        y int64 [B] or None.

        Returns [B, C, *sizes].
        """
        check_x(x, self.channels * self.inputs, self.axes, 1)
        embedding = embed_condition(self.embedding, x, level, y)
        size = x.shape[2:]
        if self.stem_stride == 2:
            x = fold(x, self.periodic)
        h = self.stem(x)
        skips = []
        for s, stage in enumerate(self.down_stages):
            h = stage(h, embedding)
            if s < len(self.downsamples):
                skips.append(h)
                h = self.downsamples[s](h)
        for s in reversed(range(len(self.up_stages))):
            h = F.interpolate(self.upsamples[s](h), size=skips[s].shape[2:], mode="nearest")
            h = self.up_stages[s](torch.cat([h, skips[s]], dim=1), embedding)
        h = self.output(F.silu(self.norm(h)))
        return unfold(h, size) if self.stem_stride == 2 else h
