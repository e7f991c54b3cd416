"""Formats that are recognised but not read: what each is, and the way from it to a file that is."""

from __future__ import annotations

import os
import re
import zipfile
from pathlib import Path

from ansn.data.files import opened
from ansn.errors import InputError

_HEAD = 512  # bytes that settle every format below
_FOLDER_FILES = 2000  # files of a folder that are looked at

_FEATHER = (
    "a .parquet: import pyarrow.feather, pyarrow.parquet; "
    "pyarrow.parquet.write_table(pyarrow.feather.read_table('{name}'), '{stem}.parquet')"
)

# What it is, and the way. {name}: the file's name; {stem}: without its endings.
_STARTS: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"version https://git-lfs", "a pointer of Git LFS and not the file", "the file: git lfs pull"),
    (0, b"<!DOCTYPE html", "a web page", "the file that it links to: download it again"),
    (0, b"<html", "a web page", "the file that it links to: download it again"),
    (257, b"ustar", "a .tar archive", "it unpacked: tar -xf {name}, then give what comes out"),
    (0, b"7z\xbc\xaf\x27\x1c", "a .7z archive", "it unpacked: 7z x {name}, then give what comes out"),
    (0, b"Rar!", "a .rar archive", "it unpacked: unrar x {name}, then give what comes out"),
    (0, b"BZh", "a file compressed by bzip2", "it plain, or by gzip or xz: bunzip2 {name}"),
    (0, b"\x28\xb5\x2f\xfd", "a file compressed by zstd", "it plain, or by gzip or xz: zstd -d {name}"),
    (
        0,
        b"SQLite format 3",
        "an SQLite database",
        "a .csv: import pandas, sqlite3; "
        "pandas.read_sql('SELECT * FROM TABLE', sqlite3.connect('{name}')).to_csv('{stem}.csv', index=False)",
    ),
    (0, b"\xd0\xcf\x11\xe0", "an old .xls workbook", "an .xlsx or .csv: open it in a spreadsheet and save it as one"),
    (0, b"$FL2", "an SPSS file", "a .csv: import pandas; pandas.read_spss('{name}').to_csv('{stem}.csv', index=False)"),
    (
        0,
        b"ORC",
        "an ORC file",
        "a .parquet: import pyarrow.orc, pyarrow.parquet; "
        "pyarrow.parquet.write_table(pyarrow.orc.read_table('{name}'), '{stem}.parquet')",
    ),
    (0, b"ARROW1", "an Arrow (Feather) file", _FEATHER),
    (0, b"FEA1", "a Feather file", _FEATHER),
    (
        0,
        b"\xff\xff\xff\xff",
        "an Arrow stream",
        "a .parquet: import pyarrow.ipc, pyarrow.parquet; "
        "pyarrow.parquet.write_table(pyarrow.ipc.open_stream('{name}').read_all(), '{stem}.parquet')",
    ),
    (4, b"ftyp", "a video or a HEIF picture", "a folder of its frames: mkdir {stem}; ffmpeg -i {name} {stem}/%06d.png"),
    (8, b"AVI ", "a video", "a folder of its frames: mkdir {stem}; ffmpeg -i {name} {stem}/%06d.png"),
)
_PICTURE_NAME = re.compile(
    r"\.(a?png|jpe?g?|jfif|gif|bmp|dib|webp|avifs?|tiff?|p[bgpnf]m|j[p2][2kcfx]|qoi|tga|pcx)$", re.IGNORECASE
)
_PICTURES = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"II*\0", b"MM\0*", b"BM", b"RIFF", b"\0\0\0\x0cjP")
_SUFFIXES = {
    ".json": ("JSON", "a .csv: import pandas; pandas.read_json('{name}').to_csv('{stem}.csv', index=False)"),
    ".jsonl": (
        "lines of JSON",
        "a .csv: import pandas; pandas.read_json('{name}', lines=True).to_csv('{stem}.csv', index=False)",
    ),
    ".dta": ("a Stata file", "a .csv: import pandas; pandas.read_stata('{name}').to_csv('{stem}.csv', index=False)"),
    ".sas7bdat": ("a SAS file", "a .csv: import pandas; pandas.read_sas('{name}').to_csv('{stem}.csv', index=False)"),
    ".rds": ("an R object", "a .csv, from R: write.csv(readRDS('{name}'), '{stem}.csv', row.names = FALSE)"),
    ".rdata": ("a file of R", "a .csv, from R: load('{name}'); write.csv(TABLE, '{stem}.csv', row.names = FALSE)"),
    ".joblib": (
        "a joblib pickle, which is never read",
        "an .npz: import joblib, numpy; numpy.savez('{stem}.npz', data=joblib.load('{name}'))",
    ),
    ".tfrecord": (
        "TFRecords",
        "a folder of images: import tensorflow as tf; mkdir {stem}; "
        "for i, r in enumerate(tf.data.TFRecordDataset('{name}')): open(f'{stem}/{i}.jpg', 'wb').write("
        "tf.train.Example.FromString(r.numpy()).features.feature['image/encoded'].bytes_list.value[0])",
    ),
    ".safetensors": (
        "safetensors",
        "an .npz: import numpy; from safetensors.numpy import load_file; "
        "numpy.savez('{stem}.npz', data=load_file('{name}')['NAME'])",
    ),
}
_SUFFIXES[".rda"] = _SUFFIXES[".rdata"]
_SUFFIXES[".tfrecords"] = _SUFFIXES[".tfrecord"]
# Arrays: what it is, an import, and how f is read. One file becomes an array, a folder of them a stack.
_ARRAYS = {
    "fits": ("a FITS file", "from astropy.io import fits", "fits.getdata(f).astype('f4')"),
    "dicom": ("a DICOM image", "import pydicom", "pydicom.dcmread(f).pixel_array.astype('f4')"),
    "nifti": ("a NIfTI volume", "import nibabel", "nibabel.load(f).get_fdata(dtype='f4')"),
    "npy": ("an array a row", "", "numpy.load(f)"),
}
_CIFAR = {
    "cifar-10": ("data_batch_1.bin to data_batch_5.bin", "[f'data_batch_{i}' for i in range(1, 6)]", "labels"),
    "cifar-100": ("train.bin and test.bin", "['train']", "fine_labels"),
}


