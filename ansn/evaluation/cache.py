"""Trained classifiers on disk, under a hash of what they were trained on and how: safetensors and JSON, no pickle.

An entry is ``KEY.safetensors`` and ``KEY.json``. The latter says what KEY is the hash of, and holds the hash of the
other file. What is damaged is made again, and a folder that cannot be written costs the training alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ansn import schema
from ansn.files import write_atomic


@dataclass(frozen=True)
class _Entry:
    """JSON of an entry."""

    settings: dict[str, Any]
    sha256: str


def folder() -> Path | None:
    """``$ANSN_CACHE``, else ``$XDG_CACHE_HOME/ansn``, else ``~/.cache/ansn``; None where there is no home either."""
    own = os.environ.get("ANSN_CACHE")
    if own:
        return Path(own)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ansn"
    except RuntimeError:
        return None


def kept(
    settings: Mapping[str, Any],
    make: Callable[[], Mapping[str, Tensor]],
    place: Path | None,
    check: Callable[[Mapping[str, Tensor]], object] = dict,
) -> dict[str, Tensor]:
    """The tensors that were made under these settings before; else those of ``make()``, which are then kept.

    ``settings``: JSON values that fix what ``make`` makes, a data set's fingerprint among them. ``place``: the folder;
    None keeps nothing. ``check``: raises for tensors that cannot be used, which are made again.
    """
    told = json.dumps(settings, sort_keys=True)
    key = hashlib.sha256(told.encode()).hexdigest()[:32]
    if place is None:
        warnings.warn("the classifier is not kept: there is no home, and ANSN_CACHE names no folder", stacklevel=2)
    else:
        found = _read(place / f"{key}.safetensors", place / f"{key}.json", json.loads(told), check)
        if found is not None:
            return found
    made = {name: value.detach().cpu().contiguous().clone() for name, value in make().items()}
    if place is None:
        return made
    content = save(made)
    about = {"settings": settings, "sha256": hashlib.sha256(content).hexdigest()}
    try:
        place.mkdir(parents=True, exist_ok=True)
        # The JSON last: without it there is no entry.
        write_atomic(place / f"{key}.safetensors", content)
        write_atomic(place / f"{key}.json", json.dumps(about, indent=1))
    except OSError as error:
        warnings.warn(f"{place}: the classifier cannot be kept there ({error.strerror or error})", stacklevel=2)
    return made


def _read(
    tensors: Path, entry: Path, settings: Any, check: Callable[[Mapping[str, Tensor]], object]
) -> dict[str, Tensor] | None:
    if not entry.is_file():
        return None
    try:
        about: _Entry = schema.read(entry, _Entry)
        content = tensors.read_bytes()
        if about.settings == settings and about.sha256 == hashlib.sha256(content).hexdigest():
            found = load(content)
            check(found)
            if all(bool(value.isfinite().all()) for value in found.values()):
                return found
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError):
        pass
    warnings.warn(f"{tensors}: is damaged and made again", stacklevel=3)
    return None
