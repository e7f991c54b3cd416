"""The pictures of samples: images, maps and volumes as tiles of one sheet, lines as curves, tables as pairs of columns.

Real rows are drawn beside (tables: behind) the samples, on the scale of the real ones. Colours of text and page are
matplotlib's current ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib import rcParams
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from ansn.data.units import Column

_DPI = 110
_MIN_PIXELS, _MIN_EACH = 640, 480  # width of a grid of tiles that stands alone, or beside another
_MOST_PAIRED = 5  # columns of a table that are drawn against each other
_MOST_CHANNELS = 4  # of an image or a map that has neither one nor three colours
_OUTSIDE = 0.02  # five grey levels: what the eye could see beyond [0, 1]
_MANY = 0.01  # share of the values above which clipping is told
_BACKGROUND, _NOT_FINITE = 0.35, (1.0, 0.0, 1.0)
DATA, MODEL, NOISE = "0.6", "C0", "C3"
FIELD = "viridis"
"""The colours of a field's values."""

Scale = tuple[float, float]
Array = NDArray[np.floating[Any]]


# -- images, maps, volumes ---------------------------------------------------------------------------------------


def kind_of(shape: Sequence[int], kind: str | None = None) -> str:
    """"table", "lines", "image", "map" or "volume", by the shape of a row; ``kind`` "field" tells a map from an
    image."""
    return {1: "table", 2: "lines", 3: "map" if kind == "field" else "image", 4: "volume"}[len(shape)]


def is_image(shape: Sequence[int], kind: str | None = None) -> bool:
    """Whether a row is grey or coloured as it stands: an image ``(1 or 3, H, W)``."""
    return kind_of(shape, kind) == "image" and shape[0] in (1, 3)


