"""The separable step, filter and mixture in Triton, interpreted, against NumPy in float64 with Q as one matrix."""

from __future__ import annotations

import math
import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ansn import ops
from tests.ops.helpers import error_ratio, generator, numpy_step, randn
from tests.tolerances import RATIO

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("these run under TRITON_INTERPRET=1, which has to be set first", allow_module_level=True)

from ansn.kernels import mixture, separable

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Three axes with a basis each, one without in front, in the middle and at the end, one point; beside 16, 32 and 64.
FORMS = [
    ((3, 9, 12), (0, 1, 2)), ((2, 5, 3), (0, 1, 2)), ((1, 8, 8), (1, 2)), ((5, 4, 7), (1, 2)), ((7, 17), (1,)),
    ((4, 6), (0, 1)), ((6, 10), (0,)), ((5, 1, 9), (0, 2)), ((3, 6, 4), (0, 2)), ((2, 3, 33), (2,)), ((20,), (0,)),
    ((5, 2), ()),
]  # fmt: skip


@pytest.fixture(autouse=True)
def poison():
    """What torch.empty gives is NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def bases_of(shape, axes, regions, dtype=torch.float32):
    """One orthonormal matrix an axis and region, the first axis' of one region for all."""
    sizes = [(1 if i == 0 and len(axes) > 1 else regions, shape[a]) for i, a in enumerate(axes)]
    return [torch.linalg.qr(randn(k, n, n, seed=n))[0].to(dtype) for k, n in sizes]


def matrices(bases, axes, shape, regions):
    """Q of each region, float64 ``[K, d, d]``."""
    found = []
    for k in range(regions):
        q = np.eye(1)
        for a, n in enumerate(shape):
            basis = bases[axes.index(a)] if a in axes else None
            q = np.kron(q, np.eye(n) if basis is None else basis[k % len(basis)].double().numpy())
        found.append(q)
    return np.stack(found)


def allowed(operation, dtype):
    return RATIO[operation][dtype] * (2 if dtype == torch.bfloat16 else 1)  # the interpreter cuts


def drawn(data):
    """Rows, axes and regions, the third without any row."""
    (shape, axes), regions = data.draw(st.sampled_from(FORMS)), data.draw(st.sampled_from([1, 3]))
    rows, dtype = data.draw(st.sampled_from([0, 1, 5])), data.draw(st.sampled_from(DTYPES))
    bases = bases_of(shape, axes, regions, data.draw(st.sampled_from([torch.float32, torch.float64])))
    region = torch.randint(2, (rows,), generator=generator(rows)) if regions > 1 else None
    return shape, axes, regions, rows, dtype, bases, region


@settings(max_examples=12, deadline=None, derandomize=True)
@given(data=st.data())
def test_apply_equals_the_formula(data):
    shape, axes, regions, rows, dtype, bases, region = drawn(data)
    dim = math.prod(shape)
    inward, outward, rest, per_row = (data.draw(st.booleans()) for _ in range(4))
    v, center, weights = randn(rows, dim).to(dtype), randn(regions, dim, seed=1), randn(regions, dim, seed=2).square()
    center = center.float() if data.draw(st.booleans()) else None
    how = data.draw(st.sampled_from(["none", "given", "tau"]))
    tau2 = 0.1 + torch.rand(rows if per_row else (), generator=generator(3))
    given_weights, given_tau2 = None if how == "none" else weights.float(), tau2 if how == "tau" else None
    found = separable.form(axes, shape)
    out = separable.separable_apply(v, center, given_weights, given_tau2, region, inward, outward, rest, bases, found)
    owner = np.zeros(rows, np.int64) if region is None else region.numpy()
    q, y = matrices(bases, axes, shape, regions)[owner], v.double().numpy()
    y = y if center is None else y - center.double().numpy()[owner]
    y = np.einsum("bji,bj->bi", q, y) if inward else y
    w = weights.float().double().numpy()[owner]
    y = y if how == "none" else y * w if how == "given" else y / (w / tau2.double().numpy().reshape(-1, 1) + 1)
    y = np.einsum("bij,bj->bi", q, y) if outward else y
    assert out.dtype == dtype
    assert error_ratio(out, v.double().numpy() - y if rest else y) <= allowed("separable_apply", dtype)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(data=st.data())
def test_step_equals_the_formula(data):
    """Any terms; quads within a line, and across lines; the noise of rows that wrap."""
    shape, axes, regions, rows, dtype, bases, region = drawn(data)
    dim = math.prod(shape)
    x, denoised, f = (randn(rows, dim, seed=i).to(dtype) for i in range(3))
    terms, per_row = data.draw(st.sampled_from(["b", "a", "ab", "cb", "cab", "c"])), data.draw(st.booleans())
    value = {
        n: 0.25 + torch.rand(rows if per_row else (), generator=generator(i)) if n in terms else None
        for i, n in enumerate("cab")
    }
    deviation = (0.5 + randn(regions, dim, seed=5).abs()).float()
    counter = {"seed": 2**40 + 5, "row": 2**32 - 3, "step": 3_000_000_000, "stream": 1}
    given_terms = (denoised if "c" in terms else None, f if "a" in terms else None)
    found = separable.form(axes, shape)
    out = separable.separable_step(
        x, *given_terms, *value.values(), deviation, region, bases, found, *counter.values()
    )  # fmt: skip
    factor = torch.from_numpy(matrices(bases, axes, shape, regions)) * deviation.double().unsqueeze(1)
    numbers = {k: None if v is None else v.double().numpy() for k, v in value.items()}
    wanted = numpy_step(x, *given_terms, **numbers, factor=factor, region=region, **counter)
    assert out.dtype == dtype
    assert error_ratio(out, wanted) <= allowed("separable_step", dtype)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(data=st.data())
