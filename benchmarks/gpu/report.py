"""The journal as one JSON and one Markdown file."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ansn.files import write_atomic
from benchmarks.gpu.step import Journal

Row = dict[str, Any]


WRONG = ("error", "failed")
_WRITING = threading.Lock()


def failures(journal: Journal, step: str) -> list[str]:
    """What went wrong in a step, a line each."""
    return [f"{row['key']}: {row[kind]}" for row in journal.rows(step) for kind in WRONG if kind in row]


def skipped(journal: Journal, step: str) -> list[str]:
    """What of a step there was no time for."""
    return [row["key"] for row in journal.rows(step) if "skipped" in row]


def verdicts(rows: list[Row]) -> list[Row]:
    """What a parity step's rows say of each operation and back end."""
    cases: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row["key"].count(" | ") == 2:
            operation, name, _ = row["key"].split(" | ")
            cases.setdefault((operation, name), []).append(row)
    found = []
    for (operation, name), of_it in cases.items():
        ran = [row for row in of_it if "ratio" in row]
        wrong, refused, unrun = (
            sum(any(kind in row for kind in kinds) for row in of_it) for kinds in (WRONG, ("refused",), ("skipped",))
        )
        dtypes = {row["dtype"] for row in ran}
        worst = {dtype: max(row["ratio"] for row in ran if row["dtype"] == dtype) for dtype in sorted(dtypes)}
        counts = {"cases": len(of_it), "ran": len(ran), "refused": refused, "wrong": wrong, "unrun": unrun}
        found.append({"operation": operation, "backend": name, **counts, "passed": bool(ran) and not wrong})
        found[-1] |= {"key": f"verdict | {operation} | {name}", "worst": worst}
    return found


def write(out: Path, journal: Journal) -> None:
    """``gpu_check.json``: every row, by step. ``gpu_check.md``: tables. Both appear whole or not at all."""
    rows: dict[str, list[Row]] = {}
    for row in journal.rows():
        rows.setdefault(row["step"], []).append(row)
    for name in ("parity", "parity-rest"):
        if name in rows:
            rows[name] += verdicts(rows[name])
    with _WRITING:
        write_atomic(out / "gpu_check.json", json.dumps(rows, indent=1) + "\n")
        write_atomic(out / "gpu_check.md", markdown(rows))


def markdown(rows: dict[str, list[Row]]) -> str:
    """The report; a section for each step that ran."""
    sections: dict[str, Callable[[list[Row]], Iterable[str]]] = {
        "machine": _machine, "warm": _listed, "parity": _parity, "ceilings": _ceilings, "speed": _speed,
        "train": _train, "parity-rest": _parity, "train-rest": _train, "library": _library, "sanitize": _listed,
    }  # fmt: skip
    lines = ["# GPU check", "", "| step | how it ended | seconds | failures | out of time |"]
    lines.append("| --- | --- | --- | --- | --- |")
    for row in rows.get("steps", []):
        pieces = rows.get(row["key"], [])
        bad, late = (sum(any(kind in r for kind in kinds) for r in pieces) for kinds in (WRONG, ("skipped",)))
        lines.append(f"| {row['key']} | {row['ended']} | {row['seconds']:.0f} | {bad} | {late} |")
    for name, section in sections.items():
        if name in rows:
            lines += ["", f"## {name}", "", *section(rows[name])]
            if name == "speed":
                later = [row for row in rows.get("parity-rest", []) if row.get("wrong")]
                lines += [f"\n**Parity of {r['operation']} on {r['backend']} failed later: no speed**" for r in later]
            late = [row["key"] for row in rows[name] if "skipped" in row]
            lines += [f"\nOut of time: {len(late)}, from `{late[0]}` on"] if late else []
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"
    return str(value).replace("|", "/")


def _trouble(rows: list[Row], limit: int = 30) -> list[str]:
    found = [
        f"* {row['key']}: {kind}: {_cell(row[kind])}"
        for row in rows
        for kind in WRONG
        if kind in row
    ]
    rest = [f"* and {len(found) - limit} more, in gpu_check.json"] if len(found) > limit else []
    return ["", *found[:limit], *rest] if found else []


def _machine(rows: list[Row]) -> list[str]:
    lines = ["| | |", "| --- | --- |"]
    for row in rows:
        if row["key"] != "environment":
            lines.append(f"| {row['key']} took | {row.get('took', 0.0):.0f} s |")
        lines += [f"| {k} | {_cell(v)} |" for k, v in row.items() if k not in ("step", "key", "took", "error")]
    return lines + _trouble(rows)


