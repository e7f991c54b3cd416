"""The unfinished output of a long draw: a folder ``OUT.part`` of rows, of what they are, and of which are there.

Rows count once they are on the disk: a journal says so, one for each process, replaced atomically after the data was
flushed, with a checksum of what was written. So what a killed process leaves is complete up to its last entry, and any
later process, or number of them, draws the rest, and what a disk spoilt.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import warnings
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ansn import schema
from ansn.errors import InputError
from ansn.files import write_atomic

_SETTINGS, _DATA = "settings.json", ("rows.npy", "images")
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_BLOCK = 256
"""Rows that one checksum is of, about: what is drawn again where one byte is wrong."""


class Rows(Protocol):
    """Where the rows of a part lie."""

    def write(self, row: int, values: NDArray[Any], crc: int) -> int:
        """Put rows ``row ..`` ``[b, *shape]`` in their places. Returns ``crc``, CRC-32 of what lies before, taken on
        over them."""

    def flush(self) -> None:
        """What was written survives this process, and where the file can promise it a power cut."""

    def checksum(self, start: int, stop: int) -> int | None:
        """CRC-32 of the rows ``start .. stop - 1`` as they lie on the disk; None where some are missing."""

    def close(self) -> None:
        """Release what is open."""


class RowFile:
    """One ``.npy`` of its final size, each row in its place from the start; it can be mapped into memory.

    Written with ``pwrite``, not through a map: a full disk is then an error that can be told, and pages that were
    written do not count as this process's memory. ``new``: make it; else it is only read, as it is.
    """

    def __init__(self, path: Path, n: int, shape: Sequence[int], dtype: str, *, new: bool = True) -> None:
        self.dtype = np.dtype(dtype)
        self.stride = int(np.prod(shape, dtype=np.int64)) * self.dtype.itemsize
        header = io.BytesIO()
        form = {"descr": self.dtype.str, "fortran_order": False, "shape": (n, *shape)}
        np.lib.format.write_array_header_1_0(header, form)
        self.start = len(header.getvalue())
        self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT | _NO_LINK if new else os.O_RDONLY, 0o666)
        if not new:
            return
        # All the room that it needs, or the error now; of a file that is there, what a disk spoilt of it.
        os.truncate(self.descriptor, self.start + n * self.stride)
        os.posix_fallocate(self.descriptor, 0, self.start + n * self.stride)
        os.pwrite(self.descriptor, header.getvalue(), 0)

    def write(self, row: int, values: NDArray[Any], crc: int) -> int:
        data = memoryview(np.ascontiguousarray(values, self.dtype).reshape(-1).view(np.uint8).data)
        offset, crc = self.start + row * self.stride, zlib.crc32(data, crc)
        while data:
            written = os.pwrite(self.descriptor, data, offset)
            data, offset = data[written:], offset + written
        return crc

    def flush(self) -> None:
        os.fsync(self.descriptor)

    def checksum(self, start: int, stop: int) -> int | None:
        crc, step = 0, max(2**20 // max(self.stride, 1), 1)
        for row in range(start, stop, step):
            rows = min(step, stop - row)
            data = os.pread(self.descriptor, rows * self.stride, self.start + row * self.stride)
            if len(data) < rows * self.stride:
                return None
            crc = zlib.crc32(data, crc)
        return crc

    def close(self) -> None:
        os.close(self.descriptor)


class PngFolder:
    """One PNG for each row, ``000000.png`` and on: uint8 images ``[1 or 3, H, W]``."""

    def __init__(self, path: Path, n: int) -> None:
        self.path, self.width = path, max(6, len(str(n - 1)))
        path.mkdir(exist_ok=True)

    def _name(self, row: int) -> Path:
        return self.path / f"{row:0{self.width}d}.png"

    def write(self, row: int, values: NDArray[Any], crc: int) -> int:
        from PIL import Image  # slow to import: only when used

        for i, image in enumerate(values):
            file = io.BytesIO()
            Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).save(file, "png")
            with open(self._name(row + i), "wb", opener=_not_a_link) as written:
                written.write(file.getvalue())
            crc = zlib.crc32(file.getvalue(), crc)
        return crc

    def flush(self) -> None:
        """Nothing: a file that a power cut spoilt is found by its checksum, and to flush each costs more than it."""

    def checksum(self, start: int, stop: int) -> int | None:
        crc = 0
        for row in range(start, stop):
            try:
                crc = zlib.crc32(self._name(row).read_bytes(), crc)
            except OSError:
                return None
        return crc

    def close(self) -> None:
        pass


Block = tuple[int, int, int]
"""Rows ``start .. stop - 1`` and their checksum."""


class Part:
    """The folder ``OUT.part``. ``images``: PNG files, else one file of rows ``[n, *shape]`` of ``dtype``.

    :meth:`prepare` makes it or checks it, in one process; :meth:`open` then joins it, in all of them.
    """

    def __init__(self, out: Path, n: int, shape: Sequence[int], dtype: str, *, images: bool, rank: int = 0) -> None:
        self.out, self.folder, self.n, self.rank = out, out.with_name(f"{out.name}.part"), n, rank
        self.shape, self.dtype, self.images = tuple(shape), dtype, images
        self.blocks: list[Block] = []
        self.data = self.folder / _DATA[images]
        self.rows: Rows | None = None

    def prepare(self, settings: Mapping[str, Any], *, resume: bool) -> None:
        """Make the folder, or find one of the same settings. Raises InputError, one line, for other settings; OSError
        for what the disk refuses, with nothing left behind."""
        wanted = _plain(settings)
        known = self._known()
        if known is not None and resume:
            changed = [
                f"{k}: {known.get(k)} -> {wanted.get(k)}" for k in wanted | known if known.get(k) != wanted.get(k)
            ]
            if changed:
                raise InputError(
                    f"--out: got {self.folder}, an unfinished draw of other settings ({'; '.join(changed)}), expected"
                    " the same; finish that one, give another --out, or --no-resume to start over"
                )
            self._gather()
            return
        self._discard()
        self.folder.mkdir(parents=True)
        try:
            self._data(self.data).close()
            # Last: a folder without it was never begun.
            write_atomic(self.folder / _SETTINGS, json.dumps(wanted, indent=1) + "\n")
        except OSError:
            self._discard()
            raise

    def finished(self, settings: Mapping[str, Any]) -> bool:
        """Whether the output is in its place already, and only the folder was left by a process that was killed."""
        moved = not any((self.folder / name).exists() for name in _DATA)
        if not (moved and self.out.exists() and self._settings() == _plain(settings)):
            return False
        claimed, rows = self._claimed(), self._data(self.out, new=False)
        try:
            return all(rows.checksum(start, stop) == crc for start, stop, crc in claimed)
        finally:
            rows.close()

    def open(self) -> None:
        """Ready for :meth:`write`."""
        self.rows = self._data(self.data)
        if self.rank == 0:
            self.blocks = self._claimed()

    def _data(self, path: Path, *, new: bool = True) -> Rows:
        if self.images:
            return PngFolder(path, self.n)
        return RowFile(path, self.n, self.shape, self.dtype, new=new)

    def _known(self) -> dict[str, Any] | None:
        """The settings of the folder that is there; None where nothing was begun."""
        if not self.folder.exists():
            return None
        foreign = ["a file"]
        if self.folder.is_dir() and not self.folder.is_symlink():
            foreign = [p.name for p in self.folder.iterdir() if not _ours(p.name) or p.is_symlink()]
        if foreign:
            raise InputError(f"--out: got {self.folder} in the way, which holds {foreign[0]}, expected to make it")
        known, begun = self._settings(), any((self.folder / name).exists() for name in _DATA)
        if known is None and begun and self._claimed():
            warnings.warn(f"{self.folder}: is damaged and started over", stacklevel=2)
        return known if begun else None

    def _settings(self) -> dict[str, Any] | None:
        with suppress(OSError, InputError):
            return dict(schema.read(self.folder / _SETTINGS, dict[str, Any]))
        return None

    # -- journals ------------------------------------------------------------------------------------------------

    def done(self) -> NDArray[np.bool_]:
        """Rows that are on the disk, bool ``[n]``: what all journals say, and this process's next one will."""
        done = np.zeros(self.n, bool)
        for start, stop, _ in (*self._claimed(), *self.blocks):
            done[start:stop] = True
        return done

    def _claimed(self) -> list[Block]:
        found: list[Block] = []
        for path in sorted(self.folder.glob("done-*.json")):
            # Another process replaces it, or a disk spoilt it: not done.
            with suppress(OSError, InputError):
                found += schema.read(path, list[tuple[int, int, int]])
        return sorted(b for b in found if 0 <= b[0] < b[1] <= self.n)

    def _gather(self) -> None:
        """One journal, of the rows that are as they were written, in place of those of however many processes."""
        rows = self._data(self.data)
        self.blocks = [block for block in self._claimed() if rows.checksum(*block[:2]) == block[2]]
        rows.close()
        others = [p for p in self.folder.glob("done-*.json") if p.name != "done-0.json"]
        self._journal()
        for path in others:
            path.unlink()

    def _journal(self) -> None:
        write_atomic(self.folder / f"done-{self.rank}.json", json.dumps(self.blocks))

    def write(self, row: int, values: NDArray[Any]) -> None:
        """Rows ``row ..``, which count from the next :meth:`commit` on."""
        assert self.rows is not None
        start, stop, crc = self.blocks[-1] if self.blocks else (0, 0, 0)
        longer = start < stop == row and stop - start < _BLOCK
        if not longer:
            start, crc = row, 0
        crc = self.rows.write(row, values, crc)
        self.blocks[len(self.blocks) - longer :] = [(start, row + len(values), crc)]

    def commit(self) -> None:
        """What was written counts from here on."""
        assert self.rows is not None
        self.rows.flush()
        self._journal()

    def close(self) -> None:
        """Release what is open; what no row came of is removed, so that a draw that cannot be leaves nothing."""
        if self.rows is None:
            return
        self.rows.close()
        self.rows = None
        if self.rank == 0 and not self.done().any():
            self._discard()

    def _discard(self) -> None:
        """The folder away. Its settings go first: nothing is to take it for that of an output in its place."""
        (self.folder / _SETTINGS).unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def remove(self) -> None:
        """The output is in its place, the folder is not needed. Its settings go last: see :meth:`finished`."""
        for path in self.folder.glob("*"):
            if path.name != _SETTINGS:
                with suppress(OSError):  # the output is whole
                    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()
        shutil.rmtree(self.folder, ignore_errors=True)


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """As they come back from a file."""
    return dict(json.loads(json.dumps(dict(settings), default=str)))


def spans(rows: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """The runs ``start .. stop - 1`` of true entries."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], rows.astype(np.int8), [0]))))
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def _not_a_link(path: str, flags: int) -> int:
    return os.open(path, flags | _NO_LINK, 0o666)


def _ours(name: str) -> bool:
    return name in (_SETTINGS, *_DATA) or name.lstrip(".").startswith(("done-", _SETTINGS, "written"))
