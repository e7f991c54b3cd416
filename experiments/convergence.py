"""Does noise shaped like the data train faster? Steps and seconds to a fixed quality, one shape against another.

    python -m experiments.convergence --data PATH

Five problems: an anisotropic Gaussian mixture whose best denoiser is known, digits, MNIST at half resolution (with
``--data``), a table of correlated columns, random fields of a power-law spectrum. Every shape has its own learning
rate, found by Frechet distance on one grid under a seed that no result uses, and its own start of the flow, found from
the data; all else is equal. The averaged weights are judged at steps a factor two apart.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from experiments.lab import figure, training
from experiments.lab.claim import Cell, Claim, Row, Section, Settings, main, mnist
from experiments.lab.problems import problem
from experiments.lab.statistics import WORDS, Sooner, by_seed, crossings, mean, paired, select, sooner, table, unique
from experiments.lab.training import CONTROLS, FAMILY, SPECTRAL, TUNING_SEED, WIENER, Setup

SHAPES = (*CONTROLS, *FAMILY, *WIENER)  # the spectral family is on MNIST, and in the ablations
RATES = (5e-4, 1e-3, 2e-3, 4e-3)
CONTROL = "rho=0"
GOAL = 1.5  # times the floor: near it, and within reach

METRICS = {
    "fd": "Frechet distance",
    "energy": "energy distance",
    "nll": "held-out negative log-likelihood, nats a dimension",
}
STEPS = {
    "mixture": (25, 50, 100, 200, 400, 800),
    "digits": (100, 200, 400, 800),
    "mnist": (100, 200, 400),
    "table": (25, 50, 100, 200, 400),
    "fields": (25, 50, 100, 200, 400),
}
_DRAWN = ("rho=0", "rho=0.5", "rho=1", "whitened", "diagonal", "gamma=0.5", *WIENER)


def cells(settings: Settings) -> list[Cell]:
    """One a problem and shape: its learning rate, then all seeds."""
    if settings.quick:
        return [{"problem": "mixture", "shape": shape, "steps": 40, "seeds": 2} for shape in ("rho=0", "rho=0.5")]
    root = mnist(settings)
    out: list[Cell] = []
    for name, at in STEPS.items():
        if name == "mnist" and root is None:
            continue
        shapes = (*SHAPES, *SPECTRAL) if name == "mnist" else SHAPES
        out += [{"problem": name, "shape": s, "steps": at[-1], "seeds": 5} for s in shapes]
    return out


def run(cell: Cell, settings: Settings) -> list[Row]:
    """Quality of one shape on one problem at every step, for every seed."""
    learned = problem(cell["problem"], settings.data)
    at = tuple(step for step in STEPS[cell["problem"]] if step <= cell["steps"]) or (cell["steps"],)
    base = Setup(cell["shape"], steps=at[-1])
    base = replace(base, lr=training.nearest_rate(learned, base, RATES))
    floor, rows = training.floors(learned), []
    s = torch.cov(training.one_copy(learned.train)[:10_000].flatten(1).double().T)
    for seed in range(cell["seeds"]):
        missing = list(at)
        for trained in training.fit(learned, replace(base, seed=seed), at):
            noise, found = trained.model.noise, training.judge(trained, learned, seed)
            missing.remove(trained.step)
            if learned.density is not None:
                found["excess"] = training.excess_loss(trained, learned)
            rows.append({
                "seed": seed, "step": trained.step, **found, **floor, "loss": trained.loss,
                "seconds": round(trained.seconds, 3), "lr": base.lr, "start": noise.levels.start,
                "n": len(learned.test), "features": learned.features.name, "d": learned.dim,
                "blur": training.blur(s, noise.levels.minimum**2 * trained.frame.shape(noise)),
            })  # fmt: skip
        # A run that diverged is as bad as can be from there on.
        rows += [rows[-1] | {"step": step} | dict.fromkeys(METRICS, math.inf) for step in missing if rows]
    return rows


# -- what the rows say -------------------------------------------------------------------------------------------


def gain(
    rows: Sequence[Row], name: str, shape: str, metric: str, at: str = "step", target: float | None = None
) -> Sooner | None:
    """How many times fewer steps (seconds) than the control a shape needs for what the control has, in the mean, at its
    last step but one, or for ``target``; None where it was not run or not one or no seed is there."""
    ours, theirs = (select(rows, problem=name, shape=s) for s in (shape, CONTROL))
    if not ours or not theirs:
        return None
    target = target_of(rows, name, metric) if target is None else target
    points = [float(row[at]) for row in (*ours, *theirs)]
    first = max(row[at] for row in (*ours, *theirs) if row["step"] == min(r["step"] for r in theirs))
    return sooner(crossings(ours, metric, target, at), crossings(theirs, metric, target, at), first, max(points))


def speedup(rows: Sequence[Row], name: str, shape: str, metric: str, at: str = "step") -> str:
    """:func:`gain` as a table shows it."""
    found = gain(rows, name, shape, metric, at)
    if found is None:
        return "not reached" if select(rows, problem=name, shape=shape) else "-"
    return found.show()


def target_of(rows: Sequence[Row], name: str, metric: str) -> float:
    """The control's mean at its last step but one."""
    theirs = select(rows, problem=name, shape=CONTROL)
    steps = sorted(unique(theirs, "step"))
    return mean(theirs, metric, step=steps[max(len(steps) - 2, 0)]).mean


