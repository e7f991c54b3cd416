"""Settings of a run: dataclasses whose field docs are the help of `ansn-train`. Nothing here computes."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from ansn import networks, schema
from ansn.choices import choice, suggestion
from ansn.covariance import STRUCTURES
from ansn.covariance.choice import AUTO
from ansn.covariance.pencil import ROOTS
from ansn.data import NAMES as DATASETS
from ansn.data.units import MAX_CLASSES
from ansn.denoiser import PREDICTIONS
from ansn.errors import InputError, refuse
from ansn.levels import TRAINING
from ansn.loss import METRICS
from ansn.noise import STARTS
from ansn.sampling.annealed_langevin import CONVENTIONS
from ansn.sampling.driver import METHODS
from ansn.skips import INPUTS, SKIPS


@dataclass(frozen=True)
class DataConfig:
    """The data set."""

    dataset: Annotated[str, suggestion(DATASETS, "toy2d:KIND")] = "digits"
    """A name or a path: a table (.csv, .tsv, .parquet, .xlsx), an array of images, fields or a table (.npy, .npz, or
    PATH:VARIABLE of .h5, .nc, .mat), IDX, a folder of images."""
    data: str | None = None
    """Folder that holds the files of a named data set (or a parent of a folder of that name)."""
    dequantise: bool = False
    """Add uniform noise of one grey level to 8-bit images: (v + u) / 256."""
    flip: bool = False
    """Mirror each image left to right with probability 1/2."""
    test_fraction: float | None = None
    """Share of rows held out for measurements where the data has no test split; by default 0.1, 0 holds out none."""
    kind: Literal["image", "table", "field"] | None = None
    """Arrays: what they hold, in place of what their shape and values look like."""
    axes: str | None = None
    """Arrays: a letter for each axis, such as NHWC, NCL or NL: N rows, C channels, D H W sizes, L length."""
    window: int | None = None
    """Arrays: cut one long series, [T] or [T, C], into lines of this length."""
    standardise: Literal["yes", "no", "point"] | None = None
    """Tables and fields: columns or channels to mean 0 and variance 1 (the default), or each point of a field; samples
    come back in the data's units."""
    image_size: int | None = None
    """Folder of images: resize and centre-crop to this many pixels a side."""
    channels: int | None = None
    """Folder of images: 1 for grey, 3 for colour."""
    split_folders: tuple[str, ...] = ()
    """Folder of images: its splits, train=FOLDER test=FOLDER, where their names do not say so."""
    label_column: str | None = None
    """Tables: the column that holds the class, by name or position."""
    ignore_columns: tuple[str, ...] = ()
    """Tables: columns to leave out, by name or position."""
    column_kinds: tuple[str, ...] = ()
    """Tables: kinds of columns, NAME=KIND, in place of what they look like: number, whole, binary, category, time."""
    header: bool | None = None
    """Tables: whether the first line names the columns; by default as it looks."""


@dataclass(frozen=True)
class NoiseConfig:
    """Covariance and levels of the noise."""

    structure: Annotated[str, choice(STRUCTURES, AUTO)] = AUTO
    """Structure of the covariance; auto takes the one under which held-out rows of the data are likeliest (of those
    within 0.005 nats a dimension the smallest)."""
    rho: float | None = None
    """Anisotropy of the noise, 0 (isotropic control) to 1 (the paper's full covariance). When neither rho nor gamma is
    given: 0 for a preconditioned denoiser, else, and where noise has regions, 0.5."""
    gamma: float | None = None
    """Instead of rho: spectral power of the noise shape, S^gamma, -1 to 1."""
    eps: float | None = None
    """Ridge of the noise shape, squared data units; by default 1e-3 of the mean variance, and at least the
    quantisation noise."""
    root: Annotated[str | None, choice(ROOTS, None)] = None
    """Which factor of the noise shape colours the noise; by default cholesky for a dense structure, else the
    eigenbasis times deviations (symmetric for a whitened network)."""
    forgetting: float = 1.0
    """Factor on the past moments at every batch, 0 to 1; 1 remembers everything."""
    freeze_after: int | None = 50_000
    """Data points after which the covariance stops learning; None: it learns as long as training goes on."""
    regions: int | Literal["none", "labels", "auto"] = "none"
    """Regions of the data: its classes (labels), or as many as this, or as held-out rows ask for (auto), found in it.
    Each has noise of its own shape, and the network is told the region (of labels by --class-conditional). With --skip
    mixture each is a Gaussian of the skip instead, under isotropic noise (none: auto)."""
    ladder: Literal["karras", "geometric", "paper"] = "karras"
    """Levels: Karras-spaced, geometric by NCSNv2's overlap rule, or the paper's single level 2.4/sqrt(d)."""
    tau_max: float | None = None
    """Largest level, data standard deviations; by default from the data: the flow's (d / 0.04)^(1/4) for karras (more
    where sampling starts higher), a quantile of pairwise distances for geometric."""
    tau_min: float = 0.01
    """Smallest level, data standard deviations."""
    rungs: int | None = None
    """Number of levels; by default 20 for karras, by the overlap rule for geometric."""
    training_levels: Annotated[str | None, choice(TRAINING, None)] = None
    """Levels drawn in training: log-normal (EDM) or uniform over the ladder; by default log-normal for karras, the
    ladder else."""


