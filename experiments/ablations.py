"""Ablations: which part of the adaptive noise matters, and why its full covariance gets worse late in training.

One study a part, each against the base setting: noise of half anisotropy (rho = 0.5), isotropic noise (rho = 0), pixel
metric, Cholesky root, a covariance that learns throughout. Every cell tunes its learning rate on the same grid and
trains five seeds that share first weights, order of the data, levels and white noise with the base.

* ``family``: the shape R. ``option``: root, metric, freeze, warm-up.
* ``levels``: distribution of the training levels and the sampler's ladder, tuned for each shape with equal effort.
* ``drift``: data whose covariance turns and grows while training; judged on what it is at that moment.
* ``score``: covariance of the score, or of the posterior, in place of the data's.
* ``late``: a long run, its error in each eigen-direction of the data.

    python -m experiments.ablations
    python -m experiments.ablations --quick
"""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import ansn
from ansn.evaluation import frechet_distance
from ansn.sampling.schedules import few_steps, polynomial
from ansn.sampling.wrapper import Wrapper
from experiments.lab import figure, training
from experiments.lab.claim import Cell, Claim, Row, Section, Settings, main
from experiments.lab.mixture import Mixture, basis
from experiments.lab.problems import Problem, WhitenedFeatures, anisotropic, of_density, problem
from experiments.lab.statistics import WORDS, Estimate, estimate, mean, paired, select, table, unique
from experiments.lab.training import TUNING_SEED, WIENER, Made, Setup, Trained, fit, judge, one_copy, reference

SEEDS = 5
GRID = (5e-4, 1e-3, 2e-3)
STEPS = (150, 400)  # early and late, of every study but drift and late
BATCH = 64
QUICK_STEPS = (4, 8)

SHAPES = {
    "digits": (
        "rho=0", "rho=0.2", "rho=0.5", "rho=0.8", "rho=1", "gamma=-0.5", "gamma=0.25", "gamma=0.5", "diagonal",
        "whitened", *WIENER,
    ),
    "fields": ("rho=0", "rho=0.5", "rho=1", "gamma=-0.5", "gamma=0.5", "whitened", *WIENER),
}  # fmt: skip
OPTIONS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "symmetric root": ({"root": "symmetric"}, ("rho=0.5", "rho=1")),
    "whitened metric": ({"metric": "whitened"}, ("rho=0", "rho=0.5", "rho=1", WIENER[1])),
    "paper metric": ({"metric": "paper"}, ("rho=0.5", "rho=1")),
    "frozen after 500 rows": ({"freeze_after": 500}, ("rho=0.5",)),
    "frozen after 5000 rows": ({"freeze_after": 5000}, ("rho=0.5",)),
    "warm-up of 500 rows": ({"warmup": 500}, ("rho=0.5",)),
    "warm-up of 5000 rows": ({"warmup": 5000}, ("rho=0.5",)),
}
DISTRIBUTIONS = ((-0.5, 1.2), (-1.2, 1.2), (0.2, 1.2), (-0.5, 0.8), (-0.5, 1.8))  # mean and deviation of ln tau
TUNED_SHAPES = ("rho=0", "rho=0.5", "rho=1", WIENER[1])
TUNED_ON = ("digits", "table")
DRIFT = (
    ("rho=0", "fixed"), ("rho=0", "online"), ("rho=0", "forgetting 0.98"),
    ("rho=0.5", "fixed"), ("rho=0.5", "online"), ("rho=0.5", "forgetting 0.98"), ("rho=0.5", "forgetting 0.9"),
    (WIENER[1], "fixed"), (WIENER[1], "online"), (WIENER[1], "forgetting 0.98"),
)  # fmt: skip
SOURCES = ("data", "fisher", "posterior", "score")
LATE: dict[str, tuple[str, dict[str, Any]]] = {
    "rho=0": ("rho=0", {}),
    "rho=1": ("rho=1", {}),
    WIENER[1]: (WIENER[1], {}),
    "rho=1, rate falls": ("rho=1", {"decay": 0.5}),
    "rho=1, 400 rows": ("rho=1", {}),
}
FEW = 400  # training rows of the variants that say so
LATE_STEPS = (400, 800, 1600)
GROUPS = 4  # of eigen-directions, smallest variance first
SWITCH = 0.3  # level at which an early and a late network take turns


def cells(settings: Settings) -> list[Cell]:
    def cell(study: str, name: str, shape: str, variant: str) -> Cell:
        return {"study": study, "problem": name, "shape": shape, "variant": variant}

    found = [cell("family", name, shape, "base") for name, shapes in SHAPES.items() for shape in shapes]
    found += [cell("option", "digits", shape, option) for option, (_, shapes) in OPTIONS.items() for shape in shapes]
    found += [cell("levels", name, shape, "tuned") for name in TUNED_ON for shape in TUNED_SHAPES]
    found += [cell("drift", "drift", shape, how) for shape, how in DRIFT]
    found += [cell("score", "digits", "rho=0.5", source) for source in SOURCES]
    found += [cell("score", "clusters", "rho=0.5", source) for source in SOURCES[:2]]
    late = [cell("late", "digits", shape, variant) for variant, (shape, _) in LATE.items()]
    found += [one | {"seed": seed} for one in late for seed in _seeds(settings)]  # long ones: a cell each
    if not settings.quick:
        return found
    # Some of each study, with what its tables need beside it.
    kept = {
        ("family", "rho=0", "base"), ("family", "rho=0.5", "base"), ("option", "rho=0.5", "whitened metric"),
        ("levels", "rho=0", "tuned"), ("levels", "rho=0.5", "tuned"), ("drift", "rho=0.5", "fixed"),
        ("drift", "rho=0.5", "online"), ("drift", "rho=0.5", "forgetting 0.98"), ("score", "rho=0.5", "data"),
        ("score", "rho=0.5", "fisher"), ("late", "rho=1", "rho=1"),
    }  # fmt: skip
    small = [cell for cell in found if cell["problem"] in ("digits", "drift")]
    return [cell for cell in small if (cell["study"], cell["shape"], cell["variant"]) in kept]


