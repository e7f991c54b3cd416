"""`ansn-evaluate RUN`: measure a trained model against its data and write `evaluation.json` and `report.html`."""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from ansn.choices import choice, suggestion
from ansn.cli.common import RunName, guarded, parsed
from ansn.config import SamplingConfig
from ansn.distributed import choose_device, say_device
from ansn.errors import InputError
from ansn.evaluation import spaces
from ansn.evaluation.evaluate import METRICS, Evaluated, Settings, evaluate
from ansn.evaluation.measurement import Evaluation
from ansn.evaluation.samples import read_samples
from ansn.evaluation.sweep import ALL, EVALUATIONS
from ansn.files import write_atomic
from ansn.lock import alone
from ansn.sampling import METHODS
from ansn.training import Run, load_run
from ansn.training.pictures import sampler_options
from ansn.training.places import evaluation_folder

_DESCRIPTION = (
    "Measure a run of ansn-train: distances to its training data in named feature spaces, beside what held-out data"
    " gets (the floor), with intervals. Writes evaluation.json and report.html into the run's folder."
    " Exit codes: 0 done, 2 bad arguments or input, 130 interrupted."
)


_SWEPT = 1000  # samples of a sweep that was not asked for


@dataclass(frozen=True)
class Arguments:
    """What to measure, and on which samples."""

    run: RunName
    """Folder of a run, name of one that comes with ansn (ansn-info lists them), or hf://OWNER/NAME of a hub."""
    n: Annotated[int | None, tyro.conf.arg(aliases=["-n"])] = None
    """Number of samples. More than there are held-out rows are measured in blocks of as many, so that the floor has the
    same number. By default the held-out rows' number or a multiple of it near 2000, at most 10000."""
    data: str | None = None
    """Folder that holds the files of a named data set; by default where they were in training."""
    features: Annotated[tuple[str, ...], suggestion(spaces.NAMES, "pca-K")] = ()
    """Spaces to measure in; by default the classifier (or pca) and pixels."""
    metrics: Annotated[tuple[str, ...], choice(METRICS, many=True)] = ()
    """What to measure; by default all. manifold is precision, recall, density and coverage."""
    method: Annotated[str | None, choice(METHODS, None)] = None
    """Sampler; by default and with --steps the run's own settings."""
    steps: int | None = None
    """Levels of the solvers, or Langevin steps a level."""
    samples: Path | None = None
    """A file to measure in place of drawing: .npy of ansn-sample, [n, ...] in the data's units or uint8 images, or a
    table such as .csv."""
    sweep: Annotated[tuple[str, ...], choice(METHODS, ALL, "none", many=True)] = ()
    """Samplers, all or none: also quality against evaluations and seconds, of as many samples. By default the sampler
    of the samples, with at most 1000; with --quick and --samples none."""
    evaluations: tuple[int, ...] = EVALUATIONS
    """Network evaluations a sample of the sweep."""
    quick: bool = False
    """At most 500 samples, 10 halves for the intervals, no likelihood; written into the folder quick of the run's."""
    pairs: int = 5000
    """Most rows on either side of what compares all pairs: kernel, energy, manifold, memorisation."""
    halves: int = 40
    """Random halves of the samples that each 95 % interval is made of."""
    likelihood: int = 128
    """Held-out rows for bits a dimension; 0 leaves it out."""
    seed: int = 0
    """Fixes samples and halves."""
    batch_size: int = 256
    """Samples at a time."""
    cache: Path | None = None
    """Folder of trained classifiers; by default $ANSN_CACHE, or ansn in the user's cache folder."""
    out: Path | None = None
    """Folder for evaluation.json and report.html; by default the run's, of a named run NAME-evaluation here, or quick
    in it."""
    device: str = "auto"
    """cpu, cuda, cuda:N, or auto: a GPU if there is one."""
    ema: bool = True
    """Use the averaged weights."""
    threads: int | None = None
    """CPU threads; by default torch's."""


def main() -> int:
    """Entry point."""
    arguments = parsed("ansn-evaluate", lambda: tyro.cli(Arguments, prog="ansn-evaluate", description=_DESCRIPTION))
    return guarded("ansn-evaluate", lambda: _evaluate(arguments))


