"""Which sub-folders of a folder of images are its splits, which its classes, and which neither, by their names."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ansn.data.holdout import SPLITS
from ansn.data.tree import holds_images, is_image
from ansn.errors import InputError

_FILLERS = "sets?|split|data(?:sets?)?|imgs?|images?|pics?|pictures?|photos?|jpe?gs?|png|folder|files?|full|all|x"
_SPLIT = re.compile(
    r"(?:(?P<both>trainval)|(?P<train>train(?:ing)?|trn)|(?P<test>test(?:ing)?|tst|holdout|heldout)"
    rf"|(?P<val>val(?:id(?:ation|ate)?)?|dev(?:el(?:opment)?)?|eval(?:uation)?))(?:{_FILLERS})?"
)
_FILLER = re.compile(_FILLERS)
_EXTRA = re.compile(
    "annotations?|labels?|masks?|segmentations?|gt|groundtruths?|ground|truth|bbox(?:es)?|macosx|unlabell?ed|unsup"
    "|thumb(?:nail)?s?|meta(?:data)?|pred(?:ict(?:ion)?s?)?|trimaps?|xmls?|pycache"
)
_WRAPPERS = re.compile(rf"(?:{_FILLERS}|raw|main|jpegimages)+")


class Part(NamedTuple):
    """A folder of images of class ``label``; where that is None, its sub-folders but ``skip`` are the classes."""

    folder: Path
    label: str | None = None
    skip: tuple[str, ...] = ()


@dataclass
class Layout:
    """How a folder is laid out.

    parts: the folders of each split ("train", "test", or "all" where there are none).
    notes, doubts: sentences on what was understood, and on what may be a mistake.
    """

    parts: dict[str, list[Part]]
    notes: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)


def layout(folder: Path, given: Mapping[str, str] | None = None) -> Layout:
    """The layout of a folder, by its names and by what its sub-folders hold.

    given: the sub-folder of each split, in place of a guess. InputError: more than one sub-folder may be a split, or
    those given are none.
    """
    if given is not None:
        return _as_given(folder, given)
    found = Layout({})
    base, full = _entered(folder, found, splits=True)
    splits = split_folders(full, base)
    if splits:
        return _by_splits(base, splits, full, found)
    found.parts = _splits_in_classes(base, full)
    if found.parts:
        found.notes.append("the splits are the folders of each class")
    else:
        found.parts = {"all": [_classes(base, full, found)]}
    return found


def split_of(name: str) -> tuple[str, frozenset[str]] | None:
    """("train", "test" or "val", the other words) of a folder's name, or None: train_set, Testing, images-val2017."""
    which, rest = set(), set()
    for word in _words(name):
        match = _SPLIT.fullmatch(word)
        if match:
            which.add(match.lastgroup)
        elif not _FILLER.fullmatch(word):
            rest.add(word)
    if which & {"both"} or which == {"train", "val"}:
        which = {"train"}
    return (str(which.pop()), frozenset(rest)) if len(which) == 1 else None


def is_extra(name: str) -> bool:
    """Whether every word of the name says that it holds no rows: masks, train_labels, __MACOSX, unlabeled."""
    words = [word for word in _words(name) if not _SPLIT.fullmatch(word) and not _FILLER.fullmatch(word)]
    return bool(words) and all(_EXTRA.fullmatch(word) for word in words)


def split_folders(names: list[str], folder: Path) -> dict[str, str]:
    """The folder of each split among these names, {} where they are no splits.

    The names of one group differ by the word of the split alone. A train and a held-out folder make splits, or one of
    them with nothing but extras beside. InputError: two folders for one split.
    """
    groups: dict[frozenset[str], dict[str, list[str]]] = {}
    for name in names:
        parsed = split_of(name)
        if parsed and not is_extra(name):
            groups.setdefault(parsed[1], {}).setdefault(parsed[0], []).append(name)
    whole = [group for group in groups.values() if "train" in group and len(group) > 1]
    if not whole:
        rows = [name for name in names if not is_extra(name)]
        alone = groups.get(frozenset(), {})
        whole = [alone] if alone and sum(map(len, alone.values())) == len(rows) else []
    if not whole:
        return {}
    wanted = ("train", "test" if "test" in whole[0] else "val")
    for split in wanted:
        several = sorted(name for group in whole for name in group.get(split, []))
        if len(several) > 1:
            raise InputError(
                f"{folder}: got {_listed(several)}, each of which may be the {split} split, expected one of them; "
                "name the folders by split_folders (--split-folders train=A test=B)"
            )
    return {split: found[0] for split, found in whole[0].items()}


