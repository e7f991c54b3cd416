"""Evaluations: when a curve is near its goal, and sentences that follow the rows."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from experiments import evaluations as claim
from experiments.lab.claim import Row, Settings


def _rows(ours: float) -> list[Row]:
    """Curves ``1 + (scale / n)^2``, the control's scale 4."""
    rows: list[Row] = []
    for kind in ("exact", "learned"):
        for arm, scale in (("scalar", 4.0), ("scalar rho=1", ours), ("wiener", ours)):
            for seed in range(5):
                for method in claim.FLOWS:
                    for n in claim.COUNTS:
                        value = 1 + (scale * (1 + 0.01 * seed) / n) ** 2
                        rows.append({"kind": kind, "problem": "mixture", "arm": arm, "seed": seed, "method": method,
                                     "evaluations": n, "fd": value, "fd_floor": 0.5})  # fmt: skip
    return rows


def _samplers() -> list[Row]:
    return [
        {"kind": "samplers", "problem": "digits", "arm": claim.PRESETS[0], "seed": seed, "method": method,
         "schedule": "few_steps", "budget": budget, "evaluations": budget, "fd": fd, "fd_floor": 1.0}
        for seed in range(2) for method, budget, fd in (("dpmpp_2m", 8, 1.5), ("langevin", 1000, 2.5))
    ]  # fmt: skip


def test_needed_is_where_the_curve_is_there() -> None:
    own = [row for row in _rows(2.0) if row["kind"] == "learned" and row["method"] == "heun"]
    control = [row for row in own if row["arm"] == "scalar"]
    goal = claim.FIXED * (1 + (4.0 / 40) ** 2)
    found = claim.needed(control, control)
    assert found[0] == pytest.approx(4.0 / math.sqrt(goal - 1), rel=0.1)  # between two points in the logarithm
    assert math.isinf(claim.needed([{**row, "fd": 9.0} for row in control], control)[0])


def test_answer_follows_the_rows(tmp_path: Path) -> None:
    fast, slow, same = (claim.section(_rows(scale), tmp_path).answer for scale in (2.0, 8.0, 4.0))
    assert "shaped noise takes fewer in 1 and more in 0 of 1" in fast
    assert "the Wiener skip takes fewer in 1 and more in 0 of 1" in fast
    assert "the Wiener skip takes fewer in 0 and more in 1 of 1" in slow
    assert "the Wiener skip takes fewer in 0 and more in 0 of 1" in same
    assert "annealed Langevin" not in same


def test_the_samplers_have_a_table_of_their_own(tmp_path: Path) -> None:
    section = claim.section(_rows(2.0) + _samplers(), tmp_path)
    assert "8 evaluations of DPM-Solver++(2M) have a distance of 1.50, 1000 of annealed Langevin 2.50" in section.answer
    assert any("| `langevin` |  | 2.50 |" in text for _, text in section.tables)


@pytest.mark.slow
def test_cells_run(tmp_path: Path) -> None:
    settings = Settings(quick=True, out=tmp_path)
    for cell in claim.cells(settings)[::2]:
        rows = claim.run(cell, settings)
        assert {row["evaluations"] for row in rows} == set(claim.COUNTS)
        assert all(math.isfinite(row["fd"]) and row["fd"] > 0 for row in rows)
