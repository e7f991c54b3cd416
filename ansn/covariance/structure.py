"""What a structure of a covariance is: how second moments are kept, and the eigenbasis that they give."""

from __future__ import annotations

import abc
import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from ansn import ops
from ansn.covariance.moments import Basis, Moments, owners, summed
from ansn.covariance.pencil import Pencil
from ansn.machine import available_memory

STRUCTURES: dict[str, type[Structure]] = {}
"""By name. To add one, write its class in a file and decorate it with :func:`register`."""


def register(cls: type[Structure]) -> type[Structure]:
    """Make a structure known under its ``name``: to ``AdaptiveCovariance``, ``auto``, the commands and the tests."""
    STRUCTURES[cls.name] = cls
    return cls


class Structure(abc.ABC):
    r"""A family of covariances ``S = Q diag(lambda) Q^T`` of data of one shape, K of them at a time.

    A fixed orthonormal basis needs :meth:`turn` alone: the rest of this class then keeps ``lambda`` as the scatter of
    the coordinates ``Q^T (x - m)``. A learned one also says what its basis is made of (:meth:`parts`) and how it is
    found: from its scatters at each remaking (:meth:`spectrum`), or where coordinates are gathered in it
    (``oriented``) by :meth:`orient` and :meth:`reorient`.

    Attributes: ``name``, ``summary`` (for ``--help``), ``roots`` of R that it has, the first its default; ``oriented``:
    the moments hold coordinates in a basis that is learned; ``directed``: its basis has directions worth a picture;
    ``shape``, ``dim`` of the data.

    Raises ValueError for a shape that it cannot have.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    roots: ClassVar[tuple[str, ...]] = ("basis", "symmetric")
    pencil: ClassVar[type[Pencil]] = Pencil
    oriented = False
    directed: ClassVar[bool] = True

    def __init__(self, shape: Sequence[int]) -> None:
        self.shape = tuple(shape)
        self.dim = math.prod(self.shape)

    @abc.abstractmethod
    def turn(self, v: Tensor, basis: Basis, region: Tensor | None, inverse: bool) -> Tensor:
        """``Q v``, with ``inverse`` ``Q^T v``, row by row, ``[B, d]``, float32 or float64; ``region`` int64 ``[B]`` or
        None."""

    def by_axes(self, basis: Basis, like: Tensor) -> ops.Axes | None:
        """Q as a product of one matrix an axis, where it is one, on the device of ``like``: what the kernels of
        :mod:`ansn.ops.separable` take."""
        return None

    def turn_all(self, v: Tensor, basis: Basis, inverse: bool) -> Tensor:
        """:meth:`turn` of rows ``[K, B, d]``, B of each region; a batched product replaces this."""
        owner = owners(len(v), v.device, v.shape[1])
        return self.turn(v.flatten(0, 1), basis, owner, inverse).reshape(v.shape)

    def points(self) -> int:
        """Points from which S is worth a filter: with as many the error of denoising Gaussian data is within 1.2 of
        the best of this structure at every level (tests/properties/test_wiener.py)."""
        return 16

    def check(self, name: str, v: Tensor) -> None:
        """Raises ValueError unless rows are ``[B, *shape]`` or ``[B, d]``."""
        if v.shape[1:] not in (self.shape, (self.dim,)):
            raise ValueError(f"{name}: got shape {list(v.shape)}, expected [B, {', '.join(map(str, self.shape))}]")

    # -- the basis ------------------------------------------------------------------------------------------------

    def parts(self, regions: int) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the tensors that the basis is made of; none where it is fixed."""
        return {}

    def start(self, regions: int) -> Basis:
        """The basis before any data, new tensors, float64."""
        return {}

    def squares(self, values: Tensor, basis: Basis) -> Tensor:
        """``sum_j Q_ij^2 values_j``, the diagonal of ``Q diag(values) Q^T``, ``[K, d]``."""
        out = torch.empty_like(values)
        step = max(1, 2**24 // self.dim)
        for first in range(0, self.dim, step):
            rows = range(first, min(first + step, self.dim))
            unit = torch.zeros(len(rows), self.dim, dtype=values.dtype, device=values.device)
            unit[range(len(rows)), rows] = 1.0
            for k in range(len(values)):
                owner = torch.full((len(rows),), k, device=values.device) if len(values) > 1 else None
                out[k, rows[0] : rows[-1] + 1] = self.turn(unit, basis, owner, True).square() @ values[k]
        return out

    # -- the moments ----------------------------------------------------------------------------------------------

    def scatters(self, regions: int) -> dict[str, tuple[int, ...]]:
        """Names and shapes of what is summed over rows; by default the squares of the coordinates."""
        return {"scatter": (regions, self.dim)}

    def scatter(self, rows: Tensor, owner: Tensor | None, regions: int, basis: Basis) -> dict[str, Tensor]:
        """What centred ``rows`` ``[b, d]`` of regions ``owner`` int64 ``[b]`` (None: K = 1) add to the scatters."""
        return {"scatter": summed(self.turn(rows, basis, owner, True).square(), owner, regions)}

    def update(self, moments: Moments, x: Tensor, region: Tensor | None, decay: float) -> None:
        """Merge the rows of ``x``. A structure by axes that sums more than the squares of the coordinates and
        :meth:`axis_scatters` replaces this, as does one with a kernel of its own."""
        q = self.by_axes(moments.basis, moments.mean)
        if q is None:
            return moments.gather(x, region, decay)
        state = moments.weight, moments.weight2, moments.mean, moments.scatters["scatter"]
        ops.separable_update_(*state, self.axis_scatters(moments), x, q, region, decay=decay)
        moments.pseudo *= decay

    def axis_scatters(self, moments: Moments) -> list[Tensor]:
        """The second moments along each axis of :meth:`by_axes`, ``[K, n, n]``; none where no basis is learned."""
        return []

    def spectrum(
        self, moments: Moments, basis: Basis, full: bool, warm: Tensor, initial: Tensor
    ) -> tuple[Basis, Tensor]:
        """Q and ``lambda >= 0`` ``[K, d]`` of the moments' S, of ``initial`` in regions that are not ``warm``, bool
        ``[K]``; in the state's dtype. Unless ``full``, Q stays ``basis`` and ``lambda`` are the variances in it."""
        return moments.basis, torch.where(warm.unsqueeze(1), moments.per_point("scatter"), initial)

    def initial(self, value: Tensor) -> Tensor:
        """A guess of S, a variance, ``[d]`` or ``[d, d]``, as :meth:`spectrum` takes it. Raises ValueError naming
        ``initial``."""
        dim = self.dim
        if value.ndim and value.shape not in ((dim,), (dim, dim)):
            raise ValueError(f"initial: got shape {list(value.shape)}, expected a number, [{dim}] or [{dim}, {dim}]")
        variances = value if value.ndim < 2 else value.diagonal()
        if not bool((variances > 0).all()) or not bool(torch.isfinite(value).all()):
            raise ValueError(
                "initial: got a variance that is not positive and finite, expected a positive definite guess"
            )
        return self.guess(value)

    def guess(self, value: Tensor) -> Tensor:
        """A checked guess of S in this structure."""
        if value.ndim:
            raise ValueError(f"initial: got shape {list(value.shape)}, expected a number for a {self.name} structure")
        return value.expand(self.dim).clone()

    def covariance(self, moments: Moments, warm: Tensor, initial: Tensor) -> Tensor:
        """S as a matrix ``[K, d, d]``: for small d."""
        basis, variances = self.spectrum(moments, self.start(moments.regions), True, warm, initial)
        made = Pencil(self, moments.regions, "basis", variances.dtype, variances.device)
        made.install(basis, variances, variances)
        return made.matrix(variances)

    def orient(self, moments: Moments, x: Tensor, region: Tensor | None) -> None:  # noqa: B027 - a fixed one needs none
        """Find a first basis in rows ``[B, d]`` that do not count; for a structure that is ``oriented``."""

    def reorient(self, moments: Moments) -> None:  # noqa: B027
        """Find the basis anew in the moments, and carry the coordinates' scatter over to it."""

    def carried(self, scatters: dict[str, Tensor], before: Basis, after: Basis) -> dict[str, Tensor]:
        """Scatters gathered in one basis as they would be in another; for a structure that is ``oriented``."""
        return scatters

    # -- memory ---------------------------------------------------------------------------------------------------

    def bytes(self, regions: int, state: torch.dtype, snapshot: torch.dtype) -> int:
        """Bytes of state and snapshot, and of a refresh: about six temporaries of each part in the state's dtype."""
        kept = sum(map(math.prod, (*self.scatters(regions).values(), *self.parts(regions).values())))
        return kept * (7 * state.itemsize + snapshot.itemsize) + 4 * regions * self.dim * snapshot.itemsize


def by_region(rows: Tensor, owner: Tensor | None, regions: int) -> tuple[Tensor, ...]:
    """The rows of each region; a GPU is waited for where there are several."""
    if owner is None:
        return (rows,)
    return rows[owner.argsort(stable=True)].split(torch.bincount(owner, minlength=regions).tolist())


def eigh(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, rising, and eigenvectors of symmetric ``[..., n, n]``; NaN and the identity where a matrix is not
    finite, since a decomposition would raise before anybody can say what is wrong."""
    finite = torch.isfinite(matrices).all(-1).all(-1)
    values, vectors = torch.linalg.eigh(matrices.masked_fill(~finite[..., None, None], 0.0))
    return torch.where(finite.unsqueeze(-1), values, torch.nan), vectors


def refuse_what_cannot_fit(
    structure: Structure,
    regions: int,
    dtypes: tuple[torch.dtype, torch.dtype],
    device: torch.device | str | None,
    limit: int | None,
) -> None:
    """Raises MemoryError, one line with the sizes and the structures that fit; ``dtypes`` of state and snapshot."""
    where = torch.device(device or "cpu")
    if limit is None:
        limit = torch.cuda.mem_get_info(where)[0] if where.type == "cuda" else available_memory()
    size = structure.bytes(regions, *dtypes)
    if size > limit:
        sizes = {name: kind(structure.shape).bytes(regions, *dtypes) for name, kind in STRUCTURES.items()}
        fits = [f"{name} ({_gib(size)})" for name, size in sizes.items() if size <= limit]
        raise MemoryError(
            f"structure: got {structure.name!r} of {regions} x {structure.dim} coordinates, which takes"
            f" {_gib(size)} ({size} bytes), expected at most {_gib(limit)};"
            f" structures that fit: {', '.join(fits) or 'none'}"
        )


def _gib(size: int) -> str:
    return f"{size / 2**30:.3g} GiB"
