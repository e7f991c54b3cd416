"""Regions of a run, of its noise or of its skip: found once, learned, kept, sampled, scored and shown."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import ansn
from ansn.config import TrainConfig, resumed
from ansn.errors import InputError
from ansn.training import build, checkpoint, load_run
from ansn.training.pictures import draw, write_pictures
from ansn.training.trainer import Trainer
from tests.training.helpers import seal, small, tensors, trained, trainer

NOISE: dict[str, Any] = {"regions": 4, "structure": "cosine"}
MIXTURE: dict[str, Any] = NOISE | {"skip": "mixture", "inputs": ("estimate",)}
USES = {
    "noise": NOISE, "noise, auto": NOISE | {"regions": "auto"}, "mixture": MIXTURE,
    "mixture, auto": MIXTURE | {"regions": "none"}, "mixture of classes": MIXTURE | {"regions": "labels"},
    "noise, whitened": NOISE | {"prediction": "whitened", "structure": "auto"},
    "noise, geometric": NOISE | {"ladder": "geometric"},
}  # fmt: skip


@pytest.fixture(autouse=True)
def few_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixteen regions of the digits take seconds to find; that they are is for the tests of mixtures."""
    monkeypatch.setattr("ansn.covariance.mixture.CANDIDATES", (1, 2, 4))


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("noise"), label_dropout=0.2, steps=10, **NOISE)


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("mixture"), steps=10, **MIXTURE)


