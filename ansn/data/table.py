"""Tables: a column of cells for each thing that was measured, numbers, words and dates, with holes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ansn.data import cells as files
from ansn.data import kinds
from ansn.data.cells import Cells, number
from ansn.data.dataset import Dataset
from ansn.data.holdout import held_out, origin
from ansn.data.units import KINDS, MAX_CLASSES, Column, Table, warn_of_classes, warn_of_float32
from ansn.errors import InputError

_SHOWN = 6  # names in a note
_PIECE = 1 << 19  # numbers converted at a time
_CHUNK = 16384  # rows that are text at a time


def load(
    path: Path,
    *,
    split: str = "train",
    test_fraction: float | Literal["auto"] | None = None,
    standardise: bool = True,
    label_column: str | int | None = None,
    ignore_columns: Sequence[str | int] | None = None,
    column_kinds: Mapping[str, str] | None = None,
    header: bool | None = None,
) -> Dataset:
    """Rows of cells: .csv and .tsv (separated by commas, semicolons, tabs or bars), .parquet, .xlsx.

    header: see `ansn.data.cells.read`. Without one, columns are x0, x1, ...
    label_column: name, or position from 0 (negative from the end). Its distinct values, whole numbers or words, become
        classes 0..K-1 in ascending order; `Dataset.classes` keeps them.
    ignore_columns: names or positions to leave out.
    column_kinds: the kind of a column by name, one of `ansn.data.units.KINDS`, in place of what it looks like.
    standardise: x = (value - offset) / scale, with the mean and standard deviation (divisor N) of the train rows,
        float64; what is made of words is always.

    Missing cells are kept as what is not known. Left out, and noted: a first column without a name that counts the
    rows, columns of text in which most words are different, empty columns and rows. A column of one value is put aside
    and comes back in samples.

    InputError naming line and column: ragged, not a number among numbers, not finite, mostly empty, unknown column,
    empty file.
    """
    found = files.read(path, header)
    return from_cells(
        found, path, split=split, test_fraction=test_fraction, standardise=standardise, label_column=label_column,
        ignore_columns=ignore_columns, column_kinds=column_kinds, name=path.name,
    )  # fmt: skip


def from_cells(
    found: Cells,
    path: Path | str,
    *,
    split: str = "train",
    test_fraction: float | Literal["auto"] | None = None,
    splits: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None,
    standardise: bool,
    label_column: str | int | None = None,
    ignore_columns: Sequence[str | int] | None = None,
    column_kinds: Mapping[str, str] | None = None,
    labels: tuple[Tensor, tuple[str, ...]] | None = None,
    name: str,
) -> Dataset:
    """The data set of columns of cells. ``splits``: rows of train and of the split, where they are known; ``labels``:
    of each row, and their names, where no column holds them."""
    if standardise not in (True, False):
        raise InputError(f"standardise: got {standardise} for {path}, which holds a table, expected yes or no")
    names, notes = found.names, list(found.notes)
    label_at = None if label_column is None else _place(label_column, names, path)
    ignored = {_place(c, names, path) for c in ignore_columns or ()} | ({label_at} if label_at is not None else set())
    wanted = _wanted(column_kinds or {}, names, path, ignored)
    columns, values = [], []
    for j in range(len(names)):
        if j in ignored:
            continue
        column, t = kinds.column(found, j, path, wanted.get(names[j]))
        if isinstance(column, str):
            notes.append(f"column {names[j]!r} left out: {column}")
            continue
        columns.append(column)
        values.append(t)
    if not any(column.width for column in columns):
        raise InputError(
            f"{path}: got no column of numbers or few words left of {len(names)}, expected at least one that varies"
            + (f" ({'; '.join(notes[:_SHOWN])})" if notes else "")
        )
    empty = [repr(c.name) for c, t in zip(columns, values, strict=True) if np.isnan(t).mean() > 0.5]
    if empty:
        raise InputError(
            f"{path}: got mostly empty columns {', '.join(empty)}, expected at most half of the cells empty; leave them"
            " out: ignore_columns (--ignore-columns)"
        )
    known = np.zeros(len(found), bool)
    for column, t in zip(columns, values, strict=True):
        known |= ~np.isnan(t) & (column.kind != "constant")
    kept = np.flatnonzero(known)
    if len(kept) < len(known):
        notes.append(f"rows left out, all their cells empty: {len(known) - len(kept)}")
    if label_at is not None:
        code, classes = _classes(found.text(label_at), names[label_at], path)
        labels = torch.from_numpy(code), classes
    if splits is None:
        train, rows = (kept[held_out(len(kept), s, test_fraction, path)] for s in ("train", split))
        notes += origin(len(kept), test_fraction)
    else:
        train, rows = (np.intersect1d(part, kept) for part in splits)
    whole = [
        kinds.standardised(c, v[train], path, train) if standardise or c.kind == "category" else c
        for c, v in zip(columns, values, strict=True)
    ]
    if not standardise:
        for c, t in zip(whole, values, strict=True):
            if c.kind not in ("category", "constant"):
                warn_of_float32(path, f"column {c.name!r}", float(np.nanmean(t)), float(np.nanstd(t)))
    place = None
    if label_at is not None:
        left = {n for n in names[:label_at] if n in {c.name for c in columns}}
        place = (names[label_at], len(left))
    units = Table(tuple(whole), place)
    if labels is not None:
        warn_of_classes(path, labels[1], labels[0][torch.from_numpy(train)])
    x = torch.empty(len(rows), *units.shape)
    step = max(1, _PIECE // len(values))  # in pieces: the whole matrix, in float64, would take the most
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        piece = units.encode(torch.from_numpy(np.stack([t[part] for t in values], 1)))
        if bool(piece.isinf().any()):
            row, j = (int(v) for v in piece.isinf().nonzero()[0])
            k = int(np.searchsorted(np.cumsum([c.width for c in whole]), j, side="right"))
            got = f"{values[k][part[row]]:g} in row {int(part[row])}, column {whole[k].name!r}"
            raise InputError(f"{path}: got {got}, expected what float32 can hold")
        x[start : start + step] = piece
    return Dataset(
        x,
        name=name,
        kind="table",
        units=units,
        labels=None if labels is None else labels[0][torch.from_numpy(rows)],
        num_classes=None if labels is None else len(labels[1]),
        classes=None if labels is None else labels[1],
        notes=notes,
    )


def read_cells(path: Path, units: Table) -> Cells:
    """The cells of a file with a table's columns; without a header their names are by position."""
    found = files.read(path, names=units.names)
    if not set(units.names) & set(found.names) and len(found.names) == len(units.names):
        found = files.read(path, header=False)
        found.names = list(units.names)
    return found


