"""Interleaved timing: contenders take turns, so that a noisy machine is noisy for all; medians and the spread of
the ratio."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Comparison:
    """Seconds a call of each contender, ``[rounds]`` each, taken in turns."""

    name: str
    seconds: dict[str, np.ndarray]
    bytes: int
    copy_bandwidth: float

    def median(self, contender: str) -> float:
        return float(np.median(self.seconds[contender]))

    def ratio(self, peer: str, ours: str = "ansn") -> tuple[float, float, float]:
        """Median and quartiles of peer / ours over the rounds: above 1, ours is faster."""
        q = np.quantile(self.seconds[peer] / self.seconds[ours], [0.5, 0.25, 0.75])
        return float(q[0]), float(q[1]), float(q[2])

    def row(self) -> str:
        """A line of a Markdown table."""
        peers = [p for p in self.seconds if p != "ansn"]
        ratios = [f"{r[0]:.2f} ({r[1]:.2f}-{r[2]:.2f})" for r in map(self.ratio, peers)]
        rate = self.bytes / self.median("ansn")
        times = [f"{1e6 * self.median(c):.1f}" for c in self.seconds]
        share = f"{rate / 1e9:.1f} | {100 * rate / self.copy_bandwidth:.0f} %" if self.bytes else "- | -"
        return f"| {self.name} | {' / '.join(times)} | {' / '.join(ratios)} | {share} |"

    def header(self) -> str:
        peers = [p for p in self.seconds if p != "ansn"]
        return (
            f"| | microseconds: {' / '.join(self.seconds)} | times faster than {' / '.join(peers)} (quartiles)"
            " | GB/s | of copy |\n| --- | --- | --- | --- | --- |"
        )


def interleave(
    contenders: dict[str, Callable[[], object]], *, rounds: int = 60, budget: float = 0.002
) -> dict[str, np.ndarray]:
    """Seconds a call, ``[rounds]`` for each contender: each round times every one, in an order that rotates.

    A timing repeats the call until it takes about ``budget`` seconds, so that the clock is not what is measured.
    """
    names = list(contenders)
    repeats = {}
    for name in names:
        for _ in range(5):
            contenders[name]()
        start = time.perf_counter()
        contenders[name]()
        repeats[name] = max(1, int(budget / max(time.perf_counter() - start, 1e-7)))
    taken = {name: np.empty(rounds) for name in names}
    for r in range(rounds):
        for name in names[r % len(names) :] + names[: r % len(names)]:
            call, count = contenders[name], repeats[name]
            start = time.perf_counter()
            for _ in range(count):
                call()
            taken[name][r] = (time.perf_counter() - start) / count
    return taken


def copy_bandwidth(nbytes: int) -> float:
    """Bytes read and written a second by torch's copy of a buffer of ``nbytes``, at the thread count in force."""
    source = torch.empty(max(nbytes // 8, 1024), dtype=torch.float32).normal_()
    target = torch.empty_like(source)
    seconds = interleave({"copy": lambda: target.copy_(source)}, rounds=30)["copy"]
    return 2 * source.numel() * 4 / float(np.median(seconds))


def compare(name: str, contenders: dict[str, Callable[[], object]], nbytes: int = 0) -> Comparison:
    """Time the contenders in turns; ``nbytes`` is what the operation must read and write at least."""
    return Comparison(name, interleave(contenders), nbytes, copy_bandwidth(nbytes) if nbytes else 0.0)
