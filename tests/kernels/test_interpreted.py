"""The Triton kernels without a GPU: ``tests/kernels/interpreted`` in a process that has Triton's interpreter.

TRITON_INTERPRET decides when a kernel is decorated, so a process either interprets or compiles; this one compiles.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = Path(__file__).parent / "interpreted"
FILES = sorted(FOLDER.glob("test_*.py"))


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="the package triton is not there")
def test_they_pass_under_the_interpreter():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *map(str, FILES)]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.fail(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}", pytrace=False)
    assert "skipped" not in done.stdout, done.stdout
    assert " passed" in done.stdout
