"""Files of cells: CSV and its like, Parquet and Excel, as named columns of text or numbers.

pyarrow reads them where it is installed, many times faster; else Python's csv module does. Both give the same.
"""

from __future__ import annotations

import csv
import importlib.util
import io
import itertools
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ansn.data.files import opened, require_memory
from ansn.errors import InputError

SUFFIXES = (".csv", ".tsv", ".parquet", ".xlsx")
MISSING = frozenset(
    ["", "NA", "N/A", "n/a", "#N/A", "<NA>", "NaN", "nan", "NAN", "-nan", "null", "NULL", "None", "?", "."]
)
"""Cells that say that nothing is known."""

_LOOKED_AT = 200  # lines that delimiter and header are found by


@dataclass
class Cells:
    """Columns of text, ``None`` where a cell is missing, or numbers (float64, NaN).

    Attributes:
        names: of the columns. notes: what was guessed. place: the line (of a CSV) or row of a data row, for messages.
        first_named: whether the first column has a name, or there is no header.
    """

    names: list[str]
    columns: list[Any]
    notes: list[str] = field(default_factory=list)
    place: Callable[[int], str] = lambda row: f"row {row + 1}"
    first_named: bool = True

    def __len__(self) -> int:
        return len(self.columns[0]) if self.columns else 0

    def numbers(self, j: int) -> NDArray[np.float64] | None:
        """Column j as float64 with NaN for missing cells; None where a cell is no number."""
        column = self.columns[j]
        if isinstance(column, np.ndarray):
            return column
        if hasattr(column, "to_pylist"):
            found = _cast(column)
            if found is not None:
                return found
            column = column.to_pylist()
        out = np.empty(len(column))
        for i, cell in enumerate(column):
            value = number(cell)
            if value is None:
                return None
            out[i] = value
        return out

    def text(self, j: int) -> list[str | None]:
        """Column j as text."""
        column = self.columns[j]
        if isinstance(column, np.ndarray):
            return [None if math.isnan(v) else str(int(v)) if v.is_integer() else repr(v) for v in column.tolist()]
        return column.to_pylist() if hasattr(column, "to_pylist") else column  # type: ignore[no-any-return]


def number(cell: str | None) -> float | None:
    """A cell's number; NaN of a missing one, None of any other text. ``1_000``, which no CSV writer means, is text."""
    if cell is None:
        return math.nan
    try:
        return None if "_" in cell else float(cell)
    except ValueError:
        return None


def read(path: Path, header: bool | None = None) -> Cells:
    """The cells of a file, by its ending (.gz and .xz aside): .parquet, .xlsx, else text.

    ``header``: whether the first line names the columns; None: it does where no cell of it is a number, or where its
    numbers count on by equal steps and those of the next line do not (said in a warning).
    InputError naming the line: no UTF-8 or Windows-1252 text, ragged lines, names that come twice, no rows.
    """
    ending = Path(path.name.lower().removesuffix(".gz").removesuffix(".xz")).suffix
    try:
        found = {".parquet": _parquet, ".xlsx": _excel}.get(ending, _text)(path, header)
    except InputError:
        raise
    except ImportError as error:
        package = {".parquet": "pyarrow", ".xlsx": "openpyxl"}[ending]
        raise InputError(f"{path}: got a {ending} file, expected {package} to be installed for it ({error})") from None
    if not len(found):
        raise InputError(f"{path}: got a header and no rows, expected rows of numbers")
    twice = next((name for j, name in enumerate(found.names) if name in found.names[:j]), None)
    if twice is not None:
        raise InputError(f"{path}: got two columns of name {twice!r}, expected different names")
    return found


# -- text --------------------------------------------------------------------------------------------------------


