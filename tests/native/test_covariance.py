"""The native covariance update against float64 NumPy, on every instruction set here."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.native import oracle

native = pytest.importorskip("ansn._native", reason="the native module is not built")

ISAS = native.supported_isas()
DTYPES = {"f32": torch.float32, "f64": torch.float64, "bf16": torch.bfloat16, "f16": torch.float16}
SCATTER_TOL = {"f32": 2e-6, "f64": 1e-13}  # relative to the largest entry
NAN = float("nan")
MARK = -777.25


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def call(dtype, weight, weight2, mean, scatter, x, region=None, *, decay=1.0, x_dtype=None, threads=2, isa=""):
    """The kernel on the state of all regions; returns the first row that is not finite, or -1."""
    x_dtype = x_dtype or next(name for name, d in DTYPES.items() if d == x.dtype)
    return native.covariance_update(
        dtype, weight.data_ptr(), weight2.data_ptr(), mean.data_ptr(), scatter.data_ptr(), x.data_ptr(), x_dtype,
        len(x), x.shape[1], x.stride(0), 0 if region is None else region.data_ptr(), len(weight), decay,
        scatter.ndim == mean.ndim, threads, isa=isa,
    )  # fmt: skip


def update(dtype, count, mean, scatter, x, **options):
    """One region; the weights come out as they must."""
    weight = torch.tensor([float(count)], dtype=torch.float64)
    weight2 = weight.clone()
    assert call(dtype, weight, weight2, mean, scatter, x, **options) == -1
    assert float(weight) == float(weight2) == count + len(x)


def fresh(d, dtype, diagonal=False):
    """Empty state; the upper triangle, never to be read or written, is marked (NaN would hide a sum)."""
    mean = torch.zeros(d, dtype=DTYPES[dtype])
    if diagonal:
        return mean, torch.zeros(d, dtype=DTYPES[dtype])
    upper = torch.ones(d, d, dtype=torch.bool).triu(1)
    return mean, torch.zeros(d, d, dtype=DTYPES[dtype]).masked_fill_(upper, MARK)


def check_state(mean, scatter, want_mean, want_scatter, dtype, diagonal=False):
    scale = np.abs(want_scatter).max() + 1e-30
    np.testing.assert_allclose(mean.double(), want_mean, rtol=0, atol=3e-7 * max(1, np.abs(want_mean).max()))
    if diagonal:
        got, want = scatter.double().numpy(), np.diag(want_scatter)
    else:
        d = len(mean)
        assert (scatter[np.triu_indices(d, 1)] == MARK).all(), "the upper triangle was written"
        got, want = (m[np.tril_indices(d)] for m in (scatter.double().numpy(), want_scatter))
    assert np.abs(got - want).max() <= SCATTER_TOL[dtype] * scale


@settings(max_examples=80, deadline=None, derandomize=True)
@given(data=st.data())
def test_covariance_update_equals_chan(data):
    """Regions of no, few and many rows in one call, strided rows, forgetting; every dtype and instruction set."""
    dtype = data.draw(st.sampled_from(["f32", "f64"]))
    x_dtype = data.draw(st.sampled_from(["f32", "f64", "bf16", "f16"]))
    b, d, regions = data.draw(st.integers(0, 60)), data.draw(st.integers(1, 150)), data.draw(st.integers(1, 7))
    diagonal, isa = data.draw(st.booleans()), data.draw(st.sampled_from(ISAS))
    threads, decay = data.draw(st.sampled_from([1, 2, 3])), data.draw(st.sampled_from([1.0, 0.75]))
    skew = data.draw(st.sampled_from([1, 4]))  # 4: most rows in the first regions
    weight, weight2 = torch.zeros(2, regions, dtype=torch.float64)
    states = [fresh(d, dtype, diagonal) for _ in range(regions)]
    mean, scatter = (torch.stack(part) for part in zip(*states, strict=True))
    want = [(0.0, 0.0, np.zeros(d), np.zeros((d, d)))] * regions
    for batch in range(3):
        wide = torch.randn(b + batch, d + 3, generator=generator(batch)) * torch.linspace(0.1, 2, d + 3) + 1.5
        x = wide.to(DTYPES[x_dtype])[:, 1 : 1 + d]
        region = (torch.rand(len(x), generator=generator(9 + batch)) ** skew * regions).long().clamp_max(regions - 1)
        given_region = None if regions == 1 and batch == 1 else region
        options = {"decay": decay, "threads": threads, "isa": isa}
        assert call(dtype, weight, weight2, mean, scatter, x, given_region, **options) == -1
        for k in range(regions):
            n, n2, m, M = want[k]
            n, n2, M = decay * n, decay**2 * n2, decay * M
            rows = x[region == k].double().numpy()
            if len(rows):
                m, M = oracle.covariance(n, m, M, rows)
            want[k] = (n + len(rows), n2 + len(rows), m, M)
    for k in range(regions):
        np.testing.assert_allclose([weight[k], weight2[k]], want[k][:2], rtol=1e-14)
        check_state(mean[k], scatter[k], *want[k][2:], dtype, diagonal)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", ["f32", "f64"])
@pytest.mark.parametrize("d", [1, 3, 7, 16, 33, 64, 131])
def test_one_row_for_each_region(isa, dtype, d):
    """The batched rank-1 update, and any few rows: widths below, at and off a vector, a state that is not empty."""
    for b in (1, 2, 5, 8, 9):
        x = torch.randn(2, 5, b, d, generator=generator(b)) + 0.5
        weight, weight2 = torch.zeros(2, 5, dtype=torch.float64)
        mean, scatter = (torch.stack(part) for part in zip(*[fresh(d, dtype) for _ in range(5)], strict=True))
        region = torch.arange(5).repeat(b)
        for batch in x:
            call(dtype, weight, weight2, mean, scatter, batch.transpose(0, 1).reshape(-1, d), region, isa=isa)
        assert weight.tolist() == weight2.tolist() == [2.0 * b] * 5
        for k in range(5):
            both = x[:, k].reshape(2 * b, d).double().numpy()
            centred = both - both.mean(axis=0)
            check_state(mean[k], scatter[k], both.mean(axis=0), centred.T @ centred, dtype)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", ["f32", "f64"])
@pytest.mark.parametrize(("b", "d"), [(128, 784), (700, 97), (1, 200), (191, 48), (192, 49), (193, 24)])
def test_covariance_sizes(isa, dtype, b, d):
    """More rows than are packed at a time, widths on and off the panels' edges, a state that is not empty."""
    x = torch.randn(2, b, d, generator=generator()) + 0.5
    mean, scatter = fresh(d, dtype)
    for k in range(2):
        update(dtype, float(k * b), mean, scatter, x[k], isa=isa)
    both = x.reshape(2 * b, d).double().numpy()
    centred = both - both.mean(axis=0)
    check_state(mean, scatter, both.mean(axis=0), centred.T @ centred, dtype)


