"""What is known of a row when its likelihood is asked for: region and label, or a mixture over the regions."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ansn.denoiser import Denoiser
from ansn.ops import _checks as ops_checks


@dataclass(frozen=True)
class Hypothesis:
    """What is taken as known of each row: region and label, and the log-probability of that."""

    region: Tensor | None
    y: Tensor | None
    log_weight: float = 0.0

    def of(self, rows: slice | Tensor) -> Hypothesis:
        """The same for some of the rows."""
        region, y = (None if v is None else v[rows] for v in (self.region, self.y))
        return Hypothesis(region, y, self.log_weight)


def conditions(model: Denoiser, rows: int, region: Tensor | None, y: Tensor | None) -> list[Hypothesis]:
    """One hypothesis where regions and labels are known, or there are none; else one for each region of some share.

    Where the network has one class a region, region and label are the same (math section 6). Raises ValueError.
    """
    covariance, device = model.noise.covariance, model.noise.tau.device
    classes = model.num_classes
    same = classes == covariance.regions > 1
    for name, given in (("region", region), ("y", y)):
        if given is not None and (given.dtype != torch.int64 or given.shape != (rows,)):
            raise ValueError(f"{name}: got {given.dtype} of shape {list(given.shape)}, expected int64 [{rows}]")
    region, y = (None if given is None else given.to(device) for given in (region, y))
    if same:
        region, y = (y if region is None else region), (region if y is None else y)
    if classes and y is None and not same:
        raise ValueError(f"y: got None for a network of {classes} classes, expected int64 [{rows}]")
    if y is not None and not classes:
        raise ValueError("y: got labels for a network without classes, expected None")
    if y is not None:
        model.check_labels(y)
    if region is not None:
        ops_checks.region_values(region, covariance.regions)
        return [Hypothesis(region, y)]
    if covariance.regions == 1:
        return [Hypothesis(None, y)]
    weights = covariance.share.log().tolist()
    each = {k: torch.full((rows,), k, device=device) for k, weight in enumerate(weights) if weight > -math.inf}
    if not each:
        raise ValueError(f"region: got None while no region has data yet, expected int64 [{rows}]")
    return [Hypothesis(region, region if same else y, weights[k]) for k, region in each.items()]
