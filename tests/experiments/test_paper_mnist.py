"""The paper's own experiment: its picture has the chain, then ours, and says what both cost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from experiments import paper_mnist as paper


def test_the_chain_is_left_of_ours(tmp_path: Path) -> None:
    greys = [0.1, 0.3, 0.5, 0.7, 0.9]
    panels = [(f"iteration {i}", torch.full((64, 1, 28, 28), grey)) for i, grey in enumerate(greys)]
    row = paper.Measured("mnist", 10, 640, 60.0, 12, 1.0, 5.0, 2.0)
    with Image.open(paper._drawn(panels, [row, row], tmp_path / "new" / "p.png")) as image:
        pixels = np.asarray(image.convert("L")) / 255
    height, width = pixels.shape
    line = pixels[height * 45 // 100]
    found = [float(np.median(line[int(width * (i + 0.3) / 5) : int(width * (i + 0.7) / 5)])) for i in range(5)]
    assert found == pytest.approx(greys, abs=0.03)
    assert (pixels[int(height * 0.9) :] < 0.5).any(), "what it cost"


def test_a_wrong_option_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["paper_mnist", "--data", "/nowhere/at/all", "--steps", "0"])
    assert paper.main() == 2
    assert capsys.readouterr().err.count("\n") == 1
