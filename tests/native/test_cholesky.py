"""Native Cholesky factors on every instruction set here."""

import pytest
import torch

native = pytest.importorskip("ansn._native", reason="the native module is not built")

ISAS = native.supported_isas()
DTYPES = {"f32": torch.float32, "f64": torch.float64}
TOLERANCE = {"f32": 2e-6, "f64": 1e-14}  # of L L^T, relative to the largest entry
NAN = float("nan")
ORDERS = [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 64, 70, 127, 128]


def covariances(count, dim, dtype="f32"):
    generator = torch.Generator().manual_seed(dim)
    a = torch.randn(count, dim, dim, generator=generator, dtype=torch.float64)
    return (a @ a.mT / dim + 0.5 * torch.eye(dim)).to(DTYPES[dtype])


def factor(matrix, *, isa="", threads=1):
    """Calls the kernel between guards: what lies before and behind the factors must stay what it was."""
    count, dim = matrix.shape[:2]
    holder = torch.full((64 + count * dim * dim + 64,), NAN, dtype=matrix.dtype)
    out, info = holder[64:-64].view(count, dim, dim), torch.full((count,), -7, dtype=torch.int32)
    name = "f64" if matrix.dtype == torch.float64 else "f32"
    native.cholesky(name, matrix.data_ptr(), out.data_ptr(), info.data_ptr(), count, dim, threads, isa=isa)
    assert holder[:64].isnan().all()
    assert holder[-64:].isnan().all()
    return out, info


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("dim", ORDERS)
def test_orders(isa, dtype, dim):
    """A group that is full and one that is not; NaN above the diagonal, which is never read; zeros come out there."""
    matrix = covariances(19, dim, dtype)
    above = torch.ones(dim, dim).triu(1).bool()
    out, info = factor(torch.where(above, NAN, matrix), isa=isa)
    assert info.tolist() == [0] * 19
    assert (out[:, above] == 0).all()
    wide, expected = out.double(), matrix.double()
    assert float((wide @ wide.mT - expected).abs().max() / expected.abs().max()) <= TOLERANCE[dtype]
    assert (wide.diagonal(dim1=1, dim2=2) > 0).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("dim", [1, 3, 16, 37])
def test_a_failure_stays_in_its_lane(isa, dtype, dim):
    """info is LAPACK's for minors that are negative, zero or NaN; all other factors keep their bits."""
    matrix = covariances(33, dim, dtype)
    good, _ = factor(matrix, isa=isa)
    broken = matrix.clone()
    last = dim - 1
    broken[4, last, last] = -3.0
    broken[5, 0, 0] = 0.0
    broken[17, last, last] = NAN
    broken[32, last, 0] = NAN
    out, info = factor(broken, isa=isa)
    expected = torch.linalg.cholesky_ex(broken)[1]
    assert info.tolist() == expected.tolist()
    assert {k for k in range(33) if info[k]} == {4, 5, 17, 32}
    fine = info == 0
    assert torch.equal(out[fine], good[fine])
    assert not out.isinf().any()


@pytest.mark.parametrize("isa", ISAS)
def test_threads_and_neighbours_do_not_change_a_bit(isa):
    matrix = covariances(150, 40)
    one, _ = factor(matrix, isa=isa, threads=1)
    for threads in (2, 3):
        assert torch.equal(factor(matrix, isa=isa, threads=threads)[0], one)
    assert torch.equal(factor(matrix[77:78].contiguous(), isa=isa)[0], one[77:78])


def test_wrong_arguments_are_refused():
    good = ["f32", 8, 8, 8, 1, 4, 1]
    for position, value, message in [
        (0, "bf16", "dtype must be 'f32' or 'f64', got 'bf16'"),
        (1, 0, "matrix must be an address"),
        (2, 0, "factor must be an address"),
        (3, 0, "info must be an address"),
        (4, -1, "count must be at least 0, got -1"),
        (5, 129, r"d must be 0 \.\. 128, got 129"),
        (6, 0, "threads must be at least 1, got 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            native.cholesky(*[value if k == position else v for k, v in enumerate(good)])
