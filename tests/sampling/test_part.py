"""An unfinished draw: what counts is on the disk as it was written, whoever died, claims or spoils what."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from torch import Tensor

from ansn import InputError
from ansn.sampling import Draw, part, stream
from ansn.sampling.stream import to_disk
from tests.sampling.draws import N, Stopped, contents, entries, quick, stopping


@pytest.mark.parametrize("name", ["x.npy", "images"])
def test_a_killed_process_leaves_whole_rows(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    out, draw, calls = tmp_path / name, quick(), []
    batch = draw.batch

    def killed(*args: Any, **told: Any) -> Tensor:
        calls.append(args)
        if len(calls) == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return batch(*args, **told)

    draw.batch = killed  # type: ignore[method-assign]
    monkeypatch.setattr(stream, "COMMIT_SECONDS", 0.0)
    process = multiprocessing.get_context("fork").Process(target=to_disk, args=(draw, N, out), kwargs={"batch_size": 3})
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert not out.exists()
    ((start, stop, _),) = json.loads((tmp_path / f"{name}.part" / "done-0.json").read_text())
    assert (start, stop) == (0, 9)
    to_disk(stopping(quick(), 4), N, out, batch_size=3)  # the four batches that are missing
    whole = to_disk(quick(), N, tmp_path / "whole" / name, batch_size=3)
    assert contents(out) == contents(whole)


def test_a_row_that_was_spoilt_is_drawn_again(tmp_path: Path) -> None:
    """After a power cut a file may be empty although the journal has it; half a journal counts for nothing."""
    with pytest.raises(Stopped):
        to_disk(stopping(quick(), 3), N, tmp_path / "images", batch_size=3)
    folder = tmp_path / "images.part"
    (folder / "images" / "000004.png").write_bytes(b"")
    (folder / "images" / "000007.png").unlink()
    (folder / "done-1.json").write_text("[[9, 1")
    to_disk(quick(), N, tmp_path / "images", batch_size=3)
    for i, path in enumerate(sorted((tmp_path / "images").iterdir())):
        with Image.open(path) as image:
            assert image.size == (2, 2), i
    assert len(entries(tmp_path / "images")) == N


@pytest.mark.parametrize("name", ["x.npy", "images"])
@pytest.mark.parametrize("journal", ["[[0, 20, 0]]", "[[0, 6, 1]]", "[[-3, 99, 1]]", "[" * 10**5, '{"a": 1}', "\xff"])
def test_rows_that_are_claimed_and_were_never_written(tmp_path: Path, name: str, journal: str) -> None:
    whole = to_disk(quick(), N, tmp_path / "whole" / name, batch_size=3)
    with pytest.raises(Stopped):
        to_disk(stopping(quick(), 2), N, tmp_path / name, batch_size=3)
    (tmp_path / f"{name}.part" / "done-0.json").write_text(journal, encoding="latin-1")
    assert contents(to_disk(quick(), N, tmp_path / name, batch_size=3)) == contents(whole)


@pytest.mark.parametrize("spoil", ["truncate", "zero", "header", "longer"])
def test_a_file_of_rows_that_was_spoilt(tmp_path: Path, spoil: str) -> None:
    whole = to_disk(quick(), N, tmp_path / "whole.npy", batch_size=3)
    with pytest.raises(Stopped):
        to_disk(stopping(quick(), 2), N, tmp_path / "x.npy", batch_size=3)
    rows = tmp_path / "x.npy.part" / "rows.npy"
    content = bytearray(rows.read_bytes())
    if spoil == "header":
        content[:64] = bytes(64)
    elif spoil == "zero":
        content[130:150] = bytes(20)
    rows.write_bytes({"truncate": content[:140], "longer": content + b"more"}.get(spoil, content))
    assert to_disk(quick(), N, tmp_path / "x.npy", batch_size=3).read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("resume", [True, False])
def test_a_second_draw_to_one_output_is_refused(tmp_path: Path, resume: bool) -> None:
    """While the first goes on; and a lock that a killed process left is taken over."""
    draw, batch, refused = quick(), Draw.batch, []

    def meanwhile(*args: Any, **options: Any) -> Tensor:
        if not refused:
            with pytest.raises(InputError) as caught:
                to_disk(quick(seed=9), N, tmp_path / "x.npy", resume=resume)
            refused.append(str(caught.value))
        return batch(draw, *args, **options)

    draw.batch = meanwhile  # type: ignore[method-assign]
    to_disk(draw, N, tmp_path / "x.npy", batch_size=3)
    assert f"an output that process {os.getpid()} on" in refused[0]
    assert entries(tmp_path) == ["x.npy"]
    assert (tmp_path / "x.npy").read_bytes() == to_disk(quick(), N, tmp_path / "y.npy", batch_size=3).read_bytes()


@pytest.mark.parametrize("name", ["x.npy", "images"])
@pytest.mark.parametrize("point", ["moved", "cleared"])
def test_a_kill_after_the_last_rename_is_a_draw_that_is_done(tmp_path: Path, name: str, point: str) -> None:
    whole = to_disk(quick(), N, tmp_path / "whole" / name, batch_size=3)

    def child() -> None:
        def remove(self: part.Part) -> None:
            for path in self.folder.glob("done-*") if point == "cleared" else ():
                path.unlink()
            os.kill(os.getpid(), signal.SIGKILL)

        part.Part.remove = remove  # type: ignore[method-assign]
        to_disk(quick(), N, tmp_path / name, batch_size=3)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert (tmp_path / f"{name}.part").exists()
    with pytest.warns(UserWarning, match="left its lock behind and is gone; taken over"):
        to_disk(stopping(quick(), 0), N, tmp_path / name, batch_size=3)
    assert contents(tmp_path / name) == contents(whole)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([name, "whole"])


@pytest.mark.parametrize("left", [".done-0.json.host-1.tmp", ".settings.json.host-1.tmp", ".written.csv.host-1.tmp"])
def test_temporary_files_of_a_killed_process_are_not_in_the_way(tmp_path: Path, left: str) -> None:
    with pytest.raises(Stopped):
        to_disk(stopping(quick(), 2), N, tmp_path / "x.npy", batch_size=3)
    (tmp_path / "x.npy.part" / left).write_text("")
    to_disk(quick(), N, tmp_path / "x.npy", batch_size=3)
    assert entries(tmp_path) == ["x.npy"]


def test_another_output_in_place_of_a_finished_one_is_drawn_over(tmp_path: Path) -> None:
    """Its folder says that all was drawn and moved, but what lies there is another draw's."""
    to_disk(quick(), N, tmp_path / "x.npy", batch_size=3)
    with pytest.raises(Stopped):
        to_disk(stopping(quick(seed=5), 2), N, tmp_path / "x.npy", batch_size=3)
    (tmp_path / "x.npy.part" / "rows.npy").unlink()
    found = to_disk(quick(seed=5), N, tmp_path / "x.npy", batch_size=3)
    assert found.read_bytes() == to_disk(quick(seed=5), N, tmp_path / "y.npy", batch_size=3).read_bytes()


