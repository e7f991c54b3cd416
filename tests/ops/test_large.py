"""More than 2^31 elements: offsets are 64 bits wide, and the last element is as right as the first.

bfloat16 in and out takes 4.3 GB each; skipped, with what is there and what is needed, where memory is short.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from torch import Tensor

from ansn import ops
from tests.native import oracle
from tests.ops.helpers import on

pytestmark = pytest.mark.slow

# The reference works in float64, eight times the memory.
STEP = [name for name in ops.registered("colored_step") if name != "reference"]
LOSS = [name for name in ops.registered("dsm_loss") if name != "reference"]
UPDATE = [name for name in ops.registered("covariance_update_") if name != "reference"]
SHAPES = [(2_100_000, 1023), (1, 2**31 + 5), (2**31 + 9, 1)]  # rows, columns


def need(gigabytes: float) -> None:
    free = psutil.virtual_memory().available / 1e9
    if free < gigabytes:
        pytest.skip(f"{free:.1f} GB of memory are available, {gigabytes} GB are needed")


def run(name: str, call: Callable[[], Any]) -> Any:
    refusals: set[str] = set()
    out = on(name, call, refusals)
    if out is None:
        pytest.skip(f"{name!r} does not run this: {refusals.pop()}")
    return out


def windows(rows: int, cols: int) -> list[tuple[int, int, int]]:
    """(row, first quad, quads) at both ends, around element 2^31, and at places between."""
    quads = (cols + 3) // 4
    flat = [0, 2**31 // cols * quads, rows * quads - 1, 2**31 // cols * quads + 2**31 % cols // 4]
    flat += np.random.default_rng(0).integers(0, rows * quads, 40).tolist()
    places = [(min(at, rows * quads - 1) // quads, min(at, rows * quads - 1) % quads) for at in flat]
    return [(r, max(0, min(q, quads - 64)), min(64, quads)) for r, q in places]


def check(out: Tensor, scale: float) -> None:
    rows, cols = out.shape
    for r, q, count in windows(rows, cols):
        words = oracle.philox_words(11, (5 + r) % 2**32, np.arange(q, q + count), 3, ops.LANGEVIN)
        z = scale * oracle.box_muller(words).ravel()[: cols - 4 * q]
        got = out[r, 4 * q : 4 * q + len(z)].double().numpy()
        np.testing.assert_allclose(got, z, rtol=2**-8, atol=1e-4 * scale, err_msg=f"row {r}, column {4 * q}")


COUNTERS = {"seed": 11, "row": 5, "step": 3, "stream": ops.LANGEVIN}


@pytest.mark.skipif(not STEP, reason="no back end but the reference holds a coloured step")
@pytest.mark.parametrize("name", STEP)
@pytest.mark.parametrize(("rows", "cols"), SHAPES)
def test_colored_step(name, rows, cols):
    need(10)
    x = torch.zeros(rows, cols, dtype=torch.bfloat16)
    check(run(name, lambda: ops.colored_step(x, b=1.0, **COUNTERS)), 1.0)


@pytest.mark.skipif(not LOSS, reason="no back end but the reference holds a loss")
@pytest.mark.parametrize("name", LOSS)
def test_gradient_of_the_loss(name):
    """At a prediction of zero, w = d / 2, it is z."""
    need(10)
    rows, cols = SHAPES[0]
    prediction = torch.zeros(rows, cols, dtype=torch.bfloat16)
    weight = torch.tensor(cols / 2)
    loss, gradient = run(name, lambda: torch.ops.ansn.dsm_loss(prediction, None, weight, *COUNTERS.values()))
    check(gradient, 1.0)
    assert bool((loss > 0).all())
    assert abs(float(loss.mean()) * 2 / cols - 1) < 1e-3


@pytest.mark.skipif(not UPDATE, reason="no back end but the reference holds an update")
@pytest.mark.parametrize("name", UPDATE)
def test_diagonal_update(name):
    """All ones but a last row of threes: mean 1 + 2/n, scatter 4 (1 - 1/n)."""
    need(10)
    rows, cols = SHAPES[0]
    x = torch.ones(rows, cols, dtype=torch.bfloat16)
    x[-1] = 3.0
    state = [torch.zeros(1).double(), torch.zeros(1).double(), *(torch.zeros(1, cols).double() for _ in range(2))]
    run(name, lambda: (ops.covariance_update_(*state, x),))
    expected = torch.ones(1, cols, dtype=torch.float64)
    torch.testing.assert_close(state[2], (1 + 2 / rows) * expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(state[3], 4 * (1 - 1 / rows) * expected, rtol=1e-9, atol=0)
