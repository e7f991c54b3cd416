"""Does noise shaped like the data need fewer network evaluations to sample?

    python -m experiments.evaluations

Every shape is trained on three problems (a mixture whose best denoiser is known, digits, random fields) with its own
learning rate, and sampled with 3 to 40 evaluations of three solvers of the flow, from its own start, found from the
data. On the mixture the closed-form denoiser of each shape is sampled too: there, what is lost is the solver's alone.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import ansn
from experiments.lab import figure, training
from experiments.lab.claim import Cell, Claim, Row, Section, Settings, main
from experiments.lab.exact import ExactDenoiser, known_noise
from experiments.lab.mixture import Mixture
from experiments.lab.problems import Problem, problem
from experiments.lab.statistics import WORDS, Sooner, listed, mean, paired, reached, select, sooner, table, unique
from experiments.lab.training import CONTROLS, FAMILY, TUNING_SEED, WIENER, Frame, Setup, Trained, one_copy, reference

SHAPES = (*CONTROLS, *FAMILY, *WIENER)
# Exact moments are fixed ones, and an exact denoiser has nothing to begin with.
EXACT_SHAPES = tuple(s for s in (*CONTROLS, *FAMILY) if not s.startswith("fixed"))
PROBLEMS = ("mixture", "digits", "fields")
COUNTS = (3, 4, 6, 8, 12, 20, 40)
GAUSSIAN = "gaussian_2m"  # exact where the data is Gaussian; compared with 2M on the same model
METHODS = ("dpmpp_2m", "heun", GAUSSIAN)
LANGEVIN = (100, 400)
LANGEVIN_SHAPES = ("rho=0", "rho=0.5")
STEPS, RATES = 700, (5e-4, 1e-3, 2e-3)
CONTROL = "rho=0"
WITHIN = 1.1  # of its own limit, or of its own best
FIXED = 1.25  # of the isotropic control's limit of the same seed: the fixed quality
CLOSE = 0.1  # rms from its own limit's samples, in the spread of the data where the Frechet distance is taken
EXACT_N = 3000  # samples of the closed form, which cost little
_DRAWN = ("rho=0", "rho=0.5", "rho=1", "whitened", "diagonal", *WIENER)
_DRAWN_TWICE = (CONTROL, WIENER[1])
_FEWER = {-1: "fewer", 1: "more", 0: "no difference seen"}
_DISTANCES = ("fd", "energy")
_NAMES = {"dpmpp_2m": "DPM-Solver++(2M)", "heun": "Heun", GAUSSIAN: "Gaussian 2M"}


# -- cells -------------------------------------------------------------------------------------------------------


def cells(settings: Settings) -> list[Cell]:
    """One a problem and a shape, all seeds in it."""
    if settings.quick:
        out: list[Cell] = [
            {"kind": "exact", "problem": "mixture", "shape": s, "steps": 0, "seeds": 1} for s in ("rho=0", "rho=1")
        ]
        return out + [
            {"kind": "learned", "problem": "digits", "shape": s, "steps": 40, "seeds": 2} for s in LANGEVIN_SHAPES
        ]
    out = [{"kind": "exact", "problem": "mixture", "shape": s, "steps": 0, "seeds": 5} for s in EXACT_SHAPES]
    for name in PROBLEMS:
        out += [{"kind": "learned", "problem": name, "shape": s, "steps": STEPS, "seeds": 5} for s in SHAPES]
    return out


def run(cell: Cell, settings: Settings) -> list[Row]:
    """Every seed, solver and number of evaluations of one shape."""
    learned = small(cell["problem"])
    return _exact(cell, learned) if cell["kind"] == "exact" else _learned(cell, learned)


def small(name: str) -> Problem:
    """The problem with a network of width 128, so that a budget pays for more steps."""
    found = problem(name)
    return replace(found, network=lambda **o: ansn.networks.MLP(found.shape, 128, 2, **o))


def _learned(cell: Cell, learned: Problem) -> list[Row]:
    base = Setup(cell["shape"], steps=cell["steps"])
    rate = training.nearest_rate(learned, base, RATES)
    rows = []
    for seed in range(cell["seeds"]):
        for trained in training.fit(learned, replace(base, seed=seed, lr=rate)):
            told = {"seed": seed, "lr": rate, "start": trained.model.noise.levels.start}
            rows += [{**told, **row} for row in _curve(trained, learned, seed)]
            if cell["problem"] == "digits" and cell["shape"] in LANGEVIN_SHAPES:
                rows += [{**told, **_langevin(trained, learned, seed, count)} for count in LANGEVIN]
    return rows


def _exact(cell: Cell, learned: Problem) -> list[Row]:
    density, frame = learned.density, Frame()
    assert density is not None
    shape = cell["shape"]
    if shape == "whitened":
        frame = Frame(one_copy(learned.train))
        density, shape = carried(density, frame), "rho=0"
    x = density.sample(1000, seed=5)[0].to(torch.float32)
    noise = known_noise([density], shape, x)
    model = ExactDenoiser(noise, [density])
    trained = Trained(0, 0.0, 0.0, model, frame, model)
    return [
        {"seed": seed, "lr": None, "start": noise.levels.maximum, **row}
        for seed in range(cell["seeds"])
        for row in _curve(trained, learned, seed, EXACT_N)
    ]


def carried(density: Mixture, frame: Frame) -> Mixture:
    """The mixture in the coordinates of a frame, ``u = L^-1 (x - m)``."""
    if frame.mean is None:
        return density
    inverse = torch.linalg.inv(frame.factor)
    return Mixture((density.means - frame.mean) @ inverse.T, inverse @ density.covariances @ inverse.T, density.weights)


def _curve(trained: Trained, learned: Problem, seed: int, n: int | None = None) -> list[Row]:
    """Each solver at each number of evaluations, from the same starts, against the data and against its own limit."""
    rows, n = [], n or len(learned.test)
    spread = float(np.sqrt(learned.features(reference(learned)).var(0).mean()))
    for method in METHODS:
        drawn = {count: trained.sample(n, method, count, seed=seed) for count in COUNTS}
        limit = learned.features(drawn[COUNTS[-1]])
        for count, x in drawn.items():
            away = float(np.sqrt(np.square(learned.features(x) - limit).mean())) / spread
            rows.append({"method": method, "evaluations": count, **distances(x, learned), "away": away})
    return rows


def _langevin(trained: Trained, learned: Problem, seed: int, count: int) -> Row:
    """Annealed Langevin on overlapping rungs, with as many steps each as the evaluations allow, and a denoising."""
    one = ansn.sampling.Draw(trained.model, "langevin", 1, seed=seed)
    steps = max(1, (count - 1) // len(one.taus))
    draw = ansn.sampling.Draw(trained.model, "langevin", steps, seed=seed)
    x = trained.frame.back(draw.batch(0, len(learned.test)))
    return {"method": "langevin", "evaluations": count, **distances(x, learned), "away": None}


def distances(x: Tensor, learned: Problem) -> dict[str, float]:
    """Frechet and energy distance to the training rows, each beside its floor, of as many rows of the data."""
    return {**training.distances(x, learned, _DISTANCES), **_floor(learned.name, len(x)), "n": len(x)}


@cache
def _floor(name: str, n: int) -> dict[str, float]:
    """Distances of the held-out rows, or of as many new points where the density is known and more are asked for."""
    learned = problem(name)
    x = one_copy(learned.test)
    if n > len(x):
        assert learned.density is not None
        x = learned.density.sample(n, seed=9)[0].float()
    return {f"{name}_floor": value for name, value in training.distances(x[:n], learned, _DISTANCES).items()}


# -- what the rows say -------------------------------------------------------------------------------------------


def places(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """``(kind, problem)`` in order."""
    return unique(rows, "kind", "problem")


def needed(rows: Sequence[Row], control: Sequence[Row], kind: str) -> dict[int, float]:
    """Evaluations of each seed until what ``kind`` says is reached, inf where it is not. ``own``: Frechet distance
    within 10 % of the seed's own limit, its value at the most evaluations; ``best``: of its own lowest value;
    ``fixed``: at FIXED times the control's limit of the same seed, or below; ``away``: samples within CLOSE of their
    own limit's. ``rows``, ``control``: of one problem."""
    column, out = "away" if kind == "away" else "fd", {}
    for seed in sorted(unique(rows, "seed")):
        own = sorted(select(rows, seed=seed), key=lambda row: row["evaluations"])
        values = [math.inf if row[column] is None else float(row[column]) for row in own]
        last = max(select(control, seed=seed), key=lambda row: row["evaluations"], default={column: math.nan})[column]
        goal = {"own": WITHIN * values[-1], "best": WITHIN * min(values), "fixed": FIXED * last, "away": CLOSE}[kind]
        out[seed] = reached([float(row["evaluations"]) for row in own], values, goal)
    return out


