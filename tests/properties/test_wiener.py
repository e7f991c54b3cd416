"""The Wiener skip against the best denoiser of Gaussian data: how many points it needs, what rounding does to it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ansn import AdaptiveCovariance, Denoiser, networks
from ansn.covariance import STRUCTURES
from tests.oracles import noise_model, randn
from tests.tolerances import rms_ratio

D = 96
TAUS = (0.01, 0.03, 0.1, 0.3, 1.0)
SPECTRA = {
    "k^-2": torch.arange(1.0, D + 1.0, dtype=torch.float64) ** -2,
    "flat to 1e-3": torch.logspace(0, -3, D, dtype=torch.float64),
}


def excess(filter_: Tensor, s: Tensor, r: Tensor, tau: float) -> float:
    """``E||A x~ - x||^2`` over that of the best A, ``S (S + tau^2 R)^-1``, for data ``N(0, S)``."""

    def error(a: Tensor) -> Tensor:
        off = a - torch.eye(len(s), dtype=s.dtype)
        return torch.trace(off @ s @ off.T) + tau**2 * torch.trace(a @ r @ a.T)

    return float(error(filter_) / error(s @ torch.linalg.inv(s + tau**2 * r)))


def learned(points: int, spectrum: Tensor, rho: float) -> AdaptiveCovariance:
    x = randn(points, D) * spectrum.sqrt()
    covariance = AdaptiveCovariance(D, rho=rho, eps_floor=0.0, factor_dtype=torch.float64)
    return covariance.update(x).freeze().track()


CASES = {
    "dense, k^-2": ("dense", (D,), SPECTRA["k^-2"]),
    "dense, flat to 1e-3": ("dense", (D,), SPECTRA["flat to 1e-3"]),
    "dense, one column": ("dense", (1,), torch.ones(1, dtype=torch.float64)),
    "dense, four columns": ("dense", (4,), torch.logspace(0, -2, 4, dtype=torch.float64)),
    "diagonal": ("diagonal", (D,), SPECTRA["flat to 1e-3"]),
    "separable, images": ("separable", (1, 12, 12), None),
    "separable, colours": ("separable", (3, 8, 8), None),
    "separable, one long axis": ("separable", (2, 40), None),
    "cosine, colours": ("cosine", (3, 6, 8), None),
    "cosine, twelve channels": ("cosine", (12, 12), None),
}


def truth(name: str, shape: tuple[int, ...], spectrum: Tensor | None, seed: int) -> Tensor:
    """A root of S of this structure's own kind: any basis that it can have, uneven variances that fall by 1e3."""
    kind, made = STRUCTURES[name](shape), torch.Generator().manual_seed(seed)
    dim = kind.dim
    basis = {
        part: torch.linalg.qr(torch.randn(size, generator=made, dtype=torch.float64))[0]
        for part, size in kind.parts(1).items()
    }
    if spectrum is None:
        fall = torch.logspace(0, -3, dim, dtype=torch.float64)
        if name == "separable":  # an axis's eigenbasis is found where its variances differ
            fall = torch.ones(1, dtype=torch.float64)
            for n in shape:
                fall = torch.kron(fall, torch.arange(1.0, n + 1.0, dtype=torch.float64) ** -1.5)
        spectrum = fall * torch.exp(0.7 * torch.randn(dim, generator=made, dtype=torch.float64))
    eye = torch.eye(dim, dtype=torch.float64)
    return kind.turn(eye, basis, None, False).T * spectrum.sqrt()


