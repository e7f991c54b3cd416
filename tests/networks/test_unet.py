"""The U-Net on lines, images and volumes: layout, odd sizes, initialisation, and that it learns."""

from __future__ import annotations

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ansn.networks import UNet, build
from ansn.networks.unet import fold, unfold
from tests.networks.helpers import TOL, awaken, count, inputs_for

SMALL = {"width": 8, "multipliers": (1, 2, 2)}
every_axes = pytest.mark.parametrize("axes", [1, 2, 3])


@pytest.mark.parametrize("stem_stride", [1, 2])
@pytest.mark.parametrize(
    "size", [(28, 28), (11, 13), (33, 47), (1, 9), (8,), (3,), (1,), (101,), (9, 10, 11), (2, 9, 3)]
)
@pytest.mark.parametrize("periodic", [False, True])
def test_any_size_keeps_its_shape(stem_stride, size, periodic):
    network = awaken(UNet(2, **SMALL, stem_stride=stem_stride, axes=len(size), periodic=periodic))
    out = network(torch.randn(2, 2, *size), torch.zeros(2))
    assert out.shape == (2, 2, *size)
    assert torch.isfinite(out).all()


@every_axes
def test_inner_resolutions(axes):
    network = UNet(1, **SMALL, axes=axes)
    sizes = []
    for stage in [*network.down_stages, *network.up_stages]:
        stage.register_forward_hook(lambda m, args, out: sizes.append(tuple(out.shape[2:])))
    network(torch.randn(1, 1, 28, 8, 5)[(..., *[0] * (3 - axes))], torch.zeros(1))
    full = [(28, 8, 5), (14, 4, 3), (7, 2, 2), (14, 4, 3), (28, 8, 5)]
    assert sizes == [size[:axes] for size in full]


@every_axes
@pytest.mark.parametrize("stem_stride", [1, 2])
def test_a_new_network_returns_zero_and_all_parameters_learn(stem_stride, axes):
    network = UNet(1, **SMALL, stem_stride=stem_stride, num_classes=3, axes=axes)
    inputs = inputs_for(network, (1, *[12] * axes))
    assert not network(**inputs).any()
    awaken(network)
    network(**inputs).square().sum().backward()
    silent = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


def test_attention_defaults_to_the_coarsest_stage_and_can_be_chosen():
    def flags(network):
        return [len(s.attention) for s in network.down_stages]

    assert flags(UNet(1, **SMALL)) == [0, 0, 1]
    assert flags(UNet(1, **SMALL, blocks=2, attention=(False, True, False))) == [0, 2, 0]
    with pytest.raises(ValueError, match="got 2 flags, expected one for each of 3 stages"):
        UNet(1, **SMALL, attention=(True, False))
    # By default not over more positions than memory and patience allow; who asks for it gets it.
    for size in ((64, 64), (256, 256), (64, 64, 64), (16384,)):
        assert flags(build("unet", (1, *size), **SMALL)) == [0, 0, 1], size
    for size in ((257, 256), (64, 64, 65), (10**5,)):
        assert flags(build("unet", (1, *size), **SMALL)) == [0, 0, 0], size
        assert flags(build("unet", (1, *size), **SMALL, attention=(0, 0, 1))) == [0, 0, 1]
    assert flags(build("unet", (1, 64, 64), width=8, multipliers=(1,))) == [1]
    assert flags(build("unet", (1, 128, 128), width=8, multipliers=(1,), stem_stride=2)) == [1]
    assert flags(build("unet", (1, 128, 128), width=8, multipliers=(1,))) == [0]


def test_a_long_line_passes():
    network = build("unet", (1, 10**5), **SMALL)
    with torch.no_grad():
        assert network(torch.randn(1, 1, 10**5), torch.zeros(1)).shape == (1, 1, 10**5)