def fewer(ours: Sequence[Row], theirs: Sequence[Row], control: Sequence[Row], kind: str) -> Sooner | None:
    """How many times fewer evaluations are needed; kinds and ``control`` of :func:`needed`."""
    tried = unique([*ours, *theirs], "evaluations")
    return sooner(needed(ours, control, kind), needed(theirs, control, kind), min(tried), max(tried))


def compared(rows: Sequence[Row], shape: str, kind: str) -> Sooner | None:
    """The same of a shape against isotropic noise, in rows of one problem and solver."""
    control = select(rows, shape=CONTROL)
    return fewer(select(rows, shape=shape), control, control, kind)


def sign(found: Sooner | None) -> int:
    """-1 fewer evaluations, 1 more, 0 no difference seen."""
    return 0 if found is None else -found.log.sign


def show(found: Sooner | None) -> str:
    return "neither is there" if found is None else found.show()


def counts(rows: Sequence[Row], kind: str, of: Sequence[str], method: str, exact: bool) -> tuple[int, int, int]:
    """Pairs of a problem and a shape of ``of`` that need fewer, more, no different numbers of evaluations."""
    signs = []
    for place, name in places(rows):
        if (place == "exact") != exact:
            continue
        own = select(rows, kind=place, problem=name, method=method)
        signs += [sign(compared(own, shape, kind)) for shape in of if select(own, shape=shape)]
    return signs.count(-1), signs.count(1), signs.count(0)


