"""Training beside a loop that a user would write, and drawing beside a loop of Heun, on the same networks.

    python -m benchmarks.training            # prints; with --save into benchmarks/results/training.csv
    python -m benchmarks.table --write       # then into docs/performance.md

The trainer's step (covariance learned, noise, denoiser, loss, optimiser, clipping, average) from a run's first step on,
its learning phase included, against EDM's preconditioning in plain torch with the same optimiser, clipping and average;
in turns of some steps, of which the ratio's quartiles are. Drawing at d = 3072: by a network that costs next to
nothing, so that all is ours, and by a small U-Net.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import ansn
from ansn.config import DataConfig, TrainConfig
from ansn.data import iterate, load_dataset
from ansn.presets import PRESETS
from ansn.sampling import Draw
from ansn.skips import SKIPS
from ansn.training import build
from ansn.training.trainer import Trainer
from benchmarks.harness import interleave
from benchmarks.provenance import ROOT, save

TURNS = 50


def edm(network: nn.Module, batches: Iterator[Any], deviation: float, lr: float) -> Callable[[], None]:
    """One training step as Karras et al. (2022) have it, in plain torch."""
    optimizer = torch.optim.AdamW(network.parameters(), lr, weight_decay=0.0, fused=True)
    average = copy.deepcopy(network)

    def step() -> None:
        _, x, _ = next(batches)
        sigma = (torch.randn(len(x)) * 1.2 - 1.2).exp().reshape(-1, *(1,) * (x.ndim - 1))
        noisy = x + sigma * torch.randn_like(x)
        total = sigma**2 + deviation**2
        output = network(noisy / total.sqrt(), sigma.flatten().log() / 4)
        denoised = noisy * deviation**2 / total + output * sigma * deviation / total.sqrt()
        loss = (total / (sigma * deviation) ** 2 * (denoised - x) ** 2).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 0.001)

    return step


def trained(name: str, config: TrainConfig, steps: int) -> dict[str, Any]:
    """One row: milliseconds a step of both from the first on, their ratio over all, and quartiles over turns of
    ``steps``."""
    with tempfile.TemporaryDirectory() as folder:
        dataset = load_dataset(config.data.dataset)
        trainer = Trainer(replace(config, run=replace(config.run, out=folder)), dataset, 0, 1, torch.device("cpu"))
        trainer.model.train()
        network = replace(config.network, inputs=(), skip="scalar")
        plain = build.denoiser(
            replace(config, network=network), trainer.info, "diagonal", trainer.levels, torch.device("cpu"), None
        ).network
        batches = [iterate(dataset, config.optim.batch_size, 0) for _ in range(2)]
        loop = edm(plain, batches[1], float(trainer.covariance.scale), config.optim.lr)

        def turn(step: Callable[[], Any]) -> float:
            begun = time.perf_counter()
            for _ in range(steps):
                step()
            return (time.perf_counter() - begun) / steps

        taken = np.array([[turn(lambda: trainer._train_step(*next(batches[0]))), turn(loop)] for _ in range(TURNS)])
        with torch.no_grad():
            share = np.median([turn(lambda: noise_and_skip(trainer.model, next(batches[0])[1])) for _ in range(TURNS)])
        trainer.close()
    return _row(name, *taken.T) | {"noise and skip, %": 100 * share / np.median(taken[:, 0])}


def noise_and_skip(model: ansn.Denoiser, x: Tensor) -> Tensor:
    """What a step asks of the covariance once it has learned."""
    perturbed, level = model.noise.perturb(x, step=0)
    return SKIPS[model.skip].estimate(model.seen(perturbed, level.tau, None))


def _row(name: str, ours: np.ndarray, loop: np.ndarray) -> dict[str, Any]:
    quartiles = dict(zip(("median", "q1", "q3"), np.quantile(ours / loop, [0.5, 0.25, 0.75]), strict=True))
    mean = 1e3 * ours.mean(), 1e3 * loop.mean()
    return {"what": name, "ms, ansn": mean[0], "ms, loop": mean[1], "ratio": mean[0] / mean[1]} | quartiles


class Null(nn.Module):
    """A network that costs nothing: what is left is the sampler's and the denoiser's."""

    def forward(self, x: Tensor, level: Tensor | None = None) -> Tensor:
        return torch.zeros_like(x)


def heun(denoise: Callable[[Tensor, float], Tensor], x: Tensor, taus: list[float]) -> Tensor:
    """Heun's method as a user writes it: numbers for levels, from ``x`` at the first of them to 0."""
    for tau, following in zip(taus, [*taus[1:], 0.0], strict=True):
        slope = (x - denoise(x, tau)) / tau
        guess = x + (following - tau) * slope
        if following:
            slope = 0.5 * (slope + (guess - denoise(guess, following)) / following)
        x = x + (following - tau) * slope
    return x