def layers(x: Tensor) -> tuple[list[Tensor], str]:
    """What is shown of maps ``[n, C, H, W]`` and volumes ``[n, C, D, H, W]``: planes ``[n, h, w]`` that lie side by
    side in a tile, and a line that says which; empty where it is all."""
    if x.ndim == 5:
        planes = [x[:, 0].select(axis, x.shape[axis + 1] // 2) for axis in (1, 2, 3)]
        at = ", ".join(f"{size // 2} of {size}" for size in x.shape[2:])
        return planes, f"middle slices across the three axes ({at}){' of channel 0' if x.shape[1] > 1 else ''}"
    planes = [x[:, c] for c in range(min(x.shape[1], _MOST_CHANNELS))]
    of = f" of {x.shape[1]}" if len(planes) < x.shape[1] else ""
    return planes, f"channels 0 to {len(planes) - 1}{of} side by side" if len(planes) > 1 else ""


def limits(x: Tensor, kind: str | None = None) -> list[Scale]:
    """Ends of the scale of each plane: one pair for all slices of a volume, 0 to 1 for images. Least and largest value,
    or those of 99 % where the rest would take most of the colours."""
    planes, _ = layers(x)
    if kind_of(x.shape[1:], kind) == "image":
        return [(0.0, 1.0)] * len(planes)
    if x.ndim == 5:
        return [_most(np.concatenate([plane.double().numpy().ravel() for plane in planes]))] * 3
    return [_most(plane.double().numpy()) for plane in planes]


def tiles(x: Tensor, kind: str | None = None, scales: Sequence[Scale] | None = None) -> Tensor:
    """Rows as coloured pictures, float32 ``[n, 3, h, w]`` in [0, 1]: images as they are, those of other than one or
    three channels in grey, fields in the colours of :data:`FIELD`; clipped to ``scales``, by default their own.
    What is not finite is magenta."""
    x = x.detach().cpu()
    if is_image(x.shape[1:], kind):
        return colours(x)
    planes, _ = layers(x)
    grey = kind_of(x.shape[1:], kind) == "image"
    height, made = max(plane.shape[1] for plane in planes), []
    for plane, (low, high) in zip(planes, scales or limits(x, kind), strict=True):
        at = ((plane.double() - low) / (high - low)).float().unsqueeze(1)
        picture = colours(at if grey else _coloured(at))
        made.append(functional.pad(picture, (0, 1, 0, height - plane.shape[1]), value=_BACKGROUND))
    return torch.cat(made, -1)[..., :-1]


def _coloured(at: Tensor) -> Tensor:
    """Values ``[n, 1, h, w]`` of [0, 1] as colours ``[n, 3, h, w]``; what is not finite stays so."""
    rgb = matplotlib.colormaps[FIELD](at[:, 0].nan_to_num().clamp(0, 1).numpy())[..., :3]
    return torch.where(torch.isfinite(at), torch.from_numpy(rgb).float().movedim(-1, 1), torch.nan)


def colours(x: Tensor) -> Tensor:
    """Images ``[n, 1 or 3, H, W]`` as float32 ``[n, 3, H, W]`` in [0, 1]: clipped, and magenta where not finite."""
    x = x.detach().float().cpu()
    images = x.clamp(0, 1).expand(len(x), 3, *x.shape[2:]).clone()
    broken = ~torch.isfinite(x).all(1, keepdim=True).expand_as(images)
    images[broken] = torch.tensor(_NOT_FINITE).view(1, 3, 1, 1).expand_as(images)[broken]
    return images


def sheet(
    x: Tensor,
    reference: Tensor | None = None,
    *,
    kind: str | None = None,
    columns: int | None = None,
    upscale: int | None = None,
) -> NDArray[np.uint8]:
    """Images, maps or volumes as a grid, uint8 ``[height, width, 3]``: rows of the data on the left, samples on the
    right, on the data's scale; a line on what is shown and what was clipped, and the scale of colours of a field."""
    scales = limits(x if reference is None else reference, kind)
    whole = [("samples", x)] if reference is None else [("data", reference[: len(x)]), ("samples", x)]
    blocks = [(title, tiles(rows, kind, scales)) for title, rows in whole]
    height, width = blocks[0][1].shape[2:]
    columns = min(len(x), columns or math.ceil(math.sqrt(len(x) * height / width)))
    least = _MIN_PIXELS if reference is None else _MIN_EACH
    # Planes of one sample are nearer to each other than samples are.
    apart = 1 if is_image(x.shape[1:], kind) or len(scales) == 1 else 3
    scale = upscale or max(1, math.ceil(least / (columns * (width + apart) + apart)))
    grids = [image_grid(pictures, columns, scale, apart) for _, pictures in blocks]
    if reference is not None:
        grids = [np.concatenate((_line(title, g.shape[1]), g)) for (title, _), g in zip(blocks, grids, strict=True)]
        high, gap = max(len(g) for g in grids), max(12, 2 * scale)
        padded = [_padded(g, high - len(g), gap * (i == 0)) for i, g in enumerate(grids)]
        grids = [np.concatenate(padded, 1)]
    parts, coloured = [grids[0]], kind_of(x.shape[1:], kind) != "image"
    what = "" if is_image(x.shape[1:], kind) else layers(x)[1]
    shown = layers(whole[0][1])[0] if coloured else []
    cut = any(bool(((p < low) | (p > high)).any()) for p, (low, high) in zip(shown, scales, strict=bool(shown)))
    ends = "values beyond the scale have the colour of its end" if cut else ""
    note = "; ".join(filter(None, (what, ends, clipping(x, None if not coloured else scales))))
    if note:
        parts.insert(0, _line(note, parts[0].shape[1]))
    if coloured:
        parts.append(_bars(scales[:1] if x.ndim == 5 else scales, parts[-1].shape[1]))
    return np.concatenate(parts)


def image_grid(images: Tensor, columns: int, scale: int, apart: int = 1) -> NDArray[np.uint8]:
    """Coloured pictures ``[n, 3, H, W]``, ``apart`` background pixels between them, all enlarged by a whole number."""
    n, _, height, width = images.shape
    columns, high, wide = min(n, columns), height + apart, width + apart
    made = torch.full((3, math.ceil(n / columns) * high + apart, columns * wide + apart), _BACKGROUND)
    for i, image in enumerate(images):
        top, left = (i // columns) * high + apart, (i % columns) * wide + apart
        made[:, top : top + height, left : left + width] = image
    pixels = (made * 255).round().byte().permute(1, 2, 0).numpy()
    return np.ascontiguousarray(pixels.repeat(scale, 0).repeat(scale, 1))


def clipping(x: Tensor, scales: Sequence[Scale] | None = None) -> str:
    """What clipping hid, in a line; empty if it is not worth one. ``scales``: of the planes of a field; by default of
    images, [0, 1]."""
    planes = [x] if scales is None else layers(x)[0]
    ends = [(0.0, 1.0)] if scales is None else scales
    finite = torch.cat([torch.isfinite(plane).flatten() for plane in planes])
    at = torch.cat([((p.double() - a) / (b - a)).flatten() for p, (a, b) in zip(planes, ends, strict=True)])[finite]
    notes = []
    share = ((at < -_OUTSIDE) | (at > 1 + _OUTSIDE)).float().mean().item() if at.numel() else 0.0
    if share > _MANY:
        low, high = written(*_range(torch.cat([plane.flatten() for plane in planes]).double().numpy()), count=2)
        beyond = "[0, 1]" if scales is None else "the data's scale"
        notes.append(f"{share:.1%} of the values lay outside {beyond} ({low} to {high}) and were clipped")
    if not bool(finite.all()):
        notes.append(f"{int((~finite).sum()):,} values are not finite (magenta)")
    return "; ".join(notes)


def written(low: float, high: float, count: int = 3) -> list[str]:
    """``count`` numbers from ``low`` to ``high``, with digits enough to tell them apart."""
    most = max(abs(low), abs(high))
    digits = 3 + max(0, math.ceil(math.log10(most / (high - low))))
    plain = 1e-3 <= most < 1e7
    form = f".{max(0, digits - 1 - math.floor(math.log10(most)))}f" if plain else f".{digits}g"
    return [f"{v:{form}}" for v in np.linspace(low, high, count)]


def _line(text: str, width: int) -> NDArray[np.uint8]:
    """Text on the page's colour, ``[height, width, 3]``, in letters that fit the width."""
    size = min(10.0, 0.95 * width * 72 / _DPI / (0.56 * len(text)))
    figure = Figure(figsize=((width + 0.5) / _DPI, 28.5 / _DPI), dpi=_DPI)
    figure.text(0.5, 0.5, text, ha="center", va="center", fontsize=size)
    return _pixels(figure, width)


def _bars(scales: Sequence[Scale], width: int) -> NDArray[np.uint8]:
    """A scale of colours for each channel, side by side."""
    figure = Figure(figsize=((width + 0.5) / _DPI, 52.5 / _DPI), dpi=_DPI)
    for i, (low, high) in enumerate(scales):
        axes = figure.add_axes(((i + 0.12) / len(scales), 0.55, 0.76 / len(scales), 0.27))
        bar = figure.colorbar(ScalarMappable(Normalize(low, high), FIELD), cax=axes, orientation="horizontal")
        bar.set_ticks(list(np.linspace(low, high, 3)), labels=written(low, high))
        axes.tick_params(labelsize=8 if len(scales) < 4 else 6)
        if len(scales) > 1:
            axes.text(-0.03, 0.5, str(i), transform=axes.transAxes, ha="right", va="center", fontsize=8)
    return _pixels(figure, width)


def _pixels(figure: Figure, width: int) -> NDArray[np.uint8]:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    drawn = np.asarray(canvas.buffer_rgba())[:, :width, :3]
    return _padded(drawn, 0, width - drawn.shape[1])


def _padded(pixels: NDArray[np.uint8], below: int, right: int) -> NDArray[np.uint8]:
    """With rows below and columns on the right in the colour of the page."""
    page = np.array([round(255 * v) for v in to_rgb(rcParams["figure.facecolor"])], np.uint8)
    made = np.tile(page, (pixels.shape[0] + below, pixels.shape[1] + right, 1))
    made[: pixels.shape[0], : pixels.shape[1]] = pixels
    return made


# -- lines -------------------------------------------------------------------------------------------------------


def curves_figure(
    x: Array, columns: int | None = None, reference: Array | None = None, width: float | None = None
) -> Figure:
    """Lines ``[n, C, L]`` in a grid of cells twice as wide as high, a colour for each channel: the data on the left,
    the samples on the right, all on the data's scale."""
    columns = min(len(x), columns or math.ceil(math.sqrt(len(x) / 2)))
    blocks = [("samples", x)] if reference is None else [("data", reference[: len(x)]), ("samples", x)]
    width, rows = width or (8 if reference is None else 13), math.ceil(len(x) / columns)
    figure = Figure(figsize=(width, 1.0 + rows * width / len(blocks) / columns / 2), layout="constrained")
    cells: Any = figure.subplots(1, len(blocks), squeeze=False)[0]
    scales = line_scales(x if reference is None else reference)
    for axes, (title, lines) in zip(cells, blocks, strict=True):
        curves(axes, lines, columns, scales, rows)
        axes.set_title(title if reference is not None else "", fontsize="medium")
    told = sorted({f"{low} to {high}" for low, high in (written(*scale, count=2) for scale in scales)})
    each = "each cell from " if len(told) == 1 else "each channel on its scale: "
    beyond = any((x[:, c] < low).any() or (x[:, c] > high).any() for c, (low, high) in enumerate(scales))
    what = f"{each}{', '.join(told[:4])}{', ...' if len(told) > 4 else ''}; positions 0 to {x.shape[2] - 1}"
    what += "; what is beyond is cut" if beyond else ""
    figure.suptitle(what, fontsize="medium")
    if x.shape[1] > 1:
        handles = cells[0].get_lines()[:: len(blocks[0][1])][:10]
        names = [f"channel {c}" for c in range(len(handles))]
        figure.legend(handles, names, loc="outside lower center", ncols=5, fontsize="small")
    return figure


def line_scales(x: Array) -> list[Scale]:
    """Ends of the values of lines ``[n, C, L]``, a pair for each channel: the same where their spreads are alike."""
    each = [_usual(x[:, c]) for c in range(x.shape[1])]
    spread, whole = [high - low for low, high in each], (min(low for low, _ in each), max(high for _, high in each))
    return [whole] * len(each) if whole[1] - whole[0] < 5 * min(spread) else each


def curves(
    axes: Any, x: Array, columns: int, scales: Sequence[Scale] | None = None, rows: int | None = None
) -> list[Scale]:
    """Lines ``[n, C, L]`` in cells of one set of axes (a set for each of hundreds would take minutes), clipped to the
    scales of their channels, which are returned. Of a long line about a thousand points are drawn."""
    x = x[:, :, :: max(1, x.shape[2] // 1000)]
    n, channels, length = x.shape
    rows = rows or math.ceil(n / columns)
    scales = list(scales or line_scales(x))
    at = np.arange(n)
    across = at % columns + np.linspace(0.04, 0.96, length)[:, None]
    for c in range(channels):
        low, high = scales[c]
        up = (rows - 1 - at // columns)[:, None] + 0.08 + 0.84 * np.clip((x[:, c] - low) / (high - low), -0.05, 1.05)
        axes.plot(across, up.T, color=f"C{c}", linewidth=0.9)
    axes.set(xlim=(0, columns), ylim=(0, rows), xticks=range(columns + 1), yticks=range(rows + 1))
    axes.tick_params(length=0, labelbottom=False, labelleft=False)
    axes.grid(linewidth=0.5)
    return scales


def _most(x: NDArray[Any]) -> Scale:
    """Least and largest finite value, or of 99 % where the rest takes more than half of what lies between."""
    whole, seen = _range(x), x[np.isfinite(x)]
    low, high = map(float, np.quantile(seen, (0.005, 0.995))) if seen.size else whole
    return (low, high) if high > low and whole[1] - whole[0] > 2 * (high - low) else whole


def _usual(x: Array) -> Scale:
    """Ends of the values of rows ``[n, L]``; of most rows, where a few are so large that the rest would be flat."""
    whole, rows = _range(x), x[np.isfinite(x).all(1)]
    if not len(rows):
        return whole
    low, high = float(np.quantile(rows.min(1), 0.1)), float(np.quantile(rows.max(1), 0.9))
    return (low, high) if high > low and whole[1] - whole[0] > 2 * (high - low) else whole


def _range(x: NDArray[Any]) -> Scale:
    """Least and largest finite value, apart."""
    seen = x[np.isfinite(x)]
    low, high = (float(seen.min()), float(seen.max())) if seen.size else (0.0, 1.0)
    return low, high if high > low else low + (abs(low) or 1.0)


# -- tables ------------------------------------------------------------------------------------------------------


def drawable(text: str, width: int = 24) -> str:
    """A name from outside (of a column, a class) as text that any figure can draw, shortened to ``width`` letters.

    Matplotlib takes dollars for mathematics and cannot draw control characters.
    """
    plain = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    plain = plain if len(plain) <= width else plain[: width - 1] + "…"
    return plain.replace("$", r"\$") or "(no name)"


def scatter_figure(
    x: Array,
    reference: Array | None,
    names: Sequence[str],
    *,
    side: float | None = None,
    cells: Sequence[Column] | None = None,
    note: str | None = None,
) -> Figure:
    """The picture of tables that :func:`ansn.figures.save_samples` writes; ``side``: in inches; ``cells``: the
    columns, whose words and times the axes are marked with; ``note``: in place of how many of all are shown."""
    count = min(len(names), _MOST_PAIRED)
    note = note if note is not None or len(names) <= count else f"first {count} of {len(names)} columns"
    names = [drawable(name, 24 if count <= 2 else 14) for name in names]
    if count <= 2:
        figure = Figure(figsize=(side or 6.5, side or 6.5), layout="constrained")
        axes = figure.add_subplot()
        axes.set_xlabel(names[0])
        if count == 1:
            histogram(axes, x[:, 0], None if reference is None else reference[:, 0])
            axes.set_ylabel("density")
        else:
            points(axes, x, reference, 0, 1)
            axes.set_ylabel(names[1])
            spread = np.ptp(x if reference is None else reference, axis=0)
            if spread.max() < 3 * spread.min():  # else one of the two would be a thin line
                axes.set_aspect("equal", adjustable="datalim")
        write_ticks(axes.xaxis, cells[0] if cells else None)
        write_ticks(axes.yaxis, cells[1] if cells and count == 2 else None)
        if reference is not None:
            axes.legend(markerscale=2, loc="upper right")
        if note:
            figure.suptitle(note, x=0.01, ha="left", fontsize="medium")
        return figure
    figure = Figure(figsize=(side or 2.2 * count, side or 2.2 * count), layout="constrained")
    panels = figure.subplots(count, count, sharex="col", squeeze=False)
    for i in range(count):
        for j in range(count):
            axes = panels[i][j]
            if i == j:
                histogram(axes, x[:, i], None if reference is None else reference[:, i])
                axes.set_yticks([])
            else:
                points(axes, x, reference, j, i)
            axes.tick_params(labelsize="small", labelleft=j == (i == 0))
            axes.xaxis.set_major_locator(MaxNLocator(4))
            write_ticks(axes.xaxis, cells[j] if cells else None, 3)
            write_ticks(axes.yaxis, cells[i] if cells and i != j else None, 3)
            if i == count - 1:
                axes.set_xlabel(names[j])
            if j == 0:
                axes.set_ylabel(names[i])
    if reference is not None:
        handles, labels = panels[0][1].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper right", ncols=2, markerscale=2)
    if note:
        figure.suptitle(note, x=0.01, ha="left", fontsize="medium")
    return figure


def write_ticks(axis: Any, column: Column | None, most: int = 5) -> None:
    """Marks of an axis as the cells of its column are written, where these are words or times; else as they are."""
    if column is None or not (column.words or column.form):
        return

    def cell(value: float, _: int | None = None) -> str:
        if column.words and not (value.is_integer() and 0 <= value < len(column.words)):
            return ""
        return drawable(column.cell(value).partition(" ")[0] if column.form else column.cell(value), 12)

    axis.set_major_locator(MaxNLocator(5, integer=True) if column.words else MaxNLocator(most))
    axis.set_major_formatter(cell)
    if axis.axis_name == "x":
        axis.set_tick_params(labelrotation=25)


def points(axes: Any, x: Array, reference: Array | None, i: int, j: int) -> None:
    if reference is not None:
        axes.scatter(*_apart(reference, i, j), s=3, color=DATA, linewidths=0, label="data")
    size = min(14.0, max(3.0, 3.0 * (1000 / len(x)) ** 0.5))  # a few must be seen among many
    axes.scatter(*_apart(x, i, j), s=size, color=MODEL, linewidths=0, alpha=0.6, label="samples")


def _apart(x: Array, *columns: int) -> list[Array]:
    """Columns of numbers; those of few whole numbers are scattered a little, so that their points do not coincide."""
    rng = np.random.default_rng(0)
    made: list[Array] = []
    for j in columns:
        values = x[:, j]
        some = values[np.isfinite(values)][:200]
        few = len(np.unique(some)) <= 12 and bool((some == np.round(some)).all())
        made.append(values + few * rng.uniform(-0.2, 0.2, len(values)))
    return made


def edges(x: Array, bins: int) -> Array:
    """Ends of the bars of a histogram, a few outliers left out; each bar of whole numbers has as many of them."""
    if len(x) == 0:
        return np.linspace(0.0, 1.0, bins + 1)
    inner, whole = np.quantile(x, (0.005, 0.995)), bool((x == np.round(x)).all())
    reach = 60.0 if whole and np.ptp(x) < 60 else 0.5 * (inner[1] - inner[0])  # a rare word is no outlier
    seen = x[(x >= inner[0] - reach) & (x <= inner[1] + reach)]
    low, high = seen.min(), seen.max()
    if whole:
        width = math.ceil((high - low + 1) / max(bins, 20))
        return np.arange(low - 0.5, high + width, width)
    return np.histogram_bin_edges(seen, bins=bins)


def histogram(axes: Any, x: Array, reference: Array | None, floor: Array | None = None) -> None:
    """Densities of samples, of the data behind them and of held-out rows, of what is finite."""
    x = x[np.isfinite(x)]
    reference, floor = (None if v is None else v[np.isfinite(v)] for v in (reference, floor))
    fewest = len(x) if floor is None else min(len(x), 4 * len(floor))
    bins = min(40, max(8, round(3 * fewest ** (1 / 3))))
    ends = edges(x if reference is None else np.concatenate((x, reference)), bins)
    step: dict[str, Any] = {"histtype": "step"}
    for values, style in (
        (reference, {"color": DATA, "alpha": 0.6, "label": "data"}),
        (floor, {"color": rcParams["text.color"], "linewidth": 0.8, "label": "held-out data", **step}),
        (x, {"color": MODEL, "linewidth": 1.5, "label": "samples", **step}),
    ):
        if values is not None and ((values >= ends[0]) & (values <= ends[-1])).any():  # else there is no density
            axes.hist(values, ends, density=True, **style)
