"""The paper as printed: what do its formulas give literally on Gaussian data, against the corrected forms?

    python -m experiments.paper_as_printed

Every misprint or ambiguity of the errata (docs/errata.md) that can be run is run, on Gaussian data in 16 dimensions of
condition number 1000 in a random basis, where the right answer is known in closed form. Streams of points and trained
networks have seeds; samplers with the exact score are recursions in float64 (:mod:`experiments.lab.linear`), checked
by the package's own samplers on an ensemble.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import ansn
from ansn.evaluation import PixelFeatures
from experiments.lab.claim import Cell, Claim, Row, Section, Settings, main
from experiments.lab.exact import ExactDenoiser, known_covariance
from experiments.lab.figure import COLOURS, means, panels, save
from experiments.lab.linear import Array, annealed, denoised, kl, langevin, spectrum
from experiments.lab.mixture import Mixture, basis
from experiments.lab.problems import Problem, of_density
from experiments.lab.statistics import Estimate, estimate, select, table
from experiments.lab.training import TUNING_SEED, Setup, excess_loss, fit, tuned

DIM = 16
KAPPA = 1e3
MEAN = 2.0  # of every coordinate; the mean deviation is 1
SCALE = 2.4**2 / DIM  # s_d
SEEDS = range(10)
TINY = 1e-6  # the paper's "very small" epsilon
POINTS = 1000
TIMES = (1, 2, 3, 4, 6, 8, 11, 16, 17, 20, 30, 50, 100, 200, 500, 1000)
SHIFT = 1e4  # of data that single precision is asked for, deviations

# Algorithm 1 with the paper's numbers: T = 100, epsilon = 2e-5, sigma_L = 0.01.
STEPS = 100
ALPHA = 2e-5 / 0.01**2
LADDER = np.geomspace(10.0, 0.01, 28)  # a ratio of 1.29, and 2800 evaluations
ENSEMBLE = 1000
NETWORK_SEEDS = range(5)
RATES = (1e-3, 3e-3, 1e-2, 3e-2)
METRICS = {"paper": "literal", "whitened": "corrected", "pixel": "corrected, default"}
MATTERS = 1.1  # literal over corrected, from which a misprint is said to matter


class Item(NamedTuple):
    """One line of the table: which formula, and an error that is measured of both readings (smaller is better)."""

    formula: str
    literal: str
    corrected: str
    error: str


_KL, _MOMENTS = "KL of the samples, nats", "KL of the samples' own moments, nats"
_ERROR = f"relative error of C at t = {POINTS}"
_FIELD = "mean square of f - f* over that of f*, mean over the levels"
ITEMS = {
    "first points": Item("Eq. 2.5 at t = 1", f"`s_d (0 + eps I)`, eps = {TINY:g} (0/0 taken as 0)",
        "C_0 until 2 points", "factor by which the noise's deviation is wrong in the worst direction, t = 1"),
    "rank": Item("Eq. 2.5 up to t = d", f"eps = {TINY:g}", "ridge of 1e-3 of the mean variance",
        f"the same at t = 8, d = {DIM}"),
    "divisor": Item("Eq. 2.6's divisor", "divisor k = points", "points - 1", "bias of the trace at n = 4, percent"),
    "recursion": Item("Eq. 2.8 as printed", "as printed", "running moments", _ERROR),
    "sign": Item("Eq. 2.8 with only the bracket mended", "(t - 1) for (t + 1)", "running moments", _ERROR),
    "single precision": Item("Eq. 2.8 all mended", f"the recursion in float32, mean {SHIFT:g} deviations off",
        "running moments in float32", _ERROR),
    "share": Item("Eq. 3.1 as inverse: who rules it", "inverse of Sigma", "inverse of its root",
        "share of the first loss that the quarter of directions with least variance has, percent"),
    "descent": Item("Eq. 3.1 as inverse: linear network", "inverse of Sigma", "inverse of its root",
        "error of a linear D after 1000 steps of descent at its best rate, per data variance"),
    "training": Item("Eq. 3.1 as inverse: small network", "inverse of Sigma", "inverse of its root",
        "the same error of a small network, Adam, 400 steps at its best rate"),
    "output": Item("Eq. 3.1's best output in Alg. 1", "s = D - x~, best under the inverse", "s = f", _KL),
    "variance": Item("Sec. 1's sigma as a variance", "trained with variance sigma, sampled with deviation sigma",
        "deviations", _KL),
    "returns": Item("Alg. 1's return of 0", "returns x_T = 0", "returns x_T",
        "variance missing or too much, percent of the data's"),
    "denoising": Item("Alg. 1 without denoising", "no denoising step", "x_T <- D(x_T)", f"{_KL}, isotropic noise"),
    "shape": Item("Alg. 1's isotropic noise under R = S", "isotropic noise, `s_theta` as it is",
        "noise of the training's shape", _KL),
    "shape, other": Item("Alg. 1's isotropic noise against slow isotropic steps", "isotropic noise, `s_theta` as it is",
        "isotropic noise, the score", _KL),
    "shape, ensemble": Item("the package's `algorithm_1` under R = S", f"`algorithm_1`, {ENSEMBLE} samples",
        "`annealed_langevin`", _MOMENTS),
    "convention": Item("Alg. 1's alpha/2", "drift alpha/2, the paper's", "drift alpha, NCSN's",
        "KL after 10 steps a level, nats"),
    "blind": Item("s(x) without level under R = S: the field", "the best field of no level", "a field for each level",
        _FIELD),
    "blind, isotropic": Item("s(x) without level under R = I: the field", "the best field of no level",
        "a field for each level", _FIELD),
    "blind samples": Item("s(x) without level under R = S: samples", "the best field of no level",
        "a field for each level", _MOMENTS),
    "blind samples, isotropic": Item("s(x) without level under R = I: samples", "the best field of no level",
        "a field for each level", _MOMENTS),
    "single level": Item("a single level", "one level sqrt(s_d)", "a ladder, as many evaluations",
        f"{_KL}, uniform start"),
}  # fmt: skip


def _row(quantity: str, reading: str, value: float, at: float | None = None) -> Row:
    """A number, or a point of a curve."""
    return {"quantity": quantity, "reading": reading, "at": at, "value": float(value)}


def _both(quantity: str, literal: float, corrected: float, at: float | None = None) -> list[Row]:
    return [_row(quantity, "literal", literal, at), _row(quantity, "corrected", corrected, at)]


@cache
def data() -> Mixture:
    """``N(m, S)``: S of condition number 1000 and mean variance 1 in a random basis."""
    vectors = basis(DIM)
    s = (vectors * torch.from_numpy(spectrum(KAPPA, DIM))) @ vectors.T
    return Mixture(torch.full((1, DIM), MEAN, dtype=torch.float64), s.unsqueeze(0))


# -- the covariance: Eq. 2.5, 2.6, 2.8 ---------------------------------------------------------------------------


def recursion(x: Array, reading: str, eps: float, kind: type = np.float64) -> list[Array]:
    """``C_t`` after t = 2, 3, ... points by Eq. 2.8, from the definition at t = 2.

    ``reading``: ``"literal"``, where the bracket closes early and ``(t - 1)`` stands for ``(t + 1)``; ``"sign"``, the
    bracket mended; ``"exact"``, Haario's.
    """
    x = x.astype(kind)
    eye, scale, mean = kind(eps) * np.eye(x.shape[1], dtype=kind), kind(2.4**2 / x.shape[1]), x[:2].mean(0)
    away = x[:2] - mean
    c = scale * (away.T @ away + eye)
    out = [c]
    for t in range(2, len(x)):
        after = mean + (x[t] - mean) / kind(t + 1)
        old, new, point = np.outer(mean, mean), np.outer(after, after), np.outer(x[t], x[t])
        n = kind(t)
        if reading == "literal":
            c = (n - 1) / n * c + scale / n * (n * old) - (n - 1) * new + point + eye
        else:
            sign = n - 1 if reading == "sign" else n + 1
            c = (n - 1) / n * c + scale / n * (n * old - sign * new + point + eye)
        mean = after
        out.append(c)
    return out


def worst_deviation(c: Array, s: Array) -> float:
    """``exp(1/2 max |ln eig(S^-1 C)|)``: the factor by which a deviation is wrong in the worst direction; infinite for
    a C that is not positive definite."""
    factor = np.linalg.inv(np.linalg.cholesky(s))
    values = np.linalg.eigvalsh(factor @ c @ factor.T)
    return float(np.exp(0.5 * np.abs(np.log(values)).max())) if values[0] > 0 else math.inf


def _relative(c: Array, to: Array) -> float:
    return float(np.linalg.norm(c.astype(np.float64) - to) / np.linalg.norm(to))


def covariance_rows(seed: int) -> list[Row]:
    """One stream of points under every reading of the three equations."""
    rows: list[Row] = []
    target = data()
    points = target.sample(POINTS, seed)[0]
    x, s = points.numpy(), target.covariances[0].numpy()
    eye = np.eye(DIM)

    learner = ansn.AdaptiveCovariance(DIM, eps_floor=0.0, initial=1.0)
    for t in range(1, POINTS + 1):
        learner.moments.update(points[t - 1 : t])
        if t in TIMES:
            literal = SCALE * ((np.cov(x[:t].T) if t > 1 else 0.0) + TINY * eye)
            worst = [worst_deviation(c, SCALE * s) for c in (literal, learner.haario()[0].numpy())]
            rows += _both("deviation", *worst, t)
            if t in (1, 8):
                rows += _both("first points" if t == 1 else "rank", *worst)
    readings = {name: recursion(x, name, TINY) for name in ("literal", "sign", "exact")}
    bare = learner.covariance()[0].numpy() + TINY * eye
    for t in TIMES[2:]:
        right = SCALE * (np.cov(x[:t].T) + TINY * eye)
        rows += [_row("recursion error", name, _relative(found[t - 2], right), t) for name, found in readings.items()]
    ours = _relative(SCALE * bare, right)
    for quantity, name in (("recursion", "literal"), ("sign", "sign")):
        rows += _both(quantity, _relative(readings[name][-1], right), ours)
    mean = x.mean(0)
    along = mean @ (readings["sign"][-1] - right) @ mean / (mean @ mean) ** 2
    rows.append(_row("bias along the mean", "sign", along / (2.0 * SCALE)))
    for name in ("literal", "exact"):
        rows.append(_row("smallest eigenvalue", name, np.linalg.eigvalsh(readings[name][-1])[0]))
    far = points + SHIFT
    single = recursion(far.numpy(), "exact", TINY, np.float32)[-1]
    single_learner = ansn.AdaptiveCovariance(DIM, eps_floor=0.0, dtype=torch.float32)
    for part in far.float().split(1):
        single_learner.moments.update(part)
    true = SCALE * (np.cov(far.float().double().numpy().T) + TINY * eye)
    kept = single_learner.covariance()[0].double().numpy()
    rows += _both("single precision", _relative(single, true), _relative(SCALE * (kept + TINY * eye), true))
    for n in (2, 3, 4, 6, 8, 16, 32, 64):
        groups = target.sample(2000 * n, 10_000 + seed)[0].reshape(2000, n, DIM)
        total = (groups - groups.mean(1, keepdim=True)).square().sum((1, 2)).mean() / float(s.trace())
        bias = [100.0 * (float(total) / divisor - 1.0) for divisor in (n, n - 1)]
        rows += _both("trace", *bias, n)
        if n == 4:
            rows += _both("divisor", *map(abs, bias))
    return rows


# -- the loss: Eq. 3.1 -------------------------------------------------------------------------------------------


def loss_rows() -> list[Row]:
    """Exact: who rules the loss, and how gradient descent on a linear denoiser goes. Noise ``Sigma = tau^2 S``, tau 1:
    directions part, and the error of direction j is multiplied by ``1 - eta w_j q_j`` a step, q its variance."""
    l = spectrum(KAPPA, DIM)
    rows: list[Row] = []
    quarter = DIM // 4
    for reading, weight in (("literal", l**-2.0), ("corrected", 1.0 / l), ("corrected, default", np.ones(DIM))):
        share = weight * l / (weight * l).sum()  # of the residual tau L z of a network that gives 0
        rows += [_row("shares", reading, share[j], l[j]) for j in range(DIM)]
        rows.append(_row("share", reading, 100.0 * share[-quarter:].sum()))
        for steps in (1, 3, 10, 30, 100, 300, 1000, 3000):
            error = descent(l, weight, steps)
            rows.append(_row("descent curve", reading, error, steps))
            if steps == 1000:
                rows.append(_row("descent", reading, error))
    return rows


def descent(l: Array, weight: Array, steps: int) -> float:
    """``E|D - D*|^2 / tr S`` of ``D = A x~`` from A = 0 after so many steps of gradient descent, at the rate of a fine
    grid that is best for it; x~ of variance 2 l, D* = x~ / 2."""
    rates = np.geomspace(1e-3, 1.999, 400)[:, None] / (weight * 2.0 * l).max()
    left = np.abs(1.0 - rates * weight * 2.0 * l) ** (2 * steps)
    return float(((2.0 * l * 0.25 * left).sum(1) / l.sum()).min())


def gaussian_problem(quick: bool = False) -> Problem:
    """The Gaussian as something to learn."""
    sizes = (1000, 200) if quick else (8000, 2000)
    return of_density("gaussian", data(), 64, sizes, PixelFeatures((DIM,), "gaussian"))


def training_rows(metric: str, settings: Settings) -> list[Row]:
    """The package's loss under one metric, noise of ``rho = 0.9``, at the rate that is best for that metric."""
    problem, steps = gaussian_problem(settings.quick), 20 if settings.quick else 400
    base = Setup("fixed rho=0.9", steps=steps, metric=metric)
    rates = RATES[1:2] if settings.quick else RATES
    rate = tuned(problem, replace(base, seed=TUNING_SEED), rates)
    at = tuple(sorted({max(1, steps // k) for k in (1, 2, 4, 8)}))
    rows: list[Row] = []
    for seed in NETWORK_SEEDS[:2] if settings.quick else NETWORK_SEEDS:
        for trained in fit(problem, replace(base, seed=seed, lr=rate), at):
            found = {"training curve": (pixel_error(trained.model, problem), trained.step)}
            if trained.step == steps:
                found["training"] = found["training curve"][0], None
                found["training, whitened"] = excess_loss(trained, problem), None
            told = {"seed": seed, "lr": rate}
            rows += [_row(quantity, METRICS[metric], *point) | told for quantity, point in found.items()]
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


def chain(reading: str, l: Array, r: Array, steps: int = STEPS, alpha: float = ALPHA, taus: Array = LADDER) -> Any:
    """Mean and variance of every direction that annealed Langevin ends with, from ``N(m, tau_1^2 I)``, no denoising.

    ``reading``: ``shaped`` (steps of the noise's own shape), ``isotropic`` (the same density by isotropic steps as long
    as the narrowest direction of R allows), ``printed`` (Algorithm 1 with the whitened output f of a symmetric root),
    ``inverse`` (Algorithm 1 with ``D - x~``, the best output of Eq. 3.1 with the inverse), ``variance`` (a network
    trained with noise of variance sigma where the sampler takes sigma for the deviation).
    """
    mean, variance = np.zeros_like(l), np.full_like(l, taus[0] ** 2)
    if reading in ("shaped", "isotropic"):
        return annealed(mean, variance, l, r, taus, steps, alpha, None if reading == "shaped" else r.min())
    for tau in taus:
        total, noise = l + tau**2 * r, np.full_like(l, alpha * tau**2)
        drift = {"printed": noise * np.sqrt(r), "inverse": noise * tau * r, "variance": noise}[reading]
        total = l + tau * r if reading == "variance" else total
        mean, variance = langevin(mean, variance, total, drift, noise, steps)
    return mean, variance


def sampling_rows() -> list[Row]:
    """Algorithm 1 and its corrections with the exact score, in closed form."""
    rows: list[Row] = []
    l, one = spectrum(KAPPA, DIM), np.ones(DIM)
    last = LADDER[-1:]

    def of(end: Any) -> float:
        return float(kl(*end, l))

    shaped, wrong, slow = (chain(name, l, l) for name in ("shaped", "printed", "isotropic"))
    for name, end in (("target", (0.0, l)), ("literal", wrong), ("shaped", shaped), ("isotropic", slow)):
        rows += [_row("variances", name, end[1][j], l[j]) for j in range(DIM)]
    plain = chain("shaped", l, one)
    ended = tuple(part[0] for part in denoised(plain[0][None], plain[1][None], l, one, last))
    for quantity, literal, corrected in (
        ("shape", wrong, shaped), ("shape, other", wrong, slow), ("output", chain("inverse", l, one), plain),
        ("variance", chain("variance", l, one), plain), ("denoising", plain, ended),
    ):  # fmt: skip
        rows += _both(quantity, of(literal), of(corrected))
    rows += _both("returns", 100.0, 100.0 * abs(1.0 - plain[1].sum() / l.sum()))
    for steps in (1, 2, 4, 10, 20, 40, 100, 200, 400, 1000):
        values = [of(chain("shaped", l, one, steps=steps, alpha=alpha)) for alpha in (ALPHA, 2.0 * ALPHA)]
        rows += _both("convention curve", *values, steps)
        if steps == 10:
            rows += _both("convention", *values)
    for evaluations in (30, 100, 300, 1000, 2800, 10_000, 100_000):
        steps = max(1, evaluations // len(LADDER))
        single = of(_from_uniform(l, np.array([math.sqrt(SCALE)]), evaluations))
        values = [single, of(_from_uniform(l, LADDER, steps))]
        rows += _both("levels curve", *values, evaluations)
        if evaluations == 2800:
            rows += _both("single level", *values)
    return rows


def _from_uniform(l: Array, taus: Array, steps: int) -> Any:
    """Isotropic chain from the paper's start, coordinates uniform in [0, 1]: moments about the data's mean, and the
    direction of the mean's error spread evenly over the eigenvectors."""
    mean, variance = np.full_like(l, 0.5 - MEAN), np.full_like(l, 1.0 / 12.0)
    return annealed(mean, variance, l, np.ones_like(l), taus, steps, ALPHA)


def ensemble_rows(seed: int, settings: Settings) -> list[Row]:
    """The package's own samplers with the exact denoiser, R = S: ``KL(N(moments of the samples) || data)``."""
    target, n, steps = data(), 200 if settings.quick else ENSEMBLE, 2 if settings.quick else STEPS
    covariance = known_covariance([target], rho=1.0, eps=0.0, root="symmetric", factor_dtype=torch.float64)
    model = ExactDenoiser(ansn.NoiseModel(covariance, ansn.levels.Levels(tuple(LADDER.tolist()))), [target])
    z = torch.randn(n, DIM, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    start = target.means + LADDER[0] * z
    told: dict[str, Any] = {"steps": steps, "seed": seed}
    runs: dict[str, Callable[[], Tensor]] = {
        "literal": lambda: ansn.sampling.algorithm_1(model, start, **told),
        "corrected": lambda: ansn.sampling.annealed_langevin(model, start, denoise=False, **told),
        "floor": lambda: target.sample(n, 30_000 + seed)[0],
    }
    return [_row("shape, ensemble", reading, moments_kl(draw(), target)) for reading, draw in runs.items()]


def moments_kl(x: Tensor, target: Mixture) -> float:
    """``KL(N(mean, covariance of the rows) || N(m, S))``, nats."""
    factor = torch.linalg.cholesky(target.covariances[0])
    white = torch.linalg.solve_triangular(factor, (x.double() - target.means[0]).T, upper=False)
    c = torch.cov(white)
    return 0.5 * float(c.trace() - DIM - torch.logdet(c) + white.mean(1).square().sum())


# -- s(x) without level ------------------------------------------------------------------------------------------


def blind_rows(seed: int, settings: Settings) -> list[Row]:
    """Error of ``E[f | x~]`` over the ladder's levels, the best that a field without level can be, by Monte Carlo
    over x~ and exactly over the levels; and what annealed Langevin makes of it, beside the same chain with f."""
    l = spectrum(KAPPA, DIM)
    n, steps = (100, 1) if settings.quick else (1000, 40)
    rows: list[Row] = []

    for name, r in (("", l), (", isotropic", np.ones(DIM))):
        generator, found = np.random.default_rng(seed), []
        for tau in LADDER:
            x = generator.standard_normal((n, DIM)) * np.sqrt(l + tau**2 * r)
            f = whitened(x, l, r, tau)
            found.append(float(np.square(blind(x, l, r) - f).mean() / np.square(f).mean()))
            rows.append(_row(f"blind curve{name}", "literal", found[-1], tau))
        rows += _both(f"blind{name}", np.mean(found), 0.0)
        diagonal = Mixture(torch.zeros(1, DIM), torch.diag(torch.from_numpy(l))[None])
        for reading in ("literal", "corrected"):
            generator = np.random.default_rng(seed)
            x = generator.standard_normal((n, DIM)) * np.sqrt(l + LADDER[0] ** 2 * r)
            for tau in LADDER:
                for _ in range(steps):
                    f = blind(x, l, r) if reading == "literal" else whitened(x, l, r, tau)
                    z = generator.standard_normal(x.shape)
                    x = x + np.sqrt(r) * tau * (0.5 * ALPHA * f + math.sqrt(ALPHA) * z)
            rows.append(_row(f"blind samples{name}", reading, moments_kl(torch.from_numpy(x), diagonal)))
        floor = generator.standard_normal((n, DIM)) * np.sqrt(l)
        rows.append(_row(f"blind samples{name}", "floor", moments_kl(torch.from_numpy(floor), diagonal)))
    return rows


def whitened(x: Array, l: Array, r: Array, tau: float) -> Array:
    """``f* = -tau sqrt(r) x / (l + tau^2 r)`` of every direction."""
    return np.asarray(-tau * np.sqrt(r) * x / (l + tau**2 * r))


def blind(x: Array, l: Array, r: Array, taus: Array = LADDER) -> Array:
    """``E[f | x~] = sum_i p(i | x~) f_i(x~)``, the levels equally likely."""
    total = l + np.square(taus)[:, None] * r
    logs = -0.5 * (np.log(total).sum(1) + (np.square(x)[:, None] / total).sum(2))
    share = np.exp(logs - logs.max(1, keepdims=True))
    share /= share.sum(1, keepdims=True)
    gains = -taus[:, None] * np.sqrt(r) / total
    return np.asarray((share @ gains) * x)


# -- the claim ---------------------------------------------------------------------------------------------------


def cells(settings: Settings) -> list[Cell]:
    """Closed forms once; streams, ensembles and Monte Carlo under seeds; training for each metric."""
    seeds = SEEDS[:2] if settings.quick else SEEDS
    out: list[Cell] = [{"part": "loss", "run": 0}, {"part": "sampling", "run": 0}]
    out += [{"part": "covariance", "run": seed} for seed in seeds]
    out += [{"part": "blind", "run": seed} for seed in seeds[:5]]
    out += [{"part": "ensemble", "run": seed} for seed in seeds[:5]]
    return [*out, *({"part": f"training, {metric}", "run": 0} for metric in METRICS)]


def run(cell: Cell, settings: Settings) -> list[Row]:
    """Rows of ``quantity, reading, at, value``: a number where ``at`` is empty, else a point of a curve."""
    part, seed = cell["part"], cell["run"]
    if part.startswith("training"):
        return training_rows(part.removeprefix("training, "), settings)
    makers: dict[str, Callable[[], list[Row]]] = {
        "loss": loss_rows, "sampling": sampling_rows, "covariance": lambda: covariance_rows(seed),
        "blind": lambda: blind_rows(seed, settings), "ensemble": lambda: ensemble_rows(seed, settings),
    }  # fmt: skip
    return [{"seed": seed} | row for row in makers[part]()]


def section(rows: list[Row], folder: Path) -> Section:
    """One line for each formula, one figure, and the sentences that they bear out."""
    found = {name: verdict for name in ITEMS if (verdict := _verdict(rows, name))}
    groups = {sign: [name for name, verdict in found.items() if verdict.sign == sign] for sign in (1, 0, -1)}
    ordered = sorted(groups[1], key=lambda name: found[name].factor)
    least = ", ".join(f"{ITEMS[name].formula} ({found[name].factor:.2g} times)" for name in ordered[:3])
    above = sum(found[name].factor >= 10.0 for name in ordered)
    parts = [
        f"{len(ordered)} have the literal reading worse, {above} of them by a factor of 10 or more, least {least}",
        f"{len(groups[0])} show no difference ({_named(groups[0])})",
        f"{len(groups[-1])} have it better than the correction ({_named(groups[-1])})",
    ]
    told = "; ".join(part for part, sign in zip(parts, (1, 0, -1), strict=True) if groups[sign])
    return Section(
        question="The paper as printed: what do its formulas give literally, against the corrected forms?",
        answer=f"Of {len(found)} errors measured of a literal reading and its correction on Gaussian data, {told}.",
        design=_DESIGN,
        tables=[("An error of both readings, smaller is better (mean and 95 % interval over seeds)", _table(found))],
        figures=[("What each misprint does", _figure(rows, folder / "paper_as_printed.png"))],
        findings=_findings(rows),
        change="Data whose mean is 0 (the sign in Eq. 2.8 then costs nothing), or of unit covariance (Algorithm 1's "
        "isotropic steps are then right). In few dimensions and on one mode a field without level and a single level "
        "are asked for less than on images.",
    )


_DESIGN = f"""Gaussian data N(m, S) in {DIM} dimensions, condition number {KAPPA:g} in a random basis, mean variance
1, m = {MEAN:g} in every coordinate. Eq. 2.5, 2.6 and 2.8: {len(SEEDS)} streams of {POINTS} points, against the
definition in float64 or the true covariance. Eq. 3.1: exact for a linear network under full-batch descent (noise R =
S, tau = 1); and a small MLP trained by the package under each metric (noise of rho = 0.9, {len(NETWORK_SEEDS)} seeds,
learning rate tuned for each metric by its own held-out loss under another seed). Algorithm 1: exact recursions with
the exact score, the paper's T = {STEPS}, epsilon = 2e-5 and sigma_L = 0.01, {len(LADDER)} geometric levels from 10,
started from N(m, sigma_1^2 I) but for the last line; and the package's own `algorithm_1` and `annealed_langevin` on
{ENSEMBLE} samples (floor: as many points of the data). s(x) without level: E[f | x~] over the ladder, exact but for
Monte Carlo over x~. A reading is called worse where its error is over {MATTERS} times the other and, where there are
seeds, the paired interval leaves out 0."""


@dataclass(frozen=True)
class _Verdict:
    """Both readings of a line, and 1 where the literal one is worse, -1 where it is better, else 0."""

    literal: Estimate
    corrected: Estimate
    sign: int

    @property
    def factor(self) -> float:
        """Literal over corrected; infinite where the corrected form has no error."""
        return self.literal.mean / self.corrected.mean if self.corrected.mean > 0 else math.inf


def _verdict(rows: list[Row], name: str) -> _Verdict | None:
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
    return _Verdict(literal, corrected, sign)


def _number(value: Any) -> float:
    """A chain that has no variance any more has an infinite error."""
    out = math.inf if value is None else float(value)
    return math.inf if math.isnan(out) else out


def _named(names: list[str]) -> str:
    return ", ".join(dict.fromkeys(ITEMS[name].formula for name in names))


def _table(found: dict[str, _Verdict]) -> str:
    lines = []
    for name, verdict in found.items():
        item, shown = ITEMS[name], [_show(each) for each in (verdict.literal, verdict.corrected)]
        told = {1: "worse", 0: "no difference seen", -1: "better"}[verdict.sign]
        lines.append([item.formula, item.error, item.literal, shown[0], item.corrected, shown[1], told])
    return table(["formula", "error", "literal", "its error", "corrected", "its error", "literal is"], lines)


def _show(value: Estimate) -> str:
    if math.isinf(value.mean):
        return "infinite"
    exact = value.half <= 1e-9 * abs(value.mean)  # the same under every seed
    return f"{value.mean:.3g}" if exact else value.show(3)


def _mean(rows: list[Row], quantity: str, reading: str) -> Estimate | None:
    values = [_number(row["value"]) for row in select(rows, quantity=quantity, reading=reading, at=None)]
    return estimate(values) if values else None


def _findings(rows: list[Row]) -> list[str]:
    out = []
    bias, low = _mean(rows, "bias along the mean", "sign"), _mean(rows, "smallest eigenvalue", "literal")
    if bias and low:
        near = "as the errata say" if abs(bias.mean - 1.0) < 0.1 else "which is not what the errata say"
        out.append(
            f"Eq. 2.8 with the bracket mended and the sign as printed is silently off by {bias.show(3)} times "
            f"2 s_d m m^T at t = {POINTS}, {near}; as printed its smallest eigenvalue is {low.show(3)}"
            + (": no covariance at all." if low.high < 0 else ".")
        )
    told = [number.show(3) for name in METRICS.values() if (number := _mean(rows, "training, whitened", name))]
    default = _mean(rows, "training", "corrected, default")
    if len(told) == 3 and default:
        out.append(
            f"Trained networks, excess loss 1/2 E|f - f*|^2 / d over all levels: inverse of Sigma {told[0]}, of its "
            f"root {told[1]}, the default pixel metric {told[2]} (its error at tau = 1: {default.show(3)})."
        )
    slow, printed = _mean(rows, "shape, other", "corrected"), _mean(rows, "shape", "literal")
    if slow and printed:
        out.append(
            f"With the right score and isotropic steps (`precondition=False`) the chain has the right density as its "
            f"limit, but after {STEPS * len(LADDER)} evaluations its KL is {slow.mean:.3g} nats, "
            + ("more" if slow.mean > printed.mean else "less")
            + f" than the printed algorithm's {printed.mean:.3g}: its step has to fit the narrowest direction."
        )
    told = [f.show(2) for name in ("literal", "corrected", "floor") if (f := _mean(rows, "blind samples", name))]
    if len(told) == 3:
        out.append(
            f"Samples by the field without level, R = S: KL of their moments {told[0]} nats, with the levels "
            f"{told[1]}, of as many points of the data {told[2]}."
        )
    return out


_READINGS = {
    "literal": 3, "corrected": 0, "corrected, default": 2, "sign": 1, "exact": 0, "target": 7, "shaped": 0,
    "isotropic": 4,
}  # fmt: skip


def _figure(rows: list[Row], path: Path) -> str:
    figure, axes = panels(9, height=3.2)
    metrics = {"literal": "inverse of Sigma", "corrected": "inverse of its root", "corrected, default": "pixel metric"}
    plans: list[tuple[str, str, str, str, dict[str, str], str]] = [
        ("deviation", "Eq. 2.5: first points", "points t", "worst deviation, factor",
         {"literal": "eps = 1e-6, 0/0 = 0", "corrected": "C_0, then a ridge of 1e-3"}, "xy"),
        ("trace", "Eq. 2.6: divisor", "points", "bias of the trace, %",
         {"literal": "n", "corrected": "n - 1"}, "2"),
        ("recursion error", "Eq. 2.8: recursion", "points t", "relative error of C",
         {"literal": "as printed", "sign": "sign as printed", "exact": "Haario's"}, "xy"),
        ("shares", "Eq. 3.1: who rules the loss", "variance of the direction", "share of the first loss", metrics,
         "xy"),
        ("training curve", "Eq. 3.1: a network learns", "step", "error of D over tr S", metrics, "2y"),
        ("variances", "Alg. 1 under R = S: what it samples", "variance of the data", "variance of the samples",
         {"target": "data", "literal": "as printed", "shaped": "steps of shape R",
          "isotropic": "isotropic steps, the score"}, "xy"),
        ("convention curve", "Alg. 1: alpha/2 or alpha", "steps a level", "KL, nats",
         {"literal": "the paper's alpha/2", "corrected": "NCSN's alpha"}, "xy"),
        ("blind curve", "s(x) without level", "level tau", "E|f - f*|^2 / E|f*|^2", {"literal": "R = S"}, "xy"),
        ("levels curve", "one level or a ladder", "evaluations", "KL, nats",
         {"literal": "one, sqrt(s_d)", "corrected": f"{len(LADDER)} levels"}, "xy"),
    ]  # fmt: skip
    for axis, (quantity, title, x, y, readings, logs) in zip(axes, plans, strict=True):
        for reading, name in readings.items():
            _curve(axis, rows, quantity, reading, name, _READINGS[reading])
        if quantity == "blind curve":
            _curve(axis, rows, "blind curve, isotropic", "literal", "R = I", 0)
        if quantity == "variances" and axis.lines:
            at = sorted({row["at"] for row in select(rows, quantity=quantity)})
            axis.plot(at, np.sqrt(at), color=COLOURS[3], linestyle=":", label="square root of the data's")
        axis.set(title=title, xlabel=x, ylabel=y)
        if axis.lines:
            axis.set_xscale("log", base=2 if "2" in logs else 10)
            axis.set_yscale("log" if "y" in logs else "linear")
            axis.legend(fontsize=7)
    return save(figure, path)


def _curve(axis: Any, rows: list[Row], quantity: str, reading: str, name: str, colour: int) -> None:
    found = select(rows, quantity=quantity, reading=reading)
    finite = [row for row in found if math.isfinite(_number(row["value"]))]
    if finite:
        means(axis, finite, "at", "value", label=name, colour=colour)


CLAIM = Claim("paper_as_printed", cells, run, section)

if __name__ == "__main__":
    sys.exit(main(CLAIM, __doc__))
