"""The picture of a mixture's regions, regions.png: what each looks like, how it varies, how much of the data it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from ansn import figures, sample_figures
from ansn.covariance import Mixture
from ansn.sample_figures import MODEL

MOST = 12
"""Regions that are shown, the largest."""

_FEW = 30  # points that are marked


def save_regions(
    mixture: Mixture, path: figures.Path_, *, names: Sequence[str] | None = None, kind: str | None = None
) -> None:
    """A PNG of the largest regions, a row each: share and mean, variances of S, two draws of the region's Gaussian.

    Images, maps and volumes are shown as in samples.png, lines as curves, all else as values by coordinate; values on
    one scale for all rows, grey and a field's colours on that of the means, in the model's units. ``names``: of a
    table's coordinates; ``kind``: of the data, as of :func:`ansn.figures.save_samples`. Raises OSError if the file
    cannot be written.
    """
    figures.write_figure(regions_figure(mixture, names, kind=kind), path)


def regions_figure(
    mixture: Mixture, names: Sequence[str] | None = None, width: float = 7.5, kind: str | None = None
) -> Figure:
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
    _draw_all(cells[:, [0, 2, 3]].ravel(), pictures, names, kind)
    variances = spread[order].sort(1, descending=True).values.double().cpu()
    top = float(variances.max()) or 1.0
    for axes, values, k in zip(cells, variances, order.tolist(), strict=True):
        axes[0].set_ylabel(f"{float(mixture.weights[k]):.1%}")
        few = "." if len(values) < _FEW else ""
        axes[1].loglog(range(1, len(values) + 1), values.clamp_min(1e-9 * top).numpy(), color=MODEL, marker=few)
        axes[1].set_ylim(0.5 * max(float(variances.min()), 1e-9 * top), 2 * top)
        axes[1].minorticks_off()  # drawing them would take half of the time, as would the labels of each row
        axes[1].tick_params(labelsize="x-small", labelbottom=axes is cells[-1])
    return figure


def _draw_all(cells: Sequence[Any], x: Tensor, names: Sequence[str] | None, kind: str | None) -> None:
    """Rows ``[n, *shape]``, one in each set of axes; each third is a mean."""
    if x.ndim > 3:
        if sample_figures.is_image(x.shape[1:], kind) and x.shape[1] == 1:
            low, high = float(x[::3].min()), float(x[::3].max())
            x = (x - low) / (high - low or 1.0)
        drawn = sample_figures.tiles(x, kind, sample_figures.limits(x[::3], kind)).permute(0, 2, 3, 1).numpy()
    low, high = float(x.min()), float(x.max())
    margin = 0.05 * (high - low) or 1.0
    for i, (axes, row) in enumerate(zip(cells, x, strict=True)):
        axes.set_xticks([])
        axes.set_yticks([])
        if x.ndim > 3:
            axes.imshow(drawn[i], interpolation="nearest")
            continue
        lines = row if x.ndim == 3 else row.reshape(1, -1)
        axes.plot(lines.T.numpy(), linewidth=0.9, marker="." if lines.shape[1] < _FEW else "")
        axes.set_ylim(low - margin, high + margin)
    if x.ndim == 2 and names is not None and len(names) <= 4:
        for axes in cells[-3:]:
            shown = [sample_figures.drawable(name, 8) for name in names]
            axes.set_xticks(range(len(names)), shown, fontsize="x-small")
