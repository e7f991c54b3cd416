"""The native coloured step against float64 NumPy, on every instruction set here."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.native import oracle

native = pytest.importorskip("ansn._native", reason="the native module is not built")

ISAS = native.supported_isas()
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
STEP_TOL = {"f32": 1e-5, "bf16": 0.04, "f16": 5e-3}  # absolute, for data of size about 4
NAN = float("nan")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def pointer(tensor):
    return 0 if tensor is None else tensor.data_ptr()


def step(x, D=None, f=None, c=None, a=None, b=None, diag=None, region=None, *, out=None, dtype="f32", isa="",
         seed=1, row0=0, step=0, stream=1, threads=2):  # fmt: skip
    """Calls the kernel; coefficients are numbers, or one a row; returns out, which held NaN before."""
    rows, cols = x.shape
    out = torch.full((rows, cols), NAN, dtype=x.dtype) if out is None else out
    tensors = {name: None if v is None else torch.as_tensor(v, dtype=torch.float32) for name, v in
               (("c", c), ("a", a), ("b", b), ("diag", diag))}  # fmt: skip
    coefficients = [tensors[name] for name in "cab"]
    native.colored_step(
        dtype, *(pointer(t) for t in (out, x, D, f)), rows, cols,
        *(pointer(t) for t in coefficients), *(int(t is not None and t.dim() == 1) for t in coefficients),
        pointer(tensors["diag"]), pointer(region), 1 if diag is None else len(tensors["diag"]), seed, row0, step,
        stream, threads, isa=isa,
    )  # fmt: skip
    return out


def expected_step(x, D=None, f=None, c=None, a=None, b=None, diag=None, region=None, *,
                  seed=1, row0=0, step=0, stream=1):  # fmt: skip
    def column(v):
        v = np.asarray(v, np.float64)
        return v[:, None] if v.ndim else v

    rows, cols = x.shape
    x = x.double().numpy()
    out, push = x.copy(), np.zeros_like(x)
    if D is not None and c is not None:
        out += column(c) * (D.double().numpy() - x)
    if f is not None and a is not None:
        push += column(a) * f.double().numpy()
    if b is not None:
        push += column(b) * oracle.noise(seed % 2**64, row0, rows, cols, step, stream)
    if diag is not None:
        scale = np.asarray(diag, np.float64)
        push *= scale[region.numpy()] if region is not None else scale[[0] * rows]
    return out + push


def random_case(rows, cols, dtype, seed=0):
    g = generator(seed)
    return [torch.randn(rows, cols, generator=g).to(DTYPES[dtype]) for _ in range(3)]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_colored_step_equals_the_formula(data):
    """Any shape, any subset of the terms, any coefficients, any instruction set."""
    dtype = data.draw(st.sampled_from(list(DTYPES)))
    rows, cols = data.draw(st.integers(0, 40)), data.draw(st.integers(1, 300))
    x, D, f = random_case(rows, cols, dtype, data.draw(st.integers(0, 9)))
    rng = np.random.default_rng(rows * 1000 + cols)
    # float32 numbers, so that the oracle sees the coefficients that the kernel gets
    coefficient = {
        name: data.draw(st.sampled_from([None, np.float32(value), rng.uniform(0, 1, rows).astype(np.float32)]))
        for name, value in (("c", 0.1), ("a", 0.7), ("b", 1.3))
    }
    diag = region = None
    if data.draw(st.booleans()):
        regions = data.draw(st.integers(1, 4))
        diag = rng.uniform(0.5, 2, (regions, cols)).astype(np.float32)
        region = torch.as_tensor(rng.integers(0, regions, rows)) if regions > 1 else None
    arguments = {
        "D": data.draw(st.sampled_from([None, D])),
        "f": data.draw(st.sampled_from([None, f])),
        **coefficient,
        "diag": diag,
        "region": region,
    }
    rng_arguments = {
        "seed": data.draw(st.integers(-(2**63), 2**64 - 1)),
        "row0": data.draw(st.sampled_from([0, 11, 2**32 - 3])),
        "step": data.draw(st.integers(0, 2**32 - 1)),
    }
    isa = data.draw(st.sampled_from(ISAS))
    got = step(x, **arguments, dtype=dtype, isa=isa, **rng_arguments)
    want = expected_step(x, **arguments, **rng_arguments)
    np.testing.assert_allclose(got.double().numpy(), want, rtol=STEP_TOL[dtype] / 4, atol=STEP_TOL[dtype])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("cols", [1, 2, 3, 4, 5, 15, 16, 17, 63, 64, 65, 255, 257, 512, 784, 3072])
def test_widths(isa, cols):
    x, D, f = random_case(37, cols, "f32")
    arguments = {"D": D, "f": f, "c": np.float32(0.2), "a": np.float32(0.3), "b": np.float32(0.9)}
    np.testing.assert_allclose(step(x, **arguments, isa=isa), expected_step(x, **arguments), atol=STEP_TOL["f32"])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("cols", [2, 7, 784])
@pytest.mark.parametrize("dtype", list(DTYPES))
def test_in_place_equals_out_of_place(isa, cols, dtype):
    x, D, f = random_case(50, cols, dtype)
    arguments = {"D": D, "f": f, "c": np.float32(0.2), "a": np.float32(0.3), "b": np.float32(0.9)}
    want = step(x, **arguments, dtype=dtype, isa=isa)
    got = step(x, **arguments, dtype=dtype, isa=isa, out=x)
    assert got is x
    assert torch.equal(got, want)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("rows", "cols"), [(3, 20001), (20001, 3), (200, 784), (20000, 1)])
def test_threads_do_not_change_a_bit(isa, rows, cols):
    x, D, _ = random_case(rows, cols, "f32")
    results = [step(x, D, c=0.3, b=0.7, isa=isa, threads=threads) for threads in (1, 2, 3)]
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("cols", [1, 3, 30, 130, 784])
@pytest.mark.parametrize("per_row", [False, True])
def test_a_row_does_not_know_its_batch(isa, cols, per_row):
    """Sample 23 alone equals sample 23 among 64, bit for bit: the noise and the arithmetic are its own."""
    x, D, f = random_case(64, cols, "f32")
    b = torch.linspace(0.1, 2, 64) if per_row else 0.7
    whole = step(x, D, f, c=0.3, a=0.2, b=b, row0=100, isa=isa)
    for first, last in [(23, 24), (5, 40)]:
        part = [t[first:last] for t in (x, D, f)]
        some = step(*part, c=0.3, a=0.2, b=b[first:last] if per_row else b, row0=100 + first, isa=isa)
        assert torch.equal(some, whole[first:last])


def test_no_noise_is_exact_and_the_seed_does_not_matter():
    x, D, _ = random_case(9, 31, "f32")
    got = step(x, D, c=0.125, seed=1)
    assert torch.equal(got, step(x, D, c=0.125, seed=2))
    torch.testing.assert_close(got, x + 0.125 * (D - x), rtol=1e-6, atol=1e-6)


def test_terms_without_a_coefficient_are_not_read():
    x, poison = torch.ones(5, 9), torch.full((5, 9), NAN)
    assert torch.equal(step(x, poison, poison), x)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", ["bf16", "f16"])
def test_half_precision_rounds_as_torch_does(isa, dtype):
    """Every finite and infinite 16-bit pattern survives a round trip, and sums round to nearest even."""
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    every = bits.view(DTYPES[dtype]).reshape(64, -1)
    got = step(every, dtype=dtype, isa=isa)
    assert torch.equal(got.isnan(), every.isnan())
    assert torch.equal(got.view(torch.int16)[~every.isnan()], every.view(torch.int16)[~every.isnan()])
    for shift in (1, 977):  # the mean of two neighbours is a tie
        x, D = every.nan_to_num(0, 1, -1), every.roll(shift).nan_to_num(0, 1, -1)
        got = step(x, D, c=0.5, dtype=dtype, isa=isa)
        want = (x.float() + 0.5 * (D.float() - x.float())).to(DTYPES[dtype])
        assert torch.equal(got, want)


@pytest.mark.parametrize("rows", [0, 4])
def test_nothing_to_do(rows):
    empty = torch.empty(rows, 0 if rows else 5)
    assert step(empty, b=1.0).shape == empty.shape


def test_wrong_arguments_are_refused():
    good = ["f32", 8, 8, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 1]
    for position, value, message in [
        (0, "f64", "dtype must be 'f32', 'bf16' or 'f16', got 'f64'"),
        (1, 0, "out must be an address"),
        (5, -1, "rows must be at least 0, got -1"),
        (6, -1, "cols must be at least 0, got -1"),
        (10, 2, "c_stride must be 0"),
        (20, 0, "threads must be at least 1, got 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            native.colored_step(*[value if k == position else v for k, v in enumerate(good)])
