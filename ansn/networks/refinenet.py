"""The dilated RefineNets of NCSN (Song & Ermon 2019) and NCSNv2 (Song & Ermon 2020), as published.

All are one backbone. Residual stages, of which the middle ones halve the resolution and the last two use dilation 2
and 4 at unchanged resolution, then as many RefineNet blocks (Lin et al. 2017) from coarse to fine. With four stages:

    r1 = refine(s4);  r2 = refine(s3, r1);  r3 = refine(s2, r2);  r4 = refine(s1, r3);  out = conv(ELU(norm(r4)))

Channels of the stages are n, 2n, 2n, 2n; of NCSNv2Deeper n, 2n, 2n, 4n, 4n, of Deepest n, 2n, 2n, 2n, 4n, 4n.

NCSN and NCSNv2 differ in the norms (NCSN: InstanceNorm++ with one row per level, everywhere; NCSNv2: unconditional,
none in the RefineNet blocks), the pool of the RefineNet blocks (mean; max) and the output (as is; divided by sigma).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Self

import torch.nn.functional as F
from torch import Tensor, nn

from .checks import (
    check_choice,
    check_level_index,
    check_num_classes,
    check_positive,
    check_shape,
    check_sigma,
    check_size,
    check_x,
)
from .embedding import build_embedding, embed_condition
from .normalization import Condition, InstanceNormPlus, NoNorm

NormFactory = Callable[[int], nn.Module]

def conv3x3(inputs: int, outputs: int, dilation: int = 1, bias: bool = True) -> nn.Conv2d:
    """3x3 convolution that keeps the resolution."""
    return nn.Conv2d(inputs, outputs, 3, padding=dilation, dilation=dilation, bias=bias)


def halve(x: Tensor) -> Tensor:
    """2x2 mean. An odd last row or column is averaged over the pixels that exist."""
    return F.avg_pool2d(x, 2, ceil_mode=True)


class ResidualBlock(nn.Module):
    """Pre-norm residual block: shortcut(x) + conv2(ELU(norm2(conv1(ELU(norm1(x)))))).

    With `down`, the 2x2 mean follows conv2 and the (1x1) shortcut. With `dilation` > 1, every convolution is
    dilated. The first block of a stage has a learned shortcut even where the shapes would allow none: 1x1
    with `down`, else 3x3 dilated. Input [B, inputs, H, W]; output [B, outputs, H, W] or, halved, [B, outputs,
    ceil(H/2), ceil(W/2)].
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        norm: NormFactory,
        down: bool = False,
        dilation: int = 1,
        learned_shortcut: bool = False,
    ) -> None:
        super().__init__()
        # A downsampling or dilating block widens in its second convolution; in a block that does neither,
        # inputs = outputs.
        self.norm1 = norm(inputs)
        self.conv1 = conv3x3(inputs, inputs, dilation)
        self.norm2 = norm(inputs)
        self.conv2 = conv3x3(inputs, outputs, dilation)
        self.shortcut: nn.Conv2d | None = None
        if down:
            self.shortcut = nn.Conv2d(inputs, outputs, 1)
        elif learned_shortcut:
            self.shortcut = conv3x3(inputs, outputs, dilation)
        elif inputs != outputs:
            raise ValueError(f"outputs: got {outputs}, expected {inputs} like the inputs without a learned shortcut")
        self.down = down

    def forward(self, x: Tensor, condition: Condition) -> Tensor:
        h = self.conv1(F.elu(self.norm1(x, condition)))
        h = self.conv2(F.elu(self.norm2(h, condition)))
        shortcut = x if self.shortcut is None else self.shortcut(x)
        h = h + shortcut
        # The mean is linear, so one pool of the sum is the sum of the two published pools.
        return halve(h) if self.down else h


