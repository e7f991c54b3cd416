"""Where runs lie: in a folder, among those that come with the package, or on the Hugging Face Hub."""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ansn.errors import InputError

HUB = "hf://"
_REPOSITORY = re.compile(rf"{HUB}([^/@\s]+/[^/@\s]+)(?:@(\S+))?")
_SHIPPED = Path(__file__).parents[1] / "shipped"
_FILES = ("config.json", *(f"checkpoints/step-*/{name}" for name in ("state.json", "SHA256SUMS", "*.safetensors")))


def shipped() -> list[str]:
    """Names of the runs that come with the package: each is a folder that `ansn-export` wrote."""
    return sorted(folder.parent.name for folder in _SHIPPED.glob("*/checkpoints"))


def located(run: str | os.PathLike[str]) -> Path:
    """The folder of a run: ``run`` itself, where it is one; else of the shipped run of that name; else of the
    repository ``hf://OWNER/NAME`` or ``hf://OWNER/NAME@REVISION``, whose files are fetched into the library's cache.
    InputError in one line."""
    name = os.fspath(run)
    if _lies(name):
        return Path(run)
    if name in shipped():
        return _SHIPPED / name
    if name.startswith("hf:"):
        return _pulled(name)
    others = ", ".join((f"{HUB}OWNER/NAME", *shipped()))
    raise InputError(f"{run}: got no folder, expected one that ansn-train wrote, or one of {others}")


def _lies(name: str) -> bool:
    """Whether this is a folder to read from: one of data that is called as a shipped run is none."""
    return os.path.isdir(name or ".") and (name not in shipped() or os.path.isdir(os.path.join(name, "checkpoints")))


def short(run: str) -> str | None:
    """What files that are made of a run are called where the run's folder is none to write in; None where it is."""
    return None if _lies(run) else Path(run.removeprefix(HUB).partition("@")[0]).name


def evaluation_folder(run: str, path: Path) -> Path:
    """Where the evaluation of a run lies that is called so and read from ``path``."""
    name = short(run)
    return path if name is None else Path(f"{name}-evaluation")


def push(folder: Path, name: str, *, private: bool = False) -> str:
    """Make the repository ``hf://OWNER/NAME`` hold the run of this folder and no other. Returns its address. InputError
    in one line, also where the library is missing."""
    repository = check_target(name)
    with _reported(name, "written to") as hub:
        api = hub.HfApi(library_name="ansn")
        address = api.create_repo(repository, private=private or None, exist_ok=True)
        api.upload_folder(
            repo_id=repository, folder_path=folder, delete_patterns=["checkpoints/*"],
            commit_message="Upload by ansn-export",
        )  # fmt: skip
    return str(address)


def check_target(name: str) -> str:
    """``OWNER/NAME`` of a repository to write to; InputError for another name."""
    repository, revision = _repository(name)
    if revision is not None:
        raise InputError(f"{name}: got a revision, expected {HUB}OWNER/NAME to write to")
    return repository


def _pulled(name: str) -> Path:
    repository, revision = _repository(name)
    with _reported(name, "read from") as hub:
        return Path(hub.snapshot_download(repository, revision=revision, allow_patterns=list(_FILES)))


def _repository(name: str) -> tuple[str, str | None]:
    found = _REPOSITORY.fullmatch(name)
    if found is None:
        raise InputError(f"{name}: got no repository, expected {HUB}OWNER/NAME or {HUB}OWNER/NAME@REVISION")
    return found[1], found[2]


@contextmanager
def _reported(name: str, use: str) -> Iterator[Any]:
    """The Hub's library, whose errors are one line."""
    try:
        import huggingface_hub  # optional, and slow to import
    except ImportError:
        raise InputError(f"{name}: got no huggingface_hub, expected it: pip install 'ansn[hub]'") from None
    try:
        yield huggingface_hub
    except Exception as error:  # the library's own, and of several below it
        got = textwrap.shorten(f"{type(error).__name__}: {error}", 300)
        raise InputError(f"{name}: got {got}, expected a repository that can be {use}") from None
