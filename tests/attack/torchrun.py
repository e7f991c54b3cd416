"""Several processes of torchrun: killed, orphaned, or beside a trainer that replaces the model."""

from __future__ import annotations

import fcntl
import json
import os
import random
import re
import shutil
import signal
import sys
import time
from pathlib import Path

from tests.attack.runs import steps
from tests.attack.trials import (
    TRAIN,
    Bench,
    Done,
    Running,
    Wrong,
    kind,
    nothing_left,
    program,
    same_file,
    sample,
    start,
    wanted,
)

LIMIT = 120.0  # seconds: a torchrun takes ten to start where others use the cores
RANKS = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
LONG = [*TRAIN, "--steps", "400", "--log-every", "10"]


def ranks(command: str, *arguments: str) -> Running:
    return program(*RANKS, "-m", f"ansn.cli.{command}", *arguments)


def finished(begun: Running, *codes: int) -> Done:
    """As :func:`tests.attack.trials.wanted`, but that torchrun itself tells of a process that failed."""
    done = begun.wait(LIMIT)
    if done.over:
        raise Wrong("over 5 s", f"torchrun: {done.seconds:.0f} s; {done.err[-200:]}")
    if re.search(r'File ".*/ansn/', done.err):
        raise Wrong("traceback", f"torchrun: {done.err[-300:]}")
    if done.code not in codes:
        raise Wrong("wrong exit code", f"torchrun: {done.code}; {done.err[-300:]}")
    return done


def children(begun: Running) -> list[int]:
    import psutil

    try:
        return [each.pid for each in psutil.Process(begun.pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def until(begun: Running, path: str, size: int = 1) -> None:
    """Until the file has so many bytes."""
    file, limit = Path(path), time.monotonic() + LIMIT
    while not (file.exists() and file.stat().st_size >= size) and time.monotonic() < limit and not begun.ended(0.01):
        pass


def golden(bench: Bench) -> Path:
    """The long run of two processes that nothing disturbed, made once."""
    place, here = bench.golden / "ranks", os.getcwd()
    with (bench.golden / "ranks.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the other worker may want it too
        if not (place / "run").exists():
            place.mkdir()
            os.chdir(place)
            try:
                finished(ranks("train", *LONG), 0)
            except Wrong:
                shutil.rmtree(place)
                raise
            finally:
                os.chdir(here)
    return place


def check(bench: Bench, *, bits: bool = True) -> None:
    name = "checkpoints/step-00000400"
    right = golden(bench) / "run"
    if steps()[:1] != [400]:
        raise Wrong("lost", f"checkpoints: {steps()}")
    for file in sorted((right / name).glob("*.safetensors")) if bits else []:
        same_file(f"run/{name}/{file.name}", file)
    logs = [[json.loads(line)["step"] for line in (place / "metrics.jsonl").read_text().splitlines()]
            for place in (Path("run"), right)]  # fmt: skip
    if logs[0] != logs[1]:
        raise Wrong("mixed", f"metrics.jsonl: steps {logs[0]}")
    nothing_left()


def gone(numbers: list[int]) -> None:
    """Until these processes have ended; those that do not are killed."""
    import psutil

    limit = time.monotonic() + LIMIT
    while any(map(psutil.pid_exists, numbers)):
        if time.monotonic() > limit:
            for number in filter(psutil.pid_exists, numbers):
                os.kill(number, signal.SIGKILL)
            raise Wrong("over 5 s", "processes outlive their torchrun")
        time.sleep(0.1)


def kill_all(begun: Running) -> None:
    numbers = children(begun)
    for number in (begun.pid, *numbers):
        os.kill(number, signal.SIGKILL)
    begun.wait(LIMIT)
    gone(numbers)


@kind("torchrun, training killed", 1)
def training(bench: Bench, rng: random.Random, number: int) -> None:
    golden(bench)
    begun = ranks("train", *LONG)
    until(begun, "run/metrics.jsonl", rng.randrange(1, 6000))
    kill_all(begun)
    had = steps()
    done = finished(ranks("train", *LONG), 0)
    if had and f"going on from step {had[0]} " not in done.err:
        raise Wrong("lost", f"checkpoint {had[0]} was there: {done.err[:200]}")
    check(bench)


@kind("torchrun, sampling killed", 1)
def sampling(bench: Bench, rng: random.Random, number: int) -> None:
    bench.copy("run")
    arguments = sample("x.npy")
    begun = ranks("sample", *arguments)
    until(begun, "x.npy.part/settings.json")
    begun.ended(rng.uniform(0.0, 0.3))
    kill_all(begun)
    finished(ranks("sample", *arguments), 0)
    same_file("x.npy", bench.golden / "x.npy")
    nothing_left()


@kind("torchrun, launcher killed", 2, share=3)
def launcher(bench: Bench, rng: random.Random, number: int) -> None:
    """The processes outlive it for a while, and a second run begins at once."""
    golden(bench)
    begun = ranks("train", *LONG)
    until(begun, "run/metrics.jsonl", rng.randrange(1, 3000))
    numbers = children(begun)
    begun.kill()
    begun.wait(LIMIT)
    second = wanted(start("train", *LONG).wait(LIMIT), 0, 2)
    gone(numbers)
    if second.code:
        finished(ranks("train", *LONG), 0)
    check(bench, bits=bool(second.code))  # one process rounds otherwise than two


# The second rank loads the model three seconds after the first.
_APART = """
import os, pathlib, time
from ansn.cli import sample
load = sample.load_run
def late(*arguments, **named):
    time.sleep(3 * int(os.environ["RANK"]))
    found = load(*arguments, **named)
    pathlib.Path("loaded").touch()
    return found
sample.load_run = late
raise SystemExit(sample.main())
"""


@kind("torchrun, ranks apart", 2, share=2)
def apart(bench: Bench, rng: random.Random, number: int) -> None:
    """A trainer's checkpoint comes between the loads of two ranks: all draw from one model."""
    shutil.copytree(bench.golden / "at-20", "run")
    shutil.copytree(bench.golden / "at-30/checkpoints/step-00000030", "new")
    begun = program(*RANKS, "--no-python", sys.executable, "-c", _APART, *sample("x.npy"))
    until(begun, "loaded", 0)
    os.rename("new", "run/checkpoints/step-00000030")
    done = finished(begun, 0, 1)
    if done.code == 0:
        contents = [(bench.golden / f"at-{step}.npy").read_bytes() for step in (20, 30)]
        if Path("x.npy").read_bytes() not in contents:
            raise Wrong("mixed", "x.npy: of neither model")
    elif "ansn-sample: error: " not in done.err:
        raise Wrong("wrong exit code", f"it did not say why it ended: {done.err[-200:]}")
