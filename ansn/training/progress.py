"""What a person and a file see of a run: progress bar, metrics.jsonl, TensorBoard."""

from __future__ import annotations

import json
import math
import os
import platform
import sys
import time
import warnings
from pathlib import Path
from types import TracebackType
from typing import Any

from ansn import schema
from ansn.errors import InputError
from ansn.files import write_atomic


def read_metrics(path: Path, up_to: int | None = None) -> list[dict[str, Any]]:
    """Records of a metrics.jsonl with ``step <= up_to``. Lines that are none are left out, which a warning says: but a
    last one, which a crash may cut."""
    records, damaged = [], 0
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    for number, line in enumerate(lines, 1):
        try:
            record = schema.parse(line, dict[str, int | float | None])
            if not isinstance(record.get("step"), int):
                raise InputError(f"step: got {record.get('step')}, expected a whole number")
        except InputError:
            damaged += number < len(lines)
            continue
        if up_to is None or record["step"] <= up_to:
            records.append(record)
    if damaged:
        warnings.warn(f"{path}: {damaged} of {len(lines)} lines are damaged and left out", stacklevel=2)
    return records


class Board:
    """TensorBoard's file of a run that goes on from step ``start``. Written here and now: SummaryWriter's thread dies
    of a disk that refuses, with a traceback, and whoever writes after it waits for ever."""

    def __init__(self, folder: Path, start: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # slow to import: only when used
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder.mkdir(exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns()}.{platform.node()}.{os.getpid()}"
        self.records = RecordWriter((folder / name).open("xb", buffering=0))
        self._write(Event(file_version="brain.Event:2"))
        if start:  # what a resumed run writes again takes the place of what was there
            self._write(Event(step=start + 1, session_log=SessionLog(status=SessionLog.START)))

    def add(self, values: dict[str, float], step: int) -> None:
        """Numbers of a step."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        pairs = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._write(Event(step=step, summary=Summary(value=pairs)))

    def _write(self, event: Any) -> None:
        event.wall_time = time.time()
        self.records.write(event.SerializeToString())

    def close(self) -> None:
        """Nothing more is written."""
        self.records.close()


class Reporter:
    """Writes each record to metrics.jsonl and TensorBoard and shows it; silent on ranks other than 0."""

    def __init__(self, run: Path, start: int, total: int, *, show: bool) -> None:
        self.path, self.show, self.total = run / "metrics.jsonl", show, total
        self.begun, self.start = time.perf_counter(), start
        if not show:
            return
        from rich.console import Console  # slow to import: only when used
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        # What a resumed run will write again is cut off.
        kept = read_metrics(self.path, start)
        write_atomic(self.path, "".join(json.dumps(r) + "\n" for r in kept))
        self.file = self.path.open("a", buffering=1)
        self.board = Board(run / "tensorboard", start)
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
        """One line of metrics.jsonl. ``values`` holds "step", "loss", "samples_per_s" among others."""
        if not self.show:
            return
        try:
            self.file.write(json.dumps(values) + "\n")
            self.board.add({k: v for k, v in values.items() if k != "step" and v is not None}, values["step"])
        except OSError as error:
            raise InputError(f"{self.path}: got {error.strerror}, expected logs to write") from None
        step = values["step"]
        left = (time.perf_counter() - self.begun) / max(step - self.start, 1) * (self.total - step)
        # null in the file: what JSON cannot hold
        loss = math.nan if values["loss"] is None else values["loss"]
        text = f"loss {loss:.4f}  {values['samples_per_s']:.0f} samples/s"
        self.bar.update(self.task, description=text)
        if not self.terminal:
            print(f"step {step}/{self.total}  {text}  {left:.0f} s left", file=sys.stderr, flush=True)
