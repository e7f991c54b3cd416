"""Scientific files: every value, name, unit and axis as the program that wrote them means it; one line for the rest."""

from __future__ import annotations

import contextlib
import gzip
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from ansn.data.scientific import is_scientific, read, split_variable, window_starts, windows
from ansn.errors import InputError

h5py = pytest.importorskip("h5py")
scipy_io = pytest.importorskip("scipy.io")
MAPS = np.random.default_rng(0).normal(280, 10, (6, 4, 5))


def refused(path: Path, variable: str | None, *parts: str) -> None:
    with pytest.raises(InputError) as caught:
        read(path, variable)
    message = str(caught.value)
    assert re.fullmatch(r".+: got .+, expected .+", message), message
    for part in (path.name, *parts):
        assert part in message, f"{part!r} not in {message!r}"


def hdf5(path: Path, **arrays: object) -> Path:
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file[name.replace("__", "/")] = values
    return path


def netcdf(path: Path, values: np.ndarray, version: int = 1, **attributes: object) -> Path:
    """A classic file, the map's coordinates and their bounds with it."""
    with scipy_io.netcdf_file(path, "w", version=version) as file:
        for name, n in zip(("time", "lat", "lon"), values.shape, strict=True):
            file.createDimension(name, n)
        file.createDimension("edges", 2)
        lat = file.createVariable("lat", "f8", ("lat",))
        lat[:] = np.arange(values.shape[1])
        lat.bounds = "lat_edges"
        file.createVariable("lat_edges", "f8", ("lat", "edges"))[:] = 0
        variable = file.createVariable("t2m", values.dtype, ("time", "lat", "lon"))
        variable[:] = values
        for name, value in attributes.items():
            setattr(variable, name, value)
    return path


def matlab_hdf5(path: Path, **arrays: np.ndarray) -> Path:
    """As MATLAB's -v7.3 writes: 512 bytes of its own first, then HDF5 with the axes reversed."""
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, values in arrays.items():
            file[name] = values.T
            file[name].attrs["MATLAB_class"] = np.bytes_("double")
        file["title"] = np.frombuffer("a map".encode("utf-16le"), np.uint16)[:, None]
        file["title"].attrs["MATLAB_class"] = np.bytes_("char")
        file["#refs#/a"] = np.zeros((3, 3))
    with path.open("r+b") as raw:
        raw.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(508) + b"\x00\x00\x00\x02"[::-1])
    return path


@pytest.mark.parametrize("dtype", [">f4", "<f8", "<f2", ">i2", "<i8", "|u1", "|b1"])
def test_hdf5_gives_each_type_in_native_order(tmp_path: Path, dtype: str) -> None:
    values = (MAPS - 270).clip(0, 50).astype(dtype)
    read_back, notes = read(hdf5(tmp_path / "a.h5", run__maps=values, time=np.arange(6)), None)
    assert read_back.dtype == values.dtype.newbyteorder("=")
    assert read_back.dtype.isnative
    np.testing.assert_array_equal(read_back, values)
    assert notes == ["run/maps: 6 x 4 x 5", "not read of this file: time 6"]


