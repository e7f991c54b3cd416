"""Checkpoints: a folder of safetensors and JSON, complete or not there at all. No pickle is ever read or written.

``RUN/checkpoints/step-00000500/`` is written under a temporary name and renamed. The newest two are kept, so that a
damaged disk costs one interval and not the run.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import textwrap
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ansn import schema
from ansn.distributed import laid_out
from ansn.errors import InputError
from ansn.ops._dispatch import BackendError
from ansn.training.state import State

FORMAT = 5
_FORMATS = (2, 3, 4, FORMAT)
_SUMS = "SHA256SUMS"
_MOST_SUMS = 2**16  # bytes that are read of it
_NAME = re.compile(r"step-(\d{8,})")
_KEEP = 2


def steps(run: Path) -> list[int]:
    """Steps of the run's complete checkpoints, newest first."""
    folder = run / "checkpoints"
    found = [_NAME.fullmatch(p.name) for p in folder.iterdir()] if folder.is_dir() else []
    return sorted((int(m.group(1)) for m in found if m), reverse=True)


def save(run: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> Path:
    """Write the checkpoint of ``step``: one safetensors file for each group of tensors, ``state.json``, and
    ``SHA256SUMS``, which `sha256sum -c` reads.

    Those of later steps go: they were of a run that was not gone on with. Raises InputError where the disk refuses,
    with what was there before still there.
    """
    folder = run / "checkpoints"
    temporary = folder / f".writing-{os.getpid()}"
    try:
        folder.mkdir(exist_ok=True)
        _sweep(folder)
        temporary.mkdir()
        _write(temporary, tensors, {"format": FORMAT, "step": step, **state})
        final = folder / f"step-{step:08d}"
        _remove(final)
        os.replace(temporary, final)
    except (OSError, SafetensorError) as error:
        number = re.search(r"os error (\d+)", str(error))
        got = getattr(error, "strerror", None) or (os.strerror(int(number[1])) if number else error)
        before = f"; that of step {steps(run)[0]} is kept" if steps(run) else ""
        raise InputError(f"{run}: got {got} at the checkpoint of step {step}, expected to write it{before}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    kept = [s for s in steps(run) if s <= step][:_KEEP]
    for other in steps(run):
        if other not in kept:
            _remove(folder / f"step-{other:08d}")
    return final


def _write(folder: Path, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
    file = folder / "state.json"
    file.write_text(json.dumps(state, indent=1))
    for group, values in tensors.items():
        # Contiguous copies of their own storage: safetensors refuses tensors that share memory.
        copies = {k: v.detach().cpu().contiguous().clone() for k, v in values.items()}
        save_file(copies, folder / f"{group}.safetensors")
        os.chmod(folder / f"{group}.safetensors", file.stat().st_mode)  # as the umask says; it is 600 else
    (folder / _SUMS).write_text("".join(f"{_digest(p)}  {p.name}\n" for p in sorted(folder.iterdir())))
    for file in folder.iterdir():
        with file.open("rb") as stream:
            os.fsync(stream.fileno())


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _remove(folder: Path) -> None:
    """Delete a checkpoint: it is whole until its name is gone."""
    if folder.exists():
        aside = folder.with_name(f".removing-{folder.name}")
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(folder, aside)
        shutil.rmtree(aside, ignore_errors=True)


def _sweep(folder: Path) -> None:
    """Delete what processes that were killed left."""
    for pattern in (".writing-*", ".removing-*"):
        for left in folder.glob(pattern):
            shutil.rmtree(left, ignore_errors=True)


def load(run: Path, step: int | None = None) -> tuple[dict[str, dict[str, Tensor]], State]:
    """``(tensors by group, state)`` of a step, by default the newest that is whole: where a newer one is damaged, a
    warning says so. Raises InputError in one line."""
    have = steps(run)
    if not have:
        raise InputError(f"{run}: got no checkpoint, expected the folder of a run of ansn-train")
    if step is not None and step not in have:
        raise InputError(f"step: got {step}, expected one of {', '.join(map(str, have))}, which {run} holds")
    tried = have if step is None else [step]
    for number, before in zip(tried, [*tried[1:], None], strict=True):
        folder = run / "checkpoints" / f"step-{number:08d}"
        try:
            return _read(folder)
        except PermissionError as error:
            raise InputError(f"{error.filename}: got {error.strerror}, expected a checkpoint to read") from None
        except _OtherFormat:
            raise
        except (OSError, ValueError, SafetensorError) as error:
            if not folder.exists():  # it was the oldest, and the run has gone on
                return load(run, step)
            if before is None:
                other = "; there is none before it" if step is None else "; the others may be whole"
                got = f"a damaged checkpoint ({' '.join(str(error).splitlines())})"
                raise InputError(f"{folder}: got {got}, expected one that is whole{other}") from None
            warnings.warn(f"{folder}: is damaged ({error}); step {before} before it is taken", stacklevel=3)
    raise AssertionError


class _OtherFormat(InputError):
    """A checkpoint of another version of ansn."""


def _read(folder: Path) -> tuple[dict[str, dict[str, Tensor]], State]:
    """Raises InputError, OSError or SafetensorError for what is damaged."""
    sums = folder / _SUMS
    files = sorted(folder.glob("*.safetensors"))
    if sums.exists():
        with sums.open("rb") as stream:
            lines = stream.read(_MOST_SUMS).decode().splitlines()
        stored = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
        for file in (folder / "state.json", *files):
            if stored.pop(file.name, None) != _digest(file):
                raise InputError(f"{file.name}: got another checksum, expected that of {_SUMS}")
        if stored:
            raise InputError(f"{', '.join(stored)}: got no such file, expected all of {_SUMS}")
    values = schema.read(folder / "state.json", dict[str, Any], most=2**30)  # units of each point of a field are long
    if values.get("format") not in _FORMATS:
        other = "written by another version of ansn, train it anew with this one"
        raise _OtherFormat(f"{folder}: got format {values.get('format')}, expected 2 to {FORMAT}; it was {other}")
    state = State.of(values)
    if state.format >= 5 and not sums.exists():
        raise InputError(f"{_SUMS}: got no such file, expected one")
    tensors = {p.stem: _load(p) for p in files}
    if state.format == 2 and "covariance" in tensors:
        tensors["covariance"] = _from_format_2(tensors["covariance"])
    return tensors, state


def _load(file: Path) -> dict[str, Tensor]:
    try:
        str(file).encode()
    except UnicodeEncodeError:  # not UTF-8, which safetensors asks of a path
        with file.open("rb") as stream:
            return load_file(f"/dev/fd/{stream.fileno()}")
    return load_file(file)


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
    for step in steps(run):
        _remove(run / "checkpoints" / f"step-{step:08d}")


def flatten_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """An optimiser's state as named tensors, and its groups as JSON values."""
    state = optimizer.state_dict()
    tensors = {f"{i}.{k}": v for i, values in state["state"].items() for k, v in values.items()}
    return tensors, state["param_groups"]


def unflatten_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], groups: list[dict[str, Any]]
) -> None:
    """The inverse of :func:`flatten_optimizer`, into ``optimizer``, whose settings stay; but it goes on as the one that
    was stored, fused or not. ValueError if a parameter's state is missing."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = value
    settings = optimizer.state_dict()["param_groups"]
    parameters = sum(len(group["params"]) for group in settings)
    if set(state) != set(range(parameters)):
        raise ValueError(f"optimizer: got a state of {len(state)} parameters, expected {parameters}")
    if [group.get("params") for group in groups] != [group["params"] for group in settings]:
        raise ValueError(f"optimizer: got groups of other parameters, expected those of all {parameters}")
    for group, stored in zip(settings, groups, strict=True):
        group |= {name: stored.get(name) is True or None for name in ("fused", "foreach")}
    optimizer.load_state_dict({"state": state, "param_groups": settings})
    # Files hold row-major tensors; a channels-last weight wants its moments in its own layout: a fused step is wrong
    # otherwise, any other slower.
    for parameter, values in optimizer.state.items():
        for key, value in values.items():
            if value.shape == parameter.shape:
                values[key] = laid_out(value, parameter)