def read_rows(path: Path, units: Table, classes: Sequence[str] | None = None) -> tuple[Tensor, Tensor | None]:
    """Rows of a file in the data's units, float64 ``[n, columns]``, NaN of missing cells, and their labels int64 (-1
    where none is given; None without that column): what :func:`write` wrote, or other rows of the same columns.

    Columns are found by name, in any order; without a header by position. InputError for a column that is missing and a
    cell that the training data's columns cannot hold.
    """
    found = read_cells(path, units)
    names = found.names
    out = np.full((len(found), len(units.columns)), math.nan)
    for k, column in enumerate(units.columns):
        if column.name in names:
            out[:, k] = _values(found, names.index(column.name), column, path)
        elif column.kind == "constant":
            out[:, k] = column.offset
        else:
            raise InputError(f"{path}: got columns {', '.join(names)}, expected {column.name!r} among them")
    labels = None
    if units.label is not None and units.label[0] in names and classes is not None:
        text = found.text(names.index(units.label[0]))
        place = {name: i for i, name in enumerate(classes)}
        codes = [-1 if cell is None else place.get(cell, place.get(_plain(cell), -2)) for cell in text]
        if -2 in codes:
            row = codes.index(-2)
            got = f"{text[row]!r} in {found.place(row)}, column {units.label[0]!r}"
            raise InputError(f"{path}: got {got}, expected one of {', '.join(classes)}")
        labels = torch.tensor(codes)
    return torch.from_numpy(out), labels


def write(
    path: Path,
    units: Table,
    values: Tensor,
    labels: Tensor | None = None,
    classes: Sequence[str] | None = None,
) -> None:
    """A CSV of rows float64 ``[n, columns]`` in the data's units, with the header, the kinds and the digits of the file
    that they were learned from; NaN is an empty cell. ``labels``: int64 ``[n]``, for the column of the class."""
    label = None if labels is None or classes is None else units.label
    names = list(units.names)
    if label is not None:
        names.insert(label[1], label[0])

    def rows() -> Iterator[tuple[str, ...]]:
        for start in range(0, len(values), _CHUNK):
            part = values[start : start + _CHUNK]
            cells = [[c.cell(v) for v in t.tolist()] for c, t in zip(units.columns, part.unbind(1), strict=True)]
            if label is not None and labels is not None and classes is not None:
                given = labels[start : start + _CHUNK].tolist()
                cells.insert(label[1], [classes[k] if k >= 0 else "" for k in given])
            yield from zip(*cells, strict=True)

    files.write(path, names, rows())


