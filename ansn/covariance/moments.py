"""Running moments ``(n, m, scatters)`` of K regions: update, merge, reset (math section 1)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ansn import ops
from ansn.ops import _checks

if TYPE_CHECKING:
    from ansn.covariance.structure import Structure

Basis = dict[str, Tensor]
"""The parts of an orthonormal basis, by name; what they mean is the structure's."""

_TINY = torch.finfo(torch.float64).tiny


class Moments(nn.Module):
    """Count, mean and centred scatters of each region, exact and mergeable.

    Buffers: ``weight`` and ``weight2`` float64 ``[K]`` (sums of the weights and of their squares, both n without
    forgetting), ``pseudo`` ``[K]`` (the part of the weight that is a prior's and no row's), ``mean`` ``[K, d]``, and
    what the structure sums: :meth:`Structure.scatters`. Where coordinates are
    gathered in a learned basis, that basis is here too. Two states merge exactly where their bases are one.
    """

    weight: Tensor
    weight2: Tensor
    pseudo: Tensor
    mean: Tensor

    def __init__(
        self,
        structure: Structure,
        regions: int,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.structure, self.regions = structure, regions
        for name in ("weight", "weight2", "pseudo"):
            self.register_buffer(name, torch.zeros(regions, dtype=torch.float64, device=device))
        sizes = {"mean": (regions, structure.dim)} | structure.scatters(regions)
        for name, size in sizes.items():
            self.register_buffer(name, torch.zeros(size, dtype=dtype, device=device))
        for name, value in (structure.start(regions) if structure.oriented else {}).items():
            self.register_buffer(name, value.to(device, dtype))

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        state_dict.setdefault(f"{prefix}pseudo", torch.zeros_like(self.pseudo))  # older states have no prior
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Moments:
        keep_dtypes(self, fn)
        return self

    @property
    def basis(self) -> Basis:
        """The parts of the basis that coordinates are gathered in; none where it is fixed."""
        return {name: getattr(self, name) for name in self.structure.parts(self.regions) if self.structure.oriented}

    @property
    def scatters(self) -> dict[str, Tensor]:
        """What the structure sums, by name."""
        return {name: getattr(self, name) for name in self.structure.scatters(self.regions)}

    @torch.no_grad()
    def update(self, x: Tensor, region: Tensor | None = None, decay: float = 1.0) -> None:
        """Merge the rows of ``x`` ``[B, ...]``, after scaling what is there by ``decay``; ``region`` int64 ``[B]``.

        Raises TypeError or ValueError naming the argument, on the CPU also where x is not finite; the state is then as
        it was.
        """
        self.check(x, region)
        self.structure.update(self, x, region, decay)

    def check(self, x: Tensor, region: Tensor | None) -> None:
        """Raises TypeError or ValueError for rows that do not fit."""
        _checks.batched("x", x)
        self.structure.check("x", x)
        _checks.region(region, x.shape[0], self.regions, x.device)

    def fused(self, x: Tensor, region: Tensor | None, decay: float) -> None:
        """:meth:`update` in one operation, where the one scatter is ``[K, d, d]`` or ``[K, d]``, of the coordinates
        themselves."""
        scatter = self.scatters["scatter"]
        ops.covariance_update_(self.weight, self.weight2, self.mean, scatter, x, region, decay=decay)
        self.pseudo *= decay

    def gather(self, x: Tensor, region: Tensor | None, decay: float) -> None:
        """:meth:`update` in plain torch, for any structure: batch rows less their mean, and one row a region that
        corrects the mean (math section 1)."""
        flat = x.detach().flatten(1)
        _checks.update_values(flat, region, self.regions)
        _checks.summable(flat, self.mean.dtype)
        flat = flat.to(self.mean.dtype)
        if decay != 1.0:
            self.decay_(decay)
        if not len(flat):
            return
        owner, each = None if self.regions == 1 else region, owners(self.regions, x.device)
        rows, batch, away = centred(flat, owner, self.regions)
        delta = torch.where((rows > 0).unsqueeze(1), batch - self.mean, 0.0)
        share = rows / (self.weight + rows).clamp_min(_TINY)
        correction = (self.weight * share).sqrt().to(flat.dtype).unsqueeze(1) * delta
        whole = torch.cat((away, correction))
        whose = None if owner is None or each is None else torch.cat((owner, each))
        self._add(self.structure.scatter(whole, whose, self.regions, self.basis))
        self.mean += share.to(flat.dtype).unsqueeze(1) * delta
        self.weight += rows
        self.weight2 += rows

    def divisor(self) -> Tensor:
        """Unbiased divisor ``W - sum w^2 / W``: n - 1 without forgetting; float64 ``[K]``."""
        return self.weight - self.weight2 / self.weight.clamp_min(_TINY)

    def per_point(self, name: str) -> Tensor:
        """A scatter over the divisor; 0 for a region of fewer than two points."""
        scatter, divisor = getattr(self, name), self.divisor()
        safe = torch.where(divisor > 0, divisor, torch.inf).to(scatter.dtype)
        return scatter / safe.reshape(-1, *(1,) * (scatter.ndim - 1))

    def points(self, count: int) -> Tensor:
        """Regions with at least so many points, bool ``[K]``.

        By the effective number ``W^2 / sum w^2``: n without forgetting, and unlike W it does not fade in a region that
        is not visited for a while.
        """
        return self.weight * self.weight >= count * self.weight2.clamp_min(_TINY)

    @torch.no_grad()
    def decay_(self, factor: float) -> None:
        """Forget: scale the weights by ``factor`` and their squares by its square."""
        self.weight *= factor
        self.pseudo *= factor
        self.weight2 *= factor * factor
        for scatter in self.scatters.values():
            scatter *= factor

    def fits(self, other: Moments) -> None:
        """Raises ValueError unless the other state is of the same structure, shape, regions and dtype."""
        theirs, ours = (
            f"{m.structure.name}, {m.regions} regions of shape {m.structure.shape} in {m.mean.dtype}"
            for m in (other, self)
        )
        if theirs != ours:
            raise ValueError(f"other: got a state of {theirs}, expected {ours}")
        noise, given = (getattr(m.structure, "factor", None) for m in (other, self))
        if noise is not None and given is not None and not torch.equal(noise, given):
            raise ValueError(f"other: got a state of {theirs} with another noise, expected the one that is given here")

    @torch.no_grad()
    def merge(self, other: Moments) -> None:
        """Add what ``other`` gathered (Chan): ``M <- M_a + M_b + n_a n_b / n (m_b - m_a)(m_b - m_a)^T``.

        Exact where both gathered in one basis; else the other's coordinates are carried over to this one's.
        """
        total = self.weight + other.weight
        share = torch.where(total > 0, other.weight / total.clamp_min(_TINY), 0.0)
        delta = other.mean - self.mean
        self.add_scatters(other.scatters, other.basis)
        self.add_between((self.weight * share).sqrt().to(delta.dtype).unsqueeze(1) * delta)
        self.mean += share.to(delta.dtype).unsqueeze(1) * delta
        for name in ("weight", "weight2", "pseudo"):
            getattr(self, name).add_(getattr(other, name))

    def add_scatters(self, scatters: dict[str, Tensor], basis: Basis) -> None:
        """Add scatters that were gathered in another, or the same, basis."""
        if any(not torch.equal(value, basis[name]) for name, value in self.basis.items()):
            scatters = self.structure.carried(scatters, basis, self.basis)
        self._add(scatters)

    def add_between(self, rows: Tensor) -> None:
        """Add one row ``[K, d]`` to each region's scatters: what lies between two means."""
        self._add(self.structure.scatter(rows, owners(self.regions, rows.device), self.regions, self.basis))

    def _add(self, scatters: dict[str, Tensor]) -> None:
        for name, value in scatters.items():
            getattr(self, name).add_(value)

    @torch.no_grad()
    def reset(self, basis: Basis | None = None) -> None:
        """Forget everything, and gather in ``basis`` from here on (by default the one that is there)."""
        for buffer in (self.weight, self.weight2, self.pseudo, self.mean, *self.scatters.values()):
            buffer.zero_()
        self.face(basis or {})

    @torch.no_grad()
    def face(self, basis: Basis) -> None:
        """Take over a basis, in place."""
        for name, value in basis.items():
            getattr(self, name).copy_(value)


def owners(regions: int, device: torch.device, rows: int = 1) -> Tensor | None:
    """The region of each row where every region has so many, one after the other; None for one region."""
    return None if regions == 1 else torch.arange(regions, device=device).repeat_interleave(rows)


def summed(values: Tensor, owner: Tensor | None, regions: int) -> Tensor:
    """Rows summed by region, ``[K, ...]``."""
    if owner is None:
        return values.sum(0, keepdim=True)
    return values.new_zeros(regions, *values.shape[1:]).index_add_(0, owner, values)


def centred(rows: Tensor, owner: Tensor | None, regions: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of each region, float64 ``[K]``, their mean ``[K, d]``, and the rows less their region's mean."""
    count = summed(rows.new_ones(len(rows), dtype=torch.float64), owner, regions)
    mean = summed(rows, owner, regions) / count.clamp_min(1.0).to(rows.dtype).unsqueeze(1)
    return count, mean, rows - (mean if owner is None else mean[owner])


def keep_dtypes(module: nn.Module, fn: Callable[[Tensor], Tensor]) -> None:
    """``nn.Module._apply`` for buffers whose precision is part of their meaning: ``.half()`` moves, never converts
    them."""
    for name, buffer in module._buffers.items():
        if buffer is not None:
            # An empty tensor tells where fn moves things without paying for a conversion.
            target = fn(buffer.new_empty(0)).device
            module._buffers[name] = fn(buffer) if target.type == "meta" else buffer.to(target)
    for child in module.children():
        child._apply(fn)
