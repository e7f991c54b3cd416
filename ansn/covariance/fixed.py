"""A covariance given by hand: of arrays, a file or a fitted scikit-learn estimator."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ansn.errors import sizes

if TYPE_CHECKING:
    from ansn.covariance.adaptive import AdaptiveCovariance
    from ansn.covariance.structure import Structure

LEARNING = ("warmup", "distinct", "initial", "forgetting", "refresh")
"""Options of a covariance that learns, which one given by hand has none of."""

_KINDS = (
    "arrays, a .npz or .safetensors file, or a fitted estimator with location_ and covariance_, with means_,"
    " covariances_, weights_ and covariance_type, or with mean_ and get_covariance()"
)


@torch.no_grad()
def fixed(
    cls: type[AdaptiveCovariance],
    mean: Any,
    covariance: Any = None,
    *,
    share: Any = None,
    shape: int | Sequence[int] | None = None,
    structure: str | type[Structure] | None = None,
    **options: Any,
) -> AdaptiveCovariance:
    """A covariance given by hand, frozen: S counts as it is, and :meth:`update` does nothing.

    Args:
        mean: ``[*shape]`` or ``[d]``, of K regions ``[K, ...]`` (with ``shape`` also a number), numpy or torch. Without
            ``covariance``, where both come from: the path of a ``.npz`` or ``.safetensors`` file with ``mean``,
            ``covariance`` and, of regions, ``share``; or a fitted scikit-learn estimator, of ``sklearn.covariance``,
            ``PCA``, ``FactorAnalysis``, or ``GaussianMixture``, whose components are the regions.
        covariance: S, a variance, ``[d]`` or ``[*shape]`` variances, or ``[d, d]``, squared data units; of K regions
            ``[K, ...]``.
        share: of the data in each of K regions, ``[K]``, positive, in any unit; None: one region.
        shape: of one data point; by default the mean's.
        structure: as of the class, by default "dense" for matrices and "diagonal" for variances. An S that is not of
            the structure becomes what it learns from endless data of this S.
        options: as of the class, but for those of learning. ``eps_floor`` is 0 by default: nothing is rounded.

    Raises TypeError or ValueError naming the argument, also for a matrix that is not symmetric and positive
    semidefinite (to rounding), and OSError for a file that cannot be read.
    """
    for name in LEARNING:
        if name in options:
            raise ValueError(f"{name}: got {options[name]!r} for a covariance that is fixed, expected none")
    if covariance is None:
        mean, covariance, *shares = _read(mean)
        share = shares[0] if shares and share is None else share
    weights = _numbers("share", [1.0] if share is None else share)[0]
    if weights.ndim != 1 or not len(weights) or not bool((weights > 0).all()):
        raise ValueError(f"share: got {weights.tolist()}, expected [K] positive numbers")
    means, shape = _means(_numbers("mean", mean)[0], None if share is None else len(weights), shape)
    s, precision = _numbers("covariance", covariance)
    variances, rows = _roots(s if share is not None else s.unsqueeze(0), means, shape, precision)
    kind = structure or ("diagonal" if rows is None else "dense")
    made = cls(shape, len(means), kind, **{"eps_floor": 0.0} | options)
    level = variances.mean(1)
    none = (level == 0) & (made.rules.ridge(level) == 0)
    if made.rules.given is None and bool(none.any()):
        of = f" of region {int(none.nonzero()[0])}" if share is not None else ""
        raise ValueError(f"covariance: got no variance at all{of}, expected some, or an eps above 0")
    if rows is None:  # one row says all variances to who sums squares alone
        deviations = variances.sqrt()
        rows = deviations.unsqueeze(1) if made.structure.name == "diagonal" else torch.diag_embed(deviations)
    return _filled(made, means, rows, weights)


def _filled(made: AdaptiveCovariance, means: Tensor, rows: Tensor, shares: Tensor) -> AdaptiveCovariance:
    """Moments as of endless points: means ``[K, d]``, ``S_k = sum_i a_i a_i^T`` of the rows a ``[K, r, d]``."""
    moments, structure = made.moments, made.structure
    weight = 2 * max(structure.points(), made.rules.warmup) * shares / shares.min()
    for buffer, value in ((moments.weight, weight), (moments.weight2, weight), (moments.mean, means)):
        buffer.copy_(value)
    for last in (False, True) if structure.oriented else (True,):  # the basis first, then what is gathered in it
        for k, part in enumerate(rows.to(moments.mean)):
            basis = {name: value[k : k + 1] for name, value in moments.basis.items()}
            for name, value in structure.scatter(part, None, 1, basis).items():
                getattr(moments, name)[k] = (weight[k] - 1) * value[0]
        if not last:
            structure.reorient(moments)
    made.seen = made.seen_at_basis = int(weight.sum())
    made.oriented = True
    return made.freeze()


def _read(source: Any) -> list[Any]:
    """Mean, covariance and, of regions, shares, of a file or an estimator."""
    if isinstance(source, (str, os.PathLike)):
        return _file(os.fspath(source))
    for names in (("location_", "covariance_"), ("means_", "covariances_", "weights_", "covariance_type")):
        if all(hasattr(source, name) for name in names):
            mean, s, *rest = (getattr(source, name) for name in names)
            tied = rest[1:] == ["tied"]
            return [mean, np.broadcast_to(s, (len(mean), *s.shape)) if tied else s, *rest[:1]]
    if hasattr(source, "mean_") and hasattr(source, "get_covariance"):
        return [source.mean_, source.get_covariance()]
    raise ValueError(f"mean: got {type(source).__name__} without a covariance, expected {_KINDS}")


def _file(path: str) -> list[Any]:
    if path.endswith(".npz"):
        with np.load(path, allow_pickle=False) as stored:
            held = dict(stored)
    elif path.endswith(".safetensors"):
        from safetensors.torch import load_file

        held = load_file(path)
    else:
        raise ValueError(f"mean: got the path {path}, expected {_KINDS}")
    if not {"mean", "covariance"} <= set(held):
        raise ValueError(f"mean: got a file of {sorted(held)} ({path}), expected one of mean and covariance")
    return [held[name] for name in ("mean", "covariance", "share") if name in held]


def _numbers(name: str, value: Any) -> tuple[Tensor, float]:
    """Finite float64, on the CPU, and the precision that the numbers came in."""
    out = value.detach().cpu() if isinstance(value, Tensor) else np.array(value)
    if isinstance(out, np.ndarray):
        if out.dtype.kind not in "fiu":
            raise TypeError(f"{name}: got an array of {out.dtype}, expected real numbers")
        out = torch.from_numpy(out)
    if out.is_complex() or out.dtype == torch.bool:
        raise TypeError(f"{name}: got {out.dtype}, expected real numbers")
    if not bool(torch.isfinite(out).all()):
        raise ValueError(f"{name}: got a value that is not finite, expected finite numbers")
    return out.double(), torch.finfo(out.dtype if out.is_floating_point() else torch.float64).eps


def _means(mean: Tensor, regions: int | None, shape: int | Sequence[int] | None) -> tuple[Tensor, tuple[int, ...]]:
    """``[K, d]``, and the shape of a data point."""
    lead = () if regions is None else (regions,)
    each = tuple(mean.shape[len(lead) :])
    shape = each if shape is None else sizes("shape", shape)
    dim = int(np.prod(shape))
    if not shape or (mean.ndim and (mean.shape[: len(lead)] != lead or each not in (shape, (dim,)))):
        wanted = ", ".join(map(str, (*lead, *(shape or ("*shape",)))))
        raise ValueError(f"mean: got shape {list(mean.shape)}, expected [{wanted}]")
    return mean.expand(regions or 1, dim) if not mean.ndim else mean.reshape(regions or 1, dim), shape


def _roots(s: Tensor, means: Tensor, shape: tuple[int, ...], precision: float) -> tuple[Tensor, Tensor | None]:
    """Variances ``[K, d]``, and rows ``[K, d, d]`` with ``S = sum_i a_i a_i^T`` where S are matrices."""
    regions, dim = means.shape
    each = tuple(s.shape[1:])
    if s.ndim == 0 or len(s) != regions or each not in ((), (dim,), shape, (dim, dim)):
        lead = f"{regions} of " if regions > 1 else ""
        raise ValueError(f"covariance: got shape {list(each)}, expected {lead}a variance, [{dim}] or [{dim}, {dim}]")
    if each != (dim, dim):
        variances = s.reshape(regions, -1).expand(regions, dim)
        if bool((variances < 0).any()):
            raise ValueError(f"covariance: got a variance of {float(variances.min()):.3g}, expected none below 0")
        return variances, None
    slack = 10 * dim * precision * s.abs().amax((1, 2))
    off = (s - s.mT).abs().amax((1, 2))
    values, vectors = torch.linalg.eigh((s + s.mT) / 2)
    for k in range(regions):
        what = f"a matrix{f' of region {k}' if regions > 1 else ''}"
        if off[k] > slack[k]:
            raise ValueError(f"covariance: got {what} that is not symmetric (by {off[k]:.3g}), expected S = S^T")
        if values[k, 0] < -slack[k]:
            least = f"whose smallest eigenvalue is {values[k, 0]:.3g}"
            raise ValueError(f"covariance: got {what} {least}, expected a positive semidefinite one")
    return s.diagonal(dim1=1, dim2=2), (vectors * values.clamp_min(0).sqrt().unsqueeze(1)).mT