@pytest.mark.parametrize("isa", ISAS)
def test_a_smaller_region_that_is_packed_deeper(isa):
    """192 rows of A at a time: 251 in two parts of 126, 181 in one, whose memory must be there (`make sanitize`)."""
    d, region = 97, (torch.arange(430) < 180).long()
    x, weights = torch.randn(430, d, generator=generator(), dtype=torch.float64), torch.zeros(2, 2, dtype=torch.float64)
    mean, scatter = (torch.stack(part) for part in zip(fresh(d, "f64"), fresh(d, "f64"), strict=True))
    assert call("f64", *weights, mean, scatter, x, region, threads=1, isa=isa) == -1
    for k in range(2):
        want = oracle.covariance(0, np.zeros(d), np.zeros((d, d)), x[region == k].numpy())
        check_state(mean[k], scatter[k], *want, "f64")


@pytest.mark.parametrize("dtype", ["f32", "f64"])
@pytest.mark.parametrize(("regions", "b", "d"), [(1, 200, 300), (3, 3, 300), (40, 90, 121), (1, 1, 700)])
def test_covariance_does_not_depend_on_threads(dtype, regions, b, d):
    x = torch.randn(2, b, d, generator=generator())
    region = torch.randint(regions, (2, b), generator=generator())
    states = []
    for threads in (1, 2, 3, 5):
        weight, weight2 = torch.zeros(2, regions, dtype=torch.float64)
        mean, scatter = (torch.stack(part) for part in zip(*[fresh(d, dtype) for _ in range(regions)], strict=True))
        for k in range(2):
            call(dtype, weight, weight2, mean, scatter, x[k], region[k], decay=0.9, threads=threads)
        states.append((mean, scatter))
    assert all(torch.equal(s[0], states[0][0]) and torch.equal(s[1], states[0][1]) for s in states)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("x_dtype", list(DTYPES))
