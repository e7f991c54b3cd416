"""Files of cells: CSV and its like, Parquet and Excel, as named columns of text or numbers.

pyarrow reads them where it is installed, many times faster; else Python's csv module does. Both give the same.
"""

from __future__ import annotations

import csv
import importlib.util
import io
import itertools
import math
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ansn.data.files import opened, plain_name, require_memory
from ansn.errors import InputError
from ansn.files import replacing

SUFFIXES = (".csv", ".tsv", ".parquet", ".xlsx")
MISSING = frozenset(
    ["", "NA", "N/A", "n/a", "#N/A", "<NA>", "NaN", "nan", "NAN", "-nan", "null", "NULL", "None", "?", "."]
)
"""Cells that say that nothing is known."""

IsHeader = Callable[[Sequence[tuple[int, list[str]]], list[str]], bool]
"""Whether the first of two lines (their numbers and cells) names the columns; adds to the notes."""

_COMMAS = (
    ((re.compile(r"[-+]?(\d+|\d{1,3}(,\d{3})+)(\.\d*)?"), ",", "", "commas between thousands left out"),),
    (
        (re.compile(r"[-+]?\d*,?\d*(e[-+]?\d+)?", re.IGNORECASE), " ", ".", "decimal commas taken for points"),
        (re.compile(r"[-+]?\d{1,3}(\.\d{3})*(,\d*)?"), ".", ".", "decimal commas taken for points"),
    ),
)
"""Numbers with commas, what to leave out of them, what a comma is, and the note: among commas, and among semicolons."""

_FEW = 8  # lines below the first that say how it differs from them
_LOOKED_AT = 200  # lines that delimiter and header are found by


@dataclass
class Cells:
    """Columns of text, ``None`` where a cell is missing, or numbers (float64, NaN).

    Attributes:
        names: of the columns. notes: what was guessed. place: the line (of a CSV) or row of a data row, for messages.
        first_named: whether the first column has a name, or there is no header.
        written: column j as the file has it, where ``columns`` has numbers.
    """

    names: list[str]
    columns: list[Any]
    notes: list[str] = field(default_factory=list)
    place: Callable[[int], str] = lambda row: f"row {row + 1}"
    first_named: bool = True
    written: Callable[[int], Any] | None = None

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
        if isinstance(column, np.ndarray) and self.written is not None:
            column = self.written(j)
        if isinstance(column, np.ndarray):
            return [None if math.isnan(v) else str(int(v)) if v.is_integer() else repr(v) for v in column.tolist()]
        return column.to_pylist() if hasattr(column, "to_pylist") else column  # type: ignore[no-any-return]


def number(cell: str | None) -> float | None:
    """A cell's number; NaN of a missing one, None of any other text. ``1_000``, which no CSV writer means, is text."""
    if cell is None:
        return math.nan
    try:
        return None if "_" in cell else float(cell.replace("\N{MINUS SIGN}", "-"))
    except ValueError:
        return None


def is_table(path: Path) -> bool:
    """Whether a file is one of cells, by its ending."""
    return plain_name(path).endswith(SUFFIXES)


def read(path: Path, header: bool | None = None, names: Sequence[str] = ()) -> Cells:
    """The cells of a file, by its ending (.gz and .xz aside): .parquet, .xlsx, else text.

    ``header``: whether the first line names the columns; None: it does where it has one of the ``names``, where no cell
    of it is a number, or where its numbers count on by equal steps and those of the next line do not (said in a
    warning).
    InputError naming the line: no UTF-8 or Windows-1252 text, ragged lines, names that come twice, no rows.
    """
    ending = Path(plain_name(path)).suffix

    def is_header(first: Sequence[tuple[int, list[str]]], notes: list[str]) -> bool:
        if header is None and {cell.strip() for cell in first[0][1]} & set(names):
            return True
        return _is_header(first, path, notes) if header is None else header

    try:
        found = {".parquet": _parquet, ".xlsx": _excel}.get(ending, _text)(path, is_header)
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


