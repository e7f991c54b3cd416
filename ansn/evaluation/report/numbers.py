"""The sections of numbers: measurements, quality against cost, classes, loss, and how to get all of it again."""

from __future__ import annotations

import json
import math
import platform
import shlex
from collections.abc import Mapping, Sequence
from functools import partial
from importlib import metadata
from typing import Any

import torch

from ansn.config import to_dict
from ansn.evaluation.measurement import Measurement
from ansn.evaluation.report import figures as draw
from ansn.evaluation.report.figures import Curve
from ansn.evaluation.report.page import Material, Section, Table
from ansn.evaluation.report.words import meaning, number
from ansn.machine import cpu_name
from ansn.presets import command as train_command
from ansn.training.progress import read_metrics
from ansn.training.runs import Run

_PACKAGES = ("ansn", "torch", "numpy", "scipy", "scikit-learn", "matplotlib")


def measurements(m: Material) -> Section:
    """Every measurement with what it was measured on, and what it means."""
    s = Section("measurements", "Measurements")
    made, left_out = m.evaluation.measurements, list(m.evaluation.left_out)
    if not made:
        s.missing += ["Nothing was measured.", *left_out]
        return s
    s.missing += left_out
    s.text.append(
        "Intervals hold 95 % and are over the draw of the samples. A floor is the same number for held-out data in"
        " their place, as many rows unless it says otherwise."
    )
    if any(v.baseline is not None for v in made):
        s.text.append(f"The baseline is as many samples of {_gaussians(m.run)}, which needs no network.")
    for features in dict.fromkeys(v.features for v in made):
        caption = f"In the features {features}" if features else "Without features"
        s.tables.append(measured(caption, [v for v in made if v.features == features]))
    for name in dict.fromkeys(v.name for v in made):
        told = meaning(name)
        if told:
            s.definitions.append((name, told))
    return s


def _gaussians(run: Run) -> str:
    count = 1 if run.regions is None else run.regions.regions
    return "one Gaussian of the learned covariance" if count == 1 else f"the mixture of the {count} regions' Gaussians"


def measured(caption: str, made: Sequence[Measurement]) -> Table:
    """Measurements as a table; columns that would be empty are left out."""
    header = ["measurement", "value", "95 % interval", "floor", "baseline", "n", "reference", "better", "note"]
    rows = []
    for v in made:
        interval = "" if v.low is None or v.high is None else f"{number(v.low)} to {number(v.high)}"
        floor = number(v.floor) + ("" if v.floor is None or v.floor_n in (None, v.n) else f" (n = {v.floor_n:,})")
        reference = f"{v.reference} ({v.reference_n:,})" if v.reference_n else v.reference
        known = [number(v.value), interval, floor, number(v.baseline)]
        rows.append([v.name, *known, f"{v.n:,}", reference, v.better, v.note])
    keep = [0, *(j for j in range(1, len(header)) if any(row[j] for row in rows))]
    return Table(caption, [header[j] for j in keep], [[row[j] for j in keep] for row in rows], style="cards")


def cost(m: Material) -> Section:
    """Quality against network evaluations and against seconds, a line for each sampler."""
    s = Section("cost", "Quality against cost")
    rows = [row for row in m.evaluation.quality if math.isfinite(_value(row, "value"))]
    if not rows:
        s.missing.append("No sampler was tried at several numbers of evaluations; ansn-evaluate --sweep does it.")
        return s
    rows = [{**row, "method": str(row.get("method")), "n": _value(row, "n")} for row in rows]
    counts = sorted({int(row["n"]) for row in rows if math.isfinite(row["n"])})
    usual = max(counts, key=lambda n: sum(row["n"] == n for row in rows), default=None)
    if len(counts) > 1:
        told = " and ".join(f"{n:,}" for n in counts)
        s.text.append(
            f"The rows are of n = {told} samples. Distances fall with n, so only those of one n compare; the floor that"
            f" is drawn is that of n = {usual:,}. The row of the run's sampler is the measurement above."
        )
    floor = next((_value(row, "floor") for row in rows if row["n"] == usual and row.get("floor") is not None), None)
    what = str(rows[0].get("name", "distance"))
    # A line for each sampler and n.
    named = [(f"{row['method']}, n = {row['n']:,.0f}" if len(counts) > 1 else row["method"], row) for row in rows]
    for key, label in (("evaluations", "network evaluations a sample"), ("seconds", "seconds")):
        known = [(name, row) for name, row in named if math.isfinite(_value(row, key))]
        if not known:
            s.missing.append(f"The {key} of the draws are not known.")
            continue
        names = list(dict.fromkeys(name for name, _ in known))
        lines = [_curve(name, key, [row for other, row in known if other == name]) for name in names]
        best = min((row for _, row in known), key=lambda row: _value(row, "value"))
        alt = (
            f"{what} against {label} for {', '.join(names)}; the smallest, {number(_value(best, 'value'))}, is that"
            f" of {best['method']} at {number(_value(best, key))}"
        )
        alt += "" if floor is None else f"; floor {number(floor)}"
        s.draw(f"quality-{key}", alt, f"{what} against {label}.",
               partial(draw.curves, lines, label, what, floor))  # fmt: skip
    header = ["sampler", "evaluations", "n", "value", "floor", "seconds"]
    cells = [[r["method"], *("" if r.get(k) is None else number(_value(r, k)) for k in header[1:])] for r in rows]
    s.tables.append(Table("The rows of these pictures", header, cells, "numbers", folded=True))
    return s


