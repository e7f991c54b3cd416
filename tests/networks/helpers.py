"""What the network tests share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

# One row alone against the same row in a batch; channels_last against contiguous; compiled against eager.
TOL = {"float32": {"rtol": 1e-5, "atol": 1e-5}, "float64": {"rtol": 1e-10, "atol": 1e-11}}


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@torch.no_grad()
def awaken(network: nn.Module, seed: int = 0) -> nn.Module:
    """Shift every parameter a little, so that nothing is hidden behind a zero initialisation."""
    generator = torch.Generator().manual_seed(seed)
    for p in network.parameters():
        p.add_(0.1 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return network


def inputs_for(network: nn.Module, shape: tuple[int, ...], batch: int = 4) -> dict[str, Tensor]:
    """x, level and y as this network takes them."""
    generator = torch.Generator().manual_seed(7)
    out: dict[str, Tensor] = {"x": torch.rand(batch, network.inputs * shape[0], *shape[1:], generator=generator)}
    if network.conditioning == "log":
        out["level"] = torch.linspace(-1.7, 1.7, batch)
    elif network.conditioning == "index":
        out["level"] = torch.arange(batch) % network.num_levels
    if network.num_classes is not None:
        out["y"] = torch.arange(batch) % (network.num_classes + 1)
    return out
