"""On a stream whose covariance turns and grows: does a covariance that forgets help, and where?

    python -m experiments.drift

Five modes of condition number 1000 in 16 dimensions, turned by 90 degrees in random planes and three times as wide at
the end. The covariance is fixed after the first tenth, learned throughout, or learned with forgetting; each model is
judged by what the data is at that moment.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ansn.evaluation import frechet_distance
from experiments.lab import figure
from experiments.lab.claim import Cell, Claim, Row, Section, Settings, main
from experiments.lab.mixture import Mixture, basis
from experiments.lab.problems import WhitenedFeatures, anisotropic, of_density
from experiments.lab.statistics import Estimate, listed, mean, paired, select, table, unique
from experiments.lab.training import TUNING_SEED, Setup, Trained, fit

ARMS = ("scalar", "scalar rho=0.5", "wiener rho=0.5")
WAYS = ("fixed", "online", "forgetting 0.98")
STEPS, BATCH, RATES, SEEDS = 600, 64, (5e-4, 1e-3, 2e-3), 5


@dataclass(frozen=True)
class Stream:
    """Data that turns and grows: ``x_t = A(t) y``, y of a mixture, ``A(t) = growth^t expm(t turn K)``, t from 0 to 1;
    K is skew with eigenvalues i and -i, a random one, so that at turn = pi/2 it maps thin directions on others."""

    still: Mixture
    generator: Tensor
    turn: float = math.pi / 2
    growth: float = 3.0

    def map(self, t: float) -> Tensor:
        """``A(t)`` ``[d, d]``."""
        return self.growth**t * torch.linalg.matrix_exp(t * self.turn * self.generator)

    def density(self, t: float) -> Mixture:
        """The law of ``x_t``."""
        a = self.map(t)
        return Mixture(self.still.means @ a.T, a @ self.still.covariances @ a.T, self.still.weights)

    def batches(self, steps: int, rows: int, seed: int) -> Iterator[tuple[int, Tensor, None]]:
        """``(step, x, None)``: rows of ``t = step / steps``."""
        y = self.still.sample(steps * rows, seed=seed)[0].reshape(steps, rows, -1)
        for step in range(steps):
            yield step, (y[step] @ self.map(step / steps).T).float(), None


def stream(dim: int = 16, seed: int = 0) -> Stream:
    plane = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
    turned = basis(dim, seed)
    return Stream(anisotropic(dim), turned @ torch.block_diag(*[plane] * (dim // 2)) @ turned.T)


def cells(settings: Settings) -> list[Cell]:
    steps, seeds = (8, 2) if settings.quick else (STEPS, SEEDS)
    arms = ARMS[::2] if settings.quick else ARMS
    return [{"arm": arm, "covariance": how, "steps": steps, "seeds": seeds} for arm in arms for how in WAYS]


def run(cell: Cell, settings: Settings) -> list[Row]:
    data, steps, how = stream(), cell["steps"], cell["covariance"]
    problem = of_density("drift", data.still, 128)
    setup = Setup(
        cell["arm"], steps=steps, batch_size=BATCH, ema=0.95, structure="dense",
        freeze_after=max(steps // 10, 1) * BATCH if how == "fixed" else 10**9,
        forgetting=float(how.removeprefix("forgetting ")) if how.startswith("forgetting") else 1.0,
    )  # fmt: skip
    at = tuple(steps * k // 4 for k in range(1, 5))

    def follow(seed: int, lr: float) -> Iterator[Row]:
        x = data.batches(steps, BATCH, seed)
        for trained in fit(problem, replace(setup, seed=seed, lr=lr), at, batches=x):
            time = trained.step / steps
            yield {"seed": seed, "lr": lr, "time": time} | _current(trained, data.density(time), seed, settings.quick)

    lr = RATES[0]
    if not settings.quick:
        lr = min(RATES, key=lambda lr: sum(row["excess"] for row in follow(TUNING_SEED, lr)))
    return [row for seed in range(cell["seeds"]) for row in follow(seed, lr)]


def _current(trained: Trained, density: Mixture, seed: int, quick: bool) -> Row:
    """Against the law of the moment: nats a dimension that the likelihood of fresh rows is below their own (0 for the
    law itself), and the Frechet distance of samples in whitened coordinates."""
    rows = 50 if quick else 500
    held, more = (density.sample(n, 10_000 + seed + k)[0] for k, n in enumerate((rows, 4 * rows)))
    features = WhitenedFeatures(more, name="current")
    try:
        nll = -float(trained.log_likelihood(held.float(), 12, probes=1).mean())
        excess = (nll + float(density.log_density(held).mean())) / density.dim
        away = frechet_distance(features(trained.sample(rows, seed=seed)), features(more))
    except ValueError:  # left the finite numbers
        excess = away = math.inf
    return {"excess": excess, "fd": away, "fd_floor": frechet_distance(features(held), features(more))}


# -- what the rows say -------------------------------------------------------------------------------------------


def over_time(rows: Sequence[Row], arm: str, how: str) -> list[Row]:
    """The mean over the times of each seed."""
    own = select(rows, arm=arm, covariance=how)
    return [{"seed": seed, "excess": sum(r["excess"] for r in select(own, seed=seed)) / len(unique(own, "time"))}
            for seed in unique(own, "seed")]  # fmt: skip


def less(rows: Sequence[Row], one: tuple[str, str], other: tuple[str, str]) -> Estimate:
    return paired(over_time(rows, *one), over_time(rows, *other), "excess")


def section(rows: list[Row], folder: Path) -> Section:
    arms, times = unique(rows, "arm"), sorted(unique(rows, "time"))
    lines, told = [], []
    for arm in arms:
        for how in unique(select(rows, arm=arm), "covariance"):
            own = select(rows, arm=arm, covariance=how)
            gain = "" if how == WAYS[0] else less(rows, (arm, how), (arm, WAYS[0])).show(2)
            lines.append([arm, how, *(mean(own, "excess", time=time).show(2) for time in times),
                          f"{mean(over_time(rows, arm, how), 'excess').mean:.3f}", gain])  # fmt: skip
        found = less(rows, (arm, WAYS[2]), (arm, WAYS[0]))
        told.append((found.sign, f"`{arm}` ({found.show(2)})"))
    ends = ", ".join(f"`{arm}` {mean(over_time(rows, arm, WAYS[2]), 'excess').mean:.3f}" for arm in arms)
    others = [(e.sign, f"`{arm}` ({e.show(2)})") for arm in arms[1:]
              for e in [less(rows, (arm, WAYS[2]), (arms[0], WAYS[2]))]]  # fmt: skip
    return Section(
        "Does a covariance that forgets help on a stream that drifts?",
        f"Divergence from the law of the moment, forgetting against fixed: {listed(told)}. With forgetting it is {ends}"
        " nats a dimension.",
        f"MLP 128 x 2, {STEPS} steps of {BATCH} rows, each row seen once; rates of each arm by its own divergence under"
        " a seed that no result uses.",
        [("Divergence from the law of the moment, nats a dimension, by part of the stream (0 for the law itself)",
          table(["arm", "covariance", *(f"{time:g}" for time in times), "mean", "less fixed"], lines))],
        [_figure(rows, folder)],
        [f"Both forgetting, against the scalar skip under isotropic noise: {listed(others)}.",
         "Under isotropic noise and the scalar skip forgetting follows mean and scale alone."],
        reading="`excess`: divergence, nats a dimension; `fd`: Frechet distance of samples in whitened coordinates of"
        " the moment; `time`: part of the stream.",
    )  # fmt: skip


def _figure(rows: Sequence[Row], folder: Path) -> tuple[str, str]:
    arms = unique(rows, "arm")
    drawn, axes = figure.panels(len(arms))
    for axis, arm in zip(axes, arms, strict=True):
        own = select(rows, arm=arm)
        for colour, how in enumerate(unique(own, "covariance")):
            figure.means(axis, select(own, covariance=how), "time", "excess", label=how, colour=colour)
        axis.set(title=arm, xlabel="part of the stream", ylabel="divergence, nats/dim", ylim=(0.0, None))
        axis.legend(fontsize=7, frameon=False)
    return "Divergence from the law of the moment", figure.save(drawn, folder / "drift.png")


CLAIM = Claim("drift", cells, run, section)

if __name__ == "__main__":
    sys.exit(main(CLAIM, __doc__))
