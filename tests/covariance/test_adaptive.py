"""AdaptiveCovariance as its user meets it: warm-up, ridge, regions, limits, errors."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings

import pytest
import torch

from ansn import AdaptiveCovariance, ops
from ansn.covariance import QUANTISATION_8BIT, STRUCTURES, Moments
from ansn.covariance.choice import score
from ansn.covariance.dense import obstacle
from tests.oracles import randn, spd
from tests.tolerances import EXACT, rms_ratio

SHAPE, D = (2, 3), 6


def one_line(error: pytest.ExceptionInfo[Exception], name: str) -> None:
    assert str(error.value).startswith(name), str(error.value)
    assert "\n" not in str(error.value)


# -- warm-up


@pytest.mark.parametrize(
    ("initial", "expected"),
    [
        (2.0, 2.0 * torch.eye(3)),
        (torch.tensor([1.0, 2.0, 3.0]), torch.diag(torch.tensor([1.0, 2.0, 3.0]))),
        (spd(3), spd(3)),
    ],
)
def test_the_guess_stands_until_the_warm_up_is_over(initial, expected):
    covariance = AdaptiveCovariance(3, initial=initial, warmup=5, rho=1.0, eps=0.0, factor_dtype=torch.float64)
    assert rms_ratio(covariance.covariance()[0], expected.double()) < EXACT
    assert rms_ratio(covariance.noise_shape()[0], expected.double()) < EXACT
    x = randn(5, 3)
    covariance.update(x[:4])
    assert rms_ratio(covariance.covariance()[0], expected.double()) < EXACT
    assert rms_ratio(covariance.haario()[0], 2.4**2 / 3 * expected.double()) < EXACT
    covariance.update(x[4:])
    assert rms_ratio(covariance.covariance()[0], torch.cov(x.T)) < EXACT


def test_the_guess_of_a_diagonal_is_the_diagonal_of_the_guess():
    covariance = AdaptiveCovariance(3, structure="diagonal", initial=spd(3))
    assert torch.equal(covariance.covariance()[0], spd(3).diagonal())


@pytest.mark.parametrize("structure", STRUCTURES)
def test_one_point_is_no_covariance(structure):
    covariance = AdaptiveCovariance(SHAPE, 1, structure).update(randn(1, D))
    assert torch.equal(covariance.covariance(), AdaptiveCovariance(SHAPE, 1, structure).covariance())
    assert bool(covariance.color(torch.eye(D)).isfinite().all())


# -- the ridge


def test_default_ridge_is_a_thousandth_of_the_variance():
    x = randn(50, 4)
    covariance = AdaptiveCovariance(4, rho=1.0, factor_dtype=torch.float64).update(x)
    ridge = 1e-3 * torch.cov(x.T).diagonal().mean()
    assert rms_ratio(covariance.noise_shape()[0], torch.cov(x.T) + ridge * torch.eye(4).double()) < EXACT


def test_the_floor_is_the_rounding_of_8_bit_data():
    assert pytest.approx(1 / (12 * 255**2)) == QUANTISATION_8BIT
    x = 0.01 * randn(50, 4)
    covariance = AdaptiveCovariance(4, rho=1.0, factor_dtype=torch.float64).update(x)
    expected = torch.cov(x.T) + QUANTISATION_8BIT * torch.eye(4).double()
    assert rms_ratio(covariance.noise_shape()[0], expected) < EXACT


def test_a_floor_that_swallows_the_data_is_told_once():
    covariance = AdaptiveCovariance(4)
    with pytest.warns(UserWarning, match="eps_floor .* give eps_floor=0 if the data is not 8-bit"):
        covariance.update(1e-4 * randn(50, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        covariance.update(1e-4 * randn(50, 4, seed=1))
        AdaptiveCovariance(4, eps_floor=0.0).update(1e-4 * randn(50, 4))
        AdaptiveCovariance(4, eps=1e-3).update(1e-4 * randn(50, 4))
        AdaptiveCovariance(4).update(randn(50, 4))


@pytest.mark.parametrize("structure", STRUCTURES)
def test_rank_deficient_data_has_a_factor_without_a_ridge(structure):
    """Three points in six dimensions: rounding alone may not stop it."""
    covariance = AdaptiveCovariance(SHAPE, 1, structure, rho=1.0, eps=0.0, factor_dtype=torch.float64)
    covariance.update(randn(3, D)).refresh()
    assert bool(covariance.color(torch.eye(D)).isfinite().all())
    assert rms_ratio(covariance.noise_shape(), covariance.covariance()) < 1e-6


@pytest.mark.parametrize("structure", STRUCTURES)
def test_data_that_does_not_vary_is_refused_by_name(structure):
    with pytest.raises(ValueError, match=r"eps: got a noise shape of region 0 that is not positive definite"):
        AdaptiveCovariance(SHAPE, 1, structure, eps=0.0).update(torch.ones(10, D))


@pytest.mark.parametrize(
    ("options", "obstacle"),
    [
        ({"rho": 1.0}, "smallest pivot 0, coordinate 0"),
        ({"gamma": 1.0, "root": "symmetric"}, "smallest eigenvalue 0"),
        *(({"structure": name, "rho": 1.0}, "smallest variance 0") for name in STRUCTURES if name != "dense"),
    ],
)
def test_the_error_names_the_region_and_what_is_wrong_with_it(options, obstacle):
    x = randn(40, D, seed=2)
    x[20:] = 1.0
    covariance = AdaptiveCovariance(SHAPE, regions=2, eps=0.0, **options)
    with pytest.raises(ValueError, match=rf"region 1 that is not positive definite \({obstacle}\), expected a larger"):
        covariance.update(x, torch.arange(40) // 20)


def test_the_pivot_in_the_error_is_that_of_elimination():
    lower = torch.tensor([[2.0, 0, 0], [1, 3, 0], [4, 5, 1]], dtype=torch.float64)
    matrix = lower @ torch.diag(torch.tensor([1.0, 1.0, -0.25], dtype=torch.float64)) @ lower.mT
    _, status = ops.cholesky(matrix.unsqueeze(0))
    assert obstacle(matrix, int(status), True) == "smallest pivot -0.25, coordinate 2"


# -- regions


@pytest.mark.parametrize("shape", [(2, 2), (1, 4)])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_region_is_its_own_covariance(structure, shape):
    """Of its rows alone; one region is the global covariance; a region without points keeps the guess."""
    x, region = randn(300, 4), torch.randint(3, (300,), generator=torch.Generator().manual_seed(0))
    options = {"shape": shape, "structure": structure, "factor_dtype": torch.float64}
    parts = (slice(150), slice(150, 300))
    together = AdaptiveCovariance(regions=4, **options)
    for part in parts:
        together.update(x[part], region[part])
    together.freeze()
    for k in range(3):
        alone = AdaptiveCovariance(**options)
        for part in parts:
            alone.update(x[part][region[part] == k])
        alone.freeze()
        for reading in ("covariance", "noise_shape", "haario", "condition_number", "effective_rank", "eigenvalues"):
            assert rms_ratio(getattr(together, reading)()[k], getattr(alone, reading)()[0]) < 1e-10
        v = randn(5, 4, seed=2)
        owner = torch.full((5,), k)
        assert rms_ratio(together.whiten(v, owner, transpose=True), alone.whiten(v, transpose=True)) < 1e-10
        assert rms_ratio(together.pencil.filter(v, 0.7, owner), alone.pencil.filter(v, 0.7)) < 1e-10
    assert together.count.tolist() == [*torch.bincount(region).tolist(), 0.0]
    assert rms_ratio(together.covariance()[3], AdaptiveCovariance(**options).covariance()[0]) < EXACT
    one = AdaptiveCovariance(regions=1, **options).update(x, torch.zeros(300, dtype=torch.int64)).freeze()
    for mine, other in zip(one.buffers(), AdaptiveCovariance(**options).update(x).freeze().buffers(), strict=True):
        assert torch.equal(mine, other)


def test_a_region_that_comes_late_or_seldom_has_no_basis_of_two_points():
    """One row a batch: until it has the points for axes of its own, those of all regions serve."""
    d = 24
    x = randn(4000, d) * torch.logspace(0, -2, d, dtype=torch.float64).sqrt() @ spd(d).T
    rare, often = x[:200], x[200:3400]
    options = {"structure": "separable", "eps_floor": 0.0, "factor_dtype": torch.float64}
    both = AdaptiveCovariance(d, 2, **options)
    for i in range(200):
        batch = torch.cat((rare[i : i + 1], often[16 * i : 16 * i + 16]))
        both.update(batch, torch.tensor([1] + [0] * 16))
    once = AdaptiveCovariance(d, **options).update(rare)
    held, owner = x[3400:], torch.ones(600, dtype=torch.int64)
    assert score(both.freeze(), held, owner) > score(once.freeze(), held) - 0.02


def test_a_merge_of_bare_moments_counts_their_points():
    x = randn(30, 3)
    gathered = Moments(STRUCTURES["dense"]((3,)), 1)
    gathered.update(x[10:])
    covariance = AdaptiveCovariance(3).update(x[:10]).merge(gathered, points=20)
    assert covariance.seen == covariance.seen_at_refresh == 30
    assert rms_ratio(covariance.covariance()[0], torch.cov(x.T)) < EXACT


# -- limits and arguments


def test_what_cannot_fit_is_refused_with_its_size_and_what_fits():
    with pytest.raises(MemoryError) as error:
        AdaptiveCovariance(1000, regions=2, memory_limit=10**6)
    one_line(error, "structure: got 'dense' of 2 x 1000 coordinates")
    assert f"({2 * 1000 * 1000 * 96} bytes)" in str(error.value)
    assert "structures that fit: " in str(error.value)
    fits = str(error.value).split("structures that fit: ")[1]
    assert "diagonal" in fits
    assert "dense" not in fits
    with pytest.raises(MemoryError, match="structures that fit: none"):
        AdaptiveCovariance(1000, memory_limit=10)
    with pytest.raises(MemoryError, match=r"structures that fit: .*diagonal"):
        AdaptiveCovariance(10**6)
    AdaptiveCovariance(1000, regions=2, structure="diagonal", memory_limit=10**6)


PEAK = """
import re, sys, torch
from ansn import AdaptiveCovariance
def peak():  # not ru_maxrss, which begins at that of the process that started this one
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
options = {"root": sys.argv[1], "gamma": 0.5 if sys.argv[1] == "symmetric" else None}
AdaptiveCovariance(200, **options).track().update(torch.randn(500, 200)).freeze()
before = peak()
covariance = AdaptiveCovariance(1500, **options).track().update(torch.randn(100, 1500)).freeze()
print((peak() - before) / covariance.structure.bytes(1, torch.float64, torch.float32))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("root", ["cholesky", "symmetric"])
def test_a_dense_refresh_takes_what_was_counted(root):
    # What is freed goes back at once, as it does by itself above 32 MiB a matrix, so that no gaps are counted.
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "1000000"}
    done = subprocess.run([sys.executable, "-c", PEAK, root], capture_output=True, text=True, check=True, env=env)
    assert 0.6 < float(done.stdout) <= 1.0


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("shape", {"shape": 0}), ("shape", {"shape": (3, 0)}), ("regions", {"regions": 0}),
        ("structure", {"structure": "banded"}), ("rho", {"rho": 1.5}), ("rho", {"rho": float("nan")}),
        ("gamma", {"gamma": 2.0}),
        ("rho, gamma", {"rho": 0.5, "gamma": 0.5}), ("eps", {"eps": -1.0}), ("eps", {"eps": float("nan")}),
        ("eps", {"eps_floor": -1.0}), ("root", {"root": "lu"}), ("warmup", {"warmup": 1}),
        ("forgetting", {"forgetting": 0.0}), ("forgetting", {"forgetting": 1.1}), ("refresh", {"refresh": 0.0}),
        ("dtype", {"dtype": torch.float16}), ("factor_dtype", {"factor_dtype": torch.bfloat16}),
        ("root", {"structure": "cosine", "root": "cholesky"}), ("root", {"root": "basis"}),
        ("initial", {"structure": "separable", "initial": torch.ones(3)}),
        ("initial", {"initial": 0.0}), ("initial", {"initial": torch.ones(2)}), ("initial", {"initial": float("inf")}),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named(name, arguments):
    with pytest.raises(ValueError) as error:
        AdaptiveCovariance(**{"shape": 3, **arguments})
    one_line(error, name)


