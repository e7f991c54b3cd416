"""Reading files whole or not at all: plain, gzip or xz by content, exact lengths, one-line errors."""

from __future__ import annotations

import gzip
import lzma
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from ansn.errors import InputError
from ansn.machine import available_memory

SUFFIXES = ("", ".gz", ".xz")  # plain first: it is the fastest to read
_CHUNK = 8 << 20


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """A binary stream of the file's content, decompressed when it starts as gzip or xz (whatever its name).

    InputError, raised inside the block too: missing, unreadable or corrupt file.
    """
    try:
        with open(path, "rb") as raw:
            start = raw.read(6)
            raw.seek(0)
            if start[:2] == b"\x1f\x8b":
                with gzip.open(raw) as stream:
                    yield stream  # type: ignore[misc]
            elif start == b"\xfd7zXZ\x00":
                with lzma.open(raw) as stream:
                    yield stream
                _check_xz_end(raw)
            else:
                yield raw
    except FileNotFoundError:
        raise InputError(f"{path}: got no such file, expected one") from None
    except EOFError:
        raise InputError(f"{path}: got compressed data that ends early, expected a whole file") from None
    except (gzip.BadGzipFile, zlib.error, lzma.LZMAError) as error:
        raise InputError(f"{path}: got corrupt compressed data ({error}), expected a whole file") from None
    except OSError as error:
        raise InputError(f"{path}: got {error.strerror or error}, expected a file that can be read") from None


def _check_xz_end(raw: IO[bytes]) -> None:
    """The standard reader silently skips what follows an xz stream; a whole file ends in YZ and zeros."""
    size = raw.seek(0, os.SEEK_END)
    raw.seek(max(0, size - 4096))
    if not raw.read().rstrip(b"\0").endswith(b"YZ"):
        raise lzma.LZMAError("it does not end as an xz file: cut off, or bytes after its end")


def read_up_to(stream: IO[bytes], count: int) -> bytearray:
    """At most ``count`` bytes, by pieces: a header that promises too much must not reserve it all."""
    data = bytearray()
    while len(data) < count:
        piece = stream.read(min(_CHUNK, count - len(data)))
        if not piece:
            break
        data += piece
    return data


def read_exactly(stream: IO[bytes], count: int, path: Path | str, promise: str) -> bytearray:
    """The last ``count`` bytes of the stream. InputError if fewer or more come.

    ``promise`` says where count comes from. Reading past the end also makes gzip and xz check their sums.
    """
    require_memory(count, path)
    data = read_up_to(stream, count)
    if len(data) < count:
        raise InputError(f"{path}: got a truncated file, {len(data)} bytes of data, expected {count} ({promise})")
    if stream.read(1):
        raise InputError(f"{path}: got trailing bytes after its data, expected {count} bytes ({promise})")
    return data


def require_memory(count: int, path: Path | str) -> None:
    available = available_memory()
    if count > available:
        raise InputError(
            f"{path}: got {count / 2**30:.1f} GiB of data, "
            f"expected at most the {available / 2**30:.1f} GiB of memory available"
        )


def find(folder: Path, names: tuple[str, ...]) -> Path | None:
    """The first of names, each plain, .gz, then .xz, that is a file in the folder.

    Some copies of IDX files unpack with a dot before idx: they are found under the usual name.
    """
    for name in names:
        for variant in dict.fromkeys((name, name.replace("-idx", ".idx"))):
            for suffix in SUFFIXES:
                path = folder / (variant + suffix)
                if path.is_file():
                    return path
    return None


def in_folders(
    root: str | os.PathLike[str] | None, name: str, folders: tuple[str, ...], files: tuple[str, ...]
) -> Path:
    """The folder, among root and its sub-folders ``folders``, that holds the first of ``files``.

    InputError naming the files looked for and the places.
    """
    wanted = ", ".join(files) + " (plain, .gz or .xz)"
    if root is None:
        raise InputError(f"root (--data): got None for {name}, expected the folder that holds {wanted}")
    base = Path(root)
    if not base.is_dir():
        raise InputError(f"root (--data): got {base}, which is no folder, expected one that holds {wanted}")
    places = [base, *(base / folder for folder in folders)]
    for place in places:
        if find(place, files[:1]):
            return place
    raise InputError(f"{name}: got no {wanted}, expected them in one of {', '.join(map(str, places))}")


def plain_name(path: Path) -> str:
    """The file's name in small letters, without the ending of its compression."""
    return path.name.lower().removesuffix(".gz").removesuffix(".xz")


def cpu_count() -> int:
    """Cores this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        return os.cpu_count() or 1
