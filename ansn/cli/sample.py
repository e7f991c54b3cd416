"""`ansn-sample RUN`: draw from a trained model."""

from __future__ import annotations

import _thread
import functools
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro

from ansn.choices import choice
from ansn.cli.common import RunName, guarded, parsed
from ansn.config import SamplingConfig
from ansn.distributed import as_first, processes, say_device
from ansn.errors import InputError
from ansn.noise import STARTS
from ansn.sampling import METHODS, schedules
from ansn.sampling.stream import STORES, SUFFIXES
from ansn.training import Run, load_run
from ansn.training.pictures import draw_to_disk, sampler_options
from ansn.training.places import short

_DESCRIPTION = (
    "Draw samples from a run of ansn-train. Sample i depends on the seed and i alone, not on the batch size or the"
    " number of processes (torchrun --nproc-per-node 2 -m ansn.cli.sample RUN ...). Rerun a stopped command to go on."
    " Exit codes: 0 done, 2 bad arguments or input, 130 interrupted."
)


_SHOWN = 12  # classes, at most


@dataclass(frozen=True)
class Arguments:
    """What to draw and where to put it."""

    run: RunName
    """Folder of a run, name of one that comes with ansn (ansn-info lists them), or hf://OWNER/NAME of a hub."""
    n: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 64
    """Number of samples."""
    method: Annotated[str | None, choice(METHODS, None)] = None
    """The sampler; by default and with all below, the run's own settings."""
    steps: int | None = None
    """Levels of the solvers, or Langevin steps a level."""
    schedule: Annotated[str | None, choice(schedules.names(), None)] = None
    """Spacing of the levels, of the solvers, by default few_steps; optimised finds it for the model first, in as many
    evaluations as some 3000 samples."""
    step_eps: float | None = None
    """Langevin: the paper's step size."""
    start: Annotated[str | None, choice(STARTS, None)] = None
    """Start of sampling."""
    label: str | None = None
    """Class to draw, for a class-conditional model, by its name (or number, where names are words), or number of a
    region that was found; by default classes in turn, of a table and regions by their shares."""
    guidance: float | None = None
    """Weight of classifier-free guidance: 1 is plain sampling of the class, 2 to 4 exaggerates it; for a model trained
    with --label-dropout."""
    guidance_interval: tuple[float, float] | None = None
    """Lowest and highest level at which the guidance acts, data standard deviations; by default all."""
    seed: int = 0
    """Fixes the samples."""
    batch_size: int = 256
    """Samples at a time."""
    out: str | None = None
    """A .png picture of all samples, .npy ([n, ...], data units), .csv for tables, or NAME/ for a folder of PNG
    files, one each; by default drawn-seedN.png in the run's folder, of a named run NAME-seedN.png here."""
    store: Annotated[str, choice(STORES)] = "float32"
    """Numbers of a .npy; uint8 for images: clipped to [0, 1], times 255, rounded."""
    resume: bool = True
    """Go on with the OUT.part that a stopped draw of the same settings left; --no-resume starts over."""
    allow_nonfinite: bool = False
    """Draw with weights, and store samples, that are not finite."""
    max_minutes: float | None = None
    """Stop after this many minutes with exit code 130, what is drawn kept, for a scheduler's time limit."""
    threads: int | None = None
    """CPU threads; by default torch's. 1 where other programs use the cores."""
    device: str = "auto"
    """cpu, cuda, cuda:N, or auto: a GPU if there is one."""
    ema: bool = True
    """Use the averaged weights."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What the network computes in; the sampler's own arithmetic is float32."""
    compile: bool = False
    """Compile the network with torch.compile: pays for many samples."""
    cuda_graph: bool = False
    """On a GPU, replay the network's call as a CUDA graph."""


def main() -> int:
    """Entry point."""
    arguments = parsed("ansn-sample", lambda: tyro.cli(Arguments, prog="ansn-sample", description=_DESCRIPTION))
    return guarded("ansn-sample", lambda: _sample(arguments))


