"""How many network evaluations does a sample take: under which noise and skip, and by which sampler?

    python -m experiments.evaluations

Arms are trained on three problems, each at its own learning rate, and sampled with 3 to 40 evaluations of three solvers
of the flow. On the mixture the closed-form denoiser is sampled too: there, what is lost is the solver's alone. Then
every sampler of the package on the digits preset.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np

import ansn
from ansn.evaluation.spaces import classifier
from ansn.sampling import METHODS, Draw
from ansn.training import train
from experiments.lab import figure
from experiments.lab.claim import Cell, Claim, Row, Section, Settings, main
from experiments.lab.exact import ExactDenoiser, known_noise
from experiments.lab.problems import Problem, problem
from experiments.lab.statistics import Sooner, estimate, mean, reached, select, sooner, table, unique
from experiments.lab.training import Setup, Trained, configured, fit, floor, frechet, nearest_rate, one_copy

CONTROL = "scalar"
ARMS = ("scalar", "scalar rho=0.5", "scalar rho=1", "wiener", "wiener rho=0.5")
EXACT = ARMS[:3]  # an exact denoiser has nothing to begin with
PROBLEMS = ("mixture", "digits", "fields")
COUNTS = (3, 4, 6, 8, 12, 20, 40)
FLOWS = ("dpmpp_2m", "heun", "gaussian_2m")
STEPS, RATES, EXACT_N = 700, (5e-4, 1e-3, 2e-3), 3000
FIXED = 1.25  # of the control's limit of the same seed, its value at the most evaluations
PRESETS = ("scalar rho=0.5", "wiener rho=0.5")  # of the digits preset, for the samplers
BUDGETS, LANGEVIN, SCHEDULES = (4, 6, 8, 12, 20, 40), 1000, ("karras", "optimised")
SAMPLERS = tuple(name for name in METHODS if name != "paper")  # which needs isotropic noise


def cells(settings: Settings) -> list[Cell]:
    """One a problem and an arm, all seeds in it."""
    plan = [("exact", "mixture", arm, 0, 5) for arm in EXACT]
    plan += [("learned", name, arm, STEPS, 5) for name in PROBLEMS for arm in ARMS]
    plan += [("samplers", "digits", arm, 2000, 3) for arm in PRESETS]
    if settings.quick:
        plan = [("exact", "mixture", arm, 0, 1) for arm in EXACT[::2]]
        plan += [("learned", "digits", arm, 20, 2) for arm in ("scalar", "wiener")]
    return [dict(zip(("kind", "problem", "arm", "steps", "seeds"), each, strict=True)) for each in plan]


def run(cell: Cell, settings: Settings) -> list[Row]:
    if cell["kind"] == "samplers":
        return _samplers(cell, settings)
    found = problem(cell["problem"])  # with a smaller network, so that a budget pays for more steps
    learned = replace(found, network=lambda **o: ansn.networks.MLP(found.shape, 128, 2, **o))
    if cell["kind"] == "exact":
        assert learned.density is not None
        x = learned.density.sample(1000, seed=5)[0].float()
        noise = known_noise(learned.density, Setup(cell["arm"]).begins[1], x)
        known = Trained(0, 0.0, 0.0, ExactDenoiser(noise, learned.density))
        return [row for seed in range(cell["seeds"]) for row in _curve(known, learned, seed, EXACT_N)]
    base = Setup(cell["arm"], steps=cell["steps"], structure="dense")
    rate = nearest_rate(learned, base, RATES[:1] if settings.quick else RATES)
    rows = []
    for seed in range(cell["seeds"]):
        for trained in fit(learned, replace(base, seed=seed, lr=rate)):
            rows += [{"lr": rate} | row for row in _curve(trained, learned, seed, len(learned.test))]
    return rows


def _curve(trained: Trained, learned: Problem, seed: int, n: int) -> list[Row]:
    """Each solver at each number of evaluations, from the same starts."""
    rows, spread = [], float(np.sqrt(learned.features(one_copy(learned.whole)).var(0).mean()))
    for method in FLOWS:
        drawn = {count: trained.sample(n, method, count, seed=seed) for count in COUNTS}
        limit = learned.features(drawn[COUNTS[-1]])
        for count, x in drawn.items():
            away = float(np.sqrt(np.square(learned.features(x) - limit).mean())) / spread
            fd = frechet(x, learned)
            rows.append({"seed": seed, "method": method, "schedule": "few_steps", "evaluations": count, "fd": fd,
                         "fd_floor": _floor(learned.name, n), "n": n, "away": away})  # fmt: skip
    return rows


@cache
def _floor(name: str, n: int) -> float:
    """Distance of the held-out rows, or of as many new points where the density is known and more are asked for."""
    learned = problem(name)
    x = one_copy(learned.test)
    if n > len(x):
        assert learned.density is not None
        x = learned.density.sample(n, seed=9)[0].float()
    return frechet(x[:n], learned)


def _samplers(cell: Cell, settings: Settings) -> list[Row]:
    """The digits preset under a skip: every sampler at every budget, all from the same white noise."""
    skip, rho, _ = Setup(cell["arm"]).begins
    out = str(settings.out / f"digits-{skip}")
    config = configured("digits", noise={"rho": rho}, network={"skip": skip}, optim={"steps": cell["steps"]},
                        run={"out": out, "device": "cpu", "threads": 1})  # fmt: skip
    model, rows = ansn.load_run(train(config)).model, []
    data, held = (ansn.load_dataset("digits", split=split) for split in ("train", "test"))
    learned, n = replace(problem("digits"), whole=data, test=held, features=classifier(data, held)), len(held)
    plan = [(method, "few_steps", budget) for method in SAMPLERS if METHODS[method].flow for budget in BUDGETS]
    plan += [("dpmpp_2m", schedule, budget) for schedule in SCHEDULES for budget in BUDGETS[:3]]
    for method, schedule, budget in [*plan, ("langevin", "ladder", LANGEVIN)]:
        for seed in range(cell["seeds"]):
            try:
                draw = Draw.within(model, method, budget, schedule=schedule, seed=seed)
            except ValueError:
                break  # not one step within the budget
            began = time.process_time()
            x = draw.batch(0, n)
            seconds = round(time.process_time() - began, 3)
            rows.append({"seed": seed, "method": method, "schedule": schedule, "budget": budget,
                         "evaluations": draw.evaluations, "fd": frechet(x, learned), "fd_floor": floor(learned),
                         "n": n, "seconds": seconds})  # fmt: skip
    return rows


def needed(rows: Sequence[Row], control: Sequence[Row]) -> dict[int, float]:
    """Evaluations of each seed until the distance is FIXED times the control's limit of that seed; inf for never."""
    out = {}
    for seed in sorted(unique(rows, "seed")):
        own = sorted(select(rows, seed=seed), key=lambda row: row["evaluations"])
        last = max(select(control, seed=seed), key=lambda row: row["evaluations"], default={"fd": math.nan})["fd"]
        values = [math.inf if row["fd"] is None else float(row["fd"]) for row in own]
        out[seed] = reached([float(row["evaluations"]) for row in own], values, FIXED * last)
    return out


