"""A stand-in for the Hugging Face Hub: a folder for each revision of a repository, and a cache of links to its files,
as the library's own."""

from __future__ import annotations

import inspect
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.utils import filter_repo_objects

_DOWNLOAD, _API = huggingface_hub.snapshot_download, huggingface_hub.HfApi


class Hub:
    """In place of what is used of :mod:`huggingface_hub`, which has to take the same arguments."""

    def __init__(self, root: Path) -> None:
        self.root, self.private = root, dict[str, bool | None]()

    def installed(self, monkeypatch: pytest.MonkeyPatch) -> Hub:
        monkeypatch.setattr(huggingface_hub, "snapshot_download", self.snapshot_download)
        monkeypatch.setattr(huggingface_hub, "HfApi", lambda **given: _API(**given) and self)
        return self

    def folder(self, repository: str, revision: str = "main") -> Path:
        return self.root / "remote" / repository / revision

    def files(self, repository: str) -> list[str]:
        folder = self.folder(repository)
        return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())

    def create_repo(self, repository: str, *, private: bool | None, exist_ok: bool) -> str:
        inspect.signature(_API.create_repo).bind(self, repository, private=private, exist_ok=exist_ok)
        assert exist_ok
        self.private[repository] = private
        self.folder(repository).mkdir(parents=True, exist_ok=True)
        return f"https://hub/{repository}"

    def upload_folder(self, *, repo_id: str, folder_path: Path, delete_patterns: list[str], **more: Any) -> None:
        given = {"repo_id": repo_id, "folder_path": folder_path, "delete_patterns": delete_patterns, **more}
        inspect.signature(_API.upload_folder).bind(self, **given)
        for name in filter_repo_objects(self.files(repo_id), allow_patterns=delete_patterns):
            (self.folder(repo_id) / name).unlink()
        shutil.copytree(folder_path, self.folder(repo_id), dirs_exist_ok=True)

    def snapshot_download(self, repository: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        inspect.signature(_DOWNLOAD).bind(repository, revision=revision, allow_patterns=allow_patterns)
        source = self.folder(repository, revision or "main")
        if not source.is_dir():
            raise huggingface_hub.errors.LocalEntryNotFoundError(f"no {repository}\nat {revision}")
        cache = self.root / "cache" / repository / (revision or "main")
        for name in filter_repo_objects(self.files(repository), allow_patterns=allow_patterns):
            (cache / name).parent.mkdir(parents=True, exist_ok=True)
            (cache / name).unlink(missing_ok=True)
            (cache / name).symlink_to(source / name)
        return str(cache)
