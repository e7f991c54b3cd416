"""Which sampler, with how many evaluations? Frechet distance of every sampler at every budget, one trained model.

    python -m experiments.sampler_table
    python -m experiments.sampler_table --preset mnist --data PATH --train-steps 2000 --samples 900

A preset is trained (or its run gone on with) and sampled by every method with at most so many network evaluations a
sample. All start from the same white noise, at their own first level. Rows go to a CSV file as they come; the table is
printed as Markdown at the end.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro

from ansn import load_dataset
from ansn.choices import choice
from ansn.cli.common import guarded, parsed
from ansn.data import Dataset
from ansn.denoiser import SKIPS
from ansn.errors import InputError, refuse
from ansn.evaluation import Features, frechet_distance, frechet_floor
from ansn.evaluation.features import Array, features_of
from ansn.evaluation.spaces import classifier
from ansn.machine import cpu_name
from ansn.sampling import METHODS, Draw
from ansn.training import Run, load_run, train
from experiments.lab import statistics
from experiments.lab.claim import RESULTS, Row, write
from experiments.lab.statistics import select, unique
from experiments.lab.training import configured

_NAME = "sampler_table"


@dataclass(frozen=True)
class Settings:
    """Frechet distance of every sampler at several numbers of network evaluations."""

    preset: Literal["digits", "mnist", "fashion-mnist"] = "digits"
    """What to train; a labelled data set, whose classifier gives the features."""
    data: Path | None = None
    """Folder that holds the files of the data set."""
    run: Path | None = None
    """Folder of the run, made or gone on with; by default runs/sampler-table-PRESET."""
    train_steps: int | None = None
    """Training steps; by default the preset's."""
    skip: Annotated[str, choice(SKIPS)] = "scalar"
    """The denoiser's skip; the published figures are of the scalar one."""
    methods: tuple[str, ...] = tuple(name for name in METHODS if name not in ("paper", "gaussian_2m"))
    """Samplers; Algorithm 1 as printed needs isotropic noise, and gaussian_2m came after the published table."""
    schedules: tuple[str, ...] = ("few_steps",)
    """Spacings of the levels, for all but Langevin."""
    start: float | None = None
    """Level to start at, data standard deviations; by default the run's own, chosen from the data."""
    evaluations: tuple[int, ...] = (4, 6, 8, 12, 20, 40, 1000)
    """Most network evaluations a sample."""
    langevin: int = 1000
    """Langevin is run with this number and more only, the others with fewer only."""
    samples: int = 450
    """Samples for each seed."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4, 5)
    """Seeds of sampling."""
    floor_n: int = 450
    """Images in a distance and in its floor; both are means over as many disjoint blocks as there are."""
    threads: int | None = None
    """CPU threads; by default torch's."""
    out: Path | None = None
    """CSV file to write, replaced if it is there; by default results/sampler_table_PRESET.csv beside this file."""


def trained(settings: Settings) -> tuple[Run, Dataset, Dataset]:
    """The run, and the data's two splits."""
    folder = settings.run or Path("runs") / f"sampler-table-{settings.preset}"
    root = None if settings.data is None else str(settings.data)
    config = configured(
        settings.preset, data={"data": root}, network={"skip": settings.skip},
        optim={"steps": settings.train_steps} if settings.train_steps else {},
        run={"out": str(folder), "threads": settings.threads},
    )  # fmt: skip
    train(config)
    splits = [load_dataset(config.data.dataset, root=root, split=split) for split in ("train", "test")]
    run = load_run(folder)
    if settings.start is not None:
        try:
            run.model.noise.levels = replace(run.model.noise.levels, start=settings.start)
        except ValueError as error:
            raise InputError(f"--{error}") from None
    return run, splits[0], splits[1]


def measured(settings: Settings) -> list[Row]:
    """All distances; the CSV file is rewritten after each."""
    _check(settings)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    run, data, held_out = trained(settings)
    features = classifier(data, held_out)
    target = features_of(features, data)
    floors = _floors(features, target, held_out, settings.floor_n)
    print(f"features: {features}; levels {run.model.noise.levels}", file=sys.stderr)
    rows: list[Row] = []
    for method, schedule, budget in _cells(settings):
        try:
            draw = Draw.within(run.model, method, budget, schedule=schedule)
        except ValueError:
            continue  # not one step within the budget
        for seed in settings.seeds:
            draw = Draw.within(run.model, method, budget, schedule=schedule, seed=seed)
            began = time.perf_counter()
            x = torch.cat([draw.batch(row, n).cpu() for row, n in _blocks(settings.samples, settings.floor_n)])
            seconds = time.perf_counter() - began
            blocks = features(x).reshape(-1, settings.floor_n, target.shape[1])
            values = [frechet_distance(block, target) for block in blocks]
            rows.append(
                {
                    "method": method, "schedule": schedule if draw.method.flow else "ladder", "budget": budget,
                    "evaluations": draw.evaluations, "levels": len(draw.taus), "tau_1": float(draw.taus[0]),
                    "tau_N": float(draw.taus[-1]), "seed": seed, "fd": sum(values) / len(values),
                    "n": settings.floor_n, "blocks": len(values), "floor": sum(floors) / len(floors),
                    "floor_n": settings.floor_n, "floor_blocks": len(floors), "samples": len(x),
                    "seconds": round(seconds, 3), "train_steps": run.step, "reference": f"train ({len(target)})",
                    "features": str(features), "threads": torch.get_num_threads(), "torch": torch.__version__,
                    "cpu": cpu_name(),
                }
            )  # fmt: skip
            write(settings.out or RESULTS / f"{_NAME}_{settings.preset}.csv", rows)
        told = _mean(rows[-len(settings.seeds) :])
        print(f"{method}  {schedule}  {draw.evaluations}  {told}", file=sys.stderr, flush=True)
    return rows


