"""A run on disk: :func:`load_run` gives back its model, ready to sample, :func:`export_run` writes it, small."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ansn.config import TrainConfig, to_dict
from ansn.covariance import Choice, Found, Mixture
from ansn.data import NAMES
from ansn.data.scientific import split_variable
from ansn.data.units import Affine, Table
from ansn.denoiser import Denoiser
from ansn.errors import InputError
from ansn.files import write_atomic
from ansn.training import build, checkpoint
from ansn.training.build import DataInfo
from ansn.training.places import located


@dataclass(frozen=True)
class Run:
    """A trained model and what it was trained with; ``found``: how its regions were, where they were not given;
    ``weights``: ``"ema"`` for the averaged ones, else ``"network"``."""

    path: Path
    model: Denoiser
    config: TrainConfig
    info: DataInfo
    step: int
    structure: Choice
    found: Found | None = None
    weights: str = "network"

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
    """Load a folder that `ansn-train` or :func:`export_run` wrote, a run that comes with the package by its name, or
    ``hf://OWNER/NAME`` (``@REVISION``) of the Hugging Face Hub. No pickle is read, nothing is executed.

    ``ema``: the averaged weights, where the run kept them; ``step``: which checkpoint, by default the newest that is
    whole; ``finite``: refuse weights and covariances that are not. Raises InputError in one line if there is no
    checkpoint or it cannot be read.
    """
    folder = located(path)
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
        if "classes" in tensors:
            groups["classes"] = tensors["classes"]
            model.noise.class_means = tensors["classes"]["means"].to(model.noise.tau)
        if finite:
            _finite(groups)
    return Run(folder, model.to(device).eval(), config, info, state.step, state.structure, found, chosen)


def export_run(run: Run, folder: Path, name: str, dtype: torch.dtype = torch.float16) -> Path:
    """Write what sampling and likelihoods need of a run into ``folder``, whose parent is there: the weights that it was
    loaded with in ``dtype``, its covariances, the settings without places on this machine. No optimiser, so it is not
    gone on with. ``name``: of the run; training it anew writes ``runs/NAME``. Returns the folder.

    Of the covariances the snapshot is to the bit; moments are float32. InputError for weights beyond ``dtype``.
    """
    weights = {k: v.to(dtype) if v.is_floating_point() else v for k, v in run.model.network.state_dict().items()}
    for key, value in weights.items():
        if not bool(value.isfinite().all()):
            raise InputError(f"--dtype: got {str(dtype)[6:]}, which does not hold {key}, expected float32")
    config, groups = _anywhere(run.config, name), {"network": weights}
    for key, covariance in build.covariances(run.model).items():
        kept = covariance.state_dict()
        groups[key] = {k: v.float() if v.dtype == torch.float64 and v.ndim > 1 else v for k, v in kept.items()}
    if run.model.noise.class_means is not None:
        groups["classes"] = {"means": run.model.noise.class_means}
    asdict = dataclasses.asdict
    state = {
        "config": to_dict(config), "data": asdict(run.info), "levels": asdict(run.model.noise.levels),
        "structure": asdict(run.structure), "found": run.found and asdict(run.found),
    }  # fmt: skip
    try:
        folder.mkdir()
    except FileExistsError:
        raise InputError(f"folder: got {folder}, which is there, expected a new one") from None
    checkpoint.save(folder, run.step, groups, state)
    write_atomic(folder / "config.json", json.dumps(to_dict(config), indent=1) + "\n")
    return folder


def _anywhere(config: TrainConfig, name: str) -> TrainConfig:
    """The settings without the folders of the machine that it was trained on."""
    path, variable = split_variable(config.data.dataset)
    file = Path(path).name
    here = "./" if file in NAMES and path != file else ""  # a path that is called as a data set is still one
    dataset = here + file + ("" if variable is None else f":{variable}")
    data = dataclasses.replace(config.data, data=None, dataset=dataset)
    return dataclasses.replace(config, data=data, run=dataclasses.replace(config.run, out=f"runs/{name}"))


def _finite(groups: Mapping[str, Mapping[str, Tensor]]) -> None:
    for group, tensors in groups.items():
        for name, value in tensors.items():
            broken = int(value.numel() - value.isfinite().sum())
            if broken:
                raise InputError(
                    f"{group}.safetensors: got {broken} of {value.numel()} numbers of {name} that are not finite,"
                    " expected finite ones; ansn-sample --allow-nonfinite draws all the same"
                )
