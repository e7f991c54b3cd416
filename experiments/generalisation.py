"""Generalisation: does noise of a learned covariance fit held-out data better, and repeat its training data less?

Small training sets, followed from under- to overfitting. Each seed draws its own training rows, validation rows and
test rows; runs of one seed share them, and first weights, order of the data, levels and white noise. At every
checkpoint: mean log-likelihood of as many training rows as test rows, and how near samples are to the training rows.
A shape's best checkpoint is chosen by the validation rows.

    python -m experiments.generalisation
    python -m experiments.generalisation --quick
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ansn.evaluation.neighbours import memorisation, nearest
from experiments.lab import figure
from experiments.lab.claim import Cell, Claim, Row, Section, Settings, main
from experiments.lab.problems import Problem, problem
from experiments.lab.statistics import Estimate, estimate, mean, paired, select, table, unique
from experiments.lab.training import TUNING_SEED, WIENER, Setup, Trained, blur, fit, noise_model, one_copy, tuned

SEEDS = 5
GRID = (1e-3, 3e-3)
VALIDATION = 147  # rows; what 1200 of the digits' 1347 leave
SCORED = 150  # rows of a likelihood, of each part
QUANTILE = 0.05  # of the test rows' distances: what counts as a repetition
LEVELS = {"digits": 17}  # grey levels, for bits; other data has nats
SHRINKAGE = (0.0, 0.003, 0.01, 0.03, 0.1, 0.3)  # of the Gaussian beside the networks

EVERY = (
    "rho=0", "rho=0.2", "rho=0.5", "rho=0.8", "rho=0.9", "rho=1", *WIENER, "diagonal", "whitened", "fixed rho=0.5",
)  # fmt: skip
MAIN = ("rho=0", "rho=0.5", "rho=1", *WIENER, "diagonal", "whitened")
FEW_SHAPES = ("rho=0", "rho=0.5", "rho=1", *WIENER)
# Fields are alike at every point: there the per-pixel covariance is the isotropic one.
STATIONARY = ("rho=0", "rho=0.5", "rho=1", *WIENER, "whitened")
FEW, MORE = (200, 400, 800, 1600), (200, 500, 1000)  # steps to look at, by rows: few are soon learned by heart
PLAN: tuple[tuple[str, int, tuple[str, ...], tuple[int, ...]], ...] = (
    ("digits", 200, EVERY, FEW),
    ("digits", 1200, MAIN, MORE),
    ("fields", 200, STATIONARY, MORE),
    ("fields", 1000, FEW_SHAPES, MORE),
)
QUICK: tuple[tuple[str, int, tuple[str, ...], tuple[int, ...]], ...] = (
    ("digits", 200, ("rho=0", "rho=0.5", "rho=1", "whitened"), (10, 20)),
)


@dataclass(frozen=True)
class Parts:
    """A problem as one seed sees it. ``learned``: training rows and, for its held-out rows, the validation rows;
    ``test``: rows that decide nothing."""

    learned: Problem
    test: Tensor


def cells(settings: Settings) -> list[Cell]:
    plan = QUICK if settings.quick else PLAN
    return [{"problem": name, "size": rows, "shape": shape} for name, rows, shapes, _ in plan for shape in shapes]


def parts(name: str, rows: int, seed: int) -> Parts:
    """Training, validation and test rows of a seed: disjoint, the first two of the training split."""
    whole = problem(name)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(whole.train), generator=generator)
    if rows + VALIDATION > len(order):
        raise ValueError(f"rows: got {rows}, expected at most {len(order) - VALIDATION}")
    train, validation = whole.train.select(order[:rows]), whole.train.select(order[-VALIDATION:])
    test = one_copy(whole.test)[torch.randperm(len(whole.test), generator=generator)[:450]]
    return Parts(replace(whole, train=train, test=validation), test)


def run(cell: Cell, settings: Settings) -> list[Row]:
    name, count, shape = cell["problem"], cell["size"], cell["shape"]
    at = next(at for n, rows, _, at in (QUICK if settings.quick else PLAN) if (n, rows) == (name, count))
    seeds, scored, steps = (2, 20, 3) if settings.quick else (SEEDS, SCORED, 12)
    base = Setup(shape, TUNING_SEED, steps=at[min(1, len(at) - 2)], batch_size=64)
    lr = tuned(parts(name, count, TUNING_SEED).learned, base, GRID[:1] if settings.quick else GRID)
    out: list[Row] = []
    for seed in range(seeds):
        split = parts(name, count, seed)
        fixed = {"seed": seed, "lr": lr} | _references(split, scored, shape)
        spaces = _spaces(split)
        for trained in fit(split.learned, replace(base, seed=seed, lr=lr), at):
            row = fixed | {"step": trained.step, "seconds": trained.seconds}
            row |= _scores(trained, split, scored, steps) | _repetition(trained, split, spaces)
            if seed == 0 and trained.step == at[-1]:
                fine = _nll(trained, split.test[:scored], 2 * steps)
                row["integration"] = fine - row["test"]
            out.append(row)
    return out


def _scores(trained: Trained, split: Parts, scored: int, steps: int) -> Row:
    """Negative log-likelihoods a dimension, nats: of as many rows of the training set as of the test set."""
    given = {
        "train": one_copy(split.learned.train)[:scored],
        "validation": one_copy(split.learned.test)[: max(scored, 20)],
        "test": split.test[:scored],
    }
    return {name: _nll(trained, x, steps) for name, x in given.items()}


def _nll(trained: Trained, x: Tensor, steps: int) -> float:
    return -float(trained.log_likelihood(x, steps, probes=1).mean()) / x[0].numel()


def _spaces(split: Parts) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates of the training rows, and the test rows' distances to the nearest of them."""
    columns = split.learned.columns
    train = columns(one_copy(split.learned.train))
    return train, nearest(columns(split.test), train)[0][:, 0]


