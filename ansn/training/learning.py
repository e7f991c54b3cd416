"""What learns from clean data as a run goes on, the same in one process and in several."""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from ansn.config import TrainConfig
from ansn.covariance import AdaptiveCovariance, Choice, Found, Mixture
from ansn.denoiser import Denoiser
from ansn.distributed import agreed, all_reduce_moments, share_basis, share_state
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
    config: TrainConfig, model: Denoiser, found: Found | None, rows: int, world: int, step: int
) -> list[Learner]:
    """Of the noise's covariance and of the skip's, in a run that goes on from ``step``. Regions began with the first
    rows of the run's order: these do not count again, and more than one epoch of few ``rows`` tells nothing new (they
    go on where ``freeze_after`` is None)."""
    limit, batch = config.noise.freeze_after, config.optim.batch_size
    once, begun = None if limit is None else min(limit, rows), 0 if found is None else found.rows
    regional = "mixture" if build.mixed(config) else "covariance"
    return [
        Learner(covariance, once, batch, world, begun - step * batch)
        if found is not None and name == regional
        else Learner(covariance, limit, batch, world)
        for name, covariance in build.covariances(model).items()
    ]


class Learner:
    """Feeds a covariance, but for the first ``known`` rows, until it has seen ``limit`` points (None: without end), and
    then freezes it.

    Of several processes (``world``) each gathers moments of its own part of a batch of ``batch`` rows; they are merged
    exactly where one process would make a new snapshot, by :meth:`merge`, and for a checkpoint.
    """

    def __init__(
        self, covariance: AdaptiveCovariance, limit: int | None, batch: int, world: int, known: int = 0
    ) -> None:
        self.covariance, self.limit, self.batch, self.known = covariance, limit, batch, known
        # What this rank gathered since the last merge: cumulative states would be counted once a rank.
        self.gathered = covariance.gathering() if world > 1 else None
        self.pending = self.updates = 0

    @property
    def seen(self) -> int:
        """Points of all ranks so far."""
        return self.covariance.seen + self.pending

    @property
    def full(self) -> bool:
        """Whether it has seen its limit."""
        return self.limit is not None and self.seen >= self.limit

    def update(self, x: Tensor, region: Tensor | None) -> None:
        """Learn from this rank's rows ``[b, *shape]`` of a batch, ``region`` int64 ``[b]``; nothing once frozen."""
        covariance = self.covariance
        if covariance.frozen:
            return
        self.known -= self.batch
        if not self.full and self.known < 0:
            self._learn(x, region)
        if self.full:
            self.merge()
            covariance.freeze()

    def _learn(self, x: Tensor, region: Tensor | None) -> None:
        if self.gathered is None:
            self.covariance.update(x, region)
            return
        self.gathered.update(x, region, self.covariance.forgetting)
        self.pending += self.batch
        self.updates += 1
        if self.covariance.due(self.pending, self.batch):
            self.merge()

    def merge(self) -> None:
        """Add what all ranks have gathered; every rank calls it at the same step."""
        if self.gathered is not None and self.pending:
            all_reduce_moments(self.gathered)
            forgotten = self.covariance.forgetting**self.updates
            self.covariance.merge(self.gathered, self.pending, forgotten, rows=self.batch)
            share_basis(self.covariance.moments)
            self.gathered.reset(self.covariance.moments.basis)
            self.pending = self.updates = 0
