"""Derivatives by ``torch.func``, forward mode and double backward: of every operation in every argument, and of the
denoiser. Each is right, or refused by a line that names the argument; none is silently 0."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, linearize, vjp, vmap

import ansn
from ansn import ops
from tests.ops.helpers import random_axes, random_factor
from tests.oracles import randn
from tests.tolerances import rms_ratio

Function = Callable[[Tensor], Tensor]
F32, F64 = torch.float32, torch.float64
ROWS, SHAPE, DIM, K = 3, (2, 2), 4, 3
REGION = torch.tensor([2, 0, 2])
CLOSE = {F64: 1e-7, F32: 2e-4}


def jacobians(f: Function, x: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The derivative of f in x, ``[outputs, inputs]``, by every way to it."""
    along = torch.eye(x.numel(), dtype=x.dtype).reshape(-1, *x.shape)
    out = f(x)
    back = torch.eye(out.numel(), dtype=out.dtype).reshape(-1, *out.shape)
    _, pull = vjp(f, x)

    def dual(t: Tensor) -> Tensor:
        with forward_ad.dual_level():
            slope = forward_ad.unpack_dual(f(forward_ad.make_dual(x, t))).tangent
            return torch.zeros_like(out) if slope is None else slope

    size = out.numel(), x.numel()
    yield "jacrev", jacrev(f)(x).reshape(size)
    yield "jacfwd", jacfwd(f)(x).reshape(size)
    yield "vjp", torch.stack([pull(u)[0] for u in back]).reshape(size)
    yield "vmap of vjp", vmap(pull)(back)[0].reshape(size)
    yield "grad", vmap(grad(lambda x, u: (f(x) * u).sum()), (None, 0))(x, back).reshape(size)
    yield "dual numbers", torch.stack([dual(t) for t in along]).reshape(size[::-1]).mT
    yield "vmap of jvp", vmap(lambda t: jvp(f, (x,), (t,))[1])(along).reshape(size[::-1]).mT


def differences(f: Function, x: Tensor, h: float = 1e-5) -> Tensor:
    """Central ones, ``[outputs, inputs]``, in x's precision."""
    along = torch.eye(x.numel(), dtype=x.dtype).reshape(-1, *x.shape)
    return torch.stack([(f(x + h * t) - f(x - h * t)).flatten() / (2 * h) for t in along]).mT


def positive(*shape: int, seed: int) -> Tensor:
    return 0.5 + randn(*shape, seed=seed).abs()


def by_axes(basis: Tensor, other: Tensor) -> ops.Axes:
    return ops.Axes([basis, other], [0, 1], SHAPE)


def solved(v: Tensor, factor: Tensor) -> Tensor:
    return ops.apply_factor(v, factor, REGION, transpose=True, inverse=True)


def filtered(v: Tensor, weights: Tensor, tau: Tensor, center: Tensor, **bases: Tensor) -> Tensor:
    known = {"weights": weights, "tau": tau, "center": center, "region": REGION, "rest": True}
    return ops.separable_apply(v, by_axes(**bases), **known)


def stepped(x: Tensor, basis: Tensor, other: Tensor, **known: Tensor) -> Tensor:
    return ops.separable_step(x, q=by_axes(basis, other), region=REGION, seed=3, row=1, **known)


def mixed(x: Tensor, basis: Tensor, other: Tensor, **known: Tensor) -> Tensor:
    denoised, logs = ops.mixture(x, by_axes(basis, other), **known)
    return torch.cat((denoised.flatten(), logs.flatten().to(x.dtype)))


