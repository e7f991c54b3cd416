"""Which structure should a covariance have, from how few rows, and does `auto` take it?

    python -m experiments.structures --data PATH

One Gaussian of each structure is fitted to the first rows and scores those that are held out.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from ansn.covariance import STRUCTURES, AdaptiveCovariance, choose
from ansn.covariance.choice import score
from experiments.lab import figure
from experiments.lab.claim import Cell, Claim, Row, Section, Settings, main
from experiments.lab.problems import has, problem
from experiments.lab.statistics import select, unique
from experiments.lab.training import one_copy, reference

ROWS = {
    "mnist": (500, 2000, 10_000), "fashion-mnist": (500, 2000, 10_000), "cifar10": (500, 2000, 10_000), "table": (427,),
    "fields": (500, 2000, 8000),
}  # fmt: skip
CLOSE = 0.02  # nats a dimension within which auto's choice is as good as the best


def cells(settings: Settings) -> list[Cell]:
    if settings.quick:
        return [{"data": "fields", "n": 500}]
    return [{"data": name, "n": n} for name, sizes in ROWS.items() if has(name, settings.data) for n in sizes]


def run(cell: Cell, settings: Settings) -> list[Row]:
    """Held-out log-likelihood a dimension under one Gaussian of each structure; none from too few rows."""
    learned = problem(cell["data"], settings.data)
    train, held = reference(learned)[: cell["n"]], one_copy(learned.test)
    floor, out = learned.train.quantisation, []
    taken = choose(train, eps_floor=floor).structure
    for name in STRUCTURES:
        made = AdaptiveCovariance(learned.shape, 1, name, rho=0.0, eps_floor=floor, factor_dtype=torch.float64)
        value = score(made.update(train.double()), held) if len(train) >= made.structure.points() else None
        out.append({"structure": name, "score": value, "taken": int(name == taken)})
    return out


def section(rows: list[Row], folder: Path) -> Section:
    names, wins, short = unique(rows, "structure"), [], 0
    for data, n in unique(rows, "data", "n"):
        own = [row for row in select(rows, data=data, n=n) if row["score"] is not None]
        best, taken = max(own, key=lambda row: row["score"]), select(own, taken=1)
        wins.append(best["structure"])
        short += not taken or best["score"] - taken[0]["score"] > CLOSE
    told = ", ".join(f"{name} in {wins.count(name)}" for name in names if name in wins)
    return Section(
        "Which structure should a covariance have?",
        f"The likeliest is {told} of {len(wins)} pairs of a data set and a number of rows; `auto` is within {CLOSE:g}"
        f" nats a dimension of it in {len(wins) - short}.",
        "Held-out log-likelihood under one Gaussian of each structure, one fit each; rounding noise is added to both.",
        figures=[_figure(rows, folder)],
        reading="`score`: as above, empty for too few rows; `taken`: 1 for the structure that `auto` takes.",
    )  # fmt: skip


def _figure(rows: Sequence[Row], folder: Path) -> tuple[str, str]:
    sets = [data for data in unique(rows, "data") if len(unique(select(rows, data=data), "n")) > 1]
    sets = sets or unique(rows, "data")
    drawn, axes = figure.panels(len(sets), columns=4, width=3.2, height=2.8)
    for axis, data in zip(axes, sets, strict=True):
        for colour, name in enumerate(unique(rows, "structure")):
            own = [row for row in select(rows, data=data, structure=name) if row["score"] is not None]
            figure.curve(axis, [r["n"] for r in own], [r["score"] for r in own], label=name, colour=colour)
        axis.set(xscale="log", title=data, xlabel="rows")
    axes[0].set_ylabel("nats a dimension")
    axes[0].legend(fontsize=7)
    return "Held-out log-likelihood by rows", figure.save(drawn, folder / "structures.png")


CLAIM = Claim("structures", cells, run, section)

if __name__ == "__main__":
    sys.exit(main(CLAIM, __doc__))
