"""The random number contract of the native kernels: the same integers everywhere, normals to 1e-5."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ansn.ops import reference
from tests.native import oracle

native = pytest.importorskip("ansn._native", reason="the native module is not built")

TOL = {"normals": 1e-5}
ISAS = native.supported_isas()

# where a branch-free formula could break: ends of the range, the octants' edges, u near 1/2 and sqrt(1/2)
EDGES = sorted(
    {
        (centre + offset) & 0xFFFFFFFF
        for centre in [
            0,
            0xFFFFFFFF,
            0xB504F333,
            0x5A82799A,
            *(1 << k for k in range(32)),
            *(k << 29 for k in range(8)),
        ]
        for offset in (-2, -1, 0, 1, 2)
    }
    | {0xFFFFFFFF - (1 << k) for k in range(32)}
)


@pytest.mark.parametrize("isa", ISAS)
def test_known_answers(isa):
    words = native.philox_words(0, 0, 0, 0, 1, isa=isa)
    assert words.dtype == np.uint32
    assert [f"{w:08x}" for w in words[0]] == ["6627e8d5", "e169c58d", "bc57ac4c", "9b00dbd8"]


# Random123's kat_vectors, "philox4x32 10": zeros, ones, digits of pi
KNOWN = [
    ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ((2**32 - 1,) * 4, (2**32 - 1,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_published_vectors(counter, key, words):
    """The NumPy oracle, the reference and every instruction set."""
    (quad, row, step, stream), seed = counter, key[0] | key[1] << 32
    found = {"oracle": oracle.philox_words(seed, row, quad, step, stream)}
    at = torch.tensor(row), torch.tensor(quad)
    found["reference"] = reference.philox_words(seed, *at, step, stream).numpy()
    for isa in ISAS:
        found[isa] = native.philox_words(seed, row, step, stream, 1, isa=isa, quad0=quad)[0]
    for name, value in found.items():
        assert " ".join(f"{int(w):08x}" for w in value) == words, name


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.integers(0, 2**63 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1),
    st.integers(0, 2**32 - 300),
)  # fmt: skip
def test_words_are_the_same_everywhere(seed, row, step, stream, quad0):
    """Bit for bit: NumPy, torch, each instruction set; 37 quads are no multiple of any vector."""
    expected = oracle.philox_words(seed, row, np.arange(quad0, quad0 + 37), step, stream)
    quads = torch.arange(quad0, quad0 + 37)
    np.testing.assert_array_equal(reference.philox_words(seed, torch.tensor(row), quads, step, stream), expected)
    for isa in ISAS:
        np.testing.assert_array_equal(native.philox_words(seed, row, step, stream, 37, isa=isa, quad0=quad0), expected)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    ("seed", "row", "step", "stream", "quads"),
    [
        (0, 0, 0, 0, 1),
        (1, 2, 3, 1, 17),
        (0x0123456789ABCDEF, 2**32 - 1, 2**32 - 1, 3, 1000),
        (-1, 2**32 + 5, 7, 0, 130),
    ],
)
def test_words_equal_the_oracle(isa, seed, row, step, stream, quads):
    words = native.philox_words(seed, row, step, stream, quads, isa=isa)
    expected = oracle.philox_words(seed % 2**64, row % 2**32, np.arange(quads), step, stream)
    np.testing.assert_array_equal(words, expected)


def test_seed_uses_all_64_bits_and_wraps():
    def words(seed):
        return native.philox_words(seed, 0, 0, 0, 4).tolist()

    assert words(1) != words(1 + 2**32)
    assert words(3) == words(3 + 2**64)
    assert words(-1) == words(2**64 - 1)


@pytest.mark.parametrize("isa", ISAS)
def test_normals_of_random_words(isa):
    words = np.random.default_rng(0).integers(0, 2**32, (1 << 18, 4), dtype=np.uint32)
    error = np.abs(native.normals_from_words(words, isa=isa) - oracle.box_muller(words))
    assert error.max() < TOL["normals"]


@pytest.mark.parametrize("isa", ISAS)
def test_normals_of_adversarial_words(isa):
    first, second = np.meshgrid(np.array(EDGES, np.uint32), np.array(EDGES, np.uint32))
    words = np.stack([first, second, second, first], axis=-1).reshape(-1, 4)
    z = native.normals_from_words(words, isa=isa)
    assert np.isfinite(z).all()
    assert np.abs(z - oracle.box_muller(words)).max() < TOL["normals"]


@pytest.mark.parametrize("isa", ISAS)
def test_small_radii_keep_their_digits(isa):
    """u = 1 - (k + 1/2) 2^-32 is 1 in float32 for small k; the radius there is sqrt(2 (1 - u)), not 0."""
    k = np.arange(2000)
    words = np.zeros((len(k), 4), np.uint32)
    words[:, 0] = 0xFFFFFFFF - k
    radius = np.hypot(*native.normals_from_words(words, isa=isa)[:, :2].astype(np.float64).T)
    np.testing.assert_allclose(radius, np.sqrt(2.0 * (k + 0.5) * 2.0**-32), rtol=1e-5)


@pytest.mark.parametrize("isa", ISAS)
def test_normals_of_a_row(isa):
    z = native.normals(42, 9, 3, 1, 200, isa=isa)
    assert z.dtype == np.float32
    np.testing.assert_allclose(z.ravel(), oracle.noise(42, 9, 1, 800, 3, 1)[0], atol=TOL["normals"])


def test_moments():
    """Within five standard errors: four moments of 4 million normals, and the correlation of neighbours."""
    z = native.normals(7, 0, 0, 0, 1 << 20).ravel().astype(np.float64)
    n = z.size
    for power, expected, variance in [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)]:
        assert abs((z**power).mean() - expected) < 5 * np.sqrt(variance / n), f"moment {power}"
    for lag in (1, 2, 3, 4, 8, 64):
        assert abs((z[:-lag] * z[lag:]).mean()) < 5 / np.sqrt(n - lag), f"lag {lag}"


def test_streams_steps_rows_and_seeds_are_unrelated():
    base = (5, 6, 7, 1)
    z = native.normals(*base, 1 << 16).ravel().astype(np.float64)
    for index in range(4):
        other = [value + (position == index) for position, value in enumerate(base)]
        w = native.normals(*other, 1 << 16).ravel().astype(np.float64)
        assert abs((z * w).mean()) < 5 / np.sqrt(z.size), f"argument {index}"


def test_isa_is_chosen_by_environment(monkeypatch):
    for isa in ISAS:
        monkeypatch.setenv("ANSN_CPU_ISA", isa)
        assert native.cpu_isa() == isa
    monkeypatch.delenv("ANSN_CPU_ISA")
    assert native.cpu_isa() == ISAS[-1]


def test_unknown_isa_is_refused_with_what_is_supported(monkeypatch):
    with pytest.raises(ValueError, match=rf"isa='v9'.*supports {', '.join(ISAS)}"):
        native.normals(0, 0, 0, 0, 1, isa="v9")
    monkeypatch.setenv("ANSN_CPU_ISA", "avx")
    with pytest.raises(ValueError, match=rf"ANSN_CPU_ISA='avx'.*supports {', '.join(ISAS)}"):
        native.normals(0, 0, 0, 0, 1)


def test_build_info():
    info = native.build_info()
    assert set(ISAS) <= set(info["isas"])
    assert isinstance(info["cuda"], bool)
    assert isinstance(info["openmp"], bool)


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match=r"words must have shape \[n, 4\]"):
        native.normals_from_words(np.zeros((3, 5), np.uint32))
    with pytest.raises(ValueError, match="quads must be at least 0, got -1"):
        native.normals(0, 0, 0, 0, -1)
    with pytest.raises(TypeError):
        native.normals(0.5, 0, 0, 0, 1)
