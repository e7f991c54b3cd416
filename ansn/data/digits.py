"""scikit-learn's embedded 8x8 handwritten digits: the data set that needs no file."""

from __future__ import annotations

import numpy as np

from ansn.data.arrays import to_dataset
from ansn.data.dataset import Dataset
from ansn.data.holdout import check_split, split_at

TEST_ROWS = 450
LEVELS = 17  # grey values 0..16, exact in what is stored; floats are v / 16


def load(*, split: str = "train", dequantise: bool = False, flip: bool = False) -> Dataset:
    """1347 train or 450 test images (1, 8, 8), a fixed random split; labels 0-9."""
    from sklearn.datasets import load_digits  # a second to import: only when asked for

    check_split(split)
    bunch = load_digits()
    index = split_at(len(bunch.images), TEST_ROWS, split)
    return to_dataset(
        bunch.images[index].astype(np.uint8),
        bunch.target[index],
        "digits",
        num_classes=10,
        classes=tuple("0123456789"),
        levels=LEVELS,
        notes=(f"{TEST_ROWS} of {len(bunch.images):,} rows held out for measurements, always the same",),
        dequantise=dequantise,
        flip=flip,
    )
