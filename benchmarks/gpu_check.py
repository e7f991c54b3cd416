#!/usr/bin/env python
"""Everything that needs a GPU, in one unattended command of under nine minutes.

    python benchmarks/gpu_check.py --out runs/gpu-check

The most valuable first: builds the native module while Triton's kernels are compiled on all cores, checks the default
path and every back end against the float64 reference at small sizes, measures the machine's ceilings, times the
operations against torch eager, torch.compile and the vendor's library, trains and samples with both networks. Then the
rest: parity at every size, the other modes of training and sampling, the PyTorch integration, compute-sanitizer. An
operation whose parity failed, or was not checked, gets no speed.

Each step has a budget and a process of its own; what a step did not use goes to the next ones, and what there was no
time for is a line of the report, not a failure. Written to DIR: journal.jsonl after every piece of work, gpu_check.json
and gpu_check.md every ten seconds, so that a kill loses nothing that was done; log.txt. Nothing is fetched.

    python benchmarks/gpu_check.py --device cpu --quick --out DIR      the whole script on a CPU, tiny sizes

Exit status: 0 if nothing failed, 1 if something did, 2 for bad arguments.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.gpu import report  # noqa: E402 - after the path that it needs
from benchmarks.gpu.step import Journal  # noqa: E402

STEPS = {
    "machine": 90,
    "warm": 90,
    "parity": 40,
    "ceilings": 15,
    "speed": 110,
    "train": 60,
    "parity-rest": 60,
    "train-rest": 60,
    "library": 40,
    "sanitize": 40,
}
"""Seconds of each step, in this order; the first two at once. What stands before the dash is the step's module."""
RESTARTS = 8
RUNNING: set[int] = set()
"""Process groups of the steps in progress."""


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the results, made if it is not there")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: to try the script")
    parser.add_argument("--steps", nargs="*", choices=STEPS, default=list(STEPS), help="only these")
    parser.add_argument("--minutes", type=float, default=8.7, help="for everything")
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
                stderr=log,
                start_new_session=True,
            )
            RUNNING.add(process.pid)
            status = None
            try:
                while status is None and time.monotonic() - begun < seconds:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        status = process.wait(timeout=min(10.0, max(0.1, seconds - (time.monotonic() - begun))))
                    report.write(arguments.out, journal)
            finally:
                _kill(process.pid)
                process.wait()
                RUNNING.discard(process.pid)
        if status == 0:
            return ended, time.monotonic() - begun
        lost = journal.unfinished(name)
        if status is None:
            journal.append(name, lost or "start", skipped="out of time: killed")
            return "out of time: killed", time.monotonic() - begun
        reason = f"the process died with status {status}"
        journal.append(name, lost or "start", error=reason)
        if lost is None:
            return reason, time.monotonic() - begun
        ended = f"done after {attempt + 1} restarts"
    return f"given up after {RESTARTS} restarts", time.monotonic() - begun


def _kill(group: int) -> None:
    """A step's process and whatever it started: compilers, a sanitizer."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def _stop(*_: object) -> None:
    """What was done is written; nothing is left running."""
    for group in list(RUNNING):
        _kill(group)
    os._exit(143)


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
    signal.signal(signal.SIGTERM, _stop)
    end = time.monotonic() + 60 * arguments.minutes
    todo, saved = [name for name in STEPS if name in arguments.steps], 0.0
    together = [name for name in ("machine", "warm") if name in todo]

    def one(name: str, budget: float) -> float:
        ended, seconds = run_step(name, arguments, journal, budget) if budget > 1 else ("no time left for it", 0.0)
        journal.append("steps", name, ended=ended, seconds=round(seconds, 1))
        told = f"{len(report.failures(journal, name))} failures, {len(report.skipped(journal, name))} out of time"
        print(f"{name}: {ended}, {seconds:.0f} s of {budget:.0f}, {told}", flush=True)
        report.write(arguments.out, journal)
        return max(0.0, budget - seconds)

    for group in [together] * bool(together) + [[name] for name in todo if name not in together]:
        budget = min(STEPS[group[0]] + saved, end - time.monotonic())
        with ThreadPoolExecutor() as pool:
            saved = min(pool.map(one, group, [budget] * len(group)))
    print((arguments.out / "gpu_check.md").read_text())
    return 1 if any(report.failures(journal, name) for name in todo) else 0


if __name__ == "__main__":
    sys.exit(main())
