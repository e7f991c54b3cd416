"""The pictures that a run ends with: samples.png, covariance.png, regions.png where there are some, loss.png."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch

from ansn import levels, sampling
from ansn.config import SamplingConfig
from ansn.data import Dataset, streams
from ansn.data.units import Table
from ansn.distributed import choose_device
from ansn.sampling.stream import to_disk
from ansn.training.progress import read_metrics
from ansn.training.runs import Run, load_run

_BEHIND = 2000  # rows of a table that are drawn behind the samples


def sampler_options(config: SamplingConfig) -> dict[str, Any]:
    """The settings as arguments of :func:`ansn.sample`."""
    options: dict[str, Any] = {"method": config.method, "steps": config.sample_steps}
    if config.start:
        options["start"] = config.start
    if config.step_eps is not None:
        options["eps"] = config.step_eps
    if config.method == "langevin":
        options |= {
            "convention": config.convention, "precondition": not config.isotropic, "denoise": config.denoise
        }  # fmt: skip
    if config.sampler_levels is not None:
        top, bottom, n = config.sampler_levels
        options["taus"] = torch.tensor(levels.geometric(top, bottom, n=n).tau, dtype=torch.float64)
    return options


def labels(run: Run, n: int, seed: int) -> torch.Tensor | None:
    """Classes of n samples, int64 ``[n]``, of a class-conditional run; None of another. The classes in turn, of a table
    by their shares among its rows, drawn: a function of the seed and the sample's place."""
    if not run.config.network.class_conditional:
        return None
    if run.info.kind != "table":
        known = torch.tensor(run.info.counts).nonzero().squeeze(1)  # of the others nothing was learned
        return known[torch.arange(n) % len(known)]
    shares = torch.tensor(run.info.counts, dtype=torch.float64).cumsum(0)
    u = torch.from_numpy(streams.uniforms(seed % 2**64, streams.LABELS, n))
    return torch.searchsorted(shares / shares[-1], u, right=True)


def draw(run: Run, n: int, seed: int = 0, *, progress: bool = False, **options: Any) -> torch.Tensor:
    """``n`` samples, of the classes that :func:`labels` gives; regions that were found are drawn by their shares. Of a
    table as :func:`as_written`."""
    if "y" not in options:
        options["y"] = labels(run, n, seed)
    return as_written(run, sampling.sample(run.model, n, seed=seed, progress=progress, **options), seed)


def as_written(run: Run, x: torch.Tensor, seed: int) -> torch.Tensor:
    """A table's samples as a reader of their file has them, of whole numbers and words, and with the noise that these
    have in the data; others as they are."""
    if run.units is None or run.units.grain is None:
        return x
    return run.units.encode(run.units.decode(x.cpu()), seed)


def draw_to_disk(
    run: Run, n: int, out: Path, seed: int = 0, *, y: int | None = None, batch_size: int = 256, store: str = "float32",
    resume: bool = True, finite: bool = True, progress: bool = False, **options: Any,
) -> Path:  # fmt: skip
    """:func:`ansn.sampling.stream.to_disk` of a run, in the data's units; classes and regions as of :func:`draw` unless
    ``y`` says which. ``options``: of :class:`ansn.sampling.Draw`."""
    drawer = sampling.Draw(run.model, seed=seed, **options)
    return to_disk(
        drawer, n, out, batch_size=batch_size, y=labels(run, n, seed) if y is None else y, store=store, units=run.units,
        classes=run.info.classes, resume=resume, finite=finite, progress=progress,
    )  # fmt: skip


def write_pictures(
    folder: Path, device: str = "auto", *, progress: bool = False, data: Dataset | None = None
) -> list[Path]:
    """Draw what the run's settings ask for from its newest checkpoint; returns the files written. ``device``: as of
    :func:`ansn.distributed.choose_device`; ``data``: the training data, to draw the samples beside."""
    from ansn import figures, region_figures  # Matplotlib is slow to import: only when used

    run = load_run(folder, device=choose_device(device))
    kind, table = run.info.kind, run.units if isinstance(run.units, Table) else None
    names = None if table is None else table.coordinates
    written = [folder / "covariance.png", folder / "loss.png"]
    figures.save_covariance(run.model.noise.covariance, written[0], names=names, kind=kind)
    figures.save_loss(read_metrics(folder / "metrics.jsonl"), written[1])
    if run.regions is not None:
        written.insert(1, folder / "regions.png")
        region_figures.save_regions(run.regions, written[1], names=names, kind=kind)
    count = run.config.sampling.samples
    if count:
        x = draw(run, count, run.config.run.seed, progress=progress, **sampler_options(run.config.sampling))
        broken = int((~x.isfinite()).flatten(1).any(1).sum())
        if broken:
            text = f"{folder}: {broken} of {count} samples of samples.png have numbers that are not finite"
            warnings.warn(text, stacklevel=2)
        reference = None
        if data is not None:
            index = data.order(run.config.run.seed, 0)[: _BEHIND if table is not None else count]
            # A table's rows as they are stored: a batch has draws in place of what is not known.
            stored = data.rows if table is not None else None
            x_data = stored[index] if isinstance(stored, torch.Tensor) else data.batch(index)[0]
            reference = run.to_data_units(x_data.cpu())
        written.insert(0, folder / "samples.png")
        figures.save_samples(
            run.to_data_units(x), written[0], kind=kind, reference=reference, names=run.info.columns,
            cells=None if table is None else table.columns,
        )  # fmt: skip
    return written
