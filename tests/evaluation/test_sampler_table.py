"""The sampler table runs from the command line and pairs its samplers."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import ansn
from ansn.errors import InputError
from ansn.evaluation import PixelFeatures, frechet_distance
from experiments import sampler_table

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the classifier that gives the features."""
    monkeypatch.setenv("ANSN_CACHE", str(tmp_path / "cache"))


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "experiments.sampler_table", *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


@pytest.mark.slow
def test_command_writes_rows_and_a_table(tmp_path: Path) -> None:
    out = tmp_path / "results" / "rows.csv"
    done = run(
        "--run", tmp_path / "run", "--train-steps", "2", "--methods", "dpmpp_2m", "heun", "langevin", "--evaluations",
        "3", "60", "--langevin", "60", "--samples", "20", "--floor-n", "10", "--seeds", "0", "4", "--threads", "1",
        "--out", out,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with out.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(r["method"], r["seed"], r["evaluations"]) for r in rows] == [
        ("dpmpp_2m", "0", "3"), ("dpmpp_2m", "4", "3"), ("heun", "0", "3"), ("heun", "4", "3"),
        ("langevin", "0", rows[-1]["evaluations"]), ("langevin", "4", rows[-1]["evaluations"]),
    ]  # fmt: skip
    assert 3 < int(rows[-1]["evaluations"]) <= 60
    assert all(float(r["fd"]) > 0 and r["n"] == "10" and r["blocks"] == "2" for r in rows)
    lines = done.stdout.splitlines()
    assert sum(line.startswith("| dpmpp_2m, few_steps | ") for line in lines) == 2
    assert lines[-1].startswith("| langevin, ladder |")
    assert "1.00 +- 0.00" in lines[-1]


def test_the_floor_is_a_mean_over_all_held_out_images_in_a_drawn_order() -> None:
    """Files may be sorted: MNIST's first test images are the clean ones."""
    held_out = ansn.load_dataset("digits", split="test")
    space = PixelFeatures(held_out.shape)
    target = space(ansn.load_dataset("digits").batch(torch.arange(1347))[0])
    floors = sampler_table._floors(space, target, held_out, 200)
    order = held_out.order(0, 0)
    assert floors == [
        frechet_distance(space(held_out.batch(order[i : i + 200])[0]), target) for i in (0, 200)
    ]  # the last 50 of 450 make no block
    # All at once in any order: what the digits' table has.
    whole = frechet_distance(space(held_out.batch(torch.arange(450))[0]), target)
    assert sampler_table._floors(space, target, held_out, 450) == [pytest.approx(whole, rel=1e-9)]
    with pytest.raises(InputError, match=r"^--floor-n: got 451, expected at most the 450 held-out images$"):
        sampler_table._floors(space, target, held_out, 451)


@pytest.mark.parametrize(("option", "wrong"), [("--methods", "ddim"), ("--samples", "7"), ("--evaluations", "0")])
def test_wrong_settings_are_told_in_one_line(
    option: str, wrong: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["sampler_table", option, wrong])
    assert sampler_table.main() == 2
    told = capsys.readouterr().err
    assert told.startswith(f"sampler_table: error: {option}: got "), told
    assert wrong in told
    assert told.count("\n") == 1
