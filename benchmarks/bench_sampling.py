"""Drawing end to end, noise to samples: the network called as it is, compiled, in bfloat16, and a loop in plain torch.

Times are for a batch of ROWS: samples a second are ROWS over them. Not in the table of the docs: what pays is the
machine's and the network's.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ansn import AdaptiveCovariance, Denoiser, NoiseModel, levels, networks
from ansn.sampling import Draw
from benchmarks.training import heun

ROWS, STEPS = 64, 6
NETWORKS = {
    "MLP of the digits": lambda: networks.MLP((1, 8, 8)),
    "U-Net 16x16": lambda: networks.build("unet", (1, 16, 16), width=16, multipliers=(1, 2)),
}


def _model(name: str) -> Denoiser:
    torch.manual_seed(0)
    network = NETWORKS[name]().eval()
    shape = (1, 8, 8) if "MLP" in name else (1, 16, 16)
    for parameter in network.parameters():  # a new network's last layer is 0
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    covariance = AdaptiveCovariance(shape).update(torch.rand(1000, *shape)).freeze()
    return Denoiser(network, NoiseModel(covariance, levels.karras(6.0, 0.01)))


def _loop(model: Denoiser, taus: list[float]) -> Tensor:
    """Heun as a user writes it: torch's own normals, numbers for levels."""
    covariance = model.noise.covariance
    x = covariance.color(torch.randn(ROWS, *covariance.shape)) * taus[0] + covariance.center.reshape(covariance.shape)
    return heun(model, x, taus)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_sampling(against, name: str) -> None:
    model = _model(name)
    plain = Draw(model, "heun", STEPS)
    draws = {"ansn": plain, "ansn, compiled": Draw(model, "heun", STEPS, compile=True)}
    draws["ansn, bfloat16"] = Draw(model, "heun", STEPS, dtype=torch.bfloat16)
    draws["ansn, compiled, bfloat16"] = Draw(model, "heun", STEPS, compile=True, dtype=torch.bfloat16)
    contenders = {which: lambda draw=draw: draw.batch(0, ROWS) for which, draw in draws.items()}
    taus = plain.taus.tolist()
    against(f"{name}, {ROWS} by Heun, {STEPS} levels", contenders | {"eager loop": lambda: _loop(model, taus)})
