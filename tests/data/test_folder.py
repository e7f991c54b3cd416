"""Folders of images: decoding, order, labels, and streaming against memory."""

from __future__ import annotations

import itertools
import struct
import warnings
import zlib
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, features
from torch import Tensor

from ansn.data import Dataset, iterate, load_dataset
from ansn.data.decode import SUFFIXES, decode, probe
from ansn.data.folder import ImageFiles
from ansn.errors import InputError
from tests.data.test_errors import refused
from tests.data.writers import some_images


def save(path: Path, pixels: np.ndarray, mode: str | None = None, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(path, **options)  # type: ignore[arg-type]
    return path


@pytest.fixture
def pets(tmp_path: Path) -> tuple[Path, np.ndarray]:
    """14 RGB images of two classes, and their pixels [N, H, W, 3] in the order of their names."""
    pixels = some_images(14, 6, 5, 3)
    for i, image in enumerate(pixels):
        save(tmp_path / ("cat" if i < 6 else "dog") / f"{i:02d}.png", image)
    return tmp_path, pixels


def test_pixels_order_and_labels(pets: tuple[Path, np.ndarray]) -> None:
    folder, pixels = pets
    (folder / "notes.txt").write_text("not an image")
    save(folder / ".hidden" / "a.png", pixels[0])
    save(folder / "cat" / ".b.png", pixels[0])
    dataset = load_dataset(folder)
    assert (dataset.kind, dataset.shape, dataset.classes, dataset.streamed) == (
        "image",
        (3, 6, 5),
        ("cat", "dog"),
        False,
    )
    assert isinstance(dataset.rows, Tensor)
    assert dataset.rows.dtype == torch.uint8
    assert torch.equal(dataset.rows, torch.from_numpy(pixels).permute(0, 3, 1, 2))
    assert dataset.labels is not None
    assert dataset.labels.tolist() == [0] * 6 + [1] * 8


def test_a_flat_folder_has_no_labels(tmp_path: Path) -> None:
    for i in (10, 9, 1):
        save(tmp_path / f"{i}.png", np.full((4, 4), i, np.uint8))
    dataset = load_dataset(tmp_path)
    assert (dataset.labels, dataset.num_classes, dataset.shape) == (None, 0, (1, 4, 4))
    assert dataset.rows[:, 0, 0, 0].tolist() == [1, 10, 9]  # type: ignore[index]


def test_split_folders_and_held_out_rows(tmp_path: Path, pets: tuple[Path, np.ndarray]) -> None:
    for split, value in (("train", 1), ("test", 2)):
        for kind in "ab":
            save(tmp_path / "own" / split / kind / "0.png", np.full((4, 4), value, np.uint8))
    for split, value in (("train", 1), ("test", 2)):
        dataset = load_dataset(tmp_path / "own", split=split)
        assert dataset.classes == ("a", "b")
        assert dataset.rows.unique().tolist() == [value]  # type: ignore[union-attr]
    parts = [load_dataset(tmp_path / "own" / "train", split=s, test_fraction=0.5) for s in ("train", "test")]
    assert [p.num_classes for p in parts] == [2, 2]
    assert sorted(int(p.labels) for p in parts) == [0, 1]  # type: ignore[arg-type]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("options", [{}, {"dequantise": True, "flip": True}])
def test_streaming_equals_memory(pets: tuple[Path, np.ndarray], workers: int, options: dict[str, bool]) -> None:
    folder, _ = pets
    kept = load_dataset(folder, **options)  # type: ignore[arg-type]
    streamed = load_dataset(folder, memory_limit=0, num_workers=workers, **options)  # type: ignore[arg-type]
    assert streamed.streamed
    assert isinstance(streamed.rows, ImageFiles)
    assert (streamed.shape, streamed.quantisation) == (kept.shape, kept.quantisation)
    for where in ({}, {"start_step": 3, "rank": 1, "world": 2}):
        pairs = zip(iterate(streamed, 8, 5, **where), iterate(kept, 8, 5, **where), strict=True)
        for (step, x, labels), (step2, x2, labels2) in itertools.islice(pairs, 5):
            assert step == step2
            assert torch.equal(x, x2)
            assert torch.equal(labels, labels2)  # type: ignore[arg-type]
    index = torch.tensor([3, 13, 3])
    assert torch.equal(streamed.batch(index, seed=1)[0], kept.batch(index, seed=1)[0])
    assert torch.equal(streamed.select(index).batch(torch.arange(3))[0], kept.select(index).batch(torch.arange(3))[0])


def test_a_streamed_run_ends_and_leaves_the_global_generator_alone(pets: tuple[Path, np.ndarray]) -> None:
    state = torch.get_rng_state()
    dataset = load_dataset(pets[0], memory_limit=0, num_workers=2)
    assert [step for step, _, _ in iterate(dataset, 4, 0, stop_step=3)] == [0, 1, 2]
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_breaks_while_streaming_is_one_line(pets: tuple[Path, np.ndarray], workers: int) -> None:
    folder, _ = pets
    dataset = load_dataset(folder, memory_limit=0, num_workers=workers)
    path = folder / "cat" / "03.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(InputError) as caught:
        list(iterate(dataset, 14, 0, stop_step=1))
    assert str(caught.value).startswith(f"{path}: got no readable image (")
    save(path, np.zeros((7, 5, 3), np.uint8))
    with pytest.raises(InputError, match=r"03\.png: got size 7x5, expected 6x5, as when listed"):
        list(iterate(dataset, 14, 0, stop_step=1))


# --- decoding


def test_image_size_crops_the_centre_and_resizes(tmp_path: Path) -> None:
    image = np.broadcast_to(10 * np.arange(20, dtype=np.uint8)[:, None], (8, 20, 3))
    wide = save(tmp_path / "wide.png", image)
    save(tmp_path / "tall.png", np.full((12, 4, 3), 200, np.uint8))
    # the centre square is columns 6 to 13 of the ramp; each pixel of the result is the middle of two of them
    assert (decode(wide, 3, (4, 4)) == [65, 85, 105, 125]).all()
    dataset = load_dataset(tmp_path, image_size=4)
    assert dataset.shape == (3, 4, 4)
    assert load_dataset(tmp_path, image_size=(4, 6), channels=1).shape == (1, 4, 6)


@pytest.mark.parametrize(
    ("mode", "channels"), [("1", 1), ("L", 1), ("LA", 1), ("P", 3), ("RGB", 3), ("RGBA", 3), ("CMYK", 3)]
)
def test_modes(tmp_path: Path, mode: str, channels: int) -> None:
    pixels = np.zeros((4, 5, 3), np.uint8)
    pixels[:2] = 255 if mode in ("1", "L", "LA") else (255, 0, 0)
    path = save(tmp_path / ("a.tif" if mode == "CMYK" else "a.png"), pixels, mode)
    assert probe(path) == (channels, 4, 5)
    assert np.array_equal(decode(path, 3, None), np.moveaxis(pixels, 2, 0))
    assert decode(path, 1, None).shape == (1, 4, 5)


def test_grey_palette_is_grey(tmp_path: Path) -> None:
    image = Image.new("P", (5, 4), 1)
    image.putpalette([0, 0, 0, 77, 77, 77])
    image.save(tmp_path / "a.gif")
    assert load_dataset(tmp_path).shape == (1, 4, 5)
    assert (load_dataset(tmp_path).rows == 77).all()  # type: ignore[union-attr]


def test_sixteen_bits_and_floats(tmp_path: Path) -> None:
    sixteen = np.array([[0, 257, 65535], [128, 129, 65278]], np.uint16)
    path = save(tmp_path / "a.png", sixteen)
    assert probe(path)[0] == 1
    assert decode(path, 1, None).tolist() == [[[0, 1, 255], [0, 1, 254]]]
    path = save(tmp_path / "b.tif", np.array([[0.0, 0.5, 1.0]], np.float32))
    assert decode(path, 1, None).tolist() == [[[0, 128, 255]]]
    for values in ([[0.0, 2.0]], [[0.0, float("nan")]]):
        path = save(tmp_path / "c.tif", np.array(values, np.float32))
        with pytest.raises(InputError, match=r"c\.tif: got grey values from .*, expected 8 bits, floats in \[0, 1\]"):
            decode(path, 1, None)


def test_transparent_pixels_lie_on_white(tmp_path: Path) -> None:
    pixels = np.zeros((1, 2, 4), np.uint8)
    pixels[0, 1, 3] = 255  # opaque black beside transparent black
    path = save(tmp_path / "a.png", pixels)
    assert decode(path, 1, None).tolist() == [[[255, 0]]]


def test_photographs_are_turned_upright(tmp_path: Path) -> None:
    pixels = np.zeros((8, 16), np.uint8)
    pixels[:, :8] = 250
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise to see it upright
    path = save(tmp_path / "a.jpg", pixels, exif=exif, quality=95)
    assert probe(path) == (1, 16, 8)
    upright = decode(path, 1, None)
    assert upright.shape == (1, 16, 8)
    assert upright[0, :6].min() > 200
    assert upright[0, 10:].max() < 50


TURNS = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("tag", TURNS)
@pytest.mark.parametrize(
    ("suffix", "options", "dtype"),
    [
        (".tif", {}, "u1"),
        (".tif", {"compression": "tiff_lzw"}, "u1"),
        (".tif", {"compression": "tiff_adobe_deflate"}, "u2"),
        (".tiff", {}, "f4"),
        (".png", {}, "u1"),
        (".png", {}, "u2"),
        (".webp", {"lossless": True}, "u1"),
    ],
)
def test_turned_images_load_upright(
    tmp_path: Path, tag: int, suffix: str, options: dict[str, object], dtype: str
) -> None:
    top = {"u1": 255, "u2": 65535, "f4": 1}[dtype]
    upright = np.linspace(0, top, 60).reshape(6, 10).astype(dtype)
    stored = Image.fromarray(upright)
    stored = stored if TURNS[tag] is None else stored.transpose(TURNS[tag])
    exif = Image.Exif()
    exif[0x0112] = tag
    where = {"tiffinfo": {0x0112: tag}} if suffix.startswith(".tif") else {"exif": exif}
    stored.save(tmp_path / f"a{suffix}", **options, **where)  # type: ignore[arg-type]
    channels = 3 if suffix == ".webp" else 1
    assert probe(tmp_path / f"a{suffix}") == (channels, 6, 10)
    rows = load_dataset(tmp_path).rows
    wanted = np.rint(upright.astype(np.float64) * 255 / top)
    assert np.array_equal(rows[0, 0], wanted)  # type: ignore[index]


# --- ranges of grey


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 20), st.sampled_from(["<u2", ">u2", "<i4"]), st.booleans(), st.integers(0, 2**32))
def test_deep_greys_use_their_range(bits: int, dtype: str, streamed: bool, seed: int) -> None:
    """No image is nearly black, both splits have one scale, and the file's values can be told from the pixels."""
    bits = bits if dtype == "<i4" else min(bits, 16)
    suffix = ".pgm" if dtype == ">u2" else ".tif"
    random = np.random.default_rng(seed)
    values = random.integers(0, 2**bits, (4, 3, 5))
    values[random.integers(4), 0, 0] = top = int(random.integers(2 ** (bits - 1), 2**bits))
    values = np.minimum(values, top)
    with TemporaryDirectory() as folder:
        for i, image in enumerate(values):
            path = Path(folder, "train" if i < 2 else "test", f"{i}{suffix}")
            save(path, image.astype("i4" if dtype == "<i4" else "u2"))
        options = {"memory_limit": 0, "num_workers": 0} if streamed else {}
        parts = [load_dataset(folder, split=split, **options) for split in ("train", "test")]  # type: ignore[arg-type]
        x = torch.cat([part.batch(torch.arange(2))[0] for part in parts]).double().numpy()[:, 0]
    assert x.max() >= 0.49
    assert x.max() <= 1
    white = top if top < 128 else 2 ** max(8, bits) - 1
    assert np.abs(x - values / white).max() <= 0.5 / 255 + 1e-6
    assert parts[0].notes == parts[1].notes
    assert any(f"images of at most {top}: taken for" in note for note in parts[0].notes) == (bits != 16)


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("top", [1, 16, 127, 128])
def test_eight_bits_that_use_few_values_have_levels(tmp_path: Path, top: int, streamed: bool) -> None:
    for i, split in enumerate(["train", "train", "test"]):
        save(tmp_path / split / f"{i}.png", np.array([[0, top // (1 if split == "train" else 2)]], np.uint8))
    options = {"memory_limit": 0, "num_workers": 0} if streamed else {}
    for split, largest in (("train", top), ("test", top // 2)):
        dataset = load_dataset(tmp_path, split=split, **options)  # type: ignore[arg-type]
        white = top if top < 128 else 255
        assert dataset.levels == white + 1
        assert dataset.batch(torch.arange(len(dataset)))[0].max() == pytest.approx(largest / white)
        assert any(f"taken for {top + 1} levels" in note for note in dataset.notes) == (top < 128)


def test_resized_masks_keep_their_range(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for i in range(3):
        save(tmp_path / f"{i}.png", random.choice([0, 16], (40, 40)).astype(np.uint8))
    for options in ({}, {"memory_limit": 0, "num_workers": 0}):
        x, _ = load_dataset(tmp_path, image_size=30, channels=1, **options).batch(torch.arange(3))
        assert x.max() == 1


def test_the_range_of_many_images_is_of_a_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ansn.data.folder._RANGE_SAMPLE", 2)
    for i, top in enumerate([1000, 70, 3000, 50]):
        save(tmp_path / f"{i}.tif", np.array([[0, top]], np.uint16))
    dataset = load_dataset(tmp_path)
    assert dataset.notes == (
        "16-bit images of at most 3000: taken for 12 bits (from 2 of 4 images; brighter pixels are white)",
    )
    for i, top in enumerate([1000, 5000, 3000, 5000]):
        save(tmp_path / f"{i}.tif", np.array([[0, top]], np.uint16))
    assert load_dataset(tmp_path).rows[:, 0, 0, 1].tolist() == [62, 255, 187, 255]  # type: ignore[index]


def test_deep_and_usual_greys_together(tmp_path: Path) -> None:
    save(tmp_path / "a.png", np.array([[0, 200]], np.uint8))
    save(tmp_path / "b.png", np.array([[0, 4095]], np.uint16))
    dataset = load_dataset(tmp_path)
    assert dataset.rows[:, 0, 0, 1].tolist() == [200, 255]  # type: ignore[index]
    assert dataset.levels == 256


def colour_png(values: np.ndarray) -> bytes:
    """A PNG of 16-bit colours, which Pillow does not write."""
    height, width, _ = values.shape
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"".join(b"\0" + row.astype(">u2").tobytes() for row in values))),
        (b"IEND", b""),
    ]
    packed = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def test_deep_colours_that_use_a_corner_of_their_range_warn(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 4096, (4, 5, 3))
    (tmp_path / "a.png").write_bytes(colour_png(values))
    with pytest.warns(UserWarning, match="colours of 16 bits, of which the upper 8 are read, are at most 15 of 255"):
        dataset = load_dataset(tmp_path)
    assert dataset.levels == 16
    (tmp_path / "a.png").write_bytes(colour_png(values * 16))
    dataset = load_dataset(tmp_path)
    assert np.abs(dataset.rows[0].permute(1, 2, 0).numpy() - values / 16).max() <= 1  # type: ignore[index]
    assert dataset.notes == ()


def test_both_splits_have_the_same_number_of_channels(tmp_path: Path) -> None:
    for i in range(6):
        save(tmp_path / "parts" / f"{i}.png", np.full((4, 4), 200, np.uint8))
        save(tmp_path / "own" / ("test" if i == 3 else "train") / f"{i}.png", np.full((4, 4), 200, np.uint8))
    save(tmp_path / "parts" / "3.png", np.full((4, 4, 3), 200, np.uint8))
    save(tmp_path / "own" / "test" / "3.png", np.full((4, 4, 3), 200, np.uint8))
    for name, options in (("parts", {"test_fraction": 0.5}), ("own", {})):
        shapes = {load_dataset(tmp_path / name, split=split, **options).shape for split in ("train", "test")}
        assert shapes == {(3, 4, 4)}


# --- files that are not read


def test_every_format_of_pictures_that_pillow_reads_is_listed(tmp_path: Path) -> None:
    names = [f"{suffix[1:]}{suffix}" for suffix in (".png", ".jfif", ".jpe", ".JPG", ".qoi", ".tga", ".pnm", ".dib")]
    names += [f"a{s}" for s, lib in ((".avif", "avif"), (".jp2", "jpg_2000"), (".webp", "webp")) if features.check(lib)]
    for name in names:
        kind = {".jfif": "JPEG", ".jpe": "JPEG", ".pnm": "PPM", ".dib": "DIB"}.get(Path(name).suffix)
        Image.new("RGB", (4, 4), (200, 0, 0)).save(tmp_path / name, format=kind)
    dataset = load_dataset(tmp_path)
    assert len(dataset) == len(names)
    assert dataset.notes == ()
    assert not {".h5", ".fits", ".mpg", ".eps", ".pdf", ".grib"} & SUFFIXES


def test_files_that_are_not_read_are_named(tmp_path: Path) -> None:
    for i in range(30):
        save(tmp_path / f"{i}.png", np.full((4, 4), 200, np.uint8))
    for name in ("a.csv", "b.csv", "c.HEIC", "d", ".hidden", ".git/config"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        notes = load_dataset(tmp_path).notes
    assert notes == (
        "2 files .csv, 1 files without a suffix, 1 files .heic not read",
        "2 hidden files or folders not read",
    )
    for i in range(20):
        (tmp_path / f"{i}.heic").write_text("x")
    with pytest.warns(UserWarning, match=r"30 images read, 21 files \.heic, 1 files without a suffix not: convert"):
        assert any("21 files .heic" in note for note in load_dataset(tmp_path).notes)
    for i in range(40):  # one number each, as of time steps: not a line each
        (tmp_path / f"run.{i}").write_text("x")
    with pytest.warns(UserWarning, match="files of other suffixes") as caught:
        load_dataset(tmp_path)
    assert len(str(caught[0].message)) < 400 + len(str(tmp_path))


def test_mixed_grey_and_colour_become_colour(tmp_path: Path) -> None:
    save(tmp_path / "a.png", np.full((4, 4), 9, np.uint8))
    save(tmp_path / "b.png", np.full((4, 4, 3), 7, np.uint8))
    assert load_dataset(tmp_path).shape == (3, 4, 4)
    assert load_dataset(tmp_path, channels=1).rows.unique().tolist() == [7, 9]  # type: ignore[union-attr]


# --- errors


def test_folder_errors(tmp_path: Path) -> None:
    refused(tmp_path, f"{tmp_path}: got no images among its 0 files, expected files ending in .bmp")
    save(tmp_path / "a.png", np.zeros((4, 4), np.uint8))
    save(tmp_path / "b.png", np.zeros((4, 4), np.uint8))
    save(tmp_path / "c.png", np.zeros((4, 6), np.uint8))
    refused(
        tmp_path,
        f"{tmp_path / 'c.png'}: got 4x6 (H x W), expected 4x4 as of {tmp_path / 'a.png'} and 1 more",
        "give image_size (--image-size)",
    )
    assert len(load_dataset(tmp_path, image_size=4)) == 3
    refused(tmp_path, "image_size: got 0, expected a positive number of pixels", image_size=0)
    refused(tmp_path, "channels: got 2, expected 1 (grey) or 3 (RGB)", channels=2)
    refused(tmp_path, "num_workers: got -1, expected 0 or more", num_workers=-1)
    refused(tmp_path, "memory_limit: got -1, expected 0 or more bytes", memory_limit=-1)
    save(tmp_path / "sub" / "d.png", np.zeros((4, 4), np.uint8))
    refused(tmp_path, "got a.png beside sub-folders and ", "sub/d.png", image_size=4)
    save(tmp_path / "own" / "train" / "d.png", np.zeros((4, 4), np.uint8))
    refused(tmp_path / "own", "got folders train, expected 'test' too", split="test")


@pytest.mark.parametrize("options", [{}, {"image_size": 4, "channels": 3}])
@pytest.mark.parametrize("content", [b"", b"not an image at all", None])
def test_an_unreadable_image(tmp_path: Path, content: bytes | None, options: dict[str, int]) -> None:
    pixels = some_images(1, 40, 40, 3)[0]
    for name in "abc":
        save(tmp_path / f"{name}.png", pixels)
    bad = tmp_path / "b.png"
    bad.write_bytes(bad.read_bytes()[:2000] if content is None else content)
    refused(tmp_path, f"{bad}: got no readable image (", "expected a whole", **options)


def test_streamed_repr_and_type(pets: tuple[Path, np.ndarray]) -> None:
    dataset: Dataset = load_dataset(pets[0], memory_limit=0)
    assert repr(dataset) == f"Dataset({pets[0].name}: 14 rows, image of 3x6x5, 2 classes, streamed)"
