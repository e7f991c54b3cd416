"""The paper as printed: what do its formulas give literally on Gaussian data, against the corrected forms?

    python -m experiments.errata

On Gaussian data in 16 dimensions, where the right answer is known in closed form. Streams of points and trained
networks have seeds; samplers with the exact score are recursions in float64 (:mod:`experiments.lab.linear`).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import ansn
from ansn.evaluation import PixelFeatures
from experiments.lab.claim import Cell, Claim, Row, Section, Settings, main
from experiments.lab.figure import means, panels, save
from experiments.lab.linear import Array, annealed, chain, denoised, kl, spectrum
from experiments.lab.mixture import Mixture, basis
from experiments.lab.problems import Problem, of_density
from experiments.lab.statistics import Estimate, estimate, select, table
from experiments.lab.training import TUNING_SEED, Setup, fit, tuned

DIM, KAPPA, MEAN, POINTS = 16, 1e3, 2.0, 1000  # the mean of every coordinate, whose mean deviation is 1
SCALE, TINY = 2.4**2 / DIM, 1e-6  # s_d, and the paper's "very small" epsilon
STEPS, ALPHA = 100, 2e-5 / 0.01**2  # Algorithm 1 with the paper's T, epsilon and sigma_L
LADDER = np.geomspace(10.0, 0.01, 28)  # a ratio of 1.29, and 2800 evaluations
RATES = (1e-3, 3e-3, 1e-2, 3e-2)
METRICS = {"paper": "literal", "whitened": "corrected", "pixel": "corrected, default"}
MATTERS = 1.1  # literal over corrected, from which a misprint is said to matter


class Item(NamedTuple):
    formula: str
    literal: str
    corrected: str
    error: str  # measured of both readings


_KL = "KL of the samples, nats"
ITEMS = {
    "recursion": Item("Eq. 2.8", "as printed", "running moments", f"relative error at t = {POINTS}"),
    "sign": Item("Eq. 2.8, bracket mended", "(t - 1)", "running moments", f"relative error at t = {POINTS}"),
    "share": Item("Eq. 3.1", "inverse of Sigma", "of its root", "loss in the narrowest quarter, percent"),
    "training": Item("Eq. 3.1", "inverse of Sigma", "of its root", "small network after 400 steps of Adam"),
    "output": Item("Eq. 3.1 in Alg. 1", "s = D - x~, best under the inverse", "s = f", _KL),
    "variance": Item("Sec. 1's sigma", "a variance in training", "a deviation", _KL),
    "denoising": Item("Alg. 1", "no denoising at the end", "x_T <- D(x_T)", _KL),
    "shape": Item("Alg. 1 under R = S", "isotropic steps", "steps of the noise's shape", _KL),
    "convention": Item("Alg. 1's alpha", "drift alpha/2, the paper's", "alpha, NCSN's", "KL after 10 steps a level"),
    "single level": Item("a single level", "one, sqrt(s_d)", "a ladder, as many evaluations", f"{_KL}, uniform start"),
}


def _row(quantity: str, reading: str, value: float, at: float | None = None) -> Row:
    return {"quantity": quantity, "reading": reading, "at": at, "value": float(value)}


def _both(quantity: str, literal: float, corrected: float, at: float | None = None) -> list[Row]:
    return [_row(quantity, "literal", literal, at), _row(quantity, "corrected", corrected, at)]


@cache
def data() -> Mixture:
    """S of condition number 1000 and mean variance 1 in a random basis."""
    vectors = basis(DIM)
    s = (vectors * torch.from_numpy(spectrum(KAPPA, DIM))) @ vectors.T
    return Mixture(torch.full((1, DIM), MEAN, dtype=torch.float64), s.unsqueeze(0))


# -- the covariance: Eq. 2.8 -------------------------------------------------------------------------------------


def recursion(x: Array, reading: str, eps: float) -> list[Array]:
    """``C_t`` after t = 2, 3, ... points by Eq. 2.8, from the definition at t = 2.
    ``reading``: ``"literal"``: the bracket closes early and ``(t - 1)`` stands for ``(t + 1)``; ``"sign"``: the bracket
    mended; ``"exact"``: Haario's."""
    eye, mean = eps * np.eye(x.shape[1]), x[:2].mean(0)
    away = x[:2] - mean
    c = SCALE * (away.T @ away + eye)
    out = [c]
    for n in range(2, len(x)):
        after = mean + (x[n] - mean) / (n + 1)
        old, new, point = np.outer(mean, mean), np.outer(after, after), np.outer(x[n], x[n])
        if reading == "literal":
            c = (n - 1) / n * c + SCALE / n * (n * old) - (n - 1) * new + point + eye
        else:
            sign = n - 1 if reading == "sign" else n + 1
            c = (n - 1) / n * c + SCALE / n * (n * old - sign * new + point + eye)
        mean = after
        out.append(c)
    return out


