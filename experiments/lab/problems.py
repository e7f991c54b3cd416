"""The data sets that the claims learn from, each with its network, its spaces to measure in, and what a budget allows.

* ``digits``: scikit-learn's 8x8 digits, dequantised (1347 and 450 images).
* ``mnist``: MNIST, means of 2x2 pixels (14x14), dequantised; needs ``--data``.
* ``mnist28``: MNIST as it is, ``cifar10``: 20,000 images of CIFAR-10; need ``--data``.
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
from experiments.lab.mixture import Mixture

NAMES = ("mixture", "digits", "mnist", "mnist28", "cifar10", "table", "fields")


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

    ``network(**options)``: a new one, of torch's random state; options: ``num_classes``, ``inputs``. ``features``:
    where the Frechet distance is taken. ``columns``: the bare coordinates, for the energy distance. ``density``: the
    data's own, where it is known. ``likelihood_rows``, ``likelihood_steps``: held-out rows that are scored, and steps
    of Heun's method for each. ``evaluations``: of the network, a sample. In whitened coordinates the last level shows,
    and 20 of them end at 0.01, 12 at 0.028 data deviations.
    """

    name: str
    train: Dataset
    test: Dataset
    network: Callable[..., nn.Module]
    features: Features
    columns: Features
    density: Mixture | None = None
    likelihood_rows: int = 256
    likelihood_steps: int = 12
    evaluations: int = 12

    @property
    def shape(self) -> tuple[int, ...]:
        return self.train.shape

    @property
    def dim(self) -> int:
        return int(np.prod(self.shape))


@cache
def problem(name: str, data: Path | None = None, rows: int | None = None) -> Problem:
    """One of :data:`NAMES`; ``rows``: the first so many of the training rows alone. Made once a process."""
    makers = {"digits": _digits, "table": _table, "fields": _fields, "mixture": _mixture}
    images = {"mnist": _mnist, "mnist28": _mnist28, "cifar10": _cifar10}
    if name in images:
        if data is None:
            raise InputError("--data: got none, expected the folder of MNIST's files")
        made = images[name](data)
    elif name in makers:
        made = makers[name]()
    else:
        raise ValueError(f"problem: got {name!r}, expected one of {', '.join(NAMES)}")
    if rows is None:
        return made
    if not 0 < rows <= len(made.train):
        raise ValueError(f"rows: got {rows}, expected 1 to {len(made.train)}")
    return replace(made, train=made.train.select(torch.arange(rows)))


def _digits() -> Problem:
    train, test = (ansn.load_dataset("digits", split=s, dequantise=True) for s in ("train", "test"))
    return Problem(
        "digits", train, test, lambda **o: ansn.networks.MLP((1, 8, 8), 256, 2, **o),
        ClassifierFeatures.of(train, test), PixelFeatures((1, 8, 8), "digits"),
    )  # fmt: skip


def _mnist(root: Path) -> Problem:
    def pooled(split: str) -> Dataset:
        whole = ansn.load_dataset("mnist", root=str(root), split=split)
        assert isinstance(whole.rows, Tensor)
        small = torch.nn.functional.avg_pool2d(whole.rows.float(), 2).round().to(torch.uint8)
        return Dataset(small, name="mnist14", labels=whole.labels, num_classes=10, dequantise=True)

    train, test = pooled("train"), pooled("test")
    # Drawn from all of it: the first half of the test set is cleaner than the second.
    held = test.select(torch.randperm(len(test), generator=torch.Generator().manual_seed(0))[:1000])
    some = train.select(torch.arange(10_000))  # enough for features; all 60,000 are learned from
    return Problem(
        "mnist", train, held,
        lambda **o: ansn.networks.UNet(1, width=16, blocks=1, multipliers=(1, 2), stem_stride=2, **o),
        ClassifierFeatures.of(some, held, (128, 64)), PixelFeatures((1, 14, 14), "mnist14"),
        likelihood_rows=64, likelihood_steps=8,
    )  # fmt: skip


def _mnist28(root: Path) -> Problem:
    train, test = (ansn.load_dataset("mnist", root=str(root), split=split) for split in ("train", "test"))
    held = test.select(torch.randperm(len(test), generator=torch.Generator().manual_seed(0))[:1000])
    some = train.select(torch.arange(10_000))  # enough for features; all 60,000 are learned from
    return Problem(
        "mnist28", train, held, lambda **o: ansn.networks.UNet(1, width=16, multipliers=(1, 2, 2), stem_stride=2, **o),
        ClassifierFeatures.of(some, held, (128, 64)), PixelFeatures((1, 28, 28), "mnist28"),
        likelihood_rows=64, likelihood_steps=8,
    )  # fmt: skip


def _cifar10(root: Path) -> Problem:
    train, test = (ansn.load_dataset("cifar10", root=str(root), split=split) for split in ("train", "test"))
    space = PixelFeatures((3, 32, 32), "cifar10")
    return Problem(
        "cifar10", train.select(torch.arange(20_000)), test.select(torch.arange(1000)),
        lambda **o: ansn.networks.UNet(3, width=32, multipliers=(1, 2, 2), stem_stride=2, **o), space, space,
        likelihood_rows=32, likelihood_steps=8,
    )  # fmt: skip


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
        "table", *splits, lambda **o: ansn.networks.MLP(shape, 128, 2, **o),
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
        name, *splits, lambda **o: ansn.networks.MLP((density.dim,), hidden, 2, **o),
        features or WhitenedFeatures(everything(splits[0]), name=name), columns, density,
    )  # fmt: skip


def _mixture() -> Problem:
    return replace(of_density("mixture", anisotropic(), 128, (8000, 1000)), evaluations=20)
