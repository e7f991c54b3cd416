"""AdaptiveCovariance as its user meets it: warm-up, ridge, refresh, freeze, files, regions, limits, errors."""

from __future__ import annotations

import math
import re
import warnings
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load, save

from ansn import AdaptiveCovariance
from ansn.covariance import QUANTISATION_8BIT
from ansn.hostread import HostRead
from ansn.moments import RunningMoments
from ansn.structures import STRUCTURES
from tests.oracles import randn, spd
from tests.tolerances import EXACT, rms_ratio


def snapshot(covariance: AdaptiveCovariance) -> list[bytes]:
    return [b.numpy().tobytes() for b in covariance.buffers()]


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


def test_one_point_is_no_covariance():
    covariance = AdaptiveCovariance(2).update(randn(1, 2))
    assert torch.equal(covariance.covariance()[0], torch.eye(2).double())
    assert bool(covariance.factor.isfinite().all())


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


def test_rank_deficient_data_has_a_factor_without_a_ridge():
    """Three points in six dimensions: rounding alone may not stop it."""
    covariance = AdaptiveCovariance(6, rho=1.0, eps=0.0, factor_dtype=torch.float64).update(randn(3, 6))
    assert bool(covariance.factor.isfinite().all())
    assert rms_ratio(covariance.noise_shape(), covariance.covariance()) < 1e-6


def test_data_that_does_not_vary_is_refused_by_name():
    with pytest.raises(ValueError, match=r"eps: the noise shape of region 0 is not positive definite"):
        AdaptiveCovariance(3, eps=0.0).update(torch.ones(10, 3))


