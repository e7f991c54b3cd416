"""Does the learned covariance make a better prior covariance? Inverse problems on held-out digits.

The `digits` preset is trained under isotropic noise (rho = 0) and under shaped noise (rho = 0.5); each model then
restores the same held-out images from half of the image, from half of the pixels, blurred, and at half the resolution,
with every choice of the covariance ``V[x | x~]`` in :mod:`ansn.sampling.inverse`. All else is equal: model, start,
measurements, noise, solver and the number of evaluations.

    python -m experiments.inverse_problems

Runs are kept under --runs and reused. Rows go to a CSV file as they come, a picture beside it; tables are printed as
Markdown at the end.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from torch import Tensor

import ansn
from ansn import figures
from ansn.choices import choice
from ansn.cli.common import guarded, parsed
from ansn.denoiser import SKIPS
from ansn.errors import refuse
from ansn.evaluation import everything
from ansn.machine import cpu_name
from ansn.sampling import Blur, Downsample, Mask, Operator, Posterior, Replacement, mmps, pigdm
from ansn.training import train
from experiments.lab import statistics
from experiments.lab.claim import RESULTS, Row, write
from experiments.lab.statistics import select, unique
from experiments.lab.training import configured

_NAME = "inverse_problems"
_SHAPE = (1, 8, 8)


def _left_half() -> Tensor:
    return (torch.arange(8) < 4).expand(8, 8)


def _half_of_the_pixels() -> Tensor:
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    return (order < 32).reshape(8, 8)


PROBLEMS: dict[str, Callable[[], Operator]] = {
    "half": lambda: Mask(_left_half(), _SHAPE),
    "pixels": lambda: Mask(_half_of_the_pixels(), _SHAPE),
    "blur": lambda: Blur(_SHAPE, 1.0),
    "downsample": lambda: Downsample(_SHAPE, 2),
}

METHODS: dict[str, Callable[..., ansn.Denoiser]] = {
    "no network": Posterior,  # what the learned S alone makes of the measurement: see `restore`
    "replacement": Replacement,
    "isotropic": lambda *a: Posterior(*a, covariance="isotropic"),
    "adapted": lambda *a: Posterior(*a, covariance="adapted"),
    "isotropic, gradient (PiGDM)": pigdm,
    "adapted, gradient": lambda *a: Posterior(*a, covariance="adapted", gradient=True),
    "jacobian (MMPS)": mmps,
}


@dataclass(frozen=True)
class Settings:
    """Restoration of held-out digits by every choice of the prior covariance."""

    rhos: tuple[float, ...] = (0.0, 0.5)
    """Noise shapes to train under, R = (1 - rho) t I + rho S."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """One training run for each, and its measurements and samples."""
    steps: int = 2000
    """Training steps."""
    width: int = 512
    """Hidden units of the MLP."""
    problems: Annotated[tuple[str, ...], choice(PROBLEMS, many=True)] = tuple(PROBLEMS)
    """Left half known, a random half of the pixels known, Gaussian blur of one pixel, means of 2x2 blocks."""
    sigmas: tuple[float, ...] = (0.02, 0.1)
    """Standard deviations of the measurement's noise; images are in [0, 1]."""
    images: int = 32
    """Held-out images."""
    samples: int = 8
    """Posterior samples an image."""
    levels: int = 10
    """Levels of the Heun sampler: 2 levels - 1 evaluations of D."""
    cg_steps: int = 1
    """Steps of conjugate gradients of the Jacobian's method."""
    skip: Annotated[str, choice(SKIPS)] = "scalar"
    """The denoiser's skip; the published figures are of the scalar one."""
    threads: int | None = None
    """CPU threads; by default torch's."""
    runs: Path = Path("runs/inverse")
    """Folder of the training runs."""
    out: Path = RESULTS / f"{_NAME}.csv"
    """CSV file to write, replaced if it is there; the picture beside it has its name and .png."""


def trained(settings: Settings, rho: float, seed: int) -> ansn.Denoiser:
    """The preset's model under that noise; trained unless the run is there."""
    folder = str(settings.runs / f"rho{rho:g}-seed{seed}")
    config = configured(
        "digits", noise={"rho": rho}, network={"width": settings.width, "skip": settings.skip},
        optim={"steps": settings.steps},
        run={"out": folder, "seed": seed, "device": "cpu", "threads": settings.threads},
    )  # fmt: skip
    return ansn.load_run(train(config)).model


