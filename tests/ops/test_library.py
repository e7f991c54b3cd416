"""The operations as PyTorch sees them: schema, fake, and compilation in one graph."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ansn import ops
from tests.ops.helpers import back_ends, on, randn, random_axes, random_factor
from tests.tolerances import rms_ratio

COUNTERS = (3, 5, 7, ops.LANGEVIN)
REGION = torch.tensor([0, 2, 1, 2])


def step_arguments(terms: str, kind: str, regions: int, dtype: torch.dtype = torch.float32) -> tuple:
    x, denoised, f = (randn(4, 6, seed=s, dtype=dtype) for s in (1, 2, 3))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return (
        x, denoised if "c" in terms else None, f if "a" in terms else None,
        *(torch.rand(4, dtype=wide) if n in terms else None for n in "cab"),
        random_factor(kind, regions, 6, wide), REGION % regions if regions > 1 else None, kind != "full", *COUNTERS,
    )  # fmt: skip


def by_axes(regions: int, dtype: torch.dtype = torch.float32) -> tuple:
    return tuple(random_axes((2, 3), (0, 1), regions, dtype))


def single(*shape: int, seed: int = 0) -> Tensor:
    return randn(*shape, seed=seed, dtype=torch.float32)


CASES = {
    "step, no term": ("colored_step", step_arguments("", "none", 1)),
    "step, draw": ("colored_step", step_arguments("b", "none", 1)),
    "step, dense draw": ("colored_step", step_arguments("b", "lower", 1)),
    "step, diagonal regions": ("colored_step", step_arguments("cab", "diagonal", 3)),
    "step, dense regions": ("colored_step", step_arguments("cab", "full", 3, torch.float64)),
    "step, half": ("colored_step", step_arguments("cb", "none", 1, torch.bfloat16)),
    "apply, dense": ("apply_factor", (randn(4, 6), random_factor("lower", 1, 6), None, False, False, True)),
    "apply, dense solve, regions": ("apply_factor", (randn(4, 6), random_factor("full", 3, 6), REGION, True, True,
                                                     False)),
    "apply, diagonal": ("apply_factor", (randn(4, 6), random_factor("diagonal", 1, 6), None, False, True, True)),
    "step, dense regions, single": ("colored_step", step_arguments("cab", "lower", 3)),
    "step, dense, half": ("colored_step", step_arguments("cab", "lower", 1, torch.float16)),
    "apply, dense product, single": ("apply_factor", (randn(4, 6).float(), random_factor("lower", 3, 6), REGION, True,
                                                      False, True)),
    "cholesky, single": ("cholesky", (torch.eye(3).expand(2, 3, 3).contiguous().float(),)),
    "loss, target, single": ("dsm_loss", (randn(4, 6).float(), randn(4, 6, seed=1).float(), torch.ones(4), *COUNTERS)),
    "update, dense regions": ("covariance_update_", (torch.ones(3).double(), torch.ones(3).double(),
                              torch.zeros(3, 6), torch.eye(6).repeat(3, 1, 1), randn(4, 6).float(), REGION, 0.5)),
    "cholesky": ("cholesky", (torch.eye(3).expand(2, 3, 3).contiguous(),)),
    "loss, target": ("dsm_loss", (randn(4, 6), randn(4, 6, seed=1), torch.ones(4).double(), *COUNTERS)),
    "loss, regenerated": ("dsm_loss", (randn(4, 6).float(), None, torch.tensor(0.5), *COUNTERS)),
    "update, dense": ("covariance_update_", (torch.zeros(1).double(), torch.zeros(1).double(), torch.zeros(1, 6),
                                             torch.zeros(1, 6, 6), randn(4, 6).float(), None, 1.0)),
    "update, diagonal regions": ("covariance_update_", (torch.ones(3).double(), torch.ones(3).double(),
                                 torch.zeros(3, 6).double(), torch.ones(3, 6).double(), randn(4, 6), REGION, 0.5)),
    "by axes, filter, regions": ("separable_apply", (single(4, 6), single(3, 6, seed=1), single(3, 6, seed=2).abs(),
                                 torch.ones(4), REGION, True, True, True, *by_axes(3))),
    "by axes, product": ("separable_apply", (randn(4, 6), None, None, None, None, True, False, False,
                                             *by_axes(1, torch.float64))),
    "by axes, nothing": ("separable_apply", (single(4, 6), None, None, None, None, False, False, False, [], [], [6])),
    "by axes, step": ("separable_step", (*(single(4, 6, seed=s) for s in (1, 2, 3)), *torch.rand(3, 4),
                                         single(3, 6).abs(), REGION, *by_axes(3), *COUNTERS)),
    "by axes, draw, half": ("separable_step", (single(4, 6).half(), None, None, None, None, torch.tensor(0.5),
                                               single(1, 6).abs(), None, *by_axes(1), *COUNTERS)),
    "by axes, update": ("separable_update_", (torch.ones(3).double(), torch.ones(3).double(), single(3, 6),
                        torch.zeros(3, 6), [torch.zeros(3, 2, 2), torch.zeros(3, 3, 3)], single(4, 6), REGION,
                        *by_axes(3), 0.5)),
    "by axes, update, variances": ("separable_update_", (torch.ones(1).double(), torch.ones(1).double(), randn(1, 6),
                                   torch.zeros(1, 6).double(), [], single(4, 6), None, *by_axes(1), 1.0)),
    "mixture": ("mixture", (single(4, 6), single(3, 6, seed=1), single(3, 6, seed=2).abs(), torch.zeros(3).double(),
                            torch.ones(4), True, *by_axes(3))),
    "mixture, logarithms": ("mixture", (randn(4, 6), randn(3, 6, seed=1), randn(3, 6, seed=2).abs(),
                                        torch.zeros(3).double(), torch.tensor(0.5).double(), False, *by_axes(1))),
}  # fmt: skip


BACKENDS = [(case, name) for case in CASES for name in ("auto", *ops.registered(CASES[case][0]))]


@pytest.mark.parametrize(("case", "name"), BACKENDS)
def test_opcheck(case, name):
    """Schema (aliasing, mutation), fake and dispatch, on every back end that can run the case."""
    operation, arguments = CASES[case]
    overload = getattr(torch.ops.ansn, operation).default

    def fresh() -> tuple:
        return torch.utils._pytree.tree_map_only(Tensor, Tensor.clone, arguments)

    refusals: set[str] = set()
    if on(name, lambda: (overload(*fresh()),), refusals) is None:
        pytest.skip(f"{name!r} does not run this case: {refusals.pop()}")
    with ops.backend(name):
        torch.library.opcheck(overload, fresh())


def test_every_operation_is_checked():
    assert {operation for operation, _ in CASES.values()} == set(ops.operations())


def everything(x: Tensor, f: Tensor, factor: Tensor, step: int) -> tuple[Tensor, ...]:
    """Every operation but the update, which compiles on its own below."""
    y = ops.colored_step(x, 2 * f, f, c=0.5, a=0.25, b=2.0, factor=factor, seed=1, row=4, step=step)
    white = ops.apply_factor(y, factor, inverse=True)
    loss = ops.dsm_loss(white, weight=0.5, seed=1, row=4, step=step)
    root, info = ops.cholesky(factor @ factor.mT)
    return y, white, loss, root, info


def check_compiled(backend: str) -> None:
    torch._dynamo.reset()
    factor = random_factor("lower", 1, 6)
    compiled = torch.compile(everything, fullgraph=True, backend=backend)
    for step in (0, 1, 2, 4_000_000_000):
        x, f = (
            randn(4, 6, dtype=torch.float32).requires_grad_(),
            randn(4, 6, seed=1, dtype=torch.float32).requires_grad_(),
        )
        eager, graph = everything(x, f, factor, step), compiled(x, f, factor, step)
        for a, b in zip(eager, graph, strict=True):
            assert rms_ratio(b.detach(), a.detach()) < 1e-6
        # The noise is that of this step, not of the step at which the graph was made.
        wanted = torch.autograd.grad(eager[2].sum() + eager[0].square().sum(), (x, f))
        got = torch.autograd.grad(graph[2].sum() + graph[0].square().sum(), (x, f))
        for a, b in zip(wanted, got, strict=True):
            assert rms_ratio(b, a) < 1e-6


def test_compiles_in_one_graph_and_follows_the_step():
    check_compiled("aot_eager")


@pytest.mark.slow
def test_compiles_with_the_default_backend():
    check_compiled("inductor")


@pytest.mark.parametrize("name", back_ends("colored_step"))
@pytest.mark.parametrize("kind", ["diagonal", "lower"])
def test_a_region_out_of_range_is_refused_in_a_compiled_graph_too(kind, name):
    """What the tracing cannot look at, the call does: a kernel would read beyond its factors."""
    factor, x = random_factor(kind, 2, 6), torch.zeros(2, 6)

    def function(x: Tensor, region: Tensor) -> tuple[Tensor, Tensor]:
        return ops.colored_step(x, b=1.0, factor=factor, region=region), ops.apply_factor(x, factor, region)

    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    with ops.backend("auto" if name == "native" else name):
        assert all(part.isfinite().all() for part in compiled(x, torch.tensor([1, 0])))
        for wrong in ([0, 2], [-1, 0]):
            with pytest.raises(ValueError, match=r"region: got values .*, expected 0\.\.1"):
                compiled(x, torch.tensor(wrong))


def test_the_update_compiles():
    torch._dynamo.reset()

    def update(state: list[Tensor], x: Tensor) -> Tensor:
        ops.covariance_update_(*state, x)
        return state[3] * 2.0

    states = [
        [torch.zeros(1).double(), torch.zeros(1).double(), torch.zeros(1, 3), torch.zeros(1, 3, 3)] for _ in range(2)
    ]
    compiled = torch.compile(update, fullgraph=True, backend="aot_eager")
    for i in range(3):
        x = randn(5, 3, seed=i, dtype=torch.float32)
        assert torch.equal(compiled(states[0], x), update(states[1], x))
    for a, b in zip(*states, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", back_ends("colored_step"))
def test_meta_tensors_have_the_shape_and_dtype_of_the_result(name):
    x = torch.zeros(4, 6, dtype=torch.bfloat16)
    real = on(name, lambda: ops.colored_step(x, b=1.0))
    fake = ops.colored_step(x.to("meta"), b=1.0)
    assert (fake.shape, fake.dtype) == (real.shape, real.dtype)