@dataclass(frozen=True)
class NetworkConfig:
    """The network and what it predicts."""

    network: Annotated[str, choice(networks.NETWORKS)] = "mlp"
    """Residual MLP, compact U-Net, or the published RefineNets."""
    width: int | None = None
    """Hidden units of the MLP (512); channels of the first stage of the U-Net (32) and the RefineNets (64, 128)."""
    blocks: int | None = None
    """Residual blocks of the MLP (default 3); residual blocks a stage of the U-Net (default 1)."""
    multipliers: tuple[int, ...] = (1, 2, 2)
    """U-Net: channels of each stage, in widths."""
    stem_stride: int = 1
    """U-Net: 2 works at half resolution inside, about four times faster."""
    periodic: bool = False
    """U-Net: the data's axes are circles, such as longitude or a simulation's box."""
    dropout: float = 0.0
    """Dropout probability of the MLP and the U-Net."""
    unconditional: bool = False
    """The network is not told the level, as in the paper."""
    class_conditional: bool = False
    """The network is told the class."""
    label_dropout: float = 0.0
    """Share of the training rows whose class is withheld, so that the network also learns to do without; 0.1 is usual.
    Guidance and unconditional samples need it."""
    prediction: Annotated[str, choice(PREDICTIONS)] = "denoiser"
    """The network gives the denoised data, or the whitened f of the paper's s_theta."""
    precondition: bool = True
    """Scale the network's input and output by the level (EDM's preconditioning)."""
    skip: Annotated[str | None, choice(SKIPS, None)] = None
    """What a preconditioned denoiser is before it learns. By default, under isotropic noise, mixture for rows of up to
    4,096 numbers, wiener for more; wiener too where noise is given a shape, regions or the paper's ladder. Both need as
    many examples as the covariance's structure (wiener: in each region); else scalar."""
    inputs: Annotated[tuple[str, ...] | None, choice(INPUTS, None, many=True)] = None
    """What the network of a preconditioned denoiser sees besides the noisy data, such as the skip's estimate; by
    default that for images and fields whose skip is not given either, else nothing more."""
    metric: Annotated[str | None, choice(METRICS, None)] = None
    """Metric of the loss; by default pixel for a denoiser, whitened for a whitened network."""


@dataclass(frozen=True)
class OptimConfig:
    """The training loop."""

    steps: int = 2000
    """Training steps in all; rerun with more to go on."""
    batch_size: int = 128
    """Examples a step, over all processes."""
    lr: float = 1e-3
    """Learning rate of Adam."""
    adam_eps: float = 1e-8
    """Adam's epsilon."""
    weight_decay: float = 0.0
    """Decoupled weight decay (AdamW)."""
    warmup: int = 100
    """Steps over which the learning rate rises from 0."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate after the warm-up; cosine falls to 0 at the last step."""
    clip: float = 1.0
    """Largest norm of the gradient; 0 does not clip."""
    ema: float = 0.995
    """Decay of the averaged weights a step (less at the start: (1 + t) / (10 + t)); 0 keeps no average."""


