"""The commands of docs/data.md run as they stand, and its options are the commands' own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ansn.config import DataConfig

PAGE = (Path(__file__).parents[1] / "docs" / "data.md").read_text()
COMMANDS = ("train", "info", "sample", "score", "impute", "evaluate")


def test_its_table_of_options_has_all_that_say_what_data_is():
    named = set(re.findall(r"--([a-z-]+)", PAGE))
    options = {name.replace("_", "-") for name in DataConfig.__dataclass_fields__}
    assert options - {"dataset", "data", "dequantise", "flip"} <= named


@pytest.mark.slow
def test_its_commands_run_as_they_stand(tmp_path: Path):
    (program,) = re.findall(r"^```sh\n(.*?)^```", PAGE, re.S | re.M)
    # Functions of these names: the commands need not be on the path.
    functions = [f'ansn-{name}() {{ "{sys.executable}" -m ansn.cli.{name} "$@"; }}' for name in COMMANDS]
    functions.append(f'python() {{ "{sys.executable}" "$@"; }}')
    text = "\n".join(["set -e", *functions, program])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ANSN_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        ["bash", "-c", text], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    made, filled = ((tmp_path / name).read_text().splitlines() for name in ("made.csv", "filled.csv"))
    assert made[0] == filled[0] == "age,city,visits"
    assert len(made) == 1001
    assert all(len(line.split(",")) == 3 and line.split(",")[2].isdigit() for line in filled[1:])
    assert len((tmp_path / "scores.csv").read_text().splitlines()) == 1001
    assert (tmp_path / "runs" / "patients" / "quick" / "report.html").exists()
    assert (tmp_path / "made.npy").exists()
