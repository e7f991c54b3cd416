"""Every operation in plain torch: the oracle that other back ends are tested against, and the fallback.

Clarity first: float64 for the normals, loops over regions, no fusion. All functions take and return
flat ``[B, d]`` tensors; the shapes were checked by the public functions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ansn.ops._checks import transformed

PERTURB, LANGEVIN, PRIOR, LEVELS, REGIONS, PROBES, DEQUANTISE, REVERSE, LABELS, CLEAN, MEASUREMENT = range(11)
"""Random streams, the counter word c3 of math section 7."""

_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_MASK = 0xFFFFFFFF


def philox_words(seed: int, row: Tensor, quad: Tensor, step: int, stream: int) -> Tensor:
    """Philox4x32-10 of counter ``(quad, row, step, stream)`` under the 64-bit key ``seed``, low word first.

    ``row`` and ``quad`` are int64 and broadcast; returns int64 words in [0, 2^32), shape ``[*broadcast, 4]``.
    """
    row, quad = torch.broadcast_tensors(row, quad)
    c0, c1 = quad & _MASK, row & _MASK
    c2 = torch.full_like(c0, step & _MASK)
    c3 = torch.full_like(c0, stream & _MASK)
    k0, k1 = seed & _MASK, (seed >> 32) & _MASK
    for _ in range(10):
        # The int64 product wraps modulo 2^64, which keeps every bit; masking undoes the sign of the shift.
        p0, p1 = c0 * _M0, c2 * _M1
        c0, c1, c2, c3 = ((p1 >> 32) & _MASK) ^ c1 ^ k0, p1 & _MASK, ((p0 >> 32) & _MASK) ^ c3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + _W0) & _MASK, (k1 + _W1) & _MASK
    return torch.stack((c0, c1, c2, c3), dim=-1)


def normals(
    seed: int, row: int, step: int, stream: int, rows: int, cols: int, device: torch.device | str = "cpu"
) -> Tensor:
    """Standard normals ``z[r, j]``, float64 ``[rows, cols]``, by the RNG contract (math section 7)."""
    r = torch.arange(row, row + rows, device=device).unsqueeze(1)
    q = torch.arange((cols + 3) // 4, device=device).unsqueeze(0)
    u = (philox_words(seed, r, q, step, stream).double() + 0.5) * 2.0**-32
    radius = torch.sqrt(-2.0 * torch.log(u[..., 0::2]))
    angle = 2.0 * math.pi * u[..., 1::2]
    z = torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), dim=-1)
    return z.flatten(1)[:, :cols]


def compute_dtype(*tensors: Tensor | None) -> torch.dtype:
    """float64 where any tensor is, else float32: half precision is storage only."""
    return torch.float64 if any(t is not None and t.dtype == torch.float64 for t in tensors) else torch.float32


def _per_row(coefficient: Tensor, dtype: torch.dtype) -> Tensor:
    return coefficient.to(dtype).reshape(-1, 1)


def _regions_present(region: Tensor, count: int) -> list[tuple[int, Tensor]]:
    return [(k, (region == k).nonzero().squeeze(1)) for k in range(count) if bool((region == k).any())]


def _apply_one(v: Tensor, factor: Tensor, transpose: bool, inverse: bool, lower: bool) -> Tensor:
    """One region, rows of ``v``: ``v L^T`` is L applied to each row."""
    if factor.ndim == 1:
        return v / factor if inverse else v * factor
    matrix = factor.mT if transpose else factor
    if not inverse:
        return v @ matrix.mT
    if lower:
        return torch.linalg.solve_triangular(matrix, v.mT, upper=transpose).mT
    return torch.linalg.solve(matrix, v.mT).mT


def apply_factor(
    v: Tensor, factor: Tensor, region: Tensor | None, transpose: bool, inverse: bool, lower: bool
) -> Tensor:
    """``L v``, ``L^T v``, ``L^-1 v`` or ``L^-T v`` row by row; ``factor`` ``[K, d, d]`` or ``[K, d]``."""
    dtype = compute_dtype(v, factor)
    wide, matrices = v.to(dtype), factor.to(dtype)
    if region is None or factor.shape[0] == 1:
        out = _apply_one(wide, matrices[0], transpose, inverse, lower)
    elif transformed():  # which follow no sizes that depend on values
        out = torch.full_like(wide, math.nan)
        for k, matrix in enumerate(matrices):
            out = torch.where((region == k).unsqueeze(1), _apply_one(wide, matrix, transpose, inverse, lower), out)
    else:
        out = torch.empty_like(wide)
        for k, rows in _regions_present(region, factor.shape[0]):
            out[rows] = _apply_one(wide[rows], matrices[k], transpose, inverse, lower)
    return out.to(v.dtype).contiguous()


def colored_step(
    x: Tensor,
    denoised: Tensor | None,
    f: Tensor | None,
    c: Tensor | None,
    a: Tensor | None,
    b: Tensor | None,
    factor: Tensor | None,
    region: Tensor | None,
    lower: bool,
    seed: int,
    row: int,
    step: int,
    stream: int,
) -> Tensor:
    """``out = x + c (D - x) + L (a f + b z)`` (math section 3)."""
    dtype = compute_dtype(x, denoised, f)
    out = x.to(dtype)
    if denoised is not None and c is not None:
        out = out + _per_row(c, dtype) * (denoised.to(dtype) - out)
    inner = None
    if f is not None and a is not None:
        inner = _per_row(a, dtype) * f.to(dtype)
    if b is not None:
        z = normals(seed, row, step, stream, x.shape[0], x.shape[1], x.device).to(dtype)
        noise = _per_row(b, dtype) * z
        inner = noise if inner is None else inner + noise
    if inner is not None:
        out = out + (inner if factor is None else apply_factor(inner, factor, region, False, False, lower))
    out = out.to(x.dtype)
    return out.clone() if out is x else out


def covariance_update_(
    weight: Tensor,
    weight2: Tensor,
    mean: Tensor,
    scatter: Tensor,
    x: Tensor,
    region: Tensor | None,
    decay: float,
) -> None:
    """Pebay/Chan merge of a batch into ``(n, m, M)`` of each region (math section 1), in place.

    Only the lower triangle of a dense scatter is written, and never is the upper one read.
    """

    def add(k: int, rows_of_a: Tensor) -> None:
        if scatter.ndim == 2:
            scatter[k] += rows_of_a.square().sum(0)
        else:
            scatter[k] += (rows_of_a.mT @ rows_of_a).tril()

    _merge(weight, weight2, mean, (scatter,), x, region, decay, add)


def _merge(
    weight: Tensor,
    weight2: Tensor,
    mean: Tensor,
    scatters: Sequence[Tensor],
    x: Tensor,
    region: Tensor | None,
    decay: float,
    add: Callable[[int, Tensor], None],
) -> None:
    """Forget, move the means, and let ``add(k, A)`` take the rows A of each region that the batch has."""
    if decay != 1.0:
        weight *= decay
        weight2 *= decay * decay
        for scatter in scatters:
            scatter *= decay
    x = x.to(mean.dtype)
    if x.shape[0] == 0:
        return
    groups = [(0, None)] if region is None else _regions_present(region, mean.shape[0])
    for k, rows in groups:
        part = x if rows is None else x[rows]
        b = part.shape[0]
        n = weight[k].clone()
        batch_mean = part.mean(0)
        delta = batch_mean - mean[k]
        # The mean correction is one more row of the product, not a separate addition: see math section 1.
        correction = (torch.sqrt(n * b / (n + b)) * delta).unsqueeze(0)
        add(k, torch.cat((part - batch_mean, correction.to(mean.dtype))))
        mean[k] += (b / (n + b)) * delta
        weight[k] += b
        weight2[k] += b


def cholesky(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Lower factors of ``[K, d, d]`` and LAPACK's status: 0, or the order of the first minor that is not positive."""
    factor, info = torch.linalg.cholesky_ex(matrix)
    return factor.contiguous(), info  # LAPACK leaves columns contiguous