def _text(path: Path, header: bool | None) -> Cells:
    with opened(path) as stream:
        data = stream.read()
        require_memory(4 * len(data), path)
    notes: list[str] = []
    try:
        data.decode("utf-8")
        encoding = "utf-8-sig"
    except UnicodeDecodeError as error:
        encoding = "cp1252"
        try:
            if b"\0" in data or error.start < 4:
                raise ValueError
            data.decode(encoding)
        except ValueError:
            raise InputError(f"{path}: got no UTF-8 text at byte {error.start}, expected a CSV of numbers") from None
        notes.append(f"no UTF-8 text at byte {error.start}: read as Windows-1252")
        warnings.warn(f"{path}: {notes[-1]}", stacklevel=4)
    text = data.decode(encoding)
    skipped = next((i for i, line in enumerate(io.StringIO(text)) if not line.startswith("#")), 0)
    if skipped:
        notes.append(f"{skipped} lines that begin with # left out")
        text = text.split("\n", skipped)[-1]
    delimiter = _delimiter(text, path)
    first = list(itertools.islice(_records(text, delimiter, path), 2))
    if not first:
        raise InputError(f"{path}: got no lines, expected rows of numbers")
    named = _is_header(first, path, notes) if header is None else header
    names = _names(first[0][1], named)

    def place(row: int) -> str:
        records = itertools.islice(_records(text, delimiter, path), row + named, None)
        return f"line {skipped + next(records)[0]}"

    columns = _by_arrow(text, delimiter, len(names), named) or _by_csv(text, delimiter, named, path)
    found = Cells(names, columns, notes, place)
    found.first_named = not named or bool(first[0][1][0].strip())
    if delimiter == ";":
        _decimal_commas(found)
    return found


def _names(first: Sequence[str], named: bool) -> list[str]:
    return [(named and cell.strip()) or f"x{j}" for j, cell in enumerate(first)]


def _delimiter(text: str, path: Path) -> str:
    if ".tsv" in path.name.lower():
        return "\t"
    first = text[: text.find("\n")] if "\n" in text else text
    outside = "".join(first.split('"')[::2])
    return max(",;\t|", key=lambda mark: (outside.count(mark) > 0, -",;\t|".index(mark)))


