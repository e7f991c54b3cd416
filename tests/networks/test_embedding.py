"""The embedding of the level and the class."""

from __future__ import annotations

import math

import pytest
import torch

from ansn.networks.embedding import ConditionEmbedding, LevelFeatures

# log(tau)/4 for tau from 1e-3 to 1e3
LEVELS = torch.linspace(math.log(1e-3) / 4, math.log(1e3) / 4, 400)


def test_features_are_the_formula():
    out = LevelFeatures(6)(torch.tensor([0.3], dtype=torch.float64))
    angles = [0.3 * w for w in (0.5, 4.0, 32.0)]
    expected = [math.sqrt(2) * f(a) for f in (math.cos, math.sin) for a in angles]
    torch.testing.assert_close(out[0], torch.tensor(expected, dtype=torch.float64))


def test_features_have_unit_mean_square_and_need_no_random_numbers():
    state = torch.get_rng_state()
    out = LevelFeatures(64)(LEVELS)
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(out.square().mean(1), torch.ones(len(LEVELS)))


def test_no_two_levels_look_alike():
    out = LevelFeatures(64)(LEVELS)
    distance = torch.cdist(out, out)
    # Far levels stay apart: no wave pattern returns to itself anywhere in the range.
    apart = (LEVELS[:, None] - LEVELS[None]).abs() > 0.05
    assert distance[apart].min() > 1.0
    # Close levels stay close: the features are smooth enough to interpolate between the rungs of a ladder.
    assert distance.diagonal(1).max() < 2.0


def test_features_carry_no_state():
    assert LevelFeatures(8).state_dict() == {}


def test_widths_that_cannot_be_halved_are_refused():
    for dim in (3, 2, 7):
        with pytest.raises(ValueError, match=rf"^dim: got {dim}, expected an even number"):
            LevelFeatures(dim)


def test_embedding_of_nothing_is_refused():
    with pytest.raises(ValueError, match=r"^level, num_classes: got neither"):
        ConditionEmbedding(8, level=False, num_classes=None)
