"""A run that was stopped and gone on with is the run that was not: bit for bit (math section 8, item 8)."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ansn import machine
from ansn.errors import InputError
from ansn.training import Interrupted, build, checkpoint, load_run, train
from ansn.training.progress import Reporter
from ansn.training.trainer import Trainer
from tests.training.helpers import assert_same_run, assert_same_tensors, metrics, small, tensors, trained

RUNS: dict[str, dict[str, Any]] = {
    "plain": {},
    "random data and dropout": {"dropout": 0.2, "dequantise": True, "flip": True},
    "a covariance for each class": {"regions": "labels", "class_conditional": True},
    "withheld labels": {"class_conditional": True, "label_dropout": 0.3, "dropout": 0.1},
    "withheld labels of regions": {"regions": "labels", "class_conditional": True, "label_dropout": 0.3},
    "no average, forgetting": {"ema": 0.0, "forgetting": 0.99, "freeze_after": None, "weight_decay": 0.01},
    "frozen before": {"freeze_after": 300},
    "frozen after": {"freeze_after": 900, "gamma": 0.5, "root": "symmetric"},
    "diagonal, geometric": {"structure": "diagonal", "ladder": "geometric"},
    "scalar skip": {"skip": "scalar"},
    "wiener skip, never frozen": {"skip": "wiener", "freeze_after": None},
    "wiener skip, frozen, diagonal": {"skip": "wiener", "freeze_after": 900, "structure": "diagonal"},
    "whitened network": {"prediction": "whitened", "clip": 0.0},
    "noise of found regions": {"regions": 4, "freeze_after": None, "label_dropout": 0.2},
    "as many as the data asks for": {"regions": "auto", "structure": "cosine"},
    "mixture skip": {"skip": "mixture", "regions": 4, "freeze_after": None, "inputs": ("estimate",)},
    "mixture skip of classes": {"skip": "mixture", "regions": "labels", "structure": "separable"},
    "unet": {"network": "unet", "width": 8, "multipliers": (1,), "batch_size": 8, "dropout": 0.2},
}


@pytest.mark.parametrize("settings", RUNS.values(), ids=RUNS.keys())
def test_twenty_and_twenty_more_are_forty(
    tmp_path: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ansn.covariance.mixture.CANDIDATES", (1, 2, 4))  # more would take seconds
    whole = trained(tmp_path / "whole", **settings)
    parts = trained(tmp_path / "parts", **settings | {"steps": 20})
    halfway = tensors(parts)
    trained(parts, **settings)
    assert checkpoint.steps(parts)[0] == 40
    assert any(not torch.equal(halfway[k], v) for k, v in tensors(parts).items() if k.startswith("network/"))
    assert_same_run(whole, parts)
    assert metrics(whole) == metrics(parts)
    assert [line["step"] for line in metrics(parts)] == list(range(5, 41, 5))


def test_the_random_state_around_a_run_does_not_matter(tmp_path: Path) -> None:
    torch.manual_seed(1)
    a = trained(tmp_path / "a", dropout=0.2)
    torch.manual_seed(2)
    torch.rand(5)
    assert_same_run(a, trained(tmp_path / "b", dropout=0.2))


def test_dropout_draws_anew_at_every_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[float] = []
    loss_of = Trainer._loss
    monkeypatch.setattr(
        Trainer, "_loss", lambda self, *args: drawn.append(float(torch.rand(()))) or loss_of(self, *args)
    )
    trained(tmp_path / "a", dropout=0.2)
    trained(tmp_path / "b", dropout=0.2, seed=1)
    assert len(set(drawn)) == 80


def test_another_seed_is_another_run(tmp_path: Path) -> None:
    a, b = (tensors(trained(tmp_path / str(seed), seed=seed, steps=2)) for seed in (0, 1))
    assert all(not torch.equal(v, b[k]) for k, v in a.items() if k.startswith("network/") and v.std() > 0)


def test_other_intervals_change_nothing_but_lines(whole: Path, tmp_path: Path) -> None:
    parts = trained(tmp_path / "parts", steps=17, checkpoint_every=1000, log_every=40)
    trained(parts, checkpoint_every=3, log_every=7)
    assert checkpoint.steps(parts) == [40, 39]
    assert_same_run(whole, parts)


def test_the_ladder_is_the_checkpoints_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest geometric level is read off the data once, not again at each resumption."""
    run = trained(tmp_path / "run", ladder="geometric", steps=10)
    before = load_run(run).model.noise.levels
    monkeypatch.setattr(build.levels, "tau_max_langevin", lambda *_: 2 * before.maximum)
    trained(run, ladder="geometric", steps=11)
    assert load_run(run).model.noise.levels == before


