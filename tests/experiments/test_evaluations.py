"""Evaluations: when a curve is near its limit, the mixture in other coordinates, and that answers follow the rows."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from experiments import evaluations as claim
from experiments.lab.claim import Row, Settings
from experiments.lab.problems import anisotropic
from experiments.lab.training import Frame


def _curve(shape: str, scale: float, seed: int, limit: float = 1.0) -> list[Row]:
    """A curve ``limit (1 + (scale / n)^2)``: within 10 % of its limit at ``n = scale sqrt(10)``, up to the limit's own
    distance from its value at 40."""
    scale *= 1.0 + 0.01 * seed
    return [
        {
            "kind": kind, "problem": "mixture", "shape": shape, "seed": seed, "method": method, "evaluations": n,
            "fd": limit * (1 + (scale / n) ** 2), "energy": 0.01, "away": 0.0 if n == 40 else 0.2 * (scale / n) ** 2,
            "fd_floor": 0.5, "energy_floor": 0.0, "start": 3.0, "n": 100,
        }
        for kind in ("exact", "learned") for method in claim.METHODS for n in claim.COUNTS
    ]  # fmt: skip


def _rows(ours: float, limit: float = 1.0) -> list[Row]:
    rows: list[Row] = []
    for seed in range(5):
        scale = ours * (1 + 0.001 * (seed % 2))
        rows += _curve("rho=0", 4.0, seed) + _curve("rho=1", scale, seed, limit)
        rows += _curve("wiener rho=0", scale, seed, limit)
    return rows


def test_needed_is_where_the_curve_is_within_a_tenth() -> None:
    own = [row for row in _rows(2.0) if row["kind"] == "learned" and row["method"] == "heun"]
    control = [row for row in own if row["shape"] == "rho=0"]
    found = claim.needed(control, control, "own")
    assert set(found) == set(range(5))
    goal = 1.1 * (1 + (4.0 / 40) ** 2)
    assert found[0] == pytest.approx(4.0 / math.sqrt(goal - 1), rel=0.1)  # between two points in the logarithm
    easier = [{**row, "fd": 0.1 * row["fd"]} for row in control]
    assert math.isinf(claim.needed(control, easier, "fixed")[0])


def test_answer_and_section_follow_the_rows(tmp_path: Path) -> None:
    fast, slow, same = (claim.section(_rows(scale), tmp_path) for scale in (2.0, 8.0, 4.0))
    assert fast.answer.startswith("Yes")
    assert "fewer in 1 of 1 shapes" in fast.answer
    wiener = "against isotropic noise without, to 1.25 times its limit: "
    assert f"{wiener}fewer in 1 of 1, more in 0" in fast.answer
    assert f"{wiener}fewer in 0 of 1, more in 1" in slow.answer
    assert slow.answer.startswith("No")
    assert "more in 1" in slow.answer
    assert same.answer.startswith("No difference seen")
    assert all((tmp_path / file).exists() for _, file in fast.figures)


@pytest.mark.parametrize(("scale", "told"), [(1.0, "fewer under 3 of 3 shapes, more under 0"), (9.0, "more under 3")])
def test_the_gaussian_solver_is_compared_on_the_same_model(scale: float, told: str, tmp_path: Path) -> None:
    rows = [row for row in _rows(4.0) if row["method"] != claim.GAUSSIAN]
    for shape in ("rho=0", "rho=1", "wiener rho=0"):
        for seed in range(5):
            rows += [row for row in _curve(shape, scale, seed) if row["method"] == claim.GAUSSIAN]
    found = claim.section(rows, tmp_path)
    assert told in found.answer
    assert any(caption.startswith("Gaussian 2M, evaluations until") for caption, _ in found.tables)


def test_a_worse_limit_that_is_near_sooner_is_no_gain_at_fixed_quality() -> None:
    answer = claim.answer(_rows(2.0, limit=2.0))
    assert "within 10 % of its own limit: fewer evaluations in all 1" in answer
    assert "in none of 1 fewer evaluations (more in 1" in answer


def test_mixture_in_a_frame_is_the_same_density() -> None:
    density = anisotropic(4, 3, 50.0)
    x, _ = density.sample(500, seed=3)
    frame = Frame(x)
    carried = claim.carried(density, frame)
    there = carried.log_density(frame.into(x)) - frame.log_volume
    torch.testing.assert_close(there, density.log_density(x))


@pytest.mark.slow
def test_exact_cell_of_whitened_data_matches_its_own_shape() -> None:
    """Isotropic noise on whitened data is noise of the data's shape: the same samples but for the points drawn."""
    rows = {
        shape: claim.run({"kind": "exact", "problem": "mixture", "shape": shape, "steps": 0, "seeds": 1}, Settings())
        for shape in ("rho=1", "whitened")
    }
    ours, theirs = ([row["fd"] for row in rows[shape] if row["evaluations"] == 40] for shape in rows)
    assert ours == pytest.approx(theirs, rel=0.5)
    assert all(row["fd"] < 3 * row["fd_floor"] for row in rows["rho=1"] if row["evaluations"] == 40)


@pytest.mark.slow
def test_learned_cell_runs() -> None:
    rows = claim.run({"kind": "learned", "problem": "digits", "shape": "rho=0.5", "steps": 4, "seeds": 1}, Settings())
    assert len(rows) == len(claim.METHODS) * len(claim.COUNTS) + len(claim.LANGEVIN)
    assert all(row["fd"] > 0 for row in rows)