def _repetition(trained: Trained, split: Parts, spaces: tuple[np.ndarray, np.ndarray]) -> Row:
    """Of samples, and of the validation rows, which no model can have repeated: the share nearer to a training row than
    ``QUANTILE`` of the test rows are, and the ratio of the median distances."""
    train, usual = spaces
    measure, columns = memorisation(usual, QUANTILE), split.learned.columns
    samples = trained.sample(len(split.test), seed=trained.model.noise.seed)
    if not bool(torch.isfinite(samples).all()):
        return {"memorised": math.inf, "ratio": math.nan}
    found = measure(nearest(columns(samples), train)[0])
    held = measure(nearest(columns(one_copy(split.learned.test)), train)[0])
    return {"memorised": found[0], "ratio": found[1], "memorised_held": held[0], "ratio_held": held[1]}


def _references(split: Parts, scored: int, shape: str) -> Row:
    """What needs no network: a Gaussian's likelihood, and what the lowest noise of the shape costs."""
    x, validation = one_copy(split.learned.train), one_copy(split.learned.test)
    shrinkage = min(SHRINKAGE, key=lambda a: gaussian_nll(x, validation, a))
    noise, frame, _ = noise_model(split.learned, Setup(shape))
    noise.covariance.frozen or noise.update(frame.into(x))
    whole = one_copy(problem(split.learned.name).train).flatten(1).double()
    return {
        "gaussian": gaussian_nll(x, split.test[:scored], shrinkage),
        "footing": blur(torch.cov(whole.T), noise.levels.minimum**2 * frame.shape(noise)),
    }


def gaussian_nll(train: Tensor, x: Tensor, shrinkage: float) -> float:
    """Nats a dimension of ``x`` under ``N(m, (1 - a) S + a tr(S)/d I)`` of the training rows, a the shrinkage."""
    train, x = train.flatten(1).double(), x.flatten(1).double()
    d, s = train.shape[1], torch.cov(train.T)
    s = (1 - shrinkage) * s + (shrinkage + 1e-9) * s.trace() / d * torch.eye(d, dtype=s.dtype)
    density = torch.distributions.MultivariateNormal(train.mean(0), s)
    return -float(density.log_prob(x).mean()) / d


# -- what the rows say ------------------------------------------------------------------------------------------------


