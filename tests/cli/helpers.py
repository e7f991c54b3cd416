"""The commands as a user starts them, and in this process where starting one would only cost time."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import subprocess
import sys
from typing import Any, NamedTuple, TextIO

TINY = [
    "--device", "cpu", "--threads", "1", "--width", "16", "--blocks", "1", "--batch-size", "32", "--warmup", "10",
    "--log-every", "10", "--checkpoint-every", "20",
]  # fmt: skip
# For runs that are about something else: to find the regions of the default skip takes seconds.
PLAIN = ("--skip", "wiener")


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


def command_line(command: str, *arguments: Any) -> list[str]:
    return [sys.executable, "-m", f"ansn.cli.{command}", *map(str, arguments)]


def environment() -> dict[str, str]:
    return os.environ | {"COLUMNS": "100", "CUDA_VISIBLE_DEVICES": ""}


def start(command: str, *arguments: Any) -> Outcome:
    """In a process of its own."""
    done = subprocess.run(
        command_line(command, *arguments), env=environment(), capture_output=True, text=True, timeout=300
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def call(command: str, *arguments: Any, out: TextIO | None = None) -> Outcome:
    """The same entry point in this process: an exception that gets out of it fails the test as a traceback would.
    What it prints goes into ``out``, where that is given."""
    main = importlib.import_module(f"ansn.cli.{command}").main
    told, err, before = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = [f"ansn-{command}", *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(out or told), contextlib.redirect_stderr(err):
            try:
                code = main()
            except SystemExit as end:
                code = end.code
    finally:
        sys.argv = before
    return Outcome(int(code or 0), told.getvalue(), err.getvalue())


def succeeded(outcome: Outcome) -> Outcome:
    assert outcome.code == 0, outcome.err
    assert "Traceback" not in outcome.err
    return outcome
