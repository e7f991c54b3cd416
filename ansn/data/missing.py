"""Missing numbers of a table: draws of them given those that are known, from a Gaussian that is fitted to the holes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ansn.data import streams
from ansn.errors import whole

_NUMBERS = 2**22  # float64 numbers that the systems of a chunk of rows may take, 32 MiB
_DRAWN = 2**28  # numbers of all draws, 1 GiB
_ROWS = 2000  # of the fit at the least, where there are as many


def completions(x: Tensor, draws: int = 8, seed: int = 0) -> Tensor:
    r"""Draws of the rows that have holes: ``x_u ~ N(m, S)`` given the known ``x_k``, m and S as :func:`fitted`.

    A draw of the whole row is moved to agree with what is known, ``x' + S_{.k} S_kk^-1 (x_k - x'_k)``, ``x' ~ N(m, S)``
    (Matheron's rule), which needs no root of the conditional covariance.

    Args:
        x: float ``[N, d]``, NaN where a number is not known.
        draws: of each row; fewer where all together would be more than 2^28 numbers.
        seed: fixes the draws, with the row's place among the incomplete ones.

    Returns float32 ``[M, draws, d]`` of the M incomplete rows, in their order; known numbers are x's. Raises TypeError
    or ValueError naming the argument.
    """
    draws = whole("draws", draws, 1)
    streams.check_seed(seed)
    mean, covariance = fitted(x, seed=seed)
    rows = torch.isnan(x).any(1).nonzero().squeeze(1)
    draws = max(1, min(draws, _DRAWN // max(1, len(rows) * x.shape[1])))
    out = torch.empty(len(rows), draws, x.shape[1])
    scale = covariance.diagonal().sqrt()
    root = scale.unsqueeze(1) * _root(covariance / torch.outer(scale, scale))
    for chunk in _chunks(len(rows), x.shape[1]):
        part = x[rows[chunk]].double().cpu()
        z = _normals(seed, chunk.start, len(part), draws, x.shape[1])
        drawn = mean + z @ root.T
        slopes, of = _regressions(~torch.isnan(part), covariance)
        known = ~torch.isnan(part).unsqueeze(1)
        missing = torch.where(known, part.unsqueeze(1) - drawn, 0.0)
        out[chunk] = torch.where(known, part.unsqueeze(1), drawn + missing @ slopes[of]).float()
    return out.to(x.device)


def fitted(x: Tensor, *, seed: int = 0, tolerance: float = 3e-4, iterations: int = 100) -> tuple[Tensor, Tensor]:
    r"""Mean ``[d]`` and covariance ``[d, d]``, float64, of the Gaussian of largest likelihood for rows with holes.

    By EM (Dempster, Laird and Rubin 1977), which is right where numbers are missing at random: whether one is may
    depend on what is known. Off the diagonal the covariance is shrunk by ``0.1 d / N``, below its sampling error, so
    that fewer rows than columns have one too. Of many rows a random part is looked at, 2000 or more.

    Args:
        x: float ``[N, d]``, NaN where a number is not known; every column has some that are.
        seed: of the choice of rows. tolerance: stops where nothing moves further in units of the columns' deviations.
        iterations: at most.
    """
    if x.ndim != 2 or not x.is_floating_point():
        raise TypeError(f"x: got {x.dtype} of shape {list(x.shape)}, expected floats [N, d]")
    unknown = torch.isnan(x)
    if bool(unknown.all(0).any()):
        column = int(unknown.all(0).nonzero()[0])
        raise ValueError(f"x: got no known number in column {column}, expected at least one")
    count, dim = x.shape
    most = max(_ROWS, 2**28 // dim**3)
    if count > most:
        picked = torch.from_numpy(streams.permutation(count, seed, 0, streams.COMPLETE)[:most].copy())
        # A column may be known in rows that were not picked alone.
        few = unknown[picked].all(0).nonzero().squeeze(1).tolist()
        x = x[torch.cat((picked, *((~unknown[:, j]).nonzero().squeeze(1)[:most] for j in few))).unique()]
        count = len(x)
    x = x.double().cpu()
    offset = x.nanmean(0)
    scale = (x - offset).square().nanmean(0).sqrt()
    scale[scale == 0] = 1.0
    x = (x - offset) / scale
    known = ~torch.isnan(x)
    x = torch.where(known, x, 0.0)
    mean, covariance = torch.zeros(dim, dtype=x.dtype), torch.eye(dim, dtype=x.dtype)
    shrunk = min(0.5, 0.1 * dim / count)
    for _ in range(iterations):
        first, second = torch.zeros_like(mean), count * covariance
        for chunk in _chunks(count, dim):
            slopes, of = _regressions(known[chunk], covariance)
            away = torch.where(known[chunk], x[chunk] - mean, 0.0)
            expected = (away.unsqueeze(1) @ slopes[of]).squeeze(1)
            first += expected.sum(0)
            # What is known of a row leaves the covariance S - S_{.k} S_kk^-1 S_k. of the rest.
            explained = torch.einsum("u,uij->ij", torch.bincount(of).double(), slopes)
            second += expected.T @ expected - covariance @ explained
        moved = first / count
        after = second / count - torch.outer(moved, moved)
        after = 0.5 * (after + after.T)
        after = (1 - shrunk) * after + shrunk * after.diagonal().diag()
        change = max(float(moved.abs().max()), float((after - covariance).abs().max()))
        mean, covariance = mean + moved, after
        if change < tolerance:
            break
    covariance.diagonal().clamp_min_(1e-12)
    return offset + scale * mean, covariance * torch.outer(scale, scale)


def _regressions(known: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
    """``S_kk^-1 S_k.`` with zeros in the rows of what is not known, of each different pattern ``[U, d, d]``, and the
    pattern of each row ``[n]``. Rows of one pattern share a factor."""
    patterns, of = torch.unique(known, dim=0, return_inverse=True)
    seen = patterns.to(covariance.dtype)
    rows = seen.unsqueeze(2) * covariance
    system = rows * seen.unsqueeze(1)
    diagonal = system.diagonal(dim1=1, dim2=2)
    diagonal += torch.where(patterns, 1e-9 * covariance.diagonal().clamp_min(1e-12), 1.0)
    return torch.cholesky_solve(rows, torch.linalg.cholesky(system)), of


def _root(covariance: Tensor) -> Tensor:
    """A root of a matrix that may be singular, ``[d, d]``."""
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp_min(0.0).sqrt()


def _chunks(count: int, dim: int) -> Iterator[slice]:
    rows = max(1, _NUMBERS // dim**2)
    return (slice(start, min(start + rows, count)) for start in range(0, count, rows))


def _normals(seed: int, row: int, rows: int, draws: int, dim: int) -> Tensor:
    """float64 ``[rows, draws, dim]``, functions of (seed, row)."""
    from scipy.special import ndtri  # slow to import: only when used

    size = draws * dim
    uniforms = streams.uniforms(seed, streams.COMPLETE, rows * size, first=row * size, lane=1)
    return torch.from_numpy(np.asarray(ndtri(uniforms))).reshape(rows, draws, dim)
