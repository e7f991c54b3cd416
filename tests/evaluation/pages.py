"""Small runs with a report each, and the page as a parser sees it."""

from __future__ import annotations

import base64
import csv
import io
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import ansn
from ansn.data import Dataset
from ansn.evaluation.measurement import Evaluation, Measurement
from ansn.evaluation.report import Shares, write_report
from ansn.evaluation.trajectory import record
from ansn.training import Run, load_run, train
from ansn.training.pictures import draw
from tests.training.helpers import small

EVIL = "<script>alert(1)</script>"
COLUMNS = (EVIL, r"$\frac{1}{", "日本語", "_under", "a column's \"name\" that goes on & on, and further on")
CLASSES = ("$x", '"><img src=http://example.org/x.png onerror=alert(2)>', "cat")
VOID = {"meta", "link", "img", "source", "br", "hr", "input"}


def measured(name: str, value: float, **others: Any) -> Measurement:
    usual: dict[str, Any] = {
        "n": 64, "features": "digits-mlp-128-32", "reference": "test", "reference_n": 450, "floor": 0.125,
        "floor_n": 450,
    }  # fmt: skip
    return Measurement(name, value, **usual | others)


def evaluation(*measurements: Measurement, **others: Any) -> Evaluation:
    return Evaluation(others.pop("settings", {}), others.pop("command", ""), {}, {}, measurements, **others)


MEASURED = [
    measured("Frechet distance", 0.25, floor_n=64, low=0.21, high=0.2875),
    measured("precision", 0.91, floor=0.93, better="higher", note=f"of {EVIL}"),
]
SWEEP = [
    {"name": "Frechet distance", "method": method, "evaluations": n, "seconds": n * 0.01, "value": 0.17 + k / n,
     "low": 0.16 + k / n, "high": 0.2 + k / n, "floor": 0.17, "n": 64}
    for method, k in (("heun", 1.0), ("euler", 3.0)) for n in (4, 8, 20)
]  # fmt: skip


class Page(HTMLParser):
    """Tags with their attributes, the text of each element with an id, and whether the tags close in order."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path, self.source = path, path.read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.open: list[tuple[str, str | None]] = []
        self.text: dict[str, str] = {}
        self.feed(self.source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {k: v or "" for k, v in attrs}
        self.tags.append((tag, given))
        if "id" in given:
            assert given["id"] not in self.text, f"{given['id']} twice"
            self.text[given["id"]] = ""
        if tag not in VOID:
            self.open.append((tag, given.get("id")))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open[-1][0] == tag
        self.open.pop()

    def handle_data(self, data: str) -> None:
        for _, name in self.open:
            if name is not None:
                self.text[name] += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [given for name, given in self.tags if name == tag]


def decoded(uri: str) -> bytes:
    assert uri.startswith("data:image/png;base64,")
    return base64.b64decode(uri.partition(",")[2], validate=True)


def picture(png: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(png)) as image:
        image.load()
        return np.asarray(image.convert("RGB"))


def digits_run(folder: Path, **settings: Any) -> Run:
    return load_run(train(small(folder, samples=4, **settings)))


def table_run(folder: Path) -> Run:
    """Trained on a CSV whose names are as bad as names can be."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    with (folder / "data.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["kind", *COLUMNS])
        for row in rng.normal(size=(300, 5)) * np.arange(1, 6):
            writer.writerow([CLASSES[int(rng.integers(3))], *(f"{v:.5f}" for v in row)])
    return load_run(train(small(folder / "run", dataset=str(folder / "data.csv"), label_column="kind", samples=4)))


def data_of(run: Run) -> Dataset:
    return ansn.load_dataset(run.config.data.dataset, label_column=run.config.data.label_column)


def split_of(data: Dataset) -> tuple[Dataset, Dataset]:
    """A third of the rows, held out, and the others."""
    order = data.order(0, 0)
    return data.select(order[len(data) // 3 :]), data.select(order[: len(data) // 3])


def full_report(run: Run, n: int = 40) -> list[Path]:
    """Everything that a report may hold."""
    data, test = split_of(data_of(run))
    x = draw(run, n, 0, steps=4)
    rows = data.batch(torch.arange(len(data)))[0]
    distance, index = torch.cdist(x.flatten(1), rows.flatten(1)).topk(3, largest=False)
    names = data.classes or tuple(map(str, range(data.num_classes)))
    even = tuple(1 / len(names) for _ in names)
    near = {"index": index.tolist(), "distance": distance.tolist(), "space": "digits-pixels"}
    found = evaluation(
        *MEASURED, quality=tuple(SWEEP), settings={"n": n, "seed": 0, "draw": {"method": "heun", "steps": 4}},
        command=f"ansn-evaluate '{EVIL}'", neighbours=near, left_out=("Inception features: not installed.",),
    )  # fmt: skip
    return write_report(
        run.path, run, found, samples=x, train=data, test=test, trajectory=record(run, 3, steps=5),
        shares=Shares(names, even, even, "a classifier"),
    )  # fmt: skip