def last(rows: Sequence[Row], name: str, shape: str) -> list[Row]:
    """The rows of the last step."""
    own = select(rows, problem=name, shape=shape)
    return select(own, step=max((row["step"] for row in own), default=0))


def verdicts(rows: Sequence[Row], shape: str, metric: str, late: bool) -> dict[str, list[str]]:
    """Problems by what the intervals say of a shape against the control: better, worse, or no difference seen."""
    out: dict[str, list[str]] = {"better": [], "worse": [], "level": []}
    for name in problems(rows):
        if shape not in shapes(rows, name):
            continue
        if late:
            difference = paired(last(rows, name, shape), last(rows, name, CONTROL), metric)
            sign, told = -difference.sign, name
        else:
            found = gain(rows, name, shape, metric)
            if found is None:
                sign, told = 0, f"{name} (not reached)"
            else:
                log = found.log
                reach = "" if math.isinf(log.half) else f", {math.exp(log.low):.1f} to {math.exp(log.high):.1f}"
                sign, told = log.sign, f"{name} ({found.bound}{math.exp(log.mean):.1f} times{reach})"
        out["better" if sign > 0 else "worse" if sign < 0 else "level"].append(told)
    return out


def problems(rows: Sequence[Row]) -> list[str]:
    return unique(rows, "problem")


def shapes(rows: Sequence[Row], name: str | None = None) -> list[str]:
    """In the order of the rows, of one problem or of any."""
    return unique(rows if name is None else select(rows, problem=name), "shape")


def sentence(rows: Sequence[Row], shape: str, metric: str = "fd") -> str:
    """Early and late, one shape against the control."""
    early, late = verdicts(rows, shape, metric, False), verdicts(rows, shape, metric, True)

    def told(found: dict[str, list[str]], words: dict[str, str]) -> str:
        parts = [f"{words[key]} {', '.join(names)}" for key, names in found.items() if names]
        return "; ".join(parts)

    return (
        f"{shape} against the isotropic control, {METRICS[metric]}: to the control's quality at its last step but one"
        f" {told(early, {'better': 'faster on', 'worse': 'slower on', 'level': 'no difference seen on'})};"
        f" at the last step {told(late, {'better': 'better on', 'worse': 'worse on', 'level': 'level on'})}"
    )


def pair(rows: Sequence[Row], shape: str, other: str, metric: str = "fd") -> str:
    """One shape less another at the last step, on every problem that has both."""
    parts = []
    for name in problems(rows):
        ours, theirs = last(rows, name, shape), last(rows, name, other)
        if ours and theirs:
            found = paired(ours, theirs, metric)
            parts.append(f"{name} {found.show(2)} ({WORDS[found.sign]})")
    return f"{shape} less {other}, {METRICS[metric]} at the last step: {'; '.join(parts)}" if parts else ""


