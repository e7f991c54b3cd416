"""Many trials in one fork: where a trial is a call, not a command."""

from __future__ import annotations

import codecs
import faulthandler
import importlib
import json
import os
import random
import resource
import signal
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.attack.trials import SLOW, TRAIN, Bench, Kind, Skip, Wrong

_MEMORY = 8 * 2**30  # bytes of addresses: a file that claims more may not take the machine's


def import_all() -> None:
    """Import what the commands do, also late: forks then have it. No thread may start here."""
    import torch

    torch.set_num_threads(1)
    for name in ("train", "sample", "info", "evaluate"):
        importlib.import_module(f"ansn.cli.{name}")
    for name in ("torchrun", "kills", "together", "disk", "weights", "files", "places"):  # the table's order
        importlib.import_module(f"tests.attack.{name}")
    late = (
        "ansn.figures", "ansn.region_figures", "ansn.networks.unet", "ansn.networks.mlp", "rich.progress",
        "rich.console", "torch.utils.tensorboard", "torch._dynamo", "sklearn.datasets", "PIL.Image",
        "PIL.PngImagePlugin", "matplotlib.figure", "matplotlib.backends.backend_agg", "scipy.optimize", "psutil",
        "filelock", "tyro._backends._argparse_backend", "tyro._backends._tyro_backend", "safetensors.numpy",
    )  # fmt: skip
    for name in late:
        with suppress(ImportError):
            importlib.import_module(name)
    for name in ("ascii", "idna", "latin-1", "utf-16"):  # another user may not read where Python lies
        codecs.lookup(name)
    importlib.import_module("ansn.cli.train").parse(list(TRAIN))  # tyro imports by what it parses


class _Slow(BaseException):
    """A trial that takes too long."""


def _alarm(*_: Any) -> None:
    raise _Slow


def fork(bench: Bench, kind: Kind, seed: int, numbers: range, until: float) -> list[tuple[int, str, str]]:
    """Number, column and text of each trial, as far as the time goes. A process that dies is a trial that went wrong;
    the others are gone on with."""
    results: list[tuple[int, str, str]] = []
    while numbers:
        pid = os.fork()
        if not pid:
            _work(bench, kind, seed, numbers, until)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        found = [tuple(json.loads(line)) for line in Path(".results").read_text().splitlines()]
        results += found  # type: ignore[arg-type]
        numbers = numbers[len(found) :]
        if not code:
            break
        column = "over 5 s" if code == 1 else "traceback"  # faulthandler ends a process with 1
        results.append((numbers[0], column, f"the process ended with {code}: {Path('.err').read_text()[-200:]}"))
        numbers = numbers[1:]
    return results


def _work(bench: Bench, kind: Kind, seed: int, numbers: range, until: float) -> None:
    code = 99
    try:
        target = os.open(".err", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        for number in (1, 2):
            os.dup2(target, number)
        sys.stdout = sys.stderr = open(2, "w", errors="backslashreplace", closefd=False)  # noqa: SIM115
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
        signal.signal(signal.SIGALRM, _alarm)
        with Path(".results").open("w", buffering=1) as results:
            for number in numbers:
                if time.monotonic() > until and number != numbers[0]:
                    break
                column, text = _one(bench, kind, seed, number)
                results.write(json.dumps([number, column, text]) + "\n")
        code = 0
    finally:
        os._exit(code)


def _one(bench: Bench, kind: Kind, seed: int, number: int) -> tuple[str, str]:
    faulthandler.dump_traceback_later(4 * SLOW, exit=True, file=2)  # in a call that no signal interrupts
    signal.setitimer(signal.ITIMER_REAL, SLOW)
    try:
        kind.one(bench, random.Random(f"{seed}/{kind.name}/{number}"), number)
    except _Slow:
        return "over 5 s", "an alarm after 5 s"
    except Wrong as wrong:
        return wrong.args
    except Skip as skip:
        return "skipped", str(skip)
    except BaseException as error:
        return "traceback", described(error)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
    return "right", ""


def described(error: BaseException) -> str:
    """An error that nobody caught, in one line."""
    where = traceback.extract_tb(error.__traceback__)[-1]
    told = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {told} at {Path(where.filename).name}:{where.lineno}"
