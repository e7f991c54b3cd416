"""Every bad input is one InputError of one line that names the file, what came and what was expected."""

from __future__ import annotations

import gzip
import io
import lzma
import os
import pickle
import re
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from ansn.data import load_dataset
from ansn.errors import InputError
from tests.data.writers import cifar_bytes, idx_bytes, some_images, write, write_mnist


def refused(where: object, *parts: str, **options: object) -> str:
    """Loads, and checks that the error is one line of the one grammar that holds every part."""
    with pytest.raises(InputError) as caught:
        load_dataset(where, **options)  # type: ignore[arg-type]
    message = str(caught.value)
    assert re.fullmatch(r".+: got .+, expected .+", message), message
    for part in parts:
        assert part in message, f"{part!r} not in {message!r}"
    return message


def npy_bytes(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def test_input_error_is_one_line_and_survives_pickling() -> None:
    error = InputError("a\nb\r\nc")
    assert str(error) == "a b c"
    assert str(pickle.loads(pickle.dumps(error))) == "a b c"


# --- names, paths, options


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_missing_named_files(tmp_path: Path, name: str) -> None:
    refused(name, f"root (--data): got None for {name}, expected the folder", "idx3-ubyte, train-labels-idx1")
    refused(
        name,
        "t10k-images-idx3-ubyte",
        "plain, .gz or .xz",
        f"expected them in one of {tmp_path}, {tmp_path / name}",
        root=tmp_path,
        split="test",
    )
    refused(name, f"root (--data): got {tmp_path / 'none'}, which is no folder", root=tmp_path / "none")


def test_missing_cifar10(tmp_path: Path) -> None:
    refused(
        "cifar10",
        "data_batch_1.bin, data_batch_2.bin",
        "data_batch_5.bin",
        f"expected them in one of {tmp_path}",
        root=tmp_path,
    )
    write(tmp_path / "data_batch_1.bin", cifar_bytes(some_images(2, 3, 32, 32), np.zeros(2)))
    refused("cifar10", "got no data_batch_2.bin (plain, .gz or .xz)", root=tmp_path)


def test_unknown_names_and_formats(tmp_path: Path) -> None:
    refused("mnits", "mnits: got no such file or folder, expected one or a name (digits, mnist")
    (tmp_path / "a.dat").write_bytes(b"hello")
    refused(tmp_path / "a.dat", "a.dat: got an unknown format, expected .csv, .tsv, .parquet, .xlsx, .npy")
    refused("toy2d:spiral", "kind: got 'spiral' for toy2d, expected one of 8-gaussians")


def test_options_and_splits_that_do_not_apply(tmp_path: Path) -> None:
    refused(
        "digits",
        "label_column: got 'a' for digits, expected no such option; it takes split, dequantise, flip",
        label_column="a",
    )
    refused("toy2d", "flip: got True for toy2d, expected no such option", flip=True)
    refused("digits", "split: got 'valid', expected 'train' or 'test'", split="valid")
    refused("toy2d", "kind: got gaussian for toy2d, which holds tables, expected table", kind="gaussian")
    refused("toy2d", "samples: got 0, expected 1 or more", samples=0)
    refused("toy2d", "data_seed: got -1", data_seed=-1)
    np.save(tmp_path / "a.npy", np.random.default_rng(0).normal(size=(4, 2)))
    refused(tmp_path / "a.npy", "a.npy: got no test split, expected one: test_fraction", split="test")
    for fraction in (0.01, 1.0, -0.5, float("nan")):
        refused(
            tmp_path / "a.npy",
            f"test_fraction: got {fraction} of 4 rows, expected one that leaves both splits rows",
            test_fraction=fraction,
        )
    refused(tmp_path / "a.npy", "dequantise: got True for ", "which holds tables, expected images", dequantise=True)
    refused(tmp_path / "a.npy", "num_classes: got 3 for ", "which has no labels, expected None", num_classes=3)
    np.save(tmp_path / "line.npy", np.zeros((4, 1, 8)))
    refused(tmp_path / "line.npy", "flip: got True for ", "which holds fields, expected images", flip=True)
    refused(tmp_path / "line.npy", "column_kinds: got", "fields, expected tables", column_kinds={"x0": "whole"})
    np.save(tmp_path / "grey.npy", np.zeros((4, 8, 8), np.uint8))
    refused(tmp_path / "grey.npy", "standardise: got True for ", "images, expected fields", standardise=True)
    refused(tmp_path / "grey.npy", "ignore_columns: got", "images, expected tables", ignore_columns=["x0"])
    (tmp_path / "a.csv").write_text("a,b\n1,x\n2,y\n")
    expected = "column_kinds: got 'word' of 'b', expected one of number, whole, binary, category, time"
    refused(tmp_path / "a.csv", expected, column_kinds={"b": "word"})
    refused(tmp_path / "grey.npy", "kind: got 'picture', expected image, table or field", kind="picture")
    refused(tmp_path / "grey.npy", "kind: got table for ", "axes NHW", kind="table")
    for axes in ("NHWC", "HW", "NHH", "CHW", "NXY", "N"):
        refused(tmp_path / "grey.npy", f"axes: got '{axes}' for ", "of shape 4x8x8, expected a letter", axes=axes)
    assert load_dataset("toy2d", samples=3, flip=False).flip is False  # "no" to what cannot be is no mistake


# --- IDX


GOOD = idx_bytes(some_images(3, 28, 28))


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz"])
@pytest.mark.parametrize(
    ("data", "parts"),
    [
        (GOOD[:-1], ("got a truncated file, 2351 bytes of data, expected 2352", "uint8 of shape 3x28x28")),
        (GOOD[:9], ("got a file that ends in its header", "expected 3 sizes of 4 bytes")),
        (GOOD + b"x", ("got trailing bytes after its data, expected 2352 bytes",)),
        (b"\0\1" + GOOD[2:], ("got a start of 00 01 08 03", "expected IDX: 00 00, a type")),
        (b"\0\0\7" + GOOD[3:], ("got a start of 00 00 07 03", "expected IDX")),
        (b"\0\0\x08\0", ("got a start of 00 00 08 00", "1 to 8 dimensions")),
        (b"", ("got a start of nothing, expected IDX",)),
        (idx_bytes(some_images(3, 28, 27)), ("uint8 of shape 3x28x27, expected uint8 of shape Nx28x28",)),
        (idx_bytes(some_images(3, 28, 28).astype("i2")), ("int16 of shape 3x28x28, expected uint8",)),
        (idx_bytes(some_images(0, 28, 28)), ("3 labels, expected 0",)),
        (
            idx_bytes(some_images(4, 28, 28)),
            ("train-labels", "3 labels, expected 4, as many as images in train-images"),
        ),
    ],
)
def test_broken_mnist_images(tmp_path: Path, data: bytes, parts: tuple[str, ...], suffix: str) -> None:
    write_mnist(tmp_path, some_images(3, 28, 28), np.zeros(3, np.uint8), suffix=suffix)
    write(tmp_path / f"train-images-idx3-ubyte{suffix}", data)
    refused("mnist", f"{tmp_path}", suffix, *parts, root=tmp_path)


def test_empty_mnist(tmp_path: Path) -> None:
    write_mnist(tmp_path, some_images(0, 28, 28), np.zeros(0, np.uint8))
    refused(
        "mnist",
        "train-images-idx3-ubyte.gz: got no value in shape 0x28x28, expected a row",
        root=tmp_path,
    )


def test_broken_mnist_labels(tmp_path: Path) -> None:
    images = some_images(3, 28, 28)
    write_mnist(tmp_path, images, np.array([1, 10, 2], np.uint8))
    refused("mnist", "train-labels-idx1-ubyte.gz: got label 10 in row 1, expected 0 to 9", root=tmp_path)
    write_mnist(tmp_path, images, np.zeros((3, 1), np.uint8))
    refused("mnist", "uint8 of shape 3x1, expected integers of one dimension", root=tmp_path)
    (tmp_path / "train-labels-idx1-ubyte.gz").unlink()
    refused("mnist", "got no train-labels-idx1-ubyte (plain, .gz or .xz), expected both", root=tmp_path)


def test_a_header_that_promises_the_moon_reserves_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "moon-idx3.gz", b"\0\0\x08\3" + struct.pack(">3I", 2**31, 2**31, 2**31) + b"123")
    refused(path, "moon-idx3.gz: got ", " GiB of data, expected at most")
    path = write(tmp_path / "small-idx3.gz", b"\0\0\x08\3" + struct.pack(">3I", 2**10, 2**10, 2**8) + b"123")
    refused(path, "got a truncated file, 3 bytes of data, expected 268435456")


