"""`ansn-export`, and the other commands on runs that are named: of the package, of a hub."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from ansn import presets
from ansn.cli.export import card
from ansn.evaluation import Evaluation, Measurement
from ansn.evaluation.evaluate import datasets
from ansn.training import load_run, places
from tests.cli.helpers import PLAIN, TINY, call, succeeded
from tests.cli.test_errors import assert_refused
from tests.data.writers import some_images, write_mnist
from tests.training.hub import Hub

DRAW = ("-n", 3, "--steps", 2)


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def exported(digits: Path, tmp_path: Path) -> Path:
    """The digits, in a folder that is new as those above it."""
    out = tmp_path / "new" / "few-digits"
    outcome = succeeded(call("export", digits, out))
    size = sum(map(len, files(out).values())) / 1e6
    assert outcome.out == f"step 20, {size:.2f} MB\n{out}\n"
    assert outcome.err == ""
    assert list(out.parent.iterdir()) == [out], "nothing else is left there"
    return out


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(params=["few-digits", "hf://me/few-digits"])
def named(request: pytest.FixtureRequest, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A run by its name: of the package, or of a hub."""
    monkeypatch.setattr(places, "_SHIPPED", exported.parent)
    hub = Hub(tmp_path / "hub").installed(monkeypatch)
    shutil.copytree(exported, hub.folder("me/few-digits"))
    name: str = request.param
    return name


def test_the_folder_is_a_run_as_any(exported: Path, digits: Path) -> None:
    succeeded(call("sample", exported, *DRAW))
    assert (exported / "drawn-seed0.png").is_file()
    after, before = (succeeded(call("info", run)).out.splitlines() for run in (exported, digits))
    assert [line.split() for line in after if line not in before] == [["run", f"{exported},", "step", "20"]]


def test_named_runs_are_drawn_into_the_working_folder(named: str, here: Path, tmp_path: Path) -> None:
    """And nothing is written where they lie."""
    lie = [tmp_path / "new", tmp_path / "hub" / "remote"]
    before = [files(folder) for folder in lie]
    outcome = succeeded(call("sample", named, *DRAW, "--seed", 7))
    assert outcome.out == "few-digits-seed7.png\n"
    succeeded(call("sample", named, *DRAW, "--out", "x.npy"))
    np.save("rows.npy", np.load("x.npy").clip(0, 1))
    succeeded(call("score", named, "rows.npy", "--steps", 1))
    succeeded(call("info", named))
    assert sorted(p.name for p in here.iterdir()) == ["few-digits-seed7.png", "rows.npy", "scores.csv", "x.npy"]
    assert [files(folder) for folder in lie] == before


