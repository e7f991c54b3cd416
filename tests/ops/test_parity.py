"""Every operation on every registered back end against ``reference`` in float64, over drawn shapes, dtypes and layouts.

One frame for all: a back end that is registered is tested here with no edit, a new operation with its case below. What
an operation allocates holds NaN before (conftest.py), its inputs may not change, and a second call gives the same bits.
"""

from __future__ import annotations

import importlib.util
import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from ansn import ops
from ansn.ops import _dispatch, reference
from tests.ops.helpers import DTYPES, error_ratio, generator, on, randn, random_axes, random_factor
from tests.tolerances import RATIO

PAIRS = [(operation, name) for operation in ops.operations() for name in ops.registered(operation)]
DIMS = (1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 33, 64, 65)
SHAPES = ((1,), (7,), (64,), (4, 1), (5, 3), (2, 9, 1), (33, 17), (1, 28, 5), (3, 8, 8), (3, 4, 5, 6))
LAYOUTS = ("contiguous", "offset", "rows apart", "columns apart", "transposed", "one row for all", "images")


class Case(NamedTuple):
    """``run`` calls the public function; ``inputs`` are what it may not write; ``compare`` raises where it is wrong."""

    run: Callable[[], tuple[Tensor, ...]]
    inputs: list[Tensor]
    compare: Callable[[tuple[Tensor, ...]], None]


class Draw:
    """The dimensions that every case draws, and tensors of them."""

    def __init__(self, data: st.DataObject, dtypes: tuple[torch.dtype, ...] = DTYPES) -> None:
        self.data = data
        self.dtype = data.draw(st.sampled_from(dtypes), label="dtype")
        self.rows = data.draw(st.sampled_from((0, 1, 2, 5, 9, 33)), label="rows")
        self.dim = data.draw(st.sampled_from(DIMS), label="dim")
        self.regions = data.draw(st.sampled_from((1, 1, 2, 5)), label="regions")
        self.wide = torch.float64 if self.dtype == torch.float64 else torch.float32
        self.inputs: list[Tensor] = []

    def pick(self, *options: Any) -> Any:
        return self.data.draw(st.sampled_from(options))

    def region(self) -> Tensor | None:
        """Owners of the rows; some regions have none."""
        if self.regions == 1:
            return self.pick(None, torch.zeros(self.rows, dtype=torch.int64))
        used = torch.tensor(self.pick(list(range(self.regions)), [self.regions - 1], [0, self.regions - 1]))
        return used[torch.randint(len(used), (self.rows,), generator=generator(self.rows))]

    def batch(self, seed: int, dtype: torch.dtype | None = None) -> Tensor:
        """``[rows, dim]`` in one of the layouts that a caller may bring."""
        layout = self.data.draw(st.sampled_from(LAYOUTS), label="layout")
        x = randn(self.rows, self.dim, seed=seed, dtype=dtype or self.dtype)
        if layout == "offset":  # off every vector's boundary
            x = torch.cat((x.new_zeros(1), x.flatten()))[1:].view(x.shape)
        elif layout == "rows apart":
            x = torch.nn.functional.pad(x, (2, 3), value=float("nan"))[:, 2 : 2 + self.dim]
        elif layout == "columns apart":
            x = torch.stack((x, torch.full_like(x, float("nan"))), 2).flatten(1)[:, ::2]
        elif layout == "transposed":
            x = x.t().contiguous().t()
        elif layout == "one row for all":
            x = randn(1, self.dim, seed=seed, dtype=dtype or self.dtype).expand(self.rows, self.dim)
        elif layout == "images":
            x = x.reshape(self.rows, 1, self.dim, 1)
        self.inputs.append(x)
        return x

    def coefficient(self, value: float) -> float | Tensor | None:
        """Absent, a number, ``[]`` or ``[rows]``; numbers that float32 holds, so that the oracle sees the same."""
        number = float(np.float32(value))
        each = number * torch.linspace(0.5, 1.5, self.rows)
        return self.pick(None, 0, number, torch.tensor(number), each, each.double())

    def axes(self) -> ops.Axes:
        """A basis by axes, which then says how long a row is."""
        shape = self.pick(*SHAPES)
        self.dim = math.prod(shape)
        long = [a for a, n in enumerate(shape) if n > 1]
        chosen, count = self.pick(long, long, long[:1], range(len(shape))), self.pick(1, self.regions)
        q = random_axes(shape, chosen, count, self.pick(self.wide, torch.float64))
        self.inputs += q.bases
        return q

    def each(self, seed: int, of: Callable[[Tensor], Tensor] = lambda t: 0.5 + t.abs(), one: bool = True) -> Tensor:
        """``[K, dim]``, or, where there may be ``one`` for all, ``[1, dim]``."""
        count = self.pick(1, self.regions) if one else self.regions
        self.inputs.append(of(randn(count, self.dim, seed=seed)).to(self.wide))
        return self.inputs[-1]

    def counters(self) -> dict[str, int]:
        return {
            "seed": self.data.draw(st.integers(0, 2**63 - 1)),
            "row": self.pick(0, 5, 2**32 - self.rows),
            "step": self.pick(0, 7, 2**32 - 1),
            "stream": self.pick(ops.PERTURB, ops.LANGEVIN, ops.PRIOR),
        }


