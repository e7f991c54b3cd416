"""The adaptive covariance: running moments, shaped into the noise's R and its factor (math section 1)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from ansn import ops
from ansn.errors import InputError
from ansn.hostread import HostRead
from ansn.moments import RunningMoments, keep_dtypes
from ansn.ops import _checks
from ansn.structures import STRUCTURES

QUANTISATION_8BIT = 1.0 / (12.0 * 255.0**2)
"""Variance of the rounding of 8-bit data scaled to [0, 1]."""

SPECTRUM_POINTS = 2
"""Points for each dimension from which S is worth a filter: with as many the error of denoising Gaussian data is
within 1.2 of the best at every level, with half as many up to 18 times it (tests/properties/test_wiener.py)."""

SPECTRUM_GROWTH = 1.0
"""Growth of the number of points after which a tracked spectrum is remade: an eigendecomposition costs some fifteen
factorisations."""


class AdaptiveCovariance(nn.Module):
    r"""Covariance of the data, learned online, one for each of K regions, and the noise shape ``R_k = L_k L_k^T``
    made of it.

    With ``S_k`` the unbiased running covariance of region k, ``t_k = tr S_k / d``::

        R_k = (1 - rho) t_k I + rho S_k + eps I          (shrinkage; rho = 0 isotropic, 1 the paper's)
        R_k = S_k^gamma scaled to trace d t_k, + eps I   (spectral power; gamma = 0 isotropic, 1 full)
        C_k = s_d (S_k + eps I),  s_d = 2.4^2 / d        (Haario's form, Eq. 2.5 of the paper)

    Every R has about the trace of S, so that a level ``tau`` counts standard deviations of the data. ``factor``,
    ``center`` and ``scale`` are a snapshot, remade by :meth:`update` when the number of points has grown by ``refresh``
    since the last one, by :meth:`refresh` and by :meth:`freeze`; so is the spectrum, less often, once
    :meth:`track_spectrum` was called. Noise, denoiser and samplers read only the snapshot.

    Args:
        shape: shape of one data point, ``(1, 28, 28)`` or ``(d,)`` or ``d``.
        regions: K. K = 1 is the paper.
        structure: ``"dense"`` (K d^2 numbers) or ``"diagonal"`` (K d).
        rho: anisotropy in [0, 1]; default 0.5 when gamma is not given.
        gamma: exponent of the spectral family, instead of rho. Needs an eigendecomposition at each refresh.
        eps: ridge, in squared data units; default ``1e-3 tr(S)/d``, and at least ``eps_floor``.
        eps_floor: smallest default ridge, and smallest variance of S in :meth:`wiener`; by default the quantisation
            noise of 8-bit data in [0, 1]. Give 0 for data without quantisation.
        root: ``"cholesky"`` (lower triangular) or ``"symmetric"`` (independent of the order of the coordinates).
        warmup: points, at least 2, that a region needs before its own S replaces ``initial``.
        initial: guess of S before that: a variance, ``[d]`` variances or ``[d, d]``; default 1. Haario's C_0 is
            ``s_d * initial``.
        forgetting: lambda in (0, 1]; the moments are scaled by it at every update. 1 remembers everything.
        refresh: relative growth of the number of points after which the factor is remade.
        dtype: of the state, float64 or float32. factor_dtype: of the snapshot.

    Raises ValueError for a bad argument, MemoryError when the structure cannot fit.
    """

    factor: Tensor
    center: Tensor
    scale: Tensor
    initial: Tensor
    basis: Tensor | None
    ratio: Tensor | None

    def __init__(
        self,
        shape: int | Sequence[int],
        regions: int = 1,
        structure: str = "dense",
        *,
        rho: float | None = None,
        gamma: float | None = None,
        eps: float | None = None,
        eps_floor: float = QUANTISATION_8BIT,
        root: str = "cholesky",
        warmup: int = 2,
        initial: float | Tensor = 1.0,
        forgetting: float = 1.0,
        refresh: float = 0.05,
        dtype: torch.dtype = torch.float64,
        factor_dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
        memory_limit: int | None = None,
    ) -> None:
        super().__init__()
        self.shape = (shape,) if isinstance(shape, int) else tuple(shape)
        self.dim = math.prod(self.shape)
        if self.dim < 1 or regions < 1:
            raise ValueError(
                f"shape, regions: got {self.shape}, {regions}, expected at least one coordinate and region"
            )
        if structure not in STRUCTURES:
            raise ValueError(f"structure: got {structure!r}, expected one of {', '.join(STRUCTURES)}")
        if rho is not None and gamma is not None:
            raise ValueError(f"rho, gamma: got both ({rho}, {gamma}), expected one: they are two families of shapes")
        rho = 0.5 if rho is None and gamma is None else rho
        if rho is not None and not 0.0 <= rho <= 1.0:
            raise ValueError(f"rho: got {rho}, expected 0 <= rho <= 1")
        if gamma is not None and not -1.0 <= gamma <= 1.0:
            raise ValueError(f"gamma: got {gamma}, expected -1 <= gamma <= 1")
        if (eps is not None and not eps >= 0) or not eps_floor >= 0:
            raise ValueError(f"eps, eps_floor: got {eps}, {eps_floor}, expected numbers >= 0")
        if root not in ("cholesky", "symmetric"):
            raise ValueError(f"root: got {root!r}, expected 'cholesky' or 'symmetric'")
        if warmup < 2:
            raise ValueError(f"warmup: got {warmup}, expected at least 2 points: one point has no covariance")
        if not 0.0 < forgetting <= 1.0:
            raise ValueError(f"forgetting: got {forgetting}, expected 0 < forgetting <= 1")
        if not refresh > 0:
            raise ValueError(f"refresh: got {refresh}, expected a relative growth > 0")
        for name, value in (("dtype", dtype), ("factor_dtype", factor_dtype)):
            if value not in (torch.float32, torch.float64):
                raise ValueError(f"{name}: got {value}, expected torch.float32 or torch.float64")
        self.regions, self.structure, self.rho, self.gamma = regions, STRUCTURES[structure], rho, gamma
        self.eps, self.eps_floor, self.root, self.warmup = eps, eps_floor, root, warmup
        self.forgetting, self.growth = forgetting, refresh
        self._refuse_what_cannot_fit(dtype, factor_dtype, device, memory_limit)
        # Counts on the host, so that deciding on a refresh never waits for the device.
        self.seen, self.seen_at_refresh, self.frozen = 0, 0, False
        # Counts the changes that `seen` does not tell of, for what others keep computed from this state.
        self.revision = 0
        self.moments = RunningMoments(self.dim, regions, self.structure, dtype, device)
        self.register_buffer("initial", self._initial(initial, dtype, device))
        storage = self.structure.storage(regions, self.dim)
        self.register_buffer("factor", torch.zeros(storage, dtype=factor_dtype, device=device))
        self.register_buffer("center", torch.zeros(regions, self.dim, dtype=factor_dtype, device=device))
        self.register_buffer("scale", torch.ones(regions, dtype=factor_dtype, device=device))
        self.register_buffer("basis", None)
        self.register_buffer("ratio", None)
        self.seen_at_spectrum = 0
        self._eps_warned = False
        # What the last refresh reports, whether it was of the spectrum too, and the points at those before it: see
        # `_settle`.
        self._report: tuple[HostRead, bool, int, int] | None = None
        self._decomposed: tuple[tuple[int, int, torch.device], tuple[Tensor | None, Tensor]] | None = None
        self.refresh()

    # -- state -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def update(self, x: Tensor, region: Tensor | None = None) -> AdaptiveCovariance:
        """Learn from the rows of ``x`` ``[B, *shape]``; ``region`` int64 ``[B]``. Does nothing once frozen.
        Returns self.

        Raises TypeError or ValueError naming the argument (on the CPU also for values that are not finite); the
        state is then as it was. Data whose R has no factor raises too, with the moments updated and the snapshot kept.
        """
        if self.frozen:
            return self
        self._settle()
        _checks.batched("x", x)
        if x.shape[1:].numel() != self.dim:
            raise ValueError(f"x: got shape {list(x.shape)}, expected [B, {', '.join(map(str, self.shape))}]")
        self.moments.update(x, region, self.forgetting)
        self.seen += x.shape[0]
        self._refresh_if_due(x.shape[0])
        return self

    def due(self, pending: int = 0, rows: int = 0) -> bool:
        """Whether the points seen, plus ``pending`` ones not merged yet, call for a new factor.

        Under forgetting the state remembers about ``rows / (1 - lambda)`` points, ``rows`` a batch: growth is
        against those.
        """
        return not self.frozen and self._grown(self.seen_at_refresh, self.growth, pending, rows)

    @torch.no_grad()
    def merge(
        self, other: AdaptiveCovariance | RunningMoments, points: int = 0, decay: float = 1.0, rows: int = 0
    ) -> AdaptiveCovariance:
        """Add what another state gathered (Chan's formula; exact, in any order). Returns self.

        ``points``: how many rows that was, where ``other`` is bare moments. ``decay``: what this state
        forgets first, lambda to the number of updates that ``other`` saw; ``rows``: of a batch, as in :meth:`due`.
        Raises ValueError if the states do not fit
        together or this one is frozen.
        """
        moments = other.moments if isinstance(other, AdaptiveCovariance) else other
        if self.frozen:
            raise ValueError("merge: this covariance is frozen, expected one that still learns")
        if moments.scatter.shape != self.moments.scatter.shape:
            raise ValueError(
                f"other: got a state of shape {list(moments.scatter.shape)},"
                f" expected {list(self.moments.scatter.shape)}"
            )
        if decay != 1.0:
            self.moments.decay_(decay)
        self.moments.merge(moments)
        self.revision += 1
        self.seen += other.seen if isinstance(other, AdaptiveCovariance) else points
        self._refresh_if_due(rows)
        return self

    def freeze(self) -> AdaptiveCovariance:
        """Remake the snapshot once more and stop learning: R does not change from here on. Returns self."""
        if not self.frozen:
            self.refresh()
            self._settle(wait=True)
            self.frozen = True
        return self

    @torch.no_grad()
    def refresh(self) -> None:
        """Remake ``factor``, ``center`` and ``scale`` from the moments. Raises ValueError if R has no factor,
        state untouched."""
        self._refresh(spectrum=True)

    @torch.no_grad()
    def track_spectrum(self) -> AdaptiveCovariance:
        """Keep the eigenbasis that S and R share in the snapshot too, for :meth:`wiener`. Returns self.

        It is remade with the factor when the number of points has doubled (an eigendecomposition, for which a GPU is
        waited), by :meth:`refresh` and by :meth:`freeze`: until learning ends it may be of an earlier S than the
        factor is.
        """
        if self.ratio is None:
            self._register_spectrum()
            s = self.covariance()
            self._install_spectrum(s, self._shape(s))
        return self

    def _register_spectrum(self) -> None:
        if self.structure.name == "dense":
            self.register_buffer("basis", torch.zeros_like(self.factor))
        self.register_buffer("ratio", torch.ones_like(self.center))

    def _refresh_if_due(self, rows: int) -> None:
        if self.due(rows=rows):
            self._refresh(spectrum=self._grown(self.seen_at_spectrum, SPECTRUM_GROWTH, rows=rows))

    def _grown(self, since: int, growth: float, pending: int = 0, rows: int = 0) -> bool:
        new = self.seen + pending - since
        memory = rows / (1.0 - self.forgetting) if self.forgetting < 1 and rows else math.inf
        return new > 0 and new >= growth * min(since, memory)

    def _refresh(self, spectrum: bool) -> None:
        if self.frozen:
            raise ValueError("refresh: this covariance is frozen, expected one that still learns")
        self._settle()
        s = self.covariance()
        r, level = self._shape(s), self.structure.variances(s).mean(1)
        factor, status = self.structure.factor(r, self.root)
        good = (status == 0).all()
        report = torch.stack((good.to(level.dtype), level.min()))
        self._report = (HostRead(report), spectrum, self.seen_at_refresh, self.seen_at_spectrum)
        self._install(factor, s, level, good)
        if spectrum and self.ratio is not None:
            self._install_spectrum(s, r, good)
        self.seen_at_refresh = self.seen
        self._settle()

    def _install(self, factor: Tensor, s: Tensor, level: Tensor, good: Tensor | None = None) -> None:
        """Take the new snapshot where ``good``, keep the old one where not; the device decides, nobody waits."""
        # Data that does not vary has the ridge's scale, or 1: a denoiser divides by it.
        level = torch.where(level > 0, level, self._eps(s))
        scale = torch.where(level > 0, level, 1.0).sqrt()
        self._copy(((self.factor, factor), (self.center, self.moments.mean), (self.scale, scale)), good)

    def _install_spectrum(self, s: Tensor, r: Tensor, good: Tensor | None = None) -> None:
        if good is not None:  # a decomposition of what is not finite raises, before anybody can say what is wrong
            one = self.structure.scaled_identity(torch.ones(self.regions, dtype=s.dtype, device=s.device), self.dim)
            s, r = torch.where(good, s, one), torch.where(good, r, one)
        basis, ratio = self._spectrum(s, r)
        self._copy(((self.basis, basis), (self.ratio, ratio)), good)
        self.seen_at_spectrum = self.seen

    def _spectrum(self, s: Tensor, r: Tensor) -> tuple[Tensor | None, Tensor]:
        basis, ratio = self.structure.spectrum(s, r, self._eps(s).clamp_max(self.eps_floor))
        known = self._points(SPECTRUM_POINTS * self.dim) | ~self._warm()  # or as `initial` says
        return basis, torch.where(known.unsqueeze(1), ratio, 1.0)

    def _copy(self, pairs: Sequence[tuple[Tensor | None, Tensor | None]], good: Tensor | None) -> None:
        for buffer, new in pairs:
            if buffer is not None and new is not None:
                # In place: compiled code and captured graphs keep reading the same memory.
                buffer.copy_(new if good is None else torch.where(good, new.to(buffer.dtype), buffer))
        self.revision += 1

    def _settle(self, wait: bool = False) -> None:
        """Look at what the last refresh reported, if that is known by now (on the CPU it always is).

        A GPU is not waited for: until its report is in, the snapshot before serves, which `_install` kept if
        R had no factor. Then the ridge is raised here; ValueError if that does not help, with the snapshot kept.
        """
        if self._report is None or not (wait or self._report[0].arrived()):
            return
        (read, spectrum, *before), self._report = self._report, None
        good, low = read.wait().tolist()
        if self.eps is None and not self._eps_warned and self.seen >= self.warmup and self.eps_floor > 0.1 * low:
            self._eps_warned = True
            warnings.warn(
                f"eps_floor {self.eps_floor:.2g} is not small beside the data's mean variance {low:.2g},"
                " so the noise is nearly isotropic; give eps_floor=0 if the data is not 8-bit",
                stacklevel=6,  # update, refresh and the two wrappers of no_grad
            )
        if good:
            return
        s = self.covariance()
        try:
            factor = self._raised(self._shape(s))
        except ValueError:
            self.seen_at_refresh, self.seen_at_spectrum = before
            raise
        self._install(factor, s, self.structure.variances(s).mean(1))
        if spectrum and self.ratio is not None:
            self._install_spectrum(s, self.structure.gram(factor))

    # -- readings ------------------------------------------------------------------------------------------------

    @property
    def count(self) -> Tensor:
        """Points in each region, float64 ``[K]`` (sums of weights under forgetting)."""
        return self.moments.weight

    @property
    def mean(self) -> Tensor:
        """Running mean, ``[K, d]``."""
        return self.moments.mean

    @property
    def triangular(self) -> bool:
        """Whether a dense factor is lower triangular."""
        return self.root == "cholesky"

    def covariance(self) -> Tensor:
        """``S_k``, unbiased; ``initial`` for a region that is still warming up. ``[K, d, d]`` or ``[K, d]``."""
        shape = (-1,) + (1,) * (self.initial.ndim)
        return torch.where(self._warm().reshape(shape), self.moments.covariance(), self.initial)

    def haario(self) -> Tensor:
        """``C_k = s_d (S_k + eps I)``, Eq. 2.5; ``s_d initial`` for a region that is still warming up."""
        s = self.covariance()
        ridge = torch.where(self._warm(), self._eps(s), 0.0)
        return self.haario_scale * (s + self.structure.scaled_identity(ridge, self.dim))

    @property
    def haario_scale(self) -> float:
        """``s_d = 2.4^2 / d``."""
        return 2.4**2 / self.dim

    def noise_shape(self) -> Tensor:
        """``R_k = L_k L_k^T`` of the snapshot, in the state's dtype, ``[K, d, d]`` or ``[K, d]``."""
        return self.structure.gram(self.factor.to(self.initial.dtype))

    def eigenvalues(self) -> Tensor:
        """Eigenvalues of R, ascending, ``[K, d]``, squared data units."""
        return self.structure.eigenvalues(self.noise_shape())

    def condition_number(self) -> Tensor:
        """Largest over smallest eigenvalue of R, ``[K]``."""
        values = self.eigenvalues()
        return values[:, -1] / values[:, 0]

    def effective_rank(self) -> Tensor:
        """``exp(H(p))``, p the normalised eigenvalues of S (Roy and Vetterli 2007), ``[K]``, between 1 and d."""
        values = self.structure.eigenvalues(self.covariance()).clamp_min(0)
        p = values / values.sum(1, keepdim=True)
        return torch.special.entr(p).sum(1).exp()

    def trace(self) -> Tensor:
        """``tr S_k``, total variance, ``[K]``."""
        return self.structure.variances(self.covariance()).sum(1)

    def color(self, z: Tensor, region: Tensor | None = None) -> Tensor:
        """``L z``, ``[B, *shape]``."""
        return ops.apply_factor(z, self.factor, region, lower=self.triangular)

    def whiten(self, v: Tensor, region: Tensor | None = None, *, transpose: bool = False) -> Tensor:
        """``L^-1 v``, or ``L^-T v``, ``[B, *shape]``."""
        return ops.apply_factor(v, self.factor, region, transpose=transpose, inverse=True, lower=self.triangular)

    @torch.no_grad()
    def spectrum(self) -> tuple[Tensor | None, Tensor]:
        """``Q`` ``[K, d, d]`` (None: the coordinates' own) and l ``[K, d]`` with ``R = Q diag(r) Q^T``,
        ``S = Q diag(l r) Q^T``, in ``factor_dtype``: of the snapshot where it is tracked, else decomposed once and kept
        until the state changes. What S counts as: see :meth:`wiener`."""
        if self.ratio is not None:
            return self.basis, self.ratio
        state = self.seen, self.revision, self.factor.device
        if self._decomposed is None or self._decomposed[0] != state:
            s, dtype = self.covariance(), self.factor.dtype
            basis, ratio = self._spectrum(s, self._shape(s))
            self._decomposed = state, (None if basis is None else basis.to(dtype), ratio.to(dtype))
        return self._decomposed[1]

    def wiener(self, v: Tensor, tau: float | Tensor, region: Tensor | None = None) -> Tensor:
        """``S (S + tau^2 R)^-1 v``: the Wiener filter, which takes ``x~ - m`` to ``E[x | x~] - m`` where the data is
        Gaussian.

        ``v`` and the result ``[B, *shape]`` of one dtype; ``tau`` a number, ``[]`` or ``[B]``, data standard
        deviations; ``region`` int64 ``[B]``. S counts as at least ``eps_floor`` (``eps``, if that is less) in every
        direction: what the rounding hides may be there. A region of fewer than ``2 d`` points counts as ``S = R``,
        since its S would be too narrow off its own points. Raises ValueError before :meth:`track_spectrum`, and
        TypeError or ValueError naming the argument.
        """
        if self.ratio is None:
            raise ValueError("wiener: the spectrum is not tracked, expected a call of track_spectrum() before")
        _checks.batched("v", v)
        _checks.region(region, v.shape[0], self.regions, v.device)
        tau = torch.as_tensor(tau, dtype=self.ratio.dtype, device=v.device).reshape(-1, 1)
        l = self.ratio if region is None else self.ratio[region]
        # What is taken away, not what is left: the last digits of v stay right at small tau, where D is close to x~.
        loss = (tau**2 / (l + tau**2)).to(v.dtype).expand(v.shape[0], -1).reshape(-1, *self.shape)
        if self.basis is None:
            return v - loss * v
        turned = ops.apply_factor(v, self.basis, region, transpose=True, lower=False)
        return v - ops.apply_factor(loss * turned, self.basis, region, lower=False)

    def extra_repr(self) -> str:
        family = f"rho={self.rho}" if self.gamma is None else f"gamma={self.gamma}"
        state = "frozen" if self.frozen else "learning"
        return (
            f"shape={self.shape}, regions={self.regions}, {self.structure.name}, {family}, {self.seen} points, {state}"
        )

    # -- nn.Module -----------------------------------------------------------------------------------------------

    def get_extra_state(self) -> Tensor:
        """Host counters and which root the factor is, as a tensor, so that a checkpoint needs no pickle."""
        counters = (self.seen, self.seen_at_refresh, self.seen_at_spectrum)
        return torch.tensor([*counters, int(self.frozen), int(self.triangular)])

    def set_extra_state(self, state: Tensor) -> None:
        seen, at_refresh, at_spectrum, frozen, triangular = state.tolist()
        if bool(triangular) != self.triangular:
            stored = "cholesky" if triangular else "symmetric"
            raise ValueError(f"root: the state holds a {stored} factor, expected a {self.root} one")
        self.seen, self.seen_at_refresh, self.seen_at_spectrum = seen, at_refresh, at_spectrum
        self.frozen = bool(frozen)
        self.revision += 1

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        if f"{prefix}ratio" in state_dict and self.ratio is None:  # of one that tracked its spectrum
            self._register_spectrum()
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> AdaptiveCovariance:
        keep_dtypes(self, fn)
        return self

    # -- internals -----------------------------------------------------------------------------------------------

    def _warm(self) -> Tensor:
        """Regions with points enough for a covariance of their own, bool ``[K]``.

        By the effective number ``W^2 / sum w^2``: n without forgetting, and unlike W it does not fade in a region that
        is not visited for a while.
        """
        return self._points(self.warmup)

    def _points(self, count: int) -> Tensor:
        w, w2 = self.moments.weight, self.moments.weight2
        return w * w >= count * w2.clamp_min(torch.finfo(torch.float64).tiny)

    def _eps(self, s: Tensor) -> Tensor:
        if self.eps is not None:
            return torch.full((self.regions,), self.eps, dtype=s.dtype, device=s.device)
        return (1e-3 * self.structure.variances(s).mean(1)).clamp_min(self.eps_floor)

    def _shape(self, s: Tensor) -> Tensor:
        """R before its ridge is folded in, plus ridge."""
        eps, level = self._eps(s), self.structure.variances(s).mean(1)
        if self.gamma is None:
            assert self.rho is not None
            return self.rho * s + self.structure.scaled_identity((1.0 - self.rho) * level + eps, self.dim)
        powered = self.structure.power(s, self.gamma, eps)
        trace = self.structure.variances(powered).mean(1)
        ratio = torch.where(trace > 0, level / trace, 0.0).reshape((-1,) + (1,) * (s.ndim - 1))
        return ratio * powered + self.structure.scaled_identity(eps, self.dim)

    def _raised(self, r: Tensor) -> Tensor:
        """A factor of R with its ridge raised, a little at a time: rounding can push rank-deficient + eps I below 0."""
        jitter = self.structure.variances(r).mean(1) * torch.finfo(r.dtype).eps
        for _ in range(7):
            factor, status = self.structure.factor(r, self.root)
            if not bool((status != 0).any()):
                return factor
            r = r + self.structure.scaled_identity(torch.where(status != 0, jitter, 0.0), self.dim)
            jitter = jitter * 10
        k = int((status != 0).nonzero()[0])
        raise InputError(
            f"eps: the noise shape of region {k} is not positive definite"
            f" ({self.structure.obstacle(r[k], int(status[k]), self.root)}); expected a larger eps"
        )

    def _initial(self, value: float | Tensor, dtype: torch.dtype, device: torch.device | str | None) -> Tensor:
        """The guess of S in the structure's storage, without the region dimension."""
        given = torch.as_tensor(value, dtype=dtype, device=device)
        if given.ndim == 0:
            variances = given.expand(self.dim)
        elif given.shape in ((self.dim,), (self.dim, self.dim)):
            variances = given if given.ndim == 1 else given.diagonal()
        else:
            raise ValueError(
                f"initial: got shape {list(given.shape)}, expected a number, [{self.dim}] or [{self.dim}, {self.dim}]"
            )
        if not bool((variances > 0).all()) or not bool(torch.isfinite(given).all()):
            raise ValueError(
                "initial: got a variance that is not positive and finite, expected a positive definite guess"
            )
        if self.structure.name == "diagonal":
            return variances.clone()
        return given.clone() if given.ndim == 2 else torch.diag(variances)

    def _refuse_what_cannot_fit(
        self,
        dtype: torch.dtype,
        factor_dtype: torch.dtype,
        device: torch.device | str | None,
        limit: int | None,
    ) -> None:
        where = torch.device(device or "cpu")
        if limit is None:
            limit = torch.cuda.mem_get_info(where)[0] if where.type == "cuda" else psutil.virtual_memory().available
        sizes = {s.name: s.bytes(self.regions, self.dim, dtype, factor_dtype) for s in STRUCTURES.values()}
        if sizes[self.structure.name] > limit:
            fits = [f"{name} ({_gib(size)})" for name, size in sizes.items() if size <= limit]
            raise MemoryError(
                f"structure: {self.structure.name!r} of {self.regions} x {self.dim} coordinates takes"
                f" {_gib(sizes[self.structure.name])} ({sizes[self.structure.name]} bytes), {_gib(limit)} is there;"
                f" structures that fit: {', '.join(fits) or 'none'}"
            )


def _gib(size: int) -> str:
    return f"{size / 2**30:.3g} GiB"
