"""Which structure a covariance should have, and what its filter is worth to a denoiser at the start.

Two questions: under which structure held-out rows are likeliest, from how few rows, and whether `auto` takes it; and
on colour images, how far training is saved by a denoiser that begins as the Wiener filter of a separable covariance.
"""

from __future__ import annotations

import itertools
import math
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import ansn
from ansn import figures
from ansn.covariance import STRUCTURES, AdaptiveCovariance, Dense, Separable, choose
from ansn.covariance.choice import score
from ansn.data import Dataset
from ansn.evaluation import PixelFeatures
from experiments.lab import figure
from experiments.lab.claim import RESULTS, Cell, Claim, Row, Section, Settings, main
from experiments.lab.problems import Problem, fields, problem
from experiments.lab.statistics import select, table
from experiments.lab.training import Frame, Made, Setup, Trained, fit, held_out_loss, one_copy

SIZES = (500, 2000, 10_000)
IMAGES = ("mnist", "fashion-mnist", "cifar10")
SMALL = ("table", "fields")
HELD = 2000  # rows that are scored
CLOSE = 0.02  # nats a dimension within which auto's choice is as good as the best



class DenseAlways(Dense):
    """A dense structure whose S counts from the first points on: what the rule of 2 d points forbids."""

    def points(self) -> int:
        return 2


ARMS = {"scalar": ("scalar", Separable), "dense": ("wiener", DenseAlways), "separable": ("wiener", Separable)}
"""Skip and structure of each arm of the training; noise is isotropic in all."""
AT = (100, 200, 400, 800)
PICTURED = (100, 300, 1200)
SHOWN = 8


def cells(settings: Settings) -> list[Cell]:
    """Scores of every data set and size; runs of every arm."""
    names = [*(name for name in IMAGES if _has(name, settings.data)), *SMALL]
    sizes = {name: SIZES if name != "table" else (len(_rows(name, settings)[0]),) for name in names}
    out: list[Cell] = [{"part": "score", "data": name, "n": n} for name in names for n in sizes[name]]
    if "cifar10" in names:
        out += [{"part": "loss", "data": "cifar10", "n": 2000, "arm": arm} for arm in ARMS]
        out += [{"part": "samples", "data": "cifar10", "n": 50_000, "arm": arm} for arm in ("scalar", "separable")]
    return out[:1] + [c for c in out[1:] if c["n"] == SIZES[0] or c["part"] == "loss"] if settings.quick else out


def run(cell: Cell, settings: Settings) -> list[Row]:
    if cell["part"] == "score":
        return _scores(cell, settings)
    return _losses(cell, settings) if cell["part"] == "loss" else _samples(cell, settings)


# -- held-out likelihood -----------------------------------------------------------------------------------------


def _has(name: str, root: Path | None) -> bool:
    # Fashion-MNIST's files are called as MNIST's, so its own folder must be there.
    has = root is not None and (name == "mnist" or (root / name).is_dir())
    if not has:
        print(f"the cells on {name} are left out: --data has no folder {name}", file=sys.stderr)
    return has


@cache
def _images(name: str, split: str, root: Path) -> Dataset:
    return ansn.load_dataset(name, root=str(root), split=split)


def _rows(name: str, settings: Settings) -> tuple[Tensor, Tensor, float]:
    """Training rows, held-out rows, variance of the rounding."""
    if name == "fields":
        return fields(SIZES[-1], 0).float(), fields(HELD, 1).float(), 0.0
    if name == "table":
        made = problem(name)
        return one_copy(made.train), one_copy(made.test), 0.0
    assert settings.data is not None
    train, test = (_images(name, split, settings.data) for split in ("train", "test"))
    parts = (d.batch(torch.arange(rows))[0] for d, rows in ((train, SIZES[-1]), (test, HELD)))
    return (*parts, train.quantisation)


def _scores(cell: Cell, settings: Settings) -> list[Row]:
    train, held, floor = _rows(cell["data"], settings)
    train = train[: cell["n"]]
    taken = choose(train, eps_floor=floor)
    out: list[Row] = []
    for name in STRUCTURES:
        learned = AdaptiveCovariance(
            tuple(train.shape[1:]), 1, name, rho=0.0, eps_floor=floor, factor_dtype=torch.float64
        )
        structure = learned.structure
        numbers = sum(map(math.prod, (*structure.scatters(1).values(), *structure.parts(1).values())))
        enough = len(train) >= structure.points()
        value = score(learned.update(train.double()), held) if enough else None
        out.append({"structure": name, "numbers": numbers, "score": value, "taken": int(taken.structure == name)})
    return out


# -- training ----------------------------------------------------------------------------------------------------


def _problem(cell: Cell, settings: Settings, width: int) -> Problem:
    assert settings.data is not None
    train = _images("cifar10", "train", settings.data).select(torch.arange(cell["n"]))
    test = _images("cifar10", "test", settings.data).select(torch.arange(1000))
    space = PixelFeatures((3, 32, 32), "cifar10")

    def network(**options: Any) -> nn.Module:
        return ansn.networks.UNet(3, width=width, blocks=1, multipliers=(1, 2, 2), **options)

    return Problem("cifar10", train, test, network, space, space)


