"""Ladders and the levels that training draws."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from scipy import stats

from ansn import AdaptiveCovariance, NoiseModel, levels
from tests.oracles import Mixture, fixed_covariance, randn, spd


def test_overlap_ratio_is_the_published_one():
    """math section 5: 1.36, 1.08, 1.04 for d = 64, 784, 3072."""
    assert [round(levels.overlap_ratio(d), 2) for d in (64, 784, 3072)] == [1.36, 1.08, 1.04]


@pytest.mark.parametrize("overlap", [0.1, 0.5, 0.567, 0.9])
@pytest.mark.parametrize("dim", [5, 6, 10, 64, 784, 3072, 10**6])
def test_overlap_ratio_solves_its_equation(dim, overlap):
    g = levels.overlap_ratio(dim, overlap)
    shift = math.sqrt(2 * dim) * (g - 1)
    assert g > 1
    assert stats.norm.cdf(shift + 3 * g) - stats.norm.cdf(shift - 3 * g) == pytest.approx(overlap, abs=1e-9)


# Top and number of levels, down to 0.01, of the configurations of Song and Ermon (2020), by pixels a side.
PUBLISHED = {32: (50.0, 232), 64: (90.0, 500), 96: (140.0, 788), 128: (190.0, 1086), 256: (348.0, 2311)}


@pytest.mark.parametrize(("side", "top", "n"), [(side, *ladder) for side, ladder in PUBLISHED.items()])
def test_published_ladders_have_an_overlap_of_0_567(side, top, n):
    """0.5662 to 0.5670; at 0.5 the rule makes a twentieth fewer levels, at 0.567 one more, as it rounds up."""
    dim, ratio = 3 * side**2, (top / 0.01) ** (1 / (n - 1))
    shift = math.sqrt(2 * dim) * (ratio - 1)
    overlap = stats.norm.cdf(shift + 3 * ratio) - stats.norm.cdf(shift - 3 * ratio)
    assert 0.5662 <= round(overlap, 4) <= 0.5670
    assert levels.overlap_ratio(dim, 0.567) == pytest.approx(ratio, rel=1e-4)
    assert len(levels.geometric(top, 0.01, dim=dim, overlap=0.567)) == n + 1
    assert len(levels.geometric(top, 0.01, dim=dim)) == pytest.approx(0.945 * n, abs=0.01 * n)


@pytest.mark.parametrize("dim", [1, 2, 3, 4])
def test_where_there_is_no_solution_a_fixed_ratio_serves(dim):
    assert levels.overlap_ratio(dim) == 1.5


def test_overlap_keeps_half_of_a_shell():
    """What the rule is for: half of one level's shell lies within three deviations of the next larger one's."""
    dim, n = 784, 40_000
    g = levels.overlap_ratio(dim)
    radius = np.sqrt(np.random.default_rng(0).chisquare(dim, n))
    share = np.mean(np.abs(radius - g * math.sqrt(dim)) < 3 * g / math.sqrt(2))
    assert abs(share - 0.5) < 0.02


@pytest.mark.parametrize("options", [{"n": 10}, {"ratio": 1.2}, {"dim": 784}])
def test_geometric(options):
    """Both ends exactly; one ratio, never wider than asked."""
    tau = np.array(levels.geometric(50.0, 0.01, **options).tau)
    assert tau[0] == pytest.approx(50.0, rel=1e-12)
    assert tau[-1] == pytest.approx(0.01, rel=1e-12)
    ratios = tau[:-1] / tau[1:]
    assert np.ptp(ratios) < 1e-10
    wanted = options.get("ratio", levels.overlap_ratio(784) if "dim" in options else (5000.0) ** (1 / 9))
    assert ratios[0] <= wanted * (1 + 1e-12)
    assert ratios[0] ** (len(tau) - 1) == pytest.approx(5000.0)
    if "n" not in options:
        assert 5000.0 ** (1 / (len(tau) - 2)) > wanted, "one rung fewer would do"


def test_the_ladder_of_ncsn():
    assert levels.geometric(1.0, 0.01, n=10).tau[1] == pytest.approx(0.01 ** (1 / 9))


@pytest.mark.parametrize("rho", [1.0, 3.0, 7.0])
def test_karras(rho):
    """Equation 5: even in tau^(1/rho); at rho = 1 plainly even."""
    ladder = levels.karras(8.0, 0.02, n=12, rho=rho)
    root = np.array(ladder.tau) ** (1 / rho)
    assert ladder.maximum == pytest.approx(8.0, rel=1e-12)
    assert ladder.minimum == pytest.approx(0.02, rel=1e-12)
    np.testing.assert_allclose(np.diff(root), (0.02 ** (1 / rho) - 8.0 ** (1 / rho)) / 11, rtol=1e-10)
    assert ladder.training == "lognormal"


def test_the_paper_s_single_level():
    """sqrt(s_d) = 2.4 / sqrt(d): 0.086 at d = 784."""
    ladder = levels.paper(784)
    assert len(ladder) == 1
    assert ladder.maximum == ladder.minimum == pytest.approx(2.4 / 28)


def test_tau_max_of_the_flow():
    assert levels.tau_max_flow(784) == pytest.approx(11.83, abs=0.01)
    assert levels.tau_max_flow(100, kl=0.25) == pytest.approx(100**0.25)


@pytest.mark.parametrize("structure", ["dense", "diagonal"])
def test_tau_max_of_langevin_is_about_sqrt_2d(structure):
    """On Gaussian data the squared Mahalanobis distance of two points is 2 chi^2_d, at R = S."""
    dim = 200
    x = randn(3000, dim)
    x = x @ torch.linalg.cholesky(spd(dim)).T if structure == "dense" else x * torch.linspace(0.2, 3.0, dim)
    covariance = AdaptiveCovariance(dim, structure=structure, rho=1.0, eps=0.0).update(x).freeze()
    tau = levels.tau_max_langevin(x[:400], covariance, quantile=0.99)
    assert tau == pytest.approx(math.sqrt(2 * stats.chi2.ppf(0.99, dim)), rel=0.05)
    assert tau == pytest.approx(math.sqrt(2 * dim), rel=0.2)
    assert levels.tau_max_langevin(x[:400], covariance, quantile=0.5) < tau
    image = (
        AdaptiveCovariance((2, 10, 10), structure=structure, rho=1.0, eps=0.0).update(x.reshape(-1, 2, 10, 10)).freeze()
    )
    assert levels.tau_max_langevin(x[:400].reshape(-1, 2, 10, 10), image) == pytest.approx(tau, rel=1e-5)


def kl_of_the_start(density: Mixture, r: torch.Tensor, s: torch.Tensor, tau: float) -> float:
    """By quadrature in one dimension: ``KL(p * N(0, tau^2 r) || N(m, s + tau^2 r))``."""
    noise = tau**2 * r.reshape(1, 1, 1)
    x = torch.linspace(-60.0, 60.0, 200_001, dtype=torch.float64).unsqueeze(1)
    log_p = density.log_density(x, noise.expand(len(x), 1, 1))
    log_q = stats.norm.logpdf(x.squeeze(1).numpy(), 0.0, math.sqrt(float(s + tau**2 * r)))
    return float((log_p.exp() * (log_p - torch.as_tensor(log_q))).sum() * (x[1] - x[0]))


@pytest.mark.parametrize("kl", [0.003, 1e-4])
def test_the_start_is_as_near_as_asked(kl):
    """Against the exact divergence of a skewed mixture; copies of it in d coordinates add up."""
    target = Mixture(torch.tensor([[-1.0], [3.0]]), torch.tensor([[[0.25]], [[0.09]]]), torch.tensor([0.75, 0.25]))
    variance = torch.tensor(0.75 * 1.25 + 0.25 * 9.09, dtype=torch.float64)
    for dim in (1, 8):
        x = target.sample(1500 * dim, seed=3).reshape(1500, dim)
        covariance = AdaptiveCovariance(dim, rho=0.0, factor_dtype=torch.float64).update(x).freeze()
        tau = levels.tau_start(x, covariance, kl)
        shape = covariance.noise_shape()[0, 0, 0]
        assert dim * kl_of_the_start(target, shape, variance, tau) == pytest.approx(kl, rel=0.4)


def test_the_start_of_a_gaussian_is_low_and_of_the_worst_data_under_the_bound():
    """No third or fourth cumulant; and two points, whose divergence the bound of dimension alone must cover."""
    x = randn(1000, 16)
    covariance = AdaptiveCovariance(16, rho=0.5).update(x).freeze()
    assert levels.tau_start(x, covariance, 0.01) < 2.0
    points = torch.where(randn(1000, 16, seed=4) > 0, 1.0, -1.0)
    covariance = AdaptiveCovariance(16, rho=0.5).update(points).freeze()
    assert 1.2 < levels.tau_start(points, covariance, 0.01) < levels.tau_max_flow(16, 0.01)


def test_the_start_does_not_depend_on_units_or_order_and_knows_regions():
    x = randn(600, 4) ** 2
    one = AdaptiveCovariance(4, rho=0.5, eps=0.0).update(x).freeze()
    tau = levels.tau_start(x, one)
    other = AdaptiveCovariance(4, rho=0.5, eps=0.0).update(7.0 * x + 3.0).freeze()
    assert levels.tau_start((7.0 * x + 3.0).flip(0), other) == pytest.approx(tau, rel=1e-4)
    region = torch.arange(600) % 2
    two = AdaptiveCovariance(4, 2, rho=0.5, eps=0.0).update(x, region).freeze()
    assert levels.tau_start(x, two, region=region) == pytest.approx(tau, rel=0.2)
    # Two classes far apart are one bimodal whole, but each an easy start of its own.
    apart = randn(600, 4) + 8.0 * region.unsqueeze(1)
    whole = AdaptiveCovariance(4, rho=0.5).update(apart).freeze()
    each = AdaptiveCovariance(4, 2, rho=0.5).update(apart, region).freeze()
    assert levels.tau_start(apart, each, region=region) < levels.tau_start(apart, whole)


def test_few_rows_are_not_taken_for_gaussian():
    """Whitened by their own covariance they look it at low levels, not where the start is looked for."""
    x = 2.0 * randn(3, 48, seed=1)[torch.arange(1000) % 3] + 0.5 * randn(1000, 48, seed=4)
    covariance = AdaptiveCovariance(48, rho=0.0).update(x).freeze()
    assert levels.tau_start(x[:20], covariance) == pytest.approx(levels.tau_start(x, covariance), rel=0.1)


def drawn(ladder: levels.Levels, rows: int, **counters: int) -> torch.Tensor:
    counters = {"seed": 3, "step": 5, **counters}
    return NoiseModel(fixed_covariance(2), ladder).draw_levels(rows, **counters)


def test_training_draws_rungs_uniformly():
    ladder = levels.geometric(5.0, 0.1, n=7)
    tau = drawn(ladder, 21_000)
    counts = [int((tau == rung).sum()) for rung in torch.tensor(ladder.tau, dtype=torch.float64)]
    assert sum(counts) == 21_000
    # A chi-square beyond this has a probability of 1e-6.
    assert stats.chisquare(counts).statistic < stats.chi2.isf(1e-6, 6)


def test_training_draws_the_log_normal():
    ladder = levels.Levels((1e6, 1e-6), "lognormal", log_mean=-0.3, log_std=0.8)
    assert stats.kstest(drawn(ladder, 20_000).log().numpy(), "norm", (-0.3, 0.8)).pvalue > 1e-6
    clipped = drawn(levels.karras(1.0, 0.5, n=3), 5000)
    assert clipped.min().item() == pytest.approx(0.5)
    assert clipped.max().item() == pytest.approx(1.0)


@pytest.mark.parametrize("training", ["ladder", "lognormal"])
def test_a_level_is_a_function_of_seed_step_and_row(training):
    ladder = levels.karras(8.0, 0.02, training=training)
    whole = drawn(ladder, 64)
    assert torch.equal(drawn(ladder, 64), whole)
    assert torch.equal(torch.cat((drawn(ladder, 10), drawn(ladder, 54, row=10))), whole)
    for other in ({"seed": 4}, {"step": 6}, {"row": 1}):
        assert not torch.equal(drawn(ladder, 64, **other), whole)


def test_levels_come_back_from_json():
    ladder = levels.karras(8.0, 0.02, n=5)
    assert levels.Levels.from_dict(json.loads(json.dumps(asdict(ladder)))) == ladder
    started = replace(ladder, start=4.0)
    assert levels.Levels.from_dict(json.loads(json.dumps(asdict(started)))) == started
    # One of a checkpoint from before there was a start.
    old = {name: value for name, value in asdict(ladder).items() if name != "start"}
    assert levels.Levels.from_dict(old) == ladder


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("tau", lambda: levels.Levels(())),
        ("tau", lambda: levels.Levels((1.0, 1.0))),
        ("tau", lambda: levels.Levels((1.0, 2.0))),
        ("tau", lambda: levels.Levels((1.0, 0.0))),
        ("tau", lambda: levels.Levels((float("inf"), 1.0))),
        ("training", lambda: levels.Levels((1.0,), "uniform")),
        ("start", lambda: levels.Levels((1.0, 0.5), start=2.0)),
        ("start", lambda: levels.Levels((1.0, 0.5), start=0.1)),
        ("kl", lambda: levels.tau_start(torch.zeros(9, 2), fixed_covariance(2), 0.0)),
        ("x", lambda: levels.tau_start(torch.zeros(3, 2), fixed_covariance(2))),
        ("log_std", lambda: levels.Levels((1.0,), log_std=0.0)),
        ("tau_max, tau_min", lambda: levels.geometric(1.0, 2.0, n=3)),
        ("tau_max, tau_min", lambda: levels.karras(1.0, 0.0)),
        ("tau_max, tau_min", lambda: levels.karras(float("nan"), 0.1)),
        ("dim, ratio, n", lambda: levels.geometric(1.0, 0.1)),
        ("dim, ratio, n", lambda: levels.geometric(1.0, 0.1, n=3, dim=4)),
        ("ratio", lambda: levels.geometric(1.0, 0.1, ratio=1.0)),
        ("n", lambda: levels.geometric(1.0, 0.1, n=1)),
        ("n", lambda: levels.karras(1.0, 0.1, n=1)),
        ("rho", lambda: levels.karras(1.0, 0.1, rho=0.0)),
        ("dim", lambda: levels.geometric(1.0, 0.1, dim=0)),
        ("dim", lambda: levels.paper(0)),
        ("dim", lambda: levels.overlap_ratio(0)),
        ("overlap", lambda: levels.overlap_ratio(64, 0.0)),
        ("overlap", lambda: levels.geometric(1.0, 0.1, dim=64, overlap=0.998)),
        ("dim, kl", lambda: levels.tau_max_flow(3, kl=0.0)),
        ("x", lambda: levels.tau_max_langevin(torch.zeros(1, 2), fixed_covariance(2))),
        ("quantile", lambda: levels.tau_max_langevin(torch.zeros(3, 2), fixed_covariance(2), quantile=0.0)),
    ],
)
def test_wrong_arguments_are_named(name, call):
    with pytest.raises(ValueError) as error:
        call()
    assert str(error.value).startswith(f"{name}:"), str(error.value)
    assert "\n" not in str(error.value)


def test_a_number_of_levels_is_whole_in_any_library():
    for made in (levels.karras, levels.geometric):
        assert made(4.0, 0.1, n=np.int64(3)) == made(4.0, 0.1, n=torch.tensor(3)) == made(4.0, 0.1, n=3)
        with pytest.raises(TypeError, match=r"^n: got 3.0, expected a whole number$"):
            made(4.0, 0.1, n=3.0)
        with pytest.raises(ValueError, match=r"^n: got 1, expected at least 2$"):
            made(4.0, 0.1, n=np.int64(1))
