"""Does the noise's shape matter? Frechet distance of digits while training, one noise shape against another.

At equal network, steps and seeds, on scikit-learn's 8x8 digits, an MLP is trained under each shape of the noise
(isotropic, rho = 0, is the control) and sampled after 250, 500, 1000 and 2000 steps. Runs of the same seed are paired:
weights, order of the data, levels and white noise (of training and of the start of sampling) are the same; only R
differs.

    python experiments/digits_shapes.py
    python experiments/digits_shapes.py --rhos 0 0.5 1 --gammas 0.25 0.5 --structures dense diagonal

Rows go to a CSV file as they come; the table is printed as Markdown at the end.
"""

from __future__ import annotations

import csv
import io
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from torch.optim.swa_utils import AveragedModel

import ansn
from ansn.cli.common import guarded
from ansn.data import Dataset, iterate
from ansn.errors import InputError
from ansn.evaluation import ClassifierFeatures, everything, frechet
from ansn.machine import cpu_name
from ansn.training import Diverged
from ansn.training.checkpoint import write_atomic

_NAME = "digits_shapes"


@dataclass(frozen=True)
class Settings:
    """Frechet distance of digits at several steps of training, for several shapes of the noise."""

    rhos: tuple[float, ...] = (0.0, 0.5)
    """Shrinkage family, R = (1 - rho) t I + rho S: 0 is isotropic noise, 1 the full covariance."""
    gammas: tuple[float, ...] = ()
    """Spectral family, R = S^gamma at the trace of S: 0 is isotropic noise, 1 the full covariance."""
    structures: tuple[Literal["dense", "diagonal"], ...] = ("dense",)
    """Structures of the covariance to run every rho and gamma with; diagonal is the per-pixel control."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """One training run for each, of weights, data order and noise."""
    steps: tuple[int, ...] = (250, 500, 1000, 2000)
    """Training steps after which to sample; the last one ends the run."""
    metric: Literal["pixel", "whitened", "paper"] = "pixel"
    """Metric of the loss."""
    hidden: int = 512
    """Width of the MLP."""
    blocks: int = 3
    """Residual blocks of the MLP."""
    lr: float = 1e-3
    """Learning rate of Adam, constant."""
    batch_size: int = 128
    """Examples a step."""
    ema: float = 0.995
    """Decay of the averaged weights, which are what is sampled; less at the start, (1 + t) / (10 + t)."""
    freeze_after: int = 50_000
    """Data points after which the covariance stops learning."""
    tau_max: float | None = None
    """Largest level, data standard deviations; by default (d / 0.04)^(1/4), 6.3 for the digits."""
    levels: int = 20
    """Levels of the Heun sampler, Karras-spaced; it takes one network evaluation less than twice as many."""
    samples: int | None = None
    """Samples a distance is of; by default three times the held-out images, three blocks of the floor's n."""
    threads: int | None = None
    """CPU threads; by default torch's."""
    out: Path = Path(__file__).parent / "results" / f"{_NAME}.csv"
    """CSV file to write, replaced if it is there."""


Row = dict[str, Any]


