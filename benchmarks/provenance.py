"""What a measurement was made on, and tables written with it, so that a figure in the docs can name its file."""

from __future__ import annotations

import csv
import datetime
import importlib.metadata
import io
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import ansn
from ansn.machine import cpu_name
from ansn.ops import native

ROOT = Path(__file__).resolve().parent.parent


def commit() -> str:
    """The commit measured, with "-dirty" where files differ from it; "unknown" outside a git checkout."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ("git", *arguments), cwd=ROOT, capture_output=True, text=True, check=True, timeout=20
        ).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("-dirty" if git("status", "--porcelain") else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _installed(*names: str) -> list[str]:
    found = {dist.name: dist.version for dist in importlib.metadata.distributions() if dist.name in names}
    return [f"{name} {found[name]}" for name in names if name in found]


def provenance() -> dict[str, str | int]:
    """Machine, versions, threads, instruction set, commit and date."""
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": commit(),
        "machine": cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 0,
        "threads": torch.get_num_threads(),
        "isa": native.module.cpu_isa() if native.module else "no native module",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "torch": torch.__version__,
        "ansn": ansn.__version__,
        "packages": ", ".join(_installed("numpy", "scipy", "jax")),
    }


def save(path: Path | str, rows: Sequence[dict[str, Any]]) -> None:
    """Write ``rows`` as CSV to ``path``, below :func:`provenance` in lines that begin with ``#``."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    out = io.StringIO()
    out.writelines(f"# {name}: {value}\n" for name, value in provenance().items())
    writer = csv.DictWriter(out, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(out.getvalue())
