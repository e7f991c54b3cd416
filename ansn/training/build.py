"""From settings to a denoiser: what a new run, a resumed one and :func:`ansn.load_run` build alike."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ansn import levels, networks
from ansn.config import NetworkConfig, NoiseConfig, TrainConfig
from ansn.covariance import STRUCTURES, AdaptiveCovariance, Choice, choose
from ansn.covariance.choice import AUTO, rows_wanted
from ansn.data import Dataset
from ansn.denoiser import Denoiser
from ansn.errors import InputError
from ansn.levels import Levels
from ansn.noise import NoiseModel


@dataclass(frozen=True)
class DataInfo:
    """What a model must know of its data; kept in the checkpoint, so that sampling needs no data set."""

    name: str
    kind: str
    shape: tuple[int, ...]
    num_classes: int
    quantisation: float
    columns: tuple[str, ...] | None
    offset: tuple[float, ...] | None
    scale: tuple[float, ...] | None
    rows: int
    fewest: int
    """Examples of the smallest class, or all of them."""

    @classmethod
    def of(cls, dataset: Dataset) -> DataInfo:
        return cls(
            dataset.name,
            dataset.kind,
            tuple(dataset.shape),
            dataset.num_classes,
            dataset.quantisation,
            dataset.columns,
            None if dataset.offset is None else tuple(dataset.offset.tolist()),
            None if dataset.scale is None else tuple(dataset.scale.tolist()),
            len(dataset),
            len(dataset) if dataset.labels is None else int(torch.bincount(dataset.labels).min()),
        )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DataInfo:
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**plain)


def first_rows(config: NoiseConfig, dataset: Dataset, seed: int) -> tuple[Tensor, Tensor | None]:
    """Rows that structure, basis and levels are chosen by, and their regions: the first of the run's order."""
    x, labels = dataset.batch(dataset.order(seed, 0)[: rows_wanted(torch.Size(dataset.shape).numel())].cpu())
    return x.cpu(), labels.cpu() if config.regions == "labels" and labels is not None else None


def structure(config: TrainConfig, info: DataInfo, x: Tensor, region: Tensor | None) -> Choice:
    """The structure that is asked for, or the one that the rows ask for."""
    noise = config.noise
    if noise.structure != AUTO:
        return Choice(noise.structure, {}, {}, 0)
    return choose(x, region, _regions(noise, info), root=noise.root, eps_floor=info.quantisation)


def covariance(
    config: TrainConfig, info: DataInfo, structure: str, device: torch.device | str = "cpu"
) -> AdaptiveCovariance:
    """The empty covariance of a run. InputError for settings that do not fit the data or the memory."""
    noise, root = config.noise, config.noise.root
    if root is None and config.network.prediction == "whitened" and STRUCTURES[structure].roots[0] == "basis":
        root = "symmetric"  # f then has the form of the data, which a convolution likes
    try:
        return AdaptiveCovariance(
            info.shape, _regions(noise, info), structure, rho=noise.rho, gamma=noise.gamma, eps=noise.eps,
            eps_floor=info.quantisation, root=root, forgetting=noise.forgetting, device=device,
            distinct=info.rows if noise.regions == "none" else info.fewest,
        )  # fmt: skip
    except (ValueError, MemoryError) as error:
        raise InputError(str(error)) from None


def _regions(config: NoiseConfig, info: DataInfo) -> int:
    if config.regions != "labels":
        return 1
    if not info.num_classes:
        raise InputError(f"--regions labels: {info.name} has no labels; expected a labelled data set")
    return info.num_classes