def run(cell: Cell, settings: Settings) -> list[Row]:
    studies = {"family": _base, "option": _base, "levels": _levels, "drift": _drift, "score": _score, "late": _late}
    return studies[cell["study"]](cell, settings)


def _seeds(settings: Settings) -> range:
    return range(2 if settings.quick else SEEDS)


def _steps(settings: Settings) -> tuple[int, ...]:
    return QUICK_STEPS if settings.quick else STEPS


def _tuned(p: Problem, setup: Setup, settings: Settings) -> Setup:
    """At the learning rate with the lowest Frechet distance halfway."""
    return replace(setup, lr=training.nearest_rate(p, setup, GRID[1:2] if settings.quick else GRID))


def _judged(p: Problem, setup: Setup, settings: Settings, made: Made | None = None, seed: int = 0) -> list[Row]:
    """Rows of one seed's run, early and late."""
    return [
        {"seed": seed, "lr": setup.lr, "step": trained.step} | judge(trained, p, seed) | training.floors(p)
        for trained in fit(p, replace(setup, seed=seed), _steps(settings), made=made)
    ]


def _problem(name: str, settings: Settings) -> Problem:
    """By name; a quick run scores few rows in few steps."""
    p = _clusters() if name == "clusters" else problem(name)
    return replace(p, likelihood_rows=16, likelihood_steps=2) if settings.quick else p


# -- family and options -----------------------------------------------------------------------------------------------


def _base(cell: Cell, settings: Settings) -> list[Row]:
    p = _problem(cell["problem"], settings)
    told = OPTIONS[cell["variant"]][0] if cell["study"] == "option" else {}
    setup = _tuned(p, Setup(cell["shape"], steps=_steps(settings)[-1], batch_size=BATCH, **told), settings)
    return [row for seed in _seeds(settings) for row in _judged(p, setup, settings, seed=seed)]


# -- levels and ladder ------------------------------------------------------------------------------------------------


def ladders(trained: Trained, n: int = 12) -> dict[str, Tensor]:
    """Schedules of n levels to try: three starts, by the data's cumulants and about it, two ends, two spacings."""
    levels = trained.model.noise.levels
    start = levels.start or levels.maximum
    found = {"default": few_steps(start, levels.minimum, n)}
    for stretch in (0.6, 1.0, 1.5):
        for last in (0.01, 0.04):
            for p in (3.0, 7.0):
                found[f"{stretch:g} of the start, to {last:g}, p = {p:g}"] = polynomial(stretch * start, last, n, p)
    return found


def _levels(cell: Cell, settings: Settings) -> list[Row]:
    p, shape, last = problem(cell["problem"]), cell["shape"], _steps(settings)[-1]
    count = 100 if settings.quick else 2000

    def distance(trained: Trained, taus: Tensor, seed: int) -> float:
        return training.frechet(trained.sample(count, seed=seed, taus=taus), p)

    setup = _tuned(p, Setup(shape, TUNING_SEED, steps=last, batch_size=BATCH), settings)
    tried: dict[tuple[float, float], tuple[float, Trained]] = {}
    for center, deviation in DISTRIBUTIONS[1:2] if settings.quick else DISTRIBUTIONS:
        *_, trained = fit(p, replace(training.halfway(setup), log_mean=center, log_std=deviation))
        tried[center, deviation] = distance(trained, ladders(trained)["default"], TUNING_SEED), trained
    log_mean, log_std = min(tried, key=lambda key: tried[key][0])
    trained = tried[log_mean, log_std][1]
    choice = min(ladders(trained), key=lambda name: distance(trained, ladders(trained)[name], TUNING_SEED))
    tuned_setup = replace(setup, log_mean=log_mean, log_std=log_std)
    out: list[Row] = []
    for seed in _seeds(settings):
        for levels, how in (("default", setup), ("tuned", tuned_setup)):
            # Where the default distribution was the best, both runs are one.
            if levels == "default" or (log_mean, log_std) != DISTRIBUTIONS[0]:
                *_, trained = fit(p, replace(how, seed=seed))
                told = {
                    ladder: distance(trained, ladders(trained)[name], seed)
                    for ladder, name in (("default", "default"), ("tuned", choice))
                }
            out += [
                {"seed": seed, "lr": setup.lr, "step": last, "levels": levels, "ladder": ladder, "fd": value,
                 "log_mean": log_mean, "log_std": log_std, "choice": choice} | training.floors(p)
                for ladder, value in told.items()
            ]  # fmt: skip
    return out


