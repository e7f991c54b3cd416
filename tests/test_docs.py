"""The pages that a user follows: commands and programs run as they stand, links lead somewhere, sentences are short."""

from __future__ import annotations

import csv
import importlib
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ansn.config import DataConfig
from tests.cli.helpers import call, environment, succeeded

ROOT = Path(__file__).parents[1]
GUIDES = sorted((ROOT / "docs" / "guides").glob("*.md"))
FOLLOWED = [ROOT / "README.md", ROOT / "docs" / "quickstart.md", ROOT / "docs" / "samplers.md", *GUIDES]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
PAGES = sorted({*FOLLOWED, *(ROOT / "docs").glob("*.md"), ROOT / "CONTRIBUTING.md"})
MEASURED = "results.md", "kernel-table.md", "cuda-table.md"
"""Written by programs."""
SMALL = {
    "ansn-train": "--steps 20 --samples 9 --threads 1", "ansn-sample": "-n 100 --threads 1",
    "ansn-evaluate": "--quick --evaluations 4 --threads 1", "ansn-score": "--steps 4 --draws 2 --threads 1",
    "ansn-impute": "--steps 5 --threads 1", "torchrun": "-n 20 --threads 1",
}  # fmt: skip
"""What is added to a command here, so that it takes seconds."""
SHORTER = {"stop_step=1000": "stop_step=20", "stop_step=300": "stop_step=20", "50_000": "50"}
Block = tuple[str, str]


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(page: Path) -> Iterator[Block]:
    """Language and text of each block of code; what is indented is for a shell."""
    if page.suffix == ".ipynb":
        for cell in json.loads(page.read_text())["cells"]:
            if cell["cell_type"] == "code":
                yield "python", "".join(cell["source"])
        return
    pattern = r"^```(\w+)\n(.*?)^```|((?:^    .*\n)+)"
    for match in re.finditer(pattern, page.read_text(), re.S | re.M):
        yield (match[1], match[2]) if match[1] else ("sh", re.sub("^    ", "", match[3], flags=re.M))


def lines(text: str) -> Iterator[list[str]]:
    """The words of each command that is ours."""
    for line in text.replace("\\\n", " ").splitlines():
        if line.startswith(("ansn-", "torchrun ")):
            yield shlex.split(line, comments=True)


def prose(page: Path) -> Iterator[str]:
    """Its sentences: no code, tables, headings and pictures; what is code in a sentence is a word."""
    text = re.sub(r"^```.*?^```|<!--.*?-->", "\n", page.read_text(), flags=re.S | re.M)
    text = re.sub(r"^(    |\||#|!\[|\[!\[).*$", "\n", text, flags=re.M)
    for paragraph in re.split(r"\n\s*\n|\n(?=[-*] )", text):
        flat = re.sub(r"\]\([^)]*\)", "]", re.sub(r"`[^`]*`", "code", " ".join(paragraph.split())))
        yield from re.split(r"(?<=[.!?])\W*\s", flat)


def slug(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", [*FOLLOWED, *NOTEBOOKS], ids=named)
def test_its_programs_compile_and_its_commands_parse(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for language, text in blocks(page):
        if language == "python":
            compile(text, named(page), "exec")
            continue
        for command, *words in lines(text):
            if command == "torchrun":
                command, words = f"ansn-{words[3].removeprefix('ansn.cli.')}", words[4:]
            name = command.removeprefix("ansn-")
            monkeypatch.setattr(importlib.import_module(f"ansn.cli.{name}"), "guarded", lambda *_: 0)
            succeeded(call(name, *words))


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_its_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"\w+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if anchor:
            assert anchor in {slug(heading) for heading in re.findall(r"^#+ (.*)$", file.read_text(), re.M)}, target


@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in MEASURED], ids=named)
def test_its_lines_are_short(page: Path) -> None:
    """Rows of tables and links cannot be broken."""
    assert [line for line in page.read_text().splitlines() if len(line) > 120 and line[0] not in "|!["] == []


@pytest.mark.parametrize("page", FOLLOWED, ids=named)
def test_its_sentences_are_short(page: Path) -> None:
    assert [sentence for sentence in prose(page) if len(sentence.split()) > 30] == []


def test_the_guides_have_all_options_that_say_what_data_is() -> None:
    said = set(re.findall(r"--([a-z-]+)", "".join(page.read_text() for page in GUIDES)))
    assert {name.replace("_", "-") for name in DataConfig.__dataclass_fields__} - {"flip"} <= said


def test_the_numbers_of_the_samplers_are_those_measured() -> None:
    measured: dict[tuple[str, ...], list[float]] = {}
    with (ROOT / "experiments" / "results" / "evaluations.csv").open() as file:
        for row in csv.DictReader(file):
            if (row["kind"], row["problem"]) == ("samplers", "digits") and row["schedule"] in ("few_steps", "ladder"):
                measured.setdefault((row["method"], row["arm"].split()[0], row["budget"]), []).append(float(row["fd"]))
    page = (ROOT / "docs" / "samplers.md").read_text()
    said = {}
    for method, first, second, third in re.findall(r"^\| `(\w+)` \|.*\|(.*)\|(.*)\|(.*)\|$", page, re.M):
        for budget, cell in (("4", first), ("8", second), ("20", third)):
            budget = "1000" if "with" in cell else budget
            for arm, number in (("wiener", r"\((\d.*)\)"), ("scalar", r"^ (\d\.\d+)")):
                for value in re.findall(number, cell):
                    said[method, arm, budget] = value
    assert len(said) == 31
    assert said == {key: f"{np.mean(measured[key]):.2f}" for key in said}


def data(folder: Path) -> None:
    """A table and photos for the README's commands."""
    (folder / "photos").mkdir()
    for i, image in enumerate(np.random.default_rng(0).integers(0, 256, (24, 16, 16, 3), dtype=np.uint8)):
        Image.fromarray(image).save(folder / "photos" / f"{i}.png")
    rows = "\n".join(f"{i % 7},{i % 3 / 10},{'ab'[i % 2] if i % 5 else ''}" for i in range(60))
    (folder / "table.csv").write_text(f"a,b,c\n{rows}\n")


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in (*FOLLOWED, *NOTEBOOKS) if page.name != "own-loop.md"], ids=named)
def test_it_runs_as_it_stands(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In order, in one folder; the programs of a page share their names. (own-loop.md: tests/test_own_loop.py.)"""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ANSN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MPLBACKEND", "Agg")
    if page.name == "README.md":
        data(tmp_path)
    names: dict[str, object] = {"__name__": "page"}
    for language, text in blocks(page):
        if language == "python":
            for long, short in SHORTER.items():
                text = text.replace(long, short)
            exec(compile(text, named(page), "exec"), names)
            continue
        for words in lines(text):
            if {"PATH", "RUN", "FOLDER"} & set(words):  # data that is not here
                continue
            small = SMALL.get(words[0], "").split()
            if words[0] == "torchrun":
                command = [sys.executable, "-m", "torch.distributed.run", "--standalone", *words[1:], *small]
                done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)
                assert done.returncode == 0, done.stderr[-3000:]
            else:
                succeeded(call(words[0].removeprefix("ansn-"), *words[1:], *small))
            if "--out" in words:
                assert Path(words[words.index("--out") + 1]).exists()


@pytest.mark.slow
def test_the_site_has_no_broken_link(tmp_path: Path) -> None:
    pytest.importorskip("material", reason="`make docs` installs what builds the site")
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "NoiseModel" in (tmp_path / "api" / "ansn.html").read_text()