def answer(rows: Sequence[Row]) -> str:
    """Chosen by the paired intervals of DPM-Solver++(2M), learned."""
    parts = []
    for kind in ("own", "fixed"):
        less, more, level = counts(rows, kind, FAMILY, "dpmpp_2m", False)
        total = less + more + level
        if not total:
            return "No learned rows."
        if less == total:
            head = f"fewer evaluations in all {total}"
        elif less == 0:
            head = f"in none of {total} fewer evaluations (more in {more}, no difference seen in {level})"
        else:
            head = f"fewer evaluations in {less} of {total}, more in {more}, no difference seen in {level}"
        goal = "within 10 % of its own limit" if kind == "own" else f"to {FIXED:g} times isotropic noise's limit"
        parts.append(f"{goal}: {head}")
    # The last counts, by the fixed quality: a curve is near its own limit the sooner the worse that limit is.
    if less == more == 0:
        verdict = "No difference seen"
    else:
        verdict = "Yes" if less == total else "No" if less == 0 else "Sometimes" if 2 * less < total else "Mostly"
    exact = counts(rows, "fixed", FAMILY, "dpmpp_2m", True)
    if sum(exact):
        parts.append(
            f"with the exact score of the mixture, to {FIXED:g} times isotropic noise's limit: fewer in {exact[0]}"
            f" of {sum(exact)} shapes, more in {exact[1]}{_best(rows)}"
        )
    less, more, level = counts(rows, "fixed", WIENER, "dpmpp_2m", False)
    if less + more + level:
        parts.append(
            "under a denoiser that begins as the best one of Gaussian data (`wiener`, isotropic or rho = 0.5), against"
            f" isotropic noise without, to {FIXED:g} times its limit: fewer in {less} of {less + more + level}, more in"
            f" {more}"
        )
    parts += _solver_answer(rows)
    head = "adapted noise against isotropic noise, pairs of a problem and a rho, DPM-Solver++(2M)"
    return f"{verdict}: {head}: {'; '.join(parts)}."


