"""The front page's picture: CIFAR-10 samples from the same starting noise as training goes on, real images beside.

    python -m experiments.cifar_picture --data PATH

Two runs of one U-Net under isotropic noise: above the denoiser begins as EDM's preconditioning (the scalar skip), below
as the best one that the data's covariance, learned as it trains, or regions found in the data, allow. Rates fall to 0
over the second half. Seconds are of the cores' time, below with those of the look at the data for the covariance's
structure. The loss is that of 500 test images.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
import tyro
from torch import Tensor

import ansn
from ansn.cli.common import guarded, parsed
from ansn.errors import refuse
from ansn.evaluation.features import PixelFeatures
from experiments.lab.problems import Problem
from experiments.lab.training import Setup, fit, held_out_loss, noise_model

LEVELS = 20  # of Heun's method
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
    seen: bool = True
    """The network of ours sees the skip's estimate."""
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
    learned = _problem(settings)
    known = noise_model(learned, Setup(fixed=True))
    start = known.levels.start or known.levels.maximum
    taus = ansn.sampling.schedules.few_steps(start, known.levels.minimum, LEVELS)
    x = known.prior(COLUMNS * LINES, start, seed=settings.seed)
    ours = f"{settings.skip} seen" if settings.seen else settings.skip
    panels: list[tuple[str, Tensor]] = []
    for arm, lr in (("scalar", settings.lr[0]), (ours, settings.lr[1])):
        setup = Setup(arm, settings.seed, steps[-1], lr, settings.batch, decay=0.5, regions=settings.regions)
        for trained in fit(learned, setup, steps):
            seconds = trained.seconds - (trained.found if arm == "scalar" else 0.0)
            title = f"{trained.step:,} steps, {seconds:,.0f} s, loss {held_out_loss(trained, learned):.3f}"
            panels.append((title, ansn.sampling.heun(trained.model, x, taus)))
            print(f"{arm}: {title}", file=sys.stderr, flush=True)
    real = learned.train.batch(torch.arange(COLUMNS * (2 * LINES + 1)))[0]
    return _draw([*panels, ("real images", real)], settings)


def _problem(settings: Settings) -> Problem:
    """CIFAR-10, mirrored at random, 500 test images, and the U-Net of the preset `cifar10-small`."""
    train = ansn.load_dataset("cifar10", root=str(settings.data), flip=True)
    test = ansn.load_dataset("cifar10", root=str(settings.data), split="test").select(torch.arange(0, 10_000, 20))
    pixels = PixelFeatures(train.shape, "cifar10")
    return Problem("cifar10", train, test, partial(
        ansn.networks.UNet, 3, settings.width, multipliers=(1, 2, 4), stem_stride=2, image_size=32
    ), pixels, pixels)  # fmt: skip


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
