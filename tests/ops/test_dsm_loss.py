"""The fused loss and its gradient: against the formula, with a target and with z regenerated."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ansn import ops
from tests.native import oracle
from tests.ops.helpers import DTYPES, back_ends, error_ratio, needs_native, on, one_line, randn
from tests.tolerances import RATIO


@settings(max_examples=80, deadline=None, derandomize=True)
@given(data=st.data())
def test_every_back_end_equals_the_formula(data):
    dtype = data.draw(st.sampled_from(DTYPES))
    rows, dim = data.draw(st.integers(0, 9)), data.draw(st.integers(1, 37))
    prediction = randn(rows, dim, dtype=dtype)
    target = data.draw(st.sampled_from([None, randn(rows, dim, seed=1, dtype=dtype)]))
    weight = data.draw(st.sampled_from([0.5, torch.tensor(0.25), torch.linspace(0.5, 2, rows)]))
    counters = {"seed": data.draw(st.integers(0, 2**63 - 1)), "row": 7, "step": data.draw(st.integers(0, 2**32 - 1))}
    if target is None:
        wanted = -oracle.noise(counters["seed"], 7, rows, dim, counters["step"], ops.PERTURB)
    else:
        wanted = target.double().numpy()
    residual = prediction.double().numpy() - wanted
    w = np.asarray(weight, np.float64) * np.ones(rows)
    expected, slope = w * np.mean(residual**2, axis=1), 2 * w[:, None] * residual / dim
    for name in back_ends("dsm_loss"):
        p = prediction.clone().requires_grad_()
        loss = on(name, lambda: ops.dsm_loss(p, target, weight=weight, **counters))  # noqa: B023
        if loss is None:
            continue
        assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert loss.shape == (rows,)
        # The sum is made in float32 whatever the storage is.
        assert error_ratio(loss.detach(), expected) <= RATIO["dsm_loss"][loss.dtype]
        (3.0 * loss).sum().backward()
        assert p.grad.dtype == dtype
        assert error_ratio(p.grad, 3.0 * slope) <= RATIO["dsm_loss"][dtype]


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("with_target", [True, False])
def test_native_runs_what_it_is_for(dtype, with_target):
    """The test above skips what a back end refuses; these it may not refuse, and float64 it must."""
    prediction = randn(3, 600, dtype=dtype)
    target = randn(3, 600, seed=1, dtype=dtype) if with_target else None
    wanted = -oracle.noise(1, 2, 3, 600, 3, ops.PERTURB) if target is None else target.double().numpy()
    with ops.backend("native"):
        loss = ops.dsm_loss(prediction, target, seed=1, row=2, step=3)
        with pytest.raises(RuntimeError, match="dsm_loss: cannot run on back end 'native': float64"):
            ops.dsm_loss(prediction.double(), target)
        with pytest.raises(RuntimeError, match="dsm_loss: cannot run on back end 'native': target is"):
            ops.dsm_loss(prediction, prediction.double())
    expected = np.mean((prediction.double().numpy() - wanted) ** 2, axis=1)
    assert error_ratio(loss, expected) <= RATIO["dsm_loss"][torch.float32]


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("weight", [0.3, torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)])
@pytest.mark.parametrize("with_target", [True, False])
def test_gradients(with_target, weight, reduction):
    """And the second one, of a penalty on the first."""
    prediction = randn(3, 2, 2).requires_grad_()
    target = randn(3, 2, 2, seed=1) if with_target else None

    def loss(p):
        return ops.dsm_loss(p, target, weight=weight, reduction=reduction, seed=4, row=2, step=9)

    assert torch.autograd.gradcheck(loss, (prediction,), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(loss, (prediction,))


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_gradient_that_is_differentiated_itself_is_the_same(dtype, reduction):
    prediction = randn(5, 7, dtype=dtype).requires_grad_()
    loss = ops.dsm_loss(prediction, weight=0.3, reduction=reduction, seed=4).square().sum()
    plain, kept = (torch.autograd.grad(loss, prediction, create_graph=g, retain_graph=True)[0] for g in (False, True))
    assert error_ratio(kept.detach(), plain.double().numpy()) <= RATIO["dsm_loss"][dtype]
    (second,) = torch.autograd.grad(kept.float().sum(), prediction)
    assert second.dtype == dtype
    assert bool((second != 0).all())


def test_regenerated_noise_is_the_one_that_was_drawn():
    """f = -z has no loss, and none but that z."""
    counters = {"seed": 11, "row": 30, "step": 2}
    z = ops.colored_step(torch.zeros(4, 9, dtype=torch.float64), b=1.0, stream=ops.PERTURB, **counters)
    assert torch.equal(ops.dsm_loss(-z, **counters), torch.zeros(4, dtype=torch.float64))
    assert bool((ops.dsm_loss(-z, **{**counters, "row": 31}) > 1e-3).all())


@pytest.mark.parametrize("scale", [2.0**17, 2.0**-26])
def test_a_loss_scale_that_float16_does_not_hold(scale):
    """Scaled gradients that float16 does hold arrive: the scale itself is never rounded to it."""
    prediction = (randn(3, 4) / (50.0 if scale > 1 else 2e-7)).clamp(-6e4, 6e4).half().requires_grad_()
    (scale * ops.dsm_loss(prediction, torch.zeros(3, 4).half())).sum().backward()
    expected = scale * 2.0 / 4 * prediction.detach().double().numpy()
    assert error_ratio(prediction.grad, expected) <= RATIO["dsm_loss"][torch.float16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 3, 5])
def test_the_mean_is_that_of_the_rows(dtype, rows):
    """Value and gradient on every back end, differentiated itself (no second pass then) and scaled, twice over."""
    prediction, weight = randn(rows, 7, dtype=dtype), torch.linspace(0.5, 2.0, rows)
    residual = prediction.double().numpy() + oracle.noise(3, 2, rows, 7, 1, ops.PERTURB)
    value = np.mean(weight.double().numpy() * np.mean(residual**2, axis=1))
    slope = 2 * weight.double().numpy()[:, None] * residual / (7 * rows)
    options = {"weight": weight, "reduction": "mean", "seed": 3, "row": 2, "step": 1}
    for name in back_ends("dsm_loss"):
        leaf = prediction.clone().requires_grad_()
        loss = on(name, lambda: ops.dsm_loss(leaf, **options))  # noqa: B023
        if loss is None:
            continue
        assert loss.shape == ()
        assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert error_ratio(loss.detach(), value) <= RATIO["dsm_loss"][loss.dtype]
        for scale in (1.0, 3.0, 1.0, -0.5):
            (gradient,) = torch.autograd.grad(loss, leaf, torch.tensor(scale, dtype=loss.dtype), retain_graph=True)
            assert gradient.dtype == dtype
            assert error_ratio(gradient, scale * slope) <= RATIO["dsm_loss"][dtype]


def test_the_gradient_of_the_mean_is_kept_for_a_second_backward():
    """It is handed out as it is: a leaf gets its own, and a write into the one kept is an error, not a wrong one."""
    leaf = randn(4, 6).requires_grad_()
    loss = ops.dsm_loss(leaf, seed=1, reduction="mean")
    loss.backward(retain_graph=True)
    once = leaf.grad.clone()
    leaf.grad.mul_(7.0)
    leaf.grad = None
    loss.backward(retain_graph=True)
    assert torch.equal(leaf.grad, once)
    (kept,) = torch.autograd.grad(loss, leaf, retain_graph=True)
    kept.mul_(7.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(loss, leaf)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weight", [1.0, torch.ones(0)])
def test_the_mean_of_no_rows_is_0(weight, dtype):
    """A rank without rows, or an epoch's empty rest, must not poison the weights of a network."""
    head = torch.ones(4, dtype=dtype, requires_grad=True)
    loss = ops.dsm_loss(torch.empty(0, 4, dtype=dtype) * head, weight=weight, reduction="mean")
    assert float(loss.detach()) == float(ops.dsm_loss(torch.empty(0, 4, dtype=dtype), reduction="mean")) == 0.0
    assert torch.equal(torch.autograd.grad(loss, head)[0], torch.zeros_like(head))


