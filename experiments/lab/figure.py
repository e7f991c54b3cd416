"""Figures of the claims: panels of curves with intervals, in one style."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from experiments.lab.statistics import Row, mean, select

COLOURS = ("#1f6fb4", "#d9651a", "#2a8c4a", "#b3262e", "#7553a6", "#8a5a44", "#c94f9b", "#6b6b6b", "#9a9a1f", "#1aa3b3")


def panels(count: int, *, width: float = 4.2, height: float = 3.4, columns: int = 3) -> tuple[Any, list[Any]]:
    """A figure of so many axes, at most ``columns`` in a row."""
    across = min(count, columns)
    down = -(-count // across)
    figure, axes = plt.subplots(down, across, figsize=(width * across, height * down), squeeze=False)
    flat = [axis for line in axes for axis in line]
    for axis in flat[count:]:
        axis.axis("off")
    for axis in flat[:count]:
        axis.grid(True, which="major", color="#e3e3e3", linewidth=0.7)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, flat[:count]


def curve(
    axis: Any, at: Sequence[float], means: Sequence[float], halves: Sequence[float] | None = None, *, label: str,
    colour: int = 0, **style: Any,
) -> None:  # fmt: skip
    """One curve, its 95 % interval shaded where it is finite."""
    told: dict[str, Any] = {"color": COLOURS[colour % len(COLOURS)], "marker": "o", "markersize": 3.5, "linewidth": 1.4}
    axis.plot(at, means, label=label, **(told | style))
    if halves is not None and any(map(math.isfinite, halves)):
        widths = [half if math.isfinite(half) else 0.0 for half in halves]
        low, high = ([m + sign * w for m, w in zip(means, widths, strict=True)] for sign in (-1, 1))
        axis.fill_between(at, low, high, color=told["color"], alpha=0.15, linewidth=0)


def means(
    axis: Any, rows: Sequence[Row], at: str, column: str, *, x: Sequence[float] = (), shaded: bool = True, label: str,
    colour: int = 0, **style: Any,
) -> None:  # fmt: skip
    """The curve of a column's means over seeds against another column, drawn there or at ``x``."""
    points = sorted({row[at] for row in rows})
    found = [mean(select(rows, **{at: point}), column) for point in points]
    halves = [each.half for each in found] if shaded else None
    curve(axis, x or points, [each.mean for each in found], halves, label=label, colour=colour, **style)


def ticks(axis: Any, at: Sequence[float]) -> None:
    """These numbers alone under a logarithmic axis."""
    axis.set(xscale="log")
    axis.set_xticks(at, [str(value) for value in at])
    axis.minorticks_off()


def save(figure: Any, path: Path) -> str:
    """Write a PNG without its date, so that equal rows give equal files; returns its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)
    return path.name
