"""The tables and sentences of the docs are those of the measured files."""

from __future__ import annotations

import pytest

from benchmarks import table

ROW = {
    "name": "Langevin step 1 x 2", "ansn us": "2", "eager us": "9", "compile us": "10", "JAX us": "4", "aim": "5",
    "best peer": "eager", "ratio": "4.5", "ratio q1": "4", "ratio q3": "5", "share of limit": "0.5", "bound": "copy",
}  # fmt: skip
ONE = ROW | {"name": "Langevin step 1 x 2, one thread", "ratio": "2.04", "aim": ""}


@pytest.mark.parametrize("page", table.PAGES, ids=lambda page: page.name)
def test_the_docs_hold_what_was_measured(page):
    """`python -m benchmarks.table --write` puts it there."""
    text = page.read_text()
    assert "<!-- table: claims -->" in text
    assert table.written(text) == text


def test_a_row_says_what_is_beside_the_best_of_torch():
    line = table.cpu([ROW]).splitlines()[-1]
    assert line == "| Langevin step 1 x 2 | 2.0 / 9.0 | 4.50 (4.00-5.00) | eager | JAX 2.00 | 5 | 50 % of copy |"
    assert len({row.count("|") for row in table.cpu([ROW, ONE]).splitlines()}) == 1


def test_sentences_come_from_the_rows():
    other = ROW | {"name": "Langevin step 3 x 2", "ratio": "6.0"}
    assert table.claims([ROW, ONE, other]) == (
        "elementwise step 4.5 to 6.0 (one thread 2.0; beside JAX 2.0)."
    )
    assert table.short([ROW, ONE, other]) == "* Langevin step 1 x 2: 4.50 of 5."
    assert table.short([other]) == "None."


def test_small_sizes_are_columns():
    rows = [ROW | {"name": f"small step, {kind}, {size}"} for kind, size in (("none", "1 x 4"), ("dense", "2 x 4"))]
    assert table.small(rows).splitlines()[2:] == ["| step, none | 4.50 | - |", "| step, dense | - | 4.50 |"]


def test_a_mark_of_nothing_is_named():
    with pytest.raises(ValueError, match="text: got marks of 'nothing', expected one of cpu, "):
        table.written("<!-- table: nothing -->\n<!-- end -->")