@pytest.mark.parametrize("bad", [NAN, float("inf"), -float("inf")])
def test_the_first_row_that_is_not_finite(isa, x_dtype, bad):
    """Its number comes back and nothing has changed, wherever the value stands; the largest finite number passes."""
    for column in (0, 5, 36):
        x = torch.randn(11, 37, generator=generator()).to(DTYPES[x_dtype])
        mean, scatter = fresh(37, "f64")
        weight, weight2 = torch.tensor([[4.0], [5.0]], dtype=torch.float64)
        x[7, column] = x[10, 3] = bad
        assert call("f64", weight, weight2, mean, scatter, x, decay=0.5, isa=isa) == 7
        assert (float(weight), float(weight2)) == (4.0, 5.0)
        assert torch.equal(mean, torch.zeros_like(mean))
        assert torch.equal(scatter, fresh(37, "f64")[1])
    x = torch.full((3, 5), torch.finfo(DTYPES[x_dtype]).max / 4, dtype=DTYPES[x_dtype])
    update("f64", 0.0, *fresh(5, "f64"), x, isa=isa)


@pytest.mark.parametrize("isa", ISAS)
def test_covariance_far_from_the_origin(isa):
    """A mean of 1e4 deviations leaves the scatter intact: nothing is squared before it is centred."""
    x = torch.randn(300, 20, generator=generator(), dtype=torch.float64)
    near, far = fresh(20, "f64"), fresh(20, "f64")
    for k in range(3):
        update("f64", 100.0 * k, *near, x[100 * k : 100 * (k + 1)], isa=isa)
        update("f64", 100.0 * k, *far, x[100 * k : 100 * (k + 1)] + 1e4, isa=isa)
    torch.testing.assert_close(far[1].tril(), near[1].tril(), rtol=1e-9, atol=1e-8)


def test_single_points_are_a_batch():
    """b = 1, point after point, is the paper's rank-1 update and equals one batch."""
    x = torch.randn(50, 7, generator=generator(), dtype=torch.float64)
    one, batch = fresh(7, "f64"), fresh(7, "f64")
    for k in range(50):
        update("f64", float(k), *one, x[k : k + 1])
    update("f64", 0.0, *batch, x)
    torch.testing.assert_close(one, batch, rtol=1e-12, atol=1e-12)


def test_covariance_of_no_rows_changes_nothing():
    mean, scatter = fresh(4, "f64")
    update("f64", 3.0, mean, scatter, torch.empty(0, 4))
    assert torch.equal(mean, torch.zeros(4, dtype=torch.float64))
    assert torch.equal(scatter.tril(), torch.zeros(4, 4, dtype=torch.float64))


def test_covariance_wrong_arguments_are_refused():
    mean, scatter = fresh(4, "f32")
    x = torch.zeros(2, 4)
    with pytest.raises(ValueError, match="dtype of the state must be 'f32' or 'f64', got 'bf16'"):
        update("bf16", 0.0, mean, scatter, x)
    for count in (-1.0, NAN, float("inf")):
        with pytest.raises(ValueError, match=r"weight: region 0 has .*, expected a finite number of at least 0"):
            update("f32", count, mean, scatter, x)
    for decay in (0.0, 1.5, NAN):
        with pytest.raises(ValueError, match="decay must be in"):
            update("f32", 1.0, mean, scatter, x, decay=decay)
    for region, shown in ((torch.tensor([0, 1]), "0..1"), (torch.tensor([-3, 0]), "-3..0")):
        with pytest.raises(ValueError, match=f"region: got values {shown}, expected 0..0"):
            update("f32", 1.0, mean, scatter, x, region=region)
    with pytest.raises(ValueError, match="x_dtype must be"):
        update("f32", 0.0, mean, scatter, x, x_dtype="int8")
