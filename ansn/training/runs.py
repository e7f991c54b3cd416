"""A run on disk: :func:`load_run` gives back its model, ready to sample."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ansn.config import TrainConfig
from ansn.covariance import Choice, Found, Mixture
from ansn.data.units import Affine, Table
from ansn.denoiser import Denoiser
from ansn.errors import InputError
from ansn.training import build, checkpoint
from ansn.training.build import DataInfo


@dataclass(frozen=True)
class Run:
    """A trained model and what it was trained with; ``found``: how its regions were, where they were not given."""

    path: Path
    model: Denoiser
    config: TrainConfig
    info: DataInfo
    step: int
    structure: Choice
    found: Found | None = None

    @property
    def mixture(self) -> Mixture:
        """The Gaussians of the run's regions, of the skip or of the noise; one where it has no regions."""
        noise = self.model.noise
        return Mixture(noise.covariance) if noise.mixture is None else noise.mixture

    @property
    def regions(self) -> Mixture | None:
        """:attr:`mixture` where there are several regions."""
        noise = self.model.noise
        return self.mixture if (noise.mixture or noise).covariance.regions > 1 else None

    def to_data_units(self, x: Tensor) -> Tensor:
        """Samples ``[n, *shape]`` in the data's units, see :meth:`Dataset.to_data_units`; images as they are."""
        return x if self.units is None else self.units.decode(x)

    @property
    def units(self) -> Affine | Table | None:
        """Between the model's numbers and those of the file; None for images."""
        return self.info.numbers


def load_run(
    path: str | os.PathLike[str], *, ema: bool = True, step: int | None = None, device: str | torch.device = "cpu",
    finite: bool = True,
) -> Run:  # fmt: skip
    """Load a folder that `ansn-train` wrote. No pickle is read.

    ``ema``: the averaged weights, where the run kept them; ``step``: which checkpoint, by default the newest that is
    whole; ``finite``: refuse weights and covariances that are not. Raises InputError in one line if there is no
    checkpoint or it cannot be read.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise InputError(f"{folder}: got no folder, expected one that ansn-train wrote")
    tensors, state = checkpoint.load(folder, step)
    with checkpoint.fitting(folder):
        config, info, found = state.config, state.data, state.found
        chosen = "ema" if ema and "ema" in tensors else "network"
        weights = tensors[chosen]
        build.check_fits(config, info, len(state.levels), found, tensors, chosen)
        regions = None if found is None else build.regions(config, info, found)
        model = build.denoiser(config, info, state.structure.structure, state.levels, found=regions)
        model.network.load_state_dict(weights)
        groups = {chosen: weights}
        for name, covariance in build.covariances(model).items():
            covariance.load_state_dict(tensors[name])
            covariance.load_gathered(tensors.get(f"{name}-gathered", {}), sync=False)
            groups[name] = tensors[name]
        if finite:
            _finite(groups)
    return Run(folder, model.to(device).eval(), config, info, state.step, state.structure, found)


def _finite(groups: Mapping[str, Mapping[str, Tensor]]) -> None:
    for group, tensors in groups.items():
        for name, value in tensors.items():
            broken = int(value.numel() - value.isfinite().sum())
            if broken:
                raise InputError(
                    f"{group}.safetensors: got {broken} of {value.numel()} numbers of {name} that are not finite,"
                    " expected finite ones; ansn-sample --allow-nonfinite draws all the same"
                )
