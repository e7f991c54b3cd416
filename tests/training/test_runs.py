"""What is exported of a run, and where runs are found: in folders, in the package, on a hub."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch

import ansn
from ansn import presets
from ansn.errors import InputError
from ansn.training import Run, checkpoint, export_run, load_run, places, runs, train
from tests.training.helpers import assert_same_tensors, change, tensors, trained
from tests.training.hub import Hub


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three regions in the skip, each separable."""
    return trained(tmp_path_factory.mktemp("mixture"), skip="mixture", regions=3, structure="separable")


@pytest.fixture(params=["whole", "mixture"])
def either(request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue(request.param)
    return found


def samples(run: Run) -> torch.Tensor:
    return ansn.sample(run.model, 5, steps=4, seed=2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_an_export_draws_what_the_run_draws_with_weights_so_rounded(
    either: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    """To the bit: nothing else of what sampling reads is rounded."""
    run = load_run(either)
    exported = load_run(export_run(run, tmp_path / "out", "name", dtype))
    for value in run.model.network.parameters():
        value.data = value.data.to(dtype).float()
    assert all(p.dtype == torch.float32 for p in exported.model.parameters())
    torch.testing.assert_close(samples(exported), samples(run), rtol=0, atol=0)
    assert (exported.step, exported.info, exported.found) == (run.step, run.info, run.found)
    x = torch.rand(3, 1, 8, 8)
    each = [ansn.log_likelihood(each.model, x, steps=2).log_density for each in (exported, run)]
    torch.testing.assert_close(*each, rtol=0, atol=0)
    s = [each.model.noise.covariance.covariance() for each in (exported, run)]
    torch.testing.assert_close(*s, rtol=1e-6, atol=1e-7)


def test_it_is_small_and_says_nothing_of_the_machine(either: Path, tmp_path: Path) -> None:
    run = load_run(either)
    folder = export_run(run, tmp_path / "out", "name")
    files = [p for p in folder.rglob("*") if p.is_file()]
    weights = sum(p.numel() for p in run.model.network.parameters())
    stored = sum(p.stat().st_size for p in files)
    known = sum(v.numel() for name, v in tensors(either).items() if name.startswith(("covariance/", "mixture/")))
    assert stored < 2 * weights + 4 * known + 20_000
    assert {p.name for p in files} == {
        "config.json", "state.json", "SHA256SUMS", "network.safetensors", "covariance.safetensors",
        *(["mixture.safetensors"] if run.model.noise.mixture else []),
    }  # fmt: skip
    assert not any(os.fsencode(either.parent) in p.read_bytes() for p in files)
    config = load_run(folder).config
    assert (config.run.out, config.run.seed, config.optim) == ("runs/name", run.config.run.seed, run.config.optim)


@pytest.mark.parametrize(
    ("dataset", "left"),
    [("mnist", "mnist"), ("toy2d:moons", "toy2d:moons"), ("/a/b/c.csv", "c.csv"), ("/a/b.h5:c/d", "b.h5:c/d")],
)
def test_a_folder_of_data_goes_and_what_it_is_stays(dataset: str, left: str) -> None:
    config = runs._anywhere(change(presets.PRESETS["digits"][1], dataset=dataset, data="/a/b"), "x")
    assert (config.data.dataset, config.data.data) == (left, None)


def test_an_export_of_an_export_is_the_same(either: Path, tmp_path: Path) -> None:
    first = export_run(load_run(either), tmp_path / "a", "name")
    second = export_run(load_run(first), tmp_path / "b", "name")
    assert_same_tensors(tensors(first), tensors(second))
    for name in ("config.json", f"checkpoints/step-{load_run(either).step:08d}/SHA256SUMS"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_weights_that_float16_does_not_hold_are_refused(whole: Path, tmp_path: Path) -> None:
    run = load_run(whole)
    next(run.model.network.parameters()).data[0, 0] = 1e5
    with pytest.raises(InputError, match=r"^--dtype: got float16, which does not hold \S+, expected float32$"):
        export_run(run, tmp_path / "out", "name")
    assert not (tmp_path / "out").exists()
    export_run(run, tmp_path / "out", "name", torch.float32)


def test_training_does_not_go_on_with_it(either: Path, tmp_path: Path) -> None:
    run = load_run(either)
    folder = export_run(run, tmp_path / "out", "name")
    config = change(run.config, out=str(folder), steps=50)
    with pytest.raises(InputError, match=r"^[^\n]*: got what ansn-export wrote, expected [^\n]*$"):
        train(config)


def test_one_that_is_damaged_is_refused(whole: Path, tmp_path: Path) -> None:
    folder = export_run(load_run(whole), tmp_path / "out", "name")
    file = next(folder.glob("checkpoints/*/network.safetensors"))
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)
    with pytest.raises(InputError, match=r"network.safetensors: got another checksum, expected that of SHA256SUMS"):
        load_run(folder)


# -- names --------------------------------------------------------------------------------------------------------


@pytest.fixture
def package(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of shipped runs, with one: few-digits."""
    folder = tmp_path / "package"
    folder.mkdir()
    export_run(load_run(whole), folder / "few-digits", "few-digits")
    monkeypatch.setattr(places, "_SHIPPED", folder)
    monkeypatch.chdir(tmp_path)
    return folder


def test_a_name_is_a_folder_of_the_package(package: Path, whole: Path) -> None:
    (package / "notes").mkdir()
    assert places.shipped() == ["few-digits"]
    assert load_run("few-digits").path == package / "few-digits"
    shutil.copytree(whole, "few-digits")
    assert load_run("few-digits").path == Path("few-digits"), "a folder beats a name"


@pytest.mark.parametrize("name", ["none", "few-digits/checkpoints/..", "../package/few", "", "notes"])
def test_a_name_that_is_none(package: Path, name: str) -> None:
    """No path into the package, though a folder's path is one."""
    if name:
        with pytest.raises(InputError, match=r"got no folder, expected .* one of hf://OWNER/NAME, few-digits$"):
            load_run(name)
    else:
        with pytest.raises(InputError, match="got no checkpoint"):
            load_run(name)


@pytest.mark.parametrize(
    ("run", "called"),
    [("few-digits", "few-digits"), ("hf://a/b", "b"), ("hf://a/b@v1", "b"), (".", None), ("package", None)],
)
def test_what_files_of_a_run_are_called(package: Path, run: str, called: str | None) -> None:
    assert places.short(run) == called


# -- the hub ------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    return Hub(tmp_path / "hub").installed(monkeypatch)


def test_a_run_goes_to_the_hub_and_comes_back(whole: Path, tmp_path: Path, hub: Hub) -> None:
    folder = export_run(load_run(whole), tmp_path / "out", "name")
    assert places.push(folder, "hf://me/digits") == "https://hub/me/digits"
    assert hub.private == {"me/digits": None}
    assert_same_tensors(tensors(load_run("hf://me/digits").path), tensors(folder))
    with pytest.raises(InputError, match=r"^hf://me/digits@v1: got LocalEntryNotFoundError: no me/digits at v1"):
        load_run("hf://me/digits@v1")
    shutil.copytree(hub.folder("me/digits"), hub.folder("me/digits", "v1"))
    assert_same_tensors(tensors(load_run("hf://me/digits@v1").path), tensors(folder))


def test_what_is_pushed_takes_the_place_of_what_was(whole: Path, tmp_path: Path, hub: Hub) -> None:
    late, early = (export_run(load_run(whole, step=s), tmp_path / str(s), "x") for s in (40, 30))
    for folder in (late, early):
        places.push(folder, "hf://me/x", private=True)
    assert hub.private == {"me/x": True}
    assert load_run("hf://me/x").step == 30
    (hub.folder("me/x") / "notes.md").write_text("of a person")
    places.push(late, "hf://me/x")
    assert "notes.md" in hub.files("me/x")


def test_only_files_of_a_run_are_fetched(whole: Path, tmp_path: Path, hub: Hub) -> None:
    folder = export_run(load_run(whole), tmp_path / "out", "name")
    step = next(folder.glob("checkpoints/*"))
    for other in ("setup.py", "weights.bin", f"checkpoints/{step.name}/x.pkl", f"checkpoints/{step.name}/x/y.json"):
        (folder / other).parent.mkdir(exist_ok=True)
        (folder / other).write_text("x")
    places.push(folder, "hf://me/x")
    run = load_run("hf://me/x")
    fetched = {p.name for p in run.path.rglob("*") if not p.is_dir()}
    assert fetched == {"config.json", "state.json", "SHA256SUMS", "network.safetensors", "covariance.safetensors"}


def test_one_that_the_hub_damaged_is_refused(whole: Path, tmp_path: Path, hub: Hub) -> None:
    places.push(export_run(load_run(whole), tmp_path / "out", "name"), "hf://me/x")
    file = next(hub.folder("me/x").glob("checkpoints/*/covariance.safetensors"))
    file.write_bytes(file.read_bytes()[:-8] + bytes(8))
    with pytest.raises(InputError, match=r"covariance.safetensors: got another checksum"):
        load_run("hf://me/x")


@pytest.mark.parametrize("name", ["hf://", "hf://me", "hf://me/", "hf://a/b/c", "hf://a/b@", "hf://a b/c"])
def test_what_is_no_repository(name: str) -> None:
    with pytest.raises(InputError, match=f"^{re.escape(name)}: got no repository, expected hf://OWNER/NAME or "):
        load_run(name)


def test_a_revision_is_not_written_to(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^hf://a/b@v1: got a revision, expected hf://OWNER/NAME to write to$"):
        places.push(tmp_path, "hf://a/b@v1")


def test_without_the_library_or_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library itself, told that there is no network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"^hf://ansn/none: got \w+: [^\n]*, expected a repository that can be read"):
        load_run("hf://ansn/none")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match=r"^hf://ansn/none: got no huggingface_hub, expected it: pip install"):
        load_run("hf://ansn/none")


# -- the runs that come with the package --------------------------------------------------------------------------


@pytest.mark.parametrize("name", places.shipped())
def test_a_run_that_comes_with_the_package(name: str) -> None:
    run = load_run(name)
    size = sum(p.stat().st_size for p in run.path.rglob("*") if p.is_file())
    assert size <= 3_000_000
    assert len(checkpoint.steps(run.path)) == 1
    x = ansn.sample(run.model, 4, steps=6)
    assert bool(x.isfinite().all())
    assert float(x.std(0).mean()) > 0.05 * float(x.std())
    text = (run.path / "README.md").read_text()
    assert presets.command(run.config) in text, "the presets have changed: train it anew, or say so in its card"
    assert f"ansn-sample {name}\n" in text


def test_runs_of_the_package_are_found_where_they_are_shipped() -> None:
    assert Path(ansn.__file__).parent / "shipped" == places._SHIPPED