def _values(found: Cells, j: int, column: Column, path: Path) -> NDArray[np.float64]:
    """Values of a column as another file has them."""
    if column.form:
        text = found.text(j)
        return np.array([math.nan if cell is None else _time(cell, column, path) for cell in text])
    if not column.words:
        numbers = found.numbers(j)
        if numbers is None or np.isinf(numbers).any():
            text = found.text(j)
            bad = (number(cell) for cell in text)
            row = next(i for i, v in enumerate(bad) if v is None or math.isinf(v))
            raise kinds.bad_cell(path, found, j, row)
        other = ~np.isnan(numbers) & (numbers != column.offset)
        if column.kind == "constant" and other.any():
            row = int(np.argmax(other))
            got = f"{found.text(j)[row]} in {found.place(row)}, column {column.name!r}"
            raise InputError(f"{path}: got {got}, expected {column.cell(column.offset)}, the column's one value")
        return numbers
    place = {word: float(i) for i, word in enumerate(column.words)}
    text = found.text(j)
    strange = next((i for i, cell in enumerate(text) if cell is not None and cell not in place), None)
    if strange is not None:
        raise InputError(
            f"{path}: got {text[strange]!r} in {found.place(strange)}, column {column.name!r}, expected one of"
            f" {', '.join(column.words)}"
        )
    return np.array([math.nan if cell is None else place[cell] for cell in text])


def _time(cell: str, column: Column, path: Path) -> float:
    try:
        return kinds.seconds_of(cell, column.form)
    except ValueError:
        raise InputError(f"{path}: got {cell!r} in column {column.name!r}, expected {column.form}") from None


def _place(column: str | int, names: Sequence[str], path: Path | str) -> int:
    if isinstance(column, str) and column in names:
        return names.index(column)
    if isinstance(column, str) and column.lstrip("-").isdigit():  # as a command line gives it
        column = int(column)
    if isinstance(column, str):
        raise InputError(f"{path}: got no column {column!r}, expected one of {', '.join(names)}")
    if not -len(names) <= column < len(names):
        raise InputError(f"{path}: got no column {column}, expected a position from 0 to {len(names) - 1}")
    return column % len(names)


def _wanted(
    column_kinds: Mapping[str, str], names: Sequence[str], path: Path | str, ignored: set[int]
) -> dict[str, str]:
    for column, kind in column_kinds.items():
        if kind not in KINDS:
            raise InputError(f"column_kinds: got {kind!r} of {column!r}, expected one of {', '.join(KINDS)}")
        if _place(column, names, path) in ignored:
            raise InputError(f"column_kinds: got {kind} of {column!r}, which the model has not, expected others")
    return {names[_place(column, names, path)]: kind for column, kind in column_kinds.items()}


def _plain(cell: str) -> str:
    """A class as its name has it: ``9`` of ``9.0``."""
    value = number(cell)
    return str(int(value)) if value is not None and value.is_integer() else cell


def _classes(cells: list[str | None], column: str, path: Path | str) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """(class of each row, int64; the distinct values ascending, as numbers if all are, else as words)."""
    if None in cells:
        rows = [i + 1 for i, cell in enumerate(cells) if cell is None]
        got = f"an empty cell in the label column {column!r} in {len(rows)} rows, the first row {rows[0]}"
        raise InputError(f"{path}: got {got}, expected a class in every row")
    text = [cell for cell in cells if cell is not None]
    values = {cell: number(cell) for cell in set(text)}
    numeric = all(value is not None for value in values.values()) and not any(map(kinds.is_code, text))
    if numeric:
        broken = next((cell for cell, v in values.items() if v is None or not v.is_integer()), None)
        if broken is not None:
            raise InputError(f"{path}: got label {broken} in column {column!r}, expected whole numbers or words")
    names = {cell: _plain(cell) if numeric else cell for cell in values}
    if len(set(names.values())) > MAX_CLASSES:
        raise InputError(f"{path}: got {len(set(names.values()))} classes in column {column!r}, expected at most"
                         f" {MAX_CLASSES}")  # fmt: skip
    ordered = sorted(set(names.values()), key=lambda word: (int(word), "") if numeric else (0, word))
    place = {word: i for i, word in enumerate(ordered)}
    return np.array([place[names[cell]] for cell in text], dtype=np.int64), tuple(ordered)
