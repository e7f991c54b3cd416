"""The running-moment update: every back end against weighted NumPy moments; the state is safe from bad input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ansn import ops
from tests.ops.helpers import DTYPES, back_ends, generator, on, one_line, randn
from tests.tolerances import RATIO, rms_ratio

NAMES = back_ends("covariance_update_")


def fresh(regions: int, dim: int, dtype: torch.dtype, dense: bool = True) -> list[Tensor]:
    """An empty state; NaN above the diagonal, where nothing may be read."""
    scatter = torch.zeros(regions, dim, dim, dtype=dtype) if dense else torch.zeros(regions, dim, dtype=dtype)
    if dense:
        scatter = torch.where(torch.ones(dim, dim).triu(1).bool(), float("nan"), scatter)
    weights = [torch.zeros(regions, dtype=torch.float64) for _ in range(2)]
    return [*weights, torch.zeros(regions, dim, dtype=dtype), scatter]


def weighted(batches, regions, decay, k, dim):
    """Sums of the weights, mean and scatter of region k by their definitions: each row's weight is decay^(age)."""
    rows, weights = [np.zeros((0, dim))], [np.zeros(0)]
    for i, (x, region) in enumerate(zip(batches, regions, strict=True)):
        part = x.double().numpy() if region is None else x.double().numpy()[region.numpy() == k]
        rows.append(part)
        weights.append(np.full(len(part), decay ** (len(batches) - 1 - i)))
    x, w = np.concatenate(rows), np.concatenate(weights)
    mean = w @ x / w.sum() if len(w) else np.zeros(dim)
    return w.sum(), (w**2).sum(), mean, (w[:, None] * (x - mean)).T @ (x - mean)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(data=st.data())
def test_every_back_end_equals_the_definition(data):
    """Any splits (empty ones too), regions, structure, dtypes and forgetting; the upper triangle is neither read
    nor written."""
    dtype, x_dtype = data.draw(st.sampled_from(DTYPES[:2])), data.draw(st.sampled_from(DTYPES))
    regions, dim, dense = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 33)), data.draw(st.booleans())
    sizes = data.draw(st.lists(st.integers(0, 12), min_size=1, max_size=4))
    decay = data.draw(st.sampled_from([1.0, 0.9, 0.5]))
    batches = [(1.0 + randn(b, dim, seed=i)).to(x_dtype) for i, b in enumerate(sizes)]
    owners = [None if regions == 1 else torch.randint(regions, (b,), generator=generator(b)) for b in sizes]
    for name in NAMES:
        state = fresh(regions, dim, dtype, dense)
        for x, region in zip(batches, owners, strict=True):
            on(name, lambda: ops.covariance_update_(*state, x, region, decay=decay))  # noqa: B023
        for k in range(regions):
            n, n2, mean, scatter = weighted(batches, owners, decay, k, dim)
            np.testing.assert_allclose([state[0][k], state[1][k]], [n, n2], rtol=1e-12)
            assert rms_ratio(state[2][k], torch.as_tensor(mean)) <= RATIO["covariance_update_"][dtype]
            got = state[3][k]
            if dense:
                assert bool(got[torch.ones(dim, dim).triu(1).bool()].isnan().all()), "the upper triangle was written"
                got, wanted = got.tril().nan_to_num(0.0), torch.as_tensor(scatter).tril()
            else:
                wanted = torch.as_tensor(np.diag(scatter).copy())
            size = float(wanted.abs().max()) + 1e-9
            assert float((got.double() - wanted).abs().max()) <= RATIO["covariance_update_"][dtype] * size, name


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("regions", [1, 2])
def test_nothing_is_added_above_the_diagonal(name, regions):
    """NaN, above, tells what is read; a number tells what is written."""
    above = torch.ones(5, 5).triu(1).bool()
    state = fresh(regions, 5, torch.float64)
    state[3] = torch.where(above, -7.25, torch.zeros(regions, 5, 5).double())
    for i in range(3):
        region = torch.arange(6) % regions
        on(name, lambda: ops.covariance_update_(*state, 1.0 + randn(6, 5, seed=i), region))  # noqa: B023
    assert bool((state[3][:, above] == -7.25).all())
    assert bool((state[3][:, ~above] != 0.0).all())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_long_stream_keeps_its_accuracy(name, dtype):
    """2000 batches far from the origin: with the mean correction inside the product the error does not grow."""
    x = (5.0 + randn(2000, 8, 12)).to(torch.float32)
    state = fresh(1, 12, dtype)
    for batch in x:
        on(name, lambda: ops.covariance_update_(*state, batch))  # noqa: B023
    wanted = torch.cov(x.double().reshape(-1, 12).T) * (16000 - 1)
    got = state[3][0].tril().nan_to_num(0.0).double()
    error = float((got - wanted.tril()).abs().max() / wanted.abs().max())
    assert error <= (1e-12 if dtype == torch.float64 else 2e-5)


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_batch_only_decays(name):
    state = fresh(2, 3, torch.float64)
    on(name, lambda: ops.covariance_update_(*state, randn(6, 3), torch.tensor([0, 1, 0, 1, 0, 1])))
    before = [t.clone() for t in state]
    nothing = torch.empty(0, 3), torch.empty(0, dtype=torch.int64)
    on(name, lambda: ops.covariance_update_(*state, *nothing))
    for now, then in zip(state, before, strict=True):
        assert torch.equal(now.nan_to_num(0.0), then.nan_to_num(0.0))
    on(name, lambda: ops.covariance_update_(*state, *nothing, decay=0.5))
    for now, then, share in zip(state, before, (0.5, 0.25, 1.0, 0.5), strict=True):
        assert torch.equal(now.nan_to_num(0.0), share * then.nan_to_num(0.0))