def covariance_rows(seed: int) -> list[Row]:
    """One stream of points under both readings of the recursion."""
    rows, eye, points = [], np.eye(DIM), data().sample(POINTS, seed)[0]
    x = points.numpy()
    learner = ansn.AdaptiveCovariance(DIM, eps_floor=0.0)
    for point in points.split(1):
        learner.moments.update(point)
    right = SCALE * (np.cov(x.T) + TINY * eye)
    ours = SCALE * (learner.covariance()[0].numpy() + TINY * eye)
    for quantity, name in (("recursion", "literal"), ("sign", "sign")):
        literal, corrected = (float(np.linalg.norm(c - right) / np.linalg.norm(right))
                              for c in (recursion(x, name, TINY)[-1], ours))  # fmt: skip
        rows += _both(quantity, literal, corrected)
    return rows


# -- the loss: Eq. 3.1 -------------------------------------------------------------------------------------------


def loss_rows() -> list[Row]:
    """Share of the loss of a network that gives 0, under noise ``Sigma = S``, in the quarter of least variance."""
    l = spectrum(KAPPA, DIM)
    shares = {"literal": 1.0 / l, "corrected": np.ones(DIM), "corrected, default": l}
    return [_row("share", name, 100.0 * each[-DIM // 4 :].sum() / each.sum()) for name, each in shares.items()]


def training_rows(metric: str, settings: Settings) -> list[Row]:
    """The package's loss under one metric, noise of ``rho = 0.9``, at the rate that is best for that metric."""
    sizes, steps = ((1000, 200), 20) if settings.quick else ((8000, 2000), 400)
    problem = of_density("gaussian", data(), 64, sizes, PixelFeatures((DIM,), "gaussian"))
    base = Setup("scalar rho=0.9", steps=steps, metric=metric, structure="dense", root="cholesky", fixed=True)
    rate = tuned(problem, replace(base, seed=TUNING_SEED), RATES[1:2] if settings.quick else RATES)
    rows: list[Row] = []
    for seed in range(2 if settings.quick else 5):
        for trained in fit(problem, replace(base, seed=seed, lr=rate)):
            rows.append({"seed": seed} | _row("training", METRICS[metric], pixel_error(trained.model, problem)))
    return rows


@torch.no_grad()
def pixel_error(model: ansn.Denoiser, problem: Problem) -> float:
    """``E|D - D*|^2 / tr S`` at tau = 1 over the held-out rows."""
    target = data()
    x = problem.test.batch(torch.arange(len(problem.test)), seed=0)[0]
    perturbed, level = model.noise.perturb(x, tau=1.0, seed=20_000, step=0)
    shape = model.noise.covariance.noise_shape()[0].double()
    away = model(perturbed, level.tau).double() - target.denoised(perturbed, shape)
    return float(away.square().sum(1).mean() / target.covariances[0].trace())


# -- sampling: Algorithm 1 ---------------------------------------------------------------------------------------


def sampling_rows() -> list[Row]:
    """Algorithm 1 and its corrections with the exact score, in closed form."""
    l, one = spectrum(KAPPA, DIM), np.ones(DIM)

    def run(reading: str, r: Array, steps: int = STEPS, alpha: float = ALPHA) -> Any:
        return chain(reading, l, r, LADDER, steps, alpha)

    plain, printed, shaped = run("shaped", one), run("printed", l), run("shaped", l)
    start = np.full_like(l, 0.5 - MEAN), np.full_like(l, 1.0 / 12.0)  # the paper's, uniform in [0, 1]
    single, many = (annealed(*start, l, one, taus, 2800 // len(taus), ALPHA)
                    for taus in (np.array([math.sqrt(SCALE)]), LADDER))  # fmt: skip
    pairs: dict[str, tuple[Any, Any]] = {
        "shape": (printed, shaped), "output": (run("inverse", one), plain), "variance": (run("variance", one), plain),
        "denoising": (plain, tuple(v[0] for v in denoised(plain[0][None], plain[1][None], l, one, LADDER[-1:]))),
        "convention": (run("shaped", one, 10), run("shaped", one, 10, 2.0 * ALPHA)), "single level": (single, many),
    }  # fmt: skip
    kls = {name: [float(kl(mean, variance, l)) for mean, variance in ends] for name, ends in pairs.items()}
    rows = [row for name, both in kls.items() for row in _both(name, *both)]
    return rows + [row for j in range(DIM) for row in _both("variances", printed[1][j], shaped[1][j], l[j])]


# -- the claim ---------------------------------------------------------------------------------------------------


def cells(settings: Settings) -> list[Cell]:
    parts = ("loss", "sampling", *(f"training, {metric}" for metric in METRICS))
    out: list[Cell] = [{"part": "covariance", "run": seed} for seed in range(2 if settings.quick else 10)]
    return [*({"part": part, "run": 0} for part in parts), *out]


def run(cell: Cell, settings: Settings) -> list[Row]:
    part, seed = cell["part"], cell["run"]
    if part.startswith("training"):
        return training_rows(part.removeprefix("training, "), settings)
    makers: dict[str, Callable[[], list[Row]]] = {
        "loss": loss_rows, "sampling": sampling_rows, "covariance": lambda: covariance_rows(seed),
    }  # fmt: skip
    return [{"seed": seed} | row for row in makers[part]()]


def verdict(rows: list[Row], name: str) -> tuple[Estimate, Estimate, int] | None:
    """Both readings of a line, and 1 where the literal one is worse, -1 where it is better, else 0."""
    ours, theirs = (
        {row["seed"]: _number(row["value"]) for row in select(rows, quantity=name, reading=reading, at=None)}
        for reading in ("literal", "corrected")
    )
    pairs = [(value, theirs[seed]) for seed, value in ours.items() if seed in theirs]
    if not pairs:
        return None
    literal, corrected = map(estimate, zip(*pairs, strict=True))
    sign = (literal.mean > MATTERS * corrected.mean) - (corrected.mean > MATTERS * literal.mean)
    apart = [a - b for a, b in pairs]
    if len(pairs) > 1 and all(map(math.isfinite, apart)) and estimate(apart).sign != sign:
        sign = 0
    return literal, corrected, sign


def _number(value: Any) -> float:
    return math.inf if value is None or math.isnan(float(value)) else float(value)


def section(rows: list[Row], folder: Path) -> Section:
    found = {name: each for name in ITEMS if (each := verdict(rows, name))}
    signs = [sign for *_, sign in found.values()]
    tenfold = sum(a.mean >= 10.0 * b.mean for a, b, sign in found.values() if sign == 1)
    words = {1: "worse", 0: "no difference seen", -1: "better"}
    lines = [[i.formula, i.error, i.literal, a.show(3), i.corrected, b.show(3), words[sign]]
             for name, (a, b, sign) in found.items() for i in [ITEMS[name]]]  # fmt: skip
    return Section(
        "The paper as printed: what do its formulas give literally, against the corrected forms?",
        f"Of {len(found)} errors of a literal reading and its correction on Gaussian data the literal one is worse in"
        f" {signs.count(1)}, in {tenfold} of them tenfold or more, and better in {signs.count(-1)}.",
        f"Gaussian data in {DIM} dimensions, condition number {KAPPA:g}, mean {MEAN:g}; Algorithm 1: exact score, T"
        f" = {STEPS}, {len(LADDER)} levels from 10 to 0.01. Worse: by over {MATTERS} times and, where there are seeds,"
        " beyond the paired interval. See [errata.md](errata.md).",
        [("Errors of both readings, smaller is better",
          table(["formula", "error", "literal", "its error", "corrected", "its error", "literal is"], lines))],
        [_figure(rows, folder)],
        reading="`quantity` and `reading` name the number, `at` the point of a curve; a `value` of inf is no number.",
    )  # fmt: skip


def _figure(rows: list[Row], folder: Path) -> tuple[str, str]:
    drawn, (axis,) = panels(1)
    for colour, (reading, label) in enumerate((("corrected", "steps of the noise's shape"), ("literal", "as printed"))):
        means(axis, select(rows, quantity="variances", reading=reading), "at", "value", label=label, colour=3 * colour)
    axis.set(xlabel="variance of the data", ylabel="variance of the samples", xscale="log", yscale="log")
    axis.legend(fontsize=7)
    return "Algorithm 1 under R = S, by direction", save(drawn, folder / "errata.png")


CLAIM = Claim("errata", cells, run, section)

if __name__ == "__main__":
    sys.exit(main(CLAIM, __doc__))