FIRST, SECOND = random_axes(SHAPE, (0, 1), K).bases
X, D, F = (randn(ROWS, DIM, seed=i) for i in range(3))
TERMS = {"c": positive(ROWS, seed=3), "a": positive(ROWS, seed=4)}
BASES = {"basis": FIRST, "other": SECOND}
CASES: dict[str, tuple[Callable[..., Tensor], dict[str, Tensor], set[str]]] = {
    # the function, its arguments, and those that autograd follows
    "step": (lambda **k: ops.colored_step(**k, seed=3, row=1),
             {"x": X, "denoised": D, "f": F, **TERMS, "b": positive(ROWS, seed=11)}, {"x", "denoised", "f"}),
    "step, diagonal": (lambda **k: ops.colored_step(**k, region=REGION),
                       {"x": X, "denoised": D, "f": F, **TERMS, "factor": random_factor("diagonal", K, DIM, F64)},
                       {"x", "denoised", "f"}),
    "step, dense": (lambda **k: ops.colored_step(**k, c=0.1, lower=False),
                    {"x": X, "f": F, "a": TERMS["a"], "factor": random_factor("full", 1, DIM, F64)}, {"x", "f"}),
    "step, dense regions": (lambda **k: ops.colored_step(**k, region=REGION, lower=False),
                            {"x": X, "f": F, **TERMS, "factor": random_factor("full", K, DIM, F64)}, {"x", "f"}),
    "product": (lambda **k: ops.apply_factor(**k, lower=False),
                {"v": X, "factor": random_factor("full", 1, DIM, F64)}, {"v"}),
    "solve, regions": (solved, {"v": X, "factor": random_factor("lower", K, DIM, F64)}, {"v"}),
    "cholesky": (lambda m: ops.cholesky(0.5 * (m + m.mT))[0].tril(),
                 {"m": (lambda f: f @ f.mT)(random_factor("lower", 2, 3, F64))}, {"m"}),
    "loss": (ops.dsm_loss, {"prediction": X, "target": D, "weight": TERMS["c"]}, {"prediction"}),
    "loss, z again": (lambda **k: ops.dsm_loss(**k, weight=0.3, reduction="mean", seed=3), {"prediction": X},
                      {"prediction"}),
    "filter": (filtered, {"v": X, "weights": positive(K, DIM, seed=5), "tau": TERMS["a"], "center": randn(K, DIM),
                          **BASES}, {"v"}),
    "by axes, step": (stepped, {"x": X, "denoised": D, "f": F, **TERMS, "deviation": positive(K, DIM, seed=6), **BASES},
                      {"x", "denoised", "f"}),
    "mixture": (mixed, {"x": X, "center": randn(K, DIM, seed=7), "variances": positive(K, DIM, seed=8),
                        "log_weights": randn(K, seed=9), "sigma2": positive(ROWS, seed=10), **BASES}, {"x"}),
}  # fmt: skip
PLACES = [(case, name) for case in CASES for name in CASES[case][1]]
ONES = [place for place in PLACES if place[1] in CASES[place[0]][2]]


def of_one(case: str, name: str, dtype: torch.dtype = F64) -> tuple[Function, Tensor]:
    """The operation as a function of one argument."""
    call, values, _ = CASES[case]
    known = {k: v if k == "log_weights" else v.to(dtype) for k, v in values.items()}
    return (lambda value: call(**{**known, name: value}) if case != "cholesky" else call(value)), known[name]


def test_every_operation_but_updates_is_here():
    source = {"step": "colored_step", "product": "apply_factor", "cholesky": "cholesky", "loss": "dsm_loss",
              "filter": "separable_apply", "by axes, step": "separable_step", "mixture": "mixture"}  # fmt: skip
    assert {*source.values(), "covariance_update_", "separable_update_"} == set(ops.operations())
    assert source.keys() <= CASES.keys()


@pytest.mark.parametrize(("case", "name"), PLACES)
def test_first_derivatives(case, name):
    wanted = differences(*of_one(case, name))
    for dtype, close in CLOSE.items():
        for way, found in jacobians(*of_one(case, name, dtype)):
            assert rms_ratio(found, wanted) < close, (way, dtype)


