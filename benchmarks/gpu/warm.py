"""Compiles the Triton kernels that later steps launch, on all cores: parity alone has some 350, a second or so each.
One after the other they would take its time several times over, and leave nothing with a speed.

Each worker makes its share of the same calls on the GPU, one after the other, and keeps nothing of them; what it has
compiled the later steps find in Triton's cache. Run as a module this file is a worker.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks.gpu.step import ROOT, Step, kernels_from_source

WORKERS = 16


def run(step: Step) -> None:
    """Once: what it did not reach is compiled where it is needed."""
    step.run("kernels", lambda: _compile(step))


def _compile(step: Step) -> dict[str, Any]:
    if step.device != "cuda":
        return {"refused": "there is nothing to compile for a CPU"}
    count = min(WORKERS, os.cpu_count() or 1)
    seconds = step.seconds - 5
    words = [sys.executable, "-m", "benchmarks.gpu.warm"]
    workers = [
        subprocess.Popen([*words, str(i), str(count), f"{seconds:.0f}", str(int(step.quick))], cwd=ROOT)
        for i in range(count)
    ]
    end = time.monotonic() + seconds + 3
    for worker in workers:
        try:
            worker.wait(timeout=max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.kill()
    return {"workers": count, "finished": sum(worker.wait() == 0 for worker in workers)}


def calls(device: str, quick: bool) -> Iterator[Callable[[], object]]:
    """What the steps will call, the first of them first; made one at a time, since some hold gigabytes."""
    from ansn import ops
    from benchmarks.gpu import cases, library, speed

    def of_cases(quick: bool) -> Iterator[Callable[[], object]]:
        for operation in ops.operations():
            if "triton" in ops.registered(operation):
                yield from (lambda case=case: case.on(device) for case in cases.of(operation, quick))

    yield from of_cases(True)
    for make in speed.plan(device, quick):
        if make.func.__name__ != "factorise":  # it has no Triton kernel

            def call(make=make) -> None:
                work = make()
                work.ours()
                with ops.backend("auto"):
                    work.ours()

            yield call
    yield from library.calls(device)
    if not quick:
        yield from of_cases(False)


def work(first: int, of: int, seconds: float, quick: bool, device: str = "cuda") -> int:
    """Every ``of``-th call, from number ``first`` on; errors are for the later steps. Returns how many were made."""
    from ansn import ops

    end = time.monotonic() + seconds
    done = 0
    with ops.backend("triton"):
        for call in itertools.islice(calls(device, quick), first, None, of):
            if time.monotonic() > end:
                break
            try:
                call()
            except Exception as error:
                if "back end 'triton'" not in str(error):
                    print(f"worker {first}: {type(error).__name__}: {str(error)[:200]}", file=sys.stderr, flush=True)
            done += 1
    print(f"worker {first}: {done} calls", file=sys.stderr, flush=True)
    return done


if __name__ == "__main__":
    kernels_from_source()
    index, count, seconds, quick = sys.argv[1:]
    torch.set_num_threads(1)
    work(int(index), int(count), float(seconds), quick == "1")
