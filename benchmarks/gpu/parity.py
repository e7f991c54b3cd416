"""Every operation on every back end that runs on the device, against the float64 reference on the CPU."""

from __future__ import annotations

import contextlib
import itertools
import warnings
from collections.abc import Iterator
from typing import Any

import torch

from ansn import ops
from benchmarks.gpu import cases, report
from benchmarks.gpu.cases import Case
from benchmarks.gpu.step import Step
from tests.tolerances import RATIO, rms_ratio


def back_ends(operation: str) -> tuple[str, ...]:
    """The default path first."""
    return ("auto", *ops.registered(operation))


def run(step: Step) -> None:
    """Small cases, or every one; of all operations in turn, so that a short time has seen something of each."""
    quick = step.quick or not step.rest
    todo = {operation: cases.of(operation, quick) for operation in ops.operations()}
    for group in itertools.zip_longest(*todo.values()):
        for case in filter(None, group):
            held: list = []  # the oracle, made when the first back end needs it
            for name in back_ends(case.operation):
                key = f"{case.operation} | {name} | {case.name}"
                step.run(key, lambda c=case, n=name, h=held: _check(step, c, n, h))


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


def verdicts(step: Step) -> dict[tuple[str, str], str | None]:
    """For each operation and back end: None where parity held in every case that ran, else why there is no speed."""
    found: dict[tuple[str, str], str | None] = {}
    for row in report.verdicts(step.journal.rows("parity")):
        reason = "parity was not checked" if row["unrun"] else "it ran no case"
        if row["wrong"]:
            reason = f"parity failed in {row['wrong']} of {row['cases']} cases"
        found[row["operation"], row["backend"]] = None if row["passed"] else reason
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
