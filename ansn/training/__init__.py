"""Training: :func:`train` runs a :class:`ansn.config.TrainConfig`, :func:`load_run` gives back its model,
:func:`export_run` writes what others need of it."""

from ansn.training.runs import Run, export_run, load_run
from ansn.training.trainer import Diverged, Interrupted, train

__all__ = ["Diverged", "Interrupted", "Run", "export_run", "load_run", "train"]
