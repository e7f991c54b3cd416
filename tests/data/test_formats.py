"""Round trips of every format against bytes written independently of the readers."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.datasets import load_digits

from ansn.data import load_dataset, toy2d
from ansn.data.arrays import read_npy
from ansn.data.idx import read_idx
from ansn.data.units import Table
from tests.data.writers import PACKERS, cifar_bytes, idx_bytes, some_images, write, write_mnist

STANDARD_ERRORS = 5.0
IDX_DTYPES = st.sampled_from(["u1", "i1", "i2", "i4", "f4", "f8"]).map(np.dtype)


# --- IDX


@given(
    values=IDX_DTYPES.flatmap(lambda t: hnp.arrays(t, hnp.array_shapes(min_dims=1, max_dims=4, max_side=5))),
    suffix=st.sampled_from(list(PACKERS)),
)
@settings(max_examples=60, deadline=None)
def test_idx_of_any_shape_and_type(values: np.ndarray, suffix: str) -> None:
    with TemporaryDirectory() as folder:
        read = read_idx(write(Path(folder, f"some-idx{suffix}"), idx_bytes(values)))
    assert read.dtype == values.dtype
    assert read.shape == values.shape
    assert read.tobytes() == values.tobytes()


@pytest.mark.parametrize("suffix", list(PACKERS))
@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
@pytest.mark.parametrize("below", [True, False])
def test_mnist_by_name(tmp_path: Path, name: str, below: bool, suffix: str) -> None:
    for split, count in (("train", 12), ("test", 7)):
        images, labels = some_images(count, 28, 28, seed=count), np.arange(count, dtype=np.uint8) % 10
        write_mnist(tmp_path / name if below else tmp_path, images, labels, split, suffix)
        dataset = load_dataset(name, root=tmp_path, split=split)
        assert (dataset.name, dataset.kind, dataset.shape, dataset.num_classes) == (
            name,
            "image",
            (1, 28, 28),
            10,
        )
        assert len(dataset.classes or ()) == 10
        assert torch.equal(dataset.rows, torch.from_numpy(images)[:, None])  # type: ignore[arg-type]
        assert dataset.labels is not None
        assert dataset.labels.dtype == torch.int64
        assert dataset.labels.tolist() == labels.tolist()


def test_a_folder_of_idx_files_is_recognised(tmp_path: Path) -> None:
    write_mnist(tmp_path, some_images(5, 9, 8), np.array([0, 3, 1, 3, 2], np.uint8))
    dataset = load_dataset(tmp_path, flip=True)
    assert (dataset.shape, dataset.num_classes, dataset.flip) == ((1, 9, 8), 4, True)


def test_idx_names_with_a_dot(tmp_path: Path) -> None:
    write(tmp_path / "train-images.idx3-ubyte", idx_bytes(some_images(3, 28, 28)))
    write(tmp_path / "train-labels.idx1-ubyte", idx_bytes(np.zeros(3, np.uint8)))
    assert len(load_dataset("mnist", root=tmp_path)) == 3


def test_one_idx_file_finds_its_labels(tmp_path: Path) -> None:
    write_mnist(tmp_path, some_images(3, 6, 6), np.array([1, 0, 2], np.uint8), suffix=".xz")
    dataset = load_dataset(tmp_path / "train-images-idx3-ubyte.xz")
    assert dataset.labels is not None
    assert dataset.labels.tolist() == [1, 0, 2]
    (tmp_path / "train-labels-idx1-ubyte.xz").unlink()
    assert load_dataset(tmp_path / "train-images-idx3-ubyte.xz").labels is None


def test_compression_is_told_by_content(tmp_path: Path) -> None:
    (tmp_path / "odd-idx").write_bytes(PACKERS[".xz"](idx_bytes(some_images(3, 6, 6))))
    assert len(load_dataset(tmp_path / "odd-idx")) == 3


# --- CIFAR-10


@pytest.mark.parametrize("suffix", list(PACKERS))
def test_cifar10(tmp_path: Path, suffix: str) -> None:
    images, labels = some_images(20, 3, 32, 32), np.arange(20) % 10
    for i in range(5):
        part = slice(4 * i, 4 * i + 4)
        write(tmp_path / f"cifar10/data_batch_{i + 1}.bin{suffix}", cifar_bytes(images[part], labels[part]))
    write(tmp_path / f"cifar10/test_batch.bin{suffix}", cifar_bytes(images[:2], labels[:2]))
    for dataset in (load_dataset("cifar10", root=tmp_path), load_dataset(tmp_path / "cifar10")):
        assert (dataset.name, dataset.shape, dataset.num_classes) == ("cifar10", (3, 32, 32), 10)
        assert torch.equal(dataset.rows, torch.from_numpy(images))  # type: ignore[arg-type]
        assert dataset.labels is not None
        assert dataset.labels.tolist() == labels.tolist()
    assert len(load_dataset("cifar10", root=tmp_path, split="test")) == 2


# --- arrays


def test_npy_layouts(tmp_path: Path) -> None:
    images = some_images(4, 3, 6, 5)
    for name, stored in {
        "first": images,
        "last": np.moveaxis(images, 1, 3),
        "fortran": np.asfortranarray(images),
        "wide": images.astype(">i4"),
    }.items():
        np.save(tmp_path / f"{name}.npy", stored)
        dataset = load_dataset(tmp_path / f"{name}.npy")
        assert torch.equal(dataset.rows, torch.from_numpy(images)), name  # type: ignore[arg-type]
    np.save(tmp_path / "grey.npy", images[:, 0])
    assert load_dataset(tmp_path / "grey.npy").shape == (1, 6, 5)
    np.save(tmp_path / "bool.npy", images[:, 0] > 100)
    x, _ = load_dataset(tmp_path / "bool.npy").batch(torch.arange(4))
    assert torch.equal(x[:, 0], torch.from_numpy(images[:, 0] > 100).float())
    np.save(tmp_path / "float.npy", images / 255)
    dataset = load_dataset(tmp_path / "float.npy")
    assert dataset.quantisation == 0
    assert torch.equal(dataset.rows, torch.from_numpy((images / 255).astype(np.float32)))  # type: ignore[arg-type]


@pytest.mark.parametrize(("shape", "kind"), [((1, 9), "field"), ((3, 4, 5, 6), "field"), ((2, 9), "image")])
def test_npy_fields(tmp_path: Path, shape: tuple[int, ...], kind: str) -> None:
    rows = np.random.default_rng(0).normal(5, 100, (12, *shape))
    if kind == "image":  # two rows of pixels or two channels of a line: as before there were lines
        rows = (rows - rows.min()) / np.ptp(rows)
    np.save(tmp_path / "f.npy", rows)
    dataset = load_dataset(tmp_path / "f.npy", test_fraction=0.25)
    assert (dataset.kind, dataset.columns, dataset.quantisation, len(dataset)) == (kind, None, 0, 9)
    assert dataset.shape == (shape if kind == "field" else (1, *shape))
    x = dataset.to_data_units(dataset.batch(torch.arange(9))[0])
    everything = torch.from_numpy(rows).flatten(1)
    nearest = (x.flatten(1)[:, None] - everything).abs().amax(-1).min(1)
    assert nearest.values.max() < 1e-5 * np.abs(rows).max()
    assert len(nearest.indices.unique()) == 9
    if shape == (1, 9):
        np.save(tmp_path / "grey.npy", (rows > 0).astype(np.uint8))
        assert load_dataset(tmp_path / "grey.npy").shape == (1, 1, 9)  # integers are pixels


@given(
    values=st.sampled_from(["u1", ">i2", "<i8", "f2", ">f4", "f8", "?"]).flatmap(
        lambda t: hnp.arrays(np.dtype(t), hnp.array_shapes(max_dims=3, max_side=4))
    ),
    fortran=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_npy_of_any_type(values: np.ndarray, fortran: bool) -> None:
    file = io.BytesIO()
    np.save(file, np.asfortranarray(values) if fortran else values)
    file.seek(0)
    read = read_npy(file, "memory")
    assert read.dtype == (np.float32 if values.dtype == np.float16 else values.dtype.newbyteorder("="))
    np.testing.assert_array_equal(read, values)


def test_npy_tables_are_standardised_unless_it_is_refused(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(5, [1, 100, 1e-3], (200, 3))
    np.save(tmp_path / "v.npy", values)
    plain = load_dataset(tmp_path / "v.npy", standardise=False)
    assert torch.equal(plain.rows, torch.from_numpy(values.astype(np.float32)))  # type: ignore[arg-type]
    scaled = load_dataset(tmp_path / "v.npy")
    np.testing.assert_allclose(scaled.rows.double().std(0, correction=0), 1, rtol=1e-6)  # type: ignore[union-attr]
    error = scaled.to_data_units(scaled.rows).numpy() - values  # type: ignore[arg-type]
    assert (np.abs(error).max(0) < 1e-6 * values.std(0)).all()


@pytest.mark.parametrize("keys", [("x", "y"), ("images", "labels"), ("data", "y"), ("arr_0", "labels")])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_keys(tmp_path: Path, keys: tuple[str, str], save: object) -> None:
    images = some_images(6, 4, 4)
    save(tmp_path / "a.npz", **{keys[0]: images, keys[1]: np.arange(6.0) % 3})  # type: ignore[operator]
    dataset = load_dataset(tmp_path / "a.npz")
    assert torch.equal(dataset.rows, torch.from_numpy(images)[:, None])  # type: ignore[arg-type]
    assert dataset.labels is not None
    assert dataset.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert load_dataset(tmp_path / "a.npz", num_classes=5).num_classes == 5


def test_npz_with_its_own_splits(tmp_path: Path) -> None:
    x, y = some_images(6, 4, 4), np.arange(6)
    np.savez(tmp_path / "a.npz", x_train=x[:4], y_train=y[:4], x_test=x[4:], y_test=y[4:])
    test = load_dataset(tmp_path / "a.npz", split="test")
    assert torch.equal(test.rows, torch.from_numpy(x[4:])[:, None])  # type: ignore[arg-type]
    assert test.labels is not None
    assert test.labels.tolist() == [4, 5]


def test_npz_is_a_plain_zip_of_npy(tmp_path: Path) -> None:
    file = io.BytesIO()
    np.save(file, some_images(3, 4, 4))
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("anything.npy", file.getvalue())
    assert len(load_dataset(tmp_path / "a.npz")) == 3


# --- CSV


def test_csv_is_standardised_and_maps_back(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = rng.normal([3, -1e6, 1e-9], [2, 1e3, 1e-12], (300, 3))
    text = "height,weight,width\n" + "\n".join(",".join(repr(float(v)) for v in row) for row in values)
    (tmp_path / "t.csv").write_text(text)
    dataset = load_dataset(tmp_path / "t.csv")
    assert (dataset.name, dataset.kind, dataset.columns) == ("t.csv", "table", ("height", "weight", "width"))
    assert isinstance(dataset.units, Table)
    np.testing.assert_allclose([c.offset for c in dataset.units.columns], values.mean(0), rtol=1e-12)
    np.testing.assert_allclose([c.scale for c in dataset.units.columns], values.std(0), rtol=1e-9)
    x, _ = dataset.batch(torch.arange(300))
    np.testing.assert_allclose(x.double().mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(x.double().var(0, unbiased=False), 1, atol=1e-6)
    back = dataset.to_data_units(x).numpy()
    assert np.abs((back - values) / values.std(0)).max() < 1e-6


@pytest.mark.parametrize(
    "text",
    [
        "1,2\n3,4\n5,9\n",
        "\ufeffa,b\r\n1,2\r\n\r\n3,4\r\n5,9\r\n",
        'a,b\n"1","2"\n 3 ,4\n5,9e0',
        "a;b\n1;2\n3;4\n5;9\n",
        "a\tb\n1\t2\n3\t4\n5\t9\n\n",
    ],
)
@pytest.mark.parametrize("suffix", list(PACKERS))
def test_csv_dialects(tmp_path: Path, text: str, suffix: str) -> None:
    dataset = load_dataset(write(tmp_path / f"t.csv{suffix}", text.encode()), standardise=False)
    assert dataset.rows.tolist() == [[1, 2], [3, 4], [5, 9]]  # type: ignore[union-attr]
    assert dataset.columns == (("x0", "x1") if text[0] == "1" else ("a", "b"))


@pytest.mark.parametrize(
    ("cells", "labels", "classes"),
    [
        (["dog", "cat", "dog"], [1, 0, 1], ("cat", "dog")),
        (["10", "9", "10.0"], [1, 0, 1], ("9", "10")),
        (["-1", "1", "-1"], [0, 1, 0], ("-1", "1")),
    ],
)
@pytest.mark.parametrize(("header", "column"), [("a,b,kind\n", "kind"), ("a,b,kind\n", 2), ("", -1)])
def test_csv_labels(
    tmp_path: Path,
    cells: list[str],
    labels: list[int],
    classes: tuple[str, ...],
    header: str,
    column: str | int,
) -> None:
    rows = [f"{i},{i * i},{cell}" for i, cell in enumerate(cells)]
    (tmp_path / "t.csv").write_text(header + "\n".join(rows))
    dataset = load_dataset(tmp_path / "t.csv", label_column=column)
    assert (dataset.shape, dataset.num_classes, dataset.classes) == ((2,), 2, classes)
    assert dataset.labels is not None
    assert dataset.labels.tolist() == labels


def test_csv_columns_can_be_ignored_and_a_numeric_header_stated(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("2001,2002,id\n1,2,p\n3,5,q\n")
    dataset = load_dataset(tmp_path / "t.csv", header=True, ignore_columns=["id"], standardise=False)
    assert dataset.columns == ("2001", "2002")
    assert dataset.rows.tolist() == [[1, 2], [3, 5]]  # type: ignore[union-attr]


# --- held-out rows


def test_test_fraction_splits_rows_once_and_standardises_by_train(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(50, 2))
    np.savetxt(tmp_path / "t.csv", values, delimiter=",")
    train, test = (
        load_dataset(tmp_path / "t.csv", split=split, test_fraction=0.2) for split in ("train", "test")
    )
    assert (len(train), len(test)) == (40, 10)
    both = torch.cat([d.to_data_units(d.rows) for d in (train, test)])  # type: ignore[arg-type]
    np.testing.assert_allclose(np.sort(both, 0), np.sort(values, 0), atol=1e-6)
    assert train.units == test.units
    np.testing.assert_allclose(train.rows.double().mean(0), 0, atol=1e-6)  # type: ignore[union-attr]
    np.save(tmp_path / "v.npy", values)
    parts = [load_dataset(tmp_path / "v.npy", split=split, test_fraction=0.2) for split in ("train", "test")]
    both = torch.cat([d.to_data_units(d.rows) for d in parts])  # type: ignore[arg-type]
    np.testing.assert_allclose(np.sort(both, 0), np.sort(values, 0), atol=1e-6)


# --- digits


def test_digits_are_scikit_learns() -> None:
    bunch = load_digits()
    train, test = load_dataset("digits"), load_dataset("digits", split="test")
    assert (len(train), len(test), train.shape, train.num_classes) == (1347, 450, (1, 8, 8), 10)
    assert train.quantisation == pytest.approx(1 / (12 * 16**2))
    x = torch.cat([d.batch(torch.arange(len(d)))[0] for d in (train, test)])
    labels = torch.cat([d.labels for d in (train, test)])  # type: ignore[misc]
    assert x.max() == 1

    def multiset(images: np.ndarray, targets: np.ndarray) -> list[bytes]:
        return sorted(
            bytes(np.append(i.ravel(), k).astype(np.uint8)) for i, k in zip(images, targets, strict=True)
        )

    assert multiset((x * 16).numpy(), labels.numpy()) == multiset(bunch.images, bunch.target)
    assert torch.equal(load_dataset("digits").rows, train.rows)  # type: ignore[arg-type]
    for dataset in (train, test):  # shuffled: every class in every part, in about equal numbers
        counts = torch.bincount(dataset.labels, minlength=10)  # type: ignore[arg-type]
        assert counts.min() > 0.6 * len(dataset) / 10


# --- toy2d


@pytest.mark.parametrize("kind", toy2d.KINDS)
def test_toy_is_a_function_of_its_seed(kind: str) -> None:
    first = load_dataset(f"toy2d:{kind}", samples=500)
    again = load_dataset(f"toy2d:{kind}", samples=400)
    assert torch.equal(first.rows[:400], again.rows)  # type: ignore[index, arg-type]
    assert (first.shape, first.kind, first.name) == ((2,), "table", f"toy2d:{kind}")
    for other in (
        load_dataset(f"toy2d:{kind}", samples=500, data_seed=1),
        load_dataset(f"toy2d:{kind}", samples=500, split="test"),
    ):
        assert not torch.isclose(other.rows, first.rows).any()  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["8-gaussians", "anisotropic", "gaussian"])
def test_toy_components_have_their_stated_moments(kind: str) -> None:
    weights, means, covariances = toy2d.gaussian_mixture(kind)
    assert weights.sum() == pytest.approx(1)
    n = 40_000
    dataset = load_dataset(f"toy2d:{kind}", samples=n)
    x, labels = dataset.rows.double().numpy(), dataset.labels.numpy()  # type: ignore[union-attr]
    for k, (w, m, c) in enumerate(zip(weights, means, covariances, strict=True)):
        own = x[labels == k]
        count = len(own)
        assert abs(count / n - w) <= STANDARD_ERRORS * np.sqrt(w * (1 - w) / n)
        assert (np.abs(own.mean(0) - m) < STANDARD_ERRORS * np.sqrt(np.diag(c) / count)).all()
        error = np.sqrt((c**2 + np.outer(np.diag(c), np.diag(c))) / count)
        assert (np.abs(np.cov(own.T) - c) < STANDARD_ERRORS * error).all()


def test_moons_lie_on_their_arcs() -> None:
    dataset = load_dataset("toy2d:two-moons", samples=5000)
    x, labels = dataset.rows.double(), dataset.labels  # type: ignore[union-attr]
    centres = torch.tensor([[0.0, 0.0], [1.0, 0.5]])
    distance = (x - centres[labels]).norm(dim=1) - 1  # type: ignore[index]
    assert distance.abs().max() < 0.6
    assert distance.std() == pytest.approx(0.1, rel=0.1)
