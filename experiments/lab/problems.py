"""The data sets that the claims learn from, each with its network, its spaces to measure in, and what a budget allows.

* ``digits``: scikit-learn's 8x8 digits, dequantised (1347 and 450 images).
* ``mnist``, ``fashion-mnist``, ``cifar10``: as they are; need ``--data``. 500 held-out images. ``cifar16``: CIFAR-10 as
  means of 2x2 pixels.
* ``table``: scikit-learn's breast cancer measurements, 30 strongly correlated columns, logarithms, standardised.
* ``fields``: made: random fields on a line of 64 points, spectrum ``k^-3``, made non-Gaussian as ``g + 0.4 (g^2 - 1)``.
* ``mixture``: made: five Gaussians in 16 dimensions with one covariance, of condition number 1000.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import ansn
from ansn.data import Dataset
from ansn.data.holdout import split_at
from ansn.errors import InputError
from ansn.evaluation import ClassifierFeatures, Features, PixelFeatures, everything
from ansn.evaluation.features import Array, rows
from ansn.evaluation.spaces import classifier
from experiments.lab.mixture import Mixture

IMAGES = ("mnist", "fashion-mnist", "cifar10", "cifar16")
HELD = 500  # images


class WhitenedFeatures:
    """``C^-1/2 (x - m)`` of a data set's own mean and covariance: every direction counts alike, however small."""

    def __init__(self, x: Tensor, *, name: str) -> None:
        self._shape = tuple(x.shape[1:])
        data = rows(x, self._shape)
        self._mean = data.mean(0)
        values, vectors = np.linalg.eigh(np.cov(data, rowvar=False))
        self._directions = vectors / np.sqrt(values)
        self.name = f"{name}-whitened-{len(values)}"

    def __call__(self, x: Tensor) -> Array:
        """Features ``[n, d]`` of ``x`` ``[n, *shape]``."""
        return (rows(x, self._shape) - self._mean) @ self._directions


@dataclass(frozen=True)
class Problem:
    """A data set and how it is learned and judged.

    ``train``: the rows that are learned from, of ``whole``. ``network(**options)``: a new one, of torch's random state;
    options: ``inputs``. ``features``: where the Frechet distance is taken. ``columns``: the bare coordinates.
    ``density``: the data's own, where it is known. ``likelihood_rows``, ``likelihood_steps``: held-out rows that are
    scored, and steps of Heun's method for each. ``evaluations``: of the network, a sample. In whitened coordinates the
    last level shows, and 20 of them end at 0.01, 12 at 0.028 data deviations.
    """

    name: str
    whole: Dataset
    test: Dataset
    network: Callable[..., nn.Module]
    features: Features
    columns: Features
    density: Mixture | None = None
    likelihood_rows: int = 256
    likelihood_steps: int = 12
    evaluations: int = 12
    learned: Dataset | None = None

    @property
    def train(self) -> Dataset:
        return self.learned or self.whole

    @property
    def shape(self) -> tuple[int, ...]:
        return self.train.shape

    @property
    def dim(self) -> int:
        return int(np.prod(self.shape))


@cache
def problem(name: str, data: Path | None = None, rows: int | None = None) -> Problem:
    """One of those above; ``rows``: the first so many of the training rows alone. Made once a process."""
    if rows is not None:
        made = problem(name, data)
        return made if rows >= len(made.whole) else replace(made, learned=made.whole.select(torch.arange(rows)))
    if name not in IMAGES:
        return {"digits": _digits, "table": _table, "fields": _fields, "mixture": _mixture}[name]()
    if data is None:
        raise InputError("--data: got none, expected a folder with mnist/, fashion-mnist/ and cifar10/")
    return _images(name, data)


def has(name: str, data: Path | None) -> bool:
    """Whether the data is there."""
    return name not in IMAGES or (data is not None and (data / name.replace("cifar16", "cifar10")).is_dir())


def _digits() -> Problem:
    train, test = (ansn.load_dataset("digits", split=s, dequantise=True) for s in ("train", "test"))
    return Problem(
        "digits", train, test, lambda **o: ansn.networks.MLP((1, 8, 8), 256, 2, **o),
        ClassifierFeatures.of(train, test), PixelFeatures((1, 8, 8), "digits"),
    )  # fmt: skip


def _images(name: str, root: Path) -> Problem:
    folder = name.replace("cifar16", "cifar10")
    train, test = (_split(name, root / folder, split) for split in ("train", "test"))
    # Drawn from all of it: the first half of MNIST's test set is cleaner than the second.
    held = test.select(torch.randperm(len(test), generator=torch.Generator().manual_seed(0))[:HELD])
    channels, shape = train.shape[0], train.shape
    fold = 1 if name == "cifar16" else 2
    return Problem(
        name, train, held,
        lambda **o: ansn.networks.UNet(
            channels, width=32 if channels == 3 else 16, multipliers=(1, 2, 2), stem_stride=fold, **o
        ),
        classifier(train.select(torch.arange(10_000)), held), PixelFeatures(shape, name), likelihood_rows=32,
        likelihood_steps=8,
    )  # fmt: skip


