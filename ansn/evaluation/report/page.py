"""What a page is made of: the material handed in, and sections of text, pictures and tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from ansn import figures
from ansn.data import Dataset
from ansn.evaluation.measurement import Evaluation
from ansn.evaluation.report.figures import Rendered, rendered
from ansn.evaluation.trajectory import Trajectory
from ansn.training.runs import Run

BROKEN = (ValueError, ArithmeticError, RuntimeError, np.linalg.LinAlgError)
"""What drawing or decomposing numbers that are not finite may raise."""


NAMES = frozenset({
    "samples", "neighbours", "trajectory", "quality-evaluations", "quality-seconds", "shares", "loss", "spectrum",
    "directions", "draws", "regions", "levels",
})  # fmt: skip
"""Names of the pictures that a page may have."""


@dataclass(frozen=True)
class Shares:
    """Share of each class among the samples and the data, each summing to 1; ``judge``: who told the samples' class."""

    names: tuple[str, ...]
    samples: tuple[float, ...]
    data: tuple[float, ...]
    judge: str


@dataclass(frozen=True)
class Material:
    """What a report is made of; see :func:`ansn.evaluation.report.write_report`."""

    run: Run
    evaluation: Evaluation
    samples: Tensor
    train: Dataset | None
    trajectory: Trajectory | None
    shares: Shares | None
    commands: tuple[tuple[str, str], ...]

    @property
    def pictorial(self) -> bool:
        return figures.is_image(self.run.info.shape)

    @property
    def columns(self) -> list[str]:
        count = math.prod(self.run.info.shape)
        return list(self.run.info.columns or (f"x{j}" for j in range(count)))

    def rows(self, index: Tensor) -> Tensor:
        """Training rows as the model sees them, on the CPU."""
        assert self.train is not None
        return self.train.batch(index)[0].cpu()

    def vectors(self, x: Tensor) -> Tensor:
        """Rows ``[n, d]`` in the units of the data."""
        return self.run.to_data_units(x.detach().cpu()).flatten(1)


@dataclass(frozen=True)
class Picture:
    """A figure of the page. ``wide``: too wide for a phone, where it scrolls; ``pixels``: a grid that stays sharp."""

    name: str
    alt: str
    caption: str
    image: Rendered
    wide: bool = False
    pixels: bool = False


@dataclass(frozen=True)
class Table:
    """Text in rows, the first cell of each its heading.

    ``style``: ``"cards"``, whose rows become cards on a phone, or ``"numbers"``, whose cells are not broken;
    ``folded``: hidden until asked for.
    """

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    style: str = ""
    folded: bool = False


@dataclass
class Section:
    """One part of the page; ``missing`` holds sentences on what is not there."""

    id: str
    title: str
    text: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    definitions: list[tuple[str, str]] = field(default_factory=list)
    commands: list[tuple[str, str]] = field(default_factory=list)

    def draw(self, name: str, alt: str, caption: str, figure: Callable[[], Figure], **options: bool) -> None:
        """Add a picture of one of the NAMES, or a sentence on why there is none. ``options``: ``wide``, ``flat``."""
        assert name in NAMES
        try:
            image = rendered(figure, flat=options.get("flat", True))
            self.pictures.append(Picture(name, alt, caption, image, options.get("wide", False)))
        except BROKEN as error:
            self.missing.append(f"The picture “{name}” could not be drawn: {sentence(error)}")


def sentence(error: BaseException) -> str:
    """The first line of an error's message, as the end of a sentence."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text[:200].rstrip(".") + "."
