"""Does noise shaped like the data keep modes that isotropic noise loses?

    python -m experiments.mode_collapse

Three kinds of cells, in 8 dimensions and a random basis. ``exact``: the package's samplers on the closed-form denoiser
of two, eight or rotated components, so that what is lost is lost by levels and steps. ``transport``: Langevin and the
flow started with everything in one mode, against the mixing rate of the Fokker-Planck generator. ``learned``: the same
densities learned by a small network, under every control, judged beside exact samples of the same number.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.linalg import eigh_tridiagonal, solve_banded
from scipy.optimize import brentq
from scipy.stats import norm
from torch import Tensor

import ansn
from ansn.evaluation import PixelFeatures
from ansn.evaluation.discrepancy import sliced_to
from ansn.evaluation.resampling import Statistic, of_all
from experiments.lab import figure
from experiments.lab.claim import Cell, Claim, Row, Section, Settings, main
from experiments.lab.exact import ExactDenoiser, known_noise
from experiments.lab.mixture import Mixture, basis
from experiments.lab.problems import Problem, of_density
from experiments.lab.statistics import WORDS, Estimate, estimate, listed, mean, paired, select, table, unique
from experiments.lab.training import TUNING_SEED, WIENER, Setup, Trained, fit, halfway, tuned

DIM = 8
N = 1000  # samples of a seed
BOTTOM, LOW = 0.01, 1e-4  # last level of the ladders
RUNGS, PER_RUNG = 10, 100  # of annealed Langevin: NCSN's and the paper's budget
ALPHA = 0.2  # the paper's dimensionless step, 2e-5 / 0.01^2
STEPS, EIGHT_STEPS, RATES = 700, 1200, (5e-4, 1e-3, 2e-3)
OUTSIDE = 1e-3  # share of a component that lies outside of its box
EXACT_SHAPES = ("rho=0", "diagonal", "rho=0.2", "rho=0.5", "rho=0.8", "rho=0.9", "rho=1", "whitened")
FEW_SHAPES = ("rho=0", "rho=0.5", "rho=1", "whitened")
CONTROL = "rho=0"

_ADAPTED = ("rho=0.2", "rho=0.5", "rho=0.8", "rho=0.9", "rho=1")
_GLOBAL = ("rho=0", "diagonal", "whitened", "fixed rho=0.5", *_ADAPTED, *WIENER)
VARIANTS = {
    **{s: Setup(s) for s in _GLOBAL},
    "rho=0 lower levels": Setup("rho=0", log_mean=-2.0),
    "rho=1 whitened metric": Setup("rho=1", metric="whitened"),
    "rho=0 told": Setup("rho=0", labels="network"),
    "rho=0.5 regions": Setup("rho=0.5", labels="regions"),
    "rho=1 regions": Setup("rho=1", labels="regions"),
}
_ALL = (*_GLOBAL, "rho=0 lower levels", "rho=1 whitened metric")
_ROTATED = ("rho=0", "rho=0.5", "rho=1", "rho=0 told", "rho=0.5 regions", "rho=1 regions")


# -- densities ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scene:
    """A mixture; ``halves``: half of the vector between two modes, for each pair of directions that separates them;
    ``within``: the modes' common covariance, None where they have none."""

    density: Mixture
    halves: tuple[Tensor, ...] = ()
    within: Tensor | None = None


@cache
def scene(modes: str, half: float, ratio: float, share: float) -> Scene:
    """``two``: ``share N(h e, W) + (1 - share) N(-h e, W)``, W of deviation ``half / ratio`` along e and 1 elsewhere.
    ``eight``: all signs of ``h (e_1, e_2 / 5, e_3 / 25)``, deviations a ``ratio``-th of these along e_1 to e_3.
    ``rotated``: four of mean 0, deviations ``half`` in two directions each of their own and ``half / ratio`` in the
    others, so that the whole covariance is a multiple of the identity."""
    q = basis(DIM)
    if modes == "rotated":
        spread = torch.full((4, DIM), (half / ratio) ** 2, dtype=torch.float64)
        for c in range(4):
            spread[c, 2 * c : 2 * c + 2] = half**2
        return Scene(Mixture(torch.zeros(4, DIM), torch.einsum("ij,cj,kj->cik", q, spread, q)))
    sizes = [half] if modes == "two" else [half, half / 5, half / 25]
    deviations = torch.ones(DIM, dtype=torch.float64)
    deviations[: len(sizes)] = torch.tensor(sizes, dtype=torch.float64) / ratio
    within = q * deviations.square() @ q.T
    halves = tuple(size * q[:, j] for j, size in enumerate(sizes))
    both = torch.tensor([1.0, -1.0], dtype=torch.float64)
    signs = torch.cartesian_prod(*[both] * len(halves)).reshape(-1, len(halves))
    weights = torch.where(signs == 1.0, share, 1.0 - share).prod(1)
    return Scene(Mixture(signs @ torch.stack(halves), within.expand(len(signs), -1, -1), weights), halves, within)


# -- what theory says --------------------------------------------------------------------------------------------


def critical(share: float) -> float:
    """Least squared Mahalanobis distance from the centre at which ``q N(-m, P) + share N(m, P)`` has two modes.

    Along m, in units of m, stationary points solve ``t = tanh(beta t + h)``, ``h = ln(share / q) / 2``, beta the
    squared distance. There are three iff ``beta > 1`` and ``|h| <= beta t_s - artanh t_s``, where
    ``t_s = sqrt(1 - 1 / beta)``; so 1 for equal weights, 2.22 for 0.8 to 0.2.
    """
    h = abs(0.5 * math.log(share / (1.0 - share)))

    def spare(beta: float) -> float:
        t = math.sqrt(1.0 - 1.0 / beta)
        return beta * t - math.atanh(t) - h

    return 1.0 if h == 0.0 else float(brentq(spare, 1.0 + 1e-9, 2.0 + 2.0 * h))