def section(rows: list[Row], folder: Path) -> Section:
    """Tables of speed and of the end, curves, and a sentence for each shape that the question is about."""
    names, others = problems(rows), [shape for shape in shapes(rows) if shape != CONTROL]

    def of(metric: str, at: str = "step", some: Sequence[str] = names, head: Sequence[str] = ()) -> str:
        lines = [[shape, *(speedup(rows, name, shape, metric, at) for name in some)] for shape in others]
        return table(["shape", *(head or some)], lines)

    tables = [
        (f"{label[0].upper()}{label[1:]}: times fewer steps than the isotropic control to its mean at its last step"
         " but one (geometric mean over seeds, 95 % interval; above 1 is faster; a run that is there at the first"
         " step looked at, or never, bounds the ratio)",
         of(metric, head=[f"{name}, target {target_of(rows, name, metric):.3g}" for name in names]))
        for metric, label in METRICS.items()
    ]  # fmt: skip
    tables.append(("The same in processor seconds of training, the covariance's included where it is learned online,"
                   " Frechet distance", of("fd", "seconds")))  # fmt: skip
    known = [name for name in names if all(row.get("excess") for row in select(rows, problem=name))]
    if known:
        tables.append(("The same in steps, excess loss over the best denoiser's", of("excess", some=known)))
    floors = {name: GOAL * select(rows, problem=name)[0]["fd_floor"] for name in names}
    tables.append((
        f"To {GOAL:g} times the floor of the Frechet distance: steps of each shape, geometric mean of the seeds that"
        " get there, and how many do not",
        table(["shape", *names],
              [[s, *(_steps_to(rows, n, s, floors[n]) for n in names)] for s in [CONTROL, *others]]),
    ))  # fmt: skip
    tables += [_end(rows, name) for name in names]
    drawn = [_curves(rows, folder, metric) for metric in ("fd", "nll")] + [_curves(rows, folder, "fd", "seconds")]
    told = [sentence(rows, s) for s in ("rho=0.2", "rho=1", "whitened", "diagonal", "gamma=0.5", *WIENER)
            if s in others]  # fmt: skip
    told += [sentence(rows, "rho=0.5", "nll"), *_quick(rows)]
    told += [pair(rows, *both) for both in (
        ("rho=0.5", "fixed rho=0.5"), ("rho=1", "whitened"), ("rho=0.5", "whitened"), (WIENER[0], CONTROL),
        (WIENER[1], "rho=0.5"), (WIENER[1], WIENER[0]), ("rho=1", WIENER[0]),
    )]  # fmt: skip
    edges = sorted({
        f"{row['shape']} on {row['problem']}" for row in rows if row["lr"] in (RATES[0], RATES[-1])
    })  # fmt: skip
    if edges:
        told.append(f"Learning rates at an end of the grid, where a wider one might serve better: {', '.join(edges)}")
    return Section(
        "Does noise shaped like the data train faster?",
        f"{sentence(rows, 'rho=0.5')}.{_beginning(rows)}" if "rho=0.5" in others else "no rows.",
        _DESIGN,
        tables,
        drawn,
        [f"{line}." for line in told if line],
        "Other networks (a convolution sees the data's shape in another way than a perceptron), longer training, more"
        " data, levels of training and sampling tuned for each shape (the ablations do that), problems whose small"
        " directions do not matter to whoever looks at the samples. The Frechet distance of the mixture, the table and"
        " the fields is taken in whitened coordinates, where every direction counts alike and a small direction that is"
        " not learned shows; the energy distance in bare coordinates hardly sees those.",
    )


_DESIGN = f"""Mixture: five Gaussians in 16 dimensions of one covariance, condition number 1000. Digits: 8x8,
1347 images. MNIST: means of 2x2 pixels, 60,000 images. Table: scikit-learn's breast cancer measurements, 30 columns,
logarithms. Fields: a line of 64 points, spectrum k^-3, `g + 0.4 (g^2 - 1)`. Images are dequantised. Network: residual
MLP 256 x 2 (mixture and table 128 x 2), on MNIST a U-Net of width 16 that works at half resolution inside; Adam, batch
128, EMA 0.995, gradient clipped at 1; learning rate of each shape from {", ".join(f"{rate:g}" for rate in RATES)} by
Frechet distance under seed {TUNING_SEED} at half of the steps. Samples: DPM-Solver++(2M), 12 evaluations, 20 where the
distance is in whitened coordinates, as many as there are held-out rows (MNIST 1000), start of the flow chosen from the
data for each shape. Frechet distance in the hidden layer of a classifier (digits, MNIST) or in whitened coordinates
(others), against the training rows; energy distance in bare coordinates; likelihood by the probability flow (Heun, two
probes), of the data perturbed at tau = 0.01 by each shape's own R, which Gaussian data would pay for with `blur` nats a
dimension. `fixed` takes the covariance from all the data beforehand, all others learn it while training; `diagonal` is
rho = 0.5 of the pixels' variances; `whitened` is isotropic noise on whitened data; `wiener` is noise of that shape
under a denoiser that begins as the best one of Gaussian data, `D = m + S (S + tau^2 R)^-1 (x~ - m) + ...`, as
rho = 1 and `whitened` do: it tells what the noise's shape does from what the network is given to begin with."""


def _beginning(rows: Sequence[Row]) -> str:
    """Whether the noise's shape or what the network is given to begin with does more, by problems at the last step."""
    skip = WIENER[0]
    if skip not in shapes(rows):
        return ""
    counted = [s for s in ("rho=0.5", *WIENER) if s in shapes(rows)]
    counts = {s: {k: len(v) for k, v in verdicts(rows, s, "fd", True).items()} for s in counted}
    more = {s: c["better"] - c["worse"] for s, c in counts.items()}
    word = {1: "more than", 0: "as much as", -1: "less than"}[
        (more[skip] > more["rho=0.5"]) - (more[skip] < more["rho=0.5"])
    ]
    told = counts[skip]
    out = (
        f" What the network is given to begin with does {word} the noise's shape: isotropic noise under a denoiser that"
        f" begins as the best one of Gaussian data is at the last step better on {told['better']}, worse on"
        f" {told['worse']} and level on {told['level']} of the problems"
    )
    if both := counts.get(WIENER[1]):
        out += (
            f", noise of rho = 0.5 under it better on {both['better']}, worse on {both['worse']} and level on"
            f" {both['level']}"
        )
    return f"{out}."


