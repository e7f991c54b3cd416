"""Every number has its floor at the same n, its interval, and a name that promises nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from ansn.data import Dataset
from ansn.evaluation import compare as module
from ansn.evaluation.classes import confusion, shares
from ansn.evaluation.compare import KINDS, Number, Resampling, compare, measure, modes, obedience, repetition
from ansn.evaluation.features import Array
from ansn.evaluation.measurement import Measurement
from ansn.evaluation.resampling import each

FEW = Resampling(8, 3)
MEAN = each(lambda rows: [float(rows.mean())])


class Space:
    """Features that are given, and a class that is where a row is largest."""

    def __init__(self, name: str = "space") -> None:
        self.name = name

    def __call__(self, x: Tensor) -> Array:
        return x.double().numpy()

    def decide(self, features: Array) -> NDArray[np.int64]:
        return features.argmax(1)

    def __str__(self) -> str:
        return f"{self.name} (test accuracy 0.9)"


def normal(n: int, seed: int, p: int = 3) -> Array:
    return np.random.default_rng(seed).normal(size=(n, p))


def everything(n: int, m: int, held: int | None, pairs: int = 1000, name: str = "space") -> list[Measurement]:
    held_out = None if held is None else normal(held, 2)
    return compare(list(KINDS), Space(name), normal(n, 0), normal(m, 1), held_out, pairs=pairs, resampling=FEW)


def test_the_baseline_is_measured_as_the_samples_are() -> None:
    """In the same blocks: equal rows have equal numbers."""
    rows, simpler = normal(200, 0), normal(200, 2)
    for m, n in zip(
        *(compare(list(KINDS), Space(), a, normal(300, 1), normal(50, 3), pairs=1000, resampling=FEW, baseline=b)
          for a, b in ((rows, simpler), (simpler, rows))), strict=True,
    ):  # fmt: skip
        assert (m.baseline, n.baseline) == pytest.approx((n.value, m.value), rel=1e-9, abs=1e-12)


def test_every_number_comes_with_its_meaning() -> None:
    found = everything(60, 200, 60)
    assert [m.name for m in found] == [
        "Frechet distance", "kernel distance", "energy distance", "sliced Wasserstein-2 distance", "precision",
        "recall", "density", "coverage",
    ]  # fmt: skip
    for m in found:
        assert (m.n, m.floor_n, m.features, m.reference) == (60, 60, "space", "train")
        assert m.low is not None
        assert m.high is not None
        assert m.low <= m.value <= m.high
        assert m.low < m.high
        assert m.floor is not None
        assert "8 halves, seed 3" in m.note
        assert m.better in ("lower", "higher", "closer to 1")
    assert {m.name for m in found if m.better == "higher"} == {"precision", "recall", "coverage"}


def test_the_floor_is_the_same_number_of_held_out_rows() -> None:
    """Samples that are the held-out rows have the floor as their value."""
    train, held = normal(200, 1), normal(60, 2)
    for m in compare(list(KINDS), Space(), held, train, held, pairs=1000, resampling=FEW):
        assert m.value == pytest.approx(m.floor, rel=1e-9, abs=1e-12)


def test_more_samples_than_held_out_rows_are_measured_in_blocks_of_the_floors_n() -> None:
    train, held, samples = normal(200, 1), normal(20, 2), normal(65, 0)
    found = compare(list(KINDS), Space(), samples, train, held, pairs=1000, resampling=FEW)
    parts = [
        compare(list(KINDS), Space(), block, train, held, pairs=1000, resampling=FEW)
        for block in (samples[:20], samples[20:40], samples[40:60])
    ]
    for m, *blocks in zip(found, *parts, strict=True):
        assert m.n == m.floor_n == 20
        assert m.value == pytest.approx(np.mean([b.value for b in blocks]))
        assert m.floor == blocks[0].floor
        assert "mean over 3 blocks of 20 samples" in m.note


def test_blocks_narrow_the_interval() -> None:
    rows = normal(4000, 0, 1)
    (one,), (many,) = (
        measure([Number("mean", low=-9.0)], MEAN, rows[: 50 * b], normal(50, 1, 1), Resampling(100))
        for b in (1, 16)
    )
    assert one.n == many.n == 50
    assert one.high is not None
    assert many.high is not None
    # Four times, up to the spread of a deviation of 50 rows, 10 %, and of 100 halves, 7 %.
    assert (one.high - one.value) / (many.high - many.value) == pytest.approx(4.0, rel=0.4)


def test_fewer_samples_than_held_out_rows_cut_the_floor() -> None:
    for m in everything(30, 200, 60):
        assert m.n == m.floor_n == 30


@pytest.mark.parametrize("held", [None, 10])
def test_without_enough_held_out_rows_there_is_no_floor(held: int | None) -> None:
    for m in everything(60, 200, held):
        assert m.floor is None
        assert m.floor_n is None


def test_neighbourhoods_are_compared_at_equal_n_and_pairs_are_capped() -> None:
    found = {m.name: m for m in everything(60, 200, 60, pairs=30)}
    assert (found["Frechet distance"].n, found["Frechet distance"].reference_n) == (60, 200)
    assert (found["energy distance"].n, found["energy distance"].reference_n) == (30, 30)
    assert found["energy distance"].floor_n == 30
    whole = {m.name: m for m in everything(60, 200, 60)}
    assert whole["energy distance"].reference_n == 200
    for name in ("precision", "recall", "density", "coverage"):
        assert whole[name].n == whole[name].reference_n == whole[name].floor_n == 60


def test_shares_stay_within_zero_and_one_and_unbiased_distances_may_be_negative() -> None:
    reference = normal(100, 1)
    found = {
        m.name: m for m in compare(list(KINDS), Space(), reference[:50], reference, None, pairs=1000, resampling=FEW)
    }
    for name in ("precision", "recall", "coverage"):
        assert (found[name].low or 0.0) >= 0.0
        assert (found[name].high or 0.0) <= 1.0
    assert found["Frechet distance"].low is not None
    assert found["Frechet distance"].low >= 0.0
    assert found["kernel distance"].low is not None
    assert found["kernel distance"].low < 0.0


@pytest.mark.parametrize(
    ("name", "n", "m", "fid"),
    [
        ("inception-v3-2048", 50, 50, True),
        ("inception-v3-2048", 49, 50, False),
        ("inception-v3-2048", 50, 49, False),
        ("digits-mlp-128-32", 50, 50, False),
    ],
)
def test_only_fifty_thousand_in_inception_against_the_whole_split_are_fid(
    name: str, n: int, m: int, fid: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert module.FID_SAMPLES == 50_000
    monkeypatch.setattr(module, "FID_SAMPLES", 50)
    first = everything(n, m, 20, name=name)[0]
    assert first.name == ("Frechet Inception distance (FID)" if fid else "Frechet distance")
    # All samples at once, whatever is held out; else blocks.
    assert (first.n, first.floor_n) == (n if fid else 20, 20)
    assert ("the floor is of 20 rows only" in first.note) == fid


def test_below_fifty_thousand_nothing_says_fid() -> None:
    told = " ".join(str(m) for m in everything(60, 200, 60, name="inception-v3-2048"))
    assert "fid" not in told.lower()


@pytest.mark.parametrize(("value", "low", "high"), [(0.0, 0.0, 0.03), (1.0, 0.97, 1.0)])
def test_a_share_of_none_or_all_is_not_certain(value: float, low: float, high: float) -> None:
    """Every half has the same; of 100 rows that leaves 3 % (0.95^(1/100) is 0.0295 from 1)."""
    rows = np.full((100, 1), value)
    (m,) = measure([Number("share", high=1.0)], MEAN, rows, rows[:50], FEW)
    assert (m.value, m.low, m.high) == (value, pytest.approx(low), pytest.approx(high))
    (m,) = measure([Number("mean")], MEAN, rows, None, FEW)
    assert m.low == m.high == value  # of a number without an end nothing is known


def test_measure_takes_any_statistic() -> None:
    rows = normal(400, 0, 1)
    (found,) = measure([Number("mean", low=-9.0)], MEAN, rows, normal(400, 1, 1), Resampling(200))
    assert found.value == pytest.approx(rows.mean())
    assert found.high is not None
    # 200 halves know an error to 5 %, half the width is 1.96 of it.
    assert found.high - found.value == pytest.approx(1.96 * rows.std() / 20, rel=0.2)


def test_mode_weights() -> None:
    """Half of the samples of class 0 instead of a quarter: total variation 1/4, at any n."""
    judge, target = Space(), np.full(4, 0.25)
    told = np.eye(4)[np.repeat([0, 0, 0, 1, 2, 3], 20)]
    (found,) = modes(judge, told, np.eye(4)[np.repeat([0, 1, 2, 3], 30)], target, 999, FEW)
    assert found.value == pytest.approx(0.25)
    assert found.floor == 0.0
    assert (found.n, found.floor_n, found.reference_n, found.better) == (120, 120, 999, "lower")
    assert "test accuracy 0.9" in found.note


def test_a_missing_class_counts_by_its_share() -> None:
    (found,) = modes(Space(), np.eye(4)[np.repeat([1, 2, 3], 20)], None, np.array([0.4, 0.2, 0.2, 0.2]), 9, FEW)
    assert found.value == pytest.approx(0.4)


def test_class_accuracy() -> None:
    asked = np.repeat([0, 1, 2, 3], 20)
    told = np.eye(4)[np.where(np.arange(80) % 4 == 0, (asked + 1) % 4, asked)]
    (found,) = obedience(Space(), told, asked, np.eye(4)[asked], asked, FEW)
    assert found.value == pytest.approx(0.75)
    assert found.floor == 1.0
    assert found.better == "higher"


def test_confusion_in_words() -> None:
    labels = np.repeat([0, 1, 2], 10)
    told = labels.copy()
    assert confusion(Space(), np.eye(3)[told], labels) == ""
    told[[0, 1, 2, 25]] = [2, 2, 1, 0]
    assert confusion(Space(), np.eye(3)[told], labels).endswith("takes 2 of 10 held-out rows of class 0 for 2")


def test_shares_of_the_labels() -> None:
    data = Dataset(torch.zeros(4, 2), labels=torch.tensor([0, 2, 2, 0]), num_classes=4)
    assert shares(data).tolist() == [0.5, 0.0, 0.5, 0.0]
    with pytest.raises(ValueError, match="train: got table without labels, expected a labelled data set"):
        shares(Dataset(torch.zeros(4, 2), name="table"))


def test_repetition_of_the_training_rows() -> None:
    usual = np.abs(normal(300, 0, 1)) + 0.5
    share, ratio = repetition(np.zeros((300, 1)), usual, 999, "digits-pixels", FEW)
    assert (share.name, share.value, share.better, share.n) == ("memorised share", 1.0, "closer to 0.01", 300)
    assert (ratio.value, ratio.better) == (0.0, "closer to 1")
    # The floor is the quantile itself, and one.
    assert share.floor == pytest.approx(0.01, abs=1 / 300)
    assert ratio.floor == 1.0
    share, ratio = repetition(usual[::-1], usual, 999, "digits-pixels", FEW)
    assert share.value == share.floor