# -- drift ------------------------------------------------------------------------------------------------------------


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
    """Five modes of condition number 1000, turned by 90 degrees in dim/2 random planes and three times as wide at the
    end."""
    plane = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
    skew = torch.block_diag(*[plane] * (dim // 2))
    turned = basis(dim, seed)
    return Stream(anisotropic(dim), turned @ skew @ turned.T)


def _drift(cell: Cell, settings: Settings) -> list[Row]:
    data, steps = stream(), 8 if settings.quick else 600
    p = of_density("drift", data.still, 128)
    at = tuple(steps * k // 4 for k in range(1, 5))
    how = cell["variant"]
    setup = Setup(
        cell["shape"], steps=steps, batch_size=BATCH, ema=0.95,
        # Fixed: by the first tenth of the stream, and its mean and scale with it.
        freeze_after=max(steps // 10, 1) * BATCH if how == "fixed" else 10**9,
        forgetting=float(how.removeprefix("forgetting ")) if how.startswith("forgetting") else 1.0,
    )  # fmt: skip

    def follow(seed: int, lr: float) -> Iterator[Row]:
        x = data.batches(steps, BATCH, seed)
        for trained in fit(p, replace(setup, seed=seed, lr=lr), at, batches=x):
            law = data.density(trained.step / steps)
            row = {"seed": seed, "lr": lr, "step": trained.step, "time": trained.step / steps}
            yield row | _current(trained, law, seed, 50 if settings.quick else 500)

    lr = GRID[0]
    if not settings.quick:
        lr = min(GRID, key=lambda lr: sum(row["excess"] for row in follow(TUNING_SEED, lr)))
    return [row for seed in _seeds(settings) for row in follow(seed, lr)]


def _current(trained: Trained, density: Mixture, seed: int, rows: int = 500) -> Row:
    """Against the law of the moment: nats a dimension that the likelihood of fresh rows is below their own (the
    divergence, 0 for the law itself), and the Frechet distance of samples in whitened coordinates."""
    held, more = (density.sample(n, 10_000 + seed + k)[0] for k, n in enumerate((rows, 4 * rows)))
    features = WhitenedFeatures(more, name="current")
    try:
        nll = -float(trained.log_likelihood(held.float(), 12, probes=1).mean())
        excess = (nll + float(density.log_density(held).mean())) / density.dim
        samples = trained.sample(rows, seed=seed)
        away = frechet_distance(features(samples), features(more))
    except ValueError:  # left the finite numbers
        excess = away = math.inf
    return {"excess": excess, "fd": away, "fd_floor": frechet_distance(features(held), features(more))}


def clusters(dim: int = 16, seed: int = 0) -> Mixture:
    """Five modes with one covariance of condition number 1000 whose means are apart alike in every direction: where a
    mode is thin the data is wide all the same."""
    within = anisotropic(dim, seed=seed)
    generator = torch.Generator().manual_seed(seed + 1)
    means = torch.randn(5, dim, generator=generator, dtype=torch.float64)
    return Mixture(means, within.covariances, within.weights)


# -- covariance of the score ------------------------------------------------------------------------------------------


def shapes_of_score(model: ansn.Denoiser, x: Tensor, tau: float, seed: int = 0) -> dict[str, Tensor]:
    """Covariances float64 ``[d, d]`` that a denoiser under isotropic noise ``N(0, v I)``, ``v = tau^2 R``, tells of:

    * ``score``: ``J = E[s s^T]`` of the perturbed data, ``s = (D - x~) / v``: the Fisher information. Wide where data
      is thin.
    * ``fisher``: ``J^-1 - v I``, which is S where the data is Gaussian, and less where it is not: the width of a mode
      rather than of the whole.
    * ``posterior``: ``E Cov(x | x~) = v (I - v J)`` (Tweedie): what noise of this level leaves uncertain. For Gaussian
      data ``S v / (S + v)``.
    """
    perturbed, level = model.noise.perturb(x, tau=tau, seed=seed, step=0)
    with torch.no_grad():
        away = (model(perturbed, level.tau) - perturbed).flatten(1).double()
    r = model.noise.covariance.noise_shape()[0].double()
    v = tau**2 * float(r.diagonal().mean())
    moment = away.T @ away / len(away)  # v^2 J
    eye = torch.eye(len(moment), dtype=torch.float64)
    values, vectors = torch.linalg.eigh(moment / v)  # v J, between 0 and 1 for the true score
    values = values.clamp(1e-3, 1.0 - 1e-3)
    information = (vectors * values) @ vectors.T
    return {
        "score": information / v,
        "fisher": v * ((vectors / values) @ vectors.T - eye),
        "posterior": v * (eye - information),
    }


def with_shape(noise: ansn.NoiseModel, r: Tensor, rho: float) -> ansn.NoiseModel:
    """The frozen noise model with ``R = (1 - rho) t I + rho r`` in place of its own, r scaled to the trace of S, t the
    mean variance, and the ridge of the default. Mean and scale stay those of the data; the start of sampling and the
    likelihood have of S what is along the eigenvectors of R, which are not those of S."""
    covariance = noise.covariance
    level = float(covariance.covariance()[0].trace()) / covariance.dim
    r = r * (level / float(r.diagonal().mean()))
    eye = torch.eye(covariance.dim, dtype=torch.float64)
    total = rho * r + ((1 - rho) * level + max(1e-3 * level, covariance.rules.eps_floor)) * eye
    values, vectors = torch.linalg.eigh(total)
    s = ((covariance.covariance()[0] @ vectors) * vectors).sum(0)
    covariance.track().snapshot.factor.copy_(torch.linalg.cholesky(total).unsqueeze(0))
    covariance.snapshot.install({"basis0": vectors.unsqueeze(0)}, values.unsqueeze(0), (s / values).unsqueeze(0))
    covariance.revision += 1
    return noise


def _score(cell: Cell, settings: Settings) -> list[Row]:
    p, source = _problem(cell["problem"], settings), cell["variant"]
    rho = float(cell["shape"].removeprefix("rho="))
    setup = Setup("fixed rho=0", steps=_steps(settings)[-1], batch_size=BATCH)
    half = training.halfway(setup)

    def made(seed: int) -> Made:
        noise, frame, _ = training.noise_model(p, Setup("fixed rho=0", seed))
        x = reference(p)
        if source == "data":
            return Made(with_shape(noise, torch.cov(x.flatten(1).double().T), rho), frame)
        *_, trained = fit(p, replace(half, seed=seed))
        return Made(with_shape(noise, shapes_of_score(trained.model, x, 0.3)[source], rho), frame)

    if not settings.quick:
        noise = made(TUNING_SEED)
        losses = {}
        for lr in GRID:
            *_, trained = fit(p, replace(half, lr=lr), made=noise)
            losses[lr] = training.distance(trained, p, TUNING_SEED)
        setup = replace(setup, lr=min(losses, key=lambda lr: losses[lr]))
    return [row for seed in _seeds(settings) for row in _judged(p, setup, settings, made(seed), seed)]


@cache
def _clusters() -> Problem:
    return of_density("clusters", clusters(), 256)


# -- late in training -------------------------------------------------------------------------------------------------


class Directions:
    """Eigen-directions of the training rows' S in ``GROUPS`` groups of equal size, smallest variance first."""

    def __init__(self, x: Tensor) -> None:
        flat = x.flatten(1).double()
        self.mean = flat.mean(0)
        self.values, self.basis = torch.linalg.eigh(torch.cov(flat.T))

    def into(self, x: Tensor) -> Tensor:
        """Coordinates ``[n, d]``."""
        return (x.flatten(1).double() - self.mean) @ self.basis

    def groups(self, each: Tensor) -> list[float]:
        """Means over the groups of numbers ``[d]``."""
        return [float(part.mean()) for part in each.chunk(GROUPS)]

    @torch.no_grad()
    def error(self, model: ansn.Denoiser, x: Tensor, tau: float, seed: int = 0) -> Tensor:
        """``E (u . (D - x))^2`` over ``l tau^2 r / (l + tau^2 r)``, ``[d]``: over what is left by the best linear
        denoiser of that direction alone, l the data's and ``tau^2 r`` the noise's variance in it. Above 1 a network is
        worse than no network but the covariance."""
        perturbed, level = model.noise.perturb(x, tau=tau, seed=seed, step=0)
        away = (model(perturbed, level.tau) - x).flatten(1).double() @ self.basis
        shape = model.noise.covariance.noise_shape()[0].double()
        noise = tau**2 * ((shape @ self.basis) * self.basis).sum(0)
        return away.square().mean(0) / (self.values * noise / (self.values + noise))

    def repaired(self, samples: Tensor, group: int) -> Tensor:
        """Samples whose mean and variance in one group's directions are made those of the data."""
        c = self.into(samples)
        part = torch.arange(c.shape[1]).chunk(GROUPS)[group]
        c[:, part] = (c[:, part] - c[:, part].mean(0)) / c[:, part].std(0) * self.values[part].sqrt()
        return (self.mean + c @ self.basis.T).reshape(samples.shape).to(samples.dtype)


class Switched(Wrapper):
    """One denoiser at and above a level, another below it: which of two networks makes a difference, and where."""

    def __init__(self, above: ansn.Denoiser, below: ansn.Denoiser, tau: float) -> None:
        super().__init__(above)
        self.below, self.tau = below, tau

    def forward(self, x: Tensor, sigma: float | Tensor, region: Tensor | None = None, **extra: Any) -> Tensor:
        # Samplers of the flow take all rows through one level at a time.
        chosen = self.model if float(self._tau(x, sigma)[0]) >= self.tau else self.below
        return chosen(x, sigma, region, **extra)


def _late(cell: Cell, settings: Settings) -> list[Row]:
    whole, (shape, told) = problem("digits"), LATE[cell["variant"]]
    at = (4, 8) if settings.quick else LATE_STEPS
    setup = Setup(shape, steps=at[-1], batch_size=BATCH, **told)
    x, held = one_copy(whole.train), one_copy(whole.test)
    directions, features = Directions(x), whole.features(x)
    # Many, so that a change of the distance is the network's and not that of the draw.
    count, held_features = 200 if settings.quick else 3000, whole.features(held)

    def distance(samples: Tensor) -> float:
        return frechet_distance(whole.features(samples), features)

    def looked_at(now: Trained, seed: int, learned: Tensor) -> Row:
        samples, model = now.sample(count, seed=seed), now.model
        row: Row = {"fd": distance(samples), "fd_held": frechet_distance(whole.features(samples), held_features)}
        for g, spread in enumerate(directions.groups(directions.into(samples).var(0) / directions.values)):
            row |= {f"variance_{g}": spread, f"repaired_{g}": distance(directions.repaired(samples, g))}
        for name, rows in (("train", learned), ("test", held)):
            found = torch.stack([directions.error(model, rows, tau) for tau in (0.1, 0.5, 2.0)]).mean(0)
            row |= {f"error_{name}_{g}": value for g, value in enumerate(directions.groups(found))}
        scored, steps = (16, 2) if settings.quick else (200, 12)
        return row | {"nll": -float(now.log_likelihood(held[:scored], steps, probes=1).mean()) / whole.dim}

    out, seed = [], cell["seed"]
    few = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:FEW]
    p = replace(whole, train=whole.train.select(few)) if f"{FEW} rows" in cell["variant"] else whole
    learned = one_copy(p.train)
    for trained in fit(p, replace(setup, seed=seed), at):
        fixed = {"lr": setup.lr, "step": trained.step} | training.floors(whole)
        row = fixed | {"weights": "averaged"} | looked_at(trained, seed, learned)
        if trained.step == at[min(1, len(at) - 2)]:
            early = copy.deepcopy(trained.model)
        if trained.step == at[-1]:
            for name, model in (
                ("early_above", Switched(early, trained.model, SWITCH)),
                ("early_below", Switched(trained.model, early, SWITCH)),
            ):
                row[name] = distance(replace(trained, model=model).sample(count, seed=seed))
            row["fd_more"] = distance(trained.sample(count, evaluations=40, seed=seed))
            latest = replace(trained, model=trained.latest)
            out.append(fixed | {"weights": "latest"} | looked_at(latest, seed, learned))
        out.append(row)
    return out


# -- what the rows say ------------------------------------------------------------------------------------------------

_WORDS = WORDS | {0: "not different"}


def _plain(apart: Estimate) -> str:
    """A paired difference."""
    return f"{apart.mean:+.2g} ± {apart.half:.1g}" if math.isfinite(apart.half) else f"{apart.mean:+.2g}"


def _word(apart: Estimate) -> str:
    return f"{_WORDS[apart.sign]} ({_plain(apart)})"


def _told(apart: Estimate) -> str:
    """A paired difference for a table: bold where its interval leaves out 0."""
    return f"**{_plain(apart)}**" if apart.sign else _plain(apart)


def _apart(rows: Sequence[Row], control: Sequence[Row], column: str) -> str:
    return "-" if not rows or not control or rows == control else _told(paired(rows, control, column))


def _floor(rows: Sequence[Row]) -> str:
    return f"{rows[0]['fd_floor']:.2g}"


def _ends(rows: Sequence[Row]) -> tuple[int, int]:
    """First and last step."""
    return min(row["step"] for row in rows), max(row["step"] for row in rows)


def _early_and_late(group: list[Row], column: str, first: str, controls: Sequence[str]) -> str:
    """A line for each value of a column: distances early and late and less those of controls, likelihood late."""
    steps, lines = _ends(group), []
    against = [select(group, **{column: control}) for control in controls]
    for name in unique(group, column):
        own = select(group, **{column: name})
        line = [name, f"{own[0]['lr']:g}"]
        for step in steps:
            now = select(own, step=step)
            line += [mean(now, "fd").show(2), *(_apart(now, select(control, step=step), "fd") for control in against)]
        now = select(own, step=steps[1])
        lines.append([*line, f"{mean(now, 'nll').mean:.3f}", _apart(now, select(against[0], step=steps[1]), "nll")])
    less = [f"less {control}" for control in controls]
    head = [first, "rate", *(name for step in steps for name in (f"distance, {step} steps", *less))]
    return table([*head, f"nll, {steps[1]} steps", less[0]], lines)


def section(rows: list[Row], folder: Path) -> Section:
    makers = {
        "family": _say_family, "option": _say_options, "levels": _say_levels,
        "drift": _say_drift, "score": _say_score, "late": _say_late,
    }  # fmt: skip
    said = [maker(rows, folder) for study, maker in makers.items() if select(rows, study=study)]
    answers, tables, figures, findings = zip(*said, strict=True)
    return Section(
        question="Ablations: which part of adaptive noise matters, and what makes its full covariance worse late?",
        answer=" ".join(filter(None, answers)),
        design=_DESIGN.format(seeds=len(unique(rows, "seed")), grid=", ".join(f"{lr:g}" for lr in GRID), batch=BATCH),
        tables=[*chain(*tables)],
        figures=[*chain(*figures)],
        findings=[*chain(*findings)],
        change="a convolutional network, whose errors are not alike in every direction; data of other spectra; training"
        " ten times as long; a stream that changes faster or slower than the network learns.",
    )


Parts = list[tuple[str, str]]
Said = tuple[str, Parts, Parts, list[str]]
"""One study's part of the section: answer, tables, figures, findings."""


def _say_family(rows: list[Row], folder: Path) -> Said:
    tables, findings, told = [], [], []
    for name in unique(select(rows, study="family"), "problem"):
        group = select(rows, study="family", problem=name)
        early, late = _ends(group)
        shapes, zero = unique(group, "shape"), select(group, shape="rho=0", step=late)
        lines = _early_and_late(group, "shape", "shape", ("rho=0", "rho=0.5"))
        tables.append((f"Shape of the noise, {name} (distance of the data: {_floor(group)})", lines))
        signs = {s: paired(select(group, shape=s, step=late), zero, "fd").sign for s in shapes if s != "rho=0"}
        ahead, behind = (", ".join(s for s in signs if signs[s] == sign) or "none" for sign in (-1, 1))
        told.append(f"{name}, {late} steps: ahead of isotropic noise {ahead}; behind it {behind}")
        for step in (early, late):
            now = select(group, step=step)
            best = min(shapes, key=lambda s, now=now: mean(now, "fd", shape=s).mean)
            apart = paired(select(now, shape=best), select(now, shape="rho=0.5"), "fd")
            findings.append(
                f"{name}, {step} steps: the smallest mean distance is that of {best}"
                + ("." if best == "rho=0.5" else f"; less that of rho=0.5 {_plain(apart)} ({_WORDS[apart.sign]}).")
            )
    return f"Shapes, by Frechet distance ({'; '.join(told)}).", tables, [], findings


def _say_options(rows: list[Row], folder: Path) -> Said:
    base = select(rows, study="family", problem="digits")
    group = select(rows, study="option")
    early, late = _ends(group)
    lines, told = [], {-1: [], 0: [], 1: []}
    for variant, shape in unique(group, "variant", "shape"):
        own, control = select(group, variant=variant, shape=shape), select(base, shape=shape)
        line = [variant, shape]
        for step in (early, late):
            now, then = select(own, step=step), select(control, step=step)
            line += [mean(now, "fd").show(2), _apart(now, then, "fd")]
        lines.append([*line, _apart(now, select(base, shape="rho=0", step=late), "fd"), _apart(now, then, "nll")])
        told[paired(now, then, "fd").sign].append(f"{variant} at {shape}")
    head = ["change", "shape", f"distance, {early} steps", "less base", f"distance, {late} steps", "less base",
            "less rho=0, base", f"nll less base, {late} steps"]  # fmt: skip
    answer = (
        f"Options, digits at {late} steps, against the same shape without: better {', '.join(told[-1]) or 'none'};"
        f" worse {', '.join(told[1]) or 'none'}; the others are not told apart."
    )
    caption = f"One thing changed, digits (base: the shape in the table above; distance of the data: {_floor(group)})"
    return answer, [(caption, table(head, lines))], [], []


def _say_levels(rows: list[Row], folder: Path) -> Said:
    group, tables, told = select(rows, study="levels"), [], []
    head = ["shape", "tuned mean, deviation of ln tau", "tuned ladder", "default", "levels tuned", "both tuned",
            "both less default"]  # fmt: skip
    for name in unique(group, "problem"):
        own = select(group, problem=name)
        stages = [select(own, levels=levels, ladder=ladder)
                  for levels, ladder in (("default", "default"), ("tuned", "default"), ("tuned", "tuned"))]  # fmt: skip
        shapes, lines, over = unique(own, "shape"), [], []
        for shape in shapes:
            one, now = select(own, shape=shape)[0], [select(stage, shape=shape) for stage in stages]
            lines.append([
                shape, f"{one['log_mean']:g}, {one['log_std']:g}", one["choice"],
                *(mean(stage, "fd").show(2) for stage in now), _apart(now[2], now[0], "fd"),
            ])  # fmt: skip
            if shape != shapes[0]:
                apart = [
                    paired(ours, select(all_, shape="rho=0"), "fd") for ours, all_ in zip(now, stages, strict=True)
                ]
                over.append([f"{shape} less rho=0", "", "", *map(_told, apart), ""])
                before, after = apart[0], apart[2]
                told.append(f"{name}, {shape}: {_plain(after)} ({_WORDS[after.sign]}), before {_plain(before)}"
                            f" ({_WORDS[before.sign]})")  # fmt: skip
        caption = f"Levels and ladder tuned for each shape with equal effort: distance, {name}, {own[0]['step']} steps"
        caption += f" (distance of the held-out rows: {_floor(own)})"
        tables.append((caption, table(head, lines + over)))
    answer = f"With levels and ladder tuned for each shape, distance less that of rho = 0: {'; '.join(told)}."
    return answer, tables, [], []


Seeds = dict[int, float]


def _less(ours: Seeds, theirs: Seeds) -> Seeds:
    return {seed: ours[seed] - theirs[seed] for seed in ours if seed in theirs}


def _of(seeds: Seeds) -> Estimate:
    return estimate(list(seeds.values()))


def _say_drift(rows: list[Row], folder: Path) -> Said:
    group = select(rows, study="drift")
    times, shapes = sorted(unique(group, "time")), unique(group, "shape")
    over_time: dict[tuple[str, str], Seeds] = {}  # means over the times
    for shape, how in unique(group, "shape", "variant"):
        runs = select(group, shape=shape, variant=how)
        each = {seed: [row["excess"] for row in select(runs, seed=seed)] for seed in unique(runs, "seed")}
        over_time[shape, how] = {seed: sum(values) / len(values) for seed, values in each.items()}
    lines = []
    for (shape, how), found in over_time.items():
        own, controls = (
            select(group, shape=shape, variant=how),
            [over_time.get((shape, v)) for v in ("fixed", "online")],
        )
        lines.append(
            [shape, how, f"{own[0]['lr']:g}", *(mean(own, "excess", time=time).show(2) for time in times),
             _of(found).show(2), *("-" if c in (None, found) else _told(_of(_less(found, c))) for c in controls),
             f"{mean(own, 'fd', time=times[-1]).mean:.2g}"]
        )  # fmt: skip
    gains, told = {}, []
    for shape in shapes:
        fixed, online, forgets = (over_time[shape, how] for how in ("fixed", "online", "forgetting 0.98"))
        gains[shape] = _less(forgets, fixed)
        told.append(
            f"{shape}: online {_word(_of(_less(online, fixed)))}, forgetting {_word(_of(gains[shape]))},"
            f" forgetting against online {_word(_of(_less(forgets, online)))}"
        )
    wins = all(_of(gain).sign < 0 for gain in gains.values())
    answer = (
        "On a drifting stream an online covariance that forgets "
        + ("beats one fixed by the first part under every shape" if wins else "does not beat a fixed one everywhere")
        + f" (divergence from the law of the moment, nats/dim, against fixed; {'; '.join(told)})."
    )
    drawn, axes = figure.panels(len(shapes))
    for axis, shape in zip(axes, shapes, strict=True):
        own = select(group, shape=shape)
        for colour, how in enumerate(unique(own, "variant")):
            figure.means(axis, select(own, variant=how), "time", "excess", label=how, colour=colour)
        axis.set(title=shape, xlabel="part of the stream", ylabel="divergence, nats/dim")
        axis.set_ylim(bottom=0.0)
        axis.legend(fontsize=7, frameon=False)
    findings = []
    for shape in shapes[1:] if "rho=0" in shapes else ():
        against = _less(over_time[shape, "forgetting 0.98"], over_time["rho=0", "forgetting 0.98"])
        findings.append(
            f"Drift: under rho=0 forgetting follows mean and scale alone and moves the divergence by"
            f" {_plain(_of(gains['rho=0']))}, under {shape} by {_plain(_of(gains[shape]))}; what"
            f" following the shape adds is {_word(_of(_less(gains[shape], gains['rho=0'])))}. Both forgetting, {shape}"
            f" is, against rho=0, {_word(_of(against))}."
        )
    head = ["shape", "covariance", "rate", *(f"at {time:g}" for time in times), "mean", "less fixed", "less online",
            "distance at the end"]  # fmt: skip
    caption = (
        "A stream that turns by 90 degrees and grows threefold: divergence from the law of the moment, nats/dim (0 for"
        f" the law itself; distance of its own rows: {_floor(group)})"
    )
    figures = [("Drift: divergence from the law of the moment", figure.save(drawn, folder / "ablations_drift.png"))]
    return answer, [(caption, table(head, lines))], figures, findings


def _say_score(rows: list[Row], folder: Path) -> Said:
    group = select(rows, study="score")
    tables, told = [], []
    for name in unique(group, "problem"):
        some = select(group, problem=name)
        now = select(some, step=_ends(some)[1])
        for source in unique(now, "variant"):
            if source != "data":
                apart = paired(select(now, variant=source), select(now, variant="data"), "fd")
                told.append(f"{name}, {source}: {_word(apart)}")
        caption = f"Covariance of the score, {name}, rho = 0.5 (distance of the held-out rows: {_floor(some)})"
        tables.append((caption, _early_and_late(some, "variant", "covariance of", ("data",))))
    answer = f"Covariances from a score in place of the data's, by distance late: {'; '.join(told)}."
    return answer, tables, [], []


def _say_late(rows: list[Row], folder: Path) -> Said:
    group = select(rows, study="late")
    averaged, latest = select(group, weights="averaged"), select(group, weights="latest")
    steps, variants = sorted(unique(averaged, "step")), unique(group, "variant")
    early, last = steps[min(1, len(steps) - 2)], steps[-1]

    def of(variant: str, step: int, some: list[Row] = averaged) -> list[Row]:
        return select(some, variant=variant, step=step)

    lines = []
    for variant in variants:
        now = of(variant, last)
        lines.append([
            variant, *(mean(of(variant, step), "fd").show(2) for step in steps),
            _apart(now, of(variant, early), "fd"), _apart(now, of("rho=1", last), "fd"),
            _apart(of(variant, last, latest), now, "fd"), _told(_against(now, "fd_more", "fd")),
            _apart(now, of(variant, early), "fd_held"), _apart(now, of(variant, early), "nll"),
        ])  # fmt: skip
    head = [
        "run", *(f"{step} steps" for step in steps), f"{last} less {early}", "less rho=1", "latest less averaged",
        "40 evaluations less 12", f"from held-out rows, {last} less {early}", f"nll, {last} less {early}",
    ]  # fmt: skip
    caption = (
        f"A long run on digits: distance of 3000 samples from the training rows (of the held-out rows, which are 450:"
        f" {_floor(group)}), held-out nll in nats/dim"
    )
    tables = [(caption, table(head, lines)), _table_directions(averaged, variants, early, last)]
    mended = [*(f"repaired_{g}" for g in range(GROUPS)), "early_above", "early_below"]
    lines = [[v, *(_told(_against(of(v, last), name, "fd")) for name in mended)] for v in variants]
    head = ["run", *(f"{_ordinal(g)} mended" for g in range(GROUPS)), f"{early} steps above {SWITCH:g}",
            f"{early} steps below {SWITCH:g}"]  # fmt: skip
    caption = (
        f"What the distance at {last} steps becomes, less what it is, when mean and variance of the samples are made"
        f" the data's in a quarter of the directions, and when the network of {early} steps denoises a range of levels"
    )
    tables.append((caption, table(head, lines)))
    drawn = (
        "Distance (black: held-out rows); error of denoising held-out (full) and training rows (dotted) by direction"
    )
    figures = [(drawn, _draw_late(averaged, variants, folder))]
    answer, findings = _late_findings(averaged, latest, variants, early, last)
    return answer, tables, figures, findings


def _against(rows: Sequence[Row], column: str, other: str) -> Estimate:
    """Of a seed's own two numbers: the first less the second."""
    return estimate([row[column] - row[other] for row in rows])


def _ordinal(group: int) -> str:
    return ("smallest quarter", "second quarter", "third quarter", "largest quarter")[group]


def _table_directions(averaged: list[Row], variants: list[str], early: int, last: int) -> tuple[str, str]:
    lines = []
    for variant in variants:
        for step in (early, last):
            now, line = select(averaged, variant=variant, step=step), [variant, str(step)]
            for g in range(GROUPS):
                train, test, spread = (mean(now, f"{of}_{g}").mean for of in ("error_train", "error_test", "variance"))
                line.append(f"{train:.3f} / {test:.3f} / {spread:.2f}")
            lines.append(line)
    caption = (
        "Directions of the data's covariance in quarters, smallest variance first: error of denoising training /"
        " held-out rows over that of the best linear denoiser of the direction (mean over levels 0.1, 0.5, 2), and"
        " variance of the samples over the data's"
    )
    return caption, table(["run", "steps", *(_ordinal(g) for g in range(GROUPS))], lines)


def _late_findings(
    averaged: list[Row], latest: list[Row], variants: list[str], early: int, last: int
) -> tuple[str, list[str]]:
    """The answer about the late loss, and what is behind it."""

    def of(variant: str, step: int = last) -> list[Row]:
        return select(averaged, variant=variant, step=step)

    full = of("rho=1")
    late = paired(full, of("rho=1", early), "fd")
    verdict = {1: "confirmed", -1: "refuted: it gets better", 0: "not confirmed"}[late.sign]
    held, nll = (paired(full, of("rho=1", early), column) for column in ("fd_held", "nll"))
    parts = [
        f"That rho = 1 gets worse late is {verdict} (distance at {last} steps less that at {early}: {_plain(late)})"
        f"; distance from the held-out rows {_word(held)}, their likelihood {_WORDS[nll.sign]}"
        f" ({_plain(nll)} nats/dim)"
    ]
    if "rho=0" in variants:
        parts.append(f"at {last} steps it is, against isotropic noise, {_word(paired(full, of('rho=0'), 'fd'))}")
    changed = {variant.removeprefix("rho=1, "): of(variant) for variant in variants if variant.startswith("rho=1, ")}
    changed["weights not averaged"] = select(latest, variant="rho=1", step=last)
    told = [f"{name}: {_word(paired(rows, full, 'fd'))}" for name, rows in changed.items()]
    parts.append("changed for it, " + ", ".join(told))
    gains = [_against(full, f"repaired_{g}", "fd") for g in range(GROUPS)]
    g = min(range(GROUPS), key=lambda g: gains[g].mean)
    parts.append(
        f"the quarter of the directions whose moments, mended, bring the samples nearest is the {_ordinal(g)}"
        f" ({_plain(gains[g])}; the {_ordinal(0)}: {_plain(gains[0])})"
    )
    above, below = (_against(full, name, "fd") for name in ("early_above", "early_below"))
    sides = [side for side, apart in (("below", below), ("above", above)) if apart.sign < 0]
    lost = f", so that what is lost late is lost {' and '.join(sides)} it" if late.sign > 0 and sides else ""
    parts.append(
        f"put back to {early} steps, the network is {_WORDS[below.sign]} below level {SWITCH:g} ({_plain(below)}) and"
        f" {_WORDS[above.sign]} above it ({_plain(above)}){lost}"
    )
    gaps = [{row["seed"]: row[f"error_test_{GROUPS - 1}"] - row[f"error_train_{GROUPS - 1}"] for row in runs}
            for runs in (full, of("rho=1", early))]  # fmt: skip
    widened = _of(_less(*gaps))
    small = _against(full, "error_test_0", "error_train_0")
    over = mean(full, "error_train_0")
    cause = {1: "it learns its training rows by heart there", 0: "no overfitting is seen there", -1: "it overfits less"}
    parts.append(
        f"between {early} and {last} steps the error on held-out rows less that on training rows grows by"
        f" {_plain(widened)} in the {_ordinal(GROUPS - 1)} ({cause[widened.sign]}); in the {_ordinal(0)} the gap is"
        f" {_plain(small)}, and even on training rows the error is {over.show(3)} of the best linear denoiser's"
    )
    fewer = f"rho=1, {FEW} rows"
    if fewer in variants:
        lost = paired(of(fewer), of(fewer, early), "nll")
        parts.append(
            f"with {FEW} training rows the held-out likelihood is {_WORDS[lost.sign]} at {last} steps than at {early}"
            f" ({_plain(lost)} nats/dim), with all of them {_word(nll)}"
        )
    spread = [mean(of("rho=1", step), "variance_0").mean for step in (early, last)]
    parts.append(
        f"in the {_ordinal(0)} samples have {spread[0]:.2f} times the data's variance at {early} steps and"
        f" {spread[1]:.2f} times at {last}"
        + (": there the ridge, at least the quantisation noise, is comparable with S itself" * (spread[0] > 1.3))
    )
    first, *others = [part[0].upper() + part[1:] + "." for part in parts]
    return first, others


def _draw_late(averaged: list[Row], variants: list[str], folder: Path) -> str:
    drawn, axes = figure.panels(1 + GROUPS, columns=3)
    for colour, variant in enumerate(variants):
        own = select(averaged, variant=variant)
        figure.means(axes[0], own, "step", "fd", label=variant, colour=colour)
        for g in range(GROUPS):
            for name, style in (("error_test", {}), ("error_train", {"linestyle": ":", "marker": None})):
                figure.means(axes[1 + g], own, "step", f"{name}_{g}", shaded=False, label="", colour=colour, **style)
    axes[0].axhline(averaged[0]["fd_floor"], color="black", linewidth=0.8)
    axes[0].set(title="samples", xlabel="training steps", ylabel="Frechet distance")
    axes[0].set_ylim(bottom=0.0)
    axes[0].legend(fontsize=7, frameon=False)
    for g, axis in enumerate(axes[1:]):
        axis.set(title=f"{_ordinal(g)} of the directions", xlabel="training steps", ylabel="error / best linear's")
    return figure.save(drawn, folder / "ablations_late.png")


_DESIGN = """Digits, fields and made data of the other claims, the same MLP (256 wide, 2 blocks; 128 wide on the
stream), Adam with batches of {batch}, {seeds} seeds. Every run of a study tunes its learning rate over {grid} by
Frechet distance (on the stream by excess loss), after half of the steps, under a seed that no result uses (the long
runs all take 0.001). Distances are Frechet's, of samples by DPM-Solver++(2M): with 12 evaluations in a classifier's
features on digits, with 20 in whitened coordinates elsewhere; "less" is a paired difference, negative where the row is
better, bold where its interval leaves out 0. Many intervals are looked at, of which one in twenty leaves out 0 by
chance. *Levels*: of 5 distributions the one whose run has the smallest distance, then of 13 ladders, both under a
seed of their own. *Drift*: 16 dimensions, five modes; *fixed* learns covariance, mean and scale in the first tenth;
each shape is also learned online, with and without forgetting. `wiener` is noise of that shape under a denoiser that
begins as the best one of Gaussian data. *Score*: R is half isotropic and half, at the data's
trace, the covariance of the data; *fisher*, inverse Fisher information of the perturbed data less the noise, which is
the data's covariance for Gaussian data and the width within modes for others; *posterior*, what noise of level 0.3
leaves uncertain; or *score*, the covariance of the score itself, wide where data is thin. All are fixed before
training, the last three by a network trained for half as many steps under isotropic noise, which is given away free.
*Late*: a distance below that of the held-out rows is not better than data, since these are fewer and the classifier
knows the training rows by heart. *Clusters*: five thin modes whose means are apart alike in every direction."""


CLAIM = Claim("ablations", cells, run, section)

if __name__ == "__main__":
    sys.exit(main(CLAIM, __doc__))
