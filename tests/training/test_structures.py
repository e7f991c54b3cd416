"""What a run does with a structure: `auto` decides once, few images have the skip, the paper's presets stay dense."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ansn import load_run
from ansn.covariance import STRUCTURES
from ansn.presets import PRESETS
from ansn.training.data import load
from ansn.training.trainer import Trainer
from tests.training.helpers import assert_same_run, change, small, trained, trainer


def images(path: Path, n: int = 500) -> Path:
    """Smooth colour images, float32 ``[n, 3, 32, 32]`` in [0, 1]."""
    x = torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for axis in (1, 2, 3):
        for shift in (1, 2):
            x = x + x.roll(shift, axis)
    np.save(path, torch.special.ndtr(x / x.std()).numpy())
    return path


def test_five_hundred_colour_images_have_the_skip(tmp_path: Path) -> None:
    config = small(tmp_path / "run", dataset=str(images(tmp_path / "x.npy")), network="unet", width=8)
    built: Trainer = trainer(config)
    assert built.model.skip == "wiener"
    assert built.structure.structure in ("separable", "cosine")
    assert built.structure.skipped["dense"] == "needs 6,158 rows (337 fitted)"


def test_auto_decides_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = trained(tmp_path / "whole", structure="auto", steps=30)
    told = "structure: dense (fitted to 1,010 rows, scored on 337, nats/dim, more is likelier: dense 0.4"
    assert told in capsys.readouterr().err
    trained(tmp_path / "parts", structure="auto", steps=11)
    capsys.readouterr()
    assert_same_run(whole, trained(tmp_path / "parts", structure="auto", steps=30))
    assert "structure" not in capsys.readouterr().err, "what is chosen is not chosen again"
    run = load_run(whole)
    assert run.structure.structure == run.model.noise.covariance.structure.name == "dense"
    assert set(run.structure.scores) == set(STRUCTURES)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_run_is_resumed_bit_for_bit(tmp_path: Path, structure: str) -> None:
    """Through a change of basis and the freeze."""
    settings = {"structure": structure, "freeze_after": 900, "steps": 40}
    whole = trained(tmp_path / "whole", **settings)
    trained(tmp_path / "parts", **(settings | {"steps": 9}))
    assert_same_run(whole, trained(tmp_path / "parts", **settings))


def test_a_whitened_network_gives_f_in_the_data_s_form(tmp_path: Path) -> None:
    built = trainer(small(tmp_path / "run", structure="separable", prediction="whitened"))
    assert built.covariance.root == "symmetric"


@pytest.mark.parametrize("preset", [name for name in PRESETS if name.startswith("paper-")])
def test_the_paper_s_presets_are_dense_with_a_cholesky_root(tmp_path: Path, preset: str) -> None:
    noise = PRESETS[preset][1].noise
    assert (noise.structure, noise.root) == ("dense", "cholesky")
    config = change(PRESETS[preset][1], dataset="digits", network="mlp", width=8, out=str(tmp_path / "run"))
    built = Trainer(config, load(config), 0, 1, torch.device("cpu"))
    assert (built.covariance.root, built.structure.scores) == ("cholesky", {})