def best(rows: list[Row]) -> list[Row]:
    """Of each seed the row of the step whose validation rows have the highest likelihood."""
    chosen: dict[int, Row] = {}
    for row in rows:
        seed = row["seed"]
        if math.isfinite(row["validation"]) and (seed not in chosen or row["validation"] < chosen[seed]["validation"]):
            chosen[seed] = row
    return list(chosen.values())


def section(rows: list[Row], folder: Path) -> Section:
    groups = {
        f"{name} {size}": [_in_unit(row) for row in select(rows, problem=name, size=size)]
        for name, size in unique(rows, "problem", "size")
    }
    at_best: dict[str, list[tuple[str, Estimate]]] = {}
    tables: list[tuple[str, str]] = []
    for plan, group in groups.items():
        tables.append(_table_best(plan, group))
        control = best(select(group, shape="rho=0"))
        for shape in unique(group, "shape"):
            apart = paired(best(select(group, shape=shape)), control, "test")
            at_best.setdefault(shape, []).append((plan, apart))
    tables += [_table_steps(plan, group) for plan, group in groups.items()]
    figures = [
        ("Negative log-likelihood of held-out rows (full) and training rows (dotted) while training; the shade is the"
         " 95 % interval of the mean over seeds", _draw(groups, folder / "generalisation_likelihood.png")),
        (f"Share of samples nearer to a training row than {QUANTILE:.0%} of the test rows; black: validation rows",
         _draw(groups, folder / "generalisation_repetition.png")),
    ]  # fmt: skip
    return Section(
        question="Does adaptive noise generalise better?",
        answer=_answer(at_best, groups),
        design=_DESIGN.format(seeds=len(unique(rows, "seed")), grid=", ".join(f"{lr:g}" for lr in GRID)),
        tables=tables,
        figures=figures,
        findings=_findings(groups, rows),
        change="networks with more of a prior for images than an MLP, regularisation (dropout, weight decay, augmented"
        " data), training sets of thousands, and a finer choice of the step to stop at than factors of two.",
    )


_DESIGN = """Each of {seeds} seeds draws its training rows, 147 validation rows and 450 test rows; the network is the
MLP of every claim (256 wide, 2 blocks, Adam, batches of 64, averaged weights), the learning rate of each shape the
best of {grid} by validation loss under a seed that is not used again. Likelihood: probability flow, 12 steps of
Heun's method, one Rademacher probe, the same for every shape; as many training rows as test rows (150). Digits are
dequantised and counted in bits a dimension, fields in nats a dimension. *Best* is the checkpoint with the best
validation likelihood of each run; its test likelihood is reported. *Gap* is test less training. *Repeated*: share of
450 samples that are nearer to a training row than 5 % of the test rows; *ratio*: their median distance over that of
the test rows. Both have the validation rows beside them. `wiener` is noise of that shape under a
denoiser that begins as the best one of Gaussian data. *Gaussian* is a normal density with the training rows'
covariance, shrunk as the validation rows like it. Every shape's density is that of data under its own lowest noise,
0.01 R^1/2, of different volume for each shape: *blur*, the loss by it if the data were Gaussian, says how little that
is."""


def _unit(plan: str) -> str:
    return "bits/dim" if plan.split()[0] in LEVELS else "nats/dim"


def _in_unit(row: Row) -> Row:
    """Nats a dimension of a density in the unit of its problem: bits of a grey value, whose cell is 1/levels wide."""
    if row["problem"] not in LEVELS:
        return row
    shift = math.log2(LEVELS[row["problem"]])
    told = {name: row[name] / math.log(2) + shift for name in ("train", "test", "gaussian")}
    return row | told | {"footing": row["footing"] / math.log(2)}


