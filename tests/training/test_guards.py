"""A run that goes wrong stops with one line and keeps what was good."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ansn.training import Diverged, checkpoint, load_run
from ansn.training.progress import read_metrics
from ansn.training.trainer import Trainer
from tests.training.helpers import assert_same_run, tensors, trained


def poison(monkeypatch: pytest.MonkeyPatch, at: int, how: str) -> None:
    """The loss of step ``at`` (counted from 0) is no number, or only its gradient, or only the weights after it."""
    loss_of, step = Trainer._loss, Trainer._train_step
    now = {"step": -1}

    def train_step(self: Trainer, number: int, *batch: Any) -> Any:
        now["step"] = number
        out = step(self, number, *batch)
        if number == at and how == "weights":
            with torch.no_grad():
                next(self.bare.parameters()).mul_(math.inf)
        return out

    def loss(self: Trainer, *args: Any) -> Tensor:
        value = loss_of(self, *args)
        if now["step"] == at and how == "value":
            value = value * math.nan
        if now["step"] == at and how == "gradient":
            value = value + (0.0 * value).sqrt() * 0.0
        return value

    monkeypatch.setattr(Trainer, "_train_step", train_step)
    monkeypatch.setattr(Trainer, "_loss", loss)


# Step 19 is where the checkpoint of 20 would be written: a bad one must not take its place.
@pytest.mark.parametrize("at", [10, 14, 19])
@pytest.mark.parametrize("how", ["value", "gradient", "weights"])
def test_divergence_keeps_the_last_good_checkpoint(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int, how: str
) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        poison(patch, at, how)
        with pytest.raises(Diverged) as caught:
            trained(run)
    message = str(caught.value)
    assert "\n" not in message
    assert f"the checkpoint of step 10 was kept in {run}" in message
    assert "--lr" in message
    assert "--clip" in message
    assert load_run(run).step == 10
    assert all(bool(torch.isfinite(v).all()) for v in tensors(run).values())
    assert all(line["loss"] is not None for line in read_metrics(run / "metrics.jsonl"))
    trained(run)
    assert_same_run(whole, run)


def test_an_absurd_learning_rate_diverges_before_any_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(Diverged, match="no checkpoint was written"):
        trained(tmp_path, lr=1e30, warmup=0, clip=0.0)
    assert checkpoint.steps(tmp_path) == []
