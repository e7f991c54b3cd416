"""The noise model: perturbation, its counters, regions and the start of sampling."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from ansn import AdaptiveCovariance, Level, Mixture, NoiseModel, levels, ops
from ansn.covariance import STRUCTURES, mixture
from tests.native import oracle
from tests.oracles import covariance_within_five_sigma, five_sigma, fixed_covariance, noise_model, randn, spd
from tests.tolerances import EXACT, RATIO, rms_ratio

D = 5


def regional(regions: int = 3, **options) -> AdaptiveCovariance:
    """Regions of different means, spreads and sizes (3 : 2 : 1 ...)."""
    covariance = AdaptiveCovariance(D, regions=regions, **{"factor_dtype": torch.float64, "eps": 0.01, **options})
    for k in range(regions):
        x = 3.0 * k + randn(100 * (regions - k), D, seed=k) @ torch.linalg.cholesky(spd(D, k)).T
        covariance.update(x, torch.full((len(x),), k))
    return covariance.freeze()


# -- perturb


@pytest.mark.parametrize("root", ["cholesky", "symmetric"])
def test_perturb_is_x_plus_tau_l_z(root):
    """With z of the contract, from NumPy."""
    noise = noise_model(fixed_covariance(spd(D), root=root), seed=7)
    x, tau = randn(6, D), torch.linspace(0.1, 3.0, 6, dtype=torch.float64)
    perturbed, level = noise.perturb(x, tau=tau, step=4, row=10)
    z = torch.as_tensor(oracle.noise(7, 10, 6, D, 4, ops.PERTURB))
    factor = torch.linalg.cholesky(spd(D))
    if root == "symmetric":
        values, vectors = torch.linalg.eigh(spd(D))
        factor = (vectors * values.sqrt()) @ vectors.T
    assert rms_ratio(perturbed, x + tau.unsqueeze(1) * (z @ factor.T)) < EXACT
    assert level == Level(level.tau, None, 7, 10, 4)
    assert torch.equal(level.tau, tau)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_perturb_by_region(structure):
    covariance = regional(structure=structure)
    noise, x, region = noise_model(covariance), randn(8, D), torch.tensor([0, 2, 1, 1, 0, 2, 2, 0])
    perturbed, level = noise.perturb(x, region, tau=1.5, step=0)
    z = torch.as_tensor(oracle.noise(0, 0, 8, D, 0, ops.PERTURB))
    eye = torch.eye(D, dtype=torch.float64)
    factor = torch.stack([covariance.color(eye, torch.full((D,), k)).T for k in range(3)])
    assert rms_ratio(perturbed, x + 1.5 * torch.einsum("bij,bj->bi", factor[region], z)) < EXACT
    r = covariance.noise_shape() if structure != "diagonal" else torch.diag_embed(covariance.noise_shape())
    assert rms_ratio(factor @ factor.mT, r) < EXACT
    assert torch.equal(level.region, region)


def test_noise_depends_on_seed_step_and_row_only():
    """A batch in two parts, with row offsets, is the batch: levels and noise, bit for bit."""
    noise, x = noise_model(fixed_covariance(spd(D), dtype=torch.float32), seed=2), randn(16, D, dtype=torch.float32)
    whole, level = noise.perturb(x, step=9)
    parts = [noise.perturb(x[:5], step=9), noise.perturb(x[5:], step=9, row=5)]
    assert torch.equal(torch.cat([p[1].tau for p in parts]), level.tau)
    assert rms_ratio(torch.cat([p[0] for p in parts]), whole) < 1e-6
    again, _ = noise.perturb(x, step=9)
    assert torch.equal(again, whole)
    for other in ({"seed": 3, "step": 9}, {"step": 10}, {"step": 9, "row": 1}):
        assert not torch.equal(noise.perturb(x, **other)[0], whole)


def test_without_a_step_the_calls_are_counted():
    noise, x = noise_model(fixed_covariance(D)), randn(3, D)
    (one, a), (two, b) = noise.perturb(x), noise.perturb(x)
    assert (a.step, b.step) == (0, 1)
    assert not torch.equal(one, two)
    assert torch.equal(noise.perturb(x, step=1)[0], two)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_data_keeps_its_dtype_and_shape(dtype):
    covariance = AdaptiveCovariance((1, 2, 3)).update(randn(50, 1, 2, 3)).freeze()
    noise, x = noise_model(covariance), randn(4, 1, 2, 3, dtype=dtype)
    perturbed, level = noise.perturb(x, step=0)
    assert (perturbed.dtype, perturbed.shape) == (dtype, x.shape)
    assert level.tau.dtype == torch.float32
    exact, _ = noise.perturb(x.float(), step=0)
    assert rms_ratio(perturbed, exact) < RATIO["colored_step"][dtype]


def test_conversion_of_a_model_leaves_the_levels():
    """In half precision a ladder of 232 levels would lose rungs."""
    noise = NoiseModel(AdaptiveCovariance(3), levels.geometric(50.0, 0.01, n=232))
    before = noise.tau.clone()
    torch.nn.Sequential(noise).half()
    assert noise.tau.dtype == torch.float32
    assert torch.equal(noise.tau, before)
    assert noise.draw_levels(4, seed=0, step=0).dtype == torch.float32


def test_a_number_a_scalar_and_a_row_of_levels_agree():
    noise, x = noise_model(fixed_covariance(spd(D))), randn(4, D)
    results = [noise.perturb(x, tau=t, step=0)[0] for t in (0.5, torch.tensor(0.5), torch.full((4,), 0.5))]
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_update_learns_the_covariance():
    noise = noise_model(AdaptiveCovariance(D))
    assert noise.update(randn(30, D)) is noise
    assert noise.covariance.seen == 30


# -- regions and prior


def test_regions_are_drawn_in_their_proportions():
    noise = noise_model(regional())
    region = noise.draw_regions(12_000, seed=4)
    counts = torch.bincount(region, minlength=3)
    assert stats.chisquare(counts.numpy(), 12_000 * np.array([3, 2, 1]) / 6).statistic < stats.chi2.isf(1e-6, 2)
    assert torch.equal(torch.cat((noise.draw_regions(5, seed=4), noise.draw_regions(7, seed=4, row=5))), region[:12])
    assert noise_model(fixed_covariance(2)).draw_regions(5) is None


def test_a_region_without_points_is_not_drawn():
    covariance = AdaptiveCovariance(2, regions=4).update(randn(40, 2), torch.arange(40) % 2 + 1)
    assert set(noise_model(covariance).draw_regions(500).tolist()) == {1, 2}


@pytest.mark.parametrize(("structure", "root"), [("dense", "symmetric"), *((name, None) for name in STRUCTURES)])
def test_the_gaussian_prior_is_the_perturbed_data_s(structure, root):
    """``N(m, S + tau^2 R)``: mean and every entry of the covariance within five standard errors; R is not S here."""
    x = 2.0 + randn(200, D) @ torch.linalg.cholesky(spd(D)).T
    covariance = AdaptiveCovariance(D, 1, structure, rho=0.4, root=root, factor_dtype=torch.float64).update(x).freeze()
    start = noise_model(covariance).prior(20_000, 1.5, seed=1) - x.mean(0)
    assert five_sigma(start, 0.0)
    s, r = covariance.covariance()[0], covariance.noise_shape()[0]
    assert covariance_within_five_sigma(start, s + 1.5**2 * r if s.ndim == 2 else (s + 1.5**2 * r).diag())
    if structure == "dense":
        assert rms_ratio(s, torch.cov(x.T)) < EXACT


def test_the_prior_by_region():
    covariance = regional()
    region = torch.arange(24_000) % 3
    start = noise_model(covariance).prior(24_000, 0.5, region=region)
    for k in range(3):
        part = start[region == k] - covariance.center[k]
        assert five_sigma(part, 0.0)
        assert covariance_within_five_sigma(part, covariance.covariance()[k] + 0.25 * covariance.noise_shape()[k])


@pytest.mark.parametrize("mixed", [False, True])
def test_a_class_starts_about_its_mean(mixed):
    """One of no row about that of all, as "no class" does; without a class nothing changes."""
    x, labels = 3.0 + randn(400, 2), torch.arange(400) % 3
    labels[labels == 2] = 3
    x[labels == 1] += torch.tensor([5.0, -2.0])
    covariance = AdaptiveCovariance(2, rho=0.0, factor_dtype=torch.float64).update(x)
    noise = noise_model(covariance)
    if mixed:
        noise = NoiseModel(covariance, noise.levels, mixture=Mixture.for_data(x, 2))
    before = noise.prior(40, 1.5, seed=1)
    noise.center_classes(x, labels, 4)
    assert torch.equal(noise.prior(40, 1.5, seed=1), before)
    other = noise_model(AdaptiveCovariance(2, rho=0.0, factor_dtype=torch.float64))
    if not mixed:
        other.load_state_dict(noise.state_dict())
        assert torch.equal(other.class_means, noise.class_means)
        noise.load_state_dict(noise_model(covariance).state_dict())
        assert noise.class_means is None
        noise = other
    y = torch.arange(20_000) % 5
    start = noise.prior(20_000, 1.5, seed=1, y=y)
    spread = covariance.covariance()[0] + 1.5**2 * covariance.noise_shape()[0]
    for k in range(5):
        of_class = x[labels == k] if k in (0, 1, 3) else x
        part = start[y == k] - of_class.mean(0)
        assert five_sigma(part, 0.0)
        assert covariance_within_five_sigma(part, spread)


def test_a_class_of_few_rows_starts_about_the_mean_of_all():
    x = randn(59, D)
    noise = noise_model(AdaptiveCovariance(D)).center_classes(x, (torch.arange(59) >= 9).long(), 2)
    assert torch.equal(noise.class_means[0], noise.class_means[2])
    assert not torch.equal(noise.class_means[1], noise.class_means[2])


@pytest.mark.parametrize(
    ("x", "labels"),
    [(4, [0, 1, 2, 3]), (4, [0, 1, -1, 0]), (4, [0, 1]), (4, [0.0, 1.0, 2.0, 0.0]), (0, [])],
    ids=["beyond", "below", "too few", "floating", "none"],
)
def test_labels_that_are_none_are_one_line(x, labels):
    with pytest.raises(ValueError, match=r"^labels: got [^\n]*, expected int64 \[\d\] from 0 to 2$"):
        noise_model(AdaptiveCovariance(D)).center_classes(randn(x, D), torch.tensor(labels), 3)
    noise = noise_model(AdaptiveCovariance(D)).center_classes(randn(40, D), torch.arange(40) % 3, 3)
    for y in (torch.tensor([0, 1]), torch.tensor([0.0, 1.0, 2.0, 3.0]), 3):
        with pytest.raises(ValueError, match=r"^y: got [^\n]*, expected int64 \[4\]$"):
            noise.prior(4, y=y)
    with pytest.raises(ValueError, match=r"^y: got 0 to 4, expected labels from 0 to 3$"):
        noise.prior(4, y=torch.tensor([0, 1, 2, 4]))


def test_the_uniform_start():
    noise = noise_model(AdaptiveCovariance((1, 2, 2)))
    start = noise.prior(4000, start="uniform", seed=5)
    assert start.shape == (4000, 1, 2, 2)
    assert stats.kstest(start.flatten().double().numpy(), "uniform").pvalue > 1e-6
    assert torch.equal(noise.prior(10, start="uniform", seed=5, row=7), start[7:17])


def test_the_prior_starts_at_the_top_of_the_ladder_and_row_by_row():
    noise = noise_model(fixed_covariance(spd(D)), tau=(4.0, 1.0))
    whole = noise.prior(12, seed=3)
    assert torch.equal(whole, noise.prior(12, 4.0, seed=3))
    parts = torch.cat((noise.prior(5, seed=3), noise.prior(7, seed=3, row=5)))
    assert rms_ratio(parts, whole) < EXACT
    assert not torch.equal(noise.prior(12, seed=4), whole)


def test_the_prior_follows_what_the_covariance_learns():
    """More points, a refresh, a merge or a loaded state: the kept factor is remade."""
    covariance = AdaptiveCovariance(D, factor_dtype=torch.float64).update(randn(100, D))
    noise = noise_model(covariance)

    def fresh() -> torch.Tensor:
        return noise_model(covariance).prior(4)

    changes = [
        lambda: covariance.update(5.0 * randn(3, D, seed=1)),
        covariance.refresh,
        lambda: covariance.merge(AdaptiveCovariance(D).update(9.0 * randn(50, D, seed=2)).moments),
        lambda: covariance.load_state_dict(AdaptiveCovariance(D).update(3 * randn(103, D, seed=3)).state_dict()),
    ]
    for change in changes:
        before = noise.prior(4)
        change()
        assert torch.equal(noise.prior(4), fresh())
        assert not torch.equal(noise.prior(4), before)


# -- arguments


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("seed", lambda: NoiseModel(fixed_covariance(2), levels.paper(2), seed=-1)),
        ("seed", lambda: NoiseModel(fixed_covariance(2), levels.paper(2), seed=2**63)),
        ("n", lambda: noise_model(fixed_covariance(2)).prior(0)),
        ("start", lambda: noise_model(fixed_covariance(2)).prior(1, start="zeros")),
        ("region", lambda: noise_model(regional()).prior(3)),
        ("region", lambda: noise_model(regional()).perturb(randn(3, D))),
        ("region", lambda: noise_model(regional()).perturb(randn(3, D), torch.tensor([0, 1, 3]))),
        ("step", lambda: noise_model(fixed_covariance(2)).perturb(randn(3, 2), step=-1)),
        ("row", lambda: noise_model(fixed_covariance(2)).perturb(randn(3, 2), row=-1)),
        ("x", lambda: noise_model(fixed_covariance(2)).perturb(randn(3, 3))),
    ],
)
def test_wrong_arguments_are_named(name, call):
    with pytest.raises(ValueError) as error:
        call()
    assert str(error.value).startswith(f"{name}:"), str(error.value)
    assert "\n" not in str(error.value)


def test_a_number_of_starts_is_whole_in_any_library():
    noise = noise_model(fixed_covariance(2))
    for start in ("gaussian", "uniform"):
        assert torch.equal(noise.prior(np.int64(3), start=start), noise.prior(3, start=start))
        with pytest.raises(TypeError, match=r"^n: got 3.0, expected a whole number$"):
            noise.prior(3.0, start=start)


@pytest.mark.parametrize("wrong", [[3.0, 1.0], None, (3.0,), torch.ones(2)], ids=["list", "None", "tuple", "tensor"])
def test_levels_that_are_none_are_refused_and_change_nothing(wrong):
    noise = noise_model(fixed_covariance(2), tau=(3.0, 1.0))
    before = noise.levels
    with pytest.raises(TypeError, match=r"^levels: got .*, expected Levels$"):
        noise.levels = wrong
    assert noise.levels is before
    assert noise.tau.tolist() == [3.0, 1.0]
    with pytest.raises(TypeError, match=r"^levels: got .*, expected Levels$"):
        NoiseModel(fixed_covariance(2), wrong)


@pytest.mark.parametrize("wrong", [0.0, -1.0, float("nan"), float("inf"), 0])
def test_a_level_is_finite_and_above_0(wrong):
    noise, x = noise_model(fixed_covariance(2)), randn(3, 2)
    for tau in (wrong, torch.tensor(wrong), torch.tensor([1.0, wrong, 2.0])):
        with pytest.raises(ValueError, match=r"^tau: got .*, expected finite levels > 0$"):
            noise.perturb(x, tau=tau, step=0)
    assert noise.perturb(x[:0], tau=torch.ones(0), step=0)[0].shape == (0, 2)


def test_a_level_may_be_one_that_has_no_values_yet():
    """Under vmap, and in a graph, where nothing can be read."""
    noise, x = noise_model(fixed_covariance(2)), randn(3, 2)
    taus = torch.tensor([0.5, 2.0], dtype=torch.float64)
    expected = torch.stack([noise.perturb(x, tau=tau, step=0)[0] for tau in taus])
    assert rms_ratio(torch.func.vmap(lambda tau: noise.perturb(x, tau=tau, step=0)[0])(taus), expected) < EXACT
    compiled = torch.compile(lambda tau: noise.perturb(x, tau=tau, step=0)[0], fullgraph=True, backend="aot_eager")
    assert rms_ratio(torch.stack([compiled(tau) for tau in taus]), expected) < EXACT
    assert rms_ratio(compiled(0.5), expected[0]) < EXACT


@pytest.mark.parametrize("options", [{"regions": 3}, {"mixture": 3}], ids=["regions", "mixture"])
def test_every_process_makes_the_same_model_of_the_same_rows(options, monkeypatch):
    u = randn(300)  # along a curve, whose regions are no Gaussians and overlap: the levels depend on their rows
    x = (torch.stack((u, u.square()), 1) + 0.05 * randn(300, 2, seed=1)).float()
    one = NoiseModel.for_data(x, "dense", **options)
    monkeypatch.setattr(mixture, "first_row", lambda row, rows: 7 * rows if row is None else row)  # as of rank 7
    other = NoiseModel.for_data(x, "dense", **options)
    assert other.levels == one.levels
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())
