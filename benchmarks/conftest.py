"""``against`` for the benchmarks: measures, prints the table at the end, and writes it with ``--save-table PATH``."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "20")  # before SciPy: its threads rest when it is another's turn

import pytest
import threadpoolctl
import torch

from benchmarks import provenance, table
from benchmarks.harness import OURS, Comparison, copy_bandwidth, interleave, matrix_rate
from benchmarks.workloads import Workload

_rows: list[Comparison] = []


def pytest_addoption(parser) -> None:
    parser.addoption("--save-table", type=Path, help="write the comparisons to this .csv")
    parser.addoption("--rounds", type=int, default=30, help="of each comparison")


@pytest.fixture
def against(benchmark, request) -> Callable[..., None]:
    """``against(name, work, others, aim=, threads=, compiled=)``: ours beside torch eager, torch.compile and others,
    in turns. ``work`` is a workload, or the contenders by name and ``nbytes``. ``threads`` 0 are all."""

    def run(
        name: str,
        work: Workload | dict[str, Callable[[], object]],
        others: dict[str, Callable[[], object]] | None = None,
        *,
        aim: float | None = None,
        threads: int = 0,
        compiled: bool = True,
        nbytes: int = 0,
    ) -> None:
        flops, dtype = 0, torch.float32
        if isinstance(work, Workload):
            nbytes, flops, dtype, plain, arguments = work.nbytes, work.flops, work.dtype, work.plain, work.arguments
            contenders = {OURS: work.ours, "eager": work.eager}
            if compiled:
                torch.compiler.reset()  # after eight shapes of one function it would run it as it is
                fused = torch.compile(plain, dynamic=False)
                contenders["compile"] = lambda: fused(*arguments)
        else:
            contenders = dict(work)
        contenders |= others or {}
        rounds, all_threads = request.config.getoption("--rounds"), torch.get_num_threads()
        with threadpoolctl.threadpool_limits(threads or all_threads):  # NumPy's, SciPy's
            torch.set_num_threads(threads or all_threads)
            try:
                seconds = interleave(contenders, rounds=rounds, seconds=2.0)
                rates = copy_bandwidth(nbytes) if nbytes else 0.0, matrix_rate(dtype) if flops else 0.0
            finally:
                torch.set_num_threads(all_threads)
        name += ", one thread" if threads == 1 else ""
        comparison = Comparison(name, seconds, nbytes, flops, *rates, aim)
        _rows.append(comparison)
        benchmark.extra_info |= {key: value for key, value in comparison.record().items() if value != ""}
        benchmark.pedantic(contenders[OURS], rounds=5, iterations=comparison.repeats())

    torch.manual_seed(0)
    return run


def pytest_terminal_summary(terminalreporter, config) -> None:
    if not _rows:
        return
    terminalreporter.section("times faster than peers, medians of interleaved runs")
    terminalreporter.write_line(", ".join(f"{name} {value}" for name, value in provenance.provenance().items()))
    rows = [comparison.record() for comparison in _rows]
    terminalreporter.write_line(table.cpu(rows))
    if path := config.getoption("--save-table"):
        provenance.save(path, rows)
        terminalreporter.write_line(f"\nwritten to {path}")
