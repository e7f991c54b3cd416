"""`ansn-evaluate` on runs of `ansn-train`."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import ansn
from ansn.cli.evaluate import _report
from ansn.config import SamplingConfig
from ansn.data import table as tables
from ansn.evaluation import Evaluation, Measurement
from ansn.evaluation.evaluate import Settings, evaluate
from ansn.evaluation.samples import read_samples
from ansn.training import Run, load_run
from ansn.training.data import load
from tests.cli.helpers import Outcome, call, succeeded

QUICK = ("--quick", "-n", 60, "--features", "pca-8")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ANSN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(autouse=True)
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its pictures take most of the time, and their tests are elsewhere; one test here draws it all the same."""
    monkeypatch.setattr("ansn.cli.evaluate._report", lambda *_: [])


def evaluated(run: Path, out: Path, *options: object) -> tuple[dict[str, Measurement], Evaluation, Outcome]:
    outcome = succeeded(call("evaluate", run, "--out", out, *options))
    found = Evaluation.from_json((out / "evaluation.json").read_text())
    return {m.name: m for m in found.measurements}, found, outcome


@pytest.mark.slow
def test_as_a_user_starts_it(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ansn.cli.evaluate._report", _report)
    run = Path(shutil.copytree(digits, tmp_path / "run"))
    outcome = succeeded(call("evaluate", run, "--quick", "-n", 40, "--seed", 2))
    assert not (run / "evaluation.json").exists(), "a quick look leaves the whole evaluation as it is"
    run = run / "quick"
    found = Evaluation.from_json((run / "evaluation.json").read_text())
    assert (run / "report.html").is_file()
    assert not list(run.glob(".evaluation.json*"))
    names = {m.name for m in found.measurements}
    assert {"Frechet distance", "kernel distance", "energy distance", "sliced Wasserstein-2 distance", "precision",
            "recall", "density", "coverage", "mode weights, total variation", "memorised share"} <= names  # fmt: skip
    lines = outcome.out.splitlines()
    assert lines[0].split() == ["measurement", "value", "95", "%", "interval", "floor", "baseline",
                                "n", "against", "features"]  # fmt: skip
    for m in found.measurements:
        assert any(line.startswith(m.name) and f"{m.value:.4g}" in line for line in lines[1:])
        assert m.n == m.floor_n == 40
        assert m.low is not None
        assert m.features is not None
    assert lines[-2:] == [str(run / "evaluation.json"), str(run / "report.html")]
    assert "fid" not in (run / "evaluation.json").read_text().lower()
    assert found.settings["seed"] == 2
    words = shlex.split(found.command)
    assert (words[0], words[1:]) == ("ansn-evaluate", [str(run.parent), "--quick", "-n", "40", "--seed", "2"])
    assert found.provenance["step"] == 20
    assert found.provenance["ansn"] == ansn.__version__
    assert any("test accuracy 0.9" in line for line in found.provenance["features"])


def test_the_same_seed_finds_the_same_and_another_one_other_numbers(digits: Path, tmp_path: Path) -> None:
    options = (*QUICK, "--metrics", "frechet", "manifold")
    first, again, other = (evaluated(digits, tmp_path, *options, "--seed", seed)[1].measurements for seed in (1, 1, 2))
    assert first == again
    assert all(a.value != b.value for a, b in zip(first, other, strict=True) if a.name == "Frechet distance")


def test_samples_of_a_file_are_those_drawn(digits: Path, tmp_path: Path) -> None:
    succeeded(call("sample", digits, "-n", 60, "--seed", 4, "--out", tmp_path / "x.npy"))
    drawn = evaluated(digits, tmp_path / "a", *QUICK, "--seed", 4)[0]
    given = evaluated(digits, tmp_path / "b", *QUICK, "--seed", 4, "--samples", tmp_path / "x.npy")[0]
    assert given == drawn


def test_the_training_data_is_found_out(digits: Path, tmp_path: Path) -> None:
    """Samples that are training rows: as near as can be, and memorised."""
    train = ansn.load_dataset("digits")
    x = train.batch(train.order(5, 0)[:60].clone())[0]
    np.save(tmp_path / "x.npy", x.numpy())
    found, evaluation, _ = evaluated(digits, tmp_path, *QUICK, "--samples", tmp_path / "x.npy")
    assert found["memorised share"].value == 1.0
    assert found["nearest training row, ratio of distances"].value < 1e-5
    assert found["precision"].value > 0.9
    assert evaluation.neighbours is not None
    assert [row[0] for row in evaluation.neighbours["index"]] == train.order(5, 0)[:60].tolist()


@pytest.mark.parametrize("form", ["npy", "csv"])
def test_a_table_in_its_own_units(form: str, table: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    """The training rows, in the file's units, are found out; a tenth of the file is the floor."""
    run, _ = table
    data = load(load_run(run).config)
    rows = data.to_data_units(data.rows[:60])  # type: ignore[index, arg-type]
    path = tmp_path / f"x.{form}"
    if form == "npy":
        np.save(path, rows.numpy())
    else:
        tables.write(path, data.units, rows)  # type: ignore[arg-type]
    options = ("--samples", path, "--features", "pixels", "--halves", 5)
    found, evaluation, _ = evaluated(run, tmp_path, *options)
    assert found["Frechet distance"].features == "data.csv-columns"
    assert found["Frechet distance"].floor is not None
    assert (found["memorised share"].value, evaluation.left_out) == (1.0, ())
    assert found["nearest training row, ratio of distances"].value < 1e-5
    with pytest.warns(UserWarning, match="deviations of the data from its mean: other units"):
        read_samples_of(path, load_run(run), 1000)


def read_samples_of(path: Path, run: Run, factor: float) -> None:
    """Samples of a file whose values are some times too large."""
    values, _ = tables.read_rows(path, run.units) if path.suffix == ".csv" else (torch.from_numpy(np.load(path)), None)  # type: ignore[arg-type]
    np.save(path.with_name("large.npy"), factor * values.numpy())
    read_samples(path.with_name("large.npy"), run)


def test_classes_that_were_asked_for(classes: Path, tmp_path: Path) -> None:
    found, _, _ = evaluated(classes, tmp_path, "--quick", "-n", 50, "--metrics", "modes")
    assert set(found) == {"mode weights, total variation", "class accuracy"}
    assert found["class accuracy"].floor is not None
    assert found["class accuracy"].floor > 0.8
    assert "asked for in turn" in found["class accuracy"].note


def test_likelihood_of_held_out_rows(digits: Path, tmp_path: Path) -> None:
    found, _, _ = evaluated(digits, tmp_path, "-n", 20, "--metrics", "likelihood", "--likelihood", 8,
                            "--features", "pixels")  # fmt: skip
    (bits,) = found.values()
    assert (bits.name, bits.n) == ("bits/dim", 8)
    # A uniform guess among 17 grey levels takes 4.1 bits; digits take 2.5 with a trained model, this one had 20 steps.
    assert 1.5 < bits.value < 4.1
    assert bits.low is not None
    assert bits.low < bits.value
    assert "an upper bound, dequantisation uniform" in bits.note


@pytest.mark.parametrize(
    ("which", "asked"), [("digits", 16), pytest.param("regions", 3, marks=pytest.mark.slow), ("mixture", 10)]
)
def test_the_baseline_is_the_run_s_own_gaussians(
    which: str, asked: int, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """As many samples of them, by the same numbers: giving these samples as the model's makes the two equal."""
    run = request.getfixturevalue(which)
    mixture = load_run(run).mixture
    assert mixture.regions == asked
    np.save(tmp_path / "x.npy", mixture.sample(60, seed=4).numpy())
    options = (*QUICK, "--metrics", "frechet", "energy", "manifold", "likelihood", "--seed", 3)
    model = evaluated(run, tmp_path / "model", *options)[0]
    same, _, outcome = evaluated(run, tmp_path / "same", *options, "--samples", tmp_path / "x.npy")
    for name, m in same.items():
        assert m.baseline == pytest.approx(m.value, rel=1e-5)
        assert model[name].baseline == m.baseline
    assert "baseline" in outcome.out.splitlines()[0]


@pytest.mark.parametrize("which", ["regions", "mixture"])
def test_likelihood_of_runs_with_regions(which: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    options = ("-n", 20, "--metrics", "likelihood", "--likelihood", 4, "--features", "pixels")
    (bits,) = evaluated(request.getfixturevalue(which), tmp_path, *options)[0].values()
    assert 1.0 < bits.value < 4.1


def test_sweep(digits: Path, tmp_path: Path) -> None:
    _, evaluation, outcome = evaluated(
        digits, tmp_path, *QUICK, "--metrics", "frechet", "--sweep", "heun", "euler", "--evaluations", 5, 6, 12
    )
    rows = [(q["method"], q["steps"], q["evaluations"]) for q in evaluation.quality]
    assert rows == [("heun", 3, 5), ("heun", 6, 11), ("euler", 5, 5), ("euler", 6, 6), ("euler", 12, 12)]
    for q in evaluation.quality:
        assert q["name"] == "Frechet distance, digits-pca-8"
        assert q["n"] == q["drawn"] == 60
        assert q["low"] <= q["value"] <= q["high"]
        assert q["seconds"] > 0
        assert q["floor"] == evaluation.measurements[0].floor
    own = evaluated(digits, tmp_path, *QUICK, "--metrics", "frechet", "--method", "heun", "--steps", 6)[0]
    assert own["Frechet distance"].value == pytest.approx(evaluation.quality[1]["value"])
    assert "sampler  steps  evaluations  seconds  n   value" in outcome.out


def test_a_sampler_has_one_number(digits: Path, tmp_path: Path) -> None:
    """Where the sweep has fewer samples than the measurement, the row of the same sampler is the measurement."""
    run = load_run(digits)
    settings = Settings(n=40, features=("pca-8",), metrics=("frechet",), halves=4, sweep=("heun",), swept=20,
                        evaluations=(5, 11))  # fmt: skip
    found = evaluate(run, settings, sampling=SamplingConfig(method="heun", sample_steps=6)).evaluation
    few, same = found.quality
    assert (few["n"], same["n"]) == (20, 40)
    assert same["value"] == found.measurements[0].value
    assert same["floor"] == found.measurements[0].floor


def test_the_runs_own_sampler_is_swept_unless_told_otherwise(digits: Path, tmp_path: Path) -> None:
    options = ("-n", 40, "--features", "pca-8", "--metrics", "frechet", "--halves", 4, "--evaluations", 4, 6)
    found = evaluated(digits, tmp_path, *options)[1]
    assert [(q["method"], q["evaluations"]) for q in found.quality] == [("dpmpp_2m", 4), ("dpmpp_2m", 6)]
    assert {q["drawn"] for q in found.quality} == {40}
    own = evaluated(digits, tmp_path, *options, "--method", "heun")[1]
    assert [(q["method"], q["evaluations"]) for q in own.quality] == [("heun", 3), ("heun", 5)]
    for without in (("--sweep", "none"), ("--quick",), ("--method", "langevin", "--steps", 1)):
        assert evaluated(digits, tmp_path, *options, *without)[1].quality == ()


def test_samples_that_are_not_finite_are_left_out_and_told(digits: Path, tmp_path: Path) -> None:
    x = np.random.default_rng(0).random((40, 1, 8, 8))
    x[3] = np.inf
    np.save(tmp_path / "x.npy", x)
    found, evaluation, _ = evaluated(digits, tmp_path, *QUICK, "--samples", tmp_path / "x.npy", "--metrics", "frechet")
    assert found["Frechet distance"].n == 39
    assert evaluation.left_out == ("1 of 40 samples, which hold values that are not finite",)


def test_a_classifier_is_kept_where_it_is_told(digits: Path, tmp_path: Path, cache: Path) -> None:
    options = ("--quick", "-n", 20, "--metrics", "frechet", "--features", "classifier")
    first = evaluated(digits, tmp_path, *options, "--cache", tmp_path / "own")[0]
    assert sorted(p.suffix for p in (tmp_path / "own").iterdir()) == [".json", ".safetensors"]
    assert not cache.exists()
    assert evaluated(digits, tmp_path, *options, "--cache", tmp_path / "own")[0] == first


def test_a_run_of_a_named_data_set_finds_its_files_elsewhere(digits: Path, tmp_path: Path) -> None:
    """`--data` is for the files of named data sets; the digits need none."""
    run = load_run(digits)
    assert run.config.data.data is None
    assert evaluated(digits, tmp_path, *QUICK, "--metrics", "frechet", "--data", tmp_path)[1].settings["n"] == 60
