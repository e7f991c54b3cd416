"""What trials are made of: their kinds, commands in forks of this process, and what counts as wrong.

Importing torch takes seconds, so a command runs in a fork of a process that has imported everything. Only public faces
are used (the commands, and what a user imports), so that the same trials run against an older version too.
"""

from __future__ import annotations

import atexit
import importlib
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

COLUMNS = ("lost", "mixed", "traceback", "over 5 s", "silently wrong", "wrong exit code")
SLOW = 5.0  # seconds, beside what the command takes alone
FATAL = ("Traceback (most recent call last)", "Fatal Python error", "terminate called", "Exception ignored in")

# What makes a command short: a fresh run of this takes half a second.
TRAIN = (
    "toy2d", "--steps", "40", "--width", "16", "--samples", "0", "--threads", "1", "--structure", "diagonal",
    "--skip", "scalar", "--tau-max", "3", "--batch-size", "64", "--checkpoint-every", "10", "--log-every", "1",
    "--out", "run",
)  # fmt: skip
DIGITS = (
    "digits", "--steps", "4", "--width", "16", "--samples", "0", "--threads", "1", "--structure", "diagonal",
    "--skip", "scalar", "--tau-max", "9", "--out", "digits",
)  # fmt: skip


def sample(out: str, *more: str) -> tuple[str, ...]:
    """Arguments of a draw to ``out``, of the points or, for a folder, the digits."""
    images = out.endswith("/")
    run, n, size = ("digits", "24", "4") if images else ("run", "160", "16")
    return run, "-n", n, "--batch-size", size, "--steps", "4", "--threads", "1", "--out", out, *more


class Wrong(Exception):
    """A trial that went wrong: which column, and in a few words how."""

    def __init__(self, column: str, text: str) -> None:
        assert column in COLUMNS
        super().__init__(column, " ".join(text.split())[:300])


class Skip(Exception):
    """What this machine or this version has not: the kind is left out, and the table says why."""


# -- kinds ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """``one(bench, rng, number)`` is a trial in the current folder; it raises :class:`Wrong`.

    ``number``: how many at most in all, and in the ``quick`` selection. ``batch``: so many follow each other in one
    fork and one folder. ``share``: of the time, relative to the others'.
    """

    name: str
    one: Callable[[Bench, random.Random, int], None]
    number: int
    quick: int
    batch: int
    share: float


KINDS: dict[str, Kind] = {}
Trial = Callable[["Bench", random.Random, int], None]


def kind(name: str, number: int, quick: int = 0, *, batch: int = 1, share: float = 1.0) -> Callable[[Trial], Trial]:
    """Enter a function as a kind of trial."""

    def enter(function: Trial) -> Trial:
        KINDS[name] = Kind(name, function, number, quick, batch, share)
        return function

    return enter


@dataclass
class Bench:
    """What all trials begin from: folders that hold a finished run and what comes of it, made once.

    ``golden``: the folder; its ``run``, ``digits`` and outputs are those of commands that nothing disturbed.
    ``seconds``: what each took. ``points``: file operations of each scenario of :mod:`tests.attack.faults`.
    """

    golden: Path
    seconds: dict[str, float] = field(default_factory=dict)
    points: dict[str, int] = field(default_factory=dict)

    def limit(self, command: str, *, pictures: bool = False) -> float:
        """Five seconds beside what it took when the runs were made; where other programs use the cores, they take a
        multiple of it at times. Pictures take longer than the training."""
        return SLOW + (12 if pictures else 4) * self.seconds.get(command, 0.5)

    def copy(self, *names: str) -> None:
        """Put these of the golden folder into the current one; a name is the last of its path there."""
        for name in names:
            source = self.golden / name
            (shutil.copytree if source.is_dir() else shutil.copy2)(source, source.name)


# -- commands ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Done:
    """A command that ended; ``code`` is -N where signal N killed it."""

    command: str
    code: int
    out: str
    err: str
    seconds: float
    over: bool


ALIVE: set[Running] = set()


def end_all() -> None:
    """Kill what a trial that went wrong left at work."""
    for each in list(ALIVE):
        each.kill()
        each.wait(SLOW)


class Running:
    """A command at work, in a process of its own."""

    def __init__(self, command: str, pid: int, log: Path) -> None:
        self.command, self.pid, self.log, self.begun = command, pid, log, time.monotonic()
        self.descriptor = os.pidfd_open(pid)
        ALIVE.add(self)

    def kill(self, number: int = signal.SIGKILL) -> None:
        os.kill(self.pid, number)

    def ended(self, seconds: float) -> bool:
        """Wait so long at most."""
        return bool(select.select([self.descriptor], [], [], max(seconds, 0.0))[0])

    def wait(self, limit: float) -> Done:
        over = not self.ended(self.begun + limit - time.monotonic())
        if over:
            self.kill()
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        os.close(self.descriptor)
        ALIVE.remove(self)
        texts = [self.log.with_suffix(end).read_bytes().decode(errors="replace") for end in (".out", ".err")]
        return Done(self.command, code, texts[0], texts[1], time.monotonic() - self.begun, over)


_count = 0


def start(command: str, *arguments: str, before: Callable[[], None] = lambda: None, pictures: bool = False) -> Running:
    """Begin ``ansn-COMMAND`` in a fork, in the current folder. ``before`` runs in it first. ``pictures``: the trainer's
    too, which take longer than its steps."""
    global _count
    _count += 1
    log = Path(f".log-{_count}").absolute()
    for end in (".out", ".err"):
        log.with_suffix(end).touch(0o666)
    pid = os.fork()
    if pid:
        return Running(command, pid, log)
    code = 99
    try:
        _streams(log)
        sys.argv = [f"ansn-{command}", *arguments]
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
            signal.signal(number, signal.SIG_DFL if number != signal.SIGINT else signal.default_int_handler)
        module: Any = importlib.import_module(f"ansn.cli.{command}")
        if command == "train" and not pictures:
            module.write_pictures = lambda *_, **__: []
        before()
        code = module.main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        try:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # the command is over, and an interpreter's end is not its own
            atexit._run_exitfuncs()
            if sys.stdout is not None:
                sys.stdout.flush()
        except BaseException:
            code = 120  # as an interpreter that cannot write what was printed
        finally:
            os._exit(code)


def _streams(log: Path) -> None:
    """Standard output and error of this process to files, encoded as a terminal's would be."""
    for number, end, errors in ((1, ".out", "strict"), (2, ".err", "backslashreplace")):
        target = os.open(log.with_suffix(end), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o666)
        os.dup2(target, number)
        os.close(target)
        stream = open(number, "w", encoding="utf-8", errors=errors, buffering=1, closefd=False)  # noqa: SIM115
        sys.stdout, sys.stderr = (stream, sys.stderr) if number == 1 else (sys.stdout, stream)