def ladder(config: TrainConfig, info: DataInfo, structure: str, x: Tensor, region: Tensor | None) -> Levels:
    """The run's levels; the largest one, unless it is given, and the flow's start from rows of the data."""
    noise, dim = config.noise, torch.Size(info.shape).numel()
    try:
        if noise.ladder == "paper":
            chosen = levels.paper(dim)
            return replace(chosen, training=noise.training_levels or chosen.training)
        seen = _seen(config, info, structure, x, region)
        chosen = levels.flow(
            x, seen, tau_max=noise.tau_max, tau_min=noise.tau_min, n=noise.rungs or 20, region=region
        )
        if noise.ladder == "geometric":
            overlap: dict[str, Any] = {"n": noise.rungs} if noise.rungs else {"dim": dim}
            seen = seen if region is None else _seen(config, info, structure, x, None)
            top = noise.tau_max or levels.tau_max_langevin(x[: levels.PAIRS], seen)
            ladder = levels.geometric(top, noise.tau_min, training="ladder", **overlap)
            chosen = replace(ladder, start=min(max(chosen.start or 0.0, ladder.minimum), ladder.maximum))
    except ValueError as error:
        raise InputError(str(error)) from None
    return replace(chosen, training=noise.training_levels or chosen.training)


def denoiser(
    config: TrainConfig, info: DataInfo, structure: str, chosen: Levels, device: torch.device | str = "cpu"
) -> Denoiser:
    """Network, covariance and levels, freshly initialised from the run's seed."""
    noise = NoiseModel(covariance(config, info, structure, device), chosen, config.run.seed)
    if config.noise.regions == "labels" and not config.network.class_conditional:
        # Without k in the network the weight of the loss may not depend on k (math section 6).
        raise InputError("--regions labels: needs --class-conditional, so that the network knows the region")
    if config.network.class_conditional and not info.num_classes:
        raise InputError(f"--class-conditional: {info.name} has no labels; expected a labelled data set")
    try:
        with torch.random.fork_rng(devices=[]):  # who loads a run keeps the state of their own generator
            torch.manual_seed(config.run.seed)
            network = networks.build(config.network.network, info.shape, **_options(config.network, info, chosen))
        model = Denoiser(
            network, noise, config.network.prediction, precondition=config.network.precondition,
            skip=_skip(config.network, noise.covariance), label_dropout=config.network.label_dropout,
        )  # fmt: skip
    except (ValueError, TypeError) as error:
        raise InputError(str(error)) from None
    # For images only. An MLP has no weight that this would change; for volumes torch's convolutions of size 1 give such
    # a layout up again, so that it buys nothing.
    if len(info.shape) == 3:
        model.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model.to(device)


def _skip(config: NetworkConfig, learned: AdaptiveCovariance) -> str | None:
    """The skip that was asked for; else the denoiser's own default, where there are distinct examples enough for it."""
    few = (learned.rules.distinct or 0) < learned.structure.points()
    return "scalar" if config.skip is None and few else config.skip


def _options(config: NetworkConfig, info: DataInfo, chosen: Levels) -> dict[str, Any]:
    """The named network's own arguments."""
    classes = {"num_classes": info.num_classes if config.class_conditional else None}
    told = {"conditioning": "none" if config.unconditional else "log"}
    # What is not given is the network's own default.
    blocks = {} if config.blocks is None else {"blocks": config.blocks}
    width = {} if config.width is None else {"hidden" if config.network == "mlp" else "width": config.width}
    if config.network == "mlp":
        return width | blocks | {"dropout": config.dropout} | classes | told
    if config.network == "unet":
        return width | blocks | {
            "multipliers": config.multipliers, "stem_stride": config.stem_stride, "dropout": config.dropout,
        } | classes | told  # fmt: skip
    # The RefineNets map [0, 1] to [-1, 1] themselves, which preconditioned input does not want.
    published = {"rescale": not config.precondition} | ({} if config.width is None else {"ngf": config.width})
    if config.network == "ncsn":
        return published | {"num_levels": None if config.unconditional else len(chosen)} | classes
    return published | classes | told


def _seen(
    config: TrainConfig, info: DataInfo, structure: str, x: Tensor, region: Tensor | None
) -> AdaptiveCovariance:
    """A covariance that has seen these points, for levels that depend on the data."""
    seen = covariance(config, info, structure)
    if seen.regions > 1 and region is None:
        region = torch.zeros(len(x), dtype=torch.int64)
    return seen.update(x, region if seen.regions > 1 else None)