def merge_level(half: Tensor, within: Tensor, shape: Tensor, share: float = 0.5) -> float:
    """Level above which noise ``tau^2 R`` makes one mode of two: ``a^T (W + tau^2 R)^-1 a = critical(share)``; 0 if
    they are one without noise. Where a is an eigenvector: ``tau^2 = (a^2 / critical - w^2) / r``."""
    least = critical(share)

    def excess(log_tau: float) -> float:
        return float(half @ torch.linalg.solve(within + math.exp(2.0 * log_tau) * shape, half)) - least

    low, high = -30.0, 30.0
    return 0.0 if excess(low) <= 0.0 else math.exp(brentq(excess, low, high))


def _jumps(y: Any, half: float, deviation: float, share: float, rate: float) -> tuple[Any, Any, Any]:
    """Rates between neighbouring cells, up and down, and out of each, of two modes at +-half on a grid."""
    logs = np.logaddexp(
        math.log(share) - 0.5 * ((y - half) / deviation) ** 2, math.log1p(-share) - 0.5 * ((y + half) / deviation) ** 2
    )
    change = np.clip(np.diff(logs), -50.0, 50.0)
    up, down = rate * np.exp(0.5 * change), rate * np.exp(-0.5 * change)
    return up, down, np.append(up, 0.0) + np.insert(down, 0, 0.0)


def mixing_rate(half: float, width: float, r: float, tau: float, share: float = 0.5, cells: int = 800) -> float:
    """Second eigenvalue of Langevin's generator at one level, along the line between two modes, per unit of
    ``alpha`` times steps.

    A step of size alpha is time alpha of ``dy = tau^2 r / 2 (ln p_tau)' ds + tau sqrt(r) dW``, so the memory of where
    one began is ``exp(-alpha T lambda)`` after T steps. Finite volumes: jumps between cells i and i + 1 at rate
    ``tau^2 r / (2 h^2) sqrt(p_{i+1} / p_i)`` and back, reversible for any h. A single Gaussian of deviation s has
    ``tau^2 r / (2 s^2)``.
    """
    noise = tau * tau * r
    deviation = math.sqrt(width * width + noise)
    y, h = np.linspace(-half - 7 * deviation, half + 7 * deviation, cells, retstep=True)
    rate = 0.5 * noise / h**2
    _, _, leaving = _jumps(y, half, deviation, share, rate)
    # Similar to the symmetric matrix of off-diagonals -sqrt(up down) = -rate.
    values = eigh_tridiagonal(leaving, np.full(cells - 1, -rate), eigvals_only=True, select="i", select_range=(1, 1))
    return max(float(values[0]), 0.0)


def freezing_level(half: float, width: float, r: float, steps: int, share: float = 0.5) -> float:
    """Level under which T steps no longer carry mass between the modes: ``alpha T lambda(tau) = 1``; 0 if there is none
    above 1e-4, infinite if even merged modes do not mix in so few steps."""

    def excess(log_tau: float) -> float:
        return ALPHA * steps * mixing_rate(half, width, r, math.exp(log_tau), share) - 1.0

    low, high = math.log(1e-4), math.log(1e3)
    if excess(low) > 0.0:
        return 0.0
    return math.inf if excess(high) < 0.0 else math.exp(brentq(excess, low, high, xtol=1e-3))


def annealed_share(
    half: float, width: float, r: float, taus: Sequence[float], steps: int, share: float, cells: int = 600
) -> float:
    """Share of the mode at ``+half`` after annealing from that mode alone, perturbed at the first level: the
    Fokker-Planck equation of :func:`mixing_rate`, by backward Euler steps of at most 0.05."""
    deviation = [math.sqrt(width * width + (tau * r**0.5) ** 2) for tau in taus]
    edges = np.linspace(-half - 8 * deviation[0], half + 8 * deviation[0], cells + 1)
    cumulative = norm.cdf(edges, half, deviation[0])
    for i, tau in enumerate(taus):
        reach = half + 8 * deviation[max(i - 1, 0)]  # what the level before left is as wide as that one
        grid = np.linspace(-reach, reach, cells + 1)
        mass = np.diff(np.interp(grid, edges, cumulative))
        edges, y, h = grid, 0.5 * (grid[1:] + grid[:-1]), grid[1] - grid[0]
        up, down, leaving = _jumps(y, half, deviation[i], share, 0.5 * tau * tau * r / h**2)
        count = max(1, math.ceil(ALPHA * steps / 0.05))
        dt = ALPHA * steps / count
        banded = np.zeros((3, cells))
        banded[0, 1:], banded[2, :-1] = -dt * down, -dt * up
        banded[1] = 1.0 + dt * leaving
        for _ in range(count):
            mass = solve_banded((1, 1), banded, mass, check_finite=False)
        cumulative = np.insert(np.cumsum(mass), 0, 0.0)
        cumulative /= cumulative[-1]
    return 1.0 - float(np.interp(0.0, edges, cumulative))


def flow_share(half: float, width: float, r: float, top: float, share: float) -> float:
    """The same after the flow, which keeps order on the line: ``1 - F(q)``, F of the start, q the quantile of the
    perturbed mixture below which there is what belongs to the other mode."""
    deviation = math.sqrt(width * width + top * top * r)

    def below(q: float) -> float:
        return share * norm.cdf(q, half, deviation) + (1 - share) * norm.cdf(q, -half, deviation) - (1 - share)

    reach = half + 12 * deviation
    return 1.0 - float(norm.cdf(brentq(below, -reach, reach), half, deviation))


