"""The experiment runs from the command line, and its methods are compared on equal terms."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from experiments import inverse_problems

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_command_writes_rows_tables_and_a_picture(tmp_path: Path) -> None:
    out = tmp_path / "results" / "rows.csv"
    done = subprocess.run(
        [
            sys.executable, "-m", "experiments.inverse_problems", "--steps", "5", "--width", "16", "--rhos", "0", "0.5",
            "--seeds", "1",
            "--problems", "half", "downsample", "--sigmas", "0.1", "--images", "3", "--samples", "2", "--levels", "3",
            "--threads", "1", "--runs", str(tmp_path / "runs"), "--out", str(out),
        ],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with out.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(r["rho"], r["problem"], r["method"]) for r in rows] == [
        (rho, problem, method)
        for rho in ("0", "0.5")
        for problem in ("half", "downsample")
        for method in inverse_problems.METHODS
    ]
    for row in rows:
        assert row["evaluations"] == ("0" if row["method"] == "no network" else "5")
        assert float(row["psnr_mean"]) > float(row["psnr_sample"]), "the mean is nearer than a sample"
        assert float(row["spread"]) > 0
        assert float(row["residual"]) > 0
    lines = done.stdout.splitlines()
    assert "| noise | covariance | half, 0.1 | downsample, 0.1 | mean |" in lines
    assert sum("adapted less isotropic:" in line for line in lines) == 1
    for problem in ("half", "downsample"):
        with Image.open(tmp_path / "results" / f"rows_{problem}.png") as image:
            assert min(image.size) > 100


def test_figures_of_draws_of_the_posterior_are_one() -> None:
    """Truth and samples drawn alike given y: spread and residual are 1 to the accuracy of 300 images."""
    operator, sigma = inverse_problems.PROBLEMS["half"](), 0.3
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 9, 1, 8, 8, generator=generator)
    y = operator(x[:, 0]) + sigma * torch.randn(300, 32, generator=generator)
    # Unit Gaussian data: given y, known pixels are N(y / (1 + sigma^2), sigma^2 / (1 + sigma^2)).
    known = operator.adjoint(torch.ones(1, 32))
    mean, spread = operator.adjoint(y) / (1 + sigma**2), 1 - known + known * sigma / (1 + sigma**2) ** 0.5
    drawn = mean.unsqueeze(1) + spread * x[:, 1:]
    found = inverse_problems.figures_of(x[:, 0], drawn, operator, y, sigma)
    # 300 x 32 independent values: rms within five times 1 / sqrt(2 n), about 0.04.
    assert found["spread"] == pytest.approx(1.0, abs=0.04)
    assert found["residual"] == pytest.approx(1.0, abs=0.04)
    assert found["psnr_mean"] > found["psnr_sample"]
    overconfident = inverse_problems.figures_of(
        x[:, 0], mean.unsqueeze(1) + 0.5 * spread * x[:, 1:], operator, y, sigma
    )
    assert overconfident["spread"] > 1.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rhos", "2"], "--rhos: got (2.0,), expected numbers in [0, 1]"),
        (["--sigmas", "0"], "--sigmas: got (0.0,), expected one or more, each > 0"),
        (["--samples", "1"], "--samples: got 1, expected at least 2"),
        (["--levels", "1"], "--levels: got 1, expected at least 2"),
    ],
)
def test_wrong_settings_are_one_line_and_exit_code_2(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out: list[Any] = ["--out", str(tmp_path / "rows.csv"), "--runs", str(tmp_path / "runs")]
    monkeypatch.setattr(sys, "argv", ["inverse_problems", *arguments, *out])
    assert inverse_problems.main() == 2
    assert capsys.readouterr().err == f"inverse_problems: error: {message}\n"
    assert list(tmp_path.iterdir()) == []
