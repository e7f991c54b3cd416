"""One array of a scientific file: HDF5 and netCDF-4 (through h5py), classic netCDF and MATLAB (through scipy).

A long series is cut into windows here too.
"""

from __future__ import annotations

import io
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from ansn.data.files import SUFFIXES, opened, read_up_to, require_memory
from ansn.data.holdout import check_split
from ansn.errors import InputError
from ansn.machine import available_memory

_HDF5 = b"\x89HDF\r\n\x1a\n"
_MATLAB_HDF5 = b"MATLAB 7"  # HDF5 after 512 bytes of text
_MAGIC = (_HDF5, _MATLAB_HDF5, b"MATLAB 5", b"CDF\x01", b"CDF\x02", b"CDF\x05")
_ENDINGS = (".h5", ".hdf5", ".he5", ".nc", ".nc4", ".mat")
_START = 8
_MOST_NAMED = 10
_ATTRIBUTES = ("units", "bounds", "_Unsigned", "_FillValue", "missing_value", "scale_factor", "add_offset")
# What netCDF's libraries put where nothing was written, where the file names no other value.
_UNWRITTEN = {"f4": 9.969209968386869e36, "f8": 9.969209968386869e36, "i2": -32767, "i4": -2147483647}
_MATLAB_ELEMENTS = {1, 2, 3, 4, 5, 6, 7, 9, 12, 13, 14, 15, 16, 17, 18}
_MATLAB_BYTES = {
    "double": 8, "single": 4, "logical": 1,
    "int8": 1, "uint8": 1, "int16": 2, "uint16": 2, "int32": 4, "uint32": 4, "int64": 8, "uint64": 8,
}  # fmt: skip


@dataclass(frozen=True)
class _Array:
    shape: tuple[int, ...]
    itemsize: int
    load: Callable[[], NDArray[Any]]
    other: str = ""
    """What it is, where it is no array of numbers."""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    axes: Sequence[str] = ()
    unwritten: bool = False
    """Whether netCDF's value for what was never written may be in it."""


def is_scientific(path: Path, start: bytes) -> bool:
    """Whether :func:`read` reads the file, by its first 8 bytes (decompressed) or else its ending."""
    return start.startswith(_MAGIC) or _ending(path) in _ENDINGS


def split_variable(name: str) -> tuple[str, str | None]:
    """``PATH:VARIABLE`` as (PATH, VARIABLE), anything else as (name, None).

    A path that exists is a path, whatever colons it has (or the drive of Windows). Else the part before a colon must
    be a file, or end as a scientific one does.
    """
    if os.path.exists(name) or name.startswith("toy2d:"):
        return name, None
    colons = [i for i, letter in enumerate(name) if letter == ":"]
    for is_path in (lambda path: path.is_file(), lambda path: _ending(path) in _ENDINGS):
        for i in reversed(colons):
            if is_path(Path(name[:i])):
                return name[:i], name[i + 1 :]
    return name, None


