"""A structure that nobody has heard of, registered by one line, goes through every command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ansn import figures, load_run
from ansn.covariance import STRUCTURES, AdaptiveCovariance
from tests.cli.helpers import call, succeeded
from tests.covariance.exact import Rotated
from tests.training.helpers import assert_same_run, trained

pytestmark = pytest.mark.usefixtures("registered")


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STRUCTURES, Rotated.name, Rotated)


def test_training_resuming_sampling_evaluating_and_telling(tmp_path: Path) -> None:
    settings = {"structure": "rotated", "steps": 40, "freeze_after": 900}
    whole = trained(tmp_path / "whole", **settings)
    trained(tmp_path / "parts", **(settings | {"steps": 17}))
    assert_same_run(whole, trained(tmp_path / "parts", **settings))
    assert isinstance(load_run(whole).model.noise.covariance.structure, Rotated)

    out = tmp_path / "x.npy"
    succeeded(call("sample", whole, "-n", 6, "--out", out, "--batch-size", 4, "--steps", 3))
    assert np.load(out).shape == (6, 1, 8, 8)
    succeeded(call("evaluate", whole, "--quick", "-n", 60, "--steps", 3, "--features", "pixels", "--halves", 2))
    assert json.loads((whole / "quick" / "evaluation.json").read_text())["measurements"]
    assert "rotated" in (whole / "quick" / "report.html").read_text()
    assert "rotated, rho = 0.5" in succeeded(call("info", whole)).out
    figures.save_covariance(load_run(whole).model.noise.covariance, tmp_path / "covariance.png")


def test_auto_considers_it(tmp_path: Path) -> None:
    run = load_run(trained(tmp_path / "run", structure="auto", steps=2))
    assert "rotated" in run.structure.scores
    assert "rotated" in succeeded(call("info", tmp_path / "run")).out


def test_a_class_needs_no_registry() -> None:
    covariance = AdaptiveCovariance((2, 2), structure=Rotated).update(torch.randn(40, 2, 2))
    assert covariance.structure.name == "rotated"
