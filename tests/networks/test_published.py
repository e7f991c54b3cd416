"""The published networks, written once more with their names, against ours with the weights brought over."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ansn.networks import NCSN, NCSNv2, NCSNv2Deeper, NCSNv2Deepest, from_published
from tests.networks.helpers import TOL, awaken, count

# Of each network its stages (name, inputs, outputs, "pool" or dilation) and RefineNet blocks (name, the stage that it
# takes, inputs, outputs), widths in units of ngf, as in models/ncsn.py and models/ncsnv2.py of ermongroup/ncsnv2.
FOUR = (
    [("1", 1, 1, 1), ("2", 1, 2, "pool"), ("3", 2, 2, 2), ("4", 2, 2, 4)],
    [("1", "4", 2, 2), ("2", "3", 2, 2), ("3", "2", 2, 1), ("4", "1", 1, 1)],
)
FIVE = (
    [("1", 1, 1, 1), ("2", 1, 2, "pool"), ("3", 2, 2, "pool"), ("4", 2, 4, 2), ("5", 4, 4, 4)],
    [("1", "5", 4, 4), ("2", "4", 4, 2), ("3", "3", 2, 2), ("4", "2", 2, 1), ("5", "1", 1, 1)],
)
SIX = (
    [("1", 1, 1, 1), ("2", 1, 2, "pool"), ("3", 2, 2, "pool"), ("31", 2, 2, "pool"), ("4", 2, 4, 2), ("5", 4, 4, 4)],
    [("1", "5", 4, 4), ("2", "4", 4, 2), ("31", "31", 2, 2), ("3", "3", 2, 2), ("4", "2", 2, 1), ("5", "1", 1, 1)],
)


class Norm(nn.Module):
    def __init__(self, width: int, levels: int) -> None:
        super().__init__()
        if levels:
            self.embed = nn.Embedding(levels, 3 * width)
        else:
            self.alpha, self.gamma, self.beta = (nn.Parameter(torch.randn(width)) for _ in range(3))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        if hasattr(self, "embed"):
            gamma, alpha, beta = self.embed(y).chunk(3, 1)
        else:
            gamma, alpha, beta = (p[None] for p in (self.gamma, self.alpha, self.beta))
        means = x.mean((2, 3))
        means = (means - means.mean(1, keepdim=True)) / (means.var(1, keepdim=True) + 1e-5).sqrt()
        normal = F.instance_norm(x) + (means * alpha)[..., None, None]
        return gamma[..., None, None] * normal + beta[..., None, None]


class Pooled(nn.Module):
    def __init__(self, inputs: int, outputs: int, size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, size, padding=size // 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4


def dilated(inputs: int, outputs: int, dilation: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=dilation, dilation=dilation, bias=bias)


class Residual(nn.Module):
    """The first of a stage may widen, and has a shortcut where it pools or dilates."""

    def __init__(self, inputs: int, outputs: int, how: int | str, first: bool, levels: int) -> None:
        super().__init__()
        self.normalize1, self.normalize2 = Norm(inputs, levels), Norm(inputs, levels)
        pool = how == "pool" and first
        dilation = 1 if isinstance(how, str) else how
        self.conv1 = dilated(inputs, inputs, dilation)
        self.conv2 = Pooled(inputs, outputs, 3) if pool else dilated(inputs, outputs, dilation)
        if first and (pool or dilation > 1):
            self.shortcut = Pooled(inputs, outputs, 1) if pool else dilated(inputs, outputs, dilation)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = self.conv1(F.elu(self.normalize1(x, y)))
        h = self.conv2(F.elu(self.normalize2(h, y)))
        return h + (self.shortcut(x) if hasattr(self, "shortcut") else x)


class Units(nn.Module):
    def __init__(self, width: int, units: int, levels: int) -> None:
        super().__init__()
        self.units, self.levels = units, levels
        for i in range(1, units + 1):
            for j in (1, 2):
                if levels:
                    self.add_module(f"{i}_{j}_norm", Norm(width, levels))
                self.add_module(f"{i}_{j}_conv", dilated(width, width, bias=False))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        for i in range(1, self.units + 1):
            h = x
            for j in (1, 2):
                h = getattr(self, f"{i}_{j}_norm")(h, y) if self.levels else h
                h = getattr(self, f"{i}_{j}_conv")(F.elu(h))
            x = x + h
        return x


class Parts(nn.Module):
    """Convolutions, and norms where there are levels: what fusion (`msf`) and chained pooling (`crp`) are made of."""

    def __init__(self, inputs: list[int], outputs: int, levels: int, bias: bool) -> None:
        super().__init__()
        self.convs = nn.ModuleList(dilated(c, outputs, bias=bias) for c in inputs)
        if levels:
            self.norms = nn.ModuleList(Norm(c, levels) for c in inputs)

    def normal(self, i: int, x: Tensor, y: Tensor) -> Tensor:
        return self.norms[i](x, y) if hasattr(self, "norms") else x


class Refine(nn.Module):
    def __init__(self, inputs: int, outputs: int, start: bool, end: bool, levels: int) -> None:
        super().__init__()
        branches = [inputs] if start else [inputs, inputs]
        self.adapt_convs = nn.ModuleList(Units(c, 2, levels) for c in branches)
        self.output_convs = Units(outputs, 3 if end else 1, levels)
        if not start:
            self.msf = Parts(branches, outputs, levels, bias=True)
        self.crp = Parts([outputs] * 2, outputs, levels, bias=False)
        self.pool = F.avg_pool2d if levels else F.max_pool2d

    def forward(self, xs: list[Tensor], y: Tensor) -> Tensor:
        hs = [adapt(x, y) for adapt, x in zip(self.adapt_convs, xs, strict=True)]
        h = hs[0]
        if hasattr(self, "msf"):
            made = [conv(self.msf.normal(i, hs[i], y)) for i, conv in enumerate(self.msf.convs)]
            h = sum(F.interpolate(m, size=xs[0].shape[2:], mode="bilinear", align_corners=True) for m in made)
        h = path = F.elu(h)
        for i, conv in enumerate(self.crp.convs):
            path = conv(self.pool(self.crp.normal(i, path, y), 5, stride=1, padding=2))
            h = h + path
        return self.output_convs(h, y)


class Published(nn.Module):
    def __init__(self, plan: tuple, channels: int, ngf: int, levels: int, conditional: bool) -> None:
        super().__init__()
        self.plan, rows = plan, levels if conditional else 0
        self.begin_conv, self.end_conv = dilated(channels, ngf), dilated(ngf, channels)
        self.normalizer = Norm(ngf, rows)
        for name, inputs, outputs, how in plan[0]:
            blocks = [(inputs, outputs, True), (outputs, outputs, False)]
            made = (Residual(i * ngf, o * ngf, how, first, rows) for i, o, first in blocks)
            self.add_module(f"res{name}", nn.ModuleList(made))
        for at, (name, _, inputs, outputs) in enumerate(plan[1]):
            end = at == len(plan[1]) - 1
            self.add_module(f"refine{name}", Refine(inputs * ngf, outputs * ngf, at == 0, end, rows))
        if not conditional:
            self.register_buffer("sigmas", torch.linspace(3.0, 0.5, levels))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h, layers = self.begin_conv(2 * x - 1), {}
        for name, *_ in self.plan[0]:
            for block in getattr(self, f"res{name}"):
                h = block(h, y)
            layers[name] = h
        for at, (name, stage, *_) in enumerate(self.plan[1]):
            h = getattr(self, f"refine{name}")([layers[stage]] if at == 0 else [layers[stage], h], y)
        h = self.end_conv(F.elu(self.normalizer(h, y)))
        return h / self.sigmas[y][:, None, None, None] if hasattr(self, "sigmas") else h


NETWORKS = {
    "ncsn": (FOUR, NCSN), "ncsnv2": (FOUR, NCSNv2), "deeper": (FIVE, NCSNv2Deeper), "deepest": (SIX, NCSNv2Deepest),
}  # fmt: skip


def pair(kind: str) -> tuple[Published, nn.Module]:
    plan, cls = NETWORKS[kind]
    torch.manual_seed(1)
    options = {"num_levels": 3} if cls is NCSN else {}
    return awaken(Published(plan, 2, 4, 3, cls is NCSN)), cls(2, 4, **options)


@pytest.mark.parametrize("kind", NETWORKS)
def test_published_weights_compute_what_they_did(kind):
    theirs, ours = pair(kind)
    state = {f"module.{name}": value for name, value in theirs.state_dict().items()}
    found = from_published(state, ours)
    ours.load_state_dict(found)
    assert sum(v.numel() for v in found.values()) == count(theirs)
    theirs, ours = theirs.double(), ours.double()
    x, y = torch.rand(3, 2, 16, 32, dtype=torch.float64), torch.tensor([2, 0, 1])
    out = ours(x, y) if kind == "ncsn" else ours(x, sigma=theirs.sigmas[y])
    torch.testing.assert_close(out, theirs(x, y), **TOL["float64"])


@pytest.mark.parametrize(("kind", "options", "size"), [
    ("ncsn", (1, 64, 10), 7_638_657), ("ncsnv2", (3, 128, 232), 29_694_083),
    ("deeper", (3, 128, 1086), 83_445_379), ("deepest", (3, 128, 2311), 94_132_611),
])  # fmt: skip
def test_sizes_are_the_published_ones(kind, options, size):
    plan, cls = NETWORKS[kind]
    with torch.device("meta"):
        theirs = Published(plan, *options, cls is NCSN)
        ours = cls(*options) if cls is NCSN else cls(*options[:2])
    assert count(theirs) == count(ours) == size


@pytest.mark.parametrize("kind", NETWORKS)
def test_each_tensor_is_used_once(kind):
    """Every tensor left out is missed by its name, and with sigmas gone (the moving average has none) nothing is."""
    theirs, ours = pair(kind)
    state = {k: v for k, v in theirs.state_dict().items() if k != "sigmas"}
    assert from_published(state, ours).keys() == ours.state_dict().keys()
    for name, value in state.items():
        rest = {k: v for k, v in state.items() if k != name}
        with pytest.raises(ValueError) as error:
            from_published(rest, ours)
        assert str(error.value) == f"{name}: got nothing, expected shape {list(value.shape)}"


def test_wrong_names_shapes_and_networks_are_named():
    theirs, ours = pair("ncsnv2")
    state = theirs.state_dict()
    with pytest.raises(ValueError, match=r"^res5.0.conv1.weight: got a name of no module, expected those of NCSNv2$"):
        from_published({**state, "res5.0.conv1.weight": torch.zeros(1)}, ours)
    with pytest.raises(ValueError, match=r"^begin_conv.weight: got shape \[4, 2, 3, 3\], expected .*\[4, 3, 3, 3\]$"):
        from_published(state, NCSNv2(3, 4))
    with pytest.raises(ValueError, match=r"^res1.0.normalize1.gamma: got 1.0, expected shape \[4\]$"):
        from_published({**state, "res1.0.normalize1.gamma": 1.0}, ours)
    for other in (NCSNv2(2, 4, conditioning="log"), NCSNv2(2, 4, inputs=2), NCSN(2, 4, None), NCSN(2, 4, 3, 5)):
        with pytest.raises(ValueError, match=r"^network: got (NCSN(v2)?) of other norms .*, expected \1 as published$"):
            from_published(state, other)
