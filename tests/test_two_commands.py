"""The two commands on a fresh clone, with no .venv and nothing else done before: `make train`, then `make test`."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
@pytest.mark.skipif(
    not (ROOT / ".git").exists() or not shutil.which("git") or not shutil.which("make"),
    reason="needs git, make and a git checkout to clone",
)
def test_a_fresh_clone_trains_and_tests(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
    # As a user's shell: nothing of this test run's environment but what finds programs and packages.
    ours = ("PYTEST", "ANSN", "VIRTUAL", "PYTHON")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(ours)}

    def make(*words: str) -> float:
        begun = time.perf_counter()
        done = subprocess.run(
            ["make", *words], cwd=clone, env=environment, capture_output=True, text=True, timeout=1500
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return time.perf_counter() - begun

    first = make("train")
    run = clone / "runs" / "digits"
    for name in ("samples.png", "covariance.png", "loss.png", "metrics.jsonl", "config.json"):
        assert (run / name).stat().st_size > 0
    assert (run / "checkpoints" / "step-00002000").is_dir()
    # The whole of the fast tests would clone within a clone: a part shows that the command works.
    make("test", "TESTS=tests/test_levels.py tests/ops")
    installed = (clone / ".venv" / ".installed").stat().st_mtime_ns
    again = make("train")  # finds the finished run and the environment
    assert (clone / ".venv" / ".installed").stat().st_mtime_ns == installed
    assert again < first
