"""Faults at one file operation of a command: the process ends there, or the disk refuses."""

from __future__ import annotations

import builtins
import errno
import io
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.attack.runs import check_run
from tests.attack.trials import TRAIN, Bench, run, same_file, sample, wanted

CRASHED = 77
_CALLS: tuple[tuple[Any, str], ...] = (
    (os, "replace rename link symlink mkdir rmdir unlink fsync open pwrite posix_fallocate chmod"),
    (shutil, "rmtree"),
    (Path, "write_bytes write_text"),
    (io, "open"),
)
_WRITES = {"mkdir", "fsync", "open", "pwrite", "posix_fallocate", "write_bytes", "write_text", "save_file", "replace"}
_DATA = {"pwrite": 1, "write_bytes": 1, "write_text": 1}  # which argument is the data
ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)

# Command, its arguments, and what it begins from; the outputs are the golden ones.
SCENARIOS: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "draw of .npy": ("sample", sample("x.npy"), ("run",)),
    "training": ("train", TRAIN, ()),
    "going on": ("train", TRAIN, ("half/run",)),
    "draw of .csv": ("sample", sample("x.csv"), ("run",)),
    "draw of PNG": ("sample", sample("x/"), ("digits",)),
    "draw that goes on": ("sample", sample("x.npy"), ("run", "half/x.npy.part")),
}


class Faults:
    """Counts the operations of this process on the current folder, and does something at one of them.

    ``at``: which, from 1; None counts only. ``how``: ``"before"``, ``"after"`` or ``"torn"`` (half of the data is
    written) ends the process there; a number is the error that the disk gives, ``lasting``: at those that write, from
    then on.
    """

    def __init__(self, at: int | None = None, how: str | int = "before", *, lasting: bool = False) -> None:
        self.count, self.at, self.how, self.lasting = 0, at, how, lasting
        self.here = os.getcwd()

    def install(self) -> None:
        """Watch, in this process from here on."""
        for place, names in _CALLS:
            for name in names.split():
                setattr(place, name, self._watched(name, getattr(place, name)))
        builtins.open = io.open
        for name, module in list(sys.modules.items()):
            if name.startswith("ansn.") and "save_file" in vars(module):
                module.save_file = self._watched("save_file", module.save_file)  # type: ignore[attr-defined]

    def _watched(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            if not self._counts(name, arguments, named):
                return function(*arguments, **named)
            self.count += 1
            after = self.at is not None and self.count > self.at and self.lasting and name in _WRITES
            if self.count != self.at and not after:
                return function(*arguments, **named)
            if isinstance(self.how, int):
                raise self._error(name, arguments)
            if self.how == "torn" and name in _DATA:
                place = _DATA[name]
                data = arguments[place]
                function(*arguments[:place], data[: len(data) // 2], *arguments[place + 1 :], **named)
            elif self.how == "after":
                function(*arguments, **named)
            os._exit(CRASHED)

        return call

    def _counts(self, name: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> bool:
        """Whether it changes something in the folder."""
        if name == "open":
            mode = arguments[1] if len(arguments) > 1 else named.get("mode", named.get("flags", "r"))
            if not (mode & (os.O_WRONLY | os.O_RDWR) if isinstance(mode, int) else set(mode) & set("wax+")):
                return False
        first = arguments[1 if name == "save_file" else 0]
        if isinstance(first, int) or named.get("dir_fd") is not None:
            return True
        path = os.path.abspath(os.fsdecode(first))
        return path.startswith(self.here + os.sep) and not os.path.basename(path).startswith(".log-")

    def _error(self, name: str, arguments: tuple[Any, ...]) -> Exception:
        number = int(self.how)
        if name == "save_file":
            from safetensors import SafetensorError

            return SafetensorError(f"Error while serializing: I/O error: {os.strerror(number)} (os error {number})")
        first = arguments[0]
        return OSError(number, os.strerror(number), None if isinstance(first, int) else os.fsdecode(first))


def scenario(bench: Bench, name: str, faults: Faults | None = None) -> Any:
    """Run it in the current folder, begun afresh unless it was begun; ``faults``: those of the process."""
    command, arguments, begin = SCENARIOS[name]
    for source in begin:
        if not Path(Path(source).name).exists():
            bench.copy(source)

    def before() -> None:
        often_committed()
        if faults is not None:
            faults.install()

    return run(bench, command, *arguments, before=before)


def points(bench: Bench, name: str) -> int:
    """How many operations the scenario has."""
    if name not in bench.points:

        def install() -> None:
            import atexit

            faults = Faults()
            often_committed()
            atexit.register(lambda: os.write(1, f"\npoints {faults.count}".encode()))
            faults.install()

        command, arguments, begin = SCENARIOS[name]
        for source in begin:
            bench.copy(source)
        done = wanted(run(bench, command, *arguments, before=install), 0)
        bench.points[name] = int(done.out.rpartition("points ")[2])
        for path in Path().iterdir():
            (shutil.rmtree if path.is_dir() else os.unlink)(path)
    return bench.points[name]


def output(name: str) -> str:
    """What the scenario makes."""
    arguments = SCENARIOS[name][1]
    return arguments[arguments.index("--out") + 1].rstrip("/")


def check(bench: Bench, name: str) -> None:
    """The scenario's output is there and the golden one."""
    if SCENARIOS[name][0] == "train":
        check_run(bench)
    else:
        same_file(output(name), bench.golden / output(name))


def often_committed() -> None:
    """Rows count after each batch, as if a batch took a second."""
    from ansn.sampling import stream

    stream.COMMIT_SECONDS = 0.0  # type: ignore[misc]
