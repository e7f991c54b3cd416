"""The table of scale measures what it says: everything finite, memory that grows with the data."""

from __future__ import annotations

import math

import pytest

from benchmarks import scale


@pytest.mark.parametrize("structure", scale.STRUCTURES)
def test_a_row_of_each_kind(structure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale, "UPDATES", 2)
    monkeypatch.setattr(scale, "STEPS", 2)
    found = scale.scale((1, 8, 8), structure)
    assert (found["shape"], found["d"]) == ("1x8x8", 64)
    parts = scale.step(structure)
    for row in (found, parts):
        numbers = [value for value in row.values() if isinstance(value, float)]
        assert len(numbers) >= 3
        assert all(math.isfinite(value) and value >= 0 for value in numbers)
