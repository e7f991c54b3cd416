"""Several commands on one output at once."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable

from tests.attack.faults import often_committed
from tests.attack.kills import OUTPUTS
from tests.attack.runs import STEPS, check_run
from tests.attack.trials import TRAIN, Bench, Done, Running, Wrong, kind, nothing_left, same_file, sample, start, wanted


def apart(rng: random.Random, bench: Bench, command: str) -> None:
    time.sleep(rng.choice((0.0, rng.uniform(0, 0.8 * bench.seconds[command]))))


def ended(bench: Bench, begun: list[Running]) -> list[Done]:
    """All, of which one at least did it, and the others said why not."""
    limit = sum(bench.limit(each.command) for each in begun)
    finished = [each.wait(limit) for each in begun]
    for done in finished:
        wanted(done, 0, 2)
    if all(done.code for done in finished):
        raise Wrong("wrong exit code", f"none did it: {finished[0].err[-120:]} {finished[1].err[-120:]}")
    return finished


def whole(goldens: Iterable[str], check: Callable[[str], None]) -> None:
    """The output is one of these; else what is wrong with the last."""
    failure: Wrong | None = None
    for golden in goldens:
        try:
            return check(golden)
        except Wrong as error:
            failure = error
    assert failure is not None
    raise failure


@kind("trainers at once", 40, quick=1, share=3)
def trainers(bench: Bench, rng: random.Random, number: int) -> None:
    count = rng.choice((2, 2, 3))
    differ = number % 2 == 1 and (bench.golden / "seed1").exists()
    begun, names = [], []
    for i in range(count):
        names.append("seed1" if differ and i % 2 else "run")
        more = ("--seed", "1") if names[-1] == "seed1" else ()
        begun.append(start("train", *TRAIN, *more, *(("--no-resume",) if differ else ())))
        apart(rng, bench, "train")
    finished = ended(bench, begun)
    did = {name for name, done in zip(names, finished, strict=True) if done.code == 0}
    whole(did, lambda name: check_run(bench, name, column="mixed"))
    nothing_left()


@kind("samplers at once", 80, quick=1, share=3)
def samplers(bench: Bench, rng: random.Random, number: int) -> None:
    outputs = [out for out in OUTPUTS if (bench.golden / out).exists()]
    out = outputs[number % len(outputs)]
    bench.copy("run" if out != "x/" else "digits")
    differ = out == "x.npy" and rng.random() < 0.5 and (bench.golden / "seed1.npy").exists()
    begun, names = [], []
    for i in range(rng.choice((2, 2, 3))):
        names.append("seed1.npy" if differ and i % 2 else out.rstrip("/"))
        more = ["--seed", "1"] if names[-1] == "seed1.npy" else []
        more += ["--no-resume"] if rng.random() < 0.6 else []
        begun.append(start("sample", *sample(out, *more), before=often_committed))
        apart(rng, bench, "sample")
    finished = ended(bench, begun)
    did = {name for name, done in zip(names, finished, strict=True) if done.code == 0}
    whole(did, lambda name: same_file(out.rstrip("/"), bench.golden / name, "mixed"))
    nothing_left()


@kind("sampler beside a trainer", 20)
def beside(bench: Bench, rng: random.Random, number: int) -> None:
    bench.copy("half/run")
    trainer = start("train", *TRAIN)
    apart(rng, bench, "train")
    sampler = start("sample", *sample("x.npy"))
    wanted(sampler.wait(2 * bench.limit("sample")), 0)
    wanted(trainer.wait(2 * bench.limit("train")), 0)
    whole((f"at-{step}.npy" for step in STEPS), lambda name: same_file("x.npy", bench.golden / name, "mixed"))