def shares(m: Material) -> Section:
    """Mode weights of labelled data."""
    s = Section("shares", "Classes")
    given = m.shares
    if given is None:
        s.missing.append(
            "The classes of the samples were not judged." if m.run.info.num_classes else "The data has no classes."
        )
        return s
    s.text.append(f"Shares of the classes among the samples, judged by {given.judge}, and among the data.")
    pairs = zip(given.names, given.samples, given.data, strict=True)
    alt = "; ".join(f"{name}: {a:.1%} of samples, {b:.1%} of data" for name, a, b in pairs)
    s.draw("shares", alt, "Shares of the classes.", lambda: draw.shares(given.names, given.samples, given.data))
    return s


def loss(m: Material) -> Section:
    """The loss curve, from metrics.jsonl."""
    s = Section("loss", "Training")
    try:
        records = read_metrics(m.run.path / "metrics.jsonl", m.run.step)
    except (OSError, ValueError, KeyError, TypeError):
        records = []
    seen = [r for r in records if isinstance(r.get("loss"), float) and math.isfinite(r["loss"])]
    if not seen:
        s.missing.append("The run has no metrics.jsonl with a loss, so there is no curve.")
        return s
    first, last = seen[0], seen[-1]
    seconds = sum(r["seconds"] for r in records if isinstance(r.get("seconds"), float))
    took = f", in {_duration(seconds)} of training" if seconds else ""
    a, b = number(first["loss"]), number(last["loss"])
    s.text.append(f"The loss went from {a} to {b} at step {last['step']:,}{took}.")
    alt = f"Loss from {a} at step {first['step']} to {b} at step {last['step']}"
    s.draw("loss", alt, "Loss and condition number of R against the step.", lambda: draw.loss(records))
    return s


def reproduce(m: Material) -> Section:
    """The commands that make the run, the samples and the evaluation again."""
    s = Section("reproduce", "Commands")
    s.text.append(f"With the seed {m.run.config.run.seed}, weights, data order, noise and samples are fixed.")
    s.commands.append(("The run", train_command(m.run.config)))
    s.commands.append(("The samples", _sample_command(m)))
    s.commands += m.commands
    if m.evaluation.command:
        s.commands.append(("The measurements and this page", str(m.evaluation.command)))
    return s


def settings(m: Material) -> Section:
    """All settings of training and evaluation, folded."""
    s = Section("settings", "Settings")
    for group, values in to_dict(m.run.config).items():
        s.tables.append(_settings(f"Training: {group}", values))
    if m.evaluation.settings:
        s.tables.append(_settings("Evaluation", m.evaluation.settings))
    return s


def environment(m: Material) -> Section:
    """What this page was made with and on."""
    s = Section("environment", "Versions and machine")
    rows = [["python", platform.python_version()], *([name, _version(name)] for name in _PACKAGES)]
    rows += [["system", platform.platform()], ["processor", cpu_name()], ["threads", str(torch.get_num_threads())]]
    device = m.run.model.noise.tau.device
    rows.append(["GPU", torch.cuda.get_device_name(device) if device.type == "cuda" else "none"])
    s.tables.append(Table("Of this page", ["what", "which"], rows))
    if m.evaluation.provenance:
        s.tables.append(_settings("Of the evaluation", m.evaluation.provenance))
    return s


def _sample_command(m: Material) -> str:
    """The command that draws these samples; what it does not name are the run's own settings."""
    settings = m.evaluation.settings
    drawn = settings.get("draw")
    drawn = drawn if isinstance(drawn, Mapping) else {}
    given = {"-n": len(m.samples), "--seed": settings.get("seed")}
    given |= {"--method": drawn.get("method"), "--steps": drawn.get("steps"), "--start": drawn.get("start")}
    words = [str(word) for flag, value in given.items() if value is not None for word in (flag, value)]
    return shlex.join(["ansn-sample", str(m.run.path), *words])


def _curve(name: str, key: str, rows: Sequence[Mapping[str, Any]]) -> Curve:
    x, y, low, high = (tuple(_value(row, k) for row in rows) for k in (key, "value", "low", "high"))
    return Curve(name, x, y, low, high)


def _value(row: Mapping[str, Any], key: str) -> float:
    value = row.get(key)
    return float(value) if isinstance(value, (int, float)) else math.nan


def _settings(caption: str, values: Mapping[str, Any]) -> Table:
    rows = [[key, value if isinstance(value, str) else json.dumps(value, default=str)] for key, value in values.items()]
    return Table(caption, ["setting", "value"], rows, folded=True)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
