"""The snapshot of an AdaptiveCovariance: when it is remade, its basis, freeze, files and conversions."""

from __future__ import annotations

import math
import re
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load, save

from ansn import AdaptiveCovariance
from ansn.covariance import STRUCTURES, adaptive, dense
from ansn.covariance.structure import eigh
from ansn.hostread import HostRead
from ansn.ops import _checks
from tests.covariance.test_adaptive import one_line
from tests.oracles import randn, spd
from tests.tolerances import EXACT, rms_ratio

SHAPE, D = (2, 3), 6


def everything(covariance: AdaptiveCovariance) -> list[bytes]:
    return [b.numpy().tobytes() for b in covariance.buffers()]


def snapshot(covariance: AdaptiveCovariance) -> list[bytes]:
    """Without the moments, for those go on whatever comes."""
    kept = [*covariance.snapshot.buffers(), covariance.center, covariance.scale]
    return [b.numpy().tobytes() for b in kept]


class LateRead(HostRead):
    """A report that is not in yet, as a GPU's may be."""

    late = True

    def arrived(self) -> bool:
        return not LateRead.late


@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_late_report_of_a_bad_shape_keeps_the_snapshot_until_it_is_in(structure, monkeypatch):
    """What a GPU does: nothing waits, the old factor serves, and the failure is dealt with when it is known."""
    monkeypatch.setattr("ansn.covariance.adaptive.HostRead", LateRead)
    monkeypatch.setattr(LateRead, "late", False)
    covariance = AdaptiveCovariance(SHAPE, 1, structure, eps=0.0).track().update(randn(50, D))
    before = snapshot(covariance)
    monkeypatch.setattr(LateRead, "late", True)
    covariance.moments.reset()
    covariance.update(torch.zeros(200, D))  # no variance at all: no factor
    assert snapshot(covariance) == before
    monkeypatch.setattr(LateRead, "late", False)
    with pytest.raises(ValueError, match="region 0 that is not positive definite"):
        covariance.update(randn(1, D))
    assert snapshot(covariance) == before
    covariance.update(randn(500, D, seed=3))  # and it recovers
    assert all(one != other for one, other in zip(snapshot(covariance), before, strict=True))


def test_freezing_waits_for_the_report(monkeypatch):
    monkeypatch.setattr("ansn.covariance.adaptive.HostRead", LateRead)
    covariance = AdaptiveCovariance(6, rho=1.0, eps=0.0, factor_dtype=torch.float64)
    covariance.update(randn(3, 6)).freeze()
    assert rms_ratio(covariance.noise_shape(), covariance.covariance()) < 1e-6


# -- refresh and freeze


def test_the_factor_is_remade_at_five_percent_growth():
    """O(log n) times, at exactly the points that the rule says."""
    covariance = AdaptiveCovariance(2)
    at: list[int] = []
    original = covariance._refresh

    def refresh(full: bool) -> None:
        original(full)
        at.append(covariance.seen)

    covariance._refresh = refresh  # type: ignore[method-assign]
    expected, last = [], 0
    for n, x in enumerate(randn(1500, 1, 2), start=1):
        before = covariance.snapshot.factor.clone()
        covariance.update(x)
        if n >= 1.05 * last:
            expected.append(n)
            last = n
        else:
            assert torch.equal(covariance.snapshot.factor, before)
    assert at == expected
    # Every point of the first 20, then one for each 5 %.
    assert len(at) <= 21 + math.log(1500 / 20) / math.log(1.05)


def test_due_counts_what_is_pending():
    covariance = AdaptiveCovariance(2).update(randn(100, 2))
    assert not covariance.due()
    assert not covariance.due(pending=4)
    assert covariance.due(pending=5)
    assert not covariance.freeze().due(pending=10**6)


