"""Splits, classes and extras of a folder of images, found by the names of its sub-folders."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ansn.data import Dataset
from ansn.data.folder import load
from ansn.data.splits import is_extra, split_folders, split_of
from ansn.errors import InputError

WORDS = {
    "train": ["train", "training", "trn"],
    "test": ["test", "testing", "tst", "holdout"],
    "val": ["val", "valid", "validation", "dev", "eval"],
}
FILLERS = ["set", "data", "images", "split", "dataset", "imgs", "photos"]
EXTRAS = ["annotations", "labels", "masks", "__MACOSX", "unlabeled", "train_labels", "test-masks", "Unlabelled", "gt"]
CLASSES = ["cat", "dog", "train_station", "testament", "valley", "device", "Trainer", "with_mask", "label_maker"]


@st.composite
def spelled(draw: st.DrawFn, split: str) -> str:
    """A split's word, alone or with fillers before or after it, apart or not, in any case, with numbers."""
    parts = [draw(st.sampled_from(WORDS[split]))]
    if draw(st.booleans()):
        parts.insert(draw(st.sampled_from([0, 1])), draw(st.sampled_from(FILLERS)))
    glued = len(parts) == 2 and parts[1] in FILLERS
    name = draw(st.sampled_from(["_", "-", " ", "."] + [""] * glued)).join(parts)
    name = draw(st.sampled_from([str.lower, str.upper, str.capitalize, str.title]))(name)
    return name + draw(st.sampled_from(["", "2017", "_1", "_64x64"]))


@given(st.data(), st.sampled_from(list(WORDS)))
def test_a_split_by_any_spelling(data: st.DataObject, split: str) -> None:
    name = data.draw(spelled(split))
    assert split_of(name) == (split, frozenset()), name
    assert not is_extra(name)


@pytest.mark.parametrize("name", [*CLASSES, "images", "2017", "", "grün", "vale", "contest", "strain", "latest"])
def test_other_names_are_no_splits(name: str) -> None:
    parsed = split_of(name)
    assert parsed is None or parsed[1], name
    assert not is_extra(name)


@pytest.mark.parametrize("name", EXTRAS)
def test_extras(name: str) -> None:
    assert is_extra(name)


@given(st.data(), st.lists(st.sampled_from(EXTRAS), unique=True, max_size=3), st.sampled_from(["test", "val"]))
def test_a_pair_of_splits_beside_anything(data: st.DataObject, extras: list[str], held_out: str) -> None:
    train, test = data.draw(spelled("train")), data.draw(spelled(held_out))
    others = data.draw(st.lists(st.sampled_from(["cat", "dog", "seg_pred"]), unique=True, max_size=2))
    names = data.draw(st.permutations([train, test, *extras, *others]))
    assert split_folders(names, Path()) == {"train": train, held_out: test}


@given(st.data(), st.sampled_from(["seg", "DIV2K", "left_img", "ILSVRC"]))
def test_a_pair_with_the_same_other_words(data: st.DataObject, word: str) -> None:
    pattern = data.draw(st.sampled_from(["{}_{}", "{}-{}", "{} {}"]))
    turn = data.draw(st.booleans())
    train, test = (pattern.format(*((word, s) if turn else (s, word))) for s in ("train", "test"))
    assert split_folders([train, test], Path()) == {"train": train, "test": test}
    assert split_folders([train, "cat"], Path()) == {}


@pytest.mark.parametrize(
    "names", [["trainA", "testA", "trainB", "testB"], ["train", "training", "test"], ["train_1", "train_2", "test"]]
)
def test_two_folders_for_one_split_are_refused(names: list[str]) -> None:
    with pytest.raises(InputError, match=r": got folders .*/, .*/, each of which may be the train split, expected one"):
        split_folders(names, Path("x"))


# --- whole folders


def grow(root: Path, files: Iterable[str]) -> Path:
    for file in files:
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        if file.endswith(".png"):
            Image.new("L", (4, 4), 200).save(path)
        else:
            path.write_text("text")
    return root