def test_images_are_flattened_and_gradients_left_behind():
    x = randn(4, 1, 2, 3).requires_grad_()
    one, other = fresh(1, 6, torch.float64), fresh(1, 6, torch.float64)
    ops.covariance_update_(*one, x)
    ops.covariance_update_(*other, x.detach().reshape(4, 6))
    for a, b in zip(one, other, strict=True):
        assert not a.requires_grad
        assert torch.equal(a.nan_to_num(0.0), b.nan_to_num(0.0))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_leaves_the_state_alone(name, bad):
    state = fresh(2, 3, torch.float64)
    region = torch.tensor([0, 1, 1, 0])
    on(name, lambda: ops.covariance_update_(*state, randn(4, 3), region))
    before = [t.clone() for t in state]
    x = randn(4, 3, seed=1)
    x[2, 1] = bad
    with pytest.raises(ValueError) as error:
        on(name, lambda: ops.covariance_update_(*state, x, region, decay=0.5))
    one_line(error, "x")
    assert "row 2" in str(error.value)
    for now, then in zip(state, before, strict=True):
        assert now.numpy().tobytes() == then.numpy().tobytes()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("values", [[0, 2], [-1, 1]])
def test_a_compiled_call_refuses_regions_out_of_range(name, values):
    """What is compiled reaches the operation without the eager look at the values."""
    state = fresh(2, 3, torch.float64)

    def call() -> None:
        torch.ops.ansn.covariance_update_(*state, randn(2, 3), torch.tensor(values), 0.5)

    with pytest.raises(ValueError, match=rf"region: got values {values[0]}..{values[1]}, expected 0..1"):
        on(name, call)
    assert all(bool((t.nan_to_num(0.0) == 0.0).all()) for t in state)


@pytest.mark.parametrize("name", NAMES)
def test_strided_batches_need_no_copy(name):
    """Every second row, a slice of the columns, and columns apart in memory."""
    wide = randn(12, 20)
    for x in (wide[::2, 3:10], wide[:, ::3], wide.T):
        one, other = fresh(1, x.shape[1], torch.float64), fresh(1, x.shape[1], torch.float64)
        for state, batch in ((one, x), (other, x.contiguous())):
            on(name, lambda: ops.covariance_update_(*state, batch))  # noqa: B023
        for a, b in zip(one, other, strict=True):
            np.testing.assert_allclose(a.nan_to_num(0.0), b.nan_to_num(0.0), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", NAMES)
def test_one_memory_for_both_weights_is_refused(name):
    """A view, too: the second update would be of the first one's result."""
    state = fresh(2, 3, torch.float64)
    for other in (state[0], state[0][:]):
        with pytest.raises(ValueError) as error:
            on(name, lambda: ops.covariance_update_(state[0], other, *state[2:], X, R))  # noqa: B023
        one_line(error, "weight2")
    assert bool((state[0] == 0.0).all())


def state_with(position: int, value: object) -> list:
    state: list = fresh(2, 3, torch.float64)
    state[position] = value
    return state


X, R = torch.zeros(4, 3), torch.tensor([0, 1, 0, 1])


@pytest.mark.parametrize(
    ("argument", "kind", "arguments", "options"),
    [
        ("x", TypeError, [*fresh(2, 3, torch.float64), torch.zeros(4, 3, dtype=torch.uint8), R], {}),
        ("x", ValueError, [*fresh(2, 3, torch.float64), torch.zeros(4), R], {}),
        ("mean", ValueError, [*fresh(2, 3, torch.float64), torch.zeros(4, 5), R], {}),
        ("mean", ValueError, [*state_with(2, torch.zeros(2, 3).half()), X, R], {}),
        ("scatter", ValueError, [*state_with(3, torch.zeros(2, 3, 4).double()), X, R], {}),
        ("scatter", ValueError, [*state_with(3, torch.zeros(2, 3)), X, R], {}),
        ("scatter", ValueError, [*state_with(3, torch.zeros(3, 2).double().t()), X, R], {}),
        ("weight", ValueError, [*state_with(0, torch.zeros(2)), X, R], {}),
        ("weight2", ValueError, [*state_with(1, torch.zeros(3).double()), X, R], {}),
        ("weight", TypeError, [*state_with(0, [0.0, 0.0]), X, R], {}),
        ("mean", TypeError, [*state_with(2, None), X, R], {}),
        ("scatter", TypeError, [*state_with(3, 1.0), X, R], {}),
        ("region", ValueError, [*fresh(2, 3, torch.float64), X], {}),
        ("region", ValueError, [*fresh(2, 3, torch.float64), X, R + 1], {}),
        ("region", TypeError, [*fresh(2, 3, torch.float64), X, [0, 1, 0, 1]], {}),
        ("decay", ValueError, [*fresh(2, 3, torch.float64), X, R], {"decay": 0.0}),
        ("decay", ValueError, [*fresh(2, 3, torch.float64), X, R], {"decay": 1.5}),
        ("decay", ValueError, [*fresh(2, 3, torch.float64), X, R], {"decay": float("nan")}),
    ],
)
def test_wrong_arguments_are_named(argument, kind, arguments, options):
    before = [a.clone() if isinstance(a, Tensor) else a for a in arguments[:4]]
    with pytest.raises(kind) as error:
        ops.covariance_update_(*arguments, **options)
    one_line(error, argument)
    for now, then in zip(arguments, before, strict=False):
        if isinstance(now, Tensor):
            assert torch.equal(now.nan_to_num(7.0), then.nan_to_num(7.0))
