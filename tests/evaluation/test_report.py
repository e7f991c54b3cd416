"""The report: a page that stands alone, says what was measured, and says so where something is missing."""

from __future__ import annotations

import os
import re
from pathlib import Path
from types import SimpleNamespace as Fake
from typing import Any

import numpy as np
import pytest
import torch

import ansn
from ansn.errors import InputError
from ansn.evaluation.report import figures as draw
from ansn.evaluation.report import write_report
from ansn.evaluation.report.numbers import environment
from ansn.evaluation.report.page import NAMES
from ansn.evaluation.report.words import meaning
from ansn.training import Run, load_run
from tests.evaluation.pages import (
    CLASSES,
    COLUMNS,
    EVIL,
    MEASURED,
    Page,
    data_of,
    decoded,
    digits_run,
    evaluation,
    measured,
    picture,
    split_of,
)

_REST = [
    "cost", "neighbours", "trajectory", "shares", "loss", "covariance", "levels", "reproduce", "settings",
    "environment",
]  # fmt: skip
SECTIONS = ["samples", "measurements", "space", *_REST]
OF_TABLES = ["samples", "measurements", "columns", "correlations", *_REST]


@pytest.fixture(scope="module", params=["digits_report", pytest.param("table_report", marks=pytest.mark.slow)])
def either(request: pytest.FixtureRequest) -> tuple[Page, list[Path]]:
    made: tuple[Page, list[Path]] = request.getfixturevalue(request.param)
    return made


