"""Classes of samples as a classifier tells them."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ansn.data import Dataset
from ansn.evaluation.features import Array


class Judge(Protocol):
    """A feature space whose features tell the class."""

    name: str

    def __call__(self, x: Tensor) -> Array: ...

    def decide(self, features: Array) -> NDArray[np.int64]:
        """The likeliest class of each row of features, ``[n]``."""


def decided(judge: Judge, features: Array, classes: int) -> Array:
    """One-hot rows ``[n, classes]`` of the classes told."""
    return np.eye(classes)[judge.decide(features)]


def shares(train: Dataset) -> Array:
    """Share of each class among the labels, ``[num_classes]``. Raises ValueError without labels."""
    if train.labels is None:
        raise ValueError(f"train: got {train.name} without labels, expected a labelled data set")
    return np.bincount(train.labels.cpu().numpy(), minlength=train.num_classes) / len(train)


def confusion(judge: Judge, features: Array, labels: NDArray[np.int64]) -> str:
    """The classifier's commonest mistake on rows whose labels are known, in words; empty if it makes none."""
    told = judge.decide(features)
    wrong = told != labels
    if not wrong.any():
        return ""
    pairs, counts = np.unique(np.stack((labels[wrong], told[wrong])), axis=1, return_counts=True)
    (true, taken), count = pairs[:, counts.argmax()], counts.max()
    return f"its commonest mistake takes {count} of {(labels == true).sum()} held-out rows of class {true} for {taken}"
