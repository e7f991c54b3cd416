"""`ansn-score` and `ansn-impute` on a mixed table with holes, and on arrays."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.cli.helpers import PLAIN, TINY, call, succeeded
from tests.training.helpers import seal

HEADER = ["height (m)", "kind", "count", "note", "price"]


def write(path: Path, rows: list[list[str]], header: list[str] | None = None) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header or HEADER, *rows])
    return path


def read(path: Path) -> tuple[list[str], list[list[str]]]:
    with path.open(newline="") as file:
        header, *rows = csv.reader(file)
    return header, rows


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A number, a word, a whole number, a column that is ignored, and a price of two decimals; 5 % of them missing."""
    folder = tmp_path_factory.mktemp("mixed")
    rng = np.random.default_rng(0)
    rows = []
    for i in range(400):
        height = rng.normal(2, 0.5)
        row = [f"{height:.3f}", str(rng.choice(["oak", "ash", "elm"])), str(rng.poisson(40)), f"n{i}"]
        row.append(f"{100 * height + rng.normal():.2f}")
        rows.append([c if j == 3 or rng.random() > 0.05 else "" for j, c in enumerate(row)])
    write(folder / "data.csv", rows)
    options = ("--dataset", folder / "data.csv", "--ignore-columns", "note", "--steps", 20, "--samples", 0)
    succeeded(call("train", "toy2d", *TINY, *PLAIN, *options, "--out", folder / "run"))
    return folder / "run"


ROWS = [
    ["2.1", "oak", "41", "a, b", "209.10"], ["", "ash", "38", "", "150.00"], ["1.9", "?", "", "x", "NA"],
    ["2.125", "elm", "44", "y", "213"], ["9.9", "elm", "44", "z", "213"],
]  # fmt: skip


def test_a_row_has_a_score_and_its_error(run: Path, tmp_path: Path):
    out = tmp_path / "s.csv"
    told = succeeded(call("score", run, write(tmp_path / "new.csv", ROWS), "--out", out, "--threads", 1)).out
    header, rows = read(out)
    assert header == ["row", "log_likelihood", "standard_error"]
    assert [row[0] for row in rows] == ["0", "1", "2", "3", "4"]
    assert [row[1] == row[2] == "" for row in rows] == [False, True, True, False, False]
    scores = [float(rows[i][1]) for i in (0, 3, 4)]
    assert scores[2] < min(scores[:2]) - 3, "a height of 9.9 is strange"
    assert all(float(rows[i][2]) > 0 for i in (0, 3, 4)), "words and whole numbers are spread anew"
    first, second, third = told.splitlines()
    assert first.startswith("3 rows, mean ")
    assert "lowest: rows 4, " in first
    assert second == "2 rows with missing cells have no score; ansn-impute fills them"
    assert third == str(out)


def test_columns_are_found_by_name_and_more_of_them_do_no_harm(run: Path, tmp_path: Path):
    order = [4, 2, 0, 1]
    write(tmp_path / "a.csv", ROWS)
    write(tmp_path / "b.csv", [[row[j] for j in order] for row in ROWS], [HEADER[j] for j in order])
    for name in ("a.csv", "b.csv"):
        succeeded(call("score", run, tmp_path / name, "--out", tmp_path / f"s-{name}", "--threads", 1, "--steps", 2))
    assert read(tmp_path / "s-a.csv") == read(tmp_path / "s-b.csv")


def test_every_missing_cell_is_filled_and_no_other_is_touched(run: Path, tmp_path: Path):
    data, out = write(tmp_path / "new.csv", ROWS), tmp_path / "filled.csv"
    told = succeeded(call("impute", run, data, "--out", out, "--threads", 1, "--steps", 10)).out
    assert told.splitlines() == ["4 missing in 2 of 5 rows, 1 draw", str(out)]
    header, rows = read(out)
    assert header == HEADER
    for i, (row, given) in enumerate(zip(rows, ROWS, strict=True)):
        missing = {1: {0}, 2: {1, 2, 4}}.get(i, set())
        assert all(cell == kept for j, (cell, kept) in enumerate(zip(row, given, strict=True)) if j not in missing)
    assert len(rows[1][0].partition(".")[2]) == 3, "the file's digits"
    assert rows[2][1] in ("oak", "ash", "elm")
    assert rows[2][2].isdigit()
    assert len(rows[2][4].partition(".")[2]) == 2
    again = tmp_path / "again.csv"
    succeeded(call("impute", run, data, "--out", again, "--threads", 1, "--steps", 10))
    assert again.read_bytes() == out.read_bytes()
    succeeded(call("score", run, out, "--out", tmp_path / "s.csv", "--threads", 1, "--steps", 2))