def measure(operator: Operator, x: Tensor, sigma: float, seed: int) -> Tensor:
    """``A x + sigma n``; n a function of the seed."""
    y = operator(x)
    return y + sigma * torch.randn(y.shape, generator=torch.Generator().manual_seed(seed))


def restore(
    method: str, model: ansn.Denoiser, operator: Operator, y: Tensor, sigma: float, settings: Settings, seed: int
) -> Tensor:
    """Posterior samples ``[images, samples, *shape]``."""
    options = {"cg_steps": settings.cg_steps} if METHODS[method] is mmps else {}
    knowing = METHODS[method](model, operator, y.repeat_interleave(settings.samples, 0), sigma, **options)
    n = len(y) * settings.samples
    if method == "no network":  # N(E[x | y], V[x | y]) of Gaussian data, the Wiener filter and its error
        return knowing.prior(n, 1e-4, seed=seed).unflatten(0, (len(y), settings.samples))
    x = ansn.sample(knowing, n, "heun", settings.levels, batch_size=n, seed=seed)
    return x.unflatten(0, (len(y), settings.samples))


def figures_of(truth: Tensor, drawn: Tensor, operator: Operator, y: Tensor, sigma: float) -> Row:
    """What the table shows. ``psnr_*`` in dB for values in [0, 1]; ``spread``: error of the posterior mean over what
    the samples' own spread predicts for it; ``residual``: rms of ``(y - A x) / sigma`` over the samples. For
    samples of the true posterior spread and residual are 1."""
    mean, count = drawn.mean(1), drawn.shape[1]
    error = (mean - truth).square().mean()
    predicted = drawn.var(1).mean() * (1.0 + 1.0 / count)
    residual = (y.unsqueeze(1) - operator(drawn.flatten(0, 1)).unflatten(0, drawn.shape[:2])) / sigma
    single = (drawn - truth.unsqueeze(1)).square().mean()
    return {
        "psnr_mean": _psnr(error), "psnr_sample": _psnr(single), "spread": float((error / predicted).sqrt()),
        "residual": float(residual.square().mean().sqrt()),
    }  # fmt: skip


def run(settings: Settings) -> list[Row]:
    """All restorations; the CSV file is rewritten after each."""
    _check(settings)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    truth = everything(ansn.load_dataset("digits", split="test"))[: settings.images]
    machine = {"threads": torch.get_num_threads(), "torch": torch.__version__, "cpu": cpu_name()}
    rows: list[Row] = []
    for seed in settings.seeds:
        for rho in settings.rhos:
            model = trained(settings, rho, seed)
            for problem in settings.problems:
                operator = PROBLEMS[problem]()
                for sigma in settings.sigmas:
                    y = measure(operator, truth, sigma, seed)
                    shown: dict[str, Tensor] = {}
                    for method in METHODS:
                        begun = time.perf_counter()
                        drawn = restore(method, model, operator, y, sigma, settings, seed)
                        seconds = time.perf_counter() - begun
                        shown[method] = drawn
                        row = {"seed": seed, "rho": rho, "problem": problem, "sigma": sigma, "method": method}
                        row |= figures_of(truth, drawn, operator, y, sigma)
                        evaluations = 0 if method == "no network" else 2 * settings.levels - 1
                        row |= {
                            "evaluations": evaluations, "images": len(truth), "samples": settings.samples,
                            "train_steps": settings.steps, "seconds": round(seconds, 2), **machine,
                        }  # fmt: skip
                        rows.append(row)
                        write(settings.out, rows)
                        print(
                            f"seed {seed}  rho {rho:g}  {problem}  {sigma:g}  {method}  {row['psnr_mean']:.2f} dB"
                            f"  spread {row['spread']:.2f}  residual {row['residual']:.2f}  {seconds:.1f} s",
                            file=sys.stderr,
                            flush=True,
                        )
                    last = sigma == settings.sigmas[-1] and rho == settings.rhos[-1] and seed == settings.seeds[0]
                    if last:
                        picture(truth, operator, y, shown, settings.out.with_name(f"{settings.out.stem}_{problem}.png"))
    return rows


