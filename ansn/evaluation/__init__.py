"""Evaluation: distances in a named feature space, and the pictures a person looks at."""

from ansn.evaluation.features import ClassifierFeatures, Features, PCAFeatures, PixelFeatures, everything
from ansn.evaluation.measurement import Evaluation, Measurement
from ansn.evaluation.metrics import Frechet, frechet, frechet_distance, frechet_floor

__all__ = [
    "ClassifierFeatures",
    "Evaluation",
    "Features",
    "Frechet",
    "Measurement",
    "PCAFeatures",
    "PixelFeatures",
    "everything",
    "frechet",
    "frechet_distance",
    "frechet_floor",
]
