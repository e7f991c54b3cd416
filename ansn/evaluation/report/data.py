"""The sections that show data: samples, neighbours, the sampler's way, covariance and noise."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ansn import figures, ops, sample_figures
from ansn.data.units import Column
from ansn.data.units import Table as Units
from ansn.evaluation.report import figures as draw
from ansn.evaluation.report.page import BROKEN, Material, Picture, Section, Table, sentence
from ansn.evaluation.trajectory import at_data_scale
from ansn.region_figures import MOST, regions_figure

_SHOWN = 64  # samples of the grid
_ROWS = 8  # samples beside their neighbours
_WAYS = 3  # samples whose way is shown
_LEVELS = 8
_PAIRED = 5  # columns that are drawn against each other
_ROOM = 1000  # pixels a side of a grid of samples
_KINDS = ("number", "time", "whole", "binary", "category", "constant")  # the best for a cloud of points first


def samples(m: Material) -> Section:
    """Samples beside rows of the data, those of a table over them."""
    s = Section("samples", "Samples")
    finite = torch.isfinite(m.samples.flatten(1)).all(1)
    if not bool(finite.all()):
        s.missing.append(f"{int((~finite).sum())} of {len(finite)} samples hold values that are not finite.")
    if m.train is None:
        s.missing.append("The training data was not at hand, so the samples are shown alone.")
    x, behind = m.values(m.samples), None if m.train is None else torch.from_numpy(m.data)
    if m.table is not None:
        _pairs(m, s, x, behind)
        return s
    shown = min(len(x), _SHOWN if x.ndim > 3 else _SHOWN // 2)
    if x.ndim > 3:
        height, width = sample_figures.tiles(x[:1], m.run.info.kind).shape[2:]
        shown = min(shown, max(4, (_ROOM // width) * (_ROOM // height)))
    beside = "" if behind is None else f", beside {min(shown, len(behind))} rows of the data drawn at random"
    s.text.append(f"The first {shown} of {len(x):,} samples{beside}, none picked.")
    low, high = _range(m.samples)
    if m.run.info.kind == "image" and (low < -0.02 or high > 1.02):
        s.text.append(f"Values lie in {low:.2g} to {high:.2g}; what is outside [0, 1] is clipped.")
    alt, caption = f"{shown} samples{beside}", "Samples, in the order they were drawn."
    if x.ndim == 3:
        s.draw("samples", alt, caption, lambda: draw.lines(x[:shown], behind), wide=True)
        return s
    image = draw.rendered_sheet(x[:shown], behind, m.run.info.kind)
    s.pictures.append(Picture("samples", alt, caption, image, wide=True))
    return s


def _pairs(m: Material, s: Section, x: Tensor, behind: Tensor | None) -> None:
    """The columns that differ most, against each other."""
    assert m.table is not None
    worst = m.worst[:_PAIRED]
    columns = [m.table.columns[j] for j in worst]
    most = draw.points_shown(len(columns))
    shown = min(len(x), most)
    over = "" if behind is None else f" over {min(len(behind), most):,} rows of the training data"
    s.text.append(f"{shown:,} samples{over}, in the units of the data.")
    which = f"the {len(worst)} of {len(m.table.columns)} columns that differ most" if m.marginals else ""
    note = which if len(worst) < len(m.table.columns) else ""
    kind = "Histogram" if len(worst) == 1 else "Scatter plot"
    s.draw(
        "samples", f"{kind} of {shown} samples{over}: columns {', '.join(c.name for c in columns)}",
        f"{kind} of {note or 'the columns'} against each other; the data is grey." if len(worst) > 1 else
        "The data is grey.",
        lambda: draw.scatter(x[:, worst], None if behind is None else behind[:, worst], columns, note),
        wide=len(worst) > 2,
    )  # fmt: skip


def neighbours(m: Material) -> Section:
    """Samples beside the training rows they are nearest to: half of them the nearest of all, half the first."""
    s = Section("neighbours", "Nearest training neighbours")
    near = m.evaluation.neighbours
    if near is None or not near["index"] or m.train is None:
        s.missing.append("No neighbours were searched, or the training data was not at hand.")
        return s
    index, distance = torch.tensor(near["index"]), torch.tensor(near["distance"])
    known = index.numel() > 0 and 0 <= int(index.min()) <= int(index.max()) < len(m.train)
    if not known or len(index) > len(m.samples):
        s.missing.append("The neighbours that were found are not of these samples and this data.")
        return s
    order = distance[:, 0].nan_to_num(math.inf).argsort(stable=True).tolist()
    picked = order[: _ROWS // 2]
    picked += [i for i in range(len(order)) if i not in picked][: _ROWS - len(picked)]
    s.text.append(
        f"A model that memorises gives back its training data. The first {min(_ROWS // 2, len(order))} rows are the"
        f" samples that are nearest to the data among {len(order):,}; the others are the first ones drawn."
        f" Distances are measured in {near['space']}."
    )
    k = min(5, index.shape[1])
    rows = m.rows(index[picked, :k].flatten())
    if m.table is not None:
        s.tables.append(_beside(m, m.table, picked, rows[::k], index[:, 0], distance[:, 0]))
        return s
    cells = torch.cat((m.samples[picked].unsqueeze(1), rows.reshape(len(picked), k, *rows.shape[1:])), 1)
    pictures = m.pictures(cells.flatten(0, 1)).unflatten(0, cells.shape[:2])
    below = [["", *(f"{float(d):#.3g}" for d in distance[i, :k])] for i in picked]
    nearest = ", ".join(f"sample {i} at {float(distance[i, 0]):.3g}" for i in picked)
    s.draw(
        "neighbours", f"{len(picked)} samples, each beside its {k} nearest training rows: {nearest}",
        f"Each row: a sample, then its {k} nearest training rows with their distance.",
        lambda: draw.strip(pictures, ["sample", *map(_ordinal, range(1, k + 1))], [f"#{i}" for i in picked], below,
                           scales=m.scales),
    )  # fmt: skip
    return s


def trajectory(m: Material) -> Section:
    """x and D at some levels of the sampler's way, down to the sample."""
    s = Section("trajectory", "The sampler's way")
    way = m.trajectory
    if way is None:
        s.missing.append("No way was recorded.")
        return s
    tau = torch.tensor(way.tau)
    s.text.append(
        f"What {way.method} does from the first level to the sample: x is the state, D what the network makes of it."
        " x is shrunk to the spread of the data, m + (x - m)/√(1 + τ²), so that it can be shown at every level."
    )
    x, d = at_data_scale(way.x, tau, _mean(m)), way.denoised
    titles = [*(f"τ {t:.3g}" for t in way.tau), "sample"]
    alt = f"State and denoised state of {way.method} at the levels {', '.join(f'{t:.3g}' for t in way.tau)}"
    if m.table is None:
        ways = min(_WAYS, x.shape[1])
        cells = torch.stack((torch.cat((x, way.samples[None])), torch.cat((d, way.samples[None]))))[:, :, :ways]
        cells = cells.permute(2, 0, 1, *range(3, cells.ndim)).flatten(0, 1)  # [way and kind, level, ...]
        pictures = m.pictures(cells.flatten(0, 1)).unflatten(0, cells.shape[:2])
        s.draw(
            "trajectory", alt, f"{ways} samples: x above, D(x, τ) below.",
            lambda: draw.strip(pictures, titles, ["x", "D"] * ways, scales=m.scales, together=2, inches=draw.WIDE),
            wide=True,
        )  # fmt: skip
        return s
    few = torch.linspace(0, len(tau) - 1, min(4, len(tau))).round().long().tolist()
    titles = [*(titles[i] for i in few), "sample"]
    two, names = _two(m)
    panels = [[m.values(v)[:, two] for v in (*side[few], way.samples)] for side in (x, d)]
    s.draw("trajectory", alt, f"{x.shape[1]} samples: x above, D(x, τ) below; the data is grey.",
           lambda: draw.clouds(panels, titles, ["x", "D"], names, _behind(m, two)), wide=True)  # fmt: skip
    return s


