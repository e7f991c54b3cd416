"""One writer at a time: a lock file beside what is written, which names the process that writes.

The file has the process's number, its host and its start. One whose process is gone is taken over at once on the host
that it names, on any other (and where a file system cannot exchange two names) after it was not refreshed for half a
minute; nothing else tells a dead process there from a living one. (:class:`filelock.SoftFileLease`.)
"""

from __future__ import annotations

import errno
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ansn.errors import InputError

LEASE = 30.0
"""Seconds without a sign of life after which a process on another host is taken for dead."""
_PATIENCE, _MORE = 0.2, 10.0
_INITIAL = 0xEFFFFFFC  # Linux's namespace of process numbers outside of any container


class Lock:
    """The claim of this process on ``target``; see :func:`alone`."""

    def __init__(self, file: Path, target: Path) -> None:
        self.target = target
        from filelock import SoftFileLease  # slow to import: only when used

        self._lease = SoftFileLease(file, lease_duration=LEASE, poll_interval=0.05)

    def acquire(self) -> None:
        """Claim it. InputError where another process has it; a warning where one left it behind."""
        from filelock import Timeout

        before = self._lease.owner
        try:
            self._lease.acquire(timeout=_PATIENCE)
        except Timeout:
            import psutil

            before, seen = self._lease.owner, self._sign()
            if before is not None and before.hostname == _here() and psutil.pid_exists(before.pid):
                raise self._taken() from None
            where = "" if before is None else f" of process {before.pid} on {before.hostname}"
            warnings.warn(f"{self.target}: waiting up to {LEASE:g} s to see if the writer{where} lives", stacklevel=4)
            with suppress(Timeout):
                self._lease.acquire(timeout=LEASE + _MORE)
            # filelock leaves alone an empty file, and any where two names cannot be exchanged (NFS).
            if not self._lease.is_locked and seen is not None and self._sign() == seen:
                self._lease.force_break()
                with suppress(Timeout):
                    self._lease.acquire(timeout=_PATIENCE)
            if not self._lease.is_locked:
                raise self._taken() from None
        if before is not None:
            gone = f"process {before.pid} on {before.hostname}"
            warnings.warn(f"{self.target}: {gone} left its lock behind and is gone; taken over", stacklevel=4)

    def _sign(self) -> tuple[int, int] | None:
        """What a sign of life, or another file in its place, changes."""
        with suppress(OSError):
            found = os.lstat(self._lease.lock_file)
            return found.st_ino, found.st_mtime_ns
        return None

    def check(self) -> None:
        """InputError where the lock was lost: the folder was deleted, or another process took it over."""
        if not self._lease.is_lock_held_by_us:
            owner = self._lease.owner
            by = "deleted" if owner is None else f"taken over by process {owner.pid} on {owner.hostname}"
            raise InputError(f"{self.target}: got {by} while it was written, expected to be alone with it")

    def release(self) -> None:
        """Give it back."""
        with suppress(OSError):  # of a folder that was deleted
            self._lease.release()

    def _taken(self) -> InputError:
        owner = self._lease.owner
        by = "another process" if owner is None else f"process {owner.pid} on {owner.hostname}"
        got = f"an output that {by} is writing (see {self._lease.lock_file})"
        return InputError(f"{self.target}: got {got}, expected to be alone; wait for it")


def _here() -> str:
    """This host, as a lock file names it: with the namespace where processes have numbers of a container."""
    try:
        numbers = os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        numbers = _INITIAL
    return socket.gethostname() + ("" if numbers == _INITIAL else f"?pidns-{numbers:x}")


@contextmanager
def alone(file: Path, target: Path) -> Iterator[Lock]:
    """While it lasts, this process alone writes ``target``; ``file``: the lock's.

    Folders that are missing are made, and removed again where nothing was put in them. Raises InputError for a target
    that another process writes, OSError for a folder that cannot be written.
    """
    missing = [folder for folder in file.parents if not folder.exists()]
    lock = Lock(file, target)
    try:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
        except FileExistsError as error:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), error.filename) from None
        lock.acquire()
        yield lock
    finally:
        lock.release()
        for folder in missing:
            with suppress(OSError):  # has something in it
                folder.rmdir()
