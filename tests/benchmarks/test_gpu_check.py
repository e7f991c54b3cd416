"""The GPU check itself, run on the CPU: a wrong operation gets no speed, a crash loses only itself, the whole runs."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest
import torch

from ansn import ops
from ansn.ops import _dispatch, reference
from benchmarks import gpu_check, workloads
from benchmarks.gpu import cases, ceilings, parity, report, speed, warm
from benchmarks.gpu.step import Journal, Step


def step(tmp_path, name: str, seconds: float = 60.0) -> Step:
    return Step(name, tmp_path, "cpu", quick=True, seconds=seconds)


def broken(kind: str):
    """A coloured step that is wrong in one column where d > 6: off by a little, or never written."""

    def function(x, *args):
        right = reference.colored_step(x, *args)
        if right.shape[1] <= 6:
            return right
        out = torch.empty_like(right)
        out[:, 1:] = right[:, 1:]
        if kind == "off":
            out[:, 0] = 1.001 * right[:, 0]
        return out

    return function


@pytest.fixture
def only_the_step(monkeypatch):
    """Some cases of one operation: the whole is the slow test's."""
    monkeypatch.setattr(ops, "operations", lambda: ("colored_step",))
    found = [case for case in cases.of("colored_step", quick=True) if case.dtype == torch.float32]
    monkeypatch.setattr(cases, "of", lambda *_: found)


@pytest.mark.parametrize("kind", ["off", "unwritten"])
def test_an_operation_whose_parity_failed_gets_no_speed(tmp_path, monkeypatch, only_the_step, kind):
    monkeypatch.setitem(_dispatch._table["colored_step"], "broken", (broken(kind), lambda *_: None))
    # A back end needs to be known by name to be chosen.
    monkeypatch.setattr(_dispatch, "BACKENDS", (*_dispatch.BACKENDS, "broken"))
    parity.run(step(tmp_path, "parity"))
    verdicts = parity.verdicts(step(tmp_path, "speed"))
    assert verdicts["colored_step", "reference"] is None
    assert "parity failed" in verdicts["colored_step", "broken"]

    ceilings.run(step(tmp_path, "ceilings"))
    timed = step(tmp_path, "speed")
    rates = ceilings.rates(timed)
    timed.run("langevin", lambda: speed.measure(timed, workloads.langevin("cpu", 8, 48), verdicts, rates, False))
    (row,) = timed.journal.rows("speed")
    assert "ansn reference" in row["us"]
    assert "ansn broken" not in row["us"]
    report.write(tmp_path, timed.journal)
    text = (tmp_path / "gpu_check.md").read_text()
    assert "| colored_step | broken | FAILED |" in text
    assert "broken: no speed, parity failed in" in text


def test_no_back_end_that_passed_means_no_speed_at_all(tmp_path):
    timed = step(tmp_path, "speed")
    work = workloads.langevin("cpu", 8, 48)
    timed.run("langevin", lambda: speed.measure(timed, work, {}, (1e9, 1e9), False))
    (row,) = timed.journal.rows("speed")
    assert "us" not in row
    assert set(row["no speed"]) == set(parity.back_ends("colored_step"))
    report.write(tmp_path, timed.journal)
    assert "no speed, parity was not checked" in (tmp_path / "gpu_check.md").read_text()


def test_a_parity_that_was_cut_short_is_no_verdict(tmp_path, only_the_step):
    parity.run(step(tmp_path, "parity", seconds=0.0))
    found = parity.verdicts(step(tmp_path, "speed"))
    assert set(found.values()) == {"parity was not checked"}
    journal = Journal(tmp_path / "journal.jsonl")
    assert len(report.skipped(journal, "parity")) > 10
    assert not report.failures(journal, "parity")


def test_workers_share_the_calls(monkeypatch, capsys):
    """Past calls that fail: those are the later steps' to find."""
    made: list[int] = []
    found = [lambda i=i: made.append(i) or (1 / 0 if i == 2 else None) for i in range(5)]
    monkeypatch.setattr(warm, "calls", lambda *_: iter(found))
    assert [warm.work(i, 2, 60.0, True, "cpu") for i in range(2)] == [3, 2]
    assert made == [0, 2, 4, 1, 3]
    assert "ZeroDivisionError" in capsys.readouterr().err
    assert warm.work(0, 2, -1.0, True, "cpu") == 0


def test_the_calls_to_compile_are_those_of_later_steps():
    """Each runs, here on the CPU; a call whose arguments rotted would leave its kernel to the step that is timed."""
    made = 0
    for call in warm.calls("cpu", quick=True):
        call()
        made += 1
    assert made > 100


def test_every_operation_has_cases():
    for operation in ops.operations():
        found = cases.of(operation, quick=True)
        assert found
        assert len({case.name for case in found}) == len(found)  # the journal knows a case by its name