def dsm_loss(
    prediction: Tensor,
    target: Tensor | None,
    weight: Tensor,
    seed: int,
    row: int,
    step: int,
    stream: int,
) -> tuple[Tensor, Tensor]:
    """``loss_r = w_r ||p_r - t_r||^2 / d`` and its gradient; without a target, ``t = -z`` regenerated."""
    dtype = compute_dtype(prediction, target)
    rows, cols = prediction.shape
    if target is None:
        residual = prediction.to(dtype) + normals(seed, row, step, stream, rows, cols, prediction.device).to(dtype)
    else:
        residual = prediction.to(dtype) - target.to(dtype)
    scaled = _per_row(weight, dtype) / max(cols, 1) * residual
    loss = (scaled * residual).sum(1)
    return loss, (2.0 * scaled).to(prediction.dtype)


def product(sizes: Sequence[int]) -> int:
    """Of sizes that may be symbols of a traced graph."""
    out = 1
    for size in sizes:
        out = out * size
    return out


def along(x: Tensor, axis: int, matrix: Tensor) -> Tensor:
    """The matrix ``[n, n]``, or one for each row ``[B, n, n]``, applied along an axis of ``[B, *shape]``, counted
    without B."""
    n, before, after = x.shape[axis + 1], product(x.shape[1 : axis + 1]), product(x.shape[axis + 2 :])
    if after == 1:
        return (x.reshape(x.shape[0], before, n) @ matrix.mT).reshape(x.shape)
    flat = x.reshape(x.shape[0], before, n, after)
    return ((matrix if matrix.ndim == 2 else matrix.unsqueeze(1)) @ flat).reshape(x.shape)


