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
from functools import partial
from pathlib import Path

from experiments.lab import figure
from experiments.lab.claim import Cell, Claim, Row, Section, Settings, main, mnist
from experiments.lab.problems import problem
from experiments.lab.statistics import Estimate, by_seed, estimate, log_ratio, paired, ratio, reached, select, table
from experiments.lab.training import CONTROLS, FAMILY, SPECTRAL, Setup, distance, excess_loss, fit, floors, judge, tuned

SHAPES = (*CONTROLS, *FAMILY, *SPECTRAL)
RATES = (5e-4, 1e-3, 2e-3, 4e-3)
TUNING_SEED = 1000
CONTROL = "rho=0"

METRICS = {
    "fd": "Frechet distance",
    "energy": "energy distance",
    "nll": "held-out negative log-likelihood, nats a dimension",
}
STEPS = {
    "mixture": (100, 200, 400, 800),
    "digits": (100, 200, 400, 800),
    "mnist": (100, 200, 400),
    "table": (50, 100, 200, 400),
    "fields": (50, 100, 200, 400),
}
# A step of the U-Net costs as much as three of the others: the shapes that the question is about.
_MNIST_SHAPES = ("rho=0", "diagonal", "whitened", "rho=0.2", "rho=0.5", "rho=1")
_DRAWN = ("rho=0", "rho=0.2", "rho=0.5", "rho=1", "whitened", "diagonal", "gamma=0.5")


def cells(settings: Settings) -> list[Cell]:
    """One a problem and shape: its learning rate, then all seeds."""
    if settings.quick:
        return [{"problem": "mixture", "shape": shape, "steps": 40, "seeds": 2} for shape in ("rho=0", "rho=0.5")]
    root = mnist(settings)
    out: list[Cell] = []
    for name, at in STEPS.items():
        if name == "mnist" and root is None:
            continue
        shapes = _MNIST_SHAPES if name == "mnist" else SHAPES
        out += [{"problem": name, "shape": s, "steps": at[-1], "seeds": 5} for s in shapes]
    return out


