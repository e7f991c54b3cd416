"""The operations beside other libraries that a user might take instead, where they are installed.

    pip install -r benchmarks/requirements-peers.txt
    python -m benchmarks.peers --save-table benchmarks/results/peers.csv

A peer is a function that returns its call, or the line that says why it cannot run. JAX picks its own number of
threads: pin the process (``taskset``) for a comparison at equal threads.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ansn import ops
from benchmarks import provenance
from benchmarks.harness import OURS, Comparison, compare

Call = Callable[[], object]
COUNT = 1000
"""Points that a running covariance has seen before the update that is timed."""


def multivariate_normal(x: Tensor, factor: Tensor, tau: float) -> Call | str:
    """``x + tau L z`` by a sample of torch.distributions.MultivariateNormal, one factor for all rows."""
    noise = torch.distributions.MultivariateNormal(
        torch.zeros(x.shape[1]), scale_tril=tau * factor, validate_args=False
    )
    return lambda: x + noise.sample(x.shape[:1])


def azula(x: Tensor, factor: Tensor, tau: float) -> Call | str:
    """``x + tau C^(1/2) z`` by azula's ``FullCovariance.color``, which holds eigenvectors and multiplies by all of
    them."""
    try:
        from azula.linalg.covariance import FullCovariance
    except ImportError as error:
        return f"azula is not importable ({error})"
    values, vectors = torch.linalg.eigh(factor @ factor.mT)
    covariance = FullCovariance(vectors, values.clamp(min=0.0))
    return lambda: x + tau * covariance.color(torch.randn_like(x))


def numpyro(x: Tensor, regions: int) -> Call | str:
    """Running covariance by NumPyro's ``welford_covariance``, see :func:`_welford`."""
    try:
        from numpyro.infer.hmc_util import welford_covariance
    except ImportError as error:
        return f"numpyro is not importable ({error})"
    _, update, _ = welford_covariance(diagonal=False)
    return _welford(x, regions, lambda state, row: update(row, state))


def blackjax(x: Tensor, regions: int) -> Call | str:
    """Running covariance by BlackJAX's ``welford_algorithm``, see :func:`_welford`."""
    try:
        from blackjax.adaptation.mass_matrix import WelfordAlgorithmState, welford_algorithm
    except ImportError as error:
        return f"blackjax is not importable ({error})"
    _, update, _ = welford_algorithm(is_diagonal_matrix=False)
    return _welford(x, regions, lambda state, row: update(WelfordAlgorithmState(*state), row))


def _welford(x: Tensor, regions: int, update: Callable) -> Call:
    """One row for each of ``regions`` states (``vmap``), or all rows into one state (``scan``: these libraries take a
    point at a time); compiled, the state donated so that it is updated in place."""
    import jax

    dim = x.shape[1]
    rows = jax.numpy.asarray(x.numpy())
    if regions > 1:
        step = jax.jit(lambda state, rows: jax.vmap(update)(state, rows), donate_argnums=0)
        state = (
            np.zeros((regions, dim), np.float32),
            np.zeros((regions, dim, dim), np.float32),
            np.full(regions, COUNT, np.int32),
        )
    else:

        def scan(state, rows):
            return jax.lax.scan(lambda carry, row: (tuple(update(carry, row)), None), state, rows)[0]

        step = jax.jit(scan, donate_argnums=0)
        state = (np.zeros(dim, np.float32), np.zeros((dim, dim), np.float32), np.int32(COUNT))
    held = [tuple(jax.device_put(part) for part in state)]

    def call() -> None:
        held[0] = tuple(jax.block_until_ready(step(held[0], rows)))

    return call


def available(candidates: dict[str, Call | str]) -> dict[str, Call]:
    """Those that can run; a printed line for each that cannot."""
    for name, candidate in candidates.items():
        if isinstance(candidate, str):
            print(f"{name}: left out, {candidate}")
    return {name: candidate for name, candidate in candidates.items() if not isinstance(candidate, str)}


def draws(rows: int, dim: int) -> Comparison:
    """The dense draw, float32."""
    torch.manual_seed(0)
    x, tau = torch.randn(rows, dim), 0.7
    factor = torch.linalg.cholesky(torch.cov(torch.randn(dim, 2 * dim)) + 0.1 * torch.eye(dim))
    contenders: dict[str, Call | str] = {
        OURS: lambda: ops.colored_step(x, b=tau, factor=factor.unsqueeze(0), seed=1, step=2),
        "eager": lambda: x + tau * torch.randn_like(x) @ factor.mT,
        "MultivariateNormal": multivariate_normal(x, factor, tau),
        "azula": azula(x, factor, tau),
    }
    flops, nbytes = rows * dim * (dim + 1), 4 * (dim * (dim + 1) // 2 + 2 * rows * dim)
    return compare(f"dense draw {rows} x {dim}", available(contenders), nbytes, flops)


def updates(rows: int, dim: int, regions: int) -> Comparison:
    """The running covariance with float32 state: ``rows`` into one region, or one row into each."""
    torch.manual_seed(0)
    x = torch.randn(rows, dim)
    weight = torch.full((regions,), float(COUNT), dtype=torch.float64)
    mean, scatter = torch.zeros(regions, dim), torch.eye(dim).expand(regions, dim, dim).contiguous()
    region = torch.arange(regions) if regions > 1 else None
    plain_mean, plain = mean.clone(), scatter.clone()

    def eager() -> None:
        if region is None:
            batch = x.mean(0)
            correction = (COUNT * rows / (COUNT + rows)) ** 0.5 * (batch - plain_mean)
            a = torch.cat((x - batch, correction))
            plain[0].addmm_(a.mT, a)
            plain_mean.add_(batch - plain_mean, alpha=rows / (COUNT + rows))
        else:
            delta = x - plain_mean
            plain.baddbmm_((COUNT / (COUNT + 1.0) * delta).unsqueeze(2), delta.unsqueeze(1))
            plain_mean.add_(delta, alpha=1.0 / (COUNT + 1.0))

    contenders: dict[str, Call | str] = {
        OURS: lambda: ops.covariance_update_(weight, weight.clone(), mean, scatter, x, region),
        "eager in place": eager,
        "NumPyro": numpyro(x, regions),
        "BlackJAX": blackjax(x, regions),
    }
    name = f"{regions} regions, a row each, d = {dim}" if regions > 1 else f"one region, {rows} x {dim}"
    triangle = regions * dim * (dim + 1)
    return compare(f"covariance update, {name}", available(contenders), 4 * triangle, rows // regions * triangle)


def main() -> None:
    """Time every peer that is there and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save-table", type=Path, help=".csv or .json to write")
    path = parser.parse_args().save_table
    # First what needs no other library's threads to be started.
    rows = [draws(128, 784), updates(128, 784, 1), updates(1024, 64, 1024), updates(64, 784, 64)]
    header = ""
    for comparison in rows:
        if comparison.header() != header:
            header = comparison.header()
            print("\n" + header)
        print(comparison.row())
    if path is not None:
        provenance.save(path, [comparison.record() for comparison in rows])


if __name__ == "__main__":
    with torch.no_grad():
        main()