@pytest.mark.parametrize("root", ["symmetric", None])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_graph_from_before_a_refresh_keeps_its_snapshot(structure, root):
    """Gradient accumulation: the gradient of a batch is that of the S and R that it was made with, also when the next
    batch was learned from before it is asked for."""
    covariance = AdaptiveCovariance(SHAPE, 1, structure, root=root).track().update(randn(100, D))
    x = randn(4, D, seed=1).float().requires_grad_()

    def loss():
        made = covariance.whiten(covariance.color(x)), covariance.filter(x, 0.7), covariance.step(x, f=x, a=0.5)
        return sum((one * one.detach()).sum() for one in (*made, (x - covariance.center) / covariance.scale))

    (expected,) = torch.autograd.grad(loss(), x)
    late = loss()
    before = snapshot(covariance)
    covariance.update(5.0 * randn(100, D, seed=2))
    assert all(one != other for one, other in zip(snapshot(covariance), before, strict=True))
    assert torch.equal(torch.autograd.grad(late, x)[0], expected)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_frozen_is_frozen(structure):
    x, options = randn(103, D), {"structure": structure, "factor_dtype": torch.float64}
    covariance = AdaptiveCovariance(SHAPE, **options).orient(x).update(x[:100]).update(x[100:])
    stale = covariance.noise_shape()
    covariance.freeze()
    assert rms_ratio(covariance.noise_shape(), stale) > 1e-4, "the freeze takes the last points in"
    expected = AdaptiveCovariance(SHAPE, **options).orient(x).update(x)
    # A basis found anew in between carries the variances over by a rule, not exactly.
    assert rms_ratio(covariance.noise_shape(), expected.noise_shape()) < (1e-2 if structure == "separable" else EXACT)
    before = everything(covariance)
    covariance.update(randn(500, D, seed=1)).freeze()
    assert everything(covariance) == before
    assert covariance.seen == 103
    for action in (lambda: covariance.merge(expected), covariance.refresh):
        with pytest.raises(ValueError, match="got a covariance that is frozen"):
            action()
    assert everything(covariance) == before


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("first", [True, False])
def test_a_bad_batch_leaves_the_state_as_it_was(structure, first):
    covariance = AdaptiveCovariance(SHAPE, 2, structure, forgetting=0.9)
    if not first:
        covariance.update(randn(20, D), torch.arange(20) % 2)
    before, seen, oriented = everything(covariance), covariance.seen, covariance.oriented
    bad, good, owner = randn(4, D), randn(4, D), torch.tensor([0, 1, 1, 0])
    bad[2, 0] = float("nan")
    for x, region, kind, name in (
        (bad, owner, ValueError, "x"),
        (torch.zeros(4, 2), owner, ValueError, "x"),
        (torch.zeros(4, D, dtype=torch.uint8), owner, TypeError, "x"),
        (randn(4, D).numpy(), owner, TypeError, "x"),
        (good, None, ValueError, "region"),
        (good, owner + 1, ValueError, "region"),
        (good, owner[:3], ValueError, "region"),
    ):
        with pytest.raises(kind) as error:
            covariance.update(x, region)
        one_line(error, name)
        assert everything(covariance) == before
        assert (covariance.seen, covariance.oriented) == (seen, oriented)


# -- files and conversions


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("tracked", [False, True])
def test_a_saved_state_continues_bit_for_bit(structure, frozen, tracked):
    options = {"regions": 2, "structure": structure, "forgetting": 0.95}
    batches, region = randn(8, 11, D), torch.arange(11) % 2
    one, other = AdaptiveCovariance(SHAPE, **options), AdaptiveCovariance(SHAPE, **options)
    if tracked:
        one.track()
    for x in batches[:4]:
        one.update(x, region)
    if frozen:
        one.freeze()
    other.load_state_dict(load(save(one.state_dict())))
    assert (other.seen, other.seen_at_refresh, other.frozen) == (one.seen, one.seen_at_refresh, frozen)
    assert (other.seen_at_basis, other.oriented) == (one.seen_at_basis, True)
    for x in batches[4:]:
        one.update(x, region)
        other.update(x, region)
        assert everything(one) == everything(other)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_conversion_of_a_model_leaves_its_dtypes(structure):
    covariance = AdaptiveCovariance(SHAPE, 1, structure).track().update(randn(9, D))
    before = everything(covariance)
    torch.nn.Sequential(covariance).half().double().to(torch.bfloat16)
    assert everything(covariance) == before
    assert {b.dtype for b in covariance.moments.buffers()} == {torch.float64}
    assert {b.dtype for b in covariance.snapshot.buffers()} == {torch.float32}


