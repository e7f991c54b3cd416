"""Interleaved timing: contenders take turns, so that a noisy machine is noisy for all; medians, the spread of the
ratio, and the share of the machine's limit, measured in the same run."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

OURS = "ansn"


@dataclass(frozen=True)
class Comparison:
    """Seconds a call of each contender, ``[rounds]`` each, taken in turns.

    ``bytes`` and ``flops`` are the least that the operation must move and compute; the rates are the machine's, at
    this size and thread count. A contender called "eager..." or "compile..." is torch; any other is a peer.
    """

    name: str
    seconds: dict[str, np.ndarray]
    bytes: int = 0
    flops: int = 0
    copy_bandwidth: float = 0.0
    matrix_rate: float = 0.0
    aim: float | None = None

    def median(self, contender: str = OURS) -> float:
        return float(np.median(self.seconds[contender]))

    def ratio(self, peer: str) -> tuple[float, float, float]:
        """Median and quartiles of peer / ours over the rounds: above 1, ours is faster."""
        q = np.quantile(self.seconds[peer] / self.seconds[OURS], [0.5, 0.25, 0.75])
        return float(q[0]), float(q[1]), float(q[2])

    def repeats(self, seconds: float = 0.002) -> int:
        """Calls of ours that take about so long."""
        return max(1, int(seconds / self.median()))

    @property
    def best(self) -> str:
        """The contender with the smallest median among torch eager and torch.compile (among all peers, without)."""
        peers = [p for p in self.seconds if p != OURS]
        plain = [p for p in peers if p.startswith(("eager", "compile"))]
        return min(plain or peers, key=self.median)

    @property
    def bound(self) -> str:
        """Which limit is the nearer one: "copy", "matrix", or "" where nothing was counted."""
        moving = self.bytes / self.copy_bandwidth if self.copy_bandwidth else 0.0
        computing = self.flops / self.matrix_rate if self.matrix_rate else 0.0
        return "" if moving == computing == 0.0 else "copy" if moving >= computing else "matrix"

    @property
    def share(self) -> float:
        """Of the limit: the time that a copy of the bytes, or a product of as many flops, takes over ours."""
        if not self.bound:
            return float("nan")
        least = self.bytes / self.copy_bandwidth if self.bound == "copy" else self.flops / self.matrix_rate
        return least / self.median()

    def record(self) -> dict[str, str | float]:
        """A flat row for a file: the ratio to the best with quartiles, rates, the limit, microseconds of each."""
        row: dict[str, str | float] = {"name": self.name, "aim": self.aim or "", "best peer": self.best}
        row |= dict(zip(("ratio", "ratio q1", "ratio q3"), self.ratio(self.best), strict=True))
        row |= {"GB/s": 1e-9 * self.bytes / self.median(), "GFLOP/s": 1e-9 * self.flops / self.median()}
        row |= {"copy GB/s": 1e-9 * self.copy_bandwidth, "matrix GFLOP/s": 1e-9 * self.matrix_rate}
        row |= {"bound": self.bound, "share of limit": self.share}
        return row | {f"{c} us": 1e6 * self.median(c) for c in self.seconds}


def interleave(
    contenders: dict[str, Callable[[], object]], *, rounds: int = 60, budget: float = 0.002, seconds: float = 20.0
) -> dict[str, np.ndarray]:
    """Seconds a call, ``[rounds]`` for each contender: each round times every one, in an order that rotates.

    A timing repeats the call until it takes about ``budget`` seconds, so that the clock is not what is measured, after
    one call that is not timed: another's threads come to rest, its data leaves the cache. There are fewer rounds, but
    at least 5, where they would take more than about ``seconds`` in all.
    """
    names = list(contenders)
    repeats, expected = {}, 0.0
    for name in names:
        for _ in range(5):
            contenders[name]()
        start = time.perf_counter()
        contenders[name]()
        once = max(time.perf_counter() - start, 1e-7)
        repeats[name] = max(1, int(budget / once))
        expected += (repeats[name] + 1) * once
    rounds = max(min(5, rounds), min(rounds, int(seconds / expected)))
    taken = {name: np.empty(rounds) for name in names}
    for r in range(rounds):
        for name in names[r % len(names) :] + names[: r % len(names)]:
            call, count = contenders[name], repeats[name]
            call()
            start = time.perf_counter()
            for _ in range(count):
                call()
            taken[name][r] = (time.perf_counter() - start) / count
    return taken


def copy_bandwidth(nbytes: int) -> float:
    """Bytes read and written a second by torch's copy of a buffer of ``nbytes / 2``, at the threads in force: a copy
    that moves as much as the operation does."""
    source = torch.empty(max(nbytes // 8, 1024), dtype=torch.float32).normal_()
    target = torch.empty_like(source)
    seconds = interleave({"copy": lambda: target.copy_(source)}, rounds=30, seconds=0.5)["copy"]
    return 2 * source.numel() * 4 / float(np.median(seconds))


def matrix_rate(dtype: torch.dtype = torch.float32) -> float:
    """Flops a second of torch.mm, 2048 square, at the threads in force; measured once a process."""
    return _matrix_rate(dtype, torch.get_num_threads())


@functools.cache
def _matrix_rate(dtype: torch.dtype, threads: int, side: int = 2048) -> float:
    a, b = (torch.randn(side, side, generator=torch.Generator().manual_seed(s)).to(dtype) for s in (0, 1))
    out = torch.empty_like(a)
    seconds = interleave({"mm": lambda: torch.mm(a, b, out=out)}, rounds=5)["mm"]
    return 2 * side**3 / float(np.median(seconds))
