"""Levels of training: one call in C++, a composition elsewhere, and what they are a function of."""

from __future__ import annotations

import math

import pytest
import torch

from ansn import ops
from tests.tolerances import RATIO, rms_ratio

LADDER = torch.tensor([4.0, 2.0, 1.0, 0.5])
LAWS = {"a rung": None, "lognormal": (-0.5, 1.2, 0.5, 4.0)}


@pytest.mark.parametrize("law", LAWS)
def test_every_back_end_draws_the_same(law):
    wanted = ops.levels(LADDER.double(), 4000, LAWS[law], seed=3, row=7, step=2**32 - 1)
    for name in ("auto", "reference"):
        with ops.backend(name):
            got = ops.levels(LADDER, 4000, LAWS[law], seed=3, row=7, step=2**32 - 1)
        assert got.dtype == torch.float32
        assert rms_ratio(got, wanted) < RATIO["colored_step"][torch.float32]


@pytest.mark.parametrize("law", LAWS)
def test_a_row_does_not_know_its_batch(law):
    whole = ops.levels(LADDER, 50, LAWS[law], seed=1, row=10, step=4)
    assert torch.equal(ops.levels(LADDER, 5, LAWS[law], seed=1, row=30, step=4), whole[20:25])
    assert not torch.equal(ops.levels(LADDER, 50, LAWS[law], seed=1, row=10, step=5), whole)
    assert ops.levels(LADDER, 0, LAWS[law]).shape == (0,)


def test_the_laws():
    """Rungs are equally likely; the logarithm is normal between the ends, which hold what is beyond them."""
    counts = torch.bincount((4.0 / ops.levels(LADDER, 40000)).log2().long(), minlength=4)
    assert bool(((counts - 10000).abs() < 400).all())
    tau = ops.levels(LADDER, 40000, (-0.5, 1.2, 1e-3, 1e3), seed=2).double().log()
    assert abs(float(tau.mean()) + 0.5) < 4 * 1.2 / 200
    assert abs(float(tau.std()) - 1.2) < 4 * 1.2 / math.sqrt(2 * 40000)
    clipped = ops.levels(LADDER, 400, (-0.5, 1.2, 0.5, 4.0), seed=2)
    assert (float(clipped.min()), float(clipped.max())) == (0.5, 4.0)


def test_a_compiled_draw_follows_the_step():
    torch._dynamo.reset()
    graph = torch.compile(lambda step: ops.levels(LADDER, 6, LAWS["lognormal"], step=step), fullgraph=True,
                          backend="aot_eager")  # fmt: skip
    for step in (0, 1, 5):
        assert rms_ratio(graph(step), ops.levels(LADDER, 6, LAWS["lognormal"], step=step)) < 1e-6


def test_wrong_counters_are_named():
    with pytest.raises(ValueError, match=r"step: got -1, expected"):
        ops.levels(LADDER, 3, step=-1)