def covariance(m: Material) -> Section:
    """Spectra of S and R, leading eigenvectors, draws of the noise."""
    s = Section("covariance", "Covariance of the noise")
    c, shape, names, kind = m.run.model.noise.covariance, m.run.info.shape, m.coordinates, m.run.info.kind
    try:
        values, noise, rows, what, told = figures.leading(c, 0)
        condition, rank = float(c.condition_number()[0]), float(c.effective_rank()[0])
        draws = figures.noise_draws(c, 0, 8)
        if not all(bool(torch.isfinite(v).all()) for v in (values, noise, rows, draws)):
            raise ValueError("covariance: got values that are not finite, expected finite ones")
    except BROKEN as error:
        s.missing.append(f"The covariance cannot be shown: {sentence(error)}")
        return s
    of = f" Shown is the first of {c.regions} regions." if c.regions > 1 else ""
    if m.run.structure.scores:
        of += f" The structure was chosen by the data ({m.run.structure})."
    s.text.append(
        f"{c.structure.name.capitalize()}, {c.rules.family}, learned from {float(c.count[0]):,.0f} data points."
        f" The noise shape R has condition number {condition:.4g}; the data's covariance S has effective rank"
        f" {rank:.1f} of {c.dim}.{of}"
    )
    s.draw(
        "spectrum", f"Eigenvalues of R from {float(noise[-1]):.3g} down to {float(noise[0]):.3g}; of S from"
        f" {float(values[-1]):.3g} to {float(values[0]):.3g}",
        "Spectra of the data's covariance S and the noise shape R.", lambda: draw.spectrum(values, noise),
    )  # fmt: skip
    s.draw("directions", f"{what}, {len(rows)} pictures", f"{what.capitalize()}.",
           lambda: draw.directions(rows, shape, told, names, kind))  # fmt: skip
    s.draw("draws", f"{len(draws)} draws of the noise", "Draws of the noise, L z, at τ = 1.",
           lambda: draw.directions(draws, shape, [str(i + 1) for i in range(len(draws))], names, kind))  # fmt: skip
    mixture = m.run.regions
    if mixture is not None:
        shown = min(MOST, mixture.regions)
        shares = ", ".join(f"{share:.1%}" for share in mixture.weights.sort(descending=True).values[:shown].tolist())
        s.draw("regions", f"{shown} of {mixture.regions} regions, with shares {shares}",
               "Regions of the data, the largest first: share and mean, variances of S, two draws of its Gaussian.",
               lambda: regions_figure(mixture, names, draw.WIDE, kind), wide=True)  # fmt: skip
    return s


