"""Tables: what is written reads back, and loads as the same kinds of columns; labels, holes and held-out rows."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ansn.data import load_dataset, table
from ansn.data.cells import number
from ansn.data.units import Column, Table
from ansn.errors import InputError
from tests.data.test_cells import CELLS, NUMBERS, written

TEXT = st.text(st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="#"), max_size=6)
ODD = st.sampled_from(["a,b", 'say "a"', "two\nlines", "naïve", "x0", "2020"])
NAMES = st.one_of(TEXT.map(str.strip).filter(bool), ODD)
CODES = ("007", "1e5", "x,y", 'q"q', "two\nlines", "é")


@st.composite
def tables(draw: st.DrawFn) -> tuple[Table, torch.Tensor]:
    """Columns of several kinds, and rows that they can have."""
    n = draw(st.integers(1, 5))
    names = draw(st.lists(NAMES, min_size=6, max_size=6, unique=True))
    digits = draw(st.sampled_from([None, 3]))
    seconds = st.integers(-(10**9), 10**9)
    one = [
        (Column(names[0], "number", digits=digits), st.floats(-1e6, 1e6).map(lambda v: round(v, digits or 3))),
        (Column(names[1], "whole", step=1.0, digits=0), st.integers(-(2**52), 2**52)),
        (Column(names[2], "binary", step=3.0, values=(-1.0, 2.0)), st.sampled_from([-1, 2])),
        (Column(names[3], "category", words=CODES, shares=(1 / 6,) * 6), st.integers(0, 5)),
        (Column(names[4], "time", step=1.0, form="%Y-%m-%d %H:%M:%S"), seconds),
        (Column(names[5], "constant", offset=2.5), st.just(2.5)),
    ]  # fmt: skip
    order = draw(st.permutations(range(6)))
    holes = st.sampled_from([False, False, True])
    columns = [one[i][0] for i in order]
    rows = [[math.nan if i != 5 and draw(holes) else float(draw(one[i][1])) for i in order] for _ in range(n)]
    return Table(tuple(columns)), torch.tensor(rows, dtype=torch.float64)


@given(tables(), st.integers(0, 6))
@settings(max_examples=40, deadline=None)
def test_what_is_written_reads_back(drawn: tuple[Table, torch.Tensor], at: int) -> None:
    units, values = drawn
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("error")
        path = Path(folder, "t.csv")
        table.write(path, units, values)
        back, labels = table.read_rows(path, units)
        assert labels is None
        assert torch.equal(back.nan_to_num(7e77), values.nan_to_num(7e77))
        labelled, k = Table(units.columns, ("the class", at)), torch.arange(len(values)) % 3 - 1
        table.write(path, labelled, values, k, ["b", "9"])
        back, labels = table.read_rows(path, labelled, ["b", "9"])
        assert labels is not None
        assert torch.equal(labels, k)
        assert torch.equal(back.nan_to_num(7e77), values.nan_to_num(7e77))


def frame(n: int = 60) -> dict[str, list[str]]:
    """Cells of a table of every kind, with holes."""
    rng = np.random.default_rng(0)
    days = np.datetime64("2020-01-01") + rng.integers(0, 900, n)
    columns: dict[str, list[str]] = {
        "a,b": [f"{v:.3f}" for v in rng.normal(5, 2, n)],
        "free": [repr(float(v)) for v in rng.normal(size=n)],
        "count": [str(v) for v in rng.poisson(9, n)],
        "sex": [str(v) for v in rng.choice(["f", "m"], n)],
        "zip": [str(v) for v in rng.choice(["007", "100", "020"], n)],
        "day": [str(v) for v in days],
        "unit": ["mm"] * n,
    }
    for name in ("a,b", "count", "sex", "day"):
        for i in rng.choice(n, 5, replace=False):
            columns[name][i] = "NA"
    return columns


def save(path: Path, columns: dict[str, list[str]]) -> Path:
    from ansn.data import cells

    cells.write(path, list(columns), zip(*columns.values(), strict=True))
    return path


def test_a_drawn_table_loads_as_the_same_kinds(tmp_path: Path) -> None:
    dataset = load_dataset(save(tmp_path / "t.csv", frame()))
    assert isinstance(dataset.units, Table)
    kinds = {c.name: c.kind for c in dataset.units.columns}
    assert kinds == {
        "a,b": "number", "free": "number", "count": "whole", "sex": "binary", "zip": "category", "day": "time",
        "unit": "constant",
    }  # fmt: skip
    drawn = dataset.to_data_units(torch.randn(500, *dataset.shape, generator=torch.Generator().manual_seed(0)))
    table.write(tmp_path / "drawn.csv", dataset.units, drawn)
    again = load_dataset(tmp_path / "drawn.csv")
    assert isinstance(again.units, Table)
    assert {c.name: c.kind for c in again.units.columns} == kinds
    assert (tmp_path / "drawn.csv").read_text().splitlines()[0] == '"a,b",free,count,sex,zip,day,unit'
    assert {c.name: c.words for c in again.units.columns} == {c.name: c.words for c in dataset.units.columns}
    back, _ = table.read_rows(tmp_path / "drawn.csv", dataset.units)
    torch.testing.assert_close(back, drawn, rtol=1e-12, atol=1e-12)


def test_missing_cells_are_known_to_be_missing(tmp_path: Path) -> None:
    columns = frame()
    dataset = load_dataset(save(tmp_path / "t.csv", columns))
    known = dataset.known(torch.arange(60))
    assert known is not None
    assert isinstance(dataset.units, Table)
    at = 0
    for column in dataset.units.columns:
        holes = torch.tensor([cell == "NA" for cell in columns[column.name]])
        for j in range(at, at + column.width):
            assert torch.equal(known[:, j], ~holes), column.name
        at += column.width
    x, _ = dataset.batch(torch.arange(60))
    assert bool(x.isfinite().all())
    exact = dataset.units.encode(dataset.units.decode(x))
    assert bool((dataset.units.decode(exact) == dataset.units.decode(x)).all())
    assert any("rows with missing cells: " in line for line in dataset.understood())


@pytest.mark.parametrize(("name", "place"), [("zip", 4), ("4", 4), (4, 4), (-3, 4), ("a,b", 0)])
def test_labels_by_name_and_place(tmp_path: Path, name: str | int, place: int) -> None:
    columns = frame() | {"a,b": [str(i % 3 + 1) for i in range(60)]}
    dataset = load_dataset(save(tmp_path / "t.csv", columns), label_column=name)
    classes = ("007", "020", "100") if place == 4 else ("1", "2", "3")
    cells = columns["zip" if place == 4 else "a,b"]
    assert dataset.classes == classes
    assert dataset.labels is not None
    assert dataset.labels.tolist() == [classes.index(cell) for cell in cells]
    assert isinstance(dataset.units, Table)
    assert dataset.units.label == ("zip" if place == 4 else "a,b", place)


def test_units_are_those_of_the_train_rows_in_both_splits(tmp_path: Path) -> None:
    path = save(tmp_path / "t.csv", frame())
    train, test = (load_dataset(path, split=s, test_fraction="auto") for s in ("train", "test"))
    assert (len(train), len(test)) == (54, 6)
    assert train.units == test.units
    assert isinstance(train.units, Table)
    rows = train.to_data_units(train.rows)  # type: ignore[arg-type]
    assert train.units.columns[1].offset == pytest.approx(float(rows[:, 1].mean()), rel=1e-5)
    rows = [d.to_data_units(d.rows)[:, 1] for d in (train, test)]  # type: ignore[arg-type]
    both = {line for part in rows for line in map(str, part.tolist())}
    assert len(both) == 60  # none is in both
    assert "6 of 60 rows held out for measurements (test_fraction 0.1)" in train.notes


def test_rows_of_another_file(tmp_path: Path) -> None:
    columns = frame()
    dataset = load_dataset(save(tmp_path / "t.csv", columns))
    assert isinstance(dataset.units, Table)
    expected, _ = table.read_rows(tmp_path / "t.csv", dataset.units)
    turned = dict(reversed(columns.items()))
    del turned["unit"]  # of a constant column nothing need be said
    back, _ = table.read_rows(save(tmp_path / "u.csv", turned), dataset.units)
    assert torch.equal(back.nan_to_num(7e77), expected.nan_to_num(7e77))
    (tmp_path / "u.csv").write_text("\n".join((tmp_path / "t.csv").read_text().splitlines()[1:]))
    back, _ = table.read_rows(tmp_path / "u.csv", dataset.units)
    assert torch.equal(back.nan_to_num(7e77), expected.nan_to_num(7e77))
    for name, cell, part in (
        ("zip", "999", "got '999' in line 2, column 'zip', expected one of 007, 020, 100"),
        ("count", "many", "got 'many' in line 2, column 'count', expected a finite number"),
        ("day", "today", "got 'today' in column 'day', expected %Y-%m-%d"),
    ):
        changed = columns | {name: [cell, *columns[name][1:]]}
        with pytest.raises(InputError, match=part):
            table.read_rows(save(tmp_path / "u.csv", changed), dataset.units)
    del turned["day"]
    with pytest.raises(InputError, match=r"got columns .*, expected 'day' among them"):
        table.read_rows(save(tmp_path / "u.csv", turned), dataset.units)


def test_empty_rows_and_columns_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b,c,name\n1,2,,p q\n,,,r\n3,5,,s t u\n2,9,,v\n")
    dataset = load_dataset(tmp_path / "t.csv")
    assert (len(dataset), dataset.columns) == (3, ("a", "b"))
    assert dataset.notes == (
        "column 'c' left out: all its cells are empty",
        "column 'name' left out: text, 4 different words in 4 rows, such as 'p q'",
        "rows left out, all their cells empty: 1",
    )  # fmt: skip


KINDS_OF_CELLS = st.sampled_from(
    [
        CELLS, NUMBERS, st.dates().map(str), st.integers(-5, 40).map(str), st.floats(-1e3, 1e3).map("{:.2f}".format),
        st.sampled_from(["u", "v", "w", ""]), st.sampled_from(["0", "1", "NA"]), st.sampled_from(["007", "010", "1"]),
    ]
)  # fmt: skip
FILES = st.tuples(st.integers(1, 20), st.lists(KINDS_OF_CELLS, min_size=1, max_size=4)).flatmap(
    lambda drawn: st.tuples(*(st.lists(kind, min_size=drawn[0], max_size=drawn[0]) for kind in drawn[1]))
)


@given(FILES, st.booleans(), st.sampled_from([None, -1]))
@settings(max_examples=60, deadline=None)
def test_any_table_is_refused_by_name_or_comes_back(
    columns: tuple[list[str], ...], header: bool, label: int | None
) -> None:
    assume(not any(1e100 < abs(number(cell) or 0) < math.inf for cells in columns for cell in cells))
    lines = [[f"n{j}" for j in range(len(columns))]] * header + [list(row) for row in zip(*columns, strict=True)]
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path, again = Path(folder, "t.csv"), Path(folder, "u.csv")
        path.write_bytes(written(lines, ",", "\n"))
        try:
            dataset = load_dataset(path, label_column=label)
        except InputError:
            return
        assert isinstance(dataset.units, Table)
        values = dataset.to_data_units(dataset.rows)  # type: ignore[arg-type]
        table.write(again, dataset.units, values, dataset.labels, dataset.classes)
        back, labels = table.read_rows(again, dataset.units, dataset.classes)
        torch.testing.assert_close(back, values, rtol=1e-9, atol=1e-12, equal_nan=True)
        if dataset.labels is not None:
            assert labels is not None
            assert torch.equal(labels, dataset.labels)
        assert bool(dataset.batch(torch.arange(len(dataset)))[0].isfinite().all())
        stored, _ = table.read_rows(path, dataset.units, dataset.classes)
        varies = torch.tensor([c.kind != "constant" for c in dataset.units.columns])
        stored = stored[~stored[:, varies].isnan().all(1)]
        for column, t, u in zip(dataset.units.columns, stored.T, values.T, strict=True):
            far = float((t - column.offset).abs().nan_to_num().max())
            slack = 0.0 if column.words else 3e-6 * max(10 * column.scale, far)
            if column.kind != "constant" and not column.limit:
                torch.testing.assert_close(u, t, rtol=0, atol=slack, equal_nan=True)


@pytest.mark.parametrize("kind", ["table", "field"])
def test_what_float32_cannot_tell_apart_is_said_where_it_is_not_standardised(kind: str, tmp_path: Path) -> None:
    values = 1.7e9 + np.random.default_rng(0).normal(0, 50, (40, 2))
    np.save(tmp_path / "log.npy", values)
    with pytest.warns(UserWarning, match="float32 hardly tells apart: standardise it"):
        load_dataset(tmp_path / "log.npy", kind=kind, standardise=False)
    back = load_dataset(tmp_path / "log.npy", kind=kind)
    again = back.to_data_units(back.rows).reshape(40, 2)  # type: ignore[arg-type]
    np.testing.assert_allclose(again, values, atol=1e-4)
