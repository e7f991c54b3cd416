r"""Regions found in the data: a mixture of K Gaussians, learned online (math section 12)::

    p(x) = sum_k w_k N(x; m_k, S_k)
"""

from __future__ import annotations

import itertools
import math
import warnings
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from ansn import ops
from ansn.choices import choice
from ansn.covariance.adaptive import AdaptiveCovariance
from ansn.covariance.choice import AUTO, Choice, Rows, added_noise, choose, some_rows
from ansn.covariance.pencil import Pencil, uncast
from ansn.covariance.ranks import Sync, first_row
from ansn.covariance.structure import STRUCTURES
from ansn.covariance.whitened import Whitened
from ansn.errors import whole
from ansn.ops import _checks

CANDIDATES = (1, 2, 4, 8, 16, 32)
"""Numbers of regions that ``"auto"`` tries, rising while the held-out likelihood does."""

PRIOR = 5
"""Pseudo-points of the covariance within all regions that each region has at least."""

_LEVEL = 0.01  # nats a dimension that twice the regions must be worth
_SWEEPS, _SETTLED = 6, 0.01  # of expectation and maximisation, and the share of rows that still move
_ROWS, _ROWS_A_REGION = 5000, 100  # that are looked at
_LARGE, _MOST_OF_LARGE = 1024, 8  # beyond so many dimensions "auto" tries at most so many: more take minutes
_LEADING, _TRIES = 64, 8  # coordinates that the first regions are found in, and how often
_MEMORY = 2**28  # bytes of a structure that is tried: with more, its decompositions outlast all else
_NUMBERS = 2**21  # of all regions' coordinates at a time


