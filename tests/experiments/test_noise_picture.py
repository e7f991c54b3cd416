"""The picture of fixed against adapted noise: what it shows is so, and it is fit for a page."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from experiments import noise_picture as picture


def test_both_noises_are_as_large_and_one_has_the_data_s_shape() -> None:
    """Mean variances within sampling error of each other; correlations of the clouds."""
    x = picture.plane()
    spread = {rho: (picture.clouds(x, rho) - picture.centers(x).unsqueeze(1)).flatten(0, 1) for rho in picture.SHAPES}
    sizes = [float(away.square().mean()) for away in spread.values()]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.2)
    found = [float(torch.corrcoef(away.T)[0, 1]) for away in spread.values()]
    assert abs(found[0]) < 0.15
    assert found[1] == pytest.approx(picture.CORRELATION, abs=0.03)


def test_the_file_is_fit_for_a_page(tmp_path: Path) -> None:
    path = picture.draw(tmp_path / "images" / "noise.png")
    assert path.stat().st_size < 200_000
    assert Image.open(path).width >= 900
