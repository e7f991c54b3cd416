"""Which back end runs an operation: registration, choice, and the errors when a choice cannot run.

``reference`` runs anywhere. ``native`` is the C++ module. ``triton`` holds GPU kernels. ``auto``, the default,
takes the first of the device's preference list that can run the very call at hand. ``ANSN_BACKEND`` is what every
thread starts with.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from threading import get_ident
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from ansn.errors import InputError
from ansn.ops._checks import transformed


class BackendError(RuntimeError):
    """An explicitly chosen back end cannot run a call."""


BACKENDS = ("auto", "reference", "native", "triton")
_PREFERENCE = {"cpu": ("native", "reference"), "cuda": ("triton", "native", "reference")}
_c = torch._C

library = torch.library.Library("ansn", "DEF")

# operation -> back end -> (implementation, why_not). why_not gives the reason a call cannot run there, or None.
_table: dict[str, dict[str, tuple[Callable[..., Any], Callable[..., str | None]]]] = {}
_values: dict[str, Callable[..., None]] = {}


def _check_name(name: str, origin: str) -> str:
    if name not in BACKENDS:
        raise InputError(f"{origin}: got {name!r}, expected one of {', '.join(BACKENDS)}")
    return name


# As it stands in the environment: a wrong name is an error at first use, where a command can say it in one line.
_start = os.environ.get("ANSN_BACKEND", "auto")
_chosen: ContextVar[str] = ContextVar("ansn.backend", default=_start)
_current = _chosen.get
_KEY = "ansn.backend"


class backend:
    """Choose the back end, in a ``with`` block or, called as ``ansn.ops.backend("reference")``, until changed.

    Either is a choice of this thread, or of this asyncio task and those that it starts: other threads never see it, and
    start with ``ANSN_BACKEND``. The backward of an operation runs on the back end of its forward, and a compiled graph
    on the one where it is called, in whichever thread autograd runs them (of asyncio tasks that interleave, the last
    choice of their thread). An explicit back end that cannot run a call
    raises RuntimeError when the call comes; ``"auto"`` never does. Raises ValueError for an unknown name.
    """

    def __init__(self, name: str) -> None:
        self._token = _chosen.set(_check_name(name, "backend"))
        _pass_on()

    def __enter__(self) -> backend:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ValueError, RuntimeError):  # left in another context, or left already
            _chosen.reset(self._token)
        _pass_on()


def _pass_on() -> None:
    """Say the choice to the threads in which autograd will run backwards of this one: torch hands this store to
    them."""
    _c._stash_obj_in_tls(_KEY, (get_ident(), _current()))


def _inherited() -> str | None:
    """The choice of the thread whose backward autograd runs in this one; None in any other."""
    if _c._is_key_in_tls(_KEY):
        thread, name = _c._get_obj_in_tls(_KEY)
        if thread != get_ident():
            return _chosen.get(name)
    return None


def _run_on(name: str, function: Callable[..., Any], *args: Any) -> Any:
    """``function(*args)`` on a back end."""
    token = _chosen.set(name)
    try:
        return function(*args)
    finally:
        _chosen.reset(token)


class Function(torch.autograd.Function):
    """One whose backward runs on the back end of its forward."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        first = "setup_context" if "setup_context" in vars(cls) else "forward"
        saves, back = getattr(cls, first), cls.backward

        def saving(ctx: Any, *args: Any) -> Any:
            if not torch.compiler.is_compiling():
                ctx.chosen = _inherited() or _current()
            return saves(ctx, *args)

        def backward(ctx: Any, *grads: Any) -> Any:
            if torch.compiler.is_compiling():
                return back(ctx, *grads)
            return _run_on(ctx.chosen, back, ctx, *grads)

        setattr(cls, first, staticmethod(saving))
        cls.backward = staticmethod(backward)  # type: ignore[method-assign]


def current_backend() -> str:
    """The name in force: ``"auto"`` or an explicit back end. Raises ValueError if ``ANSN_BACKEND`` names none."""
    return _check_name(_current(), "ANSN_BACKEND")


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


