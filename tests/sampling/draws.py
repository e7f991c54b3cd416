"""Draws of few rows, and what they leave on a disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ansn import AdaptiveCovariance, Denoiser, NoiseModel, levels, networks
from ansn.sampling import Draw

N = 20


def trained(shape: tuple[int, ...] = (1, 2, 2), scale: float = 0.2) -> Denoiser:
    """A network with weights; its samples stay of the data's size."""
    torch.manual_seed(0)
    network = networks.MLP(shape, hidden=24, blocks=1)
    nn.init.normal_(network.output.weight, std=scale)
    x = torch.rand(200, *shape, generator=torch.Generator().manual_seed(0))
    covariance = AdaptiveCovariance(shape).update(x).freeze()
    return Denoiser(network, NoiseModel(covariance, levels.karras(4.0, 0.05)))


def quick(**options: Any) -> Draw:
    return Draw(trained(), "euler", 2, **options)


class Stopped(Exception):
    pass


def stopping(draw: Draw, after: int, error: type[BaseException] = Stopped) -> Draw:
    """The draw that fails instead of its batch number ``after``."""
    batch, calls = draw.batch, []

    def counted(*args: Any, **told: Any) -> Tensor:
        calls.append(args)
        if len(calls) > after:
            raise error
        return batch(*args, **told)

    draw.batch = counted  # type: ignore[method-assign]
    return draw


def entries(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))


def contents(out: Path) -> list[bytes]:
    """The bytes of a file, or of each file of a folder in order."""
    return [p.read_bytes() for p in (sorted(out.iterdir()) if out.is_dir() else [out])]
