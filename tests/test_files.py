"""A file is replaced whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ansn.files import write_atomic


@pytest.mark.parametrize(("old", "new"), [("old", "new, ä"), (b"old", b"\x00new\r\n")])
def test_a_file_is_replaced_whole_or_not_at_all(
    old: str | bytes, new: str | bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "config.json"
    write_atomic(path, old)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("cut")))
        with pytest.raises(OSError, match="cut"):
            write_atomic(path, new)
    assert path.read_bytes() == (old if isinstance(old, bytes) else old.encode())
    assert list(tmp_path.iterdir()) == [path]
    assert write_atomic(path, new) == path
    assert path.read_bytes() == (new if isinstance(new, bytes) else new.encode())