def _split(name: str, folder: Path, split: str) -> Dataset:
    whole = ansn.load_dataset(name.replace("cifar16", "cifar10"), root=str(folder), split=split)
    if name != "cifar16":
        return whole
    assert isinstance(whole.rows, Tensor)
    small = torch.cat([torch.nn.functional.avg_pool2d(part.float(), 2) for part in whole.rows.split(5000)])
    return Dataset(small.round().to(torch.uint8), name=name, labels=whole.labels, num_classes=10)


def vectors(name: str, x: np.ndarray | Tensor, labels: Tensor | None = None) -> Dataset:
    return Dataset(torch.as_tensor(x, dtype=torch.float32), name=name, labels=labels)


def _table() -> Problem:
    from sklearn.datasets import load_breast_cancer

    x = np.log(load_breast_cancer().data + 1e-2)
    train, test = (x[split_at(len(x), 142, s)] for s in ("train", "test"))
    mean, deviation = train.mean(0), train.std(0)
    splits = [vectors("table", (part - mean) / deviation) for part in (train, test)]
    shape = splits[0].shape
    return Problem(
        "table", splits[0], splits[1], lambda **o: ansn.networks.MLP(shape, 128, 2, **o),
        WhitenedFeatures(everything(splits[0]), name="table"), PixelFeatures(shape, "table"), likelihood_rows=142,
        evaluations=20,
    )  # fmt: skip


def fields(n: int, seed: int, points: int = 64, power: float = 3.0, bend: float = 0.4) -> Tensor:
    """Random fields on a periodic line, float64 ``[n, points]``: ``g + bend (g^2 - 1)`` of a Gaussian field g of unit
    variance with spectrum ``k^-power``."""
    generator = torch.Generator().manual_seed(seed)
    k = torch.arange(points // 2 + 1, dtype=torch.float64)
    amplitude = torch.where(k > 0, k.clamp_min(1) ** (-power / 2), 0.0)
    z = torch.randn(2, n, len(k), generator=generator, dtype=torch.float64)
    g = torch.fft.irfft(torch.complex(z[0], z[1]) * amplitude, points)
    # The deviation that these amplitudes have: every k but the last stands for two waves.
    weight = torch.where((k > 0) & (k < points // 2), 4.0, 1.0)
    g = g / (weight * amplitude**2).sum().sqrt() * points
    return g + bend * (g.square() - 1.0)


def _fields() -> Problem:
    train, test = vectors("fields", fields(8000, 0)), vectors("fields", fields(1000, 1))
    return Problem(
        "fields", train, test, lambda **o: ansn.networks.MLP((64,), 256, 2, **o),
        WhitenedFeatures(everything(train), name="fields"), PixelFeatures((64,), "fields"), evaluations=20,
    )  # fmt: skip


def anisotropic(dim: int = 16, count: int = 5, condition: float = 1000.0, seed: int = 0) -> Mixture:
    """Components with weights 5:4:3:2:1, one covariance of that condition number (largest eigenvalue 1) in a random
    basis, and means drawn from ``N(0, 2 S)``, so that they are apart in every direction."""
    generator = torch.Generator().manual_seed(seed)
    basis, _ = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64))
    values = torch.logspace(0, -float(np.log10(condition)), dim, dtype=torch.float64)
    spread = torch.randn(count, dim, generator=generator, dtype=torch.float64)
    means = 2.0**0.5 * (spread * values.sqrt()) @ basis.T
    weights = torch.arange(count, 0, -1, dtype=torch.float64)
    return Mixture(means, (basis * values @ basis.T).expand(count, -1, -1), weights / weights.sum())


def of_density(
    name: str, density: Mixture, hidden: int, sizes: tuple[int, int] = (8000, 2000), features: Features | None = None
) -> Problem:
    """Rows of a density to learn from and held out; ``features``, by default whitened: where distances are taken."""
    splits = [vectors(name, *density.sample(n, seed)) for seed, n in enumerate(sizes, 1)]
    columns = PixelFeatures((density.dim,), name)
    return Problem(
        name, splits[0], splits[1], lambda **o: ansn.networks.MLP((density.dim,), hidden, 2, **o),
        features or WhitenedFeatures(everything(splits[0]), name=name), columns, density,
    )  # fmt: skip


def _mixture() -> Problem:
    return replace(of_density("mixture", anisotropic(), 128, (8000, 1000)), evaluations=20)