class Mixture(nn.Module):
    r"""What a covariance of K regions says of a row: which region it is of, and what it was before noise.

    Noise is isotropic here, ``N(0, sigma^2 I)``; ``sigma`` is a number or ``[B]``, in data units. With
    ``c_k = Q_k^T (x - m_k)`` and ``lambda_k`` the variances of S_k, as they count::

        ln p_k(x) = ln w_k - 1/2 sum_j [ln(2 pi (lambda_kj + sigma^2)) + c_kj^2 / (lambda_kj + sigma^2)]
        E[clean | x] = x - sum_k softmax_k(ln p_k) Q_k (sigma^2 / (lambda_k + sigma^2) c_k)

    What is taken from x is small where sigma is, and logarithms stay logarithms: right at every level. Differentiable
    in x.
    Find one in data by :meth:`for_data`; it then goes on learning by :meth:`update`.

    Args:
        covariance: of K regions; it is made to :meth:`AdaptiveCovariance.track` its basis.
    """

    def __init__(self, covariance: AdaptiveCovariance) -> None:
        super().__init__()
        if isinstance(covariance.structure, Whitened):
            raise ValueError(f"covariance: got {covariance.structure.name}, expected isotropic noise or none given")
        self.covariance = covariance.track()

    @classmethod
    def of(cls, x: Tensor, region: Tensor, regions: int, structure: str, **options: Any) -> Mixture:
        """Of rows ``[N, *shape]`` whose regions are known, int64 ``[N]``, and the pseudo-points that :func:`find`
        tells of; ``options``: of :class:`AdaptiveCovariance`."""
        made, within = (AdaptiveCovariance(tuple(x.shape[1:]), k, structure, **options) for k in (regions, 1))
        made.orient(x, region).moments.update(x, region)
        away = x.flatten(1) - made.mean[region].to(x.dtype)
        within.orient(away).moments.update(away)
        prior, basis = made.gathering(), within.moments.basis
        points = (made.structure.points() - made.count).clamp_min(PRIOR)
        for name in ("weight", "weight2", "pseudo"):
            getattr(prior, name).copy_(points)
        prior.mean.copy_(made.mean)
        spread = {
            name: (points / len(x)).to(part.dtype).reshape(-1, *(1,) * (part.ndim - 1)) * part
            for name, part in within.moments.scatters.items()
        }
        prior.add_scatters(spread, {name: part.expand(regions, *part.shape[1:]) for name, part in basis.items()})
        try:
            made.merge(prior, points=len(x))
            made.refresh()
        except ValueError as error:
            if bool(away.abs().amax() > torch.finfo(away.dtype).eps * x.abs().amax()):
                raise
            told = f"regions: got {regions} for rows of fewer values, expected fewer, or an eps above 0"
            raise ValueError(told) from error
        return cls(made)

    @classmethod
    def for_data(
        cls, data: Tensor | Rows, regions: int | str = AUTO, structure: str = AUTO, *, seed: int = 0, **options: Any
    ) -> Mixture:
        """A mixture of ``regions`` Gaussians, found in a data set or rows ``[N, *shape]``, of which some are looked at,
        drawn at random by ``seed``: see :func:`find`, which has the other arguments and says what ``"auto"`` does."""
        x, _, rounding = some_rows(data, seed)
        known = {} if rounding is None else {"eps_floor": rounding}
        return find(x, regions, structure, seed=seed, **known | options)[0]

    @property
    def regions(self) -> int:
        """K."""
        return self.covariance.regions

    @property
    def weights(self) -> Tensor:
        """Shares of the regions in the snapshot, float64 ``[K]``."""
        return self.covariance.share

    @property
    def means(self) -> Tensor:
        """``[K, *shape]``."""
        return self.covariance.center.unflatten(1, self.covariance.shape)

    @property
    def rounding(self) -> Tensor:
        """Deviation of the noise of one grey level, ``[]``, the ``sigma`` at which regions are told apart."""
        return added_noise(self.covariance).sqrt()

    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """``E[clean | x]``, shape and dtype of ``x`` ``[B, *shape]``."""
        return self._parts(x, sigma, True)[0].to(x.dtype).reshape(x.shape)

    def log_prob(self, x: Tensor, sigma: float | Tensor = 0.0) -> Tensor:
        """Log-density of the mixture under noise, nats, float64 ``[B]``."""
        return self._by_parts(x, sigma).logsumexp(0)

    def responsibilities(self, x: Tensor, sigma: float | Tensor | None = None) -> Tensor:
        """``p(k | x)``, float64 ``[B, K]``; ``sigma`` None: :attr:`rounding`."""
        return self._by_parts(x, self.rounding if sigma is None else sigma).softmax(0).mT

    def assign(self, x: Tensor) -> Tensor:
        """The likeliest region of each row, int64 ``[B]``."""
        return self.responsibilities(x).argmax(1)

    def draw(self, x: Tensor, *, seed: int = 0, row: int | None = None, step: int = 0) -> Tensor:
        """A region of each row, int64 ``[B]``, drawn from ``p(k | x)``, so that regions that overlap keep their
        shapes; a function of (seed, row + r, step). ``row``: as of :meth:`ansn.NoiseModel.perturb`."""
        return drawn(self.responsibilities(x), len(x), seed=seed, row=first_row(row, len(x)), step=step)

    @torch.no_grad()
    def sample(self, n: int, sigma: float = 0.0, *, seed: int = 0, row: int = 0) -> Tensor:
        """``n`` draws, ``[n, *shape]``, of the mixture under noise; row r is that of (seed, row + r). ValueError for n
        below 1."""
        if n < 1:
            raise ValueError(f"n: got {n}, expected at least 1 draw")
        region = drawn(self.weights, n, seed=seed, row=row)
        mean = self.covariance.mean_of(region, n)
        z = ops.colored_step(torch.zeros_like(mean), b=1.0, seed=seed, row=row, stream=ops.PRIOR)
        deviation = (self.covariance.pencil.variances() + sigma**2).sqrt()
        out = mean + self.covariance.pencil.spread(z, deviation[region], region)
        return out.reshape(n, *self.covariance.shape)

    @torch.no_grad()
    def update(
        self, x: Tensor, *, seed: int = 0, row: int | None = None, step: int | None = None, sync: Sync = True
    ) -> Mixture:
        """Learn from rows ``x`` ``[B, *shape]``, each of a region that is drawn for it; ``step`` None: the points so
        far; ``sync``: as of :meth:`AdaptiveCovariance.update`. Does nothing once the covariance is frozen. Returns
        self."""
        if not self.covariance.frozen:
            step = self.covariance.points if step is None else step
            self.covariance.update(x, self.draw(x, seed=seed, row=row, step=step), sync=sync)
        return self

    def pencil(self, deviation: Tensor) -> Pencil:
        """The regions' pencils under isotropic noise ``R = deviation^2 I``, ``[]``; a copy of the moment."""
        known = self.covariance.pencil
        out = Pencil(self.covariance.structure, self.regions, "basis", known.like.dtype, known.like.device)
        noise = torch.ones_like(known.deviation) * deviation.square()
        out.install(known.basis, noise, known.variances() / noise)
        return out

    def _parts(self, x: Tensor, sigma: float | Tensor, denoise: bool) -> tuple[Tensor, Tensor]:
        """What :func:`ansn.ops.mixture` returns, of any structure."""
        _checks.batched("x", x)
        covariance, pencil = self.covariance, self.covariance.pencil
        covariance.structure.check("x", x)
        flat = x.flatten(1).to(torch.promote_types(x.dtype, pencil.like.dtype))
        noise = torch.as_tensor(sigma, dtype=flat.dtype, device=x.device)
        if noise.ndim > 1 or noise.numel() not in (1, len(x)):
            raise ValueError(f"sigma: got shape {list(noise.shape)}, expected a number or [{len(x)}]")
        noise = noise.reshape(()) if noise.numel() == 1 else noise
        weights = self.weights.log() - 0.5 * covariance.dim * math.log(2 * math.pi)
        known = covariance.center, pencil.variances(), weights, noise.square(), denoise
        basis = pencil.basis
        q = covariance.structure.by_axes(basis, x)
        with uncast(flat):
            if q is not None and not noise.requires_grad:
                return ops.mixture(flat, q, *known)
            return ops.mixture_by(lambda v, inverse: covariance.structure.turn_all(v, basis, inverse), flat, *known)

    def _by_parts(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """``ln p_k(x)``, float64 ``[K, B]``, of some rows at a time."""
        step = max(1, _NUMBERS // (self.regions * self.covariance.dim))
        sigma = torch.as_tensor(sigma, dtype=torch.float64, device=x.device)
        levels = sigma.split(step) if sigma.numel() > 1 else itertools.repeat(sigma)
        return torch.cat([self._parts(*part, False)[1] for part in zip(x.split(step), levels, strict=False)], 1)


@dataclass(frozen=True)
class Found:
    """How regions were found: their number, the structure of their covariances, and nats a dimension of held-out rows
    by number, where that was asked for; ``rows``: that they have learned from."""

    regions: int
    structure: Annotated[str, choice(STRUCTURES)]
    scores: dict[int, float]
    rows: int

    def __str__(self) -> str:
        told = ", ".join(f"{k} {value:.3f}" for k, value in self.scores.items())
        how = f"; by held-out likelihood, nats/dim: {told}" if told else ""
        return f"{self.regions}, {self.structure} (found in {self.rows:,} rows{how})"


@torch.no_grad()
def find(
    x: Tensor, regions: int | str = AUTO, structure: str | Choice = AUTO, *, seed: int = 0, **options: Any
) -> tuple[Mixture, Found]:
    """Regions of rows ``x`` ``[B, *shape]`` in random order: K-means++ in the leading coordinates of all rows'
    covariance, then sweeps of expectation and maximisation with the structure's own likelihood.

    A region of n rows has besides them ``max(5, points - n)`` pseudo-points of the covariance within all regions,
    points those that the structure needs: one of few rows, or none, has that shape. They are no part of its weight.

    Args:
        regions: K, or ``"auto"``: doubled from 1 as long as a held-out quarter is likelier by 0.01 nats a dimension,
            there are 40 distinct rows a region, and a structure that is asked for takes less than 256 MiB; up to 8 of
            rows of more than 1,024 coordinates, up to 32 of others.
        structure: of the regions' covariances, or ``"auto"`` for :func:`choose` with the first regions, which then
            starts from all rows' choice; a :class:`Choice` is that one, where it is known.
        seed: of K-means and of the rows' draws; the result is a function of it and of x.
        options: of :class:`AdaptiveCovariance`, for the noise's shape; by default isotropic.

    Raises ValueError naming the argument.
    """
    if regions != AUTO:
        regions = regions if isinstance(regions, str) else whole("regions", regions, 1)
        if isinstance(regions, str) or regions > len(x):
            raise ValueError(f"regions: got {regions!r}, expected 1 to {len(x)} (the rows looked at) or {AUTO!r}")
    if regions == AUTO and len(x) < 4:
        raise ValueError(f"x: got {len(x)} rows, expected at least 4 of which to hold one out")
    if not bool(torch.isfinite(x).all()):
        raise ValueError("x: got a value that is not finite, expected rows of data")
    if not {"rho", "gamma", "noise"} & set(options):
        options["rho"] = 0.0
    search = _Search(x, structure, seed, options)
    if isinstance(regions, int):
        made = search.fitted(x[: max(_ROWS, _ROWS_A_REGION * regions)], regions)
        return made, Found(regions, made.covariance.structure.name, {}, made.covariance.seen)
    held = len(x) // 4
    scores: dict[int, float] = {}
    most = min(distinct(x) // 40, _MOST_OF_LARGE if x[0].numel() > _LARGE else CANDIDATES[-1])
    for k in (k for k in CANDIDATES if k == 1 or (k <= most and search.fits(k))):
        scores[k] = search.score(search.fitted(x[held:][: max(_ROWS, _ROWS_A_REGION * k)], k), x[:held])
        if k > 1 and scores[k] < scores[k // 2] + _LEVEL:
            break
    best = next(k for k in scores if scores[k] >= max(scores.values()) - _LEVEL)
    made = search.fitted(x[: max(_ROWS, _ROWS_A_REGION * best)], best)
    return made, Found(best, made.covariance.structure.name, scores, made.covariance.seen)


class _Search:
    """Fits mixtures to rows; the coordinates that regions begin in are found once."""

    def __init__(self, x: Tensor, structure: str | Choice, seed: int, options: dict[str, Any]) -> None:
        self.seed, self.options, self.shape = seed, options, tuple(x.shape[1:])
        if structure == AUTO:
            known = {name: options[name] for name in ("root", "eps_floor", "memory_limit") if name in options}
            structure = choose(x, **known)
        self.choice = structure if isinstance(structure, Choice) else Choice(structure)
        one = AdaptiveCovariance(self.shape, 1, self.choice.structure, **options).update(x[:_ROWS], sync=False).track()
        self.center, self.pencil = one.center, one.pencil
        self.leading = self.pencil.variances()[0].argsort(descending=True)[:_LEADING]
        self.deviation = (self.pencil.variances()[0, self.leading] + added_noise(one)).sqrt()

    def fitted(self, x: Tensor, regions: int) -> Mixture:
        owner = self._begun(x, regions)
        structure = self._chosen(x, owner, regions)
        made = self._maximised(x, owner, regions, structure)
        for sweep in range(_SWEEPS if regions > 1 else 0):
            before, owner = owner, made.draw(x, seed=self.seed, row=0, step=sweep)
            made = self._maximised(x, owner, regions, structure)
            if float((owner != before).double().mean()) < _SETTLED:
                break
        return made

    def fits(self, regions: int) -> bool:
        """Whether so many of a structure that is asked for take less than 256 MiB."""
        return bool(self.choice.scores) or self._bytes(self.choice.structure, regions) < _MEMORY

    def _bytes(self, name: str, regions: int) -> int:
        return STRUCTURES[name](self.shape).bytes(regions, torch.float64, torch.float32)

    def _fitting(self, regions: int) -> list[str]:
        """Structures of which so many take less than 256 MiB, the likeliest for all rows first."""
        scores = self.choice.scores
        if regions == 1 or not scores:
            return [self.choice.structure]
        fits = [n for n in scores if self._bytes(n, regions) < _MEMORY]
        return sorted(fits, key=lambda n: -scores[n]) or ["diagonal"]

    def _chosen(self, x: Tensor, owner: Tensor, regions: int) -> str:
        """By held-out likelihood: the likeliest for all rows, or one for which regions have rows enough."""
        first, *others = self._fitting(regions)
        names = [first, *(n for n in others if len(x) >= regions * STRUCTURES[n](self.shape).points())]
        if len(names) == 1:
            return first
        held = len(x) // 4
        scores = {n: self.score(self._maximised(x[held:], owner[held:], regions, n), x[:held]) for n in names}
        return max(scores, key=lambda n: scores[n])

    def _begun(self, x: Tensor, regions: int) -> Tensor:
        """The likelier of K-means as rows are, where the large directions decide, and with each of unit variance, for
        regions that are apart in small ones alone."""
        if regions == 1:
            return torch.zeros(len(x), dtype=torch.int64, device=x.device)
        away = x.flatten(1).to(self.center.dtype) - self.center
        coordinates = self.pencil.coordinates(away)[:, self.leading]
        first = self._fitting(regions)[0]
        found = [self._clustered(rows, regions).to(x.device) for rows in (coordinates, coordinates / self.deviation)]
        return max(found, key=lambda owner: self.score(self._maximised(x, owner, regions, first), x))

    def _clustered(self, rows: Tensor, regions: int) -> Tensor:
        from sklearn.cluster import KMeans  # slow to import
        from sklearn.exceptions import ConvergenceWarning

        with warnings.catch_warnings():  # of fewer distinct rows: a region without rows is harmless
            warnings.simplefilter("ignore", ConvergenceWarning)
            found = KMeans(regions, n_init=_TRIES, random_state=self.seed % 2**32).fit_predict(rows.cpu().numpy())
        return torch.as_tensor(found, dtype=torch.int64)

    def _maximised(self, x: Tensor, owner: Tensor, regions: int, structure: str) -> Mixture:
        return Mixture.of(x, owner, regions, structure, **self.options)

    def score(self, mixture: Mixture, x: Tensor) -> float:
        """Nats a dimension of rows with the noise of a grey level, as of :func:`ansn.covariance.choice.score`."""
        sigma = mixture.rounding
        zero = torch.zeros_like(x, dtype=mixture.covariance.center.dtype)
        noisy = ops.colored_step(x.to(zero.dtype), f=None, b=sigma, seed=self.seed, stream=ops.PERTURB)
        return float(mixture.log_prob(noisy, sigma).mean()) / zero[0].numel()


def distinct(x: Tensor) -> int:
    """How many of rows ``[N, *shape]`` differ, but for a coincidence: as many as their sums with random weights."""
    weights = torch.randn(x[0].numel(), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return len((x.flatten(1).double() @ weights.to(x.device)).unique())


def drawn(shares: Tensor, rows: int, **counters: Any) -> Tensor:
    """Regions int64 ``[rows]`` in proportions float64 ``[K]`` or ``[rows, K]``; ``counters``: of the noise."""
    zero = torch.zeros(rows, 1, dtype=torch.float64, device=shares.device)
    uniform = torch.special.ndtr(ops.colored_step(zero, b=1.0, stream=ops.REGIONS, **counters))
    return (uniform > shares.cumsum(-1)[..., :-1]).sum(1)