@pytest.mark.parametrize("rho", [0.0, 0.5])
@pytest.mark.parametrize(("name", "shape", "spectrum"), CASES.values(), ids=CASES.keys())
def test_from_its_number_of_points_on_it_is_near_the_best(name, shape, spectrum, rho):
    """In the mean over data sets, of which few columns need many."""
    kind = STRUCTURES[name](shape)
    eye, found = torch.eye(kind.dim, dtype=torch.float64), []
    for seed in range(3 if kind.dim > 8 else 60):
        root = truth(name, shape, spectrum, seed)
        x = randn(kind.points(), kind.dim, seed=seed) @ root.T
        covariance = AdaptiveCovariance(shape, 1, name, rho=rho, eps_floor=0.0, factor_dtype=torch.float64)
        covariance.update(x).freeze()
        assert bool(covariance.enough().all())
        r = covariance.color(covariance.color(eye, transpose=True)).T
        found.append([excess(covariance.pencil.filter(eye, tau).T, root @ root.T, r, tau) for tau in TAUS])
    assert float(torch.tensor(found).mean(0).max()) < 1.2


@pytest.mark.parametrize("structure", STRUCTURES)
def test_with_a_point_less_everyone_takes_r_for_s(structure):
    """Filter, start, posterior, likelihood's coordinates: one decision, in the pencil."""
    shape = (2, 4, 4)
    covariance = AdaptiveCovariance(shape, 1, structure, rho=0.5, factor_dtype=torch.float64)
    points = covariance.structure.points()
    covariance.update(randn(points - 1, 32) * torch.linspace(0.1, 1.0, 32)).refresh()
    assert bool((covariance.pencil.l == 1).all())
    covariance.update(randn(1, 32)).refresh()
    assert not bool((covariance.pencil.l == 1).any())


@pytest.mark.parametrize("rho", [0.0, 0.5])
def test_with_fewer_points_it_is_the_scalar_skip_which_then_is_better(rho: float):
    spectrum = SPECTRA["flat to 1e-3"]
    covariance = learned(D, spectrum, rho)
    r, s, eye = covariance.noise_shape()[0], torch.diag(spectrum), torch.eye(D, dtype=torch.float64)
    sample = covariance.covariance()[0]
    for tau in TAUS:
        taken = covariance.pencil.filter(eye, tau).T
        assert rms_ratio(taken, eye / (1 + tau**2)) < 1e-12
        if tau < 0.1:
            of_sample = sample @ torch.linalg.inv(sample + tau**2 * r)
            assert excess(of_sample, s, r, tau) > 2 * excess(taken, s, r, tau)


def test_each_region_has_its_own_number_of_points():
    covariance = AdaptiveCovariance(4, regions=2, factor_dtype=torch.float64).track()
    region = torch.tensor([0] * 50 + [1] * 7)
    covariance.update(randn(57, 4) * torch.tensor([1.0, 0.5, 0.2, 0.1]), region).refresh()
    scalar = (covariance.pencil.l == 1).all(1)
    assert scalar.tolist() == [False, True]


@pytest.mark.parametrize("tau", [0.002, 0.01, 0.1, 1.0, 17.0])
@pytest.mark.parametrize("rho", [0.0, 0.5, 1.0])
def test_float32_keeps_the_whitened_prediction(tau: float, rho: float):
    """``f = (tau L)^-1 (D - x~)`` has few digits of x~ left at small tau; the filter costs no more of them than the
    scalar skip does, but for a factor."""
    x = randn(400, D, dtype=torch.float32) * SPECTRA["flat to 1e-3"].sqrt().float()

    def off(skip: str) -> float:
        found = []
        for dtype in (torch.float32, torch.float64):
            shape = AdaptiveCovariance(D, rho=rho, eps_floor=0.0, factor_dtype=dtype).update(x.double()).freeze()
            model = Denoiser(networks.MLP((D,), 8, 1).to(dtype), noise_model(shape), skip=skip)
            perturbed, level = model.noise.perturb(x[:50], tau=tau, seed=1, step=0)
            found.append(model.f(perturbed.to(dtype), level.tau).detach())
        return rms_ratio(found[0], found[1])

    assert off("wiener") < 4 * off("scalar") + 1e-6


def test_autocast_leaves_the_filter_alone():
    covariance = AdaptiveCovariance(D).update(randn(400, D, dtype=torch.float32)).freeze().track()
    v = randn(5, D, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = covariance.pencil.filter(v, 0.5)
    assert torch.equal(inside, covariance.pencil.filter(v, 0.5))