@pytest.mark.parametrize("scale", [2.0**17, 2.0**24])
def test_the_mean_s_share_does_not_underflow_float16(scale):
    """Gradients that only the loss scale brings into float16's range."""
    prediction = (randn(512, 64) * 1e-4).half().requires_grad_()
    (scale * ops.dsm_loss(prediction, torch.zeros(512, 64).half(), reduction="mean")).backward()
    expected = scale * 2.0 / (64 * 512) * prediction.detach().double().numpy()
    assert error_ratio(prediction.grad, expected) <= RATIO["dsm_loss"][torch.float16]


@pytest.mark.parametrize("argument", ["target", "weight"])
def test_what_has_no_gradient_refuses_one(argument):
    """Swapped arguments would else train nothing, in silence."""
    values = {"target": randn(2, 3, seed=1), "weight": torch.ones(2)}
    values[argument].requires_grad_()
    with pytest.raises(ValueError, match=f"{argument}: got a tensor that requires grad"):
        ops.dsm_loss(randn(2, 3).requires_grad_(), **values)
    with torch.no_grad():
        ops.dsm_loss(randn(2, 3), **values)


P = torch.zeros(3, 4)


@pytest.mark.parametrize(
    ("argument", "kind", "options"),
    [
        ("prediction", TypeError, {"prediction": torch.zeros(3, 4, dtype=torch.int32)}),
        ("prediction", ValueError, {"prediction": torch.zeros(3)}),
        ("target", ValueError, {"target": torch.zeros(4, 3)}),
        ("target", TypeError, {"target": "x"}),
        ("weight", ValueError, {"weight": torch.ones(4)}),
        ("weight", ValueError, {"weight": 0}),
        ("weight", TypeError, {"weight": "heavy"}),
        ("reduction", ValueError, {"reduction": "sum"}),
        ("seed", ValueError, {"seed": -1}),
        ("step", ValueError, {"step": -1}),
    ],
)
def test_wrong_arguments_are_named(argument, kind, options):
    with pytest.raises(kind) as error:
        ops.dsm_loss(**{"prediction": P, **options})
    one_line(error, argument)
