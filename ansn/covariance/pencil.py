r"""The pencil of S and R, the algebra of everything that asks the two together (math section 10)::

    R = B B^T,      S = B diag(l) B^T,      B = Q diag(s),   Q orthonormal, s the noise's deviations
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ansn import ops
from ansn.covariance.moments import Basis, Moments, keep_dtypes, owners
from ansn.errors import InputError
from ansn.ops import _checks
from ansn.ops.separable import apply_known

if TYPE_CHECKING:
    from ansn.covariance.structure import Structure

ROOTS = ("symmetric", "cholesky", "basis")
"""Names of the roots of R, in the order by which checkpoints number them; a structure has some."""


ABSENT = -2.0
"""In a state, what was not given; no number that is has this value."""


@dataclass(frozen=True)
class Rules:
    """How R is made of S, and what S counts as: arguments as of :class:`ansn.AdaptiveCovariance`."""

    rho: float | None
    gamma: float | None
    eps: float | None
    eps_floor: float
    warmup: int
    distinct: int | None = None
    given: float | None = None
    """The variance of R, where it is given and not made of S."""

    def __post_init__(self) -> None:
        if self.rho is not None and not 0.0 <= self.rho <= 1.0:
            raise ValueError(f"rho: got {self.rho}, expected 0 <= rho <= 1")
        if self.gamma is not None and not -1.0 <= self.gamma <= 1.0:
            raise ValueError(f"gamma: got {self.gamma}, expected -1 <= gamma <= 1")
        if (self.eps is not None and not self.eps >= 0) or not self.eps_floor >= 0:
            raise ValueError(f"eps, eps_floor: got {self.eps}, {self.eps_floor}, expected numbers >= 0")
        if self.given is not None and not 0.0 < self.given < math.inf:
            raise ValueError(f"noise: got {self.given}, expected a variance > 0")
        if self.warmup < 2:
            raise ValueError(f"warmup: got {self.warmup}, expected at least 2 points: one point has no covariance")

    @property
    def family(self) -> str:
        """``rho = 0.5``, ``gamma = 0.5`` or ``noise = 0.5``, for people."""
        if self.given is not None:
            return f"noise = {self.given:g}"
        return f"rho = {self.rho:g}" if self.gamma is None else f"gamma = {self.gamma:g}"

    @property
    def stored(self) -> list[float]:
        """What R is a function of, besides S, as a state has it."""
        given = self.rho, self.gamma, self.eps, self.eps_floor, self.given
        return [ABSENT if v is None else float(v) for v in given]

    def fit(self, stored: list[float]) -> None:
        """Raises ValueError unless a state is of these rules."""
        for name, theirs, ours in zip(("rho", "gamma", "eps", "eps_floor", "noise"), stored, self.stored, strict=True):
            if theirs != ours:
                got, expected = (None if v == ABSENT else v for v in (theirs, ours))
                raise ValueError(f"{name}: got a state of {name} = {got}, expected {expected}")

    @property
    def isotropic(self) -> bool:
        """Whether R is a multiple of the identity."""
        return self.given is not None or self.rho == 0.0 or self.gamma == 0.0

    def ridge(self, level: Tensor) -> Tensor:
        """``eps`` of regions of mean variance ``level`` ``[K]``."""
        if self.eps is not None:
            return torch.full_like(level, self.eps)
        return (1e-3 * level).clamp_min(self.eps_floor)

    def affine(self, level: Tensor) -> tuple[float, Tensor]:
        """``a``, ``b`` ``[K]`` with ``R = a S + b I``; for a shape by rho, or one that is given."""
        if self.given is not None:
            return 0.0, self.given + 0.0 * level  # a level that is not finite is no S
        assert self.rho is not None
        return self.rho, (1.0 - self.rho) * level + self.ridge(level)

    def noise(self, variances: Tensor) -> Tensor:
        """Variances of R in the eigenbasis of S, whose own they are, ``[K, d]``; 0 or less where R is singular."""
        level = variances.mean(1, keepdim=True)
        if self.gamma is None:
            a, b = self.affine(level)
            return a * variances + b
        ridge = self.ridge(level)
        powered = (variances + ridge) ** self.gamma if self.gamma < 0 else variances**self.gamma
        trace = powered.mean(1, keepdim=True)
        return torch.where(trace > 0, level / trace, 0.0) * powered + ridge

    def enough(self, moments: Moments) -> Tensor:
        """Regions of points enough for their S to count, bool ``[K]``; of distinct ones, where their number is told."""
        least = moments.structure.points()
        return moments.points(least) & (self.distinct is None or self.distinct >= least)

    def idle(self, level: Tensor) -> Tensor:
        """l of regions of mean variance ``level`` ``[K]`` whose S does not count, ``[K, 1]``: S is R then, or R of the
        trace of S where R is given and has one of its own."""
        return (torch.ones_like(level) if self.given is None else level / self.given).unsqueeze(1)

    def ratio(self, variances: Tensor, noise: Tensor, moments: Moments) -> Tensor:
        """l: what S counts as, over R. At least the floor of the rounding in every direction, for what it hides may be
        there; :meth:`idle` in regions of too few points, since their S is too narrow off its own points, but for those
        that are warming up."""
        floor = self.ridge(variances.mean(1, keepdim=True)).clamp_max(self.eps_floor)
        known = self.enough(moments) | ~moments.points(self.warmup)
        return torch.where(known.unsqueeze(1), torch.maximum(variances, floor) / noise, self.idle(variances.mean(1)))


class Pencil(nn.Module):
    r"""S and R of K regions in the basis that they share, and a root L of R, ``R = L L^T``.

    Every method takes rows ``[B, *shape]`` or ``[B, d]`` and ``region`` int64 ``[B]`` (None: K = 1), and returns the
    shape and dtype of its rows; arithmetic is float32, or float64 where rows or pencil are. Differentiable in the rows.
    ``tau``: a number or a tensor ``[]`` or ``[B]``, data standard deviations.

    Buffers: ``deviation`` s and ``l`` ``[K, d]``, and the parts of Q. ``root``: ``"basis"`` is ``L = B``,
    ``"symmetric"`` ``Q diag(s) Q^T``, whose noise does not depend on the choice of Q.
    """

    deviation: Tensor
    l: Tensor

    complete = True
    """Whether Q, s and l are there."""

    def __init__(
        self,
        structure: Structure,
        regions: int,
        root: str,
        dtype: torch.dtype,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.structure, self.regions, self.root = structure, regions, root
        self._allocate(dtype, device)

    def _allocate(self, dtype: torch.dtype, device: torch.device | str | None) -> None:
        """Make the buffers: of S and R the identity."""
        for name in ("deviation", "l"):
            self.register_buffer(name, torch.ones(self.regions, self.structure.dim, dtype=dtype, device=device))
        for name, part in self.structure.start(self.regions).items():
            self.register_buffer(name, part.to(device, dtype))

    def track(self, on: bool = True) -> None:
        """Keep Q, s and l from here on, or do not; for a pencil that need not."""

    def fit(self, state_dict: dict[str, Any], prefix: str) -> None:
        """Raises ValueError where a state is not of this pencil, before any of it is loaded."""

    def _apply(self, fn: Any, recurse: bool = True) -> Pencil:
        keep_dtypes(self, fn)
        return self

    @property
    def basis(self) -> Basis:
        """The parts of Q."""
        return {name: getattr(self, name) for name in self.structure.parts(self.regions)}

    @property
    def like(self) -> Tensor:
        """A tensor of the pencil's dtype and device."""
        return self.deviation

    # -- coordinates ----------------------------------------------------------------------------------------------

    def coordinates(self, v: Tensor, region: Tensor | None = None) -> Tensor:
        """``Q^T v``, ``[B, d]``, at least float32."""
        return self._product(self._flat(v), region, inward=True)

    def inward(self, v: Tensor, region: Tensor | None = None) -> Tensor:
        """``B^-1 v``."""
        return self._product(v, region, inward=True, weights=self.deviation.reciprocal())

    def outward(self, c: Tensor, region: Tensor | None = None) -> Tensor:
        """``B c``."""
        return self._product(c, region, outward=True, weights=self.deviation)

    def dual(self, c: Tensor, region: Tensor | None = None) -> Tensor:
        """``B^-T c``: ``dual(a) . outward(b) = a . b``."""
        return self._product(c, region, outward=True, weights=self.deviation.reciprocal())

    def adjoint(self, v: Tensor, region: Tensor | None = None) -> Tensor:
        """``B^T v``."""
        return self._product(v, region, inward=True, weights=self.deviation)

    def directions(self, c: Tensor, region: Tensor | None = None) -> Tensor:
        """``Q c``: of a unit coordinate, a direction of unit length."""
        return self._product(c, region, outward=True)

    def spread(self, v: Tensor, weights: Tensor, region: Tensor | None = None) -> Tensor:
        """``Q diag(weights) Q^T v``; ``weights`` ``[1 or B, d]``."""
        if len(weights) == 1:
            self._check_rows("weights", weights)
            return self._product(v, region, inward=True, outward=True, weights=weights)
        c = self.coordinates(v, region)
        return self._back(self.directions(weights.to(c.dtype) * c, region), v)

    # -- the noise ------------------------------------------------------------------------------------------------

    def color(
        self, z: Tensor, region: Tensor | None = None, *, transpose: bool = False, inverse: bool = False
    ) -> Tensor:
        """``L z``, ``L^T z``, ``L^-1 z`` or ``L^-T z``."""
        if self.root == "symmetric":
            s = self.deviation.reciprocal() if inverse else self.deviation
            return self._product(z, region, inward=True, outward=True, weights=s)
        if transpose:
            return self.dual(z, region) if inverse else self.adjoint(z, region)
        return self.inward(z, region) if inverse else self.outward(z, region)

    def step(
        self,
        x: Tensor,
        denoised: Tensor | None = None,
        f: Tensor | None = None,
        *,
        c: float | Tensor | None = None,
        a: float | Tensor | None = None,
        b: float | Tensor | None = None,
        region: Tensor | None = None,
        **counters: Any,
    ) -> Tensor:
        """``x + c (D - x) + L (a f + b z)`` (math section 3); arguments as of :func:`ansn.ops.colored_step`."""
        q = self.structure.by_axes(self.basis, x)
        terms = {"c": c, "a": a, "b": b, **counters}
        if q is not None and self.root == "basis" and x.dtype.itemsize >= self.like.dtype.itemsize:
            return ops.separable_step(x, denoised, f, q=q, deviation=self.deviation, region=region, **terms)
        _checks.region(region, x.shape[0], self.regions, x.device)
        return ops.step_by(lambda z: self.color(z, region), x, denoised, f, **terms)

    def log_volume(self) -> Tensor:
        """``ln |det B| = ln |det L|``, float64 ``[K]``."""
        return self.deviation.double().log().sum(1)

    def noise_variances(self) -> Tensor:
        """Variances of R in the basis, ``[K, d]``."""
        return self.deviation.square()

    def noise_shape(self) -> Tensor:
        """R as a matrix, float64 ``[K, d, d]``: for small d."""
        return self.matrix(self.deviation.double().square())

    def noise_diagonal(self) -> Tensor:
        """The diagonal of R, ``[K, d]``."""
        return self.structure.squares(self.noise_variances(), self.basis)

    def largest(self, inverse: bool) -> Tensor:
        """Largest eigenvalue of R or of its inverse, from below, float64 ``[K]``: of the tridiagonal matrix of R in the
        span of ``R^i z``, i < 40, all vectors orthonormal."""
        owner = owners(self.regions, self.like.device)
        new = ops.colored_step(self.like.new_zeros(self.regions, self.structure.dim), b=1.0)
        span: list[Tensor] = []
        images: list[Tensor] = []
        for _ in range(40):
            size = new.norm(dim=1, keepdim=True)
            for _ in range(2 * bool(span)):  # twice is enough
                basis = torch.stack(span, 2)
                new = new - (basis @ (basis.mT @ new.unsqueeze(2))).squeeze(2)
            norm = new.norm(dim=1, keepdim=True)  # of rounding alone where the span is all there is
            span.append(torch.where(norm > 1e-5 * size, new / norm, 0.0))
            new = self.color(span[-1], owner, transpose=not inverse, inverse=inverse)
            new = self.color(new, owner, transpose=inverse, inverse=inverse)
            images.append(new)
        basis, image = torch.stack(span, 2).double(), torch.stack(images, 2).double()
        return torch.linalg.eigvalsh(basis.mT @ image)[:, -1]

    # -- S and R --------------------------------------------------------------------------------------------------

    def variances(self) -> Tensor:
        """Variances of S, as it counts, in the basis, ``[K, d]``."""
        return self.l * self.noise_variances()

    def filter(
        self, v: Tensor, tau: float | Tensor, region: Tensor | None = None, *, center: Tensor | None = None
    ) -> Tensor:
        """The Wiener filter ``S (S + tau^2 R)^-1 v``, which takes ``x~ - m`` to ``E[x | x~] - m`` where the data is
        Gaussian; ``center`` m ``[K, d]``: from ``x~`` to ``E[x | x~]``."""
        if center is not None:
            self._check_rows("center", center)
        if not isinstance(tau, (float, Tensor)):
            tau = torch.as_tensor(tau, dtype=self.l.dtype, device=self.l.device)
        # What is taken away, not what is left: the last digits of v stay right at small tau, where D is close to x~.
        return self._product(v, region, inward=True, outward=True, weights=self.l, tau=tau, center=center, rest=True)

    def start(self, mean: Tensor, tau: float | Tensor, region: Tensor | None = None, **counters: Any) -> Tensor:
        """``N(mean, S + tau^2 R)``, ``mean`` ``[B, d]``: ``mean + Q diag(s sqrt(l + tau^2)) Q^T z``."""
        _checks.region(region, mean.shape[0], self.regions, mean.device)
        level = torch.as_tensor(tau, dtype=self.l.dtype, device=mean.device).reshape(-1, 1)
        weights = self._of(self.deviation, region) * (self._of(self.l, region) + level * level).sqrt()
        z = ops.colored_step(torch.zeros_like(mean), b=1.0, **counters)
        return mean + self.spread(z, weights, region)

    def posterior(self, tau: Tensor, region: Tensor | None = None) -> Tensor:
        """Weights, for :meth:`spread`, of ``V[x | x~] = S - S (S + tau^2 R)^-1 S`` of Gaussian data, float64
        ``[1 or B, d]``; S itself for an infinite tau."""
        l = self._of(self.l, region).double()
        return self._of(self.deviation, region).double().square() * l / (1.0 + l / tau.double().square().unsqueeze(1))

    def one(self, region: int, dtype: torch.dtype) -> Pencil:
        """The pencil of one region, in ``dtype``."""
        out = Pencil(self.structure, 1, "basis", dtype, self.like.device)
        out.install(
            {name: part[region : region + 1] for name, part in self.basis.items()},
            self.noise_variances()[region : region + 1], self.l[region : region + 1],
        )  # fmt: skip
        return out

    def matrix(self, values: Tensor) -> Tensor:
        """``Q diag(values) Q^T``, ``[K, d, d]``: for small d."""
        dim = self.structure.dim
        unit = torch.eye(dim, dtype=values.dtype, device=values.device)
        owner = owners(self.regions, values.device, dim)
        weights = values if owner is None else values[owner]
        return self.spread(unit.repeat(self.regions, 1), weights, owner).unflatten(0, (self.regions, dim))

    # -- remaking -------------------------------------------------------------------------------------------------

    def remake(self, moments: Moments, initial: Tensor, rules: Rules, full: bool) -> tuple[Tensor, Tensor]:
        """Take S of the moments, ``initial`` in regions that are warming up, and the R of it, in place; nothing of it
        where R is not positive definite. ``full``: with the basis.

        Returns whether it was taken, bool ``[]``, and the mean variance of each region, ``[K]``.
        """
        warm = moments.points(rules.warmup)
        basis, variances = self.structure.spectrum(moments, self.basis, full, warm, initial)
        noise = rules.noise(variances)
        l = rules.ratio(variances, floored(noise), moments)
        good = (noise.mean(1) > 0).all() & self.holds(floored(noise).sqrt(), l, moments.mean)
        self.take(basis, variances, noise, moments, rules, good)
        return good, variances.mean(1)

    def holds(self, deviation: Tensor, *others: Tensor) -> Tensor:
        """Whether the snapshot's dtype has numbers, their reciprocals and squares for deviations of the noise, and
        numbers for all else, bool ``[]``; the device knows."""
        dtype = self.like.dtype
        deviation, finite = deviation.to(dtype), (torch.isfinite(v.to(dtype)).all() for v in others)
        good = ((deviation >= torch.finfo(dtype).tiny) & torch.isfinite(deviation.square())).all()
        return torch.stack((good, *finite)).all()

    def take(
        self, basis: Basis, variances: Tensor, noise: Tensor, moments: Moments, rules: Rules, good: Tensor | None = None
    ) -> None:
        """:meth:`install` of S and R by their variances."""
        noise = floored(noise)
        self.install(basis, noise, rules.ratio(variances, noise, moments), good)

    def repair(self, moments: Moments, initial: Tensor, rules: Rules, full: bool) -> Tensor:
        """What to do where :meth:`remake` took nothing: find a larger ridge and return the mean variances ``[K]``, or
        raise InputError naming the region."""
        warm = moments.points(rules.warmup)
        variances = self.structure.spectrum(moments, self.basis, False, warm, initial)[1]
        noise, level = rules.noise(variances), variances.mean(1)
        singular = torch.isfinite(level) & ~(noise.mean(1) > 0)
        if not bool(singular.any()):
            raise InputError(self.beyond(moments, level, noise.mean(1)))
        k = int(singular.nonzero()[0])
        raise InputError(refusal(k, f"smallest variance {float(noise[k].nan_to_num(0.0).min()):.3g}"))

    def beyond(self, moments: Moments, level: Tensor, noise: Tensor) -> str:
        """The line for what the snapshot's dtype has no numbers for; mean variances of S and R, ``[K]``."""
        mean, numbers = moments.mean.abs().amax(1).clamp_min(1.0), torch.finfo(self.like.dtype)
        deviations = level.abs().sqrt().nan_to_num(math.inf), noise.abs().sqrt().nan_to_num(1.0)
        sizes = torch.stack((mean.nan_to_num(math.inf), *deviations)).double().mT.flatten()
        at = int(torch.where(sizes > 0, sizes.log().abs(), 0.0).argmax())
        if numbers.tiny <= float(sizes[at]) <= numbers.max**0.5:
            return (
                f"covariance: got variances of the data over those of the noise that {numbers.dtype} does not hold,"
                " expected a larger eps, or a noise of about the data's size"
            )
        return (
            f"covariance: got a mean or deviation of {float(sizes[at]):.3g} in region {at // 3}, expected sizes of"
            f" {numbers.tiny:.3g} to {numbers.max**0.5:.3g}, which a snapshot in {numbers.dtype} holds; change the unit"
        )

    @torch.no_grad()
    def install(self, basis: Basis, noise: Tensor, l: Tensor, good: Tensor | None = None) -> None:
        """Take over Q, the variances of R and l, in place, where ``good``."""
        self._copy("deviation", noise.clamp_min(0).sqrt(), good)
        self._copy("l", l, good)
        for name, part in basis.items():
            self._copy(name, part, good)

    def _copy(self, name: str, new: Tensor, good: Tensor | None) -> None:
        setattr(self, name, replaced(getattr(self, name), new, good))

    # -- internals ------------------------------------------------------------------------------------------------

    def _of(self, value: Tensor, region: Tensor | None) -> Tensor:
        """A value of each row's region, ``[1 or B, d]``."""
        if region is None:
            return value
        if not torch.compiler.is_compiling():
            _checks.region_values(region, self.regions)
        return value[region]

    def _check_rows(self, name: str, value: Tensor) -> None:
        """Raises TypeError or ValueError unless a caller's value is ``[K or 1, d]``, as kernels take it."""
        _checks.floating(name, value)
        sizes = {(1, self.structure.dim), (self.regions, self.structure.dim)}
        if value.shape not in sizes or value.device != self.like.device:
            expected = f"[{self.regions} or 1, {self.structure.dim}] on {self.like.device}"
            raise ValueError(f"{name}: got {_checks.describe(value)}, expected {expected}")
        _checks.without_gradient(**{name: value})

    def _flat(self, v: Tensor) -> Tensor:
        self.structure.check("v", v)
        flat = v if v.ndim == 2 else v.flatten(1)
        return flat if v.dtype == self.like.dtype else flat.to(torch.promote_types(v.dtype, self.like.dtype))

    def _back(self, out: Tensor, v: Tensor) -> Tensor:
        out = out if out.dtype == v.dtype else out.to(v.dtype)
        return out if v.ndim == 2 else out.reshape(v.shape)

    def _product(
        self,
        v: Tensor,
        region: Tensor | None,
        *,
        inward: bool = False,
        outward: bool = False,
        weights: Tensor | None = None,
        tau: float | Tensor | None = None,
        center: Tensor | None = None,
        rest: bool = False,
    ) -> Tensor:
        """``y = [Q] (w * [Q^T] (v - center))`` or ``v - y``; arguments as of :func:`ansn.ops.separable_apply`."""
        _checks.batched("v", v)
        flat, basis = self._flat(v), self.basis
        if v.device != self.like.device:
            raise ValueError(f"v: got {_checks.describe(v)}, expected the covariance's device, {self.like.device}")
        _checks.region(region, v.shape[0], self.regions, v.device)
        q = self.structure.by_axes(basis, v)
        with uncast(flat):
            if q is not None and not (isinstance(tau, Tensor) and tau.requires_grad):
                owner = None if self.regions == 1 else region
                out = apply_known(flat, q, inward, outward, weights, tau, center, owner, rest)
                return self._back(out, v)
            tau2 = None if tau is None else torch.as_tensor(tau, dtype=flat.dtype, device=v.device).square()

            def turned(rows: Tensor, inverse: bool) -> Tensor:
                return self.structure.turn(rows, basis, region, inverse)

            return self._back(ops.apply_by(turned, flat, center, weights, tau2, region, inward, outward, rest), v)


