"""Which structure the data asks for: by held-out likelihood of some of its rows (math section 11)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Protocol

import torch
from torch import Tensor

from ansn.choices import choice
from ansn.covariance.adaptive import QUANTISATION_8BIT, AdaptiveCovariance
from ansn.covariance.structure import STRUCTURES
from ansn.ops import _checks

AUTO = "auto"
"""The name that stands for :func:`choose` among those of structures."""

_LEVEL = 0.005  # nats a dimension within which the smaller structure is taken
_FLOOR = 1e-6  # of the mean variance: what is added where the data has no rounding


@dataclass(frozen=True)
class Choice:
    """A structure and why.

    ``scores``: nats a dimension of the held-out rows, of every structure that could be tried; ``skipped``: why the
    others could not; ``rows``: that were looked at, a quarter of them held out.
    """

    structure: Annotated[str, choice(STRUCTURES)]
    scores: dict[str, float] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    rows: int = 0

    def __str__(self) -> str:
        """What `ansn-info` and the trainer say."""
        if not self.rows:
            return f"{self.structure}, as asked for"
        ranked = sorted(self.scores, key=lambda name: (name != self.structure, -self.scores[name]))
        told = [f"{name} {self.scores[name]:.3f}" for name in ranked]
        told += [f"{name} {why}" for name, why in self.skipped.items()]
        how = f"fitted to {_fitted(self.rows):,} rows, scored on {self.rows - _fitted(self.rows):,}"
        what = f"{how}, nats/dim, more is likelier" if ranked else f"{how}; none could be tried"
        return f"{self.structure} ({what}: {', '.join(told)})"


class Rows(Protocol):
    """What is asked of a data set."""

    @property
    def shape(self) -> Sequence[int]: ...

    @property
    def quantisation(self) -> float: ...

    def __len__(self) -> int: ...

    def batch(self, index: Tensor, /) -> tuple[Tensor, Tensor | None]: ...

    def order(self, seed: int, epoch: int, /) -> Tensor: ...


def rows_wanted(dim: int) -> int:
    """How many rows of ``dim`` coordinates :func:`choose` should see: at most 10,000, and 2^25 numbers."""
    return min(10_000, max(64, 2**25 // dim))


def some_rows(data: Tensor | Rows, seed: int) -> tuple[Tensor, Tensor, float | None]:
    """Rows to look at, drawn at random by ``seed``, their places, and the variance of a data set's rounding; of a data
    set or of rows ``[N, *shape]``. Raises TypeError for anything else, ValueError for none."""
    if not isinstance(data, Tensor) and not hasattr(data, "order"):
        expected = "a data set of ansn.load_dataset, or rows [N, *shape] as a tensor"
        raise TypeError(f"data: got {type(data).__name__}, expected {expected}")
    if not isinstance(data, Tensor):
        index = data.order(seed, 0)[: rows_wanted(torch.Size(data.shape).numel())].cpu()
        return data.batch(index)[0], index, data.quantisation
    if not len(data):
        raise ValueError(f"data: got shape {list(data.shape)}, expected rows [N, *shape] with N at least 4")
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    index = order[: rows_wanted(data[0].numel())]
    return data[index.to(data.device)], index, None


def _fitted(rows: int) -> int:
    return max(1, 3 * rows // 4)


@torch.no_grad()
def choose(
    x: Tensor,
    region: Tensor | None = None,
    regions: int = 1,
    *,
    root: str | None = None,
    eps_floor: float = QUANTISATION_8BIT,
    memory_limit: int | None = None,
) -> Choice:
    """The structure of the largest held-out Gaussian log-likelihood, fitted to three quarters of ``x`` ``[B, *shape]``
    (``region`` int64 ``[B]``), drawn at random, and scored on the last quarter::

        E log N(x + e; m_k, S_k + v I) / d,    e ~ N(0, v I),  v = 12 eps_floor, at least 1e-6 of the mean variance

    v is the noise of one grey level for 8-bit data: without it a pixel that never varies would decide alone. A
    structure that lacks the root, the memory (``memory_limit`` bytes) or the points it needs in every region is not
    tried; of those within 0.005 of the best the one of fewest bytes is taken, and without any the diagonal one.
    """
    if not bool(torch.isfinite(x).all()):
        raise ValueError("x: got a value that is not finite, expected rows of data")
    _checks.summable(x, torch.float64)
    # Rows may lie by class, or by date.
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0)).to(x.device)
    x, region = x[order].double(), None if region is None else region[order]
    fitted = _fitted(len(x))
    # S alone is asked for: a ridge that lets no R fail.
    ridge = max(12.0 * eps_floor, float(x.square().mean())) or 1.0
    owner, whose = (None, None) if region is None or regions == 1 else (region[:fitted], region[fitted:])
    have = fitted if owner is None else int(torch.bincount(owner, minlength=regions).min())
    scores: dict[str, float] = {}
    skipped: dict[str, str] = {}
    sizes: dict[str, int] = {}
    for name, kind in STRUCTURES.items():
        structure = kind(x.shape[1:])
        sizes[name] = structure.bytes(regions, torch.float64, torch.float32)
        if root is not None and root not in structure.roots:
            skipped[name] = f"has no {root} root"
        elif have < structure.points() or fitted == len(x):
            each = " of each region" if regions > 1 else ""
            skipped[name] = f"needs {structure.points():,} rows{each} ({have:,} fitted)"
        else:
            try:
                learned = AdaptiveCovariance(
                    tuple(x.shape[1:]), regions, name, rho=0.0, eps=ridge, eps_floor=eps_floor,
                    factor_dtype=torch.float64, device=x.device, memory_limit=memory_limit,
                )  # fmt: skip
            except MemoryError:
                skipped[name] = "does not fit"
            else:
                value = score(learned.update(x[:fitted], owner, sync=False), x[fitted:], whose)
                if math.isfinite(value):
                    scores[name] = value
                else:
                    skipped[name] = "overflows"
    best = max(scores.values(), default=math.nan)
    near = [name for name, value in scores.items() if value >= best - _LEVEL]
    taken = min(near, key=lambda name: (sizes[name], STRUCTURES[name].directed), default="diagonal")
    return Choice(taken, scores, skipped, len(x))


@torch.no_grad()
def score(learned: AdaptiveCovariance, x: Tensor, region: Tensor | None = None) -> float:
    """Nats a dimension of rows ``[B, *shape]`` under the Gaussian that a covariance learned, as in :func:`choose`."""
    pencil = learned.pencil
    variances, added = pencil.variances(), added_noise(learned)
    away = x.flatten(1).double() - learned.mean_of(region, len(x))
    variances = variances + added
    variances = variances if region is None else variances[region]
    misfit = (pencil.coordinates(away, region).square() + added) / variances
    return float(-0.5 * (math.log(2 * math.pi) + variances.log() + misfit).mean())


def added_noise(learned: AdaptiveCovariance) -> Tensor:
    """Variance of the noise of one grey level, or 1e-6 of the mean variance where the data has no rounding, ``[]``."""
    least = max(12.0 * learned.rules.eps_floor, torch.finfo(torch.float64).tiny)
    return (_FLOOR * learned.pencil.variances().double().mean()).clamp_min(least)
