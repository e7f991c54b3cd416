"""Samples from a file, as the model would make them."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ansn.data import cells, table
from ansn.data.arrays import read_npy
from ansn.data.files import opened
from ansn.data.units import Table
from ansn.errors import InputError
from ansn.training.runs import Run

_BEYOND, _SHARE = 0.1, 0.2  # grey values this far outside [0, 1], and their share from which the scale is another
_FAR = 10.0  # times the data's deviation


def read_samples(path: Path, run: Run, seed: int = 0) -> Tensor:
    """Samples float32 ``[n, *shape]`` of a file in the data's units: a table (see `ansn.data.table`), or a .npy, which
    may be uint8 for images. ``seed``: of the noise on what is discrete, as the data has it.

    InputError, naming --samples, for another shape, missing or unfit values, and images of another scale than [0, 1]; a
    warning for other numbers that are far from the data's.
    """
    units = run.units
    if isinstance(units, Table) and path.name.lower().removesuffix(".gz").removesuffix(".xz").endswith(cells.SUFFIXES):
        values, _ = table.read_rows(path, units)
        if bool(values.isnan().any()):
            raise InputError(f"--samples: got missing cells in {path}, expected whole rows; ansn-impute fills them")
    else:
        values = _array(path, (len(units.columns),) if isinstance(units, Table) else run.info.shape, run.info.kind)
    if run.info.kind == "image":
        share = float(((values < -_BEYOND) | (values > 1 + _BEYOND)).double().mean())
        if share > _SHARE:
            low, high = float(values.min()), float(values.max())
            got = f"{path} with values from {low:.4g} to {high:.4g}"
            raise InputError(f"--samples: got {got}, expected grey values in [0, 1], or uint8")
    x = values.float() if units is None else units.encode(values, seed)
    size = float(x.nan_to_num().square().mean().sqrt())
    if run.info.kind != "image" and size > _FAR:
        warnings.warn(f"{path}: is {size:.3g} deviations of the data from its mean: other units?", stacklevel=2)
    return x


def _array(path: Path, shape: tuple[int, ...], kind: str) -> Tensor:
    wanted = f"float [n, {', '.join(map(str, shape))}]" + (" or uint8" if kind == "image" else "")
    try:
        with opened(path) as stream:
            values = read_npy(stream, path)
    except InputError as error:
        raise InputError(f"--samples: got no .npy file of numbers ({error}), expected {wanted}") from None
    bytes_ = values.dtype == np.uint8 and kind == "image"
    if not (bytes_ or values.dtype.kind == "f") or values.shape[1:] != tuple(shape):
        raise InputError(f"--samples: got {values.dtype} {list(values.shape)} in {path}, expected {wanted}")
    return torch.from_numpy(values.astype(np.float64)) / (255 if bytes_ else 1)
