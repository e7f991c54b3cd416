from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.cli.helpers import TINY, Outcome, call, start, succeeded


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    """The commands are told `--threads 1`, which stays set in this process."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome, Outcome]:
    """`ansn-train toy2d`, 30 steps in a process of its own and rerun to 60, and what the two told."""
    folder = tmp_path_factory.mktemp("toy") / "new" / "run"
    options = ("train", "toy2d", *TINY, "--out", folder, "--samples", 50, "--steps")
    first, second = succeeded(start(*options, 30)), succeeded(call(*options, 60))
    return folder, first, second


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`ansn-train` without a preset, 20 steps."""
    folder = tmp_path_factory.mktemp("digits")
    succeeded(call("train", *TINY, "--steps", 20, "--samples", 9, "--out", folder))
    return folder


@pytest.fixture(scope="session")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits with a covariance for each class."""
    folder = tmp_path_factory.mktemp("classes")
    options = ("--regions", "labels", "--class-conditional", "--steps", 20, "--samples", 0)
    succeeded(call("train", "digits", *TINY, *options, "--out", folder))
    return folder


@pytest.fixture(scope="session")
def regions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits with three regions that are found, each with noise of its own."""
    folder = tmp_path_factory.mktemp("regions")
    options = ("--regions", 3, "--structure", "cosine", "--steps", 20, "--samples", 0)
    succeeded(call("train", "digits", *TINY, *options, "--out", folder))
    return folder


@pytest.fixture(scope="session")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits whose denoiser begins as that of a mixture of the classes, which the network sees."""
    folder = tmp_path_factory.mktemp("mixture")
    options = ("--regions", "labels", "--skip", "mixture", "--inputs", "estimate", "--steps", 20, "--samples", 0)
    succeeded(call("train", "digits", *TINY, *options, "--out", folder))
    return folder


@pytest.fixture(scope="session")
def table(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """A run on a CSV of two columns of very different units and a label; and the two columns."""
    folder = tmp_path_factory.mktemp("table")
    rng = np.random.default_rng(0)
    values = rng.normal(size=(400, 2)) @ np.array([[5.0, 0.008], [0.0, 0.006]]) + np.array([100.0, -3.0])
    rows = [f"{a!r},{kind},{b!r}" for (a, b), kind in zip(values.tolist(), ["low", "high"] * 200, strict=True)]
    (folder / "data.csv").write_text("\n".join(["height (m),kind,drift", *rows]) + "\n")
    options = ("--label-column", "kind", "--rho", 1, "--steps", 20, "--samples", 20, "--out", folder / "run")
    succeeded(call("train", "digits", *TINY, "--dataset", folder / "data.csv", *options))
    return folder / "run", values
