"""Recipe: averages of a given width, unit weights, sentences that follow the rows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import ansn
from experiments import recipe as claim
from experiments.lab.claim import Row, Settings


@pytest.mark.parametrize(("width", "gamma"), [(0.05, 16.97), (0.10, 6.94)])
def test_exponents_are_those_of_edm2(width: float, gamma: float) -> None:
    assert claim.exponent(width) == pytest.approx(gamma, abs=0.005)


def test_the_trainers_averages_have_the_presets_width() -> None:
    """Up to their decay they are ``min(ema, (1 + step) / (10 + step))``: a power function of exponent 8."""
    assert claim.exponent(claim.PRESET) == pytest.approx(8.0, abs=0.2)


@pytest.mark.parametrize("gamma", [1.0, 6.94])
def test_an_average_weighs_by_a_power_of_the_step(gamma: float) -> None:
    values = torch.randn(400, dtype=torch.float64)
    kept = torch.zeros((), dtype=torch.float64)
    for count, value in enumerate(values):
        kept = claim._averaged(gamma, kept, value, count)
    weights = torch.arange(1, 401, dtype=torch.float64) ** gamma
    assert float(kept) == pytest.approx(float((weights * values).sum() / weights.sum()), abs=0.02)


def test_unit_weights_keep_what_begins_as_zero() -> None:
    torch.manual_seed(0)
    network = ansn.networks.UNet(1, 16, multipliers=(1, 2), stem_stride=2)
    raw = claim.force_unit(network)
    x, level = torch.randn(3, 1, 8, 8), torch.zeros(3)
    assert torch.equal(network(x, level), torch.zeros_like(x))
    network(x, level).sum().backward()
    with torch.no_grad():
        for v in raw:
            v.mul_(3.0)
    claim._normalise(raw)
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear) and parametrize.is_parametrized(m)]
    norms = [layer.weight.flatten(1).norm(dim=1) for layer in layers]
    assert len(norms) == len(raw) > 10
    assert all(bool((n == 0).all()) or bool((n - 1).abs().max() < 1e-5) for n in norms)
    assert {bool((n == 0).all()) for n in norms} == {True, False}


def test_sentences_follow_the_rows(tmp_path: Path) -> None:
    rows: list[Row] = []
    for arm, by in zip(claim.ARMS, (0.0, -1.0, 1.0, 0.0), strict=True):
        for width in claim.LENGTHS if arm == claim.CONTROL else (claim.PRESET,):
            for seed in range(3):
                value = 9.0 + by + 0.01 * seed * (1 + by)
                rows.append({"arm": arm, "seed": seed, "width": width, "lr": 1e-3, "fd": value, "fd_floor": 1.7,
                             "loss": value})  # fmt: skip
    found = claim.section(rows, tmp_path)
    assert "better: learned weight (-1" in found.answer
    assert "worse: unit weights (1" in found.answer
    assert len(found.tables[0][1].splitlines()) == 2 + len(claim.ARMS) + len(claim.LENGTHS) - 1


def test_without_data_there_is_nothing_to_run() -> None:
    assert claim.cells(Settings()) == []
