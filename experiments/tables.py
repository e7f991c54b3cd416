"""Tables of a few hundred rows: the `table` preset's denoiser, a Gaussian copula, a variational autoencoder.

Each seed splits a table that scikit-learn ships into training rows and held-out rows, the same for every arm. Each arm
tries as many settings on a split of the training rows of a seed that no result uses: the best one by a two-sample
classifier is used for samples, the best one by held-out likelihood for likelihood. TVAE is that of the package ctgan,
which is optional.

    python -m experiments.tables
    python -m experiments.tables --quick
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import io
import math
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import special
from torch import Tensor

import ansn
from ansn.data import Dataset
from ansn.data.table import read_rows
from ansn.data.units import Table, spread
from ansn.evaluation.neighbours import memorisation, nearest
from ansn.training import load_run, train
from experiments.lab.claim import Cell, Claim, Row, Section, Settings, main
from experiments.lab.statistics import WORDS, Estimate, listed, mean, paired, select, table, unique
from experiments.lab.training import TUNING_SEED, configured

SEEDS = 5
HELD = 1 / 3  # of the rows, and again of the training rows for the choice of a setting
SETS = 3  # of samples, each as many as held-out rows
DRAWS = 2  # of a row's noise where it is discrete
FLOW: dict[str, Any] = {"solver": "heun", "steps": 12}  # of a likelihood
QUANTILE = 0.05  # of the held-out rows' distances: what counts as a repetition
FLOOR, CONTROL, PEER = "training rows", "copula", "tvae"
TABLES = ("diabetes", "breast cancer")
UNTRAINED = {"steps": 20, "lr": 1e-30}  # the covariance learns, the network does not
SETTINGS: dict[str, tuple[dict[str, Any], ...]] = {
    FLOOR: ({},),
    CONTROL: tuple({"shrinkage": a, "bandwidth": h} for a in (0.001, 0.03) for h in (0.3, 1.0)),
    "mixture alone": (UNTRAINED,),
    "denoiser": (
        {"steps": 100}, {"steps": 300}, {"steps": 300, "dropout": 0.5}, {"steps": 600, "dropout": 0.5},
    ),
    PEER: ({"epochs": 250}, {"epochs": 500}, {"epochs": 1000}, {"epochs": 500, "narrow": 1}),
}  # fmt: skip
QUICK: dict[str, tuple[dict[str, Any], ...]] = {
    FLOOR: SETTINGS[FLOOR], CONTROL: SETTINGS[CONTROL][:2], "denoiser": ({"steps": 2}, {"steps": 3}),
}  # fmt: skip


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


@dataclass(frozen=True)
class Fitted:
    """``sample(n, seed)``: values ``[n, columns]``; ``score(values)``: log-likelihoods ``[n]``, nats, data's units."""

    sample: Callable[[int, int], Tensor]
    score: Callable[[Tensor], Tensor] | None = None


def cells(settings: Settings) -> list[Cell]:
    names = TABLES[:1] if settings.quick else TABLES
    arms = list(QUICK if settings.quick else SETTINGS)
    if PEER in arms and importlib.util.find_spec("ctgan") is None:
        print("no package ctgan: the cells of TVAE are left out", file=sys.stderr)
        arms.remove(PEER)
    return [{"table": name, "arm": arm} for arm in arms for name in names]


def run(cell: Cell, settings: Settings) -> list[Row]:
    name, arm = cell["table"], cell["arm"]
    options = (QUICK if settings.quick else SETTINGS)[arm]
    out: list[Row] = []
    chosen = {"auc": options[0], "nll": options[0]}
    if len(options) > 1:
        tried = [measured(name, arm, option, TUNING_SEED, list(chosen), tuning=True) for option in options]
        for measure in chosen:
            if all(row[measure] is not None and math.isfinite(row[measure]) for row in tried):
                chosen[measure] = options[min(range(len(tried)), key=lambda i: tried[i][measure])]
            elif measure == "nll":
                chosen[measure] = chosen["auc"]
        out += [{"part": "tried"} | row for row in tried]
    for seed in range(2 if settings.quick else SEEDS):
        for option in options:
            purposes = [measure for measure in chosen if chosen[measure] == option]
            if purposes:
                out.append({"part": " ".join(purposes)} | measured(name, arm, option, seed, purposes))
    return out


