"""Disks that refuse: errors at each file operation, and real limits, rights and folders that go away."""

from __future__ import annotations

import os
import random
import resource
import shutil
import subprocess
from pathlib import Path

from tests.attack import faults
from tests.attack.kills import again, aim
from tests.attack.runs import check_run, goes_on, steps
from tests.attack.trials import TRAIN, Bench, Skip, Wrong, kind, nothing_left, run, same_file, sample, start, wanted

OTHER = 54321  # a user that is not root


@kind("disk errors", 240, quick=1, share=6)
def refused(bench: Bench, rng: random.Random, number: int) -> None:
    name, at = aim(bench, rng, number)
    lasting = rng.random() < 0.4
    done = wanted(faults.scenario(bench, name, faults.Faults(at, rng.choice(faults.ERRORS), lasting=lasting)), 0, 2)
    if done.code == 0:
        faults.check(bench, name)
    nothing_left("**/.writing-*", "**/.[a-z]*.tmp")
    if done.code or faults.SCENARIOS[name][0] == "train" or not Path(faults.output(name)).is_dir():
        again(bench, name)  # a folder whose draw is over is no place for another


@kind("file size limit", 30)
def limited(bench: Bench, rng: random.Random, number: int) -> None:
    # Standard error is a file too, and needs some room.
    size = rng.choice((5000, 8000, 20000, 40000) if number % 2 else (200, 400, 1000, 1400, 3000))

    def limit() -> None:
        faults.often_committed()
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    if number % 2:
        wanted(run(bench, "train", *TRAIN, before=limit), 0, 2)
        goes_on(bench)
    else:
        bench.copy("run")
        out = rng.choice([out for out in ("x.npy", "x.csv") if (bench.golden / out).exists()])
        wanted(run(bench, "sample", *sample(out), before=limit), 0, 2)
        wanted(run(bench, "sample", *sample(out)), 0)
        same_file(out, bench.golden / out)
    nothing_left()


@kind("full tmpfs", 20)
def full(bench: Bench, rng: random.Random, number: int) -> None:
    size = rng.choice((16, 64, 128, 192, 256, 320))
    Path("disk").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", "disk"]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        raise Skip("no tmpfs may be mounted here")
    here = os.getcwd()
    try:
        os.chdir("disk")
        wanted(run(bench, "train", *TRAIN, before=lambda: None), 0, 2)
        left = [p for p in Path("run").rglob("*") if p.name.startswith((".writing", ".config", ".metrics"))]
        if left:
            raise Wrong("silently wrong", f"{left[0]}: was left behind")
        had = steps()
        subprocess.run(["mount", "-o", "remount,size=16m", here + "/disk"], check=True)
        goes_on(bench)
        if had and steps()[0] < had[0]:
            raise Wrong("lost", f"checkpoints {had}, then {steps()}")
    finally:
        os.chdir(here)
        subprocess.run(["umount", "disk"], check=True)


@kind("folder deleted under a run", 20)
def deleted(bench: Bench, rng: random.Random, number: int) -> None:
    training = number % 2 == 0
    if not training:
        bench.copy("run")
    begun = start("train", *TRAIN) if training else start("sample", *sample("x.npy"), before=faults.often_committed)
    begun.ended(rng.uniform(0, bench.seconds[begun.command]))
    folder = rng.choice(("run", "run/checkpoints")) if training else "x.npy.part"
    shutil.rmtree(folder, ignore_errors=True)
    done = wanted(begun.wait(bench.limit(begun.command)), 0, 2)
    if training:
        shutil.rmtree("run", ignore_errors=True)
        goes_on(bench)
    else:
        if done.code == 0:
            same_file("x.npy", bench.golden / "x.npy")
        wanted(run(bench, "sample", *sample("x.npy")), 0)
        same_file("x.npy", bench.golden / "x.npy")


@kind("rights of another user", 12, share=0.5)
def rights(bench: Bench, rng: random.Random, number: int) -> None:
    if os.geteuid():
        raise Skip("only root can become another user")
    bench.copy("run")

    def other() -> None:
        os.setgroups([])
        os.setgid(OTHER)
        os.setuid(OTHER)

    if number % 4 == 3:  # a run with the rights that the umask gives
        os.chmod(".", 0o777)
        wanted(run(bench, "sample", *sample("x.npy"), before=other), 0)
        same_file("x.npy", bench.golden / "x.npy")
        return
    if number % 4 == 0:  # a run that may not be written
        for path in ("run", *map(str, Path("run").rglob("*"))):
            os.chmod(path, 0o755 if os.path.isdir(path) else 0o644)
        wanted(run(bench, "train", *TRAIN, before=other), 2)
        check_run(bench)
        return
    if number % 4 == 1:  # checkpoints that may not be read
        target = rng.choice([p for p in Path("run/checkpoints").rglob("*") if p.name.startswith(("step", "net", "st"))])
        os.chmod(target if "step-00000040" in str(target) else "run/checkpoints", 0)
        os.chmod(".", 0o777)
        done = wanted(run(bench, "sample", *sample("x.npy"), before=other), 2)
        if "Permission denied" not in done.err:
            raise Wrong("wrong exit code", f"the reason is not told: {done.err[-200:]}")
        return
    wanted(run(bench, "sample", *sample("x.npy"), before=other), 2)  # no output may be made here
    nothing_left()
