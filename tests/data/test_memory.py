"""Memory that loading a file takes, at its peak, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

resource = pytest.importorskip("resource")

# The first file, a small one of the same kind, brings in what is imported late.
MEASURE = """
import resource, sys
from ansn.data import load_dataset
peaks = []
for path in sys.argv[1:]:
    data = load_dataset(path)
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print(data.kind, (peaks[1] - peaks[0]) * (1 if sys.platform == "darwin" else 1024))
"""
CONSTANT = 48 << 20  # pieces of the file, and of float64 while they are converted


def peak(tmp_path: Path, rows: np.ndarray) -> tuple[str, int]:
    """Kind of the data, and bytes at the peak above what the process takes anyway."""
    np.save(tmp_path / "few.npy", rows[:32])
    np.save(tmp_path / "all.npy", rows)
    run = [sys.executable, "-W", "ignore", "-c", MEASURE, str(tmp_path / "few.npy"), str(tmp_path / "all.npy")]
    kind, used = subprocess.run(run, check=True, capture_output=True, text=True).stdout.split()
    return kind, int(used)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "dtype", "shape", "times"),
    [
        ("field", "f2", (1024, 128, 128), 3),
        ("field", "f4", (1024, 128, 128), 2),
        ("image", "f2", (1024, 128, 128), 3),
        ("image", "u1", (4096, 3, 64, 64), 2),
    ],
)
def test_loading_takes_a_few_times_the_file(
    tmp_path: Path, kind: str, dtype: str, shape: tuple[int, ...], times: int
) -> None:
    values = np.random.default_rng(0).random(shape, np.float32)
    rows = (values * 255 if dtype == "u1" else values + 300 * (kind == "field")).astype(dtype)
    found, used = peak(tmp_path, rows)
    assert found == kind
    assert used < times * rows.nbytes + CONSTANT, f"{(used - CONSTANT) / rows.nbytes:.2f} times, and the constant"
