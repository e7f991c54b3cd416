"""A mistake is one line on stderr and exit code 2: no traceback, nothing written."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ansn.ops import _dispatch, native
from ansn.presets import PRESETS
from ansn.training import checkpoint
from ansn.training.trainer import Trainer
from tests.cli.helpers import PLAIN, TINY, Outcome, call, start
from tests.data.writers import some_images, write_mnist
from tests.training.helpers import seal


def assert_refused(outcome: Outcome, command: str, *parts: str) -> None:
    assert outcome.code == 2, outcome
    assert outcome.out == ""
    *told, line = outcome.err.splitlines()
    assert not any(text.startswith(("Traceback", "  File", "ansn-")) for text in told), told
    assert re.fullmatch(f"ansn-{command}: error: .+: got .+, expected .+", line), line
    for part in parts:
        assert part in line, f"{part!r} not in {line!r}"


def test_a_mistake_as_a_user_sees_it() -> None:
    """In a process of its own: from the interpreter's start to its exit code."""
    assert_refused(start("train", "nope"), "train", "nope", ", ".join(PRESETS))


@pytest.mark.skipif(native.module is None, reason=f"no native back end: {native.missing}")
def test_a_wrong_instruction_set_is_one_line_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the environment, which the module reads once."""
    monkeypatch.setenv("ANSN_CPU_ISA", "fast")
    assert_refused(start("info"), "info", "ANSN_CPU_ISA", "'fast'", "this CPU supports")


def test_a_wrong_back_end_is_one_line_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_dispatch, "_current", lambda: "fast")  # what the environment said when the module was loaded
    assert_refused(call("info"), "info", "ANSN_BACKEND: got 'fast', expected one of auto, reference, native, triton")


TRAIN: dict[str, tuple[list[Any], tuple[str, ...]]] = {
    "unknown option": (["digits", "--bogus", 3], ("--bogus",)),
    "option of no preset": (["--bogus"], ("--bogus",)),
    "two presets": (["digits", "toy2d"], ("toy2d",)),
    "no number": (["--steps", "x"], ("--steps", "'x'")),
    "no whole number": (["--steps", "1.5"], ("--steps", "'1.5'")),
    "no value": (["--steps"], ("--steps",)),
    "no choice": (["--network", "resnet"], ("--network", "'resnet'", "unet")),
    "too few values": (["--sampler-levels", 1, 0.1], ("--sampler-levels",)),
    "steps": (["--steps", 0], ("--steps", "got 0", "at least 1")),
    "batch": (["--batch-size", -3], ("--batch-size", "got -3", "at least 1")),
    "rate": (["--lr", 0], ("--lr", "got 0.0", "> 0")),
    "rate that is no number": (["--lr", "nan"], ("--lr", "got nan")),
    "adam": (["--adam-eps", -1], ("--adam-eps", "got -1.0", "0 or more")),
    "decay": (["--weight-decay", -1], ("--weight-decay", "got -1.0", "0 or more")),
    "average": (["--ema", 1], ("--ema", "got 1.0", "ema < 1")),
    "clip": (["--clip", -1], ("--clip", "got -1.0")),
    "warm-up": (["--warmup", -1], ("--warmup", "got -1")),
    "seed": (["--seed", -1], ("--seed", "got -1", "2^63")),
    "log": (["--log-every", 0], ("--log-every", "got 0")),
    "checkpoint": (["--checkpoint-every", 0], ("--checkpoint-every", "got 0")),
    "threads": (["--threads", 0], ("--threads", "got 0")),
    "samples": (["--samples", -1], ("--samples", "got -1")),
    "sample steps": (["--sample-steps", 0], ("--sample-steps", "got 0")),
    "step size": (["--method", "langevin", "--step-eps", 0], ("--step-eps", "got 0.0")),
    "step size of a flow": (["--step-eps", 0.1], ("--step-eps", "dpmpp_2m, expected no such option")),
    "levels that rise": (["--sampler-levels", 0.1, 1, 5], ("--sampler-levels", "0.1 1.0 5")),
    "one level": (["--sampler-levels", 1, 0.1, 1], ("--sampler-levels", "at least 2")),
    "width": (["--width", 0], ("--width", "got 0")),
    "freeze": (["--freeze-after", 1], ("--freeze-after", "got 1", "at least 2")),
    "rho": (["--rho", 2], ("rho", "got 2.0", "0 <= rho <= 1")),
    "rho and gamma": (["--rho", 0.5, "--gamma", 0.5], ("gamma: got 0.5", "expected one of --rho and --gamma")),
    "gamma": (["--gamma", -2], ("gamma", "got -2.0")),
    "eps": (["--eps", -1], ("eps", "got -1.0")),
    "forgetting": (["--forgetting", 0], ("forgetting", "got 0.0")),
    "largest level": (["--tau-max", 0], ("--tau-max", "got 0.0")),
    "smallest level": (["--tau-min", -1], ("--tau-min", "got -1.0")),
    "levels": (["--rungs", 1], ("--rungs", "got 1")),
    "levels crossed": ([*PLAIN, "--tau-max", 0.001], ("tau_max", "0.001")),
    "dropout": ([*PLAIN, "--dropout", 2], ("dropout", "2.0")),
    "label dropout": (["--class-conditional", "--label-dropout", 1], ("--label-dropout", "got 1.0", "[0, 1)")),
    "labels withheld from who is not told": (["--label-dropout", 0.1], ("--label-dropout", "--class-conditional")),
    "blocks": ([*PLAIN, "--blocks", 0], ("blocks", "0")),
    "stages": ([*PLAIN, "--network", "unet", "--multipliers", 0], ("multipliers", "0")),
    "stem": ([*PLAIN, "--network", "unet", "--stem-stride", 3], ("stem_stride", "3")),
    "image network on points": (["toy2d", *PLAIN, "--network", "unet"], ("UNet", "(C, H, W)", "(2,)")),
    "flips of points": (["toy2d", "--flip"], ("flip", "toy2d")),
    "labels of regions untold": (["--regions", "labels"], ("--regions: got labels", "--class-conditional")),
    "cuda": (["--device", "cuda"], ("--device", "'cuda'", "no GPU", "expected cpu")),
    "device": (["--device", "banana"], ("--device", "'banana'", "cpu, cuda, cuda:N or auto")),
    "no such file": (["--dataset", "no/such/file.npy"], ("no/such/file.npy",)),
    "no such data": (["--dataset", "mnits"], ("mnits", "digits, mnist")),
    "no data folder": (["mnist"], ("mnist", "train-images-idx3-ubyte")),
    "missing data folder": (["mnist", "--data", "no/such/folder"], ("no/such/folder",)),
    "missing cifar": (["cifar10", "--data", "."], ("cifar10", "data_batch_1.bin")),
    "kind of points": (["--dataset", "toy2d:spiral"], ("'spiral'", "8-gaussians")),
    "column of no table": (["--label-column", "kind"], ("label_column", "digits")),
}


@pytest.mark.parametrize("mistake", TRAIN)
def test_train(mistake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(Trainer, "run", lambda _: pytest.fail("training began"))
    arguments, parts = TRAIN[mistake]
    assert_refused(call("train", *arguments), "train", *parts)
    assert list(tmp_path.iterdir()) == [], "nothing is written for a run that cannot be"


def truncated_mnist(folder: Path) -> list[Any]:
    write_mnist(folder, some_images(40, 28, 28), np.arange(40, dtype=np.uint8) % 10)
    file = folder / "train-images-idx3-ubyte.gz"
    file.write_bytes(file.read_bytes()[:-2000])
    return ["mnist", "--data", folder]


def not_finite(folder: Path) -> list[Any]:
    np.save(folder / "rows.npy", np.array([[1.0, np.inf], [0.0, 1.0]], np.float32))
    return ["--dataset", folder / "rows.npy"]


def objects(folder: Path) -> list[Any]:
    np.save(folder / "rows.npy", np.array([{}, 1], object), allow_pickle=True)
    return ["--dataset", folder / "rows.npy"]


def ragged_table(folder: Path) -> list[Any]:
    (folder / "rows.csv").write_text("a,b\n1,2\n3\n")
    return ["--dataset", folder / "rows.csv"]


def tiny_images(folder: Path) -> list[Any]:
    np.save(folder / "rows.npy", some_images(5, 3, 3))
    return ["--dataset", folder / "rows.npy", "--network", "ncsn", "--width", 8]


def too_few(folder: Path) -> list[Any]:
    np.save(folder / "rows.npy", np.eye(3, dtype=np.float32))
    return ["--dataset", folder / "rows.npy", "--test-fraction", 0]


def too_wide(folder: Path) -> list[Any]:
    np.save(folder / "rows.npy", np.zeros((4, 300_000), np.float32))
    return ["--dataset", folder / "rows.npy", "--structure", "dense", "--kind", "field"]


FILES: dict[str, tuple[Callable[[Path], list[Any]], tuple[str, ...]]] = {
    "truncated": (truncated_mnist, ("train-images-idx3-ubyte.gz",)),
    "not finite": (not_finite, ("rows.npy", "inf", "expected a finite number")),
    "pickled": (objects, ("rows.npy", "pickle")),
    "three rows": (too_few, ("--dataset", "got 3 rows to train on", "at least 4")),
    "ragged": (ragged_table, ("rows.csv", "3")),
    "images too small for the network": (tiny_images, ("got 3x3", "at least 4x4 for NCSN")),
    # 300000^2 numbers of float64: each matrix of them is 670 GiB.
    "too wide for memory": (too_wide, ("'dense'", "300000", "GiB", "bytes", "structures that fit: ", "diagonal")),
}


@pytest.mark.parametrize("mistake", FILES)
def test_train_on_files(mistake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "run", lambda _: pytest.fail("training began"))
    make, parts = FILES[mistake]
    outcome = call("train", *make(tmp_path), "--out", tmp_path / "run", "--device", "cpu")
    assert_refused(outcome, "train", *parts)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("out", ["file", "file/run"])
def test_an_output_folder_that_cannot_be(tmp_path: Path, out: str) -> None:
    (tmp_path / "file").write_text("in the way")
    outcome = call("train", "toy2d", *TINY, *PLAIN, "--steps", 2, "--out", tmp_path / out)
    assert_refused(outcome, "train", "--out", str(tmp_path / out))
    assert (tmp_path / "file").read_text() == "in the way"


def test_other_settings_in_the_folder(digits: Path) -> None:
    outcome = call("train", *TINY, "--steps", 20, "--rho", 0.25, "--lr", 0.5, "--out", digits)
    assert_refused(
        outcome, "train", str(digits), "rho: 0.0 -> 0.25", "lr: 0.001 -> 0.5", "another --out", "--no-resume"
    )


SAMPLE: dict[str, tuple[list[Any], tuple[str, ...]]] = {
    "ending": (["--out", "x.bmp"], ("--out", "x.bmp", ".png, .npy or .csv")),
    "no ending": (["--out", "x"], ("--out", ".png, .npy or .csv")),
    "images as a table": (["--out", "x.csv"], ("--out", "x.csv", "digits holds images, expected")),
    "in a file's place": (["--out", "config.json/x.png", "-n", 1, "--steps", 1], ("--out", "config.json/x.png")),
    "class of a model without": (["--label", 3], ("--label", "got 3", "knows no classes")),
    "guidance without classes": (["--guidance", 2], ("guidance", "without label dropout")),
    "cuda": (["--device", "cuda"], ("--device", "'cuda'", "no GPU")),
    "device": (["--device", "banana"], ("--device", "'banana'", "cpu, cuda, cuda:N or auto")),
    "none": (["-n", 0], ("-n", "got 0", "at least 1")),
    "fewer than none": (["-n", -5], ("-n", "got -5")),
    "batch": (["--batch-size", 0], ("--batch-size", "got 0")),
    "steps": (["--steps", 0], ("steps", "got 0")),
    "step size of a flow": (["--step-eps", 0.1], ("eps", "dpmpp_2m", "unknown option")),
    "step size": (["--method", "paper", "--step-eps", -1], ("eps", "got -1.0")),
    "seed": (["--seed", -1], ("seed", "-1")),
    "method": (["--method", "magic"], ("--method", "magic")),
    "option": (["--bogus"], ("--bogus",)),
    "two runs": (["other"], ("other",)),
    "threads": (["--threads", 0], ("--threads", "got 0", "at least 1")),
    "interval of no guidance": (["--guidance-interval", 1, 2], ("--guidance-interval", "1 2", "--guidance")),
    "schedule of a ladder": (["--method", "langevin", "--schedule", "karras"], ("--schedule", "karras", "langevin")),
}


@pytest.mark.parametrize("mistake", SAMPLE)
def test_sample(mistake: str, digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(digits)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    before = sorted(digits.rglob("*"))
    arguments, parts = SAMPLE[mistake]
    assert_refused(call("sample", digits, *arguments), "sample", *parts)
    assert sorted(digits.rglob("*")) == before


@pytest.mark.parametrize(
    ("option", "part"), [(("--label", 10), "one of 0, 1"), (("--label", "cat"), "one of 0, 1"), (("-n", -1), "-n")]
)
def test_sample_of_classes(classes: Path, option: tuple[Any, ...], part: str) -> None:
    assert_refused(call("sample", classes, *option), "sample", option[0], part)


EVALUATE: dict[str, tuple[list[Any], tuple[str, ...]]] = {
    "few": (["-n", 15], ("--n", "got 15", "at least 16")),
    "space": (["--features", "fid"], ("--features", "'fid'", "pixels, pca, classifier, inception")),
    "components": (["--features", "pca-0"], ("--features", "'pca-0'")),
    "metric": (["--metrics", "fid"], ("--metrics", "'fid'", "frechet, kernel")),
    "sampler": (["--method", "magic"], ("--method", "'magic'", "heun")),
    "samplers": (["--sweep", "heun", "magic"], ("--sweep", "'magic'", "one of dpmpp_2m", "all, none")),
    "evaluations": (["--evaluations", 0], ("--evaluations", "got 0", "at least 1")),
    "steps": (["--steps", 0], ("--steps", "got 0", "at least 1")),
    "threads": (["--threads", 0], ("--threads", "got 0", "at least 1")),
    "halves": (["--halves", 1], ("--halves", "got 1", "at least 2")),
    "pairs": (["--pairs", 3], ("--pairs", "got 3", "at least 16")),
    "seed": (["--seed", -1], ("--seed", "got -1")),
    "no samples": (["--samples", "none.npy"], ("--samples", "none.npy", "no such file")),
    "samples that are none": (["--samples", "config.json"], ("--samples", "config.json", ".npy")),
    "samples of another shape": (["--samples", "flat.npy"], ("--samples", "float64 [20, 64]", "[n, 1, 8, 8]")),
    "another scale": (["--samples", "large.npy"], ("--samples", "from 0 to 255", "expected grey values in [0, 1]")),
    "samples that are not numbers": (["--samples", "nan.npy"], ("-n", "got 1 samples that are finite")),
    "cuda": (["--device", "cuda"], ("--device", "'cuda'", "no GPU")),
    "option": (["--bogus"], ("--bogus",)),
}


@pytest.mark.parametrize("mistake", EVALUATE)
def test_evaluate(mistake: str, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Path(shutil.copytree(digits, tmp_path / "run"))
    np.save(run / "flat.npy", np.zeros((20, 64)))
    np.save(run / "large.npy", np.linspace(0, 255, 20 * 64).reshape(20, 1, 8, 8))
    np.save(run / "nan.npy", np.where(np.arange(20)[:, None, None, None] > 0, np.nan, np.zeros((20, 1, 8, 8))))
    monkeypatch.chdir(run)
    monkeypatch.setenv("ANSN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    before = sorted(run.rglob("*"))
    arguments, parts = EVALUATE[mistake]
    outcome = call("evaluate", run, *arguments)
    told = [line for line in outcome.err.splitlines() if line.startswith("ansn-evaluate: ")]
    assert_refused(outcome._replace(err="\n".join(told)), "evaluate", *parts)
    assert "Traceback" not in outcome.err
    assert sorted(run.rglob("*")) == before


@pytest.mark.parametrize("command", ["train", "sample", "evaluate"])
def test_a_gpu_that_torch_sees_is_what_auto_takes(
    command: str, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each command by default; here one that cannot be taken."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    arguments = ["--out", tmp_path / "run"] if command == "train" else [digits]
    assert_refused(call(command, *arguments), command, "--device: got 'cuda' (GPU 0), expected one of 0")


def test_evaluate_without_the_data_of_the_run(table: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    run = Path(shutil.copytree(table[0], tmp_path / "run"))
    state = next(run.glob("checkpoints/*/state.json"))
    state.write_text(state.read_text().replace(str(table[0].parent / "data.csv"), "/gone/data.csv"))
    seal(state.parent)
    assert_refused(call("evaluate", run), "evaluate", "/gone/data.csv")


@pytest.mark.parametrize("command", ["sample", "info", "evaluate"])
def test_a_folder_that_is_no_run(command: str, tmp_path: Path) -> None:
    assert_refused(call(command, tmp_path), command, f"{tmp_path}: got no checkpoint")
    assert_refused(call(command, tmp_path / "none"), command, "none: got no folder")
    (tmp_path / "file").write_text("")
    assert_refused(call(command, tmp_path / "file"), command, "file: got no folder")


@pytest.mark.parametrize("command", ["sample", "info", "evaluate", "train"])
def test_a_damaged_run(command: str, digits: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(digits, tmp_path / "run"))
    state = run / "checkpoints" / "step-00000020" / "state.json"
    state.write_text(json.dumps({"format": 7}))
    seal(state.parent)
    where = ["--out", run] if command == "train" else [run]
    assert_refused(call(command, *where), command, str(run), f"got format 7, expected 2 to {checkpoint.FORMAT}")


def test_sample_needs_a_run() -> None:
    assert_refused(call("sample"), "sample", "RUN: got None", "Folder of a run", "ansn-sample --help")


def test_info_of_too_much() -> None:
    assert_refused(call("info", "a", "b"), "info", "b", "ansn-info --help")
