"""Is the log-likelihood right, and what does it cost? Closed forms, the kinds of probes, and bits/dim of digits.

Three tables, a CSV file each:

* `likelihood_solvers.csv`: error in nats a dimension against evaluations, with exact traces, on a Gaussian (condition
  number 1e4) and a mixture of five. The model knows their mean and covariance, as it would from data.
* `likelihood_probes.csv`: standard deviation of one probe's estimate, nats a dimension, for every kind of probe.
* `likelihood_digits.csv`: bits a dimension of training and held-out digits, isotropic noise against shaped.

    python -m experiments.likelihood_check

The tables are printed as Markdown at the end.
"""

from __future__ import annotations

import itertools
import math
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from torch import Tensor, nn

import ansn
from ansn.choices import choice
from ansn.cli.common import guarded, parsed
from ansn.data import Dataset
from ansn.denoiser import SKIPS
from ansn.errors import refuse
from ansn.likelihood.flow import BASES, PROBES
from ansn.machine import cpu_name
from ansn.training import train
from experiments.lab.claim import RESULTS, Row, write
from experiments.lab.mixture import Mixture
from experiments.lab.statistics import select, table, unique
from experiments.lab.training import configured

_NAME = "likelihood_check"
_SOLVERS: dict[str, list[dict[str, Any]]] = {
    "rk4": [{"steps": n} for n in (4, 8, 16, 32)],
    "heun": [{"steps": n} for n in (8, 16, 32, 64)],
    "rk45": [{"rtol": rtol} for rtol in (1e-2, 1e-3, 1e-4, 1e-5)],
}


@dataclass(frozen=True)
class Settings:
    """Log-likelihood by the flow: closed forms, probes, digits."""

    dims: tuple[int, ...] = (2, 16, 64)
    """Dimensions of the closed forms."""
    rows: int = 16
    """Points of each closed form, drawn from it."""
    rho: float = 0.5
    """Anisotropy of the noise in the closed forms."""
    rhos: tuple[float, ...] = (0.0, 0.5)
    """Anisotropies of the digits' noise."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Digits: one training run for each."""
    steps: int = 500
    """Digits: training steps of the digits preset on dequantised data; 0 leaves the digits out."""
    images: int = 300
    """Digits: images of each split that are scored."""
    probes: int = 2
    """Digits: probes of each image."""
    skip: Annotated[str, choice(SKIPS)] = "scalar"
    """The denoiser's skip; the published figures are of the scalar one."""
    threads: int | None = None
    """CPU threads; by default torch's."""
    out: Path = RESULTS
    """Folder of the CSV files, which are replaced."""


class MixtureMean(nn.Module):
    """``E[x | x~]`` of a mixture under noise ``tau^2 R``, where a network would stand."""

    conditioning = "log"

    def __init__(self, density: Mixture, r: Tensor) -> None:
        super().__init__()
        self.density, self.r = density, r

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        return self.density.denoised(x, math.exp(8 * float(level[0])) * self.r)


def target(kind: str, dim: int, rho: float) -> ansn.Denoiser:
    """The exact denoiser of a closed form under noise of anisotropy rho, with the ladder's usual ends."""
    generator = torch.Generator().manual_seed(dim)
    count, ends = (1, (1e-3, 10.0)) if kind == "gaussian" else (5, (0.01, 0.2))
    means = torch.randn(count, dim, generator=generator, dtype=torch.float64)
    spectrum = torch.logspace(math.log10(ends[0]), math.log10(ends[1]), dim, dtype=torch.float64)
    bases = torch.linalg.qr(torch.randn(count, dim, dim, generator=generator, dtype=torch.float64))[0]
    covariances = bases * spectrum @ bases.mT
    weights = torch.arange(count, 0, -1, dtype=torch.float64) / (count * (count + 1) / 2)
    density = Mixture(means, covariances, weights)
    s = density.covariance()
    r = rho * s + (1 - rho) * s.diagonal().mean() * torch.eye(dim, dtype=torch.float64)
    double = {"dtype": torch.float64, "factor_dtype": torch.float64}
    covariance = ansn.AdaptiveCovariance(dim, rho=rho, eps=0.0, initial=s, **double).freeze()
    covariance.center.copy_(density.mean())
    ladder = ansn.levels.karras(max(ansn.levels.tau_max_flow(dim), 6.0), 0.01)
    return ansn.Denoiser(MixtureMean(density, r), ansn.NoiseModel(covariance, ladder), precondition=False)


