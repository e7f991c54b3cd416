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


def run(markers: str, *files: Path) -> str:
    """Output of pytest on ``files`` under the interpreter; fails with that output if any test did."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", markers, *map(str, files)]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.fail(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}", pytrace=False)
    return done.stdout


needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="the package triton is not there")


@needs_triton
def test_the_fast_ones():
    output = run("not slow", *FILES)
    assert "skipped" not in output, output
    assert " passed" in output


@needs_triton
@pytest.mark.slow
def test_the_slow_ones():
    run("slow", *FILES)
