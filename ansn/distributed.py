"""Several processes under torchrun: set-up, and what all ranks have to know alike."""

from __future__ import annotations

import gc
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ansn.covariance import AdaptiveCovariance
from ansn.errors import InputError

_PARENT = os.getppid()


@contextmanager
def processes(device: str) -> Iterator[tuple[int, int, torch.device]]:
    """``(rank, world, device)``; joins torchrun's group when there is one: NCCL on GPUs, Gloo on CPUs."""
    chosen, world = choose_device(device), _environment("WORLD_SIZE", 1)
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


def share_state(covariance: AdaptiveCovariance, device: torch.device) -> None:
    """Every rank takes over rank 0's state, of the same structure and regions; ``device``: that ranks talk on."""
    if dist.is_initialized():
        state = {name: value.to(device) for name, value in covariance.state_dict().items()}
        for value in state.values():
            dist.broadcast(value, 0)
        covariance.load_state_dict(state)


def shard(network: nn.Module, device: torch.device) -> None:
    """Split the weights over the processes, in place (FSDP2): each block of a network that is the same on all ranks.

    Its parameters are then DTensors, in row-major layout, the only one that FSDP2 takes.
    """
    from torch.distributed.device_mesh import init_device_mesh  # slow to import: only when used
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for module in (*_blocks(network.to(memory_format=torch.contiguous_format)), network):  # type: ignore[call-overload]
        fully_shard(module, mesh=mesh)
    # Of an output that is a view: no denoiser changes its network's output in place.
    warnings.filterwarnings("ignore", rf"FSDP2-wrapped module \({type(network).__name__}\) returned a view")


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """Its parts that have weights; of a list, which is never called, the entries."""
    for child in module.children():
        if isinstance(child, (nn.ModuleList, nn.ModuleDict)):
            yield from _blocks(child)
        elif any(True for _ in child.parameters()):
            yield child


def part(value: Tensor) -> Tensor:
    """This rank's part of a sharded tensor, in its memory; any other tensor as it is."""
    return getattr(value, "to_local", lambda: value)()


def gathered(value: Tensor) -> Tensor:
    """A sharded tensor whole, which all ranks have to ask for; any other as it is."""
    return getattr(value, "full_tensor", lambda: value)()


def laid_out(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, the same on all ranks, in the layout and on the device of ``like``, and sharded as it is."""
    if hasattr(like, "device_mesh"):
        from torch.distributed.tensor import distribute_tensor

        sharded: Any = like
        return distribute_tensor(value.to(like.device), sharded.device_mesh, sharded.placements, src_data_rank=None)
    return torch.empty_like(like).copy_(value)


Chosen = TypeVar("Chosen")


def agreed(chosen: Chosen, device: torch.device) -> Chosen:
    """Rank 0's choice: scores that are equal but for rounding may not part the ranks."""
    shared = [chosen]
    if dist.is_initialized():
        dist.broadcast_object_list(shared, 0, device=device)
    return shared[0]


def together(act: Callable[[], Chosen], device: torch.device) -> Chosen:
    """What ``act`` gives on this rank, once all have done it; where it fails on one, that one raises and the others end
    quietly."""
    error: Exception | None = None
    try:
        made = act()
    except Exception as caught:
        error = caught
    failed = any_rank(error is not None, device)
    if error is not None:
        raise error
    if failed:
        raise SystemExit(2)
    return made


def as_first(load: Callable[[int | None], Chosen], step_of: Callable[[Chosen], int], device: torch.device) -> Chosen:
    """``load(None)`` on rank 0, on the others ``load(step)`` of the step that it found (``step_of`` what it loaded): a
    run may go on meanwhile."""
    alone = not dist.is_initialized() or dist.get_rank() == 0
    first = together(lambda: load(None) if alone else None, device)
    step = agreed(None if first is None else step_of(first), device)
    return load(step) if first is None else first


def orphaned() -> bool:
    """Whether this is a process of a torchrun that was killed."""
    return "TORCHELASTIC_RUN_ID" in os.environ and os.getppid() != _PARENT


def mean_over_ranks(value: Tensor) -> float:
    """The mean of a scalar over the ranks."""
    if not dist.is_initialized():
        return float(value)
    total = value.clone()
    dist.all_reduce(total)
    return float(total) / dist.get_world_size()


def of_each_rank(value: Tensor) -> tuple[float, ...]:
    """A scalar of every rank."""
    if not dist.is_initialized():
        return (float(value),)
    found = [torch.empty_like(value) for _ in range(dist.get_world_size())]
    dist.all_gather(found, value)
    return tuple(map(float, found))


def any_rank(flag: bool, device: torch.device) -> bool:
    """Whether the flag is set on any rank."""
    if not dist.is_initialized():
        return flag
    value = torch.tensor(int(flag), device=device)
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return bool(value)


def say_device(device: torch.device) -> None:
    """One line on stderr, of rank 0: what a command computes on."""
    if not dist.is_initialized() or dist.get_rank() == 0:
        threads = torch.get_num_threads()
        what = f"{threads} thread{'s' * (threads > 1)}" if device.type == "cpu" else torch.cuda.get_device_name(device)
        print(f"device: {device}, {what}", file=sys.stderr)


def _environment(name: str, alone: int) -> int:
    """What torchrun says of this process."""
    return int(os.environ.get(name, alone))


def choose_device(name: str) -> torch.device:
    """The device of a name (cpu, cuda, cuda:N, auto); of torchrun's processes each takes the GPU of its local rank.

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
            raise InputError(f"--device: got {name!r}, but this torch sees no GPU, expected cpu")
        index = _environment("LOCAL_RANK", 0) if _environment("WORLD_SIZE", 1) > 1 else chosen.index or 0
        if index >= torch.cuda.device_count():
            raise InputError(f"--device: got {name!r} (GPU {index}), expected one of {torch.cuda.device_count()}")
        chosen = torch.device("cuda", index)
    return chosen
