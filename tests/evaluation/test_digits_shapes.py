"""The experiment runs from the command line, and its runs are paired."""

from __future__ import annotations

import csv
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import ansn

SCRIPT = Path(__file__).parents[2] / "experiments" / "digits_shapes.py"
TINY = ["--hidden", "16", "--blocks", "1", "--batch-size", "32", "--levels", "3", "--threads", "1"]


@pytest.fixture(scope="module")
def experiment() -> ModuleType:
    spec = importlib.util.spec_from_file_location("digits_shapes", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["digits_shapes"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_command_writes_rows_and_a_table(tmp_path: Path) -> None:
    out = tmp_path / "results" / "rows.csv"  # the folder is made
    done = subprocess.run(
        [
            sys.executable, str(SCRIPT), *TINY, "--rhos", "0", "0.5", "--gammas", "0.5", "--seeds", "0", "3",
            "--steps", "2", "5", "--samples", "460", "--out", str(out),
        ],
        capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with out.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(r["seed"], r["rho"], r["gamma"], r["step"]) for r in rows] == [
        (seed, rho, gamma, step)
        for seed in ("0", "3")
        for rho, gamma in (("0.0", ""), ("0.5", ""), ("", "0.5"))
        for step in ("2", "5")
    ]
    for row in rows:
        assert float(row["fd"]) > float(row["floor"]) > 0
        assert float(row["loss"]) > 0
        assert (row["n"], row["n_matched"], row["floor_n"]) == ("460", "450", "450")
        assert row["torch"] == torch.__version__
        assert row["cpu"]
        assert row["threads"] == "1"
        assert row["features"].startswith("digits-mlp-128-32 (test accuracy 0.9")
    assert len({row["floor"] for row in rows}) == 1
    lines = done.stdout.splitlines()
    assert lines[:2] == ["| noise | 2 steps | 5 steps |", "| --- | --- | --- |"]
    for line, (family, value) in zip(lines[2:5], (("rho", "0.0"), ("rho", "0.5"), ("gamma", "0.5")), strict=True):
        at = [float(r["fd"]) for r in rows if r[family] == value and r["step"] == "5"]
        assert line.startswith(f"| dense, {family} = {float(value):g} | ")
        assert line.endswith(f"| **{sum(at) / 2:.2f}** ({at[0]:.2f} / {at[1]:.2f}) |")
    assert f"Floor, 450 held-out images: {float(rows[0]['floor']):.2f}" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rhos", "0.5", "2"], "--rhos: got (0.5, 2.0), expected numbers in [0, 1]"),
        (["--rhos"], "--rhos, --gammas: got (), expected at least one shape"),
        (["--steps", "0", "5"], "--steps: got (0, 5), expected one or more, each at least 1"),
        (["--samples", "1"], "--samples: got 1, expected at least 2"),
        (["--hidden", "0"], "--hidden: got 0, expected at least 1"),
    ],
)
def test_wrong_settings_are_one_line_and_exit_code_2(
    experiment: ModuleType,
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments, "--out", str(tmp_path / "rows.csv")])
    assert experiment.main() == 2
    assert capsys.readouterr().err == f"digits_shapes: error: {message}\n"
    assert list(tmp_path.iterdir()) == []


def tiny(experiment: ModuleType, **changes: Any) -> Any:
    values: dict[str, Any] = {
        "hidden": 16, "blocks": 1, "batch_size": 32, "levels": 3, "samples": 6, "steps": (1, 4), "ema": 0.5,
    }  # fmt: skip
    return experiment.Settings(**values | changes)


def test_the_same_seed_gives_the_same_samples_and_another_seed_others(experiment: ModuleType) -> None:
    data = ansn.load_dataset("digits")

    def drawn(seed: int) -> torch.Tensor:
        results = list(experiment.train(tiny(experiment), data, seed, 6, structure="dense", rho=0.5))
        assert [r[0] for r in results] == [1, 4]
        assert 0 < results[0][2] < results[1][2]
        return torch.stack([r[3] for r in results])

    first = drawn(0)
    assert first.shape == (2, 6, 1, 8, 8)
    assert torch.equal(first, drawn(0))
    assert not torch.allclose(first, drawn(1), atol=0.05)


def test_shapes_that_are_the_same_give_the_same_run(experiment: ModuleType) -> None:
    """rho = 0 and gamma = 0, dense and diagonal, are all isotropic: pairing leaves no other difference."""
    data = ansn.load_dataset("digits")
    runs = [
        next(experiment.train(tiny(experiment, steps=(3,)), data, 0, 6, structure=structure, **family))
        for structure, family in (("dense", {"rho": 0.0}), ("dense", {"gamma": 0.0}), ("diagonal", {"rho": 0.0}))
    ]
    losses = [r[1] for r in runs]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)
    # The start of sampling is N(m, S + tau^2 R) in the structure's own S, so only the dense pair agrees to the end.
    assert torch.allclose(runs[0][3], runs[1][3], atol=1e-4)
    shaped = next(experiment.train(tiny(experiment, steps=(3,)), data, 0, 6, structure="dense", rho=1.0))
    assert shaped[1] != pytest.approx(losses[0], rel=1e-3)
    assert not torch.allclose(shaped[3], runs[0][3], atol=1e-2)


def test_settings_of_the_experiment_are_those_of_the_claim(experiment: ModuleType) -> None:
    chosen = experiment.Settings()
    assert chosen.rhos == (0.0, 0.5)
    assert chosen.seeds == (0, 1, 2)
    assert chosen.steps == (250, 500, 1000, 2000)
    assert chosen.out == SCRIPT.parent / "results" / "digits_shapes.csv"