@dataclass(frozen=True)
class SamplingConfig:
    """The samples drawn at the end of training."""

    method: Annotated[str, choice(METHODS)] = "dpmpp_2m"
    """The sampler."""
    sample_steps: int | None = None
    """Levels of the solvers (by default 12 or 20, as the sampler has it), or Langevin steps a level (100)."""
    step_eps: float | None = None
    """Langevin: the paper's step size; 2e-5 in the paper."""
    sampler_levels: tuple[float, float, int] | None = None
    """Langevin: largest level, smallest level and number of levels, geometric; by default the ladder's."""
    convention: Annotated[str, choice(CONVENTIONS)] = "paper"
    """Langevin: drift alpha/2 and noise sqrt(alpha), or NCSN's alpha and sqrt(2 alpha)."""
    isotropic: bool = False
    """Langevin: isotropic steps under the true score, instead of steps of the noise's own shape."""
    denoise: bool = True
    """Langevin: end with one denoising."""
    start: Annotated[str | None, choice(STARTS, None)] = None
    """Start of sampling; by default uniform for method paper, else gaussian."""
    samples: int = 64
    """Images in samples.png; 0 draws none."""


@dataclass(frozen=True)
class RunConfig:
    """Where and how it runs."""

    out: str = "runs/digits"
    """Folder of the run: checkpoints, config.json, metrics.jsonl, pictures. A run that is there is gone on with."""
    seed: int = 0
    """Fixes weights, data order, noise and samples."""
    device: str = "auto"
    """cpu, cuda, cuda:N, or auto: a GPU if there is one."""
    autocast: bool = False
    """Run the network in bfloat16."""
    compile: bool = False
    """Compile loss and network with torch.compile."""
    shard: bool = False
    """Under torchrun: split weights, gradients, averages and Adam's state over the processes (FSDP2), each block of the
    network for itself, where one GPU's memory is too small. Checkpoints are the same, for any number of processes."""
    resume: bool = True
    """Go on from the folder's last checkpoint; --no-resume starts over and replaces it."""
    log_every: int = 50
    """Steps between lines of metrics.jsonl."""
    checkpoint_every: int = 1000
    """Steps between checkpoints; one is also written at the end and when interrupted."""
    max_minutes: float | None = None
    """Stop at the first step after this many minutes with a checkpoint and exit code 130; for a scheduler's limit."""
    threads: int | None = None
    """CPU threads; by default torch's. 1 where other programs use the cores."""


@dataclass(frozen=True)
class TrainConfig:
    """Everything that defines a training run."""

    data: DataConfig = field(default_factory=DataConfig)
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    run: RunConfig = field(default_factory=RunConfig)


# What may differ between a run and its resumption: it changes how long or how fast, not what is trained.
_FREE = {
    "data": {"data", "dataset"},  # what the rows are decides, not where they lie
    "optim": {"steps"},
    "sampling": {f.name for f in dataclasses.fields(SamplingConfig)},
    "run": {f.name for f in dataclasses.fields(RunConfig)} - {"seed"},
}


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """Nested dictionaries of JSON values."""
    return dataclasses.asdict(config)


def from_dict(values: Any) -> TrainConfig:
    """The inverse of :func:`to_dict`. Raises InputError naming a field that is unknown, of the wrong type or out of
    range."""
    config: TrainConfig = schema.build(TrainConfig, values, "config")
    check_numbers(config)
    return config


def resumed(old: TrainConfig, new: TrainConfig, chosen: str, found: int | None = None) -> TrainConfig:
    """``new`` with what it leaves to the run, or names as it was ``chosen`` or ``found``, as ``old`` has it: structure,
    root, shape of the noise, number of regions, skip, inputs and share of held-out rows."""
    noise = new.noise
    structure = old.noise.structure if noise.structure in (AUTO, chosen) else noise.structure
    root = old.noise.root if noise.root is None else noise.root
    regions = old.noise.regions if found is not None and noise.regions in (AUTO, found) else noise.regions
    rho = old.noise.rho if noise.rho is None and noise.gamma is None else noise.rho
    noise = dataclasses.replace(noise, structure=structure, root=root, regions=regions, rho=rho)
    skip = old.network.skip if new.network.skip is None else new.network.skip
    inputs = old.network.inputs if new.network.inputs is None else new.network.inputs
    network = dataclasses.replace(new.network, skip=skip, inputs=inputs)
    fraction = old.data.test_fraction if new.data.test_fraction is None else new.data.test_fraction
    data = dataclasses.replace(new.data, test_fraction=fraction)
    return dataclasses.replace(new, data=data, noise=noise, network=network)


