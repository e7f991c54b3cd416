"""The solver about the Gaussian flow: exact where the data is Gaussian, and few evaluations where it is anisotropic."""

from __future__ import annotations

import itertools
import math
import re

import pytest
import torch
from torch import Tensor

from ansn import AdaptiveCovariance, Denoiser, NoiseModel, levels, networks
from ansn.covariance import STRUCTURES
from ansn.sampling import dpmpp_2m, gaussian_2m
from ansn.sampling.schedules import few_steps
from tests.oracles import ExactDenoiser, Mixture, gaussian, noise_model, randn, spd
from tests.tolerances import rms_ratio

D, TOP = 5, 4.0
FAMILIES = [
    {"rho": 0.0}, {"rho": 0.5}, {"rho": 1.0}, {"gamma": 0.5, "root": "symmetric"},
    *({"structure": name} for name in STRUCTURES if name != "dense"),
]  # fmt: skip


def learned(seed: int = 0, **options) -> AdaptiveCovariance:
    spread = spd(D, seed, 1e-3, 2.0)
    if options.get("structure") == "diagonal":
        spread = spread.diagonal().diag()
    x = 1.5 + randn(200, D, seed=seed) @ torch.linalg.cholesky(spread).T
    return AdaptiveCovariance(D, factor_dtype=torch.float64, eps_floor=0.0, **options).update(x).freeze()


