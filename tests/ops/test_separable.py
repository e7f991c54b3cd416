"""Products with a basis by axes, and what is made of them: the identities that define each operation."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ansn import ops
from tests.ops.helpers import back_ends, generator, needs_native, on, randn, random_axes
from tests.tolerances import RATIO, rms_ratio

NAMES, UPDATES = back_ends("separable_apply"), back_ends("separable_update_")
F32, F64 = torch.float32, torch.float64
SHAPE, DIM = (2, 3, 4), 24
REGION = torch.tensor([0, 2, 1, 0, 2, 2, 1])
ROWS = len(REGION)


def basis(regions: int = 1, dtype: torch.dtype = F64, shape: tuple[int, ...] = SHAPE) -> ops.Axes:
    return random_axes(shape, range(len(shape)), regions, dtype)


def matrix(q: ops.Axes) -> Tensor:
    """Q of each region, ``[K, d, d]``, by Kronecker products."""
    count = max(len(b) for b in q.bases)
    out = torch.ones(count, 1, 1, dtype=q.bases[0].dtype)
    for b in q.bases:
        out = torch.stack([torch.kron(left, b[k % len(b)]) for k, left in enumerate(out)])
    return out


def positive(*shape: int, seed: int = 5, dtype: torch.dtype = F64) -> Tensor:
    return (0.3 + randn(*shape, seed=seed).abs()).to(dtype)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [F32, F64])
def test_the_basis_is_orthonormal(name, dtype):
    v, q = randn(ROWS, DIM, dtype=dtype), basis(3, dtype)
    c = on(name, lambda: ops.separable_apply(v, q, outward=False, region=REGION))
    if c is None:
        pytest.skip("refused")
    back = on(name, lambda: ops.separable_apply(c, q, inward=False, region=REGION))
    limit = RATIO["separable_apply"][dtype]
    assert rms_ratio(back, v) < limit
    assert rms_ratio(c.square().sum(1), v.square().sum(1)) < limit
    assert rms_ratio(c, (matrix(q)[REGION].mT @ v.unsqueeze(2)).squeeze(2)) < limit
    whole = on(name, lambda: ops.separable_apply(v, q, rest=True, region=REGION))  # both sides, no weights: nothing
    assert float(whole.abs().max()) < 10 * limit


@pytest.mark.parametrize("name", NAMES)
def test_the_filter_has_its_limits_and_is_the_formula(name):
    """Without noise the row, with nothing else the center, and ``m + S (S + tau^2 R)^-1 (v - m)`` between."""
    v, q, l, center = (t.float() if isinstance(t, Tensor) else t for t in (
        randn(ROWS, DIM), basis(3, F32), positive(3, DIM), randn(3, DIM, seed=1)))  # fmt: skip

    def filtered(tau: float | Tensor) -> Tensor:
        return on(name, lambda: ops.separable_apply(v, q, weights=l, tau=tau, center=center, region=REGION, rest=True))

    for small in (0, 0.0, 1e-30):
        assert torch.equal(filtered(small), v)
    for large in (1e15, math.inf):
        assert rms_ratio(filtered(large), center[REGION]) < 1e-6
    tau = torch.linspace(0.1, 3.0, ROWS)
    turned, wide = matrix(q).double()[REGION], l.double()[REGION]
    share = wide / (wide + tau.double().square().unsqueeze(1))
    away = (v - center[REGION]).double().unsqueeze(2)
    expected = center[REGION] + (turned @ (share.unsqueeze(2) * (turned.mT @ away))).squeeze(2)
    assert rms_ratio(filtered(tau), expected) < RATIO["separable_apply"][F32]


@pytest.mark.parametrize("name", NAMES)
def test_images_keep_their_shape(name):
    v, q = randn(5, *SHAPE, dtype=F32), basis(1, F32)
    out = on(name, lambda: ops.separable_apply(v, q))
    stepped = on(name, lambda: ops.separable_step(v, v, q=q, deviation=torch.ones(1, DIM), c=0.5, b=1.0))
    given = torch.zeros(2, DIM), torch.ones(2, DIM), torch.zeros(2).double(), torch.ones(())
    mixed = on(name, lambda: ops.mixture(v, q, *given)[0])
    assert out.shape == stepped.shape == mixed.shape == v.shape


@pytest.mark.parametrize("name", NAMES)
def test_a_draw_has_the_covariance_that_it_should(name):
    shape, rows = (2, 3), 40_000
    q, s = basis(1, F32, shape), positive(1, 6, dtype=F32)
    x = torch.ones(rows, 6)
    out = on(name, lambda: ops.separable_step(x, q=q, deviation=s, b=2.0, seed=11)).double() - 1.0
    turned = matrix(q)[0].double()
    wanted = 4.0 * turned @ torch.diag(s[0].double().square()) @ turned.mT
    size = wanted.diagonal().sqrt()
    assert float((out.mean(0) / size).abs().max()) < 5 / rows**0.5
    assert float(((out.mT @ out / rows - wanted) / size / size.unsqueeze(1)).abs().max()) < 5 * (2 / rows) ** 0.5


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [F32, torch.bfloat16])
def test_a_step_is_the_coloured_step_with_the_dense_factor(name, dtype):
    """The same noise, to rounding."""
    q, s = basis(3, F32), positive(3, DIM, dtype=F32)
    x, denoised, f = (randn(ROWS, DIM, seed=i, dtype=dtype) for i in range(3))
    known = {"region": REGION, "c": 0.1, "a": torch.linspace(0.2, 0.5, ROWS), "b": 0.8}
    known |= {"seed": 2**40 + 1, "row": 2**32 - ROWS, "step": 9, "stream": ops.LANGEVIN}
    out = on(name, lambda: ops.separable_step(x, denoised, f, q=q, deviation=s, **known))
    factor = matrix(q) * s.unsqueeze(1)
    dense = ops.colored_step(x, denoised, f, factor=factor, lower=False, **known)
    assert rms_ratio(out, dense) < 2 * RATIO["separable_step"][dtype]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("terms", [{}, {"b": 0.0}, {"a": 0.0}, {"b": 0}])
def test_without_a_push_the_basis_is_not_read(name, terms):
    q = ops.Axes([torch.full((1, n, n), math.nan) for n in SHAPE], (0, 1, 2), SHAPE)
    x, denoised, f = (randn(5, DIM, seed=i, dtype=F32) for i in range(3))
    out = on(name, lambda: ops.separable_step(x, denoised, f, q=q, deviation=torch.ones(1, DIM), c=0.25, **terms))
    assert torch.equal(out, on(name, lambda: ops.colored_step(x, denoised, c=0.25)))


# -- moments


def fresh(regions: int, q: ops.Axes, dtype: torch.dtype = F64) -> list:
    dim = math.prod(q.shape)
    axes = [torch.zeros(regions, q.shape[a], q.shape[a], dtype=dtype) for a in q.axes]
    weights = [torch.zeros(regions).double() for _ in range(2)]
    return [*weights, *(torch.zeros(regions, dim, dtype=dtype) for _ in range(2)), axes]


def parts(state: list) -> list[Tensor]:
    return [*state[:4], *state[4]]


@pytest.mark.parametrize("name", UPDATES)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(data=st.data())
def test_the_update_is_the_definition_however_it_is_cut(name, data):
    """Weights ``decay^age`` of each row; pieces, empty ones too, give what one batch gives."""
    shape = data.draw(st.sampled_from([(5,), (2, 3), (1, 4, 2), (2, 2, 3, 2)]))
    regions, decay = data.draw(st.integers(1, 3)), data.draw(st.sampled_from([1.0, 0.8]))
    sizes = data.draw(st.lists(st.integers(0, 20), min_size=1, max_size=4))
    q, dim = basis(data.draw(st.sampled_from([1, regions])), F64, shape), math.prod(shape)
    batches = [1.0 + randn(b, dim, seed=i) for i, b in enumerate(sizes)]
    owners = [torch.randint(regions, (b,), generator=generator(b)) for b in sizes]
    state, once = fresh(regions, q), fresh(regions, q)
    for x, owner in zip(batches, owners, strict=True):
        on(name, lambda: ops.separable_update_(*state, x, q, owner, decay=decay))  # noqa: B023
    x, owner = torch.cat(batches), torch.cat(owners)
    w = torch.cat([decay ** (len(sizes) - 1 - i) * torch.ones(b).double() for i, b in enumerate(sizes)])
    for k in range(regions):
        mine, v = w * (owner == k), matrix(q)[k % max(len(b) for b in q.bases)]
        mean = mine @ x / mine.sum().clamp_min(1e-30)
        away = (x - mean) * mine.sqrt().unsqueeze(1)
        wanted = [mine.sum(), mine.square().sum(), mean, (away @ v).square().sum(0)]
        for a, n in enumerate(shape):
            unfolded = away.reshape(-1, *shape).movedim(a + 1, 0).reshape(n, -1)
            wanted.append(unfolded @ unfolded.mT * n / dim)
        for got, expected in zip(parts(state), wanted, strict=True):
            torch.testing.assert_close(got[k], expected, rtol=1e-11, atol=1e-11)
    if decay == 1.0:
        on(name, lambda: ops.separable_update_(*once, x, q, owner))
        for cut, whole in zip(parts(state), parts(once), strict=True):
            torch.testing.assert_close(cut, whole, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", UPDATES)
def test_what_is_not_finite_or_out_of_range_leaves_the_state_alone(name):
    q, x = basis(2, F32), randn(4, DIM)
    state = fresh(2, q, F32)
    on(name, lambda: ops.separable_update_(*state, x, q, torch.tensor([0, 1, 1, 0])))
    before = [t.clone() for t in parts(state)]
    bad = x.clone()
    bad[2, 1] = math.inf
    wrong = "x: got a value that is not finite in row 2, expected finite ones"
    for row, region, told in ((bad, [0, 1, 1, 0], wrong), (x, [0, 1, 2, 0], "region: got value")):
        with pytest.raises(ValueError, match=told):
            on(name, lambda: ops.separable_update_(*state, row, q, torch.tensor(region), decay=0.5))  # noqa: B023
    for now, then in zip(parts(state), before, strict=True):
        assert torch.equal(now, then)


@pytest.mark.parametrize("name", UPDATES)
def test_a_long_stream_keeps_its_accuracy(name):
    """Batches far from the origin, in float32: the error does not grow with their number."""
    q, x = basis(1, F32), (5.0 + randn(500, 8, DIM)).float()
    state = fresh(1, q, F32)
    for batch in x:
        on(name, lambda: ops.separable_update_(*state, batch, q))  # noqa: B023
    wide = x.double().reshape(-1, DIM)
    wanted = ((wide - wide.mean(0)) @ matrix(q)[0].double()).square().sum(0)
    assert rms_ratio(state[3][0], wanted) < 2e-5


# -- the mixture


def gaussians(regions: int = 3, dtype: torch.dtype = F64, shape: tuple[int, ...] = (2, 2)) -> tuple:
    dim = math.prod(shape)
    shares = torch.softmax(randn(regions, seed=3), 0)
    center, variances = randn(regions, dim, seed=1), positive(regions, dim)
    return basis(regions, dtype, shape), center.to(dtype), variances.to(dtype), shares


def distribution(q: ops.Axes, center: Tensor, variances: Tensor, shares: Tensor, sigma: float):
    turned = matrix(q)
    scale = turned @ torch.diag_embed(variances + sigma**2) @ turned.mT
    each = torch.distributions.MultivariateNormal(center, scale)
    return torch.distributions.MixtureSameFamily(torch.distributions.Categorical(shares), each)


@pytest.mark.parametrize("name", back_ends("mixture"))
@pytest.mark.parametrize("dtype", [F32, F64])
def test_the_logarithms_are_the_densities_and_the_denoiser_their_score(name, dtype):
    """As ``torch.distributions`` has them, and ``D = x + sigma^2 grad ln p`` (Tweedie)."""
    q, center, variances, shares = gaussians(dtype=dtype)
    x, sigma = 2 * randn(50, 4, dtype=dtype), 0.6
    made = on(name, lambda: ops.mixture(x, q, center, variances, shares.log(), torch.tensor(sigma**2, dtype=dtype)))
    if made is None:
        pytest.skip("refused")
    wide = ops.Axes([b.double() for b in q.bases], q.axes, q.shape)
    known = distribution(wide, center.double(), variances.double(), shares, sigma)
    leaf = x.double().clone().requires_grad_()
    log_p = known.log_prob(leaf)
    (slope,), log_p = torch.autograd.grad(log_p.sum(), leaf), log_p.detach()
    limit = 1e-10 if dtype == F64 else RATIO["mixture"][F32]
    assert rms_ratio(made[1].logsumexp(0) - 2 * math.log(2 * math.pi), log_p) < limit
    assert rms_ratio(made[0], x.double() + sigma**2 * slope) < limit


@pytest.mark.parametrize("name", back_ends("mixture"))
def test_the_density_is_one_in_all(name):
    q, center, variances, shares = gaussians(2, F32, (1, 2))
    line = torch.linspace(-9, 9, 91)
    grid = torch.cartesian_prod(line, line)
    logs = on(name, lambda: ops.mixture(grid, q, center, variances, shares.log(), torch.tensor(0.04), denoise=False))
    mass = (logs[1].logsumexp(0) - math.log(2 * math.pi)).exp().sum() * (line[1] - line[0]) ** 2
    assert float(mass) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("name", back_ends("mixture"))
def test_one_region_is_the_filter(name):
    x, q = randn(9, DIM, dtype=F32), basis(1, F32)
    center, variances, sigma = randn(1, DIM, dtype=F32), positive(1, DIM, dtype=F32), torch.linspace(0.1, 2.0, 9)
    out = on(name, lambda: ops.mixture(x, q, center, variances, torch.zeros(1).double(), sigma.square())[0])
    filtered = ops.separable_apply(x, q, weights=variances, tau=sigma, center=center, rest=True)
    assert rms_ratio(out, filtered) < 2e-6


@pytest.mark.parametrize("name", back_ends("mixture"))
@pytest.mark.parametrize("sigma", [1e-6, 1e-3, 0.1])
def test_regions_far_off_and_shares_of_nothing_do_no_harm(name, sigma):
    """At low noise a row is of one region; a region whose share is 0 has none, however near it is."""
    q, center, variances, _ = gaussians(3, F32, (4, 4))
    center = center + torch.tensor([0.0, 1e3, 1e6]).unsqueeze(1)
    x = center[REGION] + 0.1 * randn(ROWS, 16, dtype=F32)
    level = torch.tensor(sigma).square()
    for logs in (torch.zeros(3).double(), torch.tensor([-800.0, 0.0, 0.0]).double()):
        out, made = on(name, lambda: ops.mixture(x, q, center, variances, logs, level))  # noqa: B023
        one = ops.separable_apply(x, q, weights=variances, tau=sigma, center=center, region=REGION, rest=True)
        assert rms_ratio(out, one) < 2e-6
        assert torch.equal(made.argmax(0), REGION)
    none = torch.tensor([0.0, 0.0, -math.inf]).double()
    out = on(name, lambda: ops.mixture(x[:2] * 0 + center[2], q, center, variances, none, level)[0])
    assert bool(out.isfinite().all())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("regions", [1, 3])
@pytest.mark.parametrize("shape", [(7,), (5, 3), (3, 4, 5)])
def test_a_row_of_nan_is_the_only_one(name, regions, shape):
    q, dim = basis(regions, F32, shape), math.prod(shape)
    region = REGION % regions if regions > 1 else None
    x, w, tau2 = randn(ROWS, dim, dtype=F32), positive(regions, dim, dtype=F32), torch.ones(ROWS)
    x[3] = math.nan
    calls: list[Callable[[], Tensor]] = [
        lambda: ops.separable_apply(x, q, weights=w, tau=tau2, region=region, rest=True),
        lambda: ops.separable_step(x, q=q, deviation=w, b=1.0, region=region),
        lambda: ops.separable_step(torch.zeros_like(x), None, x, q=q, deviation=w, a=1.0, region=region),
        lambda: ops.mixture(x, q, w, w, torch.zeros(regions).double(), tau2)[0],
    ]
    for call in calls:
        wrong = on(name, call).isnan().any(1)
        assert wrong.tolist() == [r == 3 for r in range(ROWS)]


# -- bits


@needs_native
@pytest.mark.parametrize("regions", [1, 3])
@pytest.mark.parametrize("shape", [(65,), (33, 17), (3, 16, 20)])
def test_bits_depend_neither_on_threads_nor_on_the_batch(regions, shape):
    q, dim, rows = basis(regions, F32, shape), math.prod(shape), 61
    x, w = randn(rows, dim, dtype=F32), positive(regions, dim, dtype=F32)
    region = torch.arange(rows) % regions if regions > 1 else None
    logs, known = torch.zeros(regions).double(), {"q": q, "deviation": w, "b": 0.5, "seed": 3}

    def rows_of(at: slice) -> list[Tensor]:
        owner = None if region is None else region[at]
        return [
            ops.separable_apply(x[at], q, weights=w, tau=0.5, region=owner, rest=True),
            ops.separable_step(x[at], x[at], region=owner, c=0.1, row=at.start, **known),
            ops.mixture(x[at], q, w, w, logs, torch.tensor(0.3))[0],
        ]

    def moments() -> list[Tensor]:
        state = fresh(regions, q, F32)
        for _ in range(2):
            ops.separable_update_(*state, x, q, region, decay=0.9)
        return parts(state)

    before = torch.get_num_threads()
    try:
        made = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            with ops.backend("native"):
                made.append([*rows_of(slice(0, rows)), *moments()])
        for one, *others in zip(*made, strict=True):
            assert all(torch.equal(one, other) for other in others)
    finally:
        torch.set_num_threads(before)
    with ops.backend("native"):
        for first, last in ((0, 1), (7, 9), (20, 61)):
            for part, whole in zip(rows_of(slice(first, last)), made[0], strict=False):
                assert torch.equal(part, whole[first:last])


@needs_native
@pytest.mark.parametrize(
    ("shape", "axes", "told"),
    [((257,), (0,), "257 points"), ((2, 3, 2, 2, 2), range(5), "5 axes"), ((3, 4), (0, 1), "not contiguous")],
)
def test_what_the_kernel_does_not_take_runs_in_torch(shape, axes, told):
    q = random_axes(shape, axes, 1, F32)
    if told == "not contiguous":
        q = ops.Axes([b.mT for b in q.bases], q.axes, q.shape)
    dim = math.prod(shape)
    x, w, state = randn(3, dim, dtype=F32), positive(1, dim, dtype=F32), fresh(1, q, F32)
    logs = torch.zeros(1).double()
    for call in (
        lambda: ops.separable_apply(x, q, weights=w),
        lambda: ops.separable_step(x, q=q, deviation=w, b=1.0),
        lambda: ops.separable_update_(*state, x, q),
        lambda: ops.mixture(x, q, w, w, logs, torch.ones(())),
    ):
        call()
        refusals: set[str] = set()
        assert on("native", call, refusals) is None
        assert told in refusals.pop()
