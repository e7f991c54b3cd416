"""Samples to disk: the same whoever draws them, complete or resumable, in bounded memory, refused in one line."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from ansn import Denoiser, InputError, networks
from ansn.data import table as tables
from ansn.sampling import Draw, part
from ansn.sampling.stream import cut, to_disk
from tests.sampling.draws import N, Stopped, contents, entries, quick, stopping, trained
from tests.tolerances import BATCH_INVARIANCE

# -- what is written ---------------------------------------------------------------------------------------------


def test_an_array_holds_what_the_library_draws(tmp_path: Path) -> None:
    out = to_disk(quick(seed=3), N, tmp_path / "x.npy", batch_size=64)
    x = np.load(out, mmap_mode="r")
    assert (x.shape, x.dtype) == ((N, 1, 2, 2), np.float32)
    np.testing.assert_array_equal(x, quick(seed=3).batch(0, N).numpy())
    assert entries(tmp_path) == ["x.npy"], "nothing but the output is left"


def test_eight_bits_are_clipped_and_rounded(tmp_path: Path) -> None:
    x = np.load(to_disk(quick(), N, tmp_path / "x.npy"))
    eight = np.load(to_disk(quick(), N, tmp_path / "y.npy", store="uint8"))
    assert eight.dtype == np.uint8
    assert x.min() < 0 or x.max() > 1, "there is something to clip"
    np.testing.assert_array_equal(eight, np.rint(255.0 * x.clip(0, 1)))


def test_what_is_no_number_is_told(tmp_path: Path) -> None:
    draw, batch = quick(), Draw.batch

    def broken(*args: Any, **told: Any) -> Tensor:
        x = batch(draw, *args, **told)
        x[0, 0, 0, 0] = torch.nan
        return x

    draw.batch = broken  # type: ignore[method-assign]
    with pytest.raises(InputError, match=r"samples 0 to 2: got 1 with numbers that are not finite, expected finite"):
        to_disk(draw, 3, tmp_path / "x.npy", store="uint8")
    assert list(tmp_path.iterdir()) == []
    with pytest.warns(UserWarning, match="no numbers; they are stored as 0"):
        to_disk(draw, 3, tmp_path / "x.npy", store="uint8", finite=False)
    assert np.load(tmp_path / "x.npy")[0, 0, 0, 0] == 0


@pytest.mark.parametrize("channels", [1, 3])
def test_a_folder_of_images(tmp_path: Path, channels: int) -> None:
    draw = Draw(trained((channels, 4, 2)), "euler", 2)
    folder = to_disk(draw, 12, tmp_path / "new" / "images", batch_size=5)
    assert entries(folder) == [f"{i:06d}.png" for i in range(12)]
    assert entries(tmp_path / "new")[0] == "images", "no part is left"
    x = draw.batch(0, 12).clamp(0, 1).mul(255).round().byte().numpy()
    for i, path in enumerate(sorted(folder.iterdir())):
        with Image.open(path) as image:
            pixels = np.asarray(image)
        assert np.abs(pixels.astype(int) - (x[i, 0] if channels == 1 else x[i].transpose(1, 2, 0))).max() <= 1


def test_a_table_in_its_units(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "_CHUNK", 7)  # several pieces of text
    draw = Draw(trained((2,)), "euler", 2)
    to_disk(draw, N, tmp_path / "x.csv", units=lambda x: 100 + 3 * x.double(), columns=("a", "b"))
    header, *lines = (tmp_path / "x.csv").read_text().splitlines()
    assert header == "a,b"
    values = np.array([[float(v) for v in line.split(",")] for line in lines])
    np.testing.assert_allclose(values, 100 + 3 * draw.batch(0, N).double().numpy(), rtol=1e-8)


def test_a_picture(tmp_path: Path) -> None:
    with Image.open(to_disk(quick(), N, tmp_path / "x.png", batch_size=6)) as image:
        assert min(image.size) >= 200
    assert entries(tmp_path) == ["x.png"]


# -- who draws is all the same -----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["heun", "langevin"])
def test_any_batch_size(tmp_path: Path, method: str) -> None:
    x = {b: np.load(to_disk(Draw(trained(), method, 3), N, tmp_path / f"{b}.npy", batch_size=b)) for b in (1, 7, 64)}
    assert np.isfinite(x[1]).all()
    for b in (7, 64):
        assert np.abs(x[b] - x[1]).max() < BATCH_INVARIANCE


TWO = """
import sys, torch
from ansn.sampling.stream import to_disk
from ansn.distributed import processes
from tests.sampling.test_stream import quick
torch.set_num_threads(1)
with processes("cpu") as (rank, world, _):
    assert world == 2
    to_disk(quick(seed=3), int(sys.argv[1]), sys.argv[2], batch_size=int(sys.argv[3]))
