"""Named settings: what `ansn-train PRESET` starts from. Every value can be overridden on the command line."""

from __future__ import annotations

import shlex
from dataclasses import replace
from typing import Any

from ansn.config import (
    DataConfig,
    NetworkConfig,
    NoiseConfig,
    OptimConfig,
    RunConfig,
    SamplingConfig,
    TrainConfig,
    to_dict,
)

_digits = TrainConfig()

# Found by measurement on two cores: half the resolution inside is four times the images a second, and a third, coarse
# stage with four times the channels costs little. The separable covariance makes a checkpoint of 3 MB.
_mnist = TrainConfig(
    data=DataConfig(dataset="mnist"),
    noise=NoiseConfig(structure="separable"),
    network=NetworkConfig(
        network="unet", width=32, multipliers=(1, 2, 4), stem_stride=2, class_conditional=True, label_dropout=0.1
    ),
    optim=OptimConfig(steps=20_000, batch_size=64, lr=2e-3, warmup=200, schedule="cosine", ema=0.9995),
    # Noise that is put back mends what a small network gets wrong: MNIST's Frechet distance is 2.0 in place of 3.3.
    sampling=SamplingConfig(method="dpmpp_2m_sde", sample_steps=20),
    run=RunConfig(out="runs/mnist"),
)

_images = replace(
    _mnist,
    data=DataConfig(dataset="PATH", kind="image"),
    noise=NoiseConfig(),
    network=replace(_mnist.network, class_conditional=False, label_dropout=0.0),
    run=RunConfig(out="runs/images"),
)

_cifar10_small = replace(
    _mnist,
    data=DataConfig(dataset="cifar10", flip=True),
    noise=NoiseConfig(structure="separable", regions=10),
    network=replace(_mnist.network, skip="mixture", inputs=("estimate",)),
    optim=replace(_mnist.optim, steps=16_000),
    run=RunConfig(out="runs/cifar10-small"),
)

_cifar10 = TrainConfig(
    data=DataConfig(dataset="cifar10", flip=True),
    noise=_cifar10_small.noise,
    network=NetworkConfig(
        network="unet", width=128, blocks=2, multipliers=(1, 2, 2, 2), dropout=0.1, skip="mixture", inputs=("estimate",)
    ),
    optim=OptimConfig(steps=200_000, lr=2e-4, warmup=5000, ema=0.9999),
    run=RunConfig(out="runs/cifar10", checkpoint_every=1000),
)

# The paper's settings: unconditional RefineNet, full covariance at Haario's scale (one level), Algorithm 1 as printed
# with the published ladder of NCSN (1 to 0.01, ten levels), T = 100, step 2e-5, a uniform start and nothing that
# denoises at the end.
_paper_mnist = TrainConfig(
    data=DataConfig(dataset="mnist"),
    noise=NoiseConfig(structure="dense", root="cholesky", rho=1.0, ladder="paper", freeze_after=None),
    network=NetworkConfig(
        network="ncsn", width=64, unconditional=True, prediction="whitened", precondition=False, metric="whitened"
    ),
    optim=OptimConfig(steps=200_000, lr=1e-3, warmup=0, clip=0.0, ema=0.0),
    sampling=SamplingConfig(
        method="paper", sample_steps=100, step_eps=2e-5, sampler_levels=(1.0, 0.01, 10), start="uniform", samples=16
    ),
    run=RunConfig(out="runs/paper-mnist", checkpoint_every=200),
)

_toy2d = TrainConfig(
    data=DataConfig(dataset="toy2d"),
    network=NetworkConfig(network="mlp", width=128, blocks=3),
    optim=OptimConfig(steps=3000, batch_size=512, ema=0.995),
    sampling=SamplingConfig(samples=2000),
    run=RunConfig(out="runs/toy2d"),
)

# Without dropout a few hundred rows are soon learned by heart: the likelihood of others falls below that of the mixture
# that the denoiser begins as. 20,000 rows of six columns lose 0.01 nats a row by it, within 0.05 that training gains.
_table = TrainConfig(
    data=DataConfig(dataset="PATH", kind="table"),
    network=NetworkConfig(network="mlp", width=256, blocks=3, dropout=0.5),
    optim=OptimConfig(steps=600, batch_size=256, schedule="cosine", ema=0.995),
    sampling=SamplingConfig(samples=1000),
    run=RunConfig(out="runs/table"),
)

_fields = TrainConfig(
    data=DataConfig(dataset="PATH", kind="field"),
    network=NetworkConfig(network="unet", width=16, blocks=1, multipliers=(1, 2, 2)),
    optim=OptimConfig(steps=2000, batch_size=32, schedule="cosine", ema=0.995),
    sampling=SamplingConfig(samples=16),
    run=RunConfig(out="runs/fields", checkpoint_every=500),
)

PRESETS: dict[str, tuple[str, TrainConfig]] = {
    "digits": ("8x8 digits, residual MLP: one or two minutes of two cores", _digits),
    "mnist": ("MNIST (--data PATH), digits by class: 30 minutes of one core, of an older one 85", _mnist),
    "fashion-mnist": (
        "Fashion-MNIST (--data PATH), by class: as long as mnist",
        replace(
            _mnist,
            data=DataConfig(dataset="fashion-mnist"),
            run=replace(_mnist.run, out="runs/fashion-mnist"),
        ),
    ),
    "images": ("images of yours (--dataset PATH), any size: the U-Net of mnist, no classes", _images),
    "cifar10-small": ("CIFAR-10 (--data PATH) for a CPU, by class: as long as mnist", _cifar10_small),
    "cifar10": ("CIFAR-10 (--data PATH), U-Net for a GPU", _cifar10),
    "paper-mnist": ("the paper's settings on MNIST (--data PATH), literally", _paper_mnist),
    "paper-cifar10": (
        "the paper's settings on CIFAR-10 (--data PATH), literally",
        replace(
            _paper_mnist,
            data=DataConfig(dataset="cifar10", flip=True),
            network=replace(_paper_mnist.network, width=128),
            run=replace(_paper_mnist.run, out="runs/paper-cifar10"),
        ),
    ),
    "toy2d": ("points of a mixture in the plane", _toy2d),
    "table": ("a table of yours (--dataset PATH): numbers, words, dates, with holes", _table),
    "fields": ("lines, maps or volumes of yours (--dataset PATH), in their units; --periodic for circles", _fields),
}


def command(config: TrainConfig) -> str:
    """The shortest command line of ansn-train that asks for these settings, quoted for a shell.

    It starts from the preset that differs in the fewest settings and names those that differ; the folder always.
    """
    named = {name: _changes(preset, config) for name, (_, preset) in PRESETS.items()}
    name = min(named, key=lambda n: len(named[n]))
    given = named[name] | {"out": config.run.out}
    words = ["ansn-train", name]
    for key, value in given.items():
        flag = key.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        elif isinstance(value, tuple):
            words += [f"--{flag}", *map(str, value)]
        elif str(value).startswith("-"):  # what is no number would be taken for a flag
            words.append(f"--{flag}={value}")
        else:
            words += [f"--{flag}", str(value)]
    return shlex.join(words)


def _changes(preset: TrainConfig, config: TrainConfig) -> dict[str, Any]:
    """Settings of ``config`` that are not the preset's, by name."""
    before, after = to_dict(preset), to_dict(config)
    return {k: v for group in after for k, v in after[group].items() if v != before[group][k]}
