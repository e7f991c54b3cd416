"""`ansn-export RUN OUT`: what others need of a run, and no more, with a model card; to a folder or a hub."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from ansn.cli.common import RunName, guarded, parsed
from ansn.data import FILES
from ansn.errors import InputError
from ansn.evaluation.measurement import Evaluation
from ansn.files import write_atomic
from ansn.machine import cpu_name
from ansn.presets import command
from ansn.training import Run, export_run, load_run
from ansn.training.places import check_target, evaluation_folder, push

_DESCRIPTION = (
    "Write what sampling needs of a run of ansn-train, its averaged weights, covariances and settings, and a model card"
    " that says how it was made and what ansn-evaluate measured. All commands take the folder, or the name on the hub,"
    " as any run, but it cannot be trained further. Exit codes: 0 done, 2 bad arguments or input, 130 interrupted."
)
_PACKAGES = ("ansn", "torch", "numpy")


@dataclass(frozen=True)
class Arguments:
    """What to write, and where."""

    run: RunName
    """Folder of a run, name of one that comes with ansn (ansn-info lists them), or hf://OWNER/NAME of a hub."""
    out: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="OUT")]
    """A new or an empty folder; or hf://OWNER/NAME to push to the Hugging Face Hub, after `hf auth login`; what the
    repository had of another run goes."""
    dtype: Literal["float16", "float32"] = "float16"
    """Of the weights; float16 is half as large."""
    private: bool = False
    """Make a new repository that only you can see."""


def main() -> int:
    """Entry point."""
    arguments = parsed("ansn-export", lambda: tyro.cli(Arguments, prog="ansn-export", description=_DESCRIPTION))
    return guarded("ansn-export", lambda: _export(arguments))


def _export(arguments: Arguments) -> None:
    hub, out = arguments.out.startswith("hf:"), Path(arguments.out)
    if hub:
        check_target(arguments.out)
    elif out.name in ("", "..") or out.is_symlink():
        raise InputError(f"OUT: got {out}, expected the name of a new or an empty folder")
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"OUT: got {out}, which is there, expected a new or an empty folder")
    run = load_run(arguments.run)
    found = measured(run, evaluation_folder(arguments.run, run.path))
    if not hub:
        out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=None if hub else out.parent, prefix=".ansn-export-") as temporary:
        folder = export_run(run, Path(temporary) / "run", out.name, getattr(torch, arguments.dtype))
        name = arguments.out if hub else out.name
        write_atomic(folder / "README.md", card(load_run(folder), name, arguments.dtype, found))
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        if hub:
            where = push(folder, arguments.out, private=arguments.private)
        else:
            os.replace(folder, out)
            where = str(out)
    print(f"step {run.step}, {size / 1e6:.2f} MB")
    print(where)


def measured(run: Run, folder: Path) -> Evaluation | None:
    """What `ansn-evaluate` found of this step, where it is in the folder."""
    file = folder / "evaluation.json"
    found = Evaluation.from_json(file.read_bytes()) if file.is_file() else None
    drawn = found is not None and found.settings.get("seconds") is not None  # and not of a file of samples
    same = {"step": run.step, "weights": run.weights}
    return found if found is not None and drawn and same.items() <= found.provenance.items() else None


def card(run: Run, name: str, dtype: str, evaluation: Evaluation | None) -> str:
    """The model card, Markdown: what it is, how it was made, and what was measured."""
    weights = sum(p.numel() for p in run.model.network.parameters())
    shape, (data, *_) = "x".join(map(str, run.info.shape)), run.info.understood or (run.info.name,)
    tag = "\npipeline_tag: unconditional-image-generation" if run.info.kind == "image" else ""
    versions = ", ".join(f"{package} {importlib.metadata.version(package)}" for package in _PACKAGES)
    text = f"""---
library_name: ansn
tags: [score-matching, diffusion]{tag}
---

# {Path(name).name}

A score-based generative model of {run.info.kind}s of {shape}: {run.config.network.network}, {weights:,} parameters
({dtype}), {run.model.skip} skip. Trained on {data}.

```
ansn-sample {name}
```

## How it was made

```
{command(run.config)}{" --data PATH" if run.config.data.dataset in FILES and not run.config.data.data else ""}
```

Step {run.step:,}, seed {run.config.run.seed}. Exported with {versions} and Python {platform.python_version()}
on {cpu_name()}.
"""
    return text if evaluation is None else f"{text}\n{_measurements(evaluation)}"


def _measurements(evaluation: Evaluation) -> str:
    """A table of the numbers, and what they were measured with."""
    lines = ["| measurement | value | 95 % interval | floor | n | features |", "| --- | --- | --- | --- | --- | --- |"]
    for m in evaluation.measurements:
        interval = "" if m.low is None or m.high is None else f"{m.low:.4g} to {m.high:.4g}"
        floor = "" if m.floor is None else f"{m.floor:.4g}"
        lines.append(f"| {m.name} | {m.value:.4g} | {interval} | {floor} | {m.n} | {m.features or ''} |")
    source = evaluation.provenance
    versions = ", ".join(f"{package} {source.get(package, 'unknown')}" for package in _PACKAGES)
    table = "\n".join(lines)
    return f"""## What was measured

{table}

The floor is what held-out rows get in place of samples. Drawn with {_options(evaluation)}.
By ansn-evaluate, seed {evaluation.settings.get("seed")}, with {versions}
on {source.get("machine", "an unknown machine")}.
"""


def _options(evaluation: Evaluation) -> str:
    """How the samples were drawn."""
    draw = evaluation.settings.get("draw") or {}
    return ", ".join(f"{key} {value}" for key, value in draw.items() if value is not None) or "the defaults"


if __name__ == "__main__":
    sys.exit(main())
