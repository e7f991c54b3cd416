"""A folder of images: kept in memory as bytes where they fit, else decoded by workers ahead of use."""

from __future__ import annotations

import signal
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from ansn.data.dataset import Dataset
from ansn.data.decode import brightest, decode, deep, deep_colour, probe
from ansn.data.files import cpu_count
from ansn.data.holdout import AUTO, check_split, held_out, origin
from ansn.data.splits import Part, layout
from ansn.data.tree import Listing, list_images, require_images
from ansn.errors import InputError
from ansn.machine import available_memory

_T = TypeVar("_T")
_MEMORY_SHARE = 0.25  # of what is available: the rest is the model's
_RANGE_SAMPLE = 4096  # images that the range of greys is found from, at most


class ImageFiles:
    """Rows that are image files: `ansn.data.dataset.StreamedRows`.

    Args:
        paths: one file a row.
        shape: (C, H, W) of every row.
        image_size: resize and centre crop to (H, W); None where every file has that size.
        num_workers: processes that decode ahead in `stream`; 0 decodes in the caller.
        white, levels: see `ansn.data.decode.decode`.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        shape: tuple[int, int, int],
        image_size: tuple[int, int] | None,
        num_workers: int,
        white: int = 65535,
        levels: int = 256,
    ) -> None:
        self.paths, self.image_size, self.num_workers = list(paths), image_size, num_workers
        self.white, self.levels = white, levels
        self._shape = shape

    @property
    def shape(self) -> tuple[int, int, int]:
        return self._shape

    def __len__(self) -> int:
        return len(self.paths)

    def row(self, i: int) -> NDArray[np.uint8]:
        pixels = decode(self.paths[i], self._shape[0], self.image_size, self.white, self.levels)
        if pixels.shape != self._shape:  # changed since it was listed
            raise InputError(
                f"{self.paths[i]}: got size {_size(pixels.shape)}, expected {_size(self._shape)}, as when listed"
            )
        return pixels

    def take(self, index: Tensor) -> Tensor:
        rows = index.tolist()
        out = np.empty((len(rows), *self._shape), np.uint8)

        def fill(place: int) -> None:
            out[place] = self.row(rows[place])

        _in_threads(fill, range(len(rows)))
        return torch.from_numpy(out)

    def select(self, index: Tensor) -> ImageFiles:
        chosen = [self.paths[i] for i in index.tolist()]
        return ImageFiles(chosen, self._shape, self.image_size, self.num_workers, self.white, self.levels)

    def stream(self, batches: Iterator[Tensor], pin_memory: bool) -> Iterator[Tensor]:
        """uint8 [B, C, H, W] of each batch of indices, in order. InputError as `decode`, from workers too."""
        loader: DataLoader[Any] = DataLoader(
            _Decoder(self),  # type: ignore[arg-type]
            batch_size=None,
            sampler=_Once(batches),
            num_workers=self.num_workers,
            collate_fn=_unchanged,
            # its own generator: the default draws from torch's global one, and so would change a seeded run
            generator=torch.Generator(),
            worker_init_fn=_ignore_interrupt,
        )
        for item in loader:
            if isinstance(item, InputError):
                raise item
            batch = torch.from_numpy(item)
            yield batch.pin_memory() if pin_memory else batch


def load(
    folder: Path,
    *,
    split: str = "train",
    split_folders: Mapping[str, str] | None = None,
    test_fraction: float | Literal["auto"] | None = None,
    image_size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    memory_limit: int | None = None,
    num_workers: int | None = None,
    dequantise: bool = False,
    flip: bool = False,
) -> Dataset:
    """Every image below the folder, ordered by relative name; the first sub-folder's name is the label.

    Sub-folders named as splits (train and test in many spellings, `ansn.data.splits`) are the splits, else
    ``test_fraction`` of the rows. What is left out (folders beside the images, hidden files, files with other endings,
    links to what is listed already) is in the data set's notes, or in a UserWarning where it may be a mistake.

    Greys of more than 8 bits are scaled by the bits that the images of all splits use; images of 8 bits that use only
    values of 0 to m below 128 have m + 1 levels. Of over 4096 images these are found from 4096, evenly spaced; brighter
    pixels of others become white.

    split_folders: the folder of each split, such as {"train": "A", "test": "B"}, relative to ``folder``.
    image_size: side, or (H, W): resize and centre crop. Without it all images must have one size.
    channels: 1 or 3; by default 1 if every image is grey. With image_size too, the headers of formats with more than
        8 bits alone are read before they are needed.
    memory_limit: bytes; images that decode to no more are kept in memory (default a quarter of what
        is available).
    num_workers: processes that decode when streaming (default the number of cores, at most 4).

    InputError: no images, an unreadable one, two sizes (naming a file of each), images both beside and in
    sub-folders, two folders for one split, a bad option.
    """
    check_split(split)
    size = _checked_size(image_size)
    if channels not in (None, 1, 3):
        raise InputError(f"channels: got {channels}, expected 1 (grey) or 3 (RGB)")
    if num_workers is not None and num_workers < 0:
        raise InputError(f"num_workers: got {num_workers}, expected 0 or more")
    if memory_limit is not None and memory_limit < 0:
        raise InputError(f"memory_limit: got {memory_limit}, expected 0 or more bytes")
    found = layout(folder, split_folders)
    listings = {name: [list_images(part.folder, part.skip) for part in parts] for name, parts in found.parts.items()}
    owners = {
        name: [owner for part, files in zip(parts, listings[name], strict=True) for owner in _owners(part, files.paths)]
        for name, parts in found.parts.items()
    }
    listed = {name: sum(several, Listing()) for name, several in listings.items()}
    whole = sum(listed.values(), Listing())
    chosen = split if split in listed else next(iter(listed))  # one folder of rows, for held_out to divide
    if chosen != split and (chosen == "test" or (chosen == "train" and not test_fraction)):
        names = ", ".join(part.folder.name for parts in found.parts.values() for part in parts)
        raise InputError(f"{folder}: got folders {names}, expected {split!r} too for that split")
    require_images(listed[chosen], folder if chosen == "all" else found.parts[chosen][0].folder)
    paths, labelled = listed[chosen].paths, owners[chosen]
    classes = _classes(owners, chosen)
    if len(listed) == 1 and chosen != "test":
        index = held_out(len(paths), split, test_fraction, folder)
        found.notes += origin(len(paths), test_fraction)
        paths, labelled = [paths[i] for i in index], [labelled[i] for i in index]
    elif test_fraction not in (None, AUTO):
        found.notes.append(f"test_fraction {test_fraction} not used: the folder has splits")

    if size is not None and channels is not None:
        shape = (channels, *size)
    else:
        shape = _common_shape(whole.paths, size, channels)
    white, levels, range_notes, range_doubts = _grey_range(whole.paths)
    workers = min(4, cpu_count()) if num_workers is None else num_workers
    files = ImageFiles(paths, shape, size, workers, white, levels)
    limit = int(available_memory() * _MEMORY_SHARE) if memory_limit is None else memory_limit
    rows: Tensor | ImageFiles = files
    if len(files) * int(np.prod(shape, dtype=np.int64)) <= limit:
        rows = files.take(torch.arange(len(files)))
    doubts = (*found.doubts, *_doubts(listed, owners), *range_doubts)
    for doubt in doubts:
        warnings.warn(f"{folder}: {doubt}", UserWarning, stacklevel=2)
    number = {name: i for i, name in enumerate(classes or ())}
    return Dataset(
        rows,
        name=folder.name or str(folder),
        labels=None if classes is None else torch.tensor([number[str(owner)] for owner in labelled]),
        num_classes=None if classes is None else len(classes),
        classes=classes,
        notes=(*found.notes, *whole.notes(), *range_notes, *doubts),
        levels=levels,
        dequantise=dequantise,
        flip=flip,
    )


def _owners(part: Part, paths: list[Path]) -> list[str | None]:
    """The class of each image of a part: the part's, or the name of the first sub-folder, or None for all."""
    if part.label is not None:
        return [part.label] * len(paths)
    owners = [parts[0] if len(parts := path.relative_to(part.folder).parts) > 1 else None for path in paths]
    if None in owners and any(owners):
        loose = paths[owners.index(None)]
        inside = next(path for path, owner in zip(paths, owners, strict=True) if owner is not None)
        raise InputError(
            f"{part.folder}: got {loose.name} beside sub-folders and {inside.relative_to(part.folder)} in one, "
            "expected all images in sub-folders (their names are the classes) or none"
        )
    return owners


