"""Prints the table of ratios after pytest-benchmark's own report, and writes it with ``--save-table PATH``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from benchmarks import provenance
from benchmarks.harness import OURS, Comparison, compare

_rows: list[Comparison] = []


def pytest_addoption(parser) -> None:
    parser.addoption("--save-table", type=Path, help="write the comparisons to this .csv or .json")


def pytest_configure(config) -> None:
    path = config.getoption("--save-table")
    if path is not None and path.suffix not in (".csv", ".json"):
        raise pytest.UsageError(f"--save-table: got {path}, expected a name that ends in .csv or .json")


@pytest.fixture
def against(benchmark, request) -> Iterator[Callable[..., None]]:
    """``against(name, contenders, nbytes=, flops=, dtype=)``: contenders in turns for the ratio, then ours ("ansn")
    for pytest-benchmark. ``flops`` are those of a product in ``dtype``, float32 if not said."""

    def run(
        name: str,
        contenders: dict[str, Callable[[], object]],
        nbytes: int = 0,
        flops: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        comparison = compare(name, contenders, nbytes, flops, dtype)
        _rows.append(comparison)
        for peer in contenders:
            if peer != OURS:
                benchmark.extra_info[f"times_faster_than_{peer}"] = comparison.ratio(peer)
        if comparison.bound:
            benchmark.extra_info[f"share_of_{comparison.bound}_limit"] = comparison.share
        benchmark(contenders[OURS])

    with torch.no_grad():
        yield run


def pytest_terminal_summary(terminalreporter, config) -> None:
    if not _rows:
        return
    terminalreporter.section("against peers, medians of interleaved runs")
    terminalreporter.write_line(", ".join(f"{name} {value}" for name, value in provenance.provenance().items()))
    header = ""
    for comparison in _rows:
        if comparison.header() != header:
            header = comparison.header()
            terminalreporter.write_line("\n" + header)
        terminalreporter.write_line(comparison.row())
    path = config.getoption("--save-table")
    if path is not None:
        provenance.save(path, [comparison.record() for comparison in _rows])
        terminalreporter.write_line(f"\nwritten to {path}")
