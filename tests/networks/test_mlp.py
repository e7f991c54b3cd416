"""The MLP: shapes, initialisation, conditioning."""

from __future__ import annotations

import pytest
import torch

from ansn.networks import MLP
from tests.networks.helpers import TOL, awaken, inputs_for


@pytest.mark.parametrize("shape", [(2,), (1, 8, 8), (3, 4), (1,)])
def test_any_shape_is_restored(shape):
    network = awaken(MLP(shape, hidden=16, blocks=2))
    assert network(**inputs_for(network, shape)).shape == (4, *shape)


def test_flattening_is_row_major():
    image, flat = MLP((2, 3), hidden=16), MLP((6,), hidden=16)
    awaken(image)
    flat.load_state_dict(image.state_dict())
    x, level = torch.randn(4, 2, 3), torch.zeros(4)
    torch.testing.assert_close(image(x, level).flatten(1), flat(x.flatten(1), level), **TOL["float32"])


def test_a_new_network_returns_zero_and_all_parameters_learn():
    network = MLP((2,), hidden=16, num_classes=3)
    inputs = inputs_for(network, (2,))
    assert not network(**inputs).any()
    awaken(network)
    network(**inputs).square().sum().backward()
    assert [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_level_and_class_matter():
    network = awaken(MLP((2,), hidden=16, num_classes=3))
    x, zero = torch.ones(4, 2), torch.zeros(4)
    by_level, by_class = network(x, torch.linspace(-1.7, 1.7, 4)), network(x, zero, torch.arange(4))
    for out in (by_level, by_class):
        assert (torch.cdist(out, out) + 1e9 * torch.eye(4)).min() > 1e-3
    torch.testing.assert_close(network(x, zero), network(x, zero, torch.full((4,), 3)))


def test_without_conditioning_the_level_is_ignored():
    network = awaken(MLP((2,), hidden=16, conditioning="none"))
    x = torch.randn(3, 2)
    assert torch.equal(network(x), network(x, torch.ones(3)))


def test_errors():
    network = MLP((2,), hidden=16)
    with pytest.raises(ValueError, match=r"x: got shape \[4, 3\], expected \[B, 2\]"):
        network(torch.randn(4, 3), torch.zeros(4))
    with pytest.raises(ValueError, match=r"x: got shape \[2\], expected \[B, 2\]"):
        network(torch.randn(2), torch.zeros(2))
    with pytest.raises(ValueError, match=r"x: got torch.int64, expected a floating dtype"):
        network(torch.ones(4, 2, dtype=torch.int64), torch.zeros(4))
    with pytest.raises(ValueError, match=r"shape: got \(\), expected the shape of one sample"):
        MLP(())
    with pytest.raises(ValueError, match="shape: got 0, expected a positive integer"):
        MLP((0,))


def test_learns_which_way_the_level_and_the_class_point():
    torch.manual_seed(0)
    network = MLP((2,), hidden=32, blocks=1, num_classes=2)
    optimiser = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(200):
        x, level, y = torch.randn(64, 2), 2 * torch.rand(64) - 1, torch.randint(2, (64,))
        target = torch.stack([x[:, 0] * level, 2.0 * y - 1], dim=1)
        loss = (network(x, level, y) - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.05  # returning 0 scores about 0.67
