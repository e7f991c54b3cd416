"""What a page is made of: the material handed in, and sections of text, pictures and tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from ansn import sample_figures
from ansn.data import Dataset
from ansn.data.units import Table as Units
from ansn.evaluation import columns
from ansn.evaluation.compare import LEAST, Resampling
from ansn.evaluation.features import Array
from ansn.evaluation.measurement import Evaluation, Measurement
from ansn.evaluation.report.figures import Rendered, rendered
from ansn.evaluation.trajectory import Trajectory
from ansn.training.runs import Run

_ROWS, _LEAST_ROWS, _VALUES = 20_000, 64, 20_000_000  # most and least rows of the data, and numbers in them

BROKEN = (ValueError, ArithmeticError, RuntimeError, np.linalg.LinAlgError)
"""What drawing or decomposing numbers that are not finite may raise."""


NAMES = frozenset({
    "samples", "neighbours", "trajectory", "quality-evaluations", "quality-seconds", "shares", "loss", "spectrum",
    "directions", "draws", "regions", "levels", "marginals", "correlations", "power-spectrum", "autocorrelation",
    "one-point-distribution",
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
    test: Dataset | None = None

    @property
    def table(self) -> Units | None:
        """The columns of a table; None for other data."""
        units = self.run.units
        return units if isinstance(units, Units) else None

    @property
    def coordinates(self) -> tuple[str, ...] | None:
        """Names of a table's numbers as the model sees them."""
        return None if self.table is None else self.table.coordinates

    def rows(self, index: Tensor, split: Dataset | None = None) -> Tensor:
        """Rows of the training data, or of another split, as the model sees them, on the CPU; NaN where a table's cell
        is not known, which a batch has a draw of."""
        split = split or self.train
        assert split is not None
        stored = split.rows if self.table is not None else None
        return (stored[index] if isinstance(stored, Tensor) else split.batch(index)[0]).cpu()

    def values(self, x: Tensor) -> Tensor:
        """Rows in the units of the data, float64, on the CPU."""
        return self.run.to_data_units(x.detach().cpu()).double()

    def pictures(self, x: Tensor) -> Tensor:
        """Rows of the model's numbers as pictures ``[n, 3, h, w]``, fields in the colours of the data's values; lines
        ``[n, C, L]`` in the units of the data."""
        values = self.values(x)
        return values if values.ndim < 4 else sample_figures.tiles(values, self.run.info.kind, self.scales)

    @cached_property
    def scales(self) -> list[sample_figures.Scale]:
        """Ends of the data's values, of each channel that is shown; of the samples' where there is no data."""
        x = self.values(self.samples) if self.train is None else torch.from_numpy(self.data)
        return sample_figures.line_scales(x.numpy()) if x.ndim == 3 else sample_figures.limits(x, self.run.info.kind)

    @cached_property
    def data(self) -> Array:
        """Rows of the training data in its units, drawn at random, NaN where a table's cell is not known."""
        assert self.train is not None
        return self._some(self.train)

    @cached_property
    def held_out(self) -> Array | None:
        """Held-out rows, as :attr:`data`; None where there are too few for a floor."""
        return None if self.test is None or len(self.test) < LEAST else self._some(self.test)

    @cached_property
    def finite(self) -> Array:
        """Samples in the units of the data, without those that hold values that are not finite."""
        x = self.values(self.samples).numpy()
        return np.asarray(x[np.isfinite(x.reshape(len(x), -1)).all(1)])

    @property
    def resampling(self) -> Resampling:
        """As the measurements were made."""
        return Resampling(self._setting("halves", 40, 2, 10_000), self._setting("seed", 0, 0, 2**63 - 1))

    def _setting(self, name: str, default: int, least: int, most: int) -> int:
        """Of the evaluation, which may come from a file."""
        value = self.evaluation.settings.get(name)
        return value if isinstance(value, int) and least <= value <= most else default

    @cached_property
    def marginals(self) -> dict[int, Measurement]:
        """Of a table's columns that are not constant; empty without data or with too few samples."""
        if self.table is None or self.train is None or len(self.finite) < LEAST:
            return {}
        keep = [j for j, c in enumerate(self.table.columns) if c.kind != "constant"]
        chosen, held = [self.table.columns[j] for j in keep], self.held_out
        made = columns.marginals(
            chosen, self.data[:, keep], self.finite[:, keep], None if held is None else held[:, keep], self.resampling
        )
        return dict(zip(keep, made, strict=True))

    @property
    def worst(self) -> list[int]:
        """A table's columns, the furthest from the data first; as they are in the file where that is not known."""
        count = 0 if self.table is None else len(self.table.columns)
        return sorted(self.marginals, key=lambda j: -np.nan_to_num(self.marginals[j].value)) or list(range(count))

    def _some(self, rows: Dataset) -> Array:
        size = int(np.prod(rows.shape))
        index = rows.order(0, 0)[: max(_LEAST_ROWS, min(_ROWS, _VALUES // size))].clone()
        return np.asarray(self.values(self.rows(index, rows)).numpy())


@dataclass(frozen=True)
class Picture:
    """A figure of the page. ``wide``: too wide for a phone, where it scrolls."""

    name: str
    alt: str
    caption: str
    image: Rendered
    wide: bool = False


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
