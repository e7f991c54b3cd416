"""Paired training: one problem under one shape of the noise, with everything else equal.

Runs of one seed share first weights, data order, levels' normals and white noise; only the shape (and what the options
change) differs. The controls are shapes like the others: isotropic, per pixel, isotropic on whitened data, fixed.
"""

from __future__ import annotations

import copy
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import optimize
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

import ansn
from ansn.covariance import find
from ansn.data import Dataset, iterate
from ansn.evaluation import frechet_distance
from ansn.evaluation.discrepancy import energy_distance
from ansn.presets import PRESETS, TrainConfig
from experiments.lab.problems import Problem

CONTROLS = ("rho=0", "diagonal", "whitened", "fixed rho=0.5")
WIENER = ("wiener rho=0", "wiener rho=0.5")
FAMILY = ("rho=0.2", "rho=0.5", "rho=0.8", "rho=0.9", "rho=1")
SPECTRAL = ("gamma=0.25", "gamma=0.5")
TUNING_SEED = 1000  # of no result
DATA_SEED = 0  # of the one dequantised copy of the data that fixed shapes and floors are made from


@dataclass(frozen=True)
class Setup:
    """One training run. ``shape``: ``rho=R`` or ``gamma=G`` (learned online), either with ``fixed`` before it (from the
    whole data set at the start), ``diagonal`` (rho = 0.5 of the pixels' variances alone) or ``whitened`` (isotropic
    noise on ``L^-1 (x - m)``, ``L L^T = S`` of the whole data set). Before a shape, the denoiser's skip (else scalar)
    and what the network sees besides the noisy data: ``wiener``, ``scalar+estimate``, ``mixture10+estimate`` (of ten
    regions found in the data), ``mixtureauto``. ``labels``: ``network`` tells a class-conditional network the class,
    ``regions`` also shapes the noise of each class by its own covariance (math section 6). ``found``: so many regions
    found in the data in place of the classes. ``decay``: share of the steps, the last ones, over which the learning
    rate falls to 0. ``structure``: of the covariance."""

    shape: str = "rho=0"
    seed: int = 0
    steps: int = 1000
    lr: float = 1e-3
    batch_size: int = 128
    metric: str = "pixel"
    ema: float = 0.995
    root: str | None = "cholesky"
    freeze_after: int = 50_000
    warmup: int = 2
    forgetting: float = 1.0
    log_mean: float | None = None
    log_std: float | None = None
    labels: str = ""
    found: int = 0
    decay: float = 0.0
    structure: str = "dense"

    @property
    def begins(self) -> tuple[str, int | str, tuple[str, ...], str]:
        """Skip, regions of its mixture, the network's further inputs, and the bare shape."""
        words = re.fullmatch(r"(?:(scalar|wiener|mixture)(\d+|auto)?((?:\+\w+)*) )?(.+)", self.shape)
        assert words is not None
        skip, regions, inputs, shape = words.groups()
        number = int(regions) if regions and regions.isdigit() else regions or 0
        return skip or "scalar", number, tuple((inputs or "").split("+")[1:]), shape

    def rate(self, step: int) -> float:
        """Learning rate of a step: it rises over the first 50."""
        left = (self.steps - step) / (self.decay * self.steps) if self.decay else 1.0
        return self.lr * max(min(1.0, (step + 1) / 50, left), 0.0)


def configured(name: str, **parts: dict[str, Any]) -> TrainConfig:
    """A preset with some settings of its parts replaced: ``optim={"steps": 5}``."""
    base = PRESETS[name][1]
    return replace(base, **{part: replace(getattr(base, part), **told) for part, told in parts.items()})


