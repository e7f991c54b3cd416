"""Training and sampling rates of the two convolutional networks on CIFAR-10-sized data, and what the noise costs."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import torch
from torch import Tensor

import ansn
from ansn import networks
from ansn.sampling import Draw
from benchmarks.gpu.step import Step

STRUCTURES = ("separable", "dense")
"""The first, which such data is given, is also the models'."""
MODES = ("float32", "bfloat16, channels_last", "bfloat16, channels_last, compile")
SAMPLING: dict[str, dict[str, Any]] = {
    "float32": {},
    "CUDA graph": {"cuda_graph": True},
    "bfloat16, CUDA graph": {"cuda_graph": True, "dtype": torch.bfloat16},
}


def run(step: Step) -> None:
    """What the noise costs, a training step and a sampling step of both networks; the rest: the other modes, those that
    compile last, because that takes longest."""
    for structure in () if step.rest else STRUCTURES:
        step.run(f"noise | {structure}", partial(_noise, step, structure))
    for name in ("ncsnv2", "unet"):
        for mode in MODES[1:2] if step.rest else MODES[:1]:
            step.run(f"train | {name} | {mode}", partial(_train, step, name, mode))
        for mode in list(SAMPLING)[1:] if step.rest else list(SAMPLING)[:1]:
            step.run(f"sample | {name} | {mode}", partial(_sample, step, name, mode))
    for name in () if not step.rest else ("unet",) if step.quick else ("unet", "ncsnv2"):
        step.run(f"train | {name} | {MODES[2]}", partial(_train, step, name, MODES[2]))


def _size(step: Step) -> tuple[int, int]:
    """Batch and side of the images."""
    return (4, 8) if step.quick else (128, 32)


def _model(step: Step, name: str) -> ansn.Denoiser:
    torch.manual_seed(0)
    _, side = _size(step)
    options: dict[str, Any]
    if name == "unet":
        options = {"width": 128, "blocks": 2, "multipliers": (1, 2, 2, 2), "dropout": 0.1}
        options |= {"width": 8, "blocks": 1, "multipliers": (1, 2)} if step.quick else {}
    else:
        # Preconditioned input is centred already.
        options = {"ngf": 4 if step.quick else 128, "conditioning": "log", "rescale": False}
    network = networks.build(name, (3, side, side), **options).to(step.device)
    return ansn.Denoiser(network, _noise_model(step))


def _noise_model(step: Step, structure: str = STRUCTURES[0]) -> ansn.NoiseModel:
    """A covariance that has seen 51200 images, so that its factor is remade as seldom as late in a run."""
    batch, side = _size(step)
    covariance = ansn.AdaptiveCovariance((3, side, side), structure=structure, device=step.device)
    generator = torch.Generator(step.device).manual_seed(1)
    rows = 100 * batch
    covariance.update(torch.rand(rows, 3, side, side, generator=generator, device=step.device))
    covariance.seen *= 4
    return ansn.NoiseModel(covariance, ansn.levels.karras(8.0, 0.01)).to(step.device)


def _seconds(step: Step, call, count: int, warm: int) -> float:
    for i in range(warm):
        call(i)
    step.synchronize()
    begun = time.perf_counter()
    for i in range(warm, warm + count):
        call(i)
    step.synchronize()
    return (time.perf_counter() - begun) / count


def _train(step: Step, name: str, mode: str) -> dict[str, Any]:
    """Covariance update, draw, loss, backward, AdamW: images a second, and the peak of the memory."""
    batch, side = _size(step)
    model = _model(step, name).train()
    half, compiling = "bfloat16" in mode, "compile" in mode
    if "channels_last" in mode:
        model.network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.network.parameters(), 2e-4)
    data = torch.rand(4 * batch, 3, side, side, device=step.device)
    last = [torch.zeros((), device=step.device)]

    def loss_of(x: Tensor, perturbed: Tensor, level: ansn.Level) -> Tensor:
        return ansn.dsm_loss(model, x, perturbed, level)

    if compiling:
        torch._dynamo.reset()
        loss_of = torch.compile(loss_of, backend="aot_eager" if step.quick else "inductor")

    def one(i: int) -> None:
        x = data[(i % 4) * batch : (i % 4 + 1) * batch]
        model.noise.update(x)
        perturbed, level = model.noise.perturb(x, step=i)
        with torch.autocast(step.device, torch.bfloat16, enabled=half):
            loss = loss_of(x, perturbed, level)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        last[0] = loss.detach()

    if step.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = _seconds(step, one, 2 if step.quick else 15, 1 if step.quick else 4)
    row: dict[str, Any] = {"images/s": batch / seconds, "ms a step": 1e3 * seconds, "loss": float(last[0])}
    if step.device == "cuda":
        row["peak GB"] = 1e-9 * torch.cuda.max_memory_allocated()
    if not torch.isfinite(last[0]):
        row["failed"] = f"the loss is {float(last[0])} after a few steps"
    return row


def _noise(step: Step, structure: str) -> dict[str, Any]:
    """Milliseconds of the covariance update (with its share of refreshes) and of the draw, at the training's size."""
    batch, side = _size(step)
    noise = _noise_model(step, structure)
    x = torch.rand(batch, 3, side, side, device=step.device)
    count = 4 if step.quick else 30
    update = _seconds(step, lambda _: noise.update(x), count, 2)
    draw = _seconds(step, lambda i: noise.perturb(x, step=i), count, 2)
    return {"ms update": 1e3 * update, "ms draw": 1e3 * draw}


def _sample(step: Step, name: str, mode: str) -> dict[str, Any]:
    """Heun's method, 18 levels (35 evaluations): images a second; and that a mode draws what the plain call draws."""
    model = _model(step, name).eval()
    count, levels = (2, 2) if step.quick else (128, 18)
    options = SAMPLING[mode] | {"cuda_graph": "cuda_graph" in SAMPLING[mode] and step.device == "cuda"}
    draw = Draw(model, "heun", levels, **options)
    expected = Draw(model, "heun", levels).batch(0, count)
    images = draw.batch(0, count)  # warms up, captures
    step.synchronize()
    begun = time.perf_counter()
    images = draw.batch(0, count)
    step.synchronize()
    row: dict[str, Any] = {"images/s": count / (time.perf_counter() - begun), "levels": levels}
    row["largest difference"] = float((images - expected).abs().max())
    if not bool(torch.isfinite(images).all()):
        row["failed"] = "a sample holds a value that is not finite"
    elif "bfloat16" not in mode and row["largest difference"] > 1e-3:  # TF32 or another algorithm under capture
        row["failed"] = f"samples differ by {row['largest difference']:.2g} from those of plain calls"
    return row