def interrupt_at(monkeypatch: pytest.MonkeyPatch, step: int, *, times: int = 1) -> None:
    """Ctrl-C while that step is at work, once or more."""
    advance = Reporter.advance

    def hook(self: Reporter, at: int) -> None:
        advance(self, at)
        if at == step:
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Reporter, "advance", hook)


def test_ctrl_c_writes_a_checkpoint_and_the_rest_follows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"schedule": "cosine", "dropout": 0.1}
    whole = trained(tmp_path / "whole", **options)
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        interrupt_at(patch, 13)
        with pytest.raises(Interrupted, match="step 13"):
            trained(tmp_path / "parts", **options)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert checkpoint.steps(tmp_path / "parts") == [13, 10]
    assert metrics(tmp_path / "parts")[-1]["step"] == 13
    trained(tmp_path / "parts", **options)
    assert_same_run(whole, tmp_path / "parts")
    between, lines = [], []
    for line in metrics(tmp_path / "parts"):
        (between if line["step"] == 13 else lines).append(line)
    assert lines == metrics(whole), "means are over the same steps"
    assert [line["steps"] for line in between] == [3]


def test_a_second_ctrl_c_ends_at_once_and_loses_nothing_saved(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(machine, "_ONCE", 0.0)
        interrupt_at(patch, 13, times=2)
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path / "parts")
    assert checkpoint.steps(tmp_path / "parts") == [10]
    trained(tmp_path / "parts")
    assert_same_run(whole, tmp_path / "parts")