def run(bench: Bench, command: str, *arguments: str, **how: Any) -> Done:
    """:func:`start` one and wait for its end."""
    return start(command, *arguments, **how).wait(bench.limit(command, pictures="pictures" in how))


def program(*arguments: str, env: dict[str, str] | None = None) -> Running:
    """A real program (torchrun) in place of a fork."""
    global _count
    _count += 1
    log = Path(f".log-{_count}").absolute()
    with log.with_suffix(".out").open("wb") as out, log.with_suffix(".err").open("wb") as err:
        process = subprocess.Popen(arguments, stdout=out, stderr=err, env={**os.environ, **(env or {})})
    process.returncode = 0  # waited for by its number, as a fork is
    return Running(arguments[-1], process.pid, log)


# -- what is right ---------------------------------------------------------------------------------------------------


def wanted(done: Done, *codes: int, one_line: bool = True) -> Done:
    """The command ended in time, without a traceback, with one of these codes; a refusal is one line of the grammar."""
    if done.over:
        raise Wrong("over 5 s", f"{done.command}: {done.seconds:.1f} s; {done.err[-200:]}")
    if done.code < 0 and done.code not in codes:
        raise Wrong("traceback", f"{done.command}: killed by signal {-done.code}; {done.err[-200:]}")
    for mark in FATAL:
        if mark in done.err:
            raise Wrong("traceback", f"{done.command}: {mark}: {done.err.strip().splitlines()[-1]}")
    if done.code not in codes:
        raise Wrong("wrong exit code", f"{done.command}: {done.code}; {done.err[-200:]}")
    if done.code == 2 and one_line:
        told = [line for line in done.err.splitlines() if ": error: " in line]
        if len(told) != 1 or done.err.splitlines()[-1] != told[0] or not grammar(told[0]):
            raise Wrong("wrong exit code", f"{done.command}: 2 without the one line: {done.err[-200:]}")
    return done


def grammar(text: str) -> bool:
    """``NAME: got X, expected Y`` in one line."""
    return "\n" not in text and "got " in text and "expected " in text


def same_file(made: str, golden: Path, column: str = "silently wrong") -> None:
    """A file, or a folder of files, has the golden bytes."""
    pairs = [(Path(made), golden)]
    if golden.is_dir():
        names = {p.name for p in golden.iterdir()} | {p.name for p in Path(made).iterdir()}
        pairs = [(Path(made) / name, golden / name) for name in sorted(names)]
    for one, other in pairs:
        if not one.exists():
            raise Wrong("lost", f"{one}: is missing")
        if not other.exists() or one.read_bytes() != other.read_bytes():
            raise Wrong(column, f"{one}: has other bytes")


def nothing_left(*patterns: str) -> None:
    """No lock, no part and no temporary file is left in the current folder."""
    for pattern in patterns or ("**/*.part", "**/.writing-*", "**/*.lock", "**/.lock*", "**/.*.[0-9]*"):
        for path in Path().glob(pattern):
            if not path.name.startswith(".log-"):
                raise Wrong("silently wrong", f"{path}: was left behind")
