"""One writer at a time: the second is refused in one line, a dead one's claim is taken over and said."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from filelock import SoftFileLease

from ansn import lock
from ansn.errors import InputError
from ansn.lock import alone


def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def claim(file: Path, host: str | None = None, pid: int | None = None) -> None:
    """A lock file as a process leaves it that was killed."""
    with alone(file, file.parent):
        text = file.read_text()
    lines = [line for line in text.splitlines() if not line.startswith("start=")]
    lines = [f"pid={pid or dead_process()}" if line.startswith("pid=") else line for line in lines]
    lines = [f"host={host}" if host and line.startswith("host=") else line for line in lines]
    file.write_text("\n".join(lines) + "\n")


def test_the_second_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    file = tmp_path / "runs" / "one" / ".lock"
    with alone(file, file.parent) as first:
        with pytest.raises(InputError) as caught, alone(file, file.parent):
            pytest.fail("two at once")
        first.check()
    assert f"{file.parent}: got an output that process {os.getpid()} on " in str(caught.value)
    assert "expected to be alone" in str(caught.value)
    assert list(tmp_path.iterdir()) == [], "folders that nothing was put in are gone"
    with alone(file, file.parent):
        (file.parent / "result").write_text("")
    assert [p.name for p in file.parent.iterdir()] == ["result"]


def test_of_many_at_once_one_gets_it(tmp_path: Path) -> None:
    inside, refused, barrier = [], [], threading.Barrier(6)

    def work() -> None:
        barrier.wait()
        try:
            with alone(tmp_path / ".lock", tmp_path):
                inside.append(1)
                done.wait(20)
        except InputError:
            refused.append(1)
            if len(refused) == 5:
                done.set()

    done = threading.Event()
    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(inside), len(refused)) == (1, 5)


def test_a_dead_process_of_this_host_is_followed_at_once(tmp_path: Path) -> None:
    claim(tmp_path / ".lock")
    gone = pytest.warns(UserWarning, match=r"process \d+ on .+ left its lock behind and is gone; taken over")
    with gone, alone(tmp_path / ".lock", tmp_path) as taken:
        taken.check()


@pytest.mark.parametrize("content", ["filelock/2\npid=1", ""])
def test_half_a_lock_file_is_taken_over(tmp_path: Path, content: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a process that was killed while it wrote it."""
    monkeypatch.setattr(lock, "LEASE", 1.0)
    monkeypatch.setattr(lock, "_MORE", 1.5)
    (tmp_path / ".lock").write_text(content)
    with pytest.warns(UserWarning, match="waiting up to"), alone(tmp_path / ".lock", tmp_path) as taken:
        taken.check()


def test_a_process_of_another_host_is_dead_when_it_gives_no_sign(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "LEASE", 1.0)
    claim(tmp_path / ".lock", host="elsewhere")
    warns = pytest.warns(UserWarning, match="writer of|left its lock")
    with warns as warned, alone(tmp_path / ".lock", tmp_path) as taken:
        taken.check()
    first, second = (str(w.message) for w in warned)
    assert "waiting up to 1 s to see if the writer of process" in first
    assert "on elsewhere left its lock behind" in second


def test_where_names_cannot_be_exchanged_a_dead_process_is_followed_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on NFS, where filelock takes nothing over; and a container of this host's name has numbers of its own."""
    monkeypatch.setattr(lock, "LEASE", 1.0)
    monkeypatch.setattr(lock, "_MORE", 0.5)
    monkeypatch.setattr(SoftFileLease, "_try_break_stale_lock", lambda _: None)
    for host, pid in ((None, None), (f"{socket.gethostname()}?pidns-f0000001", os.getpid())):
        claim(tmp_path / ".lock", host, pid)
        with pytest.warns(UserWarning, match="waiting"), alone(tmp_path / ".lock", tmp_path) as taken:
            taken.check()


def test_a_process_of_another_host_that_lives_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "LEASE", 1.0)
    monkeypatch.setattr(lock, "_MORE", 0.5)
    file, stop = tmp_path / ".lock", threading.Event()
    claim(file, host="elsewhere")

    def live() -> None:
        while not stop.wait(0.1):
            os.utime(file)

    thread = threading.Thread(target=live)
    thread.start()
    refused = pytest.raises(InputError, match="on elsewhere is writing")
    with pytest.warns(UserWarning, match="waiting"), refused, alone(file, tmp_path):
        pytest.fail("two at once")
    stop.set()
    thread.join()
    assert "host=elsewhere" in file.read_text()


def test_a_lost_lock_is_seen(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with alone(folder / ".lock", folder) as first:
        shutil.rmtree(folder)
        with pytest.raises(InputError, match=r"run: got deleted while it was written, expected to be alone with it"):
            first.check()
    with alone(folder / ".lock", folder) as first:
        (folder / ".lock").unlink()
        claim(folder / ".lock", host="elsewhere", pid=7)
        with pytest.raises(InputError, match=r"run: got taken over by process 7 on elsewhere while it was written"):
            first.check()
    assert (folder / ".lock").exists(), "another's lock is not removed"