def train(
    settings: Settings, data: Dataset, seed: int, n: int, *, structure: str, **family: Any
) -> Iterator[tuple[int, float, float, torch.Tensor]]:
    """Train one model; yields ``(step, mean loss since the last, seconds of training so far, samples)`` at each of the
    settings' steps. ``family``: ``rho`` or ``gamma``."""
    top = settings.tau_max or ansn.levels.tau_max_flow(math.prod(data.shape))
    ladder = ansn.levels.karras(top, 0.01, n=settings.levels)
    covariance = ansn.AdaptiveCovariance(data.shape, structure=structure, eps_floor=data.quantisation, **family)
    noise = ansn.NoiseModel(covariance, ladder, seed=seed)
    torch.manual_seed(seed)
    network = ansn.networks.MLP(data.shape, settings.hidden, settings.blocks)
    model = ansn.Denoiser(network, noise)
    optimizer = torch.optim.Adam(network.parameters(), settings.lr, fused=True)
    average = AveragedModel(network, multi_avg_fn=partial(_average, settings.ema))
    total, since, seconds, begun = 0.0, 0, 0.0, time.perf_counter()
    for step, x, _ in iterate(data, settings.batch_size, seed, stop_step=max(settings.steps)):
        noise.update(x)
        if covariance.seen >= settings.freeze_after:
            covariance.freeze()
        perturbed, level = noise.perturb(x, step=step)
        loss = ansn.dsm_loss(model, x, perturbed, level, settings.metric)
        if not bool(torch.isfinite(loss)):
            where = f"seed {seed}, {structure}, {family}"
            raise Diverged(f"the loss is not a number at step {step} ({where})")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        average.update_parameters(network)
        total, since = total + loss.item(), since + 1
        if step + 1 in settings.steps:
            seconds += time.perf_counter() - begun
            averaged = ansn.Denoiser(average.module, noise)
            samples = ansn.sample(averaged, n, "heun", settings.levels, batch_size=512, seed=seed)
            yield step + 1, total / since, seconds, samples
            total, since, begun = 0.0, 0, time.perf_counter()