def advice(path: Path, start: bytes = b"") -> str | None:
    """ "PATH: got WHAT, expected WAY" in one line for a file of a format that is known and not read, else None.

    start: the file's first bytes, decompressed, if they are read already. InputError: the file cannot be read.
    """
    if len(start) < _HEAD:
        with opened(path) as stream:
            start = stream.read(_HEAD)
    name = path.name
    plain = re.sub(r"\.(gz|xz|bz2|zst)$", "", name.lower())
    known = _by_name(path, plain) or _by_start(path, start, plain)
    if known is None:
        return None
    what, way = (text.replace("{name}", name).replace("{stem}", name.split(".")[0] or "data") for text in known)
    return f"{path}: got {what}, expected {way}"


def folder_advice(folder: Path) -> str | None:
    """As `advice`, for a folder; None where there are images in it."""
    files = _some_files(folder)
    if any(_PICTURE_NAME.search(path.name) for path in files):
        return None
    known = _by_names(files, folder)
    if known is None:
        of_kind: dict[str, list[Path]] = {}
        for path in files:
            if kind := _array_kind(path.name.lower(), b""):
                of_kind.setdefault(kind, []).append(path)
        if of_kind:
            kind, several = max(of_kind.items(), key=lambda pair: len(pair[1]))
            ending = re.search(r"\.[A-Za-z]+(\.gz)?$", several[0].name)
            pattern = f"{several[0].parent}/*{ending[0] if ending else ''}"
            what, way = _as_array(kind, f"sorted(glob.glob('{pattern}'))")
            known = f"{len(several)} files, each {what}", way
    if known is not None:
        return f"{folder}: got {known[0]}, expected {known[1]}"
    for path in files[:20]:
        try:
            if error := advice(path):
                return error
        except InputError:  # of that one file
            continue
    return None


def _by_names(files: list[Path], folder: Path) -> tuple[str, str] | None:
    names = {path.name for path in files}
    if "data_batch_1" in names:
        return _cifar("cifar-10")
    if {"train", "test", "meta"} <= names:
        return _cifar("cifar-100")
    if "data.mdb" in names:
        return "an LMDB database", (
            "a folder of images: import lmdb, os; os.mkdir('images'); [open(f'images/{i}.jpg', 'wb').write(v) "
            f"for i, (k, v) in enumerate(lmdb.open('{folder}').begin().cursor())]"
        )
    if names & {".zarray", ".zgroup", "zarr.json"}:
        return "a Zarr store", f"an .npy: import numpy, zarr; numpy.save('data.npy', zarr.open('{folder}')[...])"
    readable = [path for path in files if re.search(r"\.(npz|csv|tsv|parquet|xlsx|mat|h5|nc)(\.gz|\.xz)?$", path.name)]
    if len(readable) == 1:
        return "a folder without images", f"the file in it: {readable[0]}"
    return None


