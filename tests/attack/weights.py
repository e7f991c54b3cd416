"""Checkpoints with numbers that are damaged, or not finite."""

from __future__ import annotations

import csv
import hashlib
import random
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from tests.attack.runs import check_run
from tests.attack.trials import TRAIN, Bench, Wrong, kind, run, same_file, sample, wanted

NEWEST = Path("run/checkpoints/step-00000040")
VALUES = {"nan": np.nan, "inf": np.inf, "1e30": 1e30, "flipped bit": None}


def damage(rng: random.Random, file: Path, value: float | None) -> None:
    """One number of a file of tensors becomes this one; None flips one bit."""
    if value is None:
        content = bytearray(file.read_bytes())
        data = 8 + int.from_bytes(content[:8], "little")
        content[rng.randrange(data, len(content))] ^= 1 << rng.randrange(8)
        file.write_bytes(content)
        return
    tensors = load_file(file)
    name = rng.choice([k for k, v in sorted(tensors.items()) if v.dtype.kind == "f" and v.size])
    flat = tensors[name].copy().reshape(-1)
    flat[rng.randrange(flat.size)] = value
    save_file(tensors | {name: flat.reshape(tensors[name].shape)}, file)


def fit_sums(folder: Path) -> None:
    """Make SHA256SUMS anew, where the checkpoint has one."""
    sums = folder / "SHA256SUMS"
    if sums.exists():
        names = [line.split()[-1] for line in sums.read_text().splitlines()]
        sums.write_text("".join(f"{hashlib.sha256((folder / n).read_bytes()).hexdigest()}  {n}\n" for n in names))


def finite(file: str) -> bool:
    if file.endswith(".npy"):
        return bool(np.isfinite(np.load(file)).all())
    with open(file, newline="") as stream:
        rows = list(csv.reader(stream))[1:]
    return all(np.isfinite(float(cell or "nan")) for row in rows for cell in row)


def told_before(err: str) -> bool:
    """A line says that the newest checkpoint is damaged."""
    return any("step-00000040" in line and "damaged" in line for line in err.splitlines())


@kind("numbers, drawn", 160, quick=1, share=2)
def weights(bench: Bench, rng: random.Random, number: int) -> None:
    bench.copy("run")
    files = sorted(NEWEST.glob("*.safetensors"))
    file, name = files[number % len(files)], list(VALUES)[number // len(files) % len(VALUES)]
    damage(rng, file, VALUES[name])
    anew = rng.random() < 0.5
    if anew:
        fit_sums(NEWEST)
    out = rng.choice(("x.npy", "x.npy", "x.csv"))
    done = wanted(run(bench, "sample", *sample(out)), 0, 2)
    if done.code:
        return
    if not finite(out):
        raise Wrong("silently wrong", f"{name} in {file.name}: a file of numbers that are not finite")
    if not anew and out == "x.npy" and Path(out).read_bytes() != (bench.golden / out).read_bytes():
        if not told_before(done.err):
            raise Wrong("silently wrong", f"{name} in {file.name}: other samples, and no word of it")
        if (bench.golden / "at-30.npy").exists():
            same_file(out, bench.golden / "at-30.npy")


@kind("numbers, gone on with", 40, share=1.5)
def trained(bench: Bench, rng: random.Random, number: int) -> None:
    bench.copy("run")
    files = sorted(NEWEST.glob("*.safetensors"))
    name = list(VALUES)[number % len(VALUES)]
    damage(rng, rng.choice(files), VALUES[name])
    done = wanted(run(bench, "train", *TRAIN), 0, 2)
    if done.code == 0:
        check_run(bench)
        if not told_before(done.err):
            raise Wrong("silently wrong", f"{name}: no word of the damage")


@kind("--allow-nonfinite", 8, share=0.5)
def allowed(bench: Bench, rng: random.Random, number: int) -> None:
    bench.copy("run")
    for group in ("network", "ema"):
        file = NEWEST / f"{group}.safetensors"
        tensors = load_file(file)
        save_file({k: np.full_like(v, np.nan) if v.dtype.kind == "f" else v for k, v in tensors.items()}, file)
    fit_sums(NEWEST)
    out = ("x.npy", "x.csv")[number % 2]
    wanted(run(bench, "sample", *sample(out)), 2)
    if Path(out).exists():
        raise Wrong("silently wrong", f"{out}: is written all the same")
    wanted(run(bench, "sample", *sample(out), "--allow-nonfinite"), 0)
    if not Path(out).exists():
        raise Wrong("lost", f"{out}: is not written")
