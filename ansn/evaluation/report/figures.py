"""The figures of a report: narrow enough for a phone, drawn once for a light page and once for a dark one.

Each function returns a figure in matplotlib's current colours; :func:`rendered` calls it under both sets of them.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter, StrMethodFormatter
from PIL import Image
from torch import Tensor
from torch.nn import functional

from ansn import figures, sample_figures
from ansn.data.units import Column

WIDTH = 5.4  # inches: letters of 9 points are still read when the page is 375 pixels wide
WIDE = 7.6  # of what scrolls there
_DPI = 150
_PALETTE = 192  # colours of a chart
_MOST_BARS = 30
MOST_POINTS = 2000
_IN_MANY = 600  # of the points, where there are many plots

DARK: Any = {
    "figure.facecolor": "#16181c", "axes.facecolor": "#16181c", "legend.facecolor": "#16181c",
    "text.color": "#e4e6eb", "axes.labelcolor": "#e4e6eb", "axes.edgecolor": "#9aa0a8", "legend.edgecolor": "#4a4f57",
    "xtick.color": "#c4c8ce", "ytick.color": "#c4c8ce", "grid.color": "#4a4f57",
}  # fmt: skip
_BOTH: Any = {"font.size": 9.0, "axes.titlesize": 9.0, "figure.titlesize": 9.0, "axes.axisbelow": True}


@dataclass(frozen=True)
class Rendered:
    """A picture as PNG bytes, for a light and, where that differs, a dark page; its size in pixels."""

    light: bytes
    dark: bytes | None
    width: int
    height: int


def rendered(draw: Callable[[], Figure], *, flat: bool = True) -> Rendered:
    """Call ``draw`` under the light and the dark colours. ``flat``: of few colours, which makes the file a third."""
    with matplotlib.rc_context(_BOTH):
        light = figures.rasterised(draw(), _DPI)
    with matplotlib.rc_context(_BOTH | DARK):
        dark = figures.rasterised(draw(), _DPI)
    small = [_png(page.quantize(_PALETTE, dither=Image.Dither.NONE) if flat else page) for page in (light, dark)]
    return Rendered(small[0], small[1], light.width, light.height)


def rendered_sheet(x: Tensor, reference: Tensor | None = None, kind: str | None = None) -> Rendered:
    """Images, maps or volumes as the sheet of samples.png."""
    made = []
    for colours in (_BOTH, _BOTH | DARK):
        with matplotlib.rc_context(colours):
            page = Image.fromarray(sample_figures.sheet(x, reference, kind=kind))
        made.append(page if x.shape[1] == 3 else page.quantize(256, dither=Image.Dither.NONE))  # photographs have more
    return Rendered(_png(made[0]), _png(made[1]), made[0].width, made[0].height)


# -- data --------------------------------------------------------------------------------------------------------


def strip(
    x: Tensor,
    columns: Sequence[str],
    rows: Sequence[str],
    below: Sequence[Sequence[str]] | None = None,
    *,
    scales: Sequence[sample_figures.Scale] = (),
    together: int = 1,
    inches: float = WIDTH,
) -> Figure:
    """Coloured pictures ``[rows, columns, 3, H, W]`` in [0, 1], or lines ``[rows, columns, C, L]`` on their
    ``scales``, as a table with headings.

    ``below``: a line under each picture; ``together``: rows that stand close, with a wider gap after them.
    """
    if x.ndim == 4:
        return _line_strip(x, columns, rows, below, scales, inches)
    high, wide = x.shape[:2]
    left, room = 12 + 12 * max(map(len, rows), default=0), inches * _DPI
    # Whole numbers of pixels, so that nothing is smoothed and the file is small.
    shrink = max(1, math.ceil(wide * (x.shape[-1] + 1) / room))
    pictures = sample_figures.colours(x.flatten(0, 1))
    cells = functional.avg_pool2d(pictures, shrink, ceil_mode=True).permute(0, 2, 3, 1).numpy()
    height, width = cells.shape[1:3]
    gap = max(1, width // 16)
    scale = max(1, round((room - left) / (wide * (width + gap))))
    under = 0 if below is None else math.ceil(24 / scale)
    tops = [i * (height + gap + under) + i // together * (2 * gap if together > 1 else 0) for i in range(high)]
    lefts = [j * (width + gap) for j in range(wide)]
    sheet = np.zeros((tops[-1] + height + under, lefts[-1] + width, 4), np.float32)  # gaps are transparent
    for i, cell in enumerate(cells):
        at = tops[i // wide], lefts[i % wide]
        sheet[at[0] : at[0] + height, at[1] : at[1] + width] = np.pad(cell, ((0, 0), (0, 0), (0, 1)), constant_values=1)
    size = scale * sheet.shape[1], scale * sheet.shape[0]
    whole = size[0] + left + 6, size[1] + 34
    figure = Figure(figsize=((whole[0] + 0.5) / _DPI, (whole[1] + 0.5) / _DPI), dpi=_DPI)
    axes = figure.add_axes((left / whole[0], 4 / whole[1], size[0] / whole[0], size[1] / whole[1]))
    axes.imshow(sheet, interpolation="nearest", aspect="auto")
    axes.xaxis.tick_top()
    axes.set_xticks([v + width / 2 - 0.5 for v in lefts], columns)
    axes.set_yticks([v + height / 2 - 0.5 for v in tops], rows)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    for i, line in enumerate(below or ()):
        for j, text in enumerate(line):
            axes.text(lefts[j] + width / 2 - 0.5, tops[i] + height + under * 0.4, text, ha="center", va="center")
    return figure


def _line_strip(
    x: Tensor, columns: Sequence[str], rows: Sequence[str], below: Sequence[Sequence[str]] | None,
    scales: Sequence[sample_figures.Scale], inches: float,
) -> Figure:  # fmt: skip
    high, wide = x.shape[:2]
    figure = Figure(figsize=(inches, 0.4 + high * inches / wide * 0.6), layout="constrained")
    axes = figure.add_subplot()
    sample_figures.curves(axes, x.flatten(0, 1).double().numpy(), wide, scales)
    for j, text in enumerate(columns):
        axes.text(j + 0.5, high * 1.01, text, ha="center", va="bottom", fontsize=8)
    for i, text in enumerate(rows):
        axes.text(-0.02 * wide, high - i - 0.5, text, ha="right", va="center", fontsize=8)
        for j, under in enumerate(below[i] if below else ()):
            # Above a curve that it would be lost in.
            behind = {"facecolor": matplotlib.rcParams["axes.facecolor"], "alpha": 0.8, "linewidth": 0, "pad": 0.5}
            axes.text(j + 0.98, high - i - 0.03, under, ha="right", va="top", fontsize=6, bbox=behind)
    return figure


def clouds(
    panels: Sequence[Sequence[Tensor]],
    columns: Sequence[str],
    rows: Sequence[str],
    names: Sequence[str],
    behind: Tensor | None = None,
) -> Figure:
    """Vectors ``[n, d]`` as a table of scatter plots of the first two columns (histograms for one), on one scale."""
    wide = min(5, len(columns))
    lines = math.ceil(len(columns) / wide)
    figure = Figure(figsize=(WIDE, 0.4 + 1.55 * lines * len(rows)), layout="constrained")
    axes = figure.subplots(lines * len(rows), wide, sharex=True, sharey=True, squeeze=False)
    data = None if behind is None else behind[:_IN_MANY].double().numpy()
    for cell in axes.ravel():
        cell.set_axis_off()
    for i, row in enumerate(panels):
        for j, x in enumerate(row):
            cell = axes[(j // wide) * len(rows) + i][j % wide]
            cell.set_axis_on()
            points = x[:_IN_MANY].double().numpy()
            if points.shape[1] == 1:
                sample_figures.histogram(cell, points[:, 0], None if data is None else data[:, 0])
                cell.set_yticks([])
            else:
                sample_figures.points(cell, points, data, 0, 1)
            cell.tick_params(labelsize=6)
            cell.xaxis.set_major_locator(MaxNLocator(4))
            if i == 0:
                cell.set_title(columns[j], fontsize=8, pad=3)
            if j % wide == 0:
                cell.set_ylabel(rows[i], fontsize=8)
    told = [sample_figures.drawable(name) for name in names[:2]]
    if behind is not None and len(told) > 1:
        low, high = (behind[:, :2].double().quantile(torch.tensor([0.0, 1.0]).double(), dim=0)).tolist()
        margin = [0.35 * (b - a) + 1e-6 for a, b in zip(low, high, strict=True)]
        axes[0][0].set_xlim(low[0] - margin[0], high[0] + margin[0])
        axes[0][0].set_ylim(low[1] - margin[1], high[1] + margin[1])
    figure.supxlabel(" against ".join(reversed(told)) if len(told) > 1 else told[0], fontsize=8)
    return figure


def points_shown(columns: int) -> int:
    """Most points that :func:`scatter` draws of each side."""
    return MOST_POINTS if columns < 3 else _IN_MANY


def lines(x: Tensor, reference: Tensor | None) -> Figure:
    """Samples beside data, the picture of samples.png."""
    behind = None if reference is None else reference.double().numpy()
    return sample_figures.curves_figure(x.double().numpy(), None, behind, WIDE)


def scatter(x: Tensor, reference: Tensor | None, columns: Sequence[Column], note: str) -> Figure:
    """Samples over data, the picture of samples.png, of these columns."""
    shown, side = points_shown(len(columns)), WIDTH if len(columns) < 3 else WIDE
    behind = None if reference is None else reference[:shown].double().numpy()
    names = [column.name for column in columns]
    return sample_figures.scatter_figure(x[:shown].double().numpy(), behind, names, side=side, cells=columns, note=note)


# -- covariance --------------------------------------------------------------------------------------------------


def spectrum(values: Tensor, noise: Tensor) -> Figure:
    """Eigenvalues of S and R, ascending ``[d]``."""
    figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
    figures.spectra(figure.add_subplot(), values, noise)
    return figure


def directions(
    rows: Tensor, shape: tuple[int, ...], labels: Sequence[str], names: Sequence[str] | None, kind: str
) -> Figure:
    """Eigenvectors or draws, ``[n, d]``, as pictures of the data's shape."""
    figure = Figure(figsize=(WIDTH, 3.3), layout="constrained")
    figures.panels(figure, rows, shape, "", labels, names, kind)
    return figure