def test_labels_given_as_images(tmp_path: Path) -> None:
    path = write(tmp_path / "train-labels-idx1-ubyte", idx_bytes(np.zeros(5, np.uint8)))
    refused(path, "got one dimension (5), as labels have, expected images")


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress])
def test_damaged_compression(tmp_path: Path, pack: object) -> None:
    packed: bytes = pack(GOOD)  # type: ignore[operator]
    path = tmp_path / "train-images-idx3-ubyte"
    write_mnist(tmp_path, some_images(3, 28, 28), np.zeros(3, np.uint8), suffix="")
    path.write_bytes(packed[: len(packed) // 2])
    refused("mnist", f"{path}: got compressed data that ends early, expected a whole file", root=tmp_path)
    middle = len(packed) // 2
    path.write_bytes(packed[:middle] + bytes([packed[middle] ^ 0xFF]) + packed[middle + 1 :])
    refused("mnist", str(path), "corrupt compressed data", root=tmp_path)
    path.write_bytes(packed + b"rubbish")
    refused("mnist", str(path), "corrupt compressed data", root=tmp_path)


# --- CIFAR-10


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz"])
@pytest.mark.parametrize(
    ("data", "part"),
    [
        (lambda good: good[:-1], "got 12291 bytes, expected one or more whole records of 3073 bytes"),
        (lambda good: good + b"x", "got 12293 bytes, expected one or more whole records"),
        (lambda good: b"", "got 0 bytes, expected one or more whole records"),
        (lambda good: good[:3073], "got 1 records, expected 4, as in data_batch_1.bin"),
        (lambda good: good[:3073] + b"\x0a" + good[3074:], "label 10 in record 1, expected 0 to 9"),
    ],
)
def test_broken_cifar10(tmp_path: Path, data: object, part: str, suffix: str) -> None:
    good = cifar_bytes(some_images(4, 3, 32, 32), np.zeros(4))
    for i in range(1, 6):
        write(tmp_path / f"data_batch_{i}.bin{suffix}", good)
    write(tmp_path / f"data_batch_3.bin{suffix}", data(good))  # type: ignore[operator]
    refused("cifar10", f"data_batch_3.bin{suffix}", part, root=tmp_path)


# --- arrays


@pytest.mark.parametrize(
    ("array", "part"),
    [
        (np.array([{"a": 1}], dtype=object), "got pickled Python objects (dtype object), expected numbers"),
        (np.array(["a", "b"]), "got values of type <U1, expected integers, floats or booleans"),
        (np.zeros(3, dtype=[("a", "f4")]), "expected integers, floats or booleans"),
        (np.zeros((2, 2), complex), "got values of type complex128"),
        (np.zeros(5), "got an array of shape 5, expected [N, d]"),
        (np.float64(3.0), "got an array of shape (), expected [N, d]"),
        (np.zeros((2, 3, 4, 4, 4, 4)), "got an array of shape 2x3x4x4x4x4, expected"),
        (np.array([[[1e200, -1e200]], [[0.0, 1.0]]]), "got a variance that overflows, expected values below"),
        (np.zeros((0, 3)), "got no value in shape 0x3, expected a row of at least one"),
        (np.zeros((3, 0)), "got no value in shape 3x0"),
        (np.array([[[1.0, 2.0]], [[np.nan, 4.0]]]), "nan at index [1, 0, 0], expected finite numbers"),
        (np.array([[1.0, 3.0], [2.0, -np.inf]]), "'-inf' in row 2, column 'x1', expected a finite number"),
        (np.array([[1.7e308, 0], [1.6e308, 2.0]]), "got a deviation of column 'x0' that overflows, expected smaller"),
        (np.full((3, 2), 7.0), "got no column of numbers or few words left of 2, expected at least one that varies"),
    ],
)
def test_broken_npy(tmp_path: Path, array: np.ndarray, part: str) -> None:
    path = tmp_path / "a.npy"
    path.write_bytes(npy_bytes(array))
    refused(path, str(path), part)


def test_a_pickle_is_never_run(tmp_path: Path) -> None:
    touched = tmp_path / "touched"

    class Trap:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return Path.touch, (touched,)

    (tmp_path / "a.npy").write_bytes(npy_bytes(np.array([Trap()], dtype=object)))
    refused(tmp_path / "a.npy", "pickles are never read")
    (tmp_path / "b.npy").write_bytes(pickle.dumps(Trap()))
    refused(tmp_path / "b.npy", "got no readable .npy array")
    np.savez(tmp_path / "c.npz", x=np.array([Trap()], dtype=object))
    refused(tmp_path / "c.npz", "c.npz[x]", "pickles are never read")
    assert not touched.exists()


def test_npy_of_the_wrong_length(tmp_path: Path) -> None:
    data = npy_bytes(np.zeros((4, 3)))
    for content, part in (
        (data[:-1], "got a truncated file, 95 bytes of data, expected 96 (its header says float64 of shape 4x3)"),
        (data + b"x", "got trailing bytes after its data, expected 96 bytes"),
        (data[:20], "got no readable .npy array"),
        (data.replace(b"(4, 3)", b"(4, -)"), "got no readable .npy array"),
        (b"", "got no readable .npy array"),
        (b"\x93NUMPY\x03\x00" + data[8:], "a.npy: got .npy 3.0, expected 1.0 or 2.0"),
    ):
        (tmp_path / "a.npy").write_bytes(content)
        refused(tmp_path / "a.npy", "a.npy", part)


@pytest.mark.parametrize(
    ("shape", "part"),
    [
        ("(True, 12)", "a.npy: got float64 of shape Truex12, expected sizes that an array can have"),
        ("(-4, -3)", "a.npy: got float64 of shape -4x-3, expected sizes"), ("(0, 9223372036854775808)", "shape 0x92"),
        ("(4294967296, 4294967296)", "of shape 4294967296x4294967296"), ("(12" + ",1" * 40 + ")", "of shape 12x1x1"),
        ("(10000000000000000000000000000000000000000,)", "of shape 1000000"), ("(12.0,)", "got no readable .npy array"),
        ("12", "got no readable .npy array"), ("(None, 12)", "got no readable .npy array"),
    ],
)  # fmt: skip
def test_npy_of_a_shape_that_no_array_has(tmp_path: Path, shape: str, part: str) -> None:
    content = npy_bytes(np.zeros((4, 3))).split(b"\n", 1)[1]
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}}}\n".encode()
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + content)
    refused(tmp_path / "a.npy", part)


