"""Calls that go straight to the back end, and those that torch's dispatcher has to see."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ansn import ops
from ansn.ops import _dispatch
from tests.ops.helpers import randn, random_factor
from tests.tolerances import rms_ratio


class Seen(TorchDispatchMode):
    """Names of the operations that a mode is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


def everything() -> tuple[torch.Tensor, ...]:
    x, factor = randn(4, 3, dtype=torch.float32), random_factor("lower", 1, 3)
    draw = ops.colored_step(x, 2 * x, c=0.25, b=1, factor=factor, seed=3)
    return draw, ops.apply_factor(x, factor), ops.dsm_loss(x, weight=0.5), *ops.cholesky(factor @ factor.mT)


def test_what_has_to_see_a_call_sees_it_and_changes_nothing():
    plain = everything()
    with Seen() as seen:
        modal = everything()
    with torch.profiler.profile() as profile:
        profiled = everything()
    names = {f"ansn::{name}" for name in ("colored_step", "apply_factor", "dsm_loss", "cholesky")}
    assert names <= set(seen.names)
    assert names <= {event.name for event in profile.events()}
    for others in (modal, profiled):
        for a, b in zip(plain, others, strict=True):
            assert torch.equal(a, b)


def test_nothing_that_runs_by_itself_is_shown():
    """The calls that are plain do not pass torch's dispatcher, whose time is that of a small operation."""
    x = torch.ones(2, 3)
    assert _dispatch.direct((x, None, 0.5, torch.nn.Parameter(x)))
    with torch.autocast("cpu", torch.bfloat16):
        assert not _dispatch.direct((x,))
    with ops.backend("triton"):
        assert not _dispatch.direct((x,))
    assert not _dispatch.direct((x.to("meta"),))
    assert not _dispatch.direct((x.as_subclass(type("Mine", (torch.Tensor,), {})),))


@pytest.mark.parametrize("name", ["auto", "reference"])
def test_a_sign_that_is_pending_counts(name):
    x = torch.complex(torch.zeros(1, 1), torch.ones(1, 1)).conj().imag
    assert x.is_neg()
    with ops.backend(name):
        assert float(ops.colored_step(x)) == -1.0
        assert float(ops.colored_step(torch.zeros(1, 1), torch.ones(1, 1), c=x[0, 0])) == -1.0


@pytest.mark.parametrize("name", ["auto", "reference"])
def test_a_number_is_the_tensor_of_it(name):
    """On either way to the back end, in float64 too."""
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        x, denoised = randn(5, 7, dtype=dtype), randn(5, 7, seed=1, dtype=dtype)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        with ops.backend(name):
            numbers = ops.colored_step(x, denoised, denoised, c=0.1, a=0.2, b=0.3, seed=3)
            values = {n: torch.tensor(v, dtype=wide) for n, v in (("c", 0.1), ("a", 0.2), ("b", 0.3))}
            assert rms_ratio(ops.colored_step(x, denoised, denoised, **values, seed=3), numbers) < 1e-7