# -- numbers -----------------------------------------------------------------------------------------------------


def loss(records: Sequence[dict[str, Any]]) -> Figure:
    """Loss and condition number against the step."""
    return figures.loss_figure(records, (WIDTH, 3.6))


@dataclass(frozen=True)
class Curve:
    """One sampler's line: where (evaluations or seconds), its values and their intervals (NaN where unknown)."""

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


def curves(lines: Sequence[Curve], xlabel: str, ylabel: str, floor: float | None) -> Figure:
    """Quality against cost, both logarithmic where they span more than a decade; the floor is a dashed line."""
    figure = Figure(figsize=(WIDTH, 3.8), layout="constrained")
    axes = figure.add_subplot()
    for i, line in enumerate(lines):
        x, y, low, high = (np.array(v, dtype=np.float64) for v in (line.x, line.y, line.low, line.high))
        order = np.argsort(x)
        style: dict[str, Any] = {"color": f"C{i % 10}", "marker": "osD^vP*X"[i % 8], "markersize": 4}
        axes.plot(x[order], y[order], label=sample_figures.drawable(line.name), linewidth=1.3, **style)
        bars = np.stack((y - low, high - y)).clip(0)
        if np.isfinite(bars).any():
            axes.errorbar(x, y, np.nan_to_num(bars), fmt="none", color=style["color"], alpha=0.5, linewidth=1)
    if floor is not None:
        axes.axhline(floor, color=matplotlib.rcParams["text.color"], linestyle="--", linewidth=1, label="floor")
    everything = [v for line in lines for v in line.y] + ([] if floor is None else [floor])
    at = [v for line in lines for v in line.x]
    logarithmic(axes.xaxis, axes.set_xscale, at, 3)
    if len(set(at)) <= 9:  # a few whole numbers, shared by the samplers
        axes.set_xticks(sorted(set(at)), [f"{v:g}" for v in sorted(set(at))])
        axes.set_xticks([], minor=True)
    logarithmic(axes.yaxis, axes.set_yscale, everything, 5)
    axes.set_xlabel(xlabel)
    axes.set_ylabel("\n".join(textwrap.wrap(ylabel, 42)))
    axes.grid(alpha=0.3)
    figure.legend(loc="outside upper center", ncols=4 if len(lines) < 4 else 3, fontsize=8)
    return figure