@pytest.mark.parametrize("use", USES)
def test_a_run_is_loaded_as_it_was_trained(use: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    built = trainer(small(tmp_path, ema=0.0, steps=3, **USES[use]))
    built.run()
    run = load_run(tmp_path)
    regions, mixed = run.regions, USES[use].get("skip") == "mixture"
    assert regions is not None
    assert run.found == built.found
    assert run.model.skip == ("scalar" if run.model.prediction == "whitened" else "mixture" if mixed else "wiener")
    assert regions.regions == (4 if USES[use]["regions"] == 4 else run.found.regions) > 1
    assert (regions is run.model.noise.mixture) == mixed
    assert run.model.noise.covariance.regions == (1 if mixed else regions.regions)
    assert run.model.num_classes == (None if mixed else regions.regions)
    assert (f"regions: {run.found}" in capsys.readouterr().err) == (USES[use]["regions"] != "labels")
    x, region = torch.rand(5, 1, 8, 8), torch.arange(5) % regions.regions
    told = {} if mixed else {"region": region, "y": region}
    with torch.no_grad():
        assert torch.equal(run.model(x, 0.7, **told), built.model.eval()(x, 0.7, **told))


@pytest.mark.parametrize(
    ("skip", "settings"),
    [
        ("mixture", {"preset": "toy2d"}),
        ("mixture", {"rho": 0.0}),
        ("mixture", {}),
        ("wiener", {"preset": "toy2d", "rho": 0.5}),
        ("wiener", {"gamma": 0.5}),
        ("wiener", {"skip": "wiener"}),
        ("wiener", {"regions": 2}),
        ("mixture", {"preset": "toy2d", "inputs": ("estimate",)}),
        ("mixture", {"inputs": ()}),
        ("wiener", {"ladder": "paper"}),
        ("scalar", {"precondition": False}),
        ("scalar", {"prediction": "whitened"}),
    ],
)
def test_the_skip_that_is_not_given_follows_the_kind_of_data(
    skip: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    settings = {"skip": None} | settings
    model = trainer(small(tmp_path, **settings)).model
    seen = ("estimate",) if skip == "mixture" and settings.get("preset") != "toy2d" else ()
    assert (model.skip, model.noise.mixture is not None) == (skip, skip == "mixture")
    assert model.inputs == settings.get("inputs", seen)


def test_what_is_not_given_follows_the_data(tmp_path: Path) -> None:
    built, config = trainer(small(tmp_path, rho=0.0)), small(tmp_path, skip=None)

    def settled(config: TrainConfig = config, structure: str = "separable", **changes: Any) -> tuple[Any, ...]:
        found = build.settled(config, replace(built.info, **changes), structure)
        return found.network.skip, found.network.inputs, found.noise.rho

    large: dict[str, Any] = {"shape": (3, 37, 37)}
    assert settled(kind="field") == settled() == ("mixture", ("estimate",), 0.0)
    assert settled(**large) == ("wiener", ("estimate",), 0.0)
    assert settled(kind="table", shape=(4097,), structure="diagonal") == ("wiener", (), 0.0)
    assert settled(rows=3) == (None, None, 0.0), "too few rows for a covariance"
    for given, found in (({"rho": 0.5}, 0.5), ({"gamma": 0.5}, None)):
        assert settled(small(tmp_path, skip=None, **given), **large) == (None, None, found)
    assert settled(small(tmp_path, skip="scalar")) == ("scalar", None, 0.0)
    for given in ({"regions": 4}, {"ladder": "paper"}, {"prediction": "whitened"}):
        assert settled(small(tmp_path, skip=None, **given)) == (None, None, None), "as the library has it"


def test_what_was_settled_is_what_a_rerun_asks_for(tmp_path: Path) -> None:
    config = small(tmp_path, skip=None)
    old = replace(config, noise=replace(config.noise, rho=0.0))
    for given, rho in (({}, 0.0), ({"rho": 0.5}, 0.5), ({"gamma": 0.5}, None)):
        assert resumed(old, small(tmp_path, skip=None, **given), "separable").noise.rho == rho


def test_a_run_of_the_default_skip_goes_on_and_one_of_another_default_too(tmp_path: Path) -> None:
    one, other = (trained(tmp_path / name, preset="toy2d", steps=10, skip=skip)
                  for name, skip in (("a", None), ("b", "wiener")))  # fmt: skip
    assert json.loads((one / "config.json").read_text())["network"]["skip"] == "mixture"
    for folder, skip in ((one, "mixture"), (other, "wiener")):
        trained(folder, preset="toy2d", steps=12, skip=None)
        assert (load_run(folder).step, load_run(folder).model.skip) == (12, skip)


@pytest.mark.parametrize("use", [NOISE, MIXTURE])
def test_regions_begin_with_what_was_found_and_learn_for_one_epoch(use: dict[str, Any], tmp_path: Path) -> None:
    built = trainer(small(tmp_path / "a", steps=2, **use))
    config, info = built.config, built.info
    x, _ = build.first_rows(config.noise, built.dataset, 0)
    made, _ = build.found_regions(config, info, x, None, build.structure(config, info, x, None))
    assert built.regions is not None
    start = made.covariance.state_dict()
    assert all(torch.equal(v, start[name]) for name, v in built.regions.covariance.state_dict().items())
    built.run()  # all of the data was looked at
    regions = load_run(tmp_path / "a").mixture.covariance
    assert (regions.frozen, regions.seen) == (True, 1347)
    assert torch.equal(regions.count, made.covariance.count)
    on = load_run(trained(tmp_path / "b", steps=44, freeze_after=None, **use)).mixture.covariance
    assert (on.frozen, on.seen, float(on.count.sum())) == (False, 1347 + 64, 1347 + 64), "42 batches were known"


@pytest.mark.parametrize("use", [NOISE, MIXTURE])
def test_rows_that_regions_began_with_do_not_count_again(
    use: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ansn.covariance.mixture._ROWS", 400)
    folder = trained(tmp_path, steps=20, **use)
    found = load_run(folder)
    assert found.found is not None
    assert (found.found.rows, found.mixture.covariance.seen) == (400, 400 + (20 - 12) * 32)
    trained(tmp_path, steps=44, **use)  # goes on, as if it had not stopped
    done = load_run(folder).mixture.covariance
    assert (done.frozen, done.seen) == (True, 400 + (42 - 12) * 32)


def test_a_row_of_a_region_has_its_noise_and_the_network_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[Tensor, Tensor]] = []
    loss_of = Trainer._loss

    def hook(self: Trainer, x: Tensor, perturbed: Tensor, level: Any, y: Tensor, known: Tensor | None) -> Tensor:
        assert self.regions is not None
        likely = self.regions.responsibilities(x)[torch.arange(len(x)), level.region]
        assert float(likely.min()) > 1e-6
        told.append((level.region, y))
        return loss_of(self, x, perturbed, level, y, known)

    monkeypatch.setattr(Trainer, "_loss", hook)
    run = load_run(trained(tmp_path, label_dropout=0.25, **NOISE))
    region, y = (torch.cat(parts) for parts in zip(*told, strict=True))
    assert torch.equal(region[y < 4], y[y < 4])
    assert 0.2 < float((y == 4).double().mean()) < 0.3
    shares = torch.bincount(region, minlength=4) / len(region)
    torch.testing.assert_close(shares.double(), run.mixture.weights, rtol=0, atol=0.05)


def test_samples_are_of_all_regions_or_of_one(noise: Path) -> None:
    run = load_run(noise)
    assert run.regions is not None
    drawn = {name: draw(run, 200, steps=6, **options) for name, options in
             {"all": {}, "one": {"y": 2}, "guided": {"y": 2, "guidance": 2.0}}.items()}  # fmt: skip
    region = run.model.noise.draw_regions(200)
    assert torch.equal(draw(run, 200, steps=6, y=region), drawn["all"])
    assert (run.regions.assign(drawn["all"]) == region).double().mean() > 0.8
    assert all((run.regions.assign(drawn[name]) == 2).double().mean() > 0.8 for name in ("one", "guided"))
    assert not torch.equal(drawn["one"], drawn["guided"])


@pytest.mark.parametrize("which", ["noise", "mixture"])
def test_held_out_rows_have_a_likelihood(which: str, request: pytest.FixtureRequest) -> None:
    """Summed over regions of the noise, of which the data's labels are none."""
    run, data = load_run(request.getfixturevalue(which)), ansn.load_dataset("digits", split="test")
    for how in ("uniform", "noise"):
        bits = ansn.bits_per_dim(run.model, data, torch.arange(8), steps=4, dequantisation=how)
        assert not bits.conditional
        assert bits.evaluations == 4 * 4 * (4 if which == "noise" else 1)
        assert 1.0 < bits.value < (4.1 if how == "uniform" else 8.0)  # a guess among 17 grey levels takes 4.1


@pytest.mark.slow
def test_pictures(noise: Path, mixture: Path) -> None:
    sizes = []
    for run in (noise, mixture):
        written = [path.name for path in write_pictures(run)]
        assert written == ["samples.png", "covariance.png", "regions.png", "loss.png"]
        sizes.append((run / "regions.png").stat().st_size)
    assert min(sizes) > 5000


def test_other_regions_are_another_run(noise: Path, tmp_path: Path) -> None:
    before = tensors(noise)
    with pytest.raises(InputError, match=r"regions: 4 -> 5"):
        trained(noise, label_dropout=0.2, steps=12, **NOISE | {"regions": 5})
    with pytest.raises(InputError, match=r"skip: None -> mixture"):
        trained(noise, label_dropout=0.0, steps=12, **NOISE | {"skip": "mixture"})
    assert all(torch.equal(before[name], value) for name, value in tensors(noise).items())
    auto = NOISE | {"regions": "auto"}
    run = trained(tmp_path / "auto", steps=2, **auto)
    found = load_run(run).found
    assert found is not None
    assert found.scores[found.regions] >= max(found.scores.values()) - 0.011
    trained(run, steps=3, **auto | {"regions": found.regions})  # what was found may be named
    assert load_run(run).config.noise.regions == "auto"
    assert load_run(run).found == found


def test_one_region_may_be_all_that_is_found(tmp_path: Path) -> None:
    """Gaussian data is one region: a run as any other."""
    x = np.random.default_rng(0).normal(size=(400, 3)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    for name, use in (("noise", {}), ("mixture", {"skip": "mixture"})):
        run = load_run(trained(tmp_path / name, dataset=str(tmp_path / "x.npy"), steps=2, regions="auto", **use))
        assert run.found is not None
        assert (run.found.regions, run.model.num_classes, run.regions) == (1, None, None)
        assert bool(torch.isfinite(draw(run, 5, steps=3)).all())


def test_a_run_from_before_there_were_found_regions_is_what_it_was(tmp_path: Path) -> None:
    run = trained(tmp_path, steps=3)
    x, expected = torch.rand(5, 1, 8, 8), load_run(run)
    folder = run / "checkpoints" / "step-00000003"
    state = json.loads((folder / "state.json").read_text())
    del state["found"], state["config"]["network"]["inputs"]
    groups, _ = checkpoint.load(run)
    (folder / "state.json").write_text(json.dumps(state))
    older = {k: v for k, v in groups["covariance"].items() if k not in ("share", "moments.pseudo")}
    checkpoint.save_file(older, folder / "covariance.safetensors")
    seal(folder)
    found = load_run(run)
    assert found.found is found.regions is None
    with torch.no_grad():
        assert torch.equal(found.model(x, 0.7), expected.model(x, 0.7))
    assert torch.equal(found.model.noise.covariance.share, expected.model.noise.covariance.share)
    trained(run, steps=5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"regions": 2000}, "regions: got 2000, expected 1 to 1347"),
        ({"regions": "auto", "prediction": "whitened", "structure": "dense", "root": "basis"}, "'basis'"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message) as caught:
        trained(tmp_path, **settings)
    assert "\n" not in str(caught.value)
