"""Log-likelihood of each row, in the units of the data that it came in."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ansn.data.units import Units, spread
from ansn.denoiser import Denoiser, unwrapped
from ansn.errors import whole
from ansn.likelihood.flow import LogLikelihood, log_likelihood

_CHUNK = 4096  # rows whose numbers are in memory at a time
_DRAWS = 8


@dataclass(frozen=True)
class RowScores:
    """Log-likelihoods of rows: low where a row is unlike the data.

    Attributes:
        value: nats, float64 ``[N]``; NaN for rows with missing numbers.
        error: standard error of each, from the spread of probes and of the draws of what is discrete; 0 where there is
            nothing of either, NaN where one probe or one draw cannot tell.
        draws: of each row. trace: "exact" or "hutchinson". tau: level of the density, see :func:`log_likelihood`.
    """

    value: Tensor
    error: Tensor
    draws: int
    trace: str
    tau: float


def score_rows(
    model: Denoiser,
    x: Tensor,
    units: Units | None = None,
    *,
    y: Tensor | None = None,
    shares: Tensor | None = None,
    draws: int | None = None,
    probes: int = 4,
    seed: int = 0,
    batch_size: int = 1024,
    progress: Callable[[int, int], None] = lambda done, rows: None,
    **options: Any,
) -> RowScores:
    r"""``log p(row)`` of rows in the data's units: the density ``log p(x) - ln |d data / d x|`` of continuous columns,
    and the probability of discrete ones, which are spread over their step by u::

        log P(row) = log 1/K sum_k p(x + u_k) / q(u_k),     q uniform

    Args:
        model: as it is or wrapped for training.
        x: rows. With ``units``, values as the file has them, float64 ``[N, columns]`` of a table or ``[N, *shape]`` of
            fields; without, the model's numbers. NaN: missing.
        y: labels, int64 ``[N]``, of a class-conditional network: ``log p(row | y)``.
        shares: float ``[classes]``, of each class: without y, ``log sum_y share_y p(row | y)``; costs as many times.
        draws: K; by default 8 where there is something discrete, else 1. On average the logarithm is too small by half
            the error's square.
        probes: of a trace that is not exact; it is exact up to ``8 probes`` dimensions, see :func:`log_likelihood`.
        seed: the result is a function of it and of a row's place among the complete ones.
        batch_size: rows at a time.
        progress: is called with the number of rows that are done and of all, every few hundred.
        options: to :func:`log_likelihood`.

    Raises TypeError or ValueError naming the argument.
    """
    model = unwrapped(model)
    grain = None if units is None else units.grain
    draws = (1 if grain is None else _DRAWS) if draws is None else whole("draws", draws, 1)
    complete = ~x.isnan().flatten(1).any(1)
    if not bool(complete.any()):
        raise ValueError(f"x: got {len(x)} rows and none without missing numbers, expected at least one")
    rows = x[complete]
    labels = None if y is None else y[complete]
    known: list[tuple[int | None, float]] = [(None, 0.0)]
    if y is None and shares is not None:
        known = [(k, math.log(share)) for k, share in enumerate(shares.tolist()) if share > 0]
    values, errors = [], []
    step = max(1, _CHUNK // draws)
    for start in range(0, len(rows), step):
        # The draws of a row come one after the other, so that few rows make large batches too.
        part = rows[start : start + step].repeat_interleave(draws, 0)
        given = None if labels is None else labels[start : start + step].repeat_interleave(draws)
        place = start * draws
        z = part.to(model.noise.tau.dtype) if units is None else units.encode(part)
        if grain is not None:
            z = z + spread(grain, len(z), seed, place)
        each = [
            log_likelihood(
                model, z, y=given if c is None else torch.full((len(z),), c), probes=probes, seed=seed, row=place,
                batch_size=batch_size, **options,
            )
            for c, _ in known
        ]  # fmt: skip
        value, error = _mixed(each, [weight for _, weight in known])
        value = value if units is None else value - units.log_volume(z)
        value, error = value.reshape(-1, draws), error.reshape(-1, draws)
        values.append(value.logsumexp(1) - math.log(draws))
        # The probes of each draw are its own: their part of the error is in the spread of the draws.
        if draws > 1:
            errors.append((value.softmax(1) * draws).std(1) / math.sqrt(draws))
        else:
            errors.append(error[:, 0] if grain is None else torch.full_like(error[:, 0], math.nan))
        progress(min(start + step, len(rows)), len(rows))
    out = torch.full((2, len(x)), math.nan, dtype=torch.float64)
    out[:, complete] = torch.stack((torch.cat(values), torch.cat(errors)))
    return RowScores(out[0], out[1], draws, each[0].trace, each[0].tau)


def _mixed(each: list[LogLikelihood], weights: list[float]) -> tuple[Tensor, Tensor]:
    """``log sum_c w_c p_c`` and its error, from those of the classes, whose probes are independent."""
    logs = torch.stack([told.log_density + weight for told, weight in zip(each, weights, strict=True)])
    errors = torch.stack([told.standard_error for told in each])
    return logs.logsumexp(0), (logs.softmax(0) * errors).square().sum(0).sqrt()
