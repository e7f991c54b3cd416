"""The runs and outputs that trials begin from, and whether a run is the one that nothing disturbed."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

from tests.attack.trials import DIGITS, TRAIN, Bench, Wrong, run, sample, wanted

STEPS = (10, 20, 30, 40)


def make(bench: Bench, *, quick: bool) -> None:
    """Fill the golden folder, which is the current one."""

    def keep() -> None:  # a copy of each checkpoint
        replace = os.replace

        def kept(source: str, target: str) -> None:
            replace(source, target)
            if re.fullmatch(r"step-\d+", Path(target).name):
                shutil.copytree(target, Path("kept") / Path(target).name)

        os.replace = kept  # type: ignore[assignment]

    def note(name: str, *arguments: str, before: object = None) -> None:
        done = wanted(run(bench, name, *arguments, **({} if before is None else {"before": before})), 0)
        bench.seconds[name] = max(done.seconds, bench.seconds.get(name, 0.0))

    note("train", *TRAIN, before=keep)
    note("sample", *sample("x.npy"))
    _half(bench)
    if quick:
        return
    note("train", *DIGITS)
    for out in ("x.csv", "x/"):
        note("sample", *sample(out))
    note("sample", *sample("seed1.npy", "--seed", "1"))
    other = [*TRAIN[:-1], "seed1", "--seed", "1"]
    note("train", *other)
    for step in STEPS:
        at = Path(f"at-{step}")
        shutil.copytree(f"kept/step-{step:08d}", at / "checkpoints" / f"step-{step:08d}")
        note("sample", *(str(at) if word == "run" else word for word in sample(f"at-{step}.npy")))


def _half(bench: Bench) -> None:
    """``half``: a run that was killed at step 20 and a draw that was killed after some rows."""
    from tests.attack import faults

    checkpoints = Path("half/run/checkpoints")
    for step in STEPS[:2]:
        shutil.copytree(f"kept/step-{step:08d}", checkpoints / f"step-{step:08d}")
    shutil.copy("run/config.json", "half/run")
    lines = Path("run/metrics.jsonl").read_text().splitlines(keepends=True)
    Path("half/run/metrics.jsonl").write_text("".join(lines[:25]) + lines[25][:30])

    def end() -> None:
        faults.often_committed()
        replace, left = os.replace, [3]

        def replaced(source: str, target: str) -> None:
            replace(source, target)
            left[0] -= "done-" in Path(target).name
            if not left[0]:
                os._exit(faults.CRASHED)

        os.replace = replaced  # type: ignore[assignment]

    wanted(run(bench, "sample", *sample("half/x.npy"), before=end), faults.CRASHED)
    shutil.rmtree("half/locks", ignore_errors=True)


def steps(folder: str = "run") -> list[int]:
    """Steps of a run's checkpoints, newest first."""
    found = [re.fullmatch(r"step-(\d+)", p.name) for p in Path(folder, "checkpoints").glob("*")]
    return sorted((int(m[1]) for m in found if m), reverse=True)


def check_run(bench: Bench, golden: str = "run", folder: str = "run", column: str = "silently wrong") -> None:
    """The newest checkpoint and the metrics are those of the undisturbed run, to the bit."""
    if not steps(folder) or steps(folder)[0] != STEPS[-1]:
        raise Wrong("lost", f"checkpoints: {steps(folder)}")
    name = f"checkpoints/step-{STEPS[-1]:08d}"
    made, right = Path(folder, name), bench.golden / golden / name
    for file in sorted(right.iterdir()):
        if not (made / file.name).exists():
            raise Wrong("lost", f"{made / file.name}: is missing")
        if file.suffix == ".safetensors" and (made / file.name).read_bytes() != file.read_bytes():
            raise Wrong(column, f"{made / file.name}: has other tensors")
    values = [json.loads((place / "state.json").read_text()) for place in (made, right)]
    for value in values:
        value["config"].pop("run")
    if values[0] != values[1]:
        raise Wrong(column, f"{made / 'state.json'}: has other values")
    check_metrics(Path(folder, "metrics.jsonl"), bench.golden / golden / "metrics.jsonl")


def check_metrics(made: Path, right: Path) -> None:
    """Each step once, in order, with its loss."""
    try:
        rows = [json.loads(line) for line in made.read_text().splitlines()]
        found = [(row["step"], row["loss"]) for row in rows]
    except (ValueError, KeyError, OSError) as error:
        raise Wrong("mixed", f"{made}: {error}") from None
    expected = [(row["step"], row["loss"]) for row in map(json.loads, right.read_text().splitlines())]
    numbers = [step for step, _ in found]
    if numbers != sorted(set(numbers)):
        raise Wrong("mixed", f"{made}: steps {numbers}")
    if found != expected:
        missing = sorted({step for step, _ in expected} - set(numbers))
        raise Wrong("lost" if missing else "mixed", f"{made}: steps {missing} are missing, or other losses")


def goes_on(bench: Bench, *arguments: str, column: str = "silently wrong") -> None:
    """The same command again ends the run as the undisturbed one, and loses no checkpoint that was there."""
    had = steps()
    done = wanted(run(bench, "train", *(arguments or TRAIN)), 0)
    if had and f"going on from step {had[0]} " not in done.err:
        raise Wrong("lost", f"checkpoint {had[0]} was there: {done.err[:200]}")
    check_run(bench, column=column)
