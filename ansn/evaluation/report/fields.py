"""The section on how values hang together in space: power spectrum, autocorrelation and one-point distribution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import rcParams
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ansn.evaluation import fields
from ansn.evaluation.compare import LEAST
from ansn.evaluation.features import Array
from ansn.evaluation.fields import AUTOCORRELATION, POWER, VALUES, Profile
from ansn.evaluation.report.figures import WIDE, WIDTH, logarithmic
from ansn.evaluation.report.numbers import measured
from ansn.evaluation.report.page import Material, Section
from ansn.sample_figures import DATA, MODEL

_CHANNELS = 3
_VALUES, _LEAST_ROWS = 4_000_000, 64  # numbers of a channel that are transformed; rows of it, if there are as many
_AXES = {
    POWER: ("wave number, cycles a position", "power, squared units of the data"),
    AUTOCORRELATION: ("distance, positions", "autocorrelation"),
    VALUES: ("value, units of the data (further ones at the ends)", "density"),
}


def space(m: Material) -> Section | None:
    """Of fields; of images the power spectrum alone."""
    if m.table is not None:
        return None
    s = Section("space", "Statistics over space")
    if m.train is None or len(m.finite) < LEAST:
        s.missing.append("The training data was not at hand, or there are too few samples to compare.")
        return s
    channels, size = m.run.info.shape[0], m.finite[0, 0].size
    most = max(_LEAST_ROWS, _VALUES // size)
    names = (POWER,) if m.run.info.kind == "image" else (POWER, AUTOCORRELATION, VALUES)
    made: list[Profile] = []
    for c in range(min(channels, _CHANNELS)):
        held = None if m.held_out is None else m.held_out[:most, c]
        of = f", channel {c}" if channels > 1 else ""
        made += fields.profiles(m.data[:most, c], m.finite[:most, c], held, m.resampling, channel=of, names=names)
    rows = [len(v) for v in (made[0].data, made[0].samples)]
    s.text.append(
        f"Means over {rows[1]:,} samples and {rows[0]:,} rows of the data; the bands are 95 % intervals of the means,"
        " over rows. The power spectrum is that of each row less its mean, under a Hann window."
    )
    if channels > _CHANNELS:
        s.text.append(f"The first {_CHANNELS} of {channels} channels.")
    if m.held_out is None:
        s.missing.append("There are too few held-out rows for a floor, or none.")
    table = measured("Distance of the samples' mean from the data's", [p.measured for p in made])
    s.tables.append(table)
    what = {
        POWER: "root mean square of the logarithm of the ratio, over wave numbers; 0.1 is a tenth more or less power",
        AUTOCORRELATION: "root mean square difference, over distances",
        VALUES: "Wasserstein distance in standard deviations of the data",
    }
    s.definitions += [(name, f"Distance: {what[name]}.") for name in names]
    for name in names:
        some = [p for p in made if p.name == name]
        told = "; ".join(str(p.measured).partition(", 95")[0] for p in some)
        s.draw(name.replace(" ", "-"), told, f"{name.capitalize()} of data and samples.",
               lambda name=name, some=some: _curves(name, some), wide=len(some) > 1)  # type: ignore[misc]  # fmt: skip
    return s


def _curves(name: str, made: Sequence[Profile]) -> Figure:
    """A cell for each channel."""
    figure = Figure(figsize=(WIDE if len(made) > 1 else WIDTH, 3.2), layout="constrained")
    cells: Any = figure.subplots(1, len(made), squeeze=False)[0]
    for i, (axes, p) in enumerate(zip(cells, made, strict=True)):
        _band(axes, p, p.data, "data", DATA, 2.5)
        if p.held_out is not None:
            _band(axes, p, p.held_out, "held-out data", rcParams["text.color"], 0.8, linestyle="--")
        _band(axes, p, p.samples, "samples", MODEL, 1.3)
        if name == POWER:
            axes.set_yscale("log")
            logarithmic(axes.xaxis, axes.set_xscale, p.at.tolist(), 3)
            top = max(float(p.data.mean(0).max()), float(p.samples.mean(0).max()))
            axes.set_ylim(bottom=max(axes.get_ylim()[0], 1e-9 * top))
        if name == AUTOCORRELATION:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel(_AXES[name][0])
        axes.set_ylabel(_AXES[name][1] if i == 0 else "")
        axes.set_title(f"channel {i}" if len(made) > 1 else "")
        axes.grid(alpha=0.3)
    handles, labels = cells[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3)
    return figure


def _band(axes: Any, p: Profile, rows: Array, label: str, color: Any, width: float, linestyle: str = "-") -> None:
    """The mean over rows and its 95 % interval; autocovariances relative to that at no distance."""
    mean, error = rows.mean(0), rows.std(0, ddof=1) / np.sqrt(len(rows))
    if p.name == AUTOCORRELATION:
        whole = mean[0] or 1.0
        # Of the ratio: rows of more variance have more covariance too.
        error = (rows - rows[:, :1] * (mean / whole)).std(0, ddof=1) / np.sqrt(len(rows)) / whole
        mean = mean / whole
    axes.plot(p.at, mean, label=label, color=color, linewidth=width, linestyle=linestyle)
    axes.fill_between(p.at, mean - 1.96 * error, mean + 1.96 * error, color=color, alpha=0.25, linewidth=0)
