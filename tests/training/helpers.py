"""Small runs, and what two runs must have in common to be the same run."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ansn import levels
from ansn.config import TrainConfig, to_dict
from ansn.covariance import Choice
from ansn.presets import PRESETS
from ansn.training import Run, checkpoint, data, train
from ansn.training.build import DataInfo
from ansn.training.trainer import Trainer

SMALL: dict[str, Any] = {
    "width": 16, "blocks": 1, "batch_size": 32, "steps": 40, "warmup": 10, "log_every": 5, "checkpoint_every": 10,
    "device": "cpu", "samples": 4, "sample_steps": 3,
}  # fmt: skip
TIMES = ("seconds", "samples_per_s")


def change(config: TrainConfig, **settings: Any) -> TrainConfig:
    """The config with settings replaced by name, whatever group each is in."""
    for name, value in settings.items():
        group = group_of(name)
        part = dataclasses.replace(getattr(config, group), **{name: value})
        config = dataclasses.replace(config, **{group: part})
    return config


def group_of(name: str) -> str:
    """The group of TrainConfig that holds a setting."""
    groups = [
        g.name for g in dataclasses.fields(TrainConfig) if name in {f.name for f in dataclasses.fields(_type(g.name))}
    ]
    assert len(groups) == 1, f"{name} is in {groups}"
    return groups[0]


def _type(group: str) -> Any:
    return type(getattr(TrainConfig(), group))


def small(out: Path, preset: str = "digits", **settings: Any) -> TrainConfig:
    """A run of a second at most; regions are found only where a skip is asked for, or None for the default."""
    config = change(PRESETS[preset][1], **(SMALL | {"out": str(out)} | settings))
    plain = "skip" not in settings and config.noise.rho is None and config.noise.gamma is None
    return change(config, rho=0.5) if plain else config


def trainer(config: TrainConfig) -> Trainer:
    """One process's trainer, built as :func:`ansn.training.train` builds it."""
    return Trainer(config, data.load(config), 0, 1, torch.device("cpu"))


def tensors(run: Path, step: int | None = None) -> dict[str, Tensor]:
    """Everything that a checkpoint holds, under one name each."""
    groups, _ = checkpoint.load(run, step)
    return {f"{group}/{name}": value for group, values in groups.items() for name, value in values.items()}


def state() -> dict[str, Any]:
    """What a checkpoint must say beside its tensors."""
    info = DataInfo("x", "image", (1, 2, 2), 0.0, None, 4, (), (), None, "", ())
    ladder = levels.geometric(1.0, 0.1, n=3)
    return {
        "config": to_dict(TrainConfig()), "data": dataclasses.asdict(info), "levels": dataclasses.asdict(ladder),
        "structure": dataclasses.asdict(Choice("dense")),
    }  # fmt: skip


def seal(folder: Path) -> None:
    """Checksums of a checkpoint as it is now: what was done to it is then no damage of a disk."""
    files = [p for p in sorted(folder.iterdir()) if p.name != "SHA256SUMS"]
    lines = (f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.name}\n" for p in files)
    (folder / "SHA256SUMS").write_text("".join(lines))


def metrics(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what a clock says."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMES} for line in lines]


def assert_same_tensors(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    """Bit for bit, NaN included."""
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype, name
        assert torch.equal(a[name], b[name]), f"{name} differs by {float((a[name] - b[name]).abs().max())}"


def assert_same_run(a: Path, b: Path) -> None:
    """The newest checkpoints agree bit for bit: step, weights, average, covariance, optimiser, levels, data."""
    assert_same_tensors(tensors(a), tensors(b))
    first, second = (checkpoint.load(run)[1] for run in (a, b))
    # What may differ: settings of the run, and what the next line of the log is the mean of.
    assert dataclasses.replace(first, config=second.config, running=second.running) == second


def weights(run: Run) -> dict[str, Tensor]:
    return dict(run.model.network.state_dict())


def trained(out: Path, **settings: Any) -> Path:
    """A finished small run."""
    return train(small(out, **settings))