def _steps_to(rows: Sequence[Row], name: str, shape: str, target: float) -> str:
    found = list(crossings(select(rows, problem=name, shape=shape), "fd", target).values())
    there = [math.log(step) for step in found if math.isfinite(step)]
    if not there:
        return "-" if not found else f"none of {len(found)}"
    short = len(found) - len(there)
    return f"{math.exp(sum(there) / len(there)):.0f}" + (f" ({short} of {len(found)} not)" if short else "")


def _quick(rows: Sequence[Row]) -> list[str]:
    """The first look's claim: isotropic noise needs about four times the steps of rho = 0.5 to come near the floor."""
    out = []
    for name in (n for n in ("digits", "mnist") if "rho=0.5" in shapes(rows, n)):
        goal = GOAL * select(rows, problem=name)[0]["fd_floor"]
        found = gain(rows, name, "rho=0.5", "fd", target=goal)
        if found is None:
            out.append(f"{name}, to {GOAL:g} times the floor: not reached, so a first look's factor of 4 is not tested")
            continue
        low, high = found.log.low, math.inf if found.bound == "at least " else found.log.high
        about = math.log(3), math.log(16 / 3)  # about four
        within = about[0] <= low and high <= about[1]
        word = "confirmed" if within else "refuted" if high < about[0] or low > about[1] else "left open"
        out.append(
            f"{name}, to {GOAL:g} times the floor: rho = 0.5 needs {found.show()} times fewer steps than isotropic"
            f" noise, so a first look's factor of 4 is {word}"
        )
    return out


def _end(rows: Sequence[Row], name: str) -> tuple[str, str]:
    """One problem at its last step: every metric, and its paired difference to the control's."""
    metrics = {**METRICS, **({"excess": "excess loss"} if select(rows, problem=name)[0].get("excess") else {})}
    floor = select(rows, problem=name)[0]
    lines = []
    for shape in shapes(rows, name):
        own, theirs = last(rows, name, shape), last(rows, name, CONTROL)
        line = [shape, f"{own[0]['lr']:g}", f"{own[0]['start']:.3g}"]
        for metric in metrics:
            line += [mean(own, metric).show(), "" if shape == CONTROL else paired(own, theirs, metric).show(2)]
        lines.append(line)
    told = (
        f"{name}, d = {floor['d']}, after {last(rows, name, CONTROL)[0]['step']} steps, n = {floor['n']}, features"
        f" {floor['features']}; mean over {len(by_seed(last(rows, name, CONTROL), 'fd'))} seeds and paired difference"
        f" to the control. Floor of as many held-out rows: Frechet {floor['fd_floor']:.3g}, energy"
        f" {floor['energy_floor']:.2g} (it may be below 0)"
    )
    head = ["shape", "rate", "tau_1", *(part for m in metrics for part in (metrics[m].split(",")[0], "difference"))]
    return told, table(head, lines)


def _curves(rows: Sequence[Row], folder: Path, metric: str, at: str = "step") -> tuple[str, str]:
    figure_, axes = figure.panels(len(problems(rows)))
    for axis, name in zip(axes, problems(rows), strict=True):
        for colour, shape in enumerate(s for s in _DRAWN if s in shapes(rows, name)):
            own = select(rows, problem=name, shape=shape)
            # A run's seconds are its own; the curve is over their mean.
            x = [mean(own, at, step=step).mean for step in sorted(unique(own, "step"))]
            figure.means(axis, own, "step", metric, x=x, label=shape, colour=colour)
        if metric == "fd":
            axis.axhline(select(rows, problem=name)[0]["fd_floor"], color="black", linestyle=":", linewidth=1)
            axis.set_yscale("log")
        axis.set_xscale("log")
        axis.minorticks_off()
        if at == "step":
            figure.ticks(axis, STEPS[name])
        axis.set_title(name, fontsize=10)
        axis.set_xlabel("training steps" if at == "step" else "processor seconds of training")
    axes[0].legend(fontsize=7)
    axes[0].set_ylabel(METRICS[metric].split(",")[0])
    told = f"{METRICS[metric]} against {'steps' if at == 'step' else 'seconds'} of training, bands 95 %"
    return told, figure.save(figure_, folder / f"convergence_{metric}_{at}.png")


CLAIM = Claim("convergence", cells, run, section)

if __name__ == "__main__":
    sys.exit(main(CLAIM, __doc__))