def read(path: Path, variable: str | None = None) -> tuple[NDArray[Any], list[str]]:
    """The array of that name ("group/name" in HDF5), and notes on what it is.

    Without a name, the only array of numbers with two axes or more, or else the only one with one. The values are in
    native byte order, in any order in memory. As their attributes say: values = stored * scale_factor + add_offset in
    float64, and those equal to _FillValue or missing_value are NaN. MATLAB's axes are in MATLAB's order.

    InputError, one line: no such array, several without a name (with their shapes), no numbers, values in other
    files (links are not followed), more than memory holds, a damaged file, h5py missing.
    """
    with opened(path) as stream:
        start = stream.read(_START)
        if not isinstance(stream, io.BufferedReader):  # decompressed as it is read: too slow to go to and fro
            stream = io.BytesIO(start + read_up_to(stream, available_memory()))
        try:
            with _opener(path, start)(stream, path, variable) as arrays:
                name = variable.strip("/") if variable is not None else _only(arrays, path)
                if name not in arrays:
                    raise InputError(f"{path}: got no array {variable!r}, expected one of {_listed(arrays)}")
                array = arrays[name]
                if array.other:
                    raise InputError(f"{path}: got {name}, which is {array.other}, expected an array of numbers")
                require_memory(math.prod(array.shape) * array.itemsize, path)
                raw = array.load()
        except InputError:
            raise
        except Exception as error:  # a damaged file fails in as many ways as it has bytes
            raise InputError(f"{path}: got a file that cannot be read ({error}), expected a whole one") from None
    if raw.dtype.kind not in "buif":
        raise InputError(f"{path}: got {name} of type {raw.dtype}, expected an array of numbers")
    raw = raw.astype(np.float64 if raw.dtype.itemsize > 8 else raw.dtype.newbyteorder("="), copy=False)
    require_memory(raw.size * 8 if "scale_factor" in array.attributes or "add_offset" in array.attributes else 0, path)
    values, changes = _decoded(raw, array)
    units = _text(array.attributes.get("units"))
    axes = f" ({', '.join(array.axes)})" if any(array.axes) else ""
    notes = [f"{name}{f' [{units}]' if units else ''}{axes}: {', '.join([_by(values.shape), *changes])}"]
    others = {key: one for key, one in arrays.items() if key != name and not one.other}
    return values, notes + ([f"not read of this file: {_listed(others)}"] if others else [])


def _opener(path: Path, start: bytes) -> Callable[..., Any]:
    if start.startswith(b"CDF"):
        return _netcdf
    if start.startswith((_HDF5, _MATLAB_HDF5)):
        return _hdf5
    if start.startswith(b"MATLAB") or _ending(path) == ".mat":  # its version 4 starts with no name
        return _matlab
    return _hdf5


@contextmanager
def _hdf5(stream: IO[bytes], path: Path, variable: str | None) -> Iterator[dict[str, _Array]]:
    try:
        import h5py
    except ImportError:
        raise InputError(f"{path}: got HDF5 without h5py, expected it installed: pip install h5py") from None

    with h5py.File(stream if isinstance(stream, io.BytesIO) else path, "r", locking=False) as file:
        netcdf = "_NCProperties" in file.attrs or _ending(path) in (".nc", ".nc4")

        def described(item: Any) -> _Array:
            dtype, matlab = item.dtype, _text(item.attrs.get("MATLAB_class"))
            other = ""
            if item.external or item.is_virtual:
                other = "kept in other files"
            elif item.shape is None or "MATLAB_empty" in item.attrs:
                other = "empty"
            elif dtype.kind not in "buif" or matlab in ("char", "cell", "struct"):
                other = matlab or ("records" if dtype.names else str(dtype))
            shape = item.shape or ()
            return _Array(
                shape[::-1] if matlab else shape,  # MATLAB's first axis is the fastest: it writes the axes reversed
                dtype.itemsize,
                lambda: np.asarray(item[()]).T if matlab else np.asarray(item[()]),
                other,
                {key: item.attrs[key] for key in _ATTRIBUTES if key in item.attrs},
                [axis[0].name.rpartition("/")[2] if len(axis) else axis.label for axis in item.dims],
                netcdf,
            )

        found: dict[str, _Array] = {}

        def visit(name: str, item: Any) -> None:  # comes along hard links only: no other file is opened
            bare = _text(item.attrs.get("NAME")).startswith("This is a netCDF dimension but not")
            if isinstance(item, h5py.Dataset) and not name.startswith("#") and not bare:
                found[name] = described(item)

        file.visititems(visit)
        if variable is not None and variable.strip("/") not in found:
            item: Any = file  # perhaps a second name of an array
            for part in variable.strip("/").split("/"):
                link = item.get(part, getlink=True) if isinstance(item, h5py.Group) else None
                if isinstance(link, h5py.SoftLink | h5py.ExternalLink):
                    raise InputError(f"{path}: got a link from {variable} to {link.path}, expected the array's place")
                item = item[part] if link is not None else None
            if isinstance(item, h5py.Dataset):
                found[variable.strip("/")] = described(item)
        yield found


