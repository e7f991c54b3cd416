"""Evaluation: distances in a named feature space, and the pictures a person looks at."""

from ansn.evaluation.metrics import (
    ClassifierFeatures,
    Features,
    Frechet,
    PCAFeatures,
    everything,
    frechet,
    frechet_distance,
    frechet_floor,
)

__all__ = [
    "ClassifierFeatures",
    "Features",
    "Frechet",
    "PCAFeatures",
    "everything",
    "frechet",
    "frechet_distance",
    "frechet_floor",
]