def shares(names: Sequence[str], samples: Sequence[float], data: Sequence[float]) -> Figure:
    """Share of each class among samples and data; of very many, those that differ most."""
    order = list(range(len(names)))
    if len(order) > _MOST_BARS:
        order = sorted(sorted(order, key=lambda i: -abs(samples[i] - data[i]))[:_MOST_BARS])
    at = np.arange(len(order))
    figure = Figure(figsize=(WIDTH, 1.0 + 0.3 * len(order)), layout="constrained")
    axes = figure.add_subplot()
    axes.barh(at - 0.2, [100 * data[i] for i in order], 0.38, color=sample_figures.DATA, label="data")
    axes.barh(at + 0.2, [100 * samples[i] for i in order], 0.38, color=sample_figures.MODEL, label="samples")
    axes.set_yticks(at, [sample_figures.drawable(names[i], 18) for i in order])
    axes.invert_yaxis()
    axes.set_xlabel("share, per cent")
    axes.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside upper center", ncols=2)
    return figure


def logarithmic(axis: Any, set_scale: Callable[[str], None], values: Sequence[float], above: float) -> None:
    """A logarithmic axis with plain numbers, where values are positive and span more than a factor ``above``."""
    finite = [v for v in values if math.isfinite(v)]
    if finite and min(finite) > 0 and max(finite) > above * min(finite):
        set_scale("log")
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
        if max(finite) < 30 * min(finite):
            axis.set_minor_formatter(_Sparse())
        else:
            axis.set_minor_formatter(NullFormatter())
    elif all(v == int(v) for v in finite):
        axis.set_major_locator(MaxNLocator(integer=True))


class _Sparse(StrMethodFormatter):
    """Labels 2 and 5 of a short logarithmic axis, which may hold a single power of ten."""

    def __init__(self) -> None:
        super().__init__("{x:g}")

    def __call__(self, x: float, pos: int | None = None) -> str:
        digit = round(x / 10 ** math.floor(math.log10(x) + 1e-9)) if x > 0 else 0
        return super().__call__(x, pos) if digit in (2, 3, 5) else ""


# -- pixels ------------------------------------------------------------------------------------------------------


def _png(image: Image.Image) -> bytes:
    held = io.BytesIO()
    image.save(held, format="PNG", optimize=True)
    return held.getvalue()
