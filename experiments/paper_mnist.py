"""The paper's own experiment on MNIST: its settings literally, its sampler, beside our defaults at about the same cost.

    python -m experiments.paper_mnist --data PATH

Trains `paper-mnist` (unconditional RefineNet, noise of the whole covariance at one level) for as many steps as asked,
draws by Algorithm 1 with T = 100, and shows its chain after 1, 100, 300 and 1,000 iterations, as the paper's figures 4
to 7. Then the preset `mnist` is trained for about as many seconds of the cores, by a trial of its speed, and draws by
its own sampler. The distance is between features of a small classifier, of as many images as were drawn: read it beside
its floor.
"""

from __future__ import annotations

import csv
import sys
import tempfile
import time
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from torch import Tensor

import ansn
from ansn.cli.common import guarded, parsed
from ansn.cli.train import parse
from ansn.evaluation import everything, frechet_distance
from ansn.evaluation.spaces import classifier
from ansn.sampling import Draw
from ansn.training import Run, load_run, train
from ansn.training.pictures import labels, sampler_options

ITERATIONS = (1, 100, 300)  # and the last
TRIAL = 1, 30  # steps of two runs that say how long one of ours takes
COLUMNS = 8


@dataclass(frozen=True)
class Settings:
    """The paper's settings and ours on MNIST, at the same cost."""

    data: Path
    """MNIST's folder, or one that holds it as mnist/."""
    steps: int = 1000
    """Training steps of the paper's settings, which the paper does not say."""
    batch: int = 32
    """Images a step of the paper's settings."""
    width: int = 32
    """Channels of the paper's network; 64 is the published one, four times the time."""
    samples: int = 64
    """Images to draw of each, a multiple of 8."""
    seed: int = 0
    threads: int | None = None
    """By default torch's."""
    out: Path = Path("docs/images/paper-mnist.png")
    """PNG file to write; the numbers go beside it as .csv."""


@dataclass(frozen=True)
class Measured:
    """A row of the table. Seconds are of the cores; evaluations are of the network, a sample."""

    settings: str
    steps: int
    images: int
    training_seconds: float
    evaluations: int
    sampling_seconds: float
    frechet: float
    floor: float


def run(settings: Settings) -> Path:
    """Train both, draw from both, measure, draw the picture."""
    torch.set_num_threads(settings.threads or torch.get_num_threads())
    with tempfile.TemporaryDirectory() as folder:
        given = ("--steps", settings.steps, "--batch-size", settings.batch, "--width", settings.width)
        paper, spent = _trained("paper-mnist", Path(folder, "paper"), settings, *given)
        seconds = [_trained("mnist", Path(folder, f"{n}"), settings, "--steps", n)[1] for n in TRIAL]
        each = (seconds[1] - seconds[0]) / (TRIAL[1] - TRIAL[0])
        steps = max(1, round((spent - seconds[0]) / each))
        ours, took = _trained("mnist", Path(folder, "ours"), settings, "--steps", steps)
    train, test = (ansn.load_dataset("mnist", root=str(settings.data), split=split) for split in ("train", "test"))
    space = classifier(train)
    known, others = space(everything(train)), space(everything(test))
    floors = [frechet_distance(known, part) for part in np.array_split(others, len(others) // settings.samples)]
    rows, panels = [], []
    for name, made, cost in (("paper-mnist", paper, spent), ("mnist", ours, took)):
        draw, began = Draw(made.model, seed=settings.seed, **sampler_options(made.config.sampling)), time.process_time()
        chain: list[tuple[str, Tensor]] = []

        def keep(state: dict[str, Any], chain: list[tuple[str, Tensor]] = chain) -> None:
            if state["i"] in ITERATIONS:
                chain.append((f"iteration {state['i']}", state["x"].clone()))

        x = draw.batch(0, settings.samples, labels(made, settings.samples, settings.seed), callback=keep)
        seconds_a_draw = time.process_time() - began
        rows.append(Measured(
            name, made.step, made.step * made.config.optim.batch_size, cost, draw.evaluations, seconds_a_draw,
            frechet_distance(known, space(x)), float(np.mean(floors)),
        ))  # fmt: skip
        panels += [*chain, (f"iteration {draw.evaluations:,}", x)] if made is paper else [("mnist, our defaults", x)]
    with settings.out.with_suffix(".csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow([f.name for f in fields(Measured)])
        table.writerows(astuple(row) for row in rows)
    return _drawn(panels, rows, settings.out)


def _trained(preset: str, out: Path, settings: Settings, *options: object) -> tuple[Run, float]:
    """A run of ansn-train, and the seconds of the cores that it took."""
    words = ("--data", settings.data, "--seed", settings.seed, "--out", out, "--checkpoint-every", 10**9, *options)
    began = time.process_time()
    train(parse([preset, *map(str, words)]))
    return load_run(out), time.process_time() - began


def _drawn(panels: list[tuple[str, Tensor]], rows: list[Measured], out: Path) -> Path:
    """The chain from left to right, then ours; what each cost below."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.6 * len(panels), 3.3))
    grid = figure.add_gridspec(1, len(panels), left=0.005, right=0.995, top=0.92, bottom=0.15, wspace=0.03)
    for i, (title, x) in enumerate(panels):
        axis = figure.add_subplot(grid[i])
        images = x[: COLUMNS**2, 0].clamp(0, 1).unflatten(0, (-1, COLUMNS))
        axis.imshow(images.transpose(1, 2).flatten(2, 3).flatten(0, 1).numpy(), "grey", vmin=0, vmax=1)
        axis.set_title(title, fontsize=10)
        axis.set(xticks=[], yticks=[])
    for row, x in zip(rows, (0.4, 0.87), strict=True):
        text = (
            f"{row.settings}: {row.steps:,} steps, {row.training_seconds / 60:,.0f} min of a core;"
            f" {row.evaluations:,} evaluations\nFrechet distance {row.frechet:.3g} (floor {row.floor:.3g})"
        )
        figure.text(x, 0.03, text, ha="center", fontsize=9)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110, metadata={"Software": None})
    return out


def main() -> int:
    settings = parsed("paper_mnist", lambda: tyro.cli(Settings, prog="paper_mnist", description=__doc__))
    return guarded("paper_mnist", lambda: print(run(settings)))


if __name__ == "__main__":
    sys.exit(main())