def measured(
    name: str, arm: str, option: dict[str, Any], seed: int, purposes: list[str], *, tuning: bool = False
) -> Row:
    """One fit and its numbers on rows that it did not see; purposes: "auc", "nll" or both."""
    with tempfile.TemporaryDirectory() as folder:
        split = parts(name, seed, Path(folder), tuning=tuning)
        began = time.perf_counter()
        fitted = _FITS[arm](split, option, seed)
        row: Row = {"seed": seed, "setting": ", ".join(f"{k} {v:g}" for k, v in option.items())}
        row |= {"rows": len(split.train), "held": len(split.held), "seconds": time.perf_counter() - began}
        row["package"] = f"ctgan {importlib.metadata.version('ctgan')}" if arm == PEER else ""
        row |= dict.fromkeys(("logistic", "boosting", "auc", "repeated", "ratio", "nll", "nll_median"))
        if "auc" in purposes:
            real, train = split.numbers(split.held), split.numbers(split.units.decode(split.rows))
            measure = memorisation(nearest(real, train)[0][:, 0], QUANTILE)
            found = []
            for k in range(SETS):
                fake = split.numbers(fitted.sample(len(real), 100 * seed + k))
                found.append([*classifiers(real, fake), *measure(nearest(fake, train)[0])])
            row |= dict(zip(("logistic", "boosting", "repeated", "ratio"), np.mean(found, 0).tolist(), strict=True))
            row["auc"] = (row["logistic"] + row["boosting"]) / 2
        if "nll" in purposes and fitted.score is not None:
            scores = -fitted.score(split.held)
            row |= {"nll": float(scores.mean()), "nll_median": float(scores.median())}
    return row


# -- data and measures ------------------------------------------------------------------------------------------------


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


# -- the arms ---------------------------------------------------------------------------------------------------------


def _resampled(split: Split, option: dict[str, Any], seed: int) -> Fitted:
    """Training rows themselves: the floor of the classifiers, and the copier that distances give away."""
    values = split.units.decode(split.rows)
    return Fitted(lambda n, s: values[torch.from_numpy(np.random.default_rng(s).choice(len(values), n, replace=False))])


def _denoiser(split: Split, option: dict[str, Any], seed: int) -> Fitted:
    optim = {k: v for k, v in option.items() if k in ("steps", "lr")}
    network = {"dropout": option.get("dropout", 0.0)}
    out = split.path.parent / "run"
    config = configured(
        "table", data={"dataset": str(split.path), "test_fraction": 0.0}, optim=optim, network=network,
        run={"out": str(out), "seed": seed, "device": "cpu", "threads": 1, "checkpoint_every": option["steps"]},
    )  # fmt: skip
    with contextlib.redirect_stderr(io.StringIO()):
        train(config)
    run = load_run(out)
    return Fitted(
        lambda n, s: run.to_data_units(ansn.sample(run.model, n, seed=s)),
        lambda values: ansn.score_rows(run.model, values, split.units, draws=DRAWS, seed=seed, **FLOW).value,
    )


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


def _copula(split: Split, option: dict[str, Any], seed: int) -> Fitted:
    copula, grain = Copula(split.rows, **option), split.units.grain

    def score(values: Tensor) -> Tensor:
        z = split.units.encode(values.repeat_interleave(DRAWS, 0))
        z = z if grain is None else z + spread(grain, len(z), seed, 0)
        found = copula.log_density(z) - split.units.log_volume(z)
        return found.reshape(-1, DRAWS).logsumexp(1) - math.log(DRAWS)

    return Fitted(lambda n, s: split.units.decode(copula.sample(n, s)), score)