def test_what_is_not_stored_of_a_root_is_made_of_it():
    covariance, v = AdaptiveCovariance(4, root="symmetric").update(randn(50, 4)), randn(3, 4).float()
    loaded = AdaptiveCovariance(4, root="symmetric")
    loaded.load_state_dict(covariance.state_dict())
    assert torch.equal(loaded.whiten(v), covariance.whiten(v))
    assert rms_ratio(loaded.whiten(v), covariance.whiten(v.double())) < 1e-6


def test_a_state_of_another_root_is_refused():
    state = AdaptiveCovariance(4, root="symmetric").state_dict()
    with pytest.raises(ValueError, match=r"root: got a state of a symmetric factor"):
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


@pytest.mark.parametrize("structure", STRUCTURES)
def test_merging_what_was_gathered_under_forgetting_is_updating_with_it(structure):
    """In one basis: where it is learned, it is of the first rows here and not found anew in between."""
    one, other = (AdaptiveCovariance(SHAPE, 1, structure, forgetting=0.8, eps_floor=0.0, refresh=1e9) for _ in range(2))
    batches = torch.randn(6, 5, D, generator=torch.Generator().manual_seed(0)).double()
    for x in (one, other):
        x.orient(batches[0])
    gathered = other.gathering()
    for i, x in enumerate(batches):
        one.update(x)
        if i < 3:
            other.update(x)
        else:
            gathered.update(x, None, 0.8)
    other.merge(gathered, 15, decay=0.8**3)
    assert torch.allclose(one.count, other.count, rtol=1e-12)
    assert torch.allclose(one.covariance(), other.covariance(), rtol=1e-11)


@pytest.mark.parametrize(
    ("ours", "theirs", "told"),
    [
        (("cosine", (1, 4, 4)), ("diagonal", (1, 4, 4)), "cosine of shape (1, 4, 4), expected diagonal of (1, 4, 4)"),
        (("diagonal", (6, 5)), ("diagonal", (5, 6)), "diagonal of shape (6, 5), expected diagonal of (5, 6)"),
        (("separable", (2, 4)), ("dense", (2, 4)), "separable of shape (2, 4), expected dense of (2, 4)"),
    ],
)
def test_a_state_of_another_structure_or_shape_is_refused(ours, theirs, told):
    state = AdaptiveCovariance(ours[1], structure=ours[0]).update(randn(50, *ours[1])).state_dict()
    other = AdaptiveCovariance(theirs[1], structure=theirs[0])
    before = snapshot(other)
    with pytest.raises(ValueError, match=re.escape(f"structure: got a state of {told}")):
        other.load_state_dict(state)
    assert snapshot(other) == before


def test_a_state_that_keeps_no_pencil_loads_into_one_that_does():
    bare = AdaptiveCovariance(3).update(randn(90, 3))
    kept = AdaptiveCovariance(3).track()
    kept.load_state_dict(bare.state_dict())
    v = randn(4, 3).float()
    assert rms_ratio(kept.pencil.filter(v, 0.7), bare.pencil.filter(v, 0.7)) < 1e-6


# -- spectrum


def test_the_spectrum_is_remade_when_the_points_have_doubled_and_at_the_end():
    """In between the factor goes on alone; the filter is then that of the S and R it was made from."""
    covariance = AdaptiveCovariance(3, rho=0.5, factor_dtype=torch.float64).track()
    x, tau, v = randn(400, 3) @ torch.linalg.cholesky(spd(3)).T, torch.full((4,), 0.7, dtype=torch.float64), randn(4, 3)
    made = []
    for row in range(0, 400, 20):
        before = covariance.pencil.filter(v, tau)
        covariance.update(x[row : row + 20])
        if not torch.equal(covariance.pencil.filter(v, tau), before):
            made.append(row + 20)
            assert rms_ratio(covariance.pencil.filter(v, tau), filtered(covariance, v, 0.7)) < 1e-12
    assert made == [20, 40, 80, 160, 320]
    assert rms_ratio(covariance.pencil.filter(v, tau), filtered(covariance, v, 0.7)) > 1e-4
    covariance.freeze()
    assert rms_ratio(covariance.pencil.filter(v, tau), filtered(covariance, v, 0.7)) < 1e-12


