"""Linear measurements: the adjoint identity, what each one does to an image, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from ansn.sampling import Blur, Downsample, Linear, Mask, Operator
from tests.oracles import randn
from tests.tolerances import EXACT, rms_ratio

IMAGE = (2, 6, 4)
KNOWN = torch.rand(6, 4, generator=torch.Generator().manual_seed(0)) < 0.4
OPERATORS: dict[str, Operator] = {
    "mask": Mask(KNOWN, IMAGE),
    "mask of every channel its own": Mask(torch.rand(IMAGE, generator=torch.Generator().manual_seed(1)) < 0.5),
    "a mask a row": Mask(torch.rand(3, *IMAGE, generator=torch.Generator().manual_seed(7)) < 0.5, IMAGE),
    "mask of a vector": Mask(torch.tensor([True, False, True])),
    "circular blur": Blur(IMAGE, 1.3, "circular"),
    "reflecting blur": Blur(IMAGE, 0.7),
    "blur wider than the image": Blur(IMAGE, 4.0),
    "downsample": Downsample(IMAGE, 2),
    "matrix": Linear(randn(3, 48, seed=5), IMAGE),
    "matrix of vectors": Linear(randn(4, 3, seed=6)),
}


def data(operator: Operator, rows: int = 3) -> Tensor:
    return randn(rows, *operator.input_shape, seed=2)


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS.keys())
def test_the_adjoint_is_the_adjoint(operator):
    """``<A x, v> = <x, A^T v>`` row by row, and both are linear."""
    x, other = data(operator), randn(3, *operator.input_shape, seed=3)
    v = randn(3, *operator.shape, seed=4)
    assert operator(x).shape == (3, *operator.shape)
    assert operator.adjoint(v).shape == x.shape
    assert operator.size == v[0].numel()
    left, right = (operator(x) * v).flatten(1).sum(1), (x * operator.adjoint(v)).flatten(1).sum(1)
    assert rms_ratio(left, right) < EXACT
    assert rms_ratio(operator(2.0 * x - other), 2.0 * operator(x) - operator(other)) < EXACT
    assert float(operator(x).abs().max()) > 0


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS.keys())
def test_it_computes_in_the_argument_s_dtype(operator):
    single = operator(data(operator).float())
    assert single.dtype == torch.float32
    assert rms_ratio(single, operator(data(operator))) < 1e-6
    assert operator.adjoint(single).dtype == torch.float32


def test_a_mask_keeps_what_is_known():
    x = randn(3, *IMAGE)
    mask = OPERATORS["mask"]
    assert torch.equal(mask(x), x[:, KNOWN.expand(IMAGE)])
    assert torch.equal(mask.adjoint(mask(x)), x * KNOWN)


def test_a_mask_a_row_keeps_what_is_known_of_each():
    """Also of batches stacked on each other, and of a slice; ``A A^T`` is the identity on what is known."""
    mask, x = OPERATORS["a mask a row"], randn(6, *IMAGE)
    known = mask.known.repeat(2, 1, 1, 1)
    assert torch.equal(mask(x.where(known, torch.nan)), x * known)
    assert torch.equal(mask(mask.adjoint(x)), mask(x))
    assert torch.equal(mask.of_rows(1, 2)(x[1:3]), (x * known)[1:3])
    assert mask.known.shape == (3, *IMAGE), "a slice changed the whole"
    assert OPERATORS["mask"].of_rows(1, 2) is OPERATORS["mask"]


@pytest.mark.parametrize(("boundary", "mode"), [("circular", "wrap"), ("reflect", "reflect")])
def test_blur_is_scipy_s(boundary, mode):
    x = randn(3, *IMAGE)
    expected = torch.from_numpy(gaussian_filter(x.numpy(), 1.1, axes=(2, 3), mode=mode))
    assert rms_ratio(Blur(IMAGE, 1.1, boundary)(x), expected) < EXACT
    flat = torch.ones(1, *IMAGE, dtype=torch.float64)
    assert float((Blur(IMAGE, 1.1, boundary)(flat) - 1.0).abs().max()) < EXACT


def test_downsampling_is_the_mean_of_blocks():
    x = randn(3, *IMAGE)
    expected = torch.from_numpy(x.numpy().reshape(3, 2, 3, 2, 2, 2).mean((3, 5)))
    assert rms_ratio(Downsample(IMAGE, 2)(x), expected) < EXACT


def test_a_matrix_multiplies():
    matrix, x = randn(5, 48, seed=1), randn(3, *IMAGE)
    expected = np.einsum("mi,bi->bm", matrix.numpy(), x.numpy().reshape(3, -1))
    assert rms_ratio(Linear(matrix, IMAGE)(x), torch.from_numpy(expected)) < EXACT


WRONG = {
    "known of floats": (lambda: Mask(torch.ones(3)), "known: got torch.float32"),
    "nothing known": (lambda: Mask(torch.zeros(3, dtype=torch.bool)), "known: got torch.bool, 0 of them"),
    "known of another shape": (lambda: Mask(torch.ones(5, dtype=torch.bool), IMAGE), "known: got shape [5], expected"),
    "known of rows of another shape": (
        lambda: Mask(torch.ones(3, 5, dtype=torch.bool), (4,)),
        "known: got shape [3, 5], expected one that fits [4], or [N, 4]",
    ),
    "rows": (
        lambda: OPERATORS["a mask a row"](torch.zeros(4, *IMAGE)),
        "x: got 4 rows, expected 3, one a mask",
    ),
    "width": (lambda: Blur(IMAGE, 0.0), "width: got 0.0, expected a standard deviation > 0"),
    "boundary": (lambda: Blur(IMAGE, 1.0, "zero"), "boundary: got 'zero', expected 'circular' or 'reflect'"),
    "no image": (lambda: Blur((8, 8), 1.0), "input_shape: got (8, 8), expected images"),
    "factor": (lambda: Downsample(IMAGE, 3), "factor: got 3, expected a divisor of 6 and 4"),
    "factor of zero": (lambda: Downsample(IMAGE, 0), "factor: got 0"),
    "matrix": (lambda: Linear(torch.ones(3)), "matrix: got torch.float32 of shape [3]"),
    "not finite": (lambda: Linear(torch.full((2, 2), torch.nan)), "matrix: got"),
    "columns": (lambda: Linear(torch.ones(3, 5), IMAGE), "matrix: got 5 columns, expected 48"),
    "x": (lambda: OPERATORS["downsample"](torch.zeros(1, 2, 4, 6)), "x: got shape [1, 2, 4, 6], expected [B, 2, 6, 4]"),
    "v": (lambda: OPERATORS["matrix"].adjoint(torch.zeros(1, 4)), "v: got shape [1, 4], expected [B, 3]"),
}


@pytest.mark.parametrize(("call", "message"), WRONG.values(), ids=WRONG.keys())
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError) as error:
        call()
    assert str(error.value).startswith(message), str(error.value)
    assert "\n" not in str(error.value)