def embedded(small: UNet) -> UNet:
    """The network with one axis more, put first, along which every kernel is a single number."""
    options = {"width": 8, "multipliers": (1, 2), "attention": (1, 1), "axes": small.axes + 1}
    wide = UNet(small.channels, **options)
    state = wide.state_dict()
    for name, value in small.state_dict().items():
        if value.shape == state[name].shape:
            state[name] = value
        else:
            state[name] = torch.zeros_like(state[name])
            state[name][:, :, state[name].shape[2] // 2] = value
    wide.load_state_dict(state)
    return wide


@pytest.mark.parametrize("axes", [1, 2])
def test_what_does_not_vary_along_an_axis_is_treated_as_with_an_axis_less(axes):
    small = awaken(UNet(2, width=8, multipliers=(1, 2), attention=(1, 1), axes=axes))
    x, level = torch.randn(3, 2, *(9, 6)[:axes]), torch.randn(3)
    out, wide = small(x, level), embedded(small)
    for n in (2, 5):
        repeated = x[:, :, None].expand(-1, -1, n, *x.shape[2:])
        expected = out[:, :, None].expand_as(repeated)
        torch.testing.assert_close(wide(repeated, level), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("order", [(1, 0), (2, 0, 1)])
def test_no_axis_is_special(order):
    def turned(value):
        return value.permute(0, 1, *(2 + i for i in order))

    network = awaken(UNet(2, **SMALL, axes=len(order)))
    x, level = torch.randn(2, 2, *(4, 9, 6)[: len(order)]), torch.randn(2)
    out = network(x, level)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            module.weight = nn.Parameter(turned(module.weight))
    torch.testing.assert_close(network(turned(x), level), turned(out), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("flags", [(True,), (False,), (1, 1), (1, 0), (0, 1), (1, 1, 1), (0, 1, 0)])
@pytest.mark.parametrize("stem_stride", [1, 2])
def test_a_periodic_network_commutes_with_shifts_along_periodic_axes(stem_stride, flags):
    options = {"width": 8, "multipliers": (1, 2), "attention": (0, 1), "stem_stride": stem_stride, "axes": len(flags)}
    network = awaken(UNet(2, **options, periodic=flags)).double()
    step = 2 * stem_stride
    x, level = torch.randn(2, 2, *[3 * step] * len(flags)).double(), torch.randn(2).double()
    out = network(x, level)
    for axis, flag in enumerate(flags, 2):
        gap = (network(x.roll(step, axis), level) - out.roll(step, axis)).abs().max() / out.abs().max()
        assert (gap < 1e-12) if flag else (gap > 1e-3), axis


@every_axes
def test_a_periodic_network_has_the_parameters_of_another_and_is_it_within(axes):
    options = {"width": 8, "multipliers": (1,), "attention": (0,), "axes": axes}
    plain = awaken(UNet(1, **options))
    network = UNet(1, **options, periodic=True)
    network.load_state_dict(plain.state_dict())
    for net in (plain, network):  # group norms see the edges from everywhere
        for module in net.modules():
            if isinstance(module, nn.GroupNorm):
                module.forward = lambda x: x
    x, level = torch.randn(1, 1, *[17] * axes), torch.zeros(1)
    inner = (..., *[slice(6, -6)] * axes)  # six convolutions deep
    first, second = plain(x, level), network(x, level)
    torch.testing.assert_close(first[inner], second[inner], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(first, second, atol=1e-3)


def test_a_network_that_is_not_periodic_is_what_it_was():
    torch.manual_seed(0)
    network = awaken(UNet(1, width=8, multipliers=(1, 2), stem_stride=2, num_classes=2))
    x = torch.linspace(-1, 1, 36).reshape(1, 1, 6, 6).square()
    out = network(x, torch.zeros(1), torch.zeros(1, dtype=torch.int64))
    assert [out.sum().item(), out[0, 0, 0, 0].item(), out[0, 0, 5, 5].item()] == pytest.approx(
        [-0.095, 0.986, 0.512], abs=1e-3
    )


@pytest.mark.parametrize("size", [(7,), (4, 5), (3, 5, 2)])
def test_fold_continues_a_periodic_axis_at_its_start(size):
    x = torch.randn(2, 3, *size)
    for axis, n in enumerate(size, 2):
        flags = [i == axis for i in range(2, x.ndim)]
        longer = torch.cat([x, x.narrow(axis, 0, 1)], axis) if n % 2 else x
        assert torch.equal(fold(x, flags), fold(longer))
    assert torch.equal(unfold(fold(x, [True] * len(size)), size), x)


@pytest.mark.parametrize("size", [(6,), (7,), (4, 6), (5, 7), (4, 5, 6)])
def test_fold_takes_blocks_of_two_into_channels(size):
    x = torch.randn(2, 3, *size)
    folded = fold(x)
    for j, corner in enumerate(product((0, 1), repeat=len(size))):
        picked = x[(..., *(slice(c, None, 2) for c in corner))]
        part = folded[:, j :: 2 ** len(size)]
        assert torch.equal(part[(..., *(slice(n) for n in picked.shape[2:]))], picked)
    assert folded.count_nonzero() == x.numel()  # the rest is padding
    assert torch.equal(unfold(folded, size), x)
    if len(size) == 2:
        padded = F.pad(x, (0, size[1] % 2, 0, size[0] % 2))
        assert torch.equal(folded, F.pixel_unshuffle(padded, 2))


@pytest.mark.parametrize("stem_stride", [1, 2])
@pytest.mark.parametrize("periodic", [False, True])
def test_channels_last_is_kept_and_changes_nothing(stem_stride, periodic):
    network = awaken(UNet(3, **SMALL, stem_stride=stem_stride, periodic=periodic))
    x, level = torch.randn(2, 3, 14, 14), torch.randn(2)
    plain = network(x, level)
    network.to(memory_format=torch.channels_last)
    broken = []

    def look(name):
        def hook(module, args, out):
            if not out.is_contiguous(memory_format=torch.channels_last):
                broken.append(name)

        return hook

    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d | nn.GroupNorm):
            module.register_forward_hook(look(name))
    out = network(x.contiguous(memory_format=torch.channels_last), level)
    assert broken == []
    torch.testing.assert_close(out, plain, **TOL["float32"])


@every_axes
def test_level_and_class_matter(axes):
    network = awaken(UNet(1, **SMALL, num_classes=3, axes=axes))
    x = torch.randn(1, *[8] * axes).expand(4, 1, *[8] * axes)
    zero, y = torch.zeros(4), torch.arange(4)
    by_level = network(x, torch.linspace(-1.7, 1.7, 4))
    by_class = network(x, zero, y)
    for out in (by_level, by_class):
        gap = torch.cdist(out.flatten(1), out.flatten(1)) + 1e9 * torch.eye(4)
        assert gap.min() > 1e-3
    torch.testing.assert_close(network(x, zero), network(x, zero, torch.full((4,), 3)), **TOL["float32"])


def test_dropout_acts_in_training_only():
    network = awaken(UNet(1, **SMALL, dropout=0.5))
    x, level = torch.randn(2, 1, 8, 8), torch.zeros(2)
    assert not torch.equal(network(x, level), network(x, level))
    network.eval()
    assert torch.equal(network(x, level), network(x, level))


@every_axes
def test_autocast_stays_close(axes):
    network = awaken(UNet(1, **SMALL, axes=axes))
    x, level = torch.randn(4, 1, *[14] * axes), torch.randn(4)
    exact = network(x, level)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = network(x, level).float()
    assert ((half - exact).norm() / exact.norm()).item() < 0.03


def test_options_are_checked():
    for options, message in [
        ({"width": 2}, "width: got 2, expected at least 4"),
        ({"multipliers": ()}, "multipliers: got none, expected one"),
        ({"multipliers": (1, 0)}, "multipliers: got 0, expected a positive integer"),
        ({"blocks": 0}, "blocks: got 0, expected a positive integer"),
        ({"stem_stride": 3}, "stem_stride: got 3, expected 1 or 2"),
        ({"dropout": 1.0}, r"dropout: got 1.0, expected a probability in \[0, 1\)"),
        ({"conditioning": "index"}, "conditioning: got 'index', expected one of log, none"),
        ({"axes": 4}, "axes: got 4, expected 1, 2 or 3"),
        ({"image_size": (8, 8, 0), "axes": 3}, "image_size: got 8x8x0, expected at least 1x1x1"),
        ({"image_size": (8,)}, r"image_size: got 8, expected 2 sizes \(H, W\)"),
        ({"periodic": (True,)}, "periodic: got 1 flags, expected one for each of 2 axes"),
        ({"num_classes": 0}, "num_classes: got 0, expected a positive integer"),
    ]:
        with pytest.raises(ValueError, match=message):
            UNet(1, **options)
    for x, message in [
        (torch.randn(1, 1, 0, 8), "x: got 0x8, expected at least 1x1"),
        (torch.randn(1, 1, 8), r"x: got shape \[1, 1, 8\], expected \[B, 1, H, W\]"),
    ]:
        with pytest.raises(ValueError, match=message):
            UNet(1, **SMALL)(x, torch.zeros(1))


@pytest.mark.parametrize("width", [4, 6, 10, 20, 36])
def test_any_width_from_four(width):
    network = UNet(1, width=width, multipliers=(1, 3))
    assert network(torch.randn(1, 1, 4, 4), torch.zeros(1)).shape == (1, 1, 4, 4)


def test_without_conditioning_there_is_no_embedding():
    network = awaken(UNet(1, **SMALL, conditioning="none"))
    assert network.embedding is None
    assert count(network) < count(UNet(1, **SMALL))
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(network(x), network(x, torch.ones(2)))


def test_learns_to_denoise_two_images():
    # A network that could not use its input or its level would stay at loss 1, that of returning 0.
    torch.manual_seed(0)
    network = UNet(1, **SMALL, stem_stride=1)
    optimiser = torch.optim.Adam(network.parameters(), 3e-3)
    images = torch.randn(2, 1, 8, 8).sign()
    losses = []
    for _ in range(80):
        target = images[torch.randint(2, (32,))]
        level = torch.rand(32) - 0.5
        noisy = target + (4 * level).exp()[:, None, None, None] * torch.randn_like(target)
        loss = (network(noisy / noisy.std((1, 2, 3), keepdim=True), level) - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(1.0, abs=1e-6)
    assert sum(losses[-10:]) / 10 < 0.2
