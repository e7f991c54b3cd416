"""How soon, and how good: what should a denoiser begin as, and should the noise have the data's shape?

    python -m experiments.quality --data PATH

The control is the scalar skip (EDM's preconditioning) under isotropic noise. Against it: the Wiener skip (the best
denoiser of one Gaussian, its structure chosen by the data), the mixture skip (of regions found in the data), and noise
of half the data's shape (rho = 0.5) under the first two. Every arm has a learning rate of its own for each metric.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from ansn.evaluation.neighbours import memorisation, nearest
from experiments.lab import figure, statistics, training
from experiments.lab.claim import Cell, Claim, Row, Section, Settings, main
from experiments.lab.problems import Problem, has, problem
from experiments.lab.statistics import Estimate, Sooner, crossings, mean, paired, select, sooner, table, unique
from experiments.lab.training import TUNING_SEED, Setup, Trained, fit, halfway, one_copy, tuned_for

CONTROL, RATES = "scalar", (1e-3, 3e-3)
ARMS = ("scalar", "wiener", "wiener seen", "mixture seen")
VECTORS, IMAGES = ARMS[:2] + ARMS[3:], ARMS[:1] + ARMS[2:]
SHAPED = ("scalar rho=0.5", "wiener rho=0.5")  # their loss is of other noise
METRICS = {"fd": "Frechet distance", "loss": "held-out weighted loss",
           "nll": "held-out negative log-likelihood, nats a dimension"}  # fmt: skip
QUANTILE = 0.05  # of the held-out rows' distances: what counts as a repetition


class Plan(NamedTuple):
    """``steps``: training steps by the number of training rows (None: all); arms; rows a step; the number of rows at
    which shaped noise is tried (0: nowhere); and regions."""

    steps: dict[int | None, int]
    arms: tuple[str, ...] = VECTORS
    batch: int = 128
    shaped: int | None = None
    regions: int | str = "auto"


PLANS = {
    "digits": Plan({None: 1600, 500: 800}),
    "table": Plan({None: 800}),
    "fields": Plan({None: 1600, 2000: 800, 500: 800}),
    "mnist": Plan({None: 2400, 2000: 800, 500: 800}, ARMS, 64, 2000),  # auto takes half a minute of a core
    "fashion-mnist": Plan({None: 1200, 500: 400}, IMAGES, 64, 0),
    "cifar10": Plan({None: 1600, 500: 400}, IMAGES, 64, 0, 10),  # and here several
}
SEEDS, LOOKS = 5, 5


def cells(settings: Settings) -> list[Cell]:
    """One a data set, a number of rows and an arm, all seeds in it."""
    asked = [
        (name, n, arm, steps, SEEDS)
        for name, plan in PLANS.items() if has(name, settings.data)
        for n, steps in plan.steps.items()
        for arm in ((*plan.arms, *SHAPED) if n == plan.shaped else plan.arms)
    ]  # fmt: skip
    if settings.quick:
        asked = [("table", None, arm, 20, 2) for arm in ("scalar", "wiener", "wiener rho=0.5")]
    return [dict(zip(("data", "n", "arm", "steps", "seeds"), each, strict=True)) for each in asked]


def run(cell: Cell, settings: Settings) -> list[Row]:
    learned = problem(cell["data"], settings.data, cell["n"])
    plan = PLANS[cell["data"]]
    at = tuple(max(1, cell["steps"] >> i) for i in reversed(range(LOOKS)))
    base = Setup(cell["arm"], steps=at[-1], batch_size=plan.batch, regions=plan.regions)
    keys: dict[str, Callable[[Trained], float]] = {
        "fd": partial(training.distance, problem=learned, seed=TUNING_SEED),
        "loss": partial(training.held_out_loss, problem=learned),
        "nll": partial(training.likelihood, problem=learned),
    }
    rates = tuned_for(learned, halfway(base), RATES[:1] if settings.quick else RATES, keys)
    least, out = training.floor(learned), []
    for rate in sorted(set(rates.values())):
        metrics = [name for name, value in rates.items() if value == rate]
        for seed in range(cell["seeds"]):
            for trained in fit(learned, replace(base, seed=seed, lr=rate), at):
                left = at[::-1].index(trained.step)
                found = _judged(trained, learned, metrics, seed, left)
                out.append({
                    "for": "+".join(metrics), "seed": seed, "step": trained.step, "lr": rate, **found,
                    "fd_floor": least, "seconds": round(trained.seconds, 3), "found": round(trained.found, 3),
                    "structure": trained.model.noise.covariance.structure.name,
                    "regions": getattr(trained.model.noise.mixture, "regions", None),
                })  # fmt: skip
    return out


def _judged(trained: Trained, learned: Problem, metrics: list[str], seed: int, left: int) -> Row:
    """The metrics of a run, the likelihood at the last two looks; at the last one also the share of samples that repeat
    a training row: nearer to one than a twentieth of the held-out rows are. ``left``: looks to come."""
    out: Row = dict.fromkeys((*METRICS, "repeated"))
    if "loss" in metrics:
        out["loss"] = training.held_out_loss(trained, learned)
    if "nll" in metrics and left < 2:
        out["nll"] = training.likelihood(trained, learned)
    if "fd" in metrics:
        x = trained.sample(len(learned.test), evaluations=learned.evaluations, seed=seed)
        out["fd"] = training.frechet(x, learned)
        if not left and math.isfinite(out["fd"]):
            rows, held = one_copy(learned.train.select(torch.arange(min(len(learned.train), 10_000)))), learned.test
            columns = learned.columns
            measure = memorisation(nearest(columns(one_copy(held)), columns(rows))[0][:, 0], QUANTILE)
            out["repeated"] = measure(nearest(columns(x), columns(rows))[0])[0]
    return out


def of(rows: Sequence[Row], arm: str, metric: str) -> list[Row]:
    """Rows of an arm at its rate for a metric."""
    return [r for r in select(rows, arm=arm) if metric in r["for"].split("+") and r[metric] is not None]


def best(rows: Sequence[Row], arm: str, metric: str = "fd") -> list[Row]:
    """Rows of an arm at its rate for a metric, of the step with the lowest mean: every arm may stop early."""
    own = of(rows, arm, metric)
    at = unique(own, "step")
    return select(own, step=min(at, key=lambda step: mean(select(own, step=step), metric).mean)) if at else []


def gain(rows: Sequence[Row], arm: str, metric: str, at: str = "step") -> Sooner | None:
    """How many times fewer steps (seconds, on one processor) than the control an arm needs to its lowest mean."""
    ours, theirs = of(rows, arm, metric), best(rows, CONTROL, metric)
    if not ours or not theirs or (at == "seconds" and len({row.get("cpu") for row in (*ours, *theirs)}) > 1):
        return None
    searched = mean(theirs, "found").mean if at == "seconds" else 0.0  # for what the control does not need
    target, stop = mean(theirs, metric).mean, mean(theirs, at).mean - searched
    reached = crossings(ours, metric, target, at)
    looked = [row[at] for row in ours]
    return sooner(reached, dict.fromkeys(reached, stop), min(looked), max(stop, *looked))


def apart(rows: Sequence[Row], arm: str, metric: str, control: str = CONTROL) -> Estimate | None:
    """Paired difference, each arm at its best step; below 0 is better."""
    ours, theirs = (best(rows, name, metric) for name in (arm, control))
    return paired(ours, theirs, metric) if ours and theirs else None


def groups(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """Name, and rows, of each data set and number of rows."""
    return [(f"{name}, {n or 'all'}", select(rows, data=name, n=n)) for name, n in unique(rows, "data", "n")]


def section(rows: list[Row], folder: Path) -> Section:
    measured = set(unique(rows, "data", "n", "arm"))
    lacking = [name for name, plan in PLANS.items() if {(name, n, a) for n in plan.steps for a in plan.arms} - measured]
    return Section(
        "How soon and how good is a denoiser that begins with what the covariance says?",
        _answer(rows), _DESIGN, [_table(rows)], [_figure(rows, folder)], _findings(rows),
        reading="A row a seed and step; `for`: the metrics that its rate `lr` is best for, the only ones given; `n`"
        " empty: all rows; `found`: of the seconds those of the search for structure and regions.",
        missing=", ".join(lacking),
    )  # fmt: skip


_DESIGN = f"""Networks: residual MLP (digits, table, fields), small U-Net (images). Distances: in a classifier's
features, of table and fields in whitened coordinates. Adam at a constant rate, averaged weights, so every step is a
place to stop; rates {" and ".join(f"{rate:g}" for rate in RATES)} are tried for half of the steps under a seed that no
result uses, by the reported rows, as is each arm's best step, for all arms alike. {SEEDS} seeds. Shaped noise: with all
rows, on MNIST with 2,000, on Fashion-MNIST and CIFAR-10 not. A loss is compared under isotropic noise only, a
likelihood at the last two looks; seconds hold the search for regions, as many as the data asks for, on CIFAR-10 ten."""


def _table(rows: Sequence[Row]) -> tuple[str, str]:
    """One line a data set and number of rows."""
    arms = (*ARMS[1:], *SHAPED)
    lines = [[name, f"{own[0]['fd_floor']:.2g}", f"{mean(best(own, CONTROL), 'fd').mean:.3g}",
              *(_entry(own, arm) for arm in arms)] for name, own in groups(rows)]  # fmt: skip
    told = ("Frechet distance; how many times fewer steps, and less time (-: of another processor), to the control's"
            " best distance; nll less the control's. **Better than the control**; *worse*")  # fmt: skip
    return told, table(["data, rows", "floor", CONTROL, *arms], lines)


def _entry(own: Sequence[Row], arm: str) -> str:
    if not select(own, arm=arm):
        return ""
    nll, nearer, ours = apart(own, arm, "nll"), apart(own, arm, "fd"), best(own, arm)
    found = [gain(own, arm, "fd", at) for at in ("step", "seconds")]
    times = ["-" if e is None else e.brief() for e in found]
    distance = statistics.marked(f"{mean(ours, 'fd').mean:.3g}", nearer) if ours else "-"
    return "; ".join([distance, *times, "-" if nll is None else statistics.marked(nll.show(2), nll)])


def _findings(rows: Sequence[Row]) -> list[str]:
    out = []
    for metric in ("fd", "nll"):
        found = {name: apart(own, SHAPED[1], metric, "wiener") for name, own in groups(rows)}
        signs = [(e.sign, f"{name} ({e.show(2)})") for name, e in found.items() if e is not None]
        if signs:
            out.append(f"`{SHAPED[1]}` against `wiener`, {METRICS[metric]}: {statistics.listed(signs)}.")
    falling = []
    for name, theirs in ((name, of(own, CONTROL, "fd")) for name, own in groups(rows)):
        curve = [mean(select(theirs, step=step), "fd").mean for step in unique(theirs, "step")[-2:]]
        falling += [name] * (len(curve) == 2 and curve[1] < 0.9 * curve[0])
    out.append(f"The control's distance falls by more than a tenth at the last doubling: {'; '.join(falling) or '-'}.")
    repeated = [
        f"{name.split(',')[0]} " + ", ".join(f"`{a}` {mean(select(own, arm=a), 'repeated').mean:.2g}" for a in arms)
        for name, own in groups([r for r in rows if r.get("repeated") is not None and r["n"] == 500])
        if (arms := unique(own, "arm"))
    ]
    told = "Of 500 rows, share of samples that repeat a training row (0.05 of held-out rows do)"
    return [*out, f"{told}: {'; '.join(repeated) or '-'}."]


def _answer(rows: Sequence[Row]) -> str:
    parts = []
    for arm in reversed(ARMS[1:]):
        told = []
        for metric, words in METRICS.items():
            found = [(name, own, e.sign) for name, own in groups(rows) if (e := apart(own, arm, metric))]
            better, worse = (sum(sign == each for *_, sign in found) for each in (-1, 1))
            told.append(f"{words.split(',')[0]} in {better} and {worse} of {len(found)}")
            if metric == "fd" and found:
                name, own, _ = ([each for each in found if each[1][0]["n"] is None] or found)[-1]
                ours, theirs = (mean(best(own, each), "fd").mean for each in (arm, CONTROL))
                told[0] += f" ({name}: {ours:.3g} against {theirs:.3g})"
        parts.append(f"`{arm}` {', '.join(told)}")
    return f"Better than EDM's preconditioning, and worse: {'; '.join(parts)}."


def _figure(rows: Sequence[Row], folder: Path) -> tuple[str, str]:
    drawn, (*axes, last) = figure.panels(len(groups(rows)) + 1, columns=4, width=3.4, height=2.8)
    for axis, (name, own) in zip(axes, groups(rows), strict=True):
        for colour, arm in enumerate((*ARMS, *SHAPED)):
            mine = of(own, arm, "fd")
            if mine:
                figure.means(axis, mine, "step", "fd", label=arm, colour=colour)
        axis.axhline(own[0]["fd_floor"], color="black", linestyle=":", linewidth=1)
        figure.ticks(axis, unique(own, "step"))
        axis.set(yscale="log", title=name)
    last.axis("off")
    lines = {label: line for axis in axes for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    last.legend(lines.values(), lines, loc="center")
    return "Frechet distance over training steps (dotted: floor)", figure.save(drawn, folder / "quality.png")


CLAIM = Claim("quality", cells, run, section)

if __name__ == "__main__":
    sys.exit(main(CLAIM, __doc__))
