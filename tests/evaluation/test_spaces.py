"""Feature spaces by name, and classifiers that are kept on disk."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import ansn
from ansn.data import Dataset
from ansn.errors import InputError
from ansn.evaluation import cache, spaces
from ansn.evaluation.convnet import ConvFeatures
from ansn.evaluation.features import ClassifierFeatures, everything


@pytest.fixture(autouse=True)
def no_cache_of_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANSN_CACHE", str(tmp_path / "default"))


@pytest.fixture(scope="module")
def small() -> Dataset:
    """120 digits of three classes."""
    data = ansn.load_dataset("digits")
    assert data.labels is not None
    return data.select((data.labels < 3).nonzero()[:, 0][:120])


@pytest.fixture(scope="module")
def stripes() -> Dataset:
    """Images 1 x 16 x 18 of three classes: noise on rows, columns or nothing."""
    rng = np.random.default_rng(0)
    labels = np.arange(240) % 3
    x = rng.integers(0, 100, size=(240, 1, 16, 18))
    x[labels == 1, :, ::4] += 120
    x[labels == 2, :, :, ::4] += 120
    return Dataset(torch.from_numpy(x.astype(np.uint8)), name="stripes", labels=torch.from_numpy(labels))


# -- names --------------------------------------------------------------------------------------------------------


def test_each_name_makes_its_space(small: Dataset) -> None:
    x = everything(small)
    for name, told, width in (
        ("pixels", "digits-pixels", 64), ("pca-7", "digits-pca-7", 7), ("pca", "digits-pca-32", 32),
        ("classifier", "digits-mlp-128-32", 32),
    ):  # fmt: skip
        space = spaces.space(name, small, small)
        assert space.name == told
        h = space(x)
        assert (h.shape, h.dtype) == ((len(x), width), np.float64)
    assert np.array_equal(spaces.space("pixels", small)(x), x.flatten(1).double().numpy())


def test_columns_are_no_pixels() -> None:
    assert spaces.space("pixels", Dataset(torch.zeros(4, 2), name="table")).name == "table-columns"


def test_the_default_follows_the_data(small: Dataset) -> None:
    assert "classifier" in spaces.default(small)
    unlabelled = Dataset(torch.rand(9, 40), name="table")
    assert "classifier" not in spaces.default(unlabelled)
    one_class = Dataset(torch.rand(9, 40), name="table", labels=torch.zeros(9, dtype=torch.int64))
    assert "classifier" not in spaces.default(one_class)
    for data in (small, unlabelled, Dataset(torch.rand(9, 2))):
        for name in spaces.default(data):
            spaces.space(name, data)


@pytest.mark.parametrize("name", ["fid", "pca-0", "pca-x", "classifier-3", "", "pixels-2"])
def test_other_names_are_refused_in_a_line(small: Dataset, name: str) -> None:
    with pytest.raises(InputError, match=f"--features: got '{name}', expected pixels, pca, classifier, inception"):
        spaces.space(name, small)


def test_a_classifier_needs_labels() -> None:
    with pytest.raises(InputError, match=r"--features: got 'classifier', expected pixels or pca .table has no labels"):
        spaces.space("classifier", Dataset(torch.zeros(4, 2), name="table"))


# -- the convolutional network --------------------------------------------------------------------------------------


def test_a_convolutional_network_judges_larger_images(stripes: Dataset) -> None:
    made = spaces.classifier(stripes, stripes)
    assert isinstance(made, ConvFeatures)
    x = everything(stripes)
    assert made.accuracy is not None
    assert made.accuracy == (made.predict(x) == stripes.labels.numpy()).mean()  # type: ignore[union-attr]
    assert str(made) == f"stripes-conv-64 (test accuracy {made.accuracy:.3f}, trained on 240 rows)"
    h = made(x)
    assert (h.shape, h.dtype) == ((240, 64), np.float64)
    assert (h >= 0).all()
    assert np.allclose(h[7:9], made(x[7:9]), atol=1e-5)


def test_it_learns_what_is_easy_and_is_a_function_of_its_seed(stripes: Dataset) -> None:
    before = torch.get_rng_state()
    made, same, other = (ConvFeatures(stripes, epochs=20, seed=s) for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    x = everything(stripes)
    assert made.score(x, stripes.labels) > 0.95  # type: ignore[arg-type]
    assert np.array_equal(made(x), same(x))
    assert not np.allclose(made(x), other(x))


def test_what_it_cannot_take_is_named(stripes: Dataset) -> None:
    made = ConvFeatures(stripes, epochs=1)
    with pytest.raises(ValueError, match=r"x: got shape \[2, 1, 8, 8\], expected \[n, 1, 16, 18\]"):
        made(torch.zeros(2, 1, 8, 8))
    broken = torch.zeros(4, 1, 16, 18)
    broken[1, 0, 3, 3] = torch.nan
    with pytest.raises(ValueError, match="values that are not finite in 1 of 4 rows"):
        made(broken)
    with pytest.raises(ValueError, match="expected labelled images"):
        ConvFeatures(Dataset(torch.zeros(4, 2)))


# -- the cache ------------------------------------------------------------------------------------------------------


class Count:
    """A maker of tensors that counts."""

    def __init__(self) -> None:
        self.made = 0

    def __call__(self) -> dict[str, Tensor]:
        self.made += 1
        return {"a": torch.arange(6.0).reshape(2, 3).mT, "b": torch.tensor([1, 2])}


def test_a_hit_is_the_same_and_is_not_made_again(tmp_path: Path) -> None:
    make = Count()
    first, again = (cache.kept({"seed": 0}, make, tmp_path / "new") for _ in range(2))
    assert make.made == 1
    assert first.keys() == again.keys()
    assert all(torch.equal(first[k], again[k]) and first[k].dtype == again[k].dtype for k in first)
    cache.kept({"seed": 1}, make, tmp_path / "new")
    assert make.made == 2


def test_what_is_kept_is_safetensors_and_json_alone(tmp_path: Path) -> None:
    cache.kept({"seed": 0}, Count(), tmp_path)
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".json", ".safetensors"]
    (entry,) = tmp_path.glob("*.json")
    assert json.loads(entry.read_text())["settings"] == {"seed": 0}


def damage_truncate(tensors: Path, entry: Path) -> None:
    tensors.write_bytes(tensors.read_bytes()[:-3])


def damage_flip(tensors: Path, entry: Path) -> None:
    """One bit of a weight: still a sound file of safetensors."""
    content = bytearray(tensors.read_bytes())
    content[-1] ^= 1
    tensors.write_bytes(bytes(content))


def damage_missing(tensors: Path, entry: Path) -> None:
    tensors.unlink()


def damage_entry(tensors: Path, entry: Path) -> None:
    entry.write_text("{")


def damage_other(tensors: Path, entry: Path) -> None:
    entry.write_text(json.dumps(json.loads(entry.read_text()) | {"settings": {"seed": 9}}))


def damage_kind(tensors: Path, entry: Path) -> None:
    entry.write_text("[]")


@pytest.mark.parametrize(
    "damage", [damage_truncate, damage_flip, damage_missing, damage_entry, damage_other, damage_kind]
)
def test_a_damaged_entry_is_made_again(tmp_path: Path, damage: Any) -> None:
    make = Count()
    first = cache.kept({"seed": 0}, make, tmp_path)
    (tensors,), (entry,) = tmp_path.glob("*.safetensors"), tmp_path.glob("*.json")
    damage(tensors, entry)
    with pytest.warns(UserWarning, match=f"{tensors}: is damaged and made again"):
        again = cache.kept({"seed": 0}, make, tmp_path)
    assert make.made == 2
    assert all(torch.equal(first[k], again[k]) for k in first)
    cache.kept({"seed": 0}, make, tmp_path)
    assert make.made == 2


@pytest.mark.parametrize("change", ["missing", "shape", "dtype", "nan", "none"])
def test_tensors_that_are_of_no_classifier_are_made_again(
    small: Dataset, stripes: Dataset, tmp_path: Path, change: str
) -> None:
    """Whatever the hash says."""
    for number, data in enumerate((small, stripes)):
        place = tmp_path / str(number)
        first = spaces.classifier(data, place=place)
        (tensors,), (entry,) = place.glob("*.safetensors"), place.glob("*.json")
        values = load_file(tensors)
        name = sorted(values)[0]
        wrong = {"shape": values[name][:1], "dtype": values[name].half(), "nan": values[name] * float("nan")}
        values |= {name: wrong[change]} if change in wrong else {}
        values = {k: v for k, v in values.items() if change != "none" and (k != name or change != "missing")}
        save_file(values, tensors)
        digest = hashlib.sha256(tensors.read_bytes()).hexdigest()
        entry.write_text(json.dumps(json.loads(entry.read_text()) | {"sha256": digest}))
        if change == "dtype" and data is stripes:  # a float16 weight loads as a float32 one
            continue
        with pytest.warns(UserWarning, match="is damaged and made again"):
            again = spaces.classifier(data, place=place)
        assert np.array_equal(first(everything(data)), again(everything(data)))


def test_without_a_home_nothing_is_kept(small: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ANSN_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 54321)  # of whom there is no entry
    assert cache.folder() is None
    with pytest.warns(UserWarning, match="the classifier is not kept: there is no home"):
        spaces.classifier(small)


def test_a_folder_that_cannot_be_written_costs_the_training_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    make = Count()
    with pytest.warns(UserWarning, match="cannot be kept there"):
        made = cache.kept({}, make, tmp_path / "file" / "in")
    assert torch.equal(made["b"], torch.tensor([1, 2]))


def test_the_fingerprint_is_that_of_rows_labels_and_their_reading(small: Dataset) -> None:
    prints = [small.fingerprint(), small.select(torch.arange(119)).fingerprint()]
    prints.append(small.select(torch.arange(120).flip(0)).fingerprint())
    assert isinstance(small.rows, Tensor)
    assert small.labels is not None
    options: dict[str, Any] = {"labels": small.labels, "num_classes": 10}
    prints.append(Dataset(small.rows, levels=18, **options).fingerprint())
    prints.append(Dataset(small.rows, levels=17, dequantise=True, **options).fingerprint())
    prints.append(Dataset(small.rows, levels=17, labels=small.labels.roll(1), num_classes=10).fingerprint())
    assert len(set(prints)) == len(prints)
    assert Dataset(small.rows.clone(), levels=17, name="other", **options).fingerprint() == prints[0]


def test_a_classifier_from_disk_has_the_same_features(
    small: Dataset, stripes: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for data, kind in ((small, ClassifierFeatures), (stripes, ConvFeatures)):
        first = spaces.classifier(data, place=tmp_path)
        assert first.accuracy is None
        with monkeypatch.context() as patch:
            patch.setattr(kind, "_fit", None)  # not trained again
            again = spaces.classifier(data, data, place=tmp_path)
        assert np.array_equal(first(everything(data)), again(everything(data)))
        assert again.accuracy is not None
    assert len(list(tmp_path.glob("*.json"))) == 2


def test_the_default_folder_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ANSN_CACHE", "/somewhere")
    assert cache.folder() == Path("/somewhere")
    monkeypatch.delenv("ANSN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert cache.folder() == Path("/cache/ansn")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.folder() == tmp_path / ".cache" / "ansn"


# -- Inception ------------------------------------------------------------------------------------------------------


class Extractor(nn.Module):
    """In torch-fidelity's place: means of the channels, after a look at what it is given."""

    def __init__(self, name: str, features_list: list[str], feature_extractor_weights_path: str) -> None:
        super().__init__()
        assert features_list == ["2048"]
        assert Path(feature_extractor_weights_path).is_file()  # else it would download

    def forward(self, x: Tensor) -> tuple[Tensor]:
        assert x.dtype == torch.uint8
        assert x.shape[1] == 3
        return (x.float().mean((2, 3)),)


