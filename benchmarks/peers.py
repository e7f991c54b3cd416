"""What other libraries do in place of an operation: SciPy's BLAS, and JAX where it is installed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.linalg import blas
from torch import Tensor

Call = Callable[[], object]


def jax(function: Callable[..., Any], *arguments: Tensor, carried: bool = True) -> dict[str, Call]:
    """``function(jax, *arguments)`` compiled, or nothing where JAX is not installed. ``carried``: the first argument
    becomes what it returns, in its place in memory. JAX has as many threads as there are cores."""
    try:
        import jax
    except ImportError:
        return {}
    step = jax.jit(lambda *held: function(jax, *held), donate_argnums=0 if carried else ())
    held = [jax.numpy.array(tensor.numpy()) for tensor in arguments]

    def call() -> None:
        out = jax.block_until_ready(step(*held))
        if carried:
            held[0] = out

    return {"JAX": call}


def update(mean: np.ndarray, scatter: np.ndarray, x: np.ndarray, count: float) -> None:
    """The running covariance, its lower triangle in place, by ``syrk``."""
    b, wide = len(x), x.astype(mean.dtype, copy=False)
    batch = wide.mean(0)
    delta = batch - mean
    rows = np.concatenate((wide - batch, ((count * b / (count + b)) ** 0.5 * delta)[None]))
    syrk = blas.ssyrk if mean.dtype == np.float32 else blas.dsyrk
    # Transposed, a C-ordered lower triangle is Fortran's upper one.
    syrk(1.0, rows.T, beta=1.0, c=scatter.T, lower=0, overwrite_c=1)
    mean += b / (count + b) * delta


def product(factor: np.ndarray, v: np.ndarray) -> np.ndarray:
    """``L v`` of each row of float32 ``v`` by ``strmm``."""
    return blas.strmm(1.0, factor.T, v.T, lower=0, trans_a=1).T
