"""Which of EDM2's lessons (Karras et al. 2024, https://arxiv.org/abs/2312.02696) pay for a small network on a CPU?

    python -m experiments.recipe --data PATH

MNIST, the small U-Net with the mixture skip, as the preset trains it: a rate that falls as a cosine, averaged weights.
Against it: a loss whose weight is learned (one log-variance a level), weights forced to unit norm with learned gains
(the core of magnitude-preserving layers; group norms stay), and averages of other lengths, as one can find after
training: power functions, whose width is a share of the run.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from scipy.optimize import brentq
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.optim.swa_utils import AveragedModel

import ansn
from ansn.data import iterate
from ansn.networks.embedding import LevelFeatures
from experiments.lab import training
from experiments.lab.claim import Cell, Claim, Row, Section, Settings, main
from experiments.lab.problems import Problem, has, problem
from experiments.lab.statistics import Estimate, listed, mean, paired, select, table, unique
from experiments.lab.training import TUNING_SEED, Setup, Trained, noise_model

CONTROL = "as the preset"
ARMS = (CONTROL, "learned weight", "unit weights", "both")
RATES = (1e-3, 3e-3, 1e-2)
PRESET = 0.09  # what the trainer's averages are until they reach their decay
LENGTHS = (0.02, 0.05, PRESET, 0.15, 0.25)  # of the averages, widths as shares of the run
STEPS, BATCH, SEEDS, WARMUP = 2000, 64, 5, 50


class Unit(nn.Module):
    """``gain v / ||v||`` of each output's weights; a layer that begins as zero has a gain of zero, the others of 1."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        zero = not bool(weight.any())
        self.gain = nn.Parameter(torch.zeros(())) if zero else None

    def forward(self, v: Tensor) -> Tensor:
        unit = v / v.flatten(1).norm(dim=1).clamp_min(1e-12).unflatten(0, (-1, *[1] * (v.ndim - 1)))
        return unit if self.gain is None else self.gain * unit


def force_unit(network: nn.Module) -> list[Tensor]:
    """Make every convolution and linear layer so; returns the raw weights, to be put to unit norm after each step."""
    raw = []
    for layer in list(network.modules()):
        if isinstance(layer, nn.Conv2d | nn.Linear):
            unit = Unit(layer.weight)
            with torch.no_grad():
                layer.weight.copy_(torch.randn(layer.weight.shape))
            parametrize.register_parametrization(layer, "weight", unit)
            raw.append(layer.parametrizations.weight.original)  # type: ignore[union-attr]
    _normalise(raw)
    return raw


@torch.no_grad()
def _normalise(raw: list[Tensor]) -> None:
    for v in raw:
        v.div_(v.flatten(1).norm(dim=1).unflatten(0, (-1, *[1] * (v.ndim - 1))))


def exponent(width: float) -> float:
    """gamma of the average with weights ``t^gamma`` whose deviation is ``width`` of the run (EDM2, Eq. 127)."""
    return float(brentq(lambda g: (g + 1) ** 0.5 / ((g + 2) * (g + 3) ** 0.5) - width, 0.0, 1e4))


def _averaged(gamma: float, kept: Tensor, new: Tensor, count: Tensor | int) -> Tensor:
    return kept.lerp(new, 1.0 - (1.0 - 1.0 / (int(count) + 1)) ** (gamma + 1))


def fit(learned: Problem, arm: str, seed: int, lr: float, steps: int, widths: Sequence[float]) -> Iterator[Trained]:
    """Train under an arm, and give the run as each of the averages has it."""
    noise = noise_model(learned, Setup("mixture seen", seed))
    torch.manual_seed(seed)
    network = learned.network(inputs=2)
    raw = force_unit(network) if arm in ("unit weights", "both") else []
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model = ansn.Denoiser(network, noise, skip="mixture", inputs=("estimate",))
    variance = nn.Sequential(LevelFeatures(64), nn.Linear(64, 1)).requires_grad_(arm in ("learned weight", "both"))
    nn.init.zeros_(variance[1].weight)
    nn.init.zeros_(variance[1].bias)
    optimizer = torch.optim.Adam([*network.parameters(), *variance.parameters()], lr, fused=True)
    averages = [AveragedModel(network, avg_fn=partial(_averaged, exponent(width))) for width in widths]
    for step, x, _ in iterate(learned.train, BATCH, seed, stop_step=steps):
        noise.update(x)
        if noise.mixture is not None:
            noise.mixture.covariance.freeze()  # of as many rows as it was found in
        perturbed, level = noise.perturb(x, step=step)
        u = variance(torch.log(level.tau.float()) / 4)[:, 0]
        loss = (ansn.dsm_loss(model, x, perturbed, level, reduction="none") / u.exp() + u).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        falling = 0.5 + 0.5 * math.cos(math.pi * step / steps)
        optimizer.param_groups[0]["lr"] = lr * min((step + 1) / WARMUP, falling)
        optimizer.step()
        _normalise(raw)
        for average in averages:
            average.update_parameters(network)
        if not math.isfinite(float(loss.detach())):
            return
    for average in averages:
        averaged = ansn.Denoiser(average.module, noise, skip="mixture", inputs=("estimate",)).eval()
        yield Trained(steps, 0.0, 0.0, averaged)


