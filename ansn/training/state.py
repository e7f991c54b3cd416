"""What a checkpoint's ``state.json`` says, of every format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ansn import config, schema
from ansn.config import MOST_RUNGS, TrainConfig
from ansn.covariance import Choice, Found
from ansn.data.units import MAX_CLASSES
from ansn.levels import Levels
from ansn.training.build import DataInfo


@dataclass(frozen=True)
class Running:
    """Of the loss since the last line of metrics.jsonl: its sum, of each process, and its steps."""

    loss: tuple[float, ...] = (0.0,)
    steps: int = 0


@dataclass(frozen=True)
class State:
    """Everything but tensors.

    Attributes:
        config, data, levels: what the run is of. structure, found: what its covariance and regions were chosen to be.
        groups: of the optimiser's parameters.
    """

    format: int
    step: int
    config: TrainConfig
    data: DataInfo
    levels: Levels
    structure: Choice
    found: Found | None = None
    groups: list[dict[str, Any]] = field(default_factory=list)
    running: Running = field(default_factory=Running)

    def __post_init__(self) -> None:
        regions = 1 if self.found is None else self.found.regions
        for name, value, least, most in (
            ("step", self.step, 0, 2**53), ("levels", len(self.levels), 1, MOST_RUNGS),
            ("regions", regions, 1, MAX_CLASSES), ("running", self.running.steps, 0, 2**53),
            ("processes", len(self.running.loss), 1, 2**20),
        ):  # fmt: skip
            if not least <= value <= most:
                raise ValueError(f"{name}: got {value}, expected {least} to {most:,}")

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> State:
        """JSON of any format. InputError, one line, for what is none, or of sizes that no run has."""
        settings, info = config.from_dict(values.get("config")), DataInfo.from_dict(values.get("data"))
        if isinstance(values.get("format"), int) and values["format"] < 4:  # they held out nothing
            settings = replace(settings, data=replace(settings.data, test_fraction=0.0))
        # Formats before 3 name the structure in the settings alone.
        structure = values.get("structure", {"structure": settings.noise.structure})
        known = {"config": settings, "data": info, "structure": structure}
        state: State = schema.build(cls, {**values, **known}, "state.json")
        return state
