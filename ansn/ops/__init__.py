"""The kernels' public face: each operation checks its arguments, then runs on the back end in force.

``reference`` is plain torch and the oracle, ``native`` the C++ module, ``triton`` GPU kernels; see :func:`backend`.
"""

from ansn.ops import native as _native  # noqa: F401 - offers its kernels to the dispatcher
from ansn.ops import triton as _triton  # noqa: F401 - offers its kernels, imports none of them
from ansn.ops._dispatch import BACKENDS, backend, current_backend, operations, registered
from ansn.ops.apply_factor import apply_factor
from ansn.ops.cholesky import cholesky
from ansn.ops.colored_step import colored_step, step_by
from ansn.ops.covariance_update import covariance_update_
from ansn.ops.dsm_loss import dsm_loss
from ansn.ops.levels import levels
from ansn.ops.reference import (
    CLEAN,
    DEQUANTISE,
    LABELS,
    LANGEVIN,
    LEVELS,
    MEASUREMENT,
    PERTURB,
    PRIOR,
    PROBES,
    REGIONS,
    REVERSE,
    apply_by,
    mixture_by,
)
from ansn.ops.separable import Axes, mixture, separable_apply, separable_step, separable_update_

__all__ = [
    "BACKENDS",
    "CLEAN",
    "DEQUANTISE",
    "LABELS",
    "LANGEVIN",
    "LEVELS",
    "MEASUREMENT",
    "PERTURB",
    "PRIOR",
    "PROBES",
    "REGIONS",
    "REVERSE",
    "Axes",
    "apply_by",
    "apply_factor",
    "backend",
    "cholesky",
    "colored_step",
    "covariance_update_",
    "current_backend",
    "dsm_loss",
    "levels",
    "mixture",
    "mixture_by",
    "operations",
    "registered",
    "separable_apply",
    "separable_step",
    "separable_update_",
    "step_by",
]