def _made(made: Problem, arm: str, seed: int) -> Made:
    covariance = AdaptiveCovariance(made.shape, 1, ARMS[arm][1], rho=0.0, eps_floor=made.train.quantisation)
    first = made.train.batch(torch.arange(min(len(made.train), 2000)))[0]
    return Made(ansn.NoiseModel(covariance.orient(first), ansn.levels.karras(30.0, 0.01), seed=seed), Frame())


def _losses(cell: Cell, settings: Settings) -> list[Row]:
    made = _problem(cell, settings, 16)
    at = (1, 2) if settings.quick else AT
    skip = f"{ARMS[cell['arm']][0]} rho=0"
    # All rows at once before the first step, so that step 0 has the filter that they give.
    begun = _made(made, cell["arm"], 0)
    noise, frame, _ = begun
    for row in range(0, cell["n"], 500):
        noise.update(made.train.batch(torch.arange(row, min(row + 500, cell["n"])))[0])
    noise.covariance.freeze()
    setup = Setup(skip, steps=max(at), lr=2e-3, batch_size=64, ema=0.99)
    new = ansn.Denoiser(made.network(), noise, skip=ARMS[cell["arm"]][0])
    start = Trained(0, 0.0, 0.0, new, frame, new)
    return [
        {"step": trained.step, "loss": held_out_loss(trained, made), "seconds": trained.seconds}
        for trained in itertools.chain([start], fit(made, setup, at, made=begun))
    ]


def _samples(cell: Cell, settings: Settings) -> list[Row]:
    made = _problem(cell, settings, 32)
    setup = Setup(f"{ARMS[cell['arm']][0]} rho=0", steps=PICTURED[-1], lr=3e-3, batch_size=64, ema=0.995, decay=0.5)
    data = spectrum(made.train.batch(torch.arange(2000))[0])
    out: list[Row] = []
    sheet = []
    for trained in fit(made, setup, PICTURED, made=_made(made, cell["arm"], 0)):
        x = ansn.sample(trained.model, 128, "heun", 20, seed=0)
        off = float((spectrum(x) / data).log().square().mean().sqrt())
        sheet.append(x[:SHOWN])
        out.append({"step": trained.step, "loss": held_out_loss(trained, made), "spectrum": off})
    folder = settings.out / "quick" if settings.quick else RESULTS
    figures.save_samples(torch.cat(sheet), folder / f"structures_{cell['arm']}.png", columns=SHOWN, upscale=3)
    return out