def differences(old: TrainConfig, new: TrainConfig) -> list[str]:
    """``name: old -> new`` for every setting that a resumed run may not change."""
    out = []
    for group, before in to_dict(old).items():
        after = to_dict(new)[group]
        fixed = [k for k in before if k not in _FREE.get(group, set())]
        out += [f"{k}: {before[k]} -> {after[k]}" for k in fixed if before[k] != after[k]]
    return out


MOST_RUNGS = 10**5
# Far more than any run has. Settings that came with a file from elsewhere must not take the memory or the day.
_MOST: dict[str, float] = {
    "image_size": 2**16, "channels": 2**12, "window": 2**31, "regions": MAX_CLASSES, "rungs": MOST_RUNGS,
    "freeze_after": 2**53,
    "width": 2**16, "blocks": 128, "multipliers": 1024, "steps": 10**10,
    "batch_size": 10**8, "warmup": 10**10, "sample_steps": 10**6, "sampler_levels": 10**6, "samples": 10**6,
    "log_every": 10**10, "checkpoint_every": 10**10, "threads": 2**12, "tau_max": 1e9,
}  # fmt: skip
_MOST_STAGES = 12  # of a U-Net
_MOST_LAYERS = 128  # residual blocks of all stages, one way


def check_numbers(config: TrainConfig) -> None:
    """Raises InputError, one line, for numbers that no run can use."""
    optim, run, noise, draw = config.optim, config.run, config.noise, config.sampling
    seen = config.network.inputs or ()
    for values in to_dict(config).values():
        for key, value in values.items():
            for number in value if isinstance(value, (tuple, list)) else (value,):
                if isinstance(number, (int, float)) and not isinstance(number, bool):
                    most, name = _MOST.get(key, math.inf), key.replace("_", "-")
                    finite = isinstance(number, int) or math.isfinite(number)
                    refuse([(name, value, finite, "a finite number")])
                    refuse([(name, value, number <= most, f"at most {most:,}")])
    rules: list[tuple[str, float | str | None, bool, str]] = [
        ("steps", optim.steps, optim.steps >= 1, "at least 1"),
        ("batch-size", optim.batch_size, optim.batch_size >= 1, "at least 1"),
        ("lr", optim.lr, optim.lr > 0, "> 0"),
        ("adam-eps", optim.adam_eps, optim.adam_eps >= 0, "0 or more"),
        ("weight-decay", optim.weight_decay, optim.weight_decay >= 0, "0 or more"),
        ("warmup", optim.warmup, optim.warmup >= 0, "0 or more steps"),
        ("clip", optim.clip, optim.clip >= 0, "0 or more"),
        ("ema", optim.ema, 0 <= optim.ema < 1, "0 <= ema < 1"),
        ("rho", noise.rho, noise.rho is None or 0 <= noise.rho <= 1, "0 <= rho <= 1"),
        ("gamma", noise.gamma, noise.gamma is None or -1 <= noise.gamma <= 1, "-1 <= gamma <= 1"),
        ("gamma", noise.gamma, noise.gamma is None or noise.rho is None, "one of --rho and --gamma"),
        ("eps", noise.eps, noise.eps is None or noise.eps >= 0, "a ridge >= 0"),
        ("forgetting", noise.forgetting, 0 < noise.forgetting <= 1, "0 < forgetting <= 1"),
        ("regions", noise.regions, isinstance(noise.regions, str) or noise.regions >= 2, "at least 2"),
        ("tau-max", noise.tau_max, noise.tau_max is None or noise.tau_max > 0, "a level > 0"),
        ("tau-min", noise.tau_min, noise.tau_min > 0, "a level > 0"),
        ("rungs", noise.rungs, noise.rungs is None or noise.rungs >= 2, "at least 2 levels"),
        ("method", draw.method, draw.method in METHODS, f"one of {', '.join(METHODS)}"),
        ("samples", draw.samples, draw.samples >= 0, "0 or more"),
        ("sample-steps", draw.sample_steps, draw.sample_steps is None or draw.sample_steps >= 1, "at least 1"),
        ("step-eps", draw.step_eps, draw.step_eps is None or draw.step_eps > 0, "a step size > 0"),
        ("log-every", run.log_every, run.log_every >= 1, "at least 1 step"),
        ("checkpoint-every", run.checkpoint_every, run.checkpoint_every >= 1, "at least 1 step"),
        ("seed", run.seed, 0 <= run.seed < 2**63, "0 <= seed < 2^63"),
        ("max-minutes", run.max_minutes, run.max_minutes is None or run.max_minutes > 0, "more than 0 minutes"),
        ("threads", run.threads, run.threads is None or run.threads >= 1, "at least 1"),
        ("inputs", " ".join(seen), len(set(seen)) == len(seen), "each once"),
        ("width", config.network.width, config.network.width is None or config.network.width >= 1, "at least 1"),
        (
            "label-dropout",
            config.network.label_dropout,
            0 <= config.network.label_dropout < 1,
            "a probability in [0, 1)",
        ),
        (
            "freeze-after",
            noise.freeze_after,
            noise.freeze_after is None or noise.freeze_after >= 2,
            "at least 2 points",
        ),
    ]
    refuse(rules)
    network, stages = config.network, config.network.multipliers
    if network.network == "unet":
        layers, channels = (network.blocks or 1) * len(stages), (network.width or 1) * max(stages, default=1)
        refuse([
            ("multipliers", len(stages), 1 <= len(stages) <= _MOST_STAGES, f"1 to {_MOST_STAGES} stages"),
            ("blocks", network.blocks, layers <= _MOST_LAYERS, f"at most {_MOST_LAYERS} in all {len(stages)} stages"),
            ("width", network.width, channels <= _MOST["width"], f"at most {_MOST['width']:,} channels in a stage"),
        ])  # fmt: skip


