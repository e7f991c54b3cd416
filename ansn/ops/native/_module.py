"""The C++ module ``ansn._native``, or why it is not there, and what every kernel's launcher needs."""

from __future__ import annotations

import importlib.util
import os

import torch
from torch import Tensor

from ansn.errors import InputError

try:
    from ansn import _native as module  # type: ignore[attr-defined]
except ImportError as error:
    module = None  # type: ignore[assignment]
    built = importlib.util.find_spec("ansn._native") is not None
    missing: str | None = (
        f"the C++ module ansn._native cannot be loaded ({error}); build it anew with `pip install -e .`"
        if built
        else "the C++ module ansn._native is not there: it was not built, as without a C++17 compiler such as g++;"
        " `ANSN_NATIVE=ON pip install -e .` builds it or says what is missing"
    )
else:
    missing = None

DTYPE = {torch.float32: "f32", torch.float64: "f64", torch.bfloat16: "bf16", torch.float16: "f16"}


def check_isa() -> None:
    """Raises InputError if ``ANSN_CPU_ISA`` names an instruction set that cannot run."""
    if module is not None:
        try:
            module.cpu_isa()
        except ValueError:
            given, known = os.environ.get("ANSN_CPU_ISA"), ", ".join(module.supported_isas()) or "none"
            raise InputError(f"ANSN_CPU_ISA: got {given!r}, expected one of {known}, which this CPU supports") from None


def address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def placed(coefficient: float | Tensor | None, held: list[Tensor]) -> tuple[float | None, int]:
    """A coefficient as the module takes it, and its stride: None or a number as it is, a tensor by its address.

    What lies at the address is added to ``held``, which must outlive the call."""
    if coefficient is None or type(coefficient) is float:
        return coefficient, 0
    assert isinstance(coefficient, Tensor)
    held.append(coefficient.contiguous())
    return held[-1].data_ptr(), coefficient.ndim


def why_not_cpu(tensor: Tensor, name: str = "x") -> str | None:
    return missing if tensor.is_cpu else f"{name} is on {tensor.device}, expected the CPU"
