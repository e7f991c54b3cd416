"""The coloured step: every back end against the formula in float64, gradients, counters, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ansn import ops
from ansn.ops import reference
from tests.native import oracle
from tests.ops.helpers import (
    DTYPES,
    back_ends,
    error_ratio,
    generator,
    needs_native,
    numpy_step,
    on,
    one_line,
    randn,
    random_axes,
    random_factor,
)
from tests.tolerances import NORMALS, RATIO

KINDS = ("none", "diagonal", "lower", "full")


@settings(max_examples=120, deadline=None, derandomize=True)
@given(data=st.data())
def test_every_back_end_equals_the_formula(data):
    """Any shape, subset of the terms, coefficient shape, factor, number of regions and dtype."""
    dtype = data.draw(st.sampled_from(DTYPES))
    rows, dim = data.draw(st.integers(0, 9)), data.draw(st.integers(1, 37))
    kind, regions = data.draw(st.sampled_from(KINDS)), data.draw(st.integers(1, 4))
    x, denoised, f = (randn(rows, dim, seed=s, dtype=dtype) for s in (1, 2, 3))
    # Numbers that float32 holds, so that the oracle sees the coefficients that the back end gets.
    options = {
        name: data.draw(
            st.sampled_from([None, 0, float(np.float32(value)), torch.tensor(value), torch.full((rows,), value)])
        )
        for name, value in (("c", 0.125), ("a", 0.7), ("b", 1.3))
    }
    for tensor in options.values():
        if isinstance(tensor, torch.Tensor) and tensor.ndim == 1:
            tensor.mul_(torch.linspace(0.5, 1.5, rows))
    factor_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    factor = random_factor(kind, regions, dim, factor_dtype)
    region = torch.randint(regions, (rows,), generator=generator()) if factor is not None else None
    options |= {
        "factor": factor,
        "region": None if regions == 1 else region,
        "seed": data.draw(st.integers(0, 2**63 - 1)),
        "row": data.draw(st.sampled_from([0, 5, 2**32 - rows])),
        "step": data.draw(st.integers(0, 2**32 - 1)),
        "stream": data.draw(st.sampled_from([ops.PERTURB, ops.LANGEVIN, ops.PRIOR])),
    }
    terms = data.draw(st.sampled_from([{}, {"denoised": denoised}, {"f": f}, {"denoised": denoised, "f": f}]))
    expected = numpy_step(x, **terms, **options)
    for name in back_ends("colored_step"):
        out = on(name, lambda: ops.colored_step(x, **terms, **options, lower=kind != "full"))
        if out is not None:
            assert out.dtype == dtype
            assert out.shape == x.shape
            assert error_ratio(out, expected) <= RATIO["colored_step"][dtype], (name, dtype, kind)


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("regions", [1, 3])
def test_native_runs_what_it_is_for(dtype, kind, regions):
    """The test above skips what a back end refuses; these it may not refuse."""
    x, factor = randn(6, 11, dtype=dtype), random_factor(kind, regions, 11)
    region = torch.tensor([0, 2, 1, 2, 0, 1]) % regions if factor is not None else None
    with ops.backend("native"):
        out = ops.colored_step(x, b=0.5, factor=factor, region=region, seed=3, lower=kind != "full")
    assert error_ratio(out, numpy_step(x, b=0.5, factor=factor, region=region, seed=3)) <= RATIO["colored_step"][dtype]


@pytest.mark.parametrize("name", back_ends("colored_step"))
@pytest.mark.parametrize("dim", [1, 3, 64, 785])
def test_normals_are_those_of_the_contract(name, dim):
    """z itself, to 1e-5 in every entry, on every back end (math section 7)."""
    z = on(
        name, lambda: ops.colored_step(torch.zeros(50, dim), b=1.0, seed=2**40 + 1, row=9, step=4, stream=ops.LANGEVIN)
    )
    assert z is not None
    expected = oracle.noise(2**40 + 1, 9, 50, dim, 4, ops.LANGEVIN)
    assert np.abs(z.double().numpy() - expected).max() <= NORMALS
    own = reference.normals(2**40 + 1, 9, 4, ops.LANGEVIN, 50, dim)
    assert np.abs(own.numpy() - expected).max() <= 1e-13


def test_known_answer_of_philox():
    words = reference.philox_words(0, torch.tensor(0), torch.tensor(0), 0, 0)
    assert [f"{int(w):08x}" for w in words] == ["6627e8d5", "e169c58d", "bc57ac4c", "9b00dbd8"]
    ones = reference.philox_words(2**64 - 1, torch.tensor(2**32 - 1), torch.tensor(2**32 - 1), 2**32 - 1, 2**32 - 1)
    assert [f"{int(w):08x}" for w in ones] == ["408f276d", "41c83b0e", "a20bc7c6", "6d5451fd"]


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(0, 2**63 - 1), st.integers(0, 2**62), st.integers(0, 2**32 - 1), st.integers(0, 4))
def test_reference_words_equal_numpy(seed, row, step, stream):
    rows, quads = torch.arange(row, row + 3).unsqueeze(1), torch.arange(5).unsqueeze(0)
    words = reference.philox_words(seed, rows, quads, step, stream)
    expected = oracle.philox_words(seed, (rows % 2**32).numpy(), quads.numpy(), step, stream)
    np.testing.assert_array_equal(words.numpy().astype(np.uint32), expected)


@pytest.mark.parametrize("name", back_ends("colored_step"))
def test_a_row_does_not_know_its_batch(name):
    """Rows 3 to 5 alone, at row offset 3, equal those rows of the whole batch, bit for bit."""
    x = randn(8, 13, dtype=torch.float32)
    b = torch.linspace(0.1, 2, 8)
    whole = on(name, lambda: ops.colored_step(x, b=b, seed=1, row=100, step=2))
    part = on(name, lambda: ops.colored_step(x[3:6], b=b[3:6], seed=1, row=103, step=2))
    assert torch.equal(part, whole[3:6])


def test_every_counter_matters():
    base = {"seed": 5, "row": 6, "step": 7, "stream": 1}
    draws = [ops.colored_step(torch.zeros(1, 8), b=1.0, **base)]
    draws += [ops.colored_step(torch.zeros(1, 8), b=1.0, **{**base, k: v + 1}) for k, v in base.items()]
    draws.append(ops.colored_step(torch.zeros(1, 8), b=1.0, **{**base, "seed": 5 + 2**32}))
    for i, one in enumerate(draws):
        for other in draws[:i]:
            assert not torch.equal(one, other)


@pytest.mark.parametrize("shape", [(4, 6), (4, 1, 2, 3)])
def test_shapes_strides_and_a_new_tensor(shape):
    """Images are flattened and restored; a transposed input is read in its own order; x is not written."""
    x = randn(*shape, dtype=torch.float32)
    before = x.clone()
    out = ops.colored_step(x, b=1.0)
    assert out.shape == x.shape
    assert torch.equal(x, before)
    assert out.data_ptr() != x.data_ptr()
    assert torch.equal(out.reshape(4, -1), ops.colored_step(x.reshape(4, -1), b=1.0))
    strided = x.reshape(4, 6).t().contiguous().t()
    assert torch.equal(ops.colored_step(strided, b=1.0), out.reshape(4, 6))


@pytest.mark.parametrize("name", back_ends("colored_step"))
def test_no_rows(name):
    """An empty batch of images is one too."""
    empty = torch.empty(0, 3, 2, 2)
    out = on(name, lambda: ops.colored_step(empty, empty, c=0.5, b=1.0, factor=torch.ones(1, 12)))
    assert out.shape == empty.shape


def test_terms_without_a_coefficient_are_not_read():
    x, poison = torch.ones(3, 5), torch.full((3, 5), float("nan"))
    for name in back_ends("colored_step"):
        assert torch.equal(on(name, lambda: ops.colored_step(x, poison, poison, c=0, a=0.0)), x)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("regions", [1, 3])
def test_gradients(kind, regions):
    """In x, D and f, in float64, against finite differences; twice, for those who differentiate a sampler."""
    rows, dim = 4, 3
    x, denoised, f = (randn(rows, dim, seed=s).requires_grad_() for s in (1, 2, 3))
    factor = random_factor(kind, regions, dim, torch.float64)
    region = torch.tensor([0, 2, 1, 2]) % regions if factor is not None else None
    c, a = torch.linspace(0.1, 0.9, rows, dtype=torch.float64), torch.tensor(0.7, dtype=torch.float64)

    def step(x, denoised, f):
        return ops.colored_step(x, denoised, f, c=c, a=a, b=0.3, factor=factor, region=region, lower=kind != "full")

    assert torch.autograd.gradcheck(step, (x, denoised, f))
    assert torch.autograd.gradgradcheck(step, (x, denoised, f))


def test_gradients_where_terms_are_left_out():
    x, denoised, f = (randn(2, 3, seed=s).requires_grad_() for s in (1, 2, 3))
    assert torch.autograd.gradcheck(lambda x: ops.colored_step(x, b=0.5), (x,))
    assert torch.autograd.gradcheck(lambda d: ops.colored_step(x.detach(), d, c=0.4), (denoised,))
    assert torch.autograd.gradcheck(lambda f: ops.colored_step(x.detach(), f=f, a=0.4), (f,))
    (gradient,) = torch.autograd.grad(ops.colored_step(x, denoised, f, c=0.25).sum(), x)
    assert torch.equal(gradient, torch.full_like(x, 0.75))


def test_half_precision_gradients_keep_their_dtype():
    x = randn(3, 4, dtype=torch.bfloat16).requires_grad_()
    f = randn(3, 4, dtype=torch.bfloat16, seed=1).requires_grad_()
    ops.colored_step(x, f=f, a=2.0, factor=random_factor("lower", 1, 4)).float().sum().backward()
    assert x.grad.dtype == f.grad.dtype == torch.bfloat16


X = torch.zeros(3, 4)
REFUSED = [
    ("x", TypeError, {"x": [1.0]}),
    ("x", TypeError, {"x": torch.zeros(3, 4, dtype=torch.int64)}),
    ("x", ValueError, {"x": torch.zeros(4)}),
    ("denoised", ValueError, {"denoised": torch.zeros(3, 5), "c": 1.0}),
    ("denoised", TypeError, {"denoised": torch.zeros(3, 4, dtype=torch.uint8), "c": 1.0}),
    ("f", ValueError, {"f": torch.zeros(2, 4), "a": 1.0}),
    ("c", ValueError, {"denoised": X, "c": torch.zeros(4)}),
    ("a", ValueError, {"f": X, "a": torch.zeros(3, 1)}),
    ("b", TypeError, {"b": "1"}),
    ("factor", TypeError, {"factor": 2.0, "b": 1.0}),
    ("factor", ValueError, {"factor": torch.zeros(1, 5), "b": 1.0}),
    ("factor", ValueError, {"factor": torch.zeros(1, 4, 3), "b": 1.0}),
    ("region", ValueError, {"factor": torch.ones(2, 4), "b": 1.0}),
    ("region", TypeError, {"factor": torch.ones(2, 4), "b": 1.0, "region": [0, 1, 0]}),
    ("region", ValueError, {"factor": torch.ones(2, 4), "b": 1.0, "region": torch.tensor([0, 1])}),
    ("region", ValueError, {"factor": torch.ones(2, 4), "b": 1.0, "region": torch.tensor([0.0, 1.0, 0.0])}),
    ("region", ValueError, {"factor": torch.ones(2, 4), "b": 1.0, "region": torch.tensor([0, 2, 1])}),
    ("region", ValueError, {"factor": torch.ones(2, 4), "b": 1.0, "region": torch.tensor([0, -1, 1])}),
    ("seed", ValueError, {"b": 1.0, "seed": -1}),
    ("seed", ValueError, {"b": 1.0, "seed": 2**63}),
    ("seed", TypeError, {"b": 1.0, "seed": torch.tensor(True)}),
    ("seed", TypeError, {"b": 1.0, "seed": np.array([1, 2])}),
    ("row", ValueError, {"b": 1.0, "row": -1}),
    ("row", ValueError, {"b": 1.0, "row": 2**32 - 2}),
    ("row", ValueError, {"b": 1.0, "row": torch.tensor(2**62)}),
    ("step", ValueError, {"b": 1.0, "step": 2**32}),
    ("step", TypeError, {"b": 1.0, "step": 1.5}),
    ("stream", TypeError, {"b": 1.0, "stream": True}),
]


@pytest.mark.parametrize(("argument", "kind", "options"), REFUSED)
def test_wrong_arguments_are_named(argument, kind, options):
    with pytest.raises(kind) as error:
        ops.colored_step(**{"x": X, **options})
    one_line(error, argument)


@needs_native
@pytest.mark.parametrize("layout", ["rows", "columns", "expanded", "float64", "bfloat16"])
@pytest.mark.parametrize("transpose", [False, True])
def test_native_takes_a_dense_factor_as_it_lies(layout, transpose):
    """Row- or column-major (as LAPACK's factors), one factor seen as three, other dtypes; and its transpose."""
    x, region = randn(7, 20, dtype=torch.float32), torch.tensor([0, 2, 1, 1, 0, 2, 2])
    factor = random_factor("lower", 1 if layout == "expanded" else 3, 20)
    if layout == "columns":
        factor = factor.mT.contiguous().mT
    elif layout == "expanded":
        factor = factor.expand(3, 20, 20)
    elif layout in ("float64", "bfloat16"):
        factor = factor.to(getattr(torch, layout))
    with ops.backend("native"):
        out = ops.colored_step(x, b=0.5, factor=factor, region=region, seed=3)
        product = ops.apply_factor(x, factor, region, transpose=transpose)
    wide = [factor[k].double().numpy() for k in region]
    expected = np.stack([(m.T if transpose else m) @ v for m, v in zip(wide, x.double().numpy(), strict=True)])
    stepped = numpy_step(x, b=0.5, factor=factor, region=region, seed=3)
    assert error_ratio(out, stepped) <= RATIO["colored_step"][x.dtype]
    assert error_ratio(product, expected) <= RATIO["apply_factor"][x.dtype]


@needs_native
@pytest.mark.parametrize("kind", ["diagonal", "lower"])
def test_without_a_push_the_factor_is_not_read(kind):
    """No f, no noise: the formula has no product, and a factor of NaN does not matter."""
    x, denoised = randn(5, 9, dtype=torch.float32), randn(5, 9, dtype=torch.float32, seed=1)
    factor = torch.full_like(random_factor(kind, 1, 9), float("nan"))
    for name in ("native", "reference"):
        out = on(name, lambda: ops.colored_step(x, denoised, c=0.25, factor=factor))
        assert torch.equal(out, on(name, lambda: ops.colored_step(x, denoised, c=0.25)))


@pytest.mark.parametrize("kind", [np.int64, np.uint32, np.array, torch.tensor])
def test_counters_are_integers_of_any_kind(kind):
    """Up to the last row that has noise of its own."""
    x, q = torch.zeros(3, 6), random_axes((6,), (0,), dtype=torch.float32)
    counters = {"seed": 7, "row": 2**32 - 3, "step": 2**32 - 1, "stream": 1}
    same = {name: kind(value) for name, value in counters.items()}
    for name in ("auto", "reference"):
        with ops.backend(name):
            assert torch.equal(ops.colored_step(x, b=1.0, **same), ops.colored_step(x, b=1.0, **counters))
            assert torch.equal(ops.dsm_loss(x, **same), ops.dsm_loss(x, **counters))
            one, other = (ops.separable_step(x, b=1.0, q=q, deviation=torch.ones(1, 6), **c) for c in (same, counters))
            assert torch.equal(one, other)
            drawn = [ops.levels(torch.ones(4), 3, seed=c["seed"], row=c["row"]) for c in (same, counters)]
            assert torch.equal(*drawn)


@pytest.mark.parametrize("argument", ["c", "a", "b", "factor"])
def test_what_has_no_gradient_refuses_one(argument):
    x = torch.zeros(2, 3)
    values = {"c": torch.ones(2), "a": torch.ones(2), "b": torch.ones(2), "factor": torch.eye(3)[None]}
    values[argument].requires_grad_()
    with pytest.raises(ValueError, match=f"{argument}: got a tensor that requires grad"):
        ops.colored_step(x, x, x, **values)


def test_a_square_diagonal_factor_is_not_taken_for_a_dense_one():
    with pytest.raises(ValueError, match=r"factor: got \[3, 3\].*expected .*\[1, 3, 3\]"):
        ops.colored_step(torch.zeros(2, 3), b=1.0, factor=torch.eye(3))
