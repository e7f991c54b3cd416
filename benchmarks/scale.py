"""Data of any size: seconds and memory of the covariance's parts, and of a training step's on CIFAR-10's shape.

    python -m benchmarks.scale            # prints both; with --save into benchmarks/results/scale.csv and step.csv
    python -m benchmarks.table --write    # then into docs/performance.md

Each row of ``scale`` is a process of its own, so that its peak of memory is its own: what the process grew by since it
had imported everything. ``step`` plays the covariance's part of a run's first 391 steps of 128, to the freeze.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import ansn
from ansn.covariance import AdaptiveCovariance
from benchmarks.provenance import ROOT, save

SHAPES = ((3, 64, 64), (3, 256, 256), (1, 64, 64, 64), (1, 100_000))
STRUCTURES = ("separable", "cosine")
ROWS, UPDATES = 32, 50
STEPS, BATCH = 391, 128


def seconds(work: Callable[[], Any], times: int = 1) -> float:
    begun = time.perf_counter()
    for _ in range(times):
        work()
    return (time.perf_counter() - begun) / times


def resident(which: str) -> float:
    """Resident memory of this process in MiB: ``VmRSS`` now, ``VmHWM`` the largest since it was last forgotten."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(which))
    return int(line.split()[1]) / 1024


def scale(shape: tuple[int, ...], structure: str) -> dict[str, Any]:
    """One row; smooth random fields as data, isotropic noise, a U-Net of width 16 in three stages."""
    x = _fields(ROWS, shape)
    Path("/proc/self/clear_refs").write_text("5")  # forget the largest: making the data took more than it is
    before = resident("VmRSS")
    made: list[AdaptiveCovariance] = []
    row: dict[str, Any] = {"shape": "x".join(map(str, shape)), "d": math.prod(shape), "structure": structure}
    row["construction"] = seconds(lambda: made.append(AdaptiveCovariance(shape, 1, structure, rho=0.0)))
    (covariance,) = made
    row[f"{UPDATES} updates"] = seconds(lambda: covariance.update(x), UPDATES) * UPDATES
    row["refresh"] = seconds(covariance.refresh)
    noise = ansn.NoiseModel(covariance.freeze(), ansn.levels.karras(20.0, 0.01))
    perturbed, level = noise.perturb(x)
    row["perturb"] = seconds(lambda: noise.perturb(x), 5)
    row["filter"] = seconds(lambda: covariance.pencil.filter(perturbed, level.tau), 5)
    row["peak MiB"] = max(0.0, resident("VmHWM") - before)  # the kernel's count may lag behind a little
    network = ansn.networks.build("unet", shape, width=16)
    model = ansn.Denoiser(network, noise).eval()
    one = noise.prior(1)
    row["sampler step"] = seconds(lambda: ansn.sampling.euler(model, one, noise.tau[:1]))
    row["likelihood"] = seconds(lambda: ansn.log_likelihood(model, x[:1], steps=1, solver="heun", probes=1))
    return row | {"with network MiB": max(0.0, resident("VmHWM") - before)}


def step(structure: str) -> dict[str, Any]:
    """Mean milliseconds a step of the covariance's parts; updates with all refreshes and the freeze."""
    shape = (3, 32, 32)
    x = _fields(1024, shape)
    covariance = AdaptiveCovariance(shape, 1, structure, rho=0.0).track()
    noise = ansn.NoiseModel(covariance, ansn.levels.karras(20.0, 0.01))
    spent = dict.fromkeys(("update and refresh", "perturb", "filter"), 0.0)
    for i in range(STEPS):
        rows = x[torch.arange(i * BATCH, (i + 1) * BATCH) % len(x)]
        spent["update and refresh"] += seconds(lambda rows=rows: covariance.update(rows))
        begun = time.perf_counter()
        perturbed, level = noise.perturb(rows)
        spent["perturb"] += time.perf_counter() - begun
        spent["filter"] += seconds(lambda p=perturbed, tau=level.tau: covariance.pencil.filter(p, tau))
    spent["update and refresh"] += seconds(covariance.freeze)
    return {"structure": structure} | {name: 1000 * total / STEPS for name, total in spent.items()}


def _fields(n: int, shape: tuple[int, ...]) -> Tensor:
    """Smooth fields: white noise, averaged along every axis but the first, in [0, 1]."""
    x = torch.randn(n, *shape, generator=torch.Generator().manual_seed(0))
    for axis in range(2, x.ndim):
        for shift in (1, 2, 4):
            x = 0.5 * (x + x.roll(shift, axis))
    return torch.special.ndtr(x / x.std())


def _apart(*arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.scale", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    )
    print(done.stdout.strip(), file=sys.stderr)
    return dict(json.loads(done.stdout))


def main() -> None:
    """Measure and print, or save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save", action="store_true", help="into benchmarks/results")
    parser.add_argument("--row", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.row:
        structure, *shape = given.row
        print(json.dumps(scale(tuple(map(int, shape)), structure) if shape else step(structure)))
        return
    scales = [_apart("--row", name, *map(str, shape)) for shape in SHAPES for name in STRUCTURES]
    steps = [_apart("--row", name) for name in ("dense", *STRUCTURES, "diagonal")]
    if given.save:
        save(ROOT / "benchmarks" / "results" / "scale.csv", scales)
        save(ROOT / "benchmarks" / "results" / "step.csv", steps)


if __name__ == "__main__":
    main()