@contextmanager
def _netcdf(stream: IO[bytes], path: Path, variable: str | None) -> Iterator[dict[str, _Array]]:
    from scipy.io import netcdf_file

    require_memory(stream.seek(0, io.SEEK_END), path)  # every variable is read
    stream.seek(3)
    version = stream.read(1)[0]
    stream.seek(0)
    if version == 5:
        raise InputError(f"{path}: got netCDF of 64-bit data, expected another: nccopy -k nc4 {path.name} NEW.nc")
    with netcdf_file(stream, "r", mmap=False) as file:
        yield {
            name: _Array(
                tuple(v.shape),
                v.data.dtype.itemsize,
                lambda v=v: v.data,  # type: ignore[misc]
                "" if v.data.dtype.kind in "buif" else "text",
                v._attributes,
                v.dimensions,
                True,
            )
            for name, v in file.variables.items()
        }


@contextmanager
def _matlab(stream: IO[bytes], path: Path, variable: str | None) -> Iterator[dict[str, _Array]]:
    from scipy.io import loadmat, whosmat

    def load(name: str) -> NDArray[Any]:
        stream.seek(0)
        with warnings.catch_warnings():
            warnings.simplefilter("error", np.exceptions.ComplexWarning)
            try:  # in the types that MATLAB has them in: it stores doubles that are whole as bytes
                values: NDArray[Any] = loadmat(stream, appendmat=False, variable_names=[name], mat_dtype=True)[name]
            except np.exceptions.ComplexWarning:
                raise InputError(f"{path}: got {name}, which is complex, expected an array of numbers") from None
        if not isinstance(values, np.ndarray):
            raise InputError(f"{path}: got {name}, which is sparse, expected an array of numbers: full({name})")
        return values

    _check_elements(stream)
    yield {
        name: _Array(
            tuple(map(int, shape)),
            _MATLAB_BYTES.get(kind, 8),
            lambda name=name: load(name),  # type: ignore[misc]
            "" if kind in _MATLAB_BYTES else kind,
        )
        for name, shape, kind in whosmat(stream, appendmat=False)
        if not name.startswith("__")  # what its functions need
    }


