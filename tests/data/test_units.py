"""Units: what is decoded is what was encoded, of every kind of column, and volumes are those of the map."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ansn.data.units import KINDS, SPREAD, Affine, Column, Table, from_json, spread

WORDS = st.lists(st.text(min_size=1, max_size=5), min_size=2, max_size=6, unique=True).map(tuple)
SCALE = st.floats(1e-3, 1e3)
OFFSET = st.floats(-1e3, 1e3)


@st.composite
def columns(draw: st.DrawFn, kind: str | None = None) -> tuple[Column, list[float]]:
    """A column and values that it can have, NaN among them."""
    kind = draw(st.sampled_from(KINDS)) if kind is None else kind
    name, n = draw(st.text(min_size=1, max_size=4)), 6
    offset, scale = draw(OFFSET), draw(SCALE)
    options: dict[str, Any] = {"offset": offset, "scale": scale, "limit": draw(st.sampled_from([0.0, 10.0]))}
    values: st.SearchStrategy[float]
    if kind == "number":
        digits = draw(st.sampled_from([None, 0, 2]))
        values = st.floats(-20, 20).map(lambda t: offset + scale * t)
        if digits is not None:
            values = values.map(lambda t: round(t, digits))
        options |= {"digits": digits}
    elif kind in ("whole", "time"):
        anchor, step = float(draw(st.integers(-1000, 1000))), float(draw(st.integers(1, 60)))
        values = st.integers(0, 30).map(lambda k: anchor + k * step)
        options |= {"anchor": anchor, "step": step, "form": "%Y-%m-%d %H:%M:%S" if kind == "time" else ""}
    elif kind == "binary":
        first = float(draw(st.integers(-5, 5)))
        both = (first, first + draw(st.integers(1, 9)))
        values, options = st.sampled_from(both), options | {"values": both, "step": both[1] - both[0], "limit": 0.0}
    elif kind == "category":
        words = draw(WORDS)
        values = st.integers(0, len(words) - 1).map(float)
        options = {"words": words, "shares": (1 / len(words),) * len(words), "scale": scale}
    else:
        values, options = st.just(offset), {"offset": offset}
    cells = draw(st.lists(st.one_of(values, st.just(math.nan)), min_size=n, max_size=n))
    return Column(name, kind, **options), cells


tables = st.lists(columns(), min_size=1, max_size=5)


@given(tables, st.integers(0, 9))
@settings(max_examples=50, deadline=None)
def test_decoding_gives_what_was_encoded(drawn: list[tuple[Column, list[float]]], seed: int) -> None:
    table = Table(tuple(column for column, _ in drawn))
    values = torch.tensor([cells for _, cells in drawn], dtype=torch.float64).T
    x = table.encode(values)
    assert x.dtype == torch.float32
    assert tuple(x.shape[1:]) == table.shape
    assert len(table.coordinates) == table.shape[0]
    assert from_json(json.loads(json.dumps(table.to_json()))) == table
    for noisy in (x, table.encode(values, seed)):
        back = table.decode(noisy)
        for column, t, u in zip(table.columns, values.T, back.T, strict=True):
            if column.kind == "constant":
                assert bool((u == column.offset).all())  # put back, whatever the row
                continue
            assert torch.equal(t.isnan(), u.isnan())
            known = ~t.isnan()
            # float32 of x, whose own error grows with its distance
            slack = 4e-7 * (column.scale * 25 + abs(column.offset)) if column.kind == "number" else 0.0
            slack += 1e-2 if column.digits == 2 and slack > 1e-3 else 0.0
            assert bool(((t - u).abs()[known] <= slack).all()), column


@given(columns())
@settings(max_examples=50, deadline=None)
def test_cells_read_as_they_are_written(drawn: tuple[Column, list[float]]) -> None:
    column, values = drawn
    for value in values:
        cell = column.cell(value)
        if math.isnan(value):
            assert cell == ""
        elif column.words:
            assert column.words.index(cell) == value
        elif not column.form:
            assert float(cell) == value


def test_noise_stays_within_its_grain_and_is_a_function_of_seed_and_position() -> None:
    grain = torch.tensor([1.0, 0.0, 0.5])
    whole = spread(grain, 100, 3, 0)
    assert torch.equal(spread(grain, 40, 3, 60), whole[60:])
    assert not torch.equal(spread(grain, 100, 4, 0), whole)
    assert bool((whole.abs() <= grain / 2).all())
    assert whole.std(0).tolist() == pytest.approx((grain / math.sqrt(12)).tolist(), rel=0.2)
    assert SPREAD < 1  # else the largest coordinate of a category is not always the word's


@given(columns("number"), st.lists(st.floats(-30, 30), min_size=3, max_size=3))
@settings(max_examples=40, deadline=None)
def test_the_volume_of_numbers_is_the_derivative(drawn: tuple[Column, list[float]], at: list[float]) -> None:
    column = Column("a", offset=drawn[0].offset, scale=drawn[0].scale, limit=drawn[0].limit)
    x = torch.tensor(at, dtype=torch.float64)[:, None]
    x = x + 1e-3 * ((x.abs() - 10).abs() < 1e-2)  # not across the bend
    h = 1e-6
    slope = (column.decode(x + h) - column.decode(x - h)) / (2 * h)
    torch.testing.assert_close(column.log_volume(x).exp(), slope, rtol=1e-4, atol=1e-9 * abs(column.offset) / h)


def test_probabilities_of_discrete_values_sum_to_one() -> None:
    """p(x) of the noise spread about each of the values with their shares: ln p(x) less the volume is ln share."""
    shares = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
    for column, values in (
        (Column("a", "whole", offset=3.0, scale=2.5, step=2.0, anchor=1.0), [1.0, 3.0, 5.0]),
        (Column("a", "time", offset=3.0, scale=2.5, step=2.0, anchor=1.0, form="%H:%M:%S"), [1.0, 3.0, 5.0]),
        (Column("a", "binary", offset=0.3, scale=0.4, step=1.0, values=(0.0, 1.0)), [0.0, 1.0]),
        (Column("a", "category", scale=0.4, words=("u", "v", "w"), shares=(0.5, 0.2, 0.3)), [0.0, 1.0, 2.0]),
    ):
        p = shares[: len(values)] / shares[: len(values)].sum()
        table = Table((column,))
        # uniform over the grain of each value: in x of density share / grain^width
        ln_p = p.log() - column.width * math.log(column.grain)
        x = table.encode(torch.tensor(values, dtype=torch.float64)[:, None])
        torch.testing.assert_close(ln_p - table.log_volume(x), p.log())


@pytest.mark.parametrize("shape", [(7,), (2, 5), (3, 4, 5), (2, 3, 4, 5)])
def test_fields_are_shifted_and_scaled(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)

    def some(*size: int) -> Tensor:
        return torch.rand(size, dtype=torch.float64, generator=generator)

    for size in ((shape[0], *(1,) * (len(shape) - 1)), shape):
        units = Affine(1e4 * some(*size), 0.1 + some(*size), shape)
        values = 1e4 * some(6, *shape)
        x = units.encode(values)
        torch.testing.assert_close(units.decode(x), values, rtol=0, atol=1e-2)
        volume = units.scale.expand(shape).log().sum()
        torch.testing.assert_close(units.log_volume(x), volume.expand(6))
        again = from_json(json.loads(json.dumps(units.to_json())))
        assert isinstance(again, Affine)
        assert torch.equal(again.decode(x), units.decode(x))
        with pytest.raises(ValueError, match=r"x: got shape .* expected \[n, "):
            units.decode(x[:, 1:])


def test_a_table_of_other_width_is_refused() -> None:
    with pytest.raises(ValueError, match=r"x: got shape \[2, 3\], expected \[n, 2\]"):
        Table.plain(["a", "b"]).decode(torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"x: got shape \[2, 1\], expected \[n, 2\]"):
        Table.plain(["a", "b"]).encode(torch.zeros(2, 1))
