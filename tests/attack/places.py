"""Strange surroundings: no home, closed streams, odd names, links that lead elsewhere."""

from __future__ import annotations

import os
import pwd
import random
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.attack.runs import check_run
from tests.attack.trials import TRAIN, Bench, Wrong, kind, nothing_left, run, same_file, sample, start, wanted

ODD = os.fsdecode(b"odd-\xff\xfe")


def _homeless() -> None:
    def nobody(*_: object) -> None:
        raise KeyError("getpwuid(): uid not found")

    for name in ("HOME", "XDG_CACHE_HOME", "ANSN_CACHE", "USER", "LOGNAME"):
        os.environ.pop(name, None)
    pwd.getpwuid = nobody  # type: ignore[assignment]


def _no_temporary() -> None:
    os.environ["TMPDIR"] = "/nonexistent"
    tempfile.tempdir = None


def _closed(number: int) -> Callable[[], None]:
    def close() -> None:
        os.close(number)
        if number == 1:
            sys.stdout = None  # type: ignore[assignment]
        else:
            sys.stderr = None  # type: ignore[assignment]

    return close


CHANGES = {"no home": _homeless, "no TMPDIR": _no_temporary, "no stdout": _closed(1), "no stderr": _closed(2)}


@kind("strange surroundings", 16, quick=1, share=0.7)
def surroundings(bench: Bench, rng: random.Random, number: int) -> None:
    name = list(CHANGES)[number % 4]
    if number // 4 % 2:
        wanted(run(bench, "train", *TRAIN, before=CHANGES[name]), 0)
        check_run(bench)
    else:
        bench.copy("run")
        wanted(run(bench, "sample", *sample("x.npy"), before=CHANGES[name]), 0)
        same_file("x.npy", bench.golden / "x.npy")
    nothing_left()


@kind("evaluation without a home", 2, share=0.7)
def homeless(bench: Bench, rng: random.Random, number: int) -> None:
    """As far as the folder of its cache is known, which is when it draws."""
    bench.copy("run")
    begun = start("evaluate", "run", "--quick", "-n", "64", "--threads", "1", before=_homeless)
    while "drawing" not in begun.log.with_suffix(".err").read_text() and not begun.ended(0.02):
        pass
    if begun.ended(0.0):
        wanted(begun.wait(bench.limit("train")), 0, 2)


@kind("names that are not UTF-8", 8, share=0.7)
def odd(bench: Bench, rng: random.Random, number: int) -> None:
    way = number % 4
    if way == 0:
        wanted(run(bench, "train", *TRAIN[:-1], ODD, pictures=True), 0, 2)
        return
    bench.copy("run")
    if way == 1:
        done = wanted(run(bench, "sample", *sample(ODD + ".npy")), 0, 2)
        if done.code == 0:
            same_file(ODD + ".npy", bench.golden / "x.npy")
    elif way == 2:
        os.rename("run", ODD)
        wanted(run(bench, "sample", *(ODD if word == "run" else word for word in sample("x.npy"))), 0, 2)
    else:
        shutil.copy(bench.golden / "x.csv", ODD + ".csv")
        wanted(run(bench, "train", "csv", "--data", ODD + ".csv", *TRAIN[1:]), 0, 2)


FOLDERS = ("tensorboard", "checkpoints", "x.npy.part")
FILES = ("samples.png", "loss.png", "covariance.png", "config.json", "metrics.jsonl", "x.npy")


def _listing() -> dict[str, bytes]:
    return {str(p): p.read_bytes() if p.is_file() else b"" for p in Path("elsewhere").rglob("*")}


@kind("links that lead elsewhere", 36, quick=1)
def links(bench: Bench, rng: random.Random, number: int) -> None:
    name = (*FOLDERS, *FILES)[number % 9]
    bench.copy("run")
    drawing = name.startswith("x.npy")
    place = Path(name) if drawing else Path("run", name)
    target = Path("elsewhere") / name
    if name in FOLDERS:
        (shutil.move if place.exists() else lambda *_: target.mkdir(parents=True))(place, _parent(target))
        (target / "mine.txt").write_text("keep this")
    else:
        _parent(target).write_text("keep this")
        place.unlink(missing_ok=True)
    place.symlink_to(target.absolute())
    before = _listing()
    more = ("--no-resume",) if rng.random() < 0.5 else ()
    if drawing:
        done = wanted(run(bench, "sample", *sample("x.npy", *more)), 0, 2)
    else:
        arguments = [*TRAIN, "--samples", "4", *more]
        done = wanted(run(bench, "train", *arguments, pictures=name.endswith(".png")), 0, 2)
    if _listing() != before:
        raise Wrong("silently wrong", f"{name}, a link, {more}: what is elsewhere was changed, exit {done.code}")


def _parent(path: Path) -> Path:
    path.parent.mkdir(exist_ok=True)
    return path