def filtered(covariance: AdaptiveCovariance, v: torch.Tensor, tau: float) -> torch.Tensor:
    s, r = covariance.covariance()[0], covariance.noise_shape()[0]
    return torch.linalg.solve(s + tau**2 * r, v.T).T @ s


def test_under_forgetting_the_spectrum_keeps_up_with_the_memory():
    """It remembers about 80 points, so it is remade every 80 however many there were."""
    covariance = AdaptiveCovariance(3, forgetting=0.875, factor_dtype=torch.float64).track()
    at = []
    for row in range(100):
        covariance.update(randn(10, 3, seed=row))
        at.append(covariance.seen_at_basis)
    late = sorted({n for n in at if n > 200})
    assert len(late) >= 7
    assert {b - a for a, b in pairwise(late)} == {80}


@pytest.mark.parametrize("rho", [0.0, 0.5])
def test_no_basis_is_made_of_too_few_points_but_for_who_asks(rho, monkeypatch):
    """S counts as R until there are 14 + 2 d = 20, and the filter is the same in every basis; R has its own."""
    made = []
    monkeypatch.setattr(dense, "eigh", lambda s: made.append(len(s)) or eigh(s))
    covariance, v, tau = AdaptiveCovariance(3, rho=rho, factor_dtype=torch.float64).track(), randn(4, 3), 0.7
    for row in range(3):
        covariance.update(spd(3, seed=1)[0] * randn(6, 3, seed=row))
        assert rms_ratio(covariance.filter(v, tau), v / (1 + tau**2)) < 1e-12
    assert (made, covariance.seen_at_basis) == ([], 0)
    r, asked = covariance.noise_shape()[0], covariance.pencil
    assert rms_ratio(asked.noise_shape()[0], r) < 1e-12
    assert rms_ratio(asked.variances().sort(1).values, covariance.eigenvalues()) < 1e-12
    assert float(covariance.condition_number()) == pytest.approx(float(torch.linalg.cond(r)))
    assert len(made) == (rho > 0.0)  # of an isotropic R every basis is one
    assert covariance.pencil is asked
    covariance.update(randn(6, 3))
    assert covariance.seen_at_basis == covariance.seen == 24
    assert rms_ratio(covariance.snapshot.filter(v, tau), filtered(covariance, v, tau)) < 1e-12


@pytest.mark.parametrize("shape", [{"rho": 0.0}, {"rho": 0.5}, {"rho": 1.0}, {"gamma": 0.5}])
@pytest.mark.parametrize(("d", "points"), [(5, 40), (150, 40), (150, 1000)])
def test_the_condition_number_by_iterations_is_that_of_the_eigenvalues(shape, d, points, monkeypatch):
    covariance = AdaptiveCovariance(d, 2, **shape)
    covariance.update(randn(points, d) * torch.linspace(0.1, 2, d) ** 2, torch.arange(points) % 2)
    exact = covariance.condition_number()
    monkeypatch.setattr(adaptive, "LARGE", 1)
    assert covariance.condition_number().tolist() == pytest.approx(exact.tolist(), rel=0.01)


def test_a_frozen_covariance_tells_its_spectrum_too():
    v, tau = randn(4, 3), torch.full((4,), 0.7, dtype=torch.float64)
    covariance = AdaptiveCovariance(3, factor_dtype=torch.float64).update(randn(50, 3)).freeze()
    assert not covariance.snapshot.complete
    assert rms_ratio(covariance.pencil.filter(v, tau), filtered(covariance, v, 0.7)) < 1e-12
    assert rms_ratio(covariance.track().snapshot.filter(v, tau), filtered(covariance, v, 0.7)) < 1e-12