def flat64(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.detach().flatten(1).double()


def number64(value: float | Tensor | None) -> Tensor | None:
    """As the public function takes it: 0 is absent; arithmetic below float64 sees a float32 coefficient."""
    if value is None or (not isinstance(value, Tensor) and value == 0):
        return None
    return torch.as_tensor(value).double()


def close(operation: str, got: Tensor, expected: Tensor, dtype: torch.dtype | None = None) -> None:
    assert got.shape == expected.shape
    error = error_ratio(got.detach().reshape(expected.shape), expected.numpy())
    assert error <= RATIO[operation][dtype or got.dtype], f"RMS error {error:.3g}"


def colored_step(data: st.DataObject) -> Case:
    d = Draw(data)
    x, denoised, f = d.batch(1), d.pick(None, d.batch(2)), d.pick(None, d.batch(3))
    shapes = [t for t in (x, denoised, f) if t is not None]
    if any(t.ndim != 2 for t in shapes):  # images beside images only
        x, denoised, f = (None if t is None else t.reshape(d.rows, 1, d.dim, 1) for t in (x, denoised, f))
    kind = d.pick("none", "diagonal", "lower", "full")
    factor = random_factor(kind, d.regions, d.dim, d.wide)
    region = None if factor is None else d.region()
    c, a, b = (d.coefficient(value) for value in (0.125, 0.7, 1.3))
    counters = d.counters()
    expected = reference.colored_step(
        *map(flat64, (x, denoised, f)), *map(number64, (c, a, b)),
        None if factor is None else factor.double(), region, kind != "full", *counters.values(),
    )  # fmt: skip

    def run() -> tuple[Tensor, ...]:
        return (
            ops.colored_step(x, denoised, f, c=c, a=a, b=b, factor=factor, region=region, lower=kind != "full",
                             **counters),
        )  # fmt: skip

    def compare(out: tuple[Tensor, ...]) -> None:
        assert (out[0].shape, out[0].dtype) == (x.shape, d.dtype)
        assert out[0].data_ptr() != x.data_ptr() or not x.numel()
        close("colored_step", out[0].flatten(1), expected)

    return Case(run, [t for t in (x, denoised, f, factor, region, c, a, b) if isinstance(t, Tensor)], compare)


def apply_factor(data: st.DataObject) -> Case:
    d = Draw(data)
    v, kind, region = d.batch(1), d.pick("diagonal", "lower", "full"), d.region()
    factor = random_factor(kind, d.regions, d.dim, d.wide)
    assert factor is not None
    flags = {"transpose": d.pick(False, True), "inverse": d.pick(False, True), "lower": kind != "full"}
    expected = reference.apply_factor(flat64(v), factor.double(), region, *flags.values())

    def compare(out: tuple[Tensor, ...]) -> None:
        assert (out[0].shape, out[0].dtype) == (v.shape, d.dtype)
        close("apply_factor", out[0].flatten(1), expected)

    inputs = [t for t in (v, factor, region) if t is not None]
    return Case(lambda: (ops.apply_factor(v, factor, region, **flags),), inputs, compare)


def covariance_update_(data: st.DataObject) -> Case:
    d = Draw(data, DTYPES[:2])
    x, region = 1.0 + d.batch(1, d.pick(*DTYPES)), d.region()
    dense, decay = d.pick(True, False), d.pick(1.0, 0.9, 0.5)
    above = torch.ones(d.dim, d.dim).triu(1).bool() if dense else torch.zeros(d.dim).bool()
    # A state that has seen two points of some regions, or none of any; NaN where nothing may be read.
    state = [torch.zeros(d.regions).double(), torch.zeros(d.regions).double(), torch.zeros(d.regions, d.dim).double()]
    state.append(torch.zeros(d.regions, d.dim, *([d.dim] if dense else [])).double())
    if d.pick(True, False):
        before = torch.arange(0, 2 * d.regions).remainder(d.regions)[: 2 * d.regions - 1]
        reference.covariance_update_(*state, randn(len(before), d.dim, seed=9), before, 1.0)
    state[2:] = [t.to(d.dtype) for t in state[2:]]
    state[3][:, above] = float("nan")
    wanted = [t.double().clone() for t in state]
    wanted[3] = wanted[3].nan_to_num(0.0)
    wide = x.flatten(1).double()
    owners = torch.zeros(d.rows, dtype=torch.int64) if region is None else region
    reference.covariance_update_(*wanted, wide, owners, decay)

    def run() -> tuple[Tensor, ...]:
        fresh = [t.clone() for t in state]
        ops.covariance_update_(*fresh, x, region, decay=decay)
        return tuple(fresh)

    def compare(out: tuple[Tensor, ...]) -> None:
        limit = RATIO["covariance_update_"][d.dtype]
        for got, expected in zip(out[:2], wanted, strict=False):
            torch.testing.assert_close(got, expected, rtol=1e-12, atol=0.0)
        close("covariance_update_", out[2], wanted[2])
        assert bool(out[3][:, above].isnan().all()), "above the diagonal something was written"
        error = (out[3].double() - wanted[3])[:, ~above].abs()
        assert bool(torch.isfinite(error).all())
        # Rows that are all equal have no scatter: what rounding leaves is small beside their squares.
        floor = 1e-6 * float(wide.square().sum(0).max()) if d.rows else 0.0
        size = wanted[3].flatten(1).abs().amax(1, keepdim=True).clamp(min=max(floor, 1e-9))
        assert bool((error.flatten(1) <= limit * size).all()), f"scatter off by {float(error.max()):.3g}"

    return Case(run, [t for t in (x, region) if t is not None], compare)


def symmetric(d: Draw, count: int, bad: bool) -> tuple[Tensor, Tensor]:
    """Well conditioned ``[count, d, d]`` with NaN above the diagonal, and which of them are positive definite."""
    root = random_factor("lower", count, d.dim, torch.float64, seed=5)
    assert root is not None
    matrix, good = root @ root.mT, torch.ones(count).bool()
    if bad and count > 1:
        matrix[1, d.dim // 2, d.dim // 2] = -1.0
        good[1] = False
    above = torch.ones(d.dim, d.dim).triu(1).bool()
    return torch.where(above, float("nan"), matrix).to(d.wide), good


def compare_factors(d: Draw, matrix: Tensor, good: Tensor, factor: Tensor, info: Tensor) -> None:
    assert (factor.shape, factor.dtype, info.dtype) == (matrix.shape, matrix.dtype, torch.int32)
    assert info.tolist() == torch.where(good, 0, d.dim // 2 + 1).tolist()
    assert torch.equal(factor[good], factor[good].tril()), "above the diagonal something is not zero"
    wide, lower = factor[good].double(), matrix[good].double().tril()
    close("cholesky", (wide @ wide.mT).tril(), lower, matrix.dtype)


def cholesky(data: st.DataObject) -> Case:
    d = Draw(data, DTYPES[:2])
    matrix, good = symmetric(d, d.pick(0, 1, 2, 5, 17), d.pick(True, False))
    return Case(
        lambda: ops.cholesky(matrix), [matrix], lambda out: compare_factors(d, matrix, good, out[0], out[1])
    )


def dsm_loss(data: st.DataObject) -> Case:
    d = Draw(data)
    prediction, target = d.batch(1).contiguous(), d.pick(None, d.batch(2))
    if target is not None:
        target = target.reshape(prediction.shape)
    each = torch.linspace(0.5, 2.0, d.rows)
    weight = d.pick(0.5, torch.tensor(0.25), each, each.double())
    counters = d.counters()
    loss, slope = reference.dsm_loss(flat64(prediction), flat64(target), number64(weight), *counters.values())

    def run() -> tuple[Tensor, ...]:
        leaf = prediction.detach().clone().requires_grad_()
        out = ops.dsm_loss(leaf, target, weight=weight, **counters)
        return out.detach(), *torch.autograd.grad(out.sum(), leaf)

    def compare(out: tuple[Tensor, ...]) -> None:
        assert (out[0].dtype, out[1].dtype) == (d.wide, d.dtype)
        close("dsm_loss", out[0], loss)
        close("dsm_loss", out[1].flatten(1), slope)

    return Case(run, [t for t in (prediction, target, weight) if isinstance(t, Tensor)], compare)


def basis64(q: ops.Axes) -> tuple[list[Tensor], Sequence[int], Sequence[int]]:
    return [basis.double() for basis in q.bases], q.axes, q.shape


def separable_apply(data: st.DataObject) -> Case:
    d = Draw(data)
    q, region = d.axes(), d.region()
    v, weights, center = d.batch(1), d.pick(None, d.each(2)), d.pick(None, d.each(3, lambda t: t))
    flags = {"inward": d.pick(False, True), "outward": d.pick(False, True), "rest": d.pick(False, True)}
    tau = None if weights is None else d.coefficient(0.7)
    level = None if tau is None else torch.as_tensor(tau).double().square()
    wide = (None if t is None else t.double() for t in (center, weights))
    expected = reference.separable_apply(flat64(v), *wide, level, region, *flags.values(), *basis64(q))

    def compare(out: tuple[Tensor, ...]) -> None:
        assert (out[0].shape, out[0].dtype) == (v.shape, d.dtype)
        close("separable_apply", out[0].flatten(1), expected)

    inputs = [*d.inputs, *(t for t in (region, tau) if isinstance(t, Tensor))]
    return Case(
        lambda: (ops.separable_apply(v, q, weights=weights, tau=tau, center=center, region=region, **flags),),
        inputs, compare,
    )  # fmt: skip


def separable_step(data: st.DataObject) -> Case:
    d = Draw(data)
    q, region, deviation = d.axes(), d.region(), d.each(4)
    x, denoised, f = (t.flatten(1) for t in (d.batch(1), d.batch(2), d.batch(3)))
    denoised, f = d.pick(None, denoised), d.pick(None, f)
    c, a, b = (d.coefficient(value) for value in (0.125, 0.7, 1.3))
    counters = d.counters()
    expected = reference.separable_step(
        *map(flat64, (x, denoised, f)), *map(number64, (c, a, b)), deviation.double(), region, *basis64(q),
        *counters.values(),
    )  # fmt: skip
    known = {"q": q, "deviation": deviation, "region": region, "c": c, "a": a, "b": b}

    def compare(out: tuple[Tensor, ...]) -> None:
        assert (out[0].shape, out[0].dtype) == (x.shape, d.dtype)
        close("separable_step", out[0], expected)

    inputs = [*d.inputs, *(t for t in (region, c, a, b) if isinstance(t, Tensor))]
    return Case(lambda: (ops.separable_step(x, denoised, f, **known, **counters),), inputs, compare)


def separable_update_(data: st.DataObject) -> Case:
    d = Draw(data, DTYPES[:2])
    q, region = d.axes(), d.region()
    x, decay = 1.0 + d.batch(1, d.pick(*DTYPES)), d.pick(1.0, 0.9, 0.5)
    sizes = [(d.dim,), (d.dim,), *((q.shape[a], q.shape[a]) for a in (q.axes if d.pick(True, False) else ()))]
    state = [torch.zeros(d.regions, *size).double() for size in ((), (), *sizes)]
    if d.pick(True, False):  # it has seen two points of some regions
        before = torch.arange(0, 2 * d.regions).remainder(d.regions)[: 2 * d.regions - 1]
        rows = randn(len(before), d.dim, seed=9)
        reference.separable_update_(*state[:4], state[4:], rows, before, *basis64(q), 1.0)
    state[2:] = [t.to(d.dtype) for t in state[2:]]
    wanted = [t.double().clone() for t in state]
    owners = torch.zeros(d.rows, dtype=torch.int64) if region is None else region
    reference.separable_update_(*wanted[:4], wanted[4:], flat64(x), owners, *basis64(q), decay)

    def run() -> tuple[Tensor, ...]:
        fresh = [t.clone() for t in state]
        ops.separable_update_(*fresh[:4], fresh[4:], x, q, region, decay=decay)
        return tuple(fresh)

    def compare(out: tuple[Tensor, ...]) -> None:
        for got, expected in zip(out[:2], wanted, strict=False):
            torch.testing.assert_close(got, expected, rtol=1e-12, atol=0.0)
        for got, expected in zip(out[2:], wanted[2:], strict=True):
            close("separable_update_", got, expected)

    return Case(run, [*d.inputs, *(t for t in (region,) if t is not None)], compare)


def mixture(data: st.DataObject) -> Case:
    d = Draw(data)
    q, x = d.axes(), d.batch(1)
    center, variances = d.each(2, lambda t: t, False), d.each(3, lambda t: t.square(), False)
    shares = torch.softmax(randn(d.regions, seed=4), 0).log()
    sigma2 = d.pick(torch.tensor(0.5), torch.linspace(0.01, 4.0, d.rows)).to(d.wide)
    wide = center.double(), variances.double(), shares, sigma2.double()
    expected = reference.mixture(flat64(x), *wide, True, *basis64(q))

    def compare(out: tuple[Tensor, ...]) -> None:
        assert (out[0].shape, out[0].dtype) == (x.shape, d.dtype)
        close("mixture", out[0].flatten(1), expected[0])
        close("mixture", out[1], expected[1], d.wide)
        assert torch.equal(out[1], out[2]), "without the denoiser the logarithms are others"

    def run() -> tuple[Tensor, ...]:
        return *ops.mixture(x, q, center, variances, shares, sigma2), ops.mixture(
            x, q, center, variances, shares, sigma2, denoise=False
        )[1]

    return Case(run, [*d.inputs, shares, sigma2], compare)


CASES: dict[str, Callable[[st.DataObject], Case]] = {
    "colored_step": colored_step,
    "apply_factor": apply_factor,
    "covariance_update_": covariance_update_,
    "cholesky": cholesky,
    "dsm_loss": dsm_loss,
    "separable_apply": separable_apply,
    "separable_step": separable_step,
    "separable_update_": separable_update_,
    "mixture": mixture,
}


def bits(tensors: tuple[Tensor, ...] | list[Tensor]) -> list[bytes]:
    # A copy: one element apart from its neighbour counts as contiguous, but has no view as bytes.
    return [torch.cat([t.detach().flatten()]).view(torch.uint8).numpy().tobytes() for t in tensors]


def agree(operation: str, name: str, examples: int, shrink: bool = True) -> None:
    """``examples`` drawn calls of ``operation`` on back end ``name``; skips, with the reason, where it runs none."""
    if name == "triton" and os.environ.get("TRITON_INTERPRET") == "1":
        examples = max(12, examples // 10)  # the interpreter takes a hundred times as long
    ran, refusals = [0], set()
    phases = (Phase.generate, Phase.shrink) if shrink else (Phase.generate,)

    @settings(max_examples=examples, deadline=None, derandomize=True, database=None, phases=phases,
              report_multiple_bugs=False, suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(data=st.data())
    def every_call(data: st.DataObject) -> None:
        case = CASES[operation](data)
        before = bits(case.inputs)
        out = on(name, case.run, refusals)
        if out is None:
            return
        ran[0] += 1
        assert bits(case.inputs) == before, "an input was written"
        case.compare(out)
        again = on(name, case.run)
        assert again is not None
        assert bits(again) == bits(out), "a second call gave other bits"

    every_call()
    if not ran[0]:
        pytest.skip(f"{operation} ran nothing on {name!r}: {'; '.join(sorted(refusals)[:3])}")


def test_every_operation_has_a_case():
    assert set(CASES) >= set(ops.operations())


@pytest.mark.parametrize(("operation", "name"), PAIRS)
def test_back_end_equals_the_reference_in_float64(operation, name):
    agree(operation, name, 120)


@pytest.mark.slow
@pytest.mark.parametrize(("operation", "name"), PAIRS)
def test_back_end_equals_the_reference_in_float64_at_length(operation, name):
    agree(operation, name, 1500)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="the package triton is not there")
def test_triton_under_the_interpreter():
    """The tests above in another process: the interpreter is chosen before Triton is imported."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not slow", "-k", "triton", __file__]
    env = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout, done.stdout


# -- the frame itself sees what it is there for


def replaced(monkeypatch: pytest.MonkeyPatch, function: Callable[..., Any]) -> None:
    """A wrong kernel in place of the reference's coloured step, for the dispatcher only."""
    monkeypatch.setitem(_dispatch._table["colored_step"], "reference", (function, lambda *_: None))


def test_new_memory_holds_nan():
    for fresh in (torch.empty(5), torch.empty_like(torch.ones(3, 2).half()), torch.ones(2).new_empty(4).double()):
        assert bool(fresh.isnan().all())


def test_an_element_left_unwritten_is_seen(monkeypatch):
    def all_but_the_last(x: Tensor, *args: Any) -> Tensor:
        out = torch.empty_like(x)
        out.flatten()[:-1] = reference.colored_step(x, *args).flatten()[:-1]
        return out

    replaced(monkeypatch, all_but_the_last)
    with pytest.raises(AssertionError, match="RMS error inf"):
        agree("colored_step", "reference", 30, shrink=False)


def test_a_write_to_an_input_is_seen(monkeypatch):
    def in_place(x: Tensor, *args: Any) -> Tensor:
        out = reference.colored_step(x, *args)
        x.zero_()
        return out

    replaced(monkeypatch, in_place)
    with pytest.raises(AssertionError, match="an input was written"):
        agree("colored_step", "reference", 30, shrink=False)


def test_an_error_of_a_thousandth_is_seen(monkeypatch):
    replaced(monkeypatch, lambda x, *args: 1.001 * reference.colored_step(x, *args))
    with pytest.raises(AssertionError, match="RMS error"):
        agree("colored_step", "reference", 30, shrink=False)