def _best(rows: Sequence[Row]) -> str:
    """The ratio of rho = 1 and of whitened data, exact score, to the fixed quality."""
    own = select(rows, kind="exact", method="dpmpp_2m")
    found = [(s, compared(own, s, "fixed")) for s in ("rho=1", "whitened") if select(own, shape=s)]
    told = [f"{s} {e.show()} times fewer" for s, e in found if e is not None]
    return f" ({', '.join(told)})" if told else ""


def section(rows: list[Row], folder: Path) -> Section:
    """Tables of needed evaluations, curves, and a sentence for each problem."""
    flows = [row for row in rows if row["method"] in METHODS]
    goals = {
        "own": "Frechet distance within 10 % of the shape's own limit",
        "best": "Frechet distance within 10 % of the shape's own lowest",
        "fixed": f"Frechet distance at {FIXED:g} times the isotropic control's limit of the seed or below",
        "away": f"samples within {CLOSE:g} of the data's spread (rms) of their own limit's",
    }
    tables = [
        _by_place(
            flows, partial(_needed, flows, method, kind),
            f"{_NAMES[method]}, evaluations until {goal}; times fewer than the isotropic control",
        )
        for method in METHODS if method != GAUSSIAN for kind, goal in goals.items()
    ]  # fmt: skip
    tables += _solver_table(flows)
    tables += [_values_table(flows, *place) for place in places(flows)]
    tables += _langevin_table(rows)
    figures = [_curves(flows, folder, "fd"), _curves(flows, folder, "energy"), _curves(flows, folder, "away")]
    return Section(
        "Does noise shaped like the data need fewer evaluations?", answer(rows), _DESIGN, tables, figures, _told(rows),
        "Longer training: a shape's limit is what its network has learned, and a curve flattens the earlier the worse"
        " its limit is; so the fixed quality is the fairer question. Another schedule or start for a shape; networks"
        " for which the cost of an evaluation is not the cost of sampling.",
    )  # fmt: skip


_DESIGN = f"""Problems as in the claim on convergence, residual MLP 128 x 2, {STEPS} steps, batch 128; learning rate
of each shape from {", ".join(f"{rate:g}" for rate in RATES)} by Frechet distance under seed {TUNING_SEED} at half of
the steps. As many samples as held-out rows (`exact`: {EXACT_N}), from the same starts at every number of evaluations;
solvers take at most so many (Heun an odd number), levels of `few_steps` from the start that the data gives each shape
(KL 0.003). Limit: 40 evaluations of the same solver from the same starts. `exact`: the mixture's closed-form denoiser
under each shape. Where all are there at the fewest, no difference can be seen. Evaluations between two numbers are
interpolated in the logarithm. Times fewer: geometric means over seeds of the isotropic control's over ours, 95 %;
above 1 is fewer; a run that is there at the fewest evaluations, or never, bounds the ratio. A frozen global shape is
isotropic noise in whitened coordinates with another view for the network, so `whitened` is the control for rho = 1.
The flow starts from a Gaussian with the data's mean and covariance under every shape, isotropic noise's too;
`diagonal` knows no correlations and starts higher. `wiener` is noise of that shape under a denoiser that begins as the
best one of Gaussian data. Gaussian 2M integrates the flow of Gaussian data of the learned covariance exactly and only
the rest by two steps, and its last step goes to tau = 0 by the same rule, where the others end with a denoising."""


def _mean_needed(at: dict[int, float]) -> str:
    """Evaluations that the seeds need, their mean."""
    mean = sum(at.values()) / len(at)
    return "not reached" if math.isinf(mean) else f"{mean:.1f}" if mean > COUNTS[0] else f"at most {COUNTS[0]}"


def _by_place(rows: Sequence[Row], cell: Callable[[str, str, str], str], told: str) -> tuple[str, str]:
    """A line for each shape, a column for each place: ``cell(kind, problem, shape)``."""
    columns = places(rows)
    lines = [[shape, *(cell(*place, shape) for place in columns)] for shape in unique(rows, "shape")]
    return told, table(["shape", *(f"{name}, {kind}" for kind, name in columns)], lines)