def closed_form(kind: str, dim: int, settings: Settings) -> tuple[ansn.Denoiser, Tensor, Tensor]:
    """A denoiser, points of its data and their log-densities at the ladder's end."""
    model = target(kind, dim, settings.rho)
    assert isinstance(model.network, MixtureMean)
    density, sigma = model.network.density, model.noise.levels.minimum**2 * model.network.r
    x, _ = density.sample(settings.rows)
    return model, x, density.log_density(x, sigma)


def solvers(settings: Settings, tell: Callable[[Row], None]) -> None:
    """Error against evaluations, exact traces."""
    for kind in ("gaussian", "mixture"):
        for dim in settings.dims:
            model, x, truth = closed_form(kind, dim, settings)
            for solver, choices in _SOLVERS.items():
                for option in choices:
                    begun = time.perf_counter()
                    found = ansn.log_likelihood(model, x, trace="exact", solver=solver, **option)
                    off = (found.log_density - truth) / dim
                    tell({
                        "target": kind, "dim": dim, "solver": solver, "steps": option.get("steps", ""),
                        "rtol": option.get("rtol", ""), "evaluations": found.evaluations, "bias": float(off.mean()),
                        "mean_error": float(off.abs().mean()), "max_error": float(off.abs().max()), "rows": len(x),
                        "rho": settings.rho, "tau_max": model.noise.levels.maximum, "tau_min": found.tau,
                        "seconds": round(time.perf_counter() - begun, 2),
                    })  # fmt: skip


def probes(settings: Settings, tell: Callable[[Row], None]) -> None:
    """Standard deviation of one probe, for every kind."""
    for kind in ("gaussian", "mixture"):
        for dim in settings.dims:
            model, x, _ = closed_form(kind, dim, settings)
            for row in spreads(model, x):
                tell({"target": kind, "dim": dim, "rho": settings.rho, **row})


def spreads(model: ansn.Denoiser, x: Tensor, count: int = 8) -> list[Row]:
    """Root mean square over rows of one probe's standard deviation, nats a dimension."""
    rows = []
    for basis in BASES:
        for probe in PROBES:
            found = ansn.log_likelihood(model, x, trace="hutchinson", basis=basis, probe=probe, probes=count)
            sd = float(found.estimates.var(0).mean().sqrt()) / x[0].numel()
            rows.append({"basis": basis, "probe": probe, "sd": sd, "rows": len(x), "probes": count})
    return rows


def digits(settings: Settings, tell: Callable[[Row], None], tell_probes: Callable[[Row], None]) -> None:
    """Bits a dimension of the digits preset under two shapes of the noise; and its probes' spread."""
    splits = {s: ansn.load_dataset("digits", split=s, dequantise=True) for s in ("train", "test")}
    for seed in settings.seeds:
        for rho in settings.rhos:
            with tempfile.TemporaryDirectory() as folder:
                model = _trained(settings, rho, seed, folder)
            for split, data in splits.items():
                tell(_scored(model, data, settings) | {"seed": seed, "rho": rho, "split": split})
            if seed == settings.seeds[0]:
                x, _ = splits["test"].batch(torch.arange(min(64, settings.images)))
                for row in spreads(model, x):
                    tell_probes({"target": "digits", "dim": 64, "rho": rho, **row})


def _trained(settings: Settings, rho: float, seed: int, folder: str) -> ansn.Denoiser:
    config = configured(
        "digits", data={"dequantise": True}, noise={"rho": rho}, network={"skip": settings.skip},
        optim={"steps": settings.steps}, sampling={"samples": 0},
        run={"out": folder, "seed": seed, "threads": settings.threads},
    )  # fmt: skip
    train(config)
    return ansn.load_run(folder).model


def _scored(model: ansn.Denoiser, data: Dataset, settings: Settings) -> Row:
    begun = time.perf_counter()
    index = data.order(0, 0)[: settings.images]
    found = ansn.bits_per_dim(model, data, index, trace="hutchinson", probes=settings.probes)
    return {
        "bits_per_dim": found.value, "error": found.error, "probe_error": found.probe_error, "n": found.n,
        "training_steps": settings.steps, "probes": settings.probes, "evaluations": found.evaluations,
        "dequantisation": found.dequantisation, "tau_min": found.tau,
        "seconds": round(time.perf_counter() - begun, 2), "threads": torch.get_num_threads(),
        "torch": torch.__version__, "cpu": cpu_name(),
    }  # fmt: skip


