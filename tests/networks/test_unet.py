"""The U-Net: layout, odd sizes, compilation, initialisation, and that it learns."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ansn.networks import UNet
from tests.networks.helpers import TOL, awaken, count, inputs_for

SMALL = {"width": 8, "multipliers": (1, 2, 2)}


@pytest.mark.parametrize("stem_stride", [1, 2])
@pytest.mark.parametrize("size", [(28, 28), (8, 8), (11, 13), (9, 16)])
def test_any_size_keeps_its_shape(stem_stride, size):
    network = awaken(UNet(2, **SMALL, stem_stride=stem_stride))
    out = network(torch.randn(2, 2, *size), torch.zeros(2))
    assert out.shape == (2, 2, *size)
    assert torch.isfinite(out).all()


def test_inner_resolutions_of_28():
    network = UNet(1, **SMALL, stem_stride=1)
    sizes = []
    for stage in [*network.down_stages, *network.up_stages]:
        stage.register_forward_hook(lambda m, args, out: sizes.append(out.shape[-1]))
    network(torch.randn(1, 1, 28, 28), torch.zeros(1))
    assert sizes == [28, 14, 7, 14, 28]


@pytest.mark.parametrize("stem_stride", [1, 2])
def test_a_new_network_returns_zero_and_all_parameters_learn(stem_stride):
    network = UNet(1, **SMALL, stem_stride=stem_stride, num_classes=3)
    inputs = inputs_for(network, (1, 12, 12))
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
    with pytest.raises(ValueError, match="one flag for each of 3 stages, got 2"):
        UNet(1, **SMALL, attention=(True, False))


@pytest.mark.parametrize("stem_stride", [1, 2])
def test_channels_last_is_kept_and_changes_nothing(stem_stride):
    network = awaken(UNet(3, **SMALL, stem_stride=stem_stride))
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


def test_level_and_class_matter():
    network = awaken(UNet(1, **SMALL, num_classes=3))
    x = torch.randn(1, 1, 8, 8).expand(4, -1, -1, -1)
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


def test_autocast_stays_close():
    network = awaken(UNet(1, **SMALL))
    x, level = torch.randn(4, 1, 14, 14), torch.randn(4)
    exact = network(x, level)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = network(x, level).float()
    assert ((half - exact).norm() / exact.norm()).item() < 0.03


def test_options_are_checked():
    for options, message in [
        ({"width": 2}, "width: expected at least 4"),
        ({"multipliers": ()}, "multipliers: expected at least one"),
        ({"multipliers": (1, 0)}, "multipliers: expected a positive integer, got 0"),
        ({"blocks": 0}, "blocks: expected a positive integer"),
        ({"stem_stride": 3}, "stem_stride: expected 1 or 2, got 3"),
        ({"dropout": 1.0}, r"dropout: expected a probability in \[0, 1\)"),
        ({"conditioning": "index"}, "conditioning: expected one of 'log', 'none'"),
        ({"image_size": 2}, "image_size: 2x2 is too small for 3 stages"),
        ({"num_classes": 0}, "num_classes: expected a positive integer"),
    ]:
        with pytest.raises(ValueError, match=message):
            UNet(1, **options)
    with pytest.raises(ValueError, match="images of 3x8 are too small"):
        UNet(1, **SMALL, stem_stride=1)(torch.randn(1, 1, 3, 8), torch.zeros(1))


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