def _needed(rows: Sequence[Row], method: str, goal: str, kind: str, name: str, shape: str) -> str:
    own = select(rows, kind=kind, problem=name, method=method)
    mine = select(own, shape=shape)
    if not mine:
        return "-"
    told = _mean_needed(needed(mine, select(own, shape=CONTROL), goal))
    return told if shape == CONTROL else f"{told}; {show(compared(own, shape, goal))}"


def solvers(rows: Sequence[Row], place: str, name: str, shape: str) -> tuple[dict[int, float], Sooner] | None:
    """Evaluations that Gaussian 2M needs, and how many times fewer than 2M, on the same model of a problem: both to
    FIXED times 2M's limit of the seed. None where one was not run, or neither is there."""
    ours, theirs = (select(rows, kind=place, problem=name, shape=shape, method=m) for m in (GAUSSIAN, "dpmpp_2m"))
    if not ours or not theirs:
        return None
    found = fewer(ours, theirs, theirs, "fixed")
    return None if found is None else (needed(ours, theirs, "fixed"), found)


def _solver_table(rows: Sequence[Row]) -> list[tuple[str, str]]:
    def cell(kind: str, name: str, shape: str) -> str:
        found = solvers(rows, kind, name, shape)
        return "-" if found is None else f"{_mean_needed(found[0])}; {found[1].show()}"

    told = (
        f"Gaussian 2M, evaluations until Frechet distance at {FIXED:g} times the limit of DPM-Solver++(2M) on the same"
        " model or below; times fewer than DPM-Solver++(2M)"
    )
    return [_by_place(rows, cell, told)] if select(rows, method=GAUSSIAN) else []


def _solver_answer(rows: Sequence[Row]) -> list[str]:
    """By problem: over shapes, how often Gaussian 2M needs fewer and more evaluations than 2M."""
    parts = []
    for place, name in places(select(rows, method=GAUSSIAN)):
        signs = [sign(found[1]) for s in unique(rows, "shape") if (found := solvers(rows, place, name, s)) is not None]
        parts.append(f"{name}, {place} score: fewer under {signs.count(-1)} of {len(signs)} shapes, more under"
                     f" {signs.count(1)}")  # fmt: skip
    if not parts:
        return []
    return [
        "the solver about the Gaussian flow against DPM-Solver++(2M) on the same model, to"
        f" {FIXED:g} times the latter's limit: {'; '.join(parts)}"
    ]


def _values_table(rows: Sequence[Row], place: str, name: str) -> tuple[str, str]:
    own, lines = select(rows, kind=place, problem=name), []
    for method, shape in itertools.product(METHODS, unique(own, "shape")):
        mine = select(own, shape=shape, method=method)
        if not mine:
            continue
        control = select(own, shape=CONTROL, method=method, evaluations=COUNTS[-1])
        at = {count: select(mine, evaluations=count) for count in COUNTS}
        lines.append([
            _NAMES[method], shape, f"{mine[0]['start']:.2g}",
            *(mean(found, "fd").show(3) if found else "-" for found in at.values()),
            "" if shape == CONTROL else paired(at[COUNTS[-1]], control, "fd").show(2),
            mean(at[COUNTS[-1]], "energy").show(2),
        ])  # fmt: skip
    told = (
        f"{name}, {place}: Frechet distance (floor {own[0]['fd_floor']:.3g}), mean over"
        f" {len(unique(own, 'seed'))} seeds; paired difference to the control and"
        f" energy distance (floor {own[0]['energy_floor']:.2g}) at {COUNTS[-1]}"
    )
    head = ["solver", "shape", "start", *(str(count) for count in COUNTS), "difference", "energy"]
    return told, table(head, lines)


def _langevin_table(rows: Sequence[Row]) -> list[tuple[str, str]]:
    own = select(rows, method="langevin")
    if not own:
        return []
    flow = select(rows, kind="learned", problem="digits", method="dpmpp_2m")
    shown = [(own, n) for n in LANGEVIN] + [(flow, n) for n in COUNTS[2:5]]
    lines = [
        [shape, *(mean(some, "fd", shape=shape, evaluations=n).show() for some, n in shown)]
        for shape in unique(own, "shape")
    ]
    head = ["shape", *(f"Langevin {n}" for n in LANGEVIN), *(f"DPM-Solver++(2M) {n}" for n in COUNTS[2:5])]
    return [("digits: Frechet distance of annealed Langevin beside the flow's", table(head, lines))]


