"""The pictures that a run ends with: samples.png, covariance.png, regions.png where there are some, loss.png."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ansn import levels, sampling
from ansn.config import SamplingConfig
from ansn.distributed import choose_device
from ansn.sampling.stream import to_disk
from ansn.training.progress import read_metrics
from ansn.training.runs import Run, load_run


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


def draw(run: Run, n: int, seed: int = 0, *, progress: bool = False, **options: Any) -> torch.Tensor:
    """``n`` samples; a class-conditional model draws the classes in turn, regions that were found by their shares."""
    if run.config.network.class_conditional and "y" not in options:
        options["y"] = torch.arange(n) % run.info.num_classes
    return sampling.sample(run.model, n, seed=seed, progress=progress, **options)


def draw_to_disk(
    run: Run, n: int, out: Path, seed: int = 0, *, y: int | None = None, batch_size: int = 256, store: str = "float32",
    resume: bool = True, progress: bool = False, **options: Any,
) -> Path:  # fmt: skip
    """:func:`ansn.sampling.stream.to_disk` of a run, in the data's units; classes and regions as of :func:`draw` unless
    ``y`` says which. ``options``: of :class:`ansn.sampling.Draw`."""
    drawer = sampling.Draw(run.model, seed=seed, **options)
    in_turn = torch.arange(n) % run.info.num_classes if run.config.network.class_conditional else None
    return to_disk(
        drawer, n, out, batch_size=batch_size, y=in_turn if y is None else y, store=store, units=run.to_data_units,
        columns=run.info.columns, resume=resume, progress=progress,
    )  # fmt: skip


def write_pictures(folder: Path, device: str = "auto", *, progress: bool = False) -> list[Path]:
    """Draw what the run's settings ask for from its newest checkpoint; returns the files written. ``device``: as of
    :func:`ansn.distributed.choose_device`."""
    from ansn import figures, region_figures  # Matplotlib is slow to import: only when used

    run = load_run(folder, device=choose_device(device))
    written = [folder / "covariance.png", folder / "loss.png"]
    figures.save_covariance(run.model.noise.covariance, written[0], names=run.info.columns)
    figures.save_loss(read_metrics(folder / "metrics.jsonl"), written[1])
    if run.regions is not None:
        written.insert(1, folder / "regions.png")
        region_figures.save_regions(run.regions, written[1], names=run.info.columns)
    count = run.config.sampling.samples
    if count:
        x = draw(run, count, run.config.run.seed, progress=progress, **sampler_options(run.config.sampling))
        written.insert(0, folder / "samples.png")
        figures.save_samples(run.to_data_units(x), written[0], names=run.info.columns)
    return written