def turn(
    v: Tensor, bases: Sequence[Tensor], axes: Sequence[int], shape: Sequence[int], region: Tensor | None, inverse: bool
) -> Tensor:
    """``Q v``, with ``inverse`` ``Q^T v``, of rows ``[B, d]``; Q has one basis ``[K or 1, n, n]`` an axis."""
    out = v.reshape(-1, *shape)
    for axis, basis in zip(axes, bases, strict=True):
        q = basis.to(v.dtype)
        q = q[0] if region is None or q.shape[0] == 1 else q[region]
        out = along(out, axis, q.mT if inverse else q)
    return out.reshape(v.shape)


def _of(value: Tensor, region: Tensor | None, dtype: torch.dtype) -> Tensor:
    return (value if region is None or value.shape[0] == 1 else value[region]).to(dtype)


def separable_apply(
    v: Tensor,
    center: Tensor | None,
    weights: Tensor | None,
    tau2: Tensor | None,
    region: Tensor | None,
    inward: bool,
    outward: bool,
    rest: bool,
    bases: Sequence[Tensor],
    axes: Sequence[int],
    shape: Sequence[int],
) -> Tensor:
    """:func:`apply_by` in a basis of one matrix an axis."""

    def turned(rows: Tensor, inverse: bool) -> Tensor:
        return turn(rows, bases, axes, shape, region, inverse)

    wide = v.to(compute_dtype(v))
    out = apply_by(turned, wide, center, weights, tau2, region, inward, outward, rest).to(v.dtype)
    nothing = weights is None and center is None and not rest and not (bases and (inward or outward))
    return out.clone() if nothing and wide.dtype == v.dtype else out


def apply_by(
    turned: Callable[[Tensor, bool], Tensor],
    v: Tensor,
    center: Tensor | None,
    weights: Tensor | None,
    tau2: Tensor | None,
    region: Tensor | None,
    inward: bool,
    outward: bool,
    rest: bool,
) -> Tensor:
    """``y = [Q] (w * [Q^T] (v - m))`` or ``v - y`` (math sections 10 and 11) of rows ``[B, d]``, float32 or float64;
    ``turned(v, inverse)``: ``Q v`` or ``Q^T v``."""
    out = v if center is None else v - _of(center, region, v.dtype)
    if inward:
        out = turned(out, True)
    if weights is not None:
        w = _of(weights, region, v.dtype)
        out = out * w if tau2 is None else out / (w / _per_row(tau2, v.dtype) + 1.0)
    if outward:
        out = turned(out, False)
    return v - out if rest else out


