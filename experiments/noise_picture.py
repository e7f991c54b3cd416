"""The paper's Figure 1 as a picture: noise of a fixed shape against noise that is shaped like the data.

    python -m experiments.noise_picture --out docs/images/noise.png

Left: correlated points in the plane, and the noise around three of them. Right: a digit at three levels. Above the
noise is isotropic, below its covariance is that of the data, learned from it; at one level both have the same mean
variance, and both are made of the same normal numbers.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor

import ansn
from ansn.figures import write_figure
from ansn.sample_figures import DATA, MODEL, NOISE

SHAPES = {
    0.0: ("isotropic noise", "alike in all\ndirections: it\nleaves the data", NOISE),
    1.0: ("adapted noise", "of the data's\nshape: it stays\namong the data", MODEL),
}
"""rho, which mixes the identity (0) with the data's covariance (1): name, what it does, colour."""
CORRELATION, POINTS, DRAWS = 0.95, 900, 150
PLANE_LEVEL = 0.4  # of the noise in the plane, data standard deviations
LEVELS = (0.5, 1.0, 2.0)
DIGIT = 20  # row of the training digits


def learned(data: Tensor, rho: float, structure: str = "dense") -> ansn.NoiseModel:
    """Noise of the shape rho for rows ``[N, *shape]``, its covariance learned from them."""
    noise = ansn.NoiseModel.for_data(data, structure, rho=rho).update(data)
    noise.covariance.freeze()
    return noise


def plane() -> Tensor:
    """Correlated points ``[POINTS, 2]`` of unit variances."""
    z = torch.randn(POINTS, 2, generator=torch.Generator().manual_seed(0))
    return z @ torch.linalg.cholesky(torch.tensor([[1.0, CORRELATION], [CORRELATION, 1.0]])).T


def centers(x: Tensor) -> Tensor:
    """The points nearest to three on the data's axis, ``[3, 2]``."""
    axis = torch.tensor([-1.7, 0.0, 1.7]).unsqueeze(1).expand(-1, 2)
    return x[torch.cdist(axis, x).argmin(1)]


def clouds(x: Tensor, rho: float) -> Tensor:
    """Noise around the centers, ``[3, DRAWS, 2]``."""
    rows = centers(x).repeat_interleave(DRAWS, 0)
    return learned(x, rho).perturb(rows, tau=PLANE_LEVEL, step=0)[0].reshape(3, DRAWS, 2)


def perturbed(images: Tensor, rho: float) -> Tensor:
    """The digit, and the digit at each level, ``[1 + LEVELS, 8, 8]``, one normal draw for all."""
    clean, noise = images[DIGIT : DIGIT + 1], learned(images, rho)
    return torch.cat([clean, *(noise.perturb(clean, tau=tau, step=0)[0] for tau in LEVELS)]).squeeze(1)


def draw(out: Path) -> Path:
    """Write the picture."""
    from matplotlib.figure import Figure

    x, digits = plane(), ansn.load_dataset("digits")
    images = digits.batch(torch.arange(len(digits)))[0]
    figure = Figure(figsize=(13.0, 5.42))
    grid = figure.add_gridspec(
        2, 6, width_ratios=(1, 0.06, 1, 1, 1, 1), left=0.042, right=0.996, top=0.935, bottom=0.01,
        wspace=0.04, hspace=0.04,
    )  # fmt: skip
    for i, (rho, (name, effect, colour)) in enumerate(SHAPES.items()):
        left: Any = figure.add_subplot(grid[i, 0])
        left.scatter(*x.T.numpy(), s=5, color=DATA, alpha=0.6, linewidths=0)
        left.scatter(*clouds(x, rho).flatten(0, 1).T.numpy(), s=7, color=colour, alpha=0.5, linewidths=0)
        left.scatter(*centers(x).T.numpy(), s=42, color="black", zorder=3)
        left.set(xlim=(-3.3, 3.3), ylim=(-3.3, 3.3), xticks=[], yticks=[], box_aspect=1)
        left.set_ylabel(name, fontsize=19, color=colour, labelpad=10, weight="bold")
        left.text(0.97, 0.03, effect, transform=left.transAxes, ha="right", fontsize=12.5)
        titles = ["digit", *(f"level {tau:g}" for tau in LEVELS)]
        for j, (title, image) in enumerate(zip(titles, perturbed(images, rho), strict=True)):
            axis: Any = figure.add_subplot(grid[i, 2 + j])
            axis.imshow(image.numpy(), cmap="gray", vmin=0.0, vmax=1.0, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            if i == 0:
                axis.set_title(title, fontsize=17)
        if i == 0:
            left.set_title("data and noise", fontsize=17)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_figure(figure, out)
    return out


def command(out: Path = Path("docs/images/noise.png")) -> int:
    """Isotropic noise against noise of the data's covariance, in the plane and on a digit.

    Args:
        out: PNG file to write.
    """
    print(draw(out))
    return 0


if __name__ == "__main__":
    sys.exit(tyro.cli(command))
