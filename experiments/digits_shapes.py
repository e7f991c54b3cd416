"""Digits at equal network, seed and steps: Frechet distance against training steps for several noise shapes.

    python experiments/digits_shapes.py                      # rho 0.5 against the isotropic control, three seeds

Paired: shapes with the same seed share the initial weights, the data order, the levels and the counters of the noise, and have
the same ladder. Writes a CSV, one row for each (shape, seed, step), and prints the Markdown table.
"""

from __future__ import annotations

import csv
import platform
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import ansn
from ansn.data import iterate
from ansn.evaluation import ClassifierFeatures, Frechet, frechet

COLUMNS = (
    "shape", "seed", "step", "frechet", "floor", "n", "features", "train_seconds", "torch", "machine", "threads"
)  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """What to compare."""

    rhos: tuple[float, ...] = (0.5, 0.0)
    """Shrinkage shapes; 0 is the isotropic control, 1 the full covariance."""
    gammas: tuple[float, ...] = ()
    """Spectral shapes S^gamma, as well."""
    diagonal: bool = False
    """The per-pixel control, as well."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """One run for each shape and seed."""
    steps: tuple[int, ...] = (250, 500, 1000, 2000)
    """Training steps after which the samples are judged."""
    metric: str = "pixel"
    """Metric of the loss."""
    batch_size: int = 128
    """Examples a step."""
    lr: float = 1e-3
    """Learning rate of Adam."""
    ema: float = 0.995
    """Decay of the averaged weights, which are what is sampled."""
    sampler_steps: int = 20
    """Levels of Heun's method; 2 n - 1 evaluations."""
    out: Path = Path("experiments/results/digits_shapes.csv")
    """The CSV."""


def shapes(settings: Settings) -> dict[str, dict[str, object]]:
    """Arguments of the covariance for each compared shape, by name."""
    named: dict[str, dict[str, object]] = {f"rho {rho:g}": {"rho": rho} for rho in settings.rhos}
    named |= {f"gamma {gamma:g}": {"gamma": gamma} for gamma in settings.gammas}
    if settings.diagonal:
        named["diagonal"] = {"rho": 1.0, "structure": "diagonal"}
    return named


def run(
    shape: dict[str, object], seed: int, settings: Settings, train: ansn.data.Dataset, judge
) -> list[tuple[int, float, Frechet]]:
    """Train once; (step, seconds of training so far, distance) at each of the settings' steps."""
    torch.manual_seed(seed)
    covariance = ansn.AdaptiveCovariance(train.shape, eps_floor=train.quantisation, **shape)  # type: ignore[arg-type]
    top = ansn.levels.tau_max_flow(covariance.dim)
    noise = ansn.NoiseModel(covariance, ansn.levels.karras(top, 0.01), seed=seed)
    model = ansn.Denoiser(ansn.networks.MLP(train.shape, hidden=512, blocks=3), noise)
    optimizer = torch.optim.Adam(model.network.parameters(), settings.lr)
    ema = AveragedModel(model.network, multi_avg_fn=get_ema_multi_avg_fn(settings.ema))
    out, seconds, begun = [], 0.0, time.perf_counter()
    for step, x, _ in iterate(train, settings.batch_size, seed, stop_step=max(settings.steps)):
        noise.update(x)
        perturbed, level = noise.perturb(x, step=step)
        loss = ansn.dsm_loss(model, x, perturbed, level, settings.metric)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        ema.update_parameters(model.network)
        if step + 1 in settings.steps:
            seconds += time.perf_counter() - begun
            averaged = ansn.Denoiser(ema.module, noise)
            samples = ansn.sample(
                averaged, len(train), "heun", settings.sampler_steps, batch_size=len(train), seed=seed
            )
            out.append((step + 1, seconds, judge(samples)))
            begun = time.perf_counter()
    return out


def main(settings: Settings) -> None:
    """Run every shape and seed, write the CSV, print the table."""
    train, test = ansn.load_dataset("digits"), ansn.load_dataset("digits", split="test")
    x_train, _ = train.batch(torch.arange(len(train)))
    x_test, _ = test.batch(torch.arange(len(test)))
    assert train.labels is not None and test.labels is not None
    features = ClassifierFeatures(x_train, train.labels, name="digits")
    accuracy = features.accuracy(x_test, test.labels)

    def judge(samples: torch.Tensor) -> Frechet:
        return frechet(samples, x_train, x_test, features)

    rows: list[dict[str, object]] = []
    for seed in settings.seeds:
        for name, shape in shapes(settings).items():
            for step, seconds, found in run(shape, seed, settings, train, judge):
                values = (
                    name, seed, step, f"{found.value:.4f}", f"{found.floor:.4f}", found.n, found.features,
                    f"{seconds:.1f}", torch.__version__, platform.processor() or platform.machine(),
                    torch.get_num_threads(),
                )  # fmt: skip
                rows.append(dict(zip(COLUMNS, values, strict=True)))
                print(f"{name}, seed {seed}, step {step}: {found}", flush=True)
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    with settings.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    print(f"\nfeatures {features.name}, test accuracy {accuracy:.3f}; floor {rows[0]['floor']}; n = {len(train)}\n")
    print(table(rows, settings.steps))


def table(rows: list[dict[str, object]], steps: tuple[int, ...]) -> str:
    """Markdown: mean over seeds and each seed, by shape and step."""
    lines = ["| shape | " + " | ".join(f"{s} steps" for s in steps) + " |", "| --- |" + " --- |" * len(steps)]
    for name in dict.fromkeys(str(r["shape"]) for r in rows):
        cells = []
        for step in steps:
            values = [float(str(r["frechet"])) for r in rows if r["shape"] == name and r["step"] == step]
            cells.append(f"{np.mean(values):.2f} ({', '.join(f'{v:.2f}' for v in values)})")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