@pytest.fixture
def no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that do not look at pictures, which take most of the time."""
    drawn = draw.rendered_sheet(torch.zeros(1, 1, 2, 2))
    monkeypatch.setattr("ansn.evaluation.report.page.rendered", lambda *_, **__: drawn)


def fresh(page: Page) -> Run:
    return load_run(page.path.parent)


def test_every_section_is_there_and_is_linked(either: tuple[Page, list[Path]]) -> None:
    page, _ = either
    sections = OF_TABLES if "columns" in page.text else SECTIONS
    assert [given["id"] for given in page.all("section")] == sections
    links = [given["href"] for given in page.all("a")]
    assert links == [f"#{name}" for name in sections]
    assert [tag for tag, _ in page.tags].count("h1") == 1
    assert page.all("html")[0]["lang"] == "en"
    assert "width=device-width" in [given.get("content", "") for given in page.all("meta")][1]
    # One sentence alone tells of something that is missing: the floor's in the footer is none of a section.
    assert all("could not be drawn" not in page.text[name] for name in sections)


def test_nothing_is_fetched(either: tuple[Page, list[Path]]) -> None:
    page, _ = either
    for tag, given in page.tags:
        assert tag not in ("script", "iframe", "object", "embed", "base", "form")
        assert not any(name.startswith("on") for name in given)
        for name in ("src", "srcset", "href"):
            assert given.get(name, "#").startswith(("#", "data:")), (tag, name)
    style = page.source.partition("<style>")[2].partition("</style>")[0]
    assert not re.search(r"url\(|@import", style)
    policy = next(given["content"] for given in page.all("meta") if "http-equiv" in given)
    assert policy.startswith("default-src 'none'")


def test_pictures_decode_have_words_and_lie_beside_the_page(either: tuple[Page, list[Path]]) -> None:
    page, written = either
    images = [given for given in page.all("img") if given.get("class") != "dark"]
    assert len(images) == len(written) - 1
    for given, path in zip(images, written[1:], strict=True):
        png = decoded(given["src"])
        assert png == path.read_bytes()
        drawn = picture(png)
        assert drawn.shape[:2] == (int(given["height"]), int(given["width"]))
        assert drawn.std() > 1
        assert len(given["alt"]) > 15
    assert {path.stem for path in written[1:]} <= NAMES
    assert sorted(written[1:]) == sorted((page.path.parent / "report").iterdir())
    assert page.path.stat().st_size < 2_000_000


def test_a_dark_page_has_dark_pictures_of_the_same_size(digits_report: tuple[Page, list[Path]]) -> None:
    page, written = digits_report
    dark, light = ([given for given in page.all("img") if given.get("class") == name] for name in ("dark", "light"))
    assert len(dark) == len(light) == len(written) - 1
    for night, day in zip(dark, light, strict=True):
        assert night["alt"] == day["alt"]
        a, b = picture(decoded(night["src"])), picture(decoded(day["src"]))
        assert a.shape == b.shape
        corner = a[:3, :2], b[:3, :2]  # of the page's colour
        assert (corner[0].max(), corner[1].min()) == (28, 255)


@pytest.mark.slow
def test_names_from_files_stay_text(table_report: tuple[Page, list[Path]]) -> None:
    page, _ = table_report
    assert len(page.all("script")) == 0
    assert EVIL not in page.source
    for name in COLUMNS:
        assert name in page.text["neighbours"]
    alts = " ".join(given["alt"] for given in page.all("img"))
    for name in CLASSES:
        assert name in alts
    assert "<i>run & 'more'" in page.text["reproduce"].replace("'\"'\"'", "'")
    assert EVIL in page.text["measurements"]


def test_a_measurement_comes_with_all_that_it_means(digits_report: tuple[Page, list[Path]]) -> None:
    page, _ = digits_report
    said = page.text["measurements"]
    numbers = ("0.25", "0.21 to 0.2875", "0.125", "0.93 (n = 450)", "64", "test (450)", "lower", "0.91")
    for part in (*numbers, "In the features digits-mlp-128-32", f"of {EVIL}"):
        assert part in said
    for one in MEASURED:
        told = meaning(one.name)
        assert told is not None
        assert told in said
    assert "Inception features: not installed" in said
    assert "0.25 at n = 64" in page.text["summary"]
    assert "2.00 times" in page.text["summary"]  # the floor has the same n


def test_commands_and_settings_are_complete(digits_report: tuple[Page, list[Path]]) -> None:
    page, _ = digits_report
    run = fresh(page)
    assert f"--out {run.path}" in page.text["reproduce"]
    assert f"ansn-sample {run.path} -n 40 --seed 0 --method heun --steps 4" in page.text["reproduce"]
    assert f"ansn-evaluate '{EVIL}'" in page.text["reproduce"]
    for name in ("batch_size", "rho", "prediction", "sample_steps", "seed", "dequantise"):
        assert name in page.text["settings"]
    for name in ("torch", "numpy", "processor"):
        assert name in page.text["environment"]


@pytest.mark.parametrize(("device", "said"), [("cuda:1", "GPU 1"), ("cpu", "none")])
def test_the_gpu_is_that_of_the_run(device: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda which=None: f"GPU {which and which.index}")
    tau = Fake(device=torch.device(device))
    material: Any = Fake(run=Fake(model=Fake(noise=Fake(tau=tau))), evaluation=Fake(provenance={}))
    assert ["GPU", said] in environment(material).tables[0].rows


@pytest.mark.slow
def test_every_column_is_there_beside_its_floor(table_report: tuple[Page, list[Path]]) -> None:
    page, written = table_report
    for name in COLUMNS:
        assert all(name in page.text[section] for section in ("columns", "neighbours"))
    assert "of 40 samples, of 40 held-out rows" in page.text["columns"]
    assert "held-out rows" in page.text["correlations"]
    assert {"marginals", "correlations", "samples"} <= {path.stem for path in written[1:]}


def test_images_have_a_power_spectrum_beside_its_floor(digits_report: tuple[Page, list[Path]]) -> None:
    page, written = digits_report
    assert "power spectrum" in page.text["space"]
    assert "power-spectrum" in {path.stem for path in written[1:]}
    assert "autocorrelation" not in page.text["space"]


@pytest.mark.usefixtures("no_drawing")
@pytest.mark.parametrize("shape", [(2, 24), (1, 8, 10), (1, 4, 6, 5)])
def test_fields_have_all_statistics_over_space(shape: tuple[int, ...], tmp_path: Path) -> None:
    rows = 280 + 5 * np.random.default_rng(0).normal(size=(120, *shape))
    np.save(tmp_path / "x.npy", rows.astype(np.float32))
    axes = {2: "NCL", 3: "NCHW", 4: "NCDHW"}[len(shape)]
    run = digits_run(tmp_path / "run", dataset=str(tmp_path / "x.npy"), kind="field", axes=axes)
    train, test = split_of(ansn.load_dataset(run.config.data.dataset, kind="field", axes=axes))
    page = Page(write_report(run.path, run, evaluation(), samples=torch.randn(30, *shape), train=train, test=test)[0])
    for name in ("power spectrum", "autocorrelation", "one-point distribution"):
        assert name in page.text["space"]
        assert f"figure-{name.replace(' ', '-')}" in page.text
    assert "floor" in page.text["space"]
    assert "columns" not in page.text


@pytest.mark.usefixtures("no_drawing")
def test_values_of_different_n_are_told_apart(tmp_path: Path) -> None:
    run = digits_run(tmp_path / "run")
    rows = [{"name": "d", "method": "heun", "evaluations": k, "seconds": 1.0, "value": 2.0 - k / 40, "floor": n / 1e4,
             "n": n} for k, n in ((4, 100), (8, 100), (20, 450))]  # fmt: skip
    page = Page(write_report(run.path, run, evaluation(quality=tuple(rows)), samples=torch.rand(4, 1, 8, 8))[0])
    assert "n = 100 and 450" in page.text["cost"]
    assert "the floor that is drawn is that of n = 100" in page.text["cost"]
    same = tuple(row | {"n": 100} for row in rows)
    page = Page(write_report(run.path, run, evaluation(quality=same), samples=torch.rand(4, 1, 8, 8))[0])
    assert "Distances fall with n" not in page.text["cost"]


@pytest.mark.usefixtures("no_drawing")
def test_what_is_missing_is_a_sentence(tmp_path: Path) -> None:
    run = digits_run(tmp_path / "run")
    (run.path / "metrics.jsonl").unlink()
    page = Page(write_report(tmp_path / "new" / "page", run, evaluation(), samples=torch.rand(5, 1, 8, 8))[0])
    assert [given["id"] for given in page.all("section")] == SECTIONS
    for name, words in {
        "measurements": "Nothing was measured", "cost": "No sampler was tried", "neighbours": "No neighbours",
        "trajectory": "No way was recorded", "shares": "were not judged", "loss": "no metrics.jsonl",
        "levels": "training data was not at hand",
    }.items():  # fmt: skip
        assert words in page.text[name]
    assert "Nothing was measured" in page.text["summary"]


@pytest.mark.usefixtures("no_drawing")
def test_what_diverged_is_a_sentence(tmp_path: Path) -> None:
    run = digits_run(tmp_path / "run")
    run.model.noise.covariance.moments.scatter.fill_(torch.nan)
    run.model.noise.covariance.snapshot.factor.fill_(torch.nan)
    samples = torch.rand(5, 1, 8, 8)
    samples[2] = torch.nan
    (run.path / "metrics.jsonl").write_text('{"step": 10, "loss": null}\n{"loss": 3}\n')
    found = evaluation(measured("Frechet distance", float("nan")), measured("energy distance", 1.5))
    page = Page(write_report(run.path, run, found, samples=samples, train=data_of(run))[0])
    assert "cannot be shown" in page.text["covariance"]
    assert "cannot be shown" in page.text["levels"]
    assert "1 of 5 samples" in page.text["samples"]
    assert "no metrics.jsonl with a loss" in page.text["loss"]
    assert "not finite" in page.text["measurements"]
    assert "Energy distance" in page.text["summary"]  # the first that is a number


@pytest.mark.usefixtures("no_drawing")
def test_a_new_report_replaces_the_pictures_of_the_old_one(tmp_path: Path) -> None:
    run = digits_run(tmp_path / "run")
    pictures = run.path / "report"
    pictures.mkdir()
    for name in ("neighbours", "mine"):
        (pictures / f"{name}.png").write_bytes(b"old")
    write_report(run.path, run, evaluation(), samples=torch.rand(4, 1, 8, 8))
    assert not (pictures / "neighbours.png").exists()
    assert (pictures / "mine.png").exists()


@pytest.mark.usefixtures("no_drawing")
def test_a_page_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = digits_run(tmp_path / "run")
    (run.path / "report.html").write_text("old")
    replace = os.replace

    def full(a: Path, b: Path) -> None:
        if b.name == "report.html":
            raise OSError(28, "No space left on device")
        replace(a, b)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        write_report(run.path, run, evaluation(), samples=torch.rand(4, 1, 8, 8))
    assert (run.path / "report.html").read_text() == "old"
    assert not list(run.path.glob(".report*"))


def test_samples_of_another_shape_are_refused(tmp_path: Path) -> None:
    run = digits_run(tmp_path / "run")
    with pytest.raises(ValueError, match=r"samples: got shape \[4, 64\], expected \[n, 1, 8, 8\]"):
        write_report(run.path, run, evaluation(), samples=torch.rand(4, 64))


@pytest.mark.parametrize(
    "regions", ["none", *(pytest.param(name, marks=pytest.mark.slow) for name in ("found", "labels", "mixture"))]
)
def test_other_models_have_a_page(regions: str, tmp_path: Path) -> None:
    """One column, one level, a diagonal covariance; regions for the classes, found ones, and those of a skip."""
    if regions in ("found", "mixture"):
        skip = "mixture" if regions == "mixture" else None
        run = digits_run(tmp_path / "run", regions=3, skip=skip, structure="diagonal")
    elif regions == "labels":
        run = digits_run(tmp_path / "run", regions="labels", class_conditional=True, structure="diagonal")
    else:
        data = tmp_path / "x.npy"
        np.save(data, np.random.default_rng(0).normal(size=(200, 1)).astype(np.float32))
        run = digits_run(tmp_path / "run", dataset=str(data), ladder="paper")
    samples = torch.rand(6, *run.info.shape)
    found = evaluation(measured("energy distance", 1.5, baseline=7.25))
    page = Page(write_report(run.path, run, found, samples=samples, train=data_of(run))[0])
    assert all("could not be drawn" not in said for said in page.text.values())
    assert ("figure-regions" in page.text) == (regions != "none")
    count = {"none": "one Gaussian", "labels": "10 regions"}.get(regions, "3 regions")
    assert all(words in page.text["measurements"] for words in ("7.25", "The baseline is as many samples of", count))
    assert {"figure-samples", "figure-spectrum", "figure-directions", "figure-levels"} <= set(page.text)


@pytest.mark.usefixtures("no_drawing")
def test_a_report_is_not_written_through_a_link(tmp_path: Path) -> None:
    run = digits_run(tmp_path / "run")
    (tmp_path / "other").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "report").symlink_to(tmp_path / "other")
    with pytest.raises(InputError, match=r"out/report: got a link, expected a folder to write pictures in"):
        write_report(tmp_path / "out", run, evaluation(), samples=torch.rand(4, 1, 8, 8))
    assert not list((tmp_path / "other").iterdir())


@pytest.mark.usefixtures("no_drawing")
def test_a_floor_of_unknown_n_and_settings_of_other_kinds(tmp_path: Path) -> None:
    run = digits_run(tmp_path / "run")
    found = evaluation(measured("precision", 0.9, floor_n=None), settings={"halves": "x", "seed": [], "draw": 3})
    page = Page(write_report(tmp_path, run, found, samples=torch.rand(4, 1, 8, 8))[0])
    assert "0.125" in page.text["measurements"]
    assert "None" not in page.text["measurements"]


@pytest.mark.usefixtures("no_drawing")
def test_neighbours_of_other_data_are_a_sentence(tmp_path: Path) -> None:
    run, data = digits_run(tmp_path / "run"), ansn.load_dataset("digits")
    wrong: list[list[list[int]]] = [[[10**9]], [[-1]], [[]], [[0]] * 50]
    for index in wrong:
        near = {"index": index, "distance": [[1.0] * len(row) for row in index], "space": "pixels"}
        written = write_report(tmp_path, run, evaluation(neighbours=near), samples=torch.rand(4, 1, 8, 8), train=data)
        assert "are not of these samples and this data" in Page(written[0]).text["neighbours"]