def _text(path: Path, is_header: IsHeader) -> Cells:
    notes: list[str] = []
    text = _decoded(path, notes)
    comments = list(itertools.takewhile(lambda line: line.startswith("#"), _split(text)))
    text = text[sum(map(len, comments)) :]
    delimiter = _delimiter(text, path)
    if comments and _is_commented_header(comments[-1], text, delimiter):
        header = comments.pop()
        text = (header if header.startswith("#" + delimiter) else header.lstrip("# ")) + text
    if comments:
        notes.append(f"{len(comments)} lines that begin with # left out")
    if delimiter == " ":
        notes.append("cells separated by spaces")
        text, delimiter = _tabbed(text), "\t"
    first = list(itertools.islice(_lines(text, delimiter, path), _LOOKED_AT))
    if not first:
        raise InputError(f"{path}: got no lines, expected rows of numbers")
    if len(first) > 1 and len(first[0][1]) + 1 == len(first[1][1]) and not _numbers(first[0][1]):
        last = not any(row[-1].strip() for _, row in first[1:])
        notes.append(f"the header has no name for the {'last' if last else 'first'} column")
        line, end = next(_split(text.lstrip())), text.lstrip()
        bare = line.rstrip("\r\n")
        text = (bare + delimiter + line[len(bare) :] if last else delimiter + line) + end[len(line) :]
        first[0][1].insert(len(first[0][1]) if last else 0, "")
    named = is_header(first, notes)
    names = _names(first[0][1], named)

    data = text.encode()
    del text  # as large as the file

    def records() -> Iterator[tuple[int, list[str]]]:
        return itertools.islice(_records(data.decode(), delimiter, path), int(named), None)

    def place(row: int) -> str:
        return f"line {len(comments) + next(itertools.islice(records(), row, None))[0]}"

    found = Cells(names, [], notes, place, not named or bool(first[0][1][0].strip()))
    if not _by_arrow(found, data, delimiter, named):
        found.columns = [list(map(_known, column)) for column in zip(*(row for _, row in records()), strict=True)]
    if len(found):
        _commas(found, delimiter)
    return found


def _decoded(path: Path, notes: list[str]) -> str:
    with opened(path) as stream:
        data = stream.read()
        require_memory(4 * len(data), path)
    try:
        if data.startswith((b"\xff\xfe", b"\xfe\xff")):
            return data.decode("utf-16")
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        start = error.start + 3 * data.startswith(b"\xef\xbb\xbf")
    try:
        if b"\0" in data:
            raise ValueError
        text = data.decode("cp1252")
    except ValueError:
        raise InputError(f"{path}: got no UTF-8 text at byte {start}, expected a CSV of numbers") from None
    notes.append(f"no UTF-8 text at byte {start}: read as Windows-1252")
    warnings.warn(f"{path}: {notes[-1]}", stacklevel=5)
    return text


def _names(first: Sequence[str], named: bool) -> list[str]:
    return [(named and cell.strip()) or f"x{j}" for j, cell in enumerate(first)]


def _delimiter(text: str, path: Path) -> str:
    if ".tsv" in path.name.lower():
        return "\t"
    lines = [line for line in itertools.islice(_split(text), _LOOKED_AT) if line.strip()]
    outside = "".join("".join(lines[:1]).split('"')[::2])
    found = next((mark for mark in ",;\t|" if mark in outside), None)
    if found is None and len(lines) > 1:  # of runs of spaces, as Fortran and R write them
        counts = [len(_spaced(line)) for line in lines]
        if counts[1] > 1 and set(counts[1:]) == {counts[1]} and 0 <= counts[1] - counts[0] <= 1:
            return " " if _numbers(_spaced(lines[-1])) else ","
    return found or ","


def _spaced(line: str) -> list[str]:
    return next(csv.reader([line.strip()], delimiter=" ", skipinitialspace=True), [])


def _tabbed(text: str) -> str:
    """Cells separated by runs of spaces, separated by tabs: a line for each."""
    out = io.StringIO()
    csv.writer(out, delimiter="\t", lineterminator="\n").writerows(map(_spaced, _split(text)))
    return out.getvalue()


def _is_commented_header(comment: str, text: str, delimiter: str) -> bool:
    """Whether a line that begins with # has as many cells as the next one, which has numbers."""
    cells, below = (next(csv.reader([line], delimiter=delimiter), []) for line in (comment, next(_split(text), "")))
    return 1 < len(cells) == len(below) and not _numbers(cells) and bool(_numbers(below))


def _split(text: str) -> Iterator[str]:
    """Lines with their ends, of any system, one at a time."""
    return (found.group() for found in re.finditer(r"[^\r\n]*(?:\r\n?|\n)|[^\r\n]+\Z", text))


def _lines(text: str, delimiter: str, path: Path) -> Iterator[tuple[int, list[str]]]:
    """Line and cells of each record that is not blank."""
    reader = csv.reader(_split(text), delimiter=delimiter, strict=True)
    width = 0
    try:
        for row in reader:
            if len(row) > 1 or (row and (row[0].strip() or width == 1)):  # blank lines say nothing
                width = width or len(row)
                yield reader.line_num, row
    except csv.Error as error:
        raise InputError(f"{path}: got no CSV ({error}), expected one of numbers") from None


