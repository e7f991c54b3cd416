"""Every operation against torch eager, torch.compile and the vendor's library; only where parity held."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch

from ansn import ops
from benchmarks import workloads
from benchmarks.gpu import ceilings, parity
from benchmarks.gpu.step import Step, one_line
from benchmarks.harness import interleave
from benchmarks.workloads import Workload

Call = Callable[[], object]
ROUNDS = 40
COMPILE_SECONDS = 0.7
"""Part of the step's time after which no more is spent on compiling peers."""


def plan(device: str, quick: bool) -> Iterator[Callable[[], Workload]]:
    """Workloads, made one at a time. First a size of each operation, so that a short run has seen them all."""
    if quick:
        elementwise, dense, square, update, rank_one = [(8, 48)], [(8, 48)], [(8, 48, 2)], [(8, 48)], [(8, 16)]
        images: list[tuple[int, tuple[int, int, int]]] = [(8, (1, 4, 6))]
        many, losses = [(16, 8, torch.float64)], [(8, 48)]
    else:
        elementwise = [(128, 3072), (1024, 3072), (65536, 784)]
        dense = [(128, 784), (128, 3072), (1024, 784), (1024, 3072)]
        square = [(1024, 784, 8), (4096, 64, 64)]
        update = [(128, 784), (128, 3072)]
        rank_one = [(1024, 64), (64, 784)]
        many = [(16, 64, torch.float64), (16, 64), (10, 128, torch.float64), (1024, 64, torch.float64), (1024, 64)]
        losses = [(128, 3072), (4096, 3072)]
        images = [(128, (3, 32, 32)), (128, (1, 28, 28)), (4096, (3, 32, 32))]
    separable = partial(workloads.separable, device)
    queues: list[list[Callable[[], Workload]]] = [
        *([partial(separable, what, *size) for size in images] for what in ("draw", "filter", "update")),
        [partial(separable, "mixture", *size, regions=10) for size in images[:2]],
        [partial(workloads.langevin, device, *size) for size in elementwise],
        [partial(workloads.dense_draw, device, *size) for size in dense],
        [partial(workloads.update, device, *size) for size in update],
        [partial(workloads.update, device, count, dim, regions=count) for count, dim in rank_one],
        [partial(workloads.factorise, device, *size) for size in many],
        [partial(workloads.loss, device, *size, regenerate=True) for size in losses],
        [partial(workloads.loss, device, *size) for size in losses],
        [partial(workloads.diagonal_draw, device, *size) for size in elementwise],
        [partial(workloads.dense_draw, device, *size) for size in square],
        [partial(workloads.color, device, *size) for size in dense[:2]],
        [partial(workloads.update, device, *size, kind="diagonal") for size in elementwise[:2]],
    ]
    for i in range(max(map(len, queues))):
        yield from (queue[i] for queue in queues if i < len(queue))


def run(step: Step) -> None:
    """One row for each workload."""
    allowed = parity.verdicts(step)
    rates = ceilings.rates(step)
    compile_until = step.seconds * (1.0 - COMPILE_SECONDS)
    for make in plan(step.device, step.quick):
        # Sizes are known from the call alone, so that no memory is taken for what was done before.
        key = f"{make.func.__name__} {make.args[1:]} {make.keywords or ''}".strip()
        step.run(key, lambda make=make: measure(step, make(), allowed, rates, step.seconds > compile_until))


