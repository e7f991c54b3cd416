"""The tables of docs/performance.md are those of the measured files."""

from __future__ import annotations

import pytest

from benchmarks import table


def test_the_docs_hold_the_measured_tables():
    """`python -m benchmarks.table --write` puts them there."""
    text = table.PAGE.read_text()
    assert table.written(text) == text


def test_every_aim_is_of_a_row():
    """A renamed benchmark would lose its aim in silence."""
    names = [line.split(" | ")[0].removeprefix("| ") for line in table.cpu(table.read(table.CPU)).splitlines()]
    assert set(table.AIMS) <= set(names)


def test_the_best_of_torch_is_not_ours_and_not_a_part_of_the_work():
    row = {
        "name": "draw", "ansn us": "2", "eager us": "9", "addcmul us": "6", "matmul us": "1", "NumPyro us": "1",
        "autograd us": "4", "best peer": "eager", "ratio": "4.5", "ratio q1": "4", "ratio q3": "5",
        "share of limit": "0.5", "bound": "copy",
    }  # fmt: skip
    assert table.cpu([row]).splitlines()[2:] == [
        "| draw | 2.0 / 6.0 | 3.00 | addcmul | - | 50 % of copy |",
        "| draw, autograd | 4.0 / 6.0 | 1.50 | addcmul | - | - |",
    ]
    row["addcmul us"] = ""
    assert "| 4.50 (4.00-5.00) | eager |" in table.cpu([row])


def test_a_missing_mark_is_named():
    with pytest.raises(ValueError, match="text: got no <!-- table: cpu -->"):
        table.written("no table here")