def _records(text: str, delimiter: str, path: Path) -> Iterator[tuple[int, list[str]]]:
    """Line and cells of each record that is not blank; all as wide as the first."""
    width = first = 0
    for line, row in _lines(text, delimiter, path):
        width, first = width or len(row), first or line
        if len(row) != width:
            raise InputError(f"{path}: got {len(row)} cells in line {line}, expected {width} as in line {first}")
        yield line, row


def _numbers(cells: Iterable[str]) -> list[str]:
    """Those cells that are numbers."""
    return [cell for cell in map(_known, cells) if cell is not None and number(cell) is not None]


def _is_header(first: Sequence[tuple[int, list[str]]], path: Path, notes: list[str]) -> bool:
    line, numbers = first[0][1], _numbers(first[0][1])
    if not numbers:
        return any(cell.strip() for cell in line)
    second = first[1][1] if len(first) > 1 else []
    below = [under for cell, under in zip(line, second, strict=False) if cell.strip() in numbers]
    counts = bool(below) and _counts_on(numbers) and not _counts_on(below)
    if not counts and not _named_apart([row for _, row in first]):
        return False
    shown = ", ".join(line[:4]) + (", ..." if len(line) > 4 else "")
    notes.append(f"line {first[0][0]} ({shown}) was taken for the header (--header False: a row)")
    warnings.warn(f"{path}: {notes[-1]}", stacklevel=5)
    return True


def _named_apart(rows: Sequence[Sequence[str]]) -> bool:
    """Whether the first row, which has numbers, is unlike the others as names are: its words are new to columns that
    repeat theirs, and its numbers are whole; or it has only whole numbers that ascend, and no other row ascends."""
    line, others = [cell.strip() for cell in rows[0]], [[cell.strip() for cell in row] for row in rows[1:]]
    numbers = _numbers(line)
    if len(others) < _FEW or not all((number(cell) or 0.0).is_integer() for cell in numbers):
        return False
    if len(numbers) < len(line):
        words = [j for j, cell in enumerate(line) if cell not in numbers]
        below = [[row[j] for row in others if j < len(row)] for j in words]
        fresh = all(line[j] and line[j] not in column for j, column in zip(words, below, strict=True))
        return fresh and any(not _numbers(column) and len(set(column)) < len(column) for column in below)
    complete = ([number(cell) or 0.0 for cell in row] for row in (line, *others) if len(_numbers(row)) == len(row))
    ascends = [all(a < b for a, b in itertools.pairwise(row)) for row in complete]
    return len(line) > 1 and len(ascends) > _FEW and ascends[0] and not any(ascends[1:])


def _counts_on(cells: Sequence[str]) -> bool:
    """Whole numbers by equal steps, as years or places are."""
    values = [number(cell) for cell in cells]
    if any(value is None or not value.is_integer() for value in values):
        return False
    steps = set(np.diff(np.array(values, dtype=np.float64)).tolist())
    return len(steps) <= 1 and 0.0 not in steps


def _known(cell: str) -> str | None:
    cell = cell.strip()
    return None if cell in MISSING else cell


def _by_arrow(found: Cells, data: bytes, delimiter: str, named: bool) -> bool:
    """Fills the columns: numbers with a point or exponent as such, others as text. False where pyarrow is missing or
    refuses, which the csv module then says better."""
    quoted = named and data.count(b'"', 0, data.find(b"\n")) % 2
    if importlib.util.find_spec("pyarrow") is None or quoted or data.startswith((b"\n", b"\r", b" ")):
        return False  # what the header is would have to be found twice
    import pyarrow as pa
    from pyarrow import compute
    from pyarrow import csv as arrow

    names, nothing = [str(j) for j in range(len(found.names))], sorted(MISSING)

    def read(columns: Sequence[str], **convert: Any) -> Any:
        return arrow.read_csv(
            pa.BufferReader(data),
            arrow.ReadOptions(column_names=names, skip_rows=int(named)),
            arrow.ParseOptions(delimiter=delimiter, newlines_in_values=b'"' in data),
            arrow.ConvertOptions(include_columns=columns, **convert),
        )

    def strings(columns: Sequence[str]) -> list[Any]:
        cells = read(columns, column_types=dict.fromkeys(columns, pa.string()), strings_can_be_null=False).columns
        trimmed = map(compute.utf8_trim_whitespace, cells)
        return [compute.if_else(compute.is_in(c, pa.array(nothing)), pa.scalar(None, pa.string()), c) for c in trimmed]

    try:
        guessed = read(names, null_values=nothing)
        others = [name for name in names if guessed[name].type != pa.float64()]
        columns = {name: _float64(guessed[name]) for name in names if name not in others}
        del guessed
        columns |= dict(zip(others, strings(others), strict=True)) if others else {}
    except pa.ArrowInvalid:
        return False
    found.columns = [columns[name] for name in names]
    found.written = lambda j: strings([names[j]])[0]
    return True


