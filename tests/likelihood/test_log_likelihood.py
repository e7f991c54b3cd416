"""Log-likelihood by the flow: closed forms, order of the solvers, estimates of the trace, and that it is a density."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

import ansn
from ansn import AdaptiveCovariance, Denoiser, levels, networks
from ansn.covariance import STRUCTURES
from tests.oracles import (
    ExactDenoiser,
    Mixture,
    beside,
    five_sigma,
    fixed_covariance,
    gaussian,
    noise_model,
    randn,
    spd,
)

D = 6
TAU = (10.0, 0.01)


def covariance(r: Tensor, target: Mixture, known: bool = True, **options) -> AdaptiveCovariance:
    """Noise of shape r; mean and covariance of the target, or with ``known=False`` r for the latter."""
    return fixed_covariance(
        r, s=target.covariance() if known else None, center=target.weights @ target.means, **options
    )


def exact(target: Mixture, r: Tensor, known: bool = True, prediction: str = "denoiser", tau=TAU, **options):
    return ExactDenoiser(noise_model(covariance(r, target, known, **options), tau), target, prediction=prediction)


def truth(target: Mixture, r: Tensor, x: Tensor, tau: float = TAU[-1]) -> Tensor:
    return target.log_density(x, (tau**2 * r).expand(len(x), -1, -1))


def error(model: Denoiser, target: Mixture, r: Tensor, x: Tensor, **options) -> float:
    """Largest, in nats a dimension, with an exact trace."""
    found = ansn.log_likelihood(model, x, **{"trace": "exact"} | options).log_density
    return float((found - truth(target, r, x)).abs().max()) / x.shape[1]


def mixture(dim: int = D, seed: int = 0) -> Mixture:
    parts = torch.stack([spd(dim, seed + k, 0.01, 0.2) for k in range(3)])
    return Mixture(randn(3, dim, seed=seed), parts, torch.tensor([0.5, 0.3, 0.2]))


# -- closed forms

EIGENVALUES = {"isotropic": (0.5, 0.5), "condition 30": (0.1, 3.0), "condition 1e4": (1e-3, 10.0)}


@pytest.mark.parametrize("solver", ["rk4", "heun", "rk45"])
@pytest.mark.parametrize("spread", list(EIGENVALUES))
def test_a_gaussian_is_exact_where_its_covariance_is_known(spread: str, solver: str):
    """Nothing moves in the frame, so the only error is rounding: 1e-9 is a hundred thousand roundings of about 50."""
    s = spd(D, 1, *EIGENVALUES[spread])
    target, r = gaussian(randn(D), s), beside(s, 2, 0.1, 1.0)
    x = target.sample(8)
    for prediction in ("denoiser", "whitened"):
        assert error(exact(target, r, prediction=prediction), target, r, x, solver=solver, steps=2) < 1e-9


@pytest.mark.parametrize("spread", list(EIGENVALUES))
@pytest.mark.parametrize("anisotropy", [0.0, 0.5, 1.0])
def test_a_gaussian_whose_covariance_is_taken_for_the_noise_s(spread: str, anisotropy: float):
    """The start is then N(m, (1 + tau^2) R), not the perturbed data. At tau_1 = 50 its log-density is off by less than
    ``sum_j (l_j - 1) (w_j^2 - 1) / (2 tau^2)``, l the data's variances in units of R: 0.002 a dimension here."""
    s = spd(D, 1, *EIGENVALUES[spread])
    r = anisotropy * s + (1 - anisotropy) * s.diagonal().mean() * torch.eye(D)
    target = gaussian(randn(D), s)
    model = exact(target, r, known=False, tau=(50.0, 0.01))
    assert error(model, target, r, target.sample(8), steps=32) < 0.01


@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_gaussian_of_any_structure(structure: str):
    """Exact, and within the same bound where its covariance is taken for the noise's."""
    shape = AdaptiveCovariance((2, 3), 1, structure, rho=0.3, eps_floor=0.0, factor_dtype=torch.float64)
    shape.update(randn(100, D) @ torch.linalg.cholesky(spd(D, 1, 1e-2, 10.0)).T).freeze()
    pencil, r = shape.track().pencil, shape.noise_shape()
    target = gaussian(shape.center[0], pencil.matrix(pencil.variances())[0])
    model, x = ExactDenoiser(noise_model(shape, (50.0, 0.01)), target), target.sample(8)
    exact = truth(target, r[0] if r.ndim == 3 else r[0].diag(), x)

    def off(steps: int) -> float:
        found = ansn.log_likelihood(model, x.reshape(8, 2, 3), trace="exact", steps=steps).log_density
        return float((found - exact).abs().max()) / D

    assert off(1) < 1e-9
    pencil.l.fill_(1.0)
    assert 1e-6 < off(32) < 0.01


