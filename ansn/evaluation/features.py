"""Named feature spaces that distances are measured in: pixels, principal components, a small classifier's last layer,
Inception's where it is on disk.

A distance says nothing without the name of its space; every space has one.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ansn.data import Dataset

Array = NDArray[np.floating[Any]]


class Features(Protocol):
    """A map from data ``[n, *shape]`` to features float64 ``[n, p]``, with the name that goes beside every number."""

    name: str

    def __call__(self, x: Tensor) -> Array: ...


class PixelFeatures:
    """The coordinates as they are."""

    def __init__(self, shape: Sequence[int], name: str = "data") -> None:
        self._shape = tuple(shape)
        self.name = f"{name}-{'pixels' if len(self._shape) == 3 else 'columns'}"

    def __call__(self, x: Tensor) -> Array:
        """Features ``[n, d]`` of ``x`` ``[n, *shape]``."""
        return rows(x, self._shape)


class ClassifierFeatures:
    """Activations of the last hidden layer (after its ReLU) of a perceptron trained on a data set's own labels.

    For small images and vectors: pixels go in as they are. The same arguments give the same features, to the rounding
    of the machine's matrix products.

    Args:
        x: training data ``[n, *shape]``; labels: its classes, int64 ``[n]``, at least two of them.
        hidden: widths of the hidden layers; the last one is p.
        test: held-out ``(x, labels)`` to measure the accuracy on.
        name: of the data. seed: of weights and batches.
        state: of an earlier one, to take in place of training.

    Attributes:
        name: such as ``"digits-mlp-128-32"``.
        n: number of training rows.
        accuracy: share of right labels on ``test``, or None without it.

    Raises ValueError for labels that do not fit, data that is not finite, no hidden layer.
    """

    def __init__(
        self,
        x: Tensor,
        labels: Tensor,
        hidden: Sequence[int] = (128, 32),
        *,
        test: tuple[Tensor, Tensor] | None = None,
        name: str = "data",
        seed: int = 0,
        state: Mapping[str, Tensor] | None = None,
    ) -> None:
        check_labels(x, labels)
        if not hidden or min(hidden) < 1:
            raise ValueError(f"hidden: got {tuple(hidden)}, expected the widths of at least one layer")
        self._shape = tuple(x.shape[1:])
        self._classes: NDArray[np.int64] = np.unique(labels.cpu().numpy())
        if state is None:
            self._layers = self._fit(x, labels, hidden, seed)
        else:
            outputs = 1 if len(self._classes) == 2 else len(self._classes)  # scikit-learn's
            widths = (math.prod(self._shape), *hidden, outputs)
            expected: dict[str, tuple[int, ...]] = {f"weight{i}": pair for i, pair in enumerate(pairwise(widths))}
            expected |= {f"bias{i}": (width,) for i, width in enumerate(widths[1:])}
            found = {name: tuple(value.shape) for name, value in state.items() if value.dtype == torch.float64}
            if found != expected:
                raise ValueError(f"state: got tensors {found}, expected float64 ones {expected}")
            self._layers = [(state[f"weight{i}"].numpy(), state[f"bias{i}"].numpy()) for i in range(len(widths) - 1)]
        self.name = f"{name}-mlp-{'-'.join(map(str, hidden))}"
        self.n = len(x)
        self.accuracy = None if test is None else self.score(*test)

    def _fit(self, x: Tensor, labels: Tensor, hidden: Sequence[int], seed: int) -> list[tuple[Array, Array]]:
        # Slow to import, and every command that draws a picture imports this package.
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.neural_network import MLPClassifier

        classifier = MLPClassifier(tuple(hidden), alpha=1e-2, max_iter=400, random_state=seed)
        with warnings.catch_warnings():
            # Any network with the stated accuracy serves; it need not be at its optimum.
            warnings.simplefilter("ignore", ConvergenceWarning)
            classifier.fit(self._flat(x), labels.cpu().numpy())
        return list(zip(classifier.coefs_, classifier.intercepts_, strict=True))

    def state(self) -> dict[str, Tensor]:
        """The weights, float64."""
        pairs = [(f"weight{i}", w, f"bias{i}", b) for i, (w, b) in enumerate(self._layers)]
        return {name: torch.from_numpy(v) for a, w, c, b in pairs for name, v in ((a, w), (c, b))}

    @classmethod
    def of(
        cls, train: Dataset, test: Dataset | None = None, hidden: Sequence[int] = (128, 32), *, seed: int = 0
    ) -> ClassifierFeatures:
        """Trained on all rows of a labelled data set. Raises ValueError if it has no labels."""
        held_out = None if test is None else labelled(test)
        return cls(*labelled(train), hidden, test=held_out, name=train.name, seed=seed)

    def __call__(self, x: Tensor) -> Array:
        """Features ``[n, p]`` of ``x`` ``[n, *shape]``."""
        h = self._flat(x)
        for weight, bias in self._layers[:-1]:
            h = np.maximum(h @ weight + bias, 0.0)
        return h

    def predict(self, x: Tensor) -> NDArray[np.int64]:
        """The likeliest class of each row, ``[n]``."""
        return self.decide(self(x))

    def decide(self, features: Array) -> NDArray[np.int64]:
        """The likeliest class of rows whose features are known, ``[n]``."""
        weight, bias = self._layers[-1]
        logits = features @ weight + bias
        # Of two classes scikit-learn keeps one logit.
        best = logits.argmax(1) if logits.shape[1] > 1 else (logits[:, 0] > 0).astype(np.int64)
        return self._classes[best]

    def score(self, x: Tensor, labels: Tensor) -> float:
        """Share of right labels."""
        return float((self.predict(x) == labels.cpu().numpy()).mean())

    def __str__(self) -> str:
        return classifier_line(self.name, self.accuracy, self.n)

    def _flat(self, x: Tensor) -> Array:
        return rows(x, self._shape)


class PCAFeatures:
    """Projection on the leading principal components of the training data: for data without labels.

    With ``components >= d`` it is a rotation, and the Frechet distance is that of the bare coordinates.

    Args:
        x: training data ``[n, *shape]``, n >= 2. components: p, at most d are made. name: of the data.

    Attributes:
        name: such as ``"toy2d-pca-2"``.
        n: number of training rows.
        explained: share of the variance that the components hold.

    Raises ValueError for fewer than two rows, data that is not finite, components < 1.
    """

    def __init__(self, x: Tensor, components: int = 32, *, name: str = "data") -> None:
        if components < 1:
            raise ValueError(f"components: got {components}, expected at least 1")
        self._shape = tuple(x.shape[1:])
        data = checked("x", rows(x, self._shape))
        self._mean = data.mean(0)
        values, vectors = np.linalg.eigh(np.atleast_2d(np.cov(data, rowvar=False)))
        self._directions = vectors[:, ::-1][:, :components]
        total = float(values.sum())
        self.explained = float(values[::-1][:components].sum()) / total if total > 0 else 1.0
        self.name = f"{name}-pca-{self._directions.shape[1]}"
        self.n = len(data)

    def __call__(self, x: Tensor) -> Array:
        """Features ``[n, p]`` of ``x`` ``[n, *shape]``."""
        return (rows(x, self._shape) - self._mean) @ self._directions


def everything(dataset: Dataset) -> Tensor:
    """All rows of a data set in their order, float32 ``[N, *shape]``, on the CPU."""
    return dataset.batch(torch.arange(len(dataset)))[0].cpu()


def blocks(dataset: Dataset, block: int = 4096) -> Iterator[Tensor]:
    """All rows in their order, float32 ``[at most block, *shape]`` at a time, on the CPU."""
    for first in range(0, len(dataset), block):
        index = torch.arange(first, min(first + block, len(dataset)))
        yield dataset.batch(index, position=first)[0].cpu()


def features_of(space: Features, dataset: Dataset) -> Array:
    """Features ``[N, p]`` of all rows, float32 as these are; the rows are floats a block at a time."""
    return np.concatenate([space(x).astype(np.float32) for x in blocks(dataset)])


def labelled(dataset: Dataset) -> tuple[Tensor, Tensor]:
    """All rows and their labels. Raises ValueError if there are none."""
    if dataset.labels is None:
        raise ValueError(f"dataset: got {dataset.name} without labels, expected a labelled data set")
    return everything(dataset), dataset.labels


def check_labels(x: Tensor, labels: Tensor) -> None:
    """Raises ValueError unless there is a label for each row, of at least two classes."""
    if len(x) != len(labels) or len(labels.unique()) < 2:
        raise ValueError(
            f"labels: got {len(labels)} of {len(labels.unique())} classes for {len(x)} rows,"
            " expected one for each row and at least two classes"
        )


def classifier_line(name: str, accuracy: float | None, n: int) -> str:
    told = "" if accuracy is None else f"test accuracy {accuracy:.3f}, "
    return f"{name} ({told}trained on {n} rows)"


def rows(x: Tensor, shape: tuple[int, ...]) -> Array:
    """Float64 ``[n, d]``. Raises ValueError for another shape or values that are not finite."""
    if tuple(x.shape[1:]) != shape:
        raise ValueError(f"x: got shape {list(x.shape)}, expected [n, {', '.join(map(str, shape))}]")
    flat = x.detach().flatten(1).double().cpu().numpy()
    if not np.isfinite(flat).all():
        bad = int((~np.isfinite(flat)).any(1).sum())
        raise ValueError(f"x: got values that are not finite in {bad} of {len(flat)} rows, expected finite ones")
    return flat


def checked(name: str, value: Array) -> Array:
    """Finite float32 or float64 ``[n, p]`` with at least two rows, or ValueError."""
    value = np.asarray(value)
    value = value if value.dtype == np.float32 else value.astype(np.float64, copy=False)
    if value.ndim != 2 or len(value) < 2 or value.shape[1] < 1:
        raise ValueError(f"{name}: got shape {list(value.shape)}, expected [n, p] with at least two rows")
    if not np.isfinite(value).all():
        raise ValueError(f"{name}: got values that are not finite, expected finite ones")
    return value


def parted(value: Array, block: int = 4096, origin: Array | float = 0.0) -> Iterator[tuple[int, Array]]:
    """Rows less ``origin`` in float64, at most ``block`` at a time, and where each block begins.

    An origin among the rows, :func:`middle`, keeps the digits that squares and products lose far from 0.
    """
    for first in range(0, len(value), block):
        yield first, value[first : first + block].astype(np.float64, copy=False) - origin


def middle(value: Array) -> Array:
    """The mean row ``[p]`` in float64, up to rounding: an origin for :func:`parted`."""
    return np.asarray(value.mean(0, dtype=np.float64))


def checked_pair(a: Array, b: Array) -> Array:
    """``a`` as :func:`checked` gives it, of as many features as ``b``, or ValueError."""
    a = checked("a", a)
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"b: got {b.shape[1]} features, expected a's {a.shape[1]}")
    return a
