"""What a column of cells is: its kind, and how its numbers are made and written."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ansn.data import units
from ansn.data.cells import Cells, number
from ansn.data.units import Column
from ansn.errors import InputError

Values = NDArray[np.float64]

FORMS = (
    "%Y-%m-%d", "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%SZ",
    "%Y-%m-%dT%H:%M:%S.%fZ", "%Y-%m-%d %H:%M:%S.%f", "%Y-%m-%dT%H:%M:%S.%f", "%Y/%m/%d", "%Y/%m/%d %H:%M",
    "%Y/%m/%d %H:%M:%S", "%m/%d/%Y", "%d/%m/%Y", "%m/%d/%y", "%d/%m/%y", "%d.%m.%Y", "%d.%m.%Y %H:%M", "%m/%d/%Y %H:%M",
    "%d/%m/%Y %H:%M", "%b %d %Y", "%b %d, %Y", "%d %b %Y", "%B %d, %Y", "%d-%b-%Y", "%d-%b-%y", "%b-%d-%Y", "%b %Y",
    "%b-%y", "%Y-%m", "%m/%d/%Y %H:%M:%S", "%d/%m/%Y %H:%M:%S", "%m/%d/%Y %I:%M %p", "%d.%m.%Y %H:%M:%S", "%H:%M",
    "%H:%M:%S", "%d %b %Y %H:%M:%S", "%a, %d %b %Y %H:%M:%S", "%Y-%m-%dT%H:%M:%S%z", "%Y-%m-%d %H:%M:%S%z",
    "%Y-%m-%dT%H:%M:%S.%f%z", "%Y-%m-%d %H:%M:%S.%f%z",
    "%YM%m", "%YQ%q", "%Y-Q%q", "%Y Q%q",
)  # fmt: skip
"""Of dates and times, as of `datetime.strptime`, and %q for the quarter of a year."""

MOST_WORDS = 64
"""Different words up to which a column of text is a category."""

_SHOWN = 40  # letters of a cell in a note
_FEW = 20  # values of whole numbers up to which samples take the nearest of them
_DECIMALS = 12
_LIMIT = 10.0  # deviations beyond which such a column is taken by its logarithm
_MARKS = frozenset(sign * (10.0**k - 1) for k in range(2, 7) for sign in (1, -1))  # 99, -999, ... of missing values
_COUNTERS = frozenset(
    ["id", "index", "row", "rowid", "row_id", "rownum", "rowname", "rownames", "no", "nr", "obs", "#"]
)


def column(cells: Cells, j: int, path: Path | str, kind: str | None = None) -> tuple[Column | str, Values]:
    """Column j, its scale not yet known, and its values ``[n]`` as of :class:`Column`, NaN where missing; or why it is
    left out.

    ``kind``: one of `units.KINDS` that the user names. InputError for a cell that is no number among numbers.
    """
    numbers = None if kind == "category" else cells.numbers(j)
    if numbers is not None and kind is None and _counts_rows(cells, j, numbers):
        return "it counts the rows", numbers
    if numbers is not None and kind in (None, "time") and _compact_dates(numbers):
        return _of_times(cells, j, path, "%Y%m%d")
    text = numbers is None or (kind is None and _leading_zeros(cells, j, numbers))
    missing = np.array([cell is None for cell in cells.text(j)]) if numbers is None else np.isnan(numbers)
    if missing.all():
        return "all its cells are empty", np.full(len(missing), math.nan)
    if numbers is None and kind is None and 2 * missing.sum() > len(missing):
        return f"text, {missing.mean():.0%} of its cells empty", np.full(len(missing), math.nan)
    if numbers is not None and np.isinf(numbers).any():
        raise bad_cell(path, cells, j, int(np.argmax(np.isinf(numbers))))
    found, values = _of_text(cells, j, path, kind) if text or numbers is None else _of_numbers(cells, j, numbers, kind)
    if kind is not None and isinstance(found, Column) and found.kind not in (kind, "constant"):
        raise InputError(f"{path}: got column {found}, which cannot be of kind {kind}, expected another kind for it")
    if isinstance(found, Column) and found.kind == "constant" and missing.any():
        return f"{found.cell(float(values[~missing][0]))!r} or empty", values
    return found, values


def _counts_rows(cells: Cells, j: int, numbers: Values) -> bool:
    """Whether a column without a name holds a whole number for each row, or one of a counter's name goes 0, 1, 2, ...
    or from 1."""
    named = cells.names[j].strip(" '").lower()
    if (j == 0 and not cells.first_named) or named.startswith(("unnamed: ", "__index_level_")):
        return len(numbers) > 1 and bool((numbers % 1 == 0).all()) and len(np.unique(numbers)) == len(numbers)
    if named not in _COUNTERS:
        return False
    return len(numbers) > 1 and bool((np.diff(numbers) == 1).all()) and float(numbers[0]) in (0.0, 1.0)


def _compact_dates(numbers: Values) -> bool:
    """Whether the numbers are days such as 20240229, of the years 1800 to 2199."""
    seen = numbers[~np.isnan(numbers)]
    if not len(seen) or seen.min() < 1.8e7 or seen.max() > 2.2e7 or (seen % 1 > 0).any():
        return False
    days = np.unique(seen)
    return len(days) > 2 and all(_fits(f"{day:.0f}", "%Y%m%d") for day in days)


def standardised(found: Column, values: Values, path: Path | str, rows: NDArray[np.int64]) -> Column:
    """The column with offset and scale of the values of the train rows; ``rows``: their places, for messages.

    Where a few values lie so far out that the standard deviation is theirs, the scale is that of the bulk, and what
    lies beyond 10 of it is taken by its logarithm: a warning names the worst.
    """
    t = values[~np.isnan(values)]
    if not len(t) or found.kind == "constant":
        return found
    if found.kind == "category":
        shares = np.bincount(t.astype(np.int64), minlength=len(found.words)) / len(t)
        spread = math.sqrt(float((shares * (1 - shares)).sum()) / max(len(shares) - 1, 1))
        return replace(found, shares=tuple(shares.tolist()), scale=spread or 1.0)
    with np.errstate(over="ignore", invalid="ignore"):
        offset = float(t.mean())
        far = float(np.abs(t - offset).max())
        scale = far * float(((t - offset) / (far or 1.0)).std())  # whose squares are neither 0 nor infinite
    if not math.isfinite(scale):
        raise InputError(f"{path}: got a deviation of column {found.name!r} that overflows, expected smaller values")
    most = None if found.kind == "binary" else units.bulk(t, scale)
    if most is not None:
        middle, spread = most
        row = int(np.nanargmax(np.abs(values - middle)))
        warnings.warn(
            f"{path}: column {found.name!r} has outliers, such as {found.cell(float(values[row]))} in row"
            f" {int(rows[row]) + 1}; its scale is that of its other values, and beyond {_LIMIT:g} of it its logarithm",
            stacklevel=3,
        )
        return replace(found, offset=middle, scale=spread, limit=_LIMIT)
    for far in {float(t.min()), float(t.max())} & _MARKS:
        others = t[t != far]
        if len(others) and len(t) - len(others) > 2 and np.abs(others - far).min() > 2 * np.ptp(others):
            warnings.warn(
                f"{path}: column {found.name!r} is {found.cell(far)} in {len(t) - len(others)} rows, far from its other"
                " values; where that says that nothing is known, leave the cells empty",
                stacklevel=3,
            )
    # A single value, or numbers that float64 cannot tell apart, vary by nothing.
    return replace(found, offset=offset, scale=scale if scale > 0 else 1.0)


def bad_cell(path: Path | str, cells: Cells, j: int, row: int, advice: str = "") -> InputError:
    """The error of a cell that is no finite number."""
    cell = cells.text(j)[row] or ""
    what = repr(cell if len(cell) <= _SHOWN else cell[:_SHOWN] + "...")
    place = f"{cells.place(row)}, column {cells.names[j]!r}"
    return InputError(f"{path}: got {what} in {place}, expected a finite number{advice}")


def _of_numbers(cells: Cells, j: int, numbers: Values, kind: str | None) -> tuple[Column, Values]:
    name, seen = cells.names[j], numbers[~np.isnan(numbers)]
    distinct = np.unique(seen)
    digits = _decimals(distinct)
    if len(distinct) == 1:
        return Column(name, "constant", offset=float(distinct[0]), digits=digits), numbers
    whole = digits == 0 and bool(np.abs(distinct).max() < 2**53)
    likely = ["binary"] * (len(distinct) == 2) + ["whole"] * whole + ["number"]
    if kind not in (*likely, "time"):
        kind = likely[0]
    step = 10.0**-digits if digits is not None else 0.0
    if whole:
        gaps = np.diff(distinct)
        step = float(np.gcd.reduce(gaps.astype(np.int64))) if gaps.max() < 2**53 else 1.0
    values = distinct if kind == "binary" or (kind == "whole" and len(distinct) <= _FEW) else ()
    if kind == "binary":
        step = float(distinct[1] - distinct[0])
    fine = step < 1e-4 * float(seen.std())  # not seen beside the noise
    found = Column(
        name, kind, step=0.0 if kind == "number" and fine else step, anchor=float(distinct[0]),
        digits=digits if kind != "whole" else 0, values=tuple(float(v) for v in values),
    )  # fmt: skip
    return found, numbers


def _of_text(cells: Cells, j: int, path: Path | str, kind: str | None) -> tuple[Column | str, Values]:
    name, text = cells.names[j], cells.text(j)
    words = [cell for cell in text if cell is not None]
    known = [number(word) for word in words]
    if kind in ("number", "whole") or (kind is None and 2 * sum(v is not None for v in known) >= len(known)
                                       and any(v is None for v in known)):  # fmt: skip
        row = next(i for i, cell in enumerate(text) if cell is not None and number(cell) is None)
        raise bad_cell(path, cells, j, row, "" if kind else f", or --column-kinds {name}=category")
    distinct = sorted(set(words))
    form = _form(distinct, path, name) if len(distinct) > 2 or kind == "time" else ""
    if form:
        return _of_times(cells, j, path, form)
    if kind == "time":
        raise InputError(f"{path}: got {words[0]!r} in column {name!r}, expected a date or time of one known form")
    if len(distinct) > MOST_WORDS or (len(distinct) > 2 and 2 * len(distinct) > len(words) and kind is None):
        if kind is not None:
            raise InputError(
                f"{path}: got {len(distinct)} different words in column {name!r}, expected at most {MOST_WORDS}"
            )
        shown = words[0] if len(words[0]) <= _SHOWN else words[0][:_SHOWN] + "..."
        note = f"text, {len(distinct)} different words in {len(words)} rows, such as {shown!r}"
        return note, np.full(len(text), math.nan)
    numeric = all(number(word) is not None for word in distinct)
    distinct = sorted(distinct, key=lambda word: (float(word), word) if numeric else (0.0, word))
    place = {word: float(i) for i, word in enumerate(distinct)}
    values = np.array([math.nan if cell is None else place[cell] for cell in text])
    if len(distinct) == 1:
        return Column(name, "constant", words=tuple(distinct)), values
    if len(distinct) == 2 and kind != "category":
        return Column(name, "binary", step=1.0, values=(0.0, 1.0), words=tuple(distinct)), values
    return Column(name, "category", words=tuple(distinct), shares=(1 / len(distinct),) * len(distinct)), values


def _of_times(cells: Cells, j: int, path: Path | str, form: str) -> tuple[Column | str, Values]:
    text = cells.text(j)
    known = {cell: seconds_of(cell, form) for cell in set(text) if cell is not None}
    times = np.array([math.nan if cell is None else known[cell] for cell in text])
    points = np.unique(list(known.values()))
    if len(points) == 1:
        return Column(cells.names[j], "constant", offset=float(points[0]), form=form), times
    step = float(np.gcd.reduce(np.diff(points).round().astype(np.int64)))
    return Column(cells.names[j], "time", step=step, anchor=float(points[0]), form=form), times


def is_code(cell: str) -> bool:
    """``007`` is a code, not the number 7."""
    return len(cell) > 1 and cell[0] == "0" and cell.isdigit()


def _leading_zeros(cells: Cells, j: int, numbers: Values) -> bool:
    """Whether whole numbers are codes."""
    if isinstance(cells.columns[j], np.ndarray) or (numbers % 1 > 0).any():
        return False
    return any(is_code(cell) for cell in cells.text(j) if cell is not None)


def _decimals(distinct: Values) -> int | None:
    """Decimals that the values are written with, at most 12 and of 15 digits; None where they have more."""
    if bool((distinct % 1 == 0).all()):
        return 0
    most = min(_DECIMALS, 14 - math.floor(math.log10(float(np.abs(distinct).max()))))
    some = distinct[:: len(distinct) // 100 + 1]  # most columns have more, which these tell
    if not _rounded(some, most):
        return None
    return next((digits for digits in range(most + 1) if _rounded(distinct, digits)), None)


def _rounded(values: Values, digits: int) -> bool:
    """Whether the values are as near to such decimals as float64 has them."""
    return bool((np.abs(np.round(values, digits) - values) <= np.spacing(np.abs(values))).all())


def _form(words: Sequence[str], path: Path | str, name: str) -> str:
    """The form that all words have, or nothing; a warning where days and months could be exchanged."""
    if not any(c.isdigit() for c in words[0]):
        return ""
    fit = [form for form in FORMS if _fits(words[0], form)]
    fit = [form for form in fit if all(_fits(word, form) for word in words)]
    if len(fit) > 1 and {fit[0][:2], fit[1][:2]} == {"%m", "%d"} and any(w[:2] != w[3:5] for w in words):
        warnings.warn(f"{path}: {name!r} could be {fit[0]} or {fit[1]}; taken for the first", stacklevel=4)
    return fit[0] if fit else ""


def _fits(word: str, form: str) -> bool:
    try:
        seconds_of(word, form)
    except ValueError:
        return False
    return True


def seconds_of(word: str, form: str) -> float:
    """Seconds since 1970 of a time of this form. ValueError for others."""
    if "%q" not in form:
        return units.seconds(datetime.strptime(word, form))
    found = re.fullmatch(re.escape(form).replace("%Y", r"(\d{4})").replace("%q", "([1-4])"), word)
    if found is None:
        raise ValueError(f"{word}: got no quarter, expected {form}")
    return units.seconds(datetime(int(found[1]), 3 * int(found[2]) - 2, 1))
