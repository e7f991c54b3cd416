"""Likelihood: log-density by the probability flow, bits/dim of a data set, scores of its rows."""

from ansn.likelihood.bits import BitsPerDim, bits_per_dim
from ansn.likelihood.flow import LogLikelihood, log_likelihood
from ansn.likelihood.rows import RowScores, score_rows

__all__ = ["BitsPerDim", "LogLikelihood", "RowScores", "bits_per_dim", "log_likelihood", "score_rows"]
