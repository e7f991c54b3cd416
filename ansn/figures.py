"""The pictures of a run: samples.png, covariance.png, loss.png.

Matplotlib's figures are drawn without pyplot, so neither its current figure nor the user's backend is touched. A file
is complete or not there; the same input gives the same bytes.
"""

from __future__ import annotations

import io
import math
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import rcParams
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ansn.covariance import AdaptiveCovariance
from ansn.files import write_atomic

_DPI = 110
_MIN_PIXELS = 640  # width of a grid of samples
_MOST_PAIRED = 5  # columns of a table that are drawn against each other
_OUTSIDE = 0.02  # five grey levels: what the eye could see beyond [0, 1]
_MANY = 0.01  # share of the values above which clipping is told
_BACKGROUND, _NOT_FINITE = (0.35, 0.35, 0.35), (1.0, 0.0, 1.0)
DATA, MODEL, NOISE = "0.6", "C0", "C3"

Path_ = str | os.PathLike[str]


def save_samples(
    x: Tensor,
    path: Path_,
    *,
    columns: int | None = None,
    upscale: int | None = None,
    reference: Tensor | None = None,
    names: Sequence[str] | None = None,
) -> None:
    """A PNG of samples: images as a grid, lines as curves, volumes by their middle slices, vectors as scatter plots.

    Images ``[n, 1 or 3, H, W]`` in [0, 1] are enlarged without smoothing; values outside are clipped, and a line above
    the grid says so when they are many (over 1 % of the values, by more than 0.02). What is not finite is magenta.
    Lines ``[n, C, L]``: one curve a channel, all on one scale. Volumes ``[n, C, D, H, W]``: their first channel at the
    middle of D in grey, all on one scale.
    Vectors ``[n, d]``: a histogram (d = 1), a scatter plot (2), or the first five columns against each other.

    Args:
        columns: samples in a row; by default the grid is about square.
        upscale: pixels a side for each pixel; by default the grid is at least 640 wide.
        reference: vectors ``[m, d]`` of the data, drawn behind. names: of the d columns.

    Raises ValueError for other shapes or arguments, OSError if the file cannot be written.
    """
    x = x.detach().float().cpu()
    if len(x) < 1 or not (x.ndim in (2, 3, 5) or (x.ndim == 4 and x.shape[1] in (1, 3))):
        raise ValueError(
            f"x: got shape {list(x.shape)}, expected [n, 1 or 3, H, W], [n, C, L], [n, C, D, H, W] or [n, d] with n at"
            " least 1"
        )
    for name, value in (("columns", columns), ("upscale", upscale)):
        if value is not None and value < 1:
            raise ValueError(f"{name}: got {value}, expected at least 1")
    if x.ndim == 3:
        write_figure(curves_figure(x.numpy(), columns), path)
        return
    if x.ndim > 3:
        x, note = middle_slices(x) if x.ndim == 5 else (x, clipping(x))
        grid = image_grid(x, columns, upscale)
        _write(path, Image.fromarray(np.concatenate((_line(note, grid.shape[1]), grid)) if note else grid))
        return
    if reference is not None and reference.shape[1:] != x.shape[1:]:
        raise ValueError(f"reference: got shape {list(reference.shape)}, expected [m, {x.shape[1]}] as the samples")
    if names is not None and len(names) != x.shape[1]:
        raise ValueError(f"names: got {len(names)}, expected one for each of {x.shape[1]} columns")
    behind = None if reference is None else reference.detach().float().cpu().numpy()
    write_figure(scatter_figure(x.numpy(), behind, list(names or (f"x{j}" for j in range(x.shape[1])))), path)


def save_covariance(
    covariance: AdaptiveCovariance, path: Path_, *, region: int = 0, names: Sequence[str] | None = None
) -> None:
    """One region's noise: spectra of S, as it counts, and R, draws ``L z``, and the leading directions of S, which R
    shares, as pictures, curves or middle slices.

    A diagonal structure has no directions to show: there its standard deviations take their place. ``names``: of a
    vector's coordinates. A dense S that keeps no pencil takes one eigendecomposition: about 6 s on one CPU core at
    d = 3072, 0.2 s at 784.

    Raises ValueError for a region that is not there, OSError if the file cannot be written.
    """
    if not 0 <= region < covariance.regions:
        raise ValueError(f"region: got {region}, expected 0..{covariance.regions - 1}")
    values, noise, rows, title, labels = leading(covariance, region)
    figure = Figure(figsize=(12, 6), layout="constrained")
    halves: Any = figure.subfigures(1, 2, width_ratios=(1, 1.5))
    left, right = halves
    figure.suptitle(heading(covariance, region, values, noise))
    spectra(left.add_subplot(), values, noise)
    top, bottom = right.subfigures(2, 1)
    draws = noise_draws(covariance, region, 8)
    panels(top, draws, covariance.shape, "draws of the noise, L z", [str(i + 1) for i in range(8)], names)
    panels(bottom, rows, covariance.shape, title, labels, names)
    write_figure(figure, path)


