"""`report.html`: one page that a person looks at to judge a run, and the pictures on it as PNG files.

:func:`write_report` is the way in. The page needs no network and no script: pictures are embedded, in two colours where
the page may be dark. All text that comes from files (column and class names, paths) is escaped.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import jinja2
from torch import Tensor

from ansn.data import Dataset
from ansn.errors import InputError
from ansn.evaluation.measurement import Evaluation
from ansn.evaluation.report import data, fields, numbers, tables, words
from ansn.evaluation.report.page import NAMES, Material, Section, Shares
from ansn.evaluation.trajectory import Trajectory
from ansn.files import write_atomic
from ansn.training.runs import Run

__all__ = ["Shares", "write_report"]

NAME = "report.html"
PICTURES = "report"
_SECTIONS: tuple[Callable[[Material], Section | None], ...] = (
    data.samples, numbers.measurements, tables.marginals, tables.correlations, fields.space, numbers.cost,
    data.neighbours, data.trajectory, numbers.shares, numbers.loss, data.covariance, data.levels, numbers.reproduce,
    numbers.settings, numbers.environment,
)  # fmt: skip


def write_report(
    folder: str | os.PathLike[str],
    run: Run,
    evaluation: Evaluation,
    *,
    samples: Tensor,
    train: Dataset | None = None,
    test: Dataset | None = None,
    trajectory: Trajectory | None = None,
    shares: Shares | None = None,
    commands: Sequence[tuple[str, str]] = (),
) -> list[Path]:
    """Write ``folder/report.html`` and its pictures, ``folder/report/*.png``; returns the paths, the page first.

    Args:
        folder: usually the run's own; made if it is not there. Each file is complete or not there, the page last.
        run: what was evaluated; its metrics.jsonl is read if it is there.
        evaluation: what was found, and the command that finds it again; the first measurement that is a number goes
            into the summary.
        samples: ``[n, *shape]``, as the model made them (in its numbers); the first are shown.
        train: the training data: shown behind tables, beside all else, and perturbed. Without it a sentence says so.
        test: held-out rows, for the floors of columns, correlations and statistics over space.
        trajectory: of :func:`ansn.evaluation.trajectory.record`.
        shares: of the classes, among samples and data. commands: further ``(what it does, command)``.

    What is missing or cannot be drawn is a sentence on the page. Raises OSError if a file cannot be written, ValueError
    for samples that are not of the model's shape and where ``folder/report`` is a link.
    """
    shape = run.info.shape
    if samples.ndim != 1 + len(shape) or tuple(samples.shape[1:]) != tuple(shape) or len(samples) < 1:
        expected = ", ".join(map(str, shape))
        raise ValueError(f"samples: got shape {list(samples.shape)}, expected [n, {expected}] with n at least 1")
    material = Material(run, evaluation, samples.detach().cpu(), train, trajectory, shares, tuple(commands), test)
    made = [section for make in _SECTIONS if (section := make(material)) is not None]
    page = _render(words.title(material), words.summary(material), made, words.footer())
    target = Path(folder)
    pictures = target / PICTURES
    if pictures.is_symlink():
        raise InputError(f"{pictures}: got a link, expected a folder to write pictures in")
    pictures.mkdir(parents=True, exist_ok=True)
    written = [write_atomic(pictures / f"{p.name}.png", p.image.light) for s in made for p in s.pictures]
    page_path = write_atomic(target / NAME, page.encode("utf-8", "replace"))
    for name in NAMES - {path.stem for path in written}:  # of a report before this one
        (pictures / f"{name}.png").unlink(missing_ok=True)
    return [page_path, *written]


def _render(title: str, summary: str, made: Sequence[Section], footer: str) -> str:
    loader = jinja2.PackageLoader("ansn.evaluation.report", ".")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=False, keep_trailing_newline=True
    )
    environment.filters["data_uri"] = _data_uri
    template = environment.get_template("page.html.jinja")
    return template.render(title=title, summary=summary, sections=made, footer=footer)


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
