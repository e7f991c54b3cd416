"""The image files below a folder, each once whatever links lead to it, and a count of what is not read."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ansn.data.decode import SUFFIXES, USUAL
from ansn.data.foreign import folder_advice
from ansn.errors import InputError

# Files that go with images and are not meant to be read as one.
_BESIDE = frozenset(
    f".{s}"
    for s in (
        *("txt", "csv", "tsv", "json", "jsonl", "xml", "yaml", "yml", "md", "rst", "html", "pdf", "ini", "toml", "log"),
        *("py", "sh", "ipynb", "db", "mat", "tfw", "xmp", "sha256", "md5", "lock", "names", "data", "xlsx", "doc"),
    )
)
_MUCH = 0.1  # share of unread files beside the images from which on it is likely a mistake


@dataclass
class Listing:
    """What a walk found.

    paths: image files, sorted by name relative to the folder.
    real: the file that each path leads to.
    unread: number of other files by suffix; hidden: of hidden files and folders; links: of links to what is listed
        by another name.
    """

    paths: list[Path] = field(default_factory=list)
    real: list[str] = field(default_factory=list)
    unread: Counter[str] = field(default_factory=Counter)
    hidden: int = 0
    links: int = 0

    def __add__(self, other: Listing) -> Listing:
        return Listing(
            self.paths + other.paths,
            self.real + other.real,
            self.unread + other.unread,
            self.hidden + other.hidden,
            self.links + other.links,
        )

    def notes(self) -> list[str]:
        """One sentence on each kind of file that is left out."""
        said = [f"{_kinds(self.unread)} not read"] if self.unread else []
        counts = (self.hidden, "hidden files or folders not read"), (self.links, "duplicate links not read again")
        return said + [f"{count} {what}" for count, what in counts if count]

    def doubt(self) -> str | None:
        """A sentence where many files that may be images are not read."""
        odd = Counter({suffix: count for suffix, count in self.unread.items() if suffix not in _BESIDE})
        if odd.total() <= _MUCH * len(self.paths):
            return None
        return f"{len(self.paths)} images read, {_kinds(odd)} not: convert them, or move them away"


def _kinds(counts: Counter[str]) -> str:
    """ "20 files .heic, 3 files without a suffix", the most of them first."""
    most = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:5]
    said = [f"{count} files {suffix or 'without a suffix'}" for suffix, count in most]
    rest = counts.total() - sum(count for _, count in most)
    return ", ".join(said) + (f", {rest} files of other suffixes" if rest else "")


def list_images(folder: Path, skip: Sequence[str] = ()) -> Listing:
    """Image files below the folder but for its sub-folders named in ``skip``. InputError: it cannot be listed."""
    listing = Listing()
    files: list[tuple[str, str]] = []
    linked: list[tuple[str, str]] = []
    for path, real, is_link in _files(folder, listing, frozenset(skip)):
        if is_image(path):
            (linked if is_link else files).append((path, real))
        else:
            listing.unread[os.path.splitext(path)[1].lower()] += 1
    seen = {real for _, real in files}
    for path, real in sorted(linked):
        if real in seen:
            listing.links += 1
        else:
            seen.add(real)
            files.append((path, real))
    files.sort(key=lambda pair: pair[0].replace(os.sep, "/"))
    listing.paths = [Path(path) for path, _ in files]
    listing.real = [real for _, real in files]
    return listing


def holds_images(folder: Path) -> bool:
    return any(is_image(path) for path, _, _ in _files(folder, Listing(), frozenset()))


def is_image(path: str) -> bool:
    return os.path.splitext(path)[1].lower() in SUFFIXES


def require_images(listing: Listing, folder: Path) -> None:
    """InputError: there are none, with advice where the files are of a known format."""
    if listing.paths:
        return
    if error := folder_advice(folder):
        raise InputError(str(error))
    kinds = f" ({_kinds(listing.unread)})" if listing.unread else ""
    raise InputError(
        f"{folder}: got no images among its {listing.unread.total()} files{kinds}, "
        f"expected files ending in {', '.join(USUAL)}"
    )


def _files(folder: Path, listing: Listing, skip: frozenset[str]) -> Iterator[tuple[str, str, bool]]:
    """(path, real path, whether it is a link) of every visible file.

    Each real folder is entered once, by a link only after all others; what is above the folder never is.
    """
    above = {str(parent) for parent in Path(os.path.realpath(folder)).parents}
    seen: set[str] = set()
    waiting, linked = [str(folder)], list[str]()
    try:
        while waiting or linked:
            place = waiting.pop() if waiting else linked.pop(0)
            real = os.path.realpath(place)
            if real in seen or real in above:
                listing.links += 1
                continue
            seen.add(real)
            with os.scandir(place) as entries:
                for entry in sorted(entries, key=lambda e: e.name):
                    is_link = entry.is_symlink()
                    if entry.name.startswith("."):
                        listing.hidden += 1
                    elif os.path.isdir(entry.path) if is_link else entry.is_dir():
                        if entry.name not in skip or place != str(folder):
                            (linked if is_link else waiting).append(entry.path)
                    else:
                        target = os.path.realpath(entry.path) if is_link else os.path.join(real, entry.name)
                        yield entry.path, target, is_link
    except OSError as error:
        where = error.filename or folder
        raise InputError(f"{where}: got {error.strerror}, expected a folder that can be listed") from None
