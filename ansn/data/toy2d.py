"""Generated mixtures in the plane, whose densities are known: oracles for scores and samplers."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray

from ansn.data import streams
from ansn.data.dataset import Dataset
from ansn.data.holdout import SPLITS, check_split
from ansn.data.units import Table
from ansn.errors import InputError

KINDS = ("8-gaussians", "two-moons", "anisotropic", "gaussian")
_MOON_NOISE = 0.1


def load(kind: str | None = None, *, split: str = "train", samples: int | None = None, data_seed: int = 0) -> Dataset:
    """``samples`` points (default 10000) of a mixture as float32 [N, 2]; labels are the components.

    A function of (kind, split, samples, data_seed); the splits are independent draws, and more samples
    extend fewer. Kinds: "8-gaussians" on a circle of radius 2; "two-moons"; "anisotropic", three Gaussians
    stretched alike (variances 4 and 0.01 along 30 degrees); "gaussian", one correlated Gaussian.
    """
    check_split(split)
    kind = KINDS[0] if kind is None else kind
    if kind not in KINDS:
        raise InputError(f"kind: got {kind!r} for toy2d, expected one of {', '.join(KINDS)}")
    count = 10_000 if samples is None else samples
    if count < 1:
        raise InputError(f"samples: got {count}, expected 1 or more")
    if not 0 <= data_seed < 2**64:
        raise InputError(f"data_seed: got {data_seed}, expected an integer from 0 to 2^64 - 1")
    # Four uniforms a point: component, angle or nothing, and two for the pair of normals.
    u = streams.uniforms(data_seed, streams.TOY, 4 * count, lane=SPLITS.index(split)).reshape(count, 4)
    radius = np.sqrt(-2 * np.log(u[:, 2]))
    normal = radius[:, None] * np.stack([np.cos(2 * math.pi * u[:, 3]), np.sin(2 * math.pi * u[:, 3])], 1)
    if kind == "two-moons":
        label = (u[:, 0] < 0.5).astype(np.int64)
        angle = math.pi * u[:, 1]
        upper = np.stack([np.cos(angle), np.sin(angle)], 1)
        lower = np.stack([1 - np.cos(angle), 0.5 - np.sin(angle)], 1)
        points = np.where(label[:, None] == 0, upper, lower) + _MOON_NOISE * normal
        classes = 2
    else:
        weights, means, covariances = gaussian_mixture(kind)
        classes = len(weights)
        label = np.minimum(np.searchsorted(np.cumsum(weights), u[:, 0], side="right"), classes - 1)
        factors = np.linalg.cholesky(covariances)
        points = means[label] + np.einsum("nij,nj->ni", factors[label], normal)
    return Dataset(
        torch.from_numpy(points.astype(np.float32)),
        name=f"toy2d:{kind}",
        labels=torch.from_numpy(label.astype(np.int64)),
        num_classes=classes,
        notes=("held out for measurements: as many points again",),
        units=Table.plain(("x", "y")),
    )


def gaussian_mixture(kind: str) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """(weights [K], means [K, 2], covariances [K, 2, 2]), float64, of a Gaussian kind: p = sum_k w_k N(m_k,
    S_k).

    ValueError for "two-moons", which is no Gaussian mixture, and unknown kinds.
    """
    stretched = _rotated(30.0, 4.0, 0.01)
    if kind == "8-gaussians":
        angle = 2 * math.pi * np.arange(8) / 8
        means = 2 * np.stack([np.cos(angle), np.sin(angle)], 1)
        return np.full(8, 1 / 8), means, np.broadcast_to(0.15**2 * np.eye(2), (8, 2, 2)).copy()
    if kind == "anisotropic":
        means = np.array([[0.0, 1.0], [0.5, 0.0], [-0.5, -1.0]])
        return np.array([0.5, 0.3, 0.2]), means, np.stack([stretched] * 3)
    if kind == "gaussian":
        return np.ones(1), np.array([[1.0, -0.5]]), stretched[None]
    raise ValueError(f"kind: got {kind!r}, expected 8-gaussians, anisotropic or gaussian")


def _rotated(degrees: float, along: float, across: float) -> NDArray[np.float64]:
    """Covariance with variance ``along`` along the angle and ``across`` at right angles to it."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    q = np.array([[c, -s], [s, c]])
    return q @ np.diag([along, across]) @ q.T