@pytest.mark.parametrize(("case", "name"), PLACES)
def test_second_derivatives(case, name):
    """One transform inside another, and the operations' own gradients differentiated once more."""

    def scalar(f: Function) -> Function:
        return lambda x: f(x).pow(3).sum()

    wide, at = of_one(case, name)
    wanted = differences(grad(scalar(wide)), at)
    for dtype, close in CLOSE.items():
        f, x = of_one(case, name, dtype)
        found = [way(scalar(f))(x) for way in (hessian, lambda g: jacrev(jacrev(g)), lambda g: jacfwd(jacfwd(g)))]
        if (case, name) in ONES:
            leaf = x.clone().requires_grad_()
            (slope,) = torch.autograd.grad(scalar(f)(leaf), leaf, create_graph=True)
            found += [torch.stack([torch.autograd.grad(s, leaf, retain_graph=True)[0] for s in slope.flatten()])]
        for value in found:
            assert rms_ratio(value.reshape(wanted.shape), wanted) < 10 * close, dtype


@pytest.mark.parametrize(("case", "name"), [place for place in PLACES if place not in ONES])
def test_autograd_itself_refuses_what_has_no_gradient(case, name):
    f, x = of_one(case, name)
    shown = {"basis": "bases[0]", "other": "bases[1]"}.get(name, name)
    with pytest.raises(ValueError, match=f"^{re.escape(shown)}: got a tensor that requires grad, expected none"):
        f(x.clone().requires_grad_())


@pytest.mark.parametrize("dtype", [F64, F32])
@pytest.mark.parametrize(("case", "name"), ONES)
def test_gradients_in_batches(case, name, dtype):
    """What torch.autograd maps over: the backward of a pass that ran before."""
    f, x = of_one(case, name, dtype)
    leaf = x.clone().requires_grad_()
    out = f(leaf)
    back = torch.eye(out.numel(), dtype=out.dtype).reshape(-1, *out.shape)
    (found,) = torch.autograd.grad(out, leaf, back, is_grads_batched=True)
    assert rms_ratio(found.reshape(out.numel(), x.numel()), jacrev(f)(x).reshape(out.numel(), x.numel())) < CLOSE[dtype]


@pytest.mark.parametrize("dtype", [F64, F32])
@pytest.mark.parametrize("case", ["step, dense regions", "solve, regions", "filter", "by axes, step"])
def test_vmap_over_rows_and_their_regions(case, dtype):
    x, q, w = X.to(dtype), ops.Axes([FIRST, SECOND], [0, 1], SHAPE), positive(K, DIM, seed=5).to(dtype)
    factor = random_factor("full", K, DIM, dtype)
    each: Callable[[Tensor, Tensor], Tensor] = {
        "step, dense regions": lambda v, k: ops.colored_step(v, f=v * v, a=0.5, factor=factor, region=k, lower=False),
        "solve, regions": lambda v, k: ops.apply_factor(v, factor, k, inverse=True, lower=False),
        "filter": lambda v, k: ops.separable_apply(v, q, weights=w, tau=0.5, region=k),
        "by axes, step": lambda v, k: ops.separable_step(v, f=v * v, a=0.5, q=q, deviation=w, region=k),
    }[case]
    found = vmap(lambda v, k: each(v[None], k[None])[0])(x, REGION)
    assert rms_ratio(found, each(x, REGION)) < CLOSE[dtype]
    slopes = vmap(jacrev(lambda v, k: each(v[None], k[None])[0]))(x, REGION)
    pairs = zip(x.double(), REGION[:, None], strict=True)
    wanted = torch.stack([differences(lambda v, k=k: each(v[None], k)[0], v) for v, k in pairs])
    assert rms_ratio(slopes, wanted) < CLOSE[dtype]


Q, LOWER = ops.Axes([FIRST, SECOND], [0, 1], SHAPE), random_factor("lower", K, DIM, F32)
WEIGHTS, CENTER, LOGS = positive(K, DIM, seed=5).float(), randn(K, DIM).float(), randn(K)