def save_loss(metrics: Sequence[dict[str, Any]], path: Path_) -> None:
    """Loss (each record, light, and a running mean) and condition number of R against the step.

    ``metrics``: records of metrics.jsonl, dictionaries with ``step`` and, where known, ``loss`` and
    ``condition_number``; None and what is not finite is left out. An axis that spans more than a decade is logarithmic.
    """
    write_figure(loss_figure(metrics), path)


def loss_figure(metrics: Sequence[dict[str, Any]], size: tuple[float, float] = (8, 4.8)) -> Figure:
    """The picture of :func:`save_loss`; ``size`` in inches."""
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    steps, loss = _series(metrics, "loss")
    if not len(loss):
        axes.text(0.5, 0.5, "no records yet", ha="center", va="center", transform=axes.transAxes)
        return figure
    axes.plot(steps, loss, color=MODEL, alpha=0.35, marker="." if len(loss) < 5 else "", label="loss of a record")
    if len(loss) >= 5:
        width = max(3, len(loss) // 15)
        # The steps go through the same mean, so that the curve does not lag.
        smooth = [np.convolve(v, np.ones(width) / width, mode="valid") for v in (steps, loss)]
        axes.plot(*smooth, color=MODEL, label=f"mean of {width} records")
    _log_if_wide(axes, loss)
    lines = list(axes.get_lines())
    at, condition = _series(metrics, "condition_number")
    if len(condition):
        other = axes.twinx()
        other.plot(at, condition, color=NOISE, linestyle=":", label="condition number of R")
        other.set_ylabel("condition number of R")
        if condition.max() <= 100:
            # From 1, which is isotropic noise, so that a small drift is not blown up.
            other.set_ylim(1, 1.15 * condition.max() + 0.5)
        _log_if_wide(other, condition)
        lines += other.get_lines()
    columns = 3 if size[0] >= 8 else 2
    figure.legend(lines, [str(line.get_label()) for line in lines], loc="outside upper center", ncols=columns)
    return figure


# -- samples -----------------------------------------------------------------------------------------------------


def image_grid(x: Tensor, columns: int | None, upscale: int | None) -> NDArray[np.uint8]:
    """One background pixel between images, all enlarged by a whole number: uint8 ``[rows, width, 3]``."""
    n, _, height, width = x.shape
    columns = min(n, columns or math.ceil(math.sqrt(n)))
    rows = math.ceil(n / columns)
    scale = upscale or max(1, math.ceil(_MIN_PIXELS / (columns * (width + 1) + 1)))
    images = colours(x)
    sheet = torch.tensor(_BACKGROUND).view(3, 1, 1).repeat(1, rows * (height + 1) + 1, columns * (width + 1) + 1)
    for i, image in enumerate(images):
        top, left = (i // columns) * (height + 1) + 1, (i % columns) * (width + 1) + 1
        sheet[:, top : top + height, left : left + width] = image
    pixels = (sheet * 255).round().byte().permute(1, 2, 0).numpy()
    return np.ascontiguousarray(pixels.repeat(scale, 0).repeat(scale, 1))


def middle_slices(x: Tensor) -> tuple[Tensor, str]:
    """Volumes ``[n, C, D, H, W]`` as images ``[n, 1, H, W]`` in [0, 1], and a line that says what is shown."""
    middle = x[:, :1, x.shape[2] // 2]
    low, high = _range(middle.numpy())
    what = f"slice {x.shape[2] // 2} of {x.shape[2]}{' of the first channel' if x.shape[1] > 1 else ''}"
    return (middle - low) / (high - low), f"{what}, black {low:.3g} to white {high:.3g}"


def curves_figure(x: NDArray[np.float32], columns: int | None) -> Figure:
    """Lines ``[n, C, L]`` in a grid of cells twice as wide as high, a colour for each channel."""
    columns = min(len(x), columns or math.ceil(math.sqrt(len(x) / 2)))
    figure = Figure(figsize=(8, 0.5 + 4 * math.ceil(len(x) / columns) / columns), layout="constrained")
    axes = figure.add_subplot()
    low, high = curves(axes, x, columns)
    axes.set_title(f"each cell from {low:.3g} to {high:.3g}, positions 0..{x.shape[2] - 1}", fontsize="medium")
    return figure


def curves(axes: Any, x: NDArray[np.float32], columns: int) -> tuple[float, float]:
    """Lines ``[n, C, L]`` in cells of one set of axes (a set for each of hundreds would take minutes), on one scale;
    returns its ends. Of a long line about a thousand points are drawn."""
    x = x[:, :, :: max(1, x.shape[2] // 1000)]
    n, channels, length = x.shape
    rows = math.ceil(n / columns)
    low, high = _range(x)
    at = np.arange(n)
    across = at % columns + np.linspace(0.04, 0.96, length)[:, None]
    up = (rows - 1 - at // columns)[:, None, None] + 0.05 + 0.9 * (x - low) / (high - low)
    for c in range(channels):
        axes.plot(across, up[:, c].T, color=f"C{c}", linewidth=0.9)
    axes.set(xlim=(0, columns), ylim=(0, rows), xticks=range(columns + 1), yticks=range(rows + 1))
    axes.tick_params(length=0, labelbottom=False, labelleft=False)
    axes.grid(linewidth=0.5)
    return low, high


def _range(x: NDArray[np.float32]) -> tuple[float, float]:
    """Least and largest finite value, apart."""
    seen = x[np.isfinite(x)]
    low, high = (float(seen.min()), float(seen.max())) if seen.size else (0.0, 1.0)
    return low, high if high > low else low + 1


def colours(x: Tensor) -> Tensor:
    """Images ``[n, 1 or 3, H, W]`` as float32 ``[n, 3, H, W]`` in [0, 1]: clipped, and magenta where not finite."""
    x = x.detach().float().cpu()
    images = x.clamp(0, 1).expand(len(x), 3, *x.shape[2:]).clone()
    broken = ~torch.isfinite(x).all(1, keepdim=True).expand_as(images)
    images[broken] = torch.tensor(_NOT_FINITE).view(1, 3, 1, 1).expand_as(images)[broken]
    return images


def is_image(shape: Sequence[int]) -> bool:
    """Whether data of this shape is shown as pictures: ``(1 or 3, H, W)``."""
    return len(shape) == 3 and shape[0] in (1, 3)


def drawable(text: str, width: int = 24) -> str:
    """A name from outside (of a column, a class) as text that any figure can draw, shortened to ``width`` letters.

    Matplotlib takes dollars for mathematics and cannot draw control characters.
    """
    plain = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    plain = plain if len(plain) <= width else plain[: width - 1] + "…"
    return plain.replace("$", r"\$") or "(no name)"


def clipping(x: Tensor) -> str:
    """What clipping hid, in a line; empty if it is not worth one."""
    finite = torch.isfinite(x)
    notes = []
    seen = x[finite]
    share = ((seen < -_OUTSIDE) | (seen > 1 + _OUTSIDE)).float().mean().item() if seen.numel() else 0.0
    if share > _MANY:
        low, high = float(seen.min()), float(seen.max())
        notes.append(f"{share:.1%} of the values lay outside [0, 1] ({low:.2g} to {high:.2g}) and were clipped")
    if not bool(finite.all()):
        notes.append(f"{1 - finite.float().mean().item():.1%} are not finite (magenta)")
    return "; ".join(notes)


def _line(text: str, width: int) -> NDArray[np.uint8]:
    """Text on white, ``[height, width, 3]``, in letters that fit the width."""
    size = min(10.0, 0.95 * width * 72 / _DPI / (0.56 * len(text)))
    figure = Figure(figsize=((width + 0.5) / _DPI, 28.5 / _DPI), dpi=_DPI)
    figure.text(0.5, 0.5, text, ha="center", va="center", fontsize=size)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    drawn = np.asarray(canvas.buffer_rgba())[:, :width, :3]
    return np.pad(drawn, ((0, 0), (0, width - drawn.shape[1]), (0, 0)), constant_values=255)


def scatter_figure(
    x: NDArray[np.float32], reference: NDArray[np.float32] | None, names: Sequence[str], *, side: float | None = None
) -> Figure:
    """The picture of vectors that :func:`save_samples` writes; ``side``: in inches."""
    count = min(len(names), _MOST_PAIRED)
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
            axes.set_aspect("equal", adjustable="datalim")
        if reference is not None:
            axes.legend(markerscale=4, loc="upper right")
        return figure
    figure = Figure(figsize=(side or 2.2 * count, side or 2.2 * count), layout="constrained")
    cells = figure.subplots(count, count, sharex="col", squeeze=False)
    for i in range(count):
        for j in range(count):
            axes = cells[i][j]
            if i == j:
                histogram(axes, x[:, i], None if reference is None else reference[:, i])
                axes.set_yticks([])
            else:
                points(axes, x, reference, j, i)
            axes.tick_params(labelsize="small")
            if i == count - 1:
                axes.set_xlabel(names[j])
            if j == 0:
                axes.set_ylabel(names[i])
    if reference is not None:
        handles, labels = cells[0][1].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper right", ncols=2, markerscale=4)
    if len(names) > count:
        figure.suptitle(f"first {count} of {len(names)} columns", x=0.01, ha="left", fontsize="medium")
    return figure


def points(axes: Any, x: NDArray[np.float32], reference: NDArray[np.float32] | None, i: int, j: int) -> None:
    if reference is not None:
        axes.scatter(reference[:, i], reference[:, j], s=3, color=DATA, linewidths=0, label="data")
    axes.scatter(x[:, i], x[:, j], s=3, color=MODEL, linewidths=0, alpha=0.6, label="samples")


def histogram(axes: Any, x: NDArray[np.float32], reference: NDArray[np.float32] | None) -> None:
    x = x[np.isfinite(x)]
    both = x if reference is None else np.concatenate((x, reference))
    edges = np.histogram_bin_edges(both, bins=40)
    if reference is not None:
        axes.hist(reference, edges, density=True, color=DATA, alpha=0.6, label="data")
    axes.hist(x, edges, density=True, color=MODEL, histtype="step", linewidth=1.5, label="samples")


# -- covariance --------------------------------------------------------------------------------------------------


def leading(covariance: AdaptiveCovariance, region: int) -> tuple[Tensor, Tensor, Tensor, str, list[str]]:
    """Variances of S and of R, ascending, and up to eight leading directions of S as rows, with a title and labels."""
    pencil = covariance.pencil
    variances, noise = (v[region].double().cpu() for v in (pencil.variances(), pencil.noise_variances()))
    if not covariance.structure.directed:
        rows, title, labels = torch.stack((variances, noise)).sqrt(), "standard deviations", ["data", "noise"]
    else:
        top = variances.argsort(descending=True)[:8]
        unit = torch.zeros(len(top), covariance.dim, dtype=pencil.like.dtype, device=pencil.like.device)
        unit[range(len(top)), top] = 1.0
        owner = torch.full((len(top),), region, device=unit.device) if covariance.regions > 1 else None
        rows = signed(pencil.directions(unit, owner).cpu())
        title, labels = "leading directions of S (and R)", [str(i + 1) for i in range(len(rows))]
    return variances.sort().values, noise.sort().values, rows, title, labels


def heading(covariance: AdaptiveCovariance, region: int, values: Tensor, noise: Tensor) -> str:
    of = f"region {region} of {covariance.regions}, " if covariance.regions > 1 else ""
    share = values.clamp_min(0) / values.clamp_min(0).sum()
    rank = float(torch.special.entr(share).sum().exp())
    name, count = covariance.structure.name, float(covariance.count[region])
    few = "" if bool(covariance.enough()[region]) else f" (too few for {name}: S counts as R)"
    return (
        f"{name}, {covariance.rules.family}, {of}{count:,.0f} points{few}:"
        f" condition number of R {float(noise[-1] / noise[0]):.4g},"
        f" effective rank of S {rank:.1f} of {covariance.dim}"
    )


def spectra(axes: Any, values: Tensor, noise: Tensor) -> None:
    order = np.arange(1, len(values) + 1)
    data, top = values.flip(0).double().numpy(), max(float(noise[-1]), float(values[-1]))
    # A logarithm has no place for directions without variance, nor for what rounding leaves of it.
    shown = np.where(data > 1e-9 * top, data, np.nan)
    bottom = np.nanmin(np.append(shown, float(noise[0])))
    axes.plot(order, noise.flip(0).double().numpy(), color=NOISE, linewidth=2.5, label="noise, R")
    # On top and dotted: the two coincide at rho = 1.
    dots: dict[str, Any] = {"linewidth": 1, "marker": ".", "markersize": 4, "linestyle": ":"}
    axes.plot(order, shown, color=rcParams["text.color"], label="data, S", **dots)
    axes.set_yscale("log")
    if len(order) > 10:
        axes.set_xscale("log")
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(0.2 * bottom, 2 * top)
    axes.set_xlabel("rank of the eigenvalue")
    axes.set_ylabel("variance, squared data units")
    axes.legend()


def noise_draws(covariance: AdaptiveCovariance, region: int, n: int) -> Tensor:
    like = covariance.snapshot.like
    z = torch.randn(n, covariance.dim, generator=torch.Generator().manual_seed(0), dtype=like.dtype).to(like.device)
    index = torch.full((n,), region, device=like.device) if covariance.regions > 1 else None
    return covariance.color(z, index).cpu()


def signed(vectors: Tensor) -> Tensor:
    """Rows with their largest entry positive: an eigenvector's sign is a matter of rounding."""
    largest = vectors.gather(1, vectors.abs().argmax(1, keepdim=True))
    return vectors * torch.where(largest < 0, -1.0, 1.0)


def panels(
    figure: Any,
    vectors: Tensor,
    shape: tuple[int, ...],
    title: str,
    labels: Sequence[str],
    names: Sequence[str] | None,
) -> None:
    """Rows as images, lines as curves, volumes by their middle slices, else as a heat map; on one symmetric scale that
    is written out."""
    rows = vectors.double().numpy()
    if len(shape) == 4:
        rows = rows.reshape(-1, *shape)[:, 0, shape[1] // 2].reshape(len(rows), -1)
        title, shape = f"{title}, slice {shape[1] // 2} of {shape[1]}", (1, *shape[2:])
    top = float(np.abs(rows).max()) or 1.0
    if len(shape) == 2:
        low, high = curves(figure.add_subplot(), rows.reshape(-1, *shape), 2 if len(rows) < 8 else 4)
        figure.suptitle(f"{title} ({low:.2g} to {high:.2g})", fontsize="medium")
        return
    coloured = len(shape) == 3 and shape[0] == 3
    figure.suptitle(f"{title} (grey 0, full colour ±{top:.2g})" if coloured else title, fontsize="medium")
    style: dict[str, Any] = {"cmap": "RdBu_r", "vmin": -top, "vmax": top, "interpolation": "nearest"}
    if not is_image(shape):
        axes = figure.add_subplot()
        figure.colorbar(axes.imshow(rows, aspect="auto", **style), ax=axes)
        axes.set_yticks(range(len(rows)), labels)
        if names is not None and len(names) <= 20:
            shown = [drawable(name) for name in names]
            axes.set_xticks(range(len(names)), shown)
            if sum(map(len, shown)) > 50:
                axes.tick_params(axis="x", labelrotation=30)
        else:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.set_xlabel("coordinate")
        return
    cells = figure.subplots(1 if len(rows) <= 4 else 2, min(len(rows), 4), squeeze=False).ravel()
    for axes in cells:
        axes.set_axis_off()
    for axes, row, label in zip(cells, rows.reshape(-1, *shape), labels, strict=False):
        # Colours have no sign to map, so grey stands for 0.
        image = 0.5 + 0.5 * row.transpose(1, 2, 0) / top if coloured else row[0]
        drawn = axes.imshow(image, **style)
        axes.set_title(label, fontsize="small", pad=2)
    if not coloured:
        figure.colorbar(drawn, ax=list(cells), shrink=0.8)


# -- loss --------------------------------------------------------------------------------------------------------


def _series(metrics: Sequence[dict[str, Any]], name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Steps and finite values of the records that have them."""
    pairs = [(m["step"], m[name]) for m in metrics if m.get(name) is not None and math.isfinite(m[name])]
    steps, values = np.array(pairs, dtype=np.float64).reshape(-1, 2).T
    return steps, values


def _log_if_wide(axes: Any, values: NDArray[np.float64]) -> None:
    if values.min() > 0 and values.max() > 10 * values.min():
        axes.set_yscale("log")


# -- files -------------------------------------------------------------------------------------------------------


def write_figure(figure: Figure, path: Path_) -> None:
    """A PNG of a figure, complete or not there."""
    _write(path, rasterised(figure, _DPI))


def rasterised(figure: Figure, dpi: int) -> Image.Image:
    """The figure's pixels, RGB."""
    canvas = FigureCanvasAgg(figure)
    figure.set_dpi(dpi)
    with warnings.catch_warnings():
        # Names in scripts that the font lacks are drawn as boxes, which tell enough.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])


def _write(path: Path_, image: Image.Image) -> None:
    png = io.BytesIO()
    image.save(png, format="PNG")
    write_atomic(Path(path), png.getvalue())
