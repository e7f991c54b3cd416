"""The native loss and gradient against float64 NumPy, on every instruction set here."""

import numpy as np
import pytest
import torch

from tests.native import oracle

native = pytest.importorskip("ansn._native", reason="the native module is not built")

ISAS = native.supported_isas()
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
GRADIENT_TOL = {"f32": 1e-6, "bf16": 4e-3, "f16": 5e-4}  # relative to the largest entry
NAN = float("nan")


def run(prediction, target, weight, *, dtype="f32", isa="", threads=1, row0=0):
    rows, cols = prediction.shape
    gradient, loss = torch.full_like(prediction, NAN), torch.full((rows,), NAN)
    native.dsm_loss(
        dtype, prediction.data_ptr(), 0 if target is None else target.data_ptr(), gradient.data_ptr(), loss.data_ptr(),
        rows, cols, weight.data_ptr(), weight.ndim, 3, row0, 5, 1, threads, isa=isa,
    )  # fmt: skip
    return loss, gradient


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("cols", [1, 2, 3, 5, 16, 63, 64, 65, 100, 511, 512, 513, 784, 3073])
@pytest.mark.parametrize("with_target", [False, True])
def test_widths(isa, dtype, cols, with_target):
    generator = torch.Generator().manual_seed(cols)
    rows = 37 if cols < 512 else 5
    prediction, target = (torch.randn(rows, cols, generator=generator).to(DTYPES[dtype]) for _ in range(2))
    weight = torch.linspace(0.5, 2, rows) if with_target else torch.tensor(0.75)
    loss, gradient = run(prediction, target if with_target else None, weight, dtype=dtype, isa=isa, row0=2**32 - 3)
    wanted = target.double().numpy() if with_target else -oracle.noise(3, 2**32 - 3, rows, cols, 5, 1)
    residual = prediction.double().numpy() - wanted
    w = weight.double().numpy() * np.ones(rows)
    np.testing.assert_allclose(loss.double().numpy(), w * np.mean(residual**2, axis=1), rtol=2e-6, atol=2e-6)
    slope = 2 * w[:, None] * residual / cols
    np.testing.assert_allclose(gradient.double().numpy(), slope, rtol=0, atol=GRADIENT_TOL[dtype] * np.abs(slope).max())


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("rows", "cols"), [(300, 100), (9, 3000), (20000, 1)])
def test_threads_do_not_change_a_bit(isa, rows, cols):
    prediction = torch.randn(rows, cols, generator=torch.Generator().manual_seed(1))
    results = [run(prediction, None, torch.tensor(1.0), isa=isa, threads=threads) for threads in (1, 2, 3)]
    for loss, gradient in results[1:]:
        assert torch.equal(loss, results[0][0])
        assert torch.equal(gradient, results[0][1])


@pytest.mark.parametrize("cols", [5, 3000])
def test_a_large_mean_of_squares_keeps_its_digits(cols):
    """Equal residuals: the sum is known exactly, and a running float32 sum would drift by 1e-5. The narrowest vectors
    leave sums of a hundred terms, whose rounding is 4e-7."""
    loss, _ = run(torch.full((3, cols), 1.1), torch.zeros(3, cols), torch.tensor(1.0))
    np.testing.assert_allclose(loss.numpy(), np.float32(1.1) ** 2, rtol=1e-6)


def test_wrong_arguments_are_refused():
    good = ["f32", 8, 0, 8, 8, 1, 1, 8, 0, 1, 0, 0, 0, 1]
    for position, value, message in [
        (0, "f64", "dtype must be 'f32', 'bf16' or 'f16', got 'f64'"),
        (1, 0, "prediction must be an address"),
        (3, 0, "gradient must be an address"),
        (4, 0, "loss must be an address"),
        (5, -1, "rows must be at least 0, got -1"),
        (7, 0, "weight must be an address"),
        (8, 2, "weight_stride must be 0"),
        (13, 0, "threads must be at least 1, got 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            native.dsm_loss(*[value if k == position else v for k, v in enumerate(good)])