def test_a_direction_without_variance_is_filtered_out():
    """S of rank 1 in three dimensions: what is orthogonal to the data goes, but for what the floor lets be there."""
    x = randn(50, 1) * torch.tensor([[1.0, 2.0, 2.0]])
    covariance = AdaptiveCovariance(3, eps_floor=0.0, factor_dtype=torch.float64).update(x).freeze().track()
    v = torch.tensor([[2.0, -1.0, 0.0], [1.0, 2.0, 2.0]], dtype=torch.float64)
    out = covariance.pencil.filter(v, torch.full((2,), 0.1, dtype=torch.float64))
    assert float(out[0].norm()) < 1e-7
    assert rms_ratio(out[1] / out[1, 0], v[1]) < 1e-7
    rounded = AdaptiveCovariance(3, eps_floor=0.01, factor_dtype=torch.float64).update(x).freeze().track()
    out = rounded.pencil.filter(v, torch.full((2,), 0.1, dtype=torch.float64))
    r = rounded.eigenvalues()[0, 0]
    assert rms_ratio(out[0], v[0] * 0.01 / (0.01 + 0.01 * r)) < 1e-7


@pytest.mark.parametrize(("structure", "root"), [(n, root) for n, kind in STRUCTURES.items() for root in kind.roots])
def test_the_spectrum_of_data_without_a_ridge_is_finite(structure, root):
    """R of rank 2 in five dimensions has a factor only with its ridge raised; the spectrum is then of that R."""
    kind = STRUCTURES[structure]((5,))
    x = torch.cat((randn(60, 2), torch.zeros(60, 3)), 1)
    x = x @ randn(5, 5, seed=1) if kind.parts(1) else kind.turn(x, {}, None, False)
    covariance = AdaptiveCovariance(
        5, 1, structure, rho=1.0, eps=0.0, eps_floor=0.0, root=root, factor_dtype=torch.float64
    ).track()
    for row in range(0, 60, 20):
        covariance.update(x[row : row + 20])
    covariance.freeze()
    v, tau = randn(4, 5), 0.7
    assert bool(torch.isfinite(covariance.pencil.filter(v, tau)).all())
    assert not torch.equal(covariance.pencil.l, torch.ones_like(covariance.pencil.l))
    inside = x[:4]
    assert rms_ratio(covariance.pencil.filter(inside, tau), inside / (1 + tau**2)) < 1e-6


@pytest.mark.parametrize(("structure", "root"), [(n, root) for n, kind in STRUCTURES.items() for root in kind.roots])
@pytest.mark.parametrize(("family", "tracked"), [({"rho": 0.5}, True), ({"gamma": 0.5}, True), ({"rho": 0.5}, False)])
def test_a_bad_shape_leaves_the_spectrum_as_it_was(structure, root, family, tracked, monkeypatch):
    covariance = AdaptiveCovariance(SHAPE, 1, structure, root=root, **family, factor_dtype=torch.float64)
    covariance.update(randn(40, D))
    if tracked:
        covariance.track()
    before, at = snapshot(covariance), covariance.seen_at_basis
    monkeypatch.setattr(_checks, "readable", lambda _: False)  # as on a GPU, where a look at the rows would wait
    with pytest.raises(ValueError, match=r"^covariance: got a mean or deviation of .* in region 0, expected"):
        covariance.update(1e160 * randn(40, D))
    assert snapshot(covariance) == before
    assert covariance.seen_at_basis == at


def test_a_merge_remakes_the_spectrum():
    one, x = AdaptiveCovariance(3, factor_dtype=torch.float64).track(), randn(80, 3)
    one.update(x[:20])
    one.merge(AdaptiveCovariance(3).update(x[20:]))
    tau, v = 0.7, randn(4, 3)
    assert one.seen_at_basis == 80
    assert rms_ratio(one.pencil.filter(v, tau), filtered(one, v, tau)) < 1e-12


