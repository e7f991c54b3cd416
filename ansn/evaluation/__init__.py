"""Evaluation: distances in a named feature space, and the pictures a person looks at."""

from ansn.evaluation.features import ClassifierFeatures, Features, PCAFeatures, PixelFeatures, everything
from ansn.evaluation.measurement import Evaluation, Measurement
from ansn.evaluation.metrics import frechet_distance, frechet_floor

__all__ = [
    "ClassifierFeatures",
    "Evaluation",
    "Features",
    "Measurement",
    "PCAFeatures",
    "PixelFeatures",
    "everything",
    "frechet_distance",
    "frechet_floor",
]
