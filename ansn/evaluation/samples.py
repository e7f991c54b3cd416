"""Samples from a file, as the model would make them."""

from __future__ import annotations

import warnings
from pathlib import Path

from torch import Tensor

from ansn.data.units import Table
from ansn.errors import InputError
from ansn.training.rows import read_rows
from ansn.training.runs import Run

_OPTION = "--samples"
_BEYOND, _SHARE = 0.1, 0.2  # grey values this far outside [0, 1], and their share from which the scale is another
_FAR = 10.0  # times the data's deviation


def read_samples(path: Path, run: Run, seed: int = 0) -> Tensor:
    """Samples float32 ``[n, *shape]`` of a file in the data's units, as :func:`ansn.training.rows.read_rows` takes it.
    ``seed``: of the noise on what is discrete, as the data has it.

    InputError, naming --samples, for another shape, missing cells, and images of another scale than [0, 1]; a warning
    for other numbers that are far from the data's.
    """
    try:
        values, _ = read_rows(run, path)
    except InputError as error:
        raise InputError(f"{_OPTION}: {error}") from None
    if isinstance(run.units, Table) and bool(values.isnan().any()):
        raise InputError(f"--samples: got missing cells in {path}, expected whole rows; ansn-impute fills them")
    if run.info.kind == "image":
        share = float(((values < -_BEYOND) | (values > 1 + _BEYOND)).double().mean())
        if share > _SHARE:
            got = f"{path} with values from {float(values.min()):.4g} to {float(values.max()):.4g}"
            raise InputError(f"--samples: got {got}, expected grey values in [0, 1], or uint8")
    x = values.float() if run.units is None else run.units.encode(values, seed)
    size = float(x.nan_to_num().square().mean().sqrt())
    if run.info.kind != "image" and size > _FAR:
        warnings.warn(f"{path}: is {size:.3g} deviations of the data from its mean: other units?", stacklevel=2)
    return x
