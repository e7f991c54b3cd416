"""From settings to a denoiser: what a new run, a resumed one and :func:`ansn.load_run` build alike."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ansn import levels, networks, schema
from ansn.config import NetworkConfig, NoiseConfig, TrainConfig
from ansn.covariance import STRUCTURES, AdaptiveCovariance, Choice, Found, Mixture, choose, find
from ansn.covariance.choice import AUTO, rows_wanted
from ansn.data import Dataset
from ansn.data.units import MAX_CLASSES, Affine, Column, Table, from_json
from ansn.denoiser import Denoiser
from ansn.errors import InputError
from ansn.levels import Levels
from ansn.noise import NoiseModel

MOST_MIXED = 4096
"""Dimensions up to which a run begins as a mixture: the largest that docs/results.md has are the 3,072 of CIFAR-10."""

_MOST_NUMBERS = 2**34  # of a row; far more than any data has


@dataclass(frozen=True)
class DataInfo:
    """What a model must know of its data; kept in the checkpoint, so that sampling needs no data set."""

    name: str
    kind: str
    shape: tuple[int, ...]
    quantisation: float
    units: Any
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

    def __post_init__(self) -> None:
        axes = {"table": (1,), "image": (3,), "field": (2, 3, 4)}.get(self.kind, ())
        classes, counts, numbers = len(self.classes), self.counts, math.prod(self.shape)
        rules = [
            ("kind", self.kind, bool(axes), "table, image or field"),
            ("shape", list(self.shape), len(self.shape) in axes and min(self.shape) >= 1, f"that of a {self.kind}"),
            ("shape", list(self.shape), numbers <= _MOST_NUMBERS, f"at most {_MOST_NUMBERS:,} numbers"),
            ("rows", self.rows, self.rows >= 0, "0 or more"),
            ("quantisation", self.quantisation, self.quantisation >= 0, "0 or more"),
            ("levels", self.levels, self.levels is None or 2 <= self.levels <= 256, "2 to 256"),
            ("classes", classes, classes <= MAX_CLASSES, f"at most {MAX_CLASSES:,}"),
            ("counts", len(counts), len(counts) == classes and min(counts, default=0) >= 0, "one a class, 0 or more"),
        ]
        for name, value, good, expected in rules:
            if not good:
                raise ValueError(f"{name}: got {value}, expected {expected}")
        if self.numbers is not None and tuple(self.numbers.shape) != self.shape:
            raise ValueError(f"units: got those of rows {list(self.numbers.shape)}, expected {list(self.shape)}")

    @classmethod
    def from_dict(cls, values: Any) -> DataInfo:
        """The inverse of ``dataclasses.asdict``, also of formats before 4. InputError for anything else."""
        found: DataInfo
        if isinstance(values, dict) and "content" not in values:
            old: _DataBefore4 = schema.build(_DataBefore4, values, "data")
            found = old.now()
        else:
            found = schema.build(DataInfo, values, "data")
        return found


@dataclass(frozen=True)
class _DataBefore4:
    """What a checkpoint of a format before 4 has of its data."""

    name: str
    shape: tuple[int, ...]
    quantisation: float
    rows: int
    fewest: int
    num_classes: int
    columns: tuple[str, ...] | None = None
    offset: tuple[float, ...] | None = None
    scale: tuple[float, ...] | None = None
    kind: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.num_classes <= MAX_CLASSES:
            raise ValueError(f"num_classes: got {self.num_classes}, expected 0 to {MAX_CLASSES:,}")
        if self.columns is not None and not len(self.columns) == len(self.offset or ()) == len(self.scale or ()):
            raise ValueError(f"columns: got {len(self.columns)}, expected as many offsets and scales")

    def now(self) -> DataInfo:
        columns = zip(self.columns or (), self.offset or (), self.scale or (), strict=True)
        try:
            units = Table(tuple(Column(name, offset=offset, scale=scale) for name, offset, scale in columns)).to_json()
            return DataInfo(
                self.name, {1: "table", 3: "image"}.get(len(self.shape), "field"), self.shape, self.quantisation,
                units if self.columns else None, self.rows, tuple(map(str, range(self.num_classes))),
                (self.fewest,) * self.num_classes, None, "", (),
            )  # fmt: skip
        except ValueError as error:
            raise InputError(f"data: got columns of no use ({error}), expected finite scales above 0") from None


def first_rows(config: NoiseConfig, dataset: Dataset, seed: int) -> tuple[Tensor, Tensor | None]:
    """Rows that structure, regions, basis, levels and the means of classes are chosen by, and their classes: the first
    of the run's order."""
    if config.regions == "labels" and not dataset.num_classes:
        raise InputError(f"--regions: got labels for {dataset.name}, which has none, expected a labelled data set")
    if len(dataset) < levels.FEWEST:
        raise InputError(f"--dataset: got {len(dataset)} rows to train on, expected at least {levels.FEWEST}")
    x, labels = dataset.batch(dataset.order(seed, 0)[: rows_wanted(torch.Size(dataset.shape).numel())].cpu())
    return x.cpu(), None if labels is None else labels.cpu()