def _by_name(path: Path, plain: str) -> tuple[str, str] | None:
    if re.fullmatch(r"(data_batch_[1-5]|test_batch|batches\.meta)", plain):
        return _cifar("cifar-10")
    if plain in ("train", "test", "meta") and (path.parent / "meta").exists():
        return _cifar("cifar-100")
    cifar100 = plain in ("train.bin", "test.bin") and (path.parent / "fine_label_names.txt").exists()
    if cifar100 or re.fullmatch(r"(data_batch_[1-5]|test_batch|(train|test|unlabeled)_[xy])\.bin", plain):
        return "one file of a data set in binary files", f"the folder of all of them: {path.parent}"
    if match := re.fullmatch(r"(k49|kmnist)-(?:train|test)-(?:imgs|labels)\.npz", plain):
        arrays = ", ".join(
            f"{key}_{split}=numpy.load('{match[1]}-{split}-{part}.npz')['arr_0']"
            for split in ("train", "test")
            for key, part in (("x", "imgs"), ("y", "labels"))
        )
        return "images or labels alone", f"all in one .npz: import numpy; numpy.savez('{match[1]}.npz', {arrays})"
    if plain.endswith((".pt", ".pth")):
        return _TORCH
    if plain.endswith((".pkl", ".pickle")):
        return _PICKLE
    return next((known for suffix, known in _SUFFIXES.items() if f"{suffix}-" in plain or plain.endswith(suffix)), None)


def _by_start(path: Path, start: bytes, plain: str) -> tuple[str, str] | None:
    for offset, magic, what, way in _STARTS:
        if start[offset : offset + len(magic)].lower() == magic.lower():
            return what, way
    if start[:4] == b"PK\x03\x04":
        return _in_zip(path)
    if kind := _array_kind(plain, start):
        return None if kind == "npy" else _as_array(kind, "['{name}']")
    if start[:1] == b"\x80" and start[1:2] in b"\2\3\4\5":
        return _PICKLE
    if start.startswith(_PICTURES):
        return "one picture", (
            f"a folder of them: {path.parent}; or, for the pages of one TIFF, an .npy: "
            "import numpy, tifffile; numpy.save('{stem}.npy', tifffile.imread('{name}'))"
        )
    return None


_PICKLE = (
    "a Python pickle, which is never read, as it may run anything",
    "an .npz, from a file you trust: import numpy, pickle; d = pickle.load(open('{name}', 'rb')); "
    "numpy.savez('{stem}.npz', images=d['IMAGES'], labels=d['LABELS'])",
)
_TORCH = (
    "a PyTorch file",
    "an .npy: import numpy, torch; d = torch.load('{name}', weights_only=True); numpy.save('{stem}.npy', d.numpy())",
)


def _in_zip(path: Path) -> tuple[str, str] | None:
    """Of an archive that is no .npz and no workbook."""
    try:
        with opened(path) as stream, zipfile.ZipFile(stream) as archive:
            names = [name for name in archive.namelist() if not name.endswith("/")]
    except Exception:  # a damaged directory fails in many ways; its reader says so
        return None
    if not names or any(name.endswith(".npy") or name.startswith("xl/") for name in names):
        return None
    if any(name.endswith("/data.pkl") for name in names):
        return _TORCH
    if "content.xml" in names:
        return "an .ods workbook", "an .xlsx or .csv: open it in a spreadsheet and save it as one"
    return (
        f"a .zip archive of {len(names)} files such as {names[0]}",
        "it unpacked: unzip {name} -d {stem}, then give what comes out",
    )


def _array_kind(name: str, start: bytes) -> str | None:
    if start[:9] == b"SIMPLE  =" or re.search(r"\.(fits?|fts)(\.gz)?$", name):
        return "fits"
    if start[128:132] == b"DICM" or name.endswith((".dcm", ".dicom")):
        return "dicom"
    if start[344:347] in (b"n+1", b"ni1") or re.search(r"\.nii(\.gz)?$", name):
        return "nifti"
    return "npy" if name.endswith(".npy") else None


def _as_array(kind: str, files: str) -> tuple[str, str]:
    what, library, read = _ARRAYS[kind]
    lines = "; ".join(line for line in ("import glob, numpy" if "glob" in files else "import numpy", library) if line)
    return what, f"an .npy: {lines}; numpy.save('data.npy', numpy.stack([{read} for f in {files}]))"


def _cifar(name: str) -> tuple[str, str]:
    binary, files, labels = _CIFAR[name]
    return f"pickles of {name.upper()}, which are never read", (
        f"its binary version ({name}-binary.tar.gz: {binary}), or an .npz: import numpy, pickle; "
        f"d = [pickle.load(open(f, 'rb'), encoding='bytes') for f in {files}]; numpy.savez('{name}.npz', "
        "images=numpy.concatenate([b[b'data'] for b in d]).reshape(-1, 3, 32, 32), "
        f"labels=numpy.concatenate([b[b'{labels}'] for b in d]))"
    )


def _some_files(folder: Path) -> list[Path]:
    found: list[Path] = []
    for parent, folders, names in os.walk(folder):
        folders.sort()
        found += (Path(parent, name) for name in sorted(names))
        if len(found) > _FOLDER_FILES:
            break
    return found
