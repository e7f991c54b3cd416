"""Feature spaces by name: ``pixels``, ``pca`` or ``pca-K``, ``classifier``, ``inception``."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ansn.data import Dataset
from ansn.errors import InputError
from ansn.evaluation import cache
from ansn.evaluation.convnet import ConvFeatures
from ansn.evaluation.features import (
    Array,
    ClassifierFeatures,
    Features,
    PCAFeatures,
    PixelFeatures,
    labelled,
    rows,
)

NAMES = ("pixels", "pca", "classifier", "inception")
_COMPONENTS = 32
_PCA_ROWS = 20_000
_CONVOLUTIONAL = 16  # pixels a side from which a perceptron on bare pixels is a poor judge
# What importing torch-fidelity's extractor imports beside torch, which torch-fidelity is sometimes installed without.
_PACKAGES = {"torch-fidelity": "torch_fidelity", "torchvision": "torchvision", "tqdm": "tqdm", "Pillow": "PIL"}
_INCEPTION = "weights-inception-2015-12-05-6726825d.pth"


def default(train: Dataset) -> tuple[str, ...]:
    """What to measure in where nothing is said: the coordinates, and the classifier or principal components."""
    if train.labels is not None and len(train.labels.unique()) > 1:
        return ("classifier", "pixels")
    return ("pixels",) if torch.Size(train.shape).numel() <= _COMPONENTS else ("pca", "pixels")


def space(name: str, train: Dataset, test: Dataset | None = None, *, place: Path | None = None) -> Features:
    """The named space of a data set. Classifiers are trained once and kept in the folder ``place``, see
    :mod:`ansn.evaluation.cache`; ``test`` is what their accuracy is told on.

    Raises InputError for an unknown name, a classifier without labels, and Inception where it is not on disk.
    """
    base, _, count = name.partition("-")
    if base not in NAMES or (count and (base != "pca" or not count.isdigit() or int(count) < 1)):
        raise InputError(f"--features: got {name!r}, expected {', '.join(NAMES)} or pca-K")
    if base == "pixels":
        return PixelFeatures(train.shape, train.name)
    if base == "pca":
        rows = train.order(0, 0)[:_PCA_ROWS].sort().values
        return PCAFeatures(train.batch(rows)[0].cpu(), int(count or _COMPONENTS), name=train.name)
    if base == "classifier":
        return classifier(train, test, place=place)
    problem = inception_problem(train)
    if problem is not None:
        raise InputError(f"--features: got 'inception', expected pixels, pca or classifier (inception {problem})")
    return InceptionFeatures(train)


def classifier(
    train: Dataset, test: Dataset | None = None, *, place: Path | None = None
) -> ClassifierFeatures | ConvFeatures:
    """Trained on the data's own labels: a perceptron for vectors and images under 16 pixels a side, else a small
    convolutional network. Kept in the folder ``place``, by default :func:`ansn.evaluation.cache.folder`.

    Raises InputError without labels.
    """
    if train.labels is None or len(train.labels.unique()) < 2:
        raise InputError(
            f"--features: got 'classifier', expected pixels or pca ({train.name} has no labels of two classes)"
        )
    held_out = None if test is None or test.labels is None else labelled(test)
    convolutional = train.kind == "image" and min(train.shape[1:]) >= _CONVOLUTIONAL
    settings: dict[str, object] = {"kind": "conv-64-epochs-2" if convolutional else "mlp-128-32", "seed": 0}
    settings |= {"data": train.fingerprint(), "format": 1}
    place = place or cache.folder()
    if convolutional:
        state = cache.kept(
            settings, lambda: ConvFeatures(train).network.state_dict(), place, lambda s: ConvFeatures(train, state=s)
        )
        made = ConvFeatures(train, state=state)
        if held_out is not None:
            made.score(*held_out)
        return made
    x, labels = labelled(train)
    state = cache.kept(
        settings, lambda: ClassifierFeatures(x, labels).state(), place, lambda s: ClassifierFeatures(x, labels, state=s)
    )
    return ClassifierFeatures(x, labels, test=held_out, name=train.name, state=state)


def inception_problem(dataset: Dataset) -> str | None:
    """What is missing for Inception's features, or None. Nothing is ever fetched."""
    if dataset.kind != "image":
        return f"is for images, and {dataset.name} holds {dataset.kind}s"
    for package, module in _PACKAGES.items():
        if importlib.util.find_spec(module) is None:
            return f"needs the package {package}, which is not installed"
    return None if _weights().is_file() else f"needs its weights, which are not at {_weights()}; they are not fetched"


def _weights() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / _INCEPTION


class InceptionFeatures:
    """The 2048 features of FID's Inception, by torch-fidelity (which reads the weights with ``weights_only=True``)."""

    def __init__(self, dataset: Dataset) -> None:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        self._shape = tuple(dataset.shape)
        weights = str(_weights())
        self._network = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=weights)
        self.name = "inception-v3-2048"

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Array:
        """Features ``[n, 2048]`` of images in [0, 1], rounded to 8 bits; grey ones are repeated to three channels."""
        rows(x, self._shape)
        parts: list[Array] = []
        for some in x.split(64):
            grey_levels = (some.clamp(0, 1) * 255).round().to(torch.uint8).expand(-1, 3, -1, -1)
            parts.append(self._network(grey_levels.contiguous())[0].double().cpu().numpy())
        return np.concatenate(parts)
