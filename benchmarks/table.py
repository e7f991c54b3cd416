"""The tables of docs/performance.md, made of the files of measurements; a test holds the docs to them.

    python -m benchmarks.table            # prints them
    python -m benchmarks.table --write    # puts them into docs/performance.md, between their marks
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "performance.md"
CPU, PEERS, SCALE, STEP = (
    ROOT / "benchmarks" / "results" / f"{name}.csv" for name in ("cpu", "peers", "scale", "step")
)

AIMS = {
    "Langevin step 128 x 784": 5.0,
    "Langevin step 1024 x 784": 5.0,
    "Langevin step 128 x 3072": 5.0,
    "dense draw 128 x 784": 1.8,
    "dense draw 128 x 3072": 1.8,
    "covariance update 128 x 784 float32": 1.6,
    "rank-1 update K = 1024, d = 64 float32": 1.8,
    "rank-1 update K = 64, d = 784 float32": 1.8,
    "Cholesky 1024 x 16 float32": 8.0,
    "Cholesky 1024 x 32 float32": 8.0,
    "Cholesky 1024 x 64 float32": 8.0,
    "loss and gradient 128 x 3072, target": 3.0,
    "loss and gradient 128 x 3072, target, autograd": 3.0,
    "loss and gradient 128 x 3072, regenerated": 3.0,
}
"""How many times faster than the best of torch the project set out to be."""

NOT_TORCH = ("ansn", "autograd", "NumPyro", "BlackJAX")


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a file that :func:`benchmarks.provenance.save` wrote."""
    return list(csv.DictReader(line for line in path.read_text().splitlines() if not line.startswith("#")))


def _times(row: dict[str, str]) -> dict[str, float]:
    return {key.removesuffix(" us"): float(value) for key, value in row.items() if key.endswith(" us") and value}


def _microseconds(value: float) -> str:
    return f"{value:.1f}" if value < 1000 else f"{value:.0f}"


def _line(name: str, ours: float, row: dict[str, str], *, whole: bool) -> str:
    torch = {peer: value for peer, value in _times(row).items() if peer not in NOT_TORCH}
    if len(torch) > 1:
        torch.pop("matmul", None)  # beside a draw that is a part of the work: it draws nothing
    best = min(torch, key=torch.__getitem__)
    ratio = f"{torch[best] / ours:.2f}"
    if whole and best == row["best peer"]:  # the median of the rounds' ratios
        ratio = f"{float(row['ratio']):.2f} ({float(row['ratio q1']):.2f}-{float(row['ratio q3']):.2f})"
    share = f"{100 * float(row['share of limit']):.0f} % of {row['bound']}" if whole and row["bound"] else "-"
    aim = f"{AIMS[name]:g}" if name in AIMS else "-"
    return f"| {name} | {_microseconds(ours)} / {_microseconds(torch[best])} | {ratio} | {best} | {aim} | {share} |"


def cpu(rows: Iterable[dict[str, str]]) -> str:
    """Every operation against the best of torch. A ratio with quartiles is the rounds' median, another of medians."""
    lines = [
        "| operation, float32 unless said | microseconds: ansn / best of torch | times faster (quartiles)"
        " | best of torch | aim | of the limit |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        times = _times(row)
        lines.append(_line(row["name"], times["ansn"], row, whole=True))
        if "autograd" in times:
            lines.append(_line(f"{row['name']}, autograd", times["autograd"], row, whole=False))
    return "\n".join(lines)


def peers(rows: Iterable[dict[str, str]]) -> str:
    """Every operation beside other libraries, microseconds."""
    rows = list(rows)
    names = list(dict.fromkeys(peer for row in rows for peer in _times(row)))
    lines = [f"| microseconds | {' | '.join(names)} |", f"| --- |{' --- |' * len(names)}"]
    for row in rows:
        times = _times(row)
        cells = (_microseconds(times[peer]) if peer in times else "-" for peer in names)
        lines.append(f"| {row['name']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def plain(rows: Iterable[dict[str, str]]) -> str:
    """Rows as they are, numbers to three digits."""
    rows = list(rows)

    def shown(text: str) -> str:
        return f"{float(text):.3g}" if "." in text or "e-" in text else text

    lines = [f"| {' | '.join(rows[0])} |", f"| --- |{' --- |' * (len(rows[0]) - 1)}"]
    return "\n".join([*lines, *(f"| {' | '.join(map(shown, row.values()))} |" for row in rows)])


def written(text: str) -> str:
    """``text`` with each table put between its marks. Raises ValueError where a mark is missing."""
    for name, table in tables().items():
        begin, end = f"<!-- table: {name} -->\n", "<!-- end -->"
        head, mark, rest = text.partition(begin)
        _, closing, tail = rest.partition(end)
        if not mark or not closing:
            raise ValueError(f"text: got no {begin.strip()} ... <!-- end -->, expected the marks of table {name!r}")
        text = head + begin + table + "\n" + end + tail
    return text


def tables() -> dict[str, str]:
    """Every table by the name of its marks."""
    return {"cpu": cpu(read(CPU)), "peers": peers(read(PEERS)), "scale": plain(read(SCALE)), "step": plain(read(STEP))}


def main() -> None:
    """Print the tables, or write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="into docs/performance.md")
    if parser.parse_args().write:
        PAGE.write_text(written(PAGE.read_text()))
    else:
        print(*tables().values(), sep="\n\n")


if __name__ == "__main__":
    main()