def _float64(column: Any) -> NDArray[np.float64]:
    """A pyarrow column of numbers, NaN where it has nothing; without pandas, which ``to_numpy`` would import."""
    import pyarrow as pa

    whole = column.cast(pa.float64(), safe=False).combine_chunks()
    known, values = whole.buffers()
    out = np.frombuffer(values, np.float64, len(whole), 8 * whole.offset)
    if whole.null_count:
        bits = np.unpackbits(np.frombuffer(known, np.uint8), bitorder="little")
        out = np.where(bits[whole.offset : whole.offset + len(whole)], out, math.nan)
    return out


def _cast(column: Any) -> NDArray[np.float64] | None:
    """A pyarrow column of strings as numbers, or None for the slow way to decide."""
    import pyarrow as pa

    try:
        return _float64(column.cast(pa.float64()))
    except pa.ArrowInvalid:
        return None


def _commas(found: Cells, delimiter: str) -> None:
    """``1,5`` is a number where the cells are separated by semicolons, else ``1,500``."""
    for j in range(len(found.names)):
        cells = found.text(j) if found.numbers(j) is None else []
        known = [cell for cell in cells if cell is not None]
        for pattern, old, new, note in _COMMAS[delimiter == ";"]:
            if known and all(pattern.fullmatch(cell) for cell in known):
                found.columns[j] = [None if cell is None else cell.replace(old, "").replace(",", new) for cell in cells]
                found.notes += [note] if note not in found.notes else []
                break


# -- typed files -------------------------------------------------------------------------------------------------


def _parquet(path: Path, is_header: IsHeader) -> Cells:
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
        return _float64(column)
    if pa.types.is_dictionary(kind):
        column = column.cast(kind.value_type)
    return _typed(column.to_pylist())


def _excel(path: Path, is_header: IsHeader) -> Cells:
    import openpyxl

    try:
        with opened(path) as stream:
            book = openpyxl.load_workbook(io.BytesIO(stream.read()), read_only=True, data_only=True)
            sheet = book.worksheets[0]
            rows = [row for row in sheet.iter_rows(values_only=True) if any(v is not None for v in row)]
    except ImportError:
        raise
    except Exception as error:  # a damaged archive or sheet fails in many ways
        raise InputError(f"{path}: got no readable .xlsx file ({error}), expected one") from None
    if not rows:
        raise InputError(f"{path}: got no lines, expected rows of numbers")
    notes = [f"the first of {len(book.sheetnames)} sheets ({sheet.title})"] if len(book.sheetnames) > 1 else []
    text = [[cell or "" for cell in _typed(row)] for row in rows[:_LOOKED_AT]]
    named = is_header([(i + 1, row) for i, row in enumerate(text)], notes)
    names = _names(text[0], named)
    cells = [_typed(column) for column in zip(*rows[int(named) :], strict=True)] or [[] for _ in names]
    columns = [[None if cell is None else _known(cell) for cell in column] for column in cells]
    return Cells(names, columns, notes, first_named=not named or bool(text[0][0].strip()))


def _typed(values: Sequence[Any]) -> list[str | None]:
    """Typed cells as text that reads back: whole numbers without a point, times all in one form of ISO 8601."""
    times = {i: v.isoformat() for i, v in enumerate(values) if hasattr(v, "isoformat") and v == v}  # NaT is not itself
    if all(time.endswith("T00:00:00") for time in times.values()):
        times = {i: time.removesuffix("T00:00:00") for i, time in times.items()}
    elif any("." in time for time in times.values()):
        times = {i: values[i].isoformat(timespec="microseconds") for i in times}

    def cell(i: int, value: Any) -> str | None:
        if value is None or (value != value) is True:  # NaN
            return None
        if isinstance(value, float) and value.is_integer():
            return str(int(value))
        return times.get(i) or (value.decode(errors="replace") if isinstance(value, bytes) else str(value))

    return [cell(i, value) for i, value in enumerate(values)]


def write(path: Path, names: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A CSV, names and cells quoted where they have to be."""
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(names)
        writer.writerows(rows)
