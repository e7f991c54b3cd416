"""The launches whose machine code is watched: launchers called with meta tensors at the sizes that they are meant for.

To add a kernel, add a line: a name, and a call of its launcher. It is recorded, never run (:mod:`ansn.kernels.aot`).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from ansn.kernels.colored_step import colored_step
from ansn.kernels.dsm_loss import dsm_loss
from torch import Tensor

_F32, _BF16, _F16 = torch.float32, torch.bfloat16, torch.float16


def _t(*shape: int, dtype: torch.dtype = _F32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _region(rows: int) -> Tensor:
    return _t(rows, dtype=torch.int64)


CASES: dict[str, Callable[[], object]] = {
    "draw, f32, 1024 x 784": lambda: colored_step(_t(1024, 784), b=_t()),
    "draw, bf16, 1024 x 784": lambda: colored_step(_t(1024, 784, dtype=_BF16), b=_t(1024)),
    "draw, diagonal, f32, 1024 x 784": lambda: colored_step(_t(1024, 784), b=_t(1024), diagonal=_t(1, 784)),
    "Langevin, f32, 128 x 3072": lambda: colored_step(_t(128, 3072), _t(128, 3072), c=_t(), b=_t()),
    "Langevin, bf16, 128 x 3072": lambda: colored_step(
        _t(128, 3072, dtype=_BF16), _t(128, 3072, dtype=_BF16), c=_t(), b=_t()
    ),
    "every term, 8 diagonal regions, f32, 128 x 3072": lambda: colored_step(
        _t(128, 3072), _t(128, 3072), _t(128, 3072), _t(128), _t(128), _t(128), _t(8, 3072), _region(128)
    ),
    "Langevin, short rows, f16, 4096 x 64": lambda: colored_step(
        _t(4096, 64, dtype=_F16), _t(4096, 64, dtype=_F16), c=_t(), b=_t()
    ),
    "Langevin, odd rows, f32, 1024 x 785": lambda: colored_step(_t(1024, 785), _t(1024, 785), c=_t(), b=_t()),
    "Langevin, over 2^31 groups, bf16, 2^22 x 4096": lambda: colored_step(
        _t(2**22, 4096, dtype=_BF16), _t(2**22, 4096, dtype=_BF16), c=_t(), b=_t()
    ),
    "loss, target, f32, 128 x 3072": lambda: dsm_loss(_t(128, 3072), _t(128, 3072), _t(128)),
    "loss, z again, f32, 128 x 3072": lambda: dsm_loss(_t(128, 3072), None, _t(128)),
    "loss, z again, bf16, 128 x 3072": lambda: dsm_loss(_t(128, 3072, dtype=_BF16), None, _t(128)),
    "loss, odd rows, f32, 128 x 785": lambda: dsm_loss(_t(128, 785), _t(128, 785), _t(128)),
}
