"""One table of numerical tolerances: how far a back end may be from the float64 reference, by operation and dtype.

Errors are RMS ratios, ``rms(out - oracle) / rms(oracle)``, unless a test says otherwise. Half precision rounds its
inputs too, so its
figures are a few units in the last place of the storage format.
"""

from __future__ import annotations

import torch
from torch import Tensor

RATIO: dict[str, dict[torch.dtype, float]] = {
    "colored_step": {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4},
    "apply_factor": {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 8e-3, torch.float16: 1e-3},
    "covariance_update_": {torch.float64: 1e-12, torch.float32: 1e-5},
    "cholesky": {torch.float64: 1e-12, torch.float32: 1e-5},
    "dsm_loss": {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3},
    "separable_apply": {torch.float64: 1e-13, torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4},
    "separable_step": {torch.float64: 1e-13, torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4},
    "separable_update_": {torch.float64: 1e-13, torch.float32: 1e-6},
    "mixture": {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 4e-3, torch.float16: 5e-4},
}

NORMALS = 1e-5
"""Largest absolute difference of a normal from the float64 formula (math section 7)."""

EXACT = 1e-12
"""Relative, for identities in float64."""

BATCH_INVARIANCE = 1e-4
"""Largest absolute difference of a sample in [0, 1] between batch sizes: a network rounds differently in another
batch."""


def rms_ratio(value: Tensor, oracle: Tensor) -> float:
    """``rms(value - oracle) / rms(oracle)`` in float64; infinite when value holds a NaN."""
    difference = value.double() - oracle.double()
    if not bool(torch.isfinite(difference).all()):
        return float("inf")
    scale = float(oracle.double().square().mean().sqrt()) if oracle.numel() else 1.0
    return float(difference.square().mean().sqrt()) / max(scale, 1e-30) if oracle.numel() else 0.0
