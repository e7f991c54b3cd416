"""The pictures of a run: samples.png, covariance.png, loss.png. Matplotlib's figures are used without its global
state."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from ansn.covariance import AdaptiveCovariance

_MIN_PIXELS = 640  # width of a grid of samples
_MOST_PAIRED = 5  # columns of a table that are drawn against each other


def save_samples(x: Tensor, path: str | os.PathLike[str], *, reference: Tensor | None = None) -> None:
    """Images ``[n, C, H, W]`` in [0, 1] as a grid of enlarged pixels, values outside clipped; vectors ``[n, d]``
    as scatter plots.

    ``reference``: data to draw behind vectors. Raises ValueError for other shapes.
    """
    x = x.detach().float().cpu()
    if x.ndim == 4 and x.shape[1] in (1, 3):
        _save_image(_grid(x.clamp(0, 1)), Path(path))
    elif x.ndim == 2:
        _save(_scatter(x, reference), path)
    else:
        raise ValueError(f"x: got shape {list(x.shape)}, expected [n, 1 or 3, H, W] or [n, d]")


def save_covariance(covariance: AdaptiveCovariance, path: str | os.PathLike[str], *, region: int = 0) -> None:
    """Spectra of S and R, draws of the noise ``L z``, and the leading eigenvectors of R, for one region."""
    s, r = (_dense(m[region]) for m in (covariance.covariance(), covariance.noise_shape()))
    spectrum_s = torch.linalg.eigvalsh(s).flip(0)
    values, vectors = torch.linalg.eigh(r)
    spectrum_r, leading = values.flip(0), vectors.flip(1)[:, :8].mT
    z = torch.randn(8, covariance.dim, generator=torch.Generator().manual_seed(0), dtype=covariance.factor.dtype)
    index = torch.full((8,), region) if covariance.regions > 1 else None
    device = covariance.factor.device
    draws = covariance.color(z.to(device), None if index is None else index.to(device)).cpu()
    figure = Figure(figsize=(11, 6), layout="constrained")
    grid = figure.add_gridspec(2, 12)
    axes = figure.add_subplot(grid[:, :4])
    floor = float(spectrum_r[0]) * 1e-8
    order = np.arange(1, covariance.dim + 1)
    axes.loglog(order, spectrum_s.clamp_min(floor).cpu(), label="data, S", color="0.5")
    axes.loglog(order, spectrum_r.cpu(), label="noise, R", color="C3")
    axes.set_xlabel("eigenvalue, by size")
    axes.set_ylabel("variance")
    axes.legend()
    family = f"rho = {covariance.rho:g}" if covariance.gamma is None else f"gamma = {covariance.gamma:g}"
    of = f", region {region} of {covariance.regions}" if covariance.regions > 1 else ""
    figure.suptitle(
        f"{covariance.structure.name}, {family}{of}: {covariance.seen} points, condition number"
        f" {float(spectrum_r[0] / spectrum_r[-1]):.3g}, effective rank"
        f" {float(covariance.effective_rank()[region]):.1f} of {covariance.dim}"
    )
    _row(figure, grid, 0, draws, covariance.shape, "draws of the noise, L z")
    _row(figure, grid, 1, leading.cpu(), covariance.shape, "leading eigenvectors of R")
    _save(figure, path)


def save_loss(metrics: Sequence[dict[str, Any]], path: str | os.PathLike[str]) -> None:
    """Loss, and the condition number of R, against the step; ``metrics`` are records of metrics.jsonl."""
    records = [m for m in metrics if m.get("loss") is not None]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    steps, loss = np.array([m["step"] for m in records]), np.array([m["loss"] for m in records], dtype=float)
    axes.plot(steps, loss, color="C0", alpha=0.35, label="loss, mean between records")
    if len(loss) >= 5:
        width = max(3, len(loss) // 15)
        smooth = np.convolve(loss, np.ones(width) / width, mode="valid")
        middle = (width - 1) // 2  # centred: a trailing mean would lag behind a falling loss
        axes.plot(steps[middle : middle + len(smooth)], smooth, color="C0", label=f"mean of {width} records")
    if len(loss) and (loss > 0).all() and loss.max() > 10 * loss.min():
        axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    condition = [(m["step"], m["condition_number"]) for m in records if m.get("condition_number")]
    if condition:
        other = axes.twinx()
        other.plot(*zip(*condition, strict=True), color="C3", linestyle=":", label="condition number of R")
        other.set_ylabel("condition number of R")
        # From 1, which is isotropic noise, so that a small drift is not blown up.
        other.set_ylim(1, 1.15 * max(value for _, value in condition) + 0.5)
        lines = axes.get_lines() + other.get_lines()
        axes.legend(lines, [str(line.get_label()) for line in lines])
    _save(figure, path)


def _grid(x: Tensor) -> Image.Image:
    """Near-square grid, one background pixel between images, whole-number enlargement without smoothing."""
    n, channels, height, width = x.shape
    columns = math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    scale = max(1, math.ceil(_MIN_PIXELS / (columns * (width + 1))))
    sheet = torch.full((3, rows * (height + 1) + 1, columns * (width + 1) + 1), 0.35)
    for i, image in enumerate(x.expand(n, 3, height, width) if channels == 1 else x):
        top, left = (i // columns) * (height + 1) + 1, (i % columns) * (width + 1) + 1
        sheet[:, top : top + height, left : left + width] = image
    pixels = (sheet * 255).round().byte().permute(1, 2, 0).numpy()
    picture = Image.fromarray(pixels)
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def _scatter(x: Tensor, reference: Tensor | None) -> Figure:
    count = min(x.shape[1], _MOST_PAIRED)
    if count <= 2:
        figure = Figure(figsize=(6, 6), layout="constrained")
        axes = figure.add_subplot()
        _points(axes, x, 0, count - 1, reference)
        axes.set_aspect("equal", adjustable="datalim")
        return figure
    figure = Figure(figsize=(2.2 * count, 2.2 * count), layout="constrained")
    for i in range(count):
        for j in range(count):
            axes = figure.add_subplot(count, count, i * count + j + 1)
            if i == j:
                axes.hist(x[:, i].numpy(), bins=40, color="C0")
            else:
                _points(axes, x, j, i, reference)
            if i == count - 1:
                axes.set_xlabel(f"x{j}")
            if j == 0:
                axes.set_ylabel(f"x{i}")
    return figure


def _points(axes: Any, x: Tensor, i: int, j: int, reference: Tensor | None) -> None:
    if reference is not None:
        axes.scatter(reference[:, i], reference[:, j], s=3, color="0.7", linewidths=0)
    axes.scatter(x[:, i], x[:, j], s=3, color="C0", linewidths=0, alpha=0.6)


def _row(figure: Figure, grid: Any, row: int, vectors: Tensor, shape: tuple[int, ...], title: str) -> None:
    """Eight vectors as images on one symmetric scale, or as curves where the data is no image."""
    if len(shape) == 3:
        # The strongest channel stands for the others: one scale, one colour bar.
        images = vectors.reshape(-1, *shape).float()
        images = images.mean(1)
        top = float(images.abs().max())
        cells = [figure.add_subplot(grid[row, 4 + 2 * (i % 4) : 6 + 2 * (i % 4)]) for i in range(4)]
        for i, axes in enumerate(cells):
            shown = axes.imshow(images[i], cmap="RdBu_r", vmin=-top, vmax=top, interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
        cells[0].set_title(title, loc="left", fontsize="medium")
        figure.colorbar(shown, ax=cells, shrink=0.7)
        return
    axes = figure.add_subplot(grid[row, 4:])
    for vector in vectors[: min(4, vectors.shape[1])]:
        axes.plot(vector.float(), marker="o", markersize=3, linewidth=1)
    axes.axhline(0, color="0.7", linewidth=0.8)
    axes.set_title(title, loc="left", fontsize="medium")
    axes.set_xlabel("coordinate")


def _dense(matrix: Tensor) -> Tensor:
    return torch.diag(matrix) if matrix.ndim == 1 else matrix


def _save(figure: Figure, path: str | os.PathLike[str]) -> None:
    FigureCanvasAgg(figure)
    target = Path(path)
    temporary = target.with_name(f".{target.stem}.{os.getpid()}.png")
    # Without matplotlib's version in the file, the same data gives the same bytes.
    figure.savefig(temporary, dpi=110, metadata={"Software": None})
    os.replace(temporary, target)


def _save_image(image: Image.Image, target: Path) -> None:
    temporary = target.with_name(f".{target.stem}.{os.getpid()}.png")
    image.save(temporary)
    os.replace(temporary, target)
