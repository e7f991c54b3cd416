"""Paired training: one problem under one arm, with everything else equal.

Runs of one seed share data order, levels, noise, and first weights where their networks see as many inputs.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

import ansn
from ansn.data import Dataset, iterate
from ansn.evaluation import frechet_distance
from ansn.evaluation.features import Array
from ansn.presets import PRESETS, TrainConfig
from experiments.lab.problems import Problem

TUNING_SEED = 1000  # of no result
DATA_SEED = 0  # of the one dequantised copy of the data that distances and floors are made from


@dataclass(frozen=True)
class Setup:
    """One training run.

    ``arm``: words: the denoiser's skip (``scalar``, ``wiener``, or ``mixture`` of ``regions``, as many as the data asks
    for), then ``rho=R`` for noise that is not isotropic, and ``seen`` where the network is given the skip's estimate.
    ``decay``: share of the steps, the last ones, over which the learning rate falls to 0. ``fixed``: the covariance is
    that of all rows from the start, else it is learned online until ``freeze_after`` rows.
    """

    arm: str = "scalar"
    seed: int = 0
    steps: int = 1000
    lr: float = 1e-3
    batch_size: int = 128
    metric: str = "pixel"
    ema: float = 0.995
    decay: float = 0.0
    structure: str = "auto"
    regions: int | str = "auto"
    root: str | None = None
    fixed: bool = False
    freeze_after: int = 50_000
    forgetting: float = 1.0

    @property
    def begins(self) -> tuple[str, float, tuple[str, ...]]:
        """Skip, rho and the network's further inputs."""
        skip, *words = self.arm.split()
        rho = [float(word.removeprefix("rho=")) for word in words if word.startswith("rho=")]
        return skip, rho[0] if rho else 0.0, ("estimate",) if "seen" in words else ()

    def rate(self, step: int) -> float:
        """Learning rate of a step: it rises over the first 50."""
        left = (self.steps - step) / (self.decay * self.steps) if self.decay else 1.0
        return self.lr * max(min(1.0, (step + 1) / 50, left), 0.0)


def configured(name: str, **parts: dict[str, Any]) -> TrainConfig:
    """A preset with some settings of its parts replaced: ``optim={"steps": 5}``."""
    base = PRESETS[name][1]
    return replace(base, **{part: replace(getattr(base, part), **changed) for part, changed in parts.items()})


def one_copy(data: Dataset) -> Tensor:
    """All rows, dequantised once and for all where the data set is."""
    return data.batch(torch.arange(len(data)), seed=DATA_SEED)[0]


def noise_model(problem: Problem, setup: Setup) -> ansn.NoiseModel:
    """The arm's noise, with the ladder that the data gives it; empty unless the covariance is ``fixed``."""
    made = copy.deepcopy(_found(problem, *_kind(setup))[0])
    made.seed = setup.seed
    if setup.fixed:
        for index in torch.arange(len(problem.train)).split(1000):
            made.update(problem.train.batch(index, seed=DATA_SEED)[0])
        made.covariance.freeze()
    return made


def _kind(setup: Setup) -> tuple[int | str | None, float, str, str | None, float]:
    skip, rho, _ = setup.begins
    return setup.regions if skip == "mixture" else None, rho, setup.structure, setup.root, setup.forgetting


@cache
def _found(
    problem: Problem, mixture: int | str | None, rho: float, structure: str, root: str | None, forgetting: float
) -> tuple[ansn.NoiseModel, float]:
    """Structure, regions and levels of the data, found once a process; and the seconds that it took."""
    began = time.process_time()
    made = ansn.NoiseModel.for_data(
        problem.train, structure, mixture=mixture, rho=rho, root=root, forgetting=forgetting
    )
    return made, time.process_time() - began


@dataclass(frozen=True)
class Trained:
    """A run at one of its steps. ``model``: averaged weights; ``seconds``: of training so far, by the processor's time
    of its one thread, with the covariance's part and ``found``, the search for structure, regions and levels."""

    step: int
    seconds: float
    found: float
    model: ansn.Denoiser

    @torch.no_grad()
    def sample(self, n: int, method: str = "dpmpp_2m", evaluations: int = 12, seed: int = 0, **options: Any) -> Tensor:
        """``n`` samples with at most so many network evaluations each."""
        draw = ansn.sampling.Draw.within(self.model, method, evaluations, seed=seed, **options)
        return torch.cat([draw.batch(row, min(512, n - row)) for row in range(0, n, 512)])

    def log_likelihood(self, x: Tensor, steps: int, probes: int = 2) -> Tensor:
        """Nats, ``[B]``, by Heun's method on the flow."""
        return ansn.log_likelihood(self.model, x, solver="heun", steps=steps, probes=probes).log_density


