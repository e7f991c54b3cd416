"""Likelihood: log-density by the probability flow, and bits/dim of a data set."""

from ansn.likelihood.bits import BitsPerDim, bits_per_dim
from ansn.likelihood.flow import LogLikelihood, log_likelihood

__all__ = ["BitsPerDim", "LogLikelihood", "bits_per_dim", "log_likelihood"]