class ResidualConvUnits(nn.Module):
    """`units` times: x <- x + conv(ELU(norm(conv(ELU(norm(x)))))), 3x3 without bias. Shape unchanged."""

    def __init__(self, channels: int, units: int, norm: NormFactory) -> None:
        super().__init__()
        self.norms = nn.ModuleList(norm(channels) for _ in range(2 * units))
        self.convs = nn.ModuleList(conv3x3(channels, channels, bias=False) for _ in range(2 * units))

    def forward(self, x: Tensor, condition: Condition) -> Tensor:
        h = x
        for i, (norm, conv) in enumerate(zip(self.norms, self.convs, strict=True)):
            h = conv(F.elu(norm(h, condition)))
            if i % 2:
                x = h = x + h
        return x


class MultiScaleFusion(nn.Module):
    """Sum over the inputs of conv(norm(input)), 3x3 with bias, resized to the size of the first one.

    The resize is bilinear with aligned corners.
    Inputs [B, inputs[i], H_i, W_i]; output [B, outputs, H_0, W_0].
    """

    def __init__(self, inputs: Sequence[int], outputs: int, norm: NormFactory) -> None:
        super().__init__()
        self.norms = nn.ModuleList(norm(channels) for channels in inputs)
        self.convs = nn.ModuleList(conv3x3(channels, outputs) for channels in inputs)

    def forward(self, xs: Sequence[Tensor], condition: Condition) -> Tensor:
        size = xs[0].shape[2:]
        total = None
        for x, norm, conv in zip(xs, self.norms, self.convs, strict=True):
            h = conv(norm(x, condition))
            if h.shape[2:] != size:
                h = F.interpolate(h, size=size, mode="bilinear", align_corners=True)
            total = h if total is None else total + h
        assert total is not None
        return total


class ChainedResidualPooling(nn.Module):
    """x_0 = p_0 = ELU(x); twice p_i = conv(pool(norm(p_{i-1}))), x_i = x_{i-1} + p_i; returns x_2.

    The pool is 5x5 with stride 1, the convolution 3x3 without bias. Shape unchanged.
    """

    def __init__(self, channels: int, norm: NormFactory, pool: str) -> None:
        super().__init__()
        self.norms = nn.ModuleList(norm(channels) for _ in range(2))
        self.convs = nn.ModuleList(conv3x3(channels, channels, bias=False) for _ in range(2))
        self.pool = nn.MaxPool2d(5, stride=1, padding=2) if pool == "max" else nn.AvgPool2d(5, stride=1, padding=2)

    def forward(self, x: Tensor, condition: Condition) -> Tensor:
        path = total = F.elu(x)
        for norm, conv in zip(self.norms, self.convs, strict=True):
            path = conv(self.pool(norm(path, condition)))
            total = total + path
        return total


class RefineBlock(nn.Module):
    """RefineNet block: two residual conv units per input, fusion (of two inputs), chained pooling,
    `output_units` units.

    Inputs [B, inputs[i], H_i, W_i], the finest first; output [B, outputs, H_0, W_0].
    """

    def __init__(
        self, inputs: Sequence[int], outputs: int, norm: NormFactory, pool: str, output_units: int = 1
    ) -> None:
        super().__init__()
        self.adapt = nn.ModuleList(ResidualConvUnits(channels, 2, norm) for channels in inputs)
        self.fuse = MultiScaleFusion(inputs, outputs, norm) if len(inputs) > 1 else None
        self.pool = ChainedResidualPooling(outputs, norm, pool)
        self.output = ResidualConvUnits(outputs, output_units, norm)

    def forward(self, xs: Sequence[Tensor], condition: Condition) -> Tensor:
        hs = [adapt(x, condition) for x, adapt in zip(xs, self.adapt, strict=True)]
        h = hs[0] if self.fuse is None else self.fuse(hs, condition)
        return self.output(self.pool(h, condition), condition)


