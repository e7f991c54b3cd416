"""Prints the table of ratios after pytest-benchmark's own report."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

import ansn
from ansn.machine import cpu_name
from ansn.ops import native
from benchmarks.harness import Comparison, compare

_rows: list[Comparison] = []


@pytest.fixture
def against(benchmark, request) -> Iterator[Callable[..., None]]:
    """``against(name, contenders, nbytes)``: contenders in turns for the ratio, then ours ("ansn") for
    pytest-benchmark."""

    def run(name: str, contenders: dict[str, Callable[[], object]], nbytes: int = 0) -> None:
        comparison = compare(name, contenders, nbytes)
        _rows.append(comparison)
        for peer in contenders:
            if peer != "ansn":
                benchmark.extra_info[f"times_faster_than_{peer}"] = comparison.ratio(peer)
        benchmark(contenders["ansn"])

    with torch.no_grad():
        yield run


def pytest_terminal_summary(terminalreporter) -> None:
    if not _rows:
        return
    isa = native.module.cpu_isa() if native.module else "no native module"
    terminalreporter.section("against peers, medians of interleaved runs")
    terminalreporter.write_line(
        f"ansn {ansn.__version__}, torch {torch.__version__}, {cpu_name()}, {isa}, {torch.get_num_threads()} threads"
    )
    header = ""
    for comparison in _rows:
        if comparison.header() != header:
            header = comparison.header()
            terminalreporter.write_line("\n" + header)
        terminalreporter.write_line(comparison.row())
