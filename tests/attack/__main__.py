"""``make attack``: what a user, a machine or a stranger may do to the commands, and a table of how they took it.

Each trial is a function of (seed, kind, number), but for the moments at which processes are killed. Exit status 0:
every trial was right.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

# Before anything that would start threads is imported.
os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
os.environ |= {"CUDA_VISIBLE_DEVICES": "", "COLUMNS": "200"}

from tests.attack import batches, runs
from tests.attack.trials import COLUMNS, KINDS, Bench, Kind, Skip, Wrong, end_all

SETUP = 30.0  # seconds that the runs take that trials begin from, and the last trials of each kind beyond their share


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.attack", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=9.0, help="at most so long, of two cores")
    parser.add_argument("--only", action="append", metavar="KIND", help="kinds whose names have this in them")
    parser.add_argument("--number", type=int, help="this trial alone, and keep its folder")
    parser.add_argument("--quick", action="store_true", help="the small selection of the fast tests")
    given = parser.parse_args()
    end = time.monotonic() + 60 * given.minutes - SETUP
    batches.import_all()
    import ansn

    print(f"ansn of {Path(ansn.__file__).parent}, seed {given.seed}", flush=True)
    chosen = [k for k in KINDS.values() if any(part in k.name for part in given.only or [""])]
    chosen = [k for k in chosen if k.quick or not given.quick]
    root = Path(tempfile.mkdtemp(prefix="attack-"))
    root.chmod(0o755)
    try:
        bench = Bench(root / "golden")
        bench.golden.mkdir()
        os.chdir(bench.golden)
        runs.make(bench, quick=given.quick)
        count = 1 if given.quick or given.number is not None else 2
        begun = [_begin(bench, root, chosen, given, worker, count, end) for worker in range(count)]
        broken = [pid for pid in begun if os.waitpid(pid, 0)[1]]
        results = [json.loads(line) for i in range(count) for line in (root / f"results-{i}").read_text().splitlines()]
        return table(chosen, results) or int(bool(broken))
    finally:
        os.chdir("/")
        if given.number is None:
            shutil.rmtree(root, ignore_errors=True)
        else:
            print(root)


def _begin(bench: Bench, root: Path, kinds: list[Kind], given: argparse.Namespace, i: int, n: int, end: float) -> int:
    """Worker i of n, a fork: every n-th batch of each kind. Returns its process."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    gc.freeze()  # memory that forks share stays shared
    try:
        with (root / f"results-{i}").open("w", buffering=1) as results:
            for place, each in enumerate(kinds):
                # What an earlier kind left of its time is the later ones'.
                share = each.share / sum(k.share for k in kinds[place:])
                until = time.monotonic() + max(end - time.monotonic(), 0.0) * share
                total = each.quick if given.quick else each.number
                for first in range(i * each.batch, total, n * each.batch):
                    if given.number is not None and not first <= given.number < first + each.batch:
                        continue
                    if time.monotonic() > until and not given.quick:
                        break
                    numbers = range(first, min(first + each.batch, total))
                    if given.number is not None:
                        numbers = range(given.number, given.number + 1)
                    folder = root / f"{each.name.replace(' ', '-').replace('/', '-')}-{first}"
                    begun = time.monotonic()
                    found = trial(bench, each, given.seed, numbers, folder, until, given.number is not None)
                    for result in found:
                        took = (time.monotonic() - begun) / len(found)
                        results.write(json.dumps([each.name, *result, took]) + "\n")
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def trial(
    bench: Bench, each: Kind, seed: int, numbers: range, folder: Path, until: float, keep: bool
) -> list[tuple[int, str, str]]:
    """Number, column and text of each trial of a batch, in a folder that is removed after it."""
    folder.mkdir()
    folder.chmod(0o755)
    os.chdir(folder)
    try:
        if each.batch > 1:
            return batches.fork(bench, each, seed, numbers, until)
        return [(numbers[0], *one(bench, each, seed, numbers[0]))]
    finally:
        end_all()
        os.chdir(folder.parent)
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)


def one(bench: Bench, each: Kind, seed: int, number: int) -> tuple[str, str]:
    """Column and text of one trial."""
    try:
        each.one(bench, random.Random(f"{seed}/{each.name}/{number}"), number)
    except Wrong as wrong:
        return wrong.args
    except Skip as skip:
        return "skipped", str(skip)
    except Exception as error:  # what the trial did not think of counts too
        return "traceback", f"{batches.described(error)} of the trial"
    return "right", ""


def table(kinds: list[Kind], results: list[tuple[str, int, str, str, float]]) -> int:
    """Print the counts, and of each kind some that went wrong. Returns the exit status."""
    widths = [len(name) + 2 for name in ("trials", "right", *COLUMNS)]
    names = "".join(f"{n:>{w}}" for n, w in zip(("trials", "right", *COLUMNS), widths, strict=True))
    print(f"{'':<30}{names}   seconds")
    total: Counter[str] = Counter()
    for each in kinds:
        mine = [(column, text, seconds) for name, _, column, text, seconds in results if name == each.name]
        counts = Counter(column for column, _, _ in mine)
        reason = next((text for column, text, _ in mine if column == "skipped"), "")
        trials = len(mine) - counts["skipped"]
        values = (trials, counts["right"], *(counts[c] for c in COLUMNS))
        note = f"  left out: {reason}" if reason else f"{sum(seconds for *_, seconds in mine):>10.1f}"
        print(f"{each.name:<30}" + "".join(f"{v:>{w}}" for v, w in zip(values, widths, strict=True)) + note)
        total += counts
    values = (sum(total[c] for c in ("right", *COLUMNS)), total["right"], *(total[c] for c in COLUMNS))
    print(f"{'in all':<30}" + "".join(f"{v:>{w}}" for v, w in zip(values, widths, strict=True)))
    shown: Counter[tuple[str, str]] = Counter()
    for name, number, column, text, _ in results:
        if column in COLUMNS and shown[name, column] < 8:
            shown[name, column] += 1
            print(f"{column}: {name} {number}: {text}")
    return int(any(total[c] for c in COLUMNS) or not total["right"])


if __name__ == "__main__":
    sys.exit(main())
