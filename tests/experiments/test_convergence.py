"""What the convergence claim says follows from its rows, and turns with them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from experiments import convergence
from experiments.lab.claim import Settings

Row = dict[str, Any]


def curves(speed: dict[str, float], late: dict[str, float] | None = None, name: str = "mixture") -> list[Row]:
    """Rows whose distance falls like ``1000 / (speed * step)``; ``late`` is added at the last step."""
    rows = []
    for shape, factor in speed.items():
        for seed in range(5):
            for step in (100, 200, 400, 800):
                value = 1000.0 / (factor * step) * (1 + 0.01 * seed)
                value += (late or {}).get(shape, 0.0) * (step == 800)
                rows.append({
                    "problem": name, "shape": shape, "steps": 800, "seeds": 5, "seed": seed, "step": step,
                    "fd": value, "energy": value / 100, "nll": value - 1, "excess": value, "fd_floor": 0.1,
                    "energy_floor": 0.001, "loss": 1.0, "seconds": 0.01 * step, "lr": 1e-3, "start": 3.0, "n": 100,
                    "features": "made", "d": 16, "torch": "0", "cpu": "none",
                })  # fmt: skip
    return rows


def test_a_shape_twice_as_fast_is_twice_as_fast() -> None:
    rows = curves({"rho=0": 1.0, "rho=0.5": 2.0, "rho=1": 0.6})
    found = convergence.gain(rows, "mixture", "rho=0.5", "fd")
    assert found is not None
    # Interpolation is linear in the value and logarithmic in the step: right at the points, near between them.
    assert math.exp(found.log.mean) == pytest.approx(2.0, rel=0.03)
    seconds = convergence.gain(rows, "mixture", "rho=0.5", "fd", "seconds")
    assert seconds is not None
    assert seconds.log.mean == pytest.approx(found.log.mean)
    slow = convergence.gain(rows, "mixture", "rho=1", "fd")
    assert slow is not None
    assert slow.log.high < 0
    assert "slower on mixture (0.6 times" in convergence.sentence(rows, "rho=1")


def test_the_sentence_turns_with_the_rows() -> None:
    told = convergence.sentence(curves({"rho=0": 1.0, "rho=0.5": 2.0}), "rho=0.5")
    assert "faster on mixture (2.0 times" in told
    assert "better on mixture" in told
    turned = convergence.sentence(curves({"rho=0": 1.0, "rho=0.5": 0.6}), "rho=0.5")
    assert "slower on mixture (0.6 times" in turned
    assert "worse on mixture" in turned
    late = convergence.sentence(curves({"rho=0": 1.0, "rho=0.5": 2.0}, {"rho=0.5": 5.0}), "rho=0.5")
    assert "faster on mixture" in late
    assert "worse on mixture" in late


def test_what_is_not_reached_is_told() -> None:
    rows = curves({"rho=0": 1.0, "rho=1": 0.01})
    assert "slower on mixture (at most 0.5 times" in convergence.sentence(rows, "rho=1")
    assert convergence.gain(rows, "mixture", "rho=1", "fd", target=1e-9) is None
    assert convergence.speedup(rows, "mixture", "rho=0.5", "fd") == "-"


def test_problems_need_not_have_the_same_shapes(tmp_path: Path) -> None:
    rows = curves({"rho=0": 1.0, "rho=0.5": 1.0, "gamma=0.5": 2.0})
    rows += curves({"rho=0": 1.0, "rho=0.5": 1.0}, name="mnist")
    assert "mnist" not in convergence.sentence(rows, "gamma=0.5")
    assert "gamma=0.5 | 2." in convergence.section(rows, tmp_path).tables[0][1]


def test_what_is_there_at_once_is_a_bound() -> None:
    rows = curves({"rho=0": 1.0, "rho=1": 50.0})
    assert "faster on mixture (at least 4.0 times" in convergence.sentence(rows, "rho=1")


@pytest.mark.parametrize(("speed", "word"), [(1.5, "refuted"), (3.9, "confirmed")])
def test_the_first_look_is_tested(speed: float, word: str) -> None:
    rows = curves({"rho=0": 1.0, "rho=0.5": speed}, name="digits")
    for row in rows:
        row["fd_floor"] = 1.7  # 1.5 times it is reached by the control after 400 steps
    assert any(word in line for line in convergence._quick(rows)), convergence._quick(rows)


def test_seeds_that_disagree_show_no_difference() -> None:
    rows = curves({"rho=0": 1.0, "rho=0.5": 1.0})
    for row in rows:
        if row["shape"] == "rho=0.5":
            row["fd"] *= 1.2 if row["seed"] % 2 else 0.83
    told = convergence.sentence(rows, "rho=0.5")
    assert "no difference seen on mixture" in told
    assert "level on mixture" in told


def test_section_and_figures(tmp_path: Path) -> None:
    names = dict.fromkeys(("rho=0", "rho=0.5", "fixed rho=0.5"), 1.0)
    rows = curves(names) + curves(names, name="digits")
    section = convergence.section(rows, tmp_path)
    assert all((tmp_path / name).stat().st_size > 10_000 for _, name in section.figures)
    assert "no difference seen" in " ".join(section.findings)
    assert "| rho=0.5 | " in section.tables[0][1]


def test_mnist_needs_its_files(capsys: pytest.CaptureFixture[str]) -> None:
    found = convergence.cells(Settings())
    assert {cell["problem"] for cell in found} == {"mixture", "digits", "table", "fields"}
    assert "MNIST are left out" in capsys.readouterr().err
    assert "mnist" in {cell["problem"] for cell in convergence.cells(Settings(data=Path("somewhere")))}


def test_rows_of_a_cell() -> None:
    rows = convergence.run({"problem": "mixture", "shape": "rho=0.5", "steps": 4, "seeds": 1}, Settings(quick=True))
    assert [(row["seed"], row["step"]) for row in rows] == [(0, 4)]
    assert rows[0]["lr"] in convergence.RATES
    assert rows[0]["fd"] > rows[0]["fd_floor"] > 0
    assert rows[0]["excess"] > 0
