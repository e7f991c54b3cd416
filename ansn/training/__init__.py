"""Training: :func:`train` runs a :class:`ansn.config.TrainConfig`, :func:`load_run` gives back its model."""

from ansn.training.runs import Run, load_run
from ansn.training.trainer import Diverged, Interrupted, train

__all__ = ["Diverged", "Interrupted", "Run", "load_run", "train"]
