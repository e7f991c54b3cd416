"""The data of a run, as its settings name it."""

from __future__ import annotations

import dataclasses
import os
import warnings
from pathlib import Path
from typing import Any

from ansn import schema
from ansn.config import TrainConfig, from_dict
from ansn.data import NAMES, Dataset, load_dataset
from ansn.data.scientific import split_variable
from ansn.errors import InputError
from ansn.training import checkpoint


def load(config: TrainConfig, split: str = "train", *, root: str | None = None, flip: bool | None = None) -> Dataset:
    """The data set of a run; ``root``, ``flip``: in place of the settings' own. InputError where it cannot be read."""
    data = config.data
    if data.dataset == "PATH":
        raise InputError("--dataset: got none, expected the path of your data")
    point: dict[str, bool | str] = {"yes": True, "no": False, "point": "point"}
    path = data.dataset
    if root is not None and path not in NAMES and Path(root, split_variable(path)[0]).exists():
        path = os.path.join(root, path)  # an exported run has the name of its file alone
    found = load_dataset(
        path, root=root or data.data, split=split, dequantise=data.dequantise or None,
        flip=(data.flip if flip is None else flip) or None,
        test_fraction="auto" if data.test_fraction is None else data.test_fraction,
        kind=data.kind, axes=data.axes, window=data.window,
        standardise=None if data.standardise is None else point[data.standardise],  # type: ignore[arg-type]
        label_column=data.label_column, ignore_columns=data.ignore_columns or None,
        column_kinds=dict(map(_pair, data.column_kinds)) or None, header=data.header,
        image_size=data.image_size, channels=data.channels,
        split_folders={s: f for s, f in map(_pair, data.split_folders)} or None,
    )  # fmt: skip
    if data.label_column is not None and not config.network.class_conditional:
        warnings.warn(
            f"{found.name}: the model does not know the column {data.label_column!r}, which samples will lack;"
            " --class-conditional, or no --label-column, which makes it a column like the others",
            stacklevel=2,
        )
    return found


def same_share(config: TrainConfig) -> TrainConfig:
    """The settings with the share of held-out rows of the run that is gone on with, where none is given."""
    if not config.run.resume or config.data.test_fraction is not None or not checkpoint.steps(Path(config.run.out)):
        return config
    try:
        stored = schema.read(Path(config.run.out) / "config.json", dict[str, dict[str, Any]])
        fraction = from_dict({"data": {"test_fraction": 0.0} | stored["data"]}).data.test_fraction
    except (OSError, ValueError, KeyError):
        return config
    return dataclasses.replace(config, data=dataclasses.replace(config.data, test_fraction=fraction))


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.rpartition("=")
    if not (name and equals and value):
        raise InputError(f"{text}: got no NAME=VALUE, expected one")
    return name, value