def cells(settings: Settings) -> list[Cell]:
    if not has("mnist", settings.data):
        return []
    steps, seeds = (20, 1) if settings.quick else (STEPS, SEEDS)
    return [{"arm": arm, "steps": steps, "seed": seed} for arm in ARMS for seed in range(seeds)]


def run(cell: Cell, settings: Settings) -> list[Row]:
    learned = problem("mnist", settings.data)
    lr = _rate(cell["arm"], cell["steps"], RATES[:1] if settings.quick else RATES, settings.data)
    widths = LENGTHS if cell["arm"] == CONTROL else (PRESET,)
    least, out = training.floor(learned), []
    for width, trained in zip(widths, fit(learned, cell["arm"], cell["seed"], lr, cell["steps"], widths), strict=False):
        out.append({
            "width": width, "lr": lr, "fd": training.distance(trained, learned, cell["seed"]), "fd_floor": least,
            "loss": training.held_out_loss(trained, learned),
        })  # fmt: skip
    return out


_RATES: dict[tuple[str, int], float] = {}


def _rate(arm: str, steps: int, grid: tuple[float, ...], data: Path | None) -> float:
    """The best rate by Frechet distance, of half as many steps under a seed that no result uses; once a process."""
    if (arm, steps) not in _RATES:
        learned, found = problem("mnist", data), dict.fromkeys(grid, math.inf)
        for lr in grid if len(grid) > 1 else ():
            for trained in fit(learned, arm, TUNING_SEED, lr, steps // 2, (PRESET,)):
                found[lr] = training.distance(trained, learned, TUNING_SEED)
        _RATES[arm, steps] = min(found, key=lambda lr: found[lr])
    return _RATES[arm, steps]


def section(rows: list[Row], folder: Path) -> Section:
    base = select(rows, arm=CONTROL, width=PRESET)
    against: dict[str, list[Row]] = {arm: select(rows, arm=arm) for arm in ARMS[1:]}
    against |= {f"average of width {w:g}": select(rows, arm=CONTROL, width=w) for w in LENGTHS if w != PRESET}
    lines, signs = [[CONTROL, *(mean(base, metric).show(3) for metric in ("fd", "loss")), "", "", _of(base)]], []
    for name, ours in against.items():
        found: list[Estimate] = [paired(ours, base, metric) for metric in ("fd", "loss")]
        signs.append((found[0].sign, f"{name} ({found[0].show(2)})"))
        lines.append([name, *(mean(ours, m).show(3) for m in ("fd", "loss")), *(e.show(2) for e in found), _of(ours)])
    return Section(
        "Which of EDM2's lessons pay at this size?",
        f"Frechet distance on MNIST against the preset's recipe: {listed(signs)}.",
        f"Small U-Net, mixture skip, estimate seen; {STEPS:,} steps of {BATCH}, {SEEDS} seeds; rates"
        f" {', '.join(f'{rate:g}' for rate in RATES)} tried for each arm, by distance, 500 samples of 12 evaluations.",
        [(f"Frechet distance (floor {rows[0]['fd_floor']:.2g}), held-out loss, and each less the preset's",
          table(["recipe", "distance", "loss", "less", "less", "rate"], lines))],
        reading="`width`: deviation of the averaged weights' window, a share of the run.",
    )  # fmt: skip


def _of(rows: Sequence[Row]) -> str:
    return ", ".join(f"{lr:g}" for lr in unique(rows, "lr"))


CLAIM = Claim("recipe", cells, run, section)

if __name__ == "__main__":
    sys.exit(main(CLAIM, __doc__))
