"""The picture of a mixture's regions, regions.png: what each looks like, how it varies, how much of the data it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from ansn import figures
from ansn.covariance import Mixture

MOST = 12
"""Regions that are shown, the largest."""

_FEW = 30  # points that are marked


def save_regions(mixture: Mixture, path: figures.Path_, *, names: Sequence[str] | None = None) -> None:
    """A PNG of the largest regions, a row each: share and mean, variances of S, two draws of the region's Gaussian.

    Images are shown as they are (of other than 1 or 3 channels the first, in grey), volumes by the middle slice of
    their first channel, lines as curves, all else as values by coordinate; values on one scale for all rows, grey on
    that of the means. ``names``: of a vector's coordinates. Raises OSError if the file cannot be written.
    """
    figures.write_figure(regions_figure(mixture, names), path)


def regions_figure(mixture: Mixture, names: Sequence[str] | None = None, width: float = 7.5) -> Figure:
    """The picture of :func:`save_regions`; ``width`` in inches."""
    covariance, pencil = mixture.covariance, mixture.covariance.pencil
    order = mixture.weights.argsort(descending=True)[:MOST]
    twice, spread = order.repeat_interleave(2), pencil.variances()
    z = torch.randn(len(twice), covariance.dim, generator=torch.Generator().manual_seed(0)).to(spread)
    draws = covariance.mean_of(twice, len(twice)) + pencil.spread(z, spread.sqrt()[twice], twice)
    rows = torch.cat((mixture.means[order].flatten(1).unsqueeze(1), draws.reshape(len(order), 2, -1)), 1)
    pictures = rows.float().cpu().reshape(-1, *covariance.shape)
    figure = Figure(figsize=(width, 0.5 + 0.16 * width * len(order)), layout="constrained")
    cells: Any = figure.subplots(len(order), 4, squeeze=False)
    if len(order) < mixture.regions:
        figure.suptitle(f"the {len(order)} largest of {mixture.regions} regions", fontsize="medium")
    for axes, title in zip(cells[0], ("mean", "variances of S", "draw", "draw"), strict=True):
        axes.set_title(title, fontsize="medium")
    _draw_all(cells[:, [0, 2, 3]].ravel(), pictures, names)
    variances = spread[order].sort(1, descending=True).values.double().cpu()
    top = float(variances.max()) or 1.0
    for axes, values, k in zip(cells, variances, order.tolist(), strict=True):
        axes[0].set_ylabel(f"{float(mixture.weights[k]):.1%}")
        few = "." if len(values) < _FEW else ""
        axes[1].loglog(range(1, len(values) + 1), values.clamp_min(1e-9 * top).numpy(), color=figures.MODEL, marker=few)
        axes[1].set_ylim(0.5 * max(float(variances.min()), 1e-9 * top), 2 * top)
        axes[1].minorticks_off()  # drawing them would take half of the time, as would the labels of each row
        axes[1].tick_params(labelsize="x-small", labelbottom=axes is cells[-1])
    return figure


def _draw_all(cells: Sequence[Any], x: Tensor, names: Sequence[str] | None) -> None:
    """Rows ``[n, *shape]``, one in each set of axes; each third is a mean."""
    if x.ndim == 5:
        x = figures.middle_slices(x)[0]
    elif x.ndim == 4 and not figures.is_image(x.shape[1:]):
        x = x[:, :1]
    seen = x[::3] if x.ndim == 4 else x
    low, high = float(seen.min()), float(seen.max())
    for axes, row in zip(cells, x, strict=True):
        axes.set_xticks([])
        axes.set_yticks([])
        if x.ndim == 4:
            style: dict[str, Any] = {"cmap": "gray", "vmin": low, "vmax": high, "interpolation": "nearest"}
            image = row[0] if len(row) == 1 else figures.colours(row[None])[0].permute(1, 2, 0)
            axes.imshow(image.numpy(), **style)
            continue
        lines = row if x.ndim == 3 else row.reshape(1, -1)
        axes.plot(lines.T.numpy(), linewidth=0.9, marker="." if lines.shape[1] < _FEW else "")
        margin = 0.05 * (high - low) or 1.0
        axes.set_ylim(low - margin, high + margin)
    if x.ndim == 2 and names is not None and len(names) <= 4:
        for axes in cells[-3:]:
            axes.set_xticks(range(len(names)), [figures.drawable(name, 8) for name in names], fontsize="x-small")