def spectrum(x: Tensor) -> Tensor:
    """Radial power spectrum of images ``[n, C, H, W]``, mean over images and channels, by whole frequencies from 1."""
    power = torch.fft.fft2(x.double()).abs().square().mean((0, 1))
    k = torch.fft.fftfreq(x.shape[-1], dtype=torch.float64) * x.shape[-1]
    radius = (k[:, None] ** 2 + k[None] ** 2).sqrt().round().long().flatten()
    total = torch.zeros(int(radius.max()) + 1, dtype=torch.float64).index_add_(0, radius, power.flatten())
    return (total / torch.bincount(radius))[1 : x.shape[-1] // 2 + 1]


# -- what the rows say -------------------------------------------------------------------------------------------


def section(rows: list[Row], folder: Path) -> Section:
    scored, losses, samples = (select(rows, part=part) for part in ("score", "loss", "samples"))
    tables, findings = [_score_table(scored)], _score_findings(scored)
    pictures: list[tuple[str, str]] = []
    if losses:
        tables.append(_loss_table(losses))
        pictures.append(_loss_curves(losses, folder))
        findings += _loss_findings(losses)
    if samples:
        tables.append(_sample_table(samples))
        findings += _sample_findings(samples)
        words = "CIFAR-10 samples after 100, 300 and 1,200 steps (rows), the same starting noise; {} skip"
        pictures += [
            (words.format(arm), f"structures_{arm}.png")
            for arm in ("scalar", "separable") if (RESULTS / f"structures_{arm}.png").exists()
        ]  # fmt: skip
    return Section(
        "Which structure should a covariance have, and what is its filter worth?",
        _answer(scored, losses),
        "Scores: nats a dimension of 2,000 held-out rows (142 of the table) under one Gaussian,"
        " one fit each; the noise of a grey level is added to data and covariance (1e-6 of the mean variance to data"
        " without one); a structure that has too few rows by its own rule has no number. Losses: U-Net of width 16,"
        " isotropic noise, Adam 2e-3, batch 64, averaged weights, 2,000 images, the covariance of all of them from the"
        " start, one seed. Samples: width 32, 50,000 images, Adam 3e-3 that falls to 0 over the second half, 20-step"
        " Heun; `spectrum` is the rms of the logarithm of the radial power spectrum over the data's.",
        tables, pictures, findings,
        "more seeds; other natural images; a control that is trained until it is level, which it is not here.",
    )  # fmt: skip


def _best(rows: list[Row]) -> Row:
    return max((row for row in rows if row["score"] is not None), key=lambda row: row["score"])


def _groups(rows: list[Row]) -> list[list[Row]]:
    keys = dict.fromkeys((row["data"], row["n"]) for row in rows)
    return [select(rows, data=data, n=n) for data, n in keys]


def _score_table(rows: list[Row]) -> tuple[str, str]:
    lines = []
    for group in _groups(rows):
        told = {r["structure"]: "-" if r["score"] is None else f"{r['score']:.3f}" for r in group}
        taken = next(r["structure"] for r in group if r["taken"])
        lines.append([group[0]["data"], group[0]["n"], *told.values(), taken])
    names = dict.fromkeys(row["structure"] for row in rows)
    return "Held-out log-likelihood, nats a dimension", table(["data", "rows", *names, "auto takes"], lines)


def _score_findings(rows: list[Row]) -> list[str]:
    short = []
    for group in _groups(rows):
        taken = next(row for row in group if row["taken"])
        lost = _best(group)["score"] - (taken["score"] if taken["score"] is not None else -math.inf)
        if lost > CLOSE:
            short.append(f"{group[0]['data']} with {group[0]['n']} rows ({lost:.3f})")
    cells_ = len(_groups(rows))
    if not short:
        return [f"`auto` is within {CLOSE} nats a dimension of the best structure in all {cells_} cells."]
    told = ", ".join(short)
    return [f"`auto` is more than {CLOSE} nats a dimension below the best in {len(short)} of {cells_} cells: {told}."]


def _loss_table(rows: list[Row]) -> tuple[str, str]:
    steps = sorted({row["step"] for row in rows})
    lines = [
        [arm, *(f"{r['loss']:.4f}" for r in select(rows, arm=arm)), f"{select(rows, arm=arm)[-1]['seconds']:.0f}"]
        for arm in ARMS if select(rows, arm=arm)
    ]  # fmt: skip
    head = ["skip", *(f"{step} steps" for step in steps), "seconds"]
    return "CIFAR-10 from 2,000 images, held-out weighted loss", table(head, lines)


def _loss_findings(rows: list[Row]) -> list[str]:
    scalar, ours = (select(rows, arm=arm) for arm in ("scalar", "separable"))
    if not scalar or not ours:
        return []
    end = scalar[-1]
    sooner = next((row["step"] for row in ours if row["loss"] <= end["loss"]), None)
    before = max((row["step"] for row in scalar if row["loss"] > ours[0]["loss"]), default=None)
    when = f"is there after {sooner}" if sooner is not None else f"is not there after {ours[-1]['step']}"
    return [
        f"Under the scalar skip the held-out loss is {end['loss']:.3f} after {end['step']} steps; under the separable"
        f" filter it {when}, and at {ours[-1]['loss']:.3f} after {ours[-1]['step']}. It begins at"
        f" {ours[0]['loss']:.3f}, where the scalar skip is "
        + ("from the start." if before is None else f"only after more than {before} steps.")
    ]


def _sample_findings(rows: list[Row]) -> list[str]:
    pairs = [
        (step, *(next(r for r in rows if r["arm"] == arm and r["step"] == step) for arm in ("scalar", "separable")))
        for step in dict.fromkeys(row["step"] for row in rows)
    ]
    told = [
        f"after {step} steps the spectrum is off by {b['spectrum']:.2f} against {a['spectrum']:.2f}"
        f" ({'better' if b['spectrum'] < a['spectrum'] else 'worse'})"
        for step, a, b in pairs
    ]
    return [f"Samples under the separable filter: {'; '.join(told)}."]


def _sample_table(rows: list[Row]) -> tuple[str, str]:
    lines = [[r["arm"], r["step"], f"{r['loss']:.4f}", f"{r['spectrum']:.2f}"] for r in rows]
    return "CIFAR-10 from 50,000 images", table(["skip", "steps", "held-out loss", "spectrum"], lines)


def _loss_curves(rows: list[Row], folder: Path) -> tuple[str, str]:
    figure_, (axis,) = figure.panels(1)
    for colour, arm in enumerate(a for a in ARMS if select(rows, arm=a)):
        own = select(rows, arm=arm)
        figure.curve(axis, [r["step"] for r in own], [r["loss"] for r in own], label=arm, colour=colour)
    axis.set_xlabel("training steps")
    axis.set_ylabel("held-out weighted loss")
    axis.legend(fontsize=7)
    return "CIFAR-10 from 2,000 images", figure.save(figure_, folder / "structures_loss.png")


def _answer(scored: list[Row], losses: list[Row]) -> str:
    wins: dict[str, int] = {}
    for group in _groups(scored):
        name = _best(group)["structure"]
        wins[name] = wins.get(name, 0) + 1
    told = ", ".join(f"{name} in {count}" for name, count in sorted(wins.items(), key=lambda pair: -pair[1]))
    out = f"The likeliest structure is {told} of {len(_groups(scored))} cells of a data set and a number of rows."
    found = _loss_findings(losses) if losses else []
    return f"{out} {found[0]}" if found else out


CLAIM = Claim("structures", cells, run, section)

if __name__ == "__main__":
    sys.exit(main(CLAIM, __doc__))
