"""Many samples to a file or a folder, in bounded memory, by any number of processes; a stopped draw goes on.

A batch goes to disk as soon as it is drawn, into ``OUT.part`` (:mod:`ansn.sampling.part`), which becomes the output
when all is there. Sample i is a function of (seed, i) alone, so the rest can be cut into batches, and dealt to
processes, in any way.
"""

from __future__ import annotations

import hashlib
import math
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from ansn.data import table as tables
from ansn.data.units import Affine, Table
from ansn.distributed import agreed, orphaned, together
from ansn.errors import InputError
from ansn.lock import Lock, alone
from ansn.sampling.common import label_rows
from ansn.sampling.driver import Draw
from ansn.sampling.part import Part, spans

SUFFIXES = (".png", ".npy", ".csv")
STORES = ("float32", "uint8")
COMMIT_SECONDS = 1.0
"""At most so much work is lost by a killed process, beside the batch at hand."""


def to_disk(
    draw: Draw,
    n: int,
    out: str | os.PathLike[str],
    *,
    batch_size: int = 256,
    y: int | Tensor | None = None,
    store: str = "float32",
    units: Affine | Table | Callable[[Tensor], Tensor] | None = None,
    columns: Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
    resume: bool = True,
    finite: bool = True,
    progress: bool = False,
) -> Path:
    """Draw samples ``0 .. n - 1`` to ``out``; memory is a few batches, whatever n. Returns the path.

    Under `torchrun` the processes share the rows, and the folder of ``out`` must be one that all of them see.
    A stopped draw leaves ``OUT.part``; the same call goes on with it, whatever its batch size and number of
    processes (at the same batch size the result is the same to the byte). ``out`` is complete or not there.

    Args:
        draw: what to draw; each process has its own.
        out: by its ending: ``.npy``, ``[n, *shape]`` (a table's columns in float64); ``.csv``, written as the file
            that the table was learned from; ``.png``, one picture of all samples (drawn in memory); none: a folder of
            ``000000.png`` and on, images in [0, 1] of 1 or 3 channels.
        batch_size: samples at a time, of each process.
        y: labels, a number or int64 ``[n]``.
        store: of a ``.npy``: ``"float32"``, or ``"uint8"`` for images in [0, 1], clipped, times 255 and rounded.
        units: from samples to what is stored, of the run or any function.
        columns: names of a table's columns, where units do not have them.
        classes: names of the labels, for a table with a column of them.
        resume: go on with what is there; False starts over.
        finite: refuse samples that are not.
        progress: show a bar, on stderr, in process 0.

    Raises InputError for an output that cannot be or that another process writes, settings other than those of the
    unfinished draw, samples that are not finite, or a disk that refuses; ValueError naming another argument;
    KeyboardInterrupt, saying what is kept.
    """
    if n < 1 or batch_size < 1:
        raise ValueError(f"n, batch_size: got {n}, {batch_size}, expected at least 1")
    path, labels = Path(out), label_rows(y, n)
    if path.suffix not in SUFFIXES:
        path = path.resolve()  # a link to a folder is no name that another can take
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    shape = draw.source.noise.covariance.shape
    decode = units if units is None or callable(units) else units.decode
    stored = shape if decode is None else tuple(decode(torch.zeros(1, *shape)).shape[1:])
    _check(path, shape, store, columns, stored, units is None)
    images = path.suffix not in SUFFIXES
    number = "float64" if len(shape) == 1 or (isinstance(units, Affine) and units.wide) else "float32"
    kept = "uint8" if images or store == "uint8" else number
    part, device = Part(path, n, stored, kept, images=images, rank=rank), draw.source.noise.tau.device
    settings = _settings(draw, n, labels, kept)
    if settings != agreed(settings, device):
        raise InputError("model: got another than rank 0 has, expected one of all; the run was trained on, start again")
    with ExitStack() as stack, _telling(part, path):
        lock = path.with_name(f".{path.name}.lock")
        mine = together(lambda: stack.enter_context(alone(lock, path)) if rank == 0 else None, device)
        if agreed(resume and rank == 0 and part.finished(settings), device):
            if rank == 0:
                part.remove()
            return path
        if images and path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise InputError(f"--out: got {path}, which holds something, expected a new or an empty folder")
        together(lambda: part.prepare(settings, resume=resume) if rank == 0 else None, device)
        # Everyone reads what is missing before anyone adds to it: the blocks are dealt out alike.
        part.open()
        missing = ~part.done()
        together(lambda: None, device)
        if rank == 0 and not missing.all():
            print(f"going on: {n - int(missing.sum()):,} of {n:,} samples are in {part.folder}", file=sys.stderr)
        blocks = cut(missing, batch_size)
        # One batch that one process draws shows its steps instead.
        steps = progress and rank == 0 and len(blocks) == 1
        with _bar(n, int(n - missing.sum()), progress and rank == 0 and not steps) as moved:
            _draw(draw, part, blocks[rank::world], labels, decode, moved, steps, finite, mine)
        _wait(part)
        if mine is not None:
            mine.check()
            plain = Table.plain(columns or [f"x{j}" for j in range(math.prod(stored))])
            kind = "field" if isinstance(units, Affine) else None  # a map of C channels looks like an image
            _finish(part, path, units if isinstance(units, Table) else plain, labels, classes, kind)
    return path