def _floors(features: Features, target: Array, held_out: Dataset, n: int) -> list[float]:
    """Distances of held-out images, n at a time.

    In a drawn order: files may be sorted, MNIST's test images are by how clean they are.
    """
    order = held_out.order(0, 0)[: len(held_out) // n * n]
    if not len(order):
        raise InputError(f"--floor-n: got {n}, expected at most the {len(held_out)} held-out images")
    return [frechet_floor(target, features(held_out.batch(index)[0].cpu())) for index in order.split(n)]


def table(rows: list[Row]) -> str:
    """Markdown: the distances, and beneath them those over the distances of the sampler of most evaluations."""
    first = rows[0]
    note = (
        f"Frechet distance of {first['n']} samples (mean over blocks: {first['blocks']} a seed) to {first['reference']}"
        f" in features of {first['features']}: mean over {len({row['seed'] for row in rows})} seeds of sampling"
        f" +- their standard deviation; in brackets seconds for {first['samples']} samples. Floor, {first['floor_n']}"
        f" held-out images (mean over blocks: {first['floor_blocks']}): {first['floor']:.2f}."
        f" {first['train_steps']} training steps; {first['threads']} threads,"
        f" torch {first['torch']}, {first['cpu']}."
    )
    most = max(rows, key=lambda row: row["evaluations"])
    reference = {row["seed"]: row["fd"] for row in rows if _cell(row) == _cell(most)}
    paired = f"Over the distance of {most['method']} with {most['evaluations']} evaluations from the same white noise:"
    return "\n".join(
        [_lines(rows, _mean), "", note, "", paired, "", _lines(rows, lambda found: _ratio(found, reference))]
    )


def _lines(rows: list[Row], text: Callable[[list[Row]], str]) -> str:
    budgets, lines = sorted(unique(rows, "budget")), []
    for method, schedule in unique(rows, "method", "schedule"):
        cells = [select(rows, method=method, schedule=schedule, budget=budget) for budget in budgets]
        lines.append([f"{method}, {schedule}", *(text(found) if found else "" for found in cells)])
    return statistics.table(["evaluations", *budgets], lines)


def _cell(row: Row) -> tuple[str, str, int]:
    return row["method"], row["schedule"], row["budget"]


def _mean(found: list[Row]) -> str:
    seconds = sorted(row["seconds"] for row in found)[len(found) // 2]
    return f"{_spread([row['fd'] for row in found])} ({seconds:.1f} s)"


def _ratio(found: list[Row], reference: dict[int, float]) -> str:
    return _spread([row["fd"] / reference[row["seed"]] for row in found])


def _spread(values: list[float]) -> str:
    told = torch.tensor(values)
    return f"{float(told.mean()):.2f}" + (f" +- {float(told.std()):.2f}" if len(values) > 1 else "")


def _cells(settings: Settings) -> list[tuple[str, str, int]]:
    cells = []
    for method in settings.methods:
        flow = METHODS[method].flow
        for schedule in settings.schedules if flow else settings.schedules[:1]:
            cells += [(method, schedule, n) for n in settings.evaluations if (n < settings.langevin) == flow]
    return cells


def _blocks(n: int, size: int) -> list[tuple[int, int]]:
    return [(row, size) for row in range(0, n, size)]


def _check(settings: Settings) -> None:
    unknown = [name for name in settings.methods if name not in METHODS]
    rules: list[tuple[str, Any, bool, str]] = [
        ("methods", " ".join(unknown), not unknown, f"names from {', '.join(METHODS)}"),
        ("evaluations", settings.evaluations, min(settings.evaluations, default=0) >= 1, "numbers of at least 1"),
        ("seeds", settings.seeds, min(settings.seeds, default=-1) >= 0, "one or more, each 0 or more"),
        ("floor-n", settings.floor_n, settings.floor_n >= 2, "at least 2"),
        (
            "samples", settings.samples, settings.samples > 0 and settings.samples % settings.floor_n == 0,
            f"a multiple of --floor-n {settings.floor_n}",
        ),
    ]  # fmt: skip
    refuse(rules)


def main() -> int:
    """Entry point; exit codes 0 done, 1 diverged, 2 bad arguments, 130 interrupted."""
    settings = parsed(_NAME, lambda: tyro.cli(Settings, prog=_NAME, description=__doc__))
    return guarded(_NAME, lambda: print(table(measured(settings))))


if __name__ == "__main__":
    sys.exit(main())
