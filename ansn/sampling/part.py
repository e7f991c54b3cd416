"""The unfinished output of a long draw: a folder ``OUT.part`` of rows, of what they are, and of which are there.

Rows count once they are on the disk: a journal says so, one for each process, replaced atomically after the
data was flushed. So what a killed process leaves is complete up to its last entry, and any later process, or number of
them, draws the rest.
"""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ansn.errors import InputError
from ansn.files import write_atomic

_SETTINGS, _DATA = "settings.json", ("rows.npy", "images")
_PNG_END = b"IEND\xaeB`\x82"


class Rows(Protocol):
    """Where the rows of a part lie."""

    def write(self, row: int, values: NDArray[Any]) -> None:
        """Put rows ``row ..`` ``[b, *shape]`` in their places."""

    def flush(self) -> None:
        """What was written survives this process, and where the file can promise it a power cut."""

    def intact(self, done: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Of the rows that the journal calls done, those that can be read."""

    def close(self) -> None:
        """Release what is open."""


class RowFile:
    """One ``.npy`` of its final size, each row in its place from the start; it can be mapped into memory.

    Written with ``pwrite``, not through a map: a full disk is then an error that can be told, and pages that were
    written do not count as this process's memory.
    """

    def __init__(self, path: Path, n: int, shape: Sequence[int], dtype: str) -> None:
        self.dtype = np.dtype(dtype)
        self.stride = int(np.prod(shape, dtype=np.int64)) * self.dtype.itemsize
        header = io.BytesIO()
        form = {"descr": self.dtype.str, "fortran_order": False, "shape": (n, *shape)}
        np.lib.format.write_array_header_1_0(header, form)
        self.start, new = len(header.getvalue()), not path.exists()
        self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        if new:  # all the room that it needs, or the error now
            os.posix_fallocate(self.descriptor, 0, self.start + n * self.stride)
            os.pwrite(self.descriptor, header.getvalue(), 0)

    def write(self, row: int, values: NDArray[Any]) -> None:
        data = memoryview(np.ascontiguousarray(values, self.dtype).reshape(-1).view(np.uint8).data)
        offset = self.start + row * self.stride
        while data:
            written = os.pwrite(self.descriptor, data, offset)
            data, offset = data[written:], offset + written

    def flush(self) -> None:
        os.fsync(self.descriptor)

    def intact(self, done: NDArray[np.bool_]) -> NDArray[np.bool_]:
        return done

    def close(self) -> None:
        os.close(self.descriptor)


class PngFolder:
    """One PNG for each row, ``000000.png`` and on: uint8 images ``[1 or 3, H, W]``."""

    def __init__(self, path: Path, n: int) -> None:
        self.path, self.width = path, max(6, len(str(n - 1)))
        path.mkdir(exist_ok=True)

    def _name(self, row: int) -> Path:
        return self.path / f"{row:0{self.width}d}.png"

    def write(self, row: int, values: NDArray[Any]) -> None:
        from PIL import Image  # slow to import: only when used

        for i, image in enumerate(values):
            Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).save(self._name(row + i))

    def flush(self) -> None:
        """Nothing: a file that a power cut spoilt is found by :meth:`intact`, and to flush each costs more than it."""

    def intact(self, done: NDArray[np.bool_]) -> NDArray[np.bool_]:
        whole = done.copy()
        for row in np.flatnonzero(done):
            try:
                with self._name(int(row)).open("rb") as file:
                    file.seek(-len(_PNG_END), os.SEEK_END)
                    whole[row] = file.read() == _PNG_END
            except OSError:
                whole[row] = False
        return whole

    def close(self) -> None:
        pass


class Part:
    """The folder ``OUT.part``. ``images``: PNG files, else one file of rows ``[n, *shape]`` of ``dtype``.

    :meth:`prepare` makes it or checks it, in one process; :meth:`open` then joins it, in all of them.
    """

    def __init__(self, out: Path, n: int, shape: Sequence[int], dtype: str, *, images: bool, rank: int = 0) -> None:
        self.folder, self.n, self.rank = out.with_name(f"{out.name}.part"), n, rank
        self.shape, self.dtype, self.images = tuple(shape), dtype, images
        self.mine = np.zeros(n, bool)
        self.data = self.folder / _DATA[images]
        self.rows: Rows | None = None

    def prepare(self, settings: Mapping[str, Any], *, resume: bool) -> None:
        """Make the folder, or find one of the same settings. Raises InputError, one line, for other settings; OSError
        for what the disk refuses, with nothing left behind."""
        told = json.loads(json.dumps(dict(settings), default=str))
        known = self._known()
        if known is not None and resume:
            changed = [f"{k}: {known.get(k)} -> {told.get(k)}" for k in told | known if known.get(k) != told.get(k)]
            if changed:
                raise InputError(
                    f"--out: got {self.folder}, an unfinished draw of other settings ({'; '.join(changed)}), expected"
                    " the same; finish that one, give another --out, or --no-resume to start over"
                )
            self._gather()
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        try:
            self._data().close()
            # Last: a folder without it was never begun.
            write_atomic(self.folder / _SETTINGS, json.dumps(told, indent=1) + "\n")
        except OSError:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise

    def open(self) -> None:
        """Ready for :meth:`write`."""
        self.rows = self._data()
        if self.rank == 0:
            self.mine = self.done()

    def _data(self) -> Rows:
        if self.images:
            return PngFolder(self.data, self.n)
        return RowFile(self.data, self.n, self.shape, self.dtype)

    def _known(self) -> dict[str, Any] | None:
        """The settings of the folder that is there; None where nothing was begun."""
        if not self.folder.exists():
            return None
        foreign = [p.name for p in self.folder.iterdir() if not _ours(p.name)] if self.folder.is_dir() else ["a file"]
        if foreign:
            raise InputError(f"--out: got {self.folder} in the way, which holds {foreign[0]}, expected to make it")
        try:
            known = json.loads((self.folder / _SETTINGS).read_text())
        except (OSError, ValueError):
            return None
        return known if isinstance(known, dict) and any((self.folder / name).exists() for name in _DATA) else None

    # -- journals ------------------------------------------------------------------------------------------------

    def done(self) -> NDArray[np.bool_]:
        """Rows that are on the disk, bool ``[n]``: what all journals say."""
        done = np.zeros(self.n, bool)
        for path in self.folder.glob("done-*.json"):
            try:
                for start, stop in json.loads(path.read_text()):
                    done[start:stop] = True
            except (OSError, ValueError, TypeError):  # another process replaces it, or a disk spoilt it: not done
                continue
        return done

    def _gather(self) -> None:
        """One journal, of the rows that can be read, in place of those of however many processes there were."""
        rows = self._data()
        self.mine = rows.intact(self.done())
        rows.close()
        others = [p for p in self.folder.glob("done-*.json") if p.name != "done-0.json"]
        self._journal()
        for path in others:
            path.unlink()

    def _journal(self) -> None:
        write_atomic(self.folder / f"done-{self.rank}.json", json.dumps(spans(self.mine)))

    def write(self, row: int, values: NDArray[Any]) -> None:
        """Rows ``row ..``, which count from the next :meth:`commit` on."""
        assert self.rows is not None
        self.rows.write(row, values)
        self.mine[row : row + len(values)] = True

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
            self.remove()

    def remove(self) -> None:
        """The output is in its place, the folder is not needed."""
        shutil.rmtree(self.folder, ignore_errors=True)


def spans(rows: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """The runs ``start .. stop - 1`` of true entries."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], rows.astype(np.int8), [0]))))
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def _ours(name: str) -> bool:
    return name in (_SETTINGS, *_DATA) or name.startswith(("done-", ".done-", f".{_SETTINGS}", "written"))