def test_what_a_kill_leaves_of_a_draw_that_had_no_row_is_no_finished_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside an older output of another seed."""
    to_disk(quick(seed=1), N, tmp_path / "x.npy", batch_size=3)
    monkeypatch.setattr(part.shutil, "rmtree", lambda *_, **__: None)
    with pytest.raises(Stopped):
        to_disk(stopping(quick(), 0), N, tmp_path / "x.npy", batch_size=3)
    monkeypatch.undo()
    assert (tmp_path / "x.npy.part").exists()
    found = to_disk(quick(), N, tmp_path / "x.npy", batch_size=3)
    assert found.read_bytes() == to_disk(quick(), N, tmp_path / "y.npy", batch_size=3).read_bytes()


@pytest.mark.parametrize("name", ["x.npy", "images"])
def test_links_in_an_unfinished_draw_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(Stopped):
        to_disk(stopping(quick(), 2), N, tmp_path / name, batch_size=3)
    data, other = tmp_path / f"{name}.part" / part._DATA[name == "images"], tmp_path / "other"
    other.mkdir() if name == "images" else other.write_text("mine")
    shutil.rmtree(data) if data.is_dir() else data.unlink()
    data.symlink_to(other)
    with pytest.raises(InputError, match=r"\.part in the way, which holds (rows.npy|images), expected to make it"):
        to_disk(quick(), N, tmp_path / name, batch_size=3)
    assert list(other.iterdir()) == [] if other.is_dir() else other.read_text() == "mine"


def test_a_picture_is_not_written_behind_a_link(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        to_disk(stopping(quick(), 2), N, tmp_path / "images", batch_size=3)
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "images.part" / "images" / "000010.png").symlink_to(tmp_path / "mine")
    with pytest.raises(InputError, match="Too many levels of symbolic links"):
        to_disk(quick(), N, tmp_path / "images", batch_size=3)
    assert (tmp_path / "mine").read_text() == "mine"


def test_a_draw_that_lost_its_lock_ends(tmp_path: Path) -> None:
    draw, batch = quick(), Draw.batch

    def lost(*args: Any, **options: Any) -> Tensor:
        (tmp_path / ".x.npy.lock").unlink(missing_ok=True)
        return batch(draw, *args, **options)

    draw.batch = lost  # type: ignore[method-assign]
    with pytest.raises(InputError, match=r"x\.npy: got deleted while it was written"):
        to_disk(draw, N, tmp_path / "x.npy", batch_size=3)
    assert not (tmp_path / "x.npy").exists()