def separable_step(
    x: Tensor,
    denoised: Tensor | None,
    f: Tensor | None,
    c: Tensor | None,
    a: Tensor | None,
    b: Tensor | None,
    deviation: Tensor,
    region: Tensor | None,
    bases: Sequence[Tensor],
    axes: Sequence[int],
    shape: Sequence[int],
    *counters: int,
) -> Tensor:
    """``out = x + c (D - x) + Q (s * (a f + b z))`` (math sections 3 and 11)."""
    zero = torch.zeros_like(x, dtype=compute_dtype(x, denoised, f))
    inner = colored_step(zero, None, f, None, a, b, None, None, False, *counters)
    pushed = separable_apply(inner, None, deviation, None, region, False, True, False, bases, axes, shape)
    one = torch.ones((), dtype=zero.dtype, device=x.device)
    return colored_step(x, denoised, pushed, c, one, None, None, None, False, 0, 0, 0, 0)


def separable_update_(
    weight: Tensor,
    weight2: Tensor,
    mean: Tensor,
    scatter: Tensor,
    axis_scatters: Sequence[Tensor],
    x: Tensor,
    region: Tensor | None,
    bases: Sequence[Tensor],
    axes: Sequence[int],
    shape: Sequence[int],
    decay: float,
) -> None:
    """Pebay/Chan merge of a batch into moments in a separable basis (math section 11), in place."""

    def add(k: int, rows_of_a: Tensor) -> None:
        scatter[k] += turn(rows_of_a, [q[k % len(q)][None] for q in bases], axes, shape, None, True).square().sum(0)
        for axis, sums in zip(axes, axis_scatters, strict=False):
            unfolded = rows_of_a.reshape(-1, *shape).movedim(axis + 1, 0).flatten(1)
            sums[k] += unfolded @ unfolded.mT * (shape[axis] / x.shape[1])

    _merge(weight, weight2, mean, (scatter, *axis_scatters), x, region, decay, add)


def mixture(
    x: Tensor,
    center: Tensor,
    variances: Tensor,
    log_weights: Tensor,
    sigma2: Tensor,
    denoise: bool,
    bases: Sequence[Tensor],
    axes: Sequence[int],
    shape: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """:func:`mixture_by` in a basis of one matrix an axis."""

    def turned(v: Tensor, inverse: bool) -> Tensor:
        out = v.reshape(*v.shape[:2], *shape)
        for axis, basis in zip(axes, bases, strict=True):
            q = basis.to(v.dtype)
            out = along(out, axis + 1, q.mT if inverse else q)
        return out.reshape(v.shape)

    return mixture_by(turned, x, center, variances, log_weights, sigma2, denoise)


def mixture_by(
    turned: Callable[[Tensor, bool], Tensor],
    x: Tensor,
    center: Tensor,
    variances: Tensor,
    log_weights: Tensor,
    sigma2: Tensor,
    denoise: bool,
) -> tuple[Tensor, Tensor]:
    """The denoiser of K Gaussians under isotropic noise, and the logarithm of each one's part (math section 12);
    ``turned(v, inverse)``: ``Q_k v`` or ``Q_k^T v`` of ``[K, B, d]``."""
    dtype = compute_dtype(x)
    wide = x.to(dtype)
    c = turned(wide - center.to(dtype).unsqueeze(1), True)
    noise = sigma2.to(dtype).reshape(1, -1, 1)
    # Where neither data nor noise vary a row is at the mean or has no density.
    total = (variances.to(dtype).unsqueeze(1) + noise).clamp_min(torch.finfo(dtype).tiny)
    misfit = (c.square() / total).sum(2).double() + total.log().sum(2).double()
    logs = log_weights.unsqueeze(1) - 0.5 * misfit
    if not denoise:
        return x.new_empty(0), logs
    weighted = logs.softmax(0).to(dtype).unsqueeze(2) * (noise / total) * c
    return (wide - turned(weighted, False).sum(0)).to(x.dtype), logs
