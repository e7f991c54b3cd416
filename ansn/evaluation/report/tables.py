"""The sections of tables: the distribution of every column, and their correlations, each beside its floor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import rcParams
from matplotlib.figure import Figure

from ansn import sample_figures
from ansn.data.units import Column
from ansn.evaluation import columns
from ansn.evaluation.compare import LEAST
from ansn.evaluation.features import Array
from ansn.evaluation.report.figures import WIDE
from ansn.evaluation.report.page import Material, Section, Table
from ansn.evaluation.report.words import number

_DRAWN = 60  # columns with a picture
_NAMED = 25  # columns whose names a matrix is marked with
_PAIRS = 10


def marginals(m: Material) -> Section | None:
    """Every column of samples, data and held-out rows."""
    if m.table is None:
        return None
    s = Section("columns", "Columns")
    made, order = m.marginals, m.worst
    if m.train is None or not made:
        s.missing.append("The training data was not at hand, or there are too few samples to compare columns.")
        return s
    s.text.append(
        "How far each column of the samples is from that of the training data, the furthest first. Numbers: Wasserstein"
        " distance in standard deviations of the data; binary columns and categories: total variation, 0 to 1."
        " The floor is the distance of held-out rows in their place."
    )
    if m.held_out is None:
        s.missing.append("There are too few held-out rows for a floor, or none.")
    rows, data, x = [], m.data, m.finite
    for j in order:
        v, c = made[j], m.table.columns[j]
        floor = "" if v.floor is None else number(v.floor)
        rows.append([c.name, c.kind, number(v.value), f"{number(v.low)} to {number(v.high)}", floor,
                     _summary(c, data[:, j]), _summary(c, x[:, j])])  # fmt: skip
    header = ["column", "kind", "distance", "95 % interval", "floor", "data", "samples"]
    first = made[order[0]]
    at = "" if first.floor is None else f", of {first.floor_n:,} held-out rows"
    s.tables.append(Table(f"All columns, of {first.n:,} samples{at}; {first.note}", header, rows, "numbers"))
    shown = order[:_DRAWN]
    names = [m.table.columns[j].name for j in shown]
    cut = f" the {len(shown)} of {len(order)} that differ most," if len(shown) < len(order) else ""
    s.draw("marginals", f"Distributions of the columns {', '.join(names)}",
           f"Distributions of the columns,{cut} the furthest from the data first: the data is grey.",
           lambda: _histograms([m.table.columns[j] for j in shown] if m.table else [], data[:, shown], x[:, shown],
                               None if m.held_out is None else m.held_out[:, shown]), wide=True)  # fmt: skip
    return s


def correlations(m: Material) -> Section | None:
    """Correlation matrices of both, and the pairs of columns that differ most."""
    if m.table is None:
        return None
    s = Section("correlations", "Correlations")
    enough = m.train is not None and len(m.finite) >= LEAST
    found = columns.correlations(m.table.columns, m.data, m.finite, m.held_out, m.resampling) if enough else None
    if found is None:
        s.missing.append("There are not two columns of numbers, no training data or too few samples to correlate.")
        return s
    differ = np.abs(found.samples - found.data)
    worst = found.worst(_PAIRS)
    s.text.append(
        "Pearson's correlations of the columns of numbers, categories left out. "
        + "; ".join(f"{v.name.removeprefix('correlations, ')} {number(v.value)} ({number(v.low)} to {number(v.high)})"
                    + ("" if v.floor is None else f", floor {number(v.floor)}") for v in found.measured) + "."
    )  # fmt: skip
    header, rows = ["columns", "data", "samples", "95 % interval", "difference", "held-out rows"], []
    for i, j in worst:
        r, reach = found.samples[i, j], 1.96 * found.error[i, j]
        held = "" if found.held_out is None else f"{found.held_out[i, j]:.3f}"
        interval = f"{max(-1.0, r - reach):.3f} to {min(1.0, r + reach):.3f}"
        rows.append([f"{found.names[i]} and {found.names[j]}", f"{found.data[i, j]:.3f}", f"{r:.3f}", interval,
                     f"{r - found.data[i, j]:+.3f}", held])  # fmt: skip
    s.tables.append(Table("The pairs that differ most", header, rows, "numbers"))
    i, j = worst[0]
    alt = f"Correlations of {len(found.names)} columns; the largest difference, {differ[i, j]:.3f}, is that of"
    s.draw("correlations", f"{alt} {found.names[i]} and {found.names[j]}",
           "Correlations of the data, of the samples, and their difference on a scale of its size.",
           lambda: _matrices(found), wide=True)  # fmt: skip
    return s


def _summary(c: Column, values: Array) -> str:
    """Mean and deviation of numbers, mean of times, the most frequent of words."""
    values = values[~np.isnan(values)]
    if not len(values):
        return ""
    if c.kind in ("category", "binary"):
        level, count = np.unique(values, return_counts=True)
        return f"{count.max() / len(values):.1%} {c.cell(float(level[count.argmax()]))}"
    mean, spread = float(values.mean()), float(values.std())
    return c.cell(float(np.rint(mean))) if c.form else f"{mean:.4g} ± {spread:.3g}"


def _histograms(shown: Sequence[Column], data: Array, x: Array, held_out: Array | None) -> Figure:
    """A cell for each column, three in a row."""
    wide, high = min(3, len(shown)), math.ceil(len(shown) / 3)
    figure = Figure(figsize=(WIDE, 0.5 + 1.7 * high), layout="constrained")
    cells: Any = figure.subplots(high, wide, squeeze=False)
    for axes in cells.ravel()[len(shown) :]:
        axes.set_axis_off()
    for j, (axes, c) in enumerate(zip(cells.ravel(), shown, strict=False)):
        sample_figures.histogram(axes, x[:, j], data[:, j], None if held_out is None else held_out[:, j])
        axes.set_title(sample_figures.drawable(c.name, 30), fontsize=8, pad=3)
        axes.set_yticks([])
        axes.tick_params(labelsize=7)
        axes.locator_params(axis="x", nbins=5)
        sample_figures.write_ticks(axes.xaxis, c, 3)
    handles, labels = cells[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3)
    return figure


def _matrices(found: columns.Correlations) -> Figure:
    count = len(found.names)
    names = [sample_figures.drawable(name, 14) for name in found.names] if count <= _NAMED else []
    figure = Figure(figsize=(WIDE, 3.1 if names else 2.6), layout="constrained")
    cells: Any = figure.subplots(1, 3)
    apart = found.samples - found.data
    top = max(float(np.abs(apart).max()), 1e-3)
    for axes, what, values, most in zip(
        cells, ("data", "samples", "samples - data"), (found.data, found.samples, apart), (1.0, 1.0, top), strict=True
    ):
        drawn = axes.imshow(values, cmap="RdBu_r", vmin=-most, vmax=most, interpolation="nearest")
        axes.set_title(what)
        size = 7 if count <= 12 else 5
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=size)
        axes.set_yticks(range(len(names)), names if axes is cells[0] else [""] * len(names), fontsize=size)
        bar = figure.colorbar(drawn, ax=axes, shrink=0.8, location="bottom" if not names else "top", pad=0.02)
        bar.set_ticks([-most, 0, most], labels=[f"{-most:.2g}", "0", f"{most:.2g}"])
        bar.ax.tick_params(labelsize=7, color=rcParams["text.color"])
    return figure