@pytest.mark.parametrize(("dim", "anisotropy"), [(2, 0.0), (2, 0.5), (2, 1.0), (12, 0.5)])
def test_a_mixture_within_a_hundredth_of_a_nat_a_dimension(dim: int, anisotropy: float):
    target = mixture(dim)
    s = target.covariance()
    r = anisotropy * s + (1 - anisotropy) * s.diagonal().mean() * torch.eye(dim)
    x = target.sample(12)
    assert error(exact(target, r), target, r, x, steps=24) < 0.01
    assert error(exact(target, r, root="symmetric", prediction="whitened"), target, r, x[:2], steps=24) < 0.01


# -- regions


def region_models() -> tuple[ExactDenoiser, list[Mixture], Tensor]:
    targets = [gaussian(3 * randn(2, seed=k), spd(2, 10 + k, 0.05, 1.0)) for k in range(3)]
    shape = AdaptiveCovariance(2, 3, rho=0.5, eps_floor=0.0, dtype=torch.float64, factor_dtype=torch.float64)
    region = torch.tensor([0] * 500 + [1] * 300 + [2] * 200)
    x = torch.cat([t.sample(n, k) for k, (t, n) in enumerate(zip(targets, (500, 300, 200), strict=True))])
    shape.update(x, region).freeze()
    return ExactDenoiser(noise_model(shape, (50.0, 0.01)), *targets), targets, shape.noise_shape()


def test_regions_known_and_unknown():
    """``p(x | k)`` where the region is given, ``sum_k w_k p_k`` where not: the data's proportions are 5 : 3 : 2."""
    model, targets, r = region_models()
    region = torch.tensor([2, 0, 1, 1, 2, 0])
    x = torch.stack([targets[k].sample(1, i)[0] for i, k in enumerate(region.tolist())])
    each = torch.stack([truth(t, r[k], x) for k, t in enumerate(targets)])
    known = ansn.log_likelihood(model, x, region=region, trace="exact", steps=12).log_density
    assert (known - each[region, torch.arange(6)]).abs().max() / 2 < 0.01
    mixed = ansn.log_likelihood(model, x, trace="exact", steps=12)
    weights = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log()
    assert (mixed.log_density - (each + weights[:, None]).logsumexp(0)).abs().max() / 2 < 0.01
    assert mixed.evaluations == 3 * 4 * 12


def test_regions_that_are_the_network_s_classes():
    """Label or region tells both; neither gives the mixture of the class-conditional densities."""
    torch.manual_seed(0)
    shape = AdaptiveCovariance(2, 2, rho=0.5, eps_floor=0.0)
    shape.update(randn(40, 2, dtype=torch.float32), torch.arange(40) % 2)
    network = networks.MLP((2,), 16, 1, num_classes=2)
    torch.nn.init.normal_(network.output.weight, std=0.1)
    model = Denoiser(network, noise_model(shape, TAU))
    x, y = randn(5, 2, dtype=torch.float32), torch.tensor([0, 1, 1, 0, 1])
    told = [ansn.log_likelihood(model, x, trace="exact", **known).log_density for known in ({"y": y}, {"region": y})]
    assert torch.equal(*told)
    other = ansn.log_likelihood(model, x, y=1 - y, trace="exact").log_density
    mixed = ansn.log_likelihood(model, x, trace="exact").log_density
    assert torch.allclose(mixed, torch.stack((told[0], other)).logsumexp(0) - math.log(2), atol=1e-6)
    assert not torch.allclose(told[0], other, atol=0.01)


# -- the solvers


@pytest.mark.parametrize(("solver", "order"), [("heun", 2), ("rk4", 4)])
def test_order_of_convergence(solver: str, order: int):
    """Halving the steps divides the error by ``2^order``. A mixture, levels even in ln tau, against 128 steps of RK4:
    an error below a tenth of what is measured, and a slope that is off by what the next order adds."""
    target = mixture(2)
    r = target.covariance()
    model, x = exact(target, r, tau=(3.0, 0.1)), target.sample(8)

    def at(steps: int, solver: str) -> Tensor:
        taus = torch.logspace(math.log10(3.0), -1, steps + 1, dtype=torch.float64)
        return ansn.log_likelihood(model, x, taus=taus, solver=solver, trace="exact").log_density

    best = at(128, "rk4")
    coarse, fine = (float((at(steps, solver) - best).abs().mean()) for steps in (32, 64))
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.35)


