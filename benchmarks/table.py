"""The tables and sentences of the docs that come from files of measurements; a test holds the docs to them.

    python -m benchmarks.table            # prints them
    python -m benchmarks.table --write    # puts them into docs/performance.md, between their marks
"""

from __future__ import annotations

import argparse
import csv
import re
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGES = (ROOT / "docs" / "performance.md",)
RESULTS = ROOT / "benchmarks" / "results"

CLAIMS = {
    "separable step": "separable step",
    "separable filter": "separable filter",
    "separable update": "separable moments",
    "mixture": "denoiser of a mixture",
    "Langevin step": "elementwise step",
    "diagonal draw": "diagonal draw",
    "dense draw": "correlated draw",
    "factor product": "product with a factor",
    "covariance update": "running covariance",
    "rank-1 update": "batched rank-1 update",
    "Cholesky": "many small Cholesky factors in a warm cache",
    "cold Cholesky": "the same from memory",
    "loss and gradient": "loss with its gradient",
    "loss through autograd": "the same through autograd",
}
"""What a sentence calls the rows whose name begins so."""

Row = Mapping[str, Any]


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a file that :func:`benchmarks.provenance.save` wrote."""
    return list(csv.DictReader(line for line in path.read_text().splitlines() if not line.startswith("#")))


def _times(row: Row) -> dict[str, float]:
    return {key.removesuffix(" us"): float(value) for key, value in row.items() if key.endswith(" us") and value != ""}


def _others(row: Row) -> dict[str, float]:
    """How many times ours the medians of others than torch are."""
    times = _times(row)
    not_others = "ansn", "eager", "compile", row["best peer"]
    return {peer: t / times["ansn"] for peer, t in times.items() if not peer.startswith(not_others)}


def _microseconds(value: float) -> str:
    return f"{value:.1f}" if value < 1000 else f"{value:.0f}"


def cpu(rows: Iterable[Row]) -> str:
    """Every operation against the best of torch, with the quartiles of the rounds' ratios, and beside others."""
    lines = [
        "| operation, float32 unless said | microseconds: ansn / the best | times faster (quartiles)"
        " | the best of torch | beside others | aim | of the limit |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        times, best = _times(row), row["best peer"]
        cells = (
            row["name"],
            f"{_microseconds(times['ansn'])} / {_microseconds(times[best])}",
            f"{float(row['ratio']):.2f} ({float(row['ratio q1']):.2f}-{float(row['ratio q3']):.2f})",
            best,
            ", ".join(f"{peer} {ratio:.2f}" for peer, ratio in _others(row).items()) or "-",
            f"{float(row['aim']):g}" if row.get("aim") else "-",
            f"{100 * float(row['share of limit']):.0f} % of {row['bound']}" if row["bound"] else "-",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def small(rows: Iterable[Row]) -> str:
    """Times faster than eager torch, a row an operation, a column a size: rows named "small WHAT, B x d"."""
    ratios: dict[str, dict[str, float]] = {}
    for row in rows:
        if found := re.fullmatch(r"small (.*?),? (\d+ x \d+)", row["name"]):
            ratios.setdefault(found[1], {})[found[2]] = float(row["ratio"])
    sizes = list(dict.fromkeys(size for of in ratios.values() for size in of))
    lines = [f"| times faster | {' | '.join(sizes)} |", f"| --- |{' --- |' * len(sizes)}"]
    for what, of in ratios.items():
        cells = (f"{of[size]:.2f}" if size in of else "-" for size in sizes)
        lines.append(f"| {what} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _range(ratios: list[float]) -> str:
    low, high = (f"{value:.1f}" for value in (min(ratios), max(ratios)))
    return low if low == high else f"{low} to {high}"


def claims(rows: Iterable[Row]) -> str:
    """One item an operation: from which ratio to which over its rows, with all threads and with one, and beside each
    other library that is nearer than torch."""
    found = []
    for prefix, title in CLAIMS.items():
        of = [row for row in rows if re.match(rf"{prefix} [\dK]", row["name"])]
        whole = [row for row in of if "one thread" not in row["name"]]
        notes: dict[str, list[float]] = {}
        for row in of:
            if "one thread" in row["name"]:
                notes.setdefault("one thread", []).append(float(row["ratio"]))
        for row in whole:
            for peer, ratio in _others(row).items():
                if ratio < float(row["ratio"]):
                    notes.setdefault(f"beside {peer}", []).append(ratio)
        if whole:
            noted = "; ".join(f"{note} {_range(ratios)}" for note, ratios in notes.items())
            found.append(f"{title} {_range([float(row['ratio']) for row in whole])}" + (f" ({noted})" if noted else ""))
    return "\n".join(textwrap.wrap(", ".join(found) + ".", 120, break_on_hyphens=False))


def short(rows: Iterable[Row]) -> str:
    """A line for each row that misses its aim."""
    missed = [row for row in rows if row.get("aim") and float(row["ratio"]) < float(row["aim"])]
    lines = (f"* {row['name']}: {float(row['ratio']):.2f} of {float(row['aim']):g}." for row in missed)
    return "\n".join(lines) or "None."


def plain(rows: Iterable[Row]) -> str:
    """Rows as they are, numbers to three digits."""
    rows = list(rows)

    def shown(text: str) -> str:
        return f"{float(text):.3g}" if "." in text or "e-" in text else text

    lines = [f"| {' | '.join(rows[0])} |", f"| --- |{' --- |' * (len(rows[0]) - 1)}"]
    return "\n".join([*lines, *(f"| {' | '.join(map(shown, row.values()))} |" for row in rows)])


def written(text: str) -> str:
    """``text`` with what belongs between its marks. Raises ValueError for marks of nothing."""
    known = tables()

    def filled(match: re.Match[str]) -> str:
        if match[1] not in known:
            raise ValueError(f"text: got marks of {match[1]!r}, expected one of {', '.join(known)}")
        return f"<!-- table: {match[1]} -->\n{known[match[1]]}\n<!-- end -->"

    return re.sub(r"<!-- table: (\w+) -->\n.*?<!-- end -->", filled, text, flags=re.DOTALL)


def tables() -> dict[str, str]:
    """Every table and sentence by the name of its marks: those of cpu.csv, and each other file as it is."""
    rows = read(RESULTS / "cpu.csv")
    large = [row for row in rows if not row["name"].startswith("small ")]
    found = {"cpu": cpu(large), "small": small(rows), "claims": claims(rows), "short": short(rows)}
    return found | {path.stem: plain(read(path)) for path in sorted(RESULTS.glob("*.csv")) if path.stem != "cpu"}


def main() -> None:
    """Print the tables, or write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="into the pages")
    if parser.parse_args().write:
        for page in PAGES:
            page.write_text(written(page.read_text()))
    else:
        print(*tables().values(), sep="\n\n")


if __name__ == "__main__":
    main()
