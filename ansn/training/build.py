"""From settings to a denoiser: what a new run, a resumed one and :func:`ansn.load_run` build alike."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ansn import levels, networks
from ansn.config import NetworkConfig, NoiseConfig, TrainConfig
from ansn.covariance import SPECTRUM_POINTS, AdaptiveCovariance
from ansn.data import Dataset
from ansn.denoiser import Denoiser
from ansn.errors import InputError
from ansn.levels import Levels
from ansn.noise import NoiseModel

_PROBE = 2000  # points that the data-driven largest level looks at
_PAIRS = 1000


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


def covariance(config: NoiseConfig, info: DataInfo, device: torch.device | str = "cpu") -> AdaptiveCovariance:
    """The empty covariance of a run. InputError for settings that do not fit the data or the memory."""
    regions = 1
    if config.regions == "labels":
        if not info.num_classes:
            raise InputError(f"--regions labels: {info.name} has no labels; expected a labelled data set")
        regions = info.num_classes
    try:
        return AdaptiveCovariance(
            info.shape, regions, config.structure, rho=config.rho, gamma=config.gamma, eps=config.eps,
            eps_floor=info.quantisation, root=config.root, forgetting=config.forgetting, device=device,
        )  # fmt: skip
    except (ValueError, MemoryError) as error:
        raise InputError(str(error)) from None


def ladder(config: NoiseConfig, info: DataInfo, dataset: Dataset, seed: int) -> Levels:
    """The run's levels; the largest one, unless it is given, and the flow's start from the data."""
    dim = torch.Size(info.shape).numel()
    try:
        if config.ladder == "paper":
            chosen = levels.paper(dim)
            return replace(chosen, training=config.training_levels or chosen.training)
        x, labels = dataset.batch(dataset.order(seed, 0)[:_PROBE].cpu())
        x = x.cpu()
        region = labels.cpu() if config.regions == "labels" and labels is not None else None
        # A thousand points are enough for what looks at pairs of them, which is quadratic in their number.
        some = None if region is None else region[:_PAIRS]
        start = levels.tau_start(x[:_PAIRS], _seen(config, info, x, region), region=some)
        if config.ladder == "karras":
            top = config.tau_max or max(levels.tau_max_flow(dim), start)
            chosen = levels.karras(top, config.tau_min, n=config.rungs or 20, training="lognormal")
        else:
            overlap: dict[str, Any] = {"n": config.rungs} if config.rungs else {"dim": dim}
            top = config.tau_max or levels.tau_max_langevin(x[:_PAIRS], _seen(config, info, x, None))
            chosen = levels.geometric(top, config.tau_min, training="ladder", **overlap)
    except ValueError as error:
        raise InputError(str(error)) from None
    start = min(max(start, chosen.minimum), chosen.maximum)
    return replace(chosen, training=config.training_levels or chosen.training, start=start)


def denoiser(config: TrainConfig, info: DataInfo, chosen: Levels, device: torch.device | str = "cpu") -> Denoiser:
    """Network, covariance and levels, freshly initialised from the run's seed."""
    noise = NoiseModel(covariance(config.noise, info, device), chosen, config.run.seed)
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
            skip=_skip(config.network, info, noise.covariance), label_dropout=config.network.label_dropout,
        )  # fmt: skip
    except (ValueError, TypeError) as error:
        raise InputError(str(error)) from None
    # For images only. An MLP has no weight that this would change; for volumes torch's convolutions of size 1 give such
    # a layout up again, so that it buys nothing.
    if len(info.shape) == 3:
        model.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model.to(device)


def _skip(config: NetworkConfig, info: DataInfo, learned: AdaptiveCovariance) -> str | None:
    """The skip that was asked for; else the denoiser's own default, where there are distinct examples enough for it:
    the covariance counts those that come again in every epoch."""
    distinct = info.rows if learned.regions == 1 else info.fewest
    if config.skip is None and distinct < SPECTRUM_POINTS * learned.dim:
        return "scalar"
    return config.skip


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


def _seen(config: NoiseConfig, info: DataInfo, x: Tensor, region: Tensor | None) -> AdaptiveCovariance:
    """A covariance that has seen these points, for levels that depend on the data."""
    seen = covariance(config, info)
    if seen.regions > 1 and region is None:
        region = torch.zeros(len(x), dtype=torch.int64)
    seen.update(x, region if seen.regions > 1 else None).refresh()
    return seen