def _classes(owners: Mapping[str, list[str | None]], chosen: str) -> tuple[str, ...] | None:
    """The names of all splits' classes, so that one number means one class in each; None without labels."""
    if None in owners[chosen]:
        return None
    return tuple(sorted({owner for several in owners.values() for owner in several if owner is not None}))


def _doubts(listed: Mapping[str, Listing], owners: Mapping[str, list[str | None]]) -> Iterator[str]:
    """What may be a mistake about the files themselves: many not read, images or classes in one split and not both."""
    whole = sum(listed.values(), Listing())
    if doubt := whole.doubt():
        yield doubt
    if twice := len(whole.real) - len(set(whole.real)):
        yield f"{twice} images are in both splits"
    known, new = (set(owners.get(split, ())) - {None} for split in ("train", "test"))
    if known and new - known:
        yield f"no image of class {', '.join(sorted(map(str, new - known))[:5])} in the train split"


def _grey_range(paths: list[Path]) -> tuple[int, int, list[str], list[str]]:
    """(white, levels) of `decode`, notes and doubts, of images of all splits: the same whatever split is loaded."""
    count = min(len(paths), _RANGE_SAMPLE)
    sample = [paths[i * len(paths) // count] for i in range(count)]
    bits_of = _in_threads(lambda i: deep(sample[i]), range(count))
    of = f" (from {count} of {len(paths)} images; brighter pixels are white)" if count < len(paths) else ""
    notes = []
    # Half of 16 bits settles it, and half of 8 below; values of 32 bits may be anything.
    top = _peak([path for path, bits in zip(sample, bits_of, strict=True) if bits], 2 ** (max(bits_of) - 1))
    used = max(8, top.bit_length()) if any(bits_of) else 16
    if used != 16:
        kind = "16-bit" if top < 2**16 else "32-bit"
        notes.append(f"{kind} images of at most {top}: taken for {used} bits{of}")
    if used == 8 or not all(bits_of):
        top = max(top, _peak([path for path, bits in zip(sample, bits_of, strict=True) if not bits], 128))
    if not 0 < top < 128:
        return 2**used - 1, 256, notes, []
    notes = [f"images of at most {top}: taken for {top + 1} levels, 0 black and {top} white{of}"]
    doubts = []
    if any(_in_threads(lambda i: deep_colour(sample[i]), range(count))):
        doubts.append(f"colours of 16 bits, of which the upper 8 are read, are at most {top} of 255: convert to 8 bits")
    return 2**used - 1, top + 1, notes, doubts


def _peak(paths: list[Path], enough: int) -> int:
    """The largest value of the files, or one of ``enough`` and more: most often the first few settle it."""
    top, step = 0, 4 * cpu_count()
    for start in range(0, len(paths), step):
        some = paths[start : start + step]
        top = max(top, *_in_threads(lambda i: brightest(some[i]), range(len(some))))  # noqa: B023 - used at once
        if top >= enough:
            break
    return top


def _common_shape(paths: list[Path], size: tuple[int, int] | None, channels: int | None) -> tuple[int, int, int]:
    shapes = _in_threads(lambda i: probe(paths[i]), range(len(paths)))
    if channels is None:
        channels = max(shape[0] for shape in shapes)
    if size is not None:
        return (channels, *size)
    sizes = Counter(shape[1:] for shape in shapes)
    usual = max(sizes, key=lambda s: sizes[s])
    for path, shape in zip(paths, shapes, strict=True):
        if shape[1:] != usual:
            like = next(p for p, s in zip(paths, shapes, strict=True) if s[1:] == usual)
            more = f" and {sizes[usual] - 1} more" if sizes[usual] > 1 else ""
            raise InputError(
                f"{path}: got {_size(shape)} (H x W), expected {_size(usual)} as of {like}{more};"
                " give image_size (--image-size) to resize and crop"
            )
    return (channels, *usual)


def _checked_size(image_size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    if image_size is None:
        return None
    sides = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if len(sides) != 2 or min(sides) < 1:
        raise InputError(f"image_size: got {image_size}, expected a positive number of pixels, or two (H, W)")
    return sides[0], sides[1]


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[-2]}x{shape[-1]}"


def _in_threads(do: Callable[[int], _T], places: range) -> list[_T]:
    """[do(i) for i in places] on all cores (decoding releases the interpreter); the first error ends it."""
    threads = min(cpu_count(), len(places))
    if threads < 2:
        return [do(i) for i in places]
    step = max(1, min(64, len(places) // threads))
    pool = ThreadPoolExecutor(threads)
    try:
        chunks = pool.map(lambda start: [do(i) for i in places[start : start + step]], range(0, len(places), step))
        return [result for chunk in chunks for result in chunk]
    finally:
        pool.shutdown(cancel_futures=True)


class _Once:
    """A sampler from an iterator of batches."""

    def __init__(self, batches: Iterator[Tensor]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Tensor]:
        return self.batches


class _Decoder:
    """What a worker runs. Arrays travel through pipes: containers often have too little shared memory for
    tensors.

    An InputError is handed over as a value, since the loader would wrap a raised one in a traceback of many
    lines.
    """

    def __init__(self, files: ImageFiles) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: Tensor) -> NDArray[np.uint8] | InputError:
        try:
            return np.stack([self.files.row(i) for i in index.tolist()])
        except InputError as error:
            return error


def _unchanged(item: Any) -> Any:
    return item


def _ignore_interrupt(worker: int) -> None:
    """Ctrl-C reaches every process of the group; only the main one is to answer it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