def levels(m: Material) -> Section:
    """Training data perturbed at several levels, by the run's noise and by isotropic noise of the same variance."""
    s = Section("levels", "Noise at each level")
    if m.train is None:
        s.missing.append("The training data was not at hand, so there is nothing to perturb.")
        return s
    noise = m.run.model.noise
    top, bottom = noise.levels.maximum, noise.levels.minimum
    count = _LEVELS if m.table is None else 5
    # Below a tenth nothing is seen.
    tau = torch.logspace(math.log10(top), math.log10(max(bottom, min(0.1, top))), count, dtype=torch.float64)
    tau = tau if top > 1.01 * max(bottom, 0.1) else tau[:1]
    n = 1 if m.table is None else min(500, len(m.train))
    x, labels = m.train.batch(torch.arange(n))
    x = x.cpu()
    device = noise.tau.device
    region = labels if m.run.config.noise.regions == "labels" else noise.assign(x.to(device))
    region = None if noise.covariance.regions == 1 or region is None else region.to(device)
    shown, plain = [], []
    for t in tau.tolist():
        own, _ = noise.perturb(x.to(device), region, tau=t, seed=0, step=0)
        scale = noise.covariance.scale[0 if region is None else region].cpu()
        shown.append(own.cpu())
        plain.append(ops.colored_step(x, b=(t * scale).expand(n), seed=0, row=0, step=0, stream=ops.PERTURB))
    if not all(bool(torch.isfinite(v).all()) for v in shown):
        s.missing.append("The noise cannot be shown: it holds values that are not finite.")
        return s
    s.text.append(
        f"{'One training row' if m.table is None else f'{n} training rows'} under the noise of this run and, below,"
        " under isotropic noise of the same total variance, from the same random numbers; shrunk to the spread of the"
        f" data. The ladder goes from τ = {top:.3g} to {bottom:.3g}."
    )
    both = torch.stack([at_data_scale(torch.stack(v), tau, _mean(m)) for v in (shown, plain)])
    titles, kinds = [f"τ {t:.3g}" for t in tau.tolist()], ["run", "isotropic"]
    at = ", ".join(f"{t:.3g}" for t in tau.tolist())
    alt = f"Perturbed data at the levels {at}, by the run's noise and by isotropic noise"
    if m.table is None:
        pictures = m.pictures(both[:, :, 0].flatten(0, 1)).unflatten(0, both.shape[:2])
        s.draw("levels", alt, "Noise of the run above, isotropic noise below.",
               lambda: draw.strip(pictures, titles, kinds, scales=m.scales, inches=draw.WIDE), wide=True)  # fmt: skip
    else:
        two, names = _two(m)
        panels = [[m.values(v)[:, two] for v in side] for side in both]
        s.draw("levels", alt, "Noise of the run above, isotropic noise below; the data is grey.",
               lambda: draw.clouds(panels, titles, kinds, names, _behind(m, two)), wide=True)  # fmt: skip
    return s