def test_a_time_limit_ends_with_a_checkpoint(whole: Path, tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(Interrupted, match=r"interrupted at step \d+; its checkpoint is there"):
            trained(tmp_path / "run", max_minutes=1e-6)
    assert checkpoint.steps(tmp_path / "run") == [2, 1], "a step each time"
    trained(tmp_path / "run")
    assert_same_run(whole, tmp_path / "run")


def test_a_second_trainer_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save, refused = checkpoint.save, []

    def meanwhile(*args: Any) -> Path:
        for resume in (True, False):
            with pytest.raises(InputError, match=rf"run: got an output that process {os.getpid()} on"):
                trained(tmp_path / "run", resume=resume)
            refused.append(resume)
        return save(*args)

    monkeypatch.setattr(checkpoint, "save", meanwhile)
    trained(tmp_path / "run", steps=10)
    assert refused == [True, False]
    assert not (tmp_path / "run" / ".lock").exists()


def test_a_folder_that_is_deleted_under_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    advance = Reporter.advance

    def delete(self: Reporter, step: int) -> None:
        advance(self, step)
        if step == 15:
            shutil.rmtree(tmp_path / "run")

    monkeypatch.setattr(Reporter, "advance", delete)
    with pytest.raises(InputError, match=r"run: got deleted while it was written"):
        trained(tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["checkpoints", "tensorboard"])
def test_links_are_not_written_behind(tmp_path: Path, name: str) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    run.mkdir(), other.mkdir()
    (other / "step-00000001").mkdir()
    (run / name).symlink_to(other)
    with pytest.raises(InputError, match=rf"{name}: got a link to .+other, expected a folder"):
        trained(run, resume=False)
    assert [p.name for p in other.iterdir()] == ["step-00000001"]


LINES = ["null", '{"loss": 1}', "\xf3", "[" * 10**5, '{"step": 1e99}', '{"step": true}', '{"step": 5, "loss": "x"}', ""]


def test_a_damaged_log_is_no_state(whole: Path, tmp_path: Path) -> None:
    run = trained(tmp_path / "run", steps=10)
    with (run / "metrics.jsonl").open("a", encoding="latin-1") as file:
        file.write("\n".join(LINES) + '\n{"st')
    with pytest.warns(UserWarning, match=r"metrics.jsonl: 8 of \d+ lines are damaged and left out"):
        trained(run)
    assert_same_run(whole, run)
    assert metrics(run) == metrics(whole)


def crash_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    train_step = Trainer._train_step

    def hook(self: Trainer, at: int, *batch: Any) -> Any:
        if at == step:
            raise RuntimeError("power cut")
        return train_step(self, at, *batch)

    monkeypatch.setattr(Trainer, "_train_step", hook)


def test_lines_after_the_checkpoint_are_cut_on_resuming(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        crash_at(patch, 28)
        with pytest.raises(RuntimeError, match="power cut"):
            trained(run)
    assert [line["step"] for line in metrics(run)] == [5, 10, 15, 20, 25]
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 30, "lo')  # a line that the crash cut
    with monkeypatch.context() as patch:
        crash_at(patch, 20)  # at once: what resuming did to the file
        with pytest.raises(RuntimeError, match="power cut"):
            trained(run)
    assert [line["step"] for line in metrics(run)] == [5, 10, 15, 20]
    trained(run)
    assert_same_run(whole, run)
    assert metrics(run) == metrics(whole)


def test_from_the_checkpoint_before_when_the_newest_is_deleted(whole: Path, run: Path) -> None:
    shutil.rmtree(run / "checkpoints" / "step-00000040")
    assert load_run(run).step == 30
    trained(run)
    assert_same_run(whole, run)
    assert metrics(run) == metrics(whole)


def test_a_finished_run_stays_as_it_is(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, lines = tensors(run), (run / "metrics.jsonl").read_text()
    capsys.readouterr()
    trained(run)
    assert "going on from step 40" in capsys.readouterr().err
    assert_same_tensors(before, tensors(run))
    assert (run / "metrics.jsonl").read_text() == lines


CHANGES: dict[str, Any] = {
    "width": 17, "batch_size": 31, "lr": 2e-3, "ema": 0.9, "rho": 0.25, "seed": 1, "dropout": 0.1, "schedule": "cosine",
    "dequantise": True, "regions": 4, "inputs": ("estimate",), "freeze_after": 77, "tau_min": 0.02,
    "metric": "whitened",
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_changed_settings_are_refused_by_name(whole: Path, name: str) -> None:
    before = tensors(whole)
    with pytest.raises(InputError) as caught:
        trained(whole, steps=50, **{name: CHANGES[name]})
    message = str(caught.value)
    assert "\n" not in message
    assert str(whole) in message
    assert f"{name}: " in message
    assert f"-> {CHANGES[name]}" in message
    assert "--no-resume" in message
    assert_same_tensors(before, tensors(whole))


def test_what_does_not_change_the_training_may_change(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", steps=2)
    threads = torch.get_num_threads()
    trained(
        run, steps=3, log_every=1, checkpoint_every=1, method="langevin", sample_steps=2, samples=0, start="uniform",
        data=str(tmp_path), threads=threads, device="auto",
    )  # fmt: skip
    assert checkpoint.steps(run) == [3, 2]
    assert json.loads((run / "config.json").read_text())["run"]["log_every"] == 1


def test_other_data_under_the_same_name_is_refused(tmp_path: Path) -> None:
    table = tmp_path / "points.csv"
    rng = np.random.default_rng(0)
    np.savetxt(table, rng.normal(size=(50, 3)), delimiter=",", header="a,b,c", comments="")
    run = trained(tmp_path / "run", dataset=str(table), steps=2)
    np.savetxt(table, rng.normal(size=(50, 3)), delimiter=",", header="a,b,d", comments="")
    with pytest.raises(InputError, match=r"run: got other data \(points\.csv, 45 rows\), expected that of the run in"):
        trained(run, dataset=str(table), steps=4)
    with pytest.raises(InputError, match=r"run: got other data \(digits, 1,347 rows\), expected that of the run in it"):
        trained(run, steps=4)
    assert load_run(run).step == 2


def test_the_same_data_at_another_place_is_gone_on_with(tmp_path: Path) -> None:
    table, moved = tmp_path / "points.csv", tmp_path / "elsewhere" / "points.csv"
    np.savetxt(table, np.random.default_rng(0).normal(size=(50, 3)), delimiter=",", header="a,b,c", comments="")
    run = trained(tmp_path / "run", dataset=str(table), steps=2)
    moved.parent.mkdir()
    table.rename(moved)
    trained(run, dataset=str(moved), steps=4)
    assert load_run(run).step == 4


def test_no_resume_starts_over(run: Path, tmp_path: Path) -> None:
    fresh = trained(tmp_path / "fresh", width=8, steps=5)
    trained(run, width=8, steps=5, resume=False)
    assert checkpoint.steps(run) == [5]
    assert_same_run(run, fresh)
    assert metrics(run) == metrics(fresh)


@pytest.mark.parametrize("wrong", [{"rho": 2.0}, {"batch_size": 0}, {"dataset": "no-such-file.npy"}])
def test_no_resume_with_a_mistake_deletes_nothing(whole: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        train(small(whole, resume=False, **wrong))
    assert checkpoint.steps(whole) == [40, 30]