def _sample(arguments: Arguments) -> None:
    named, seed = short(arguments.run), f"seed{arguments.seed}.png"
    out = Path(arguments.out or (f"{named}-{seed}" if named else Path(arguments.run, f"drawn-{seed}")))
    folder = out.is_dir() or (arguments.out or "").endswith("/")
    if out.suffix not in SUFFIXES and not folder:
        raise InputError(
            f"--out: got {out}, expected a name that ends in .png, .npy or .csv, or in / for a folder of PNG files"
        )
    for name, value in (("-n", arguments.n), ("--batch-size", arguments.batch_size), ("--threads", arguments.threads)):
        if value is not None and value < 1:
            raise InputError(f"{name}: got {value}, expected at least 1")
    if arguments.guidance_interval is not None and arguments.guidance is None:
        low, high = arguments.guidance_interval
        raise InputError(f"--guidance-interval: got {low:g} {high:g} without --guidance, expected both")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    minutes = arguments.max_minutes
    if minutes is not None and not 0 < minutes <= threading.TIMEOUT_MAX / 60:
        raise InputError(f"--max-minutes: got {minutes:g}, expected more than 0 minutes, and a finite number")
    with processes(arguments.device) as (rank, _, device), _at_most(minutes):
        load = functools.partial(
            load_run, arguments.run, ema=arguments.ema, device=device, finite=not arguments.allow_nonfinite
        )
        run = as_first(lambda step: load(step=step), lambda run: run.step, device)
        _check(arguments, run, out)
        label = _label(arguments.label, run)
        say_device(device)
        try:
            draw_to_disk(
                run, arguments.n, out, arguments.seed, y=label, batch_size=arguments.batch_size,
                store=arguments.store, resume=arguments.resume, finite=not arguments.allow_nonfinite,
                progress=sys.stderr.isatty(), **_options(arguments, run),
            )  # fmt: skip
        except ValueError as error:
            raise error if isinstance(error, InputError) else InputError(str(error)) from None
        if rank == 0:
            print(out)


@contextmanager
def _at_most(minutes: float | None) -> Iterator[None]:
    """Ctrl-C after so many minutes."""
    if minutes is None:
        yield
        return
    timer = threading.Timer(60 * minutes, _thread.interrupt_main)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _check(arguments: Arguments, run: Run, out: Path) -> None:
    if out.suffix == ".csv" and run.info.columns is None:
        raise InputError(f"--out: got {out}, but {run.info.name} holds {run.info.kind}s, expected .png or .npy")
    method = arguments.method or run.config.sampling.method
    if arguments.schedule is not None and not METHODS[method].flow:
        raise InputError(f"--schedule: got {arguments.schedule}, but {method} has its own ladder, expected a solver")


def _label(name: str | None, run: Run) -> int | None:
    """The class or region of that name or number."""
    count = run.model.num_classes
    if name is None:
        return None
    if not count:
        raise InputError(f"--label: got {name}, but {run.path} knows no classes, expected none")
    classes = run.info.classes if run.config.network.class_conditional else tuple(map(str, range(count)))
    if name in classes:
        found = classes.index(name)
        if run.config.network.class_conditional and not run.info.counts[found]:
            raise InputError(f"--label: got {name}, of which {run.path} saw no row, expected another class")
        return found
    if name.isdecimal() and int(name) < count and not any(known.lstrip("-").isdecimal() for known in classes):
        return int(name)
    shown = classes if count <= _SHOWN else (*classes[: _SHOWN - 2], "...", classes[-1])
    raise InputError(f"--label: got {name}, expected one of {', '.join(shown)}")


def _options(arguments: Arguments, run: Run) -> dict[str, Any]:
    """The draw's: another method has defaults of its own; the same one keeps the run's settings."""
    own = run.config.sampling
    name = arguments.method
    config = own if name is None or name == own.method else SamplingConfig(method=name)
    options = sampler_options(config)
    given: dict[str, Any] = {
        "steps": arguments.steps, "eps": arguments.step_eps, "start": arguments.start, "schedule": arguments.schedule,
        "guidance": arguments.guidance, "guidance_interval": arguments.guidance_interval,
    }  # fmt: skip
    options |= {k: v for k, v in given.items() if v is not None}
    return options | {
        "dtype": getattr(torch, arguments.dtype), "compile": arguments.compile, "cuda_graph": arguments.cuda_graph,
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
