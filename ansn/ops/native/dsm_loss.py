"""The denoising score matching loss and its gradient in C++."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ansn.ops import _dispatch
from ansn.ops._operands import contiguous
from ansn.ops.native._module import DTYPE, address, module, placed, why_not_cpu


def _why_not_loss(prediction: Tensor, target: Tensor | None, *_: Any) -> str | None:
    if prediction.dtype == torch.float64:
        return "float64 is the reference's, whose normals have float64 precision"
    if target is not None and target.dtype != prediction.dtype:
        return f"target is {target.dtype} and prediction {prediction.dtype}, expected one dtype"
    return why_not_cpu(prediction, "prediction")


def _dsm_loss(
    prediction: Tensor, target: Tensor | None, weight: float | Tensor, seed: int, row: int, step: int, stream: int
) -> tuple[Tensor, Tensor]:
    prediction, target = prediction.contiguous(), contiguous(target)
    held: list[Tensor] = []
    place, weight_stride = placed(weight.float() if isinstance(weight, Tensor) else weight, held)
    rows, cols = prediction.shape
    gradient = torch.empty_like(prediction)
    loss = prediction.new_empty((rows,), dtype=torch.float32) if cols else torch.zeros(rows)
    module.dsm_loss(
        DTYPE[prediction.dtype], prediction.data_ptr(), address(target), gradient.data_ptr(), loss.data_ptr(),
        rows, cols, place, weight_stride, seed, row, step, stream, torch.get_num_threads(),
    )  # fmt: skip
    return loss, gradient


_dispatch.register("dsm_loss", "native", _dsm_loss, _why_not_loss)
