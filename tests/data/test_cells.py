"""Files of cells: pyarrow and the csv module give the same, whatever the dialect; headers that are numbers."""

from __future__ import annotations

import csv
import io
import math
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from ansn.data import cells, load_dataset
from ansn.data.cells import Cells, number, read
from ansn.errors import InputError

PLAIN = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=6)
LETTERS = st.text(st.sampled_from("abcé 0123456789.,;\t|\"'#\n-eE_+"), max_size=7)
CODES = st.sampled_from(["007", "1e5", "+3"])
NUMBERS = st.one_of(st.integers(-(10**20), 10**20).map(str), st.floats().map(repr), CODES)
CELLS = st.one_of(NUMBERS, LETTERS, PLAIN, st.sampled_from(sorted(cells.MISSING)), NUMBERS.map(" {} ".format))


def written(rows: list[list[str]], delimiter: str, end: str) -> bytes:
    file = io.StringIO(newline="")
    quoting: Any = csv.QUOTE_ALL if end == "\r" else csv.QUOTE_MINIMAL  # of other ends it quotes its own only
    csv.writer(file, delimiter=delimiter, lineterminator=end, quoting=quoting).writerows(rows)
    return file.getvalue().encode()


def by_csv(path: Path, header: bool | None = None) -> Cells:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cells, "_by_arrow", lambda *_: False)
        return read(path, header)


def known(cell: str) -> str | None:
    return None if cell.strip() in cells.MISSING else cell.strip()


@given(
    rows=st.integers(1, 4).flatmap(
        lambda width: st.lists(st.lists(CELLS, min_size=width, max_size=width), min_size=2, max_size=6)
    ),
    delimiter=st.sampled_from(",;\t|"),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    bom=st.booleans(),
    blank=st.booleans(),
)
@example([["1", "2"], ["007", ""], ["0x10", "NA "]], ",", "\n", False, False)
@example([["1.5", "2"], ["1.50", "True"], ["1e999", "2020-01-01"]], ",", "\n", True, True)
@settings(max_examples=120, deadline=None)
def test_pyarrow_and_the_csv_module_give_the_same(
    rows: list[list[str]], delimiter: str, end: str, bom: bool, blank: bool
) -> None:
    width = len(rows[0])
    assume(width > 1 or delimiter == ",")  # a first line of one cell does not say what separates two
    rows = [[f"n{j}" for j in range(width)], *rows]
    data = written(rows[:2], delimiter, end) + end.encode() * blank + written(rows[2:], delimiter, end)
    with TemporaryDirectory() as folder:
        path = Path(folder, "t.csv")
        path.write_bytes(b"\xef\xbb\xbf" * bom + data)
        found, other = read(path, header=True), by_csv(path, header=True)
        assert found.names == other.names == rows[0]
        for j in range(width):
            numbers = [c.numbers(j) for c in (found, other)]
            assert (numbers[0] is None) == (numbers[1] is None), rows
            if numbers[0] is not None and numbers[1] is not None:
                np.testing.assert_array_equal(numbers[0], numbers[1])
            if delimiter != ";":  # of which decimal commas are points
                assert found.text(j) == other.text(j) == [known(row[j]) for row in rows[1:]]


@pytest.mark.parametrize("cell", ["1", "-2.5e3", "+4", ".5", "1.", "inf", "  7 "])
def test_numbers(cell: str) -> None:
    assert number(cell) == float(cell)


@pytest.mark.parametrize("cell", ["1_000", "1,5", "0x10", "one", "1 2", "--1", "2020-01-01"])
def test_words(cell: str) -> None:
    assert number(cell) is None
    assert math.isnan(number(None) or 0)