def test_adaptive_steps_keep_their_tolerance():
    """A step's tolerance is of the batch's RMS; the whole way adds up some ten of them."""
    target = mixture(2)
    r = target.covariance()
    model, x = exact(target, r), target.sample(6)
    best = ansn.log_likelihood(model, x, trace="exact", steps=96).log_density
    found = [ansn.log_likelihood(model, x, trace="exact", solver="rk45", rtol=rtol) for rtol in (1e-3, 1e-5)]
    off = [float((f.log_density - best).abs().max()) for f in found]
    assert off[1] < 1e-2 < 50 * off[0]
    assert off[1] < off[0] / 5
    assert found[0].evaluations < found[1].evaluations


# -- the trace


@pytest.mark.parametrize("basis", ["spectral", "noise", "data"])
@pytest.mark.parametrize("probe", ["rademacher", "gaussian"])
@pytest.mark.parametrize("structure", ["cholesky", "symmetric"])
def test_hutchinson_is_unbiased(probe: str, basis: str, structure: str):
    """200 copies of a row have 400 independent probes: their mean is the exact trace's within five standard errors."""
    target = mixture(4)
    r = beside(target.covariance(), 7)
    model = exact(target, r, root=structure)
    x = target.sample(1).expand(200, -1)
    options = {"steps": 4}
    right = ansn.log_likelihood(model, x[:1], trace="exact", **options).log_density
    found = ansn.log_likelihood(model, x, trace="hutchinson", probe=probe, basis=basis, **options)
    assert found.estimates.shape == (2, 200)
    assert found.estimates.std() > 0.01
    assert five_sigma(found.estimates.flatten(), right)
    # What each row says of its own error is right on average: the ratio of 200 variances of two, to four deviations.
    ratio = found.standard_error.square().mean() / found.log_density.var()
    assert 0.5 < ratio < 2


def test_spectral_rademacher_probes_have_no_variance_on_a_gaussian():
    s = spd(D, 1, 1e-3, 10.0)
    target, r = gaussian(randn(D), s), beside(s, 2)
    x = target.sample(4)
    options = {"trace": "hutchinson", "probes": 2}
    found = ansn.log_likelihood(exact(target, r), x, **options)
    assert found.standard_error.max() < 1e-9
    assert ansn.log_likelihood(exact(target, r), x, **options, basis="data").standard_error.min() > 0.01


def test_one_probe_has_no_standard_error_and_an_exact_trace_no_error():
    target = mixture(2)
    x, r = target.sample(3), beside(target.covariance())
    assert ansn.log_likelihood(exact(target, r), x, trace="hutchinson", probes=1).standard_error.isnan().all()
    assert (ansn.log_likelihood(exact(target, r), x, trace="exact").standard_error == 0).all()


@pytest.mark.parametrize(("dim", "probes", "trace"), [(16, 2, "exact"), (17, 2, "hutchinson"), (9, 1, "hutchinson")])
def test_the_trace_is_chosen_by_its_cost(dim: int, probes: int, trace: str):
    """Exact up to eight gradients a probe: the same as where it is asked for, and what was used is told."""
    target = mixture(dim)
    model, x = exact(target, torch.eye(dim, dtype=torch.float64), False), target.sample(3)
    found = ansn.log_likelihood(model, x, steps=2, probes=probes, seed=3)
    asked = ansn.log_likelihood(model, x, steps=2, probes=probes, seed=3, trace=trace)
    assert (found.trace, found.gradients) == (trace, asked.gradients)
    assert torch.equal(found.log_density, asked.log_density)
    if probes > 1:
        assert bool((found.standard_error == 0).all()) == (trace == "exact")


# -- a density, whatever the network


def trained() -> Denoiser:
    """A small network after a few steps on a mixture in the plane: wrong everywhere, float64."""
    torch.manual_seed(0)
    target = mixture(2)
    shape = AdaptiveCovariance(2, rho=0.5, eps_floor=0.0, dtype=torch.float64, factor_dtype=torch.float64)
    model = Denoiser(networks.MLP((2,), 32, 1).double(), ansn.NoiseModel(shape, levels.karras(8.0, 0.05)))
    optimizer = torch.optim.Adam(model.network.parameters(), 3e-3)
    for step in range(80):
        x = target.sample(128, step)
        model.noise.update(x)
        perturbed, level = model.noise.perturb(x, step=step)
        loss = ansn.dsm_loss(model, x, perturbed, level)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


@pytest.fixture(scope="module")
def network() -> Denoiser:
    with torch.random.fork_rng():
        return trained()


SIDE, SPACING = torch.arange(-5.0, 5.0, 0.09, dtype=torch.float64), 0.09