def _words(name: str) -> list[str]:
    name = re.sub(r"\d+x\d+(?:px)?", " ", name)
    return [word.lower() for word in re.findall(r"[^\W\d_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name))]


def _look(folder: Path) -> tuple[list[str], list[str], bool]:
    """(sub-folders that hold images, those that hold none, whether the folder itself holds some), hidden ones aside."""
    try:
        with os.scandir(folder) as entries:
            inside = sorted((e.name, os.path.isdir(e) if e.is_symlink() else e.is_dir()) for e in entries)
    except OSError as error:
        raise InputError(f"{folder}: got {error.strerror}, expected a folder that can be listed") from None
    inside = [(name, is_folder) for name, is_folder in inside if not name.startswith(".")]
    below = [name for name, is_folder in inside if is_folder]
    full = [name for name in below if holds_images(folder / name)]
    loose = any(is_image(name) for name, is_folder in inside if not is_folder)
    return full, [name for name in below if name not in full], loose


def _by_splits(base: Path, splits: dict[str, str], full: list[str], found: Layout) -> Layout:
    held_out = "test" if "test" in splits else "val"
    used = {split: splits[name] for split, name in (("train", "train"), ("test", held_out)) if name in splits}
    as_test = " (as there is none for test)" if held_out in splits and held_out == "val" else ""
    found.notes.append(", ".join(f"{split} split: folder {name}/" for split, name in used.items()) + as_test)
    others = [name for name in full if name not in used.values()]
    if odd := [name for name in others if not is_extra(name) and split_of(name) is None]:
        found.doubts.append(f"{_listed(odd)} beside the split folders left out, though with images inside")
    if others := [name for name in others if name not in odd]:
        found.notes.append(f"{_listed(others)} left out")
    if _look(base)[2]:
        found.notes.append("images beside the split folders left out")
    for split, name in used.items():
        found.parts[split] = [_classes(*_entered(base / name, found), found)]
    return found


def _entered(base: Path, found: Layout, splits: bool = False) -> tuple[Path, list[str]]:
    """The folder inside all that do nothing but wrap, and its sub-folders with images. ``splits``: look for those
    first."""
    seen = set[str]()
    while True:
        full, empty, loose = _look(base)
        if empty:
            found.notes.append(f"no images in {_listed(empty)}")
        inner = None if loose or (splits and split_folders(full, base)) else _wrapping(base, full)
        if inner is None or (real := os.path.realpath(base / inner)) in seen:
            return base, full
        seen.add(real)
        others = [name for name in full if name != inner]
        said = f"images of {base.name}/{inner}/ are read" + (f", {_listed(others)} left out" if others else "")
        (found.doubts if others and not _wrapper(inner) else found.notes).append(said)
        base = base / inner


def _classes(base: Path, full: list[str], found: Layout) -> Part:
    """The part whose classes are these sub-folders; beside images of the folder itself, extras are left out."""
    odd = [name for name in full if is_extra(name) or split_of(name)]
    if full and all(map(is_extra, full)) and _look(base)[2]:
        found.notes.append(f"images of {base.name}/ itself are read, {_listed(full)} left out")
        return Part(base, skip=tuple(full))
    if len(odd) == 1 and len(full) != 2 and not is_extra(odd[0]):
        found.notes.append(f"folder {odd[0]}/ is taken for a class")
    elif odd:
        found.doubts.append(
            f"{_listed(odd)} taken for a class each; if not, move them away, or name the folders by split_folders"
        )
    return Part(base)


def _wrapping(base: Path, full: list[str]) -> str | None:
    """The one sub-folder that is no class but holds all of the images, or all of the classes."""
    rows = [name for name in full if not is_extra(name)] or full
    if len(rows) == 1 and (is_extra(rows[0]) or _wrapper(rows[0]) or rows[0] == base.name or _look(base / rows[0])[0]):
        return rows[0]
    return None


def _wrapper(name: str) -> bool:
    return _WRAPPERS.fullmatch("".join(_words(name))) is not None


def _splits_in_classes(base: Path, classes: list[str]) -> dict[str, list[Part]]:
    """The parts where every class has the splits inside, {} otherwise."""
    parts: dict[str, list[Part]] = {"train": [], "test": []}
    for name in classes:
        full, _, loose = _look(base / name)
        splits = {} if loose else split_folders(full, base / name)
        if "train" not in splits or len(splits) < 2:
            return {}
        for split, inner in (("train", splits["train"]), ("test", splits.get("test") or splits["val"])):
            parts[split].append(Part(base / name / inner, name))
    return parts if classes else {}


def _as_given(folder: Path, given: Mapping[str, str]) -> Layout:
    if not given or not set(given) <= set(SPLITS):
        raise InputError(f"split_folders: got {dict(given)}, expected train=FOLDER, test=FOLDER or both")
    found = Layout({})
    for split, name in given.items():
        if not (folder / name).is_dir():
            raise InputError(f"split_folders: got {name} for {split}, expected a folder in {folder}")
        found.parts[split] = [_classes(*_entered(folder / name, found), found)]
    found.notes.append(", ".join(f"{split} split: folder {name}" for split, name in given.items()))
    return found


def _listed(names: list[str]) -> str:
    few = [f"{name}/" for name in names[:5]]
    more = [f"{len(names) - 5} more"] if len(names) > 5 else []
    return ("folder " if len(names) == 1 else "folders ") + ", ".join(few + more)