def replaced(buffer: Tensor, new: Tensor, good: Tensor | None) -> Tensor:
    """A new buffer of a snapshot: ``new`` where ``good``, which the device decides and nobody waits for. Not in place:
    a graph that autograd still needs, of a batch before, keeps the snapshot that it was made of."""
    with torch.inference_mode(False), torch.no_grad():
        new = new.to(buffer.dtype).expand_as(buffer)
        if good is None:
            return new.clone(memory_format=torch.contiguous_format)
        return torch.where(good, new, buffer).contiguous()


def floored(noise: Tensor) -> Tensor:
    """Variances of R ``[K, d]``: rounding can put the smallest of a semidefinite one below 0."""
    return torch.maximum(noise, torch.finfo(noise.dtype).eps * noise.mean(1, keepdim=True))


def uncast(v: Tensor) -> AbstractContextManager[None]:
    """No autocast: a covariance must not pass through bfloat16."""
    kind = v.device.type
    on = kind != "meta" and torch.is_autocast_enabled(kind)  # the meta device has none
    return torch.autocast(kind, enabled=False) if on else nullcontext()


def refusal(k: int, obstacle: str) -> str:
    """The line for a region whose R has no root."""
    return f"eps: got a noise shape of region {k} that is not positive definite ({obstacle}), expected a larger eps"