def solver_table(rows: list[Row]) -> str:
    """Markdown: mean (largest) error in nats a dimension."""
    targets = unique(rows, "target", "dim")
    lines = []
    for solver, choices in _SOLVERS.items():
        for option in choices:
            name, value = next(iter(option.items()))
            own = {(r["target"], r["dim"]): r for r in rows if r["solver"] == solver and r[name] == value}
            spent = sorted({r["evaluations"] for r in own.values()})
            told = f"{spent[0]}" if len(spent) == 1 else f"{spent[0]} to {spent[-1]}"
            cells = [f"{own[t]['mean_error']:.1e} ({own[t]['max_error']:.1e})" for t in targets]
            lines.append([f"{solver}, {name} {value:g}: {told} evaluations", *cells])
    return table(["", *(f"{kind}, d = {dim}" for kind, dim in targets)], lines)


def probe_table(rows: list[Row]) -> str:
    """Markdown: standard deviation of one probe, nats a dimension."""
    targets = unique(rows, "target", "dim", "rho")
    lines = []
    for basis, probe in itertools.product(BASES, PROBES):
        own = {(r["target"], r["dim"], r["rho"]): r["sd"] for r in select(rows, basis=basis, probe=probe)}
        lines.append([f"{basis}, {probe}", *(f"{own[target]:.2g}" for target in targets)])
    return table(["", *(f"{kind}, d = {dim}, rho = {rho:g}" for kind, dim, rho in targets)], lines)


def digits_table(rows: list[Row]) -> str:
    """Markdown: mean over the seeds (each seed)."""
    lines = []
    for rho in unique(rows, "rho"):
        cells = []
        for split in ("train", "test"):
            values = [row["bits_per_dim"] for row in select(rows, rho=rho, split=split)]
            cells.append(f"**{sum(values) / len(values):.3f}** ({' / '.join(f'{v:.3f}' for v in values)})")
        lines.append([f"rho = {rho:g}", *cells])
    errors, probe_errors = ([row[name] for row in rows] for name in ("error", "probe_error"))
    note = (
        f"Bits a dimension, {rows[0]['n']} images a split; standard error over the images {min(errors):.3f} to"
        f" {max(errors):.3f}, of which the probes make {min(probe_errors):.3f} to {max(probe_errors):.3f}."
    )
    return "\n".join([table(["", "training", "held out"], lines), "", note])


def run(settings: Settings) -> list[str]:
    """The tables, one after the other; the CSV files are rewritten after each row."""
    _check(settings)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    rows: dict[str, list[Row]] = {"solvers": [], "probes": [], "digits": []}

    def teller(name: str) -> Callable[[Row], None]:
        def tell(row: Row) -> None:
            rows[name].append(row)
            write(settings.out / f"likelihood_{name}.csv", rows[name])
            print(
                ", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()),
                file=sys.stderr,
            )

        return tell

    solvers(settings, teller("solvers"))
    probes(settings, teller("probes"))
    if settings.steps:
        digits(settings, teller("digits"), teller("probes"))
    tables = [solver_table(rows["solvers"]), probe_table(rows["probes"])]
    return [*tables, digits_table(rows["digits"])] if settings.steps else tables


def _check(settings: Settings) -> None:
    rules: list[tuple[str, Any, bool, str]] = [
        ("dims", settings.dims, bool(settings.dims) and min(settings.dims) >= 2, "one or more, each at least 2"),
        ("rows", settings.rows, settings.rows >= 1, "at least 1"),
        ("rho", settings.rho, 0 <= settings.rho <= 1, "a number in [0, 1]"),
        ("rhos", settings.rhos, bool(settings.rhos) and all(0 <= v <= 1 for v in settings.rhos), "numbers in [0, 1]"),
        ("seeds", settings.seeds, bool(settings.seeds) and min(settings.seeds) >= 0, "one or more, each 0 or more"),
        ("steps", settings.steps, settings.steps >= 0, "0 or more"),
        ("images", settings.images, settings.images >= 2, "at least 2"),
        ("probes", settings.probes, settings.probes >= 2, "at least 2"),
        ("threads", settings.threads, settings.threads is None or settings.threads >= 1, "at least 1"),
    ]
    refuse(rules)


def main() -> int:
    """Entry point; exit codes 0 done, 1 diverged, 2 bad arguments, 130 interrupted."""
    settings = parsed(_NAME, lambda: tyro.cli(Settings, prog=_NAME, description=__doc__))
    return guarded(_NAME, lambda: print("\n\n".join(run(settings))))


if __name__ == "__main__":
    sys.exit(main())