def run(settings: Settings) -> list[Row]:
    """All runs, one after the other; the CSV file is rewritten after each distance."""
    _check(settings)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    data, held_out = ansn.load_dataset("digits"), ansn.load_dataset("digits", split="test")
    features = ClassifierFeatures.of(data, held_out)
    train_x, test_x = everything(data), everything(held_out)
    n = settings.samples or 3 * len(test_x)
    machine = {"threads": torch.get_num_threads(), "torch": torch.__version__, "cpu": cpu_name()}
    print(f"features: {features}", file=sys.stderr)
    families = [("rho", v) for v in settings.rhos] + [("gamma", v) for v in settings.gammas]
    rows: list[Row] = []
    for seed in settings.seeds:
        for structure in settings.structures:
            for family, value in families:
                for step, loss, seconds, x in train(settings, data, seed, n, structure=structure, **{family: value}):
                    result = frechet(x, train_x, test_x, features)
                    # The distance falls with n: only blocks of the floor's n stand beside it on equal terms.
                    size = len(test_x) if len(x) >= len(test_x) else len(x)
                    blocks = x[: len(x) // size * size].split(size)
                    matched = [frechet(block, train_x, test_x, features).value for block in blocks]
                    rows.append(
                        {
                            "seed": seed, "structure": structure, "rho": "", "gamma": "", family: value, "step": step,
                            "fd": result.value, "n": result.n,
                            "fd_matched": sum(matched) / len(matched), "n_matched": size,
                            "floor": result.floor, "floor_n": result.floor_n, "loss": loss, "metric": settings.metric,
                            "seconds": round(seconds, 2), "reference": f"{result.reference} ({result.reference_n})",
                            "features": str(features), **machine,
                        }
                    )  # fmt: skip
                    write_csv(rows, settings.out)
                    print(
                        f"seed {seed}  {structure}  {family} {value:g}  step {step}  loss {loss:.3f}"
                        f"  Frechet {result.value:.3f}  {seconds:.0f} s",
                        file=sys.stderr,
                        flush=True,
                    )
    return rows


def table(rows: list[Row], column: str = "fd") -> str:
    """Markdown: mean over the seeds, and each seed's distance, for every shape and step; ``fd`` or ``fd_matched``."""
    steps = sorted({row["step"] for row in rows})
    cells: dict[str, dict[int, list[float]]] = {}
    for row in rows:
        family = "rho" if row["rho"] != "" else "gamma"
        shape = f"{row['structure']}, {family} = {row[family]:g}"
        cells.setdefault(shape, {}).setdefault(row["step"], []).append(row[column])
    lines = ["| noise | " + " | ".join(f"{step} steps" for step in steps) + " |", "| --- |" + " --- |" * len(steps)]
    for shape, values in cells.items():
        shown = [
            f"**{sum(v) / len(v):.2f}** ({' / '.join(f'{value:.2f}' for value in v)})"
            for v in (values[step] for step in steps)
        ]
        lines.append(f"| {shape} | " + " | ".join(shown) + " |")
    first = rows[0]
    seeds = list(dict.fromkeys(row["seed"] for row in rows))
    last = [row for row in rows if row["step"] == steps[-1]]
    lines += [
        "",
        f"Frechet distance of {first['n' if column == 'fd' else 'n_matched']} samples to {first['reference']}"
        f" in features of {first['features']}:"
        f" mean over seeds {', '.join(map(str, seeds))} (each seed). Floor, {first['floor_n']} held-out images:"
        f" {first['floor']:.2f}. Metric of the loss: {first['metric']}."
        f" {sum(row['seconds'] for row in last) / len(last):.0f} s of training a run,"
        f" {first['threads']} threads, torch {first['torch']}, {first['cpu']}.",
    ]
    return "\n".join(lines)


def write_csv(rows: list[Row], path: Path) -> None:
    """The rows with a header; the file is complete at every moment."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, text.getvalue())
    except OSError as error:
        raise InputError(f"--out: cannot write {path} ({error.strerror})") from None


def _average(decay: float, averaged: Any, current: Any, count: torch.Tensor) -> None:
    # Grows to its value, so that weights from before the first steps are forgotten.
    torch._foreach_lerp_(averaged, current, 1.0 - min(decay, (1 + int(count)) / (10 + int(count))))


def _check(settings: Settings) -> None:
    rules: list[tuple[str, Any, bool, str]] = [
        ("rhos", settings.rhos, all(0 <= v <= 1 for v in settings.rhos), "numbers in [0, 1]"),
        ("gammas", settings.gammas, all(-1 <= v <= 1 for v in settings.gammas), "numbers in [-1, 1]"),
        ("rhos, --gammas", (), bool(settings.rhos + settings.gammas), "at least one shape"),
        ("structures", settings.structures, bool(settings.structures), "at least one"),
        ("seeds", settings.seeds, bool(settings.seeds) and min(settings.seeds) >= 0, "one or more, each 0 or more"),
        ("steps", settings.steps, bool(settings.steps) and min(settings.steps) >= 1, "one or more, each at least 1"),
        ("samples", settings.samples, settings.samples is None or settings.samples >= 2, "at least 2"),
        ("ema", settings.ema, 0 <= settings.ema < 1, "0 <= ema < 1"),
        ("lr", settings.lr, settings.lr > 0, "> 0"),
        ("freeze-after", settings.freeze_after, settings.freeze_after >= 2, "at least 2 points"),
        ("levels", settings.levels, settings.levels >= 2, "at least 2"),
    ]
    rules += [
        (name, value, value is None or value >= 1, "at least 1")
        for name, value in (
            ("hidden", settings.hidden), ("blocks", settings.blocks), ("batch-size", settings.batch_size),
            ("threads", settings.threads),
        )
    ]  # fmt: skip
    for name, value, good, expected in rules:
        if not good:
            raise InputError(f"--{name}: got {value}, expected {expected}")


def main() -> int:
    """Entry point; exit codes 0 done, 1 diverged, 2 bad arguments, 130 interrupted."""
    settings = tyro.cli(Settings, prog=_NAME, description=__doc__)

    def command() -> None:
        rows = run(settings)
        print(table(rows))
        if rows[0]["n"] != rows[0]["n_matched"]:
            print("\nAt the floor's own n (mean over disjoint blocks):\n")
            print(table(rows, "fd_matched"))

    return guarded(_NAME, command)


if __name__ == "__main__":
    sys.exit(main())
