"""`ansn-sample` and `ansn-info` on runs of `ansn-train`."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import ansn
from ansn import ops
from ansn.sampling import Draw
from ansn.training import load_run
from tests.cli.helpers import PLAIN, TINY, Outcome, call, environment, start, succeeded
from tests.tolerances import BATCH_INVARIANCE
from tests.training.helpers import seal

DEVICE = "device: cpu, 1 thread\n"


def drawn(run: Path, folder: Path, *options: object, name: str = "x.npy") -> np.ndarray:
    out = folder / name
    outcome = succeeded(call("sample", run, "--out", out, *options))
    assert outcome.out == f"{out}\n"
    return np.load(out)


def test_npy(digits: Path, tmp_path: Path) -> None:
    x = drawn(digits, tmp_path / "new" / "folder", "-n", 5)
    assert (x.shape, x.dtype) == ((5, 1, 8, 8), np.float32)
    assert np.isfinite(x).all()
    assert x.std(0).mean() > 0.01


def test_it_is_what_the_library_draws(digits: Path, tmp_path: Path) -> None:
    x = drawn(digits, tmp_path, "-n", 6, "--seed", 3, "--steps", 4, "--method", "euler", "--no-ema")
    model = load_run(digits, ema=False).model
    expected = ansn.sample(model, 6, "euler", steps=4, seed=3)
    np.testing.assert_array_equal(x, expected.numpy())
    assert np.abs(x - ansn.sample(load_run(digits).model, 6, "euler", steps=4, seed=3).numpy()).max() > 0


def test_png_goes_to_the_run_by_default(digits: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(digits, tmp_path / "run"))
    of_training = (run / "samples.png").read_bytes()
    outcome = succeeded(call("sample", run, "-n", 4, "--steps", 2, "--seed", 5))
    assert outcome.out == f"{run / 'drawn-seed5.png'}\n"
    assert outcome.err == DEVICE
    assert (run / "samples.png").read_bytes() == of_training
    with Image.open(run / "drawn-seed5.png") as image:
        assert min(image.size) >= 200


def test_the_seed_fixes_the_samples(digits: Path, tmp_path: Path) -> None:
    options = ("-n", 6, "--steps", 4)
    first, again = (drawn(digits, tmp_path, *options, "--seed", 1) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    other = drawn(digits, tmp_path, *options, "--seed", 2)
    assert (np.abs(first - other).reshape(6, -1).max(1) > 0.01).all()


@pytest.mark.parametrize("method", ["heun", "langevin"])
@pytest.mark.parametrize("which", ["digits", "classes"])
def test_any_batch_size_draws_the_same(request: pytest.FixtureRequest, tmp_path: Path, which: str, method: str) -> None:
    run = request.getfixturevalue(which)
    steps = {"heun": 5, "langevin": 1}[method]
    x = {b: drawn(run, tmp_path, "-n", 20, "--method", method, "--steps", steps, "--batch-size", b) for b in (1, 7, 64)}
    assert np.isfinite(x[64]).all()
    for b in (1, 7):
        assert np.abs(x[b] - x[64]).max() < BATCH_INVARIANCE
    # Fewer samples are the first of more: sample i depends on the seed and i alone.
    few = drawn(run, tmp_path, "-n", 5, "--method", method, "--steps", steps)
    assert np.abs(few - x[64][:5]).max() < BATCH_INVARIANCE


def test_the_schedule(digits: Path, tmp_path: Path) -> None:
    """By name, and found for the model."""
    model = load_run(digits).model
    for name in ("karras", "optimised"):
        x = drawn(digits, tmp_path / name, "-n", 3, "--steps", 3, "--schedule", name)
        np.testing.assert_array_equal(x, ansn.sample(model, 3, steps=3, schedule=name).numpy())
        assert not np.array_equal(x, ansn.sample(model, 3, steps=3).numpy())


def test_classes_of_a_table_have_their_names(tmp_path: Path) -> None:
    """Drawn by their shares, or by name, and written where the file has them."""
    rows = [f"{i % 5},{'dog' if i % 4 else 'cat'},{i / 7:.2f}" for i in range(80)]
    (tmp_path / "pets.csv").write_text("\n".join(["age,pet,size", *rows]) + "\n")
    data = ("--dataset", tmp_path / "pets.csv", "--label-column", "pet", "--class-conditional", "--test-fraction", 0)
    succeeded(call("train", "toy2d", *TINY, *PLAIN, *data, "--steps", 5, "--samples", 0, "--out", tmp_path / "run"))
    files = {}
    for name, options in {"all": (), "dog": ("--label", "dog"), "second": ("--label", 1)}.items():
        out = tmp_path / f"{name}.csv"
        succeeded(call("sample", tmp_path / "run", "-n", 60, "--steps", 2, *options, "--out", out))
        files[name] = [line.split(",") for line in out.read_text().splitlines()]
        assert files[name][0] == ["age", "pet", "size"]
    counts = Counter(row[1] for row in files["all"][1:])
    assert set(counts) == {"cat", "dog"}
    assert counts["cat"] < 25, "a quarter of the rows"
    assert {row[1] for row in files["dog"][1:]} == {"dog"}
    assert files["second"] == files["dog"]
    again = ansn.load_dataset(tmp_path / "all.csv", label_column="pet")
    assert (again.columns, again.classes) == (("age", "size"), ("cat", "dog"))


def test_labels(classes: Path, tmp_path: Path) -> None:
    options = ("-n", 12, "--steps", 3)
    in_turn = drawn(classes, tmp_path, *options)
    three = drawn(classes, tmp_path, *options, "--label", 3)
    assert np.abs(three[3] - in_turn[3]).max() < BATCH_INVARIANCE
    assert (np.abs(three - in_turn).reshape(12, -1).max(1) > 0.01).sum() == 11
    model = load_run(classes).model
    expected = ansn.sample(model, 12, steps=3, y=torch.arange(12) % 10)
    np.testing.assert_array_equal(in_turn, expected.numpy())


def test_regions_that_were_found(regions: Path, tmp_path: Path) -> None:
    options = ("-n", 12, "--steps", 3)
    model = load_run(regions).model
    np.testing.assert_array_equal(drawn(regions, tmp_path, *options), ansn.sample(model, 12, steps=3).numpy())
    two = drawn(regions, tmp_path, *options, "--label", 2)
    np.testing.assert_array_equal(two, ansn.sample(model, 12, steps=3, y=2).numpy())
    outcome = call("sample", regions, "--label", 3)
    assert (outcome.code, "--label: got 3, expected one of 0, 1, 2" in outcome.err) == (2, True)


def test_guidance(tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = ("--class-conditional", "--label-dropout", 0.2, "--steps", 40, "--samples", 0)
    succeeded(call("train", "digits", *TINY, *PLAIN, *options, "--out", run))
    draw = ("-n", 6, "--steps", 3, "--label", 3)
    guided = drawn(run, tmp_path, *draw, "--guidance", 60)
    expected = ansn.sample(load_run(run).model, 6, steps=3, y=3, guidance=60.0)
    np.testing.assert_array_equal(guided, expected.numpy())
    plain = drawn(run, tmp_path, *draw)
    assert np.abs(guided - plain).max() > 3 * BATCH_INVARIANCE
    never = drawn(run, tmp_path, *draw, "--guidance", 60, "--guidance-interval", 100, 200)
    assert np.abs(never - plain).max() < BATCH_INVARIANCE
    # Without a label the classes are drawn in turn, each guided towards its own.
    in_turn = drawn(run, tmp_path, "-n", 6, "--steps", 3, "--guidance", 60)
    assert np.abs(in_turn[3] - guided[3]).max() < BATCH_INVARIANCE


def test_the_runs_own_method_is_the_default(digits: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(digits, tmp_path / "run"))
    state = next(run.glob("checkpoints/step-00000020")) / "state.json"
    text = state.read_text().replace('"method": "dpmpp_2m"', '"method": "euler"')
    state.write_text(text.replace('"sample_steps": null', '"sample_steps": 3'))
    seal(state.parent)
    own = drawn(run, tmp_path, "-n", 3)
    np.testing.assert_array_equal(own, drawn(digits, tmp_path, "-n", 3, "--method", "euler", "--steps", 3))
    # Another method comes with its own defaults, not with these steps.
    np.testing.assert_array_equal(
        drawn(run, tmp_path, "-n", 3, "--method", "dpmpp_2m"), drawn(digits, tmp_path, "-n", 3)
    )


@pytest.mark.parametrize("value", [1e30, math.nan])
def test_a_network_that_gives_no_numbers_writes_nothing(digits: Path, tmp_path: Path, value: float) -> None:
    run = Path(shutil.copytree(digits, tmp_path / "run"))
    folder = run / "checkpoints" / "step-00000020"
    weights = load_file(folder / "ema.safetensors")
    save_file({name: torch.full_like(weight, value) for name, weight in weights.items()}, folder / "ema.safetensors")
    seal(folder)
    for name in ("x.npy", "x.png", "x/"):
        outcome = call("sample", run, "-n", 3, "--out", f"{tmp_path}/{name}")
        assert (outcome.code, "not finite" in outcome.err) == (2, True), outcome.err
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
    succeeded(call("sample", run, "-n", 3, "--out", tmp_path / "x.npy", "--allow-nonfinite"))
    assert not np.isfinite(np.load(tmp_path / "x.npy")).any()


def test_a_time_limit_keeps_what_is_drawn(digits: Path, tmp_path: Path) -> None:
    options = ("sample", digits, "-n", 24, "--steps", 200, "--batch-size", 2, "--seed", 3, "--out", tmp_path / "x.npy")
    outcome = call(*options, "--max-minutes", 0.01)
    assert (outcome.code, "ansn-sample: interrupted" in outcome.err) == (130, True), outcome.err
    succeeded(call(*options))
    succeeded(call(*options[:-1], tmp_path / "y.npy"))
    assert (tmp_path / "x.npy").read_bytes() == (tmp_path / "y.npy").read_bytes()


def test_a_table_comes_in_the_units_of_its_columns(table: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    run, data = table
    outcome = succeeded(call("sample", run, "-n", 300, "--out", tmp_path / "x.csv"))
    assert outcome.out == f"{tmp_path / 'x.csv'}\n"
    header, *lines = (tmp_path / "x.csv").read_text().splitlines()
    assert header == "height (m),drift"
    assert len(lines) == 300
    x = np.loadtxt(tmp_path / "x.csv", delimiter=",", skiprows=1)
    # With R = S the preconditioning alone, of a network that starts at 0, is the Gaussian of the data's moments.
    standard_error = data.std(0) / np.sqrt(300)
    assert (np.abs(x.mean(0) - data.mean(0)) < 6 * standard_error).all()
    np.testing.assert_allclose(x.std(0), data.std(0), rtol=0.3)
    assert np.corrcoef(x.T)[0, 1] == pytest.approx(np.corrcoef(data.T)[0, 1], abs=0.15)
    array = drawn(run, tmp_path, "-n", 300)
    np.testing.assert_allclose(array, x, rtol=1e-6)
    # What was written is what can be trained on.
    assert ansn.load_dataset(tmp_path / "x.csv").columns == ("height (m)", "drift")


def test_a_table_as_a_picture(table: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    succeeded(call("sample", table[0], "-n", 30, "--out", tmp_path / "x.png"))
    with Image.open(tmp_path / "x.png") as image:
        assert np.asarray(image.convert("L")).std() > 1


# -- many samples ----------------------------------------------------------------------------------------------


def test_a_folder_of_images(digits: Path, tmp_path: Path) -> None:
    outcome = succeeded(call("sample", digits, "-n", 5, "--steps", 2, "--out", f"{tmp_path / 'images'}/"))
    assert outcome.out == f"{tmp_path / 'images'}\n"
    assert sorted(p.name for p in (tmp_path / "images").iterdir()) == [f"{i:06d}.png" for i in range(5)]
    # What was written is what can be trained on.
    assert ansn.load_dataset(tmp_path / "images", test_fraction=0).shape == (1, 8, 8)


def test_eight_bits(digits: Path, tmp_path: Path) -> None:
    x, eight = (drawn(digits, tmp_path, "-n", 5, "--steps", 2, *o) for o in ((), ("--store", "uint8")))
    np.testing.assert_array_equal(eight, np.rint(x.clip(0, 1) * 255).astype(np.uint8))


def test_bfloat16_is_near_float32(digits: Path, tmp_path: Path) -> None:
    x, half = (drawn(digits, tmp_path, "-n", 20, "--steps", 5, *o) for o in ((), ("--dtype", "bfloat16")))
    # 2^-9 is bfloat16's rounding; the samples are in [0, 1].
    assert 0 < np.sqrt(np.mean((x - half) ** 2)) < 8 * 2**-9


def stop_after(monkeypatch: pytest.MonkeyPatch, batches: int) -> None:
    batch, calls = Draw.batch, []

    def stopping(self: Draw, *args: Any, **told: Any) -> torch.Tensor:
        calls.append(args)
        if len(calls) > batches:
            raise KeyboardInterrupt
        return batch(self, *args, **told)

    monkeypatch.setattr(Draw, "batch", stopping)


def test_a_stopped_command_goes_on(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("-n", 20, "--steps", 3, "--batch-size", 6)
    expected = drawn(digits, tmp_path, *options, name="whole.npy")
    out = tmp_path / "x.npy"
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        stopped = call("sample", digits, *options, "--out", out)
    assert (stopped.code, stopped.out) == (130, "")
    kept = f"12 of 20 samples are kept in {out}.part, the same command goes on"
    assert stopped.err == f"{DEVICE}ansn-sample: interrupted; {kept}\n"
    refused = call("sample", digits, *options, "--seed", 1, "--out", out)
    assert refused.code == 2
    assert "seed: 0 -> 1" in refused.err
    assert len(refused.err.splitlines()) == 2
    with monkeypatch.context() as patch:
        stop_after(patch, 2)  # the two batches that are missing
        np.testing.assert_array_equal(drawn(digits, tmp_path, *options), expected)
    fresh = drawn(digits, tmp_path, *options, "--seed", 1, "--no-resume")
    assert np.abs(fresh - expected).max() > 0.01
    assert [p.name for p in tmp_path.iterdir() if "part" in p.name] == []


def test_a_graph_that_cannot_be_is_told_in_one_line(digits: Path, tmp_path: Path) -> None:
    outcome = succeeded(call("sample", digits, "-n", 2, "--steps", 1, "--cuda-graph", "--out", tmp_path / "x.npy"))
    told = "ansn-sample: cuda_graph: the model is on cpu, so its network is called step by step\n"
    assert outcome.err == DEVICE + told


def torchrun(run: Path, *options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    arguments = map(str, ("-m", "ansn.cli.sample", run, *options))
    return subprocess.run([*command, *arguments], env=environment(), capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_two_processes_draw_what_one_draws(digits: Path, tmp_path: Path) -> None:
    options = ("-n", 30, "--steps", 3, "--batch-size", 4)
    done = torchrun(digits, *options, "--out", tmp_path / "two.npy")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'two.npy'}\n", "one process tells"
    assert done.stderr.count("device: cpu") == 1
    two = np.load(tmp_path / "two.npy")
    np.testing.assert_array_equal(two, drawn(digits, tmp_path, *options))
    for batch_size in (1, 7, 64):
        other = drawn(digits, tmp_path, *options, "--batch-size", batch_size)
        assert np.abs(two - other).max() < BATCH_INVARIANCE


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "part"),
    [(("--label", 3), "knows no classes"), (("--out", "/proc/x.npy"), "for /proc/x.npy, expected a file to write"),
     (("--seed", -1), "seed: got -1")],
)  # fmt: skip
def test_processes_that_fail_end_with_one_line(digits: Path, options: tuple[object, ...], part: str) -> None:
    done = torchrun(digits, "-n", 30, *options)
    assert done.returncode != 0
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("ansn-sample"))
    assert line.startswith("ansn-sample: error: ")
    assert part in line


# -- ansn-info -------------------------------------------------------------------------------------------------


def told(outcome: Outcome) -> dict[str, str]:
    """The lines of ansn-info by their first column, which two spaces end."""
    return dict(line.split("  ", 1) for line in succeeded(outcome).out.splitlines() if "  " in line)


def test_info_tells_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANSN_BACKEND", "reference")
    outcome = start("info")
    lines = {k: v.strip() for k, v in told(outcome).items()}
    assert lines["ansn"] == ansn.__version__
    assert lines["torch"] == torch.__version__
    assert lines["GPU"] == "none that this torch sees"
    assert lines["back end"].startswith("reference")
    for name in ops.operations():
        assert "reference" in lines[name]
    assert ("missing" in lines["native module"]) == (ops.native.module is None)
    assert outcome.err == ""


def test_info_of_a_run(digits: Path, classes: Path) -> None:
    lines = {k: v.strip() for k, v in told(call("info", digits)).items()}
    run = load_run(digits)
    count = sum(p.numel() for p in run.model.network.parameters())
    assert lines["run"] == f"{digits}, step 20"
    assert lines["data"] == "digits: 1,347 rows, image of 1x8x8, grey values 0 to 16"
    assert lines["network"] == f"mlp, {count:,} parameters, mixture skip, sees noisy data, estimate"
    assert lines["regions"].startswith("16, dense (found in 1,347 rows; by held-out likelihood")
    assert "regions=1" in lines["covariance"]
    assert "640 points" in lines["covariance"]
    condition = float(lines["covariance"].split("condition number ")[1].split(",")[0])
    assert condition == pytest.approx(float(run.model.noise.covariance.condition_number()), rel=1e-3)
    assert lines["levels"].startswith("20, tau ")
    assert "regions=10" in {k: v.strip() for k, v in told(call("info", classes)).items()}["covariance"]


@pytest.mark.parametrize(
    ("which", "what", "use"),
    [
        ("classes", "10, dense (the data's classes)", "each with its own noise"),
        ("regions", "3, cosine (found in 1,347 rows)", "each with its own noise"),
        ("mixture", "10, dense (the data's classes)", "each a Gaussian of the skip"),
    ],
)
def test_info_of_regions(which: str, what: str, use: str, request: pytest.FixtureRequest) -> None:
    lines = {k: v.strip() for k, v in told(call("info", request.getfixturevalue(which))).items()}
    found, used, shares = lines["regions"].split("; ")
    assert (found.split(", ")[0], used) == (what.split(", ")[0], use)
    assert found.split(" (")[1] == what.split(" (")[1]
    assert (lines["structure"] == "cosine, that of the regions") == (which == "regions")
    values = [float(v.rstrip("%")) for v in shares.split()[1:]]
    assert values == sorted(values)
    assert sum(values) == pytest.approx(100, abs=0.5)
    assert lines["network"].endswith("sees noisy data, estimate" if which == "mixture" else "sees noisy data")
