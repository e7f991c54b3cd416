"""The stream of examples: order, resuming, ranks, noise, flips, devices."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ansn.data import Dataset, iterate, streams
from ansn.data.units import Table
from tests.data.writers import some_images

# Five standard errors of the statistic each is used for.
SIGMAS = 5.0


def images(count: int = 20, *shape: int, **options: object) -> Dataset:
    rows = torch.from_numpy(some_images(count, *(shape or (3, 4, 5))))
    return Dataset(rows, labels=torch.arange(count) % 3, **options)  # type: ignore[arg-type]


def taken(
    dataset: Dataset, batch_size: int, steps: int, **where: int
) -> list[tuple[int, Tensor, Tensor | None]]:
    return list(itertools.islice(iterate(dataset, batch_size, 7, **where), steps))


# --- words


def test_a_slice_of_the_words_is_the_words() -> None:
    whole = streams.words(5, 2, 41, lane=3)
    for first in range(9):
        assert np.array_equal(streams.words(5, 2, 20, first=first, lane=3), whole[first : first + 20])


def test_words_are_numpys_philox_from_a_counter_beyond_64_bits() -> None:
    expected = np.random.Philox(key=5 + (2 << 64), counter=(3 << 128) + (2**70)).random_raw(8)
    assert np.array_equal(streams.words(5, 2, 8, first=4 * 2**70, lane=3), expected)


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_seed_out_of_range(seed: int) -> None:
    with pytest.raises(ValueError, match=r"seed: got .*expected an integer from 0 to 2\^64 - 1"):
        streams.words(seed, 1, 4)


# --- order


@given(n=st.integers(1, 400), seed=st.integers(0, 2**64 - 1), epoch=st.integers(0, 10**9))
@settings(max_examples=50, deadline=None)
def test_order_is_a_permutation(n: int, seed: int, epoch: int) -> None:
    order = streams.permutation(n, seed, epoch)
    assert np.array_equal(np.sort(order), np.arange(n))


def test_order_is_a_function_of_seed_and_epoch() -> None:
    dataset = images(100)
    first = dataset.order(1, 0).clone()
    dataset.order(1, 0).zero_()  # a caller's writing must not reach the next caller
    streams.permutation.cache_clear()
    assert torch.equal(dataset.order(1, 0), first)
    assert first.dtype == torch.int64
    assert not torch.equal(dataset.order(1, 1), first)
    assert not torch.equal(dataset.order(2, 0), first)


def test_order_is_uniform() -> None:
    # each of the 24 permutations of 4 rows equally often: chi-square with 23 degrees of freedom
    n = 4800
    counts: dict[tuple[int, ...], int] = {}
    for epoch in range(n):
        key = tuple(streams.permutation(4, 3, epoch).tolist())
        counts[key] = counts.get(key, 0) + 1
    assert len(counts) == 24
    chi = sum((c - n / 24) ** 2 / (n / 24) for c in counts.values())
    assert abs(chi - 23) < SIGMAS * np.sqrt(2 * 23)


def test_the_order_is_pinned() -> None:
    # A checkpoint resumes only if a later version draws the same: these values must never change.
    assert streams.permutation(10, 0, 0).tolist() == [5, 3, 7, 8, 2, 4, 1, 0, 6, 9]


# --- batches


@given(n=st.integers(1, 30), batch=st.integers(1, 70), steps=st.integers(1, 6), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_batches_are_the_epochs_end_to_end(n: int, batch: int, steps: int, seed: int) -> None:
    got = np.concatenate([streams.batch_indices(n, step, batch, seed) for step in range(steps)])
    epochs = -(-batch * steps // n)
    expected = np.concatenate([streams.permutation(n, seed, epoch) for epoch in range(epochs)])[
        : batch * steps
    ]
    assert np.array_equal(got, expected)


def test_values_are_the_stored_ones() -> None:
    dataset = images(6)
    index = torch.tensor([4, 0, 4])
    x, labels = dataset.batch(index)
    assert x.dtype == torch.float32
    assert torch.equal(x, dataset.rows[index].float() / 255)  # type: ignore[index]
    assert labels is not None
    assert labels.tolist() == [1, 0, 1]
    assert 0 <= x.min() <= x.max() <= 1


@pytest.mark.parametrize("options", [{}, {"dequantise": True, "flip": True}])
def test_resuming_gives_the_same_stream(options: dict[str, bool]) -> None:
    dataset = images(11, **options)
    whole = taken(dataset, 8, 9)
    for (step, x, labels), (step2, x2, labels2) in zip(
        whole[5:], taken(dataset, 8, 4, start_step=5), strict=True
    ):
        assert step == step2
        assert torch.equal(x, x2)
        assert torch.equal(labels, labels2)  # type: ignore[arg-type]


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_together_see_what_one_sees(world: int) -> None:
    dataset = images(11, dequantise=True, flip=True)
    one = taken(dataset, 8, 5)
    parts = [taken(dataset, 8, 5, rank=rank, world=world) for rank in range(world)]
    for step, (_, x, labels) in enumerate(one):
        assert torch.equal(torch.cat([part[step][1] for part in parts]), x)
        assert torch.equal(torch.cat([part[step][2] for part in parts]), labels)  # type: ignore[misc, arg-type]


def test_the_stream_does_not_depend_on_the_batch_size() -> None:
    dataset = images(11, dequantise=True, flip=True)
    small = torch.cat([x for _, x, _ in taken(dataset, 4, 6)])
    assert torch.equal(torch.cat([x for _, x, _ in taken(dataset, 12, 2)]), small)


def test_stop_step_ends_the_stream() -> None:
    assert [step for step, _, _ in iterate(images(), 4, 0, start_step=3, stop_step=6)] == [3, 4, 5]


def test_drawing_leaves_global_generators_alone() -> None:
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    taken(images(dequantise=True, flip=True), 8, 3)
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002


@pytest.mark.parametrize(
    ("where", "line"),
    [
        ({"batch_size": 9, "world": 2}, "batch_size: got 9, expected a positive multiple of world = 2"),
        ({"batch_size": 0}, "batch_size: got 0, expected"),
        ({"batch_size": 4, "rank": 2, "world": 2}, "rank: got 2 of world 2, expected 0 <= rank < world"),
        ({"batch_size": 4, "start_step": -1}, "start_step: got -1, expected 0 or more"),
        ({"batch_size": 4, "seed": -3}, "seed: got -3, expected"),
    ],
)
def test_bad_coordinates_are_refused_at_the_call(where: dict[str, int], line: str) -> None:
    with pytest.raises(ValueError, match=line):
        iterate(images(), **({"seed": 0} | where))  # type: ignore[arg-type]


# --- dequantisation and flips


@pytest.mark.parametrize("levels", [256, 17])
def test_dequantised_values_lie_within_their_grey_level(levels: int) -> None:
    rows = torch.from_numpy((some_images(50, 3, 8, 7).astype(int) % levels).astype(np.uint8))
    dataset = Dataset(rows, levels=levels, dequantise=True)
    x, _ = dataset.batch(torch.arange(50), seed=3)
    scaled = x.double() * levels
    # float32 rounding of (v + u) / 17 is below 2^-20 here; for 256 there is none
    assert torch.equal(torch.floor(scaled + (0 if levels == 256 else 2**-20)), rows.double())
    assert x.max() < 1
    u = (scaled - rows).flatten()
    n = len(u)
    assert abs(u.mean() - 0.5) < SIGMAS / np.sqrt(12 * n)
    assert abs(u.var() - 1 / 12) < SIGMAS * np.sqrt(1 / 180 / n)
    assert dataset.quantisation == pytest.approx(1 / (12 * levels**2))


def test_noise_follows_seed_and_position() -> None:
    dataset = Dataset(torch.zeros(4, 1, 5, 5, dtype=torch.uint8), dequantise=True)
    index = torch.zeros(6, dtype=torch.int64)
    whole = dataset.batch(index, seed=3, position=10)[0]
    assert torch.equal(dataset.batch(index[:2], seed=3, position=14)[0], whole[4:])
    assert len({tuple(row.flatten().tolist()) for row in whole}) == 6
    assert not torch.equal(dataset.batch(index, seed=4, position=10)[0], whole)


def test_flips_mirror_half_of_the_images() -> None:
    n = 400
    dataset = images(n, flip=True)
    plain = images(n).batch(torch.arange(n))[0]
    x = dataset.batch(torch.arange(n), seed=1)[0]
    same = (x == plain).flatten(1).all(1)
    mirrored = (x == plain.flip(-1)).flatten(1).all(1)
    assert torch.equal(same, ~mirrored)
    assert abs(int(mirrored.sum()) - n / 2) < SIGMAS * np.sqrt(n) / 2


def test_dequantising_after_a_flip_keeps_the_levels() -> None:
    x = images(30, flip=True, dequantise=True).batch(torch.arange(30), seed=1)[0]
    flipped = images(30, flip=True).batch(torch.arange(30), seed=1)[0]
    assert torch.equal(torch.floor(x * 256), torch.round(flipped * 255))


# --- the object


def test_quantisation_is_in_returned_units() -> None:
    assert images().quantisation == pytest.approx(1 / (12 * 255**2))
    assert Dataset(torch.rand(3, 1, 2, 2)).quantisation == 0
    assert Dataset(torch.randn(3, 2)).quantisation == 0


def test_tables_have_identity_units_by_default() -> None:
    rows = torch.randn(5, 3)
    dataset = Dataset(rows)
    assert (dataset.kind, dataset.shape, dataset.columns, dataset.num_classes) == (
        "table",
        (3,),
        ("x0", "x1", "x2"),
        0,
    )
    assert torch.equal(dataset.to_data_units(rows), rows.double())
    x, labels = dataset.batch(torch.tensor([2]))
    assert torch.equal(x, rows[2:3])
    assert labels is None
    with pytest.raises(ValueError, match=r"x: got shape \[5, 2\], expected \[n, 3\]"):
        dataset.to_data_units(rows[:, :2])


def test_to_keeps_bytes_and_the_original() -> None:
    dataset = images(dequantise=True)
    moved = dataset.to("cpu")
    assert moved is not dataset
    assert isinstance(moved.rows, Tensor)
    assert moved.rows.dtype == torch.uint8
    assert moved.rows.data_ptr() == dataset.rows.data_ptr()  # type: ignore[union-attr]
    assert torch.equal(moved.batch(torch.arange(3))[0], dataset.batch(torch.arange(3))[0])


def test_batches_come_out_on_the_chosen_device() -> None:
    x, labels = images().to("meta").batch(torch.arange(3))
    assert x.device.type == "meta"
    assert labels is not None
    assert labels.device.type == "meta"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_batches_equal_the_cpus() -> None:
    dataset = images(dequantise=True, flip=True)
    on_gpu = dataset.to("cuda")
    assert on_gpu.rows.device.type == "cuda"  # type: ignore[union-attr]
    for (_, x, labels), (_, x2, labels2) in zip(taken(dataset, 8, 4), taken(on_gpu, 8, 4), strict=True):
        assert torch.equal(x2.cpu(), x)
        assert torch.equal(labels2.cpu(), labels)  # type: ignore[union-attr, arg-type]


def test_select_keeps_options_and_classes() -> None:
    part = images(9, dequantise=True).select(torch.tensor([7, 2]))
    assert (len(part), part.num_classes, part.dequantise) == (2, 3, True)
    assert part.labels is not None
    assert part.labels.tolist() == [1, 2]
    assert torch.equal(part.rows, images(9).rows[[7, 2]])  # type: ignore[index, arg-type]
    with pytest.raises(ValueError, match="index: got no rows, expected"):
        part.select(torch.arange(0))


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"rows": torch.zeros(3, 2, dtype=torch.uint8)}, r"rows: got uint8 of shape \[3, 2\], expected float32"),
        ({"rows": torch.zeros(3)}, r"rows: got torch.float32 of shape \[3\], expected"),
        ({"rows": torch.zeros(3, 2, dtype=torch.float64)}, "rows: got torch.float64"),
        ({"rows": torch.zeros(0, 2)}, "rows: got none of data, expected at least one"),
        ({"rows": torch.tensor([[1.0, float("inf")]])}, "rows: got NaN or infinite values"),
        ({"rows": torch.tensor([[[1.0, float("nan")]]])}, "rows: got NaN or infinite values"),
        ({"rows": torch.tensor([[1.0, float("nan")]])}, "x: got no known number in column 1, expected at least one"),
        ({"rows": torch.rand(3, 2), "kind": "vector"}, "kind: got 'vector', expected image, table or field"),
        ({"rows": torch.rand(3, 2), "kind": "field"}, r"rows: got shape \[3, 2\] for fields, expected another"),
        ({"rows": torch.full((1, 1, 2, 2), 3.0)}, r"image values from 3 to 3, expected \[0, 1\]"),
        (
            {"rows": torch.full((1, 1, 2, 2), 17, dtype=torch.uint8), "levels": 17},
            "the value 17, expected less",
        ),
        ({"rows": torch.rand(1, 1, 2, 2), "dequantise": True}, "dequantise: got True for data, which is continuous"),
        ({"rows": torch.rand(3, 2), "flip": True}, "flip: got True for data, which holds tables, expected images"),
        (
            {"rows": torch.rand(3, 2), "labels": torch.zeros(2, dtype=torch.int64)},
            r"labels: got .*expected int64 \[3\]",
        ),
        (
            {"rows": torch.rand(2, 2), "labels": torch.tensor([0, 5]), "num_classes": 3},
            r"labels: got 0\.\.5, expected 0\.\.2",
        ),
        (
            {"rows": torch.rand(2, 2), "labels": torch.tensor([0, 1]), "classes": ["a"]},
            "classes: got 1 names, expected",
        ),
        (
            {"rows": torch.rand(2, 2), "units": Table.plain(["a"])},
            r"units: got those of rows \[1\], expected \[2\]",
        ),
    ],
)
def test_arguments_that_do_not_fit(arguments: dict[str, object], line: str) -> None:
    with pytest.raises((ValueError, TypeError), match=line):
        Dataset(**arguments)  # type: ignore[arg-type]


def test_index_errors_name_the_range() -> None:
    with pytest.raises(IndexError, match=r"index: got 3\.\.20, expected 0\.\.19"):
        images().batch(torch.tensor([3, 20]))
    with pytest.raises(TypeError, match=r"index: got torch.int32 .*expected int64 \[B\]"):
        images().batch(torch.tensor([3], dtype=torch.int32))
