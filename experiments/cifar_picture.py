"""The front page's picture: CIFAR-10 samples from the same starting noise as training goes on, real images beside.

    python -m experiments.cifar_picture --data PATH

Two runs of one U-Net under isotropic noise: above the denoiser begins as EDM's preconditioning (the scalar skip), below
as the best one that the data's covariance, or regions found in the data, allow. Rates fall to 0 over the second half.
Seconds are of one core's time, training's, below with those of learning the covariance. The loss is that of 500 test
images.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

import ansn
from ansn.cli.common import guarded, parsed
from ansn.data import Dataset
from ansn.errors import refuse

LEVELS, EMA = 20, 0.995  # of Heun's method; decay of the averaged weights
COLUMNS, LINES = 6, 5  # images in a panel


@dataclass(frozen=True)
class Settings:
    """CIFAR-10 samples as training goes on, under the scalar skip and under ours."""

    data: Path
    """CIFAR-10's folder, or one that holds it as cifar10/."""
    steps: tuple[int, ...] = (100, 300, 1200)
    """Training steps to look at, ascending; the last is the length of the runs."""
    width: int = 32
    """Channels of the U-Net's first stage."""
    batch: int = 64
    """Images a step."""
    lr: tuple[float, float] = (4e-3, 4e-3)
    """Learning rates: of the scalar skip, of ours."""
    skip: Literal["wiener", "mixture"] = "wiener"
    """What ours begins as: the best denoiser of one Gaussian, or of the regions of a mixture."""
    regions: int | Literal["auto"] = "auto"
    """Regions of the mixture."""
    inputs: tuple[str, ...] = ("estimate",)
    """What ours sees besides the noisy image; nothing: the noisy image alone."""
    seed: int = 0
    threads: int | None = None
    """By default torch's."""
    out: Path = Path("docs/images/cifar10.png")
    """PNG file to write."""


def run(settings: Settings) -> Path:
    """Train both, sample both from the same points, draw."""
    steps = settings.steps
    refuse([("steps", steps, steps[:1] > (0,) and steps == tuple(sorted(set(steps))), "ascending numbers from 1 on")])
    torch.set_num_threads(settings.threads or torch.get_num_threads())
    data = ansn.load_dataset("cifar10", root=str(settings.data), flip=True)
    test = ansn.load_dataset("cifar10", root=str(settings.data), split="test").batch(torch.arange(0, 10_000, 20))[0]
    noise, ours = _learned(data, settings.seed, None)
    mixed = noise
    if settings.skip == "mixture":
        mixed, ours = _learned(data, settings.seed, settings.regions)
    start = noise.levels.start or noise.levels.maximum
    taus = ansn.sampling.schedules.few_steps(start, noise.levels.minimum, LEVELS)
    x = noise.prior(COLUMNS * LINES, start, seed=settings.seed)
    panels: list[tuple[str, Tensor]] = []
    arms = ((noise, "scalar", (), settings.lr[0], 0.0), (mixed, settings.skip, settings.inputs, settings.lr[1], ours))
    for learned, skip, inputs, lr, before in arms:
        torch.manual_seed(settings.seed)
        network = ansn.networks.UNet(
            3, settings.width, multipliers=(1, 2, 4), stem_stride=2, image_size=32, inputs=1 + len(inputs)
        )
        model = ansn.Denoiser(network, learned, skip=skip, inputs=inputs)
        for step, seconds, average in _trained(model, data, settings, lr):
            sampled = ansn.Denoiser(average, learned, skip=skip, inputs=inputs).eval()
            title = f"{step:,} steps, {seconds + before:,.0f} s, loss {_held_out(sampled, test):.3f}"
            panels.append((title, ansn.sampling.heun(sampled, x, taus)))
            print(f"{skip}: {title}", file=sys.stderr, flush=True)
    panels.append(("real images", data.batch(torch.arange(COLUMNS * (2 * LINES + 1)))[0]))
    return _draw(panels, settings)


def _learned(data: Dataset, seed: int, regions: int | str | None) -> tuple[ansn.NoiseModel, float]:
    """Isotropic noise; covariance, and mixture of so many regions, of the first 10,000 images; seconds that it took."""
    began = time.process_time()
    noise = ansn.NoiseModel.for_data(data, rho=0.0, mixture=regions, seed=seed)
    for index in torch.arange(10_000).split(1000):
        noise.update(data.batch(index)[0])
    for each in (noise.covariance, *([] if noise.mixture is None else [noise.mixture.covariance])):
        each.freeze()
    return noise, time.process_time() - began


def _trained(
    model: ansn.Denoiser, data: Dataset, settings: Settings, lr: float
) -> Iterator[tuple[int, float, torch.nn.Module]]:
    """``(steps, seconds, averaged network)`` at each of the steps; the time between them alone counts."""
    last, network = settings.steps[-1], model.network
    optimizer = torch.optim.Adam(network.parameters(), lr, fused=True)
    # The decay grows to its value, so that the start is forgotten.
    average = AveragedModel(network, avg_fn=lambda kept, new, n: kept.lerp(new, max(1.0 - EMA, 9 / (10 + int(n)))))
    seconds, began = 0.0, time.process_time()
    for step, x, _ in ansn.data.iterate(data, settings.batch, settings.seed, stop_step=last):
        perturbed, level = model.noise.perturb(x, step=step)
        loss = ansn.dsm_loss(model, x, perturbed, level)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = lr * min(1.0, (step + 1) / 50, 2 * (last - step) / last)
        optimizer.step()
        average.update_parameters(network)
        if step + 1 in settings.steps:
            seconds += time.process_time() - began
            yield step + 1, seconds, average.module
            began = time.process_time()


@torch.no_grad()
def _held_out(model: ansn.Denoiser, x: Tensor) -> float:
    """Loss on 500 test images, of four draws of level and noise that all models share."""
    drawn = [model.noise.perturb(x, step=10**9 + draw) for draw in range(4)]
    return sum(float(ansn.dsm_loss(model, x, *seen)) for seen in drawn) / len(drawn)


def _draw(panels: list[tuple[str, Tensor]], settings: Settings) -> Path:
    """Samples in two lines of panels, real images to their right, the height of both."""
    from matplotlib.figure import Figure

    across = len(settings.steps) + 1
    figure = Figure(figsize=(2.9 * across, 2 * (2.9 * LINES / COLUMNS + 0.3)))
    grid = figure.add_gridspec(2, across, left=0.02, right=0.998, top=0.955, bottom=0.003, wspace=0.02, hspace=0.09)
    for i, (title, x) in enumerate(panels):
        real = i == len(panels) - 1
        axis = figure.add_subplot(grid[:, -1] if real else grid[i // (across - 1), i % (across - 1)])
        rows = x.clamp(0, 1).unflatten(0, (-1, COLUMNS))
        axis.imshow(rows.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1).numpy(), interpolation="nearest")
        axis.set_title(title, fontsize=10, pad=3)
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
        if not real and i % (across - 1) == 0:
            axis.set_ylabel("EDM's preconditioning" if i == 0 else f"ours ({settings.skip})", fontsize=10)
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(settings.out, dpi=130, metadata={"Software": None})
    return settings.out


def main() -> int:
    settings = parsed("cifar_picture", lambda: tyro.cli(Settings, prog="cifar_picture", description=__doc__))
    return guarded("cifar_picture", lambda: print(run(settings)))


if __name__ == "__main__":
    sys.exit(main())