def cut(missing: NDArray[np.bool_], batch_size: int) -> list[tuple[int, int]]:
    """Blocks ``(row, rows)`` of the rows that are missing, none across a multiple of ``batch_size``: a draw that
    goes on makes the batches that it would have made."""
    return [
        (row, min(stop, (row // batch_size + 1) * batch_size) - row)
        for start, stop in spans(missing)
        for row in sorted({start, *range(-(-start // batch_size) * batch_size, stop, batch_size)})
    ]


def _check(
    path: Path, shape: Sequence[int], store: str, columns: Sequence[str] | None, stored: Sequence[int], plain: bool
) -> None:
    """Raises InputError for an output that cannot hold such samples."""
    image = plain and len(shape) == 3 and shape[0] in (1, 3)
    if path.suffix == ".csv" and len(shape) != 1:
        raise InputError(f"--out: got {path} for samples of shape {list(shape)}, expected .png or .npy")
    if path.suffix not in SUFFIXES and not image:
        raise InputError(f"--out: got folder {path} for samples of shape {list(shape)}, expected grey or RGB images")
    if store not in STORES:
        raise ValueError(f"store: got {store!r}, expected one of {', '.join(STORES)}")
    if store == "uint8" and (path.suffix != ".npy" or len(shape) != 3 or not plain):
        raise ValueError(f"store: got 'uint8' for {path}, expected a .npy of images")
    if columns is not None and len(shape) == 1 and len(columns) != stored[0]:
        raise ValueError(f"columns: got {len(columns)}, expected {stored[0]}")


def _settings(draw: Draw, n: int, labels: Tensor | None, kept: str) -> dict[str, Any]:
    """What two draws must have in common for their rows to be of one kind."""
    told = None if labels is None else hashlib.sha256(labels.numpy().tobytes()).hexdigest()[:12]
    return {"n": n, "numbers": kept, **draw.settings, "labels": told, "model": draw.fingerprint()[:12]}


def _draw(
    draw: Draw,
    part: Part,
    blocks: list[tuple[int, int]],
    labels: Tensor | None,
    decode: Callable[[Tensor], Tensor] | None,
    moved: Callable[[int, Part], None],
    steps: bool,
    finite: bool,
    lock: Lock | None,
) -> None:
    """This process's blocks into the part; ``lock``: of process 0."""
    last = time.monotonic()
    try:
        for row, x in draw.batches(blocks, labels, progress=steps):
            x = x if decode is None else decode(x)
            if finite and not x.isfinite().all():
                broken = int((~x.isfinite()).flatten(1).any(1).sum())
                raise InputError(
                    f"samples {row} to {row + len(x) - 1}: got {broken} with numbers that are not finite, expected"
                    " finite ones; --allow-nonfinite stores them"
                )
            if orphaned():
                raise KeyboardInterrupt
            part.write(row, _numbers(x, part.dtype))
            if time.monotonic() - last > COMMIT_SECONDS:
                if lock is not None:
                    lock.check()
                part.commit()
                last = time.monotonic()
            moved(len(x), part)
    finally:
        part.commit()


def _numbers(x: Tensor, dtype: str) -> NDArray[Any]:
    values = x.numpy()
    if dtype != "uint8":
        return values.astype(dtype, copy=False)
    broken = np.isnan(values)
    if broken.any():
        warnings.warn("some samples hold values that are no numbers; they are stored as 0", stacklevel=4)
        values = np.where(broken, 0.0, values)
    return np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)


# -- several processes -------------------------------------------------------------------------------------------


def _wait(part: Part) -> None:
    """Until every process's rows are there. By the journals, not a barrier: one process may be hours behind
    another, and a collective gives up after minutes. (Whoever started us ends us if another process fails.)"""
    with suppress(FileNotFoundError):  # process 0 was quicker, and the part is gone
        while dist.is_initialized() and part.folder.exists() and not part.done().all():
            if orphaned():
                raise KeyboardInterrupt
            time.sleep(0.2)


@contextmanager
def _telling(part: Part, path: Path) -> Iterator[None]:
    """An interruption and a disk that refuses say in one line what is kept."""

    def kept() -> str:
        count = int(part.done().sum())
        return f"; {count} of {part.n} samples are kept in {part.folder}, the same command goes on" if count else ""

    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted{kept()}") from None
    except OSError as error:
        raise InputError(f"--out: got {error.strerror or error} for {path}, expected a file to write{kept()}") from None
    finally:
        part.close()


@contextmanager
def _bar(n: int, done: int, show: bool) -> Iterator[Callable[[int, Part], None]]:
    """A bar over all processes' samples, with images a second and the time left; gives what moves it on."""
    from rich.console import Console  # slow to import: only when used
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    rate = TextColumn("{task.fields[rate]}")
    columns = (TextColumn("samples"), MofNCompleteColumn(), BarColumn(bar_width=24), rate, TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not show, transient=True) as shown:
        task, begun = shown.add_task("", total=n, completed=done, rate=""), time.monotonic()

        def moved(rows: int, part: Part) -> None:
            if show:
                now = int(part.done().sum())
                speed = (now - done) / max(time.monotonic() - begun, 1e-9)
                shown.update(task, completed=now, rate=f"{speed:.3g} a second")

        yield moved


# -- the end -----------------------------------------------------------------------------------------------------


def _finish(
    part: Part, out: Path, table: Table, labels: Tensor | None, classes: Sequence[str] | None, kind: str | None
) -> None:
    """Put the output in its place; the part is gone after it."""
    rows, written = part.data, part.folder / f"written{out.suffix}"
    if out.suffix == ".csv":
        values = torch.from_numpy(np.load(rows, mmap_mode="r+"))
        tables.write(written, table, values, labels, classes)
        rows = written
    elif out.suffix == ".png":
        from ansn import figures  # Matplotlib is slow to import: only when used

        cells = table.columns if len(part.shape) == 1 else None
        names = None if cells is None else table.names
        figures.save_samples(torch.from_numpy(np.load(rows)), written, kind=kind, names=names, cells=cells)
        rows = written
    os.replace(rows, out)
    part.remove()
