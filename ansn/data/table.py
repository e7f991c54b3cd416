"""A CSV of numbers: columns standardised, names kept, one column may be the label."""

from __future__ import annotations

import csv
import io
import math
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from ansn.data.arrays import vectors
from ansn.data.dataset import Dataset
from ansn.data.files import opened
from ansn.data.holdout import held_out
from ansn.errors import InputError

_MAX_CLASSES = 65536


def load(
    path: Path,
    *,
    split: str = "train",
    test_fraction: float | None = None,
    standardise: bool = True,
    label_column: str | int | None = None,
    ignore_columns: Sequence[str | int] | None = None,
    header: bool | None = None,
) -> Dataset:
    """Rows of numbers, separated by commas (or, where the first line has none, by semicolons or tabs).

    header: whether the first line names the columns; by default it does if none of its cells is a number
        (label and ignored columns given by position aside). Without one, columns are x0, x1, ...
    label_column: name, or position from 0 (negative from the end). Its distinct values, whole numbers or
        words, become classes 0..K-1 in ascending order; `Dataset.classes` keeps them.
    ignore_columns: names or positions to leave out.
    standardise: x = (value - offset) / scale, with the mean and standard deviation (divisor N) of the
        train rows, float64.

    InputError naming line and column: ragged, empty cell, not a number, not finite, constant column (nothing
    to divide by), unknown column, empty file.
    """
    with opened(path) as stream:
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
        try:
            names, label_at, kept, values, labels = _parse(text, path, label_column, ignore_columns or (), header)
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: got no UTF-8 text at byte {error.start}, expected a CSV of numbers") from None
        except csv.Error as error:
            raise InputError(f"{path}: got no CSV ({error}), expected one of numbers") from None
    matrix = np.frombuffer(values, dtype=np.float64).reshape(-1, len(kept))
    targets, classes = (None, None) if label_at is None else _classes(labels, names[label_at], path)

    train = held_out(len(matrix), "train", test_fraction, path)
    rows = held_out(len(matrix), split, test_fraction, path)
    whole = vectors(matrix[train], path, standardise=standardise, columns=[names[j] for j in kept], name=path.name)
    assert whole.offset is not None  # vectors always have both
    assert whole.scale is not None
    with np.errstate(over="ignore"):
        x = ((matrix[rows] - whole.offset.numpy()) / whole.scale.numpy()).astype(np.float32)
    if not np.isfinite(x).all():
        raise InputError(f"{path}: got a test row too far from the train rows, expected what float32 can hold")
    return Dataset(
        torch.from_numpy(x),
        name=path.name,
        labels=None if targets is None else torch.from_numpy(targets[rows]),
        num_classes=None if classes is None else len(classes),
        classes=classes,
        columns=whole.columns,
        offset=whole.offset,
        scale=whole.scale,
    )


def _parse(
    text: io.TextIOWrapper,
    path: Path,
    label_column: str | int | None,
    ignore_columns: Sequence[str | int],
    header: bool | None,
) -> tuple[list[str], int | None, list[int], array[float], list[str]]:
    """(names, label position, kept positions, their values row by row, label cells)."""
    first_line = text.readline()
    delimiter = "," if "," in first_line else ";" if ";" in first_line else "\t" if "\t" in first_line else ","

    def lines() -> Iterator[str]:
        yield first_line
        yield from text

    reader = csv.reader(lines(), delimiter=delimiter, strict=True)
    rows = (row for row in reader if row and (len(row) > 1 or row[0].strip()))  # blank lines say nothing
    first = next(rows, None)
    if first is None:
        raise InputError(f"{path}: got no lines, expected rows of numbers")
    width, first_at = len(first), reader.line_num

    unnamed = {_position(c, width, path) for c in (label_column, *ignore_columns) if isinstance(c, int)}
    if header is None:
        header = not any(_is_number(cell) for j, cell in enumerate(first) if j not in unnamed)
    if header:
        names = [cell.strip() or f"x{j}" for j, cell in enumerate(first)]
        twice = next((name for j, name in enumerate(names) if name in names[:j]), None)
        if twice is not None:
            raise InputError(f"{path}: got two columns of name {twice!r}, expected different names")
    else:
        names = [f"x{j}" for j in range(width)]

    def place(column: str | int) -> int:
        if isinstance(column, int):
            return _position(column, width, path)
        if column not in names:
            raise InputError(f"{path}: got no column {column!r}, expected one of {', '.join(names)}")
        return names.index(column)

    label_at = None if label_column is None else place(label_column)
    left_out = {place(c) for c in ignore_columns} | ({label_at} if label_at is not None else set())
    kept = [j for j in range(width) if j not in left_out]
    if not kept:
        raise InputError(f"{path}: got no column of numbers left of {width}, expected at least one")

    values, labels = array("d"), []

    def add(row: list[str]) -> None:
        if len(row) != width:
            raise InputError(
                f"{path}: got {len(row)} cells in line {reader.line_num}, expected {width} as in line {first_at}"
            )
        for j in kept:
            cell = row[j]
            try:
                value = float(cell)
            except ValueError:
                value = math.nan
            # float() also reads 1_000, which no CSV writer means
            if not math.isfinite(value) or "_" in cell:
                raise _bad_cell(cell, reader.line_num, names[j], path)
            values.append(value)
        if label_at is not None:
            labels.append(row[label_at].strip())

    if not header:
        add(first)
    for row in rows:
        add(row)
    if not values:
        raise InputError(f"{path}: got a header and no rows, expected rows of numbers")
    return names, label_at, kept, values, labels


def _position(column: int, width: int, path: Path) -> int:
    if not -width <= column < width:
        raise InputError(f"{path}: got no column {column}, expected a position from 0 to {width - 1}")
    return column % width


def _is_number(cell: str) -> bool:
    """NaN and infinities count: a line with one is data, and its error names the cell."""
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _bad_cell(cell: str, line: int, column: str, path: Path) -> InputError:
    what = "an empty cell" if not cell.strip() else repr(cell if len(cell) <= 40 else cell[:37] + "...")
    return InputError(f"{path}: got {what} in line {line}, column {column!r}, expected a finite number")


def _classes(cells: list[str], column: str, path: Path) -> tuple[np.ndarray, tuple[str, ...]]:
    """(class of each row, int64; the distinct values ascending, as numbers if all are, else as words)."""
    distinct = set(cells)
    if "" in distinct:
        raise InputError(f"{path}: got an empty cell in the label column {column!r}, expected a class in every row")
    numeric = all(_is_number(cell) for cell in distinct)
    if numeric:
        broken = next((cell for cell in distinct if not float(cell).is_integer()), None)
        if broken is not None:
            raise InputError(f"{path}: got label {broken} in column {column!r}, expected whole numbers or words")
    if len(distinct) > _MAX_CLASSES:
        raise InputError(f"{path}: got {len(distinct)} classes in column {column!r}, expected at most {_MAX_CLASSES}")
    key = {cell: (float(cell) if numeric else cell) for cell in distinct}
    ordered = sorted(set(key.values()))  # type: ignore[type-var]
    number = {value: i for i, value in enumerate(ordered)}
    names = tuple(str(int(value)) if numeric else str(value) for value in ordered)
    return np.array([number[key[cell]] for cell in cells], dtype=np.int64), names