def _tvae(split: Split, option: dict[str, Any], seed: int) -> Fitted:
    import pandas
    from ctgan import TVAE

    names = list(split.units.names)
    discrete = [column.name for column in split.units.columns if column.kind in ("binary", "category")]
    sizes = (64, 64) if option.get("narrow") else (128, 128)
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002  (what the package draws from)
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        model = TVAE(epochs=option["epochs"], batch_size=256, compress_dims=sizes, decompress_dims=sizes,
                     enable_gpu=False)  # fmt: skip
        model.fit(pandas.DataFrame(split.units.decode(split.rows).numpy(), columns=names), discrete)
    return Fitted(lambda n, s: torch.from_numpy(model.sample(n)[names].to_numpy(dtype=np.float64)))


_FITS: dict[str, Callable[[Split, dict[str, Any], int], Fitted]] = {
    FLOOR: _resampled, CONTROL: _copula, "mixture alone": _denoiser, "denoiser": _denoiser, PEER: _tvae,
}  # fmt: skip


# -- what the rows say ------------------------------------------------------------------------------------------------

_DESIGN = """Tables of scikit-learn: *diabetes* (442 rows: five columns of whole numbers with the target, one of two
values, five with decimals) and *breast cancer* (569 rows: 30 numbers, and the class as a column of words). {seeds}
seeds, each its own third of the rows held out. Arms: `denoiser`, the `table` preset with the steps and dropout named;
`mixture alone`, what it begins as (Gaussians of regions found in the data, no network); `copula`, a Gaussian copula
with kernel marginals, after the same standardisation; `tvae`, a variational autoencoder ({package}). All but `mixture
alone` had four settings to try on a split of the training rows of another seed: the best one by classifiers gives the
samples, the best one by likelihood the likelihoods. *auc*: the mean of a logistic regression and boosted trees,
five-fold, that tell as many samples as held-out rows from these; {sets} sets a seed, rounded to the file's digits in
every arm. `training rows` are the floor, and what a copier would have. *Repeated*: share of samples nearer to a
training row than 5 % of the held-out rows; *ratio*: their median distance over that of the held-out rows. *nll*: nats
a row in the file's units, the density of numbers and the probability of discrete values ({draws} draws of their
noise)."""


def section(rows: list[Row], folder: Path) -> Section:
    names = unique(rows, "table")
    finals = {purpose: [r for r in rows if purpose in r["part"].split()] for purpose in ("auc", "nll")}
    apart = {name: {purpose: _apart(select(finals[purpose], table=name), purpose) for purpose in finals}
             for name in names}  # fmt: skip
    package = ", ".join(name for name in unique(rows, "package") if name) or "of the package ctgan, not run here"
    tables = [(f"{name}, {rows_of['rows']} training rows and {rows_of['held']} held out", _table(finals, name))
              for name in names for rows_of in select(finals["auc"], table=name)[:1]]  # fmt: skip
    tried = select(rows, part="tried")
    lines = [[r["table"], r["arm"], r["setting"], f"{r['auc']:.3f}", _number(r["nll"]), f"{r['seconds']:.0f}"]
             for r in tried]  # fmt: skip
    head = ("data", "arm", "setting", "auc", "nll", "seconds a fit")
    tables.append(("Settings tried, on a part of the training rows of another seed", table(head, lines)))
    return Section(
        question="Is a denoiser worth its training on tables of a few hundred rows?",
        answer=". ".join(_sentence(name, apart[name]) for name in names) + ".",
        design=_DESIGN.format(seeds=len(unique(finals["auc"], "seed")), sets=SETS, draws=DRAWS, package=package),
        tables=tables,
        findings=[line for name in names for line in _findings(finals, name)],
        change="tables of thousands of rows; more settings tried for each arm; columns whose values are neither"
        " continuous nor whole; other classifiers.",
    )


