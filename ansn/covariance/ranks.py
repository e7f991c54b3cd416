"""One covariance on several processes: each gathers the moments of its rows, and all are merged when that is due."""

from __future__ import annotations

import itertools
import textwrap
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from ansn.covariance.moments import Moments

if TYPE_CHECKING:
    from ansn.covariance.adaptive import AdaptiveCovariance

Sync = bool | Any
"""Whether processes share what they learn: True, with all of them where a group is up; a ``ProcessGroup``, with its
members; False, never."""


def several(sync: Sync = True) -> bool:
    """Whether there are other processes to share with."""
    if sync is False or not (dist.is_available() and dist.is_initialized()):
        return False
    return dist.get_world_size(group_of(sync)) > 1


def group_of(sync: Sync) -> Any:
    """The group to share with; None is that of all processes."""
    return None if sync is True else sync


def first_row(row: int | None, rows: int) -> int:
    """The number of a batch's first row: as it is given, else rank r's ``rows`` are the slice from ``r rows`` on of the
    batch of all processes."""
    if row is not None:
        return row
    return dist.get_rank() * rows if several() else 0


def agree(name: str, value: dict[str, Any], sync: Sync = True) -> None:
    """Raises ValueError, on every process, unless all of them have the same values."""
    group = group_of(sync)
    values: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(values, value, group)
    for rank, other in enumerate(values):
        for key, expected in values[0].items():
            if other[key] != expected:
                got, expected = (textwrap.shorten(str(v), 100) for v in (other[key], expected))
                raise ValueError(f"{name}: got {key} = {got} on rank {rank}, expected that of rank 0: {expected}")


@torch.no_grad()
def all_reduce_moments(moments: Moments, group: Any = None) -> None:
    """Replace each rank's moments by those of all ranks' data (Chan's formula over all states at once), in place.

    For what was gathered *since the last synchronisation*: cumulative states would be counted once a rank. ::

        n = sum n_r,  m = sum n_r m_r / n,  M = sum M_r + n_r (m_r - m)(m_r - m)^T
    """
    # A copy: the weights are overwritten by their sum below.
    local = moments.weight.to(moments.mean.dtype, copy=True).unsqueeze(1)
    mean = local * moments.mean
    dist.all_reduce(mean, group=group)
    for buffer in (moments.weight, moments.weight2):
        dist.all_reduce(buffer, group=group)
    total = moments.weight.to(mean.dtype).unsqueeze(1)
    mean = torch.where(total > 0, mean / total.clamp_min(1e-300 if mean.dtype == torch.float64 else 1e-30), 0.0)
    moments.add_between(local.sqrt() * (moments.mean - mean))
    for scatter in moments.scatters.values():
        dist.all_reduce(scatter, group=group)
    moments.mean.copy_(mean)


def share_basis(moments: Moments, group: Any = None) -> None:
    """Every rank gathers in the first rank's basis: only in one basis is their merge exact."""
    if dist.is_initialized():
        for part in moments.basis.values():
            dist.broadcast(part, group=group, group_src=0)