def test_named_runs_are_evaluated_there_too(named: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ansn.cli.evaluate._report", lambda *_: [])
    options = ("-n", 40, "--features", "pca-4", "--metrics", "frechet", "--sweep", "none", "--halves", 2)
    outcome = succeeded(call("evaluate", named, *options, "--likelihood", 0))
    assert outcome.out.split()[-1] == "few-digits-evaluation/evaluation.json"
    succeeded(call("evaluate", named, *options, "--quick"))
    assert sorted(p.name for p in here.iterdir()) == ["few-digits-evaluation"]
    assert Path("few-digits-evaluation/quick/evaluation.json").is_file()


def test_a_folder_of_that_name_comes_first(named: str, here: Path, digits: Path) -> None:
    shutil.copytree(digits, here / "few-digits")
    outcome = succeeded(call("sample", "few-digits", *DRAW))
    assert outcome.out == "few-digits/drawn-seed0.png\n"


def test_info_lists_what_comes_with_the_package(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "_SHIPPED", exported.parent)
    for folder, listed in ((exported.parent, "few-digits"), (exported / "none", "none")):
        monkeypatch.setattr(places, "_SHIPPED", folder)
        assert ["shipped", "runs", listed] in [line.split() for line in succeeded(call("info")).out.splitlines()]


@pytest.mark.parametrize("command", ["sample", "info", "evaluate", "export"])
def test_a_name_that_is_none(command: str, exported: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "_SHIPPED", exported.parent)
    arguments = ("few-digit", *(["out"] if command == "export" else []))
    assert_refused(call(command, *arguments), command, "few-digit: got no folder", "hf://OWNER/NAME, few-digits")
    assert list(here.iterdir()) == []


def test_the_data_is_where_the_command_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And no more where it was in training."""
    folder, labels = tmp_path / "before" / "mnist", np.arange(40, dtype=np.uint8) % 10
    folder.mkdir(parents=True)
    write_mnist(folder, some_images(40, 28, 28), labels)
    run = tmp_path / "run"
    options = ("--data", folder.parent, "--steps", 2, "--samples", 0, "--structure", "diagonal", "--network", "mlp")
    succeeded(call("train", "mnist", *TINY, *PLAIN, *options, "--out", run))
    succeeded(call("export", run, tmp_path / "out"))
    folder.parent.rename(tmp_path / "after")
    train, _, _ = datasets(load_run(tmp_path / "out"), str(tmp_path / "after"))
    assert len(train) == 40


# -- where it is written ------------------------------------------------------------------------------------------


def test_it_is_pushed(digits: Path, tmp_path: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(tmp_path / "hub").installed(monkeypatch)
    outcome = succeeded(call("export", digits, "hf://me/x", "--private"))
    assert outcome.out.splitlines()[1] == "https://hub/me/x"
    assert hub.private == {"me/x": True}
    assert "README.md" in hub.files("me/x")
    text = (hub.folder("me/x") / "README.md").read_text()
    assert "\n# x\n" in text
    assert "\nansn-sample hf://me/x\n" in text
    assert load_run("hf://me/x").config.run.out == "runs/x"
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("there", ["run", "file", "other"])
def test_what_is_there_stays(there: str, digits: Path, tmp_path: Path) -> None:
    """A run above all."""
    run = Path(shutil.copytree(digits, tmp_path / "run"))
    (tmp_path / "file").write_text("x")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x").write_text("x")
    before = files(tmp_path)
    outcome = call("export", run, tmp_path / there)
    assert_refused(outcome, "export", f"OUT: got {tmp_path / there}, which is there", "a new or an empty folder")
    assert files(tmp_path) == before
    (tmp_path / "empty").mkdir()
    succeeded(call("export", run, tmp_path / "empty"))


# -- the card -----------------------------------------------------------------------------------------------------


def evaluation(step: int, weights: str) -> Evaluation:
    provenance = {"step": step, "weights": weights, "machine": "an old one", "torch": "2.99"}
    found = (
        Measurement("Frechet distance", 12.3456, 500, "conv-64", floor=7.6, floor_n=500, low=11, high=13),
        Measurement("bits/dim", float("nan"), 128),
    )
    settings = {"seed": 5, "seconds": 1.0, "draw": {"method": "heun", "steps": 20}}
    return Evaluation(settings, "ansn-evaluate /home/me/run", {}, provenance, found)


@pytest.mark.parametrize(("step", "weights"), [(20, "ema"), (10, "ema"), (20, "network")])
def test_the_card_says_how_it_was_made_and_what_was_measured(
    step: int, weights: str, digits: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(digits, tmp_path / "run"))
    (run / "evaluation.json").write_text(evaluation(step, weights).to_json())
    succeeded(call("export", run, tmp_path / "out", "--dtype", "float32"))
    text = (tmp_path / "out" / "README.md").read_text()
    config = load_run(tmp_path / "out").config
    assert f"\n{presets.command(config)}\n" in text
    assert "(float32)" in text
    assert "seed 0" in text
    assert str(tmp_path) not in text
    row = "| Frechet distance | 12.35 | 11 to 13 | 7.6 | 500 | conv-64 |\n| bits/dim | nan |  |  | 128 |  |\n"
    these = (step, weights) == (20, "ema")
    assert (row in text) == these, "numbers of another step, or without averages, are not of these weights"
    for words in ("Drawn with method heun, steps 20.\n", "seed 5, with ansn unknown, torch 2.99, numpy unknown"):
        assert (words in text) == these


def test_a_card_without_numbers_has_no_table(exported: Path) -> None:
    assert "measured" not in card(load_run(exported), "x", "float16", None)


def test_of_a_named_run_the_evaluation_lies_in_the_folder_that_it_was_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mnist-evaluation").mkdir()
    Path("mnist-evaluation/evaluation.json").write_text(evaluation(20_000, load_run("mnist").weights).to_json())
    succeeded(call("export", "mnist", "out"))
    text = Path("out/README.md").read_text()
    assert "| Frechet distance | 12.35 |" in text
    assert "--threads 1 --data PATH\n" in text, "a command that runs"


def test_an_evaluation_that_is_damaged_is_one_line(digits: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(digits, tmp_path / "run"))
    (run / "evaluation.json").write_text("{")
    assert_refused(call("export", run, tmp_path / "out"), "export", "evaluation")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("out", [".", "hf:/me/run", "link"])
def test_a_name_that_is_none_to_write_to_is_refused(
    out: str, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert_refused(call("export", digits, out), "export", out)
    assert sorted(tmp_path.rglob("*")) == before
