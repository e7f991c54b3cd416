"""`ansn-score RUN TABLE`: how likely each row is, the anomaly score."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro

from ansn.choices import choice
from ansn.cli.common import RunName, guarded, parsed, positive
from ansn.data import cells
from ansn.distributed import choose_device
from ansn.errors import InputError
from ansn.likelihood import score_rows
from ansn.training import load_run
from ansn.training.rows import read_rows

_DESCRIPTION = (
    "Log-likelihood of each row of a file under a run of ansn-train, in nats and in the data's own units, with its"
    " standard error: low where a row is unlike the data. Of whole numbers and categories it is their probability; of"
    " images the density of their numbers 0..1; of a class-conditional model without labels the mean over the classes."
    " Exit codes: 0 done, 2 bad arguments or input, 130 interrupted."
)
_LOWEST = 5


@dataclass(frozen=True)
class Arguments:
    """What to score and how."""

    run: RunName
    """Folder of a run, name of one that comes with ansn (ansn-info lists them), or hf://OWNER/NAME of a hub."""
    rows: tyro.conf.Positional[Path]
    """Table with the run's columns (.csv, .tsv, .parquet, .xlsx), or .npy of arrays of the run's shape."""
    out: Path = Path("scores.csv")
    """CSV with columns row (from 0), log_likelihood and standard_error."""
    draws: int | None = None
    """Draws that average over the step of what is discrete; by default 8."""
    steps: int = 16
    """Steps of the probability flow: more are more exact."""
    trace: Annotated[str, choice(("auto", "exact", "hutchinson"))] = "auto"
    """exact costs a gradient a dimension; hutchinson some probes; auto is exact up to 32 dimensions."""
    seed: int = 0
    """Fixes the draws."""
    batch_size: int = 1024
    """Rows at a time."""
    threads: int | None = None
    """CPU threads; by default torch's."""
    device: str = "auto"
    """cpu, cuda, cuda:N, or auto: a GPU if there is one."""


def main() -> int:
    """Entry point."""
    arguments = parsed("ansn-score", lambda: tyro.cli(Arguments, prog="ansn-score", description=_DESCRIPTION))
    return guarded("ansn-score", lambda: _score(arguments))


def _score(arguments: Arguments) -> None:
    positive(arguments, "steps", "draws", "batch_size", "threads")
    if arguments.out.suffix != ".csv":
        raise InputError(f"--out: got {arguments.out}, expected a name that ends in .csv")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    run = load_run(arguments.run, device=choose_device(arguments.device))
    values, labels = read_rows(run, arguments.rows)
    low, high = (float(v) for v in values.nan_to_num(0.5).aminmax())
    if run.info.kind == "image" and not 0 <= low <= high <= 1:
        got = f"values from {low:g} to {high:g}"
        raise InputError(f"{arguments.rows}: got {got}, expected grey values in [0, 1], or uint8")
    missing = values.isnan().flatten(1).any(1)
    if bool(missing.all()):
        raise InputError(f"{arguments.rows}: got missing cells in every row, expected complete rows (see ansn-impute)")
    classes = run.model.num_classes if run.config.network.class_conditional else 0
    shares = torch.tensor(run.info.counts, dtype=torch.float64) / sum(run.info.counts) if classes else None
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    labelled = torch.zeros_like(missing) if labels is None or not classes else labels >= 0
    found = torch.full((2, len(values)), math.nan, dtype=torch.float64)
    for part in (labelled, ~labelled):
        if not bool((part & ~missing).any()):
            continue
        try:
            scored = score_rows(
                run.model, values[part], run.units, y=labels[part] if labels is not None and part is labelled else None,
                shares=shares, draws=arguments.draws, steps=arguments.steps, trace=arguments.trace, seed=arguments.seed,
                batch_size=arguments.batch_size, progress=_say,
            )  # fmt: skip
        except ValueError as error:
            raise InputError(str(error)) from None
        found[:, part] = torch.stack((scored.value, scored.error))
    pairs = zip(*found.tolist(), strict=True)
    lines = ((str(i), *("" if v != v else f"{v:.6g}" for v in pair)) for i, pair in enumerate(pairs))
    cells.write(arguments.out, ("row", "log_likelihood", "standard_error"), lines)
    lowest = found[0].nan_to_num(torch.inf).argsort()[: min(_LOWEST, int((~missing).sum()))].tolist()
    known = found[0][~missing]
    print(f"{len(known)} rows, mean {known.mean():.4g} nats; lowest: rows {', '.join(map(str, lowest))}")
    if bool(missing.any()):
        print(f"{int(missing.sum())} rows with missing cells have no score; ansn-impute fills them")
    print(arguments.out)


def _say(done: int, rows: int) -> None:
    print(f"scored {done:,} of {rows:,} rows", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
