"""The noise model: ``Sigma_{i,k} = tau_i^2 R_k``, the draw ``x~ = x + tau L z`` and the start of sampling (math
section 2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ansn import ops
from ansn.covariance import AdaptiveCovariance, choose
from ansn.covariance.choice import AUTO, rows_wanted
from ansn.covariance.moments import keep_dtypes
from ansn.levels import Levels, flow

STARTS = ("gaussian", "uniform")


class Level(NamedTuple):
    """What one perturbation did: enough to draw the same ``z`` again from its counters.

    ``tau`` float ``[B]``; ``region`` int64 ``[B]`` or None; ``seed``, ``row``, ``step``: the noise's counters
    (math section 7).
    """

    tau: Tensor
    region: Tensor | None
    seed: int
    row: int
    step: int


class Rows(Protocol):
    """What :meth:`NoiseModel.for_data` asks of a data set."""

    @property
    def shape(self) -> Sequence[int]: ...

    @property
    def quantisation(self) -> float: ...

    def __len__(self) -> int: ...

    def batch(self, index: Tensor, /) -> tuple[Tensor, Tensor | None]: ...

    def order(self, seed: int, epoch: int, /) -> Tensor: ...


class NoiseModel(nn.Module):
    """Noise with a learned covariance and a ladder of levels.

    Args:
        covariance: gives ``L_k`` and learns from :meth:`update`.
        levels: the ladder and the training distribution, see :mod:`ansn.levels`.
        seed: key of the noise, 0 <= seed < 2^63; every draw is a function of (seed, step, row).
    """

    tau: Tensor

    def __init__(self, covariance: AdaptiveCovariance, levels: Levels, seed: int = 0) -> None:
        super().__init__()
        if not 0 <= seed < 2**63:
            raise ValueError(f"seed: got {seed}, expected 0 <= seed < 2^63")
        self.covariance, self.levels, self.seed = covariance, levels, seed
        ladder = torch.tensor(levels.tau, dtype=torch.float64).to(covariance.center)
        self.register_buffer("tau", ladder, persistent=False)
        self.draws = 0

    @classmethod
    def for_data(
        cls,
        data: Tensor | Rows,
        structure: str = AUTO,
        *,
        region: Tensor | None = None,
        regions: int = 1,
        seed: int = 0,
        **options: Any,
    ) -> NoiseModel:
        """Structure, levels and start from the data; the covariance itself is still to be learned.

        Args:
            data: a data set of :func:`ansn.load_dataset`, or rows ``[N, *shape]``, of which some are looked at, drawn
                at random by ``seed``: :func:`ansn.covariance.choice.rows_wanted`.
            structure: a name, or ``"auto"`` for :func:`ansn.covariance.choose`.
            region, regions: of rows, int64 ``[N]``, and K.
            options: of :class:`ansn.AdaptiveCovariance`: ``rho=0`` is isotropic noise. ``eps_floor`` is the data
                set's rounding unless it is given.

        Raises ValueError naming the argument.
        """
        if not isinstance(data, Tensor):
            index = data.order(seed, 0)[: rows_wanted(torch.Size(data.shape).numel())].cpu()
            x, options = data.batch(index)[0], {"eps_floor": data.quantisation, "distinct": len(data)} | options
        elif len(data):
            order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
            index = order[: rows_wanted(data[0].numel())]
            x, options = data[index.to(data.device)], {"distinct": len(data)} | options
        else:
            raise ValueError(f"data: got shape {list(data.shape)}, expected rows [N, *shape] with N at least 4")
        if (region is None) != (regions == 1):
            got = None if region is None else "a tensor"
            raise ValueError(f"region: got {got} and {regions} regions, expected one with the other")
        if region is not None:
            options["distinct"] = int(torch.bincount(region, minlength=regions).min())
            region = region[index.to(region.device)]
        if structure == AUTO:
            known = {name: options[name] for name in ("root", "eps_floor", "memory_limit") if name in options}
            structure = choose(x, region, regions, **known).structure
        made = [AdaptiveCovariance(tuple(x.shape[1:]), regions, structure, **options) for _ in range(2)]
        seen, fresh = (covariance.orient(x, region) for covariance in made)
        return cls(fresh, flow(x, seen.update(x, region).freeze(), region=region), seed)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> NoiseModel:
        keep_dtypes(self, fn)
        return self

    def update(self, x: Tensor, region: Tensor | None = None) -> NoiseModel:
        """Learn the covariance from clean data ``x`` ``[B, *shape]``. Returns self."""
        self.covariance.update(x, region)
        return self

    def perturb(
        self,
        x: Tensor,
        region: Tensor | None = None,
        *,
        tau: float | Tensor | None = None,
        seed: int | None = None,
        step: int | None = None,
        row: int = 0,
    ) -> tuple[Tensor, Level]:
        """``x~ = x + tau_r L_k z_r`` (math section 2).

        Args:
            x: clean data ``[B, *shape]``.
            region: int64 ``[B]``; None when K = 1.
            tau: level, a number or ``[B]``; None draws one for each row from the training distribution.
            seed, step, row: counters: row r of x draws ``z`` of ``(seed, row + r, step)``. ``step`` None: a count
                of the
                calls, which a checkpoint does not hold: give the training step for noise that resumes.

        Returns ``(x~, level)``; x~ has x's shape and dtype.
        """
        seed = self.seed if seed is None else seed
        if step is None:
            step, self.draws = self.draws, self.draws + 1
        rows = x.shape[0]
        if tau is None:
            tau = self.draw_levels(rows, seed=seed, step=step, row=row)
        elif not isinstance(tau, Tensor):
            tau = torch.full((rows,), float(tau), dtype=self.tau.dtype, device=x.device)
        else:
            tau = tau.to(self.tau).expand(rows)
        perturbed = self.covariance.step(x, b=tau, region=region, seed=seed, row=row, step=step, stream=ops.PERTURB)
        return perturbed, Level(tau, region, seed, row, step)

    def draw_levels(self, rows: int, *, seed: int, step: int, row: int = 0) -> Tensor:
        """Training levels ``[rows]``, a function of (seed, row, step) alone."""
        start = torch.zeros(rows, 1, dtype=self.tau.dtype, device=self.tau.device)
        z = ops.colored_step(start, b=1.0, seed=seed, row=row, step=step, stream=ops.LEVELS)
        return self.levels.from_normal(z.squeeze(1), self.tau)

    def draw_regions(self, rows: int, *, seed: int = 0, row: int = 0) -> Tensor | None:
        """Regions ``k ~ w_k``, int64 ``[rows]``; None when K = 1 (math section 6)."""
        count = self.covariance.count
        if count.shape[0] == 1:
            return None
        start = torch.zeros(rows, 1, dtype=torch.float64, device=count.device)
        z = ops.colored_step(start, b=1.0, seed=seed, row=row, stream=ops.REGIONS).squeeze(1)
        edges = (count / count.sum()).cumsum(0)
        return torch.bucketize(torch.special.ndtr(z), edges[:-1], right=True)

    @torch.no_grad()
    def prior(
        self,
        n: int,
        tau: float | None = None,
        *,
        region: Tensor | None = None,
        start: str = "gaussian",
        seed: int = 0,
        row: int = 0,
    ) -> Tensor:
        """Start of sampling, ``[n, *shape]`` in data units.

        ``start="gaussian"``: ``N(m_k, S_k + tau^2 R_k)``, the perturbed data if it were Gaussian (math section 5),
        tau by default the top
        of the ladder. ``"uniform"``: each coordinate uniform in [0, 1], the paper's. Row r is that of ``(seed, row
        + r)``.
        """
        if n < 1:
            raise ValueError(f"n: got {n}, expected at least 1 sample")
        covariance = self.covariance
        if start == "uniform":
            z = ops.colored_step(
                torch.zeros(n, covariance.dim, dtype=torch.float64, device=self.tau.device),
                b=1.0, seed=seed, row=row, stream=ops.PRIOR,
            )  # fmt: skip
            return torch.special.ndtr(z).to(self.tau.dtype).reshape(n, *covariance.shape)
        if start not in STARTS:
            raise ValueError(f"start: got {start!r}, expected one of {', '.join(STARTS)}")
        mean, tau = covariance.mean_of(region, n), self.levels.maximum if tau is None else float(tau)
        out = covariance.pencil.start(mean, tau, region, seed=seed, row=row, stream=ops.PRIOR)
        return out.reshape(n, *covariance.shape)
