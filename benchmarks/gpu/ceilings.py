"""What the machine can do at most: the rate of a large copy, of matrix products, and the cost of a launch."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from ansn import ops
from benchmarks.gpu.step import Step


def run(step: Step) -> None:
    """Measured in the run whose speeds they judge."""
    step.run("copy", lambda: _copy(step))
    kinds = ("float32", "tf32", "bfloat16") if step.device == "cuda" else ("float32",)
    for kind in kinds:
        step.run(f"matrix {kind}", lambda kind=kind: _matrix(step, kind))
    step.run("launch", lambda: _launch(step))


def seconds_each(step: Step, call: Callable[[], object], count: int, rounds: int = 7) -> float:
    """Median over rounds of the seconds a call, ``count`` calls back to back."""
    call()
    taken = []
    for _ in range(rounds):
        step.synchronize()
        start = time.perf_counter()
        for _ in range(count):
            call()
        step.synchronize()
        taken.append((time.perf_counter() - start) / count)
    return statistics.median(taken)


def _copy(step: Step) -> dict[str, Any]:
    count = 2**20 if step.quick else 2**28 if step.device == "cuda" else 2**25
    source = torch.randn(count, device=step.device)
    target = torch.empty_like(source)
    return {"GB/s": 8e-9 * count / seconds_each(step, lambda: target.copy_(source), 5), "bytes": 8 * count}


def _matrix(step: Step, kind: str) -> dict[str, Any]:
    side = 256 if step.quick else 8192 if step.device == "cuda" else 2048
    dtype = torch.bfloat16 if kind == "bfloat16" else torch.float32
    a, b = (torch.randn(side, side, device=step.device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = kind == "tf32"
    try:
        seconds = seconds_each(step, lambda: torch.mm(a, b, out=out), 3, rounds=5)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    return {"GFLOP/s": 2e-9 * side**3 / seconds, "side": side}


def _launch(step: Step) -> dict[str, Any]:
    """Microseconds a call on one number, back to back: what Python, the dispatcher and a launch cost."""
    x = torch.zeros(1, 1, device=step.device)
    row = {"us add_": 1e6 * seconds_each(step, lambda: x.add_(1.0), 200)}
    for name in ops.registered("colored_step"):
        with ops.backend(name):
            try:
                row[f"us colored_step {name}"] = 1e6 * seconds_each(step, lambda: ops.colored_step(x, b=1.0), 50)
            except RuntimeError as error:
                if "cannot run on back end" not in str(error):
                    raise
    return row


def rates(step: Step) -> tuple[float, float]:
    """Copy in bytes a second and float32-accurate matrix products in flops a second; 0 where not measured.

    On tensor cores a product of float32 accuracy takes three of TF32, so a third of that rate counts where it is more.
    """
    rows = {row["key"]: row for row in step.journal.rows("ceilings")}
    copy = 1e9 * rows.get("copy", {}).get("GB/s", 0.0)
    plain, tf32 = (1e9 * rows.get(f"matrix {kind}", {}).get("GFLOP/s", 0.0) for kind in ("float32", "tf32"))
    return copy, max(plain, tf32 / 3)