def _curves(rows: Sequence[Row], folder: Path, column: str) -> tuple[str, str]:
    found = places(rows)
    drawn, axes = figure.panels(len(found), columns=2 if len(found) > 3 else 3)
    names = {"fd": "Frechet distance", "energy": "energy distance", "away": "rms from own limit / spread"}
    for axis, (place, name) in zip(axes, found, strict=True):
        here = select(rows, kind=place, problem=name)
        lines = [(colour, s, "dpmpp_2m") for colour, s in enumerate(_DRAWN)]
        lines += [(colour, s, GAUSSIAN) for colour, s in enumerate(_DRAWN) if s in _DRAWN_TWICE]
        for colour, shape, method in lines:
            mine = [
                row for row in select(here, shape=shape, method=method)
                if row["evaluations"] in COUNTS and (column != "away" or row["evaluations"] < COUNTS[-1])
            ]  # fmt: skip
            if mine:
                label, style = (shape, "-") if method == "dpmpp_2m" else (f"{shape}, Gaussian 2M", "--")
                figure.means(axis, mine, "evaluations", column, label=label, colour=colour, linestyle=style)
        if column != "away":
            axis.axhline(here[0][f"{column}_floor"], color="black", linestyle=":", linewidth=1)
        axis.set_yscale("symlog", linthresh=1e-3) if column == "energy" else axis.set_yscale("log")
        figure.ticks(axis, COUNTS)
        axis.set_title(f"{name}, {place} score", fontsize=10)
        axis.set_xlabel("network evaluations")
    axes[0].set_ylabel(names[column])
    fullest = max(axes, key=lambda axis: len(axis.get_legend_handles_labels()[1]))
    fullest.legend(fontsize=6)
    told = f"DPM-Solver++(2M), and Gaussian 2M dashed: {names[column]} against evaluations, bands 95 %, dotted: floor"
    return told, figure.save(drawn, folder / f"evaluations_{column}.png")


def _told(rows: Sequence[Row]) -> list[str]:
    out = []
    for place, name in places([row for row in rows if row["method"] in METHODS]):
        own = select(rows, kind=place, problem=name, method="dpmpp_2m")
        for kind, what in (
            ("own", "within 10 % of its own limit"), ("best", "within 10 % of its own lowest"),
            ("fixed", f"to {FIXED:g} times the control's limit"), ("away", f"samples within {CLOSE:g} of their limit"),
        ):  # fmt: skip
            found = {s: compared(own, s, kind) for s in unique(own, "shape") if s != CONTROL}
            named = [(sign(each), f"{s} ({show(each)})" if sign(each) else s) for s, each in found.items()]
            line = listed(named, _FEWER)
            out.append(f"{name}, {place} score, {what}, evaluations against isotropic noise: {line}")
    own = select(rows, kind="learned", method="dpmpp_2m")
    for shape in ("rho=1", "rho=0.5"):
        if select(own, shape=shape) and select(own, shape="whitened"):
            gaps = []
            for name in unique(own, "problem"):
                mine = select(own, problem=name, evaluations=COUNTS[-1])
                gap = paired(select(mine, shape=shape), select(mine, shape="whitened"), "fd")
                gaps.append(f"{name} {gap.show(2)}")
            shown = ", ".join(gaps)
            out.append(f"{shape} less isotropic noise on whitened data, Frechet distance at the limit: {shown}")
    for shape in unique(select(rows, method="langevin"), "shape"):
        flow = select(rows, kind="learned", problem="digits", shape=shape, method="dpmpp_2m", evaluations=12)
        langevin = select(rows, method="langevin", shape=shape, evaluations=LANGEVIN[-1])
        gap = paired(langevin, flow, "fd")
        out.append(
            f"digits, {shape}: {LANGEVIN[-1]} evaluations of annealed Langevin less 12 of the flow, Frechet distance"
            f" {gap.show(2)} ({WORDS[gap.sign]})"
        )
    return out


CLAIM = Claim("evaluations", cells, run, section)

if __name__ == "__main__":
    sys.exit(main(CLAIM, __doc__))
