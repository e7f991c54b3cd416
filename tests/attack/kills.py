"""Commands that are killed, signalled, or end inside a file operation; each is run again to its end."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

from tests.attack import faults
from tests.attack.runs import goes_on, steps
from tests.attack.trials import (
    TRAIN,
    Bench,
    Done,
    Running,
    Wrong,
    kind,
    nothing_left,
    run,
    same_file,
    sample,
    start,
    wanted,
)

OUTPUTS = ("x.npy", "x.csv", "x/")
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


def moment(bench: Bench, rng: random.Random, command: str) -> float:
    return rng.uniform(0.0, 1.1 * bench.seconds[command])


def at_work(begun: Running, limit: float = 10.0) -> None:
    """Until it says on what it computes: before that a process only starts."""
    while "device:" not in begun.log.with_suffix(".err").read_text() and limit > 0 and not begun.ended(0.005):
        limit -= 0.005


def draw(bench: Bench, rng: random.Random, number: int) -> tuple[str, Running]:
    """Begin one, of the outputs that the golden folder has."""
    outputs = [out for out in OUTPUTS if (bench.golden / out).exists()]
    out = outputs[number % len(outputs)]
    bench.copy("run" if out != "x/" else "digits")
    return out, start("sample", *sample(out), before=faults.often_committed)


def drawn(bench: Bench, out: str) -> None:
    """The same draw again ends, says so, has the right bytes and leaves nothing. A folder whose draw was over, but for
    the process's end, is no place for another."""
    over = out == "x/" and Path("x").exists() and not Path("x.part").exists()
    if not over:
        wanted(run(bench, "sample", *sample(out)), 0)
    same_file(out.rstrip("/"), bench.golden / out)
    nothing_left()


@kind("kill -9, training", 60, quick=1, share=3)
def killed_training(bench: Bench, rng: random.Random, number: int) -> None:
    for _ in range(rng.choice((1, 1, 2))):
        begun = start("train", *TRAIN)
        begun.ended(moment(bench, rng, "train"))
        begun.kill()
        wanted(begun.wait(bench.limit("train")), 0, -signal.SIGKILL)
    goes_on(bench)
    nothing_left()


@kind("kill -9, sampling", 60, quick=1, share=1.5)
def killed_sampling(bench: Bench, rng: random.Random, number: int) -> None:
    out, begun = draw(bench, rng, number)
    begun.ended(moment(bench, rng, "sample"))
    begun.kill()
    wanted(begun.wait(bench.limit("sample")), 0, -signal.SIGKILL)
    drawn(bench, out)


def logged() -> int | None:
    """The last step of metrics.jsonl."""
    file = Path("run/metrics.jsonl")
    lines = file.read_text().splitlines() if file.exists() else []
    return json.loads(lines[-1])["step"] if lines else None


def checkpointed(done: Done, number: int) -> None:
    """A signal ended the trainer as it should: the step at hand has a checkpoint."""
    last, newest = logged(), next(iter(steps()), None)
    if last is not None and last != newest:
        raise Wrong("lost", f"signal {number}, exit {done.code}: step {last} was done, the checkpoint is of {newest}")


@kind("signals, training", 60, quick=1, share=3)
def signalled_training(bench: Bench, rng: random.Random, number: int) -> None:
    sign = SIGNALS[number % len(SIGNALS)]
    begun = start("train", *TRAIN)
    at_work(begun)
    if not begun.ended(rng.uniform(0.0, 0.9 * bench.seconds["train"])):
        begun.kill(sign)
    done = wanted(begun.wait(bench.limit("train")), 0, 130, -sign)
    checkpointed(done, sign)
    if done.code < 0 and logged() is not None and steps()[0] != 40:
        raise Wrong("wrong exit code", f"signal {sign} killed it at step {logged()}")
    goes_on(bench)
    nothing_left()


@kind("signals, sampling", 60, share=1.5)
def signalled_sampling(bench: Bench, rng: random.Random, number: int) -> None:
    sign = SIGNALS[number // 3 % len(SIGNALS)]
    out, begun = draw(bench, rng, number)
    at_work(begun)
    if not begun.ended(rng.uniform(0.0, 0.8 * bench.seconds["sample"])):
        begun.kill(sign)
    done = wanted(begun.wait(bench.limit("sample")), 0, 130, -sign)
    if done.code < 0 and list(Path().glob("*.part")):
        raise Wrong("wrong exit code", f"signal {sign} killed it while it drew")
    drawn(bench, out)


@kind("time limit, nohup", 16)
def limited(bench: Bench, rng: random.Random, number: int) -> None:
    if number % 4 == 3:

        def ignore() -> None:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)

        begun = start("train", *TRAIN, before=ignore)
        at_work(begun)
        while not begun.ended(0.05):
            begun.kill(signal.SIGHUP)
        wanted(begun.wait(bench.limit("train")), 0)
    else:
        minutes = rng.uniform(0.1, 0.9) * bench.seconds["train"] / 60
        done = wanted(run(bench, "train", *TRAIN, "--max-minutes", f"{minutes:.6f}"), 0, 130)
        checkpointed(done, 0)
    goes_on(bench)
    nothing_left()


def again(bench: Bench, name: str) -> None:
    """The scenario again, undisturbed, ends right and leaves nothing; no checkpoint that was there is lost."""
    command, _, _ = faults.SCENARIOS[name]
    had = steps() if command == "train" else []
    done = wanted(faults.scenario(bench, name), 0)
    if had and f"going on from step {had[0]} " not in done.err:
        raise Wrong("lost", f"checkpoint {had[0]} was there: {done.err[:200]}")
    faults.check(bench, name)
    nothing_left()


def aim(bench: Bench, rng: random.Random, number: int) -> tuple[str, int]:
    """A scenario, in turn, and one of its file operations."""
    known = [name for name in faults.SCENARIOS if (bench.golden / faults.output(name)).exists()]
    name = known[number % len(known)]
    return name, rng.randint(1, faults.points(bench, name))


@kind("crash points", 240, quick=1, share=6)
def crashed(bench: Bench, rng: random.Random, number: int) -> None:
    name, at = aim(bench, rng, number)
    how = rng.choice(("before", "after", "torn"))
    wanted(faults.scenario(bench, name, faults.Faults(at, how)), 0, faults.CRASHED)
    again(bench, name)


@kind("crash before the clean-up", 12, share=0.5)
def crashed_late(bench: Bench, rng: random.Random, number: int) -> None:
    out = [out for out in OUTPUTS if (bench.golden / out).exists()][number % 3 if (bench.golden / "x").exists() else 0]
    bench.copy("run" if out != "x/" else "digits")

    def end() -> None:
        replace = os.replace

        def replaced(source: str, target: str) -> None:
            replace(source, target)
            if Path(target).name == out.rstrip("/"):
                os._exit(faults.CRASHED)

        os.replace = replaced  # type: ignore[assignment]

    wanted(run(bench, "sample", *sample(out), before=end), faults.CRASHED)
    time.sleep(rng.choice((0.0, 0.01)))
    drawn(bench, out)
