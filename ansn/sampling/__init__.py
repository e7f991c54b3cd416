"""Samplers: short functions over a denoiser, and :func:`sample`, which starts, batches and collects them."""

from ansn.sampling import schedules
from ansn.sampling.annealed_langevin import algorithm_1, annealed_langevin
from ansn.sampling.common import Callback, NoiseSampler, colored_noise_sampler
from ansn.sampling.driver import METHODS, Draw, Method, sample
from ansn.sampling.gaussian_flow import gaussian_2m
from ansn.sampling.guidance import Guided
from ansn.sampling.impute import IMPUTATIONS, impute
from ansn.sampling.inverse import Posterior, Replacement, mmps, pigdm
from ansn.sampling.multistep import dpmpp_2m, exponential_ab
from ansn.sampling.ode import euler, heun
from ansn.sampling.operators import Blur, Downsample, Linear, Mask, Operator
from ansn.sampling.predictor_corrector import predictor_corrector
from ansn.sampling.stochastic import dpmpp_2m_sde, heun_churn

__all__ = [
    "IMPUTATIONS",
    "METHODS",
    "Blur",
    "Callback",
    "Downsample",
    "Draw",
    "Guided",
    "Linear",
    "Mask",
    "Method",
    "NoiseSampler",
    "Operator",
    "Posterior",
    "Replacement",
    "algorithm_1",
    "annealed_langevin",
    "colored_noise_sampler",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "euler",
    "exponential_ab",
    "gaussian_2m",
    "heun",
    "heun_churn",
    "impute",
    "mmps",
    "pigdm",
    "predictor_corrector",
    "sample",
    "schedules",
]
