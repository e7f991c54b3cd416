"""The noise model: ``Sigma_{i,k} = tau_i^2 R_k``, the draw ``x~ = x + tau L z`` and the start of sampling (math
section 2)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ansn import ops
from ansn.covariance import AdaptiveCovariance, Mixture, choose, find
from ansn.covariance.choice import AUTO, Choice, Rows, some_rows
from ansn.covariance.mixture import drawn
from ansn.covariance.moments import keep_dtypes
from ansn.covariance.ranks import Sync, agree, first_row, several
from ansn.errors import whole
from ansn.levels import Levels, flow
from ansn.ops import _checks

STARTS = ("gaussian", "uniform")
_FEWEST = 10  # rows of a class whose mean says more of it than the mean of all


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


class NoiseModel(nn.Module):
    """Noise with a learned covariance and a ladder of levels.

    Args:
        covariance: gives ``L_k`` and learns from :meth:`update`.
        levels: the ladder and the training distribution, see :mod:`ansn.levels`.
        seed: key of the noise, 0 <= seed < 2^63; every draw is a function of (seed, step, row).
        mixture: what else is learned of the data, by the same :meth:`update`: regions for a denoiser that begins as
            that of a mixture of Gaussians (math section 12), and for the start of sampling. It needs isotropic noise,
            ``rho=0``, of one region.
    """

    _ladder: Tensor

    def __init__(
        self, covariance: AdaptiveCovariance, levels: Levels, seed: int = 0, mixture: Mixture | None = None
    ) -> None:
        super().__init__()
        if not isinstance(covariance, AdaptiveCovariance):
            raise TypeError(f"covariance: got {type(covariance).__name__}, expected an AdaptiveCovariance")
        if not 0 <= whole("seed", seed, 0) < 2**63:
            raise ValueError(f"seed: got {seed}, expected 0 <= seed < 2^63")
        self.covariance, self.seed, self.mixture = covariance, int(seed), mixture
        if mixture is not None:
            self.check_mixture()
            covariance.track()
        self.levels = levels
        self.class_means: Tensor | None
        self.register_buffer("class_means", None)
        self.draws, self._agreed = 0, False

    @classmethod
    def for_data(
        cls,
        data: Tensor | Rows,
        structure: str = AUTO,
        *,
        region: Tensor | None = None,
        regions: int | str = 1,
        mixture: int | str | None = None,
        seed: int = 0,
        **options: Any,
    ) -> NoiseModel:
        """Structure, levels and start from the data; the covariance itself is still to be learned.

        Args:
            data: a data set of :func:`ansn.load_dataset`, or rows ``[N, *shape]``, of which some are looked at, drawn
                at random by ``seed``: :func:`ansn.covariance.choice.rows_wanted`.
            structure: a name, or ``"auto"`` for :func:`ansn.covariance.choose`.
            region, regions: of rows, int64 ``[N]``, and K. K, or ``"auto"``, without ``region``: regions are found in
                the data (:func:`ansn.covariance.find`), each with noise of its own shape; :meth:`assign` draws which a
                row is of. The network has to be told.
            mixture: K, or ``"auto"``, for a :class:`ansn.Mixture` of the data beside noise of one shape, ``rho=0``.
            options: of :class:`ansn.AdaptiveCovariance`: ``rho=0`` is isotropic noise. ``eps_floor`` is the data
                set's rounding unless it is given.

        Raises ValueError naming the argument.
        """
        if mixture is not None and (regions != 1 or region is not None):
            raise ValueError(f"mixture: got {mixture!r} and regions = {regions}, expected one of the two")
        x, index, rounding = some_rows(data, seed)
        options = ({} if rounding is None else {"eps_floor": rounding}) | {"distinct": len(data)} | options
        known = {name: options[name] for name in ("root", "eps_floor", "memory_limit") if name in options}
        if region is not None:
            regions = regions if isinstance(regions, str) else whole("regions", regions, 1)
            if isinstance(regions, str) or regions == 1:
                raise ValueError(f"regions: got {regions} beside region, expected how many regions there are")
            options["distinct"] = int(torch.bincount(region, minlength=regions).min())
            region = region[index.to(region.device)]
        elif regions != 1:  # regions that are found bring their first moments
            found = find(x, regions, structure, seed=seed, **{"rho": None} | options | {"distinct": None})[0]
            return cls(found.covariance, flow(x, found.covariance, region=found.draw(x, seed=seed, row=0)), seed)
        if mixture is not None and not {"rho", "gamma", "noise"} & set(options):
            options["rho"] = 0.0
        chosen = choose(x, region, int(regions), **known) if structure == AUTO else Choice(structure)
        made = [AdaptiveCovariance(tuple(x.shape[1:]), int(regions), chosen.structure, **options) for _ in range(2)]
        seen, empty = (covariance.orient(x, region) for covariance in made)
        seen.update(x, region, sync=False).freeze()
        if mixture is None:
            return cls(empty, flow(x, seen, region=region), seed)
        found = find(x, mixture, chosen, seed=seed, **options | {"distinct": None})[0]
        return cls(empty, flow(x, seen, mixture=found), seed, found)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> NoiseModel:
        keep_dtypes(self, fn)
        return self

    @property
    def levels(self) -> Levels:
        """The ladder and the training distribution; other ones may be given at any time."""
        return self._levels

    @levels.setter
    def levels(self, levels: Levels) -> None:
        if not isinstance(levels, Levels):
            raise TypeError(f"levels: got {_checks.describe(levels)}, expected Levels")
        self._levels = levels
        ladder = torch.tensor(levels.tau, dtype=torch.float64).to(self.covariance.center)
        self.register_buffer("_ladder", ladder, persistent=False)

    @property
    def tau(self) -> Tensor:
        """The ladder of :attr:`levels`, ``[N]``, dtype and device of the covariance."""
        return self._ladder

    @property
    def deviation(self) -> Tensor:
        """Of isotropic noise at tau = 1, ``[]``, data units."""
        return self.covariance.pencil.deviation[0, 0]

    def check_mixture(self) -> None:
        """Raises ValueError unless there is a mixture, and noise under which its denoiser is known."""
        if self.mixture is None:
            raise ValueError("mixture: got None, expected a noise model of NoiseModel.for_data(mixture=K)")
        regions, rules = self.covariance.regions, self.covariance.rules
        if regions > 1 or not rules.isotropic:
            raise ValueError(
                f"mixture: got noise of {regions} regions, {rules.family}, expected isotropic noise of one, rho = 0"
            )

    def update(self, x: Tensor, region: Tensor | None = None, *, sync: Sync = True) -> NoiseModel:
        """Learn the covariance, and the mixture, from clean data ``x`` ``[B, *shape]``. Returns self.

        Of several processes all learn from the rows of all: ``sync``, as of :meth:`AdaptiveCovariance.update`."""
        if not self._agreed and several(sync):
            agree("levels", dataclasses.asdict(self.levels), sync)
            self._agreed = True
        self.covariance.update(x, region, sync=sync)
        if self.mixture is not None:
            self.mixture.update(x, seed=self.seed, sync=sync)
        return self

    @torch.no_grad()
    def center_classes(self, x: Tensor, labels: Tensor, count: int) -> NoiseModel:
        """Take ``class_means`` ``[count + 1, *shape]``, from which :meth:`prior` starts samples of a class, from rows
        ``x`` ``[N, *shape]`` of classes ``labels`` int64 ``[N]`` below ``count``. The last is of no class: the mean of
        all, which a class of fewer than ten rows has too. Returns self."""
        self.covariance.structure.check("x", x)
        fits = labels.dtype == torch.int64 and labels.shape == x.shape[:1] and len(x) > 0
        if not fits or not 0 <= int(labels.min()) <= int(labels.max()) < count:
            raise ValueError(f"labels: got {_checks.describe(labels)}, expected int64 [{len(x)}] from 0 to {count - 1}")
        flat, labels = x.flatten(1).cpu().double(), labels.cpu()
        means = torch.zeros(count + 1, flat.shape[1], dtype=torch.float64).index_add_(0, labels, flat)
        rows = torch.bincount(labels, minlength=count + 1)
        means, overall = means / rows.clamp_min(1).unsqueeze(1), flat.mean(0)
        means[rows < _FEWEST] = overall
        self.class_means = means.reshape(count + 1, *x.shape[1:]).to(self.covariance.center)
        return self

    def mean_of(self, n: int, region: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        """What n samples start about, ``[n, d]``: the means of their regions, or, of one region, of their classes
        ``y``, int64 ``[n]``, where :meth:`center_classes` has learned them."""
        if y is None or self.class_means is None or self.covariance.regions > 1:
            return self.covariance.mean_of(region, n)
        last = len(self.class_means) - 1
        if not isinstance(y, Tensor) or y.dtype != torch.int64 or y.shape != (n,):
            raise ValueError(f"y: got {_checks.describe(y)}, expected int64 [{n}]")
        if n and not 0 <= int(y.min()) <= int(y.max()) <= last:
            raise ValueError(f"y: got {int(y.min())} to {int(y.max())}, expected labels from 0 to {last}")
        return self.class_means[y.to(self.class_means.device)].flatten(1)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        means = state_dict.get(f"{prefix}class_means")
        self.class_means = None if means is None else means.to(self.covariance.center, copy=True)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def sync(self) -> NoiseModel:
        """Merge what several processes have gathered, before a checkpoint; each has to call it. Returns self."""
        self.covariance.sync()
        if self.mixture is not None:
            self.mixture.covariance.sync()
        return self

    def assign(self, x: Tensor, *, step: int = 0, row: int | None = None) -> Tensor | None:
        """A region for each row of clean data, int64 ``[B]``, drawn by how likely it is of each
        (:meth:`ansn.Mixture.draw`); None where there is one for all."""
        if self.covariance.regions == 1:
            return None
        return Mixture(self.covariance).draw(x, seed=self.seed, step=step, row=row)

    def perturb(
        self,
        x: Tensor,
        region: Tensor | None = None,
        *,
        tau: float | Tensor | None = None,
        seed: int | None = None,
        step: int | None = None,
        row: int | None = None,
    ) -> tuple[Tensor, Level]:
        """``x~ = x + tau_r L_k z_r`` (math section 2).

        Args:
            x: clean data ``[B, *shape]``.
            region: int64 ``[B]``; None when K = 1.
            tau: level, a finite number > 0 or ``[B]``; None draws one for each row from the training distribution.
            seed, step, row: counters: row r of x draws ``z`` of ``(seed, row + r, step)``. ``step`` None: a count
                of the calls, which a checkpoint does not hold and a compiler does not see: give the training step for
                noise that resumes, and one graph. ``row`` None: 0; of several processes rank times rows, so that each
                has other noise.

        Returns ``(x~, level)``; x~ has x's shape and dtype.
        """
        seed = self.seed if seed is None else seed
        if step is None:
            step = _counted(self)
        self.covariance.structure.check("x", x)
        rows = x.shape[0]
        row = first_row(row, rows)
        if tau is None:
            tau = self.draw_levels(rows, seed=seed, step=step, row=row)
        else:
            _check_level(tau)
            if not isinstance(tau, Tensor):
                tau = torch.full((rows,), float(tau), dtype=self.tau.dtype, device=x.device)
            if tau.shape not in ((), (1,), (rows,)):
                raise ValueError(f"tau: got shape {list(tau.shape)}, expected [] or [{rows}]")
            tau = tau.to(self.tau).expand(rows)
        perturbed = self.covariance.step(x, b=tau, region=region, seed=seed, row=row, step=step, stream=ops.PERTURB)
        return perturbed, Level(tau, region, seed, row, step)

    def draw_levels(self, rows: int, *, seed: int, step: int, row: int = 0) -> Tensor:
        """Training levels ``[rows]``, a function of (seed, row, step) alone."""
        return self.levels.draw(self.tau, rows, seed=seed, row=row, step=step)

    def draw_regions(self, rows: int, *, seed: int = 0, row: int = 0) -> Tensor | None:
        """Regions ``k ~ w_k``, int64 ``[rows]``; None when K = 1 (math section 6)."""
        return None if self.covariance.regions == 1 else drawn(self.covariance.share, rows, seed=seed, row=row)

    @torch.no_grad()
    def prior(
        self,
        n: int,
        tau: float | None = None,
        *,
        region: Tensor | None = None,
        y: Tensor | None = None,
        start: str = "gaussian",
        seed: int = 0,
        row: int = 0,
    ) -> Tensor:
        """Start of sampling, ``[n, *shape]`` in data units.

        ``start="gaussian"``: ``N(m_k, S_k + tau^2 R_k)``, the perturbed data if it were Gaussian (math section 5), tau
        by default the top of the ladder; of the mixture, where there is one. Of classes ``y``, int64 ``[n]``, about
        the class's mean, where :meth:`center_classes` has learned it and regions are not the classes. ``"uniform"``:
        each coordinate uniform in [0, 1], the paper's. Row r is that of ``(seed, row + r)``.
        """
        n, covariance = whole("n", n, 1), self.covariance
        if start == "uniform":
            z = ops.colored_step(
                torch.zeros(n, covariance.dim, dtype=torch.float64, device=self.tau.device),
                b=1.0, seed=seed, row=row, stream=ops.PRIOR,
            )  # fmt: skip
            return torch.special.ndtr(z).to(self.tau.dtype).reshape(n, *covariance.shape)
        if start not in STARTS:
            raise ValueError(f"start: got {start!r}, expected one of {', '.join(STARTS)}")
        tau = self.levels.maximum if tau is None else float(tau)
        if self.mixture is not None and (y is None or self.class_means is None):
            return self.mixture.sample(n, float(tau * self.deviation), seed=seed, row=row)
        mean = self.mean_of(n, region, y)
        out = covariance.pencil.start(mean, tau, region, seed=seed, row=row, stream=ops.PRIOR)
        return out.reshape(n, *covariance.shape)


def _check_level(tau: float | Tensor) -> None:
    """Raises ValueError unless levels are finite and > 0, where a tensor's can be read."""
    if isinstance(tau, Tensor):
        if not tau.numel() or not _checks.readable(tau):
            return
        low, high = (float(v) for v in tau.detach().aminmax())
    else:
        low = high = float(tau)
    if not 0 < low <= high < math.inf:
        got = f"{low:g}" if low == high else f"{low:g} to {high:g}"
        raise ValueError(f"tau: got {got}, expected finite levels > 0")


def _counted(noise: NoiseModel) -> int:
    """The number of this call. It breaks a graph, which would else be made anew for each number."""
    noise.draws += 1
    return noise.draws - 1


# What torch.compiler.disable does, whose import takes a second.
vars(_counted).update(
    _torchdynamo_disable=True,
    _torchdynamo_disable_msg="step: got None in compiled code, expected the training step",
)