def _parity(rows: list[Row]) -> list[str]:
    lines = [
        "Against the float64 reference on the CPU, the same noise; worst RMS ratio by dtype.", "",
        "| operation | back end | verdict | cases | ran | refused | out of time | worst |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    for row in rows:
        if "passed" not in row:
            continue
        verdict = "FAILED" if row["wrong"] else "passed" if row["passed"] else "ran nothing"
        worst = ", ".join(f"{dtype} {value:.1e}" for dtype, value in row["worst"].items()) or "-"
        counts = f"{row['cases']} | {row['ran']} | {row['refused']} | {row['unrun']}"
        lines.append(f"| {row['operation']} | {row['backend']} | {verdict} | {counts} | {worst} |")
    said = [row for row in rows if isinstance(row.get("refused"), str)]
    reasons = sorted({(row["key"].split(" | ")[1], row["refused"]) for row in said})
    if reasons:
        lines += ["", "Refused, with the reason:", "", *(f"* {name}: {reason}" for name, reason in reasons[:20])]
    return lines + _trouble(rows)


def _ceilings(rows: list[Row]) -> list[str]:
    lines = ["| | |", "| --- | --- |"]
    for row in rows:
        values = ", ".join(f"{_cell(v)} {k}" for k, v in row.items() if k not in ("step", "key", "took", "error"))
        lines.append(f"| {row['key']} | {values or '-'} |")
    return lines + _trouble(rows)


def _speed(rows: list[Row]) -> list[str]:
    lines = [
        "Microseconds on the device, medians of interleaved calls with the L2 cache flushed and launches hidden (on a",
        "CPU: wall time); in brackets back to back with launches. The ratio, with quartiles, is the best of eager and",
        "compile over the best of ours. The limit is the nearer of the measured copy and matrix rates. A back end",
        "whose parity failed or was not checked has no speed here.", "",
        "| operation | size | ours | peers | times faster | than | GB/s | GFLOP/s | of the limit |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    for row in rows:
        if "name" not in row:
            continue
        size = ", ".join(f"{k} = {v}" for k, v in row["size"].items())
        # Refusals of a size are no news; a failed parity is.
        barred = [f"{n}: no speed, {why}" for n, why in row["no speed"].items() if why.startswith("parity")]
        if "us" not in row:
            lines.append(f"| {row['name']} | {size} | {'; '.join(barred) or 'no back end runs it'} | | | | | | |")
            continue
        host = row["us back to back"]
        times = {name: f"{name} {us:.1f} ({host[name]:.1f})" for name, us in row["us"].items()}
        ours = [text.removeprefix("ansn ") for name, text in times.items() if name.startswith("ansn ")] + barred
        peers = [text for name, text in times.items() if not name.startswith("ansn ")]
        middle, low, high = row["ratio"]
        rate = f"{row['GB/s']:.1f} | {row['GFLOP/s']:.0f}" if row["GFLOP/s"] else f"{row['GB/s']:.1f} | -"
        share = f"{100 * row['share']:.0f} % of {row['bound']}" if "share" in row else "-"
        lines.append(
            f"| {row['name']} | {size} | {'; '.join(ours)} | {'; '.join(peers)} | {middle:.2f} ({low:.2f}-{high:.2f})"
            f" | {row['peer']} | {rate} | {share} |"
        )
    return lines + _trouble(rows)


def _library(rows: list[Row]) -> list[str]:
    checked = [row for row in rows if row["key"].startswith("opcheck | ") and "refused" not in row]
    bad = [row for row in checked if any(kind in row for kind in (*WRONG, "skipped"))]
    lines = [f"opcheck: {len(checked) - len(bad)} of {len(checked)} passed (cases and back ends that run them)."]
    return lines + _listed([row for row in rows if row not in checked and row["key"].count("|") != 2], rows)


def _listed(rows: list[Row], trouble: list[Row] | None = None) -> list[str]:
    lines = []
    for row in rows:
        values = {k: v for k, v in row.items() if k not in ("step", "key", "took", "error", "failed", "skipped")}
        if any(kind in row for kind in (*WRONG, "skipped")):
            state = "NOT PASSED"
        else:
            state = "not run" if "refused" in row else "passed"
        said = ", ".join(f"{k} {_cell(v)}" for k, v in values.items())
        lines.append(f"* {row['key']}: {state}{f' ({said})' if said else ''}")
    return lines + _trouble(rows if trouble is None else trouble)


def _train(rows: list[Row]) -> list[str]:
    noise = {row["key"].split(" | ")[1]: row for row in rows if row["key"].startswith("noise") and "ms draw" in row}
    lines = [
        "Batch 128 of 3 x 32 x 32 (quick: 4 of 3 x 8 x 8), random data, separable covariance, AdamW. Float32 uses",
        "torch's default precision. The noise's share: covariance update and draw, timed alone, of a step.", "",
        "| network | mode | images/s | ms a step | peak GB | update, draw: ms | share of the step |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    for row in rows:
        kind, name, *mode = row["key"].split(" | ")
        if kind == "train" and "images/s" in row:
            cost, share = "-", "-"
            if "separable" in noise:
                update, draw = noise["separable"]["ms update"], noise["separable"]["ms draw"]
                cost, share = f"{update:.2f}, {draw:.2f}", f"{100 * (update + draw) / row['ms a step']:.1f} %"
            peak = f"{row['peak GB']:.1f}" if "peak GB" in row else "-"
            rate = f"{row['images/s']:.0f} | {row['ms a step']:.1f}"
            lines.append(f"| {name} | {mode[0]} | {rate} | {peak} | {cost} | {share} |")
        elif kind == "sample" and "images/s" in row:
            how = f"sampling, Heun, {row['levels']} levels, {mode[0]}"
            lines.append(f"| {name} | {how} | {row['images/s']:.1f} | - | - | - | - |")
        elif kind == "noise" and "ms draw" in row:
            lines.append(f"| noise alone | {name} | - | - | - | {row['ms update']:.2f}, {row['ms draw']:.2f} | - |")
    return lines + _trouble(rows)