@pytest.mark.parametrize(
    ("options", "obstacle"),
    [
        ({"rho": 1.0}, "smallest pivot 0, coordinate 0"),
        ({"gamma": 1.0, "root": "symmetric"}, "smallest eigenvalue 0"),
        ({"structure": "diagonal", "rho": 1.0}, "smallest variance 0, coordinate 0"),
    ],
)
def test_the_error_names_the_region_and_what_is_wrong_with_it(options, obstacle):
    x = randn(40, 3, seed=2)
    x[20:] = 1.0
    covariance = AdaptiveCovariance(3, regions=2, eps=0.0, **options)
    with pytest.raises(ValueError, match=rf"region 1 is not positive definite \({obstacle}\); expected a larger eps"):
        covariance.update(x, torch.arange(40) // 20)


def test_the_pivot_in_the_error_is_that_of_elimination():
    lower = torch.tensor([[2.0, 0, 0], [1, 3, 0], [4, 5, 1]], dtype=torch.float64)
    matrix = lower @ torch.diag(torch.tensor([1.0, 1.0, -0.25], dtype=torch.float64)) @ lower.mT
    dense = STRUCTURES["dense"]
    _, status = dense.factor(matrix.unsqueeze(0), "cholesky")
    assert dense.obstacle(matrix, int(status), "cholesky") == "smallest pivot -0.25, coordinate 2"


class LateRead(HostRead):
    """A report that is not in yet, as a GPU's may be."""

    late = True

    def arrived(self) -> bool:
        return not LateRead.late


def test_a_late_report_of_a_bad_shape_keeps_the_snapshot_until_it_is_in(monkeypatch):
    """What a GPU does: nothing waits, the old factor serves, and the failure is dealt with when it is known."""
    monkeypatch.setattr("ansn.covariance.HostRead", LateRead)
    monkeypatch.setattr(LateRead, "late", False)
    covariance = AdaptiveCovariance(3, eps=0.0).update(randn(50, 3))
    before = {name: getattr(covariance, name).clone() for name in ("factor", "center", "scale")}
    monkeypatch.setattr(LateRead, "late", True)
    covariance.moments.reset()
    covariance.update(torch.zeros(200, 3))  # no variance at all: no factor
    for name, value in before.items():
        assert torch.equal(getattr(covariance, name), value), name
    monkeypatch.setattr(LateRead, "late", False)
    with pytest.raises(ValueError, match="region 0 is not positive definite"):
        covariance.update(randn(1, 3))
    for name, value in before.items():
        assert torch.equal(getattr(covariance, name), value), name
    covariance.update(randn(500, 3, seed=3))  # and it recovers
    assert not torch.equal(covariance.factor, before["factor"])


def test_freezing_waits_for_the_report(monkeypatch):
    monkeypatch.setattr("ansn.covariance.HostRead", LateRead)
    covariance = AdaptiveCovariance(6, rho=1.0, eps=0.0, factor_dtype=torch.float64)
    covariance.update(randn(3, 6)).freeze()
    assert rms_ratio(covariance.noise_shape(), covariance.covariance()) < 1e-6


# -- refresh and freeze


def test_the_factor_is_remade_at_five_percent_growth():
    """O(log n) times, at exactly the points that the rule says."""
    covariance = AdaptiveCovariance(2)
    at: list[int] = []
    original = covariance._refresh

    def refresh(spectrum: bool) -> None:
        original(spectrum)
        at.append(covariance.seen)

    covariance._refresh = refresh  # type: ignore[method-assign]
    expected, last = [], 0
    for n, x in enumerate(randn(1500, 1, 2), start=1):
        before = covariance.factor.clone()
        covariance.update(x)
        if n >= 1.05 * last:
            expected.append(n)
            last = n
        else:
            assert torch.equal(covariance.factor, before)
    assert at == expected
    # Every point of the first 20, then one for each 5 %.
    assert len(at) <= 21 + math.log(1500 / 20) / math.log(1.05)


def test_due_counts_what_is_pending():
    covariance = AdaptiveCovariance(2).update(randn(100, 2))
    assert not covariance.due()
    assert not covariance.due(pending=4)
    assert covariance.due(pending=5)
    assert not covariance.freeze().due(pending=10**6)


def test_a_refresh_writes_in_place():
    covariance = AdaptiveCovariance(2)
    addresses = [covariance.factor.data_ptr(), covariance.center.data_ptr(), covariance.scale.data_ptr()]
    covariance.update(randn(100, 2))
    assert addresses == [covariance.factor.data_ptr(), covariance.center.data_ptr(), covariance.scale.data_ptr()]


def test_frozen_is_frozen():
    x = randn(103, 3)
    covariance = AdaptiveCovariance(3, factor_dtype=torch.float64).update(x[:100]).update(x[100:])
    stale = covariance.factor.clone()
    covariance.freeze()
    assert not torch.equal(covariance.factor, stale), "the freeze takes the last points in"
    expected = AdaptiveCovariance(3, factor_dtype=torch.float64).update(x)
    assert rms_ratio(covariance.factor, expected.factor) < EXACT
    before = snapshot(covariance)
    covariance.update(randn(500, 3, seed=1)).freeze()
    assert snapshot(covariance) == before
    assert covariance.seen == 103
    for action in (lambda: covariance.merge(expected), covariance.refresh):
        with pytest.raises(ValueError, match="this covariance is frozen"):
            action()
    assert snapshot(covariance) == before


def test_a_bad_batch_leaves_the_state_as_it_was():
    covariance = AdaptiveCovariance(3, forgetting=0.9).update(randn(20, 3))
    before, seen = snapshot(covariance), covariance.seen
    bad = randn(4, 3)
    bad[2, 0] = float("nan")
    for x, kind, name in (
        (bad, ValueError, "x"),
        (torch.zeros(4, 2), ValueError, "x"),
        (torch.zeros(4, 3, dtype=torch.uint8), TypeError, "x"),
        (randn(4, 3).numpy(), TypeError, "x"),
    ):
        with pytest.raises(kind) as error:
            covariance.update(x)
        one_line(error, name)
        assert snapshot(covariance) == before
        assert covariance.seen == seen


# -- files and conversions


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("tracked", [False, True])
def test_a_saved_state_continues_bit_for_bit(structure, frozen, tracked):
    options = {"regions": 2, "structure": structure, "forgetting": 0.95}
    batches, region = randn(8, 11, 3), torch.arange(11) % 2
    one, other = AdaptiveCovariance(3, **options), AdaptiveCovariance(3, **options)
    if tracked:
        one.track_spectrum()
    for x in batches[:4]:
        one.update(x, region)
    if frozen:
        one.freeze()
    other.load_state_dict(load(save(one.state_dict())))
    assert (other.seen, other.seen_at_refresh, other.frozen) == (one.seen, one.seen_at_refresh, frozen)
    assert other.seen_at_spectrum == one.seen_at_spectrum
    for x in batches[4:]:
        one.update(x, region)
        other.update(x, region)
        assert snapshot(one) == snapshot(other)


def test_conversion_of_a_model_leaves_its_dtypes():
    covariance = AdaptiveCovariance(3).update(randn(9, 3))
    before = snapshot(covariance)
    torch.nn.Sequential(covariance).half().double().to(torch.bfloat16)
    assert snapshot(covariance) == before
    assert covariance.moments.scatter.dtype == torch.float64
    assert covariance.factor.dtype == torch.float32


# -- regions


@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_region_is_its_own_covariance(structure):
    """Of its rows alone; one region is the global covariance; a region without points keeps the guess."""
    x, region = randn(90, 4), torch.randint(3, (90,), generator=torch.Generator().manual_seed(0))
    options = {"structure": structure, "factor_dtype": torch.float64}
    together = (
        AdaptiveCovariance(4, regions=4, **options).update(x[:50], region[:50]).update(x[50:], region[50:]).freeze()
    )
    for k in range(3):
        alone = AdaptiveCovariance(4, **options).update(x[region == k]).freeze()
        for reading in (
            "covariance",
            "noise_shape",
            "haario",
            "condition_number",
            "effective_rank",
            "trace",
            "eigenvalues",
        ):
            assert rms_ratio(getattr(together, reading)()[k], getattr(alone, reading)()[0]) < 1e-10
        v = randn(5, 4, seed=2)
        owner = torch.full((5,), k)
        assert rms_ratio(together.whiten(v, owner, transpose=True), alone.whiten(v, transpose=True)) < 1e-10
    assert together.count.tolist() == [*torch.bincount(region).tolist(), 0.0]
    assert bool((together.covariance()[3] == AdaptiveCovariance(4, **options).covariance()[0]).all())
    one = AdaptiveCovariance(4, regions=1, **options).update(x, torch.zeros(90, dtype=torch.int64)).freeze()
    assert torch.equal(one.factor, AdaptiveCovariance(4, **options).update(x).freeze().factor)


def test_a_merge_of_bare_moments_counts_their_points():
    x = randn(30, 3)
    gathered = RunningMoments(3, 1, STRUCTURES["dense"])
    gathered.update(x[10:])
    covariance = AdaptiveCovariance(3).update(x[:10]).merge(gathered, points=20)
    assert covariance.seen == covariance.seen_at_refresh == 30
    assert rms_ratio(covariance.covariance()[0], torch.cov(x.T)) < EXACT


# -- limits and arguments


def test_what_cannot_fit_is_refused_with_its_size_and_what_fits():
    with pytest.raises(MemoryError) as error:
        AdaptiveCovariance(1000, regions=2, memory_limit=10**6)
    one_line(error, "structure: 'dense' of 2 x 1000 coordinates")
    size = 2 * 1000 * 1000 * (7 * 8 + 2 * 4)
    assert f"({size} bytes)" in str(error.value)
    assert "structures that fit: diagonal" in str(error.value)
    with pytest.raises(MemoryError, match="structures that fit: none"):
        AdaptiveCovariance(1000, memory_limit=10)
    with pytest.raises(MemoryError, match="structures that fit: diagonal"):
        AdaptiveCovariance(10**6)
    AdaptiveCovariance(1000, regions=2, structure="diagonal", memory_limit=10**6)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("shape", {"shape": 0}), ("shape", {"shape": (3, 0)}), ("shape, regions", {"regions": 0}),
        ("structure", {"structure": "banded"}), ("rho", {"rho": 1.5}), ("rho", {"rho": float("nan")}),
        ("gamma", {"gamma": 2.0}),
        ("rho, gamma", {"rho": 0.5, "gamma": 0.5}), ("eps", {"eps": -1.0}), ("eps", {"eps": float("nan")}),
        ("eps", {"eps_floor": -1.0}), ("root", {"root": "lu"}), ("warmup", {"warmup": 1}),
        ("forgetting", {"forgetting": 0.0}), ("forgetting", {"forgetting": 1.1}), ("refresh", {"refresh": 0.0}),
        ("dtype", {"dtype": torch.float16}), ("factor_dtype", {"factor_dtype": torch.bfloat16}),
        ("initial", {"initial": 0.0}), ("initial", {"initial": torch.ones(2)}), ("initial", {"initial": float("inf")}),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named(name, arguments):
    with pytest.raises(ValueError) as error:
        AdaptiveCovariance(**{"shape": 3, **arguments})
    one_line(error, name)


def test_a_merge_of_what_does_not_fit_is_refused():
    with pytest.raises(ValueError) as error:
        AdaptiveCovariance(3).merge(AdaptiveCovariance(4))
    one_line(error, "other")


def test_it_says_what_it_is():
    text = repr(
        AdaptiveCovariance((1, 2, 2), regions=3, gamma=0.5).update(randn(5, 4), torch.zeros(5, dtype=torch.int64))
    )
    assert "shape=(1, 2, 2), regions=3, dense, gamma=0.5, 5 points, learning" in text


def test_data_that_does_not_vary_gives_a_finite_scale():
    covariance = AdaptiveCovariance(4)  # its ridge is the floor then
    covariance.update(torch.zeros(8, 4))
    assert bool((covariance.scale > 0).all())
    assert bool(torch.isfinite(covariance.factor).all())


def test_a_state_of_another_root_is_refused():
    state = AdaptiveCovariance(4, root="symmetric").state_dict()
    with pytest.raises(ValueError, match=r"root: the state holds a symmetric factor"):
        AdaptiveCovariance(4).load_state_dict(state)


def test_under_forgetting_the_factor_keeps_up_with_the_memory():
    covariance = AdaptiveCovariance(3, forgetting=0.9, eps_floor=0.0)
    generator, refreshed = torch.Generator().manual_seed(0), 0
    for _ in range(400):
        before = covariance.seen_at_refresh
        covariance.update(torch.randn(8, 3, generator=generator))
        refreshed += covariance.seen_at_refresh != before
    # About 80 points are remembered, so every update of 8 is more than 5 % of them.
    assert refreshed > 390


def test_merging_what_was_gathered_under_forgetting_is_updating_with_it():
    one, other = (AdaptiveCovariance(3, forgetting=0.8, eps_floor=0.0) for _ in range(2))
    gathered = RunningMoments(3, 1, one.structure)
    batches = torch.randn(6, 5, 3, generator=torch.Generator().manual_seed(0)).double()
    for i, x in enumerate(batches):
        one.update(x)
        if i < 3:
            other.update(x)
        else:
            gathered.update(x, None, 0.8)
    other.merge(gathered, 15, decay=0.8**3)
    assert torch.allclose(one.count, other.count, rtol=1e-12)
    assert torch.allclose(one.covariance(), other.covariance(), rtol=1e-11)


# -- spectrum


def test_the_spectrum_is_remade_when_the_points_have_doubled_and_at_the_end():
    """In between the factor goes on alone; the filter is then that of the S and R it was made from."""
    covariance = AdaptiveCovariance(3, rho=0.5, factor_dtype=torch.float64).track_spectrum()
    x, tau, v = randn(200, 3) @ torch.linalg.cholesky(spd(3)).T, torch.full((4,), 0.7, dtype=torch.float64), randn(4, 3)
    made = []
    for row in range(0, 200, 10):
        before, kept = covariance.wiener(v, tau), covariance.ratio
        covariance.update(x[row : row + 10])
        assert covariance.ratio is kept  # in place
        if not torch.equal(covariance.wiener(v, tau), before):
            made.append(row + 10)
            assert rms_ratio(covariance.wiener(v, tau), filtered(covariance, v, 0.7)) < 1e-12
    assert made == [10, 20, 40, 80, 160]
    assert rms_ratio(covariance.wiener(v, tau), filtered(covariance, v, 0.7)) > 1e-4
    covariance.freeze()
    assert rms_ratio(covariance.wiener(v, tau), filtered(covariance, v, 0.7)) < 1e-12


def filtered(covariance: AdaptiveCovariance, v: torch.Tensor, tau: float) -> torch.Tensor:
    s, r = covariance.covariance()[0], covariance.noise_shape()[0]
    return torch.linalg.solve(s + tau**2 * r, v.T).T @ s


def test_under_forgetting_the_spectrum_keeps_up_with_the_memory():
    """It remembers about 80 points, so it is remade every 80 however many there were."""
    covariance = AdaptiveCovariance(3, forgetting=0.875, factor_dtype=torch.float64).track_spectrum()
    at = []
    for row in range(100):
        covariance.update(randn(10, 3, seed=row))
        at.append(covariance.seen_at_spectrum)
    late = sorted({n for n in at if n > 200})
    assert len(late) >= 7
    assert {b - a for a, b in pairwise(late)} == {80}


def test_a_frozen_covariance_tells_its_spectrum_too():
    v, tau = randn(4, 3), torch.full((4,), 0.7, dtype=torch.float64)
    covariance = AdaptiveCovariance(3, factor_dtype=torch.float64).update(randn(50, 3)).freeze()
    with pytest.raises(ValueError, match=r"^wiener: the spectrum is not tracked"):
        covariance.wiener(v, tau)
    assert rms_ratio(covariance.track_spectrum().wiener(v, tau), filtered(covariance, v, 0.7)) < 1e-12


def test_a_direction_without_variance_is_filtered_out():
    """S of rank 1 in three dimensions: what is orthogonal to the data goes, but for what the floor lets be there."""
    x = randn(50, 1) * torch.tensor([[1.0, 2.0, 2.0]])
    covariance = AdaptiveCovariance(3, eps_floor=0.0, factor_dtype=torch.float64).update(x).freeze().track_spectrum()
    v = torch.tensor([[2.0, -1.0, 0.0], [1.0, 2.0, 2.0]], dtype=torch.float64)
    out = covariance.wiener(v, torch.full((2,), 0.1, dtype=torch.float64))
    assert float(out[0].norm()) < 1e-7
    assert rms_ratio(out[1] / out[1, 0], v[1]) < 1e-7
    rounded = AdaptiveCovariance(3, eps_floor=0.01, factor_dtype=torch.float64).update(x).freeze().track_spectrum()
    out = rounded.wiener(v, torch.full((2,), 0.1, dtype=torch.float64))
    r = rounded.eigenvalues()[0, 0]
    assert rms_ratio(out[0], v[0] * 0.01 / (0.01 + 0.01 * r)) < 1e-7


@pytest.mark.parametrize("root", ["cholesky", "symmetric"])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_the_spectrum_of_data_without_a_ridge_is_finite(root, structure):
    """R of rank 2 in five dimensions has a factor only with its ridge raised; the spectrum is then of that R."""
    x = torch.cat((randn(60, 2), randn(60, 2), torch.zeros(60, 1)), 1) if structure == "diagonal" else (
        randn(60, 2) @ randn(2, 5, seed=1)
    )  # fmt: skip
    covariance = AdaptiveCovariance(
        5, structure=structure, rho=1.0, eps=0.0, eps_floor=0.0, root=root, factor_dtype=torch.float64
    ).track_spectrum()
    for row in range(0, 60, 20):
        covariance.update(x[row : row + 20])
    covariance.freeze()
    v, tau = randn(4, 5), 0.7
    out = covariance.wiener(v, tau)
    assert bool(torch.isfinite(out).all())
    assert not torch.equal(covariance.ratio, torch.ones_like(covariance.ratio))
    if structure == "dense":
        inside = x[:4]
        assert rms_ratio(covariance.wiener(inside, tau), inside / (1 + tau**2)) < 1e-6


@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_bad_shape_leaves_the_spectrum_as_it_was(structure):
    covariance = AdaptiveCovariance(3, structure=structure, factor_dtype=torch.float64).track_spectrum()
    covariance.update(randn(40, 3))
    v, at = randn(4, 3), covariance.seen_at_spectrum
    before = covariance.wiener(v, 0.7)
    with pytest.raises(ValueError, match=r"^eps: the noise shape of region 0"):
        covariance.update(1e160 * randn(40, 3))
    assert torch.equal(covariance.wiener(v, 0.7), before)
    assert covariance.seen_at_spectrum == at


def test_a_merge_remakes_the_spectrum():
    one, x = AdaptiveCovariance(3, factor_dtype=torch.float64).track_spectrum(), randn(80, 3)
    one.update(x[:20])
    one.merge(AdaptiveCovariance(3).update(x[20:]))
    tau, v = 0.7, randn(4, 3)
    assert one.seen_at_spectrum == 80
    assert rms_ratio(one.wiener(v, tau), filtered(one, v, tau)) < 1e-12


@pytest.mark.parametrize("structure", STRUCTURES)
def test_wrong_arguments_of_the_filter_are_named(structure):
    covariance = AdaptiveCovariance(3, regions=3, structure=structure).track_spectrum()
    for name, call in (
        ("region: got None", lambda: covariance.wiener(randn(3, 3), 0.5)),
        ("region: got int64 tensor of shape [2]", lambda: covariance.wiener(randn(3, 3), 0.5, torch.tensor([0, 1]))),
        ("v: got shape [3]", lambda: covariance.wiener(randn(3), 0.5)),
    ):
        with pytest.raises(ValueError, match="^" + re.escape(name)):
            call()


def test_levels_of_the_filter_are_a_number_a_scalar_or_a_row_each():
    covariance = AdaptiveCovariance(3).update(randn(20, 3)).track_spectrum()
    v = randn(4, 3)
    wanted = covariance.wiener(v, torch.full((4,), 0.7))
    assert torch.equal(covariance.wiener(v, 0.7), wanted)
    assert torch.equal(covariance.wiener(v, torch.tensor(0.7)), wanted)


def test_a_guess_of_the_covariance_has_its_spectrum():
    s, v = spd(3), randn(4, 3)
    covariance = AdaptiveCovariance(3, initial=s, factor_dtype=torch.float64).freeze().track_spectrum()
    assert rms_ratio(covariance.wiener(v, 0.7), filtered(covariance, v, 0.7)) < 1e-12


def test_an_untracked_spectrum_is_decomposed_once_until_the_state_changes():
    covariance = AdaptiveCovariance(3).update(randn(40, 3))
    _, first = covariance.spectrum()
    assert covariance.spectrum()[1] is first
    covariance.update(randn(40, 3, seed=1))
    assert not torch.equal(covariance.spectrum()[1], first)
    assert set(covariance.state_dict()) == set(AdaptiveCovariance(3).state_dict())
