"""Files that are whole or not there."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name to write a file under, which takes its place at the end; what was there before stays until then.

    A link of that name is replaced, never followed. Raises OSError with nothing left behind; what a killed process of
    this host left is removed by the next that writes the file.
    """
    stem = f".{path.name}.{socket.gethostname()}-"
    for left in path.parent.glob(f"{_literal(stem)}*.tmp"):
        import psutil  # slow to import: only when used

        process = left.name.removeprefix(stem).removesuffix(".tmp")
        if process.isdecimal() and int(process) < 2**31 and not psutil.pid_exists(int(process)):
            left.unlink(missing_ok=True)
    temporary = path.with_name(f"{stem}{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:  # a full disk
            error.filename = str(path)
        raise


def write_atomic(path: Path, content: str | bytes) -> Path:
    """Write a file as a whole, as :func:`replacing`. Returns the path."""
    with replacing(path) as temporary:
        temporary.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def _literal(name: str) -> str:
    """A pattern of :mod:`glob` that this name alone fits."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)
