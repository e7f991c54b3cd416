"""Which back end runs an operation: registration, choice, and the errors when a choice cannot run.

``reference`` runs anywhere. ``native`` is the C++ module. ``triton`` holds GPU kernels. ``auto``, the default,
takes the first of the device's preference list that can run the very call at hand. ``ANSN_BACKEND`` sets the start
value.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch

from ansn.errors import InputError


class BackendError(RuntimeError):
    """An explicitly chosen back end cannot run a call."""


BACKENDS = ("auto", "reference", "native", "triton")
_PREFERENCE = {"cpu": ("native", "reference"), "cuda": ("triton", "native", "reference")}

library = torch.library.Library("ansn", "DEF")

# operation -> back end -> (implementation, why_not). why_not gives the reason a call cannot run there, or None.
_table: dict[str, dict[str, tuple[Callable[..., Any], Callable[..., str | None]]]] = {}


def _check_name(name: str, origin: str) -> str:
    if name not in BACKENDS:
        raise InputError(f"{origin} is {name!r}, expected one of {', '.join(BACKENDS)}")
    return name


# As it stands in the environment: a wrong name is an error at first use, where a command can say it in one line.
_current = os.environ.get("ANSN_BACKEND", "auto")


class backend:
    """Choose the back end: ``ansn.ops.backend("reference")`` until changed, or in a ``with`` block.

    The choice is one for the process. An explicit back end that cannot run a call raises RuntimeError
    when the call comes; ``"auto"`` never does. Raises ValueError for an unknown name.
    """

    def __init__(self, name: str) -> None:
        global _current
        self._previous = _current
        _current = _check_name(name, "backend")

    def __enter__(self) -> backend:
        return self

    def __exit__(self, *_: object) -> None:
        global _current
        _current = self._previous


def current_backend() -> str:
    """The name in force: ``"auto"`` or an explicit back end. Raises ValueError if ``ANSN_BACKEND`` names none."""
    return _check_name(_current, "ANSN_BACKEND")


def register(
    operation: str, name: str, function: Callable[..., Any], why_not: Callable[..., str | None] | None = None
) -> None:
    """Offer ``function`` as back end ``name`` of ``operation``; ``why_not(*args)`` says what it cannot run."""
    _table.setdefault(operation, {})[name] = (function, why_not or (lambda *_: None))


def registered(operation: str) -> tuple[str, ...]:
    """Back ends that hold a kernel for ``operation``."""
    return tuple(_table[operation])


def operations() -> tuple[str, ...]:
    """Names of all operations."""
    return tuple(_table)


def call(operation: str, device: torch.device, *args: Any) -> Any:
    """Run ``operation`` on the back end in force."""
    if torch.is_autocast_enabled(device.type):
        # The operations choose their own precision: a covariance or its factor must not pass through bfloat16.
        with torch.autocast(device.type, enabled=False):
            return call(operation, device, *args)
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        # Triton and the CUDA kernels launch on the device in force, whatever device their operands are on.
        with torch.cuda.device(device):
            return call(operation, device, *args)
    kernels = _table[operation]
    if _current == "auto":
        for name in _PREFERENCE.get(device.type, ("reference",)):
            kernel = kernels.get(name)
            if kernel is not None and kernel[1](*args) is None:
                return kernel[0](*args)
    if current_backend() not in kernels:
        have = ", ".join(kernels)
        raise BackendError(f"{operation} has no kernel on back end {_current!r}; it has {have}, or use 'auto'")
    function, why_not = kernels[_current]
    reason = why_not(*args)
    if reason is not None:
        raise BackendError(f"{operation} cannot run on back end {_current!r}: {reason}")
    return function(*args)