class Frame:
    """``u = L^-1 (x - m)`` with ``L L^T = S``, or nothing at all: where the network works and the noise is added."""

    def __init__(self, x: Tensor | None = None) -> None:
        self.mean: Tensor | None = None
        if x is not None:
            flat = x.flatten(1).double()
            self.mean = flat.mean(0)
            self.factor = torch.linalg.cholesky(torch.cov(flat.T))

    @property
    def log_volume(self) -> float:
        """``ln |det L|``: what a log-density in the frame is above that of the data."""
        return 0.0 if self.mean is None else float(self.factor.diagonal().log().sum())

    def into(self, x: Tensor) -> Tensor:
        if self.mean is None:
            return x
        away = (x.flatten(1).double() - self.mean).T
        return torch.linalg.solve_triangular(self.factor, away, upper=False).T.reshape(x.shape).to(x.dtype)

    def back(self, u: Tensor) -> Tensor:
        if self.mean is None:
            return u
        return (self.mean + u.flatten(1).double() @ self.factor.T).reshape(u.shape).to(u.dtype)

    def shape(self, noise: ansn.NoiseModel) -> Tensor:
        """R of noise in the frame, in the data's coordinates: float64 ``[d, d]``."""
        r = noise.covariance.noise_shape()[0].double()
        r = r if r.ndim == 2 else torch.diag(r)
        return r if self.mean is None else self.factor @ r @ self.factor.T


@dataclass(frozen=True)
class Trained:
    """A run at one of its steps. ``model``: averaged weights, in the coordinates of ``frame``; ``seconds``: of training
    so far, by the processor's time of its one thread, the covariance's part included; ``loss``: mean since the step
    before; ``latest``: the weights as they are, which go on learning when the iteration goes on."""

    step: int
    seconds: float
    loss: float
    model: ansn.Denoiser
    frame: Frame
    latest: ansn.Denoiser
    finder: ansn.Mixture | None = None
    """Whose regions the network is told, where they are not the classes."""
    shares: Tensor | None = None
    """Of what the network is told, ``[K]``, where the noise does not draw it."""

    def known(self, x: Tensor, y: Tensor | None) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Region of rows in the frame, and what the network is told of them."""
        y = y if self.finder is None else self.finder.draw(x)
        told = {"y": y} if self.latest.num_classes and y is not None else {}
        return (y if self.model.noise.covariance.regions > 1 else None), told

    def sample(
        self, n: int, method: str = "dpmpp_2m", evaluations: int = 12, seed: int = 0, y: Tensor | None = None,
        **options: Any,
    ) -> Tensor:  # fmt: skip
        """``n`` samples in data units with at most so many network evaluations each; ``y``: classes, int64 ``[n]``."""
        draw = ansn.sampling.Draw.within(self.model, method, evaluations, seed=seed, **options)
        if y is None and self.shares is not None:
            y = torch.multinomial(self.shares, n, True, generator=torch.Generator().manual_seed(seed))
        parts = [draw.batch(row, min(512, n - row), _rows(y, row + 512, row)) for row in range(0, n, 512)]
        return self.frame.back(torch.cat(parts))

    def log_likelihood(self, x: Tensor, steps: int, probes: int = 2) -> Tensor:
        """Nats, ``[B]``, of data ``x``, by Heun's method on the flow."""
        found = ansn.log_likelihood(self.model, self.frame.into(x), solver="heun", steps=steps, probes=probes)
        return found.log_density - self.frame.log_volume


def one_copy(data: Dataset) -> Tensor:
    """All rows, dequantised once and for all where the data set is."""
    return data.batch(torch.arange(len(data)), seed=DATA_SEED)[0]


class Made(NamedTuple):
    """What a run begins with. ``finder``: of :class:`Trained`."""

    noise: ansn.NoiseModel
    frame: Frame
    finder: ansn.Mixture | None = None


