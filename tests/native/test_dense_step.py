"""The native dense coloured step against float64 NumPy, on every instruction set here."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.native import oracle
from tests.ops.helpers import error_ratio
from tests.tolerances import RATIO

native = pytest.importorskip("ansn._native", reason="the native module is not built")

ISAS = native.supported_isas()
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
NAN = float("nan")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def pointer(tensor):
    return 0 if tensor is None else tensor.data_ptr()


def step(x, D=None, f=None, c=None, a=None, b=None, *, A, region=None, triangle="lower", out=None, dtype="f32",
         columns=False, given=True, isa="", seed=1, row0=0, step=0, stream=1, threads=2):  # fmt: skip
    """Calls the kernel with ``A`` ``[K, d, d]``, as it lies or column by column; returns out, which held NaN before.

    ``given=False``: x is not passed (its shape is still that of out).
    """
    rows, cols = x.shape
    out = torch.full((rows, cols), NAN, dtype=x.dtype) if out is None else out
    coefficients = [None if v is None else torch.as_tensor(v, dtype=torch.float32) for v in (c, a, b)]
    A = A.mT.contiguous().mT if columns else A.contiguous()
    strides = (1, cols) if columns else (cols, 1)
    native.dense_step(
        dtype, pointer(out), pointer(x) if given else 0, pointer(D), pointer(f), rows, cols,
        *(pointer(t) for t in coefficients),
        *(int(t is not None and t.dim() == 1) for t in coefficients), pointer(A),
        "f64" if A.dtype == torch.float64 else "f32", *strides, cols * cols, len(A), triangle, pointer(region),
        seed, row0, step, stream, threads, isa=isa,
    )  # fmt: skip
    return out


def expected(x, D=None, f=None, c=None, a=None, b=None, *, A, region=None, triangle="lower", given=True, seed=1, row0=0,
             step=0, stream=1):  # fmt: skip
    """The formula in float64; the half of A beyond the triangle is dropped, whatever it holds."""

    def column(v):
        v = np.asarray(v, np.float64)
        return v[:, None] if v.ndim else v

    rows, cols = x.shape
    out = x.double().numpy().copy() if given else np.zeros((rows, cols))
    y = np.zeros((rows, cols))
    if D is not None and c is not None:
        out += column(c) * (D.double().numpy() - out)
    if f is not None and a is not None:
        y += column(a) * f.double().numpy()
    if b is not None:
        y += column(b) * oracle.noise(seed % 2**64, row0, rows, cols, step, stream)
    cut = {"lower": np.tril, "upper": np.triu, "none": lambda m: m}[triangle]
    matrices = np.stack([cut(m) for m in A.double().numpy()])
    index = np.zeros(rows, np.int64) if region is None else region.numpy()
    for k in np.unique(index):
        out[index == k] += y[index == k] @ matrices[k].T
    return out


def matrix(regions, cols, triangle="lower", dtype=torch.float32, seed=5):
    """Rows of about unit length, and NaN where a triangle is not to be read."""
    A = torch.randn(regions, cols, cols, generator=generator(seed), dtype=torch.float64) / cols**0.5
    half = {"lower": torch.ones(cols, cols).triu(1), "upper": torch.ones(cols, cols).tril(-1), "none": None}[triangle]
    return (A if half is None else A.masked_fill(half.bool(), NAN)).to(dtype)


def dropped(A):
    return A.nan_to_num(0.0)


def case(rows, cols, dtype="f32", seed=0):
    g = generator(seed)
    return [torch.randn(rows, cols, generator=g).to(DTYPES[dtype]) for _ in range(3)]


def close(got, want, dtype="f32"):
    assert error_ratio(got, want) <= RATIO["colored_step"][DTYPES[dtype]]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_shape_terms_factor_and_instruction_set(data):
    dtype = data.draw(st.sampled_from(list(DTYPES)))
    rows, cols = data.draw(st.integers(0, 70)), data.draw(st.integers(1, 110))
    x, D, f = case(rows, cols, dtype, data.draw(st.integers(0, 9)))
    rng = np.random.default_rng(rows * 1000 + cols)
    coefficient = {
        name: data.draw(st.sampled_from([None, np.float32(value), rng.uniform(0, 1, rows).astype(np.float32)]))
        for name, value in (("c", 0.1), ("a", 0.7), ("b", 1.3))
    }
    f = data.draw(st.sampled_from([None, f]))
    if f is None or coefficient["a"] is None:
        coefficient["b"] = np.float32(0.9)
    given = data.draw(st.booleans())
    D = data.draw(st.sampled_from([None, D])) if given else None
    regions, triangle = data.draw(st.integers(1, 4)), data.draw(st.sampled_from(["lower", "upper", "none"]))
    options = {
        "triangle": triangle,
        "region": torch.as_tensor(rng.integers(0, regions, rows)) if regions > 1 else None,
        "given": given,
        "seed": data.draw(st.integers(-(2**63), 2**64 - 1)),
        "row0": data.draw(st.sampled_from([0, 11, 2**32 - 3])),
        "step": data.draw(st.integers(0, 2**32 - 1)),
    }
    A = matrix(regions, cols, triangle, data.draw(st.sampled_from([torch.float32, torch.float64])))
    how = {"columns": data.draw(st.booleans()), "isa": data.draw(st.sampled_from(ISAS)), "dtype": dtype}
    got = step(x, D, f, **coefficient, A=A, **options, **how)
    close(got, expected(x, D, f, **coefficient, A=dropped(A), **options), dtype)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("triangle", ["lower", "upper", "none"])
@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (33, 7), (241, 65), (3, 385), (49, 449), (12, 784)])
def test_sizes_on_and_off_the_blocks(isa, triangle, rows, cols):
    """Past the blocks of rows (240), of columns (384), the groups (64) and every panel width, both orders of A."""
    x, D, f = case(rows, cols)
    arguments = {"D": D, "f": f, "c": 0.25, "a": 0.5, "b": 0.75, "triangle": triangle}
    A = matrix(1, cols, triangle)
    got = step(x, **arguments, A=A, isa=isa)
    close(got, expected(x, **arguments, A=dropped(A)))
    assert torch.equal(got, step(x, **arguments, A=A, isa=isa, columns=True))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("regions", [1, 3])
def test_a_row_does_not_know_its_batch(isa, regions):
    """Rows 23 to 60 alone equal those of the batch, bit for bit, whatever panel and vector they fall in."""
    cols = 400
    x, D, f = case(100, cols)
    b, region = torch.linspace(0.1, 2, 100), torch.arange(100) % regions if regions > 1 else None
    A = matrix(regions, cols)
    whole = step(x, D, f, c=0.3, a=0.2, b=b, A=A, region=region, row0=100, isa=isa)
    for first, last in [(23, 24), (23, 60), (0, 99)]:
        part = [t[first:last] for t in (x, D, f)]
        some = step(*part, c=0.3, a=0.2, b=b[first:last].contiguous(), A=A, isa=isa, row0=100 + first,
                    region=None if region is None else region[first:last].contiguous())  # fmt: skip
        assert torch.equal(some, whole[first:last])


@pytest.mark.parametrize("isa", ISAS)
def test_a_row_does_not_know_its_regions_neighbours(isa):
    """Noise and sums are those of the row's own index: a batch of two regions equals each region's rows in place."""
    x, A, region = case(60, 130)[0], matrix(2, 130), torch.arange(60) % 2
    both = step(x, b=0.5, A=A, region=region, isa=isa)
    for k in range(2):
        alone = step(x, b=0.5, A=A[k : k + 1], isa=isa)
        assert torch.equal(both[k::2], alone[k::2])


@pytest.mark.parametrize(("rows", "cols", "regions"), [(250, 200, 1), (5, 449, 1), (130, 90, 40)])
def test_threads_do_not_change_a_bit(rows, cols, regions):
    """Shared blocks, and (many regions) whole blocks for each thread."""
    x, D, _ = case(rows, cols)
    region = None if regions == 1 else torch.randint(regions, (rows,), generator=generator())
    A = matrix(regions, cols)
    results = [step(x, D, c=0.3, b=0.7, A=A, region=region, threads=threads) for threads in (1, 2, 3)]
    close(results[0], expected(x, D, c=0.3, b=0.7, A=dropped(A), region=region))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_in_place_equals_out_of_place():
    x, D, _ = case(50, 130)
    A = matrix(1, 130)
    want = step(x, D, c=0.2, b=0.9, A=A)
    assert torch.equal(step(x, D, c=0.2, b=0.9, A=A, out=x), want)


def test_an_empty_region_and_no_rows():
    x, A = case(4, 9)[0], matrix(3, 9)
    region = torch.tensor([2, 0, 0, 2])
    close(step(x, b=1.0, A=A, region=region), expected(x, b=1.0, A=dropped(A), region=region))
    assert step(x[:0], b=1.0, A=A, region=region[:0]).shape == (0, 9)


def test_wrong_arguments_are_refused():
    good = ["f32", 8, 8, 0, 8, 1, 1, 0, 8, 0, 0, 0, 0, 8, "f32", 1, 1, 1, 1, "lower", 0, 0, 0, 0, 0, 1]
    for position, value, message in [
        (0, "f64", "dtype must be 'f32', 'bf16' or 'f16', got 'f64'"),
        (1, 0, "out must be an address"),
        (5, -1, "rows must be at least 0, got -1"),
        (4, 0, "f with a, or b, must be given"),
        (11, 2, "a_stride must be 0"),
        (13, 0, "factor must be an address"),
        (14, "bf16", "factor_dtype must be 'f32' or 'f64', got 'bf16'"),
        (18, 0, "regions must be at least 1, got 0"),
        (18, 2, "region must be an address for 2 regions"),
        (19, "full", "triangle must be 'none', 'lower' or 'upper', got 'full'"),
        (25, 0, "threads must be at least 1, got 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            native.dense_step(*[value if k == position else v for k, v in enumerate(good)])
    strided = [3 if k in (15, 16) else v for k, v in enumerate(good)]
    with pytest.raises(ValueError, match="row_stride or col_stride must be 1, got 3 and 3"):
        native.dense_step(*strided)