def _evaluate(arguments: Arguments) -> None:
    for name, value in (("--steps", arguments.steps), ("--threads", arguments.threads)):
        if value is not None and value < 1:
            raise InputError(f"{name}: got {value}, expected at least 1")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = choose_device(arguments.device)
    run = load_run(arguments.run, ema=arguments.ema, device=device)
    sampling = _sampling(run, arguments)
    swept, most = _sweep(arguments, sampling.method)
    settings = Settings(
        n=arguments.n, features=arguments.features or None, metrics=arguments.metrics or METRICS, pairs=arguments.pairs,
        halves=arguments.halves, likelihood=arguments.likelihood, sweep=swept, swept=most,
        evaluations=arguments.evaluations, seed=arguments.seed, batch_size=arguments.batch_size,
    )  # fmt: skip
    if arguments.quick:
        n = min(settings.n or 500, 500)
        settings = dataclasses.replace(settings, n=n, halves=min(settings.halves, 10), likelihood=0)
    base = evaluation_folder(arguments.run, run.path)
    folder = arguments.out or (base / "quick" if arguments.quick else base)
    with contextlib.ExitStack() as stack:
        try:
            lock = stack.enter_context(alone(folder / ".evaluation.lock", folder))
        except OSError as error:
            raise InputError(f"--out: got {error.strerror} for {folder}, expected a folder to write in") from None
        samples = None if arguments.samples is None else read_samples(arguments.samples, run, arguments.seed)
        say_device(device)
        try:
            found = evaluate(
                run, settings, data=arguments.data, sampling=sampling, samples=samples, cache=arguments.cache,
                command=shlex.join(["ansn-evaluate", *sys.argv[1:]]), progress=sys.stderr.isatty(), tell=_tell,
            )  # fmt: skip
        except ValueError as error:
            raise InputError(str(error)) from None
        print(table(found.evaluation))
        for line in found.evaluation.left_out:
            print(f"left out: {line}")
        lock.check()
        write_atomic(folder / "evaluation.json", found.evaluation.to_json())
        print(folder / "evaluation.json")
        _tell("drawing the report")
        way = None if samples is not None else {**sampler_options(sampling), "seed": arguments.seed}
        print(*_report(folder, run, found, way), sep="\n")


def table(evaluation: Evaluation) -> str:
    """The measurements in aligned columns, a line each; then the rows of the sweep."""
    rows = [["measurement", "value", "95 % interval", "floor", "baseline", "n", "against", "features"]]
    for m in evaluation.measurements:
        interval = "" if m.low is None or m.high is None else f"{m.low:.4g} to {m.high:.4g}"
        at = "" if m.floor_n == m.n else f" (n = {m.floor_n})"
        floor = "" if m.floor is None else f"{m.floor:.4g}{at}"
        against = f"{m.reference_n} of {m.reference}" if m.reference else ""
        base = "" if m.baseline is None else f"{m.baseline:.4g}"
        rows.append([m.name, f"{m.value:.4g}", interval, floor, base, str(m.n), against, m.features or ""])
    told = _aligned(rows)
    if evaluation.quality:
        lines = [["sampler", "steps", "evaluations", "seconds", "n", "value", "95 % interval", "floor"]]
        for q in evaluation.quality:
            known = q["value"] is not None
            interval = f"{q['low']:.4g} to {q['high']:.4g}" if known else ""
            value = f"{q['value']:.4g}" if known else "not finite"
            floor = "" if q["floor"] is None else f"{q['floor']:.4g}"
            cost = [q["method"], str(q["steps"]), str(q["evaluations"]), f"{q['seconds']:.2f}"]
            lines.append([*cost, str(q["n"]), value, interval, floor])
        several = len({q["n"] for q in evaluation.quality}) > 1
        note = "; distances fall with n, so only rows of one n compare" if several else ""
        told += f"\n\n{evaluation.quality[0]['name']}{note}\n{_aligned(lines)}"
    return told


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[j]) for row in rows) for j in range(len(rows[0]))]
    return "\n".join("  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def _report(folder: Path, run: Run, found: Evaluated, way: dict[str, Any] | None) -> list[Path]:
    from ansn.evaluation.report import Shares, write_report
    from ansn.evaluation.trajectory import record

    shares = None
    if found.shares is not None:
        own, data, judge = found.shares
        names = found.train.classes or tuple(map(str, range(len(data))))
        shares = Shares(names, own, data, judge)
    shown = 200 if run.info.kind == "table" else 8  # rows of a table are a cloud of points
    trajectory = None if way is None else record(run, min(shown, len(found.samples)), **way)
    return write_report(
        folder, run, found.evaluation, samples=found.samples, train=found.train, test=found.test, trajectory=trajectory,
        shares=shares,
    )[:1]


def _sampling(run: Run, arguments: Arguments) -> SamplingConfig:
    """The run's own settings, or another method's defaults."""
    own, name = run.config.sampling, arguments.method
    chosen = own if name is None or name == own.method else SamplingConfig(method=name)
    return chosen if arguments.steps is None else dataclasses.replace(chosen, sample_steps=arguments.steps)


def _sweep(arguments: Arguments, own: str) -> tuple[tuple[str, ...], int | None]:
    """The samplers to sweep, and the most samples of it."""
    if arguments.sweep:
        return (() if arguments.sweep == ("none",) else arguments.sweep), None
    few_levels = METHODS[own].flow  # Langevin has no row at so few evaluations
    return ((own,) if few_levels and not arguments.quick and arguments.samples is None else ()), _SWEPT


def _tell(line: str) -> None:
    print(line, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