def compared(rows: Sequence[Row], arm: str) -> Sooner | None:
    """How many times fewer evaluations than the control an arm needs."""
    control = select(rows, arm=CONTROL)
    ours, theirs = needed(select(rows, arm=arm), control), needed(control, control)
    return sooner(ours, theirs, min(COUNTS), max(COUNTS))


def places(rows: Sequence[Row]) -> list[tuple[str, str, list[Row]]]:
    """Kind, problem and rows of each place where arms are compared."""
    some = [row for row in rows if row["kind"] != "samplers"]
    return [(kind, name, select(some, kind=kind, problem=name)) for kind, name in unique(some, "kind", "problem")]


def preset(rows: Sequence[Row]) -> list[Row]:
    """Of the samplers on digits, at their usual schedules."""
    own = select(rows, kind="samplers", problem="digits", arm=PRESETS[0])
    return [row for row in own if row["schedule"] in ("few_steps", "ladder")]


def section(rows: list[Row], folder: Path) -> Section:
    tables = [_needed_table(rows)]
    if preset(rows):
        tables.append(_sampler_table(rows))
    return Section(
        "How many network evaluations does a sample take?",
        _answer(rows), _DESIGN, tables, [_figure(rows, folder)],
        reading="`kind` exact: the closed-form denoiser; learned: a trained one; samplers: the digits preset (and"
        " MNIST's after 2,000 steps) by every sampler within a `budget`. `away`: rms from the samples of 40"
        " evaluations, in the data's spread. `fd_floor`: as many rows of the data.",
    )  # fmt: skip


