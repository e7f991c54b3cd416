"""The batched rank-1 update, one row for each of K regions, against what a user would write in torch, and against the
Welford adaptation of NumPyro and BlackJAX where they are installed."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ansn import ops


def _addcmul(n: Tensor, mean: Tensor, scatter: Tensor, x: Tensor) -> None:
    delta = x - mean
    scatter.addcmul_((delta * (n / (n + 1))).unsqueeze(2), delta.unsqueeze(1))
    mean += delta / (n + 1)
    n += 1


def _baddbmm(n: Tensor, mean: Tensor, scatter: Tensor, x: Tensor) -> None:
    delta = x - mean
    scatter.baddbmm_((delta * (n / (n + 1))).unsqueeze(2), delta.unsqueeze(1))
    mean += delta / (n + 1)
    n += 1


def _numpyro(regions: int, dim: int) -> Callable[[], object]:
    """``welford_covariance(diagonal=False)``, mapped over the regions, compiled, its state donated."""
    jax = importlib.import_module("jax")
    welford = importlib.import_module("numpyro.infer.hmc_util").welford_covariance
    init, step, _ = welford(diagonal=False)
    update = jax.jit(jax.vmap(step), donate_argnums=1)
    x = jax.random.normal(jax.random.PRNGKey(0), (regions, dim))
    state = [jax.vmap(lambda _: init(dim))(x)]

    def run() -> None:
        state[0] = jax.block_until_ready(update(x, state[0]))

    return run


def _blackjax(regions: int, dim: int) -> Callable[[], object]:
    """``welford_algorithm(is_diagonal_matrix=False)``, likewise."""
    jax = importlib.import_module("jax")
    welford = importlib.import_module("blackjax.adaptation.mass_matrix").welford_algorithm
    init, step, _ = welford(is_diagonal_matrix=False)
    update = jax.jit(jax.vmap(step), donate_argnums=0)
    x = jax.random.normal(jax.random.PRNGKey(0), (regions, dim))
    state = [jax.vmap(lambda _: init(dim))(x)]

    def run() -> None:
        state[0] = jax.block_until_ready(update(state[0], x))

    return run


def _peers(regions: int, dim: int) -> dict[str, Callable[[], object]]:
    found = {}
    for name, make in (("NumPyro", _numpyro), ("BlackJAX", _blackjax)):
        try:
            found[name] = make(regions, dim)
        except ImportError as error:
            print(f"{name} is left out: {error}")
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize(("regions", "dim"), [(1024, 64), (64, 784)])
def test_one_row_a_region(against, regions: int, dim: int, dtype: torch.dtype) -> None:
    """The bytes are the lower triangles, read and written. The peers move both triangles; JAX's are float32."""
    torch.manual_seed(0)
    x = torch.randn(regions, dim)
    weight = torch.full((regions,), 1000.0, dtype=torch.float64)
    region = torch.arange(regions)

    def state() -> tuple[Tensor, Tensor]:
        return torch.zeros(regions, dim, dtype=dtype), torch.eye(dim, dtype=dtype).repeat(regions, 1, 1)

    moments = (weight, weight.clone(), *state())
    n, wide = weight.to(dtype).unsqueeze(1), x.to(dtype)
    peers = {name: (n.clone(), *state()) for name in ("addcmul", "baddbmm", "compile")}
    compiled = torch.compile(_addcmul, dynamic=False)
    contenders: dict[str, Callable[[], object]] = {
        "ansn": lambda: ops.covariance_update_(*moments, x, region),
        "addcmul": lambda: _addcmul(*peers["addcmul"], wide),
        "baddbmm": lambda: _baddbmm(*peers["baddbmm"], wide),
        "compile": lambda: compiled(*peers["compile"], wide),
    }
    if dtype == torch.float32:
        contenders |= _peers(regions, dim)
    against(
        f"rank-1 update K = {regions}, d = {dim} {str(dtype).removeprefix('torch.')}",
        contenders,
        nbytes=regions * dim * (dim + 1) * dtype.itemsize,
    )
