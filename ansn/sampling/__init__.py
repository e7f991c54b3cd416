"""Samplers: short functions over a denoiser, and :func:`sample`, which starts, batches and collects them."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from ansn import levels
from ansn.denoiser import Denoiser
from ansn.sampling.annealed_langevin import algorithm_1, annealed_langevin
from ansn.sampling.common import Callback, NoiseSampler, bar
from ansn.sampling.ode import euler, heun

__all__ = ["METHODS", "Callback", "NoiseSampler", "algorithm_1", "annealed_langevin", "euler", "heun", "sample"]

METHODS = {"heun": heun, "euler": euler, "langevin": annealed_langevin, "paper": algorithm_1}


@torch.no_grad()
def sample(
    model: Denoiser,
    n: int,
    method: str = "heun",
    steps: int | None = None,
    *,
    taus: Tensor | None = None,
    start: str | None = None,
    batch_size: int = 256,
    seed: int = 0,
    y: int | Tensor | None = None,
    progress: bool = False,
    callback: Callback | None = None,
    **options: Any,
) -> Tensor:
    """Draw ``n`` samples, ``[n, *shape]`` on the CPU, in data units.

    Args:
        model: the denoiser; its device is used.
        method: ``"heun"``, ``"euler"`` (flow), ``"langevin"`` (corrected), ``"paper"`` (Algorithm 1 as printed).
        steps: flow: number of levels, Karras-spaced between the ends of the ladder, default 20. Langevin: steps a
            level, default 100.
        taus: levels to use instead, decreasing ``[N]``.
        start: ``"gaussian"`` or ``"uniform"``, see :meth:`NoiseModel.prior`; the default of ``"paper"`` is
            uniform, else gaussian.
        batch_size: samples at a time; the images do not depend on it beyond rounding.
        seed: sample i depends on (seed, i) and on nothing else.
        y: class labels, a number or int64 ``[n]``, for a class-conditional network. Where the covariance has one region
            for each of the network's classes, they are the regions too, by default drawn in the data's proportions.
        progress: show a bar. callback: see :data:`ansn.sampling.Callback`; called for every batch.
        options: to the sampler (``eps``, ``convention``, ``precondition``, ``denoise``).

    Raises ValueError naming the argument.
    """
    if method not in METHODS:
        raise ValueError(f"method: got {method!r}, expected one of {', '.join(METHODS)}")
    if n < 1 or batch_size < 1:
        raise ValueError(f"n, batch_size: got {n}, {batch_size}, expected at least 1")
    sampler, noise = METHODS[method], model.noise
    flow = method in ("heun", "euler")
    known = inspect.signature(sampler).parameters
    for name in options:
        if name not in _options(known):
            raise ValueError(f"{name}: {method!r} has no such option; it has {', '.join(_options(known))}")
    if taus is None:
        taus = _schedule(model, flow, steps if steps is not None else 20)
    if options.get("noise_sampler") is not None and n > batch_size:
        raise ValueError(f"noise_sampler: is for one batch, but n = {n} > batch_size = {batch_size}")
    if not flow:
        options["steps"] = 100 if steps is None else steps
    # A short progress bar over batches when there are several, over steps when there is one.
    several = n > batch_size
    was_training = model.training
    model.eval()
    out = []
    try:
        for row in bar(range(0, n, batch_size), progress and several, "Sampling"):
            rows = min(batch_size, n - row)
            region = noise.draw_regions(rows, seed=seed, row=row)
            extra = _labels(y, n, row, rows, noise.tau.device)
            classes = getattr(model.network, "num_classes", None)
            if region is not None and classes == noise.covariance.regions:
                # The regions are the classes: network and noise must agree on k (math section 6).
                region = extra.setdefault("y", region)
            elif classes and not extra:
                raise ValueError(f"y: got None for a network of {classes} classes, expected a label or int64 [{n}]")
            x = noise.prior(
                rows, float(taus[0]), region=region, seed=seed, row=row,
                start=start or ("uniform" if method == "paper" else "gaussian"),
            )  # fmt: skip
            if not flow:
                extra |= {"seed": seed, "row": row}
            x = sampler(
                model, x, taus, region=region, callback=callback, progress=progress and not several, **options, **extra
            )
            out.append(x.cpu())
    finally:
        model.train(was_training)
    return torch.cat(out)


def _schedule(model: Denoiser, flow: bool, n: int) -> Tensor:
    ladder = model.noise.levels
    if flow:
        if n < 1:
            raise ValueError(f"steps: got {n}, expected at least 1")
        if len(ladder) == 1 or n == 1:
            return model.noise.tau[:1]
        return torch.tensor(levels.karras(ladder.maximum, ladder.minimum, n=n).tau, dtype=torch.float64)
    if ladder.training == "ladder":
        return model.noise.tau
    # A ladder of a few Karras levels is too coarse for Langevin: rungs that overlap, by NCSNv2's rule.
    overlapping = levels.geometric(ladder.maximum, ladder.minimum, dim=model.noise.covariance.dim)
    return torch.tensor(overlapping.tau, dtype=torch.float64)


def _labels(y: int | Tensor | None, n: int, row: int, rows: int, device: torch.device) -> dict[str, Any]:
    if y is None:
        return {}
    labels = torch.full((n,), y) if isinstance(y, int) else y
    if labels.shape != (n,) or labels.dtype != torch.int64:
        raise ValueError(f"y: got {labels.dtype} of shape {list(labels.shape)}, expected a number or int64 [{n}]")
    return {"y": labels[row : row + rows].to(device)}


def _options(known: Any) -> list[str]:
    own = ("model", "x", "taus", "steps", "region", "seed", "row", "callback", "progress", "extra")
    return [name for name in known if name not in own]