def test_broken_npz(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    images = some_images(6, 4, 4)
    np.savez(path, a=images, b=images)
    refused(path, "got a, b, expected rows under one of x, images, data, or a single array")
    np.savez(path, x=images, data=images)
    refused(path, "got x, data, expected rows under one of")
    np.savez(path, x=images, y=np.zeros(6), labels=np.zeros(6))
    refused(path, "got labels twice, as y and labels")
    np.savez(path)
    refused(path, "a.npz")
    np.savez(path, x=images)
    good = path.read_bytes()
    path.write_bytes(good[: len(good) // 2])
    refused(path, "corrupt .npz archive")
    place = good.index(images.tobytes()) + 5
    path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
    refused(path, "corrupt .npz archive", "CRC")
    path.write_bytes(b"")
    refused(path, "corrupt .npz archive")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "no arrays")
    refused(path, "a.npz: got ")


@pytest.mark.parametrize(
    ("labels", "options", "part"),
    [
        (np.zeros(5), {}, "got 6 rows but 5 labels, expected as many labels as rows"),
        (np.zeros((6, 2)), {}, "labels of shape 6x2, expected one label a row, [6]"),
        (np.full(6, 0.5), {}, "label 0.5, expected whole numbers or words"),
        (np.full(6, np.nan), {}, "label nan, expected whole numbers"),
        (np.array([0, 1, 2, 3, -1, 0]), {"num_classes": 4}, "label -1, expected 0 to 3"),
        (np.array([0, 1, 2, 3, 4, 0]), {"num_classes": 3}, "label 4, expected 0 to 2"),
        (np.array(["a", "b"] * 3), {"num_classes": 3}, "labels that are words, expected numbers from 0 to 2"),
    ],
)
def test_broken_labels(tmp_path: Path, labels: np.ndarray, options: dict[str, int], part: str) -> None:
    np.savez(tmp_path / "a.npz", x=some_images(6, 4, 4), y=labels)
    refused(tmp_path / "a.npz", "a.npz", part, **options)


# --- CSV


@pytest.mark.parametrize(
    ("text", "options", "part"),
    [
        ("a", {}, "got a header and no rows, expected rows of numbers"),
        ("a,b\n1,2\n3,x\n", {}, "'x' in line 3, column 'b', expected a finite number"),
        ("1,2\n3,4\n5,oops\n", {}, "'oops' in line 3, column 'x1', expected a finite number"),
        ("1,2,abc\n3,4,5\n", {}, "'abc' in line 1, column 'x2'"),
        ("a,b\n1,2\n\n3,4\n5,x\n", {}, "'x' in line 5, column 'b', expected a finite number"),
        ("a,b\nNA,\n ?,nan\n", {}, "of numbers or few words left of 2, expected at least one that varies (column 'a'"),
        ("a,b,c\n1,,?\n3,NA,5\n4,7,6\n5,8,\n6,,\n", {}, "got mostly empty columns 'b', 'c', expected at most half"),
        ("a,b\n1,1e999\n", {}, "'1e999' in line 2, column 'b'"),
        ("a,b\n1,2\n3,1_000\n", {}, "'1_000' in line 3, column 'b'"),
        ('0\n0\n""\n;\n', {}, "';' in line 4, column 'x0', expected a finite number, or --column-kinds x0=category"),
        ("\t0\n0\n", {}, "got 1 cells in line 2, expected 2 as in line 1"),
        ("a,b\n1,2\n3\n", {}, "got 1 cells in line 3, expected 2 as in line 1"),
        ("a,b\n1,2\n3,4,5\n", {}, "got 3 cells in line 3, expected 2"),
        ("a,b\n1,2\n1,2\n", {}, "got no column of numbers or few words left of 2, expected at least one that varies"),
        ("a\nx\ny\nz\n", {}, "varies (column 'a' left out: text, 3 different words in 3 rows, such as 'x')"),
        ("a,b\n1,x\n2,y\n", {"column_kinds": {"b": "number"}}, "'x' in line 2, column 'b'"),
        ("a,b\n1,x\n2,y\n", {"column_kinds": {"b": "time"}}, "got 'x' in column 'b', expected a date or time"),
        ("a,b\n1,1.5\n2,2.5\n3,5\n", {"column_kinds": {"b": "whole"}}, "got column b: number, which cannot be of kind"),
        ("a,b\n1,1\n2,2\n3,5\n", {"column_kinds": {"b": "binary"}}, "which cannot be of kind binary"),
        ("a,b\n1,u\n2,v\n3,u\n3,v\n3,w\n", {"column_kinds": {"b": "binary"}}, "which cannot be of kind binary"),
        ("a,b\n1,1\n2,2\n3,5\n", {"column_kinds": {"b": "constant"}}, "which cannot be of kind constant"),
        ("a,b\n1,x\n2,y\n", {"column_kinds": {"c": "time"}}, "got no column 'c', expected one of a, b"),
        ("a\n1.7e308\n1.6e308\n", {}, "got a deviation of column 'a' that overflows"),
        (
            "a,b\n1e39,2\n3,4\n",
            {"standardise": False},
            "1e+39 in row 0, column 'a', expected what float32 can hold",
        ),
        ("", {}, "got no lines, expected rows of numbers"),
        ("\n\n", {}, "got no lines, expected rows of numbers"),
        ("a,b\n", {}, "got a header and no rows"),
        ("a,a\n1,2\n", {}, "got two columns of name 'a'"),
        ("a,b\n1,2\n", {"label_column": "c"}, "got no column 'c', expected one of a, b"),
        ("a,b\n1,2\n", {"label_column": 2}, "got no column 2, expected a position from 0 to 1"),
        ("a\n1\n", {"label_column": "a"}, "got no column of numbers or few words left of 1"),
        (
            "a,b\n1,0.5\n2,1\n",
            {"label_column": "b"},
            "label 0.5 in column 'b', expected whole numbers or words",
        ),
        ("a,b\n1,\n2,1\n", {"label_column": "b"}, "got an empty cell in the label column 'b'"),
        ('a,b\n1,"2\n', {}, "got no CSV ("),
    ],
)
def test_broken_csv(tmp_path: Path, text: str, options: dict[str, object], part: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    refused(tmp_path / "t.csv", "t.csv", part, **options)


def test_csv_that_is_no_text(tmp_path: Path) -> None:
    for start in (b"a,b\n\xff\0,2\n", b"a,b\n\x81,2\n"):
        (tmp_path / "t.csv").write_bytes(start)
        refused(tmp_path / "t.csv", "got no UTF-8 text at byte 4, expected a CSV of numbers")
    write(tmp_path / "t.csv.gz", b"a,b\n" + b"1,2\n3,4\n" * 5000)
    data = (tmp_path / "t.csv.gz").read_bytes()
    (tmp_path / "t.csv.gz").write_bytes(data[:-12])
    refused(tmp_path / "t.csv.gz", "got compressed data that ends early")


def test_files_that_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "a.npy", np.zeros((2, 2)))

    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:  # permissions do not stop root, who may be running this
        patch.setattr("builtins.open", denied)
        refused(tmp_path / "a.npy", f"{tmp_path / 'a.npy'}: got Permission denied, expected a file that can be read")
    refused("x" * 300, "xxx: got no such file or folder, expected one or a name (digits")
    refused("a\0b", "got no such file or folder, expected one or a name (digits")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_a_pipe_is_refused_before_it_blocks(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.csv")
    refused(tmp_path / "a.csv", "a.csv: got a pipe, socket or device, expected a file")


def test_a_kind_that_a_file_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b\n1,2\n3,5\n")
    refused(tmp_path / "t.csv", "kind: got field for", "t.csv, which holds tables, expected table", kind="field")
    assert len(load_dataset(tmp_path / "t.csv", kind="table")) == 2
