"""A claim as a program: cells, which are independent runs, the rows they give, and the section made of these.

Rows go to a CSV file as cells end, and cells that are there are not run again: an interrupted claim goes on where it
was. When the last is in, the file moves beside the others under ``experiments/results`` and ``docs/results.md`` is made
anew; the next run measures everything again.
"""

from __future__ import annotations

import concurrent.futures
import csv
import io
import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import tyro

from ansn.cli.common import guarded, parsed
from ansn.errors import InputError
from ansn.files import write_atomic
from ansn.machine import cpu_name

Cell = dict[str, Any]
Row = dict[str, Any]

RESULTS = Path(__file__).resolve().parents[1] / "results"


@dataclass(frozen=True)
class Settings:
    """How a claim is run; what it runs is in its file."""

    quick: bool = False
    """A small version that shows that everything runs; it says nothing about the claim and writes to runs/ only."""
    jobs: int = 2
    """Processes side by side, one thread each."""
    data: Path | None = None
    """Folder with the folders mnist, fashion-mnist and cifar10; cells without data are left out."""
    resume: bool = True
    """Keep the rows of an unfinished run; --no-resume starts over."""
    out: Path = Path("runs/evidence")
    """Folder of the unfinished rows; the rows of a whole run are copied to experiments/results."""


@dataclass(frozen=True)
class Section:
    """What a claim says: question and answer are a sentence, the others Markdown.

    ``tables`` and ``figures`` hold ``(caption, table)`` and ``(caption, file name)``, the files in the folder that the
    section was made for. ``reading``: how to read the CSV file. ``missing``: what of the claim is not measured yet.
    """

    question: str
    answer: str
    design: str
    tables: Sequence[tuple[str, str]] = field(default_factory=tuple)
    figures: Sequence[tuple[str, str]] = field(default_factory=tuple)
    findings: Sequence[str] = field(default_factory=tuple)
    reading: str = ""
    missing: str = ""


@dataclass(frozen=True)
class Claim:
    """``cells(settings)``: what to run, dicts of numbers and strings, in order. ``run(cell, settings)``: the rows of
    one, without its settings. ``section(rows, folder)``: what they say; figures go to the folder. Each is a function of
    a module, so that other processes can find it. ``name``: of the module and of the CSV file."""

    name: str
    cells: Callable[[Settings], list[Cell]]
    run: Callable[[Cell, Settings], list[Row]]
    section: Callable[[list[Row], Path], Section]


def complete(claim: Claim, settings: Settings) -> Path:
    """Run what is missing; returns the CSV file. Raises InputError for settings that cannot be."""
    if settings.jobs < 1:
        raise InputError(f"--jobs: got {settings.jobs}, expected at least 1")
    cells = claim.cells(settings)
    folder = settings.out / ("quick" if settings.quick else "full")
    path = folder / f"{claim.name}.csv"
    rows = read(path) if settings.resume and path.exists() else []
    # In the order of the cells, whoever ended first; rows of other settings go.
    found = {_key(cell): [row for row in rows if _of(row, cell)] for cell in cells}
    missing = [cell for cell in cells if not found[_key(cell)]]
    began = time.monotonic()
    for done, (cell, new) in enumerate(_ran(claim, missing, settings), 1):
        found[_key(cell)] = [cell | row | _machine() for row in new]
        write(path, [row for cell in cells for row in found[_key(cell)]])
        told = " ".join(f"{name}={value}" for name, value in cell.items())
        print(f"{claim.name} {done}/{len(missing)} {told} ({time.monotonic() - began:.0f} s)", file=sys.stderr)
    return path


def _ran(claim: Claim, cells: list[Cell], settings: Settings) -> Iterator[tuple[Cell, list[Row]]]:
    """Cells and their rows as they end: in this process for one job, else in so many others."""
    if settings.jobs == 1:
        torch.set_num_threads(1)
        yield from ((cell, claim.run(cell, settings)) for cell in cells)
        return
    # Inherited by the processes: threads beside threads on the same cores cost far more than they give.
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(settings.jobs, context, _ready) as pool:
        waiting = {pool.submit(claim.run, cell, settings): cell for cell in cells}
        failed: list[BaseException] = []
        try:
            for future in concurrent.futures.as_completed(waiting):
                if future.cancelled():
                    continue
                if error := future.exception():  # what runs beside it is not lost
                    failed.append(error)
                    for other in waiting:
                        other.cancel()
                else:
                    yield waiting[future], future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        if failed:
            raise failed[0]


def publish(claim: Claim, settings: Settings) -> Section:
    """Run what is missing and say what it shows; a whole run's rows and figures go to ``experiments/results``."""
    path = complete(claim, settings)
    folder = path.parent if settings.quick else RESULTS
    if not settings.quick:
        shutil.copyfile(path, RESULTS / path.name)
    return claim.section(read(path), folder)


def done(claim: Claim, settings: Settings) -> None:
    """Forget the rows that were kept for going on."""
    (settings.out / ("quick" if settings.quick else "full") / f"{claim.name}.csv").unlink(missing_ok=True)


def main(claims: Claim | Sequence[Claim], about: str | None, name: str = "") -> int:
    """The command line of a claim, or of several one after the other; each section is printed as its rows are in. Exit
    codes 0 done, 2 bad arguments, 130 interrupted."""
    claims = [claims] if isinstance(claims, Claim) else claims
    name = name or claims[0].name
    settings = parsed(name, lambda: tyro.cli(Settings, prog=name, description=about))

    def command() -> None:
        from experiments.lab.page import markdown, write_page

        able = [claim for claim in claims if claim.cells(settings)]
        if not able:
            raise InputError("--data: got none, expected a folder with mnist/, fashion-mnist/ and cifar10/")
        for claim in able:
            began = time.monotonic()
            print(markdown(claim.name, publish(claim, settings)), flush=True)
            print(f"{claim.name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
        if not settings.quick:
            write_page()
            for claim in able:
                done(claim, settings)

    return guarded(name, command)


def read(path: Path) -> list[Row]:
    """Rows of a CSV file: numbers as numbers, empty fields as None."""
    with path.open(newline="") as stream:
        return [{name: _value(text) for name, text in row.items()} for row in csv.DictReader(stream)]


def write(path: Path, rows: Sequence[Row]) -> None:
    """Rows with a header of all their names; the file is complete at every moment."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _text(value) for name, value in row.items()} for row in rows)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, text.getvalue())
    except OSError as error:
        raise InputError(f"--out: cannot write {path} ({error.strerror})") from None


def _ready() -> None:
    torch.set_num_threads(1)
    # Ctrl-C reaches the whole group; the parent ends it, and says so once.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _machine() -> Row:
    return {"torch": torch.__version__, "cpu": cpu_name()}


def _key(cell: Cell) -> tuple[tuple[str, str], ...]:
    return tuple((name, _text(value)) for name, value in cell.items())


def _of(row: Row, cell: Cell) -> bool:
    return all(_text(row.get(name)) == _text(value) for name, value in cell.items())


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value)


def _value(text: str) -> Any:
    if text == "":
        return None
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
