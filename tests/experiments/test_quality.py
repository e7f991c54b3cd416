"""Quality: each metric at its own rate, gains in steps, repeated rows, sentences that follow the rows."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from experiments import quality as claim
from experiments.lab.claim import Row, Settings


def _rows(faster: float, data: str = "table") -> list[Row]:
    """Curves ``1 + 100 / step``; ours are ``faster`` times as fast and repeat no rows."""
    rows: list[Row] = []
    for arm, speed in (("scalar", 1.0), ("wiener", faster), ("wiener rho=0.5", faster)):
        for seed in range(3):
            for step in (25, 50, 100, 200, 400):
                value = 1 + 100 / (step * speed) * (1 + 0.01 * seed)
                both = dict.fromkeys(claim.METRICS, value)
                rows.append({"data": data, "n": 500, "arm": arm, "seed": seed, "step": step, "lr": 1e-3, **both,
                             "for": "fd+loss+nll", "fd_floor": 1.0, "seconds": step / 100, "found": 0.0,
                             "repeated": 0.05 if step == 400 else None})  # fmt: skip
    return rows


def test_twice_as_fast_is_twice_fewer_steps_and_seconds() -> None:
    rows = _rows(2.0)
    for at in ("step", "seconds"):
        found = claim.gain(rows, "wiener", "fd", at)
        assert found is not None
        assert math.exp(found.log.mean) == pytest.approx(2.0, rel=0.02)
    elsewhere = [row | {"cpu": "another"} if row["arm"] == "scalar" else row for row in rows]
    assert claim.gain(elsewhere, "wiener", "fd", "seconds") is None
    assert claim.gain(elsewhere, "wiener", "fd") == claim.gain(rows, "wiener", "fd")
    # A control that is at its best early, by 100 steps, which the other has at 200.
    early = [{**row, "fd": 9.0} if row["arm"] == "scalar" and row["step"] > 100 else row for row in _rows(0.5)]
    later = claim.gain(early, "wiener", "fd")
    assert later is not None
    assert math.exp(later.log.mean) == pytest.approx(0.5, rel=0.02)
    slow = claim.gain(_rows(0.5), "wiener", "fd")
    assert slow is not None
    assert slow.bound == "at most "


def test_a_metric_is_seen_at_its_rate_alone() -> None:
    rows = [{**row, "for": "fd"} for row in _rows(2.0)] + [
        {**row, "for": "loss+nll", "lr": 3e-3, "fd": 0.0} for row in _rows(2.0)
    ]
    assert {row["lr"] for row in claim.of(rows, "wiener", "fd")} == {1e-3}
    assert {row["lr"] for row in claim.of(rows, "wiener", "nll")} == {3e-3}


def test_an_arm_counts_at_its_best_step() -> None:
    rows = [{**row, "nll": abs(row["step"] - 100)} for row in _rows(2.0)]
    assert {row["step"] for row in claim.best(rows, "wiener", "nll")} == {100}


def test_sentences_follow_the_rows(tmp_path: Path) -> None:
    ahead, behind = (claim.section(_rows(speed), tmp_path) for speed in (4.0, 0.25))
    told = (
        "`wiener` Frechet distance in 1 and 0 of 1 (table, 500: 1.06 against 1.25), held-out weighted loss in 1 and 0"
    )
    assert told in ahead.answer
    assert "`wiener` Frechet distance in 0 and 1 of 1" in behind.answer
    shown, against = (section.tables[0][1].splitlines()[-1].split(" | ") for section in (ahead, behind))
    assert shown[:3] == ["| table, 500", "1", "1.25"]
    assert re.fullmatch(r"\*\*1.06\*\*; 4; 4; \*\*-0.19 ± 0.*\*\*", shown[3])
    assert re.fullmatch(r"\*2.01\*; ≤ 1; ≤ 1; \*0.76 ± 0.*\*", against[3])
    assert any("`wiener rho=0.5` against `wiener`, Frechet distance: no difference" in line for line in ahead.findings)
    assert any("share of samples that repeat" in line for line in ahead.findings)
    assert (tmp_path / "quality.png").exists()


def test_images_are_left_out_without_data_and_shaped_noise_has_all_rows() -> None:
    names = {cell["data"] for cell in claim.cells(Settings())}
    assert names == {"digits", "table", "fields"}
    for cell in claim.cells(Settings()):
        assert cell["n"] is None or "rho" not in cell["arm"]


def test_a_cell_runs() -> None:
    cell = {"data": "table", "n": 100, "arm": "mixture seen", "steps": 2, "seeds": 1}
    rows = claim.run(cell, Settings(quick=True))
    assert [row["step"] for row in rows] == [1, 2]
    last = rows[-1]
    assert last["for"] == "fd+loss+nll"
    assert last["regions"] >= 1
    assert all(math.isfinite(last[name]) for name in (*claim.METRICS, "repeated", "fd_floor"))
