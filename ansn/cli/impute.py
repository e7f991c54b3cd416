"""`ansn-impute RUN TABLE --out filled.csv`: every missing cell filled, given what is known of its row."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from torch import Tensor

from ansn.choices import choice
from ansn.cli.common import RunName, guarded, parsed, positive
from ansn.data import cells, table
from ansn.data.units import Column, Table
from ansn.distributed import choose_device
from ansn.errors import InputError
from ansn.files import replacing
from ansn.sampling.impute import IMPUTATIONS, impute
from ansn.training import Run, load_run
from ansn.training.rows import read_rows

_DESCRIPTION = (
    "Fill every missing cell of a table (empty, NA, NaN or ?) with a draw of a run of ansn-train, given what is known"
    " of its row. All other cells keep their values; the file is written with commas. Of .npy arrays NaN is missing."
    " Exit codes: 0 done, 2 bad arguments or input, 130 interrupted."
)
_SUMMARISED = 32


@dataclass(frozen=True)
class Arguments:
    """What to fill and how."""

    run: RunName
    """Folder of a run, name of one that comes with ansn (ansn-info lists them), or hf://OWNER/NAME of a hub."""
    rows: tyro.conf.Positional[Path]
    """Table with the run's columns (.csv, .tsv, .parquet, .xlsx), or .npy of arrays of the run's shape."""
    out: Path
    """A .csv, of .npy a .npy."""
    draws: int | None = None
    """Several draws, one whole table after the other with columns draw and row before its own; of .npy [draws, N, ...].
    By default 1, for a summary 32."""
    summary: bool = False
    """One line for each missing cell: mean and deviation (of times seconds) of its draws, of words and numbers of two
    values the likeliest one and its share; of .npy mean and deviation, [2, N, ...]."""
    method: Annotated[str | None, choice(IMPUTATIONS, None)] = None
    """By default particles; adapted for a run on a table of fewer than 2,000 rows, whose conditional is too narrow
    where it has learned them by heart; jacobian above 256 dimensions."""
    steps: int = 40
    """Levels of the sampler."""
    particles: int = 16
    """Particles of a row; 4 times the draws at least."""
    seed: int = 0
    """Fixes the draws."""
    batch_size: int | None = None
    """Particles, or samples, at a time; by default 4096, above 256 dimensions 256."""
    threads: int | None = None
    """CPU threads; by default torch's."""
    device: str = "auto"
    """cpu, cuda, cuda:N, or auto: a GPU if there is one."""


def main() -> int:
    """Entry point."""
    arguments = parsed("ansn-impute", lambda: tyro.cli(Arguments, prog="ansn-impute", description=_DESCRIPTION))
    return guarded("ansn-impute", lambda: _impute(arguments))


def _impute(arguments: Arguments) -> None:
    positive(arguments, "draws", "steps", "batch_size", "threads")
    array = arguments.rows.suffix == ".npy"
    if arguments.out.suffix != (".npy" if array else ".csv"):
        raise InputError(f"--out: got {arguments.out}, expected a name that ends in {'.npy' if array else '.csv'}")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    run = load_run(arguments.run, device=choose_device(arguments.device))
    values, labels = read_rows(run, arguments.rows)
    draws = arguments.draws or (_SUMMARISED if arguments.summary else 1)
    y = _classes(arguments, run, len(values), labels)
    filled = _filled(arguments, run, values, y, draws)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    if array:
        out = torch.stack((filled.mean(0), filled.std(0, correction=0))) if arguments.summary else filled
        with replacing(arguments.out) as temporary, temporary.open("wb") as file:
            np.save(file, out[0].numpy() if draws == 1 else out.numpy())
    else:
        assert isinstance(run.units, Table)
        if arguments.summary:
            _summarise(arguments, run.units, values, filled)
        else:
            words = [] if y is None else [run.info.classes[k] for k in y.tolist()]
            _write(arguments, run.units, values, filled, words)
    missing = values.isnan()
    rows = int(missing.flatten(1).any(1).sum())
    print(f"{int(missing.sum())} missing in {rows} of {len(values)} rows, {draws} {'draws' if draws > 1 else 'draw'}")
    print(arguments.out)


def _classes(arguments: Arguments, run: Run, rows: int, labels: Tensor | None) -> Tensor | None:
    """The class of each row of a class-conditional run: its label, or one drawn by the data's shares."""
    if not run.config.network.class_conditional:
        return None
    generator = torch.Generator().manual_seed(arguments.seed)
    shares = torch.tensor(run.info.counts, dtype=torch.float64)
    y = torch.multinomial(shares, rows, replacement=True, generator=generator)
    return y if labels is None else torch.where(labels >= 0, labels, y)


def _filled(arguments: Arguments, run: Run, values: Tensor, y: Tensor | None, draws: int) -> Tensor:
    """Float64 ``[draws, N, ...]``, the data's units."""
    x = values.float() if run.units is None else run.units.encode(values)
    try:
        drawn = impute(
            run.model, x, draws, method=arguments.method, y=y, particles=arguments.particles, steps=arguments.steps,
            seed=arguments.seed, batch_size=arguments.batch_size,
        )  # fmt: skip
    except ValueError as error:
        raise InputError(str(error)) from None
    decoded = torch.stack([run.to_data_units(one).double() for one in drawn])
    filled = torch.where(values.isnan(), decoded, values)
    broken = int((~filled.isfinite()).sum())
    if broken:
        raise InputError(f"{arguments.run}: got {broken} numbers that are not finite for missing ones, expected finite")
    return filled


def _write(arguments: Arguments, units: Table, values: Tensor, filled: Tensor, classes: list[str]) -> None:
    """The file with its own cells, and draws where there were none; ``classes``: of the rows."""
    found = table.read_cells(arguments.rows, units)
    place = {column.name: j for j, column in enumerate(units.columns)}
    texts = [found.text(k) for k in range(len(found.names))]
    several = len(filled) > 1

    def lines() -> Iterator[list[str]]:
        for number, one in enumerate(filled):
            for i in range(len(values)):
                line = [str(number), str(i)] if several else []
                for name, text in zip(found.names, texts, strict=True):
                    cell, j = text[i], place.get(name)
                    if cell is None and classes and units.label is not None and name == units.label[0]:
                        cell = classes[i]
                    if j is not None and bool(values[i, j].isnan()):
                        cell = units.columns[j].cell(float(one[i, j]))
                    line.append("" if cell is None else cell)
                yield line

    cells.write(arguments.out, (["draw", "row"] if several else []) + found.names, lines())


def _summarise(arguments: Arguments, units: Table, values: Tensor, filled: Tensor) -> None:
    def line(i: int, j: int) -> list[str]:
        column: Column = units.columns[j]
        drawn = filled[:, i, j]
        start = [str(i), column.name]
        if column.words or column.kind == "binary":
            likeliest, times = drawn.unique(return_counts=True)
            best = int(times.argmax())
            return [*start, "", "", column.cell(float(likeliest[best])), f"{float(times[best]) / len(drawn):.3g}"]
        return [*start, column.cell(float(drawn.mean())), f"{float(drawn.std(correction=0)):.6g}", "", ""]

    names = ("row", "column", "mean", "deviation", "likeliest", "share")
    cells.write(arguments.out, names, (line(*place) for place in values.isnan().nonzero().tolist()))


if __name__ == "__main__":
    sys.exit(main())
