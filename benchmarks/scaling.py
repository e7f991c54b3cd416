"""Time of every operation against d, B, K and the number of threads, beside torch eager: one CSV, one plot an axis.

    make scaling            # or: python -m benchmarks.scaling --out benchmarks/results --seconds 240

Runs on the CPU. ``--seconds`` bounds the whole: each point gets its share, and the largest sizes fewer rounds.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch

from benchmarks import provenance, workloads
from benchmarks.harness import OURS, interleave
from benchmarks.workloads import Workload

AXES = {
    "d": "d, coordinates",
    "B": "B, rows",
    "K": "K, regions or matrices",
    "threads": "threads",
}
Maker = Callable[..., Workload]


@dataclass(frozen=True)
class Line:
    """One operation along one axis: ``make(value)`` at each of ``values``, the rest of its size fixed."""

    axis: str
    make: Callable[[int], Workload]
    values: tuple[int, ...]


def _powers(low: int, high: int, factor: int = 2) -> tuple[int, ...]:
    return tuple(itertools.takewhile(lambda v: v <= high, (low * factor**i for i in range(32))))


def lines() -> list[Line]:
    """Everything that is plotted."""
    cpu: Callable[[Maker], Maker] = lambda make: functools.partial(make, "cpu")  # noqa: E731
    langevin, diagonal, dense = map(cpu, (workloads.langevin, workloads.diagonal_draw, workloads.dense_draw))
    color, update, loss = map(cpu, (workloads.color, workloads.update, workloads.loss))
    factorise = cpu(workloads.factorise)
    regenerated = functools.partial(loss, regenerate=True)
    diagonal_update = functools.partial(update, kind="diagonal")
    by_rows = (langevin, diagonal, dense, color, update, diagonal_update, loss, regenerated)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = tuple(dict.fromkeys((*_powers(1, cores), cores)))

    def rank_one(regions: int, dim: int) -> Workload:
        return update(regions, dim, regions=regions)

    found = [Line("d", functools.partial(make, 128), _powers(16, 4096)) for make in by_rows]
    found += [Line("B", functools.partial(_flipped, make, 784), _powers(1, 4096, 4)) for make in by_rows]
    found += [Line("d", functools.partial(factorise, 256), _powers(4, 128))]
    found += [Line("d", functools.partial(rank_one, 64), _powers(16, 1024))]
    found += [Line("K", functools.partial(_flipped, factorise, 32), _powers(1, 16384, 4))]
    found += [Line("K", functools.partial(_flipped, rank_one, 64), _powers(2, 2048, 4))]
    found += [Line("K", functools.partial(dense, 1024, 64), _powers(2, 256, 2))]
    fixed = [functools.partial(make, 1024, 784) for make in by_rows]
    fixed += [functools.partial(factorise, 4096, 32), functools.partial(rank_one, 1024, 64)]
    return found + [Line("threads", functools.partial(_ignoring, make), threads) for make in fixed]


def _flipped(make: Maker, dim: int, count: int) -> Workload:
    return make(count, dim)


def _ignoring(make: Callable[[], Workload], _threads: int) -> Workload:
    return make()


def measure(line: Line, value: int, seconds: float) -> dict[str, str | float]:
    """One point: medians in microseconds, ours and eager in turns."""
    if line.axis == "threads":
        torch.set_num_threads(value)
    work = line.make(value)
    taken = interleave({OURS: work.ours, "eager": work.eager}, rounds=30, seconds=seconds)
    ours, eager = (float(np.median(taken[name])) for name in (OURS, "eager"))
    # A rank that follows the axis does not belong in the name of the line.
    name = "rank-B update" if work.name.startswith("rank-") and "K" not in work.size else work.name
    row: dict[str, str | float] = {"axis": line.axis, "operation": name}
    row |= {letter: work.size.get(letter, "") for letter in "BdK"} | {"threads": torch.get_num_threads()}
    row |= {f"{OURS} us": 1e6 * ours, "eager us": 1e6 * eager, "ratio": float(np.median(taken["eager"] / taken[OURS]))}
    return row | {"GB/s": 1e-9 * work.nbytes / ours, "GFLOP/s": 1e-9 * work.flops / ours}


def plot(axis: str, rows: list[dict], path: Path) -> None:
    """A panel an operation, log-log: microseconds a call, ours and eager."""
    names = list(dict.fromkeys(row["operation"] for row in rows))
    columns = min(4, len(names))
    height = -(-len(names) // columns)
    figure, panels = plt.subplots(
        height, columns, figsize=(3.3 * columns, 2.8 * height + 0.6), squeeze=False, layout="constrained"
    )
    for panel, name in itertools.zip_longest(panels.flat, names):
        if name is None:
            panel.set_axis_off()
            continue
        points = [row for row in rows if row["operation"] == name]
        x = [row[axis] for row in points]
        panel.plot(x, [row[f"{OURS} us"] for row in points], "o-", ms=4, color="#0b5394", label=OURS)
        panel.plot(x, [row["eager us"] for row in points], "s--", ms=4, color="#cc4125", label="torch eager")
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        low, high = panel.get_ylim()
        if high < 10 * low:  # less than a decade would have no labelled tick
            panel.set_ylim(10 ** np.floor(np.log10(low)), 10 ** np.ceil(np.log10(high)))
        panel.set_xticks(x[:: max(1, -(-len(x) // 5))])
        panel.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        panel.minorticks_off()
        fixed = [f"{key} = {points[0][key]}" for key in "BdK" if key != axis and points[0][key] != ""]
        panel.set_title(f"{name}\n{', '.join(fixed)}", fontsize=9)
        panel.set_xlabel(AXES[axis], fontsize=8)
        panel.set_ylabel("microseconds a call", fontsize=8)
        panel.tick_params(labelsize=8)
        panel.grid(True, which="major", alpha=0.3)
    panels.flat[0].legend(fontsize=8)
    origin = provenance.provenance()
    count = "" if axis == "threads" else f", {origin['threads']} threads"
    figure.suptitle(f"{origin['machine']}, {origin['isa']}{count}, torch {origin['torch']}, float32", fontsize=9)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    """Measure, write, plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=provenance.ROOT / "benchmarks" / "results")
    parser.add_argument("--seconds", type=float, default=240.0, help="for everything")
    parser.add_argument("--axes", nargs="*", choices=AXES, default=list(AXES))
    options = parser.parse_args()
    todo = [(line, value) for line in lines() if line.axis in options.axes for value in line.values]
    default, begun = torch.get_num_threads(), time.perf_counter()
    rows = []
    for done, (line, value) in enumerate(todo):
        left = options.seconds - (time.perf_counter() - begun)
        # Making the inputs takes about as long as timing them.
        rows.append(measure(line, value, max(0.02, 0.5 * left / (len(todo) - done))))
        torch.set_num_threads(default)
        print(f"\r{done + 1}/{len(todo)} {rows[-1]['operation']}, {line.axis} = {value}".ljust(78), end="", flush=True)
    print()
    provenance.save(options.out / "scaling.csv", rows)
    for axis in options.axes:
        if len({row[axis] for row in rows if row["axis"] == axis}) < 2:
            print(f"no plot against {axis}: this machine lends one core")
            continue
        plot(axis, [row for row in rows if row["axis"] == axis], options.out / f"scaling_{axis}.png")
    print(f"written to {options.out}: scaling.csv, scaling_AXIS.png ({time.perf_counter() - begun:.0f} s)")


if __name__ == "__main__":
    with torch.no_grad():
        main()