def test_a_step_goes_on_after_an_error_and_after_a_death(tmp_path):
    first = step(tmp_path, "parity")
    first.run("good", lambda: {"ratio": 1.0})
    first.run("bad", lambda: {"ratio": 1 / 0})
    first.journal.append("parity", "lost", begun=True)  # what a killed process leaves
    with first.journal.path.open("a") as out:
        out.write('{"step": "parity", "ke')
    assert first.journal.unfinished("parity") == "lost"
    rows = first.journal.rows("parity")
    assert [row["key"] for row in rows] == ["good", "bad"]
    assert rows[1]["error"] == "ZeroDivisionError: division by zero"


def test_a_step_that_dies_is_started_again_and_its_piece_named(tmp_path, monkeypatch):
    """The process kills itself in one piece of work; the pieces before and after it are there."""
    code = (
        "import os, pathlib, sys\n"
        "from benchmarks.gpu.step import Step\n"
        "step = Step('parity', pathlib.Path(sys.argv[1]), 'cpu', True, 60)\n"
        "for key in 'abc':\n"
        "    step.run(key, lambda: os.kill(os.getpid(), 9) if key == 'b' else {'fine': key})\n"
    )
    monkeypatch.setattr(gpu_check, "command", lambda *_: [sys.executable, "-c", code, str(tmp_path)])
    journal = Journal(tmp_path / "journal.jsonl")
    ended, _ = gpu_check.run_step("parity", gpu_check.parse(["--out", str(tmp_path)]), journal, 120.0)
    assert ended == "done after 1 restarts"
    rows = {row["key"]: row for row in journal.rows("parity")}
    assert rows["b"]["error"] == "the process died with status -9"
    assert rows["a"]["fine"] == "a"
    assert rows["c"]["fine"] == "c"


def test_a_step_that_hangs_is_killed_and_that_is_no_failure(tmp_path, monkeypatch):
    code = "import time; time.sleep(600)"
    monkeypatch.setattr(gpu_check, "command", lambda *_: [sys.executable, "-c", code])
    journal = Journal(tmp_path / "journal.jsonl")
    ended, seconds = gpu_check.run_step("parity", gpu_check.parse(["--out", str(tmp_path)]), journal, 2.0)
    assert ended == "out of time: killed"
    assert seconds < 20
    assert not report.failures(journal, "parity")
    assert report.skipped(journal, "parity") == ["start"]
    assert (tmp_path / "gpu_check.md").exists()  # written while it ran


def test_a_step_that_cannot_start_is_a_failure(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_check, "command", lambda *_: [sys.executable, "-c", "raise SystemExit(3)"])
    journal = Journal(tmp_path / "journal.jsonl")
    gpu_check.run_step("parity", gpu_check.parse(["--out", str(tmp_path)]), journal, 60.0)
    assert report.failures(journal, "parity") == ["start: the process died with status 3"]


@pytest.mark.slow
def test_killed_it_leaves_what_was_done_and_no_process(tmp_path):
    """As at the end of a machine's time, in the middle of a step."""
    words = [sys.executable, str(gpu_check.ROOT / "benchmarks" / "gpu_check.py"), "--device", "cpu", "--quick"]
    journal = Journal(tmp_path / "journal.jsonl")
    with subprocess.Popen([*words, "--steps", "parity", "--out", str(tmp_path)], stdout=subprocess.DEVNULL) as process:
        end = time.monotonic() + 120
        while not any("ratio" in row for row in journal.rows("parity")) and time.monotonic() < end:
            time.sleep(0.1)
        process.terminate()
        assert process.wait(60) == 143
    count = len(journal.rows("parity"))
    assert count
    time.sleep(1.0)
    assert len(journal.rows("parity")) == count


@pytest.mark.slow
def test_the_whole_runs_on_the_cpu(tmp_path):
    command = [sys.executable, str(gpu_check.ROOT / "benchmarks" / "gpu_check.py"), "--device", "cpu", "--quick"]
    done = subprocess.run([*command, "--out", str(tmp_path)], capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    rows = json.loads((tmp_path / "gpu_check.json").read_text())
    ended = [row["key"] for row in rows["steps"]]  # of the first two, which run at once, either may be first
    assert (set(ended[:2]), ended[2:]) == (set(list(gpu_check.STEPS)[:2]), list(gpu_check.STEPS)[2:])
    assert all(row["ended"] == "done" for row in rows["steps"])
    passed = {row["operation"] for row in rows["parity"] if row.get("passed")}
    assert passed == set(ops.operations())
    assert {row["operation"] for row in rows["speed"]} == set(ops.operations())
    assert all(row["us"] and row["share"] > 0 for row in rows["speed"])
    text = (tmp_path / "gpu_check.md").read_text()
    for name in gpu_check.STEPS:
        assert f"## {name}" in text
    assert "NOT PASSED" not in text
    assert "FAILED" not in text