@pytest.fixture
def torch_fidelity(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The package in name, and the folder where its weights would be."""
    package, module = ModuleType("torch_fidelity"), ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    for name in ("torch_fidelity", "torchvision", "tqdm"):
        made = package if name == "torch_fidelity" else ModuleType(name)
        made.__spec__ = ModuleSpec(name, None)
        monkeypatch.setitem(sys.modules, name, made)
    module.FeatureExtractorInceptionV3 = Extractor  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", module)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def test_inception_says_what_is_missing_and_where_it_looked(
    stripes: Dataset, torch_fidelity: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=f"{torch_fidelity}/weights-inception-2015-12-05-6726825d.pth"):
        spaces.space("inception", stripes)
    with pytest.raises(InputError, match="is for images, and table holds tables"):
        spaces.space("inception", Dataset(torch.zeros(4, 2), name="table"))


@pytest.mark.parametrize(
    ("module", "package"), [("torch_fidelity", "torch-fidelity"), ("torchvision", "torchvision"), ("tqdm", "tqdm")]
)
def test_inception_is_ready_only_where_all_that_it_imports_is(
    stripes: Dataset, torch_fidelity: Path, monkeypatch: pytest.MonkeyPatch, module: str, package: str
) -> None:
    (torch_fidelity / "weights-inception-2015-12-05-6726825d.pth").write_bytes(b"")
    assert spaces.inception_problem(stripes) is None
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == module else find(name))
    with pytest.raises(InputError) as error:
        spaces.space("inception", stripes)
    assert str(error.value) == (
        "--features: got 'inception', expected pixels, pca or classifier "
        f"(inception needs the package {package}, which is not installed)"
    )


def test_inception_is_given_eight_bits_of_three_channels(stripes: Dataset, torch_fidelity: Path) -> None:
    (torch_fidelity / "weights-inception-2015-12-05-6726825d.pth").write_bytes(b"")
    space = spaces.space("inception", stripes)
    assert space.name == "inception-v3-2048"
    x = torch.full((130, 1, 16, 18), 0.5)
    x[0], x[1] = -3.0, 1.2
    h = space(x)
    assert (h.shape, h.dtype) == ((130, 3), np.float64)
    assert h[:3].tolist() == [[0.0] * 3, [255.0] * 3, [128.0] * 3]
