"""The machine: what a measurement was made on, and what fits it."""

from __future__ import annotations

import platform


def cpu_name() -> str:
    """The processor's own name where the system tells it, else its architecture."""
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def available_memory() -> int:
    """Bytes that can be taken without swapping."""
    import psutil  # slow to import: only when used

    return int(psutil.virtual_memory().available)


def busy() -> float:
    """Share of the cores' time that is taken, by whoever, in the fifth of a second from now."""
    import psutil

    return float(psutil.cpu_percent(0.2)) / 100