def _records(text: str, delimiter: str, path: Path) -> Iterator[tuple[int, list[str]]]:
    """Line and cells of each record that is not blank; all as wide as the first."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    width = line = 0
    try:
        for row in reader:
            if len(row) > 1 or (row and row[0].strip()):  # blank lines say nothing
                if width and len(row) != width:
                    got = f"{len(row)} cells in line {reader.line_num}"
                    raise InputError(f"{path}: got {got}, expected {width} as in line {line}")
                if not width:
                    width, line = len(row), reader.line_num
                yield reader.line_num, row
    except csv.Error as error:
        raise InputError(f"{path}: got no CSV ({error}), expected one of numbers") from None


def _is_header(first: Sequence[tuple[int, list[str]]], path: Path, notes: list[str]) -> bool:
    line = first[0][1]
    places = [j for j, cell in enumerate(line) if number(_known(cell)) is not None and _known(cell) is not None]
    if not places:
        return any(cell.strip() for cell in line)
    if len(first) < 2 or not _counts_on([line[j] for j in places]) or _counts_on([first[1][1][j] for j in places]):
        return False
    told = ", ".join(line[:4]) + (", ..." if len(line) > 4 else "")
    notes.append(f"line {first[0][0]} ({told}) was taken for the header (header says otherwise: --no-header)")
    warnings.warn(f"{path}: {notes[-1]}", stacklevel=5)
    return True


def _counts_on(cells: Sequence[str]) -> bool:
    """Whole numbers by equal steps, as years or places are."""
    values = [number(cell) for cell in cells]
    if any(value is None or not float(value).is_integer() for value in values):
        return False
    steps = set(np.diff(np.array(values, dtype=np.float64)).tolist())
    return len(steps) <= 1 and 0.0 not in steps


def _known(cell: str) -> str | None:
    cell = cell.strip()
    return None if cell in MISSING else cell


def _by_csv(text: str, delimiter: str, named: bool, path: Path) -> list[Any]:
    rows = itertools.islice((row for _, row in _records(text, delimiter, path)), int(named), None)
    return [list(map(_known, column)) for column in zip(*rows, strict=True)]


def _by_arrow(text: str, delimiter: str, width: int, named: bool) -> list[Any] | None:
    """Columns of strings; None where pyarrow is missing or refuses, which the csv module then says better."""
    if importlib.util.find_spec("pyarrow") is None:
        return None
    import pyarrow as pa
    from pyarrow import compute
    from pyarrow import csv as arrow

    names = [str(j) for j in range(width)]
    skip = text.startswith(("\n", "\r", " ")) or (named and text.count('"', 0, text.find("\n")) % 2)
    if skip:  # what the header is would have to be found twice
        return None
    try:
        table = arrow.read_csv(
            pa.BufferReader(text.encode()),
            arrow.ReadOptions(column_names=names, skip_rows=int(named)),
            arrow.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            arrow.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False),
        )
    except pa.ArrowInvalid:
        return None
    nothing = pa.array(sorted(MISSING))
    out = []
    for column in table.columns:
        cells = compute.utf8_trim_whitespace(column)
        out.append(compute.if_else(compute.is_in(cells, nothing), pa.scalar(None, pa.string()), cells))
    return out


def _cast(column: Any) -> NDArray[np.float64] | None:
    """A pyarrow column of strings as numbers, or None for the slow way to decide."""
    import pyarrow as pa

    try:
        return column.cast(pa.float64()).to_numpy(zero_copy_only=False).astype(np.float64)  # type: ignore[no-any-return]
    except pa.ArrowInvalid:
        return None


def _decimal_commas(found: Cells) -> None:
    """``1,5`` is a number where the cells are separated by semicolons."""
    for j in range(len(found.names)):
        cells = found.text(j) if found.numbers(j) is None else []
        pointed = [None if cell is None else cell.replace(",", ".") for cell in cells]
        if cells and all(number(cell) is not None for cell in pointed):
            found.columns[j] = pointed
            note = "decimal commas taken for points"
            if note not in found.notes:
                found.notes.append(note)


# -- typed files -------------------------------------------------------------------------------------------------


def _parquet(path: Path, header: bool | None) -> Cells:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with opened(path) as stream:
            table = parquet.read_table(pa.BufferReader(stream.read()))
    except pa.ArrowException as error:
        raise InputError(f"{path}: got no readable Parquet file ({error}), expected one") from None
    return Cells([str(name) for name in table.column_names], [_arrow_column(c) for c in table.columns])


def _arrow_column(column: Any) -> Any:
    import pyarrow as pa

    kind = column.type
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False).astype(np.float64)
    if pa.types.is_dictionary(kind):
        column = column.cast(kind.value_type)
    return [None if v is None else _cell(v) for v in column.to_pylist()]


def _excel(path: Path, header: bool | None) -> Cells:
    import openpyxl

    try:
        with opened(path) as stream:
            book = openpyxl.load_workbook(io.BytesIO(stream.read()), read_only=True, data_only=True)
            sheet = book.worksheets[0]
            rows = [[_cell(v) for v in row] for row in sheet.iter_rows(values_only=True)]
    except (KeyError, ValueError, OSError) as error:
        raise InputError(f"{path}: got no readable .xlsx file ({error}), expected one") from None
    rows = [row for row in rows if any(cell is not None for cell in row)]
    if not rows:
        raise InputError(f"{path}: got no lines, expected rows of numbers")
    text: list[list[str]] = [[cell or "" for cell in row] for row in rows]
    notes = [f"the first of {len(book.sheetnames)} sheets ({sheet.title})"] if len(book.sheetnames) > 1 else []
    named = _is_header([(i + 1, row) for i, row in enumerate(text[:2])], path, notes) if header is None else header
    names = _names(text[0], named)
    columns = [list(map(_known, column)) for column in zip(*text[int(named) :], strict=True)] or [[] for _ in names]
    found = Cells(names, columns, notes)
    found.first_named = not named or bool(text[0][0].strip())
    return found


def _cell(value: Any) -> str | None:
    """A typed cell as text that reads back: whole numbers without a point, times as ISO 8601 has them."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if hasattr(value, "isoformat"):
        told: str = value.isoformat()
        return told.removesuffix("T00:00:00")
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def write(path: Path, names: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A CSV, names and cells quoted where they have to be."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(names)
        writer.writerows(rows)