def noise_model(problem: Problem, setup: Setup) -> Made:
    """The shape's covariance (empty where it learns online), its ladder with the flow's start from the data, the frame
    it lives in, and the regions that were found."""
    _, regions, _, shape = setup.begins
    x = one_copy(problem.train)
    frame, options = Frame(x if shape == "whitened" else None), {"structure": setup.structure} | _family(shape)
    x = frame.into(x)
    options["eps_floor"] = problem.train.quantisation if frame.mean is None else 0.0
    some, structure = x[:8192], options["structure"]
    mixture = finder = None
    known = {"eps_floor": options["eps_floor"], "structure": "auto" if structure == "dense" else structure}
    if regions:
        mixture = _found(problem, setup.seed, regions, tuple(known.items()))
    region = _rows(problem.train.labels, 8192) if setup.labels == "regions" else None
    count = 1 if region is None else problem.train.num_classes
    if setup.found:
        regional = options | known if setup.labels == "regions" else known
        finder = _found(problem, setup.seed, setup.found, tuple(regional.items()))
        if setup.labels == "regions":
            region, count, structure = finder.draw(some, seed=setup.seed), setup.found, finder.covariance.structure.name

    def covariance(**more: Any) -> ansn.AdaptiveCovariance:
        return ansn.AdaptiveCovariance(
            problem.shape, count, **options | {"root": setup.root, "structure": structure} | more
        )

    seen = covariance().orient(some, region).update(some, region).freeze()
    few = x[:1000] if mixture is None else some
    ladder = ansn.levels.flow(few, seen, region=_rows(region, len(few)), mixture=mixture)
    start = ladder.start or ladder.maximum
    if shape == "diagonal" and count == 1:  # its start knows no correlations
        start = max(start, diagonal_start(some, seen))
        ladder = ansn.levels.karras(max(ladder.maximum, start), 0.01)
    told = {"start": min(start, ladder.maximum), "log_mean": setup.log_mean, "log_std": setup.log_std}
    ladder = replace(ladder, **{name: value for name, value in told.items() if value is not None})
    if shape.startswith("fixed"):
        learned = covariance()
        for row in range(0, len(x), 4096):
            learned.update(x[row : row + 4096], _rows(region, row + 4096, row))
        learned.freeze()
    elif finder is not None and setup.labels == "regions":
        learned = finder.covariance
    else:
        learned = covariance(warmup=setup.warmup, forgetting=setup.forgetting).orient(some, region)
    return Made(ansn.NoiseModel(learned, ladder, setup.seed, mixture), frame, finder)


def _found(problem: Problem, seed: int, regions: int | str, options: tuple[tuple[str, Any], ...]) -> ansn.Mixture:
    """Regions of the first rows, found once a process; a copy, since they go on learning."""
    key = id(problem), seed, regions, options
    if key not in _FOUND:
        _FOUND[key] = find(one_copy(problem.train)[:8192], regions, seed=seed, **dict(options))[0]
    return copy.deepcopy(_FOUND[key])


_FOUND: dict[Any, ansn.Mixture] = {}


def fit(
    problem: Problem,
    setup: Setup,
    at: tuple[int, ...] | None = None,
    *,
    made: Made | None = None,
    batches: Iterable[tuple[int, Tensor, Tensor | None]] | None = None,
) -> Iterator[Trained]:
    """Train, and give the run at each step of ``at`` (ascending; by default the last). A loss that is no number ends
    the run, and with it the iteration.

    ``made``: in place of :func:`noise_model`'s. ``batches``: ``(step, x, labels)`` in place
    of the training rows'.
    """
    at = at or (setup.steps,)
    noise, frame, finder = made or noise_model(problem, setup)
    skip, _, inputs, _ = setup.begins
    options: dict[str, int] = {"inputs": 1 + len(inputs)} if inputs else {}
    if setup.labels:
        options["num_classes"] = finder.regions if finder is not None else problem.train.num_classes
    once = min(setup.freeze_after, len(problem.train))  # of regions: more epochs tell nothing new
    shares = None
    if setup.labels == "network":
        shares = torch.bincount(problem.train.labels).double() if finder is None else finder.weights
    torch.manual_seed(setup.seed)
    network = problem.network(**options)
    model = ansn.Denoiser(network, noise, skip=skip, inputs=inputs)
    optimizer = torch.optim.Adam(network.parameters(), setup.lr, fused=True)
    average = AveragedModel(network, multi_avg_fn=partial(_average, setup.ema))
    total, since, seconds, begun = 0.0, 0, 0.0, time.process_time()
    for step, x, y in batches or iterate(problem.train, setup.batch_size, setup.seed, stop_step=max(at)):
        x = frame.into(x)
        y = y if finder is None else finder.draw(x, seed=setup.seed, step=step)
        told = {"y": y} if setup.labels else {}
        region = y if setup.labels == "regions" else None
        noise.update(x, region)
        if noise.covariance.seen >= (once if finder is not None else setup.freeze_after):
            noise.covariance.freeze()
        if noise.mixture is not None and noise.mixture.covariance.seen >= once:
            noise.mixture.covariance.freeze()
        perturbed, level = noise.perturb(x, region, step=step)
        loss = ansn.dsm_loss(model, x, perturbed, level, setup.metric, **told)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = setup.rate(step)
        optimizer.step()
        average.update_parameters(network)
        total, since = total + float(loss.detach()), since + 1
        if not math.isfinite(total):
            return
        if step + 1 in at:
            seconds += time.process_time() - begun
            averaged = ansn.Denoiser(average.module, noise, skip=skip, inputs=inputs).eval()
            yield Trained(step + 1, seconds, total / since, averaged, frame, model, finder, shares)
            total, since, begun = 0.0, 0, time.process_time()


