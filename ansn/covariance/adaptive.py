"""The adaptive covariance: running moments, and the snapshot of S and R made of them (math sections 1 and 10)."""

from __future__ import annotations

import math
import warnings
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ansn.covariance import ranks
from ansn.covariance.fixed import fixed
from ansn.covariance.moments import Moments, keep_dtypes
from ansn.covariance.pencil import ROOTS, Pencil, Rules, replaced
from ansn.covariance.ranks import Gathered, Sync, several
from ansn.covariance.structure import STRUCTURES, Structure, refuse_what_cannot_fit
from ansn.covariance.whitened import Whitened
from ansn.errors import sizes, whole
from ansn.hostread import HostRead
from ansn.ops import _checks

QUANTISATION_8BIT = 1.0 / (12.0 * 255.0**2)
"""Variance of the rounding of 8-bit data scaled to [0, 1]."""

BASIS_GROWTH = 1.0
"""Growth of the number of points after which the eigenbasis is remade: a dense one costs some fifteen factorisations,
a separable one a change of basis of what was gathered."""

LARGE = 1024
"""Dimensions from which a condition number is found by iterations: eigenvalues take more."""


class AdaptiveCovariance(nn.Module):
    r"""Covariance of the data, learned online, one for each of K regions, and the noise shape ``R_k = L_k L_k^T``
    made of it.

    With ``S_k`` the unbiased running covariance of region k, ``t_k = tr S_k / d``::

        R_k = (1 - rho) t_k I + rho S_k + eps I          (shrinkage; rho = 0 isotropic, 1 the paper's)
        R_k = S_k^gamma scaled to trace d t_k, + eps I   (spectral power; gamma = 0 isotropic, 1 full)
        C_k = s_d (S_k + eps I),  s_d = 2.4^2 / d        (Haario's form, Eq. 2.5 of the paper)

    Every R has about the trace of S, so that a level ``tau`` counts standard deviations of the data. The snapshot, that
    is :attr:`pencil`, ``center``, ``scale`` and ``share`` (of the rows, float64 ``[K]``), is remade by :meth:`update`
    when the number of points has grown by ``refresh`` since the last one, by :meth:`refresh` and by :meth:`freeze`; its
    basis when the points have doubled (of a dense structure not before they are enough for S to count).
    Noise, denoiser and samplers read only the snapshot: draws through :meth:`step`, the rest through the pencil.

    Args:
        shape: shape of one data point, ``(1, 28, 28)`` or ``(d,)`` or ``d``.
        regions: K. K = 1 is the paper.
        structure: a name in :data:`ansn.covariance.STRUCTURES`, or a class; :func:`ansn.covariance.choose` finds the
            one that the data asks for.
        rho: anisotropy in [0, 1]; default 0.5 when gamma is not given.
        gamma: exponent of the spectral family, instead of rho. A dense structure decomposes S at each refresh for it.
        noise: R itself, a variance, ``[d]`` variances or ``[d, d]``, which stays while S is learned; instead of rho,
            gamma and eps. ``tau`` counts its deviations then, not the data's: choose levels by hand, or an R of about
            the data's trace. But for a variance, S has the structure where R is the identity (:class:`Whitened`).
        eps: ridge, in squared data units; default ``1e-3 tr(S)/d``, and at least ``eps_floor``.
        eps_floor: smallest default ridge, and what S counts as at least in every direction (or ``eps``, if that is
            less): what the rounding hides may be there. By default the quantisation noise of 8-bit data in [0, 1]; give
            0 for data without quantisation.
        root: which L: ``"basis"`` is eigenbasis times deviations, ``"symmetric"`` independent of the choice of a basis,
            ``"cholesky"`` (dense) lower triangular; by default the first of the structure's.
        warmup: points, at least 2, that a region needs before its own S replaces ``initial``.
        distinct: rows of the data (of its smallest region): several epochs of few rows are no more than these.
        initial: guess of S, which serves until then and no longer: a variance, for dense and diagonal also ``[d]``
            variances or ``[d, d]``; default 1. Haario's C_0 is ``s_d * initial``. An S that must stay is given to
            :meth:`fixed`, an R as ``noise``.
        forgetting: lambda in (0, 1]; the moments are scaled by it at every update. 1 remembers everything.
        refresh: relative growth of the number of points after which the snapshot is remade.
        dtype: of the state, float64 or float32. factor_dtype: of the snapshot. memory_limit: bytes; all by default.

    A region of fewer points than the structure needs (:meth:`Structure.points`) counts as ``S = R`` in the pencil.

    Raises ValueError for a bad argument, MemoryError when the structure cannot fit.
    """

    center: Tensor
    scale: Tensor
    share: Tensor
    initial: Tensor
    form: Tensor

    def __init__(
        self,
        shape: int | Sequence[int],
        regions: int = 1,
        structure: str | type[Structure] = "dense",
        *,
        rho: float | None = None,
        gamma: float | None = None,
        noise: float | Tensor | None = None,
        eps: float | None = None,
        eps_floor: float = QUANTISATION_8BIT,
        root: str | None = None,
        warmup: int = 2,
        distinct: int | None = None,
        initial: float | Tensor = 1.0,
        forgetting: float = 1.0,
        refresh: float = 0.05,
        dtype: torch.dtype = torch.float64,
        factor_dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
        memory_limit: int | None = None,
    ) -> None:
        super().__init__()
        self.shape, regions = sizes("shape", shape), whole("regions", regions, 1)
        self.dim = math.prod(self.shape)
        if isinstance(structure, str) and structure not in STRUCTURES:
            raise ValueError(f"structure: got {structure!r}, expected one of {', '.join(STRUCTURES)}")
        kind = STRUCTURES[structure] if isinstance(structure, str) else structure
        self.structure, self.regions = kind(self.shape), regions
        if rho is not None and gamma is not None:
            raise ValueError(f"rho, gamma: got both ({rho}, {gamma}), expected one of the two families of shapes")
        for name, other in (("rho", rho), ("gamma", gamma), ("eps", eps)):
            if noise is not None and other is not None:
                raise ValueError(f"{name}: got {other} beside noise, expected one of the two")
        rho = 0.5 if rho is None and gamma is None and noise is None else rho
        variance = None if noise is None else torch.as_tensor(noise, dtype=torch.float64)
        if variance is not None and variance.ndim:
            self.structure = whitened = Whitened(self.structure, variance)
            eps_floor, variance = eps_floor / whitened.level, torch.ones(())
        given = None if variance is None else float(variance)
        # Mean variance of R, where it is given: else it is about that of S.
        self.noise_level = whitened.level if given is not None and isinstance(self.structure, Whitened) else given
        self.rules = Rules(rho, gamma, eps, eps_floor, warmup, distinct, given)
        self.root = self.structure.roots[0] if root is None else root
        if self.root not in self.structure.roots:
            raise ValueError(f"root: got {root!r}, expected one of {', '.join(self.structure.roots)} ({kind.name})")
        if not 0.0 < forgetting <= 1.0:
            raise ValueError(f"forgetting: got {forgetting}, expected 0 < forgetting <= 1")
        if not refresh > 0:
            raise ValueError(f"refresh: got {refresh}, expected a relative growth > 0")
        for name, value in (("dtype", dtype), ("factor_dtype", factor_dtype)):
            if value not in (torch.float32, torch.float64):
                raise ValueError(f"{name}: got {value}, expected torch.float32 or torch.float64")
        self.forgetting, self.growth = forgetting, refresh
        refuse_what_cannot_fit(self.structure, regions, (dtype, factor_dtype), device, memory_limit)
        # Counts on the host, so that deciding on a refresh never waits for the device.
        self.seen, self.seen_at_refresh, self.seen_at_basis, self.frozen = 0, 0, 0, False
        self.oriented = not self.structure.oriented
        self.revision = 0  # counts the changes that `seen` does not tell of
        self.moments = Moments(self.structure, regions, dtype, device)
        self.register_buffer("initial", self.structure.initial(torch.as_tensor(initial, dtype=dtype, device=device)))
        self.snapshot: Pencil = self.structure.pencil(self.structure, regions, self.root, factor_dtype, device)
        self.register_buffer("center", torch.zeros(regions, self.dim, dtype=factor_dtype, device=device))
        self.register_buffer("scale", torch.ones(regions, dtype=factor_dtype, device=device))
        self.register_buffer("share", torch.zeros(regions, dtype=torch.float64, device=device))
        self.register_buffer("form", torch.tensor(self.rules.stored, dtype=torch.float64, device=device))
        self._eps_warned = False
        self._gathered: Gathered | None = None  # what is not merged with other processes yet
        # What the last refresh reports, whether it was full, and the points at those before it.
        self._report: tuple[HostRead, bool, int, int] | None = None
        self._decomposed: tuple[tuple[int, int, torch.device], Pencil] | None = None
        self.refresh()

    fixed = classmethod(fixed)
    sync, gathered, load_gathered = ranks.sync, ranks.gathered, ranks.load_gathered

    @torch.no_grad()
    def update(self, x: Tensor, region: Tensor | None = None, *, sync: Sync = True) -> AdaptiveCovariance:
        """Learn from rows ``x`` ``[B, *shape]``; ``region`` int64 ``[B]``. Does nothing once frozen. Returns self.

        Where a process group of several processes is up, all of them learn from the rows of all: each gathers its own,
        and where a snapshot is due (the points have grown by ``refresh``), the moments are all-reduced: the n-th time
        after some ``(1 + refresh)^n`` points, K d^2 numbers of a dense structure, K d and a small matrix an axis of a
        separable one. In between nothing is sent. So each process has to call this equally often; on the last call
        before a checkpoint call :meth:`sync` on each. ``sync``: a ``ProcessGroup`` for its members alone, False where
        every process is given the same rows, or one process learns for all.

        Raises TypeError or ValueError naming the argument (on the CPU also for values that are not finite); the
        state is then as it was. Data whose R has no factor raises too, with the moments updated and the snapshot kept.
        """
        if self.frozen:
            return self
        self._settle()
        if isinstance(x, Tensor) and x.dtype == torch.float64:  # others fit, but for what a refresh refuses
            _checks.summable(x, self.center.dtype, 0.5)
        if several(sync):
            if self._gathered is None or self._gathered.sync is not sync:
                self.sync()
                self._gathered = Gathered(self, sync)
            self._gathered.update(x, region)
            return self
        self.orient(x, region)
        self.moments.update(x, region, self.forgetting)
        self.seen += x.shape[0]
        self._refresh_if_due(x.shape[0])
        return self

    @torch.no_grad()
    def orient(self, x: Tensor, region: Tensor | None = None) -> AdaptiveCovariance:
        """Find a first basis in the rows of ``x`` ``[B, *shape]``, which do not count as points, for a structure that
        gathers coordinates in a learned one; nothing else. Returns self.

        The first update does it with its own batch. Call it before with some hundred rows where batches are of a few,
        and with the same rows on every process: only in one basis is a merge exact.
        """
        if not self.oriented and not self.frozen:
            self.moments.check(x, region)
            _checks.update_values(x.flatten(1), region, self.regions)
            _checks.summable(x, self.moments.mean.dtype)
            if len(x) > 1:
                self.structure.orient(self.moments, x, region)
                self.seen_at_basis = len(x)
            self.oriented = bool(len(x))
        return self

    def due(self, pending: int = 0, rows: int = 0) -> bool:
        """Whether the points seen, plus ``pending`` ones not merged yet, call for a new snapshot. Under forgetting
        growth is against what is remembered, about ``rows / (1 - lambda)`` points, ``rows`` a batch."""
        return not self.frozen and self._grown(self.seen_at_refresh, self.growth, pending, rows)

    @property
    def points(self) -> int:
        """Points given so far; of several processes those of all, also where they are not merged yet."""
        return self.seen + (0 if self._gathered is None else self._gathered.pending)

    def gathering(self) -> Moments:
        """Empty moments in this state's basis, to be filled apart and given to :meth:`merge`."""
        out = Moments(self.structure, self.regions, self.moments.mean.dtype, self.moments.mean.device)
        out.face(self.moments.basis)
        return out

    @torch.no_grad()
    def merge(
        self, other: AdaptiveCovariance | Moments, points: int = 0, decay: float = 1.0, rows: int = 0
    ) -> AdaptiveCovariance:
        """Add what another state gathered (Chan; any order, exact where both have one basis). Returns self.

        ``points``: how many rows that was, where ``other`` is bare moments. ``decay``: what this state
        forgets first, lambda to the number of updates that ``other`` saw; ``rows``: of a batch, as in :meth:`due`.
        Raises ValueError if the states do not fit together or this one is frozen.
        """
        moments = other.moments if isinstance(other, AdaptiveCovariance) else other
        if self.frozen:
            raise ValueError("merge: got a covariance that is frozen, expected one that still learns")
        self.moments.fits(moments)
        if not self.oriented and bool(moments.weight.any()):  # nothing was gathered here
            self.moments.face(moments.basis)
            self.oriented, self.seen_at_basis = True, 0
        if decay != 1.0:
            self.moments.decay_(decay)
        self.moments.merge(moments)
        self.revision += 1
        self.seen += other.seen if isinstance(other, AdaptiveCovariance) else points
        self._refresh_if_due(rows)
        return self

    def freeze(self) -> AdaptiveCovariance:
        """Remake the snapshot once more and stop learning: R does not change any more. Returns self. Of several
        processes that learn together each has to call it."""
        if not self.frozen:
            self.refresh()
            self._settle(wait=True)
            self.frozen = True
        return self

    @torch.no_grad()
    def refresh(self) -> None:
        """Remake the snapshot from the moments; of several processes that learn together each has to call it. Raises
        ValueError if R has no factor, state untouched."""
        self.sync()
        self._refresh(full=True)

    @torch.no_grad()
    def track(self) -> AdaptiveCovariance:
        """Keep the whole pencil in the snapshot, for who asks it at every step or compiles it. Returns self.

        A dense structure keeps only a factor of R until then; from then on its basis is remade when the points have
        doubled (for which a GPU is waited), by :meth:`refresh` and by :meth:`freeze`: until learning ends it may be of
        an earlier S than the factor is. While the points are fewer than the structure needs S counts as R, which every
        basis says alike to :meth:`filter`: none is made then but for who asks for the :attr:`pencil`.
        """
        if not self.snapshot.complete:
            known = self.pencil
            self.snapshot.track()
            self.snapshot.install(known.basis, known.noise_variances(), known.l)
            self.seen_at_basis, self._decomposed = self.seen, None
        return self

    def _refresh_if_due(self, rows: int) -> None:
        if self.due(rows=rows):
            self._refresh(full=self._grown(self.seen_at_basis, BASIS_GROWTH, rows=rows) and not self._few)

    @property
    def _optional(self) -> bool:
        """Whether the snapshot keeps a basis apart from its factor, which it could do without."""
        return self.snapshot.complete and not type(self.snapshot).complete

    @property
    def _few(self) -> bool:
        """Whether points are too few for S to count, where the basis is optional."""
        return self._optional and self.seen < self.structure.points()

    @property
    def _current(self) -> bool:
        """Whether the snapshot has a basis, and one that was not left out at the last refresh."""
        kept = self._optional and not self.rules.isotropic
        left_out = kept and self.seen_at_basis < self.seen_at_refresh < self.structure.points()
        return self.snapshot.complete and not left_out

    def _grown(self, since: int, growth: float, pending: int = 0, rows: int = 0) -> bool:
        new = self.seen + pending - since
        memory = rows / (1.0 - self.forgetting) if self.forgetting < 1 and rows else math.inf
        return new > 0 and new >= growth * min(since, memory)

    def _refresh(self, full: bool) -> None:
        if self.frozen:
            raise ValueError("refresh: got a covariance that is frozen, expected one that still learns")
        self._settle()
        if full and self.structure.oriented and self.seen > self.seen_at_basis:
            self.structure.reorient(self.moments)
        good, level = self.snapshot.remake(self.moments, self.initial, self.rules, full)
        report = torch.stack((good.to(level.dtype), level.min()))
        self._report = (HostRead(report), full, self.seen_at_refresh, self.seen_at_basis)
        self._install(level, good)
        self.seen_at_refresh = self.seen
        if full:
            self.seen_at_basis = max(self.seen, self.seen_at_basis)
        self._settle()

    def _install(self, level: Tensor, good: Tensor | None = None) -> None:
        """Take the new center and scale where ``good``, keep the old ones where not; the device decides."""
        # Data that does not vary has the ridge's scale, or 1: a denoiser divides by it.
        least = torch.finfo(self.scale.dtype).tiny ** 2
        level = torch.where(level > least, level, self.rules.ridge(level))
        scale = torch.where(level > least, level, 1.0).sqrt()
        share = self.count / self.count.sum() if self.seen else torch.full_like(self.share, 1 / self.regions)
        for name, new in (("center", self.moments.mean), ("scale", scale), ("share", share)):
            setattr(self, name, replaced(getattr(self, name), new, good))
        self.revision += 1

    def _settle(self, wait: bool = False) -> None:
        """Look at what the last refresh reported, if that is known by now (on the CPU it always is).

        A GPU is not waited for: until its report is in, the snapshot before serves, which was kept if R had no factor.
        Then the ridge is raised here; ValueError if that does not help, with the snapshot kept.
        """
        if self._report is None or not (wait or self._report[0].arrived()):
            return
        (read, full, *before), self._report = self._report, None
        good, low = read.wait().tolist()
        floor = self.rules.eps_floor
        made = self.rules.eps is None and self.rules.given is None
        if made and not self._eps_warned and self.seen >= self.rules.warmup and floor > 0.1 * low:
            self._eps_warned = True
            warnings.warn(
                f"eps_floor {floor:.2g} is not small beside the data's mean variance {low:.2g},"
                " so the noise is nearly isotropic; give eps_floor=0 if the data is not 8-bit",
                stacklevel=6,  # update, refresh and the two wrappers of no_grad
            )
        if good:
            return
        try:
            level = self.snapshot.repair(self.moments, self.initial, self.rules, full)
        except ValueError:
            self.seen_at_refresh, self.seen_at_basis = before
            raise
        self._install(level)

    @property
    def pencil(self) -> Pencil:
        """S, as it counts, and R in their common basis, in ``factor_dtype``: see :class:`ansn.covariance.Pencil`.

        Of a dense covariance that does not :meth:`track` it, or has few points, and still learns, it is of the points
        seen so far, up to ``refresh`` more than the factor that draws has seen, and made for who asks."""
        if self._current:
            return self.snapshot
        state = self.seen, self.revision, self.center.device
        if self._decomposed is None or self._decomposed[0] != state:
            made = Pencil(self.structure, self.regions, "basis", self.center.dtype, self.center.device)
            with torch.no_grad():
                made.remake(self.moments, self.initial, self.rules, True)
            self._decomposed = state, made
        return self._decomposed[1]

    def step(self, x: Tensor, denoised: Tensor | None = None, f: Tensor | None = None, **options: Any) -> Tensor:
        """``x + c (D - x) + L (a f + b z)``, the coloured step of math section 3, ``[B, *shape]`` as x, D and f; ``c``,
        ``a``, ``b``, ``region`` and the counters of z as of :func:`ansn.ops.colored_step`."""
        return self.snapshot.step(x, denoised, f, **options)

    def color(self, z: Tensor, region: Tensor | None = None, *, transpose: bool = False) -> Tensor:
        """``L z``, or ``L^T z``, ``[B, *shape]``."""
        return self.snapshot.color(z, region, transpose=transpose)

    def whiten(self, v: Tensor, region: Tensor | None = None, *, transpose: bool = False) -> Tensor:
        """``L^-1 v``, or ``L^-T v``, ``[B, *shape]``."""
        return self.snapshot.color(v, region, transpose=transpose, inverse=True)

    def filter(self, v: Tensor, tau: float | Tensor, region: Tensor | None = None, **options: Any) -> Tensor:
        """The pencil's :meth:`Pencil.filter` of ``[B, *shape]``, of the snapshot where there is one."""
        return (self.snapshot if self.snapshot.complete else self.pencil).filter(v, tau, region, **options)

    @property
    def unit(self) -> Tensor | None:
        """Deviation of the noise at tau = 1 over the data's, ``[K]``, where R is given; else about 1: None."""
        return None if self.noise_level is None else math.sqrt(self.noise_level) / self.scale

    @property
    def count(self) -> Tensor:
        """Rows of each region, float64 ``[K]`` (sums of weights under forgetting); a prior's points are none."""
        return self.moments.weight - self.moments.pseudo

    @property
    def mean(self) -> Tensor:
        """Running mean, ``[K, d]``."""
        return self.moments.mean

    def mean_of(self, region: Tensor | None, rows: int) -> Tensor:
        """The snapshot's mean for each row, ``[rows, d]``. Raises ValueError for None where there are regions."""
        if region is None and self.regions > 1:
            raise ValueError(f"region: got None, expected int64 [{rows}] because there are {self.regions} regions")
        return self.center.expand(rows, -1) if region is None else self.center[region]

    def covariance(self) -> Tensor:
        """``S_k``, unbiased; ``initial`` for a region that is still warming up. ``[K, d, d]``, for a diagonal structure
        ``[K, d]``; for small d. What S counts as is in the pencil."""
        return self.structure.covariance(self.moments, self.moments.points(self.rules.warmup), self.initial)

    def haario(self) -> Tensor:
        """``C_k = s_d (S_k + eps I)``, Eq. 2.5; ``s_d initial`` for a region that is warming up. As :meth:`covariance`,
        for small d."""
        s = self.covariance()
        level = (s if s.ndim == 2 else s.diagonal(dim1=1, dim2=2)).mean(1)
        ridge = torch.where(self.moments.points(self.rules.warmup), self.rules.ridge(level), 0.0).unsqueeze(1)
        return 2.4**2 / self.dim * (s + (ridge if s.ndim == 2 else torch.diag_embed(ridge.expand(-1, self.dim))))

    def noise_shape(self) -> Tensor:
        """``R_k = L_k L_k^T`` of the snapshot, float64 ``[K, d, d]``, diagonal: ``[K, d]``; for small d."""
        return self.snapshot.noise_shape()

    def eigenvalues(self) -> Tensor:
        """Eigenvalues of R, ascending, float64 ``[K, d]``, squared data units."""
        if not self._current:
            return torch.linalg.eigvalsh(self.noise_shape())
        return self.snapshot.noise_variances().double().sort(dim=1).values

    @torch.no_grad()
    def condition_number(self) -> Tensor:
        """Largest over smallest eigenvalue of R, float64 ``[K]``. Of a factor alone, from :data:`LARGE` dimensions on,
        by Lanczos iterations with it: to a percent."""
        if self._current or self.dim < LARGE:
            values = self.eigenvalues()
            return values[:, -1] / values[:, 0]
        return (self.snapshot.largest(False) * self.snapshot.largest(True)).clamp_min(1.0)

    def effective_rank(self) -> Tensor:
        """``exp(H(p))``, p the normalised eigenvalues of S as it counts (Roy and Vetterli 2007), 1 to d, ``[K]``."""
        values = self.pencil.variances().double()
        return torch.special.entr(values / values.sum(1, keepdim=True)).sum(1).exp()

    def enough(self) -> Tensor:
        """Regions of points enough for their S to count as it is, bool ``[K]``."""
        return self.rules.enough(self.moments)

    def extra_repr(self) -> str:
        state = f"{self.seen} points, {'frozen' if self.frozen else 'learning'}"
        family = self.rules.family if self.noise_level is None else f"noise of variance {self.noise_level:g}"
        return f"shape={self.shape}, regions={self.regions}, {self.structure.name}, {family}, {state}"

    def get_extra_state(self) -> Tensor:
        """Host counters, which root L is, and the structure and shape, as a tensor: a checkpoint needs no pickle."""
        counters = (self.seen, self.seen_at_refresh, self.seen_at_basis, int(self.frozen))
        form = (zlib.crc32(self.structure.name.encode()), *self.shape)
        return torch.tensor([*counters, ROOTS.index(self.root), int(self.oriented), *form])

    def set_extra_state(self, state: Tensor) -> None:
        self.seen, self.seen_at_refresh, self.seen_at_basis, frozen, _, *oriented = state.tolist()[:6]
        self.frozen, self.oriented = bool(frozen), all(oriented)
        self.revision += 1
        self._gathered = None  # rows of before

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        stored = state_dict.get(f"{prefix}_extra_state")
        if stored is not None:  # before anything is taken over
            numbers = stored.tolist()
            if numbers[6:] and numbers[6:] != self.get_extra_state().tolist()[6:]:
                names = {zlib.crc32(name.encode()): name for name in STRUCTURES}
                theirs = f"{names.get(numbers[6], 'another structure')} of shape {tuple(numbers[7:])}"
                raise ValueError(f"structure: got a state of {theirs}, expected {self.structure.name} of {self.shape}")
            if ROOTS[numbers[4]] != self.root:
                raise ValueError(f"root: got a state of a {ROOTS[numbers[4]]} factor, expected a {self.root} one")
            self.snapshot.track(f"{prefix}snapshot.deviation" in state_dict)
        self.rules.fit(state_dict.setdefault(f"{prefix}form", self.form).tolist())  # older states have none
        self.snapshot.fit(state_dict, f"{prefix}snapshot.")
        if f"{prefix}share" not in state_dict and f"{prefix}moments.weight" in state_dict:  # an older state
            weight = state_dict[f"{prefix}moments.weight"]
            state_dict[f"{prefix}share"] = weight / weight.sum().clamp_min(1.0)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> AdaptiveCovariance:
        keep_dtypes(self, fn)
        if self._gathered is not None:
            self._gathered.moments._apply(fn)
        return self
