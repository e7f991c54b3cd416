"""One step of the GPU check: a process that writes a journal line after every piece of work, so that a crash or a kill
loses at most the piece in progress, and that goes on where it was when it is started again.

Started by gpu_check.py as ``python -m benchmarks.gpu.step NAME ...``.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
TOLD = 0.5
"""Seconds from which on a piece of work has a line of its own."""
DEAD_CONTEXT = 70
"""Exit status after an error that leaves the GPU unusable for this process."""


class Journal:
    """Lines of JSON in one file for all steps; each has the ``step`` and the ``key`` of the piece of work."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, step: str, key: str, **values: Any) -> None:
        with self.path.open("a") as out:
            out.write(json.dumps({"step": step, "key": key, **values}) + "\n")

    def rows(self, step: str | None = None) -> list[dict[str, Any]]:
        """What was written, without the marks that say that a piece began; a line cut short by a kill is left out."""
        return [row for row in self._all() if not row.get("begun") and step in (None, row["step"])]

    def unfinished(self, step: str) -> str | None:
        """Key of the piece that began last and never ended."""
        begun: str | None = None
        for row in self._all():
            if row["step"] == step:
                begun = row["key"] if row.get("begun") else None
        return begun

    def _all(self) -> list[dict[str, Any]]:
        found = []
        for line in self.path.read_text().splitlines() if self.path.exists() else ():
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
        return found


class Step:
    """What a step's ``run(step)`` works with.

    ``device``: "cuda" or "cpu"; ``quick``: tiny sizes; ``seconds``: left of the step's budget; ``rest``: what is less
    urgent of what the module does.
    """

    def __init__(self, name: str, out: Path, device: str, quick: bool, seconds: float) -> None:
        self.name, self.out, self.device, self.quick = name, out, device, quick
        self.rest = name.endswith("-rest")
        self.journal = Journal(out / "journal.jsonl")
        self.done = {row["key"] for row in self.journal.rows(name)}
        self.deadline = time.monotonic() + seconds

    @property
    def seconds(self) -> float:
        return self.deadline - time.monotonic()

    def run(self, key: str, piece: Callable[[], dict[str, Any] | None]) -> None:
        """Do one piece of work and write down what it returns, or how it failed. Skips what was done before, and what
        there is no time left for."""
        if key in self.done:
            return
        if self.seconds <= 0:
            self.journal.append(self.name, key, skipped="out of time")
            return
        self.journal.append(self.name, key, begun=True)
        start = time.monotonic()
        try:
            values = piece() or {}
            # An asynchronous failure belongs to the piece that caused it.
            self.synchronize()
        except Exception as error:
            traceback.print_exc()
            values = {"error": one_line(error)}
        took = time.monotonic() - start
        self.journal.append(self.name, key, **values, took=round(took, 3))
        if took > TOLD or values.keys() & {"error", "failed"}:
            text = ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items())
            print(f"  {self.name} | {key}: {took:.1f} s, {text[:200]}", flush=True)
        if "error" in values:
            try:
                self.synchronize()
            except Exception as error:
                print(f"{self.name}: the GPU is lost to this process: {one_line(error)}", file=sys.stderr)
                os._exit(DEAD_CONTEXT)

    def synchronize(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


def one_line(error: BaseException, limit: int = 300) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:limit]}{'...' if len(text) > limit else ''}"


def kernels_from_source() -> None:
    """Make ``ansn.kernels`` importable in a checkout that was not installed, where it is the folder ``kernels``."""
    folder = ROOT / "kernels"
    if importlib.util.find_spec("ansn.kernels") is not None or not (folder / "__init__.py").exists():
        return
    spec = importlib.util.spec_from_file_location(
        "ansn.kernels", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["ansn.kernels"] = module
    spec.loader.exec_module(module)


def main() -> None:
    """Entry point of a step's process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", choices=("cuda", "cpu"), required=True)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seconds", type=float, required=True)
    arguments = parser.parse_args()
    kernels_from_source()
    module = importlib.import_module(f"benchmarks.gpu.{arguments.name.removesuffix('-rest')}")
    module.run(Step(arguments.name, arguments.out, arguments.device, arguments.quick, arguments.seconds))


if __name__ == "__main__":
    main()