class RefineNet(nn.Module):
    """The backbone of NCSN and NCSNv2; see the module's docstring. Call one of those.

    Attributes:
        widths: channels of the stages in units of n; the first keeps the resolution, the last two dilate, each of the
            others halves it.

    Args:
        channels: of the images.
        ngf: n, the width.
        norm: makes the norm of c channels in the stem, the stages and before the output.
        refine_norm: the same in the RefineNet blocks.
        pool: "mean" or "max", the pool of the RefineNet blocks.
        rescale: map every input by 2x - 1 first, as published for images in [0, 1].
        inputs: number of tensors of the data's shape in x, one after the other along its axis 1.
    """

    conditioning = "none"
    widths: tuple[int, ...] = (1, 2, 2, 2)

    @classmethod
    def for_shape(cls, shape: tuple[int, ...], **options: Any) -> Self:
        """The network for images (C, H, W). ValueError for another shape, or one too small."""
        check_shape(cls.__name__, shape, [2])
        check_size("shape", shape[1:], cls.min_size(), f" for {cls.__name__}")
        return cls(shape[0], **options)

    @classmethod
    def min_size(cls) -> int:
        """Below it, instance normalisation would see single pixels."""
        return 2 ** (len(cls.widths) - 2)

    def __init__(
        self, channels: int, ngf: int, norm: NormFactory, refine_norm: NormFactory, pool: str, rescale: bool,
        inputs: int,
    ) -> None:
        super().__init__()
        self.channels = check_positive("channels", channels)
        self.inputs = check_positive("inputs", inputs)
        n = check_positive("ngf", ngf)
        self.rescale = rescale

        def stage(inputs: int, outputs: int, down: bool = False, dilation: int = 1) -> nn.ModuleList:
            return nn.ModuleList(
                [
                    ResidualBlock(inputs, outputs, norm, down, dilation, learned_shortcut=dilation > 1),
                    ResidualBlock(outputs, outputs, norm, dilation=dilation),
                ]
            )

        self.stem = conv3x3(inputs * channels, n)
        widths = [n * width for width in self.widths]
        last = len(widths) - 1
        dilations = [1] * (last - 1) + [2, 4]
        self.stages = nn.ModuleList(
            stage(inputs, outputs, 0 < i < last - 1, dilations[i])
            for i, (inputs, outputs) in enumerate(zip([n, *widths], widths, strict=False))
        )
        # From coarse to fine: each makes of its stage's channels those of the next finer one.
        self.refine = nn.ModuleList([RefineBlock([widths[-1]], widths[-1], refine_norm, pool)])
        for i in range(last - 1, -1, -1):
            outputs, units = (widths[i - 1], 1) if i else (n, 3)
            self.refine.append(RefineBlock([widths[i]] * 2, outputs, refine_norm, pool, units))
        self.norm = norm(n)
        self.output = conv3x3(n, channels)

    def _backbone(self, x: Tensor, condition: Condition) -> Tensor:
        h = self.stem(2 * x - 1 if self.rescale else x)
        skips = []
        for stage in self.stages:
            for block in stage:  # type: ignore[attr-defined]
                h = block(h, condition)
            skips.append(h)
        h = self.refine[0]([skips[-1]], condition)
        for refine, skip in zip(self.refine[1:], skips[-2::-1], strict=True):  # type: ignore[arg-type]
            h = refine([skip, h], condition)
        return self.output(F.elu(self.norm(h, condition)))