class Gathered:
    """Moments of the rows that this process gave since the last merge.

    When to merge is decided by what all processes know alike, the number of updates and the rows of one as they were
    last counted over all, so that they may give batches of different sizes; but each has to give as many batches.
    """

    def __init__(self, covariance: AdaptiveCovariance, sync: Sync) -> None:
        self.sync, self.group = sync, group_of(sync)
        self.covariance = covariance
        self._begin()
        self.moments = covariance.gathering()
        self.updates, self.rows, self.batch = 0, 0, 0

    def _begin(self) -> None:
        """Every process has the first one's state, to the last bit. ValueError where they differ by more than that."""
        covariance, state = self.covariance, self.covariance.state_dict()
        forms = {name: (list(value.shape), value.dtype) for name, value in state.items()}
        made = {
            "form": covariance.extra_repr(), "root": covariance.root, "rules": covariance.rules,
            "forgetting": covariance.forgetting, "refresh": covariance.growth, "state": forms,
        }  # fmt: skip
        agree("covariance", made, self.sync)
        far = torch.zeros((), device=covariance.center.device)
        for name, value in state.items():
            first = value.clone()
            dist.broadcast(first, group=self.group, group_src=0)
            # Bases may differ by signs, and what is gathered in them.
            if name.endswith(("weight", "mean", "center", "scale", "share", "factor")):
                slack = 1e-4 * first.abs().max()
                far = far.maximum(((value - first).abs().max() > slack).to(far))
            state[name] = first
        dist.all_reduce(far, op=dist.ReduceOp.MAX, group=self.group)
        if bool(far):
            raise ValueError("covariance: got other points on some of the processes, expected all to begin alike")
        covariance.load_state_dict(state)

    def __reduce__(self) -> tuple[Any, ...]:  # a copy of the covariance has what was merged, and no group
        return type(None), ()

    @property
    def pending(self) -> int:
        """Rows of all processes that are not merged yet, about."""
        return self.updates * self.batch

    def update(self, x: Tensor, region: Tensor | None) -> None:
        """Take in a batch, and merge where a snapshot is due."""
        covariance = self.covariance
        if not self.batch:
            self.batch = max(self._total(len(x)), 1)
        if not covariance.oriented:
            covariance.orient(x, region)
            covariance.oriented, covariance.seen_at_basis = True, self.batch  # also where there is no row here
            share_basis(covariance.moments, self.group)
            self.moments.face(covariance.moments.basis)
        self.moments.update(x, region, covariance.forgetting)
        self.updates, self.rows = self.updates + 1, self.rows + len(x)
        if covariance.due(self.pending, self.batch):
            self.merge()

    def merge(self) -> None:
        """Add to the covariance what all processes gathered; every one of them calls it at the same time."""
        if self.updates:
            covariance, total = self.covariance, self._total(self.rows)
            all_reduce_moments(self.moments, self.group)
            updates, self.batch = self.updates, max(total // self.updates, 1)
            self.updates = self.rows = 0
            try:
                covariance.merge(self.moments, total, covariance.forgetting**updates, rows=self.batch)
            finally:  # also where R has no factor: what is merged is merged
                share_basis(covariance.moments, self.group)
                self.moments.reset(covariance.moments.basis)

    def state(self) -> dict[str, Tensor]:
        """See :meth:`AdaptiveCovariance.gathered`."""
        counters = torch.tensor([self.updates, self.rows, self.batch], device=self.moments.weight.device)
        kept = {"counters": counters} | (dict(self.moments.state_dict()) if self.updates else {})
        first, ranks = dist.get_rank(self.group) == 0, range(dist.get_world_size(self.group))
        out: dict[str, list[Tensor]] = {name: [] for name in kept}
        for name, rank in itertools.product(kept, ranks):  # one at a time: a device need not hold those of all
            value = kept[name].clone()
            dist.broadcast(value, group=self.group, group_src=rank)
            if first:
                out[name].append(value.cpu())
        return {name: torch.stack(values) for name, values in out.items()} if first else {}

    def load(self, state: dict[str, Tensor]) -> None:
        """Take over this process's part of what :meth:`state` gave to the first one."""
        rank = dist.get_rank(self.group)
        self.updates, self.rows, self.batch = state["counters"][rank].tolist()
        if self.updates:
            self.moments = _part(self.covariance, state, rank)

    def _total(self, rows: int) -> int:
        count = torch.tensor(rows, device=self.moments.weight.device)
        dist.all_reduce(count, group=self.group)
        return int(count)


def sync(covariance: AdaptiveCovariance) -> AdaptiveCovariance:
    """Merge what :meth:`update` gathered on several processes, each of which has to call it. Returns self."""
    if covariance._gathered is not None:
        covariance._gathered.merge()
    return covariance


def gathered(covariance: AdaptiveCovariance) -> dict[str, Tensor]:
    """What each process gathered and has not merged, for a checkpoint beside the ``state_dict``: a run that takes up
    both (:meth:`load_gathered`) goes on as if it had not stopped, to the bit.

    Each process has to call it. The first one gets tensors ``[processes, ...]`` on the CPU; the others, and one that
    learns alone, nothing.
    """
    return {} if covariance._gathered is None or covariance.frozen else covariance._gathered.state()


def load_gathered(covariance: AdaptiveCovariance, state: dict[str, Tensor], *, sync: Sync = True) -> AdaptiveCovariance:
    """Go on with what :meth:`gathered` gave, after ``load_state_dict`` and on each process. Returns self.

    As many processes as there were take up a part each; any other number merges all, exact but for rounding.
    """
    counters = state["counters"].tolist() if state else []
    if counters and several(sync) and dist.get_world_size(group_of(sync)) == len(counters):
        covariance._gathered = Gathered(covariance, sync)
        covariance._gathered.load(state)
    elif counters and counters[0][0]:
        updates, rows = counters[0][0], sum(each[1] for each in counters)
        merged, *others = (_part(covariance, state, rank) for rank in range(len(counters)))
        for other in others:
            merged.merge(other)
        covariance.merge(merged, rows, covariance.forgetting**updates, rows=max(rows // updates, 1))
    return covariance


def _part(covariance: AdaptiveCovariance, state: dict[str, Tensor], rank: int) -> Moments:
    moments = covariance.gathering()
    moments.load_state_dict({name: value[rank] for name, value in state.items() if name != "counters"})
    return moments
