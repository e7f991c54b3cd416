"""`ansn-train`: what it writes, rerunning it, Ctrl-C, divergence."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ansn.cli.train import parse
from ansn.config import from_dict
from ansn.presets import PRESETS
from ansn.training import checkpoint, load_run, pictures
from tests.cli.helpers import PLAIN, TINY, Outcome, call, command_line, environment, start, succeeded
from tests.data.writers import some_images, write_mnist
from tests.training.helpers import assert_same_run, change

PICTURES = ("samples.png", "covariance.png", "loss.png")
REGIONAL = ("samples.png", "covariance.png", "regions.png", "loss.png")


def assert_picture(path: Path) -> None:
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert min(image.size) >= 200
        assert np.asarray(image.convert("L")).std() > 1


def test_what_a_run_leaves(toy: tuple[Path, Outcome, Outcome]) -> None:
    folder, first, _ = toy
    assert {p.name for p in folder.iterdir()} == {
        "checkpoints", "config.json", "metrics.jsonl", "tensorboard", *REGIONAL
    }  # fmt: skip
    for name in REGIONAL:
        assert_picture(folder / name)
    assert first.out.split() == [str(folder / name) for name in REGIONAL], "paths on stdout, the rest on stderr"
    assert "step 30/30  loss" in first.err
    assert "samples/s" in first.err
    assert "s left" in first.err


def test_the_config_is_what_was_asked_for_and_the_skip_that_was_taken(toy: tuple[Path, Outcome, Outcome]) -> None:
    config = from_dict(json.loads((toy[0] / "config.json").read_text()))
    expected = change(
        PRESETS["toy2d"][1], out=str(toy[0]), width=16, blocks=1, batch_size=32, warmup=10, log_every=10, steps=60,
        checkpoint_every=20, samples=50, threads=1, device="cpu", skip="mixture", inputs=(), rho=0.0,
    )  # fmt: skip
    assert config == expected
    assert load_run(toy[0]).config == expected


def test_a_rerun_goes_on_and_ends_as_one_run(toy: tuple[Path, Outcome, Outcome], tmp_path: Path) -> None:
    folder, first, second = toy
    assert "going on" not in first.err
    assert f"going on from step 30 in {folder}" in second.err
    assert checkpoint.steps(folder) == [60, 40]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [10, 20, 30, 40, 50, 60]
    succeeded(call("train", "toy2d", *TINY, "--out", tmp_path, "--samples", 0, "--steps", 60))
    assert_same_run(tmp_path, folder)
    assert not (tmp_path / "samples.png").exists(), "--samples 0 draws none"


def test_digits_are_the_default(digits: Path) -> None:
    assert load_run(digits).info.name == "digits"
    for name in PICTURES:
        assert_picture(digits / name)


def test_a_finished_run_is_drawn_again(digits: Path) -> None:
    before = (digits / "samples.png").read_bytes()
    (digits / "samples.png").unlink()
    outcome = succeeded(call("train", *TINY, "--steps", 20, "--samples", 9, "--out", digits))
    assert "going on from step 20" in outcome.err
    assert (digits / "samples.png").read_bytes() == before


@pytest.mark.parametrize("device", [pytest.param("cpu", marks=pytest.mark.slow), "auto"])
def test_the_pictures_are_drawn_on_the_runs_own_device(
    device: str, digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(pictures, "choose_device", lambda name: asked.append(name) or torch.device("cpu"))
    options = [*TINY, "--device", device, "--steps", 20, "--samples", 9, "--out", digits]
    told = succeeded(call("train", *options)).err
    assert asked == [device]
    assert told.count("device: cpu, 1 thread\n") == 1


def test_no_resume(tmp_path: Path) -> None:
    options = [*TINY, *PLAIN, "--samples", 0, "--out", tmp_path]
    succeeded(call("train", "toy2d", *options, "--steps", 40))
    succeeded(call("train", "toy2d", *options, "--steps", 10, "--no-resume"))
    assert checkpoint.steps(tmp_path) == [10]


def test_arguments_become_settings() -> None:
    assert parse([]) == PRESETS["digits"][1]
    for name, (_, config) in PRESETS.items():
        assert parse([name]) == config
    given = parse(
        ["paper-mnist", "--rho", "0.5", "--freeze-after", "100", "--sampler-levels", "2", "0.1", "5", "--no-resume",
         "--multipliers", "1", "3", "--tau-max", "9", "--data", "a folder", "--flip"]
    )  # fmt: skip
    assert given == change(
        PRESETS["paper-mnist"][1], rho=0.5, freeze_after=100, sampler_levels=(2.0, 0.1, 5), resume=False,
        multipliers=(1, 3), tau_max=9.0, data="a folder", flip=True,
    )  # fmt: skip
    assert parse(["cifar10", "--freeze-after", "None", "--no-flip"]).noise.freeze_after is None
    # Options alone mean the default preset.
    assert parse(["--steps", "7"]) == change(PRESETS["digits"][1], steps=7)


# -- interrupted -----------------------------------------------------------------------------------------------

LONG = ("toy2d", *TINY, *PLAIN, "--samples", "0", "--dropout", "0.1", "--steps")


def interrupted(out: Path, number: signal.Signals, times: int = 1) -> Outcome:
    """A run of very many steps that gets the signal once it has told of its first ones."""
    process = subprocess.Popen(
        command_line("train", *LONG, 10**7, "--out", out),
        env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        told: list[str] = []
        while not told or (told[-1] and not told[-1].startswith("step ")):
            told.append(process.stderr.readline())
        assert told[-1].startswith("step 10/"), told
        for _ in range(times):
            os.kill(process.pid, number)
        out_text, err_text = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    return Outcome(process.returncode, out_text, "".join(told) + err_text)


def assert_interrupted_run_goes_on(outcome: Outcome, folder: Path, whole: Path) -> None:
    assert outcome.code == 130, outcome.err
    assert "Traceback" not in outcome.err
    step = checkpoint.steps(folder)[0]
    last = outcome.err.splitlines()[-1]
    assert last == f"ansn-train: {folder}: interrupted at step {step}; its checkpoint is there"
    assert outcome.out == ""
    assert load_run(folder).step == step
    # The same command goes on; with fewer steps, so that it comes to an end.
    for run in (folder, whole):
        succeeded(call("train", *LONG, step + 7, "--out", run))
    assert checkpoint.steps(folder)[0] == step + 7
    assert_same_run(folder, whole)


def test_ctrl_c_then_the_same_command_again(tmp_path: Path) -> None:
    outcome = interrupted(tmp_path / "run", signal.SIGINT)
    assert_interrupted_run_goes_on(outcome, tmp_path / "run", tmp_path / "whole")


@pytest.mark.slow
def test_sigterm_is_like_ctrl_c(tmp_path: Path) -> None:
    outcome = interrupted(tmp_path / "run", signal.SIGTERM)
    assert_interrupted_run_goes_on(outcome, tmp_path / "run", tmp_path / "whole")


@pytest.mark.slow
def test_ctrl_c_twice(tmp_path: Path) -> None:
    """Whichever step the second one meets: exit code 130, no traceback, and what is on the disk is whole."""
    outcome = interrupted(tmp_path, signal.SIGINT, times=2)
    assert outcome.code == 130
    assert "Traceback" not in outcome.err
    assert "interrupted" in outcome.err.splitlines()[-1]
    for step in checkpoint.steps(tmp_path):
        assert load_run(tmp_path, step=step).step == step


@pytest.mark.slow
def test_ctrl_c_while_the_samples_are_drawn(tmp_path: Path) -> None:
    """The run is trained and saved by then."""
    options = ("--steps", 20, "--samples", 200_000, "--sample-steps", 2000, "--out", tmp_path)
    process = subprocess.Popen(
        command_line("train", "toy2d", *TINY, *options), env=environment(), stderr=subprocess.PIPE, text=True
    )
    try:
        begun = time.monotonic()
        while not (tmp_path / "loss.png").exists():
            assert process.poll() is None
            assert time.monotonic() - begun < 60
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert err.splitlines()[-1] == "ansn-train: interrupted"
    assert "Traceback" not in err
    assert load_run(tmp_path).step == 20


# -- lines and volumes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 13), (1, 4, 5, 4)])
def test_a_field_from_file_to_file(shape: tuple[int, ...], tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(3, 5, (60, *shape)).cumsum(-1)
    np.save(tmp_path / "field.npy", rows)
    run = tmp_path / "run"
    options = ["--network", "unet", "--multipliers", 1, "--samples", 6, "--sample-steps", 2, "--steps", 4, *TINY]
    outcome = call("train", "digits", "--dataset", tmp_path / "field.npy", *options, "--width", 8, "--out", run)
    assert outcome.code == 0, outcome.err
    for name in PICTURES:
        assert_picture(run / name)
    assert load_run(run).info.shape == shape
    outcome = call("sample", run, "-n", 5, "--steps", 2, "--threads", 1, "--out", tmp_path / "x.npy")
    assert outcome.code == 0, outcome.err
    drawn = np.load(tmp_path / "x.npy")
    assert drawn.shape == (5, *shape)
    assert np.isfinite(drawn).all()
    outcome = call("sample", run, "-n", 5, "--out", tmp_path / "x.csv")
    assert outcome.code == 2
    assert "holds fields, expected .png or .npy" in outcome.err


# -- diverged --------------------------------------------------------------------------------------------------


def test_divergence_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    outcome = call("train", *TINY[:-4], *PLAIN, "--lr", "1e30", "--warmup", 0, "--clip", 0, "--out", tmp_path)
    assert outcome.code == 1
    (line,) = [text for text in outcome.err.splitlines() if text.startswith("ansn-")]
    assert "Traceback" not in outcome.err
    assert line.startswith("ansn-train: loss: it or its gradient is not a number any more")
    assert "no checkpoint was written" in line
    assert outcome.out == ""


# -- presets from the first command to the pictures --------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dpmpp_2m", "heun_churn", "langevin", "paper"])
@pytest.mark.parametrize("network", ["unet", "ncsn", "ncsnv2"])
def test_networks_and_methods_to_the_end(tmp_path: Path, network: str, method: str) -> None:
    np.savez(tmp_path / "rows.npz", x=some_images(20, 16, 16))
    options = [
        "--network", network, "--width", 8, "--multipliers", 1, "--batch-size", 4, "--steps", 2, "--method", method,
        "--sample-steps", 2, "--samples", 4, "--ladder", "geometric", "--tau-max", 2, "--tau-min", 0.5, "--rungs", 3,
    ]  # fmt: skip
    where = ("--dataset", tmp_path / "rows.npz", "--out", tmp_path / "run")
    succeeded(call("train", "digits", *TINY, *where, *options))
    assert_picture(tmp_path / "run" / "samples.png")


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["mnist", "paper-mnist"])
def test_image_presets_as_a_user_starts_them(tmp_path: Path, preset: str) -> None:
    write_mnist(tmp_path, some_images(40, 28, 28), np.arange(40, dtype=np.uint8) % 10)
    small = ("--width", 8, "--batch-size", 4, "--steps", 2, "--samples", 4, "--sample-steps", 3)
    outcome = start("train", preset, "--data", tmp_path, *small, "--out", tmp_path / "run")
    succeeded(outcome)
    for name in PICTURES:
        assert_picture(tmp_path / "run" / name)
