"""Checkpoints: a folder of safetensors and JSON, complete or not there at all. No pickle is ever read or written.

``RUN/checkpoints/step-00000500/`` is written under a temporary name and renamed. The newest two are kept, so that
a damaged disk
costs one interval and not the run.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ansn.covariance import STRUCTURES, Choice, Found
from ansn.distributed import laid_out
from ansn.errors import InputError
from ansn.ops._dispatch import BackendError

FORMAT = 4
_NAME = re.compile(r"step-(\d{8,})")
_KEEP = 2


def steps(run: Path) -> list[int]:
    """Steps of the run's complete checkpoints, newest first."""
    folder = run / "checkpoints"
    found = [_NAME.fullmatch(p.name) for p in folder.iterdir()] if folder.is_dir() else []
    return sorted((int(m.group(1)) for m in found if m), reverse=True)


def save(run: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> Path:
    """Write the checkpoint of ``step``: one safetensors file for each group of tensors, and ``state.json``."""
    folder = run / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(".writing-*"):  # of a process that was killed while it wrote
        shutil.rmtree(left, ignore_errors=True)
    temporary = folder / f".writing-{os.getpid()}"
    temporary.mkdir()
    for group, values in tensors.items():
        # Contiguous copies of their own storage: safetensors refuses tensors that share memory.
        save_file(
            {k: v.detach().cpu().contiguous().clone() for k, v in values.items()}, temporary / f"{group}.safetensors"
        )
    (temporary / "state.json").write_text(json.dumps({"format": FORMAT, "step": step, **state}, indent=1))
    for file in temporary.iterdir():
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
    final = folder / f"step-{step:08d}"
    if final.exists():
        shutil.rmtree(final)
    os.replace(temporary, final)
    for old in steps(run)[_KEEP:]:
        shutil.rmtree(folder / f"step-{old:08d}", ignore_errors=True)
    return final


def load(run: Path, step: int | None = None) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """``(tensors by group, state)`` of a step, the newest by default. Raises InputError in one line."""
    have = steps(run)
    if not have:
        raise InputError(f"{run}: got no checkpoint, expected the folder of a run of ansn-train")
    if step is not None and step not in have:
        raise InputError(f"step: got {step}, expected one of {', '.join(map(str, have))}, which {run} holds")
    folder = run / "checkpoints" / f"step-{have[0] if step is None else step:08d}"
    try:
        state = json.loads((folder / "state.json").read_text())
        if not isinstance(state, dict):
            raise ValueError(f"state.json: got a {type(state).__name__}, expected an object")
        if state.get("format") not in (2, 3, FORMAT):
            other = "written by another version of ansn, train it anew with this one"
            raise InputError(f"{folder}: got format {state.get('format')}, expected 2 to {FORMAT}; it was {other}")
        tensors = {p.stem: load_file(p) for p in sorted(folder.glob("*.safetensors"))}
        if state["format"] < 4:
            state["config"]["data"]["test_fraction"] = 0.0  # they held out nothing
        if state["format"] == 2 and "covariance" in tensors:
            tensors["covariance"] = _from_format_2(tensors["covariance"])
    except (OSError, ValueError, SafetensorError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{folder}: got {error}, expected a checkpoint that can be read; delete it to go on from the one before"
        ) from None
    return tensors, state


def structure(state: Mapping[str, Any]) -> Choice:
    """The covariance's structure of a checkpoint; formats before 3 name it in the settings alone."""
    name = state["config"]["noise"]["structure"]
    chosen = Choice(**state["structure"]) if "structure" in state else Choice(name, {}, {}, 0)
    if chosen.structure not in STRUCTURES:
        raise InputError(f"structure: got {chosen.structure!r}, expected one of {', '.join(STRUCTURES)}")
    return chosen


def found(state: Mapping[str, Any]) -> Found | None:
    """How a checkpoint's regions were found; None where there are none, or the noise's are the classes."""
    stored = state.get("found")
    return stored and Found(**stored | {"scores": {int(k): v for k, v in stored["scores"].items()}})


def _from_format_2(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A covariance of format 2: a factor beside center and scale, and where it was tracked the eigenbasis and l."""
    out, factor = dict(tensors), tensors["factor"]
    del out["factor"]
    if factor.ndim == 2:
        ratio = out.pop("ratio", torch.ones_like(factor))
        return out | {"snapshot.deviation": factor, "snapshot.l": ratio}
    out["snapshot.factor"] = factor
    if "ratio" in out:
        basis, wide = out.pop("basis"), factor.double()
        deviation = (wide.mT @ basis.double()).square().sum(1).sqrt().to(factor.dtype)
        out |= {"snapshot.basis0": basis, "snapshot.l": out.pop("ratio"), "snapshot.deviation": deviation}
    return out


@contextmanager
def fitting(run: Path) -> Iterator[None]:
    """Around what uses a checkpoint's content: whatever breaks there is an InputError of one line."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{run}: {error}") from None
    except BackendError:  # says nothing of the checkpoint
        raise
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError) as error:
        told = textwrap.shorten(f"{type(error).__name__}: {error}", 300)
        raise InputError(f"{run}: got a damaged checkpoint ({told}), expected one of this version of ansn") from None


def remove_all(run: Path) -> None:
    """Delete the run's checkpoints."""
    shutil.rmtree(run / "checkpoints", ignore_errors=True)


def flatten_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """An optimiser's state as named tensors, and its groups as JSON values."""
    state = optimizer.state_dict()
    tensors = {f"{i}.{k}": v for i, values in state["state"].items() for k, v in values.items()}
    return tensors, state["param_groups"]


def unflatten_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], groups: list[dict[str, Any]]
) -> None:
    """The inverse of :func:`flatten_optimizer`, into ``optimizer``, which goes on as the one that was stored: fused or
    not. ValueError if a parameter's state is missing."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = value
    parameters = sum(len(group["params"]) for group in optimizer.param_groups)
    if set(state) != set(range(parameters)):
        raise ValueError(f"optimizer: got a state of {len(state)} parameters, expected {parameters}")
    for group in groups:
        group["betas"] = tuple(group["betas"])
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    # Files hold row-major tensors; a channels-last weight wants its moments in its own layout: a fused step is wrong
    # otherwise, any other slower.
    for parameter, values in optimizer.state.items():
        for key, value in values.items():
            if value.shape == parameter.shape:
                values[key] = laid_out(value, parameter)
