"""What the commands share: a user's mistake is one line and exit code 2, never a traceback."""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import torch.distributed as dist
import tyro

from ansn.errors import InputError
from ansn.machine import asked_to_end
from ansn.ops import current_backend, native
from ansn.ops._dispatch import BackendError
from ansn.training import Diverged, Interrupted

T = TypeVar("T")
RunName = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
"""What :func:`ansn.load_run` takes."""
_WRONG = re.compile(r"^invalid choice (.*) for argument '(.*)'\. Expected one of \((.*)\)")
"""A wrong choice, in tyro's words."""
_MISTAKES = (
    (r"^Unrecognized options: (.*)", r"\1: got an unknown argument, expected known ones"),
    (r"^Error parsing (\S+): invalid literal for int\(\) with base 10: (.*)", r"\1: got \2, expected a whole number"),
    (r"^Error parsing (\S+): could not convert string to float: (.*)", r"\1: got \2, expected a number"),
    (r"^Error parsing (\S+): no type matching (.*?) could be .*? from \[(.*?)\].*", r"\1: got \3, expected \2"),
    (r"^Error parsing (\S+): (.*)", r"\1: got a value of no use (\2), expected one that fits"),
    (r"^Missing value for argument '(.*)'\. Expected (.*)", r"\1: got none, expected \2"),
    (r"^Missing from \S+: (\S+) (.*)", r"\1: got None, expected \2"),
)
"""Other mistakes: tyro's words and ours."""


def parsed(name: str, parse: Callable[[], T], options: str = "") -> T:
    """What ``parse``, a call of tyro, returns. A wrong command line is one line in place of tyro's box, exit code 2;
    ``options``: the command whose help lists the options, if it is another."""
    _streams()
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            return parse()
    except BrokenPipeError:  # --help into `head`
        _flush()
        raise SystemExit(0) from None
    except SystemExit as end:
        if not end.code:  # --help
            _flush()
            raise
        print(f"{name}: error: {_unboxed(told.getvalue())}; see {options or name} --help", file=sys.stderr)
        raise SystemExit(2) from None


def _unboxed(text: str) -> str:
    """The first sections of tyro's box, which tell the mistake; those after them tell of the help."""
    sections: list[list[str]] = [[]]
    lines = text.splitlines()
    # Where only ASCII can be written there is no box, but a title and a rule.
    for line in (line.strip(" │") for line in [s for s in lines if s.startswith("│")] or lines[2:]):
        if line and not line.strip("─-"):
            sections.append([])
        else:
            sections[-1].append(line)
    told = [_WRONG.sub(_our_words, " ".join(" ".join(section).split())) for section in sections]
    for theirs, ours in _MISTAKES:
        told = [re.sub(theirs, ours, section) for section in told]
    alike = "Perhaps you meant", "Arguments similar"
    told = [_names(section) if section.startswith(alike) else section for section in told]
    mistake = [section for section in told if not section.startswith(("Argument helptext", "For full helptext"))]
    return "; ".join(section.rstrip(".;") for section in mistake if section) or " ".join(text.split())


def _names(section: str) -> str:
    """Of options that are like a wrong one the names alone, the shortest first."""
    names = dict.fromkeys(re.findall(r"(?<!\S)--[\w-]+", section.replace("--help", "")))
    return f"perhaps {', '.join(sorted(names, key=len)[:4])}"


def _our_words(wrong: re.Match[str]) -> str:
    value, option, names = wrong.groups()
    names = ", ".join(name.strip("' ") for name in names.split(",") if name)  # of one name tyro writes ('a',)
    return f"{option}: got {value}, expected one of {names}"


def guarded(name: str, command: Callable[[], None]) -> int:
    """Run a command; exit code 0 done, 1 training diverged, 2 bad arguments or input, 130 interrupted.

    A warning is one line too. Of several processes that fail alike the first one tells."""
    try:
        with warnings.catch_warnings(), asked_to_end(_interrupt):
            warnings.showwarning = lambda message, *_: _warn(name, message)  # type: ignore[assignment]
            current_backend()  # what ANSN_BACKEND and ANSN_CPU_ISA say must be usable
            native.check_isa()
            command()
            _flush()
    except (InputError, MemoryError, BackendError) as error:
        _tell(f"{name}: error: {' '.join(str(error).split())}")
        return 2
    except Diverged as error:
        _tell(f"{name}: {error}")
        return 1
    except Interrupted as error:
        _tell(f"{name}: {error}")
        return 130
    except KeyboardInterrupt as error:
        _tell(f"{name}: {str(error) or 'interrupted'}")
        return 130
    except BrokenPipeError:
        _flush()
    except RuntimeError as error:
        if "gloo" not in str(error) and not isinstance(error, dist.DistError):
            raise
        _tell(f"{name}: error: got no answer of another process of this run, which has ended; its message says why")
        return 2
    except OSError as error:  # a full disk, say: what was there before is still there
        where, told = error.filename or "file", error.strerror or error
        _tell(f"{name}: error: {where}: got {told}, expected a file to read or write")
        return 2
    return 0


def _streams() -> None:
    """A stream that is closed goes nowhere (else the next file that is opened would get its number), and a path that is
    not UTF-8 is printed as it is."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w" if number else "r", errors="surrogateescape"))  # noqa: SIM115
        elif name == "stdout" and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="surrogateescape")


def _interrupt() -> None:
    raise KeyboardInterrupt


def _flush() -> None:
    """Print what is printed. Where its reader went away the rest goes nowhere: Python's own flush, at the exit, would
    tell a traceback."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _warn(name: str, message: Warning | str) -> None:
    text = f"{name}: {' '.join(str(message).split())}"
    _tell(text, f"warned-{zlib.crc32(text.encode())}")


def _tell(text: str, kind: str = "failed") -> None:
    """On stderr; under torchrun only the first process of this machine to say something of this kind."""
    # torchrun gives each process a file for its error, in a folder of its own below one of this attempt.
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if file:
        try:
            os.close(os.open(Path(file).parent.parent / f"ansn-{kind}", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return
        except OSError:  # no such folder: better twice than never
            pass
    print(text, file=sys.stderr)


def positive(arguments: object, *names: str) -> None:
    """InputError unless each of these options is at least 1, or not given."""
    for name in names:
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise InputError(f"--{name.replace('_', '-')}: got {value}, expected at least 1")