def picture(truth: Tensor, operator: Operator, y: Tensor, drawn: dict[str, Tensor], path: Path) -> None:
    """Six images, one a row: truth, measurement, then mean and two samples by isotropic, adapted and jacobian."""
    seen = y
    if operator.shape != _SHAPE:
        weight = operator.adjoint(torch.ones_like(y))
        seen = operator.adjoint(y) / weight.clamp_min(1e-6)
    columns = [truth, seen]
    for method in ("isotropic", "adapted", "jacobian (MMPS)"):
        columns += [drawn[method].mean(1), drawn[method][:, 0], drawn[method][:, min(1, drawn[method].shape[1] - 1)]]
    grid = torch.stack(columns, 1)[:6]
    figures.save_samples(grid.flatten(0, 1), path, columns=len(columns))


def table(rows: list[Row], column: str) -> str:
    """Markdown: mean over the seeds for every noise, method and problem."""
    settings, lines = unique(rows, "problem", "sigma"), []
    for rho, method in unique(rows, "rho", "method"):
        own = select(rows, rho=rho, method=method)
        found = [[row[column] for row in select(own, problem=p, sigma=s)] for p, s in settings]
        means = [sum(values) / len(values) for values in found]
        lines.append([f"rho = {rho:g}", method, *(f"{mean:.2f}" for mean in [*means, sum(means) / len(means)])])
    return statistics.table(["noise", "covariance", *(f"{p}, {s:g}" for p, s in settings), "mean"], lines)


def paired(rows: list[Row], column: str, one: str, other: str) -> str:
    """Difference of two methods on the same model and measurements: its mean and its range over the cells."""
    values = {(r["seed"], r["rho"], r["problem"], r["sigma"], r["method"]): r[column] for r in rows}
    found = [v - values[(*k[:4], other)] for k, v in values.items() if k[4] == one]
    better = sum(d > 0 for d in found)
    return (
        f"{one} less {other}: {sum(found) / len(found):+.2f} dB"
        f" ({min(found):+.2f} to {max(found):+.2f}), ahead in {better} of {len(found)}"
    )


def _psnr(error: Tensor) -> float:
    return -10.0 * math.log10(float(error))


def _check(settings: Settings) -> None:
    rules: list[tuple[str, Any, bool, str]] = [
        ("rhos", settings.rhos, bool(settings.rhos) and all(0 <= v <= 1 for v in settings.rhos), "numbers in [0, 1]"),
        ("seeds", settings.seeds, bool(settings.seeds) and min(settings.seeds) >= 0, "one or more, each 0 or more"),
        ("problems", settings.problems, bool(settings.problems), "at least one"),
        ("sigmas", settings.sigmas, bool(settings.sigmas) and min(settings.sigmas) > 0, "one or more, each > 0"),
        ("images", settings.images, settings.images >= 1, "at least 1"),
        ("samples", settings.samples, settings.samples >= 2, "at least 2"),
        ("levels", settings.levels, settings.levels >= 2, "at least 2"),
        ("cg-steps", settings.cg_steps, settings.cg_steps >= 1, "at least 1"),
        ("threads", settings.threads, settings.threads is None or settings.threads >= 1, "at least 1"),
    ]
    refuse(rules)


def main() -> int:
    """Entry point; exit codes 0 done, 1 diverged, 2 bad arguments, 130 interrupted."""
    settings = parsed(_NAME, lambda: tyro.cli(Settings, prog=_NAME, description=__doc__))

    def command() -> None:
        rows = run(settings)
        for title, column in (
            ("PSNR of the posterior mean, dB", "psnr_mean"), ("PSNR of one sample, dB", "psnr_sample"),
            ("Spread: error of the mean over what the samples' spread predicts (1 is right)", "spread"),
            ("Residual of the samples over sigma_y (1 is right)", "residual"),
            ("Seconds for all samples", "seconds"),
        ):  # fmt: skip
            print(f"{title}\n\n{table(rows, column)}\n")
        print(paired(rows, "psnr_mean", "adapted", "isotropic"))
        print(paired(rows, "psnr_mean", "adapted", "no network"))
        print(paired(rows, "psnr_mean", "adapted, gradient", "isotropic, gradient (PiGDM)"))
        print(paired(rows, "psnr_mean", "adapted", "isotropic, gradient (PiGDM)"))
        print(paired(rows, "psnr_mean", "jacobian (MMPS)", "isotropic, gradient (PiGDM)"))

    return guarded(_NAME, command)


if __name__ == "__main__":
    sys.exit(main())