def _apart(rows: list[Row], column: str) -> dict[str, Estimate]:
    """Each arm's paired difference to the copula, of those that have the column; below 0 is better."""
    control = select(rows, arm=CONTROL)
    return {arm: paired(select(rows, arm=arm), control, column) for arm in unique(rows, "arm")
            if arm not in (CONTROL, FLOOR) and select(rows, arm=arm)[0][column] is not None}  # fmt: skip


def _sentence(name: str, apart: dict[str, dict[str, Estimate]]) -> str:
    ways = {"auc": "by classifiers (auc)", "nll": "by held-out likelihood (nats a row)"}
    told = []
    for purpose, found in apart.items():
        each = ((e.sign, f"{arm} ({e.mean:+.2g} ± {e.half:.1g})") for arm, e in found.items())
        told.append(f"{ways[purpose]} {listed(each, WORDS)}")
    return f"{name.capitalize()}, against a Gaussian copula, {'; '.join(told)}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _table(finals: dict[str, list[Row]], name: str) -> str:
    lines: list[list[Any]] = []
    samples, likely = (select(finals[purpose], table=name) for purpose in ("auc", "nll"))
    control = {"auc": select(samples, arm=CONTROL), "nll": select(likely, arm=CONTROL)}
    for arm in unique(samples, "arm"):
        ours, scored = select(samples, arm=arm), select(likely, arm=arm)
        line: list[Any] = [arm, *(f"{mean(ours, c).mean:.3f}" for c in ("logistic", "boosting", "auc"))]
        line.append("" if arm == CONTROL else paired(ours, control["auc"], "auc").show(2))
        line += [f"{mean(ours, c).mean:.2f}" for c in ("repeated", "ratio")]
        if scored[0]["nll"] is None:
            line += ["", "", ""]
        else:
            line += [_number(mean(scored, "nll").mean), _number(mean(scored, "nll_median").mean)]
            line.append("" if arm == CONTROL else paired(scored, control["nll"], "nll").show(2))
        used = dict.fromkeys((ours[0]["setting"] or "-", scored[0]["setting"] or "-"))
        lines.append([*line, "; ".join(used), f"{mean(ours, 'seconds').mean:.0f}"])
    head = ("arm", "logistic", "boosting", "auc", "less copula", "repeated", "ratio", "nll", "median row",
            "less copula", "setting (samples; likelihood)", "seconds a fit")  # fmt: skip
    return table(head, lines)


def _findings(finals: dict[str, list[Row]], name: str) -> list[str]:
    out = []
    samples, likely = (select(finals[purpose], table=name) for purpose in ("auc", "nll"))
    longest = f"epochs {max(option['epochs'] for option in SETTINGS[PEER])}"
    if any(row["setting"] == longest for row in select(samples, arm=PEER)):
        out.append(f"{name}: the best setting of {PEER} is the longest that it was given, {longest}: more may do more.")
    floor = select(samples, arm=FLOOR)
    above = {arm: paired(select(samples, arm=arm), floor, "auc") for arm in unique(samples, "arm") if arm != FLOOR}
    told = ", ".join(f"{arm} {e.mean:+.2g} ± {e.half:.1g}" for arm, e in above.items())
    out.append(f"{name}: auc above that of training rows: {told}.")
    for purpose, rows in (("auc", samples), ("nll", likely)):
        begun, trained = (select(rows, arm=arm) for arm in ("mixture alone", "denoiser"))
        if begun and trained:
            e = paired(trained, begun, purpose)
            what = "auc" if purpose == "auc" else "nll"
            out.append(f"{name}: training the network moves {what} by {e.show(2)} ({WORDS[e.sign]}).")
    return out


CLAIM = Claim("tables", cells, run, section)

if __name__ == "__main__":
    sys.exit(main(CLAIM, __doc__))