def test_mixture_equals_the_formula(data):
    """Noise that tells regions apart and noise that does not; a region of weight 0; coordinates without variance."""
    shape, axes, regions, rows, dtype, bases, _ = drawn(data)
    dim, denoise, first_empty = math.prod(shape), data.draw(st.booleans()), data.draw(st.booleans())
    x, center = randn(rows, dim).to(dtype), randn(regions, dim, seed=1).float()
    variances = randn(regions, dim, seed=2).square().float() * (torch.arange(dim) % 5 > 0)
    weights = torch.full((regions,), 1.0 / regions, dtype=torch.float64)
    if regions > 1:
        weights[0 if first_empty else 1] = 0
    sigma = data.draw(st.sampled_from([0.05, 1.0, 30.0]))
    sigma2 = torch.full((rows,) if data.draw(st.booleans()) else (), sigma**2)
    known = x, center, variances, weights.log(), sigma2, denoise, bases, separable.form(axes, shape)
    out, logs = mixture.mixture(*known)
    q, wide = matrices(bases, axes, shape, regions), x.double().numpy()
    total = variances.double().numpy() + float(torch.tensor(sigma**2))
    c = np.einsum("kji,kbj->kbi", q, wide - center.double().numpy()[:, None])
    with np.errstate(divide="ignore"):
        prior = np.log(weights.numpy())[:, None]
    wanted = prior - 0.5 * (c**2 / total[:, None] + np.log(total)[:, None]).sum(2)
    assert (logs.dtype, out.dtype) == (torch.float64, dtype)
    sound = weights > 0
    assert bool((logs[~sound] == -math.inf).all())
    assert error_ratio(logs[sound], wanted[sound.numpy()]) <= 1e-5
    if not denoise:
        assert out.numel() == 0
        return
    # At equal logarithms, so that what is compared is the sum and not the rounding of large numbers in an exponent.
    at = logs.numpy()
    share = np.exp(at - at.max(0, initial=-np.inf, keepdims=True))
    share /= share.sum(0)
    back = np.einsum("kij,kbj->bi", q, share[..., None] * sigma**2 / total[:, None] * c)
    assert error_ratio(out, wide - back) <= allowed("mixture", dtype)


@pytest.mark.parametrize(("shape", "axes", "regions"), [((3, 32, 32), (0, 1, 2), 2), ((1, 28, 28), (1, 2), 1)])
def test_a_row_is_the_same_in_any_batch(monkeypatch, shape, axes, regions):
    """Up to rounding also in a block that other rows share; the noise is the row's."""
    dim, bases, found = math.prod(shape), bases_of(shape, axes, regions), separable.form(axes, shape)
    x, weights = randn(6, dim, dtype=torch.float32), randn(regions, dim, seed=1, dtype=torch.float32)
    region = torch.arange(6) % regions
    b = torch.ones(())

    def both(part, row):
        filtered = separable.separable_apply(
            x[part], None, weights, None, region[part], True, True, True, bases, found
        )  # fmt: skip
        drawn = separable.separable_step(
            x[part], None, None, None, None, b, weights, region[part], bases, found, 3, row, 5, 0
        )  # fmt: skip
        return filtered, drawn

    whole = both(slice(None), 100)
    monkeypatch.setattr(separable, "PROGRAMS", 1)
    shared = separable.blocks_of(found, 6, regions > 1)[0]["CP"]
    assert shared == (4 if shape[0] == 3 or regions == 1 else 1)
    for mine, other in zip(both(slice(3, 5), 103), whole, strict=True):
        torch.testing.assert_close(mine, other[3:5], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("axes", "shape", "sizes", "places"),
    [
        ((0, 1, 2), (3, 32, 32), (3, 32, 32), (0, 1, 2)),
        ((1, 2), (1, 28, 28), (1, 28, 28), (None, 0, 1)),
        ((2,), (5, 6, 7), (30, 1, 7), (None, None, 0)),
        ((0, 3), (9, 2, 3, 5), (9, 6, 5), (0, None, 1)),
        ((0,), (40, 1), (1, 1, 40), (None, None, 0)),
        ((), (3, 1000), (3000, 1, 1), (None, None, None)),
    ],
)
def test_the_form_of_rows(axes, shape, sizes, places):
    found = separable.form(axes, shape)
    if axes == (0, 3):
        assert found is None  # three axes, the first with a basis and of more than 4 points
    else:
        assert found == (sizes, places)


@pytest.mark.parametrize(
    ("shape", "axes", "mixed"),
    [
        ((2, 65), (1,), False),
        ((5, 6, 7), (0, 1, 2), False),
        ((2, 2, 2, 2), (0, 1, 2, 3), False),
        ((9, 64, 64), (1, 2), True),
    ],
)
def test_what_it_does_not_take_is_said_and_is_the_reference_s(shape, axes, mixed):
    q, dim = ops.Axes(bases_of(shape, axes, 1), axes, shape), math.prod(shape)
    x, one = randn(1, dim, dtype=torch.float32), torch.ones(1, dim)

    def run():
        if mixed:
            return ops.mixture(x, q, one, one, torch.zeros(1).double(), torch.ones(()))
        return ops.separable_step(x, q=q, deviation=one, b=1.0)

    with ops.backend("triton"), pytest.raises(RuntimeError, match="cannot run on back end 'triton': rows of the axes"):
        run()
    with ops.backend("auto"):
        run()
