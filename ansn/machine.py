"""The machine: what a measurement was made on, and what fits it."""

from __future__ import annotations

import math
import os
import platform
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_CPUINFO = Path("/proc/cpuinfo")
_ONCE = 1.0
"""Seconds in which two signals are one: a terminal and its shell say the same twice, torchrun and its group too."""


def cpu_name() -> str:
    """The processor's name where the system gives it, else its architecture. A virtual machine's name may have no
    number; it has the processor's family and model beside it."""
    try:
        text = _CPUINFO.read_text()
    except OSError:
        text = ""
    parts = dict(re.findall(r"^(model name|cpu family|model)[ \t]*:[ \t]*(.+?)[ \t]*$", text, re.M))
    name = parts.get("model name")
    if name is None:
        return platform.processor() or platform.machine()
    if re.search(r"\d", name) or len(parts) < 3:
        return str(name)
    return f"{name}, family {parts['cpu family']} model {parts['model']}"


def available_memory() -> int:
    """Bytes that can be taken without swapping."""
    import psutil  # slow to import: only when used

    return int(psutil.virtual_memory().available)


def busy() -> float:
    """Share of the cores' time that is taken, by whoever, in the fifth of a second from now."""
    import psutil

    return float(psutil.cpu_percent(0.2)) / 100


@contextmanager
def asked_to_end(act: Callable[[], None]) -> Iterator[None]:
    """While it lasts, ``act`` is called when this process is asked to end: by Ctrl-C, by SIGTERM, by a terminal that
    goes away (SIGHUP) or a scheduler that warns (SIGUSR1); signals within a second are one. But for Ctrl-C, what is
    ignored (`nohup`) stays so; in any thread but the main one whoever runs us handles signals."""
    last = -math.inf

    def handle(number: int, _: Any) -> None:
        nonlocal last
        if number == getattr(signal, "SIGHUP", None):
            _leave_the_terminal()
        since, last = time.monotonic() - last, time.monotonic()
        if since > _ONCE:
            act()

    names = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    before: dict[Any, Any] = {}
    try:
        for number in numbers:
            if signal.getsignal(number) is not signal.SIG_IGN or number == signal.SIGINT:
                before[number] = signal.signal(number, handle)
    except ValueError:
        pass
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: set from C


def _leave_the_terminal() -> None:
    """What is printed to a terminal that is gone goes nowhere: else the next line is an error."""
    for number in (1, 2):
        try:
            os.write(number, b"")
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)