def of(place: str, classes: Iterable[str] = ("cat", "dog")) -> list[str]:
    return [f"{place}/{name}/{i}.png" for name in classes for i in range(2)]


def taken(root: Path, **options: object) -> tuple[Dataset, list[str]]:
    """The data set and the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        dataset = load(root, memory_limit=0, **options)  # type: ignore[arg-type]
    return dataset, [str(w.message) for w in caught]


def files(dataset: Dataset, root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in dataset.rows.paths}  # type: ignore[union-attr]


LAYOUTS: list[tuple[list[str], str, str, tuple[str, ...] | None, str]] = [
    # files, folder of the train split, of the test split, classes, part of a note
    ([*of("Train"), *of("Test")], "Train", "Test", ("cat", "dog"), "folder Train/, test split: folder Test/"),
    ([*of("train_set"), *of("test_set"), "annotations/a.xml"], "train_set", "test_set", ("cat", "dog"), "annotations/"),
    ([*of("train"), *of("test"), "__MACOSX/._1.png"], "train", "test", ("cat", "dog"), "no images in folder __MACOSX/"),
    ([*of("train"), *of("test"), *of("unlabeled")], "train", "test", ("cat", "dog"), "folder unlabeled/ left out"),
    ([*of("train"), *of("val")], "train", "val", ("cat", "dog"), "test split: folder val/ (as there is none for test)"),
    ([*of("train"), *of("val"), *of("test")], "train", "test", ("cat", "dog"), "folder val/ left out"),
    ([*of("trainval"), *of("val"), *of("test")], "trainval", "test", ("cat", "dog"), "folder val/ left out"),
    ([*of("images/train"), *of("images/test")], "images/train", "images/test", ("cat", "dog"), "images/ are read"),
    ([*of("seg_train/seg_train"), *of("seg_test/seg_test")], "seg_train/seg_train", "seg_test/seg_test",
     ("cat", "dog"), ""),
    (["images/train2017/1.png", "images/val2017/2.png", "labels/train2017/1.txt"], "images/train2017", "images/val2017",
     None, "no images in folder labels/"),
    ([*of("train", "ab"), *of("test", "b")], "train", "test", ("a", "b"), ""),
    (["train/1.png", "test/2.png", "train_masks/1.png", "test_masks/1.png"], "train", "test", None, "_masks/ left out"),
    (["train/1.png", "train/masks/1.png", "test/2.png", "test/masks/2.png"], "train", "test", None, "masks/ left out"),
]  # fmt: skip


@pytest.mark.parametrize(("names", "train", "test", "classes", "note"), LAYOUTS)
def test_layouts_with_splits(
    tmp_path: Path, names: list[str], train: str, test: str, classes: tuple[str, ...] | None, note: str
) -> None:
    grow(tmp_path, names)
    for split, place in (("train", train), ("test", test)):
        dataset, warned = taken(tmp_path, split=split)
        inside = {n for n in names if n.startswith(f"{place}/") and "masks" not in n}
        assert (files(dataset, tmp_path), dataset.classes) == (inside, classes)
        assert any(note in n for n in dataset.notes)
        assert not warned


def test_one_number_means_one_class_in_both_splits(tmp_path: Path) -> None:
    grow(tmp_path, [*of("train", "abc"), *of("test", "ca")])
    labels = [load(tmp_path, split=split).labels.tolist() for split in ("train", "test")]  # type: ignore[union-attr]
    assert labels == [[0, 0, 1, 1, 2, 2], [0, 0, 2, 2]]
    grow(tmp_path, of("test", "d"))
    dataset, warned = taken(tmp_path)
    assert dataset.classes == ("a", "b", "c", "d")
    assert "no image of class d in the train split" in warned[0]


@pytest.mark.parametrize(
    ("names", "inside", "classes", "note"),
    [
        (of("images"), "images/", ("cat", "dog"), "images/ are read"),
        (of("data/images"), "data/images/", ("cat", "dog"), "images/ are read"),
        (of("anything"), "anything/", ("cat", "dog"), "anything/ are read"),
        ([*of("images"), *of("masks")], "images/", ("cat", "dog"), "folder masks/ left out"),
        (["JPEGImages/1.png", "Annotations/1.xml", "masks/1.png"], "JPEGImages/", None, "folder masks/ left out"),
        (["1.png", "2.png", "masks/1.png"], "", None, "itself are read, folder masks/ left out"),
        (["cat/1.png"], "cat/", ("cat",), None),
        (["with_mask/1.png", "without_mask/1.png"], "", ("with_mask", "without_mask"), None),
        (["bus/1.png", "car/1.png", "train/1.png"], "", ("bus", "car", "train"), "folder train/ is taken for a class"),
    ],
)
def test_layouts_without_splits(
    tmp_path: Path, names: list[str], inside: str, classes: tuple[str, ...] | None, note: str | None
) -> None:
    dataset, warned = taken(grow(tmp_path, names))
    wanted = {n for n in names if n.startswith(inside) and n.endswith(".png") and (inside or "/1" not in n or classes)}
    assert (files(dataset, tmp_path), dataset.classes) == (wanted | ({"1.png"} & set(names)), classes)
    assert dataset.notes == () if note is None else any(note in n for n in dataset.notes)
    assert not warned


def test_splits_inside_of_classes(tmp_path: Path) -> None:
    grow(
        tmp_path,
        [*of("bottle/train", ["good"]), *of("bottle/test", ["good", "bad"]), *of("nut/Train"), *of("nut/Test")],
    )
    for split, counts in (("train", [2, 4]), ("test", [4, 4])):
        dataset, warned = taken(tmp_path, split=split)
        assert dataset.classes == ("bottle", "nut")
        assert dataset.labels.bincount().tolist() == counts  # type: ignore[union-attr]
        assert all(f"/{split}/" in name.lower() for name in files(dataset, tmp_path))
        assert not warned


@pytest.mark.parametrize(
    ("names", "doubt"),
    [
        ([*of("train"), *of("train", ["unlabeled"]), *of("test")], "folder unlabeled/ taken for a class"),
        ([*of("train"), *of("other")], "folder train/ taken for a class"),
        ([*of("train_a"), *of("test_b")], "folders test_b/, train_a/ taken for a class"),
        ([*of("train"), *of("test"), *of("other")], "folder other/ beside the split folders left out"),
        ([*of("photos_of_us", "abc"), "labels/1.png"], "folder labels/ left out"),
    ],
)
def test_what_is_doubtful_warns(tmp_path: Path, names: list[str], doubt: str) -> None:
    dataset, warned = taken(grow(tmp_path, names))
    assert len(warned) == 1
    assert doubt in warned[0]
    assert "\n" not in warned[0]
    assert any(doubt in note for note in dataset.notes)


def test_named_split_folders(tmp_path: Path) -> None:
    grow(tmp_path, [*of("A"), *of("B/images"), *of("train")])
    for split, place in (("train", "A/"), ("test", "B/images/")):
        dataset, warned = taken(tmp_path, split=split, split_folders={"train": "A", "test": "B"})
        assert all(name.startswith(place) for name in files(dataset, tmp_path))
        assert dataset.classes == ("cat", "dog")
        assert not warned
    dataset, _ = taken(tmp_path, split_folders={"train": "A"}, split="test", test_fraction=0.25)
    assert len(dataset) == 1
    for given_folders, line in (
        ({"train": "C"}, "split_folders: got C for train, expected a folder in"),
        ({"all": "A"}, "split_folders: got {'all': 'A'}, expected train=FOLDER"),
        ({}, r"split_folders: got {}, expected"),
    ):
        with pytest.raises(InputError, match=line):
            load(tmp_path, split_folders=given_folders)


def test_a_split_that_is_missing(tmp_path: Path) -> None:
    grow(tmp_path, of("Testing"))
    with pytest.raises(InputError, match=r"got folders Testing, expected 'train' too for that split"):
        load(tmp_path)
    grow(tmp_path, of("Training"))
    assert "test_fraction 0.5 not used" in " ".join(load(tmp_path, test_fraction=0.5).notes)
    assert not any("not used" in note for note in load(tmp_path, test_fraction="auto").notes)


POOL = [
    "train",
    "Test",
    "val",
    "training_set",
    "testing set",
    "images",
    "cat",
    "dog",
    "unlabeled",
    "masks",
    "seg_train",
    "seg_test",
]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(POOL), unique=True, min_size=1, max_size=4), st.booleans(), st.booleans())
def test_train_and_test_are_never_mixed_in_silence(tops: list[str], flat: bool, wrapped: bool) -> None:
    with TemporaryDirectory() as folder:
        root = Path(folder)
        base = root / "wrap" if wrapped else root
        grow(base, [f"{top}/{i}.png" if flat else f"{top}/{c}/{i}.png" for top in tops for c in "xy" for i in range(2)])
        parts: dict[str, set[str]] = {}
        for split in ("train", "test"):
            try:
                dataset, warned = taken(root, split=split)
            except InputError:
                continue
            parts[split] = files(dataset, root)
            odd = [name for name in dataset.classes or () if split_of(name) or is_extra(name)]
            assert not odd or warned or any(odd[0] in note for note in dataset.notes)
            kinds = {split_of(name)[0] for name in odd if split_of(name)}  # type: ignore[index]
            assert len(kinds) < 2 or warned
            left_out = {name.relative_to(root).parts[wrapped] for name in base.rglob("*.png")} - {
                name.split("/")[wrapped] for name in parts[split]
            }
            assert all(any(f"{name}/" in note for note in dataset.notes) for name in left_out)
        assert not parts.get("train", set()) & parts.get("test", set())


# --- links


def test_a_loop_of_links_lists_each_image_once(tmp_path: Path) -> None:
    grow(tmp_path / "d", of("x"))
    root = tmp_path / "d"
    before = files(taken(root)[0], root)
    (root / "x" / "cat" / "up").symlink_to(root, target_is_directory=True)
    (root / "x" / "again").symlink_to(root / "x" / "cat", target_is_directory=True)
    (root / "x" / "cat" / "above").symlink_to(tmp_path, target_is_directory=True)
    (root / "x" / "dog" / "twice.png").symlink_to(root / "x" / "cat" / "0.png")
    dataset, warned = taken(root)
    assert files(dataset, root) == before
    assert "4 duplicate links not read again" in dataset.notes
    assert not warned


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["a", "b", "c", "."])), max_size=6))
def test_links_of_any_kind_add_nothing(links: list[tuple[str, str]]) -> None:
    with TemporaryDirectory() as folder:
        root = grow(Path(folder), [f"{c}/{i}.png" for c in "abc" for i in range(2)])
        before = files(taken(root)[0], root)
        for i, (place, target) in enumerate(links):
            os.symlink(root / target, root / place / f"link{i}", target_is_directory=True)
        dataset, _ = taken(root)
        assert files(dataset, root) == before
        assert dataset.labels.tolist() == [0, 0, 1, 1, 2, 2]  # type: ignore[union-attr]


def test_links_to_files_elsewhere_are_read_once(tmp_path: Path) -> None:
    grow(tmp_path / "pool", ["1.png", "2.png"])
    for place in ("cat/a", "cat/b", "dog/c"):
        (tmp_path / "d" / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "d" / f"{place}.png").symlink_to(tmp_path / "pool" / ("2.png" if place == "dog/c" else "1.png"))
    dataset, _ = taken(tmp_path / "d")
    assert files(dataset, tmp_path / "d") == {"cat/a.png", "dog/c.png"}
    assert "1 duplicate links not read again" in dataset.notes


def test_an_image_in_both_splits_by_a_link_warns(tmp_path: Path) -> None:
    grow(tmp_path, [*of("train"), *of("test")])
    (tmp_path / "test" / "cat" / "x.png").symlink_to(tmp_path / "train" / "cat" / "0.png")
    _, warned = taken(tmp_path)
    assert "1 images are in both splits" in warned[0]