def _beside(m: Material, table: Units, picked: list[int], rows: Tensor, index: Tensor, distance: Tensor) -> Table:
    """Rows of a table and the training row nearest to each, a line each, as the file has them."""
    x, near = m.values(m.samples[picked]), m.values(rows)
    lines = []
    for j, i in enumerate(picked):
        for what, at, values in (
            (f"sample {i}", "", x[j]), (f"training row {int(index[i])}", f"{float(distance[i]):.3g}", near[j])
        ):  # fmt: skip
            lines.append([what, at, *map(_cell, table.columns, values.tolist())])
    header = ["row", "distance", *(c.name for c in table.columns)]
    return Table("Samples and the training row nearest to each", header, lines, "numbers")


def _cell(column: Column, value: float) -> str:
    """As the file has it; numbers without a fixed number of digits with six."""
    plain = column.kind == "number" and column.digits is None and math.isfinite(value)
    return f"{value:.6g}" if plain else column.cell(value)


def _two(m: Material) -> tuple[list[int], list[str]]:
    """Columns of a cloud of points: the first two, of those that are continuous if there are some."""
    assert m.table is not None
    order = sorted(range(len(m.table.columns)), key=lambda j: _KINDS.index(m.table.columns[j].kind) if m.table else 0)
    two = [j for j in order if m.table.columns[j].kind != "constant"][:2]
    return two, [m.table.columns[j].name for j in two]


def _behind(m: Material, columns: list[int]) -> Tensor | None:
    return None if m.train is None else torch.from_numpy(m.data[: draw.MOST_POINTS, columns])


def _mean(m: Material) -> Tensor:
    """The data's mean over all regions, ``[*shape]``."""
    c = m.run.model.noise.covariance
    weight = (c.count / c.count.sum().clamp_min(1)).to(c.center.dtype)
    return (weight @ c.center).cpu().reshape(m.run.info.shape)


def _range(x: Tensor) -> tuple[float, float]:
    seen = x[torch.isfinite(x)]
    return (float(seen.min()), float(seen.max())) if len(seen) else (0.0, 0.0)


def _ordinal(i: int) -> str:
    return "nearest" if i == 1 else {2: "2nd", 3: "3rd"}.get(i, f"{i}th")