def run(cell: Cell, settings: Settings) -> list[Row]:
    """Quality of one shape on one problem at every step, for every seed."""
    learned = problem(cell["problem"], settings.data)
    at = tuple(step for step in STEPS[cell["problem"]] if step <= cell["steps"]) or (cell["steps"],)
    base = Setup(cell["shape"], steps=at[-1])
    trial = Setup(cell["shape"], seed=TUNING_SEED, steps=max(1, at[-1] // 2))
    rate = tuned(learned, trial, RATES, partial(distance, problem=learned, seed=TUNING_SEED))
    floor, rows = floors(learned), []
    for seed in range(cell["seeds"]):
        for trained in fit(learned, Setup(base.shape, seed, base.steps, rate), at):
            found = judge(trained, learned, seed)
            if learned.density is not None:
                found["excess"] = excess_loss(trained, learned)
            rows.append({
                "seed": seed, "step": trained.step, **found, **floor, "loss": trained.loss,
                "seconds": round(trained.seconds, 3), "lr": rate, "start": trained.model.noise.levels.start,
                "n": len(learned.test), "features": learned.features.name, "d": learned.dim,
            })  # fmt: skip
    return rows


# -- what the rows say -------------------------------------------------------------------------------------------


def crossings(rows: Sequence[Row], metric: str, target: float, at: str = "step") -> dict[int, float]:
    """Step (or second) of each seed at which the metric comes down to the target; inf where it does not."""
    out = {}
    for seed in sorted({row["seed"] for row in rows}):
        own = sorted(select(rows, seed=seed), key=lambda row: row["step"])
        values = [math.inf if row[metric] is None else float(row[metric]) for row in own]
        out[seed] = reached([float(row[at]) for row in own], values, target)
    return out


def speedup(rows: Sequence[Row], name: str, shape: str, metric: str, at: str = "step") -> str:
    """How many times fewer steps (seconds) than the control a shape needs for what the control has, in the mean, at its
    last step but one: geometric mean of the seeds' ratios with its interval."""
    found = gain(rows, name, shape, metric, at)
    return found if isinstance(found, str) else ratio(found)


def gain(rows: Sequence[Row], name: str, shape: str, metric: str, at: str = "step") -> Estimate | str:
    """:func:`speedup` as an estimate of its logarithm, or a sentence where it cannot be."""
    ours, theirs = (select(rows, problem=name, shape=s) for s in (shape, CONTROL))
    target = target_of(rows, name, metric)
    if not ours:
        return "-"
    a, b = crossings(ours, metric, target, at), crossings(theirs, metric, target, at)
    both = [seed for seed in a if seed in b and math.isfinite(b[seed])]
    if not both:
        return "-"
    short = sum(not math.isfinite(a[seed]) for seed in both)
    if short:
        return f"not reached by {short} of {len(both)}"
    return estimate([log_ratio(b[seed], a[seed]) for seed in both])


def target_of(rows: Sequence[Row], name: str, metric: str) -> float:
    """The control's mean at its last step but one."""
    theirs = select(rows, problem=name, shape=CONTROL)
    steps = sorted({row["step"] for row in theirs})
    step = steps[-2] if len(steps) > 1 else steps[-1]
    return estimate(list(by_seed(select(theirs, step=step), metric).values())).mean


def last(rows: Sequence[Row], name: str, shape: str) -> list[Row]:
    """The rows of the last step."""
    own = select(rows, problem=name, shape=shape)
    return select(own, step=max((row["step"] for row in own), default=0))


def verdicts(rows: Sequence[Row], shape: str, metric: str, late: bool) -> dict[str, list[str]]:
    """Problems by what the intervals say of a shape against the control: better, worse, or no difference seen."""
    out: dict[str, list[str]] = {"better": [], "worse": [], "level": []}
    for name in problems(rows):
        if late:
            difference = paired(last(rows, name, shape), last(rows, name, CONTROL), metric)
            sign, told = -difference.sign, name
        else:
            found = gain(rows, name, shape, metric)
            if isinstance(found, str):
                sign, told = -1, f"{name} ({found})"
            else:
                reach = "" if math.isinf(found.half) else f", {math.exp(found.low):.1f} to {math.exp(found.high):.1f}"
                sign, told = found.sign, f"{name} ({math.exp(found.mean):.1f} times{reach})"
        out["better" if sign > 0 else "worse" if sign < 0 else "level"].append(told)
    return out


def problems(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["problem"] for row in rows))


def shapes(rows: Sequence[Row], name: str) -> list[str]:
    return list(dict.fromkeys(row["shape"] for row in select(rows, problem=name)))


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


def section(rows: list[Row], folder: Path) -> Section:
    """Tables of speed and of the end, curves, and a sentence for each shape that the question is about."""
    tables = []
    for metric, label in METRICS.items():
        lines = []
        for shape in dict.fromkeys(row["shape"] for row in rows):
            if shape == CONTROL:
                continue
            lines.append([shape, *(speedup(rows, name, shape, metric) for name in problems(rows))])
        targets = [f"{name}, target {target_of(rows, name, metric):.3g}" for name in problems(rows)]
        tables.append((
            f"{label[0].upper()}{label[1:]}: times fewer steps than the isotropic control to its mean at its last step"
            " but one (geometric mean over seeds, 95 % interval; above 1 is faster)",
            table(["shape", *targets], lines),
        ))  # fmt: skip
    tables.append(("The same in processor seconds of training, the covariance's included, Frechet distance", table(
        ["shape", *problems(rows)],
        [[shape, *(speedup(rows, name, shape, "fd", "seconds") for name in problems(rows))]
         for shape in dict.fromkeys(row["shape"] for row in rows) if shape != CONTROL],
    )))  # fmt: skip
    for name in problems(rows):
        tables.append(_end(rows, name))
    drawn = [_curves(rows, folder, metric) for metric in ("fd", "nll")] + [_curves(rows, folder, "fd", "seconds")]
    answers = [sentence(rows, shape) for shape in ("rho=0.5",) if shape in shapes(rows, problems(rows)[0])]
    told = [sentence(rows, s, m) for s in ("rho=0.2", "rho=1", "whitened", "diagonal", "gamma=0.5") for m in ("fd",)
            if s in shapes(rows, problems(rows)[0])]  # fmt: skip
    told += [sentence(rows, "rho=0.5", "nll"), *_online(rows)]
    return Section(
        "Does noise shaped like the data train faster?",
        f"{answers[0] if answers else 'no rows'}.",
        _DESIGN,
        tables,
        drawn,
        [f"{line}." for line in told],
        "Other networks (a convolution sees the data's shape in another way than a perceptron), longer training, more"
        " data, problems whose small directions do not matter to whoever looks at the samples. The Frechet distance of"
        " the mixture, the table and the fields is taken in whitened coordinates, where every direction counts alike"
        " and noise that does not reach a small direction is punished; the energy distance in bare coordinates hardly"
        " sees those directions.",
    )


_DESIGN = f"""Mixture: five Gaussians in 16 dimensions of one covariance, condition number 1000. Digits: 8x8,
1347 images. MNIST: means of 2x2 pixels, 60,000 images. Table: scikit-learn's breast cancer measurements, 30 columns,
logarithms. Fields: a line of 64 points, spectrum k^-3, `g + 0.4 (g^2 - 1)`. Images are dequantised. Network: residual
MLP 256 x 2 (mixture and table 128 x 2), on MNIST a U-Net of width 16 that works at half resolution inside; Adam, batch
128, EMA 0.995, gradient clipped at 1; learning rate of each shape from {", ".join(f"{rate:g}" for rate in RATES)} by
Frechet distance under seed {TUNING_SEED} at half of the steps. Samples: DPM-Solver++(2M), 12 evaluations, as many as
there are held-out rows (MNIST 1000), start of the flow chosen from the data for each shape. Frechet distance in the
hidden layer of a classifier (digits, MNIST) or in whitened coordinates (others), against the training rows; energy
distance in bare coordinates; likelihood by the probability flow (Heun, two probes). `fixed` takes the covariance from
all the data beforehand, all others learn it while training; `diagonal` is rho = 0.5 of the pixels' variances;
`whitened` is isotropic noise on whitened data."""


def _end(rows: Sequence[Row], name: str) -> tuple[str, str]:
    """One problem at its last step: every metric, and its paired difference to the control's."""
    metrics = {**METRICS, **({"excess": "excess loss"} if select(rows, problem=name)[0].get("excess") else {})}
    floor = select(rows, problem=name)[0]
    lines = []
    for shape in shapes(rows, name):
        own, theirs = last(rows, name, shape), last(rows, name, CONTROL)
        line = [shape, f"{own[0]['lr']:g}", f"{own[0]['start']:.3g}"]
        for metric in metrics:
            line.append(estimate(list(by_seed(own, metric).values())).show())
            line.append("" if shape == CONTROL else paired(own, theirs, metric).show(2))
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
            steps = sorted({row["step"] for row in own})
            found = [estimate(list(by_seed(select(own, step=step), metric).values())) for step in steps]
            x = [estimate(list(by_seed(select(own, step=step), at).values())).mean for step in steps]
            halves = [0.0 if math.isinf(e.half) else e.half for e in found]
            figure.curve(axis, x, [e.mean for e in found], halves, label=shape, colour=colour)
        if metric == "fd":
            axis.axhline(select(rows, problem=name)[0]["fd_floor"], color="black", linestyle=":", linewidth=1)
            axis.set_yscale("log")
        axis.set_xscale("log")
        axis.set_title(name, fontsize=10)
        axis.set_xlabel("training steps" if at == "step" else "processor seconds of training")
    axes[0].legend(fontsize=7)
    axes[0].set_ylabel(METRICS[metric].split(",")[0])
    told = f"{METRICS[metric]} against {'steps' if at == 'step' else 'seconds'} of training, bands 95 %"
    return told, figure.save(figure_, folder / f"convergence_{metric}_{at}.png")


def _online(rows: Sequence[Row]) -> list[str]:
    """Whether learning the covariance while training costs anything against having it from the start."""
    out = []
    for name in problems(rows):
        online, fixed = (last(rows, name, s) for s in ("rho=0.5", "fixed rho=0.5"))
        if online and fixed:
            found = paired(online, fixed, "fd")
            word = {0: "no difference seen", 1: "worse", -1: "better"}[found.sign]
            out.append(f"{name}: rho=0.5 learned online less fixed from the start, Frechet {found.show(2)} ({word})")
    return out


CLAIM = Claim("convergence", cells, run, section)

if __name__ == "__main__":
    sys.exit(main(CLAIM, __doc__))