def moments(covariance: AdaptiveCovariance, region: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, S and R, dense."""
    s, r = covariance.covariance()[region], covariance.noise_shape()[region]
    return covariance.mean[region], *((s, r) if s.ndim == 2 else (s.diag(), r.diag()))


def flown(x: Tensor, mean: Tensor, s: Tensor, r: Tensor, tau: float) -> Tensor:
    """Where the flow of ``N(m, S)`` takes x from tau to 0: ``W diag(sqrt(l / (l + tau^2))) W^-1 (x - m)``."""
    factor = torch.linalg.cholesky(r)
    half = torch.linalg.solve_triangular(factor, s, upper=False)
    l, basis = torch.linalg.eigh(torch.linalg.solve_triangular(factor, half.T, upper=False))
    w = factor @ basis
    return mean + ((x - mean) @ torch.linalg.inv(w).T * (l / (l + tau**2)).sqrt()) @ w.T


@pytest.mark.parametrize("taus", [[TOP], [TOP, 0.3], [TOP, 2.0, 1.9, 0.05, 0.01]], ids=len)
@pytest.mark.parametrize("options", FAMILIES, ids=str)
def test_gaussian_data_is_exact_with_any_number_of_levels(options, taus):
    covariance = learned(**options)
    mean, s, r = moments(covariance)
    model, x = ExactDenoiser(noise_model(covariance), gaussian(mean, s)), mean + TOP * randn(20, D, seed=3)
    assert rms_ratio(gaussian_2m(model, x, taus) - mean, flown(x, mean, s, r, TOP) - mean) < 1e-10
    if taus == [TOP]:  # where a denoising would lose the small directions
        assert rms_ratio(dpmpp_2m(model, x, taus) - mean, flown(x, mean, s, r, TOP) - mean) > 0.1


def test_regions_have_their_own_flow():
    covariance = AdaptiveCovariance(D, regions=2, factor_dtype=torch.float64, eps_floor=0.0)
    for k in range(2):
        x = k + randn(200, D, seed=k) @ torch.linalg.cholesky(spd(D, k, 1e-3, 2.0)).T
        covariance.update(x, torch.full((200,), k))
    covariance.freeze()
    both = [moments(covariance, k) for k in range(2)]
    model = ExactDenoiser(noise_model(covariance), *(gaussian(mean, s) for mean, s, _ in both))
    x, region = 2 * randn(6, D, seed=3), torch.tensor([1, 0, 0, 1, 1, 0])
    out = gaussian_2m(model, x, [2.0, 0.5], region=region)
    for row, k in enumerate(region.tolist()):
        assert rms_ratio(out[row], flown(x[row : row + 1], *both[k], 2.0)[0]) < 1e-9


@pytest.mark.parametrize("rho", [0.0, 0.5])
def test_anisotropic_data_needs_few_evaluations(rho):
    """Five modes of condition number 1000, and so the whole: with four evaluations nearer to the flow's end than 2M is
    with eight."""
    within = spd(D, 4, 1e-3, 1.0)
    target = Mixture(1.2 * randn(5, D, seed=2) @ torch.linalg.cholesky(within).T, within.expand(5, D, D))
    covariance = AdaptiveCovariance(D, rho=rho, factor_dtype=torch.float64, eps_floor=0.0)
    covariance.update(target.sample(4000)).freeze()
    model = ExactDenoiser(noise_model(covariance), target)
    start = model.prior(300, TOP, seed=1).double()
    end = dpmpp_2m(model, start, few_steps(TOP, 1e-3, 400))
    white = torch.linalg.cholesky(torch.linalg.inv(moments(covariance)[1]))

    def off(sampler, n: int) -> float:
        x = sampler(model, start, few_steps(TOP, 0.01, n))
        return rms_ratio((x - end.mean(0)) @ white, (end - end.mean(0)) @ white)

    assert off(gaussian_2m, 4) < off(dpmpp_2m, 8)
    assert off(gaussian_2m, 8) < off(gaussian_2m, 4)
    assert off(gaussian_2m, 8) < 0.3 * off(dpmpp_2m, 8)


def test_the_covariance_need_not_track_its_spectrum_and_is_left_as_it_was():
    covariance = learned()
    network = networks.MLP((D,), 8, 1).double()
    model = Denoiser(network, noise_model(covariance), skip="scalar")
    before, x = set(model.state_dict()), TOP * randn(4, D)
    bare = gaussian_2m(model, x)
    assert set(model.state_dict()) == before
    covariance.track()
    assert rms_ratio(gaussian_2m(model, x), bare) < 1e-12


def test_a_direction_without_variance_stays_at_the_mean():
    x = torch.cat((randn(200, 2), torch.full((200, 1), 3.0, dtype=torch.float64)), 1)
    covariance = AdaptiveCovariance(3, rho=0.0, factor_dtype=torch.float64, eps_floor=0.0).update(x).freeze()
    mean, s, _ = moments(covariance)
    model = ExactDenoiser(NoiseModel(covariance, levels.karras(TOP, 0.01)), gaussian(mean, s + 1e-18 * torch.eye(3)))
    out = gaussian_2m(model, mean + TOP * randn(10, 3, seed=2))
    assert float((out[:, 2] - 3.0).abs().max()) < 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_output_has_the_input_s_dtype_and_shape(dtype):
    covariance = AdaptiveCovariance((1, 2, 3), factor_dtype=dtype).update(randn(50, 1, 2, 3))
    model = Denoiser(networks.MLP((1, 2, 3), 8, 1).to(dtype), noise_model(covariance))
    out = gaussian_2m(model, randn(4, 1, 2, 3, dtype=dtype))
    assert (out.dtype, out.shape) == (dtype, (4, 1, 2, 3))


def test_it_has_order_2_in_every_direction_down_to_no_noise():
    """Levels even in ``asinh(tau / sqrt(l))`` of a middling direction, the others' steps uneven; the error at the end,
    tau = 0, falls by 4."""
    covariance = learned(rho=0.5)
    mean, s, _ = moments(covariance)
    target = Mixture(torch.stack((mean - 0.3, mean + 0.3)), torch.stack((0.8 * s, 1.1 * s)))
    model, x = ExactDenoiser(noise_model(covariance), target), mean + TOP * randn(20, D, seed=3)

    def end(n: int) -> Tensor:
        at = torch.linspace(math.asinh(TOP / 0.2), 0.0, n + 1, dtype=torch.float64)[:-1]
        return gaussian_2m(model, x, 0.2 * torch.sinh(at))

    exact = end(1600)
    errors = [rms_ratio(end(n), exact) for n in (50, 100, 200)]
    for coarse, fine in itertools.pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(2.0, abs=0.25), errors


def test_float32_is_close_to_float64():
    wide, x = learned(), TOP * randn(20, D, seed=3)
    narrow = AdaptiveCovariance(D, eps_floor=0.0)
    narrow.load_state_dict(wide.state_dict())
    torch.manual_seed(0)
    network = networks.MLP((D,), 8, 1).double()
    torch.nn.init.normal_(network.output.weight)
    taus = few_steps(TOP, 0.01, 8)
    exact = gaussian_2m(Denoiser(network, noise_model(wide)), x, taus)
    out = gaussian_2m(Denoiser(network.float(), noise_model(narrow)), x.float(), taus)
    assert rms_ratio(out, exact) < 1e-5


def test_it_may_end_with_the_denoiser():
    model, told = Denoiser(networks.MLP((D,), 8, 1).double(), noise_model(learned())), []
    out = gaussian_2m(model, TOP * randn(4, D), denoise=True, callback=told.append)
    assert torch.equal(out, told[-1]["denoised"])


@pytest.mark.parametrize("structure", STRUCTURES)
def test_wrong_arguments_are_named(structure):
    covariance = AdaptiveCovariance(D, regions=3, structure=structure)
    model = Denoiser(networks.MLP((D,), 8, 1), noise_model(covariance))
    for x, region, message in (
        (randn(4, D), None, "region: got None, expected an int64 tensor [4]"),
        (randn(4, 3), None, "x: got shape [4, 3], expected [B, 5]"),
        (randn(4, D), torch.zeros(3, dtype=torch.int64), "region: got int64 tensor of shape [3]"),
    ):
        with pytest.raises(ValueError, match="^" + re.escape(message)):
            gaussian_2m(model, x, region=region)