def together(x: Tensor) -> Tensor:
    """Every operation of rows, one after the other."""
    v = ops.colored_step(x, x * x, x, c=0.3, a=0.2, factor=LOWER, region=REGION)
    v = v + ops.apply_factor(v, LOWER, REGION, inverse=True)
    v = ops.separable_step(v, f=v, a=0.5, q=Q, deviation=WEIGHTS, region=REGION)
    v = v + ops.separable_apply(v, Q, weights=WEIGHTS, tau=0.5, region=REGION, rest=True)
    v = v + ops.mixture(v, Q, CENTER, WEIGHTS, LOGS, torch.ones(()))[0]
    root = ops.cholesky((v.mT @ v + torch.eye(DIM, dtype=v.dtype)).unsqueeze(0))[0]
    return torch.cat((v.flatten(), root.flatten(), ops.dsm_loss(v, weight=0.3, seed=3)))


@pytest.mark.slow
def test_all_of_them_linearised_compiled_and_exported():
    """A tracer inside a transform, and a transform inside a compiled function."""
    x, t = X.float(), D.float()
    out, slope = jvp(together, (x,), (t,))
    assert rms_ratio(slope, differences(together, x.double()) @ t.double().flatten()) < 1e-3
    assert rms_ratio(linearize(together, x)[1](t), slope) < CLOSE[F32]
    torch._dynamo.reset()
    inside = torch.compile(lambda x, t: jvp(together, (x,), (t,))[1], fullgraph=True, backend="aot_eager")
    assert rms_ratio(inside(x, t), slope) < CLOSE[F32]

    class Module(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return together(x)

    assert rms_ratio(torch.export.export(Module(), (x,)).module()(x), out) < CLOSE[F32]


def denoiser(skip: str, structure: str) -> ansn.Denoiser:
    data = randn(200, 3, seed=1) @ randn(3, 3, seed=2)
    data[:100] += 4.0
    torch.manual_seed(0)
    rho = 0.0 if skip == "mixture" else 0.5
    covariance = ansn.AdaptiveCovariance(3, structure=structure, rho=rho)
    mixture = ansn.Mixture.for_data(data.float(), 2, structure) if skip == "mixture" else None
    noise = ansn.NoiseModel(covariance, ansn.levels.karras(5.0, 0.05, n=4), mixture=mixture)
    noise.update(data.float())
    return ansn.Denoiser(ansn.networks.MLP((3,), hidden=16), noise, skip=skip).eval()


@pytest.mark.parametrize("structure", ["dense", "separable", "diagonal"])
@pytest.mark.parametrize("skip", ["wiener", "scalar", "mixture"])
def test_the_denoiser(skip, structure):
    """D, f and the score of rows at levels of their own, in float32: all ways agree with finite differences."""
    model = denoiser(skip, structure)
    x, tau = randn(2, 3, seed=5).float(), torch.tensor([0.4, 1.5])
    for f in (model, model.f, model.score):
        wanted = differences(lambda x, f=f: f(x, tau), x, 5e-3)  # of float32: 1e-3 is what they are good for
        ways = dict(jacobians(lambda x, f=f: f(x, tau), x))
        for name, found in ways.items():
            assert rms_ratio(found, ways["jacrev"]) < 1e-5, name
            assert rms_ratio(found, wanted) < 2e-3, name
        each = vmap(jacrev(lambda v, t, f=f: f(v[None], t)[0]))(x, tau)
        assert rms_ratio(each, torch.stack([wanted.reshape(2, 3, 2, 3)[i, :, i] for i in range(2)])) < 2e-3
        leaf = x.clone().requires_grad_()
        rows = f(leaf, tau).flatten()
        eager = torch.stack([torch.autograd.grad(row, leaf, retain_graph=True)[0].flatten() for row in rows])
        assert rms_ratio(eager, ways["jacrev"]) < 1e-5
    if (skip, structure) == ("wiener", "dense"):
        _, push = linearize(lambda x: model.score(x, tau), x)
        assert rms_ratio(push(x), jvp(lambda x: model.score(x, tau), (x,), (x,))[1]) < 1e-5
        exported = torch.export.export(model, (x, tau)).module()
        assert rms_ratio(exported(x, tau).detach(), model(x, tau).detach()) < 1e-6