@pytest.fixture(scope="module")
def density(network: Denoiser) -> Tensor:
    """``log p`` on the grid, ``[n^2]``."""
    torch.set_num_threads(1)
    grid = torch.cartesian_prod(SIDE, SIDE)
    return ansn.log_likelihood(network, grid, trace="exact", steps=10, batch_size=len(grid)).log_density


def test_the_density_of_a_trained_network_integrates_to_one(density: Tensor):
    """A sum over a grid about as fine as the narrowest feature (deviation 0.1), out to where nothing is left: for such
    functions it converges like ``exp(-2 (pi deviation / spacing)^2)``. What is left is the solver's error."""
    assert float(density.exp().sum() * SPACING**2) == pytest.approx(1.0, abs=0.01)


def test_it_is_the_density_that_the_sampler_draws_from(network: Denoiser, density: Tensor):
    """The mean log-density of what a fine Heun flow has at its last level is minus the entropy, ``int p ln p``."""
    taus = torch.tensor(levels.karras(8.0, 0.05, n=33).tau, dtype=torch.float64)
    drawn: list[Tensor] = []
    start = network.noise.prior(500, 8.0, seed=3)
    ansn.sampling.heun(network, start, taus, callback=lambda told: drawn.append(told["x"]))
    found = ansn.log_likelihood(network, drawn[-1], trace="exact", steps=10, batch_size=500).log_density
    assert five_sigma(found, (density.exp() * density).sum() * SPACING**2)


# -- the contract


@pytest.mark.slow
def test_rows_depend_on_seed_and_number_alone(network: Denoiser):
    x = randn(10, 2)
    options = {"trace": "hutchinson", "row": 7}
    whole = ansn.log_likelihood(network, x, seed=4, **options)
    for size in (1, 3):
        parts = ansn.log_likelihood(network, x, seed=4, **options, batch_size=size)
        assert torch.allclose(parts.estimates, whole.estimates, rtol=0, atol=1e-9)
    tail = ansn.log_likelihood(network, x[4:], seed=4, trace="hutchinson", row=11)
    assert torch.allclose(tail.estimates, whole.estimates[:, 4:], rtol=0, atol=1e-9)
    assert torch.equal(ansn.log_likelihood(network, x, seed=4, **options).estimates, whole.estimates)
    assert not torch.allclose(ansn.log_likelihood(network, x, seed=5, **options).estimates, whole.estimates, atol=1e-3)


def test_float32_is_close_to_float64(network: Denoiser):
    """A float32 model of the same weights: a hundredth of the promise of 0.01 nats a dimension."""
    wide = ansn.log_likelihood(network, randn(8, 2), trace="exact").log_density
    shape = AdaptiveCovariance(2, rho=0.5, eps_floor=0.0, dtype=torch.float64)
    shape.load_state_dict(network.noise.covariance.state_dict())
    narrow = Denoiser(networks.MLP((2,), 32, 1), ansn.NoiseModel(shape, network.noise.levels))
    narrow.network.load_state_dict(network.network.state_dict())
    found = ansn.log_likelihood(narrow, randn(8, 2, dtype=torch.float32), trace="exact")
    assert found.log_density.dtype == torch.float64
    assert (found.log_density - wide).abs().max() / 2 < 1e-4


def test_the_model_is_left_as_it_was(network: Denoiser):
    network.train()
    frozen = next(network.network.parameters())
    frozen.requires_grad_(False)
    before = {n: p.requires_grad for n, p in network.named_parameters()}
    ansn.log_likelihood(network, randn(2, 2), steps=1)
    with pytest.raises(ValueError):
        ansn.log_likelihood(network, randn(2, 2) * 1e300, steps=1)
    assert network.training
    assert {n: p.requires_grad for n, p in network.named_parameters()} == before
    assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())
    frozen.requires_grad_()


def test_it_runs_in_eval_mode():
    torch.manual_seed(0)
    model = Denoiser(networks.MLP((2,), 16, 1, dropout=0.5), noise_model(AdaptiveCovariance(2), TAU)).train()
    torch.nn.init.normal_(model.network.output.weight)
    torch.nn.init.normal_(model.network.layers[0].linear2.weight)
    x = randn(3, 2, dtype=torch.float32)
    first, second = (ansn.log_likelihood(model, x, steps=2).log_density for _ in range(2))
    assert torch.equal(first, second)
    with torch.inference_mode():
        assert torch.equal(ansn.log_likelihood(model, x, steps=2).log_density, first)


