"""Are modes kept: by noise shaped like the data, and by a denoiser that begins with regions of the data?

    python -m experiments.modes

``exact``: the package's samplers on the closed-form denoiser: what is lost is lost by levels and steps. ``noise``: the
same densities learned by a small network under noise of several shapes. ``skip``: learned from several beginnings.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from scipy.stats import norm
from torch import Tensor

import ansn
from ansn.evaluation import PixelFeatures
from experiments.lab import figure
from experiments.lab.claim import Cell, Claim, Row, Section, Settings, main
from experiments.lab.exact import ExactDenoiser, known_noise
from experiments.lab.mixture import Mixture, basis, merge_level
from experiments.lab.problems import of_density
from experiments.lab.statistics import Estimate, estimate, mean, paired, select, table, unique
from experiments.lab.training import Setup, fit, halfway, tuned

DIM, N = 8, 1000  # samples of a seed
RUNGS, PER_RUNG = 10, 100  # of annealed Langevin: the paper's budget
SAMPLERS = (("flow", 12, "few_steps", 0.01), ("flow", 40, "few_steps", 0.01), ("flow low", 40, "karras", 1e-4),
            ("langevin", RUNGS * PER_RUNG + 1, "", 0.01))  # evaluations, schedule and last level  # fmt: skip
RATES = (5e-4, 1e-3, 3e-3)
OUTSIDE = 1e-3  # share of a component that lies outside of its box
NOISE = ("scalar", "scalar rho=0.5", "scalar rho=1", "wiener", "wiener rho=0.5")
SKIP = ("scalar", "wiener", "mixture seen")
LEARNED = (("two", 0.1, 0.8), ("eight", 1.0, 0.5))
STEPS = {"two": 700, "eight": 1200}
EARLY = (75, 150, 300, 600)


class Scene(NamedTuple):
    """``halves``: half of the vector between two modes of each direction that separates them; ``within``: of a mode."""

    density: Mixture
    halves: tuple[Tensor, ...]
    within: Tensor


@cache
def scene(modes: str, half: float, share: float, ratio: float = 5.0) -> Scene:
    """``two``: ``share N(h e, W) + (1 - share) N(-h e, W)``, W of deviation ``half / ratio`` along e and 1 elsewhere.
    ``eight``: all signs of ``h (e_1, e_2 / 5, e_3 / 25)``, deviations a ``ratio``-th of these along e_1 to e_3."""
    q = basis(DIM)
    sizes = [half] if modes == "two" else [half, half / 5, half / 25]
    deviations = torch.ones(DIM, dtype=torch.float64)
    deviations[: len(sizes)] = torch.tensor(sizes, dtype=torch.float64) / ratio
    within = q * deviations.square() @ q.T
    halves = tuple(size * q[:, j] for j, size in enumerate(sizes))
    both = torch.tensor([1.0, -1.0], dtype=torch.float64)
    signs = torch.cartesian_prod(*[both] * len(halves)).reshape(-1, len(halves))
    weights = torch.where(signs == 1.0, share, 1.0 - share).prod(1)
    return Scene(Mixture(signs @ torch.stack(halves), within.expand(len(signs), -1, -1), weights), halves, within)


def bins(density: Mixture, x: Tensor) -> tuple[Tensor, Tensor]:
    """Shares of the components and, last, of what is in none of them; the component of every point.

    A point is in the component it is likeliest of if no coordinate in that one's principal axes is beyond a quantile
    that leaves out a share OUTSIDE of it."""
    owner = density.responsibilities(x).argmax(1)
    limit = float(norm.isf(OUTSIDE / (2 * density.dim)))
    values, vectors = torch.linalg.eigh(density.covariances)
    away = torch.einsum("bji,bj->bi", vectors[owner], x - density.means[owner]) / values[owner].sqrt()
    inside, count = (away.abs() <= limit).all(1), len(density.means)
    return torch.bincount(torch.where(inside, owner, count), minlength=count + 1).double() / len(x), owner


def judge(x: Tensor, place: tuple[str, float, float]) -> dict[str, float]:
    """``tv``: total variation of the modes' shares and of the share in none, against 20,000 exact points; ``cov``: mean
    over modes of ``|W^-1/2 S W^-1/2 - I|_F / sqrt(d)`` of the points likeliest of it, 1 for a mode with fewer than
    d + 2. All of a sample that is not finite is infinite."""
    if not bool(torch.isfinite(x).all()):
        return dict.fromkeys(("tv", "cov"), math.inf)
    density, x = scene(*place).density, x.double()
    shares, owner = bins(density, x)
    errors = []
    for c, covariance in enumerate(density.covariances):
        rows = x[owner == c]
        if len(rows) < density.dim + 2:
            errors.append(1.0)
            continue
        factor = torch.linalg.cholesky(covariance)
        own = torch.linalg.solve_triangular(factor, (rows - rows.mean(0)).T, upper=False)
        errors.append(float((own @ own.T / (len(rows) - 1) - torch.eye(density.dim)).norm()) / math.sqrt(density.dim))
    exact = bins(density, density.sample(20_000, seed=77)[0])[0]
    return {"tv": 0.5 * float((shares - exact).abs().sum()), "cov": sum(errors) / len(errors)}


@cache
def floor(seed: int, place: tuple[str, float, float]) -> dict[str, float]:
    """:func:`judge` of as many exact samples."""
    x, _ = scene(*place).density.sample(N, seed=500 + seed)
    return {f"{name}_floor": value for name, value in judge(x, place).items()}


def cells(settings: Settings) -> list[Cell]:
    """One a density and an arm, all seeds in it."""
    places = [*(("two", half, 0.5) for half in (1.0, 0.3, 0.1, 0.03, 0.01, 0.003)), *LEARNED]
    plan = [("exact", *place, arm, 0, 5) for place in places for arm in NOISE[:3:2]]
    for place in LEARNED:
        plan += [("noise", *place, arm, STEPS[place[0]], 5) for arm in NOISE]
        plan += [("skip", *place, arm, EARLY[-1], 5) for arm in SKIP]
    if settings.quick:
        plan = [("exact", *places[2], arm, 0, 2) for arm in NOISE[:3:2]]
        plan += [("skip", *LEARNED[0], arm, 20, 2) for arm in SKIP[::2]]
    return [dict(zip(("kind", "modes", "half", "share", "arm", "steps", "seeds"), each, strict=True)) for each in plan]


def run(cell: Cell, settings: Settings) -> list[Row]:
    place = (cell["modes"], cell["half"], cell["share"])
    return _exact(cell, place) if cell["kind"] == "exact" else _learned(cell, place)


def _exact(cell: Cell, place: tuple[str, float, float]) -> list[Row]:
    own, rows = scene(*place), []
    x, rho = own.density.sample(1000, seed=1)[0].float(), Setup(cell["arm"]).begins[1]
    for sampler, count, schedule, bottom in SAMPLERS:
        noise = known_noise(own.density, rho, x, bottom)
        model, shape = ExactDenoiser(noise, own.density), noise.covariance.noise_shape()[0]
        shape = shape if shape.ndim == 2 else torch.diag(shape)
        merge = min(merge_level(half, own.within, shape, cell["share"]) for half in own.halves)
        for seed in range(cell["seeds"]):
            if sampler == "langevin":
                taus = ansn.levels.geometric(noise.levels.maximum, bottom, n=RUNGS).tau
                draw = ansn.sampling.Draw(model, "langevin", PER_RUNG, taus=taus, seed=seed)
            else:
                draw = ansn.sampling.Draw(model, "dpmpp_2m", count, schedule=schedule, seed=seed)
            found = judge(draw.batch(0, N), place) | floor(seed, place)
            rows.append({"seed": seed, "sampler": sampler, "bottom": float(draw.taus[-1]), "merge": merge, **found})
    return rows


def _learned(cell: Cell, place: tuple[str, float, float]) -> list[Row]:
    learned = of_density("modes", scene(*place).density, 64, features=PixelFeatures((DIM,), "modes"))
    skip = cell["kind"] == "skip"
    base = Setup(cell["arm"], steps=cell["steps"], decay=0.5 if skip else 0.0, structure="dense")
    key = (lambda trained: judge(trained.sample(N, evaluations=20), place)["tv"]) if skip else None
    rate = tuned(learned, halfway(base), RATES, key)
    at = tuple(step for step in EARLY if step <= base.steps and skip) or (base.steps,)
    return [
        {"seed": seed, "sampler": "flow", "step": trained.step, "lr": rate}
        | judge(trained.sample(N, evaluations=20, seed=seed), place) | floor(seed, place)
        for seed in range(cell["seeds"])
        for trained in fit(learned, replace(base, seed=seed, lr=rate), at)
    ]  # fmt: skip


def last(rows: Sequence[Row]) -> list[Row]:
    return select(rows, step=max(row["step"] for row in rows))


def against(rows: Sequence[Row], arm: str, metric: str = "tv", control: str = "scalar") -> Estimate:
    return paired(last(select(rows, arm=arm)), last(select(rows, arm=control)), metric)


def predicted(rows: Sequence[Row]) -> tuple[int, int, int, int]:
    """Of exact groups whose last level is a factor 2 or more away from the merging level: how many of those predicted
    to keep their modes do, of how many; and to lose them, which is ``tv`` 0.1 above the floor."""
    kept, keep, gone, lose = 0, 0, 0, 0
    exact, names = select(rows, kind="exact"), ("modes", "half", "share", "arm", "sampler", "bottom")
    for key in unique(exact, *names):
        group = select(exact, **dict(zip(names, key, strict=True)))
        merge, bottom = group[0]["merge"], group[0]["bottom"]
        lost = estimate([r["tv"] - r["tv_floor"] for r in group]).mean > 0.1
        if bottom < 0.5 * merge:
            keep, kept = keep + 1, kept + (not lost)
        elif bottom > 2.0 * merge:
            lose, gone = lose + 1, gone + lost
    return kept, keep, gone, lose


def section(rows: list[Row], folder: Path) -> Section:
    found = [(f"{place[0]}, {kind}", select(rows, kind=kind, modes=place[0], half=place[1], share=place[2]))
             for kind, place in itertools.product(("noise", "skip"), LEARNED)]  # fmt: skip
    found = [each for each in found if each[1]]
    parts = []
    for name, own in found:
        if name.endswith("skip"):
            ends = ", ".join(f"`{a}` {mean(last(select(own, arm=a)), 'tv').mean:.2g}" for a in unique(own, "arm"))
            least = mean(last(select(own, arm="scalar")), "tv_floor").mean
            parts.append(f"{name.split(',')[0]} modes {ends} (floor {least:.2g})")
    shaped = [against(own, arm).sign for _, own in found for arm in NOISE[1:3] if select(own, arm=arm)]
    kept, keep, gone, lose = predicted(rows)
    findings = [f"With exact scores {kept} of {keep} runs predicted to keep their modes do, and {gone} of {lose}"
                " predicted to lose them do: by whether the last level is below that where modes merge,"
                " `sqrt((a^2 / c - w^2) / r)`, whatever the shape."]  # fmt: skip
    return Section(
        "Are modes kept?",
        f"Error of the modes' weights at the end: {'; '.join(parts) or 'not measured'}. Noise of the data's shape,"
        f" scalar skip: better in {shaped.count(-1)}, worse in {shaped.count(1)} of {len(shaped)}.",
        _DESIGN, [_table(found)] if found else (), [_figure(found, folder)] if found else (), findings,
        reading="`kind` exact: closed-form denoiser, `merge` the level where the narrowest pair becomes one, `bottom`"
        " the last level; noise, skip: learned. `tv`: total variation of the modes' weights, with what is in none as"
        " one more; `cov`: error of a mode's covariance; `_floor`: of as many exact samples.",
    )  # fmt: skip


_DESIGN = f"""*two*: modes of weight 0.8 and 0.2 at +-0.1 along one direction of {DIM}, of width 0.02 there and 1
elsewhere; *eight*: three such directions, at +-1, 0.2, 0.04. MLP 64 x 2, batch 128, {N} samples with 20 evaluations.
Noise: a constant rate, the best by held-out loss; skip: a rate that falls over the second half, the best by weights."""


def _table(found: list[tuple[str, list[Row]]]) -> tuple[str, str]:
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for name, own in found:
        modes, part = name.split(", ")
        for arm in unique(own, "arm"):
            for metric, word in (("tv", "weights"), ("cov", "covariance")):
                apart = "" if arm == "scalar" else f" ({against(own, arm, metric).show(2)})"
                shown = mean(last(select(own, arm=arm)), metric).show(2) + apart
                lines.setdefault((part, arm), {})[f"{modes}: {word}"] = shown
    heads = list(dict.fromkeys(head for line in lines.values() for head in line))
    told = "Error of the modes' weights and covariances, learned; in brackets the paired difference to `scalar`"
    filled = [[*key, *(line.get(head, "") for head in heads)] for key, line in lines.items()]
    return told, table(["part", "arm", *heads], filled)


def _figure(found: list[tuple[str, list[Row]]], folder: Path) -> tuple[str, str]:
    shown = [each for each in found if each[0].endswith("skip")] or found
    drawn, axes = figure.panels(len(shown))
    for axis, (name, own) in zip(axes, shown, strict=True):
        for colour, arm in enumerate(unique(own, "arm")):
            figure.means(axis, select(own, arm=arm), "step", "tv", label=arm, colour=colour)
        axis.axhline(mean(last(select(own, arm="scalar")), "tv_floor").mean, color="black", linestyle=":", linewidth=1)
        axis.set(title=name, xlabel="training steps", ylabel="error of the weights", ylim=(0.0, None))
        axis.legend(fontsize=7)
    return "Error of the modes' weights over training (dotted: floor)", figure.save(drawn, folder / "modes.png")


CLAIM = Claim("modes", cells, run, section)

if __name__ == "__main__":
    sys.exit(main(CLAIM, __doc__))