def settled(config: TrainConfig, info: DataInfo, structure: str) -> TrainConfig:
    """A new run's settings, with what is not given as docs/results.md found it best: isotropic noise, unless regions of
    the noise are asked for; the skip of a mixture or, in many dimensions, of one Gaussian, where noise has no shape and
    there are as many rows as the structure needs; and a network that sees its estimate, but for tables."""
    noise, network = config.noise, config.network
    usual = network.precondition and network.prediction == "denoiser" and noise.ladder != "paper"
    if not usual or (noise.regions != "none" and not mixed(config)):
        return config
    if noise.rho is None and noise.gamma is None:
        noise = replace(noise, rho=0.0)
    enough = info.rows >= max(levels.FEWEST, STRUCTURES[structure](info.shape).points())
    if network.skip is None and enough and not noise.rho and not noise.gamma:
        skip = "mixture" if torch.Size(info.shape).numel() <= MOST_MIXED else "wiener"
        seen = () if info.kind == "table" else ("estimate",)
        network = replace(network, skip=skip, inputs=seen if network.inputs is None else network.inputs)
    return replace(config, noise=noise, network=network)


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
    """The structure that is asked for, or the one that the rows ask for. InputError for a class without a spread of its
    own, of whose rows noise is to take its shape."""
    noise = config.noise
    if region is not None and not mixed(config):
        _refuse_one_point(config, info, x, region)
    if noise.structure != AUTO:
        return Choice(noise.structure)
    count = 1 if region is None else info.num_classes
    return choose(x, region, count, root=noise.root, eps_floor=info.quantisation)


def _refuse_one_point(config: TrainConfig, info: DataInfo, x: Tensor, region: Tensor) -> None:
    """A class of one row, or of rows that are all the same, has no S, and R needs a ridge then. One of no row is never
    drawn."""
    if info.quantisation if config.noise.eps is None else config.noise.eps:
        return
    for k, (name, count) in enumerate(zip(info.classes, info.counts, strict=True)):
        rows = x[region == k]
        if count == 1 or (len(rows) > 1 and bool((rows == rows[0]).all())):
            told = "one row" if count == 1 else "rows that are all the same"
            raise InputError(
                f"--regions: got labels where class {name!r} has {told}, expected two or more that differ, for each"
                " class's noise has the shape of its rows; leave the class out, or --regions labels, or give --eps"
            )


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


class _Unfilled(TorchFunctionMode):
    """Weights keep what they have: on the meta device there is nothing to fill, and before it draws no normal numbers
    torch imports its compiler, which takes seconds."""

    def __torch_function__(self, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(call, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return args[0] if call in (Tensor.normal_, Tensor.uniform_) else call(*args, **kwargs or {})


def shapes(config: TrainConfig, info: DataInfo, rungs: int, regions: int = 1) -> dict[str, torch.Size]:
    """Shapes of the weights of :func:`network`, by name, for which no memory is taken."""
    with torch.device("meta"), _Unfilled():
        return {name: value.shape for name, value in network(config, info, rungs, regions).state_dict().items()}


def check_fits(
    config: TrainConfig, info: DataInfo, rungs: int, found: Found | None,
    tensors: Mapping[str, Mapping[str, Tensor]], weights: str = "network",
) -> None:  # fmt: skip
    """InputError unless stored ``tensors`` are those of these settings: before memory is taken for a model that a
    damaged file makes of any size. ``weights``: the group of the network's."""
    regions = found.regions if found is not None else info.num_classes if config.noise.regions == "labels" else 1
    of_noise, dim = 1 if mixed(config) else regions, math.prod(info.shape)
    groups = {weights: shapes(config, info, rungs, of_noise)}
    for name, count in (("covariance", of_noise), ("mixture", regions)):
        if name in tensors:
            groups[name] = {"center": torch.Size((count, dim))}
    if "classes" in tensors:
        groups["classes"] = {"means": torch.Size((info.num_classes + 1, *info.shape))}
    for group, asked in groups.items():
        for name in (*asked, *(tensors[group] if group == weights else ())):
            have = list(tensors[group][name].shape) if name in tensors[group] else "none"
            want = list(asked[name]) if name in asked else "none"
            if have != want:
                raise InputError(f"{group}.safetensors {name}: got {have}, expected {want}")


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
