"""Bits a dimension of a data set: dequantisation, and the mean over rows with its errors."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ansn import ops
from ansn.covariance import Mixture
from ansn.data import Dataset
from ansn.denoiser import Denoiser, unwrapped
from ansn.errors import whole
from ansn.likelihood.flow import LogLikelihood, log_likelihood, standard_error

DEQUANTISATIONS = ("uniform", "noise")

_CHUNK = 4096  # rows whose floats are held at a time


@dataclass(frozen=True)
class BitsPerDim:
    """Mean code length of rows.

    Attributes:
        value: bits a dimension. Grey levels: an upper bound (in expectation) of ``-log2 P(v) / d``, P the model's
            probability of the quantised row. Continuous data: ``-log2 p(x) / d`` in the units of the file, which may be
            negative.
        error: standard error of value over the rows; it holds what probes and dequantisation add.
        probe_error: the part of it that the probes of the trace make; 0 for an exact trace, NaN for one probe.
        nats: mean log-likelihood of a row, ``-value d ln 2``.
        n: rows. dim: dimensions of a row.
        dequantisation: "uniform" (of tables with discrete columns too), "noise", or "none" for continuous data.
        samples: importance samples a row.
        conditional: whether the network was told the labels. trace: "hutchinson" or "exact", what was used.
        tau: level of the density, that of the data perturbed by ``N(0, tau^2 R)``.
        evaluations: of the network, a row.
    """

    value: float
    error: float
    probe_error: float
    nats: float
    n: int
    dim: int
    dequantisation: str
    samples: int
    conditional: bool
    trace: str
    tau: float
    evaluations: int

    @property
    def nats_per_dim(self) -> float:
        """Mean log-likelihood a dimension."""
        return self.nats / self.dim


def bits_per_dim(
    model: Denoiser,
    dataset: Dataset,
    index: Tensor | None = None,
    *,
    dequantisation: str | None = None,
    samples: int = 1,
    conditional: bool = True,
    batch_size: int = 256,
    seed: int = 0,
    **options: Any,
) -> BitsPerDim:
    r"""Bits a dimension of a data set's rows; the caller chooses the split.

    A row of grey levels v of spacing ``delta`` (1/(levels - 1); 1/levels where the data set dequantises) is scored by
    points y drawn around it::

        log P(v) >= E log 1/K sum_k p(y_k) P(v | y_k) / q(y_k | v)      (Burda et al. 2016; Ho et al. 2019)

    * ``"uniform"``: q uniform on v's cell, ``P(v | y) = 1``, so ``-log2 p / d - log2 delta`` (Theis et al. 2016). Train
      the model on dequantised data for it.
    * ``"noise"``: q = ``N(v, tau_min^2 R)``, the model's own lowest noise, and ``P(v | y)`` the posterior of each grey
      value under it. For a density of spikes at the grey levels, which a uniform y misses; poor for a smooth one.

    Both are bounds, so the smaller is the closer one. What is discrete in a table is spread anew at each point, as in
    the first bound; rows with missing cells have no density and are left out.

    Args:
        model: as it is or wrapped for training.
        dataset: gives rows, labels, levels and scaling; its flips are left out.
        index: rows, int64 ``[M]``; all of them by default.
        dequantisation: as above, of images, by default "uniform".
        samples: K points a row; the bound rises with K.
        conditional: a class-conditional network is told the labels: ``log p(x | y)``. False, with a region for each
            class: the mixture over them. Regions that were found are no labels, and always summed over.
        batch_size, seed: as in :func:`log_likelihood`. Point k of row ``index[i]`` draws what (seed, k M + i) gives.
        options: to :func:`log_likelihood`: ``steps``, ``solver``, ``trace``, ``probes``, ``taus``, ...

    Raises TypeError or ValueError naming the argument.
    """
    model, samples, how = unwrapped(model), whole("samples", samples, 1), _chosen(dataset, dequantisation)
    index = torch.arange(len(dataset)) if index is None else index
    complete = dataset.known(index)
    index = index if complete is None else index[complete.all(1).to(index.device)]
    if not len(index):
        raise ValueError("index: got no rows without missing cells, expected at least one")
    plain = copy.copy(dataset)
    plain.dequantise = plain.flip = False  # the noise that dequantises is drawn here, from the samplers' counters
    parts: list[Tensor] = []
    for start in range(0, len(index), _CHUNK):
        points = []
        for k in range(samples):
            row = k * len(index) + start
            # What is discrete in a table the data set itself spreads.
            x, labels = plain.batch(index[start : start + _CHUNK], seed=seed, position=row)
            known = _known(model, labels, conditional)
            y, log_ratio = _around(model, dataset, x, known.get("y"), how, seed, row)
            told = log_likelihood(model, y, **known, seed=seed, row=row, batch_size=batch_size, **options)
            points.append(told.estimates + log_ratio.cpu())
        parts.append(torch.stack(points).logsumexp(0) - math.log(samples))
    return _summary(torch.cat(parts, 1), x[0].numel(), how, samples, "y" in known, told)


def _chosen(dataset: Dataset, dequantisation: str | None) -> str:
    if dataset.levels is None:
        if dequantisation is not None:
            raise ValueError(f"dequantisation: got {dequantisation!r} for continuous data, expected None")
        return "none" if dataset.units is None or dataset.units.grain is None else "uniform"
    if dequantisation not in (None, *DEQUANTISATIONS):
        raise ValueError(f"dequantisation: got {dequantisation!r}, expected one of {', '.join(DEQUANTISATIONS)}")
    return dequantisation or "uniform"


def _known(model: Denoiser, labels: Tensor | None, conditional: bool) -> dict[str, Any]:
    """What a class-conditional network is told."""
    found = bool(model.noise.covariance.moments.pseudo.any())  # regions with a prior, which labels have not
    if not model.num_classes or found or not conditional:
        return {}
    if labels is None:
        raise ValueError("dataset: got one without labels, expected a labelled one, or conditional=False")
    return {"y": labels}


def _around(
    model: Denoiser, dataset: Dataset, x: Tensor, labels: Tensor | None, how: str, seed: int, row: int
) -> tuple[Tensor, Tensor]:
    """Points y drawn around rows and ``log P(v | y) / q(y | v)``, float64 ``[b]``.

    ``x``: bare rows as the data set scales them, ``v / (levels - 1)`` for grey levels.
    """
    noise = model.noise
    if dataset.levels is None:  # densities in the units of the file
        stretch = torch.zeros(len(x), dtype=torch.float64) if dataset.units is None else dataset.units.log_volume(x)
        return x.to(noise.tau), -stretch
    v = (x.to(noise.tau.device, torch.float64) * (dataset.levels - 1)).round()
    delta = 1.0 / (dataset.levels if dataset.dequantise else dataset.levels - 1)
    center = (v + 0.5) * delta if dataset.dequantise else v * delta
    z = ops.colored_step(torch.zeros_like(center), b=1.0, seed=seed, row=row, stream=ops.DEQUANTISE)
    if how == "uniform":
        u = torch.special.ndtr(z)
        ratio = torch.full((len(x),), x[0].numel() * math.log(delta), dtype=torch.float64)
        return (center + (u - 0.5) * delta).to(noise.tau), ratio
    covariance, tau = noise.covariance, noise.levels.minimum
    if covariance.regions == 1:
        region = torch.zeros(len(x), dtype=torch.int64, device=z.device)
    elif labels is not None and dataset.num_classes == covariance.regions:
        region = labels.to(z.device)
    else:  # any will do for a bound
        region = Mixture(covariance).assign(center.to(noise.tau))
    away = tau * covariance.color(z, region)
    deviation = tau * covariance.snapshot.noise_diagonal().sqrt()[region]
    volumes = covariance.snapshot.log_volume()[region]
    size = z[0].numel()
    log_q = -0.5 * z.flatten(1).square().sum(1) - size * (0.5 * math.log(2 * math.pi) + math.log(tau)) - volumes
    log_v = _log_posterior(v.flatten(1), away.flatten(1), deviation.to(away), delta, dataset.levels)
    return (center + away).to(noise.tau), log_v - log_q


def _log_posterior(v: Tensor, away: Tensor, deviation: Tensor, delta: float, levels: int) -> Tensor:
    """``log prod_j P(v_j | y_j)`` of grey values under normal noise, all levels alike likely before; ``[b]``.

    ``y = v delta + away``, ``away`` and its ``deviation`` ``[b, d]``.
    """
    # Fifteen deviations hold the noise itself (the counters' normals end at 6.8) and all that matters on its far side.
    reach = min(levels - 1, math.ceil(15.0 * float(deviation.max()) / delta))
    total = torch.zeros_like(away)
    for k in range(-reach, reach + 1):
        closer = k * delta * (2 * away - k * delta) / (2 * deviation**2)
        total += torch.where((v + k >= 0) & (v + k < levels), closer.exp(), 0.0)
    return -total.log().sum(1)


def _summary(found: Tensor, dim: int, how: str, samples: int, conditional: bool, told: LogLikelihood) -> BitsPerDim:
    """From estimates ``[P, M]`` of each row's log-probability."""
    rows, unit = found.mean(0), dim * math.log(2.0)
    n = len(rows)
    error = float(rows.std()) / math.sqrt(n) if n > 1 else math.nan
    # In quadrature: each row has probes of its own.
    probe_error = float(standard_error(found, told.trace).square().sum().sqrt()) / n
    mean = float(rows.mean())
    return BitsPerDim(
        value=-mean / unit, error=error / unit, probe_error=probe_error / unit, nats=mean, n=n, dim=dim,
        dequantisation=how, samples=samples, conditional=conditional, trace=told.trace, tau=told.tau,
        evaluations=told.evaluations * samples,
    )  # fmt: skip
