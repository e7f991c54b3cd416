"""What learns from clean data as a run goes on, the same in one process and in several."""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from ansn.config import TrainConfig
from ansn.covariance import AdaptiveCovariance, Choice, Found, Mixture
from ansn.denoiser import Denoiser
from ansn.distributed import agreed, share_state
from ansn.training import build
from ansn.training.build import DataInfo


def regions(
    config: TrainConfig, info: DataInfo, x: Tensor, labels: Tensor | None, choice: Choice, rank: int,
    device: torch.device,
) -> tuple[Mixture | None, Found | None]:  # fmt: skip
    """:func:`build.found_regions`, on every rank what rank 0 found; None where there are none, or the noise's are the
    classes."""
    if not build.mixed(config) and config.noise.regions in ("none", "labels"):
        return None, None
    if rank == 0 and labels is None:
        print(f"finding regions in {len(x):,} rows", file=sys.stderr)
    mixture, found = build.found_regions(config, info, x, labels, choice)
    found = agreed(found, device)
    out = build.regions(config, info, found)
    if rank == 0:
        out.load_state_dict(mixture.state_dict())
        if labels is None:
            print(f"regions: {found}", file=sys.stderr)
    share_state(out.covariance, device)
    return out, found


def learners(
    config: TrainConfig, model: Denoiser, found: Found | None, rows: int, step: int
) -> list[Learner]:
    """Of the noise's covariance and of the skip's, in a run that goes on from ``step``. Regions began with the first
    rows of the run's order: these do not count again, and more than one epoch of few ``rows`` tells nothing new (they
    go on where ``freeze_after`` is None)."""
    limit, batch = config.noise.freeze_after, config.optim.batch_size
    once, begun = None if limit is None else min(limit, rows), 0 if found is None else found.rows
    regional = "mixture" if build.mixed(config) else "covariance"
    return [
        Learner(covariance, once, batch, begun - step * batch)
        if found is not None and name == regional
        else Learner(covariance, limit, batch)
        for name, covariance in build.covariances(model).items()
    ]


class Learner:
    """Feeds a covariance, but for the first ``known`` rows, until it has seen ``limit`` points (None: without end), and
    then freezes it.

    ``batch``: rows of a step, of all processes.
    """

    def __init__(self, covariance: AdaptiveCovariance, limit: int | None, batch: int, known: int = 0) -> None:
        self.covariance, self.limit, self.batch, self.known = covariance, limit, batch, known

    @property
    def full(self) -> bool:
        """Whether it has seen its limit."""
        return self.limit is not None and self.covariance.points >= self.limit

    def update(self, x: Tensor, region: Tensor | None) -> None:
        """Learn from this rank's rows ``[b, *shape]`` of a batch, ``region`` int64 ``[b]``; nothing once frozen."""
        self.known -= self.batch
        if not self.full and self.known < 0:
            self.covariance.update(x, region)
        if self.full:
            self.covariance.freeze()
