"""From settings to a denoiser: what a new run, a resumed one and :func:`ansn.load_run` build alike."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ansn import levels, networks
from ansn.config import NetworkConfig, NoiseConfig, TrainConfig
from ansn.covariance import STRUCTURES, AdaptiveCovariance, Choice, Found, Mixture, choose, find
from ansn.covariance.choice import AUTO, rows_wanted
from ansn.data import Dataset
from ansn.data.units import Affine, Column, Table, from_json
from ansn.denoiser import Denoiser
from ansn.errors import InputError
from ansn.levels import Levels
from ansn.noise import NoiseModel

MIXED = {"table": (), "image": ("estimate",)}
"""Kinds of data that a run begins as a mixture of, and what the network then sees."""

MOST_MIXED = 1024
"""Dimensions up to which it does: the largest that docs/results.md has are the 784 of MNIST."""


@dataclass(frozen=True)
class DataInfo:
    """What a model must know of its data; kept in the checkpoint, so that sampling needs no data set."""

    name: str
    kind: str
    shape: tuple[int, ...]
    quantisation: float
    units: dict[str, Any] | None
    """See :func:`ansn.data.units.from_json`."""
    rows: int
    classes: tuple[str, ...]
    counts: tuple[int, ...]
    """Rows of each class."""
    levels: int | None
    content: str
    """:meth:`Dataset.fingerprint`."""
    understood: tuple[str, ...]
    """What the data was taken for, in lines for a person."""

    @classmethod
    def of(cls, dataset: Dataset) -> DataInfo:
        return cls(
            dataset.name,
            dataset.kind,
            tuple(dataset.shape),
            dataset.quantisation,
            None if dataset.units is None else dataset.units.to_json(),
            len(dataset),
            dataset.classes or (),
            () if dataset.labels is None else tuple(dataset.labels.bincount(minlength=dataset.num_classes).tolist()),
            dataset.levels,
            dataset.fingerprint(),
            tuple(dataset.understood()),
        )

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def fewest(self) -> int:
        """Examples of the smallest class, or all of them."""
        return min(self.counts, default=self.rows)

    @cached_property
    def numbers(self) -> Affine | Table | None:
        """Between the model's numbers and the file's."""
        return from_json(self.units)

    @property
    def columns(self) -> tuple[str, ...] | None:
        """Names of a table's columns."""
        return self.numbers.names if isinstance(self.numbers, Table) else None

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DataInfo:
        values = values if "content" in values else _before_content(values)
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**plain)


