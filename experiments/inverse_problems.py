"""Inverse problems: is the learned covariance a better prior, and does shaped noise help where the measurement's has a
structure?

    python -m experiments.inverse_problems --data PATH

``white``: held-out digits from half of the image, half of the pixels, a blur, half the resolution. ``coloured``: digits
and CIFAR-10 of 16 x 16 pixels under noise with correlations, ``y = A (x + sigma n)``, n of covariance C: the whole
image and half of it. The posterior is that of ``W y = W A x + white noise`` with ``W (A C A^T) W^T = I``, so any
operator and method take it; ``taken for white`` does not know C. Everything else is equal: model, start, measurements,
noise, 10-level Heun (19 evaluations).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor

import ansn
from ansn.sampling import Blur, Downsample, Linear, Mask, Operator, Posterior, Replacement, mmps, pigdm
from ansn.training import train
from experiments.lab import figure
from experiments.lab.claim import Cell, Claim, Row, Section, Settings, main
from experiments.lab.problems import has, problem
from experiments.lab.statistics import Estimate, estimate, listed, select, table, unique
from experiments.lab.training import Setup, configured, fit, one_copy

WHITE = ("scalar", "scalar rho=0.5")
COLOURED = (*WHITE, "wiener", "wiener rho=0.5")
DIGITS_STEPS, CROPS_STEPS = 2000, 600
IMAGES, SAMPLES, LEVELS = 32, 8, 10
SIGMAS = {"white": (0.02, 0.1), "coloured": (0.1, 0.3)}
SOFT = 0.1  # share of C that is white

METHODS: dict[str, Callable[..., ansn.Denoiser]] = {
    "no network": Posterior,  # what the learned S alone makes of the measurement: see `restore`
    "replacement": Replacement,
    "isotropic": partial(Posterior, covariance="isotropic"),
    "adapted": partial(Posterior, covariance="adapted"),
    "isotropic, gradient (PiGDM)": pigdm,
    "adapted, gradient": partial(Posterior, covariance="adapted", gradient=True),
    "jacobian (MMPS)": mmps,
}
KNOWN = ("no network", "isotropic", "adapted", "jacobian (MMPS)")  # of coloured noise, whose C they know
IGNORANT = "adapted, taken for white"


@cache
def operators(shape: tuple[int, ...], noise: str) -> dict[str, Operator]:
    """By name: left half known, half of the pixels known, blur of one pixel, means of 2x2 blocks; of coloured noise the
    whole image and its left half."""
    across = shape[-1]
    half = Mask((torch.arange(across) < across // 2).expand(shape[-2], across), shape)
    if noise == "coloured":
        return {"whole": Linear(torch.eye(math.prod(shape)), shape), "half": half}
    order = torch.randperm(math.prod(shape), generator=torch.Generator().manual_seed(0)).reshape(shape)
    return {"half": half, "pixels": Mask(order < order.numel() // 2), "blur": Blur(shape, 1.0),
            "downsample": Downsample(shape, 2)}  # fmt: skip


@cache
def colour(shape: tuple[int, ...]) -> Tensor:
    """C: noise blurred by a pixel, of variance 1 in the mean, and a share that is white; float64 ``[d, d]``."""
    d = math.prod(shape)
    root = Blur(shape, 1.0)(torch.eye(d, dtype=torch.float64).unflatten(1, shape)).flatten(1)
    smooth = root.T @ root
    return (1 - SOFT) * smooth * d / smooth.trace() + SOFT * torch.eye(d, dtype=torch.float64)


def whitened(operator: Operator, c: Tensor) -> tuple[Linear, Tensor]:
    """``W A`` as an operator, and W: noise ``A n`` with n of covariance C becomes white."""
    a = operator(torch.eye(len(c), dtype=torch.float64).unflatten(1, operator.input_shape)).flatten(1).T
    factor = torch.linalg.cholesky(a @ c @ a.T)
    w = torch.linalg.inv(factor)
    return Linear(w @ a, operator.input_shape), w


def cells(settings: Settings) -> list[Cell]:
    if settings.quick:
        return [_cell("coloured", "digits", arm, 20, 0) for arm in COLOURED[2:]]
    out = [_cell("white", "digits", arm, DIGITS_STEPS, seed) for arm in WHITE for seed in range(3)]
    out += [_cell("coloured", "digits", arm, DIGITS_STEPS, seed) for arm in COLOURED for seed in range(3)]
    if has("cifar16", settings.data):
        out += [_cell("coloured", "cifar16", arm, CROPS_STEPS, seed) for arm in COLOURED for seed in range(2)]
    return out


def _cell(noise: str, data: str, arm: str, steps: int, seed: int) -> Cell:
    return {"noise": noise, "data": data, "arm": arm, "steps": steps, "seed": seed}


def run(cell: Cell, settings: Settings) -> list[Row]:
    images, samples, levels = (3, 2, 2) if settings.quick else (IMAGES, SAMPLES, LEVELS)
    if cell["data"] == "digits":
        model, truth = _preset(cell, settings), ansn.load_dataset("digits", split="test").batch(torch.arange(images))[0]
    else:
        images, samples = min(images, 16), min(samples, 2)
        learned = problem("cifar16", settings.data)
        setup = Setup(cell["arm"], cell["seed"], cell["steps"], lr=2e-3, batch_size=64, decay=0.5)
        *_, trained = fit(learned, setup)
        model, truth = trained.model, one_copy(learned.test)[:images]
    return [row for name, operator in operators(tuple(truth.shape[1:]), cell["noise"]).items()
            for sigma in SIGMAS[cell["noise"]]
            for row in _restored(cell, model, truth, name, operator, sigma, samples, levels)]  # fmt: skip


def _preset(cell: Cell, settings: Settings) -> ansn.Denoiser:
    """The digits preset under the arm; kept, so that both kinds of noise have the same runs."""
    skip, rho, _ = Setup(cell["arm"]).begins
    folder = settings.out / f"inverse-{cell['steps']}" / f"{skip}-rho{rho:g}-seed{cell['seed']}"
    return ansn.load_run(train(configured(
        "digits", noise={"rho": rho}, network={"skip": skip, "width": 512}, optim={"steps": cell["steps"]},
        run={"out": str(folder), "seed": cell["seed"], "device": "cpu", "threads": 1},
    ))).model  # fmt: skip


def _restored(
    cell: Cell, model: ansn.Denoiser, truth: Tensor, name: str, operator: Operator, sigma: float, samples: int,
    levels: int,
) -> list[Row]:  # fmt: skip
    z = torch.randn(truth.shape, generator=torch.Generator().manual_seed(cell["seed"]))
    asked: dict[str, tuple[str, Operator, Tensor]] = {}
    if cell["noise"] == "white":
        y = operator(truth)
        y = y + sigma * torch.randn(y.shape, generator=torch.Generator().manual_seed(cell["seed"]))
        asked = {method: (method, operator, y) for method in METHODS}
    else:
        c = colour(tuple(truth.shape[1:]))
        y = operator(truth + sigma * (z.flatten(1).double() @ torch.linalg.cholesky(c).T).float().view(truth.shape))
        white, w = whitened(operator, c)
        asked = {method: (method, white, (y.flatten(1).double() @ w.T).float()) for method in KNOWN}
        asked[IGNORANT] = ("adapted", operator, y)
    out = []
    for shown, (method, seen, measured) in asked.items():
        drawn = restore(METHODS[method], method, model, seen, measured, sigma, samples, levels, cell["seed"])
        out.append({"problem": name, "sigma": sigma, "method": shown} | figures_of(truth, drawn, seen, measured, sigma))
    return out


def restore(
    make: Callable[..., ansn.Denoiser], method: str, model: ansn.Denoiser, operator: Operator, y: Tensor, sigma: float,
    samples: int, levels: int, seed: int,
) -> Tensor:  # fmt: skip
    """Posterior samples ``[images, samples, *shape]``."""
    knowing, n = make(model, operator, y.repeat_interleave(samples, 0), sigma), len(y) * samples
    if method == "no network":  # N(E[x | y], V[x | y]) of Gaussian data, the Wiener filter and its error
        return knowing.prior(n, 1e-4, seed=seed).unflatten(0, (len(y), samples))
    return ansn.sample(knowing, n, "heun", levels, batch_size=n, seed=seed).unflatten(0, (len(y), samples))


def figures_of(truth: Tensor, drawn: Tensor, operator: Operator, y: Tensor, sigma: float) -> Row:
    """``psnr_*`` in dB for values in [0, 1], of the samples' mean and of one; ``spread``: error of the mean over what
    the samples' own spread predicts for it; ``residual``: rms of ``(y - A x) / sigma`` over the samples. For samples of
    the true posterior spread and residual are 1."""
    mean, count = drawn.mean(1), drawn.shape[1]
    error, single = (mean - truth).square().mean(), (drawn - truth.unsqueeze(1)).square().mean()
    predicted = drawn.var(1).mean() * (1.0 + 1.0 / count)
    residual = (y.unsqueeze(1) - operator(drawn.flatten(0, 1)).unflatten(0, drawn.shape[:2])) / sigma
    psnr = [-10.0 * math.log10(float(each)) for each in (error, single)]
    return {"psnr_mean": psnr[0], "psnr_sample": psnr[1], "spread": float((error / predicted).sqrt()),
            "residual": float(residual.square().mean().sqrt())}  # fmt: skip


# -- what the rows say -------------------------------------------------------------------------------------------


def averaged(rows: Sequence[Row], column: str = "psnr_mean", **settings: str) -> dict[int, float]:
    """The mean over problems and sigmas, a seed."""
    own = select(rows, **settings)
    return {seed: sum(r[column] for r in select(own, seed=seed)) / len(select(own, seed=seed))
            for seed in unique(own, "seed")}  # fmt: skip


def less(ours: dict[int, float], theirs: dict[int, float]) -> Estimate:
    return estimate([ours[seed] - theirs[seed] for seed in ours if seed in theirs])


def _found(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    return [(f"{noise}, {data}", select(rows, noise=noise, data=data)) for noise, data in unique(rows, "noise", "data")]


def section(rows: list[Row], folder: Path) -> Section:
    lines, findings, answers = [], [], []
    words = {1: "better", -1: "worse", 0: "no difference seen"}
    for name, own in _found(rows):
        arms = unique(own, "arm")
        for method in unique(own, "method"):
            means = [list(averaged(own, arm=arm, method=method).values()) for arm in COLOURED]
            spread = estimate(list(averaged(own, "spread", method=method).values())).mean
            lines.append([name, method, *(estimate(m).show(4) if m else "" for m in means), f"{spread:.2f}"])
        gain = less(averaged(own, method="adapted"), averaged(own, method="isotropic"))
        answers.append(f"{name}: learned less isotropic V {gain.show(2)} dB")
        shaped = {arm: less(*(averaged(own, arm=name, method="adapted") for name in (arm, arm.split()[0])))
                  for arm in arms if "rho" in arm and arm.split()[0] in arms}  # fmt: skip
        told = listed([(e.sign, f"`{arm}` ({e.show(2)} dB)") for arm, e in shaped.items()], words)
        if told:
            findings.append(f"{name}: trained under shaped noise against isotropic noise, learned V: {told}.")
        if name.startswith("coloured"):
            told = less(averaged(own, method="adapted"), averaged(own, method=IGNORANT)).show(2)
            findings.append(f"{name}: knowing C against taking it for white: {told} dB.")
    return Section(
        "Is the learned covariance a better prior for inverse problems?",
        "; ".join(answers) + " (PSNR of the samples' mean)."
        + ("" if select(rows, noise="coloured") else " Coloured noise is not measured yet."),
        _DESIGN,
        [("PSNR of the samples' mean, dB, over operators and noise levels; spread: error over what the samples predict",
          table(["noise, data", "V", *COLOURED, "spread"], lines))],
        [_figure(rows, folder)], findings,
        reading="A row a restoration: `psnr_mean`, `psnr_sample` in dB; `spread`, `residual`: 1 for samples of the true"
        " posterior.",
        missing="" if select(rows, noise="coloured") else "coloured noise",
    )  # fmt: skip


_DESIGN = f"""Digits preset ({DIGITS_STEPS} steps), U-Net on CIFAR-10 of 16 x 16 ({CROPS_STEPS} steps), {IMAGES} and 16
held-out images, {SAMPLES} and 2 samples each, values in [0, 1]; noise of deviation 0.02 and 0.1, coloured 0.1 and
0.3. V is the covariance of what the noise hides: isotropic, of the learned covariance (adapted), or of the network's
Jacobian; *no network*: the Wiener filter."""


def _figure(rows: Sequence[Row], folder: Path) -> tuple[str, str]:
    found = _found(rows)
    drawn, axes = figure.panels(len(found), width=5.0)
    for axis, (name, own) in zip(axes, found, strict=True):
        methods = unique(own, "method")
        for colour_, arm in enumerate(unique(own, "arm")):
            values = [estimate(list(averaged(own, arm=arm, method=m).values())).mean for m in methods]
            axis.plot(values, range(len(methods)), "o", color=figure.COLOURS[colour_], label=arm)
        axis.set_yticks(range(len(methods)), methods, fontsize=7)
        axis.invert_yaxis()
        axis.set(title=name, xlabel="PSNR of the mean, dB")
        axis.legend(fontsize=7)
    return "PSNR by the choice of V", figure.save(drawn, folder / "inverse_problems.png")


CLAIM = Claim("inverse_problems", cells, run, section)

if __name__ == "__main__":
    sys.exit(main(CLAIM, __doc__))
