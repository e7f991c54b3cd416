"""What a column is taken for: numbers, whole ones, two values, words, times, and what is left out."""

from __future__ import annotations

import math
import warnings
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ansn.data import kinds, load_dataset
from ansn.data.cells import Cells, _known
from ansn.data.kinds import FORMS
from ansn.data.units import Column, Table
from ansn.errors import InputError

PATH = Path("t.csv")


def column(cells: list[str], kind: str | None = None, name: str = "a") -> tuple[Column | str, np.ndarray]:
    return kinds.column(Cells([name], [list(map(_known, cells))]), 0, PATH, kind)


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["1.5", "2.25", "3.5"], "a: number"),
        (["1", "2", "4", "?"], "a: whole"),
        (["1.0", "2.0", "4.0"], "a: whole"),
        (["0", "1", "1"], "a: binary (0, 1)"),
        (["7", "100", ""], "a: binary (7, 100)"),
        (["yes", "no", "yes", "NA"], "a: binary (no, yes)"),
        (["True", "False"], "a: binary (False, True)"),
        (["u", "v", "w"] * 2, "a: category of 3 (u, v, w)"),
        (["007", "012", "100"] * 2, "a: category of 3 (007, 012, 100)"),
        (["1e5", "x", "y"] * 2, "a: category of 3 (1e5, x, y)"),
        (["2", "2", "2"], "a: constant (2)"),
        (["2", "2", "NA"], "'2' or empty"),
        (["yes", "", "yes"], "'yes' or empty"),
        (["\N{MINUS SIGN}1.5", "2.5", "3.5"], "a: number"),
        (["u", "u"], "a: constant (u)"),
        (["2020-01-01", "2020-01-05", "2021-01-05"], "a: time"),
        (["20200101", "20200229", "20211231"], "a: time"),
        (["20200101", "20200230", "20211231"], "a: whole"),
        (["19900101", "19900101", "19900101"], "a: constant (19900101)"),
        (["1.2.3.4", "1.2.3.5", "9.9.9.9"], "text, 3 different words in 3 rows, such as '1.2.3.4'"),
        (["", "NA", "?"], "all its cells are empty"),
        (["", "", "", "u", "v"], "text, 60% of its cells empty"),
        ([f"name {i}" for i in range(100)], "text, 100 different words in 100 rows, such as 'name 0'"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_a_column_is_what_it_looks_like(cells: list[str], expected: str) -> None:
    found, values = column(cells)
    assert str(found) == expected
    if isinstance(found, Column) and found.kind != "constant":
        x = found.encode(torch.from_numpy(values))
        back = found.decode(x).tolist()
        for cell, value in zip(cells, back, strict=True):
            again, known = found.cell(value), _known(cell.replace("\N{MINUS SIGN}", "-"))
            assert again == known or (math.isnan(value) and known is None) or float(again) == float(cell)


@pytest.mark.parametrize(
    ("cells", "kind", "expected"),
    [
        (["1", "2", "3", "1", "2", "3"], "category", "a: category of 3 (1, 2, 3)"),
        (["1", "0", "1"], "whole", "a: whole"),
        (["1", "2", "3"], "number", "a: number"),
        (["007", "012", "100"], "whole", "a: whole"),
        (["10", "9", "8"], "category", "a: category of 3 (8, 9, 10)"),
        (["u", "v", "w"], "category", "a: category of 3 (u, v, w)"),
        (["20200101", "20200229", "20211231"], "whole", "a: whole"),
    ],
)
def test_a_kind_that_is_given(cells: list[str], kind: str, expected: str) -> None:
    assert str(column(cells, kind)[0]) == expected


@given(
    form=st.sampled_from(FORMS),
    times=st.lists(
        st.datetimes(datetime(1950, 1, 1), datetime(2049, 12, 31)), min_size=3, max_size=6, unique_by=lambda t: t.day
    ),
)
@settings(max_examples=60, deadline=None)
def test_times_of_every_form_read_back(form: str, times: list[datetime]) -> None:
    cells = [t.strftime(form.replace("%z", "+0000").replace("%q", str((t.month + 2) // 3))) for t in times]
    if len(set(cells)) < 3:  # of years and months, few are different
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # days and months may be exchanged
        found, seconds = column(cells)
    assert isinstance(found, Column)
    assert found.kind == "time"
    exact = torch.from_numpy(seconds)
    assert found.decode(found.encode(exact)).sub(exact).abs().max() <= 1e-6 * float(exact.abs().max())
    for cell, value in zip(cells, seconds.tolist(), strict=True):
        if "%f" in found.form or "%z" in found.form:
            assert kinds.seconds_of(found.cell(value), found.form) == pytest.approx(value, abs=1e-5)
        else:
            assert found.cell(value) == cell


def test_days_and_months_that_could_be_exchanged_are_doubtful() -> None:
    with pytest.warns(UserWarning, match="could be %m/%d/%Y or %d/%m/%Y; taken for the first"):
        column(["01/02/2020", "03/04/2020", "05/06/2020"])
    found, _ = column(["01/02/2020", "13/04/2020", "05/06/2020"])
    assert isinstance(found, Column)
    assert found.form == "%d/%m/%Y"


def test_times_of_other_zones_are_one_clock() -> None:
    found, seconds = column(["2020-01-01T00:00:00+0100", "2020-01-01T00:00:00+0000", "2020-01-02T00:00:00+0000"])
    assert isinstance(found, Column)
    assert (seconds[1] - seconds[0], seconds[2] - seconds[1]) == (3600, 86400)


def test_seconds_since_1970_keep_their_hundredths(tmp_path: Path) -> None:
    t = 1.7e9 + 0.01 * np.random.default_rng(0).permutation(200)
    (tmp_path / "t.csv").write_text("t\n" + "\n".join(f"{v:.2f}" for v in t))
    np.save(tmp_path / "t.npy", np.stack([t, t], 1))
    for name in ("t.csv", "t.npy"):
        dataset = load_dataset(tmp_path / name)
        assert isinstance(dataset.rows, torch.Tensor)
        assert len(dataset.rows[:, 0].unique()) == 200
        np.testing.assert_array_equal(dataset.to_data_units(dataset.rows)[:, 0], t.round(2))
        assert dataset.units.columns[0].cell(float(t[0])) == f"{t[0]:.2f}"  # type: ignore[union-attr]


def test_one_glitch_does_not_rule(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(2000, 2))
    values[17, 1] = 1e11
    np.savetxt(tmp_path / "t.csv", values, delimiter=",", header="a,b", comments="")
    with pytest.warns(UserWarning, match=r"column 'b' has outliers, such as .* in row 18; its scale is that of its"):
        dataset = load_dataset(tmp_path / "t.csv")
    x = dataset.rows
    assert isinstance(x, torch.Tensor)
    assert len(x[:, 1].unique()) > 1900
    assert float(x[:, 1].quantile(0.9) - x[:, 1].quantile(0.1)) == pytest.approx(2.56, rel=0.1)
    back = dataset.to_data_units(x).numpy()
    np.testing.assert_allclose(back, values, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("n", [2, 3, 40])
def test_what_differs_by_rounding_alone(n: int) -> None:
    """A scale of 0 would divide by it."""
    found, values = column([repr(0.1 + 1e-17 * (i % 2)) if i else "0.30000000000000004" for i in range(n)])
    assert isinstance(found, Column)
    found = kinds.standardised(found, values, PATH, np.arange(n))
    assert found.scale > 0
    assert bool(found.encode(torch.from_numpy(values)).isfinite().all())


def test_a_year_ago_is_a_time_that_can_be_written() -> None:
    found, _ = column(["0999-01-01", "0999-01-05", "1021-01-05"])
    assert isinstance(found, Column)
    assert found.cell((datetime(999, 1, 5) - datetime(1970, 1, 1)) / timedelta(seconds=1)) == "0999-01-05"
    assert found.cell(1e30) == ""


def test_marks_of_missing_values_are_doubtful(tmp_path: Path) -> None:
    numbers = np.random.default_rng(0).normal(size=100).round(3)
    cells = [-999 if i % 9 == 0 else v for i, v in enumerate(numbers.tolist())]
    (tmp_path / "t.csv").write_text("a\n" + "\n".join(map(str, cells)))
    with pytest.warns(UserWarning, match=r"column 'a' is -999\.000 in 12 rows, far from its other values"):
        load_dataset(tmp_path / "t.csv")
    (tmp_path / "t.csv").write_text("a\n" + "\n".join(map(str, range(0, 1000, 9))))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_dataset(tmp_path / "t.csv")


def test_large_whole_numbers_are_whole(tmp_path: Path) -> None:
    """Seconds since 1970 and nine digits, whose products with powers of ten are rounded."""
    rng = np.random.default_rng(0)
    values = np.stack([1.7e9 + 10 * rng.integers(0, 9999, 200), rng.integers(0, 10**9, 200)], 1).astype(np.int64)
    (tmp_path / "t.csv").write_text("t,income\n" + "".join(f"{a},{b}\n" for a, b in values.tolist()))
    data = load_dataset(tmp_path / "t.csv")
    assert isinstance(data.units, Table)
    assert [(c.kind, c.digits) for c in data.units.columns] == [("whole", 0)] * 2
    back = data.to_data_units(data.batch(torch.arange(200))[0]).numpy()
    assert (back % 1 == 0).all()
    assert np.array_equal(back[:, 0], values[:, 0])
    assert np.abs(back - values).max() < 1e-6 * values[:, 1].std(), "what float32 tells apart"
    assert data.units.columns[0].step == 10


def test_kinds_are_named_by_position_too(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b,y\n" + "".join(f"{i % 4},{i / 3:.2f},{i % 2}\n" for i in range(40)))
    data = load_dataset(tmp_path / "t.csv", column_kinds={"0": "category"})
    assert isinstance(data.units, Table)
    assert [c.kind for c in data.units.columns] == ["category", "number", "binary"]
    for options in ({"label_column": "y"}, {"ignore_columns": ["y"]}):
        with pytest.raises(InputError, match="column_kinds: got number of 'y', which the model has not"):
            load_dataset(tmp_path / "t.csv", column_kinds={"y": "number"}, **options)  # type: ignore[arg-type]


def test_a_shuffled_row_number_is_left_out(tmp_path: Path) -> None:
    order = np.random.default_rng(0).permutation(60) + 7
    (tmp_path / "t.csv").write_text(",a\n" + "".join(f"{i},{i / 3:.2f}\n" for i in order.tolist()))
    assert load_dataset(tmp_path / "t.csv").columns == ("a",)


def test_a_class_without_a_training_row_is_said(tmp_path: Path) -> None:
    x = np.zeros((6, 4, 4), np.uint8)
    np.savez(tmp_path / "a.npz", x_train=x + 200, y_train=[1, 2, 3] * 2, x_test=x, y_test=[1, 2, 3, 4, 5, 5])
    with pytest.warns(UserWarning, match="no training row is of class 4, 5: it is never drawn"):
        data = load_dataset(tmp_path / "a.npz")
    assert data.classes == ("1", "2", "3", "4", "5")
