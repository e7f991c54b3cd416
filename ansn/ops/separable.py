"""Products with a basis that has one small matrix an axis, and what is made of them: the separable structure's step,
filter and moments, and the denoiser of a mixture (math sections 3, 10, 11 and 12)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ansn.ops import _checks, _dispatch, reference
from ansn.ops.colored_step import step_by


class Axes(NamedTuple):
    """``Q = Q_1 (x) ... (x) Q_A``, orthonormal: ``bases[i]`` ``[K or 1, n, n]`` of axis ``axes[i]`` of rows of
    ``shape``; the identity along an axis that is not named."""

    bases: Sequence[Tensor]
    axes: Sequence[int]
    shape: Sequence[int]


def _regions(region: Tensor | None, *values: Tensor | None) -> None:
    if region is not None:
        _checks.region_values(region, max(t.shape[0] for t in values if t is not None))


_BASIS = "Tensor[] bases, int[] axes, SymInt[] shape"
_run_apply = _dispatch.define(
    "separable_apply(Tensor v, Tensor? center, Tensor? weights, Tensor? tau2, Tensor? region,"
    f" bool inward, bool outward, bool rest, {_BASIS}) -> Tensor",
    lambda v, center, weights, tau2, region, *args: _regions(region, center, weights, *args[3]),
)
_run_step = _dispatch.define(
    "separable_step(Tensor x, Tensor? denoised, Tensor? f, Tensor? c, Tensor? a, Tensor? b, Tensor deviation,"
    f" Tensor? region, {_BASIS}, SymInt seed, SymInt row, SymInt step, SymInt stream) -> Tensor",
    lambda *args: _regions(args[7], args[6], *args[8]),
)
_run_update = _dispatch.define(
    "separable_update_(Tensor(a!) weight, Tensor(b!) weight2, Tensor(c!) mean, Tensor(d!) scatter,"
    f" Tensor(e!)[] axis_scatters, Tensor x, Tensor? region, {_BASIS}, float decay) -> ()",
    lambda weight, weight2, *args: _checks.apart(weight, weight2),
)
_run_mixture = _dispatch.define(
    "mixture(Tensor x, Tensor center, Tensor variances, Tensor log_weights, Tensor sigma2, bool denoise,"
    f" {_BASIS}) -> (Tensor, Tensor)"
)


def _reference_update(weight: Tensor, weight2: Tensor, mean: Tensor, scatter: Tensor, axis_scatters: list[Tensor],
                      x: Tensor, region: Tensor | None, *args: Any) -> None:  # fmt: skip
    _checks.update_values(x, region, len(mean))
    reference.separable_update_(weight, weight2, mean, scatter, axis_scatters, x, region, *args)


_dispatch.register("separable_apply", "reference", reference.separable_apply)
_dispatch.register("separable_step", "reference", reference.separable_step)
_dispatch.register("separable_update_", "reference", _reference_update)
_dispatch.register("mixture", "reference", reference.mixture)


@torch.library.register_fake("ansn::separable_apply")
@torch.library.register_fake("ansn::separable_step")
def _(v: Tensor, *_args: Any) -> Tensor:
    return torch.empty_like(v, memory_format=torch.contiguous_format)


@torch.library.register_fake("ansn::separable_update_")
def _(*_args: Any) -> None:
    return None


@torch.library.register_fake("ansn::mixture")
def _(x: Tensor, center: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    logs = x.new_empty((center.shape[0], x.shape[0]), dtype=torch.float64)
    return (torch.empty_like(x, memory_format=torch.contiguous_format) if args[3] else x.new_empty(0)), logs


class _Apply(_dispatch.Function):
    """Affine in v: the adjoint is the same operation from the other side, without the center."""

    @staticmethod
    def forward(v: Tensor, center: Tensor | None, *args: Any) -> Tensor:
        return _run_apply(v, center, *args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        weights, tau2, region, inward, outward, rest, bases, axes, shape = inputs[2:]
        ctx.save_for_backward(weights, tau2, region, *bases)
        ctx.how = inward, outward, rest, axes, shape

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        weights, tau2, region, *bases = ctx.saved_tensors
        inward, outward, rest, axes, shape = ctx.how
        way = weights, tau2, region, outward, inward, rest, bases, axes, shape
        # What is compiled has no second derivative, and dynamo traces no Function inside a backward.
        run = _run_apply if torch.compiler.is_compiling() else _applied
        return run(grads[0].contiguous(), None, *way), *([None] * 10)


def _applied(v: Tensor, center: Tensor | None, weights: Tensor | None, tau2: Any, *way: Any) -> Tensor:
    if not _checks.needs_grad(v):
        return _run_apply(v, center, weights, tau2, *way)
    if isinstance(tau2, float):
        tau2 = torch.full((), tau2, dtype=reference.compute_dtype(v), device=v.device)
    return _Apply.apply(v, center, weights, tau2, *way)


def separable_apply(
    v: Tensor,
    q: Axes,
    *,
    inward: bool = True,
    outward: bool = True,
    weights: Tensor | None = None,
    tau: float | Tensor | None = None,
    center: Tensor | None = None,
    region: Tensor | None = None,
    rest: bool = False,
) -> Tensor:
    """``y = [Q] (w * [Q^T] (v - center))``, or with ``rest`` ``v - y``, row by row.

    Args:
        v: ``[B, ...]``, any float dtype.
        q: the basis. ``inward``: with ``Q^T``; ``outward``: with ``Q``.
        weights: w, ``[K or 1, d]``. tau: a number or a tensor ``[]`` or ``[B]``: then ``w = 1 / (weights / tau^2 +
            1)``, which with ``rest`` and both sides of Q is the Wiener filter of ``l = weights``.
        center: ``[K or 1, d]``, taken away first. region: int64 ``[B]``; not looked at when K = 1.

    Returns v's shape and dtype; arithmetic is float64 for float64 rows, else float32. Differentiable in v alone. Raises
    TypeError or ValueError naming the argument.
    """
    _checks.batched("v", v)
    region = _known(v, q, region, weights=weights, center=center)
    if tau is not None and weights is None:
        raise ValueError("weights: got None, expected l where there is a tau")
    return apply_known(v, q, inward, outward, weights, tau, center, region, rest)


def apply_known(
    v: Tensor,
    q: Axes,
    inward: bool,
    outward: bool,
    weights: Tensor | None,
    tau: float | Tensor | None,
    center: Tensor | None,
    region: Tensor | None,
    rest: bool,
) -> Tensor:
    """:func:`separable_apply`, with its arguments, of a caller who has looked at all but tau; ``region`` is None where
    K = 1."""
    tau2: float | Tensor | None = None
    if tau is not None:
        at = _checks.term("tau", tau, v.shape[0], v)
        tau2 = 0.0 if at is None else at * at
    out = _applied(_checks.flat(v), center, weights, tau2, region, inward, outward, rest, *map(list, q))
    return out if v.ndim == 2 else out.reshape(v.shape)


def separable_step(
    x: Tensor,
    denoised: Tensor | None = None,
    f: Tensor | None = None,
    *,
    q: Axes,
    deviation: Tensor,
    c: float | Tensor | None = None,
    a: float | Tensor | None = None,
    b: float | Tensor | None = None,
    region: Tensor | None = None,
    **counters: int,
) -> Tensor:
    """``out = x + c (D - x) + Q (s * (a f + b z))``, row by row (math section 3): :func:`colored_step` with the factor
    ``Q diag(s)``, ``deviation`` s ``[K or 1, d]``; the other arguments are its."""
    _checks.batched("x", x)
    region = _known(x, q, region, "x", deviation=deviation)
    rows = x.shape[0]
    terms = [_checks.term(name, value, rows, x) for name, value in (("c", c), ("a", a), ("b", b))]
    if (terms[2] is None and (f is None or terms[1] is None)) or _checks.needs_grad(x, denoised, f):

        def color(z: Tensor) -> Tensor:
            return separable_apply(z, q, inward=False, weights=deviation, region=region)

        return step_by(color, x, denoised, f, **dict(zip("cab", terms, strict=True)), **counters)
    for name, value in (("denoised", denoised), ("f", f)):
        if value is not None:
            _checks.like(name, value, x)
    known = _checks.counter(rows, *(counters.get(name, 0) for name in ("seed", "row", "step", "stream")))
    out = _run_step(
        _checks.flat(x), None if denoised is None else _checks.flat(denoised), None if f is None else _checks.flat(f),
        *terms, deviation, region, *map(list, q), *known,
    )  # fmt: skip
    return out if x.ndim == 2 else out.reshape(x.shape)


def separable_update_(
    weight: Tensor,
    weight2: Tensor,
    mean: Tensor,
    scatter: Tensor,
    axis_scatters: Sequence[Tensor],
    x: Tensor,
    q: Axes,
    region: Tensor | None = None,
    *,
    decay: float = 1.0,
) -> None:
    """Merge a batch into moments in the basis Q, in place (math section 11): with ``A = [x - bm; sqrt(n b / (n + b))
    delta]`` as of :func:`covariance_update_`::

        scatter          <- decay scatter + sum_r (Q^T A_r)^2
        axis_scatters[i] <- decay axis_scatters[i] + n / d sum_r unfold(A_r) unfold(A_r)^T

    ``scatter`` ``[K, d]``; ``axis_scatters`` of the axes in ``q.axes``, ``[K, n, n]``, or empty; the rest as of
    :func:`covariance_update_`. On the CPU ValueError where x is not finite, the state untouched.
    """
    _checks.batched("x", x)
    flat = _checks.flat(x.detach())
    _checks.moments(weight, weight2, mean, scatter, flat, region, decay, diagonal=True)
    _known(flat, q, None, "x", len(mean))
    sizes = [(len(mean), q.shape[a], q.shape[a]) for a in q.axes] if axis_scatters else []
    if [(*t.shape, t.dtype, t.device, t.is_contiguous()) for t in axis_scatters] != [
        (*size, mean.dtype, x.device, True) for size in sizes
    ]:
        given = ", ".join(map(_checks.describe, axis_scatters))
        raise ValueError(f"axis_scatters: got {given}, expected contiguous {mean.dtype} {sizes} on {x.device}")
    _run_update(
        weight, weight2, mean, scatter, list(axis_scatters), flat, region, *map(list, q), decay
    )


def mixture(
    x: Tensor,
    q: Axes,
    center: Tensor,
    variances: Tensor,
    log_weights: Tensor,
    sigma2: Tensor,
    denoise: bool = True,
) -> tuple[Tensor, Tensor]:
    """The denoiser of K Gaussians under noise ``sigma^2 I``, and each one's part in it (math section 12)::

        logs_k = ln w_k + ln N(x; m_k, Q_k diag(variances_k + sigma^2) Q_k^T) + d/2 ln 2 pi,     p = softmax(logs)
        D = x - sum_k p_k Q_k (sigma^2 / (variances_k + sigma^2)) Q_k^T (x - m_k)

    ``x`` ``[B, d]``, ``center`` and ``variances`` ``[K, d]``, ``log_weights`` float64 ``[K]``, ``sigma2`` ``[]`` or
    ``[B]``. Returns D, x's shape and dtype (empty unless ``denoise``), and ``logs`` float64 ``[K, B]``. Differentiable
    in x, then in plain torch. Raises TypeError or ValueError naming the argument.
    """
    _checks.batched("x", x)
    _known(x, q, None, "x", len(center), center=center, variances=variances)
    _checks.floating("log_weights", log_weights)
    _checks.floating("sigma2", sigma2)
    for name, value, sizes in (("log_weights", log_weights, [(len(center),)]), ("sigma2", sigma2, [(), (len(x),)])):
        if value.shape not in sizes or value.device != x.device:
            raise ValueError(f"{name}: got {_checks.describe(value)}, expected {sizes[-1]} on {x.device}")
    _checks.without_gradient(log_weights=log_weights, sigma2=sigma2)
    run = reference.mixture if _checks.needs_grad(x) else _run_mixture
    basis = list(q.bases), list(q.axes), list(q.shape)
    out, logs = run(_checks.flat(x), center, variances, log_weights, sigma2, denoise, *basis)
    return out if x.ndim == 2 or not denoise else out.reshape(x.shape), logs


def _known(
    v: Tensor, q: Axes, region: Tensor | None, name: str = "v", regions: int | None = None, **rows: Tensor | None
) -> Tensor | None:
    """The regions, or None where there is one of everything.

    Raises TypeError or ValueError unless rows of data, the basis and ``rows`` ``[K or 1, d]`` go together, and
    ``region`` with K; with ``regions`` K is that, ``rows`` are ``[K, d]`` and each row of data is of all regions."""
    bases, axes, shape = q
    device, sizes, dim = v.device, v.shape, reference.product(shape)
    if reference.product(sizes[1:]) != dim:
        raise ValueError(f"{name}: got shape {list(sizes)}, expected [B, d] of the axes {list(shape)}")
    if len(bases) != len(axes) or list(axes) != [a for a in range(len(shape)) if a in axes]:
        raise ValueError(f"axes: got {list(axes)}, expected rising ones of {list(shape)}, one for each of {len(bases)}")
    known: list[tuple[str | int, Tensor, tuple[int, ...]]]
    known = [(key, value, (dim,)) for key, value in rows.items() if value is not None]
    known += [(i, basis, (shape[a], shape[a])) for i, (a, basis) in enumerate(zip(axes, bases, strict=True))]
    count = regions or 1
    for key, value, size in known:
        # One look where all is well: a small step is as short as its overhead.
        sizes = value.shape if isinstance(value, Tensor) else ()
        fits = sizes[1:] == size and value.dtype in _checks.FLOATS and value.device == device
        if not fits or value.requires_grad:
            name = key if isinstance(key, str) else f"bases[{key}]"
            _checks.floating(name, value)
            if not fits:
                raise ValueError(f"{name}: got {_checks.describe(value)}, expected {['K', *size]} on {device}")
            _checks.without_gradient(**{name: value})
        if regions is None and count == 1:
            count = sizes[0]
        elif sizes[0] != count and (sizes[0] != 1 or (regions is not None and len(size) == 1)):
            name = key if isinstance(key, str) else f"bases[{key}]"
            raise ValueError(f"{name}: got {sizes[0]} regions, expected {count}")
    if regions is None:
        _checks.region(region, v.shape[0], count, v.device)
    return None if count == 1 else region
