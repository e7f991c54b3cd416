"""Several processes under torchrun: set-up, and the covariance merged across ranks."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ansn.covariance import AdaptiveCovariance, Choice, Found, Moments
from ansn.errors import InputError


@contextmanager
def processes(device: str) -> Iterator[tuple[int, int, torch.device]]:
    """``(rank, world, device)``; joins torchrun's group when there is one: NCCL on GPUs, Gloo on CPUs."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    chosen = choose_device(device, local, world)
    if world == 1:
        yield 0, 1, chosen
        return
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield dist.get_rank(), world, chosen
        dist.barrier()  # no rank leaves while another still talks to it
    finally:
        # A wrapped network that a reference cycle keeps alive would outlive the group and abort at exit.
        gc.collect()
        dist.destroy_process_group()


@torch.no_grad()
def all_reduce_moments(moments: Moments) -> None:
    """Replace each rank's moments by those of all ranks' data (Chan's formula over all states at once), in place.

    For what was gathered *since the last synchronisation*: cumulative states would be counted once a rank. ::

        n = sum n_r,  m = sum n_r m_r / n,  M = sum M_r + n_r (m_r - m)(m_r - m)^T
    """
    # A copy: the weights are overwritten by their sum below.
    local = moments.weight.to(moments.mean.dtype, copy=True).unsqueeze(1)
    mean = local * moments.mean
    dist.all_reduce(mean)
    for buffer in (moments.weight, moments.weight2):
        dist.all_reduce(buffer)
    total = moments.weight.to(mean.dtype).unsqueeze(1)
    mean = torch.where(total > 0, mean / total.clamp_min(1e-300 if mean.dtype == torch.float64 else 1e-30), 0.0)
    moments.add_between(local.sqrt() * (moments.mean - mean))
    for scatter in moments.scatters.values():
        dist.all_reduce(scatter)
    moments.mean.copy_(mean)


def share_basis(moments: Moments) -> None:
    """Every rank gathers in rank 0's basis: only in one basis is their merge exact."""
    if dist.is_initialized():
        for part in moments.basis.values():
            dist.broadcast(part, 0)


def share_state(covariance: AdaptiveCovariance, device: torch.device) -> None:
    """Every rank takes over rank 0's state, of the same structure and regions; ``device``: that ranks talk on."""
    if dist.is_initialized():
        state = {name: value.to(device) for name, value in covariance.state_dict().items()}
        for value in state.values():
            dist.broadcast(value, 0)
        covariance.load_state_dict(state)


Chosen = TypeVar("Chosen", Choice, Found)


def agreed(chosen: Chosen, device: torch.device) -> Chosen:
    """Rank 0's choice: scores that are equal but for rounding may not part the ranks."""
    shared = [chosen]
    if dist.is_initialized():
        dist.broadcast_object_list(shared, 0, device=device)
    return shared[0]


def mean_over_ranks(value: Tensor) -> float:
    """The mean of a scalar over the ranks."""
    if not dist.is_initialized():
        return float(value)
    total = value.clone()
    dist.all_reduce(total)
    return float(total) / dist.get_world_size()


def any_rank(flag: bool, device: torch.device) -> bool:
    """Whether the flag is set on any rank."""
    if not dist.is_initialized():
        return flag
    value = torch.tensor(int(flag), device=device)
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return bool(value)


def choose_device(name: str, local: int = 0, world: int = 1) -> torch.device:
    """The device of a name (cpu, cuda, cuda:N, auto); of several processes each takes the GPU of its local rank.

    Raises InputError for other names and for a GPU that is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(name)
    except RuntimeError:
        raise InputError(f"--device: got {name!r}, expected cpu, cuda, cuda:N or auto") from None
    if chosen.type not in ("cpu", "cuda"):
        raise InputError(f"--device: got {name!r}, expected cpu, cuda, cuda:N or auto")
    if chosen.type == "cuda":
        if not torch.cuda.is_available():
            raise InputError(f"--device: got {name!r}, but this torch sees no GPU; expected cpu")
        index = local if world > 1 else (chosen.index or 0)
        if index >= torch.cuda.device_count():
            raise InputError(f"--device: got {name!r} (GPU {index}), but there are {torch.cuda.device_count()}")
        chosen = torch.device("cuda", index)
    return chosen