def _before_content(old: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint of a format before 4 has of its data."""
    names, shape, count = old["columns"], old["shape"], old["num_classes"]
    columns = zip(names or (), old["offset"] or (), old["scale"] or (), strict=True)
    table = Table(tuple(Column(name, offset=offset, scale=scale) for name, offset, scale in columns))
    return {
        "name": old["name"], "kind": {1: "table", 3: "image"}.get(len(shape), "field"), "shape": shape,
        "quantisation": old["quantisation"], "units": table.to_json() if names else None, "rows": old["rows"],
        "classes": list(map(str, range(count))), "counts": [old["fewest"]] * count, "levels": None, "content": "",
        "understood": [],
    }  # fmt: skip


def first_rows(config: NoiseConfig, dataset: Dataset, seed: int) -> tuple[Tensor, Tensor | None]:
    """Rows that structure, regions, basis and levels are chosen by, and their classes where these are the regions: the
    first of the run's order."""
    labelled = config.regions == "labels"
    if labelled and not dataset.num_classes:
        raise InputError(f"--regions: got labels for {dataset.name}, which has none, expected a labelled data set")
    x, labels = dataset.batch(dataset.order(seed, 0)[: rows_wanted(torch.Size(dataset.shape).numel())].cpu())
    return x.cpu(), labels.cpu() if labelled and labels is not None else None


def settled(config: TrainConfig, info: DataInfo, structure: str) -> TrainConfig:
    """A new run's settings, with the skip and the inputs that are not given as docs/results.md found them best for the
    kind of data: a mixture's under isotropic noise for vectors and images, whose network also sees the estimate. Not
    where noise is given a shape or regions, or rows are fewer than the structure needs, or the K filters would cost
    more than was measured."""
    noise, network = config.noise, config.network
    free = network.skip is None and noise.regions == "none"
    usual = network.precondition and network.prediction == "denoiser" and noise.ladder != "paper"
    known = info.kind in MIXED and torch.Size(info.shape).numel() <= MOST_MIXED
    enough = info.rows >= max(4, STRUCTURES[structure](info.shape).points())
    if free and usual and known and enough and not noise.rho and not noise.gamma:
        inputs = MIXED[info.kind] if network.inputs is None else network.inputs
        return replace(config, network=replace(network, skip="mixture", inputs=inputs))
    return config


def mixed(config: TrainConfig) -> bool:
    """Whether the regions are Gaussians of the skip, and not of the noise."""
    return config.network.skip == "mixture"


def found_regions(
    config: TrainConfig, info: DataInfo, x: Tensor, labels: Tensor | None, choice: Choice
) -> tuple[Mixture, Found]:
    """Regions that have learned from rows of the data, and how they were found. ``choice``: of the structure, by all
    rows."""
    wanted, shape = config.noise.regions, _shape(config, info, config.noise.structure)
    try:
        if labels is None:
            number = AUTO if wanted == "none" else wanted
            return find(x, number, choice, seed=config.run.seed, **shape)
        found = Found(info.num_classes, structure(config, info, x, labels).structure, {}, len(x))
        return Mixture.of(x, labels, found.regions, found.structure, **shape), found
    except (ValueError, MemoryError) as error:
        raise InputError(str(error)) from None


def structure(config: TrainConfig, info: DataInfo, x: Tensor, region: Tensor | None) -> Choice:
    """The structure that is asked for, or the one that the rows ask for."""
    noise = config.noise
    if noise.structure != AUTO:
        return Choice(noise.structure)
    count = 1 if region is None else info.num_classes
    return choose(x, region, count, root=noise.root, eps_floor=info.quantisation)


def covariance(
    config: TrainConfig, info: DataInfo, structure: str, device: torch.device | str = "cpu"
) -> AdaptiveCovariance:
    """The empty covariance of a run's noise, of one region or one a class. InputError for settings that do not fit the
    data or the memory."""
    by_class = config.noise.regions == "labels" and not mixed(config)
    count, distinct = (info.num_classes, info.fewest) if by_class else (1, info.rows)
    return _empty(info, count, structure, distinct=distinct, device=device, **_shape(config, info, structure))


def regions(config: TrainConfig, info: DataInfo, found: Found) -> Mixture:
    """Empty regions, of the noise or of the skip, as they were found."""
    return Mixture(_empty(info, found.regions, found.structure, **_shape(config, info, config.noise.structure)))


def _shape(config: TrainConfig, info: DataInfo, structure: str) -> dict[str, Any]:
    """How noise is made of moments; ``auto``: whatever structure regions are found to have."""
    noise, root = config.noise, config.noise.root
    rho = 0.0 if mixed(config) and noise.gamma is None else noise.rho
    basis = structure == AUTO or STRUCTURES[structure].roots[0] == "basis"
    if root is None and config.network.prediction == "whitened" and basis:
        root = "symmetric"  # f then has the form of the data, which a convolution likes
    return {
        "rho": rho, "gamma": noise.gamma, "eps": noise.eps, "eps_floor": info.quantisation, "root": root,
        "forgetting": noise.forgetting,
    }  # fmt: skip


def _empty(info: DataInfo, count: int, structure: str, **options: Any) -> AdaptiveCovariance:
    try:
        return AdaptiveCovariance(info.shape, count, structure, **options)
    except (ValueError, MemoryError) as error:
        raise InputError(str(error)) from None


def ladder(
    config: TrainConfig,
    info: DataInfo,
    structure: str,
    x: Tensor,
    region: Tensor | None,
    found: Mixture | None = None,
) -> Levels:
    """The run's levels; the largest one, unless it is given, and the flow's start from rows of the data. ``found``:
    regions that have learned from them."""
    noise, dim = config.noise, torch.Size(info.shape).numel()
    mixture = found if mixed(config) else None
    try:
        if noise.ladder == "paper":
            chosen = levels.paper(dim)
            return replace(chosen, training=noise.training_levels or chosen.training)
        if found is None or mixture is not None:
            seen = covariance(config, info, structure).update(x, region, sync=False)
        else:
            seen, region = found.covariance, found.draw(x, row=0)
        region = None if seen.regions == 1 else region
        chosen = levels.flow(
            x, seen, tau_max=noise.tau_max, tau_min=noise.tau_min, n=noise.rungs or 20, region=region, mixture=mixture
        )
        if noise.ladder == "geometric":
            overlap: dict[str, Any] = {"n": noise.rungs} if noise.rungs else {"dim": dim}
            if seen.regions > 1:
                seen = _empty(info, 1, structure, **_shape(config, info, structure)).update(x, sync=False)
            top = noise.tau_max or levels.tau_max_langevin(x[: levels.PAIRS], seen)
            ladder = levels.geometric(top, noise.tau_min, training="ladder", **overlap)
            chosen = replace(ladder, start=min(max(chosen.start or 0.0, ladder.minimum), ladder.maximum))
    except ValueError as error:
        raise InputError(str(error)) from None
    return replace(chosen, training=noise.training_levels or chosen.training)


def network(config: TrainConfig, info: DataInfo, rungs: int, regions: int = 1) -> nn.Module:
    """The network of a ladder of ``rungs`` and noise of ``regions``, freshly initialised from the run's seed.
    InputError for settings that are wrong or do not fit the data."""
    settings = config.network
    if settings.class_conditional and not info.num_classes:
        raise InputError(f"--class-conditional: got {info.name} without labels, expected a labelled data set")
    told = info.num_classes if settings.class_conditional else regions  # classes, or regions found
    options = _options(settings, rungs, told if told > 1 or settings.class_conditional else None)
    try:
        with torch.random.fork_rng(devices=[]):  # who loads a run keeps the state of their own generator
            torch.manual_seed(config.run.seed)
            return networks.build(settings.network, info.shape, **options)
    except (ValueError, TypeError) as error:
        raise InputError(str(error)) from None


def denoiser(
    config: TrainConfig,
    info: DataInfo,
    structure: str,
    chosen: Levels,
    device: torch.device | str = "cpu",
    found: Mixture | None = None,
) -> Denoiser:
    """Network, covariance and levels, freshly initialised, around the regions that were found."""
    of_noise = None if found is None or mixed(config) else found.covariance
    learned = covariance(config, info, structure, device) if of_noise is None else of_noise
    settings, built = config.network, network(config, info, len(chosen), learned.regions)
    try:
        noise = NoiseModel(learned, chosen, config.run.seed, found if of_noise is None else None)
        model = Denoiser(
            built, noise, settings.prediction, precondition=settings.precondition, skip=_skip(settings, learned),
            inputs=settings.inputs or (), label_dropout=settings.label_dropout,
        )  # fmt: skip
    except (ValueError, TypeError) as error:
        raise InputError(str(error)) from None
    # For images only. An MLP has no weight that this would change; for volumes torch's convolutions of size 1 give such
    # a layout up again, so that it buys nothing.
    if len(info.shape) == 3:
        model.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model.to(device)


def covariances(model: Denoiser) -> dict[str, AdaptiveCovariance]:
    """What of a model learns from clean data, by the name of its group in a checkpoint."""
    noise = model.noise
    return {"covariance": noise.covariance} | ({} if noise.mixture is None else {"mixture": noise.mixture.covariance})


def _skip(config: NetworkConfig, learned: AdaptiveCovariance) -> str | None:
    """The skip that was asked for; else the denoiser's own default, where there are distinct examples enough for it."""
    distinct = learned.rules.distinct
    few = distinct is not None and distinct < learned.structure.points()
    return "scalar" if config.skip is None and few else config.skip


def _options(config: NetworkConfig, rungs: int, classes: int | None) -> dict[str, Any]:
    """The named network's own arguments."""
    told = {"conditioning": "none" if config.unconditional else "log"}
    common: dict[str, Any] = {"num_classes": classes, "inputs": 1 + len(config.inputs or ())}
    # What is not given is the network's own default.
    blocks = {} if config.blocks is None else {"blocks": config.blocks}
    width = {} if config.width is None else {"hidden" if config.network == "mlp" else "width": config.width}
    if config.network == "mlp":
        return width | blocks | {"dropout": config.dropout} | common | told
    if config.network == "unet":
        return width | blocks | {
            "multipliers": config.multipliers, "stem_stride": config.stem_stride, "dropout": config.dropout,
            "periodic": config.periodic,
        } | common | told  # fmt: skip
    # The RefineNets map [0, 1] to [-1, 1] themselves, which preconditioned input does not want.
    published = {"rescale": not config.precondition} | ({} if config.width is None else {"ngf": config.width})
    if config.network == "ncsn":
        return published | {"num_levels": None if config.unconditional else rungs} | common
    return published | common | told