def test_a_merge_of_what_does_not_fit_is_refused():
    for other in (AdaptiveCovariance(4), AdaptiveCovariance(3, 2), AdaptiveCovariance(3, 1, "cosine")):
        with pytest.raises(ValueError) as error:
            AdaptiveCovariance(3).merge(other)
        one_line(error, "other")


@pytest.mark.parametrize("structure", STRUCTURES)
def test_rows_of_another_shape_are_refused(structure):
    """Axes have meaning: channels last are another thing, though as many numbers."""
    covariance = AdaptiveCovariance((3, 5), structure=structure).update(randn(60, 3, 5)).track()
    for act in (covariance.update, lambda v: covariance.pencil.filter(v, 0.5), covariance.pencil.directions):
        for wrong in (randn(4, 5, 3), randn(4, 7), randn(4, 30)):
            with pytest.raises(ValueError) as error:
                act(wrong)
            assert f"got shape {list(wrong.shape)}, expected [B, 3, 5]" in str(error.value)


def test_it_says_what_it_is():
    text = repr(
        AdaptiveCovariance((1, 2, 2), regions=3, gamma=0.5).update(randn(5, 4), torch.zeros(5, dtype=torch.int64))
    )
    assert "shape=(1, 2, 2), regions=3, dense, gamma = 0.5, 5 points, learning" in text


@pytest.mark.parametrize("structure", STRUCTURES)
def test_data_that_does_not_vary_gives_a_finite_scale(structure):
    covariance = AdaptiveCovariance(SHAPE, 1, structure)  # its ridge is the floor then
    covariance.update(torch.zeros(8, D))
    assert bool((covariance.scale > 0).all())
    assert bool(torch.isfinite(covariance.color(torch.eye(D))).all())