"""


def two_processes(n: int, out: Path, batch_size: int) -> subprocess.CompletedProcess[str]:
    script = out.parent / "two.py"
    script.write_text(TWO)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", script]
    return subprocess.run(
        [*map(str, command), str(n), str(out), str(batch_size)],
        env=os.environ | {"PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.slow
def test_two_processes_write_what_one_writes(tmp_path: Path) -> None:
    one = to_disk(quick(seed=3), 50, tmp_path / "one.npy", batch_size=7)
    # One process begins, two go on: with rows of all three in it the file is that of one process.
    with pytest.raises(Stopped):
        to_disk(stopping(quick(seed=3), 2), 50, tmp_path / "two.npy", batch_size=7)
    done = two_processes(50, tmp_path / "two.npy", 7)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "two.npy").read_bytes() == one.read_bytes()
    done = two_processes(50, tmp_path / "other.npy", 64)
    assert done.returncode == 0, done.stderr
    assert np.abs(np.load(tmp_path / "other.npy") - np.load(one)).max() < BATCH_INVARIANCE
    assert entries(tmp_path) == ["one.npy", "other.npy", "two.npy", "two.py"]


@given(st.lists(st.booleans(), max_size=60), st.integers(1, 20))
def test_blocks_are_the_missing_rows_once_each_on_the_grid(missing: list[bool], size: int) -> None:
    blocks = cut(np.array(missing, bool), size)
    assert [r for row, rows in blocks for r in range(row, row + rows)] == list(np.flatnonzero(missing))
    assert all(0 < rows <= size and row // size == (row + rows - 1) // size for row, rows in blocks)
    if all(missing):
        assert len(blocks) == -(-len(missing) // size)


# -- stopped and gone on with ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["x.npy", "x.csv", "images"])
@pytest.mark.parametrize("error", [Stopped, KeyboardInterrupt])
def test_a_stopped_draw_goes_on_to_the_same_bytes(tmp_path: Path, name: str, error: type[BaseException]) -> None:
    model = trained((2,) if name == "x.csv" else (1, 2, 2))
    whole = to_disk(Draw(model, "euler", 2), N, tmp_path / "whole" / name, batch_size=3)
    out = tmp_path / name
    for after in (2, 0, 3):
        with pytest.raises(error):
            to_disk(stopping(Draw(model, "euler", 2), after, error), N, out, batch_size=3)
        assert not out.exists(), "complete or not there"
    draw, rows = Draw(model, "euler", 2), []
    batch = draw.batch
    draw.batch = lambda row, n, *a, **k: rows.extend(range(row, row + n)) or batch(row, n, *a, **k)  # type: ignore
    to_disk(draw, N, out, batch_size=3)
    assert rows == list(range(15, N)), "what was there is not drawn again"
    assert contents(out) == contents(whole)


def test_another_batch_size_goes_on(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        to_disk(stopping(quick(), 2), N, tmp_path / "x.npy", batch_size=7)
    to_disk(quick(), N, tmp_path / "x.npy", batch_size=4)
    assert np.abs(np.load(tmp_path / "x.npy") - quick().batch(0, N).numpy()).max() < BATCH_INVARIANCE


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 4}, "seed: 3 -> 4"), ({"steps": 3}, "levels: "), ({"start": "uniform"}, "start: gaussian -> uniform"),
        ({"method": "heun"}, "method: euler -> heun"), ({"dtype": torch.bfloat16}, "dtype: float32 -> bfloat16"),
        ({"n": N + 1}, "n: 20 -> 21"), ({"store": "uint8"}, "numbers: float32 -> uint8"), ({"model": 0.3}, "model: "),
    ],
)  # fmt: skip
def test_other_settings_are_refused_and_nothing_is_lost(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    given = {"model": 0.2, "method": "euler", "steps": 2, "seed": 3, "start": "gaussian"}

    def draw(n: int = N, store: str = "float32", after: int = 99, resume: bool = True, **settings: Any) -> Path:
        settings = given | settings
        drawer = Draw(trained(scale=settings.pop("model")), **settings)
        return to_disk(stopping(drawer, after), n, tmp_path / "x.npy", batch_size=3, store=store, resume=resume)

    with pytest.raises(Stopped):
        draw(after=2)
    with pytest.raises(InputError) as caught:
        draw(**change)
    text = str(caught.value)
    assert named in text
    assert "--no-resume" in text
    assert text.count(" -> ") == 1, "what is the same is not named"
    draw(after=5)  # the rest, and no more
    fresh = draw(**change, resume=False)
    assert len(np.load(fresh)) == change.get("n", N)


def test_what_changes_nothing_is_no_other_setting(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        to_disk(stopping(quick(), 1), N, tmp_path / "x.npy", batch_size=3)
    to_disk(stopping(quick(compile="eager"), 1), N, tmp_path / "x.npy", batch_size=64)


class Scaled(Denoiser):
    """A denoiser around a denoiser, with a number of its own."""

    def __init__(self, model: Denoiser, by: float) -> None:
        super().__init__(model.network, model.noise)
        self.model, self.by = model, by

    def forward(self, x: Tensor, sigma: float | Tensor, region: Tensor | None = None, **extra: Any) -> Tensor:
        return self.by * self.model(x, sigma, region, **extra)


def test_what_is_sampled_has_a_fingerprint() -> None:
    one, again = (Draw(trained(), "euler", 2).fingerprint() for _ in range(2))
    assert one == again
    other = trained()
    next(other.network.parameters()).data[0, 0] += 1e-6
    moved = trained()
    moved.noise.covariance.center += 1e-6
    around = [Scaled(trained(), by) for by in (1.0, 2.0)]
    all_of_them = [one, *(Draw(m, "euler", 2).fingerprint() for m in (other, moved, *around))]
    assert len(set(all_of_them)) == 5


def test_labels_are_a_setting(tmp_path: Path) -> None:
    model = trained()
    model.network = networks.MLP((1, 2, 2), hidden=16, blocks=1, num_classes=3)
    with pytest.raises(Stopped):
        to_disk(stopping(Draw(model, "euler", 2), 1), N, tmp_path / "x.npy", batch_size=3, y=1)
    with pytest.raises(InputError, match="labels: "):
        to_disk(Draw(model, "euler", 2), N, tmp_path / "x.npy", batch_size=3, y=torch.arange(N) % 3)


# -- memory ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["x.npy", "images"])
def test_as_many_batches_are_alive_for_few_samples_as_for_many(tmp_path: Path, name: str) -> None:
    def most(n: int) -> int:
        draw, alive, peak = quick(), [], 0
        batch = draw.batch

        def watched(*args: Any, **told: Any) -> Tensor:
            nonlocal peak
            x = batch(*args, **told)
            alive.append(weakref.ref(x))
            peak = max(peak, sum(r() is not None for r in alive))
            return x

        draw.batch = watched  # type: ignore[method-assign]
        to_disk(draw, n, tmp_path / str(n) / name, batch_size=2)
        return peak

    assert most(6) == most(60) <= 2


# -- what cannot be ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("act", "parts"),
    [
        (lambda p: to_disk(quick(), N, p / "file" / "x.npy"), ("--out", "file/x.npy", "Not a directory")),
        (lambda p: to_disk(quick(), N, p / "x.csv"), ("--out", "x.csv", "[1, 2, 2]", ".png or .npy")),
        (lambda p: to_disk(Draw(trained((2,))), N, p / "x"), ("--out", "x", "[2]", "images")),
        (lambda p: to_disk(quick(), N, p / "full"), ("--out", "full", "new or an empty folder")),
        (lambda p: to_disk(quick(), N, p / "file"), ("--out", "file", "new or an empty folder")),
        (lambda p: to_disk(quick(), N, p / "y.npy"), ("--out", "y.npy.part", "in the way", "mine.txt")),
        (lambda p: to_disk(quick(), N, p / "x.npy", store="int4"), ("store", "'int4'", "one of float32, uint8")),
        (lambda p: to_disk(quick(), N, p / "x", store="uint8"), ("store", ".npy of images")),
        (lambda p: to_disk(quick(), 0, p / "x.npy"), ("n", "got 0")),
        (lambda p: to_disk(quick(), N, p / "x.npy", batch_size=0), ("batch_size", "0")),
        (lambda p: to_disk(quick(seed=-1), N, p / "x.npy"), ("seed", "-1")),
        (lambda p: to_disk(quick(), N, p / "x.npy", y=torch.zeros(3)), ("y", "float32", f"[{N}]")),
    ],
)  # fmt: skip
def test_refused_in_one_line_with_nothing_written(
    tmp_path: Path, act: Callable[[Path], Path], parts: tuple[str, ...]
) -> None:
    (tmp_path / "file").write_text("in the way")
    for name in ("full", "y.npy.part"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.txt").write_text("")
    before = entries(tmp_path)
    with pytest.raises(ValueError) as caught:
        act(tmp_path)
    assert len(str(caught.value).splitlines()) == 1
    for expected in parts:
        assert expected in str(caught.value)
    assert entries(tmp_path) == before


@contextmanager
def small_disk() -> Iterator[None]:
    """No file beyond 8 KiB: what a full disk does, without one.

    Not a fixture: the limit holds for every file of the process, and pytest writes its progress before a fixture ends,
    perhaps to a longer file.
    """
    ignored, before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


def test_no_room_is_told_before_the_first_batch(tmp_path: Path) -> None:
    with small_disk(), pytest.raises(InputError, match=r"--out: got File too large for .*x.npy, expected"):
        to_disk(stopping(quick(), 0), 600, tmp_path / "x.npy")
    assert entries(tmp_path) == []


def test_a_disk_that_fills_up_keeps_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, calls = part.PngFolder.write, []

    def full(self: part.PngFolder, row: int, values: Any, crc: int) -> int:
        calls.append(row)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        return write(self, row, values, crc)

    monkeypatch.setattr(part.PngFolder, "write", full)
    with pytest.raises(InputError) as caught:
        to_disk(quick(), N, tmp_path / "images", batch_size=3)
    assert "got No space left on device for " in str(caught.value)
    assert "; 6 of 20 samples are kept" in str(caught.value)
    assert not (tmp_path / "images").exists()
    monkeypatch.undo()
    to_disk(stopping(quick(), 5), N, tmp_path / "images", batch_size=3)
    assert len(entries(tmp_path / "images")) == N


def test_an_interruption_says_what_is_kept(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt, match=r"interrupted; 6 of 20 samples are kept in .*x.npy.part, the same"):
        to_disk(stopping(quick(), 2, KeyboardInterrupt), N, tmp_path / "x.npy", batch_size=3)


def test_an_unfinished_output_does_not_replace_the_one_before(tmp_path: Path) -> None:
    before = to_disk(quick(seed=1), N, tmp_path / "x.npy").read_bytes()
    with pytest.raises(Stopped):
        to_disk(stopping(quick(), 2), N, tmp_path / "x.npy", batch_size=3)
    assert (tmp_path / "x.npy").read_bytes() == before
    to_disk(quick(), N, tmp_path / "x.npy", batch_size=3)
    assert (tmp_path / "x.npy").read_bytes() != before