def _check_elements(stream: IO[bytes]) -> None:
    """ValueError for a type of element that no MATLAB file has: scipy trusts it, and the process would end."""
    stream.seek(0)
    head = stream.read(128)
    order = {b"IM": "little", b"MI": "big"}.get(head[126:])
    place = 128
    end = stream.seek(0, io.SEEK_END) if head.startswith(b"MATLAB 5") and order is not None else 0
    while place + 8 <= end:
        stream.seek(place)
        tag = stream.read(8)
        kind, size = (int.from_bytes(part, order) for part in (tag[:4], tag[4:]))  # type: ignore[arg-type]
        small = kind >> 16  # the data is in the tag
        if (kind & 0xFFFF if small else kind) not in _MATLAB_ELEMENTS:
            raise ValueError(f"element: got type {kind}, expected one of MATLAB's")
        # Into a matrix, over all else; data of 8 bytes a step, but where it is compressed.
        place += 8 + (0 if small or kind == 14 else size if kind == 15 else -(-size // 8) * 8)


def _only(arrays: dict[str, _Array], path: Path) -> str:
    """The only array of two axes or more, else the only one of one; cells' bounds are no data."""
    bounds = {_text(array.attributes.get("bounds")) for array in arrays.values()}
    numbers = {name: array for name, array in arrays.items() if not array.other and name not in bounds}
    for least in (2, 1):
        some = [name for name, array in numbers.items() if sum(n > 1 for n in array.shape) >= least]
        if len(some) == 1:
            return some[0]
        if some:
            named = _listed({name: numbers[name] for name in some})
            raise InputError(f"{path}: got {len(some)} arrays, expected {path.name}:VARIABLE with one of {named}")
    raise InputError(f"{path}: got no array of numbers, expected one")


def _decoded(raw: NDArray[Any], array: _Array) -> tuple[NDArray[Any], list[str]]:
    """The values that netCDF's conventions mean, and what was done to the stored ones."""
    attributes, said = array.attributes, []
    unsigned = _text(attributes.get("_Unsigned")).lower() == "true" and raw.dtype.kind == "i"
    if unsigned:
        raw = raw.view(f"u{raw.dtype.itemsize}")
    fills = [f for key in ("_FillValue", "missing_value") for f in np.ravel(attributes.get(key, []))]
    if not fills and array.unwritten and raw.dtype.str[1:] in _UNWRITTEN:
        fills = [np.float64(_UNWRITTEN[raw.dtype.str[1:]])]
    missing = np.zeros(raw.shape, bool)
    for fill in fills:
        if fill.dtype.kind not in "buif":
            continue
        with np.errstate(all="ignore"):
            stored = fill.astype(raw.dtype)
        if raw.dtype.kind == "f" or unsigned or stored == fill:
            missing |= raw == stored
    count = int(missing.sum())
    scale, offset = (float(np.ravel(attributes.get(k, v))[0]) for k, v in (("scale_factor", 1), ("add_offset", 0)))
    packed = (scale, offset) != (1, 0)
    values = raw.astype(np.float64) if packed or (count and raw.dtype.kind != "f") else raw
    if packed:
        values *= scale
        values += offset
        said.append(f"unpacked as {scale:g} * stored + {offset:g}")
    if count:
        values = values if values.flags.writeable else values.copy()
        values[missing] = np.nan
        said.append(f"{count:,} fill values are missing")
    return values, said


def _listed(arrays: Mapping[str, _Array]) -> str:
    named = [f"{name} {_by(array.shape)}" for name, array in arrays.items() if not array.other]
    more = [f"{len(named) - _MOST_NAMED:,} more"] if len(named) > _MOST_NAMED else []
    return ", ".join(named[:_MOST_NAMED] + more) or "none"


def _text(value: Any) -> str:
    """An attribute that should be text; "" for none, and for numbers."""
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.item()
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value if isinstance(value, str) else ""


def _ending(path: Path) -> str:
    return Path(path.stem if path.suffix in SUFFIXES[1:] else path.name).suffix.lower()


def _by(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape)) or "one number"


def window_starts(
    length: int, window: int, stride: int | None = None, *, split: str = "train", fraction: float = 0.0
) -> NDArray[np.int64]:
    """Where the windows of the split start in a series of so many positions, int64, ascending.

    The test part is the last stretch of the series, ``fraction`` of it or one window if that is longer: no window of
    train reaches into one of test. stride None: half a window. InputError: a window that the series (or the split's
    part of it) has no room for, a fraction outside [0, 1), a test split without a fraction.
    """
    check_split(split)
    step = max(1, window // 2) if stride is None else stride
    for name, value in (("window", window), ("stride", step)):
        if value < 1:
            raise InputError(f"{name}: got {value}, expected at least 1")
    if not 0 <= fraction < 1 or (split == "test" and not fraction):
        raise InputError(f"test_fraction: got {fraction} of a series of {length}, expected one between 0 and 1")
    cut = length - max(window, round(length * fraction)) if fraction else length
    if cut < window:
        room = "two windows, one of them for test" if fraction else "one window"
        raise InputError(f"window: got {window} for a series of {length}, expected one that leaves room for {room}")
    return np.arange(0, cut - window + 1, step) if split == "train" else np.arange(cut, length - window + 1, step)


def windows(series: NDArray[Any], window: int, starts: NDArray[np.int64]) -> NDArray[Any]:
    """[N, C, window] of a series [T] or [T, C], one at each start, in the series' type."""
    if series.ndim not in (1, 2):
        raise InputError(f"window: got an array of shape {_by(series.shape)}, expected one series, [T] or [T, C]")
    rows = np.lib.stride_tricks.sliding_window_view(series.reshape(len(series), -1), window, axis=0)
    picked: NDArray[Any] = rows[starts]
    return picked