@torch.no_grad()
def held_out_loss(trained: Trained, problem: Problem, metric: str = "pixel", seed: int = 10_000) -> float:
    """Loss on the held-out rows, four draws of level and noise each. Comparable under one shape only."""
    x, y = trained.frame.into(one_copy(problem.test)), problem.test.labels
    model, values = trained.model, []
    region, told = trained.known(x, y)
    for step in range(4):
        perturbed, level = model.noise.perturb(x, region, seed=seed, step=step)
        values.append(float(ansn.dsm_loss(model, x, perturbed, level, metric, **told)))
    return float(np.mean(values))


@torch.no_grad()
def excess_loss(trained: Trained, problem: Problem, seed: int = 10_000) -> float:
    """``1/2 E ||f - f*||^2 / d`` over the held-out rows and the training levels: the whitened loss above its floor,
    where the data's density is known. Comparable between shapes (each in its own whitened units)."""
    assert problem.density is not None
    noise, frame = trained.model.noise, trained.frame
    u = frame.into(one_copy(problem.test))
    perturbed, level = noise.perturb(u, seed=seed, step=0)
    f = trained.model.f(perturbed, level.tau)
    x, sigma = frame.back(perturbed).double(), level.tau.double().square()[:, None, None] * frame.shape(noise)
    parts = [problem.density.denoised(x[i : i + 500], sigma[i : i + 500]) for i in range(0, len(x), 500)]
    best = frame.into(torch.cat(parts)).to(u.dtype)
    exact = noise.covariance.whiten(best - perturbed) / level.tau.to(u.dtype)[:, None]
    return 0.5 * float((f - exact).square().mean())


def blur(s: Tensor, noise: Tensor) -> float:
    """``KL(N(0, S) || N(0, S + N)) / d``, nats a dimension: what likelihood under a density of perturbed data loses on
    clean data, if both were Gaussian. ``1/2 mean(ln(1 + t) - t/(1 + t))`` over the eigenvalues t of ``S^-1 N``."""
    factor = torch.linalg.cholesky(s)
    half = torch.linalg.solve_triangular(factor, noise, upper=False)
    t = torch.linalg.eigvalsh(torch.linalg.solve_triangular(factor, half.T, upper=False))
    return 0.5 * float((t.log1p() - t / (1 + t)).mean())


def judge(
    trained: Trained, problem: Problem, seed: int, evaluations: int | None = None, method: str = "dpmpp_2m"
) -> dict[str, float]:
    """Distances of as many samples as there are held-out rows to the training rows, and the mean held-out negative
    log-likelihood a dimension, nats. A run that has diverged has inf."""
    x = trained.sample(len(problem.test), method, evaluations or problem.evaluations, seed=seed)
    found = distances(x, problem)
    if math.isinf(found["fd"]):
        return found | {"nll": math.inf}
    held = one_copy(problem.test)[: problem.likelihood_rows]
    return found | {"nll": -float(trained.log_likelihood(held, problem.likelihood_steps).mean()) / problem.dim}


def frechet(x: Tensor, problem: Problem) -> float:
    """The first of :func:`distances` alone."""
    return distances(x, problem, ("fd",))["fd"]


def distances(x: Tensor, problem: Problem, names: tuple[str, ...] = ("fd", "fd_columns", "energy")) -> dict[str, float]:
    """Frechet distances of features and of bare coordinates, and the energy distance, to the training rows; inf for
    samples that are not finite."""
    if not bool(torch.isfinite(x).all()):
        return dict.fromkeys(names, math.inf)
    train = reference(problem)
    of: dict[str, Callable[[], float]] = {
        "fd": lambda: frechet_distance(problem.features(x), problem.features(train)),
        "fd_columns": lambda: frechet_distance(problem.columns(x), problem.columns(train)),
        "energy": lambda: energy_distance(problem.columns(x), problem.columns(train[:4000])),
    }
    return {name: of[name]() for name in names}