def some(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@pytest.mark.parametrize(
    ("text", "names", "warns"),
    [
        ("0,1,2\n1.5,2.5,3.5\n4,8,2\n", ["0", "1", "2"], True),
        ("2019,2020,2021\n1.5,2.5,3.5\n4,8,2\n", ["2019", "2020", "2021"], True),
        ("1.5,2.5\n4,8\n", ["x0", "x1"], False),
        ("1,2,3\n2,3,4\n5,6,9\n", ["x0", "x1", "x2"], False),
        ("a,1,2,3\nu,4,9,2\nv,3,1,1\n", ["a", "1", "2", "3"], True),
        ("country,2020\n" + "France,4711\nSpain,17\n" * 5, ["country", "2020"], True),
        ("country,sex,2019,2021\n" + "France,m,4711,3\nSpain,f,17,8\n" * 5, ["country", "sex", "2019", "2021"], True),
        ("2019,2021,2022\n" + "1.5,0.5,3.5\n4,8,2\n" * 5, ["2019", "2021", "2022"], True),
        ("1,2,5\n" + "1,2,3\n2,3,9\n" * 5, ["x0", "x1", "x2"], False),
        ("a,\N{MINUS SIGN}12\n" + "f,4711\nm,\N{MINUS SIGN}17\n" * 5, ["a", "\N{MINUS SIGN}12"], True),
        ("\N{MINUS SIGN}1,2\n" + "4,3\n" * 9, ["\N{MINUS SIGN}1", "2"], True),
        ("m,12\n" + "f,4711\nm,17\n" * 5, ["x0", "x1"], False),
        (",a\n0,1.5\n1,2.5\n", ["x0", "a"], False),
        ("a,b\n5.1,-4.9,\n0.3,2,\n", ["a", "b", "x2"], False),
        ("a,NA\n0,1.5\n1,2.5\n", ["a", "NA"], False),
    ],
)
@pytest.mark.filterwarnings("error")
def test_headers(tmp_path: Path, text: str, names: list[str], warns: bool) -> None:
    path = some(tmp_path / "t.csv", text)
    if warns:
        with pytest.warns(UserWarning, match=r"line 1 \(.*\) was taken for the header \(--header False"):
            found = read(path)
        assert read(path, names=names[-1:]).names == names  # of names that are known there is no doubt
    else:
        found = read(path)
    assert found.names == names
    assert len(found) == text.count("\n") - (names[0] != "x0" or text[0] == ",")


def test_the_row_number_is_left_out(tmp_path: Path) -> None:
    for start, header in ((0, ""), (1, ""), (1, "id"), (0, "Unnamed: 0")):
        lines = [f"{i + start},{i * i}.5" for i in range(5)]
        dataset = load_dataset(some(tmp_path / "t.csv", "\n".join([f"{header},a", *lines])))
        assert dataset.columns == ("a",)
        assert any("left out: it counts the rows" in note for note in dataset.notes)
    kept = load_dataset(tmp_path / "t.csv", column_kinds={"Unnamed: 0": "whole"})
    assert kept.columns == ("Unnamed: 0", "a")
    lines = [f"{i},{i * i}.5" for i in (3, 1, 2)]
    assert load_dataset(some(tmp_path / "t.csv", "\n".join(["id,a", *lines]))).columns == ("id", "a")


def test_comments_spaces_and_a_header_without_the_first_name(tmp_path: Path) -> None:
    found = read(some(tmp_path / "t.csv", "# by hand\n# in mm\na,b\n1,2\n3,x\n"))
    assert (found.names, found.notes, found.place(1)) == (["a", "b"], ["2 lines that begin with # left out"], "line 5")
    for text, first in (("# a,b\n1,2\n3,x\n", "a"), ("#,b\n1,2\n3,x\n", "#"), ("# by A, B\na,b\n1,2\n3,4\n", "a")):
        assert read(some(tmp_path / "t.csv", text)).names == [first, "b"]
    found = read(some(tmp_path / "t.csv", '  a    "b c"\n 1.5  2\n 3    "4"\n'))
    assert (found.names, found.text(1), found.notes) == (["a", "b c"], ["2", "4"], ["cells separated by spaces"])
    found = read(some(tmp_path / "t.csv", '"a" "b"\n"New York" 1 2\n"Rome" 3 4\n'))
    assert (found.names, found.first_named, found.text(0)) == (["x0", "a", "b"], False, ["New York", "Rome"])
    found = read(some(tmp_path / "t.csv", "name\nMr Smith\nMs Jones\n"))
    assert (found.names, len(found.columns), found.text(0)) == (["name"], 1, ["Mr Smith", "Ms Jones"])


def test_decimal_commas_and_windows_text(tmp_path: Path) -> None:
    found = read(some(tmp_path / "t.csv", "a;b\n1,5;x,y\n-2,25;z\n"))
    assert found.numbers(0) is not None
    assert found.numbers(0).tolist() == [1.5, -2.25]  # type: ignore[union-attr]
    assert found.text(1) == ["x,y", "z"]
    assert found.notes == ["decimal commas taken for points"]
    found = read(some(tmp_path / "t.csv", "a;b\n1.234,5;1,5\n-2,25;2.5\n"))
    assert found.numbers(0).tolist() == [1234.5, -2.25]  # type: ignore[union-attr]
    assert found.text(1) == ["1,5", "2.5"]  # who knows
    found = read(some(tmp_path / "t.csv", 'a,b\n"1,234",x\n12,"1,2"\n"-1,234,567.5",z\n'))
    assert found.numbers(0).tolist() == [1234, 12, -1234567.5]  # type: ignore[union-attr]
    assert (found.text(1), found.notes) == (["x", "1,2", "z"], ["commas between thousands left out"])
    found = read(some(tmp_path / "t.tsv", "a\té\n1\tß\n2\t€\n".encode("utf-16")))  # as Excel writes it
    assert (found.names, found.text(1)) == (["a", "é"], ["ß", "€"])
    with pytest.warns(UserWarning, match="no UTF-8 text at byte 2: read as Windows-1252"):
        found = read(some(tmp_path / "t.csv", "a,é\n1,ß\n2,€\n".encode("cp1252")))
    assert (found.names, found.text(1)) == (["a", "é"], ["ß", "€"])


def test_lines_are_named_where_quotes_hold_breaks(tmp_path: Path) -> None:
    path = some(tmp_path / "t.csv", 'a,b\n"x\ny",1\n"z",2\n"z",oops\n"z",3\n')
    with pytest.raises(InputError, match="'oops' in line 5, column 'b'"):
        load_dataset(path)


def test_parquet_and_excel_hold_what_the_csv_does(tmp_path: Path) -> None:
    parquet, openpyxl = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("openpyxl")
    pa = pytest.importorskip("pyarrow")
    day = [datetime(2020, 1, 1), datetime(2020, 1, 3), datetime(2020, 1, 7), datetime(2021, 1, 1)]
    columns: dict[str, list[Any]] = {
        "number": [1.5, None, 3.25, 4.0], "whole": [1, 5, 3, 9], "word": ["u", "v", None, "u"], "day": day,
        "time": [day[0], day[1].replace(hour=12, minute=30), *day[2:]], "flag": [True, False, True, True],
    }  # fmt: skip
    rows = list(zip(*columns.values(), strict=True))
    book = openpyxl.Workbook()
    for row in (tuple(columns), *rows):
        book.active.append(row)
    book.save(tmp_path / "t.xlsx")
    parquet.write_table(pa.table(columns), tmp_path / "t.parquet")
    columns["day"] = [f"{d:%Y-%m-%d}" for d in day]
    lines = [",".join("" if v is None else str(v) for v in row) for row in zip(*columns.values(), strict=True)]
    expected = load_dataset(some(tmp_path / "t.csv", "\n".join([",".join(columns), *lines]) + "\n"))
    assert expected.columns == tuple(columns)
    for name in ("t.parquet", "t.xlsx"):
        dataset = load_dataset(tmp_path / name)
        assert [str(c) for c in dataset.units.columns] == [str(c) for c in expected.units.columns]  # type: ignore[union-attr]
        np.testing.assert_array_equal(dataset.rows, expected.rows)  # type: ignore[arg-type]


def test_an_engine_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> Cells:
        raise ImportError("No module named 'pyarrow'")

    monkeypatch.setattr(cells, "_parquet", missing)
    with pytest.raises(InputError, match=r"got a \.parquet file, expected pyarrow to be installed"):
        load_dataset(some(tmp_path / "t.parquet", "PAR1"))


def test_typed_times_are_all_in_one_form(tmp_path: Path) -> None:
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    times = [datetime(2020, 1, 1), datetime(2020, 1, 2, 10, 0, 0, 250_000), None, datetime(2020, 1, 3)]
    zoned = [None if t is None else t.replace(tzinfo=UTC) for t in times]
    parquet.write_table(pa.table({"a": times, "b": zoned, "c": [1.0, 2.0, 4.0, 8.0]}), tmp_path / "t.parquet")
    units = load_dataset(tmp_path / "t.parquet").units
    assert [str(c) for c in units.columns] == ["a: time", "b: time", "c: whole"]  # type: ignore[union-attr]
