"""Every operation on every back end that runs on the device, against the float64 reference on the CPU."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import torch

from ansn import ops
from benchmarks.gpu import cases
from benchmarks.gpu.cases import Case
from benchmarks.gpu.step import Step
from tests.tolerances import RATIO, rms_ratio


def run(step: Step) -> None:
    """All cases; then, for each operation and back end, a verdict that the speed step asks for."""
    for operation in ops.operations():
        names = ops.registered(operation)
        for case in cases.of(operation, step.quick):
            # Cases of one operation share no oracle: made when the first back end needs it.
            held: list = []
            for name in names:
                step.run(f"{operation} | {name} | {case.name}", lambda c=case, n=name, h=held: _check(step, c, n, h))
        for name in names:
            step.run(f"verdict | {operation} | {name}", lambda o=operation, n=name: _verdict(step, o, n))


def _check(step: Step, case: Case, name: str, held: list) -> dict[str, Any]:
    # The operations look at values only on the CPU: a bad call fails in the oracle, not here.
    if not held:
        held.append(case.oracle())
    with ops.backend(name), poisoned():
        try:
            got = case.on(step.device)
        except RuntimeError as error:
            if f"cannot run on back end {name!r}" in str(error):
                return {"refused": str(error).split(": ", 1)[-1]}
            raise
    limit = RATIO[case.operation][case.dtype]
    worst, wrong = 0.0, ""
    for i, (value, oracle) in enumerate(zip(got, held[0], strict=True)):
        if value.shape != oracle.shape:
            wrong = f"result {i} has shape {list(value.shape)}, expected {list(oracle.shape)}"
        elif not oracle.is_floating_point():
            differ = int((value.cpu() != oracle).sum())
            wrong = wrong or (f"result {i}: {differ} of {oracle.numel()} entries differ" if differ else "")
        else:
            worst = max(worst, rms_ratio(value.detach().cpu(), oracle))
    if not worst <= limit:
        wrong = wrong or f"RMS ratio {worst:.3g}, tolerance {limit:.3g}"
    row: dict[str, Any] = {"ratio": min(worst, 1e30), "limit": limit, "dtype": str(case.dtype).removeprefix("torch.")}
    return row | {"failed": wrong} if wrong else row


def _verdict(step: Step, operation: str, name: str) -> dict[str, Any]:
    prefix = f"{operation} | {name} | "
    rows = [row for row in step.journal.rows("parity") if row["key"].startswith(prefix)]
    ran = [row for row in rows if "ratio" in row]
    bad = [row for row in rows if "failed" in row or "error" in row]
    unrun = sum("skipped" in row for row in rows)
    worst: dict[str, float] = {}
    for row in ran:
        worst[row["dtype"]] = max(worst.get(row["dtype"], 0.0), row["ratio"])
    return {
        "operation": operation, "backend": name, "cases": len(rows), "ran": len(ran), "refused": sum(
            "refused" in row for row in rows), "wrong": len(bad), "unrun": unrun,
        "passed": bool(ran) and not bad and not unrun, "worst": worst,
    }  # fmt: skip


def verdicts(step: Step) -> dict[tuple[str, str], str | None]:
    """For each operation and back end: None where parity held, else why there is no speed to print."""
    found: dict[tuple[str, str], str | None] = {}
    for row in step.journal.rows("parity"):
        if row["key"].startswith("verdict | "):
            _, operation, name = row["key"].split(" | ")
            if row.get("passed"):
                found[operation, name] = None
            elif row.get("wrong"):
                found[operation, name] = f"parity failed in {row['wrong']} of {row['cases']} cases"
            elif row.get("ran") == 0 and row.get("unrun") == 0:
                found[operation, name] = "it ran no case"
            else:
                found[operation, name] = "parity was not checked to its end"
    return found


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """Fresh tensors hold NaN, and integers their largest value, so that an entry that nothing wrote is seen."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