def validate(config: TrainConfig) -> None:
    """Raises InputError, one line, for numbers that no run can use, and for settings that contradict each other. The
    rest is checked where it is used."""
    check_numbers(config)
    noise, draw, seen = config.noise, config.sampling, config.network.inputs or ()
    network, found = config.network, noise.regions not in ("none", "labels")
    if network.label_dropout and not (network.class_conditional or (found and network.skip != "mixture")):
        raise InputError(
            f"--label-dropout: got {network.label_dropout} for a network without classes,"
            " expected --class-conditional beside it, or --label-dropout 0"
        )
    for name, given in (("skip", (network.skip,)), ("inputs", seen)):
        for one in given:
            if one not in (None, "scalar") and not (network.precondition and network.prediction == "denoiser"):
                raise InputError(f"--{name}: got {one}, expected --prediction denoiser and --precondition with it")
    if network.skip == "mixture":
        for name, value in (("rho", noise.rho), ("gamma", noise.gamma)):
            if value:
                raise InputError(f"--skip: got mixture and --{name} {value:g}, expected --rho 0")
    elif noise.regions == "labels" and not network.class_conditional:
        # Without k in the network the weight of the loss may not depend on k (math section 6).
        raise InputError("--regions: got labels, expected --class-conditional beside it, for the network to know them")
    elif found and network.class_conditional:
        raise InputError(
            f"--class-conditional: got it and --regions {noise.regions}, whose regions are its classes,"
            " expected --regions none or labels, or --no-class-conditional --label-dropout 0"
        )
    # What only the pictures at the end would find wrong.
    if draw.sampler_levels is not None:
        top, bottom, n = draw.sampler_levels
        if not (top > bottom > 0 and n >= 2):
            told = " ".join(map(str, draw.sampler_levels))
            raise InputError(f"--sampler-levels: got {told}, expected largest > smallest > 0 and at least 2 levels")
    if draw.step_eps is not None and "eps" not in METHODS[draw.method].options:
        raise InputError(f"--step-eps: got {draw.step_eps} for {draw.method}, expected no such option")
