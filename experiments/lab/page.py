"""``docs/results.md``: one section a claim, made of the rows under ``experiments/results`` and of nothing else."""

from __future__ import annotations

import importlib
import re
import textwrap
from pathlib import Path

from ansn.files import write_atomic
from experiments.lab.claim import RESULTS, Claim, Row, Section, read
from experiments.lab.statistics import table

CLAIMS = (
    "quality", "structures", "evaluations", "modes", "drift", "inverse_problems", "tables", "recipe",
    "likelihood_check", "errata",
)  # fmt: skip
PAGE = RESULTS.parents[1] / "docs" / "results.md"
BEFORE = "before.csv"
"""Answers of earlier editions that stand: question, answer, command and revision that measured them, and the claim that
takes their place when it has been run in full (none: it is not measured again)."""
_HEAD = """# Results: what a learned covariance buys, and what it does not

Made from the CSV files under `experiments/results` by `python -m experiments.lab.page`. `make evidence DATA=PATH`
measures all of it anew; `make evidence-quick` runs a small version of everything. Intervals are 95 % over seeds
(Student's t), differences are paired: runs of one seed share data order, levels and white noise, and first weights
where their networks see as many inputs. No interval is corrected for how many are looked at: one in twenty leaves out 0
by chance. Measured on {machine}; no figure is of a GPU. Speed of the kernels: [performance.md](performance.md); which
sampler: [samplers.md](samplers.md).

*Skip*: what the denoiser is before its network has learned: `scalar` is EDM's preconditioning, `wiener` the best
denoiser of one Gaussian of the data's covariance, `mixture` that of regions found in the data; `seen`: the network is
given that estimate. *rho*: share of the data's shape in the noise, 0 is isotropic. *Floor*: what as many rows of the
data itself have.
"""


def claim(name: str) -> Claim:
    """The claim of a module of this package's parent."""
    found = importlib.import_module(f"experiments.{name}").CLAIM
    assert isinstance(found, Claim)
    return found


def wrapped(text: str, indent: str = "") -> str:
    """Lines of at most 120 characters; code stays whole."""
    whole = re.sub(r"`[^`]*`", lambda code: code[0].replace(" ", "\0"), " ".join(text.split()))
    lines = textwrap.fill(whole, 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return lines.replace("\0", " ")


def markdown(name: str, section: Section, *, link: str = "", answer: bool = True) -> str:
    """A section as Markdown; ``link``: from the page to the folder of the figures and the CSV file; ``answer``: with
    it, which the page has at its top."""
    parts = [f"## {section.question}", *([wrapped(f"**{section.answer}**")] if answer else [])]
    parts.append(wrapped(f"{section.design} Command: `python -m experiments.{name}`."))
    for caption, lines in section.tables:
        parts += [wrapped(f"{caption}:"), lines]
    parts += [f"![{caption}]({link}{file})" for caption, file in section.figures]
    if section.findings:
        parts.append("\n".join(wrapped(f"* {line}", "  ") for line in section.findings))
    parts.append(wrapped(f"Every row: [{name}.csv]({link}{name}.csv). {section.reading}"))
    return "\n\n".join(parts) + "\n"


def page(folder: Path = RESULTS, figures: Path | None = None) -> str:
    """The whole page, of the claims whose rows are there; figures are drawn into ``figures`` (default ``folder``)."""
    link = "../experiments/results/"
    sections: dict[str, Section] = {}
    machines: list[str] = []
    earlier: dict[str, list[str]] = {}
    for name in CLAIMS:
        path = folder / f"{name}.csv"
        if path.exists():
            rows = read(path)
            machines.append(machine(rows))
            for at in dict.fromkeys(row["revision"] for row in rows if row.get("revision")):
                earlier.setdefault(at, []).append(name)
            sections[name] = claim(name).section(rows, figures or folder)
    lines = [[f"[{each.question}](#{_anchor(each.question)})", each.answer] for each in sections.values()]
    before = read(folder / BEFORE) if (folder / BEFORE).exists() else []
    for row in before:
        if row["until"] not in sections or sections[row["until"]].missing:
            lines.append([row["question"], f"{row['answer']} (`{row['command']}` at revision {row['revision']})"])
    open_ = [f"`{name}`" for name in CLAIMS if name not in sections]
    open_ += [f"`{name}` ({each.missing})" for name, each in sections.items() if each.missing]
    head = _HEAD.format(machine="; ".join(dict.fromkeys(filter(None, machines))) or "nothing yet")
    parts = ["\n\n".join(wrapped(part) for part in head.split("\n\n")) + "\n"]
    if earlier:
        told = "; ".join(f"{', '.join(f'`{name}`' for name in names)} at {at}" for at, names in earlier.items())
        parts.append(wrapped(f"Measured by longer modules at an earlier revision, cut to what shows: {told}.") + "\n")
    if open_:
        parts.append(wrapped(f"Not measured in full yet: {', '.join(open_)}.") + "\n")
    if lines:
        parts.append(table(["question", "answer"], lines) + "\n")
    return "\n".join([*parts, *(markdown(name, each, link=link, answer=False) for name, each in sections.items())])


def _anchor(title: str) -> str:
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def machine(rows: list[Row]) -> str:
    """Where rows were measured."""
    known = [row for row in rows if row.get("cpu")]
    return ", ".join(dict.fromkeys(f"{row['cpu']}, one thread a run, torch {row['torch']}" for row in known))


def write_page() -> None:
    """Make ``docs/results.md`` anew."""
    write_atomic(PAGE, page())


if __name__ == "__main__":
    write_page()