def _table_best(plan: str, group: list[Row]) -> tuple[str, str]:
    control = best(select(group, shape="rho=0"))
    lines = []
    for shape in unique(group, "shape"):
        own = best(select(group, shape=shape))
        apart, gap = paired(own, control, "test"), estimate([row["test"] - row["train"] for row in own])
        steps = sorted(row["step"] for row in own)
        lines.append([
            shape, f"{own[0]['lr']:g}", f"{steps[0]} to {steps[-1]}" if steps[0] < steps[-1] else steps[0],
            f"{mean(own, 'test').mean:.3f}", "-" if shape == "rho=0" else apart.show(2), gap.show(2),
            f"{mean(own, 'memorised').mean:.3f}", f"{mean(own, 'ratio').mean:.2f}", f"{mean(own, 'footing').mean:.1e}",
        ])  # fmt: skip
    some = select(group, shape=unique(group, "shape")[0], step=group[0]["step"])
    lines.append(["validation rows", "", "", "", "", "", f"{mean(some, 'memorised_held').mean:.3f}",
                  f"{mean(some, 'ratio_held').mean:.2f}", ""])  # fmt: skip
    lines.append(["Gaussian", "", "", f"{mean(some, 'gaussian').mean:.3f}", "", "", "", "", ""])
    unit = _unit(plan)
    head = ("shape", "rate", "best step", f"test, {unit}", "less rho=0 (paired)", "gap", "repeated", "ratio", "blur")
    return f"{plan} rows, each run at its best checkpoint", table(head, lines)


def _table_steps(plan: str, group: list[Row]) -> tuple[str, str]:
    steps = sorted(unique(group, "step"))
    lines: list[list[Any]] = []
    for shape in unique(group, "shape"):
        line: list[Any] = [shape]
        for step in steps:
            own, control = select(group, shape=shape, step=step), select(group, shape="rho=0", step=step)
            value = f"{mean(own, 'test').mean:.3f}"
            told = "" if shape == "rho=0" else f" ({paired(own, control, 'test').show(2)})"
            line.append(f"{value}{told}, {mean(own, 'memorised').mean:.2f}")
        lines.append(line)
    caption = f"{plan} rows at equal steps: test {_unit(plan)} (paired difference to rho=0), share repeated"
    return caption, table(["shape", *(f"{step} steps" for step in steps)], lines)


def _counted(found: list[tuple[str, Estimate]], unit: dict[str, str]) -> str:
    """How often an interval of a difference lies below, above or about 0; each difference with its interval."""
    better, worse, undecided = ([apart.sign for _, apart in found].count(sign) for sign in (-1, 1, 0))
    told = "; ".join(f"{name}: {apart.mean:+.2g} ± {apart.half:.1g} {unit[name]}" for name, apart in found)
    counts = f"better in {better}, worse in {worse}, undecided in {undecided} of {len(found)} settings"
    return f"{counts} (difference of negative log-likelihoods, {told})"


def _verdict(found: list[tuple[str, Estimate]]) -> str:
    signs = {apart.sign for _, apart in found}
    if signs == {-1}:
        return "Yes"
    if -1 in signs:
        return "Sometimes" if 1 in signs else "In part, and nowhere worse"
    return "No: it generalises worse" if 1 in signs else "No difference seen"


def _answer(at_best: dict[str, list[tuple[str, Estimate]]], groups: dict[str, list[Row]]) -> str:
    unit = {plan: _unit(plan) for plan in groups}
    partial = at_best.get("rho=0.5", [])
    parts = [
        f"{_verdict(partial)}: at each run's best checkpoint and against isotropic noise, the held-out likelihood of"
        f" rho = 0.5 is {_counted(partial, unit)}"
    ]
    for shape, told in (("rho=1", "that of rho = 1"), *((s, f"that of `{s}`") for s in WIENER)):
        if shape in at_best:
            parts.append(f"{told} is {_counted(at_best[shape], unit)}")
    repeated = []
    for plan, group in groups.items():
        last = max(row["step"] for row in group)
        apart = paired(select(group, shape="rho=0.5", step=last), select(group, shape="rho=0", step=last), "memorised")
        repeated.append((plan, apart))
    more, fewer = ([apart.sign for _, apart in repeated].count(sign) for sign in (1, -1))
    told = "; ".join(f"{name}: {apart.mean:+.2g} ± {apart.half:.1g}" for name, apart in repeated)
    parts.append(
        f"trained to the last step, rho = 0.5 repeats training rows more often than isotropic noise in {more} and less"
        f" often in {fewer} of {len(repeated)} settings (difference of shares, {told})"
    )
    return ". ".join(part[0].upper() + part[1:] for part in parts) + "."


