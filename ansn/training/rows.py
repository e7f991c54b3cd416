"""Rows of a file in the units of a run's data: to score, to fill or to measure."""

from __future__ import annotations

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


def read_rows(run: Run, path: Path) -> tuple[Tensor, Tensor | None]:
    """Rows of a file in the run's units, float64 ``[N, columns]`` or ``[N, *shape]``, NaN where a number is missing,
    and labels int64 ``[N]`` (-1: none) where a table has them.

    A table's may be any table with its columns; else .npy, of images floats in [0, 1] or integers: up to the training
    data's largest grey value, or to 255. InputError for what does not fit the run.
    """
    units, shape = run.units, run.info.shape
    if isinstance(units, Table):
        shape = (len(units.columns),)
        if cells.is_table(path):
            return table.read_rows(path, units, run.info.classes)
    wanted = f"[n, {', '.join(map(str, shape))}]"
    if not path.name.endswith((".npy", ".npy.gz", ".npy.xz")):
        expected = "a table or .npy" if isinstance(units, Table) else ".npy"
        raise InputError(f"{path}: got {path.suffix or 'no ending'} for a run of {run.info.kind}s, expected {expected}")
    with opened(path) as stream:
        found = read_npy(stream, path)
    if isinstance(units, Table) and found.ndim == 2 and found.shape[1] > len(units.columns):
        places = [int(name[1:]) for name in units.names if name[:1] == "x" and name[1:].isdecimal()]
        if len(places) == len(units.columns) and max(places) < found.shape[1]:
            found = found[:, places]  # columns of the training array that were left out
    if run.info.kind == "image" and found.ndim == 4 and found.shape[1:] == (*shape[1:], shape[0]) != shape:
        found = np.moveaxis(found, -1, 1)
    if shape[0] == 1 and found.shape[1:] == shape[1:]:
        found = found[:, None]
    if found.shape[1:] != tuple(shape) or not len(found):
        raise InputError(f"{path}: got {found.dtype} {list(found.shape)}, expected {wanted}")
    values = torch.from_numpy(np.ascontiguousarray(found, dtype=np.float64))
    if run.info.kind == "image" and found.dtype.kind in "bui":
        levels = run.info.levels or 256
        values = values / (levels - 1 if float(values.max()) < levels else 255)
    return values, None