@pytest.mark.parametrize("structure", STRUCTURES)
def test_wrong_arguments_of_the_filter_are_named(structure):
    covariance = AdaptiveCovariance(3, regions=3, structure=structure).track()
    for name, call in (
        ("region: got None", lambda: covariance.pencil.filter(randn(3, 3), 0.5)),
        ("region: got int64 tensor of shape [2]", lambda: covariance.pencil.filter(randn(3, 3), 0.5, torch.arange(2))),
        ("v: got shape [3]", lambda: covariance.pencil.filter(randn(3), 0.5)),
    ):
        with pytest.raises(ValueError, match="^" + re.escape(name)):
            call()


@pytest.mark.parametrize("structure", STRUCTURES)
def test_what_a_kernel_would_read_past_is_refused(structure):
    covariance, owner, v = AdaptiveCovariance(3, regions=3, structure=structure).track(), torch.arange(3), randn(3, 3)
    pencil = covariance.pencil
    for name, error, call in (
        ("center: got float64 tensor of shape [2, 3]", ValueError, lambda: pencil.filter(v, 0.5, owner, center=v[:2])),
        ("center: got float64 tensor of shape [3]", ValueError, lambda: pencil.filter(v, 0.5, owner, center=v[0])),
        ("center: got int64", TypeError, lambda: pencil.filter(v, 0.5, owner, center=v.long())),
        (
            "center: got a tensor that requires",
            ValueError,
            lambda: pencil.filter(v, 1, owner, center=v.requires_grad_()),
        ),
        (
            "weights: got float64 tensor of shape [1, 2]",
            ValueError,
            lambda: pencil.spread(v, v[:1, :2].detach(), owner),
        ),
        ("v: got int64", TypeError, lambda: covariance.whiten(v.long(), owner)),
        ("v: got float64 tensor of shape [3, 3] on meta", ValueError, lambda: pencil.coordinates(v.to("meta"), owner)),
    ):
        with pytest.raises(error, match="^" + re.escape(name)):
            call()


@pytest.mark.parametrize("structure", STRUCTURES)
def test_autocast_leaves_derivatives_alone(structure):
    covariance = AdaptiveCovariance(3, structure=structure).update(randn(60, 3)).track()
    v, t = randn(2, 4, 3).float()

    def derivative():
        return torch.func.jvp(lambda rows: covariance.pencil.filter(rows, 0.7), (v,), (t,))[1]

    wanted = derivative()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(derivative(), wanted)


def test_levels_of_the_filter_are_a_number_a_scalar_or_a_row_each():
    covariance = AdaptiveCovariance(3).update(randn(20, 3)).track()
    v = randn(4, 3)
    wanted = covariance.pencil.filter(v, torch.full((4,), 0.75))
    assert torch.equal(covariance.pencil.filter(v, 0.75), wanted)
    assert torch.equal(covariance.pencil.filter(v, torch.tensor(0.75)), wanted)


def test_a_guess_of_the_covariance_has_its_spectrum():
    s, v = spd(3), randn(4, 3)
    covariance = AdaptiveCovariance(3, initial=s, factor_dtype=torch.float64).freeze().track()
    assert rms_ratio(covariance.pencil.filter(v, 0.7), filtered(covariance, v, 0.7)) < 1e-12


def test_an_untracked_spectrum_is_decomposed_once_until_the_state_changes():
    covariance = AdaptiveCovariance(3).update(randn(40, 3))
    first = covariance.pencil
    assert covariance.pencil is first
    covariance.update(randn(40, 3, seed=1))
    assert not torch.equal(covariance.pencil.l, first.l)
    assert set(covariance.state_dict()) == set(AdaptiveCovariance(3).state_dict())


def test_a_basis_that_was_left_out_is_not_taken_for_one_once_points_suffice() -> None:
    covariance, fresh = AdaptiveCovariance(8, refresh=1.0).track(), AdaptiveCovariance(8, refresh=1.0)
    mix = randn(8, 8, seed=1)
    while covariance.seen < covariance.structure.points():
        x = randn(3, 8, seed=covariance.seen) @ mix
        covariance.update(x)
        fresh.update(x)
    assert covariance.seen_at_refresh < covariance.structure.points() <= covariance.seen
    fresh.refresh()
    pencil = covariance.pencil
    assert rms_ratio(pencil.matrix(pencil.noise_variances()), fresh.noise_shape()) < 1e-5
