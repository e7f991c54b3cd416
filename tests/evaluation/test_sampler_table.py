"""The sampler table runs from the command line and pairs its samplers."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "experiments" / "sampler_table.py"


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)],
        capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=300,
    )  # fmt: skip


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


def test_wrong_settings_are_told_in_one_line() -> None:
    for option, wrong in (("--methods", "ddim"), ("--samples", "7"), ("--evaluations", "0")):
        done = run(option, wrong)
        assert done.returncode == 2
        assert done.stderr.startswith(f"sampler_table: error: {option}: got "), done.stderr
        assert wrong in done.stderr
        assert done.stderr.count("\n") == 1
