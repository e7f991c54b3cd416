"""Derivatives, vmap and compilation of the operations by axes, and what they refuse."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import forward_ad

from ansn import ops
from tests.ops.helpers import generator, one_line, randn, random_axes
from tests.ops.test_separable import DIM, F32, F64, REGION, basis, fresh, parts, positive
from tests.tolerances import EXACT


def functions(regions: int) -> dict[str, Callable[[Tensor], Tensor]]:
    shape, dim = (2, 3), 6
    q, w, center = basis(regions, F64, shape), positive(regions, dim), randn(regions, dim, seed=8)
    region = REGION[:4] % regions if regions > 1 else None
    tau, logs = torch.linspace(0.3, 2.0, 4).double(), torch.zeros(regions).double()
    one, other, known = (
        randn(4, dim, seed=2),
        randn(4, dim, seed=3),
        {"q": q, "deviation": w, "region": region, "c": 0.3, "a": tau, "b": 0.5},
    )
    return {
        "filter": lambda x: ops.separable_apply(x, q, weights=w, tau=tau, center=center, region=region, rest=True),
        "coordinates": lambda x: ops.separable_apply(x, q, outward=False, weights=w, region=region),
        "step, x": lambda x: ops.separable_step(x, one, other, **known),
        "step, D": lambda x: ops.separable_step(one, x, other, **known),
        "step, f": lambda x: ops.separable_step(one, other, x, **known),
        "mixture": lambda x: ops.mixture(x, q, center, w, logs, tau.square())[0],
        "densities": lambda x: ops.mixture(x, q, center, w, logs, tau.square(), denoise=False)[1].logsumexp(0),
    }


FUNCTIONS = [(name, regions) for name, regions in itertools.product(functions(1), (1, 3))]


@pytest.mark.parametrize(("what", "regions"), FUNCTIONS)
def test_derivatives(what, regions):
    function, x = functions(regions)[what], randn(4, 6, seed=4)
    leaf = x.clone().requires_grad_()
    assert torch.autograd.gradcheck(function, (leaf,), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, (leaf,))
    reverse = torch.func.jacrev(function)(x)
    torch.testing.assert_close(torch.func.jacfwd(function)(x), reverse, rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("what", list(functions(1)))
def test_a_derivative_in_one_direction_is_no_nothing(what):
    """Of a tensor that autograd does not follow otherwise: no kernel may leave it out unseen."""
    function, x, along = functions(3)[what], randn(4, 6, seed=4), randn(4, 6, seed=5)
    with forward_ad.dual_level():
        _, slope = forward_ad.unpack_dual(function(forward_ad.make_dual(x, along)))
    torch.testing.assert_close(slope, torch.func.jvp(function, (x,), (along,))[1], rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("regions", [1, 3])
@settings(max_examples=20, deadline=None, derandomize=True)
@given(data=st.data())
def test_vmap_is_a_loop(regions, data):
    """Of rows, levels and regions, batched together or apart, along any dimension, one map inside another."""
    q, w, center = basis(regions, F64), positive(regions, DIM), randn(regions, DIM, seed=8)
    copies, rows = data.draw(st.integers(1, 3)), data.draw(st.sampled_from([1, 4]))
    several = data.draw(st.lists(st.booleans(), min_size=3, max_size=3).filter(any))
    owner = torch.randint(regions, (copies, rows), generator=generator(1))
    values = [randn(copies, rows, DIM), positive(copies, rows), owner]
    if data.draw(st.booleans()):
        values[1] = values[1][:, 0]
    values = [v if s else v[0] for v, s in zip(values, several, strict=True)]
    dims = [data.draw(st.integers(0, v.ndim - 1)) if s else None for v, s in zip(values, several, strict=True)]
    placed = [v if at is None else v.movedim(0, at) for v, at in zip(values, dims, strict=True)]

    def function(v: Tensor, tau: Tensor, region: Tensor) -> Tensor:
        return ops.separable_apply(v, q, weights=w, tau=tau, center=center, region=region, rest=True)

    each = [[v[i] if s else v for v, s in zip(values, several, strict=True)] for i in range(copies)]
    wanted = torch.stack([function(*one) for one in each])
    torch.testing.assert_close(torch.vmap(function, tuple(dims))(*placed), wanted, rtol=EXACT, atol=EXACT)
    if several[0]:
        slopes = torch.vmap(torch.func.grad(lambda *a: function(*a).square().sum()), tuple(dims))(*placed)
        for slope, one in zip(slopes, each, strict=True):
            expected = torch.func.grad(lambda *a: function(*a).square().sum())(*one)
            torch.testing.assert_close(slope, expected, rtol=EXACT, atol=EXACT)


def test_a_basis_for_each_copy_is_its_own():
    bases, rows = random_axes((6,), (0,), 3).bases[0].unsqueeze(1), randn(3, 2, 6)

    def turned(v: Tensor, b: Tensor) -> Tensor:
        return ops.separable_apply(v, ops.Axes([b], [0], (6,)), inward=False)

    wanted = torch.stack([turned(v, b) for v, b in zip(rows, bases, strict=True)])
    torch.testing.assert_close(torch.vmap(turned)(rows, bases), wanted, rtol=EXACT, atol=EXACT)


def check_compiled(backend: str, regions: int) -> None:
    torch._dynamo.reset()
    made = tuple(functions(regions).values())

    def everything(x: Tensor) -> tuple[Tensor, ...]:
        return tuple(function(x) for function in made)

    x = randn(4, 6, seed=4).requires_grad_()
    eager, graph = everything(x), torch.compile(everything, fullgraph=True, backend=backend)(x)
    for one, other in zip(eager, graph, strict=True):
        slopes = (torch.autograd.grad(out.square().sum(), x, retain_graph=True)[0] for out in (other, one))
        torch.testing.assert_close(other, one, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(*slopes, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("regions", [1, 3])
def test_compiles_in_one_graph_with_gradients(regions):
    check_compiled("eager", regions)


@pytest.mark.slow
def test_compiles_with_the_default_backend():
    check_compiled("inductor", 3)


def test_the_update_compiles():
    torch._dynamo.reset()
    q = basis(2, F32)

    def update(x: Tensor, region: Tensor, *state: Tensor) -> Tensor:
        ops.separable_update_(*state[:4], list(state[4:]), x, q, region, decay=0.9)
        return 2.0 * state[3]

    compiled = torch.compile(update, fullgraph=True, backend="aot_eager")
    one, other = fresh(2, q, F32), fresh(2, q, F32)
    for i in range(2):
        x, region = randn(5, DIM, seed=i, dtype=F32), torch.arange(5) % 2
        assert torch.equal(compiled(x, region, *parts(one)), update(x, region, *parts(other)))


# -- wrong inputs

V, Q = torch.zeros(3, 6), random_axes((2, 3), (0, 1), 1, F32)
Q2, ONE, TWO = random_axes((2, 3), (0, 1), 2, F32), torch.ones(1, 6), torch.ones(2, 6)
META = torch.ones(1, 6, device="meta")
APPLY = [
    ("v", TypeError, (V.long(), Q), {}),
    ("v", ValueError, (V[0], Q), {}),
    ("v", ValueError, (torch.zeros(3, 5), Q), {}),
    ("axes", ValueError, (V, ops.Axes(Q.bases, (1, 0), (3, 2))), {}),
    ("axes", ValueError, (V, ops.Axes(Q.bases, (0, 2), (2, 3))), {}),
    ("axes", ValueError, (V, ops.Axes(Q.bases[:1], (0, 1), (2, 3))), {}),
    ("bases[1]", ValueError, (V, ops.Axes([Q.bases[0], torch.eye(3)], (0, 1), (2, 3))), {}),
    ("bases[0]", TypeError, (V, ops.Axes([Q.bases[0].int(), Q.bases[1]], (0, 1), (2, 3))), {}),
    ("bases[1]", ValueError, (V, ops.Axes([Q2.bases[0], torch.ones(3, 3, 3)], (0, 1), (2, 3))), {"region": REGION[:3]}),
    ("bases[0]", ValueError, (V, ops.Axes([b.to("meta") for b in Q.bases], (0, 1), (2, 3))), {}),
    ("weights", TypeError, (V, Q), {"weights": 2.0}),
    ("weights", ValueError, (V, Q), {"weights": torch.ones(6)}),
    ("weights", ValueError, (V, Q), {"weights": META}),
    ("weights", ValueError, (V, Q), {"tau": 1.0}),
    ("weights", ValueError, (V, Q), {"weights": ONE.clone().requires_grad_()}),
    ("center", ValueError, (V, Q), {"center": torch.ones(1, 5)}),
    ("center", ValueError, (V, Q), {"center": TWO, "weights": torch.ones(3, 6), "region": REGION[:3]}),
    ("tau", ValueError, (V, Q), {"weights": ONE, "tau": torch.ones(4)}),
    ("tau", TypeError, (V, Q), {"weights": ONE, "tau": "1"}),
    ("region", ValueError, (V, Q2), {}),
    ("region", ValueError, (V, Q2), {"region": REGION[:2]}),
    ("region", ValueError, (V, Q2), {"region": REGION[:3]}),
    ("region", ValueError, (V, Q), {"weights": TWO, "region": REGION[:3] - 1}),
]
STEP = [
    ("x", ValueError, (torch.zeros(3, 5),), {}),
    ("denoised", ValueError, (V, torch.zeros(2, 6)), {"c": 1.0}),
    ("f", TypeError, (V, None, V.int()), {"a": 1.0}),
    ("deviation", ValueError, (V,), {"deviation": torch.ones(1, 5)}),
    ("b", ValueError, (V,), {"b": torch.ones(2)}),
    ("c", ValueError, (V, V), {"c": torch.ones(3, requires_grad=True)}),
    ("seed", ValueError, (V,), {"seed": -1}),
    ("region", ValueError, (V,), {"deviation": TWO}),
    ("region", ValueError, (V,), {"deviation": TWO, "region": REGION[:3]}),
]
MIXTURE = [
    ("x", ValueError, {"x": V[:, :5]}),
    ("center", ValueError, {"center": ONE[0]}),
    ("variances", ValueError, {"center": ONE}),
    ("variances", ValueError, {"variances": ONE}),
    ("bases[0]", ValueError, {"q": random_axes((2, 3), (0, 1), 3, F32)}),
    ("log_weights", ValueError, {"log_weights": torch.zeros(1)}),
    ("log_weights", TypeError, {"log_weights": [0.0, 0.0]}),
    ("sigma2", ValueError, {"sigma2": torch.ones(2)}),
    ("sigma2", TypeError, {"sigma2": 1.0}),
]
UPDATE = [
    ("weight", ValueError, {"weight": torch.zeros(2)}),
    ("weight2", ValueError, {"weight2": torch.zeros(1).double()}),
    ("mean", ValueError, {"mean": torch.ones(2, 5)}),
    ("scatter", ValueError, {"scatter": ONE}),
    ("scatter", ValueError, {"scatter": TWO.double()}),
    ("axis_scatters", ValueError, {"axis_scatters": [torch.zeros(2, 2, 2)]}),
    ("axis_scatters", ValueError, {"axis_scatters": [torch.zeros(1, n, n) for n in (2, 3)]}),
    ("axis_scatters", ValueError, {"axis_scatters": [torch.zeros(2, n, n).double() for n in (2, 3)]}),
    ("x", ValueError, {"x": V[0]}),
    ("bases[0]", ValueError, {"q": random_axes((2, 3), (0, 1), 3, F32)}),
    ("region", ValueError, {"region": None}),
    ("decay", ValueError, {"decay": 0.0}),
]


@pytest.mark.parametrize(("argument", "kind", "arguments", "options"), APPLY)
def test_wrong_arguments_of_apply_are_named(argument, kind, arguments, options):
    with pytest.raises(kind) as error:
        ops.separable_apply(*arguments, **options)
    one_line(error, argument)


@pytest.mark.parametrize(("argument", "kind", "arguments", "options"), STEP)
def test_wrong_arguments_of_a_step_are_named(argument, kind, arguments, options):
    with pytest.raises(kind) as error:
        ops.separable_step(*arguments, **{"q": Q, "deviation": ONE, "b": 1.0, **options})
    one_line(error, argument)


@pytest.mark.parametrize(("argument", "kind", "options"), MIXTURE)
def test_wrong_arguments_of_the_mixture_are_named(argument, kind, options):
    given = {"x": V, "q": Q2, "center": TWO, "variances": TWO, "log_weights": torch.zeros(2), "sigma2": torch.ones(())}
    with pytest.raises(kind) as error:
        ops.mixture(**given | options)
    one_line(error, argument)


@pytest.mark.parametrize(("argument", "kind", "options"), UPDATE)
def test_wrong_arguments_of_the_update_are_named(argument, kind, options):
    names = ("weight", "weight2", "mean", "scatter", "axis_scatters")
    given = dict(zip(names, fresh(2, Q, F32), strict=True)) | {"x": V, "q": Q2, "region": REGION[:3] % 2}
    with pytest.raises(kind) as error:
        ops.separable_update_(**given | options)
    one_line(error, argument)


def test_one_memory_for_both_weights_is_refused():
    state = fresh(2, Q, F32)
    with pytest.raises(ValueError, match="weight2: got weight's memory"):
        ops.separable_update_(state[0], state[0], *state[2:], V, Q2, REGION[:3] % 2)
