"""Frechet distance in a named feature space; never called FID, which is Inception's at n = 50,000."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ansn.data import Dataset

Array = NDArray[np.float64]


class Features(Protocol):
    """A map from data ``[n, *shape]`` to features float64 ``[n, p]``, with the name that goes beside every number."""

    name: str

    def __call__(self, x: Tensor) -> Array: ...


def frechet_distance(a: Array, b: Array) -> float:
    r"""``||m_a - m_b||^2 + tr(C_a + C_b - 2 (C_a^1/2 C_b C_a^1/2)^1/2)`` of two feature sets ``[n, p]`` (Dowson and
    Landau 1982): the squared 2-Wasserstein distance of Gaussians with their means and unbiased covariances.

    The rows' order, a common rotation and a common shift do not matter. It grows as n falls, about as 1/n, so compare
    numbers of the same n only. Raises ValueError for fewer than two rows, different p, or values that are not finite.
    """
    a, b = _checked("a", a), _checked("b", b)
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"b: got {b.shape[1]} features, expected a's {a.shape[1]}")
    mean = a.mean(0) - b.mean(0)
    fa, fb = _factor(a), _factor(b)
    # With C = F^T F for each, the trace of the root is the sum of the singular values of F_a F_b^T: no covariance is
    # squared up and no root taken of one, so rounding stays at 1e-16 of the traces instead of its square root.
    cross = np.linalg.svd(fa @ fb.T, compute_uv=False).sum()
    return float(max(mean @ mean + np.vdot(fa, fa) + np.vdot(fb, fb) - 2.0 * cross, 0.0))


def frechet_floor(train: Array, test: Array) -> float:
    """What perfect samples would score: distance of held-out real features ``[m, p]`` to the training ones ``[n, p]``.

    It belongs to m samples, and it holds what the features learned of the training rows by heart: more samples than m,
    and samples copied from those rows, can score below it.
    """
    return frechet_distance(test, train)


@dataclass(frozen=True)
class Frechet:
    """A distance and what it means.

    value: of ``n`` samples; floor: of ``floor_n`` held-out real rows, both against the ``reference_n`` rows of the
    split ``reference``, in the space ``features``.
    """

    value: float
    n: int
    features: str
    reference: str
    reference_n: int
    floor: float
    floor_n: int

    def __str__(self) -> str:
        return (
            f"Frechet distance {self.value:.3g}, n = {self.n} (floor {self.floor:.3g}, n = {self.floor_n};"
            f" against {self.reference_n} of {self.reference}, features {self.features})"
        )


def frechet(samples: Tensor, train: Tensor, test: Tensor, features: Features, *, reference: str = "train") -> Frechet:
    """Distance of ``samples`` ``[n, *shape]`` to the training data, beside the floor of the test data.

    ``reference`` names the split that ``train`` is. Raises ValueError as :func:`frechet_distance` and the features do.
    """
    target = features(train)
    return Frechet(
        value=frechet_distance(features(samples), target), n=len(samples), features=features.name, reference=reference,
        reference_n=len(train), floor=frechet_floor(target, features(test)), floor_n=len(test),
    )  # fmt: skip


class ClassifierFeatures:
    """Activations of the last hidden layer (after its ReLU) of a perceptron trained on a data set's own labels.

    For small images and vectors: pixels go in as they are. The same arguments give the same features, to the rounding
    of the machine's matrix products.

    Args:
        x: training data ``[n, *shape]``; labels: its classes, int64 ``[n]``, at least two of them.
        hidden: widths of the hidden layers; the last one is p.
        test: held-out ``(x, labels)`` to measure the accuracy on.
        name: of the data. seed: of weights and batches.

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
    ) -> None:
        # Slow to import, and every command that draws a picture imports this module.
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.neural_network import MLPClassifier

        if len(x) != len(labels) or len(labels.unique()) < 2:
            raise ValueError(
                f"labels: got {len(labels)} of {len(labels.unique())} classes for {len(x)} rows,"
                " expected one for each row and at least two classes"
            )
        if not hidden or min(hidden) < 1:
            raise ValueError(f"hidden: got {tuple(hidden)}, expected the widths of at least one layer")
        self._shape = tuple(x.shape[1:])
        self._classifier = MLPClassifier(tuple(hidden), alpha=1e-2, max_iter=400, random_state=seed)
        with warnings.catch_warnings():
            # Any network with the stated accuracy serves; it need not be at its optimum.
            warnings.simplefilter("ignore", ConvergenceWarning)
            self._classifier.fit(self._flat(x), labels.cpu().numpy())
        self.name = f"{name}-mlp-{'-'.join(map(str, hidden))}"
        self.n = len(x)
        self.accuracy = None if test is None else self.score(*test)

    @classmethod
    def of(
        cls, train: Dataset, test: Dataset | None = None, hidden: Sequence[int] = (128, 32), *, seed: int = 0
    ) -> ClassifierFeatures:
        """Trained on all rows of a labelled data set. Raises ValueError if it has no labels."""
        held_out = None if test is None else _labelled(test)
        return cls(*_labelled(train), hidden, test=held_out, name=train.name, seed=seed)

    def __call__(self, x: Tensor) -> Array:
        """Features ``[n, p]`` of ``x`` ``[n, *shape]``."""
        h = self._flat(x)
        layers = list(zip(self._classifier.coefs_, self._classifier.intercepts_, strict=True))
        for weight, bias in layers[:-1]:
            h = np.maximum(h @ weight + bias, 0.0)
        return h

    def score(self, x: Tensor, labels: Tensor) -> float:
        """Share of right labels."""
        return float(self._classifier.score(self._flat(x), labels.cpu().numpy()))

    def __str__(self) -> str:
        accuracy = "" if self.accuracy is None else f"test accuracy {self.accuracy:.3f}, "
        return f"{self.name} ({accuracy}trained on {self.n} rows)"

    def _flat(self, x: Tensor) -> Array:
        return _rows(x, self._shape)


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
        rows = _checked("x", _rows(x, self._shape))
        self._mean = rows.mean(0)
        values, vectors = np.linalg.eigh(np.atleast_2d(np.cov(rows, rowvar=False)))
        self._directions = vectors[:, ::-1][:, :components]
        total = float(values.sum())
        self.explained = float(values[::-1][:components].sum()) / total if total > 0 else 1.0
        self.name = f"{name}-pca-{self._directions.shape[1]}"
        self.n = len(rows)

    def __call__(self, x: Tensor) -> Array:
        """Features ``[n, p]`` of ``x`` ``[n, *shape]``."""
        return (_rows(x, self._shape) - self._mean) @ self._directions


