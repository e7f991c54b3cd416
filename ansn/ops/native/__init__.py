"""The C++ back end: passes addresses and strides to ``ansn._native`` and says what it cannot run.

Addresses are read here only, inside the registered implementations. If the module was not built, every
operation says so when ``native`` is asked for, and ``auto`` goes on with ``reference``.
"""

from ansn.ops.native import apply_factor as _apply_factor  # noqa: F401 - each offers its kernel to the dispatcher
from ansn.ops.native import cholesky as _cholesky  # noqa: F401
from ansn.ops.native import colored_step as _colored_step  # noqa: F401
from ansn.ops.native import covariance_update as _covariance_update  # noqa: F401
from ansn.ops.native import dsm_loss as _dsm_loss  # noqa: F401
from ansn.ops.native import levels
from ansn.ops.native import separable as _separable  # noqa: F401
from ansn.ops.native._module import check_isa, missing, module

__all__ = ["check_isa", "levels", "missing", "module"]
