#!/usr/bin/env python
"""Everything that needs a GPU, in one unattended command of under eight minutes.

    python benchmarks/gpu_check.py --out runs/gpu-check

Builds the native module, compiles the Triton kernels on all cores, checks every operation on every back end against
the float64 reference, measures the machine's ceilings, times the operations against torch eager, torch.compile and the
vendor's library, checks the PyTorch integration, runs compute-sanitizer, trains and samples. An operation whose parity
failed, or was not checked, gets no speed. Each step has a budget and a process of its own; what a step did not use
goes to the next ones. Written to DIR: gpu_check.json and gpu_check.md after every step, journal.jsonl after every
piece of work, so that a kill loses nothing that was done; log.txt. Nothing is installed or fetched.

    python benchmarks/gpu_check.py --device cpu --quick --out DIR      the whole script on a CPU, tiny sizes

Exit status: 0 if every step ran and every check passed, 1 otherwise, 2 for bad arguments.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.gpu import report  # noqa: E402 - after the path that it needs
from benchmarks.gpu.step import Journal  # noqa: E402

STEPS = {
    "machine": 75,
    "warm": 60,
    "parity": 70,
    "ceilings": 20,
    "speed": 95,
    "library": 40,
    "sanitize": 45,
    "train": 60,
}
"""Seconds of each step. In this order: what is built first, and last what may take what is left."""
RESTARTS = 8


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the results, made if it is not there")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: to try the script")
    parser.add_argument("--steps", nargs="*", choices=STEPS, default=list(STEPS), help="only these")
    parser.add_argument("--minutes", type=float, default=7.7, help="for everything")
    arguments = parser.parse_args(words)
    if arguments.minutes <= 0:
        parser.error(f"--minutes: got {arguments.minutes}, expected a number > 0")
    return arguments


def command(name: str, arguments: argparse.Namespace, seconds: float) -> list[str]:
    """Of a step's process, which gets a little less time than there is, so that it ends by itself."""
    words = [sys.executable, "-u", "-m", "benchmarks.gpu.step", name, "--out", str(arguments.out)]
    words += ["--device", arguments.device, "--seconds", f"{0.92 * seconds - 1:.1f}"]
    return words + ["--quick"] * arguments.quick


def run_step(name: str, arguments: argparse.Namespace, journal: Journal, seconds: float) -> tuple[str, float]:
    """Run one step to its end, starting it again where it died. Returns how it ended, and after how long."""
    begun = time.monotonic()
    ended = "done"
    for attempt in range(RESTARTS + 1):
        left = seconds - (time.monotonic() - begun)
        if left <= 1:
            return f"{ended}, then out of time", time.monotonic() - begun
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        with (arguments.out / "log.txt").open("ab") as log:
            log.write(f"--- {name}, attempt {attempt + 1}\n".encode())
            log.flush()
            process = subprocess.Popen(
                command(name, arguments, left),
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": path},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            try:
                status = process.wait(timeout=left)
            except subprocess.TimeoutExpired:
                status = None
            finally:
                # With it whatever it started: compilers, a sanitizer.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if status == 0:
            return ended, time.monotonic() - begun
        lost = journal.unfinished(name)
        reason = "out of time: killed" if status is None else f"the process died with status {status}"
        if lost is not None:
            journal.append(name, lost, error=reason)
        if status is None or lost is None:
            return reason, time.monotonic() - begun
        ended = f"done after {attempt + 1} restarts"
    return f"given up after {RESTARTS} restarts", time.monotonic() - begun


def main() -> int:
    """Run the steps. Returns the exit status."""
    arguments = parse()
    import torch  # after --help

    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("gpu_check: error: torch sees no GPU; --device cpu tries the script without one", file=sys.stderr)
        return 2
    arguments.out = arguments.out.resolve()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in ("journal.jsonl", "log.txt"):
        (arguments.out / name).unlink(missing_ok=True)
    journal = Journal(arguments.out / "journal.jsonl")
    end = time.monotonic() + 60 * arguments.minutes
    saved, fine = 0.0, True
    for name in arguments.steps:
        budget = min(STEPS[name] + saved, end - time.monotonic())
        ended, seconds = run_step(name, arguments, journal, budget) if budget > 1 else ("no time left for it", 0.0)
        saved = max(0.0, budget - seconds)
        journal.append("steps", name, ended=ended, seconds=round(seconds, 1))
        failures = report.failures(journal, name)
        fine = fine and ended.startswith("done") and not failures
        print(f"{name}: {ended}, {seconds:.0f} s, {len(failures)} failures", flush=True)
        report.write(arguments.out, journal)
    print((arguments.out / "gpu_check.md").read_text())
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
