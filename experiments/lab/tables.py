"""Tables that scikit-learn ships, split and as numbers; a Gaussian copula; classifiers that tell samples from rows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import special
from torch import Tensor

import ansn
from ansn.data import Dataset
from ansn.data.table import read_rows
from ansn.data.units import Table

HELD = 1 / 3  # of the rows, and again of the training rows for the choice of a setting


@dataclass(frozen=True)
class Split:
    """``train``: the data set of the training rows; ``held``: values of the held-out ones, float64 ``[n, columns]``."""

    train: Dataset
    units: Table
    held: Tensor
    path: Path

    @property
    def rows(self) -> Tensor:
        """The training rows as the model sees them, what is discrete spread by noise."""
        return self.train.batch(torch.arange(len(self.train)))[0]

    def numbers(self, values: Tensor) -> NDArray[np.float64]:
        """Standardised, with the file's digits: what classifiers and distances see of every arm."""
        return self.units.encode(self.units.decode(self.units.encode(values))).double().numpy()


def content(name: str) -> tuple[list[str], list[list[str]]]:
    """Names of the columns and cells of a table: numbers, whole numbers, and a class of two words."""
    from sklearn import datasets

    def cell(value: float) -> str:
        return str(int(value)) if value.is_integer() else repr(value)

    if name == "diabetes":
        found = datasets.load_diabetes(scaled=False)
        rows = [[*map(cell, x), cell(t)] for x, t in zip(found.data.tolist(), found.target.tolist(), strict=True)]
        return [*found.feature_names, "progression"], rows
    found = datasets.load_breast_cancer()
    words = [str(found.target_names[t]) for t in found.target]
    rows = [[*map(repr, x), word] for x, word in zip(found.data.tolist(), words, strict=True)]
    return [*map(str, found.feature_names), "class"], rows


def parts(name: str, seed: int, folder: Path, *, tuning: bool = False) -> Split:
    """The split of a seed, its training rows as a file in the folder; tuning: its training rows, split again."""
    names, rows = content(name)
    order = np.random.default_rng(seed).permutation(len(rows))
    held, order = np.split(order, [round(HELD * len(order))])
    if tuning:
        held, order = np.split(order, [round(HELD * len(order))])
    paths = {part: folder / f"{part}.csv" for part in ("train", "held")}
    for path, kept in zip(paths.values(), (order, held), strict=True):
        path.write_text("\n".join(",".join(line) for line in [names, *(rows[i] for i in kept)]) + "\n")
    data = ansn.load_dataset(str(paths["train"]), test_fraction=0.0)
    assert isinstance(data.units, Table)
    return Split(data, data.units, read_rows(paths["held"], data.units)[0], paths["train"])


def classifiers(real: NDArray[np.float64], fake: NDArray[np.float64]) -> tuple[float, float]:
    """Areas under the ROC curve of two classifiers that tell the sets apart, five-fold: 0.5 where they cannot."""
    from sklearn.ensemble import GradientBoostingClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    x, y = np.concatenate([real, fake]), np.repeat([1, 0], [len(real), len(fake)])
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    models = (
        LogisticRegression(max_iter=500),
        GradientBoostingClassifier(n_estimators=60, subsample=0.7, max_features="sqrt", random_state=0),
    )
    chances = [cross_val_predict(model, x, y, cv=folds, method="predict_proba")[:, 1] for model in models]
    logistic, boosting = (float(roc_auc_score(y, p)) for p in chances)
    return logistic, boosting


class Copula:
    """``p(x) = N(z; 0, R) prod_j f_j(x_j) / N(z_j; 0, 1)``, ``z_j = Phi^-1(F_j(x_j))``: each column's density f is the
    rows' under a Gaussian kernel, as wide as ``bandwidth`` times ``n^-1/5`` deviations; R is the correlation of the
    rows' z, shrunk towards I."""

    def __init__(self, x: Tensor, shrinkage: float, bandwidth: float) -> None:
        self.x = x.double()
        self.width = bandwidth * self.x.std(0) * len(x) ** -0.2
        d, z = x.shape[1], self._normal(self.x)[0]
        shrunk = (1 - shrinkage) * torch.corrcoef(z.T) + shrinkage * torch.eye(d, dtype=torch.float64)
        self.joint = torch.distributions.MultivariateNormal(torch.zeros(d, dtype=torch.float64), shrunk)

    def _normal(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """z ``[n, d]`` and ``ln f [n, d]`` of rows."""
        away = (x.double()[:, None] - self.x) / self.width
        z = special.ndtri(special.ndtr(away.numpy()).mean(1).clip(1e-12, 1 - 1e-12))
        kernel = torch.distributions.Normal(0.0, 1.0).log_prob(away) - self.width.log()
        return torch.from_numpy(z), kernel.logsumexp(1) - math.log(len(self.x))

    def log_density(self, x: Tensor) -> Tensor:
        z, log_f = self._normal(x)
        each = torch.distributions.Normal(0.0, 1.0).log_prob(z)
        return self.joint.log_prob(z) + (log_f - each).sum(1)

    def sample(self, n: int, seed: int) -> Tensor:
        normals = torch.from_numpy(np.random.default_rng(seed).standard_normal((n, self.x.shape[1])))
        z = normals @ self.joint.scale_tril.T
        low, high = self.x.amin(0) - 5 * self.width, self.x.amax(0) + 5 * self.width
        grid = low + (high - low) * torch.linspace(0, 1, 2000, dtype=torch.float64)[:, None]
        at = torch.cat([self._normal(part)[0] for part in grid.split(200)])
        columns = zip(*(m.T.numpy() for m in (z, at, grid)), strict=True)
        return torch.from_numpy(np.stack([np.interp(a, b, c) for a, b, c in columns], 1))