def _findings(groups: dict[str, list[Row]], rows: list[Row]) -> list[str]:
    out = []
    for plan, group in groups.items():
        own, told = best(select(group, shape="rho=0.5")), []
        for control in ("diagonal", "whitened", "fixed rho=0.5"):
            other = best(select(group, shape=control))
            if other:
                apart = paired(own, other, "test")
                word = {-1: "better than", 1: "worse than", 0: "not told from"}[apart.sign]
                told.append(f"{word} {control} ({apart.mean:+.2g} ± {apart.half:.1g} {_unit(plan)})")
        if told:
            out.append(f"{plan}: rho = 0.5, at its best, is {', '.join(told)}.")
    for plan, group in groups.items():
        last = max(row["step"] for row in group)
        told = []
        for shape in ("rho=0", "rho=0.5", "rho=1"):
            runs = select(group, shape=shape)
            if not runs:
                continue
            lost = paired(select(runs, step=last), best(runs), "test")
            told.append(f"{shape} {lost.mean:.2g} ± {lost.half:.1g}")
        out.append(f"{plan}: lost from the best checkpoint to step {last}, {_unit(plan)}: {', '.join(told)}.")
    for plan, group in groups.items():
        told = [(mean(best(select(group, shape=shape)), "test").mean, shape) for shape in unique(group, "shape")]
        gaussian = mean(group, "gaussian", shape=group[0]["shape"], step=group[0]["step"])
        below = [shape for value, shape in told if value < gaussian.mean]
        out.append(
            f"{plan}: {len(below)} of {len(told)} shapes are ahead of a Gaussian with the training rows' shrunk"
            f" covariance; the best is {min(told)[1]}, by {gaussian.mean - min(told)[0]:.2g} {_unit(plan)}."
        )
    for plan, group in groups.items():
        last = max(row["step"] for row in group)
        ends = [best(select(group, shape=shape)) for shape in unique(group, "shape")]
        rising = [runs[0]["shape"] for runs in ends if 2 * sum(row["step"] == last for row in runs) > len(runs)]
        if rising:
            out.append(
                f"{plan}: still best at the last step, {last}, in most seeds, so that a longer run might do"
                f" more for them: {', '.join(rising)}."
            )
    checked = [abs(row["integration"]) for row in rows if row.get("integration") is not None]
    widest = max(row["footing"] for row in rows)
    out.append(
        f"What the measure adds: twice the steps of integration move a mean by at most {max(checked):.1g} nats/dim, the"
        f" lowest noise of a shape by about {widest:.1g} (Gaussian estimate, every shape in its own way)."
    )
    return out


def _draw(groups: dict[str, list[Row]], path: Path) -> str:
    """Likelihoods, or the share repeated, of every problem while training."""
    drawn, axes = figure.panels(len(groups))
    likelihood = "likelihood" in path.name
    for axis, (plan, group) in zip(axes, groups.items(), strict=True):
        for colour, shape in enumerate(_drawn(group)):
            runs = select(group, shape=shape)
            figure.means(axis, runs, "step", "test" if likelihood else "memorised", label=shape, colour=colour)
            if likelihood:
                dotted: dict[str, Any] = {"linestyle": ":", "marker": None}
                figure.means(axis, runs, "step", "train", shaded=False, label="", colour=colour, **dotted)
        if not likelihood:
            held = mean(group, "memorised_held", shape=group[0]["shape"], step=group[0]["step"]).mean
            axis.axhline(held, color="black", linewidth=0.8)
        axis.set(title=f"{plan} rows", xlabel="training steps")
        axis.set_ylabel(_unit(plan) if likelihood else "share repeated")
        figure.ticks(axis, sorted(unique(group, "step")))
        axis.legend(fontsize=7, frameon=False)
    return figure.save(drawn, path)


def _drawn(group: list[Row]) -> list[str]:
    """Shapes that a panel can hold."""
    return [shape for shape in unique(group, "shape") if shape in MAIN]


CLAIM = Claim("generalisation", cells, run, section)

if __name__ == "__main__":
    sys.exit(main(CLAIM, __doc__))
