"""`make evidence-quick`: every claim runs and says something, and nothing outside its folder changes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from experiments import drift
from experiments.lab import page
from experiments.lab.claim import main

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_quick_version_of_everything(tmp_path: Path) -> None:
    before = page.PAGE.read_bytes()
    done = subprocess.run(
        [sys.executable, "-m", "experiments.evidence", "--quick", "--out", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("\n## ") + done.stdout.startswith("## ") == len(page.CLAIMS)
    assert sorted(p.stem for p in (tmp_path / "quick").glob("*.csv")) == sorted(page.CLAIMS)
    assert list((tmp_path / "quick").glob("*.png"))
    assert page.PAGE.read_bytes() == before


def test_wrong_arguments_are_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["drift", "--jobs", "0"])
    assert main(drift.CLAIM, drift.__doc__) == 2
    assert "--jobs: got 0" in capsys.readouterr().err
