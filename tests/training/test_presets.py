"""Every preset builds its model and takes a step, on small files of its data's format."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ansn import levels, networks
from ansn.cli.train import parse
from ansn.covariance import STRUCTURES
from ansn.presets import PRESETS, command
from ansn.training import build, checkpoint, load_run, train
from ansn.training.build import DataInfo
from ansn.training.pictures import sampler_options
from tests.data.writers import cifar_bytes, some_images, write, write_mnist
from tests.training.helpers import change, metrics, small, tensors

SHAPES = {
    "digits": (1, 8, 8), "toy2d": (2,), "cifar10": (3, 32, 32), "paper-cifar10": (3, 32, 32), "table": (5,),
    "fields": (1, 16, 12), "cifar10-small": (3, 32, 32), "images": (3, 20, 18),
}  # fmt: skip


def files(folder: Path, preset: str) -> Path:
    """Files of the preset's data: a few rows of noise."""
    labels = np.arange(40, dtype=np.uint8) % 10
    if "mnist" in preset:
        for split in ("train", "test"):
            write_mnist(folder, some_images(40, 28, 28), labels, split)
    if "cifar10" in preset:
        for name in (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"):
            write(folder / name, cifar_bytes(some_images(40, 3, 32, 32), labels))
    if preset == "table":
        rows = [f"{i % 7},{i / 3:.2f},{'abc'[i % 3]}" for i in range(40)]
        (folder / "data.csv").write_text("\n".join(["count,size,kind", *rows]))
    if preset == "fields":
        np.save(folder / "data.npy", 280 + np.random.default_rng(0).normal(size=(40, 16, 12)))
    if preset == "images":
        np.save(folder / "data.npy", some_images(40, 20, 18, 3))
    return folder


def some_data(
    name: str, kind: str, shape: tuple[int, ...], rows: int, quantisation: float = 0.0, classes: int = 0
) -> DataInfo:
    """What a model must know of such data, its classes alike large."""
    counts = (rows // max(classes, 1),) * classes
    return DataInfo(
        name, kind, shape, quantisation, None, rows, tuple(map(str, range(classes))), counts, None, "", ()
    )


# At d = 3072 the eigenvalues of R, for the condition number, take seconds.
LARGE = ("cifar10", "cifar10-small", "paper-cifar10")


@pytest.mark.parametrize("preset", [pytest.param(p, marks=pytest.mark.slow if p in LARGE else ()) for p in PRESETS])
def test_a_step_of_every_preset(tmp_path: Path, preset: str) -> None:
    full = PRESETS[preset][1].network
    folder = files(tmp_path, preset)
    yours = {
        "table": {"dataset": str(folder / "data.csv")},
        **{name: {"dataset": str(folder / "data.npy")} for name in ("fields", "images")},
    }
    config = small(
        tmp_path / "run", preset, **yours.get(preset, {"data": None if preset in ("digits", "toy2d") else str(folder)}),
        width=8, batch_size=4, steps=2, log_every=1, multipliers=full.multipliers, checkpoint_every=1,
    )  # fmt: skip
    train(config)
    run = load_run(tmp_path / "run")
    assert run.step == 2
    assert run.info.shape == SHAPES.get(preset, (1, 28, 28))
    assert all(line["loss"] > 0 for line in metrics(tmp_path / "run"))
    assert run.model.noise.covariance.seen == 8
    first, last = (tensors(tmp_path / "run", step) for step in checkpoint.steps(tmp_path / "run"))
    assert any(not torch.equal(v, last[k]) for k, v in first.items() if k.startswith("network/"))


@pytest.mark.parametrize(("preset", "kind"), [("digits", "image"), ("toy2d", "table")])
def test_the_anisotropy_is_one_half_unless_it_is_given(tmp_path: Path, preset: str, kind: str) -> None:
    config = change(small(tmp_path / "run", preset), rho=None)
    info = some_data(preset, kind, SHAPES[preset], 1000)
    for structure in STRUCTURES:
        assert build.covariance(config, info, structure).rules.rho == 0.5
        assert build.covariance(change(config, rho=0.0), info, structure).rules.rho == 0.0
        assert build.covariance(change(config, gamma=0.5), info, structure).rules.gamma == 0.5


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize(
    ("missing", "given", "skip"),
    [(0, None, "wiener"), (1, None, "scalar"), (1, "wiener", "wiener"), (0, "scalar", "scalar")],
)
def test_the_wiener_skip_needs_as_many_examples_as_the_structure(
    tmp_path: Path, structure: str, missing: int, given: str | None, skip: str
) -> None:
    points = STRUCTURES[structure]((1, 8, 8)).points()
    assert structure != "dense" or points == 142
    config, ladder = small(tmp_path / "run", skip=given), levels.karras(5.0, 0.01)
    info = some_data("digits", "image", (1, 8, 8), points - missing)
    assert build.denoiser(config, info, structure, ladder).skip == skip
    classes = change(config, class_conditional=True, regions="labels")
    for fewest, expected in ((points - 1, given or "scalar"), (points, given or "wiener")):
        many = replace(info, classes=("a", "b"), counts=(1000 - fewest, fewest), rows=1000)
        assert build.denoiser(classes, many, structure, ladder).skip == expected


# Of the published networks: 7,638,657 parameters with 10 conditional levels (NCSN on MNIST); the paper's is
# unconditional, so each of the norms has one set of coefficients in place of ten.
@pytest.mark.parametrize(("preset", "shape"), [("paper-mnist", (1, 28, 28)), ("paper-cifar10", (3, 32, 32))])
def test_the_papers_settings(preset: str, shape: tuple[int, ...]) -> None:
    config = PRESETS[preset][1]
    info = some_data(preset, "image", shape, 60_000, 1 / (12 * 255**2), 10)
    levels = build.ladder(config, info, "dense", None, None)  # type: ignore[arg-type]
    assert levels.tau == pytest.approx((2.4 / torch.Size(shape).numel() ** 0.5,))
    with torch.device("meta"):
        options = build._options(config.network, levels, None)
        network = networks.build(config.network.network, shape, **options)
    ngf = {"paper-mnist": 64, "paper-cifar10": 128}[preset]
    with torch.device("meta"):
        told = networks.NCSN(shape[0], ngf=ngf, num_levels=10)
    count, conditional = (sum(p.numel() for p in n.parameters()) for n in (network, told))
    assert network.conditioning == "none"
    assert count < conditional
    if preset == "paper-mnist":
        assert conditional == 7_638_657
    assert (config.noise.rho, config.noise.freeze_after, config.network.metric) == (1.0, None, "whitened")
    assert (config.optim.clip, config.optim.ema, config.optim.lr, config.optim.batch_size) == (0.0, 0.0, 1e-3, 128)
    options = sampler_options(config.sampling)
    taus = options.pop("taus")
    assert options == {"method": "paper", "steps": 100, "start": "uniform", "eps": 2e-5}
    torch.testing.assert_close(taus, torch.logspace(0, -2, 10, dtype=torch.float64))


TOLD = {"class": {"class_conditional": True}, "nothing": {"unconditional": True}, "f": {"prediction": "whitened"}}


# The deeper ones differ in their stages alone.
@pytest.mark.parametrize(
    ("network", "told"), [(n, t) for n in networks.NETWORKS for t in TOLD if t == "class" or "-deep" not in n]
)
def test_every_network_trains_told_more_or_less(tmp_path: Path, network: str, told: str) -> None:
    rows = tmp_path / "rows.npz"
    np.savez(rows, x=some_images(20, 16, 16), y=np.arange(20) % 3)
    config = small(
        tmp_path / "run", dataset=str(rows), network=network, width=8, multipliers=(1,), batch_size=4, steps=2,
        **TOLD[told],
    )  # fmt: skip
    train(config)
    run = load_run(tmp_path / "run")
    extra = {"y": torch.tensor([2, 0])} if told == "class" else {}
    denoised = run.model(torch.rand(2, 1, 16, 16), torch.tensor([1.0, 0.1]), **extra)
    assert denoised.shape == (2, 1, 16, 16)
    assert bool(torch.isfinite(denoised).all())


def test_presets_differ_from_one_another_and_name_their_folders() -> None:
    outs = [config.run.out for _, config in PRESETS.values()]
    assert outs == [f"runs/{name}" for name in PRESETS]
    assert all(text for text, _ in PRESETS.values())
    assert change(PRESETS["mnist"][1], dataset="fashion-mnist", out="runs/fashion-mnist") == PRESETS["fashion-mnist"][1]


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"out": "a folder; with 'signs'", "threads": 1, "resume": False, "seed": 7},
        {"dataset": "my $data.csv", "label_column": "-odd name", "dequantise": True, "image_size": 12},
        {"rho": None, "gamma": -0.5, "freeze_after": None, "tau_max": 3.25, "multipliers": (1, 3)},
        {"method": "langevin", "sampler_levels": (1.0, 0.01, 10), "denoise": False, "precondition": False},
    ],
)
def test_the_command_line_gives_the_settings_back(preset: str, settings: dict[str, Any]) -> None:
    config = change(PRESETS[preset][1], **settings)
    words = shlex.split(command(config))
    assert words[0] == "ansn-train"
    assert parse(words[1:]) == config
    if not settings:
        assert words == ["ansn-train", preset, "--out", config.run.out]