def define(schema: str, values: Callable[..., None] | None = None) -> Callable[..., Any]:
    """Declare the operation of ``schema``; returns what its public function calls with arguments that it has checked.

    That call goes straight to the back end where nothing but the values is asked for: plain CPU tensors, eager
    (:func:`direct`). Where a compiler, a mode, autocast, the tracer or the profiler has to see it, it goes through
    torch's dispatcher, whose own time is that of a small operation. Transforms of torch.func and forward derivatives
    are shown the reference, so that they are right in every argument; but an operation in place, which has none.

    A coefficient (:func:`ansn.ops._checks.term`) may be a float where the schema says Tensor: ``native`` takes it as it
    is, any other back end and the dispatcher get a tensor of the first argument's arithmetic. ``values(*args)`` raises
    for values that are wrong; it is called where the call runs, never while it is traced, and not for ``native``, whose
    kernels look themselves.
    """
    library.define(schema)
    name = schema.partition("(")[0]
    overload = getattr(torch.ops.ansn, name).default
    tensors = tuple(i for i, a in enumerate(overload._schema.arguments) if "Tensor" in str(a.type))
    in_place = overload._schema.is_mutable
    if values is not None:
        _values[name] = values

    def here(*args: Any) -> Any:
        device = next(a.device for a in args if isinstance(a, Tensor))
        chosen = _inherited()
        return call(name, device, *args) if chosen is None else _run_on(chosen, call, name, device, *args)

    for key in ("CPU", "CUDA"):
        library.impl(name, here, key)

    def run(*args: Any) -> Any:
        function = None
        if direct([args[i] for i in tensors]):
            kind, function = _kernel(name, "cpu", args)
            if kind == "native":
                return function(*args)
        elif not in_place and transformed():
            function = _table[name]["reference"][0]
        given = list(args)
        for i in tensors:
            if isinstance(given[i], (int, float)):
                wide = torch.float64 if args[0].dtype == torch.float64 else torch.float32
                given[i] = torch.full((), given[i], dtype=wide, device=args[0].device)
        if function is None:
            return overload(*given)
        if values is not None and not torch.compiler.is_compiling():
            values(*given)
        return function(*given)

    return run


def direct(args: Sequence[Any]) -> bool:
    """Whether nothing but the values has to see a call with these tensors, and the CPU's own back ends may run it.

    Tensors are what they seem: no subclass, on the CPU, no sign pending. Also for a composition of operations that the
    native module has in one call.
    """
    # In the order of what is likely; each of these looks costs a tenth of a microsecond.
    if torch.compiler.is_compiling():
        return False
    for a in args:
        if a is None:
            continue
        kind = type(a)
        if kind is list:
            if not all(map(_ordinary, a)):
                return False
        elif kind is not float and not _ordinary(a):
            return False
    return (
        _current() != "triton"
        and not _c._len_torch_dispatch_stack()
        and not _c._len_torch_function_stack()
        and not transformed()
        and not _c._is_any_autocast_enabled()
        and _c._get_tracing_state() is None
        and not _c._autograd._profiler_enabled()
    )


def _ordinary(a: Any) -> bool:
    """Whether it is a tensor, and one that is what it seems."""
    kind = type(a)
    return (kind is Tensor or kind is Parameter) and a.is_cpu and not a.is_neg() and not a._is_zerotensor()


def _kernel(operation: str, kind: str, args: tuple[Any, ...]) -> tuple[str, Callable[..., Any]]:
    """The back end in force and its implementation. Raises BackendError where an explicit choice cannot run."""
    kernels, chosen = _table[operation], _current()
    if chosen == "auto":
        for name in _PREFERENCE.get(kind, ("reference",)):
            kernel = kernels.get(name)
            if kernel is not None and kernel[1](*args) is None:
                return name, kernel[0]
    if current_backend() not in kernels:
        have = ", ".join(kernels)
        raise BackendError(f"{operation}: no kernel on back end {chosen!r}; it has {have}, or use 'auto'")
    function, why_not = kernels[chosen]
    reason = why_not(*args)
    if reason is not None:
        raise BackendError(f"{operation}: cannot run on back end {chosen!r}: {reason}")
    return chosen, function


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
    name, function = _kernel(operation, device.type, args)
    if name != "native" and operation in _values:
        _values[operation](*args)
    return function(*args)
