"""k-diffusion's own samplers on our denoiser, unchanged, with coloured noise handed in.

Skipped where it is not installed. Its package imports CLIP and more; its ``sampling.py`` is loaded alone, with
stand-ins for what no sampler here calls.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path

import pytest
import torch

from ansn.sampling import colored_noise_sampler, dpmpp_2m, dpmpp_2m_sde, euler, heun, schedules
from tests.oracles import (
    ExactDenoiser,
    covariance_within_five_sigma,
    five_sigma,
    fixed_covariance,
    gaussian,
    noise_model,
    randn,
    spd,
)
from tests.tolerances import rms_ratio

D = 4
S, R, MEAN = spd(D, 2), spd(D, 3), randn(D)


def net() -> ExactDenoiser:
    return ExactDenoiser(noise_model(fixed_covariance(R)), gaussian(MEAN, S))


def sigmas(n: int) -> torch.Tensor:
    """k-diffusion's convention: the levels, and 0."""
    return torch.cat((schedules.karras(4.0, 0.02, n), torch.zeros(1, dtype=torch.float64)))


@pytest.fixture(scope="module")
def k_sampling() -> types.ModuleType:
    spec = importlib.util.find_spec("k_diffusion")  # finds, does not import
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("k_diffusion is not installed: pip install --no-deps k-diffusion")
    stubs = {
        "torchdiffeq": {"odeint": None}, "torchsde": {}, "tqdm": {}, "tqdm.auto": {"tqdm": None, "trange": _trange},
        "k_diffusion": {"utils": None}, "k_diffusion.utils": {"append_dims": _append_dims},
    }  # fmt: skip
    before = dict(sys.modules)
    try:
        for name, content in stubs.items():
            module = types.ModuleType(name)
            vars(module).update(content)
            sys.modules[name] = module
        vars(sys.modules["k_diffusion"])["utils"] = sys.modules["k_diffusion.utils"]
        file = Path(next(iter(spec.submodule_search_locations))) / "sampling.py"
        own = importlib.util.spec_from_file_location("k_diffusion.sampling", file)
        assert own is not None
        assert own.loader is not None
        sampling = importlib.util.module_from_spec(own)
        own.loader.exec_module(sampling)
    finally:
        for name in stubs:
            sys.modules.pop(name)
            if name in before:
                sys.modules[name] = before[name]
    return sampling


def _trange(n: int, disable: bool | None = None) -> range:
    return range(n)


def _append_dims(x: torch.Tensor, dims: int) -> torch.Tensor:
    return x.reshape(x.shape + (1,) * (dims - x.ndim))


@pytest.mark.parametrize(
    ("name", "own"), [("sample_euler", euler), ("sample_heun", heun), ("sample_dpmpp_2m", dpmpp_2m)]
)
def test_its_flow_solvers_agree_with_ours(k_sampling, name, own):
    x, levels = net().noise.prior(5, 4.0), sigmas(8)
    assert rms_ratio(getattr(k_sampling, name)(net(), x, levels, disable=True), own(net(), x, levels[:-1])) < 1e-11


def test_its_sde_solver_agrees_with_ours_on_the_same_noise(k_sampling):
    model, levels = net(), sigmas(8)
    x = model.noise.prior(5, 4.0)
    for eta in (1.0, 0.5):
        noise = colored_noise_sampler(model, x, seed=3, row=10)
        theirs = k_sampling.sample_dpmpp_2m_sde(model, x, levels, disable=True, eta=eta, noise_sampler=noise)
        assert rms_ratio(theirs, dpmpp_2m_sde(model, x, levels[:-1], eta=eta, seed=3, row=10)) < 1e-11


@pytest.mark.parametrize(
    "name",
    ["sample_euler_ancestral", "sample_dpm_2_ancestral", "sample_dpmpp_2s_ancestral", "sample_dpmpp_sde",
     "sample_dpmpp_2m_sde", "sample_dpmpp_3m_sde"],
)  # fmt: skip
def test_its_stochastic_solvers_sample_the_data_with_coloured_noise(k_sampling, name):
    model, rows = net(), 4000
    x = MEAN + randn(rows, D, seed=4) @ torch.linalg.cholesky(S + 16.0 * R).T
    noise = colored_noise_sampler(model, x, seed=6)
    steps = 250 if name == "sample_euler_ancestral" else 60
    out = getattr(k_sampling, name)(model, x, sigmas(steps), disable=True, noise_sampler=noise)
    assert five_sigma(out - MEAN, 0.0)
    assert covariance_within_five_sigma(out - MEAN, S)


def test_the_noise_has_the_training_s_shape_and_is_a_function_of_its_counters():
    """Needs no k-diffusion."""
    model, x = net(), torch.zeros(4000, D, dtype=torch.float64)
    noise = colored_noise_sampler(model, x, seed=1)
    first, second = noise(1.0, 0.5), noise(torch.tensor(0.5), torch.tensor(0.2))
    assert covariance_within_five_sigma(first, R)
    assert five_sigma(first * second, 0.0)
    assert torch.equal(colored_noise_sampler(model, x[:50], seed=1, row=30)(0, 0), first[30:80])
    assert not torch.equal(colored_noise_sampler(model, x, seed=2)(0, 0), first)
