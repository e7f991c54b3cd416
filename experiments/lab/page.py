"""``docs/results.md``: one section a claim, made of the rows under ``experiments/results`` and of nothing else."""

from __future__ import annotations

import importlib
from pathlib import Path

from ansn.files import write_atomic
from experiments.lab.claim import RESULTS, Claim, Row, Section, read

CLAIMS = (
    "structures", "skips", "exact_scores", "convergence", "evaluations", "mode_collapse", "generalisation",
    "paper_as_printed", "ablations", "tables",
)  # fmt: skip
PAGE = RESULTS.parents[1] / "docs" / "results.md"
_HEAD = """# Results: does adaptive noise do what the paper claims?

Made from the CSV files under `experiments/results` by `python -m experiments.lab.page`. `make evidence` measures all of
it anew ({machine}); `make evidence-quick` runs a small version of everything. Each section: what was asked, the answer,
how it was measured, the numbers, what would change the answer. Intervals are 95 % over seeds (Student's t), differences
are paired: runs of one seed share first weights, data order, levels and white noise. Hundreds of intervals are looked
at and none is corrected for that: one in twenty leaves out 0 by chance. No figure was measured on a GPU.
Speed of the kernels is in [performance.md](performance.md); samplers, likelihood and inverse problems are in
[samplers.md](samplers.md).
"""


def claim(name: str) -> Claim:
    """The claim of a module of this package's parent."""
    found = importlib.import_module(f"experiments.{name}").CLAIM
    assert isinstance(found, Claim)
    return found


def markdown(name: str, section: Section, *, link: str = "") -> str:
    """A section as Markdown; ``link``: from the page to the folder of the figures and the CSV file."""
    parts = [f"## {section.question}", f"**{section.answer}**", f"    python -m experiments.{name}", section.design]
    for caption, table in section.tables:
        parts += [f"{caption}:", table]
    parts += [f"![{caption}]({link}{file})" for caption, file in section.figures]
    if section.findings:
        parts.append("\n".join(f"* {line}" for line in section.findings))
    if section.change:
        parts.append(f"What would change it: {section.change}")
    parts.append(f"Raw: [{name}.csv]({link}{name}.csv)")
    return "\n\n".join(parts) + "\n"


def page(folder: Path = RESULTS, figures: Path | None = None) -> str:
    """The whole page, of the claims whose rows are there; figures are drawn into ``figures`` (default ``folder``)."""
    sections, machines, missing = [], [], []
    for name in CLAIMS:
        path = folder / f"{name}.csv"
        if path.exists():
            rows = read(path)
            machines += [machine(rows)]
            sections.append(
                markdown(name, claim(name).section(rows, figures or folder), link="../experiments/results/")
            )
        else:
            missing.append(f"`{name}`")
    told = "; ".join(dict.fromkeys(machines)) or "nothing measured yet"
    open_ = [f"Not measured in full yet: {', '.join(missing)}.\n"] if missing else []
    return "\n".join([_HEAD.format(machine=told), *open_, *sections])


def machine(rows: list[Row]) -> str:
    """Where rows were measured."""
    return ", ".join(dict.fromkeys(f"{row['cpu']}, one thread a run, torch {row['torch']}" for row in rows))


def write_page() -> None:
    """Make ``docs/results.md`` anew."""
    write_atomic(PAGE, page())


if __name__ == "__main__":
    write_page()
