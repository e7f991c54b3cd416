"""The commands under attack: a small selection, and in the slow set all of it, as ``make attack``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def attack(*arguments: str, seconds: float) -> None:
    """In a process of its own: forks want one in which torch has not worked yet."""
    command = [sys.executable, "-m", "tests.attack", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds, check=False)
    assert not done.returncode, done.stdout + done.stderr


def test_a_few_attacks() -> None:
    attack("--quick", seconds=240)


@pytest.mark.slow
def test_all_attacks() -> None:
    attack(seconds=900)