def test_chunks_compressed_and_a_whole_file_compressed(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", data=MAPS, chunks=(2, 2, 5), compression="gzip", shuffle=True, fletcher32=True)
    (tmp_path / "b.h5.gz").write_bytes(gzip.compress((tmp_path / "a.h5").read_bytes()))
    for name in ("a.h5", "b.h5.gz"):
        np.testing.assert_array_equal(read(tmp_path / name, "x")[0], MAPS)
    (tmp_path / "c.nc.gz").write_bytes(gzip.compress(netcdf(tmp_path / "c.nc", MAPS).read_bytes()))
    np.testing.assert_array_equal(read(tmp_path / "c.nc.gz", None)[0], MAPS)
    scipy_io.savemat(tmp_path / "d.mat", {"x": MAPS})
    (tmp_path / "d.mat.gz").write_bytes(gzip.compress((tmp_path / "d.mat").read_bytes()))
    np.testing.assert_array_equal(read(tmp_path / "d.mat.gz", "x")[0], MAPS)


@pytest.mark.parametrize("version", [1, 2])
def test_classic_netcdf_with_units_and_axes(tmp_path: Path, version: int) -> None:
    path = netcdf(tmp_path / "a.nc", MAPS.astype("f4"), version, units="K")
    values, notes = read(path, None)  # the latitudes' bounds are two axes too, but no data
    np.testing.assert_array_equal(values, MAPS.astype("f4"))
    assert notes == ["t2m [K] (time, lat, lon): 6 x 4 x 5", "not read of this file: lat_edges 4 x 2, lat 4"]
    assert read(path, "lat")[0].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("kind", ["netcdf", "hdf5"])
def test_packed_values_and_fill_values(tmp_path: Path, kind: str) -> None:
    stored = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    stored[0, 0, :2] = -99, -98
    rule = {"scale_factor": np.float64(0.01), "add_offset": np.float64(273.15)}
    rule |= {"_FillValue": np.int16(-99), "missing_value": np.int16(-98)}
    if kind == "netcdf":
        path = netcdf(tmp_path / "a.nc", stored, **rule)
    else:
        path = hdf5(tmp_path / "a.nc", t2m=stored)
        with h5py.File(path, "r+") as file:
            file["t2m"].attrs.update({**rule, "units": "K"})
            for i, name in enumerate(("time", "lat", "lon")):
                file[name] = np.arange(stored.shape[i])
                file[name].make_scale(name)
                file["t2m"].dims[i].attach_scale(file[name])
    values, notes = read(path, "t2m")
    expected = stored * 0.01 + 273.15
    expected[0, 0, :2] = np.nan
    assert values.dtype == np.float64
    np.testing.assert_allclose(values, expected, rtol=1e-15)
    assert "(time, lat, lon): 2 x 3 x 4, unpacked as 0.01 * stored + 273.15, 2 fill values are missing" in notes[0]


def test_integers_stay_integers_and_floats_stay_as_wide_where_nothing_is_missing(tmp_path: Path) -> None:
    whole = np.arange(24, dtype=np.int32).reshape(2, 3, 4)
    assert read(netcdf(tmp_path / "a.nc", whole, _FillValue=np.int32(-1)), "t2m")[0].dtype == np.int32
    single = MAPS.astype("f4")
    single[0, 0, 0] = 9.969209968386869e36  # what the library writes where nothing was written
    values, _ = read(netcdf(tmp_path / "b.nc", single), "t2m")
    assert values.dtype == np.float32
    assert np.isnan(values).sum() == 1
    # The same number in a file that is no netCDF is a number.
    assert not np.isnan(read(hdf5(tmp_path / "b.h5", x=single), "x")[0]).any()


def test_unsigned_bytes_of_classic_netcdf(tmp_path: Path) -> None:
    stored = np.arange(-128, 112, dtype=np.int8).reshape(2, 10, 12)
    path = netcdf(tmp_path / "a.nc", stored, _Unsigned="true", _FillValue=np.int8(-1))
    values, _ = read(path, "t2m")
    expected = stored.view(np.uint8).astype(float)
    expected[expected == 255] = np.nan
    np.testing.assert_array_equal(values, expected)


@pytest.mark.parametrize("form", ["4", "5", "7.3"])
def test_matlab_gives_matlabs_axes(tmp_path: Path, form: str) -> None:
    values = MAPS if form != "4" else MAPS[0]
    path = tmp_path / "a.mat"
    if form == "7.3":
        matlab_hdf5(path, x=values, n=np.ones((1, 1)))
    else:
        scipy_io.savemat(path, {"x": values, "n": 3, "title": "a map"}, format=form, do_compression=form == "5")
    read_back, notes = read(path, None)
    np.testing.assert_array_equal(read_back, values)
    assert notes[0] == f"x: {' x '.join(map(str, values.shape))}"
    refused(path, "title", "title, which is char")


def test_matlab_numbers_have_the_type_that_matlab_says(tmp_path: Path) -> None:
    scipy_io.savemat(tmp_path / "a.mat", {"x": np.eye(3), "b": np.eye(3, dtype=np.uint8), "t": np.eye(3) > 0})
    assert [read(tmp_path / "a.mat", name)[0].dtype for name in ("x", "b", "t")] == [np.float64, np.uint8, np.bool_]


def test_a_lone_series_needs_no_name_and_several_arrays_need_one(tmp_path: Path) -> None:
    assert read(hdf5(tmp_path / "a.h5", series=MAPS.ravel(), rate=3.0))[0].shape == (120,)
    path = hdf5(tmp_path / "b.h5", a=MAPS, g__b=MAPS[0], names=np.array([b"x"]), t=np.arange(6))
    refused(path, None, "got 2 arrays, expected b.h5:VARIABLE with one of a 6 x 4 x 5, g/b 4 x 5")
    np.testing.assert_array_equal(read(path, "/g/b")[0], MAPS[0])
    refused(path, "c", "got no array 'c', expected one of a 6 x 4 x 5, g/b 4 x 5, t 6")
    refused(path, "", "got no array ''")
    refused(path, "g", "got no array 'g'")
    refused(hdf5(tmp_path / "c.h5"), None, "got no array of numbers")


def test_what_is_no_array_of_numbers(tmp_path: Path) -> None:
    path = hdf5(
        tmp_path / "a.h5",
        text=np.array([[b"ab"]]),
        words=np.array(["a", "b"], h5py.string_dtype()),
        records=np.zeros(3, [("a", "f4"), ("b", "i4")]),
        complex=np.zeros((2, 2), complex),
        ragged=np.array([np.arange(2), np.arange(3)], dtype=h5py.vlen_dtype(int)),
        empty=h5py.Empty("f8"),
    )
    for name in ("text", "words", "records", "complex", "ragged", "empty"):
        refused(path, name, f"got {name}, which is", "expected an array of numbers")
    things = {"s": {"a": 1}, "c": np.array([1, "a"], object), "z": np.ones((2, 2)) * 1j}
    things |= {"sparse": sparse.csc_array(np.eye(3)), "yes": sparse.csc_array(np.eye(3) > 0)}
    scipy_io.savemat(tmp_path / "a.mat", things)
    for name in things:
        refused(tmp_path / "a.mat", name, "expected an array of numbers")


def test_no_other_file_is_opened(tmp_path: Path) -> None:
    secret = hdf5(tmp_path / "secret.h5", x=MAPS)
    (tmp_path / "raw").write_bytes(bytes(800))
    layout = h5py.VirtualLayout((6, 4, 5), "f8")
    layout[:] = h5py.VirtualSource(secret, "x", (6, 4, 5))
    path = hdf5(tmp_path / "a.h5", x=MAPS)
    with h5py.File(path, "r+") as file:
        file["out"] = h5py.ExternalLink("secret.h5", "x")
        file["soft"] = h5py.SoftLink("/x")
        file["again"] = file["x"]
        file.create_virtual_dataset("virtual", layout)
        file.create_dataset("raw", (100,), "f8", external=[(str(tmp_path / "raw"), 0, 800)])
        file["group"] = h5py.ExternalLink("secret.h5", "/")
    refused(path, "out", "got a link from out to x")
    refused(path, "soft", "got a link from soft to /x")
    refused(path, "group/x", "got a link from group/x to /")
    for name in ("virtual", "raw"):
        refused(path, name, "kept in other files")
    assert read(path, None)[1] == ["again: 6 x 4 x 5"]  # the others are nowhere
    np.testing.assert_array_equal(read(path, "x")[0], MAPS)


def test_a_header_that_promises_too_much(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", (10**6, 10**4, 10**3), "f8", chunks=(1, 100, 100))
    refused(tmp_path / "a.h5", "x", "GiB of memory available")
    data = bytearray(netcdf(tmp_path / "a.nc", MAPS).read_bytes())
    i = data.index(b"lon\0") + 4
    data[i : i + 4] = (2**31 - 8).to_bytes(4, "big")
    (tmp_path / "b.nc").write_bytes(data)
    refused(tmp_path / "b.nc", "t2m")


def test_damaged_files_are_one_line(tmp_path: Path) -> None:
    scipy_io.savemat(tmp_path / "a.mat", {"x": MAPS}, do_compression=True)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", data=MAPS, chunks=(2, 2, 5), compression="gzip", fletcher32=True)
    files = [tmp_path / "a.mat", tmp_path / "a.h5", netcdf(tmp_path / "a.nc", MAPS)]
    rng = np.random.default_rng(0)
    for path in files:
        whole, cut = path.read_bytes(), tmp_path / f"cut{path.suffix}"
        for n in (0, 4, len(whole) // 3, len(whole) - 9):
            cut.write_bytes(whole[:n])
            refused(cut, "x" if path.suffix != ".nc" else "t2m")
        for _ in range(30):
            data = bytearray(whole)
            for i in rng.integers(0, len(data), 4):
                data[i] = rng.integers(256)
            cut.write_bytes(data)
            with contextlib.suppress(InputError):
                read(cut, None)


def test_64_bit_classic_and_missing_files_and_other_content(tmp_path: Path) -> None:
    (tmp_path / "a.nc").write_bytes(b"CDF\x05" + bytes(28))
    refused(tmp_path / "a.nc", None, "64-bit data", "nccopy -k nc4")
    refused(tmp_path / "none.h5", None, "no such file")
    (tmp_path / "a.h5").write_text("time,value\n1,2\n")
    refused(tmp_path / "a.h5", None, "cannot be read")


def test_without_h5py_one_line_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = hdf5(tmp_path / "a.h5", x=MAPS)
    monkeypatch.setitem(sys.modules, "h5py", None)
    refused(path, None, "pip install h5py")
    assert read(netcdf(tmp_path / "a.nc", MAPS), None)[0].shape == (6, 4, 5)


def test_files_are_known_by_content_or_ending(tmp_path: Path) -> None:
    scipy_io.savemat(tmp_path / "a.mat", {"x": MAPS})
    made = (hdf5(tmp_path / "a", x=1), netcdf(tmp_path / "b", MAPS), matlab_hdf5(tmp_path / "c"), tmp_path / "a.mat")
    for path in made:
        assert is_scientific(Path("unnamed"), path.read_bytes()[:8])
    for name in ("a.h5", "A.HDF5", "a.nc", "a.mat", "a.nc.gz"):
        assert is_scientific(Path(name), b"")
    assert not is_scientific(Path("a.npy"), b"\x93NUMPY")


def test_a_variable_after_a_colon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.h5", "12:30.h5", "plain", "toy2d"):
        (tmp_path / name).touch()
    for name, expected in {
        "a.h5": ("a.h5", None),
        "a.h5:x": ("a.h5", "x"),
        "a.h5:run 1/x": ("a.h5", "run 1/x"),
        "a.h5:x:y": ("a.h5", "x:y"),
        "a.h5:": ("a.h5", ""),
        "12:30.h5": ("12:30.h5", None),
        "12:30.h5:x": ("12:30.h5", "x"),
        "plain:x": ("plain", "x"),
        "none.nc:x": ("none.nc", "x"),  # the file that is missing is none.nc
        "none:x": ("none:x", None),
        "toy2d:moons": ("toy2d:moons", None),
        r"C:\data\a.h5": (r"C:\data\a.h5", None),
        r"C:\data\a.h5:x": (r"C:\data\a.h5", "x"),
        "C:/a.csv": ("C:/a.csv", None),
    }.items():
        assert split_variable(name) == expected


@given(st.integers(1, 60), st.integers(1, 20), st.one_of(st.none(), st.integers(1, 30)), st.floats(0, 0.9))
def test_no_window_of_train_reaches_into_one_of_test(
    total: int, window: int, stride: int | None, fraction: float
) -> None:
    series = np.arange(2 * total).reshape(total, 2)
    if total < (2 * window if fraction else window) or total - round(total * fraction) < window:
        with pytest.raises(InputError, match=r"window: got \d+ for a series of \d+, expected"):
            window_starts(total, window, stride, fraction=fraction)
        return
    starts = window_starts(total, window, stride, fraction=fraction)
    train = windows(series, window, starts)
    assert train.shape == (len(starts), 2, window)
    for start, rows in zip(starts, train, strict=True):
        np.testing.assert_array_equal(rows, series[start : start + window].T)
    assert set(np.diff(starts)) <= {stride or max(1, window // 2)}
    if fraction:
        test = windows(series, window, window_starts(total, window, stride, split="test", fraction=fraction))
        assert len(test)
        assert train.max() < test.min()


def test_windows_of_a_line_and_what_is_refused() -> None:
    assert windows(np.arange(7.0), 4, window_starts(7, 4)).tolist() == [[[0, 1, 2, 3]], [[2, 3, 4, 5]]]
    for call, message in [
        (lambda: windows(np.zeros((2, 3, 4)), 2, np.arange(1)), "window: got an array of shape 2 x 3 x 4, expected"),
        (lambda: window_starts(3, 4), "window: got 4 for a series of 3, expected one that leaves room for one window"),
        (lambda: window_starts(3, 0), "window: got 0, expected at least 1"),
        (lambda: window_starts(3, 2, 0), "stride: got 0, expected at least 1"),
        (lambda: window_starts(9, 2, fraction=1.5), "test_fraction: got 1.5 of a series of 9, expected"),
        (lambda: window_starts(9, 2, split="test"), "test_fraction: got 0.0 of a series of 9, expected"),
    ]:
        with pytest.raises(InputError) as caught:
            call()
        assert str(caught.value).startswith(message)
