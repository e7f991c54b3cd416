"""The programs of docs/guides/own-loop.md run as they stand: in one process, and the same in two."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

PAGE = (Path(__file__).parents[1] / "docs" / "guides" / "own-loop.md").read_text()
PROGRAMS = dict(re.findall(r"^## (\S+).*?```python\n(.*?)```", PAGE, re.S | re.M))
ROWS = re.search(r"```python\n(.*?)```", PAGE, re.S)[1]
PACKAGE = {"torch,": "torch", "accelerate": "accelerate", "Lightning": "lightning"}
SAVED = """
state = {"network": model.network.state_dict(), "noise": noise.state_dict(), "images": images}
state["seen"] = noise.covariance.seen
torch.save(state, f"{os.environ['OUT']}/{os.environ.get('RANK', '0')}.pt")
"""


def run(name: str, folder: Path, processes: int) -> list[dict]:
    pytest.importorskip(PACKAGE[name])
    program = folder / "program.py"
    program.write_text(f"import os\nimport torch\n{ROWS}\n{PROGRAMS[name]}\n{SAVED}")
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(launch if processes > 1 else []), str(program)]
    environment = {"OUT": str(folder), "OMP_NUM_THREADS": "1", "PATH": "", "HOME": str(folder)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"{rank}.pt") for rank in range(processes)]


def test_a_loop_is_a_page_s_length():
    assert set(PROGRAMS) == set(PACKAGE)
    assert all(program.count("\n") <= 30 for program in PROGRAMS.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", PACKAGE)
def test_a_loop_in_one_process(name: str, tmp_path: Path):
    (state,) = run(name, tmp_path, 1)
    assert state["seen"] == 2 * 1347
    assert state["images"].shape == (8, 1, 8, 8)
    assert 0.1 < float(state["images"].std()) < 0.6


@pytest.mark.slow
@pytest.mark.parametrize("name", PACKAGE)
def test_a_loop_in_two_processes(name: str, tmp_path: Path):
    """Both have one network and one covariance, of all rows; samplers repeat some, so that each gets as many."""
    one, other = run(name, tmp_path, 2)
    assert one["seen"] in (2 * 1348, 2 * 11 * 128), "as many rows for each, or full batches"
    for part in ("network", "noise"):
        for key, value in one[part].items():
            assert torch.equal(other[part][key], value), key
    assert torch.equal(one["images"], other["images"])
