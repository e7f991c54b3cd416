"""The C++ module ``ansn._native``, or why it is not there, and what every kernel's launcher needs."""

from __future__ import annotations

import torch
from torch import Tensor

from ansn.errors import InputError

try:
    from ansn import _native as module  # type: ignore[attr-defined]
except ImportError as error:
    module = None  # type: ignore[assignment]
    missing: str | None = f"the C++ module ansn._native is not there ({error}); build it with `pip install -e .`"
else:
    missing = None

DTYPE = {torch.float32: "f32", torch.float64: "f64", torch.bfloat16: "bf16", torch.float16: "f16"}


def check_isa() -> None:
    """Raises InputError if ``ANSN_CPU_ISA`` names an instruction set that cannot run."""
    if module is not None:
        try:
            module.cpu_isa()
        except ValueError as error:
            raise InputError(str(error)) from None


def address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def why_not_cpu(tensor: Tensor, name: str = "x") -> str | None:
    return missing if tensor.is_cpu else f"{name} is on {tensor.device}, expected the CPU"


def contiguous(tensor: Tensor | None) -> Tensor | None:
    return tensor if tensor is None or tensor.is_contiguous() else tensor.contiguous()


def stride(coefficient: Tensor | None) -> int:
    """0: one for all rows, 1: one for each."""
    return 0 if coefficient is None or coefficient.ndim == 0 else 1
