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
from torch import Tensor

import ansn
from ansn.data.units import spread
from ansn.evaluation.neighbours import memorisation, nearest
from ansn.training import load_run, train
from experiments.lab import figure
from experiments.lab.claim import Cell, Claim, Row, Section, Settings, main
from experiments.lab.statistics import Estimate, listed, mean, paired, select, table, unique
from experiments.lab.tables import Copula, Split, classifiers, parts
from experiments.lab.training import TUNING_SEED, configured

SEEDS = 5
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

_DESIGN = """Tables of scikit-learn: diabetes (442 rows, whole numbers and decimals) and breast cancer (569 rows of 30
numbers and a class). {seeds} seeds, each with a third of the rows held out. `denoiser`: the `table` preset; `mixture
alone`: what it begins as; `copula`: a Gaussian copula with kernel marginals; `tvae`: {package}. All but `mixture alone`
had four settings to try on a split of the training rows. *auc*: the mean of a logistic regression and boosted trees,
five-fold, that tell as many samples as held-out rows from these (0.5: they cannot); *nll*: nats a row in the file's
units."""


def section(rows: list[Row], folder: Path) -> Section:
    samples, likely = ([r for r in rows if purpose in r["part"].split()] for purpose in ("auc", "nll"))
    lines, answers = [], []
    for name in unique(rows, "table"):
        told = []
        for column, own in (("auc", select(samples, table=name)), ("nll", select(likely, table=name))):
            found = _apart(own, column)
            line = listed((e.sign, f"`{arm}` ({e.show(2)})") for arm, e in found.items())
            told.append(f"{column} {line}")
        answers.append(f"{name}, against a Gaussian copula: {'; '.join(told)}")
        for arm in unique(select(samples, table=name), "arm"):
            ours, scored = (select(own, table=name, arm=arm) for own in (samples, likely))
            nll = "" if scored[0]["nll"] is None else f"{mean(scored, 'nll').mean:.1f}"
            repeated, seconds = (mean(ours, column).mean for column in ("repeated", "seconds"))
            lines.append([name, arm, mean(ours, "auc").show(3), nll, f"{repeated:.2f}", f"{seconds:.0f}"])
    package = ", ".join(name for name in unique(rows, "package") if name) or "of the package ctgan, not run here"
    return Section(
        "Is a denoiser worth its training on tables of a few hundred rows?",
        ". ".join(answers) + ".",
        _DESIGN.format(seeds=len(unique(samples, "seed")), package=package),
        [("Mean over the seeds; `repeated`: share of samples nearer to a training row than 5 % of the held-out rows",
          table(["table", "arm", "auc", "nll", "repeated", "seconds a fit"], lines))],
        [_figure(samples, folder)],
        reading="`part`: what a setting was chosen for (auc, nll), or `tried` where it was not; `setting`: which.",
    )  # fmt: skip


def _apart(rows: list[Row], column: str) -> dict[str, Estimate]:
    """Each arm's paired difference to the copula, of those that have the column; below 0 is better."""
    control = select(rows, arm=CONTROL)
    return {arm: paired(select(rows, arm=arm), control, column) for arm in unique(rows, "arm")
            if arm not in (CONTROL, FLOOR) and select(rows, arm=arm)[0][column] is not None}  # fmt: skip


def _figure(samples: list[Row], folder: Path) -> tuple[str, str]:
    names, arms = unique(samples, "table"), unique(samples, "arm")
    drawn, axes = figure.panels(len(names))
    for axis, name in zip(axes, names, strict=True):
        for i, arm in enumerate(arms):
            values = [row["auc"] for row in select(samples, table=name, arm=arm)]
            axis.plot(values, [i] * len(values), "o", markersize=4, color=figure.COLOURS[i])
        axis.axvline(0.5, color="black", linestyle=":", linewidth=1)
        axis.set_yticks(range(len(arms)), arms)
        axis.set(title=name, xlabel="auc, a point a seed (0.5: cannot be told from data)")
    return "How well classifiers tell samples from held-out rows", figure.save(drawn, folder / "tables.png")


CLAIM = Claim("tables", cells, run, section)

if __name__ == "__main__":
    sys.exit(main(CLAIM, __doc__))
