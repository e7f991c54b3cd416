"""Formats that are known and not read: one line with the way, which works where it is tried."""

from __future__ import annotations

import io
import pickle
import re
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ansn.data import load_dataset
from ansn.data.foreign import advice, folder_advice
from tests.data.test_errors import refused
from tests.data.writers import PACKERS, some_images, write


def zipped(*names: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, b"content")
    return file.getvalue()


def tarred() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.png"))
    return file.getvalue()


FILES: dict[str, tuple[bytes, str, str]] = {
    # name: content, what it is, part of the way
    "data_batch_1": (pickle.dumps({}), "pickles of CIFAR-10", "cifar-10-binary.tar.gz"),
    "batches.meta": (pickle.dumps({}), "pickles of CIFAR-10", "cifar-10-binary.tar.gz"),
    "data_batch_2.bin": (b"x", "one file of a data set", "the folder of all of them: "),
    "train_X.bin": (b"x", "one file of a data set", "the folder of all of them: "),
    "a.pkl": (pickle.dumps([1]), "a Python pickle, which is never read", "numpy.savez('a.npz'"),
    "odd": (pickle.dumps([1], 4), "a Python pickle, which is never read", ".npz"),
    "a.joblib": (b"x", "a joblib pickle", "joblib.load('a.joblib')"),
    "a.pt": (zipped("a/data.pkl", "a/data/0"), "a PyTorch file", "numpy.save('a.npy'"),
    "odd.ckpt": (zipped("archive/data.pkl"), "a PyTorch file", "weights_only=True"),
    "old.pth": (b"x", "a PyTorch file", "weights_only=True"),
    "a.arrow": (b"ARROW1\0\0", "an Arrow (Feather) file", "a.parquet"),
    "a.feather": (b"FEA1\0", "a Feather file", "a.parquet"),
    "stream.arrow": (b"\xff\xff\xff\xff\x10", "an Arrow stream", "stream.parquet"),
    "a.orc": (b"ORC\n", "an ORC file", "a.parquet"),
    "a.fits": (b"SIMPLE  =                    T", "a FITS file", "fits.getdata(f)"),
    "odd.dat": (b"SIMPLE  =                    T", "a FITS file", "['odd.dat']"),
    "a.dcm": (b"x", "a DICOM image", "pydicom.dcmread(f)"),
    "IM0001": (bytes(128) + b"DICM", "a DICOM image", "pydicom.dcmread(f)"),
    "brain.nii": (bytes(344) + b"n+1\0", "a NIfTI volume", "nibabel.load(f)"),
    "a.tfrecord-00000-of-00010": (b"x", "TFRecords", "tf.data.TFRecordDataset('a.tfrecord-00000-of-00010')"),
    "a.safetensors": (b"x", "safetensors", "load_file('a.safetensors')"),
    "photos.zip": (zipped("cat/1.png", "dog/1.png"), "a .zip archive of 2 files such as cat/1.png", "unzip photos.zip"),
    "a.ods": (zipped("content.xml"), "an .ods workbook", ".xlsx or .csv"),
    "photos.tar": (tarred(), "a .tar archive", "tar -xf photos.tar"),
    "photos.tar.gz": (PACKERS[".gz"](tarred()), "a .tar archive", "tar -xf photos.tar.gz"),
    "photos.7z": (b"7z\xbc\xaf\x27\x1c", "a .7z archive", "7z x photos.7z"),
    "a.bz2": (b"BZh9", "a file compressed by bzip2", "bunzip2 a.bz2"),
    "a.zst": (b"\x28\xb5\x2f\xfd", "a file compressed by zstd", "zstd -d a.zst"),
    "a.png": (b"\x89PNG\r\n", "one picture", "a folder of them: "),
    "a.jpg": (b"\xff\xd8\xff\xe0", "one picture", "a folder of them: "),
    "stack.tif": (b"II*\0", "one picture", "tifffile.imread('stack.tif')"),
    "a.mp4": (b"\0\0\0\x18ftypmp42", "a video", "ffmpeg -i a.mp4 a/%06d.png"),
    "a.json": (b"[1]", "JSON", "pandas.read_json('a.json').to_csv('a.csv', index=False)"),
    "a.jsonl": (b"[1]", "lines of JSON", "lines=True"),
    "a.dta": (b"x", "a Stata file", "pandas.read_stata('a.dta')"),
    "a.rds": (PACKERS[".gz"](b"X"), "an R object", "readRDS('a.rds')"),
    "a.db": (b"SQLite format 3\0", "an SQLite database", "sqlite3.connect('a.db')"),
    "a.xls": (b"\xd0\xcf\x11\xe0", "an old .xls workbook", ".xlsx or .csv"),
    "page.dat": (b"<!doctype html>", "a web page", "download it again"),
    "lfs.dat": (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS", "git lfs pull"),
}


@pytest.mark.parametrize("name", FILES)
def test_each_format_is_one_line_of_what_and_how(tmp_path: Path, name: str) -> None:
    content, what, way = FILES[name]
    path = tmp_path / name
    path.write_bytes(content)
    line = advice(path)
    assert line is not None
    assert re.fullmatch(rf"{re.escape(str(path))}: got {re.escape(what)}.*, expected .+", line), line
    assert way in line
    assert "{name}" not in line
    assert "{stem}" not in line
    refused(path, what, way)


@pytest.mark.parametrize("name", ["IM0001", "photos.zip", "data_batch_1", "a.pt"])
@pytest.mark.parametrize("below", ["", "part/one"])
def test_a_folder_of_such_files(tmp_path: Path, name: str, below: str) -> None:
    content, what, _ = FILES[name]
    write(tmp_path / below / name, content)
    write(tmp_path / below / "README", b"words")
    refused(tmp_path, what)


@pytest.mark.parametrize("name", ["a.npz", "a.npy", "a.csv", "a.xlsx", "a.parquet", "a.idx", "a.h5", "a.mat"])
def test_what_is_read_gets_no_advice(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    contents = {
        "a.npz": zipped("x.npy"),
        "a.xlsx": zipped("xl/workbook.xml"),
        "a.npy": b"\x93NUMPY",
        "a.parquet": b"PAR1",
        "a.h5": b"\x89HDF\r\n\x1a\n",
        "a.mat": b"MATLAB 5.0 MAT-file",
        "a.idx": b"\0\0\x08\3",
    }
    path.write_bytes(contents.get(name, b"a,b\n1,2\n"))
    assert advice(path) is None


def test_a_folder_of_images_gets_no_advice(tmp_path: Path) -> None:
    Image.new("L", (4, 4)).save(tmp_path / "1.png")
    for name in ("data.json", "train", "test", "meta", "x.dcm"):
        (tmp_path / name).write_bytes(b"x")
    assert folder_advice(tmp_path) is None


def test_other_folders(tmp_path: Path) -> None:
    assert folder_advice(tmp_path) is None
    (tmp_path / "notes.txt").write_text("words")
    assert folder_advice(tmp_path) is None
    (tmp_path / "table.csv").write_text("a\n1\n")
    refused(tmp_path, f"{tmp_path}: got a folder without images, expected the file in it: {tmp_path / 'table.csv'}")
    for name, what in (("data.mdb", "an LMDB database"), (".zarray", "a Zarr store")):
        write(tmp_path / what / name, b"x")
        assert what in str(folder_advice(tmp_path / what))


# --- the way works


def follow(line: str | None) -> None:
    """Runs the Python that the line gives."""
    assert line is not None
    code = line[line.index(": import ", line.index("expected")) + 2 :]
    exec(compile(code, "advice", "exec"), {})


@pytest.mark.parametrize(("name", "labels"), [("cifar-10", b"labels"), ("cifar-100", b"fine_labels")])
def test_the_way_from_pickles_of_cifar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, labels: bytes
) -> None:
    images = some_images(10, 3, 32, 32)
    names = [f"data_batch_{i}" for i in range(1, 6)] if name == "cifar-10" else ["train"]
    for i, file in enumerate(names):
        part = slice(None) if len(names) == 1 else slice(2 * i, 2 * i + 2)
        content = {b"data": images[part].reshape(-1, 3072), labels: list(range(10))[part]}
        (tmp_path / file).write_bytes(pickle.dumps(content))
    for file in ("test", "meta") if name == "cifar-100" else ("test_batch",):
        (tmp_path / file).write_bytes(pickle.dumps({}))
    monkeypatch.chdir(tmp_path)
    follow(folder_advice(tmp_path))
    dataset = load_dataset(f"{name}.npz")
    assert torch.equal(dataset.rows, torch.from_numpy(images))  # type: ignore[arg-type]
    assert dataset.labels.tolist() == list(range(10))  # type: ignore[union-attr]


def test_the_way_from_other_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    values = torch.rand(5, 3, 4)
    torch.save(values, "a.pt")
    follow(advice(Path("a.pt")))
    assert np.array_equal(np.load("a.npy"), values.numpy())

    for i in range(5):
        write(Path(f"rows/{i}.npy"), b"")
        np.save(f"rows/{i}.npy", values[i].numpy())
    follow(folder_advice(Path("rows")))
    assert np.array_equal(np.load("data.npy"), values.numpy())

    content = {"IMAGES": some_images(4, 3, 3), "LABELS": [0, 1, 0, 1]}
    Path("b.pkl").write_bytes(pickle.dumps(content))
    follow(advice(Path("b.pkl")))
    assert np.array_equal(np.load("b.npz")["images"], content["IMAGES"])


def test_the_way_from_arrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    feather, parquet = (pytest.importorskip(f"pyarrow.{name}") for name in ("feather", "parquet"))
    monkeypatch.chdir(tmp_path)
    table = pyarrow.table({"a": [1.0, 2.0]})
    feather.write_feather(table, "t.feather", compression="uncompressed")
    follow(advice(Path("t.feather")))
    with pyarrow.ipc.new_stream("s.arrow", table.schema) as stream:
        stream.write_table(table)
    follow(advice(Path("s.arrow")))
    assert all(parquet.read_table(f"{name}.parquet").equals(table) for name in "ts")
