"""The back end "triton" behind the public functions, on CPU tensors under the interpreter."""

from __future__ import annotations

import os

import pytest
import torch

from ansn import ops
from ansn.ops import _dispatch, reference, triton
from tests.ops.helpers import error_ratio, numpy_step, randn, random_factor
from tests.tolerances import RATIO

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("these run under TRITON_INTERPRET=1, which has to be set first", allow_module_level=True)


@pytest.mark.parametrize("kind", ["none", "diagonal", "lower", "full"])
@pytest.mark.parametrize("terms", ["cab", "c"])
def test_every_factor_has_its_kernel(kind, terms):
    x, denoised, f = (randn(5, 7, seed=i, dtype=torch.float32) for i in range(3))
    factor = random_factor(kind, 3, 7)
    region = None if factor is None else torch.tensor([2, 0, 2, 2, 0])
    options = {name: 0.25 + i for i, name in enumerate("cab") if name in terms} | {"seed": 3, "row": 4, "step": 5}
    with ops.backend("triton"):
        out = ops.colored_step(x, denoised, f, **options, factor=factor, region=region, lower=kind != "full")
    given = (x, denoised, f if "a" in terms else None)
    wanted = numpy_step(*given, **options, factor=factor, region=region)
    assert error_ratio(out, wanted) <= RATIO["colored_step"][torch.float32]


def test_images_strided_input_and_gradients():
    """What the public function flattens and copies reaches the kernel whole; autograd stays outside."""
    x = randn(6, 2, 3, 4, dtype=torch.float32)[::2].transpose(1, 2).requires_grad_()
    with ops.backend("triton"):
        out = ops.colored_step(x, b=0.5, seed=1)
        loss = ops.dsm_loss(x, weight=0.5, seed=1)
        (gradient,) = torch.autograd.grad(loss.sum(), x)
    with ops.backend("reference"):
        torch.testing.assert_close(out, ops.colored_step(x, b=0.5, seed=1), rtol=1e-5, atol=1e-5)
        wanted = ops.dsm_loss(x, weight=0.5, seed=1)
        torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(gradient, torch.autograd.grad(wanted.sum(), x)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        (lambda: ops.colored_step(torch.zeros(2, 3).double(), b=1.0), "x is torch.float64"),
        (lambda: ops.colored_step(torch.zeros(2, 3), torch.zeros(2, 3).double(), c=1.0), "denoised is torch.float64"),
        (lambda: ops.dsm_loss(torch.zeros(2, 3).double()), "prediction is torch.float64"),
        (lambda: ops.apply_factor(torch.zeros(2, 3), torch.eye(3)[None], inverse=True), "neither solves"),
    ],
)
def test_what_it_cannot_run_is_said(case, reason):
    with ops.backend("triton"), pytest.raises(RuntimeError, match=f"cannot run on back end 'triton': .*{reason}") as e:
        case()
    assert "\n" not in str(e.value)
    with ops.backend("auto"):
        case()


@pytest.mark.parametrize("terms", ["b", "cab", "a"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_auto_leaves_a_large_product_of_one_region_to_the_vendor(monkeypatch, terms, dtype):
    """The push and the rest of the step are Triton's; a product or an update by itself is the reference's, of torch."""
    from ansn.kernels import dense_step

    def never(*_):
        raise AssertionError("our own product ran")

    monkeypatch.setattr(triton, "SMALL", 5)
    monkeypatch.setitem(_dispatch._PREFERENCE, "cpu", ("triton", "reference"))
    rows = triton.FEW_ROWS + 1
    x, denoised, f = (randn(rows, 7, seed=i).to(dtype) for i in range(3))
    factor = random_factor("full", 1, 7)
    options = {name: 0.25 + torch.rand(rows) for name in terms} | {"seed": 3, "row": 4, "step": 5}
    given = (x, denoised if "c" in terms else None, f if "a" in terms else None)
    with monkeypatch.context() as patch:
        patch.setattr(dense_step, "_product", never)
        out = ops.colored_step(*given, **options, factor=factor, lower=False)
        colored = ops.apply_factor(x, factor, lower=False)
        with pytest.raises(AssertionError):
            ops.colored_step(x[:-1], b=1.0, factor=factor, lower=False)  # few rows: one kernel of ours
    numbers = {k: v.double().numpy() if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    allowed = RATIO["colored_step"][dtype] * (2 if dtype == torch.bfloat16 else 1)  # the interpreter cuts
    assert error_ratio(out, numpy_step(*given, **numbers, factor=factor)) <= allowed
    assert torch.equal(colored, reference.apply_factor(x, factor, None, False, False, False))


def test_the_moments_and_the_product_go_through():
    state = [torch.zeros(1).double(), torch.zeros(1).double(), torch.zeros(1, 5), torch.zeros(1, 5, 5)]
    x, factor = randn(9, 5, dtype=torch.float32), random_factor("lower", 1, 5)
    with ops.backend("triton"):
        ops.covariance_update_(*state, x)
        product = ops.apply_factor(x, factor)
    wanted = torch.cov(x.double().T).tril() * 8
    torch.testing.assert_close(state[3][0].double().tril(), wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(product, x @ factor[0].mT, rtol=1e-5, atol=1e-5)


def test_a_row_that_is_not_finite_leaves_the_moments_alone():
    """On the CPU, as with every back end."""
    state = [torch.zeros(1).double(), torch.zeros(1).double(), torch.zeros(1, 3), torch.zeros(1, 3, 3)]
    x = randn(4, 3, dtype=torch.float32)
    x[2, 1] = float("nan")
    with ops.backend("triton"), pytest.raises(ValueError, match="x: got a value that is not finite in row 2"):
        ops.covariance_update_(*state, x)
    assert all(bool((t == 0.0).all()) for t in state)
