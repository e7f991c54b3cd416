"""compute-sanitizer over a small driver: memcheck (out of bounds, misaligned) and racecheck (shared memory).

Run as a module this file is the driver: every operation on every back end of ours, small odd sizes.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from typing import Any

from benchmarks.gpu.step import ROOT, Step, kernels_from_source


def run(step: Step) -> None:
    """Both tools, half of the time each."""
    begun = step.seconds
    for tool, left in (("memcheck", 0.5 * begun), ("racecheck", 0.0)):
        step.run(tool, lambda tool=tool, left=left: _check(step, tool, left))


def _check(step: Step, tool: str, left: float) -> dict[str, Any]:
    program = shutil.which("compute-sanitizer")
    if step.device != "cuda":
        return {"refused": "there is no GPU code to check on a CPU"}
    if program is None:
        return {"refused": "compute-sanitizer is not on the PATH"}
    # Without torch's cache every tensor is an allocation of its own, and an access past its end is seen.
    seconds = step.seconds - left - 2
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "ANSN_DRIVER_SECONDS": f"{0.7 * seconds:.0f}"}
    command = [program, "--tool", tool, "--error-exitcode", "9", "--print-limit", "20"]
    command += [sys.executable, "-m", "benchmarks.gpu.sanitize"]
    try:
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired as late:
        print((late.stdout or b"").decode(errors="replace"), file=sys.stderr)
        return {"skipped": f"out of time: {seconds:.0f} s were not enough"}
    text = done.stdout + done.stderr
    print(text, file=sys.stderr)
    summary = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: .*", text)
    driver = re.findall(r"driver: .*", text)
    row: dict[str, Any] = {"summary": "; ".join(summary) or "none", "driver": "; ".join(driver) or "no last line"}
    if done.returncode or not summary or not driver:
        problems = [line for line in text.splitlines() if re.search(r"Invalid|Race|hazard|rror", line)]
        row["failed"] = f"status {done.returncode}: {' | '.join(problems[:3])[:300] or 'no message'}"
    return row


def drive() -> None:
    """Calls on the GPU; results are not looked at here."""
    from ansn import ops
    from benchmarks.gpu import cases

    end = time.monotonic() + float(os.environ.get("ANSN_DRIVER_SECONDS", "30"))
    counts: dict[str, int] = {}
    todo = [
        (case, name)
        for operation in ops.operations()
        for case in cases.of(operation, quick=True)
        for name in ops.registered(operation)
        if name != "reference"
    ]
    # Spread over the list, so that a short time sees something of everything.
    todo = [pair for start in range(7) for pair in todo[start::7]]
    done = 0
    for case, name in todo:
        if time.monotonic() > end:
            break
        done += 1
        with ops.backend(name):
            try:
                case.on("cuda")
                counts[f"{case.operation} {name}"] = counts.get(f"{case.operation} {name}", 0) + 1
            except RuntimeError as error:
                if "cannot run on back end" not in str(error):
                    raise
    import torch

    torch.cuda.synchronize()
    said = ", ".join(f"{key} {count}" for key, count in counts.items()) or "no kernel of ours runs on the GPU"
    print(f"driver: {done} of {len(todo)} calls tried; ran {said}", flush=True)


if __name__ == "__main__":
    kernels_from_source()
    drive()