def fit(
    problem: Problem,
    setup: Setup,
    at: tuple[int, ...] | None = None,
    *,
    batches: Iterable[tuple[int, Tensor, Tensor | None]] | None = None,
) -> Iterator[Trained]:
    """Train, and give the run at each step of ``at`` (ascending; by default the last). A loss that is no number ends
    the run, and with it the iteration. ``batches``: ``(step, x, labels)`` in place of the training rows'."""
    at, noise, (skip, _, inputs) = at or (setup.steps,), noise_model(problem, setup), setup.begins
    found = _found(problem, *_kind(setup))[1]
    torch.manual_seed(setup.seed)
    network = problem.network(inputs=1 + len(inputs))
    if len(problem.shape) == 3:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model = ansn.Denoiser(network, noise, skip=skip, inputs=inputs)
    optimizer = torch.optim.Adam(network.parameters(), setup.lr, fused=True)
    average = AveragedModel(network, multi_avg_fn=partial(_average, setup.ema))
    once = min(setup.freeze_after, len(problem.train))  # of regions: more epochs say nothing new
    seconds, began = found, time.process_time()
    for step, x, _ in batches or iterate(problem.train, setup.batch_size, setup.seed, stop_step=max(at)):
        noise.update(x)
        if noise.covariance.seen >= setup.freeze_after:
            noise.covariance.freeze()
        if noise.mixture is not None and noise.mixture.covariance.seen >= once:
            noise.mixture.covariance.freeze()
        perturbed, level = noise.perturb(x, step=step)
        loss = ansn.dsm_loss(model, x, perturbed, level, setup.metric)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = setup.rate(step)
        optimizer.step()
        average.update_parameters(network)
        if not math.isfinite(float(loss.detach())):
            return
        if step + 1 in at:
            seconds += time.process_time() - began
            averaged = ansn.Denoiser(average.module, noise, skip=skip, inputs=inputs).eval()
            yield Trained(step + 1, seconds, found, averaged)
            began = time.process_time()


@torch.no_grad()
def held_out_loss(trained: Trained, problem: Problem, metric: str = "pixel", seed: int = 10_000) -> float:
    """Loss on the held-out rows, four draws of level and noise each. Comparable under one shape of the noise only."""
    x, model = one_copy(problem.test), trained.model
    values = []
    for step in range(4):
        perturbed, level = model.noise.perturb(x, seed=seed, step=step)
        values.append(float(ansn.dsm_loss(model, x, perturbed, level, metric)))
    return float(np.mean(values))


def likelihood(trained: Trained, problem: Problem) -> float:
    """Mean held-out negative log-likelihood a dimension, nats."""
    held = one_copy(problem.test)[: problem.likelihood_rows]
    return -float(trained.log_likelihood(held, problem.likelihood_steps).mean()) / problem.dim


def distance(trained: Trained, problem: Problem, seed: int) -> float:
    """Frechet distance of as many samples as there are held-out rows."""
    return frechet(trained.sample(len(problem.test), evaluations=problem.evaluations, seed=seed), problem)


def frechet(x: Tensor, problem: Problem) -> float:
    """Frechet distance of features to the training rows; inf for samples that are not finite."""
    return frechet_distance(problem.features(x), _target(problem)) if bool(torch.isfinite(x).all()) else math.inf


@cache
def _target(problem: Problem) -> Array:
    return problem.features(reference(problem))


def floor(problem: Problem) -> float:
    """The distance that as many rows of the data itself have: the held-out rows."""
    return frechet(one_copy(problem.test), problem)


def reference(problem: Problem) -> Tensor:
    """Rows that distances are taken to: at most 10,000 of the whole training set, however few are learned from."""
    return one_copy(problem.whole.select(torch.arange(min(len(problem.whole), 10_000))))


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
    """:func:`tuned` for several keys of the same runs; a grid of one rate needs none. A run that diverged has inf."""
    if len(grid) == 1:
        return dict.fromkeys(keys, grid[0])
    found: dict[str, dict[float, float]] = {name: dict.fromkeys(grid, math.inf) for name in keys}
    for lr in grid:
        for trained in fit(problem, replace(setup, lr=lr)):
            for name, key in keys.items():
                value = key(trained)
                found[name][lr] = value if math.isfinite(value) else math.inf
    return {name: min(values, key=lambda lr: values[lr]) for name, values in found.items()}


def _average(decay: float, averaged: Any, current: Any, count: Tensor) -> None:
    # Grows to its value, so that weights from before the first steps are forgotten.
    torch._foreach_lerp_(averaged, current, 1.0 - min(decay, (1 + int(count)) / (10 + int(count))))
