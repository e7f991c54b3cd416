"""A compact U-Net for images (Ronneberger et al. 2015), as in diffusion models (Dhariwal & Nichol 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .checks import check_choice, check_dropout, check_image, check_num_classes, check_positive
from .embedding import FiLM, build_embedding, embed_condition


def group_count(channels: int) -> int:
    """The most groups, at most 32, that divide `channels` into groups of four or more."""
    return max(g for g in range(1, 33) if channels % g == 0 and (g == 1 or channels // g >= 4))


def zero_init(layer: nn.Conv2d | nn.Linear) -> nn.Conv2d | nn.Linear:
    """Zero the weight and bias, so that the residual branch (or the network) starts as zero."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class ResBlock(nn.Module):
    """shortcut(x) + conv2(dropout(SiLU(FiLM(norm2(conv1(SiLU(norm1(x)))), e)))), 3x3, conv2 zero-initialised.

    norm is GroupNorm; FiLM is h (1 + s) + t with s, t linear in the embedding e [B, dim] (absent with dim 0);
    the shortcut is 1x1 where the channels change. Input [B, inputs, H, W]; output [B, outputs, H, W].
    """

    def __init__(self, inputs: int, outputs: int, dim: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(group_count(inputs), inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        # FiLM brings its own scale and shift; a norm with one too would be the same thing twice.
        self.norm2 = nn.GroupNorm(group_count(outputs), outputs, affine=dim == 0)
        self.film = FiLM(dim, outputs) if dim else None
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zero_init(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else None

    def forward(self, x: Tensor, embedding: Tensor | None) -> Tensor:
        h = self.norm2(self.conv1(F.silu(self.norm1(x))))
        if self.film is not None and embedding is not None:
            scale, shift = self.film(embedding)
            h = torch.addcmul(shift[..., None, None].to(h.dtype), h, scale[..., None, None].to(h.dtype))
        h = self.conv2(self.dropout(F.silu(h)))
        return h + (x if self.shortcut is None else self.shortcut(x))


class SelfAttention(nn.Module):
    """x + W_o attention(W_q h, W_k h, W_v h), h = GroupNorm(x), over the pixels as tokens.

    W_o is zero-initialised. Heads of about 32 channels. Input and output [B, C, H, W].
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads = max(h for h in range(1, max(1, channels // 32) + 1) if channels % h == 0)
        self.norm = nn.GroupNorm(group_count(channels), channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.project = zero_init(nn.Linear(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        channels, (height, width) = x.shape[1], x.shape[2:]
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # a view where x is channels_last
        q, k, v = self.qkv(tokens).unflatten(2, (3, self.heads, channels // self.heads)).permute(2, 0, 3, 1, 4)
        h = F.scaled_dot_product_attention(q, k, v)  # [B, heads, H W, C / heads]
        h = self.project(h.transpose(1, 2).flatten(2))
        return x + h.transpose(1, 2).unflatten(2, (height, width))


class Stage(nn.Module):
    """Residual blocks at one resolution, each followed by self-attention where `attention` is set."""

    def __init__(self, inputs: int, outputs: int, blocks: int, attention: bool, dim: int, dropout: float) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            ResBlock(inputs if i == 0 else outputs, outputs, dim, dropout) for i in range(blocks)
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

    Stage s has width * multipliers[s] channels at 1/2^s of the inner resolution. Down: `blocks` residual
    blocks, then a 3x3 convolution of stride 2. Up: 1x1 convolution to the finer stage's channels, nearest
    upsampling to exactly the skip's size (so any H, W will do: 28 -> 14 -> 7 -> 4 -> 7 -> 14 -> 28),
    concatenation with the skip, `blocks` residual blocks. The output convolution is zero-initialised: a new
    network returns 0.

    Args:
        channels: of the images.
        width: channels of the first stage, at least 4.
        multipliers: one per stage.
        blocks: residual blocks per stage, on the way down and on the way up.
        attention: one flag per stage; None for the coarsest only.
        num_classes: number of labels, or None.
        dropout: probability, in the residual blocks.
        stem_stride: 1, or 2 to fold 2x2 pixels into channels first and unfold them last (an odd edge is
            padded with zeros and cropped off again). About four times faster.
        conditioning: "log" (level = log(tau)/4, [B]) or "none".
        image_size: (H, W) or H to refuse at construction what `forward` would refuse; no other effect.

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
        image_size: int | tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.channels = check_positive("channels", channels)
        if check_positive("width", width) < 4:
            raise ValueError(f"width: expected at least 4 channels, got {width}")
        if not multipliers:
            raise ValueError("multipliers: expected at least one stage, got none")
        widths = [width * check_positive("multipliers", m) for m in multipliers]
        check_positive("blocks", blocks)
        if stem_stride not in (1, 2):
            raise ValueError(f"stem_stride: expected 1 or 2, got {stem_stride!r}")
        self.conditioning = check_choice("conditioning", conditioning, ("log", "none"))
        self.num_classes = check_num_classes(num_classes)
        check_dropout(dropout)
        flags = [s == len(widths) - 1 for s in range(len(widths))] if attention is None else list(attention)
        if len(flags) != len(widths):
            raise ValueError(f"attention: expected one flag for each of {len(widths)} stages, got {len(flags)}")

        self.stem_stride = stem_stride
        # The coarsest stage must see at least one full pixel of its own.
        self.min_size = stem_stride * 2 ** (len(widths) - 1)
        if image_size is not None:
            size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
            if min(size) < self.min_size:
                raise ValueError(
                    f"image_size: {size[0]}x{size[1]} is too small for {len(widths)} stages with "
                    f"stem_stride {stem_stride}: at least {self.min_size}x{self.min_size}"
                )

        self.embedding = build_embedding(4 * width, conditioning, num_classes)
        dim = self.embedding.dim if self.embedding is not None else 0
        folded = channels * stem_stride**2
        self.stem = nn.Conv2d(folded, widths[0], 3, padding=1)
        self.down_stages = nn.ModuleList(
            Stage(c, c, blocks, flag, dim, dropout) for c, flag in zip(widths, flags, strict=True)
        )
        self.downsamples = nn.ModuleList(
            nn.Conv2d(c, coarser, 3, stride=2, padding=1) for c, coarser in pairwise(widths)
        )
        self.upsamples = nn.ModuleList(nn.Conv2d(coarser, c, 1) for c, coarser in pairwise(widths))
        self.up_stages = nn.ModuleList(
            Stage(2 * c, c, blocks, flag, dim, dropout) for c, flag in zip(widths[:-1], flags[:-1], strict=True)
        )
        self.norm = nn.GroupNorm(group_count(widths[0]), widths[0])
        self.output = zero_init(nn.Conv2d(widths[0], folded, 3, padding=1))

    def forward(self, x: Tensor, level: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        """x [B, C, H, W] floating, level floating [B] (ignored with conditioning "none"), y int64 [B] or
        None.

        Returns [B, C, H, W].
        """
        check_image(x, self.channels, self.min_size)
        embedding = embed_condition(self.embedding, x, level, y)
        height, width = x.shape[2:]
        if self.stem_stride == 2:
            x = F.pixel_unshuffle(F.pad(x, (0, width % 2, 0, height % 2)), 2)
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
        if self.stem_stride == 2:
            h = F.pixel_shuffle(h, 2)[..., :height, :width]
        return h