def everything(dataset: Dataset) -> Tensor:
    """All rows of a data set in their order, float32 ``[N, *shape]``, on the CPU."""
    return dataset.batch(torch.arange(len(dataset)))[0].cpu()


def _labelled(dataset: Dataset) -> tuple[Tensor, Tensor]:
    if dataset.labels is None:
        raise ValueError(f"{dataset.name}: has no labels, expected a labelled data set")
    return everything(dataset), dataset.labels


def _factor(features: Array) -> Array:
    """``F`` ``[min(n, p), p]`` with ``F^T F`` the unbiased covariance."""
    centred = (features - features.mean(0)) / np.sqrt(len(features) - 1)
    return np.asarray(np.linalg.qr(centred, mode="r"), dtype=np.float64)


def _rows(x: Tensor, shape: tuple[int, ...]) -> Array:
    if tuple(x.shape[1:]) != shape:
        raise ValueError(f"x: got shape {list(x.shape)}, expected [n, {', '.join(map(str, shape))}]")
    rows = x.detach().flatten(1).double().cpu().numpy()
    if not np.isfinite(rows).all():
        bad = int((~np.isfinite(rows)).any(1).sum())
        raise ValueError(f"x: got values that are not finite in {bad} of {len(rows)} rows")
    return rows


def _checked(name: str, value: Array) -> Array:
    value = np.asarray(value, dtype=np.float64)
    if value.ndim != 2 or len(value) < 2 or value.shape[1] < 1:
        raise ValueError(f"{name}: got shape {list(value.shape)}, expected [n, p] with at least two rows")
    if not np.isfinite(value).all():
        raise ValueError(f"{name}: got values that are not finite")
    return value
