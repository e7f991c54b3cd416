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

from ansn import sample_figures
from ansn.covariance import AdaptiveCovariance
from ansn.data.units import Column
from ansn.errors import InputError
from ansn.files import write_atomic
from ansn.sample_figures import MODEL, NOISE, curves, drawable, is_image, kind_of

_DPI = 110

Path_ = str | os.PathLike[str]


def save_samples(
    x: Tensor,
    path: Path_,
    *,
    kind: str | None = None,
    columns: int | None = None,
    upscale: int | None = None,
    reference: Tensor | None = None,
    names: Sequence[str] | None = None,
    cells: Sequence[Column] | None = None,
) -> None:
    """A PNG of samples, beside real rows where ``reference`` is given: the data on the left, the samples on the right,
    both on the data's scale. What is not finite is magenta.

    Images ``[n, C, H, W]`` in [0, 1] are enlarged without smoothing; of other than one or three channels the first
    four lie side by side in grey. Values outside are clipped, and a line above says so when they are many (over 1 % of
    the values, by more than 0.02).
    Lines ``[n, C, L]``: one curve a channel. Maps ``[n, C, H, W]`` (``kind`` "field") and volumes ``[n, C, D, H, W]``
    in any unit: in colours, with their scale below; a map's first four channels side by side, a volume's middle slices
    across the three axes, of its first channel.
    Tables ``[n, d]``: a histogram (d = 1), a scatter plot (2), or the first five columns against each other; the data
    is grey, behind the samples.

    Args:
        kind: of the data, "image", "field" or "table"; None: by the shape, a map being an image.
        columns: samples in a row; by default each grid is about square.
        upscale: pixels a side for each pixel; by default a grid is at least 640 wide, each of two at least 480.
        reference: rows ``[m, ...]`` of the data; beside samples at most n of them.
        names: of the d columns; cells: the columns, whose words and times the axes are marked with.

    Raises InputError (a ValueError) for other shapes or arguments, OSError if the file cannot be written.
    """
    x = x.detach().double().cpu()
    if len(x) < 1 or x.ndim not in (2, 3, 4, 5):
        raise InputError(
            f"x: got shape {list(x.shape)}, expected [n, C, H, W], [n, C, L], [n, C, D, H, W] or [n, d] with n at"
            " least 1"
        )
    for name, value in (("columns", columns), ("upscale", upscale)):
        if value is not None and value < 1:
            raise InputError(f"{name}: got {value}, expected at least 1")
    if reference is not None and (reference.shape[1:] != x.shape[1:] or len(reference) < 1):
        expected = ", ".join(map(str, ("m", *x.shape[1:])))
        raise InputError(f"reference: got shape {list(reference.shape)}, expected [{expected}] as the samples")
    if names is not None and len(names) != x.shape[1]:
        raise InputError(f"names: got {len(names)}, expected one for each of {x.shape[1]} columns")
    behind = None if reference is None else reference.detach().double().cpu()
    if x.ndim > 3:
        pixels = sample_figures.sheet(x, behind, kind=kind, columns=columns, upscale=upscale)
        _write(path, Image.fromarray(pixels))
        return
    data = None if behind is None else behind.numpy()
    if x.ndim == 3:
        write_figure(sample_figures.curves_figure(x.numpy(), columns, data), path)
        return
    named = list(names or (f"x{j}" for j in range(x.shape[1])))
    write_figure(sample_figures.scatter_figure(x.numpy(), data, named, cells=cells), path)


def save_covariance(
    covariance: AdaptiveCovariance, path: Path_, *, region: int = 0, names: Sequence[str] | None = None,
    kind: str | None = None,
) -> None:  # fmt: skip
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
    panels(top, draws, covariance.shape, "draws of the noise, L z", [str(i + 1) for i in range(8)], names, kind)
    panels(bottom, rows, covariance.shape, title, labels, names, kind)
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
    kind: str | None = None,
) -> None:
    """Rows as pictures (channels or slices side by side where there are several), lines as curves, tables as a heat
    map; on one symmetric scale that is written out."""
    rows = vectors.double().numpy()
    top = float(np.abs(rows).max()) or 1.0
    if len(shape) == 2:
        low, high = -top, top
        curves(figure.add_subplot(), rows.reshape(-1, *shape), 2 if len(rows) < 8 else 4, [(low, high)] * shape[0])
        figure.suptitle(f"{title} ({low:.2g} to {high:.2g})", fontsize="medium")
        return
    coloured = is_image(shape, kind) and shape[0] == 3
    if len(shape) > 2 and not coloured:
        planes, what = sample_figures.layers(vectors.double().reshape(-1, *shape))
        title = ", ".join(filter(None, (title, what)))
        gap, high = max(1, planes[0].shape[2] // 16), max(plane.shape[1] for plane in planes)
        padded = [np.pad(p.numpy(), ((0, 0), (0, high - p.shape[1]), (0, gap)), constant_values=np.nan) for p in planes]
        pictures = np.concatenate(padded, 2)[..., :-gap]
    figure.suptitle(f"{title} (grey 0, full colour ±{top:.2g})" if coloured else title, fontsize="medium")
    style: dict[str, Any] = {"cmap": "RdBu_r", "vmin": -top, "vmax": top, "interpolation": "nearest"}
    if kind_of(shape, kind) == "table":
        axes = figure.add_subplot()
        figure.colorbar(axes.imshow(rows, aspect="auto", **style), ax=axes)
        axes.set_yticks(range(len(rows)), labels)
        if names is not None and len(names) <= 20:
            shown = [drawable(name) for name in names]
            # A turned name ends at its column.
            turned = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if sum(map(len, shown)) > 50 else {}
            axes.set_xticks(range(len(names)), shown, **turned)
        else:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.set_xlabel("coordinate")
        return
    wide = 4 if coloured or pictures.shape[2] < 2 * pictures.shape[1] else 2
    cells = figure.subplots(math.ceil(len(rows) / wide), min(len(rows), wide), squeeze=False).ravel()
    for axes in cells:
        axes.set_axis_off()
    for i, (axes, label) in enumerate(zip(cells, labels, strict=False)):
        # Colours have no sign to map, so grey stands for 0.
        image = 0.5 + 0.5 * rows[i].reshape(shape).transpose(1, 2, 0) / top if coloured else pictures[i]
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