# -- what samples say --------------------------------------------------------------------------------------------


@cache
def _yardstick(modes: str, half: float, ratio: float, share: float) -> tuple[Statistic, Tensor, Tensor]:
    """Sliced distance to 20,000 exact points in whitened coordinates, the whitening, and the shares of the bins."""
    density = scene(modes, half, ratio, share).density
    inverse = torch.linalg.inv(torch.linalg.cholesky(density.covariance()))
    x, _ = density.sample(20_000, seed=77)
    return sliced_to((x @ inverse.T).numpy(), projections=64), inverse, _bins(density, x)[0]


def _bins(density: Mixture, x: Tensor) -> tuple[Tensor, Tensor]:
    """Shares of the components and, last, of what is in none of them; the component of every point.

    A point is in the component it is likeliest of if no coordinate in that one's principal axes is beyond a quantile
    that leaves out a share OUTSIDE of it."""
    owner = density.responsibilities(x).argmax(1)
    limit = float(norm.isf(OUTSIDE / (2 * density.dim)))
    values, vectors = torch.linalg.eigh(density.covariances)
    away = torch.einsum("bji,bj->bi", vectors[owner], x - density.means[owner]) / values[owner].sqrt()
    inside = (away.abs() <= limit).all(1)
    count = len(density.means)
    shares = torch.bincount(torch.where(inside, owner, count), minlength=count + 1).double() / len(x)
    return shares, owner


def judge(x: Tensor, modes: str, half: float, ratio: float, share: float) -> dict[str, float]:
    """``tv``: total variation of the modes' shares and of the share in none, against exact ones; ``weights``: of the
    shares of the likeliest mode alone; ``outside``: share in no mode; ``cov``: mean over modes of
    ``|W^-1/2 S W^-1/2 - I|_F / sqrt(d)`` of the points likeliest of it, 1 for a mode with fewer than d + 2; ``sw2``:
    sliced W2 in whitened coordinates. All of a sample that is not finite is infinite."""
    if not bool(torch.isfinite(x).all()):
        return dict.fromkeys(("tv", "weights", "outside", "cov", "sw2"), math.inf)
    density = scene(modes, half, ratio, share).density
    distance, inverse, exact = _yardstick(modes, half, ratio, share)
    x = x.double()
    shares, owner = _bins(density, x)
    errors = []
    for c, covariance in enumerate(density.covariances):
        rows = x[owner == c]
        if len(rows) < density.dim + 2:
            errors.append(1.0)
            continue
        factor = torch.linalg.cholesky(covariance)
        own = torch.linalg.solve_triangular(factor, (rows - rows.mean(0)).T, upper=False)
        error = own @ own.T / (len(rows) - 1) - torch.eye(density.dim)
        errors.append(float(error.norm()) / math.sqrt(density.dim))
    nearest = torch.bincount(owner, minlength=len(density.means)).double() / len(x)
    return {
        "tv": 0.5 * float((shares - exact).abs().sum()),
        "weights": 0.5 * float((nearest - density.weights).abs().sum()),
        "outside": float(shares[-1]),
        "cov": sum(errors) / len(errors),
        "sw2": float(of_all(distance, (x @ inverse.T).numpy())[0]),
    }


@cache
def floor(seed: int, modes: str, half: float, ratio: float, share: float) -> dict[str, float]:
    """:func:`judge` of as many exact samples."""
    x, _ = scene(modes, half, ratio, share).density.sample(N, seed=500 + seed)
    return {f"{name}_floor": value for name, value in judge(x, modes, half, ratio, share).items()}


# -- cells -------------------------------------------------------------------------------------------------------

_HALVES = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003)
_RATIOS = (1.2, 1.5, 2.0, 3.0)
_TOPS = (0.3, 1.0, 3.0, 10.0)
_TIMES = (1, 10, 100)


def cells(settings: Settings) -> list[Cell]:
    """One a density and a shape, all seeds in it."""
    if settings.quick:
        exact = [_cell("exact", "two", 0.1, shape=s, seeds=2) for s in ("rho=0", "rho=1")]
        exact += [_cell("exact", "rotated", 1.0, ratio=8.0, shape=s, seeds=2) for s in ("rho=0", "rho=1 regions")]
        learned = [_cell("learned", "two", 0.1, shape=s, steps=30, seeds=2) for s in ("rho=0", "rho=1", "whitened")]
        learned += [_cell("learned", "rotated", 1.0, ratio=8.0, shape=s, steps=30, seeds=2)
                    for s in ("rho=0", "rho=0 told", "rho=1 regions")]  # fmt: skip
        return [*exact, _cell("transport", "two", 0.1, shape="rho=1", share=0.8, seeds=2), *learned]
    out = [_cell("exact", "two", half, shape=s) for half in _HALVES for s in FEW_SHAPES]
    out += [_cell("exact", "two", 0.1, ratio=ratio, shape=s) for ratio in _RATIOS for s in FEW_SHAPES]
    out += [_cell("exact", "two", 0.1, share=0.8, shape=s) for s in EXACT_SHAPES]
    out += [_cell("exact", "eight", 1.0, shape=s) for s in EXACT_SHAPES]
    rotated = ("rho=0", "rho=1", "rho=0.5 regions", "rho=1 regions")
    out += [_cell("exact", "rotated", 1.0, ratio=8.0, shape=s) for s in rotated]
    out += [_cell("transport", "two", h, share=0.8, shape=s) for h in (3.0, 0.1) for s in ("rho=0", "rho=0.5", "rho=1")]
    out += [_cell("learned", "two", half, shape=s, steps=STEPS) for half in (1.0, 0.3, 0.1) for s in FEW_SHAPES]
    out += [_cell("learned", "two", 0.1, share=0.8, shape=s, steps=STEPS) for s in _ALL]
    out += [_cell("learned", "eight", 1.0, shape=s, steps=EIGHT_STEPS) for s in _GLOBAL]
    out += [_cell("learned", "rotated", 1.0, ratio=8.0, shape=s, steps=STEPS) for s in _ROTATED]
    return out


