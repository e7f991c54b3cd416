"""What a person and a file see of a run: progress bar, metrics.jsonl, TensorBoard."""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from ansn.files import write_atomic


def read_metrics(path: Path, up_to: int | None = None) -> list[dict[str, Any]]:
    """Records of a metrics.jsonl with ``step <= up_to``; a last line cut by a crash is left out."""
    records = []
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                break
            if up_to is None or record["step"] <= up_to:
                records.append(record)
    return records


class Reporter:
    """Writes each record to metrics.jsonl and TensorBoard and shows it; silent on ranks other than 0."""

    def __init__(self, run: Path, start: int, total: int, *, show: bool) -> None:
        self.path, self.show, self.total = run / "metrics.jsonl", show, total
        self.begun, self.start = time.perf_counter(), start
        if not show:
            return
        from rich.console import Console  # slow to import: only when used
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
        from torch.utils.tensorboard import SummaryWriter

        # What a resumed run will write again is cut off.
        kept = read_metrics(self.path, start)
        write_atomic(self.path, "".join(json.dumps(r) + "\n" for r in kept))
        self.file = self.path.open("a", buffering=1)
        self.board = SummaryWriter(str(run / "tensorboard"), purge_step=start + 1 if start else None)
        self.terminal = sys.stderr.isatty()
        self.bar = Progress(
            TextColumn("step"), MofNCompleteColumn(), BarColumn(bar_width=24), TextColumn("{task.description}"),
            TimeRemainingColumn(compact=True), console=Console(stderr=True), disable=not self.terminal,
        )  # fmt: skip
        self.task = self.bar.add_task("", total=total, completed=start)

    def __enter__(self) -> Reporter:
        if self.show:
            self.bar.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self.show:
            self.bar.stop()
            self.board.close()
            self.file.close()

    def advance(self, step: int) -> None:
        """One step done; moves the bar."""
        if self.show:
            self.bar.update(self.task, completed=step)

    def record(self, values: dict[str, Any]) -> None:
        """One line of metrics.jsonl. ``values`` holds "step", "loss", "samples_per_s", "condition_number" among
        others."""
        if not self.show:
            return
        self.file.write(json.dumps(values) + "\n")
        for name, value in values.items():
            if name != "step" and value is not None:
                self.board.add_scalar(name, value, values["step"])
        step = values["step"]
        left = (time.perf_counter() - self.begun) / max(step - self.start, 1) * (self.total - step)
        # null in the file: what JSON cannot hold, such as the condition number of a singular R
        loss, condition = (math.nan if values[k] is None else values[k] for k in ("loss", "condition_number"))
        text = f"loss {loss:.4f}  {values['samples_per_s']:.0f} samples/s  condition {condition:.3g}"
        self.bar.update(self.task, description=text)
        if not self.terminal:
            print(f"step {step}/{self.total}  {text}  {left:.0f} s left", file=sys.stderr, flush=True)
