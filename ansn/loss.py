"""Denoising score matching under the three metrics of math section 4."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ansn import ops
from ansn.denoiser import Denoiser, unwrapped
from ansn.noise import Level
from ansn.ops import _checks

METRICS = ("pixel", "whitened", "paper")


def dsm_loss(
    model: Denoiser | nn.Module,
    x: Tensor,
    perturbed: Tensor,
    level: Level,
    metric: str | None = None,
    *,
    reduction: str = "mean",
    known: Tensor | None = None,
    **extra: Any,
) -> Tensor:
    r"""``w(tau) || W (D - x) ||^2 / d`` (math section 4), where ``D - x = tau L (f + z)``.

    ======== ===================== ============================== ======================================================
    metric   W                     w                              note
    ======== ===================== ============================== ======================================================
    pixel    I                     (1 + tau^2) / (tau^2 s^2)      denoiser network's default; s: the pixel deviation
    whitened (tau L)^-1            1/2                            ``1/2 ||f + z||^2``, whitened network's default
    paper    Sigma^-1              1/2                            Eq. 3.1 read literally
    ======== ===================== ============================== ======================================================

    Args:
        model: the denoiser, as it is or as DistributedDataParallel, FSDP, torch.compile, accelerate or Fabric wraps it.
        x, perturbed, level: clean data ``[B, *shape]`` and what :meth:`NoiseModel.perturb` returned for it.
        metric: None takes the default of the model's prediction.
        reduction: ``"mean"`` over rows, or ``"none"`` for ``[B]``.
        known: bool ``[B, *shape]``; what is not known of x, and was filled in for the noise's sake, has no part: there
            ``D - x`` is put to 0, before W in every metric, and d stays what it is. Where a number is missing whatever
            it is, the minimiser for those that are known stays the same.
        extra: to the network (``y``: class labels).

    Every metric has the minimiser ``D = E[x | x~]``. Losses of different Sigma or metric are not comparable.
    """
    denoiser = unwrapped(model)
    metric = metric or ("pixel" if denoiser.prediction == "denoiser" else "whitened")
    if metric not in METRICS:
        raise ValueError(f"metric: got {metric!r}, expected one of {', '.join(METRICS)}")
    if reduction not in ("mean", "none"):
        raise ValueError(f"reduction: got {reduction!r}, expected 'mean' or 'none'")
    if not isinstance(level, Level):
        raise TypeError(f"level: got {_checks.describe(level)}, expected what NoiseModel.perturb returned")
    if known is not None and (known.dtype != torch.bool or known.shape != x.shape):
        raise ValueError(f"known: got {_checks.describe(known)}, expected bool {list(x.shape)}")
    tau, region = level.tau, level.region
    covariance = denoiser.noise.covariance
    if covariance.regions > 1 and not extra and not denoiser.regional:
        # Weight and preconditioning depend on k; a network that does not know k would learn no score of anything.
        raise ValueError(f"region: got {covariance.regions} regions and a network that is not told, expected y=...")
    if x.shape != perturbed.shape:
        raise ValueError(f"x: got shape {list(x.shape)}, expected that of perturbed, {list(perturbed.shape)}")
    if denoiser.num_classes and not denoiser.label_dropout and not extra:
        classes = f"{denoiser.num_classes} classes without label dropout"
        raise ValueError(f"y: got None for a network of {classes}, expected int64 [{len(x)}]")
    if isinstance(extra.get("y"), Tensor) and _checks.readable(extra["y"]):
        denoiser.check_labels(extra["y"])
    if metric == "pixel":
        alike = region is None or covariance.regions == 1
        scale, unit = covariance.scale, covariance.unit
        scale, unit = scale if alike else scale[region], unit if unit is None or alike else unit[region]
        ratio = tau if unit is None else tau * unit
        weight = (1.0 + ratio * ratio) / (ratio * scale) ** 2
        clean, denoised = x.to(perturbed.dtype), model(perturbed, tau, region, **extra)
        if known is not None:
            clean, denoised = clean.where(known, 0.0), denoised.where(known, 0.0)
        return ops.dsm_loss(denoised, clean, weight=weight, reduction=reduction)
    bare = model is denoiser and not model._forward_pre_hooks  # what is wrapped, or sharded, is called for D alone
    if metric == "whitened" and denoiser.prediction == "whitened" and bare and known is None:
        return ops.dsm_loss(
            denoiser.f(perturbed, tau, region, **extra), weight=0.5, reduction=reduction,
            seed=level.seed, row=level.row, step=level.step, stream=ops.PERTURB,
        )  # fmt: skip
    residual = model(perturbed, tau, region, **extra) - x.to(perturbed.dtype)
    if known is not None:
        residual = residual.where(known, 0.0)
    whitened = covariance.whiten(residual, region)
    power = 1
    if metric == "paper":
        whitened, power = covariance.whiten(whitened, region, transpose=True), 2
    zero = whitened.detach().new_zeros(whitened.shape)
    return ops.dsm_loss(whitened, zero, weight=0.5 / tau ** (2 * power), reduction=reduction)