def drawn(name: str, network: nn.Module, rows: int, levels: int) -> dict[str, Any]:
    """One row: milliseconds of a draw of Heun's method of ``rows`` at d = 3072."""
    shape = (3, 32, 32)
    covariance = ansn.AdaptiveCovariance(shape, 1, "separable", rho=0.0).update(fields(256)).freeze()
    model = ansn.Denoiser(network, ansn.NoiseModel(covariance, ansn.levels.karras(20.0, 0.01)), skip="scalar")
    draw = Draw(model, "heun", levels)
    taus = draw.taus.tolist()

    mean, scale = covariance.center.reshape(shape), float(covariance.scale)

    def plain(x: Tensor, tau: float) -> Tensor:
        variance = 1.0 + tau * tau
        output = model.network((x - mean) / (scale * variance**0.5), torch.full((rows,), tau).log() / 4)
        return mean + (x - mean) / variance + output * (scale * tau / variance**0.5)

    def loop() -> Tensor:
        return heun(plain, torch.randn(rows, *shape) * taus[0], taus)

    with torch.inference_mode():
        taken = interleave({"ansn": lambda: draw.batch(0, rows), "loop": loop}, rounds=30, seconds=5.0)
    row = _row(f"draw of {rows} x 3 x 32 x 32 by Heun, {levels} levels, {name}", taken["ansn"], taken["loop"])
    return row | {"noise and skip, %": "-"}


def fields(count: int) -> Tensor:
    """Smooth random images, ``[count, 3, 32, 32]`` in [0, 1]."""
    coarse = torch.rand(count, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    return nn.functional.interpolate(coarse, size=(32, 32), mode="bilinear")


def rows() -> Iterator[dict[str, Any]]:
    """Every row of the table."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "fields.npy"
        np.save(path, fields(2000).numpy())
        mnist = PRESETS["mnist"][1]
        unet = replace(mnist, data=DataConfig(dataset=str(path)), optim=replace(mnist.optim, batch_size=64))
        for name, config, steps in (
            ("digits, MLP, batch 128", PRESETS["digits"][1], 10),
            ("smooth fields 3 x 32 x 32, U-Net of width 16, batch 64", unet, 3),
        ):
            yield trained(f"{name}: as it comes", config, steps)
            plain = replace(config.network, skip="scalar", inputs=())
            yield trained(f"{name}: with EDM's preconditioning", replace(config, network=plain), steps)
    for count in (1, 16, 128):
        yield drawn("no network", Null(), count, 12)
    network = ansn.networks.UNet(3, 16, (1, 2, 2), 1)
    for count, levels in ((1, 12), (16, 6), (128, 2)):
        yield drawn("U-Net of width 16", network.eval(), count, levels)


def main() -> None:
    """Print the rows, or save them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save", action="store_true", help="into benchmarks/results/training.csv")
    save_them, found = parser.parse_args().save, []
    for row in rows():
        found.append(row)
        print({key: f"{value:.4g}" if isinstance(value, float) else value for key, value in row.items()}, flush=True)
    if save_them:
        save(ROOT / "benchmarks" / "results" / "training.csv", found)


if __name__ == "__main__":
    main()