_DESIGN = f"""MLP 128 x 2, {STEPS} steps, each arm at its own rate, the best by Frechet distance under a seed that no
result uses; as many samples as held-out rows (exact: {EXACT_N}), from the same starts. Asked for: {FIXED:g} times what
the control has with 40 evaluations. Samplers: the preset after 2,000 steps, a few seeds of sampling."""


def _needed_table(rows: Sequence[Row]) -> tuple[str, str]:
    lines = []
    for kind, name, own in places(rows):
        mine = select(own, method="dpmpp_2m")
        control = select(mine, arm=CONTROL)
        line = [f"{name}, {kind}", f"{estimate(list(needed(control, control).values())).mean:.1f}"]
        for arm in ARMS[1:]:
            found = compared(mine, arm) if select(mine, arm=arm) else None
            line.append(found.show() if found else "")
        lines.append(line)
    told = "DPM-Solver++(2M): evaluations of the control until the asked distance; times fewer of the others (95 %)"
    return told, table(["problem", CONTROL, *ARMS[1:]], lines)


def _sampler_table(rows: Sequence[Row]) -> tuple[str, str]:
    own, lines = preset(rows), []
    budgets = sorted(unique(own, "budget"))
    for method in unique(own, "method"):
        cells_ = [select(own, method=method, budget=budget) for budget in budgets]
        lines.append([f"`{method}`", *(f"{mean(each, 'fd').mean:.2f}" if each else "" for each in cells_)])
    told = f"Digits preset, Frechet distance by the most evaluations (floor {own[0]['fd_floor']:.2f})"
    return told, table(["sampler", *budgets], lines)


def _answer(rows: Sequence[Row]) -> str:
    parts = []
    for arms, words in ((EXACT[1:], "shaped noise"), (ARMS[3:], "the Wiener skip")):
        signs = []
        for kind, _, own in places(rows):
            mine = select(own, method="dpmpp_2m")
            if kind == "learned":
                found = [compared(mine, arm) for arm in arms if select(mine, arm=arm)]
                signs += [0 if each is None else each.log.sign for each in found]
        parts.append(f"{words} takes fewer in {signs.count(1)} and more in {signs.count(-1)} of {len(signs)}")
    told = f"Against the scalar skip under isotropic noise, pairs of a problem and an arm: {', '.join(parts)}"
    own = preset(rows)
    few, many = select(own, method="dpmpp_2m", budget=8), select(own, method="langevin")
    if few and many:
        told += (f". On digits 8 evaluations of DPM-Solver++(2M) have a distance of {mean(few, 'fd').mean:.2f},"
                 f" {many[0]['evaluations']} of annealed Langevin {mean(many, 'fd').mean:.2f}")  # fmt: skip
    return told + "."


def _figure(rows: Sequence[Row], folder: Path) -> tuple[str, str]:
    shown = places(rows)
    drawn, axes = figure.panels(len(shown), columns=4, width=3.6, height=3.0)
    for axis, (kind, name, own) in zip(axes, shown, strict=True):
        for colour, arm in enumerate(ARMS):
            for method, style in (("dpmpp_2m", "-"), ("gaussian_2m", ":")):
                mine = select(own, arm=arm, method=method)
                label = arm if style == "-" else ""
                if mine:
                    figure.means(axis, mine, "evaluations", "fd", label=label, colour=colour, linestyle=style)
        axis.set(title=f"{name}, {kind}", yscale="log", xlabel="evaluations")
        figure.ticks(axis, COUNTS)
    axes[-1].legend(fontsize=7)
    told = "Frechet distance by evaluations: DPM-Solver++(2M) full, Gaussian 2M dotted"
    return told, figure.save(drawn, folder / "evaluations.png")


CLAIM = Claim("evaluations", cells, run, section)

if __name__ == "__main__":
    sys.exit(main(CLAIM, __doc__))
