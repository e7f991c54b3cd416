from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure


@pytest.fixture(autouse=True)
def drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sections of other rows in the same folder do not draw its figures again."""
    layout, save = Figure.tight_layout, Figure.savefig

    def savefig(figure: Figure, path: Path, **told: Any) -> None:
        if not path.exists():
            layout(figure)
            save(figure, path, **told)

    monkeypatch.setattr(Figure, "tight_layout", lambda _: None)
    monkeypatch.setattr(Figure, "savefig", savefig)
