"""The data set: rows held as bytes (or streamed from files), and its batches as a function of (seed, step).

The stream of training examples is numbered: position p = step * batch_size + row of the global batch. What
comes at p (which row, its dequantisation noise, its flip) depends on (seed, p) alone, so neither the batch
size, the number of processes nor an interruption changes it.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from ansn.data import streams
from ansn.data.missing import completions
from ansn.data.understood import fingerprint, understood
from ansn.data.units import Affine, Table, spread

DRAWS = 8
"""Draws of what is not known of a row."""


@runtime_checkable
class StreamedRows(Protocol):
    """Image rows too big for memory, decoded when asked for (`ansn.data.folder.ImageFiles`)."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every row."""

    def __len__(self) -> int: ...

    def take(self, index: Tensor) -> Tensor:
        """uint8 [B, C, H, W] of the rows ``index``, int64 [B]."""

    def select(self, index: Tensor) -> StreamedRows:
        """The rows ``index`` only, in that order."""

    def stream(self, batches: Iterator[Tensor], pin_memory: bool) -> Iterator[Tensor]:
        """``take`` of every batch in order, decoded ahead by workers."""


class Dataset:
    """Rows, labels and what a model must know of them.

    Args:
        rows: uint8 or float32 images [N, C, H, W] (floats in [0, 1]), float32 tables [N, d] (NaN: not known), float32
            fields: lines [N, C, L], maps [N, C, H, W] or volumes [N, C, D, H, W], or `StreamedRows`.
        name: what messages and reports call it.
        kind: "image", "table" or "field"; by default as the shape has it, [N, C, H, W] an image.
        units: between the rows and the file's numbers, see `ansn.data.units`; by default they are the same.
        labels: int64 [N] in 0..num_classes-1, or None.
        num_classes: at least max(labels) + 1, the default.
        classes: names of the classes, num_classes of them; by default their numbers.
        notes: sentences on what was understood, guessed or left out when the data was read.
        levels: grey values v = 0..levels-1 that a uint8 image holds (256; 17 for the digits).
        dequantise: return (v + u) / levels, u uniform in [0, 1), in place of v / (levels - 1).
        flip: mirror each image left to right with probability 1/2.

    Attributes: those above, and
        shape: (C, H, W), (d,), (C, L) or (C, D, H, W) of one row.
        columns: names of a table's columns, of the file, without the label's; else None.
        quantisation: variance of the rounding to grey levels in the units of the returned floats:
            1/(12 (levels-1)^2), with dequantise 1/(12 levels^2); 0 for continuous data.
        device: where batches come out.
        streamed: whether rows are decoded on the way (True) or held in memory.

    Raises: TypeError or ValueError naming the argument that does not fit.
    """

    def __init__(
        self,
        rows: Tensor | StreamedRows,
        *,
        name: str = "data",
        kind: str | None = None,
        units: Affine | Table | None = None,
        labels: Tensor | None = None,
        num_classes: int | None = None,
        classes: Sequence[str] | None = None,
        notes: Sequence[str] = (),
        levels: int = 256,
        dequantise: bool = False,
        flip: bool = False,
    ) -> None:
        self.kind = {2: "table", 4: "image"}.get(getattr(rows, "ndim", 4), "field") if kind is None else kind
        if isinstance(rows, Tensor):
            _check_rows(rows, levels, self.kind)
            self.shape: tuple[int, ...] = tuple(rows.shape[1:])
            quantised = rows.dtype == torch.uint8
        else:
            self.shape, quantised = tuple(rows.shape), True
        if len(rows) == 0:
            raise ValueError(f"rows: got none of {name}, expected at least one")
        self.rows = rows
        self.name = name
        self.streamed = not isinstance(rows, Tensor)
        self.device = rows.device if isinstance(rows, Tensor) else torch.device("cpu")
        self.levels = levels if quantised else None
        if dequantise and not quantised:
            raise ValueError(f"dequantise: got True for {name}, which is continuous, expected 8-bit images")
        if flip and self.kind != "image":
            raise ValueError(f"flip: got True for {name}, which holds {self.kind}s, expected images")
        self.dequantise, self.flip = dequantise, flip

        self.labels = labels
        self.num_classes = 0
        if labels is not None:
            self.num_classes = _check_labels(labels, len(rows), num_classes)
        names = map(str, range(self.num_classes)) if classes is None else classes
        self.classes = None if labels is None else tuple(names)
        if self.classes is not None and len(self.classes) != self.num_classes:
            raise ValueError(f"classes: got {len(self.classes)} names, expected num_classes = {self.num_classes}")

        if units is None and self.kind == "table":
            units = Table.plain([f"x{j}" for j in range(self.shape[0])])
        if units is not None and tuple(units.shape) != self.shape:
            raise ValueError(f"units: got those of rows {list(units.shape)}, expected {list(self.shape)}")
        self.units, self.notes = units, tuple(notes)
        self.columns = units.names if isinstance(units, Table) else None
        self._holes: tuple[Tensor, Tensor] | None = None  # place of each row among the incomplete ones, their draws
        if self.kind == "table" and isinstance(rows, Tensor) and bool(rows.isnan().any()):
            incomplete = rows.isnan().any(1)
            place = torch.where(incomplete, incomplete.cumsum(0) - 1, -1)
            draws = completions(rows, DRAWS)
            assert units is not None  # of a table they always are
            valid = units.encode(units.decode(draws.flatten(0, 1)))  # whole numbers, words
            self._holes = place, valid.view(draws.shape)

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        size = "x".join(map(str, self.shape))
        labels = f", {self.num_classes} classes" if self.num_classes else ""
        streamed = ", streamed" if self.streamed else ""
        return f"Dataset({self.name}: {len(self)} rows, {self.kind} of {size}{labels}{streamed})"

    @property
    def quantisation(self) -> float:
        if self.levels is None:
            return 0.0
        return 1 / (12 * (self.levels if self.dequantise else self.levels - 1) ** 2)

    def to(self, device: torch.device | str) -> Dataset:
        """The same data with batches on ``device``; rows move there once, as stored, if it has room for them.

        Room on a GPU means half of its free memory; otherwise (and when streaming) each batch is copied as
        bytes.
        """
        moved = copy.copy(self)
        moved.device = torch.device(device)
        if isinstance(self.rows, Tensor):
            if moved.device.type == "cuda":
                free, _ = torch.cuda.mem_get_info(moved.device)
                fits = self.rows.device.type == "cuda" or self.rows.nbytes <= free // 2
            else:
                fits = True
            moved.rows = self.rows.to(moved.device) if fits else self.rows
        if self.labels is not None:
            moved.labels = self.labels.to(moved.device)
        if self._holes is not None and isinstance(moved.rows, Tensor):
            place, draws = self._holes
            moved._holes = place.to(moved.rows.device), draws.to(moved.rows.device)
        return moved

    def select(self, index: Tensor) -> Dataset:
        """The rows ``index``, int64 [M], as a data set of their own with the same options and classes."""
        index = self._checked(index)
        if len(index) == 0:
            raise ValueError("index: got no rows, expected at least one row")
        part = copy.copy(self)
        part.rows = self.rows[index.to(self.rows.device)] if isinstance(self.rows, Tensor) else self.rows.select(index)
        if self.labels is not None:
            part.labels = self.labels[index.to(self.labels.device)]
        if self._holes is not None:
            part._holes = self._holes[0][index.to(self._holes[0].device)], self._holes[1]
        return part

    def order(self, seed: int, epoch: int) -> Tensor:
        """Permutation of the rows, int64 [N]: a function of (N, seed, epoch)."""
        return torch.from_numpy(streams.permutation(len(self), seed, epoch).copy())

    def batch_indices(self, step: int, batch_size: int, seed: int) -> Tensor:
        """Rows of global batch ``step``, int64 [batch_size]: `order` of epochs 0, 1, ... end to end, cut in
        batches.

        Batches run on across the end of an epoch, so batch_size may exceed N.
        """
        return torch.from_numpy(streams.batch_indices(len(self), step, batch_size, seed))

    def batch(self, index: Tensor, *, seed: int = 0, position: int = 0) -> tuple[Tensor, Tensor | None]:
        """Rows ``index``, int64 [B]: (x float32 [B, *shape], labels int64 [B] or None), on `device`.

        Images are in [0, 1]. Row i's dequantisation, flip and numbers that are not known (drawn by the Gaussian of what
        is, `ansn.data.missing`) are functions of (seed, position + i), where
        ``position`` is step * batch_size + the first row's place in the global batch.
        IndexError if an index is out of range.
        """
        index = self._checked(index)
        if isinstance(self.rows, Tensor):
            raw = self.rows[index.to(self.rows.device)]
        else:
            raw = self.rows.take(index)
        return self._finish(raw, index, seed, position)

    @property
    def complete(self) -> bool:
        """Whether every number of every row is known."""
        return self._holes is None

    def known(self, index: Tensor) -> Tensor | None:
        """Which numbers of the rows ``index`` are known, bool [B, d], on `device`; None where all are."""
        if self._holes is None or not isinstance(self.rows, Tensor):
            return None
        return ~self.rows[self._checked(index).to(self.rows.device)].isnan().to(self.device)

    def to_data_units(self, x: Tensor) -> Tensor:
        """Samples in the units of the file: of tables float64 [n, columns] and of fields float64 [n, *shape], see
        `ansn.data.units`; images as they are.

        ValueError if x is not [n, *shape].
        """
        return x if self.units is None else self.units.decode(x)

    def understood(self) -> list[str]:
        """What the data was taken for, a line each, for a person."""
        return understood(self)

    def fingerprint(self) -> str:
        """A hash of what the rows hold: of all where they take up to 64 MiB, else of 4,096 (256 where they are decoded
        from files) that are always the same; of labels and classes, the number of rows and how they become floats."""
        return fingerprint(self)

    def _checked(self, index: Tensor) -> Tensor:
        if index.ndim != 1 or index.dtype != torch.int64:
            raise TypeError(f"index: got {index.dtype} of shape {list(index.shape)}, expected int64 [B]")
        # Only where it costs no wait: on a GPU the indexing itself asserts.
        if index.device.type == "cpu" and len(index) and not 0 <= int(index.min()) <= int(index.max()) < len(self):
            raise IndexError(f"index: got {int(index.min())}..{int(index.max())}, expected 0..{len(self) - 1}")
        return index

    def _finish(self, raw: Tensor, index: Tensor, seed: int, position: int) -> tuple[Tensor, Tensor | None]:
        """Stored rows [B, *shape] to floats; random draws are made on the CPU and move as small integers."""
        raw = raw.to(self.device, non_blocking=True)
        count, size = len(raw), raw[0].numel() if len(raw) else 0
        if self.flip and count:
            coins = (streams.words(seed, streams.FLIP, count, first=position) & np.uint64(1)).astype(np.bool_)
            mirror = torch.from_numpy(coins).to(self.device, non_blocking=True)
            raw = torch.where(mirror.view(-1, 1, 1, 1), raw.flip(-1), raw)
        x = raw.to(torch.float32)
        if self._holes is not None and count:
            x = self._completed(x, index, seed, position)
        grain = None if self.units is None else self.units.grain
        if grain is not None and count:
            x = x + spread(grain, count, seed, position).to(self.device)
        if self.levels is not None and self.dequantise and count:
            # 16 bits a value, four values a word: v + u is then exact in float32 and below v + 1.
            each = -(-size // 4)
            noise = streams.words(seed, streams.DEQUANTISE, count * each, first=position * each)
            lanes = noise.astype("<u8", copy=False).view("<i2").reshape(count, 4 * each)[:, :size]
            u = torch.from_numpy(np.ascontiguousarray(lanes)).to(self.device, non_blocking=True)
            x = (x + (u.to(torch.float32) + 32768).mul_(2.0**-16).view_as(x)).div_(self.levels)
        elif self.levels is not None:
            x = x.div_(self.levels - 1)
        labels = None if self.labels is None else self.labels[index.to(self.labels.device)]
        return x, labels

    def _completed(self, x: Tensor, index: Tensor, seed: int, position: int) -> Tensor:
        """Rows with one of the draws of what is not known."""
        assert self._holes is not None
        place, draws = self._holes
        at = place[index.to(place.device)]
        which = streams.words(seed, streams.MISSING, len(x), first=position) % np.uint64(draws.shape[1])
        chosen = draws[at, torch.from_numpy(which.astype(np.int64)).to(draws.device)].to(x.device)
        return torch.where(x.isnan(), chosen, x)


def iterate(
    dataset: Dataset,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    rank: int = 0,
    world: int = 1,
    stop_step: int | None = None,
) -> Iterator[tuple[int, Tensor, Tensor | None]]:
    """(step, x, labels) for step = start_step, start_step + 1, ..., to before stop_step or for ever.

    batch_size is the global batch; of it, this rank gets rows rank*b .. (rank+1)*b - 1, b = batch_size /
    world: the ranks' batches end to end are exactly what one process gets. Resuming needs start_step alone.
    ValueError if batch_size does not divide by world, or rank, start_step or seed is out of range.
    """
    if world < 1 or not 0 <= rank < world:
        raise ValueError(f"rank: got {rank} of world {world}, expected 0 <= rank < world")
    if batch_size < 1 or batch_size % world:
        raise ValueError(f"batch_size: got {batch_size}, expected a positive multiple of world = {world}")
    if start_step < 0:
        raise ValueError(f"start_step: got {start_step}, expected 0 or more")
    streams.check_seed(seed)
    return _batches(dataset, batch_size, seed, start_step, rank, world, stop_step)


def _batches(
    dataset: Dataset,
    batch_size: int,
    seed: int,
    start_step: int,
    rank: int,
    world: int,
    stop_step: int | None,
) -> Iterator[tuple[int, Tensor, Tensor | None]]:
    local = batch_size // world

    def indices(step: int) -> Tensor:
        return dataset.batch_indices(step, batch_size, seed)[rank * local : (rank + 1) * local]

    def steps() -> Iterator[int]:
        return itertools.count(start_step) if stop_step is None else iter(range(start_step, stop_step))

    if isinstance(dataset.rows, Tensor):
        for step in steps():
            x, labels = dataset.batch(indices(step), seed=seed, position=step * batch_size + rank * local)
            yield step, x, labels
    else:
        ahead = dataset.rows.stream(map(indices, steps()), pin_memory=dataset.device.type == "cuda")
        for step, raw in zip(steps(), ahead, strict=False):
            x, labels = dataset._finish(raw, indices(step), seed, step * batch_size + rank * local)
            yield step, x, labels


def _check_rows(rows: Tensor, levels: int, kind: str) -> None:
    fits = {"image": (4,), "table": (2,), "field": (3, 4, 5)}
    if kind not in fits:
        raise ValueError(f"kind: got {kind!r}, expected image, table or field")
    if rows.ndim not in (2, 3, 4, 5) or rows.dtype not in (torch.uint8, torch.float32) or 0 in rows.shape[1:]:
        raise TypeError(
            f"rows: got {rows.dtype} of shape {list(rows.shape)}, expected uint8 or float32 [N, C, H, W], or float32 "
            "[N, d], [N, C, L] or [N, C, D, H, W], none of them 0"
        )
    if rows.ndim not in fits[kind]:
        raise TypeError(f"rows: got shape {list(rows.shape)} for {kind}s, expected another number of axes")
    if kind != "image" and rows.dtype == torch.uint8:
        raise TypeError(f"rows: got uint8 of shape {list(rows.shape)}, expected float32, as all but images are")
    if not 2 <= levels <= 256:
        raise ValueError(f"levels: got {levels}, expected 2 to 256")
    if len(rows) == 0:
        return  # reported by name
    if rows.dtype == torch.uint8:
        if int(rows.max()) >= levels:
            raise ValueError(f"rows: got the value {int(rows.max())}, expected less than levels = {levels}")
    else:
        # Of a table NaN is what is not known.
        seen = rows.nan_to_num(0.0, math.inf, -math.inf) if kind == "table" else rows
        low, high = (float(v) for v in torch.aminmax(seen))  # of NaN NaN
        if not np.isfinite(low + high):
            raise ValueError("rows: got NaN or infinite values, expected finite ones")
        if kind == "image" and not 0 <= low <= high <= 1:
            raise ValueError(f"rows: got image values from {low:g} to {high:g}, expected [0, 1]")


def _check_labels(labels: Tensor, count: int, num_classes: int | None) -> int:
    if labels.dtype != torch.int64 or labels.shape != (count,):
        raise TypeError(f"labels: got {labels.dtype} of shape {list(labels.shape)}, expected int64 [{count}]")
    low, high = int(labels.min()), int(labels.max())
    classes = high + 1 if num_classes is None else num_classes
    if low < 0 or high >= classes:
        raise ValueError(f"labels: got {low}..{high}, expected 0..{classes - 1}")
    return classes