class NCSN(RefineNet):
    """Noise-conditional score network (Song & Ermon 2019, appendix A): RefineNet with one row of every norm
    per level.

    7,638,657 parameters for MNIST (channels 1, ngf 64, num_levels 10), as published.

    Args:
        channels: of the images.
        ngf: width n; the stages have n, 2n, 2n, 2n channels.
        num_levels: rungs of the ladder; 0 or None makes the unconditional network of the adaptive-noise paper
            (the published baseline: the same norms with one row).
        num_classes: adds labels, which modulate the norms; None for none.
        embedding_dim: length of the class embedding, used with `num_classes` only.
        rescale: map every input by 2x - 1 first (images in [0, 1]); False for inputs already centred.
        inputs: number of tensors of the data's shape in x, one after the other along its axis 1.

    Attribute `conditioning`: "index", or "none" without levels.
    """

    def __init__(
        self,
        channels: int = 1,
        ngf: int = 64,
        num_levels: int | None = 10,
        num_classes: int | None = None,
        embedding_dim: int = 128,
        rescale: bool = True,
        inputs: int = 1,
    ) -> None:
        levels = 0 if not num_levels else check_positive("num_levels", num_levels)
        dim = 0 if check_num_classes(num_classes) is None else check_positive("embedding_dim", embedding_dim)

        def norm(c: int) -> nn.Module:
            return InstanceNormPlus(c, levels, dim)

        super().__init__(channels, ngf, norm, norm, "mean", rescale, inputs)
        self.conditioning = "index" if levels else "none"
        self.num_levels = levels
        self.num_classes = num_classes
        self.embedding = build_embedding(dim, self.conditioning, num_classes)

    def forward(self, x: Tensor, level: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        """x [B, inputs * C, H, W] (H, W >= `min_size()`, any parity), level int64 [B] (ignored without levels), y
        int64 [B] or None.

        Returns [B, C, H, W]. Raises ValueError for a wrong shape, dtype, level or label.
        """
        check_x(x, self.channels * self.inputs, 2, self.min_size())
        index = check_level_index(level, self.num_levels, x.shape[0]) if self.num_levels else None
        return self._backbone(x, Condition(index, embed_condition(self.embedding, x, level, y)))


class NCSNv2(RefineNet):
    """NCSNv2 (Song & Ermon 2020, appendix A): RefineNet with unconditional norms, output divided by sigma.

    29,694,083 parameters for CIFAR-10 (channels 3, ngf 128), as published.

    Args:
        channels: of the images.
        ngf: width n; the stages have n, 2n, 2n, 2n channels.
        conditioning: "none" as published, or "log": level = log(tau)/4 modulates the norms through an
            embedding.
        num_classes: adds labels through the same embedding; None for none.
        embedding_dim: length of that embedding, used with conditioning "log" or `num_classes` only.
        rescale: map every input by 2x - 1 first (images in [0, 1]); False for inputs already centred.
        inputs: number of tensors of the data's shape in x, one after the other along its axis 1.
    """

    def __init__(
        self,
        channels: int = 3,
        ngf: int = 128,
        conditioning: str = "none",
        num_classes: int | None = None,
        embedding_dim: int = 128,
        rescale: bool = True,
        inputs: int = 1,
    ) -> None:
        check_choice("conditioning", conditioning, ("none", "log"))
        told = conditioning == "log" or check_num_classes(num_classes) is not None
        dim = check_positive("embedding_dim", embedding_dim) if told else 0
        super().__init__(
            channels, ngf, lambda c: InstanceNormPlus(c, 0, dim), lambda c: NoNorm(), "max", rescale, inputs
        )
        self.conditioning = conditioning
        self.num_classes = num_classes
        self.embedding = build_embedding(dim, conditioning, num_classes)

    def forward(
        self, x: Tensor, level: Tensor | None = None, y: Tensor | None = None, sigma: Tensor | None = None
    ) -> Tensor:
        """x [B, inputs * C, H, W] (H, W >= `min_size()`, any parity), level floating [B] (ignored with conditioning
        "none"), y int64 [B] or None.

        Returns [B, C, H, W], divided by sigma [B] where that is given (the published output).
        Raises ValueError for a wrong shape, dtype, level or label.
        """
        check_x(x, self.channels * self.inputs, 2, self.min_size())
        out = self._backbone(x, Condition(None, embed_condition(self.embedding, x, level, y)))
        if sigma is None:
            return out
        check_sigma(sigma, x.shape[0])
        return out / sigma[:, None, None, None].to(out.dtype)


class NCSNv2Deeper(NCSNv2):
    """NCSNv2 with a stage more and 4n channels, for images of about 96 to 128 pixels (LSUN), at least 8x8.

    83,445,379 parameters with channels 3, ngf 128, as published. Arguments as of NCSNv2.
    """

    widths = (1, 2, 2, 4, 4)


class NCSNv2Deepest(NCSNv2):
    """NCSNv2 with two stages more and 4n channels, for images of about 256 pixels (FFHQ), at least 16x16.

    94,132,611 parameters with channels 3, ngf 128, as published. Arguments as of NCSNv2.
    """

    widths = (1, 2, 2, 2, 4, 4)
