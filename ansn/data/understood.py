"""What a data set was taken for, in lines for a person, and a hash of what it holds."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ansn.data.units import Table

if TYPE_CHECKING:
    from ansn.data.dataset import Dataset

_SHOWN = 12  # classes, at most
_WHOLE = 64 << 20  # bytes of rows that are all hashed
_ROWS, _FILES = 4096, 256  # else so many of them


def understood(dataset: Dataset) -> list[str]:
    """See :meth:`Dataset.understood`."""
    units, size = dataset.units, "x".join(map(str, dataset.shape))
    streamed = ", read as they are needed" if dataset.streamed else ""
    named = [str(column) for column in units.columns] if isinstance(units, Table) else []
    if named:
        size = f"{len(named)} columns ({size} numbers a row)"
    lines = [f"{dataset.name}: {len(dataset):,} rows, {dataset.kind} of {size}{_range(dataset)}{streamed}"]
    if named:
        lines.append(f"columns ({len(named)}): {'; '.join(_ends(named, 40))}")
        index = torch.arange(len(dataset))
        known = dataset.known(index)
        if known is not None:
            lines.append(f"rows with missing cells: {int((~known.all(1)).sum()):,} (what is known of them is learned)")
    if dataset.labels is not None and dataset.classes is not None:
        lines.append(classes(dataset.classes, torch.bincount(dataset.labels, minlength=dataset.num_classes).tolist()))
    return [*lines, *dataset.notes]


def classes(names: Sequence[str], counts: Sequence[int]) -> str:
    """Names and numbers of rows, of many classes the first and last."""
    pairs = [f"{name} {count:,}" for name, count in zip(names, counts, strict=True)]
    return f"classes ({len(names)}), rows of each: {', '.join(_ends(pairs, _SHOWN))}"


def fingerprint(dataset: Dataset) -> str:
    """See :meth:`Dataset.fingerprint`."""
    about = (len(dataset), dataset.shape, dataset.kind, dataset.levels, dataset.dequantise, dataset.classes)
    digest = hashlib.sha256(repr(about).encode())
    digest.update(repr(None if dataset.units is None else dataset.units.to_json()).encode())
    rows, parts = dataset.rows, [dataset.labels]
    if isinstance(rows, Tensor):
        most = len(rows) if rows.nbytes <= _WHOLE else _ROWS
        parts.append(rows if most == len(rows) else rows[_even(len(rows), most).to(rows.device)])
    else:
        parts.append(rows.take(_even(len(rows), _FILES)))
    for part in parts:
        if part is not None:
            digest.update(f"{part.dtype}{list(part.shape)}".encode())
            digest.update(part.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _even(n: int, most: int) -> Tensor:
    """At most ``most`` places of n, from the first to the last."""
    return torch.linspace(0, n - 1, min(n, most), dtype=torch.float64).round().long()


def _range(dataset: Dataset) -> str:
    rows = dataset.rows
    if dataset.kind == "table" or not isinstance(rows, Tensor):
        return ""
    low, high = (v.item() for v in torch.aminmax(rows))
    if dataset.kind == "field":
        first = dataset.to_data_units(dataset.rows[_even(len(dataset), _ROWS)].cpu())  # type: ignore[index]
        low, high = (v.item() for v in torch.aminmax(first))
    full = (0, None if dataset.levels is None else dataset.levels - 1)
    of = "" if dataset.levels is None or (low, high) == full else f" of 0 to {full[1]}"
    grey = "grey " if dataset.kind == "image" and dataset.shape[0] == 1 else ""
    return f", {grey}values {low:.6g} to {high:.6g}{of}"


def _ends(words: Sequence[str], most: int) -> list[str]:
    """All words, or the first and last with a gap between."""
    return list(words) if len(words) <= most else [*words[: most // 2], "...", *words[-most // 2 :]]
