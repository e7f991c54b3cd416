"""Ladders of noise levels ``tau_1 > ... > tau_N`` and the distribution that training draws levels from (math
section 5).

``tau`` is a dimensionless standard deviation: the noise shape R has the trace of the data's covariance, so tau counts
standard deviations of the data.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ansn import ops, schema
from ansn.covariance import AdaptiveCovariance, Mixture
from ansn.errors import whole

TRAINING = ("lognormal", "ladder")
START_KL = 0.003  # nats between the start of the flow and the perturbed data
PAIRS = 1000  # points that are enough for what looks at pairs of them
FEWEST = 4  # points that have a fourth moment, which the start of sampling asks for
_START_LIMIT = 1e3
_FIXED_RATIO = 1.5  # where NCSNv2's rule has no solution (d <= 4)


@dataclass(frozen=True)
class Levels:
    """A ladder and a training distribution; make one with :func:`geometric`, :func:`karras` or :func:`paper`.

    Attributes:
        tau: the ladder, strictly decreasing, every rung > 0.
        training: ``"ladder"`` draws a rung uniformly (NCSN); ``"lognormal"`` draws ``ln tau ~ N(log_mean, log_std^2)``
            clipped to the ladder's ends (EDM).
        log_mean, log_std: of the log-normal; EDM's -1.2 and 1.2 at a data deviation of 0.5 are -0.5 and 1.2 here.
        start: where solvers of the flow start, at most the top of the ladder; None is the top. See
            :func:`tau_start`.
    """

    tau: tuple[float, ...]
    training: str = "ladder"
    log_mean: float = -0.5
    log_std: float = 1.2
    start: float | None = None

    def __post_init__(self) -> None:
        if not self.tau or not all(math.isfinite(t) and t > 0 for t in self.tau):
            raise ValueError(f"tau: got {self.tau}, expected at least one level, each finite and > 0")
        if any(a <= b for a, b in zip(self.tau, self.tau[1:], strict=False)):
            raise ValueError("tau: got levels that do not decrease strictly, expected tau_1 > ... > tau_N")
        if self.training not in TRAINING:
            raise ValueError(f"training: got {self.training!r}, expected one of {', '.join(TRAINING)}")
        if not self.log_std > 0:
            raise ValueError(f"log_std: got {self.log_std}, expected > 0")
        if self.start is not None and not self.minimum <= self.start <= self.maximum:
            raise ValueError(f"start: got {self.start}, expected a level in [{self.minimum}, {self.maximum}]")

    def __len__(self) -> int:
        return len(self.tau)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Levels:
        """The inverse of ``dataclasses.asdict``, also after a trip through JSON, which turns the tuple into a list."""
        found: Levels = schema.build(cls, values, "levels")
        return found

    @property
    def maximum(self) -> float:
        return self.tau[0]

    @property
    def minimum(self) -> float:
        return self.tau[-1]

    def draw(self, ladder: Tensor, rows: int, **counters: int) -> Tensor:
        """Training levels ``[rows]``; ``ladder`` is ``tau`` as a tensor, ``counters`` as of :func:`ansn.ops.levels`."""
        law = (self.log_mean, self.log_std, self.minimum, self.maximum) if self.training == "lognormal" else None
        return ops.levels(ladder, rows, law, **counters)


def overlap_ratio(dim: int, overlap: float = 0.5) -> float:
    """Ratio of neighbouring levels by NCSNv2's Technique 2: the share C = ``overlap`` of one level's shell lies within
    three deviations of the next's.

    Solves ``Phi(sqrt(2 d)(g - 1) + 3 g) - Phi(sqrt(2 d)(g - 1) - 3 g) = C``; 1.36, 1.08, 1.04 for d = 64, 784, 3072 at
    C = 0.5, the paper's "about 0.5". The published ladders (Song and Ermon 2020; geometric down to 0.01; d = 3 H W;
    CIFAR-10 from 50 in 232 levels, CelebA 64 from 90 in 500, LSUN 96 from 140 in 788, LSUN 128 from 190 in 1086, FFHQ
    256 from 348 in 2311) follow from C = 0.567: theirs are 0.5662 to 0.5670. :func:`geometric` rounds up, and makes
    one level more of each. There is no solution for d <= 4, where a fixed 1.5 serves.

    Raises ValueError for ``dim`` < 1, or an ``overlap`` outside (0, 0.9973): three deviations hold no more at g = 1.
    """
    if dim < 1:
        raise ValueError(f"dim: got {dim}, expected at least 1")
    most = math.erf(3 / math.sqrt(2.0))
    if not 0.0 < overlap < most:
        raise ValueError(f"overlap: got {overlap}, expected 0 < overlap < {most:.4f}")

    def excess(ratio: float) -> float:
        shift = math.sqrt(2.0 * dim) * (ratio - 1.0)
        low, high = ((shift + side * 3 * ratio) / math.sqrt(2.0) for side in (-1, 1))
        return 0.5 * (math.erf(high) - math.erf(low)) - overlap

    return _root(excess, 1.0, 50.0) if excess(50.0) < 0 else _FIXED_RATIO


def geometric(
    tau_max: float,
    tau_min: float,
    *,
    dim: int | None = None,
    ratio: float | None = None,
    n: int | None = None,
    overlap: float = 0.5,
    training: str = "ladder",
) -> Levels:
    """Geometric ladder. Give one of ``n`` (number of levels), ``ratio`` (> 1) or ``dim`` (NCSNv2's rule in d
    dimensions, with its ``overlap``, see :func:`overlap_ratio`)."""
    _check_range(tau_max, tau_min)
    if sum(v is not None for v in (dim, ratio, n)) != 1:
        raise ValueError(f"dim, ratio, n: got {dim}, {ratio}, {n}, expected exactly one of them")
    if n is None:
        step = ratio if ratio is not None else overlap_ratio(dim or 0, overlap)
        if not step > 1:
            raise ValueError(f"ratio: got {step}, expected > 1")
        n = 1 + math.ceil(math.log(tau_max / tau_min) / math.log(step))
    n = whole("n", n, 2)
    logs = torch.linspace(math.log(tau_max), math.log(tau_min), n, dtype=torch.float64)
    return Levels(tuple(logs.exp().tolist()), training)


def karras(tau_max: float, tau_min: float, *, n: int = 20, rho: float = 7.0, training: str = "lognormal") -> Levels:
    """``tau_i = (tau_max^(1/rho) + i/(n-1) (tau_min^(1/rho) - tau_max^(1/rho)))^rho`` (Karras et al. 2022, Eq. 5)."""
    _check_range(tau_max, tau_min)
    n = whole("n", n, 2)
    if not rho > 0:
        raise ValueError(f"rho: got {rho}, expected > 0")
    ends = torch.tensor([tau_max, tau_min], dtype=torch.float64) ** (1.0 / rho)
    ramp = torch.linspace(0, 1, n, dtype=torch.float64)
    return Levels(tuple(((ends[0] + ramp * (ends[1] - ends[0])) ** rho).tolist()), training)


def paper(dim: int) -> Levels:
    """The paper's single level ``tau = sqrt(s_d) = 2.4 / sqrt(d)``: Haario's scale, the smallest rung of a ladder."""
    if dim < 1:
        raise ValueError(f"dim: got {dim}, expected at least 1")
    return Levels((2.4 / math.sqrt(dim),))


def tau_max_flow(dim: int, kl: float = 0.01) -> float:
    """``(d / (4 KL))^(1/4)``: largest level for the probability flow started from ``N(m, S + tau^2 R)``.

    ``kl`` is how far, in nats, the start may be from the perturbed data; 11.8 for d = 784 at the default.
    """
    if dim < 1 or not kl > 0:
        raise ValueError(f"dim, kl: got {dim}, {kl}, expected dim >= 1 and kl > 0")
    return (dim / (4.0 * kl)) ** 0.25


@torch.no_grad()
def tau_start(
    x: Tensor,
    covariance: AdaptiveCovariance,
    kl: float = START_KL,
    region: Tensor | None = None,
    mixture: Mixture | None = None,
) -> float:
    r"""Smallest level at which the start ``N(m, S + tau^2 R)`` is within ``kl`` nats of the perturbed data.

    Both have the same mean and covariance, so what is left is the data's third and fourth cumulants, in coordinates
    where that covariance is the identity (Edgeworth; Comon 1994, Eq. 3.12, for d dimensions)::

        KL(tau) = ||kappa_3||^2 / 12 + ||kappa_4||^2 / 48,      about tau^-6 and tau^-8

    against ``d / (4 tau^4)`` of :func:`tau_max_flow`, which knows nothing of the data. With ``k_ij = u_i . u_j`` of
    the whitened rows the squared norms are means over pairs i != j, which have no bias of the order d^3 / n::

        ||kappa_3||^2 = E k_ij^3,    ||kappa_4||^2 = E k_ij^4 - 6 E (u^T A u)^2 + 3 (tr A^2)^2 + 6 tr A^4

    A the whitened covariance of the data. So only the Gram matrix of the rows is needed, at any d.

    Args:
        x: a sample of the data ``[B, *shape]``, B >= 4; a thousand points serve.
        covariance: gives R. kl: nats, > 0.
        region: int64 ``[B]`` where there are several; their KL is averaged with their shares.
        mixture: the start is the mixture's, of regions under common noise; the average bounds its KL from above.

    At least the data's deviation, with a mixture the largest one of a region: below a deviation the expansion says
    nothing; and where S counts as R for want of points, at least :func:`tau_max_flow`, since the covariances differ
    then. Raises ValueError naming the argument.
    """
    if not kl > 0:
        raise ValueError(f"kl: got {kl}, expected > 0 nats")
    if x.shape[0] < FEWEST:
        raise ValueError(f"x: got {x.shape[0]} points, expected at least {FEWEST} for a fourth moment")
    flat = x.reshape(x.shape[0], -1).to(covariance.center.dtype)
    white = covariance.whiten(flat, region).double()
    region = region if mixture is None else mixture.draw(x, row=0)  # every process looks at the same rows
    owner = torch.zeros(len(x), dtype=torch.int64, device=x.device) if region is None else region
    grams = []
    for k in owner.unique():
        rows = white[owner == k]
        if len(rows) >= FEWEST:
            centred = rows - rows.mean(0)
            if len(rows) > centred.shape[1]:  # a matrix of few columns, not the large one of which most values are 0
                vectors, singular, _ = torch.linalg.svd(centred, full_matrices=False)
                values = singular.square()
            else:
                values, vectors = torch.linalg.eigh(centred @ centred.mT)
            grams.append((len(rows) / len(white), values.clamp_min(0.0), vectors))

    unit = 1.0 if covariance.unit is None else float(covariance.unit.min())
    least = 1.0 / unit
    if mixture is not None:
        least = float(mixture.covariance.scale.max() / covariance.scale[0]) / unit
    elif not bool(covariance.enough().all()):
        least = min(tau_max_flow(covariance.dim) / unit, _START_LIMIT)

    def excess(log_tau: float) -> float:
        found = (share * _start_kl(values, vectors, math.exp(log_tau)) for share, values, vectors in grams)
        return sum(max(one, 0.0) for one in found) - kl

    above = math.log(_START_LIMIT)
    if excess(above) > 0.0:
        return _START_LIMIT
    # From above: at low levels the KL of few rows, which are whitened by their own covariance, comes out too small.
    while above > math.log(least):
        tau = max(above - math.log(2.0), math.log(least))
        if excess(tau) > 0.0:
            return math.exp(_root(excess, tau, above, 1e-3))
        above = tau
    return least


def _start_kl(values: Tensor, vectors: Tensor, tau: float) -> float:
    """KL of :func:`tau_start` from the Gram matrix of n rows whitened by R: its eigenvalues that are not 0, and their
    vectors ``[n, r]``."""
    n = len(vectors)
    kernel = values / (values / (n - 1) + tau**2)
    share = kernel / (n - 1)  # eigenvalues of A
    k = ((vectors * kernel) @ vectors.T).flatten()
    squares = k.square()  # products of them: a power of 4 takes ten times as long
    through = (vectors.square() * (kernel * share)).sum(1)  # u^T A u of every row
    own, pairs = k[:: n + 1], n * (n - 1)
    third = squares @ k - (own**3).sum()
    fourth = squares @ squares - (own**4).sum()
    trace = (share**2).sum()
    excess = fourth / pairs - 6.0 * through.square().mean() + 3.0 * trace**2 + 6.0 * (share**4).sum()
    return float(third / pairs / 12.0 + excess / 48.0)


def flow(
    x: Tensor,
    covariance: AdaptiveCovariance,
    *,
    tau_max: float | None = None,
    tau_min: float = 0.01,
    n: int = 20,
    region: Tensor | None = None,
    mixture: Mixture | None = None,
) -> Levels:
    """Karras levels for the flow of the data ``x`` ``[B, *shape]``, of which a thousand points are looked at (of a
    mixture's region), B >= 4: from :func:`tau_max_flow`, or :func:`tau_start` where that is more, and with that start.
    The start is the mixture's where there is one; the top serves one Gaussian, from which likelihoods and posteriors
    begin."""
    start = top = tau_start(x[:PAIRS], covariance, region=None if region is None else region[:PAIRS])
    if mixture is not None:
        start = min(top, tau_start(x[: PAIRS * mixture.regions], covariance, mixture=mixture))
    unit = 1.0 if covariance.unit is None else float(covariance.unit.min())  # tau counts deviations of R
    chosen = karras(tau_max or max(tau_max_flow(covariance.dim) / unit, top), tau_min / unit, n=n)
    start = min(max(start, chosen.minimum), chosen.maximum)
    return replace(chosen, start=start, log_mean=chosen.log_mean - math.log(unit))


@torch.no_grad()
def tau_max_langevin(x: Tensor, covariance: AdaptiveCovariance, quantile: float = 0.99) -> float:
    """Upper quantile of the pairwise Mahalanobis distances of the data, about ``sqrt(2 d)`` (NCSNv2's Technique 1
    in units of R).

    ``x`` ``[B, *shape]``, B >= 2: a sample of the data, some hundred points; distances are under region 0's factor.
    """
    if x.shape[0] < 2:
        raise ValueError(f"x: got {x.shape[0]} points, expected at least 2 for a distance")
    if not 0.0 < quantile <= 1.0:
        raise ValueError(f"quantile: got {quantile}, expected 0 < quantile <= 1")
    flat = x.reshape(x.shape[0], -1).to(covariance.center.dtype)
    region = None if covariance.regions == 1 else torch.zeros(len(flat), dtype=torch.int64, device=flat.device)
    return float(torch.pdist(covariance.whiten(flat, region)).double().quantile(quantile))


def _check_range(tau_max: float, tau_min: float) -> None:
    if not (math.isfinite(tau_max) and tau_max > tau_min > 0):
        raise ValueError(f"tau_max, tau_min: got {tau_max}, {tau_min}, expected tau_max > tau_min > 0")


def _root(f: Callable[[float], float], low: float, high: float, precision: float = 2e-12) -> float:
    """Where ``f`` changes its sign."""
    from scipy.optimize import brentq  # slow to import: only when used

    return float(brentq(f, low, high, xtol=precision))