def test_evaluations_are_the_network_s(network: Denoiser):
    calls: list[int] = []
    handle = network.network.register_forward_hook(lambda *_: calls.append(1))
    try:
        for options, expected in (({"solver": "rk4"}, 12), ({"solver": "heun"}, 6), ({"trace": "exact"}, 12)):
            calls.clear()
            found = ansn.log_likelihood(network, randn(3, 2), steps=3, probes=5, **{"trace": "hutchinson"} | options)
            assert found.evaluations == len(calls) == expected
            assert found.gradients == expected * (2 if "trace" in options else 5)
    finally:
        handle.remove()


WRONG = [
    ({"x": torch.zeros(3, 5)}, ValueError, r"x: got shape \[3, 5\], expected \[B, 2\]"),
    ({"x": torch.zeros(0, 2)}, ValueError, "x: got shape"),
    ({"x": torch.zeros(3, 2, dtype=torch.int64)}, TypeError, "x: got torch.int64, expected float32 or float64"),
    ({"x": torch.tensor([[0.0, 1.0], [math.nan, 0.0]])}, ValueError, "x: got a value that is not finite in row 1"),
    ({"solver": "euler"}, ValueError, "solver: got 'euler', expected one of heun, rk4, rk45"),
    ({"trace": "none"}, ValueError, "trace: got 'none', expected one of auto, hutchinson, exact"),
    ({"probe": "sphere"}, ValueError, "probe: got 'sphere'"),
    ({"basis": "pixel"}, ValueError, "basis: got 'pixel'"),
    ({"steps": 0}, ValueError, "steps: got 0, expected at least 1"),
    ({"probes": 0}, ValueError, "probes: got 0, expected at least 1"),
    ({"batch_size": 0}, ValueError, "batch_size: got 0, expected at least 1"),
    ({"steps": 2.0}, TypeError, "steps: got 2.0, expected a whole number"),
    ({"probes": 2.0}, TypeError, "probes: got 2.0, expected a whole number"),
    ({"batch_size": 2.0}, TypeError, "batch_size: got 2.0, expected a whole number"),
    ({"rtol": 0.0}, ValueError, "rtol: got 0.0, expected > 0"),
    ({"taus": torch.tensor([1.0])}, ValueError, r"taus: got shape \[1\], expected \[N\] of at least two"),
    ({"taus": torch.tensor([1.0, 2.0])}, ValueError, "tau: got levels that do not decrease strictly"),
    ({"y": torch.zeros(3, dtype=torch.int64)}, ValueError, "y: got labels for a network without classes"),
    ({"region": torch.zeros(2, dtype=torch.int64)}, ValueError, r"region: got torch.int64 of shape \[2\], expected"),
    ({"region": torch.ones(3, dtype=torch.int64)}, ValueError, r"region: got values 1..1, expected 0..0"),
]


@pytest.mark.parametrize(("options", "kind", "message"), WRONG)
def test_wrong_arguments_are_named(network: Denoiser, options: dict, kind: type[Exception], message: str):
    x = options.get("x", randn(3, 2))
    with pytest.raises(kind, match=message) as told:
        ansn.log_likelihood(network, x, **{k: v for k, v in options.items() if k != "x"})
    assert "\n" not in str(told.value)


def test_numbers_of_other_libraries(network: Denoiser):
    x = randn(3, 2)
    for trace in ("exact", "hutchinson"):
        plain = ansn.log_likelihood(network, x, trace=trace, steps=2, probes=3, batch_size=2, seed=1, row=5)
        numbers = {"steps": np.int32(2), "probes": np.int64(3), "batch_size": torch.tensor(2), "seed": np.int64(1)}
        found = ansn.log_likelihood(network, x, trace=trace, **numbers, row=np.int64(5))
        assert torch.equal(found.estimates, plain.estimates)
        assert (type(found.gradients), found.gradients) == (int, plain.gradients)


def test_a_class_that_the_network_never_learned_is_named():
    model = Denoiser(networks.MLP((2,), 8, 1, num_classes=3), noise_model(AdaptiveCovariance(2), TAU))
    x = torch.zeros(2, 2)
    for label in (3, -1):
        with pytest.raises(ValueError, match=rf"y: got {label}, expected labels 0\.\.2"):
            ansn.log_likelihood(model, x, y=torch.full((2,), label), steps=1)
    model.label_dropout = 0.1  # "no class" was learned then
    assert ansn.log_likelihood(model, x, y=torch.full((2,), 3), steps=1).log_density.isfinite().all()


def test_a_ladder_of_one_level_has_no_flow():
    model = Denoiser(networks.MLP((2,), 8, 1), noise_model(AdaptiveCovariance(2), (1.0,)))
    with pytest.raises(ValueError, match="taus: got None for a model of one level"):
        ansn.log_likelihood(model, torch.zeros(1, 2))