def test_several_draws_and_their_summary(run: Path, tmp_path: Path):
    data, out = write(tmp_path / "new.csv", ROWS), tmp_path / "filled.csv"
    common = ("impute", run, data, "--out", out, "--threads", 1, "--steps", 10)
    succeeded(call(*common, "--draws", 3))
    header, rows = read(out)
    assert header == ["draw", "row", *HEADER]
    assert [row[:2] for row in rows] == [[str(k), str(i)] for k in range(3) for i in range(5)]
    assert len({row[2] for row in rows[1::5]}) > 1
    succeeded(call(*common, "--summary", "--draws", 16))
    header, rows = read(out)
    assert header == ["row", "column", "mean", "deviation", "likeliest", "share"]
    assert [row[:2] for row in rows] == [["1", "height (m)"], ["2", "kind"], ["2", "count"], ["2", "price"]]
    assert float(rows[0][3]) > 0
    assert rows[1][4] in ("oak", "ash", "elm")
    assert 1 / 3 <= float(rows[1][5]) <= 1


def test_arrays(digits: Path, tmp_path: Path):
    """Images of a run, as integers or as floats, with pixels that are not known."""
    x = np.random.default_rng(0).integers(0, 17, (3, 8, 8)).astype(np.uint8)
    np.save(tmp_path / "x.npy", x)
    holes = (x / 16).astype(np.float32)
    holes[1, :4] = np.nan
    np.save(tmp_path / "holes.npy", holes)
    out = tmp_path / "s.csv"
    scores = []
    for name in ("x", "holes"):
        options = ("--steps", 1, "--trace", "hutchinson", "--threads", 1, "--out", out)
        succeeded(call("score", digits, tmp_path / f"{name}.npy", *options))
        scores.append([row[1] for row in read(out)[1]])
    assert scores[1][1] == ""
    assert float(scores[0][0]) == pytest.approx(float(scores[1][0]), rel=1e-4)
    common = ("impute", digits, tmp_path / "holes.npy", "--out", tmp_path / "f.npy", "--threads", 1, "--steps", 3)
    succeeded(call(*common))
    filled = np.load(tmp_path / "f.npy")
    assert filled.shape == (3, 1, 8, 8)
    assert np.array_equal(filled[:, 0][~np.isnan(holes)], holes[~np.isnan(holes)])
    assert np.isfinite(filled).all()
    succeeded(call(*common, "--draws", 2))
    assert np.load(tmp_path / "f.npy").shape == (2, 3, 1, 8, 8)


def test_a_mistake_is_one_line(run: Path, digits: Path, tmp_path: Path):
    data = write(tmp_path / "new.csv", ROWS)
    other = write(tmp_path / "other.csv", [["1", "2"], ["3", "5"]], ["a", "b"])
    strange = write(tmp_path / "strange.csv", [["2", "fir", "3", "", "4"]])
    empty = write(tmp_path / "empty.csv", ROWS[1:3])
    out = ("--out", tmp_path / "o.csv")
    for arguments, words in (
        (("score", run, other, *out), "other.csv: got "), (("score", run, strange, *out), "'fir'"),
        (("score", run, empty, *out), "got missing cells in every row, expected complete rows"),
        (("score", run, tmp_path / "none.csv", *out), "none.csv: got no such file"),
        (("score", run, data, "--out", "s.txt"), "--out: got s.txt, expected a name that ends in .csv"),
        (("score", digits, data, *out), "got .csv for a run of images, expected .npy"),
        (("impute", run, data, *out, "--draws", 0), "--draws: got 0, expected at least 1"),
        (("impute", run, data, *out, "--method", "mean"), "--method: got 'mean', expected one of"),
        (("impute", run, data, *out, "--particles", 1), "particles: got 1, expected at least 2"),
        (("impute", run, data), "--out"),
    ):  # fmt: skip
        done = call(*arguments)
        assert done.code == 2, arguments
        assert words in done.err
        assert done.err.count("\n") == 1, done.err


def test_a_network_that_gives_no_numbers_writes_nothing(run: Path, tmp_path: Path):
    broken = Path(shutil.copytree(run, tmp_path / "run"))
    folder = next(broken.glob("checkpoints/*"))
    weights = load_file(folder / "ema.safetensors")
    save_file({name: torch.full_like(value, 1e30) for name, value in weights.items()}, folder / "ema.safetensors")
    seal(folder)
    rows = write(tmp_path / "new.csv", ROWS)
    for command, told in (("score", "leaves the finite numbers"), ("impute", "not finite")):
        outcome = call(command, broken, rows, "--out", tmp_path / "out.csv", "--threads", 1)
        assert (outcome.code, told in outcome.err, "Traceback" in outcome.err) == (2, True, False), outcome.err
    assert not (tmp_path / "out.csv").exists()
