"""Tables: the copula is a density that its samples have, splits are disjoint, a section follows its rows."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from experiments import tables
from experiments.lab.claim import Settings
from experiments.lab.tables import Copula, classifiers, parts


def _normals(n: int, seed: int) -> torch.Tensor:
    mix = torch.tensor([[1.0, 0.0, 0.0], [0.8, 0.6, 0.0], [-0.5, 0.2, 0.4]])
    return torch.randn(n, 3, generator=torch.Generator().manual_seed(seed)) @ mix.T


def test_the_copula_is_a_density() -> None:
    """In one dimension, whatever the correlation: its integral is 1."""
    copula = Copula(_normals(60, 0)[:, :1], 0.1, 0.5)
    at = torch.linspace(-8, 8, 8001, dtype=torch.float64)[:, None]
    assert float(torch.trapezoid(copula.log_density(at).exp(), at[:, 0])) == pytest.approx(1, abs=1e-4)


def test_the_copula_of_normal_rows_is_nearly_their_density_and_draws_them() -> None:
    train, other = _normals(400, 1), _normals(200, 2)
    copula = Copula(train, 0.0, 1.0)
    s = torch.cov(_normals(100_000, 3).T).double()
    exact = torch.distributions.MultivariateNormal(torch.zeros(3).double(), s).log_prob(other.double())
    lost = float((exact - copula.log_density(other)).mean())
    assert -0.05 < lost < 0.3
    drawn = torch.corrcoef(copula.sample(2000, 0).T)
    torch.testing.assert_close(drawn, torch.corrcoef(train.T.double()), rtol=0, atol=0.1)
    assert float(torch.corrcoef(Copula(train, 0.9, 1.0).sample(2000, 0).T)[0, 1]) < 0.2


def test_parts_of_a_seed_are_disjoint_and_tuning_sees_training_rows_only(tmp_path: Path) -> None:
    whole, inner, other = (
        parts("diabetes", seed, tmp_path, tuning=tuning) for seed, tuning in ((0, False), (0, True), (1, False))
    )
    assert (len(whole.train), len(whole.held), len(inner.train)) == (295, 147, 197)
    assert [column.kind for column in whole.units.columns][:3] == ["whole", "binary", "number"]

    def rows(values: torch.Tensor) -> set[tuple[float, ...]]:
        return {tuple(row) for row in values.tolist()}

    held, learned = rows(whole.held), rows(whole.units.decode(whole.rows))
    assert not held & learned
    assert rows(inner.held) | rows(inner.units.decode(inner.rows)) == learned
    assert held != rows(other.held)


def test_classifiers_tell_what_differs_and_nothing_else() -> None:
    x, y = (np.random.default_rng(seed).standard_normal((120, 3)) for seed in (0, 1))
    assert all(abs(area - 0.5) < 0.15 for area in classifiers(x, y))
    assert all(area > 0.95 for area in classifiers(x, y + 3.0))
    narrow = classifiers(x, 0.2 * y)
    assert narrow[1] > 0.9 > narrow[0]  # the linear one cannot see a spread


def _rows(sign: float) -> list[dict[str, Any]]:
    """Three seeds; ``sign`` -1: the denoiser is better than the copula, and training better than none."""
    rows = []
    arms = {"training rows": 0.0, "copula": 0.0, "mixture alone": 0.0, "denoiser": sign, "tvae": -sign}
    for arm, moved in arms.items():
        for seed in (1000, 0, 1, 2):
            auc = 0.6 + 0.05 * moved * (1 + 0.1 * (seed % 7)) + 0.01 * (seed % 7)
            nll = None if arm in ("training rows", "tvae") else 30.0 + 2 * moved + 0.1 * (seed % 7) * (1 + 0.1 * moved)
            rows.append({
                "table": "diabetes", "arm": arm, "part": "tried" if seed == 1000 else "auc nll", "seed": seed,
                "setting": "steps 100", "rows": 295, "held": 147, "seconds": 1.0, "auc": auc, "repeated": 0.05,
                "nll": nll,
                "package": "ctgan 0.1" if arm == "tvae" else "",
            })  # fmt: skip
    return rows


def test_section_says_what_the_rows_say(tmp_path: Path) -> None:
    ahead, behind, level = (tables.section(_rows(sign), tmp_path) for sign in (-1.0, 1.0, 0.0))
    assert "auc better: `denoiser`" in ahead.answer
    assert "nll better: `denoiser`" in ahead.answer
    assert "worse: `tvae`" in ahead.answer
    assert "auc better: `tvae`" in behind.answer
    assert "nll worse: `denoiser`" in behind.answer
    assert "no difference seen: `mixture alone`" in level.answer
    assert "ctgan 0.1" in ahead.design
    without = [row for row in _rows(1.0) if row["arm"] != "tvae"]
    assert "not run here" in tables.section(without, tmp_path).design


def test_without_the_package_its_cells_are_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert {cell["arm"] for cell in tables.cells(Settings())} == set(tables.SETTINGS) - {tables.PEER}
    assert "no package ctgan" in capsys.readouterr().err


@pytest.mark.slow
def test_a_cell_runs() -> None:
    quick = Settings(quick=True)
    cell = next(cell for cell in tables.cells(quick) if cell["arm"] == "denoiser")
    rows = tables.run(cell, quick)
    assert {row["part"] for row in rows} >= {"tried"}
    finals = [row for row in rows if row["part"] != "tried"]
    assert {word for row in finals for word in row["part"].split()} == {"auc", "nll"}
    assert all(row["nll"] is None or math.isfinite(row["nll"]) for row in rows)
    assert all(row["auc"] is None or 0 <= row["auc"] <= 1 for row in rows)
