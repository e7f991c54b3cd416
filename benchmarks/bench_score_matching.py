"""What score matching without perturbed pairs costs: a forward and backward pass of each loss, beside denoising.

A ratio is a loss over ``dsm_loss`` ("ansn"), on one network and batch. "sliced" is the plain form, "Hutchinson" that of
Eq. 2.4, both by two reverse passes as the package has them; "forward mode" is Eq. 2.4 in the mode which the paper
names. Not in the table of the docs: what it costs is the network's. docs/errata.md has the ratios.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import ansn
from ansn import AdaptiveCovariance, Denoiser, NoiseModel, levels, networks

ROWS = 32
NETWORKS: dict[str, tuple[tuple[int, ...], Callable[[], torch.nn.Module]]] = {
    "MLP of the digits": ((1, 8, 8), lambda: networks.MLP((1, 8, 8))),
    "U-Net 8x8": ((1, 8, 8), lambda: networks.build("unet", (1, 8, 8), width=16, multipliers=(1, 2))),
    "U-Net 28x28": ((1, 28, 28), lambda: networks.build("unet", (1, 28, 28), width=16, multipliers=(1, 2, 2))),
}
EXACT = 64  # most dimensions of an exact trace here: the graphs of so many gradients are in memory at once


def losses(name: str) -> dict[str, Callable[[], Tensor]]:
    """Each loss of one model on the same perturbed rows."""
    shape, network = NETWORKS[name]
    torch.manual_seed(0)
    covariance = AdaptiveCovariance(shape, structure="separable").update(torch.rand(1000, *shape)).freeze()
    model = Denoiser(network(), NoiseModel(covariance, levels.karras(6.0, 0.01)))
    for parameter in model.parameters():  # a new network's last layer is 0
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    x = torch.rand(ROWS, *shape)
    perturbed, level = model.noise.perturb(x, step=0)
    z = torch.randn(ROWS, *shape).sign()

    def score(x: Tensor) -> Tensor:
        return model.score(x, level.tau)

    def forward_mode() -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            s, along = torch.func.jvp(score, (perturbed,), (z,))
        return (z * along + 0.5 * s.square()).flatten(1).mean()

    found = {
        "ansn": lambda: ansn.dsm_loss(model, x, perturbed, level),
        "sliced": lambda: ansn.sliced_score_matching_loss(score, perturbed, variance_reduced=False),
        "Hutchinson": lambda: ansn.score_matching_loss(score, perturbed, trace="hutchinson"),
        "forward mode": forward_mode,
    }
    if x[0].numel() <= EXACT:
        found["exact"] = lambda: ansn.score_matching_loss(score, perturbed)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_losses(against, name: str) -> None:
    against(f"{name}, {ROWS} rows", {which: lambda of=of: of().backward() for which, of in losses(name).items()})
