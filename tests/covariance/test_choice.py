"""Which structure `auto` takes: the one that the data is of, among those that can be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ansn import NoiseModel, load_dataset
from ansn.covariance import STRUCTURES, AdaptiveCovariance, choose
from ansn.covariance.choice import rows_wanted, score
from ansn.data import Dataset
from tests.covariance.exact import root_of
from tests.oracles import randn

SHAPE = (3, 6, 6)


def rows(name: str, n: int = 320, seed: int = 0) -> Tensor:
    """Of a structure that is its own: a dense one has a basis that is no product."""
    shape = (108,) if name == "dense" else SHAPE
    root = root_of(STRUCTURES[name](shape), seed)
    if name == "diagonal":  # no axis has a basis for it, and no frequency
        order = torch.randperm(108, generator=torch.Generator().manual_seed(seed))
        root = torch.diag(torch.logspace(0, -2, 108, dtype=torch.float64)[order].sqrt())
    return (randn(n, 108, seed=1) @ root.T).reshape(n, *SHAPE)


@pytest.mark.parametrize("name", STRUCTURES)
def test_it_takes_the_structure_that_the_data_has(name: str) -> None:
    n = 4000 if name == "dense" else 320
    choice = choose(rows(name, n), eps_floor=0.0)
    assert choice.structure == name
    assert choice.rows == n
    assert set(choice.scores) == set(STRUCTURES)
    assert str(choice).startswith(f"{name} (fitted to {3 * n // 4:,} rows, scored on {n // 4:,}, nats/dim, more is")


def test_the_score_is_the_density_written_out() -> None:
    x = rows("separable", 120)
    learned = AdaptiveCovariance(SHAPE, 1, "separable", eps_floor=1e-4, factor_dtype=torch.float64).update(x)
    s = learned.pencil.matrix(learned.pencil.variances())[0] + 12e-4 * torch.eye(108, dtype=torch.float64)
    held = rows("separable", 40, seed=2)
    normal = torch.distributions.MultivariateNormal(learned.center[0], s)
    # The noise that is added to the data in the mean: half the trace of S^-1 v.
    wanted = normal.log_prob(held.flatten(1)).mean() - 0.5 * 12e-4 * torch.linalg.inv(s).trace()
    assert score(learned, held) == pytest.approx(float(wanted) / 108, rel=1e-9)


def test_what_cannot_be_is_told_and_not_taken() -> None:
    x = rows("separable")
    some = choose(x, root="cholesky", eps_floor=0.0)
    assert some.structure == "diagonal"
    assert some.skipped["separable"] == "has no cholesky root"
    small = choose(x, eps_floor=0.0, memory_limit=100_000)
    assert small.skipped["dense"] == "does not fit"
    few = choose(x[:8], eps_floor=0.0)
    assert (few.structure, few.scores) == ("diagonal", {})
    assert choose(x[:1]).structure == "diagonal"


def test_regions_are_scored_each_by_its_own() -> None:
    x = torch.cat((rows("separable", 80), 3.0 + rows("separable", 80, seed=5).flip(2)))
    order = torch.randperm(160, generator=torch.Generator().manual_seed(0))
    region = (torch.arange(160) // 80)[order]
    told, one = choose(x[order], region, 2, eps_floor=0.0), choose(x[order], eps_floor=0.0)
    assert told.structure == "separable"
    assert told.scores["separable"] > one.scores["separable"]
    lopsided = choose(x[order], torch.zeros(160, dtype=torch.int64), 2, eps_floor=0.0)
    assert lopsided.skipped["separable"].startswith("needs ")
    assert "of each region (0 fitted)" in lopsided.skipped["separable"]


def test_of_equal_ones_the_diagonal_is_taken_and_nothing_varies_is_no_error() -> None:
    assert choose(randn(300, 2), eps_floor=0.0).structure == "diagonal"
    assert choose(torch.ones(300, 4), eps_floor=0.0).structure == "diagonal"
    x = randn(100, 3)
    x[90, 1] = float("nan")
    with pytest.raises(ValueError, match="x: got a value that is not finite"):
        choose(x)


def test_the_order_of_the_rows_is_nothing() -> None:
    """Sorted by class, the held-out quarter would be of a class that was not seen."""
    x = torch.cat((rows("separable", 160), 2.0 + rows("separable", 160, seed=5)))
    region = torch.arange(320) // 160
    choice = choose(x, region, 2, eps_floor=0.0)
    assert choice.structure == "separable"
    assert choose(x, eps_floor=0.0).scores["separable"] > -1.0


def test_epochs_of_few_rows_are_no_more_than_these_rows() -> None:
    x = randn(40, 12)
    noise = NoiseModel.for_data(x, "dense", eps_floor=0.0)
    for _ in range(13):
        noise.update(x)
    covariance = noise.covariance
    assert (covariance.seen, covariance.structure.points()) == (520, 38)
    assert bool(covariance.enough()), "38 are needed and 40 are there"
    few = NoiseModel.for_data(x[:30], "dense", eps_floor=0.0)
    for _ in range(13):
        few.update(x[:30])
    assert not bool(few.covariance.freeze().enough())
    assert bool((few.covariance.pencil.l == 1).all())


def test_how_many_rows_it_wants() -> None:
    assert [rows_wanted(d) for d in (2, 3072, 12288, 196608, 10**7)] == [10_000, 10_000, 2730, 170, 64]


@pytest.mark.parametrize("options", [{}, {"rho": 0.0}, {"structure": "cosine"}, {"root": "symmetric"}])
def test_a_noise_model_for_data(options: dict[str, Any]) -> None:
    data = load_dataset("digits")
    noise = NoiseModel.for_data(data, **options)
    assert noise.covariance.structure.name == options.get("structure", "dense")
    assert noise.covariance.seen == 0
    assert noise.covariance.rules.eps_floor == data.quantisation
    assert 1.0 <= (noise.levels.start or 0.0) <= noise.levels.maximum
    x, _ = data.batch(torch.arange(200))
    assert NoiseModel.for_data(x, **options).covariance.shape == (1, 8, 8)
    noise.update(x)


def test_regions_of_a_data_set_go_with_its_rows() -> None:
    """A data set's first rows are not those of its file."""
    labels = torch.arange(400) % 2
    x = (randn(400, 4) * torch.where(labels == 0, 0.01, 1.0).unsqueeze(1)).float()
    data = Dataset(x, name="two scales", labels=labels)
    noise = NoiseModel.for_data(data, "diagonal", region=labels, regions=2)
    same = NoiseModel.for_data(x, "diagonal", region=labels, regions=2, eps_floor=0.0)
    assert noise.levels.start == pytest.approx(same.levels.start, rel=0.2)
    with pytest.raises(ValueError, match=r"^regions: "):
        NoiseModel.for_data(data, region=labels)
    with pytest.raises(ValueError, match=r"^data: "):
        NoiseModel.for_data(torch.zeros(0, 3))
