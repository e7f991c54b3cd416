"""A folder of images: kept in memory as bytes where they fit, else decoded by workers ahead of use."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from ansn.data.dataset import Dataset
from ansn.data.decode import SUFFIXES, decode, probe
from ansn.data.files import cpu_count
from ansn.data.holdout import SPLITS, check_split, held_out
from ansn.errors import InputError
from ansn.machine import available_memory

_T = TypeVar("_T")
_SPLIT_NAMES = frozenset({"train", "test", "val", "valid", "validation"})
_MEMORY_SHARE = 0.25  # of what is available: the rest is the model's


class ImageFiles:
    """Rows that are image files: `ansn.data.dataset.StreamedRows`.

    Args:
        paths: one file a row.
        shape: (C, H, W) of every row.
        image_size: resize and centre crop to (H, W); None where every file has that size.
        num_workers: processes that decode ahead in `stream`; 0 decodes in the caller.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        shape: tuple[int, int, int],
        image_size: tuple[int, int] | None,
        num_workers: int,
    ) -> None:
        self.paths, self.image_size, self.num_workers = list(paths), image_size, num_workers
        self._shape = shape

    @property
    def shape(self) -> tuple[int, int, int]:
        return self._shape

    def __len__(self) -> int:
        return len(self.paths)

    def row(self, i: int) -> NDArray[np.uint8]:
        pixels = decode(self.paths[i], self._shape[0], self.image_size)
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
        return ImageFiles(chosen, self._shape, self.image_size, self.num_workers)

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
    test_fraction: float | None = None,
    image_size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    memory_limit: int | None = None,
    num_workers: int | None = None,
    dequantise: bool = False,
    flip: bool = False,
) -> Dataset:
    """Every image below the folder, ordered by relative name; the first sub-folder's name is the label.

    Hidden files and folders and files with other endings are skipped. A folder that holds nothing but train,
    test or validation sub-folders is split by them.

    image_size: side, or (H, W): resize and centre crop. Without it all images must have one size.
    channels: 1 or 3; by default 1 if every image is grey. With image_size too, no header is read before
        it is needed.
    memory_limit: bytes; images that decode to no more are kept in memory (default a quarter of what
        is available).
    num_workers: processes that decode when streaming (default the number of cores, at most 4).

    InputError: no images, an unreadable one, two sizes (naming a file of each), images both beside and in
    sub-folders, a bad option.
    """
    check_split(split)
    size = _checked_size(image_size)
    if channels not in (None, 1, 3):
        raise InputError(f"channels: got {channels}, expected 1 (grey) or 3 (RGB)")
    if num_workers is not None and num_workers < 0:
        raise InputError(f"num_workers: got {num_workers}, expected 0 or more")
    if memory_limit is not None and memory_limit < 0:
        raise InputError(f"memory_limit: got {memory_limit}, expected 0 or more bytes")
    split_folder = _own_split(folder, split)
    base = split_folder or folder
    paths = list_images(base)
    labels, classes = _labels(base, paths)
    if split_folder is None:
        index = held_out(len(paths), split, test_fraction, folder)
        paths = [paths[i] for i in index]
        labels = None if labels is None else labels[index]

    if size is not None and channels is not None:
        shape = (channels, *size)
    else:
        shape = _common_shape(paths, size, channels)
    workers = min(4, cpu_count()) if num_workers is None else num_workers
    files = ImageFiles(paths, shape, size, workers)
    limit = int(available_memory() * _MEMORY_SHARE) if memory_limit is None else memory_limit
    rows: Tensor | ImageFiles = files
    if len(files) * int(np.prod(shape, dtype=np.int64)) <= limit:
        rows = files.take(torch.arange(len(files)))
    return Dataset(
        rows,
        name=folder.name or str(folder),
        labels=None if labels is None else torch.from_numpy(labels),
        num_classes=None if classes is None else len(classes),
        classes=classes,
        dequantise=dequantise,
        flip=flip,
    )


def list_images(folder: Path) -> list[Path]:
    """Image files below the folder, hidden ones skipped, sorted by relative name. InputError if none."""
    found, others = [], 0
    try:
        for parent, folders, files in os.walk(folder, followlinks=True, onerror=_raise):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in files:
                if name.startswith("."):
                    continue
                if os.path.splitext(name)[1].lower() in SUFFIXES:
                    found.append(Path(parent, name))
                else:
                    others += 1
    except OSError as error:
        place = error.filename or folder
        raise InputError(f"{place}: got {error.strerror}, expected a folder that can be listed") from None
    if not found:
        endings = ", ".join(sorted(SUFFIXES))
        raise InputError(f"{folder}: got no images among its {others} files, expected files ending in {endings}")
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def _raise(error: OSError) -> None:
    raise error


def _own_split(folder: Path, split: str) -> Path | None:
    """The sub-folder of the split, where the folder's visible sub-folders are splits and nothing else."""
    below = {entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")}
    if not below or not below <= _SPLIT_NAMES or not below & set(SPLITS):
        return None
    if split not in below:
        raise InputError(f"{folder}: got folders {', '.join(sorted(below))}, expected {split!r} too for that split")
    return folder / split


def _labels(folder: Path, paths: list[Path]) -> tuple[NDArray[np.int64] | None, tuple[str, ...] | None]:
    owners = [parts[0] if len(parts := path.relative_to(folder).parts) > 1 else None for path in paths]
    named = {owner for owner in owners if owner is not None}
    if not named:
        return None, None
    if None in owners:
        loose = paths[owners.index(None)]
        inside = next(path for path, owner in zip(paths, owners, strict=True) if owner is not None)
        raise InputError(
            f"{folder}: got {loose.name} beside sub-folders and {inside.relative_to(folder)} in one, "
            "expected all images in sub-folders (their names are the classes) or none"
        )
    classes = tuple(sorted(named))
    number = {name: i for i, name in enumerate(classes)}
    return np.array([number[owner] for owner in owners if owner is not None], dtype=np.int64), classes


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
            raise InputError(
                f"{path}: got {_size(shape)} (H x W), expected {_size(usual)} "
                f"as of {like} and {sizes[usual] - 1} more; give image_size to resize and crop"
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