def measure(
    step: Step,
    work: Workload,
    allowed: dict[tuple[str, str], str | None],
    rates: tuple[float, float],
    may_compile: bool,
) -> dict[str, Any]:
    """Medians of interleaved rounds. A back end whose parity did not hold is left out, with the reason."""
    contenders, reasons = _ours(work, allowed)
    row: dict[str, Any] = {"operation": work.operation, "name": work.name, "size": work.size, "no speed": reasons}
    if not contenders:
        return row
    contenders["eager"] = work.eager
    if work.vendor is not None:
        contenders[work.vendor[0]] = work.vendor[1]
    if may_compile and not (step.quick and step.device == "cpu"):
        try:
            contenders["compile"] = _compiled(work)
        except Exception as error:
            row["compile"] = one_line(error, 120)
    with torch.no_grad():
        taken = _on_gpu(contenders) if step.device == "cuda" else _on_cpu(contenders, step.quick)
        host = {name: ceilings.seconds_each(step, call, 10, rounds=3) for name, call in contenders.items()}
    medians = {name: float(np.median(values)) for name, values in taken.items()}
    ours = min((name for name in medians if name.startswith("ansn ")), key=lambda name: medians[name])
    peer = min((name for name in medians if name in ("eager", "compile")), key=lambda name: medians[name])
    ratio = np.quantile(taken[peer] / taken[ours], [0.5, 0.25, 0.75])
    row |= {"us": {name: 1e6 * value for name, value in medians.items()}}
    row |= {"us back to back": {name: 1e6 * value for name, value in host.items()}}
    row |= {"ours": ours, "peer": peer, "ratio": [float(q) for q in ratio]}
    row |= {"GB/s": 1e-9 * work.nbytes / medians[ours], "GFLOP/s": 1e-9 * work.flops / medians[ours]}
    copy, matrix = rates
    if copy and matrix:
        times = {"copy": work.nbytes / copy, "matrix": work.flops / matrix}
        bound = max(times, key=lambda name: times[name])
        row |= {"bound": bound, "share": times[bound] / medians[ours]}
    return row


def _ours(work: Workload, allowed: dict[tuple[str, str], str | None]) -> tuple[dict[str, Call], dict[str, str]]:
    """Calls on each back end that may be timed, and why the others may not."""
    contenders: dict[str, Call] = {}
    reasons: dict[str, str] = {}
    for name in parity.back_ends(work.operation):
        reason = allowed.get((work.operation, name), "parity was not checked")
        if reason is None:

            def call(name: str = name) -> object:
                with ops.backend(name):
                    return work.ours()

            try:
                call()
                contenders[f"ansn {name}"] = call
            except RuntimeError as error:
                if "cannot run on back end" not in str(error):
                    raise
                reason = str(error).split(": ", 1)[-1]
        if reason is not None:
            reasons[name] = reason
    return contenders, reasons


def _compiled(work: Workload) -> Call:
    torch._dynamo.reset()
    compiled = torch.compile(work.plain, dynamic=False)
    # State that is updated in place is the peer's own, shared with eager's: only its values differ.
    call = partial(compiled, *work.arguments)
    with torch.no_grad():
        call()
    return call


def _on_cpu(contenders: dict[str, Call], quick: bool) -> dict[str, np.ndarray]:
    return interleave(contenders, rounds=5 if quick else ROUNDS, budget=2e-4 if quick else 2e-3, seconds=3.0)


def _on_gpu(contenders: dict[str, Call], seconds: float = 2.0) -> dict[str, np.ndarray]:
    """Seconds on the device, by events, ``[rounds]`` each. Before each call the L2 cache is flushed, and the device is
    kept busy while the host launches, so that launches are hidden: what they cost is in "back to back"."""
    flush = torch.empty(2**28, dtype=torch.int8, device="cuda")
    names = list(contenders)
    for call in contenders.values():
        for _ in range(3):
            call()
    torch.cuda.synchronize()
    events = {name: [] for name in names}  # type: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]]
    begun = time.monotonic()
    for r in range(ROUNDS):
        for name in names[r % len(names) :] + names[: r % len(names)]:
            pair = (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
            flush.zero_()
            torch.cuda._sleep(600_000)
            pair[0].record()
            contenders[name]()
            pair[1].record()
            events[name].append(pair)
        torch.cuda.synchronize()
        if time.monotonic() - begun > seconds and r >= 4:
            break
    return {name: np.array([1e-3 * a.elapsed_time(b) for a, b in pairs]) for name, pairs in events.items()}
