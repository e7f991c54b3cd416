"""`ansn-sample RUN`: draw from a trained model."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import tyro

from ansn.cli.common import guarded, parsed
from ansn.config import SamplingConfig
from ansn.errors import InputError
from ansn.evaluation import figures
from ansn.training import Run, load_run
from ansn.training.distributed import choose_device
from ansn.training.pictures import draw, sampler_options

_DESCRIPTION = (
    "Draw samples from a run of ansn-train. Sample i depends on the seed and i alone, not on the batch size."
    " Exit codes: 0 done, 2 bad arguments or input, 130 interrupted."
)


@dataclass(frozen=True)
class Arguments:
    """What to draw and where to put it."""

    run: tyro.conf.Positional[Path]
    """Folder that ansn-train wrote."""
    n: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 64
    """Number of samples."""
    method: Literal["heun", "euler", "langevin", "paper"] | None = None
    """Solver of the flow, corrected annealed Langevin, or Algorithm 1 as printed; by default and with all below,
    the run's own settings."""
    steps: int | None = None
    """Levels of the flow solvers, or Langevin steps a level."""
    step_eps: float | None = None
    """Langevin: the paper's step size."""
    start: Literal["gaussian", "uniform"] | None = None
    """Start of sampling."""
    label: int | None = None
    """Class to draw, for a class-conditional model; by default all in turn."""
    seed: int = 0
    """Fixes the samples."""
    batch_size: int = 256
    """Samples at a time."""
    out: Path | None = None
    """A .png picture, .npy (float32 [n, ...], data units) or, for tables, .csv; by default
    drawn-seedN.png in the run's folder."""
    device: str = "cpu"
    """cpu, cuda, cuda:N, or auto: a GPU if there is one."""
    ema: bool = True
    """Use the averaged weights."""


def main() -> int:
    """Entry point."""
    arguments = parsed("ansn-sample", lambda: tyro.cli(Arguments, prog="ansn-sample", description=_DESCRIPTION))
    return guarded("ansn-sample", lambda: _sample(arguments))


def _sample(arguments: Arguments) -> None:
    out = arguments.out or arguments.run / f"drawn-seed{arguments.seed}.png"
    if out.suffix not in (".png", ".npy", ".csv"):
        raise InputError(f"--out: got {out}, expected a name that ends in .png, .npy or .csv")
    for name, value in (("-n", arguments.n), ("--batch-size", arguments.batch_size)):
        if value < 1:
            raise InputError(f"{name}: got {value}, expected at least 1")
    run = load_run(arguments.run, ema=arguments.ema, device=choose_device(arguments.device))
    if out.suffix == ".csv" and run.info.columns is None:
        raise InputError(f"--out: got {out}, but {run.info.name} holds images; expected .png or .npy")
    if arguments.label is not None and not run.config.network.class_conditional:
        raise InputError(f"--label: got {arguments.label}, but the model of {run.path} knows no classes")
    if arguments.label is not None and not 0 <= arguments.label < run.info.num_classes:
        raise InputError(f"--label: got {arguments.label}, expected 0..{run.info.num_classes - 1}")
    # Another method has defaults of its own; the same one keeps the run's settings.
    own = run.config.sampling
    config = own if arguments.method in (None, own.method) else SamplingConfig(method=arguments.method)
    options = sampler_options(config)
    given = {"steps": arguments.steps, "eps": arguments.step_eps, "start": arguments.start, "y": arguments.label}
    options |= {k: v for k, v in given.items() if v is not None}
    try:
        x = draw(
            run, arguments.n, arguments.seed, progress=sys.stderr.isatty(), batch_size=arguments.batch_size, **options
        )
    except ValueError as error:
        raise InputError(str(error)) from None
    _write(run, x, out)
    print(out)


def _write(run: Run, x: torch.Tensor, out: Path) -> None:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.suffix == ".png":
            figures.save_samples(run.to_data_units(x), out, names=run.info.columns)
        elif out.suffix == ".npy":
            np.save(out, run.to_data_units(x).float().numpy())
        else:
            header = ",".join(run.info.columns or ())
            np.savetxt(out, run.to_data_units(x).numpy(), delimiter=",", header=header, comments="", fmt="%.9g")
    except OSError as error:
        raise InputError(f"--out: cannot write {out} ({error.strerror})") from None


if __name__ == "__main__":
    sys.exit(main())
