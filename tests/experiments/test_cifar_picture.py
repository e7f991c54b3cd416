"""The front page's picture: panels where they belong, and wrong steps in one line."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from experiments import cifar_picture as picture


def test_panels_lie_where_they_should(tmp_path: Path) -> None:
    settings = picture.Settings(data=tmp_path, steps=(1, 2), out=tmp_path / "new" / "p.png")
    each = picture.COLUMNS * picture.LINES
    greys = [0.1, 0.2, 0.3, 0.4]
    panels = [(f"{g}", torch.full((each, 3, 32, 32), g)) for g in greys]
    panels.append(("real", torch.full((picture.COLUMNS * (2 * picture.LINES + 1), 3, 32, 32), 0.9)))
    with Image.open(picture._draw(panels, settings)) as image:
        pixels = np.asarray(image.convert("L")) / 255
    height, width = pixels.shape
    assert pixels[height // 2, width * 9 // 10] == pytest.approx(0.9, abs=0.01)
    found = [pixels[int(height * y), int(width * x)] for y in (0.25, 0.75) for x in (0.15, 0.5)]
    assert found == pytest.approx(greys, abs=0.01)


def test_steps_that_do_not_ascend_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["cifar_picture", "--data", str(tmp_path), "--steps", "8", "2"])
    assert picture.main() == 2
    assert "--steps: got (8, 2), expected ascending numbers" in capsys.readouterr().err
