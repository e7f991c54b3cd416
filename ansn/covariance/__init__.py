"""The covariance: learned online, a value that noise, denoiser, start, solvers, likelihood and posteriors ask.

To add a structure: a class in a file, decorated with :func:`register`, imported here.
"""

from ansn.covariance.adaptive import QUANTISATION_8BIT, AdaptiveCovariance
from ansn.covariance.choice import Choice, choose
from ansn.covariance.cosine import Cosine
from ansn.covariance.dense import Dense
from ansn.covariance.diagonal import Diagonal
from ansn.covariance.mixture import Found, Mixture, find
from ansn.covariance.moments import Moments
from ansn.covariance.pencil import Pencil
from ansn.covariance.separable import Separable
from ansn.covariance.structure import STRUCTURES, Structure, register

__all__ = [
    "QUANTISATION_8BIT",
    "STRUCTURES",
    "AdaptiveCovariance",
    "Choice",
    "Cosine",
    "Dense",
    "Diagonal",
    "Found",
    "Mixture",
    "Moments",
    "Pencil",
    "Separable",
    "Structure",
    "choose",
    "find",
    "register",
]
