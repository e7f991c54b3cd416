"""Score models whose training noise has a covariance learned online.

Start with :class:`AdaptiveCovariance`, :class:`NoiseModel`, :class:`Denoiser`, :func:`dsm_loss` and :func:`sample`;
``ansn.ops`` holds the kernels, ``ansn.networks`` the networks, ``ansn.levels`` the ladders.
"""

from ansn import levels, networks, ops, sampling
from ansn.covariance import AdaptiveCovariance, Mixture
from ansn.data import load_dataset
from ansn.denoiser import Denoiser
from ansn.errors import InputError
from ansn.likelihood import bits_per_dim, log_likelihood, score_rows
from ansn.loss import dsm_loss
from ansn.noise import Level, NoiseModel
from ansn.sampling import impute, sample
from ansn.score_matching import score_matching_loss, sliced_score_matching_loss
from ansn.training import Run, load_run

__version__ = "0.1.0"

__all__ = [
    "AdaptiveCovariance",
    "Denoiser",
    "InputError",
    "Level",
    "Mixture",
    "NoiseModel",
    "Run",
    "bits_per_dim",
    "dsm_loss",
    "impute",
    "levels",
    "load_dataset",
    "load_run",
    "log_likelihood",
    "networks",
    "ops",
    "sample",
    "sampling",
    "score_matching_loss",
    "score_rows",
    "sliced_score_matching_loss",
]