def _cell(
    kind: str, modes: str, half: float, *, shape: str, ratio: float = 5.0, share: float = 0.5, steps: int = 0,
    seeds: int = 5,
) -> Cell:  # fmt: skip
    return {"kind": kind, "modes": modes, "half": half, "ratio": ratio, "share": share, "shape": shape,
            "steps": steps, "seeds": seeds}  # fmt: skip


def run(cell: Cell, settings: Settings) -> list[Row]:
    """Rows of one cell, every seed."""
    return {"exact": _exact, "transport": _transport, "learned": _learned}[cell["kind"]](cell)


_PLACE = ("modes", "half", "ratio", "share")


def _place(cell: Cell) -> tuple[Any, ...]:
    return tuple(cell[name] for name in _PLACE)


def _noise(cell: Cell, bottom: float) -> tuple[ansn.NoiseModel, list[Mixture]]:
    """Noise of the exact moments, its start from the data as in training; the parts that the denoiser tells apart."""
    density = scene(*_place(cell)).density
    shape, _, regions = cell["shape"].partition(" ")
    parts = [density]
    if regions:
        parts = [Mixture(m[None], s[None]) for m, s in zip(density.means, density.covariances, strict=True)]
    x, owner = density.sample(1000, seed=1)
    return known_noise(parts, shape, x, owner if regions else None, bottom), parts


def _langevin(model: ansn.Denoiser, seed: int, n: int) -> Tensor:
    """The paper's budget from the flow's start: ten levels, a hundred steps each, and a last denoising."""
    levels = model.noise.levels
    taus = ansn.levels.geometric(levels.start or levels.maximum, levels.minimum, n=RUNGS).tau
    draw = ansn.sampling.Draw(model, "langevin", PER_RUNG, taus=torch.tensor(taus, dtype=torch.float64), seed=seed)
    return draw.batch(0, n)


def _exact(cell: Cell) -> list[Row]:
    place, rows = _place(cell), []
    own = scene(*place)
    for sampler, count, schedule, bottom in (
        ("flow", 12, "few_steps", BOTTOM), ("flow", 40, "few_steps", BOTTOM), ("flow low", 40, "karras", LOW),
        ("langevin", RUNGS * PER_RUNG + 1, "", BOTTOM),
    ):  # fmt: skip
        noise, parts = _noise(cell, bottom)
        model = ExactDenoiser(noise, parts)
        shape = noise.covariance.noise_shape()[0]
        shape = shape if shape.ndim == 2 else torch.diag(shape)
        merge = None
        if own.within is not None:
            merge = min(merge_level(half, own.within, shape, cell["share"]) for half in own.halves)
        for seed in range(cell["seeds"]):
            if sampler == "langevin":
                x, last = _langevin(model, seed, N), bottom
            else:
                draw = ansn.sampling.Draw(model, "dpmpp_2m", count, schedule=schedule, seed=seed)
                x, last = draw.batch(0, N), float(draw.taus[-1])
            rows.append({
                "seed": seed, "sampler": sampler, "evaluations": count, "bottom": last, "start": noise.levels.start,
                "merge": merge, **judge(x, *place), **floor(seed, *place), "n": N,
            })  # fmt: skip
    return rows


def _transport(cell: Cell) -> list[Row]:
    """Everything starts in the heavy mode, perturbed at the top level; the rest is the sampler's to bring over."""
    own, rows = scene(*_place(cell)), []
    noise, parts = _noise(cell, BOTTOM)
    model = ExactDenoiser(noise, parts)
    heavy = Mixture(own.density.means[:1], own.density.covariances[:1])
    direction = own.halves[0] / own.halves[0].norm()
    assert own.within is not None
    r = float(direction @ noise.covariance.noise_shape()[0] @ direction)
    width, share = cell["half"] / cell["ratio"], cell["share"]
    merge = merge_level(own.halves[0], own.within, noise.covariance.noise_shape()[0], share)
    for top in _TOPS:
        taus = ansn.levels.geometric(top, BOTTOM, n=RUNGS).tau
        for steps in (*_TIMES, 0):  # 0: the flow
            if steps:
                expected = annealed_share(cell["half"], width, r, taus, steps, share)
                freeze = freezing_level(cell["half"], width, r, steps, share)
            else:
                expected, freeze = flow_share(cell["half"], width, r, top, share), None
            for seed in range(cell["seeds"]):
                x = heavy.sample(N, seed=seed)[0].float()
                x, _ = noise.perturb(x, tau=top, seed=seed, step=1)
                if steps:
                    ladder = torch.tensor(taus, dtype=torch.float64)
                    x = ansn.sampling.annealed_langevin(model, x, ladder, steps=steps, seed=seed)
                else:
                    x = ansn.sampling.dpmpp_2m(model, x, ansn.sampling.schedules.karras(top, BOTTOM, 40))
                found = float(((x.double() @ direction) > 0).double().mean())
                rows.append({
                    "seed": seed, "sampler": "langevin" if steps else "flow", "top": top, "per_rung": steps, "r": r,
                    "merge": merge, "freeze": freeze, "found": found,
                    "predicted": expected, "n": N,
                })  # fmt: skip
    return rows


def modes_problem(cell: Cell) -> Problem:
    """Rows of a cell's density, and its network."""
    return of_density("modes", scene(*_place(cell)).density, 64, features=PixelFeatures((DIM,), "modes"))


