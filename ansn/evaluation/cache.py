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
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ansn.files import write_atomic


def folder() -> Path:
    """``$ANSN_CACHE``, else ``$XDG_CACHE_HOME/ansn``, else ``~/.cache/ansn``."""
    own = os.environ.get("ANSN_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ansn"


def kept(settings: Mapping[str, Any], make: Callable[[], Mapping[str, Tensor]], place: Path) -> dict[str, Tensor]:
    """The tensors that were made under these settings before; else those of ``make()``, which are then kept.

    ``settings``: JSON values that fix what ``make`` makes, a data set's fingerprint among them. ``place``: the folder.
    """
    told = json.dumps(settings, sort_keys=True)
    key = hashlib.sha256(told.encode()).hexdigest()[:32]
    tensors, entry = place / f"{key}.safetensors", place / f"{key}.json"
    found = _read(tensors, entry, json.loads(told))
    if found is not None:
        return found
    made = {name: value.detach().cpu().contiguous().clone() for name, value in make().items()}
    content = save(made)
    about = {"settings": settings, "sha256": hashlib.sha256(content).hexdigest()}
    try:
        place.mkdir(parents=True, exist_ok=True)
        # The JSON last: without it there is no entry.
        write_atomic(tensors, content)
        write_atomic(entry, json.dumps(about, indent=1))
    except OSError as error:
        warnings.warn(f"{place}: the classifier cannot be kept there ({error.strerror or error})", stacklevel=2)
    return made


def _read(tensors: Path, entry: Path, settings: Any) -> dict[str, Tensor] | None:
    if not entry.is_file():
        return None
    try:
        about, content = json.loads(entry.read_bytes()), tensors.read_bytes()
        if about["settings"] == settings and about["sha256"] == hashlib.sha256(content).hexdigest():
            return load(content)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError):
        pass
    warnings.warn(f"{tensors}: is damaged and made again", stacklevel=3)
    return None