def distance(trained: Trained, problem: Problem, seed: int) -> float:
    """The Frechet distance of :func:`judge` alone: what a rate is chosen by where distances are compared."""
    x = trained.sample(len(problem.test), evaluations=problem.evaluations, seed=seed)
    return frechet(x, problem)


def floors(problem: Problem) -> dict[str, float]:
    """What as many rows of the data itself have: the held-out rows against the training rows."""
    return {f"{name}_floor": value for name, value in distances(one_copy(problem.test), problem).items()}


def reference(problem: Problem) -> Tensor:
    """Training rows that distances are taken to: at most 10,000."""
    return one_copy(problem.train)[:10_000]


def halfway(setup: Setup) -> Setup:
    """Half of the steps under a seed that no result uses: what a rate is chosen by."""
    return replace(setup, seed=TUNING_SEED, steps=max(setup.steps // 2, 1))


def tuned(
    problem: Problem, setup: Setup, grid: tuple[float, ...], key: Callable[[Trained], float] | None = None
) -> float:
    """The learning rate of ``grid`` whose run has the lowest ``key``, by default the held-out loss."""
    key = key or partial(held_out_loss, problem=problem, metric=setup.metric)
    return tuned_for(problem, setup, grid, {"": key})[""]


def nearest_rate(problem: Problem, setup: Setup, grid: tuple[float, ...]) -> float:
    """The learning rate of ``grid`` with the lowest Frechet distance halfway."""
    return tuned(problem, halfway(setup), grid, partial(distance, problem=problem, seed=TUNING_SEED))


def tuned_for(
    problem: Problem, setup: Setup, grid: tuple[float, ...], keys: dict[str, Callable[[Trained], float]]
) -> dict[str, float]:
    """:func:`tuned` for several keys of the same runs; a grid of one rate needs none."""
    if len(grid) == 1:
        return dict.fromkeys(keys, grid[0])
    found: dict[str, dict[float, float]] = {name: {} for name in keys}
    for lr in grid:
        for trained in fit(problem, replace(setup, lr=lr)):
            for name, key in keys.items():
                found[name][lr] = key(trained)
    return {name: min(values, key=lambda lr: values[lr]) for name, values in found.items()}


def _family(shape: str) -> dict[str, Any]:
    if shape == "whitened":
        return {"rho": 0.0}
    if shape == "diagonal":
        return {"structure": "diagonal", "rho": 0.5}
    name, _, value = shape.removeprefix("fixed ").partition("=")
    if name not in ("rho", "gamma"):
        raise ValueError(f"shape: got {shape!r}, expected rho=R, gamma=G, diagonal or whitened")
    return {name: float(value)}


def diagonal_start(x: Tensor, seen: ansn.AdaptiveCovariance, kl: float = ansn.levels.START_KL) -> float:
    """The level from which ``N(m, diag(S) + tau^2 R)`` is within ``kl`` nats of ``N(m, S + tau^2 R)``."""
    s = torch.cov(x.flatten(1).double().T)
    r = torch.diag(seen.noise_shape()[0].double())

    def excess(log_tau: float) -> float:
        noise = math.exp(2 * log_tau) * r
        start, truth = torch.diag(s.diagonal()) + noise, s + noise
        both = torch.linalg.solve(truth, start)
        return 0.5 * float(both.trace() - len(s) - torch.linalg.slogdet(both)[1]) - kl

    return math.exp(optimize.brentq(excess, 0.0, 6.0, xtol=1e-3)) if excess(0.0) > 0 else 1.0


def _rows(labels: Tensor | None, stop: int, start: int = 0) -> Tensor | None:
    return None if labels is None else labels[start:stop]


def _average(decay: float, averaged: Any, current: Any, count: Tensor) -> None:
    # Grows to its value, so that weights from before the first steps are forgotten.
    torch._foreach_lerp_(averaged, current, 1.0 - min(decay, (1 + int(count)) / (10 + int(count))))