def _learned(cell: Cell) -> list[Row]:
    place, rows = _place(cell), []
    learned, base = modes_problem(cell), replace(VARIANTS[cell["shape"]], steps=cell["steps"])
    rate = tuned(learned, halfway(base), RATES)
    for seed in range(cell["seeds"]):
        for trained in fit(learned, replace(base, seed=seed, lr=rate), (max(1, base.steps // 4), base.steps)):
            samplers = ["flow" if trained.step == base.steps else "flow early"]
            if trained.step == base.steps and cell["share"] != 0.5 and cell["shape"] in FEW_SHAPES:
                samplers.append("langevin")
            for sampler in samplers:
                x = _drawn(trained, sampler, seed, cell)
                rows.append({
                    "seed": seed, "sampler": sampler, "step": trained.step,
                    "evaluations": RUNGS * PER_RUNG + 1 if sampler == "langevin" else 20,
                    "start": trained.model.noise.levels.start, **judge(x, *place), **floor(seed, *place), "n": N,
                    "lr": rate,
                })  # fmt: skip
    return rows


def _drawn(trained: Trained, sampler: str, seed: int, cell: Cell) -> Tensor:
    if sampler == "langevin":
        return trained.frame.back(_langevin(trained.model, seed, N))
    y = None
    if "told" in cell["shape"]:  # the same classes that regions draw: k ~ w_k
        count = len(scene(*_place(cell)).density.means)
        y = torch.randint(count, (N,), generator=torch.Generator().manual_seed(seed))
    return trained.sample(N, "dpmpp_2m", 20, seed=seed, y=y)


# -- what the rows say -------------------------------------------------------------------------------------------

_EXACT_SHOWN = (("flow", 12), ("flow", 40), ("flow low", 40), ("langevin", RUNGS * PER_RUNG + 1))
METRICS = {"tv": "shares (TV)", "weights": "nearest mode (TV)", "cov": "covariance", "sw2": "sliced W2"}
Place = tuple[str, float, float, float]


def settings_of(rows: Sequence[Row], kind: str) -> list[Place]:
    """Densities of one kind of cell, in order."""
    return unique(select(rows, kind=kind), *_PLACE)


def named(place: Place) -> str:
    """A density in words."""
    modes, half, ratio, share = place
    if modes == "two":
        weights = "" if share == 0.5 else f", weights {share:g}/{1 - share:g}"
        return f"two, half-distance {half:g} = {ratio:g} widths{weights}"
    return "eight, half-distances 1, 0.2, 0.04" if modes == "eight" else "four rotated, 1 to 0.125"


def of(rows: Sequence[Row], kind: str, place: Place, **more: object) -> list[Row]:
    """Rows of one kind and density."""
    return select(rows, kind=kind, **dict(zip(_PLACE, place, strict=True)), **more)


def against(rows: Sequence[Row], shape: str, control: str, metric: str = "tv") -> Estimate:
    """Paired difference of two shapes among rows of one density and sampler."""
    return paired(select(rows, shape=shape), select(rows, shape=control), metric)


def _learned_flows(rows: Sequence[Row], sampler: str = "flow") -> list[tuple[Place, list[Row]]]:
    """Every learned density and its rows."""
    return [(place, of(rows, "learned", place, sampler=sampler)) for place in settings_of(rows, "learned")]


def _signs(own: Sequence[Row], control: str = CONTROL, shapes: Sequence[str] = _ADAPTED) -> list[int]:
    """What the paired intervals of ``tv`` say of these shapes, as far as they were run, against one control."""
    return [against(own, shape, control).sign for shape in shapes if select(own, shape=shape)]


def answer(rows: Sequence[Row]) -> str:
    """Chosen by the signs of the paired intervals of ``tv``, learned score and flow; then what whitening does, and what
    the exact score says."""
    # Rotated components have no global shape to follow: they are a check that nothing is found there.
    signs = [sign for place, own in _learned_flows(rows) if place[0] != "rotated" for sign in _signs(own)]
    better, pairs = signs.count(-1), len(signs)
    count = f"better in {better} of {pairs} pairs of a setting and a rho, worse in {signs.count(1)}"
    if not pairs:
        head = "No learned rows"
    elif better == pairs:
        head = f"Yes: with a learned score adapted noise kept modes better than isotropic noise in all {pairs} pairs"
    else:
        word = "Not in general" if better else "No"
        head = f"{word}: with a learned score adapted noise against isotropic noise kept modes {count}"
    return "; ".join([head, *_early(rows), *_whitening(rows), *_wiener(rows), *_regions(rows), *_ladder(rows)]) + "."


def _early(rows: Sequence[Row]) -> list[str]:
    """The same counts at a quarter of the steps, over pairs of a density and an adapted shape."""
    signs = [sign for _, own in _learned_flows(rows, "flow early") for sign in _signs(own)]
    told = (
        f"at a quarter of the steps it was better in {signs.count(-1)} of {len(signs)} pairs of a setting and a rho,"
        f" worse in {signs.count(1)}"
    )
    return [told] if signs else []


def _whitening(rows: Sequence[Row]) -> list[str]:
    flows = [own for _, own in _learned_flows(rows) if select(own, shape="whitened")]
    signs = [-sign for own in flows for sign in _signs(own, "whitened")]
    told = (
        f"isotropic noise on whitened data was better than adapted noise in {signs.count(-1)} of {len(signs)} pairs"
        f" of a setting and a rho, worse in {signs.count(1)}"
    )
    return [told] if signs else []


def _regions(rows: Sequence[Row]) -> list[str]:
    """What a shape for each class adds to a network that is told the class."""
    out = []
    for place, own in _learned_flows(rows):
        shapes = [s for s in unique(own, "shape") if "regions" in s]
        if shapes and select(own, shape="rho=0 told"):
            told = [f"{s} {WORDS[against(own, s, 'rho=0 told').sign]}" for s in shapes]
            out.append(f"against isotropic noise with the same labels ({named(place)}): {', '.join(told)}")
    return out


def _wiener(rows: Sequence[Row]) -> list[str]:
    """What a denoiser that begins as the Wiener filter does, under isotropic noise and under noise of rho = 0.5."""
    out = []
    for shape in WIENER:
        bare = shape.removeprefix("wiener ")
        words = [WORDS[sign] for _, own in _learned_flows(rows) for sign in _signs(own, bare, [shape])]
        if words:
            told = ", ".join(f"{word} in {words.count(word)}" for word in dict.fromkeys(words))
            out.append(f"{shape} against {bare}: {told} of {len(words)} settings")
    return out


def _ladder(rows: Sequence[Row]) -> list[str]:
    """With the exact score: densities where rho = 1 beats isotropic noise, on one ladder and with a lower end."""
    places = [place for place in settings_of(rows, "exact") if of(rows, "exact", place, shape="rho=1")]
    same, low = (
        sum(_ahead(of(rows, "exact", place, sampler=sampler, evaluations=40)) for place in places)
        for sampler in ("flow", "flow low")
    )
    told = (
        f"with the exact score and 40 evaluations of the flow rho = 1 had the better modes in {same} of {len(places)}"
        f" settings on one ladder to {BOTTOM:g}, in {low} on one to {LOW:g}"
    )
    return [told] if places else []


def _ahead(rows: Sequence[Row]) -> bool:
    """Whether rho = 1 is better than isotropic noise in shares or covariance, and in neither worse."""
    signs = [against(rows, "rho=1", CONTROL, metric).sign for metric in ("tv", "cov")]
    return -1 in signs and 1 not in signs


def lost(rows: Sequence[Row]) -> float:
    """Mean of ``tv`` above the floor's."""
    return estimate([r["tv"] - r["tv_floor"] for r in rows]).mean


def predicted(rows: Sequence[Row]) -> tuple[int, int, int, int]:
    """Of exact groups whose last level is a factor 2 or more away from the merging level: how many of those predicted
    to keep their modes do, out of how many; and of those predicted to lose them. Lost: ``tv`` more than 0.1 above the
    floor."""
    kept, keep, gone, lose = 0, 0, 0, 0
    for group in groups(rows):
        merge, bottom = group[0]["merge"], group[0]["bottom"]
        if merge is None or 0.5 < bottom / max(merge, 1e-12) < 2.0:
            continue
        if bottom < merge:
            keep, kept = keep + 1, kept + (lost(group) <= 0.1)
        else:
            lose, gone = lose + 1, gone + (lost(group) > 0.1)
    return kept, keep, gone, lose


def groups(rows: Sequence[Row]) -> list[list[Row]]:
    """Exact rows that differ in the seed alone."""
    exact, names = select(rows, kind="exact"), (*_PLACE, "shape", "sampler", "evaluations")
    return [select(exact, **dict(zip(names, key, strict=True))) for key in unique(exact, *names)]


def section(rows: list[Row], folder: Path) -> Section:
    """Exact scores, transport, learned scores: a table, a figure and sentences each."""
    tables, figures, findings = [], [], []
    if select(rows, kind="exact"):
        tables.append(_exact_table(rows))
        figures.append(_exact_figure(rows, folder))
        kept, keep, gone, lose = predicted(rows)
        findings.append(
            f"Exact score: away from the merging level by a factor 2, {kept} of {keep} runs predicted to keep their"
            f" modes do and {gone} of {lose} predicted to lose them do"
            + (
                ": what decides is the ladder's last level against `sqrt((a^2 / c - w^2) / r)`, whatever the shape"
                if kept + gone >= 0.95 * (keep + lose)
                else ": the ladder's last level alone does not decide"
            )
        )
    if select(rows, kind="transport"):
        tables.append(_transport_table(rows))
        figures.append(_transport_figure(rows, folder))
        findings += _transport_told(rows)
    if select(rows, kind="learned"):
        tables += [_learned_table(rows, place) for place in settings_of(rows, "learned")]
        figures.append(_learned_figure(rows, folder))
        findings += _learned_told(rows)
    return Section(
        "Does adaptive noise prevent mode collapse?", answer(rows), _DESIGN, tables, figures, findings,
        "A sampler that stops above the merging level of one shape and not of the other; networks that see more of a"
        " small direction than a residual MLP in data units does (then rho = 1 and whitened data come to the same), or"
        f" far more than {STEPS} training steps; modes apart in a way that the whole covariance does not show.",
    )  # fmt: skip


_DESIGN = f"""In {DIM} dimensions and a random basis. *Two*: modes at +-a along one direction, of width w = a / ratio
there and 1 elsewhere; so a below 1 is a small direction, where isotropic noise is larger than the modes are apart.
*Eight*: three such directions, a = 1, 0.2, 0.04. *Rotated*: four components of mean 0, deviations 1 in two directions
each of their own and 0.125 in the other six, so that the whole covariance is a multiple of the identity and no global
shape can differ from isotropic noise; `told` has a class-conditional network, `regions` also R_k for each class (math
section 6). Two modes merge at the level where `a^T (W + tau^2 R)^-1 a` falls to c, 1 for equal weights and
{critical(0.8):.2f} for 0.8 to 0.2. *Exact*: closed-form denoiser, moments known, ridge 1e-3 as trained (`whitened`,
which is rho = 1 without a ridge, none); DPM-Solver++(2M) with 12 and 40 evaluations (last levels 0.028 and 0.01),
with 40 Karras levels to {LOW:g} (`flow low`), annealed Langevin with the paper's budget ({RUNGS} levels to
{BOTTOM:g}, {PER_RUNG} steps each, alpha = {ALPHA:g}, then one denoising), starts from the data. *Transport*: weights
0.8/0.2, everything starts in the mode of 0.8; prediction from the Fokker-Planck equation on the line (Langevin) and
from order on the line (flow). *Learned*: residual MLP 64 x 2, {STEPS} steps (eight modes {EIGHT_STEPS}), batch 128,
learning rate of each from {", ".join(f"{rate:g}" for rate in RATES)} by held-out loss under seed {TUNING_SEED} at
half of the steps, 20 evaluations (`flow early`: after a quarter of the steps); `rho=0 lower levels` draws training
levels around exp(-2) instead of exp(-0.5); `wiener` is noise of that shape under a denoiser that begins as the best one
of Gaussian data. {N} samples a seed. `shares`: total variation of the modes' shares, with
what lies outside of every mode (beyond the central {1 - OUTSIDE:g} in principal axes) as one more; `covariance`: mean
over modes of `|W^-1/2 S W^-1/2 - I| / sqrt(d)`; sliced W2 in whitened coordinates. Floors: as many exact samples."""


def _exact_table(rows: Sequence[Row]) -> tuple[str, str]:
    lines = []
    shown = [(s, n) for s, n in _EXACT_SHOWN if select(rows, kind="exact", sampler=s, evaluations=n)]
    for place in settings_of(rows, "exact"):
        own = of(rows, "exact", place)
        for shape in (s for s in unique(own, "shape") if s in (CONTROL, "rho=1") or "regions" in s):
            mine = [select(own, shape=shape, sampler=s, evaluations=n) for s, n in shown]
            merge, floors = mine[0][0]["merge"], (mean(mine[0], f"{name}_floor").mean for name in ("tv", "cov"))
            lines.append([
                named(place), shape, "-" if merge is None else f"{merge:.2g}",
                *(f"{mean(at, 'tv').show(2)}; {mean(at, 'cov').show(2)}" for at in mine),
                "; ".join(f"{floor:.2g}" for floor in floors),
            ])  # fmt: skip
    told = (
        "Exact score, isotropic noise against the data's shape (others in the figure): error of the shares; of the"
        " covariance, 95 %. Merging level of the narrowest pair"
    )
    head = ["density", "shape", "merges at", *(f"{s} {n}" for s, n in shown), "floor"]
    return told, table(head, lines)


def _exact_figure(rows: Sequence[Row], folder: Path) -> tuple[str, str]:
    drawn, axes = figure.panels(2, width=5.4, columns=2)
    for axis, metric in zip(axes, ("tv", "cov"), strict=True):
        for colour, shape in enumerate(unique(select(rows, kind="exact"), "shape")):
            mine = [g for g in groups(select(rows, shape=shape)) if g[0]["merge"] is not None]
            if mine:
                x = [g[0]["bottom"] / max(g[0]["merge"], 1e-5) for g in mine]
                y = [mean(g, metric).mean - mean(g, metric + "_floor").mean for g in mine]
                axis.plot(x, y, "o", markersize=4, alpha=0.8, color=figure.COLOURS[colour], label=shape)
        axis.axvline(1.0, color="black", linestyle=":", linewidth=1)
        axis.set(xscale="log", xlabel="last level / level where modes merge", ylabel=f"{METRICS[metric]}, above floor")
    axes[0].legend(fontsize=7)
    told = "Exact score: error above the floor against how far down the ladder goes"
    return told, figure.save(drawn, folder / "mode_collapse_exact.png")


def _transport_table(rows: Sequence[Row]) -> tuple[str, str]:
    own, lines = select(rows, kind="transport"), []
    tops = unique(own, "top")
    # One column after the other, so that a sampler's lines are beside each other.
    for half, shape, steps in itertools.product(*(unique(own, name) for name in ("half", "shape", "per_rung"))):
        mine = select(own, half=half, shape=shape, per_rung=steps)
        if mine:
            freeze, at = mine[0]["freeze"], [select(mine, top=top) for top in tops]
            lines.append([
                f"{half:g}", shape, f"{mine[0]['merge']:.2g}", f"Langevin, {steps} a level" if steps else "flow, 40",
                "" if freeze is None else "never mixes" if math.isinf(freeze) else f"{freeze:.2g}",
                *(f"{mean(each, 'found').show(3)} ({each[0]['predicted']:.3f})" if each else "-" for each in at),
            ])  # fmt: skip
    told = "Transport: share of the mode of weight 0.8 where everything starts in it; measured (predicted)"
    return told, table(["a", "shape", "merges at", "sampler", "freezes at", *(f"top {top:g}" for top in tops)], lines)


def _transport_figure(rows: Sequence[Row], folder: Path) -> tuple[str, str]:
    own = select(rows, kind="transport")
    halves, shapes = unique(own, "half"), unique(own, "shape")
    drawn, axes = figure.panels(len(halves) + 1, width=4.4)
    for axis, half in zip(axes, halves, strict=False):
        for colour, shape in enumerate(shapes):
            for steps, style, sampler in ((100, "-", "Langevin 1000"), (0, "--", "flow 40")):
                mine, label = select(own, half=half, shape=shape, per_rung=steps), f"{shape}, {sampler}"
                figure.means(axis, mine, "top", "found", label=label, colour=colour, linestyle=style)
        axis.axhline(own[0]["share"], color="black", linestyle=":", linewidth=1)
        axis.set(xscale="log", xlabel="first level", ylabel="share of the heavy mode")
        axis.set_title(f"modes at +-{half:g}, others of deviation 1", fontsize=10)
    axes[len(halves) - 1].legend(fontsize=6, loc="upper right")
    for colour, shape in enumerate(shapes):
        mine = select(own, shape=shape)
        axes[-1].plot([r["predicted"] for r in mine], [r["found"] for r in mine], "o", markersize=3, alpha=0.6,
                      color=figure.COLOURS[colour], label=shape)  # fmt: skip
    axes[-1].plot([0.5, 1], [0.5, 1], color="black", linestyle=":", linewidth=1)
    axes[-1].set(xlabel="predicted", ylabel="measured")
    axes[-1].set_title("all runs", fontsize=10)
    told = "Transport: share of the heavy mode (0.8, dotted) after starting in it alone; prediction against measurement"
    return told, figure.save(drawn, folder / "mode_collapse_transport.png")


def _transport_told(rows: Sequence[Row]) -> list[str]:
    own = select(rows, kind="transport")
    off = [abs(r["found"] - r["predicted"]) for r in own]
    out = [f"Transport: measured and predicted shares differ by {np.mean(off):.3f} in the mean, {max(off):.3f} at most"]
    for half in unique(own, "half"):
        mine = select(own, half=half, per_rung=PER_RUNG)
        for top in sorted({r["top"] for r in mine}):
            at = select(mine, top=top)
            if not select(at, shape=CONTROL) or not select(at, shape="rho=1"):
                continue
            wrong = [{**r, "wrong": abs(r["found"] - r["share"])} for r in at]
            found = against(wrong, "rho=1", CONTROL, "wrong")
            if found.sign:
                a, b = (mean(select(wrong, shape=s), "wrong").mean for s in ("rho=1", CONTROL))
                out.append(
                    f"Transport, modes at +-{half:g}, {RUNGS * PER_RUNG} Langevin steps from level {top:g}: the share"
                    f" is off by {a:.3f} under rho=1 and {b:.3f} under rho=0, {WORDS[found.sign]} by"
                    f" {abs(found.mean):.3f} ± {found.half:.2g}"
                )
    return out


def _learned_table(rows: Sequence[Row], place: Place) -> tuple[str, str]:
    own, lines = of(rows, "learned", place), []
    for shape, sampler in unique(own, "shape", "sampler"):
        mine, control = select(own, shape=shape, sampler=sampler), select(own, shape=CONTROL, sampler=sampler)
        line = [shape, f"{sampler} {mine[0]['evaluations']}", f"{mine[0]['lr']:g}"]
        for metric in METRICS:
            line += [mean(mine, metric).show(3), "" if shape == CONTROL else paired(mine, control, metric).show(2)]
        lines.append(line)
    first = select(own, shape=own[0]["shape"], sampler="flow")
    floors = ", ".join(f"{METRICS[m]} {mean(first, m + '_floor').mean:.3g}" for m in METRICS)
    told = (
        f"Learned, {named(place)}: mean over {len(unique(own, 'seed'))} seeds and paired difference to rho=0"
        f" (below 0 is better), 95 %. Floors: {floors}"
    )
    return told, table(["shape", "sampler", "rate", *(p for m in METRICS.values() for p in (m, "difference"))], lines)


def _learned_figure(rows: Sequence[Row], folder: Path) -> tuple[str, str]:
    flows = _learned_flows(rows)
    drawn, axes = figure.panels(len(flows), width=4.6, height=3.6)
    for axis, (place, own) in zip(axes, flows, strict=True):
        shapes = unique(own, "shape")
        for i, shape in enumerate(shapes):
            found = mean(own, "tv", shape=shape)
            kind = 1 if shape in _ADAPTED else 2 if shape == "whitened" else 3 if "regions" in shape else 0
            half = found.half if math.isfinite(found.half) else 0.0
            axis.errorbar([found.mean], [i], xerr=half, fmt="o", markersize=4, color=figure.COLOURS[kind], capsize=2)
        axis.axvline(mean(own, "tv_floor", shape=shapes[0]).mean, color="black", linestyle=":", linewidth=1)
        axis.set_yticks(range(len(shapes)), shapes, fontsize=7)
        axis.invert_yaxis()
        axis.set_xlim(left=0)
        axis.set_xlabel("shares (TV), dotted: floor")
        axis.set_title(named(place), fontsize=9)
    return "Learned score, flow with 20 evaluations: error of the modes' shares, 95 %", figure.save(
        drawn, folder / "mode_collapse_learned.png"
    )


def _learned_told(rows: Sequence[Row]) -> list[str]:
    out = []
    for place, own in _learned_flows(rows):
        parts, shapes = [], unique(own, "shape")
        regions = [s for s in shapes if "regions" in s]
        for control, others in ((CONTROL, [s for s in shapes if s != CONTROL]), ("rho=0 told", regions)):
            if control in shapes and others:
                found = [(s, against(own, s, control)) for s in others]
                told = listed((e.sign, f"{s} ({e.show(2)})" if e.sign else s) for s, e in found)
                parts.append(f"against {control} {told}")
        out.append(f"Learned, {named(place)}, shares: " + ". ".join(parts))
    langevin = select(rows, kind="learned", sampler="langevin")
    for shape in unique(langevin, "shape"):
        mine = select(langevin, shape=shape)
        flow = select(select(rows, kind="learned", sampler="flow", shape=shape), share=mine[0]["share"])
        found = paired(mine, flow, "tv")
        out.append(
            f"Learned, unequal weights, {shape}: {RUNGS * PER_RUNG} Langevin steps less the flow's 20 evaluations"
            f" {found.show(2)} in shares ({WORDS[found.sign]})"
            + (": steps mend a part of what is lost" if found.sign < 0 else ": more steps do not mend what is lost")
        )
    return out


CLAIM = Claim("mode_collapse", cells, run, section)

if __name__ == "__main__":
    sys.exit(main(CLAIM, __doc__))
