"""Is the log-likelihood right, and what does it cost? Against closed forms, under the package's own noise.

    python -m experiments.likelihood_check

On a Gaussian (condition number 1e4) and a mixture of five the model knows mean and covariance, as it would from data;
an exact denoiser stands where a network would.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import ansn
from ansn.likelihood.flow import BASES, PROBES
from experiments.lab import figure
from experiments.lab.claim import Cell, Claim, Row, Section, Settings, main
from experiments.lab.mixture import Mixture
from experiments.lab.statistics import select, unique

DIMS, RHO, ROWS, PROBED = (2, 16, 64), 0.5, 16, 8
SOLVERS: dict[str, list[dict[str, Any]]] = {
    "rk4": [{"steps": n} for n in (4, 8, 16, 32)],
    "heun": [{"steps": n} for n in (8, 16, 32, 64)],
    "rk45": [{"rtol": rtol} for rtol in (1e-2, 1e-3, 1e-4, 1e-5)],
}


class MixtureMean(nn.Module):
    """``E[x | x~]`` of a mixture under noise ``tau^2 R``, where a network would stand."""

    conditioning = "log"

    def __init__(self, density: Mixture, r: Tensor) -> None:
        super().__init__()
        self.density, self.r = density, r

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        return self.density.denoised(x, math.exp(8 * float(level[0])) * self.r)


@cache
def closed_form(kind: str, dim: int, rows: int = ROWS) -> tuple[ansn.Denoiser, Tensor, Tensor]:
    """The exact denoiser under noise of anisotropy RHO, with the ladder's usual ends; points of its data and their
    log-densities at the ladder's end."""
    generator = torch.Generator().manual_seed(dim)
    count, ends = (1, (1e-3, 10.0)) if kind == "gaussian" else (5, (0.01, 0.2))
    means = torch.randn(count, dim, generator=generator, dtype=torch.float64)
    spectrum = torch.logspace(math.log10(ends[0]), math.log10(ends[1]), dim, dtype=torch.float64)
    bases = torch.linalg.qr(torch.randn(count, dim, dim, generator=generator, dtype=torch.float64))[0]
    weights = torch.arange(count, 0, -1, dtype=torch.float64) / (count * (count + 1) / 2)
    density = Mixture(means, bases * spectrum @ bases.mT, weights)
    s = density.covariance()
    r = RHO * s + (1 - RHO) * s.diagonal().mean() * torch.eye(dim, dtype=torch.float64)
    wide = torch.float64
    covariance = ansn.AdaptiveCovariance(dim, rho=RHO, eps=0.0, initial=s, dtype=wide, factor_dtype=wide).freeze()
    covariance.center.copy_(density.mean())
    ladder = ansn.levels.karras(max(ansn.levels.tau_max_flow(dim), 6.0), 0.01)
    model = ansn.Denoiser(MixtureMean(density, r), ansn.NoiseModel(covariance, ladder), precondition=False)
    x, _ = density.sample(rows)
    return model, x, density.log_density(x, ladder.minimum**2 * r)


def cells(settings: Settings) -> list[Cell]:
    dims, kinds = (DIMS[:1], ("mixture",)) if settings.quick else (DIMS, ("gaussian", "mixture"))
    return [{"part": part, "target": kind, "dim": dim}
            for part in ("solver", "probe") for kind in kinds for dim in dims]  # fmt: skip


def run(cell: Cell, settings: Settings) -> list[Row]:
    """Error of every solver with exact traces; deviation of one probe of every kind. Nats a dimension."""
    model, x, truth = closed_form(cell["target"], cell["dim"])
    out: list[Row] = []
    if cell["part"] == "solver":
        for solver, option in ((name, option) for name, each in SOLVERS.items() for option in each):
            found = ansn.log_likelihood(model, x, trace="exact", solver=solver, **option)
            off = ((found.log_density - truth) / cell["dim"]).abs()
            told = {"solver": solver, "steps": option.get("steps"), "rtol": option.get("rtol")}
            out.append(told | {"evaluations": found.evaluations, "mean": float(off.mean()), "worst": float(off.max())})
        return out
    for basis, probe in itertools.product(BASES, PROBES):
        found = ansn.log_likelihood(model, x, trace="hutchinson", basis=basis, probe=probe, probes=PROBED)
        out.append({"basis": basis, "probe": probe, "sd": float(found.estimates.var(0).mean().sqrt()) / cell["dim"]})
    return out


def section(rows: list[Row], folder: Path) -> Section:
    solved, probed = select(rows, part="solver"), select(rows, part="probe")
    default = select(solved, target="mixture", solver="rk4", steps=16) or select(solved, target="mixture")
    exact = max((row["worst"] for row in select(solved, target="gaussian")), default=math.nan)
    least = [[min(r["sd"] for r in select(probed, target=t, dim=d, probe=p)) for p in ("gaussian", "rademacher")]
             for t, d in unique(probed, "target", "dim") if t == "mixture"]  # fmt: skip
    ratios = [gaussian / rademacher for gaussian, rademacher in least]
    return Section(
        "Is the log-likelihood right, and what does it cost?",
        f"The default (RK4, 16 steps, 64 evaluations) is within {max(r['worst'] for r in default):.2g} nats a dimension"
        f" of the closed form at every point of a mixture of five, {max(r['mean'] for r in default):.1g} on average;"
        f" Gaussian data is exact at any number of steps (to {exact:.0e}).",
        f"{ROWS} points of each density, noise of rho = {RHO:g}, exact traces; {PROBED} probes of each kind.",
        figures=[_figure(solved, folder)],
        findings=[f"Trace by one probe: Gaussian probes have {min(ratios, default=math.nan):.1f} to"
         f" {max(ratios, default=math.nan):.1f} times the deviation of Rademacher ones on the mixture."],
        reading="`part` solver: `mean`, `worst` error over the points; probe: deviation `sd` of one probe's estimate.",
    )  # fmt: skip


def _figure(rows: Sequence[Row], folder: Path) -> tuple[str, str]:
    own = select(rows, target="mixture", dim=max(unique(rows, "dim")))
    drawn, (axis,) = figure.panels(1)
    for colour, solver in enumerate(unique(own, "solver")):
        mine = select(own, solver=solver)
        figure.curve(axis, [r["evaluations"] for r in mine], [r["mean"] for r in mine], label=solver, colour=colour)
    axis.set(xscale="log", yscale="log", xlabel="evaluations", ylabel="mean error, nats a dimension")
    axis.legend(fontsize=7)
    return "Error on the largest mixture", figure.save(drawn, folder / "likelihood_check.png")


CLAIM = Claim("likelihood_check", cells, run, section)

if __name__ == "__main__":
    sys.exit(main(CLAIM, __doc__))
