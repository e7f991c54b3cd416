"""A mixture of K Gaussians against the closed form, for each structure: values, gradients, and what it learns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ansn import AdaptiveCovariance
from ansn.covariance import STRUCTURES, Mixture, Structure, choose, find
from ansn.covariance import mixture as module
from tests import oracles
from tests.covariance.exact import Rotated, root_of, rows_of
from tests.oracles import randn, spd
from tests.tolerances import rms_ratio

SHAPE, DIM = (2, 4, 4), 32
KINDS = [*STRUCTURES.values(), Rotated]
OPTIONS: dict[str, Any] = {"rho": 0.0, "eps_floor": 0.0, "factor_dtype": torch.float64}


def known(kind: type[Structure], regions: int) -> tuple[Mixture, oracles.Mixture]:
    """Of regions of the structure's own kind, and the same written out."""
    roots = [root_of(kind(SHAPE), seed=k) * (1.0 + 0.3 * k) for k in range(regions)]
    rows = [rows_of(root, 90 + 40 * k, seed=k) + 0.5 * k for k, root in enumerate(roots)]
    owner = torch.cat([torch.full((len(part),), k) for k, part in enumerate(rows)])
    covariance = AdaptiveCovariance(SHAPE, regions, kind, **OPTIONS).update(torch.cat(rows), owner).freeze()
    covariances = torch.stack([root @ root.T for root in roots])
    means = torch.stack([part.mean(0) for part in rows])
    return Mixture(covariance), oracles.Mixture(means, covariances, owner.bincount().double() / len(owner))


def noisy(rows: int, low: float = 0.05) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, a level of each, and its covariance."""
    x, sigma = 1.0 + randn(rows, DIM, seed=7), torch.logspace(torch.log10(torch.tensor(low)), 0.7, rows).double()
    return x, sigma, sigma.square().reshape(-1, 1, 1) * torch.eye(DIM).double()


# -- the closed form


@pytest.mark.parametrize("regions", [1, 2, 5])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_it_is_the_closed_form(kind: type[Structure], regions: int) -> None:
    ours, exact = known(kind, regions)
    x, sigma, noise = noisy(9)
    rows = x.reshape(-1, *SHAPE)
    assert rms_ratio(ours.weights, exact.weights) < 1e-7
    assert rms_ratio(ours.means.flatten(1), exact.means) < 1e-12
    for level, matrix in ((sigma, noise), (0.4, 0.16 * torch.eye(DIM).double().expand(9, -1, -1))):
        assert rms_ratio(ours.denoise(rows, level).flatten(1), exact.denoised(x, matrix)) < 1e-8
        logs = exact._components(x, matrix)[0]
        assert rms_ratio(ours.log_prob(rows, level), logs.logsumexp(1)) < 1e-8
        assert rms_ratio(ours.responsibilities(rows, level), logs.softmax(1)) < 1e-8
    assert rms_ratio(ours.log_prob(rows), exact.log_density(x, 0.0 * noise)) < 1e-8
    if regions == 1:
        pencil = ours.covariance.pencil
        tau = sigma / pencil.deviation[0, 0]
        wiener = exact.means + pencil.filter(x - exact.means, tau)
        assert rms_ratio(ours.denoise(x, sigma), wiener) < 1e-12


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_its_gradients_are_the_posterior_s(kind: type[Structure]) -> None:
    """Tweedie's two formulas: the score gives D, and D's Jacobian times sigma^2 a covariance."""
    ours, _ = known(kind, 3)
    x, sigma, _ = noisy(4, 0.2)
    at = x.clone().requires_grad_()
    (score,) = torch.autograd.grad(ours.log_prob(at, sigma).sum(), at)
    assert rms_ratio(x + sigma.square().unsqueeze(1) * score, ours.denoise(x, sigma)) < 1e-9
    for row, level in zip(x, sigma, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda v, s=level: ours.denoise(v[None], s)[0], row)
        assert rms_ratio(jacobian, jacobian.mT) < 1e-9
        assert float(torch.linalg.eigvalsh(jacobian)[0]) > -1e-9
    assert torch.autograd.gradcheck(lambda v: ours.denoise(v, sigma[:1]), (x[:1].requires_grad_(),))


# -- precision


@pytest.fixture(scope="module")
def image() -> list[Mixture]:
    """Three regions of images of 3072 numbers, whose variances fall by 1e4, in float32 and in float64."""
    shape = (3, 32, 32)
    fall = torch.logspace(0, -4, 3072, dtype=torch.float64).sqrt().reshape(shape)
    owner = torch.arange(120) % 3
    x = fall * randn(120, *shape) + 0.2 * owner.reshape(-1, 1, 1, 1)
    covariance = AdaptiveCovariance(shape, 3, "separable", rho=0.0).update(x, owner).freeze()
    wide = AdaptiveCovariance(shape, 3, "separable", rho=0.0, factor_dtype=torch.float64)
    wide.load_state_dict(covariance.state_dict())
    return [Mixture(covariance), Mixture(wide)]


@pytest.mark.parametrize("tau", [0.01, 0.3, 1e3])
def test_float32_is_right_at_every_level(image: list[Mixture], tau: float) -> None:
    narrow, wide = image
    sigma = tau * float(wide.covariance.scale.mean())
    x = (wide.sample(9, seed=3) + sigma * randn(9, 3, 32, 32, seed=1)).float()
    ours, exact = narrow.denoise(x, sigma), wide.denoise(x.double(), sigma)
    assert ours.dtype == torch.float32
    assert rms_ratio(ours, exact) < 1e-5 + 1e-6 * tau  # of an x that is tau times as large
    assert rms_ratio(x - ours, x - exact) < 1e-3
    logs = [m._parts(v, sigma, False)[1] for m, v in ((narrow, x), (wide, x.double()))]
    apart = [value - value[:1] for value in logs]
    assert float((apart[0] - apart[1]).abs().max()) < 0.02 + 1e-5 * float(apart[1].abs().max())


def test_regions_far_apart_and_empty_ones_give_no_nan() -> None:
    covariance = AdaptiveCovariance(2, 3, "diagonal", rho=0.0, eps_floor=0.0)
    owner = torch.arange(40) % 2
    mixture = Mixture(covariance.update(randn(40, 2) + 1e3 * owner.unsqueeze(1), owner).freeze())
    x = torch.tensor([[0.0, 0.0], [1e3, 1e3], [-500.0, 3e4]], requires_grad=True)
    logs = mixture._parts(x, 0.01, False)[1]
    assert float((logs[0] - logs[1]).detach().abs().min()) > 1e5
    out = mixture.denoise(x, 0.01)
    out.square().sum().backward()
    assert x.grad is not None
    assert bool(torch.isfinite(out).all() & torch.isfinite(x.grad).all())
    assert mixture.assign(x[:2].detach()).tolist() == [0, 1]
    assert not bool((mixture.draw(x.expand(3, 2)) == 2).any())


def test_autocast_leaves_it_alone(image: list[Mixture]) -> None:
    x = randn(2, 3, 32, 32).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = image[0].denoise(x, 0.5), image[0].log_prob(x, 0.5)
    assert torch.equal(inside[0], image[0].denoise(x, 0.5))
    assert torch.equal(inside[1], image[0].log_prob(x, 0.5))


# -- what is found

THREE = oracles.Mixture(
    torch.tensor([[-6.0, 0.0, 0.0], [5.0, 3.0, 0.0], [0.0, -5.0, 2.0]]),
    torch.stack([spd(3, k, 0.1, 1.5) for k in range(3)]),
    torch.tensor([0.6, 0.3, 0.1]),
)
NONE = {"eps_floor": 0.0}


def likelihood(mixture: Mixture | oracles.Mixture, x: Tensor) -> float:
    if isinstance(mixture, Mixture):
        return float(mixture.log_prob(x).mean())
    return float(mixture.log_density(x, torch.zeros(1, *mixture.covariances.shape[1:]).double()).mean())


@pytest.mark.parametrize("seed", range(3))
def test_modes_that_are_apart_are_found(seed: int) -> None:
    x = THREE.sample(3000, seed=seed)
    mixture = find(x, 3, "dense", seed=seed, **NONE)[0]
    order = torch.cdist(THREE.means, mixture.means.double()).argmin(1)
    assert sorted(order.tolist()) == [0, 1, 2]
    assert float((mixture.weights[order] - THREE.weights).abs().sum()) < 0.05
    assert float((mixture.means[order] - THREE.means).abs().max()) < 0.3
    assert rms_ratio(mixture.covariance.covariance()[order], THREE.covariances) < 0.15
    assert likelihood(mixture, THREE.sample(2000, seed=9)) > likelihood(THREE, THREE.sample(2000, seed=9)) - 0.03


@pytest.mark.parametrize("seed", range(3))
def test_modes_that_are_apart_in_a_small_direction_alone_are_found(seed: int) -> None:
    """K-means by distance would halve the large directions."""
    half, wide = torch.tensor([0.0, 0.0, 0.3, 0.0]), torch.tensor([25.0, 4.0, 0.002, 0.1])
    target = oracles.Mixture(torch.stack((half, -half)), torch.diag(wide).expand(2, 4, 4), torch.tensor([0.7, 0.3]))
    mixture = find(target.sample(2000, seed=seed), 2, "dense", seed=seed, **NONE)[0]
    assert sorted(mixture.weights.tolist()) == pytest.approx([0.3, 0.7], abs=0.05)
    assert mixture.means[:, 2].abs().tolist() == pytest.approx([0.3, 0.3], abs=0.01)


def test_one_gaussian_split_in_two_is_no_worse() -> None:
    x, held = (randn(3000, 3, seed=s) @ spd(3) for s in (0, 1))
    one, two = (likelihood(find(x, k, "dense", **NONE)[0], held) for k in (1, 2))
    assert two > one - 0.02


def test_auto_finds_their_number() -> None:
    target = oracles.Mixture(torch.eye(4) * 9.0, torch.eye(4).expand(4, 4, 4) * 0.3)
    mixture, found = find(target.sample(2000), seed=1, **NONE)
    assert (mixture.regions, found.regions, found.rows) == (4, 4, 2000)
    assert list(found.scores)[:3] == [1, 2, 4]
    assert str(found).startswith(f"4, {found.structure} (found in 2,000 rows; by held-out likelihood, nats/dim: 1 ")
    assert find(randn(2000, 4), "auto", "dense", **NONE)[1].regions == 1


def test_auto_tries_fewer_of_long_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    x = oracles.Mixture(torch.eye(4) * 9.0, torch.eye(4).expand(4, 4, 4) * 0.3).sample(2000)
    for large, numbers in ((4, [1, 2, 4, 8]), (3, [1, 2])):
        monkeypatch.setattr(module, "_LARGE", large)
        monkeypatch.setattr(module, "_MOST_OF_LARGE", 2)
        assert list(find(x, seed=1, **NONE)[1].scores) == numbers


@pytest.mark.filterwarnings("ignore:eps_floor")
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_tiny_region_and_an_empty_one_are_harmless(kind: type[Structure]) -> None:
    """Three rows far off have a region of the others' shape; pseudo-points are no rows; held-out rows stay likely."""
    root = root_of(kind(SHAPE))
    x, held = (randn(400, DIM, seed=s) @ root.T for s in (0, 1))
    x[:3] += 30.0
    x = x[torch.randperm(400, generator=torch.Generator().manual_seed(0))].reshape(-1, *SHAPE)
    for rows, regions in ((x, 2), (x[:1].expand(30, *SHAPE), 3)):
        mixture = find(rows, regions, kind, seed=2)[0]  # type: ignore[arg-type]
        assert float(mixture.covariance.count.sum()) == pytest.approx(len(rows), rel=1e-12)
        assert bool((mixture.covariance.moments.pseudo >= 5 - 1e-9).all())
        assert bool((mixture.covariance.pencil.variances() > 0).all())
        assert bool(torch.isfinite(mixture.log_prob(rows)).all())
        assert bool(mixture.covariance.enough().all())
    two, one = (likelihood(find(x, k, kind)[0], held.reshape(-1, *SHAPE)) for k in (2, 1))  # type: ignore[arg-type]
    assert sorted(find(x, 2, kind)[0].covariance.count.tolist()) == pytest.approx([3, 397])  # type: ignore[arg-type]
    assert two > one


def test_it_is_a_function_of_seed_and_rows() -> None:
    x = THREE.sample(500).reshape(-1, 1, 3)
    one, other, third = (Mixture.for_data(x, 4, seed=s) for s in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(one.buffers(), other.buffers(), strict=True))
    assert not torch.equal(one.means, third.means)
    assert one.means.shape == (4, 1, 3)


def test_all_rows_choice_may_be_known() -> None:
    x = THREE.sample(500)
    one, other = (find(x, 3, structure) for structure in ("auto", choose(x)))
    assert one[1] == other[1]
    assert all(torch.equal(a, b) for a, b in zip(one[0].buffers(), other[0].buffers(), strict=True))


@pytest.mark.parametrize("values", [2, 25])
def test_regions_are_not_single_values(values: int) -> None:
    """Of binary columns or a grid the likelihood is without bound where a region is one of its points."""
    x = torch.cartesian_prod(*2 * (torch.arange(values**0.5 + 0.6).floor(),)).repeat(80, 1)
    found = find(x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))], **NONE)[1]
    assert found.regions == 1


def test_dense_regions_that_are_asked_for_stay_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ansn.covariance.mixture._MEMORY", 500)
    x = THREE.sample(900)
    assert find(x, structure="dense")[1].regions == 1
    assert find(x, 3, "dense")[1].regions == 3


def test_before_any_row_regions_are_alike() -> None:
    empty = Mixture(AdaptiveCovariance(3, 2))
    assert empty.responsibilities(randn(4, 3)).tolist() == [[0.5, 0.5]] * 4
    assert bool(torch.isfinite(empty.denoise(randn(4, 3), 0.5)).all())


def test_a_pixel_that_never_varies_and_few_distinct_rows() -> None:
    x = torch.cat((THREE.sample(600), torch.full((600, 1), 0.5).double()), 1)
    mixture = find(x, 3, **NONE)[0]
    assert bool(torch.isfinite(mixture.log_prob(x, 0.01)).all())
    assert rms_ratio(mixture.denoise(x, 0.1)[:, 3], x[:, 3]) < 1e-3
    few = find(x[:, :3], 3, "dense", distinct=8, **NONE)[0]
    assert bool((few.covariance.pencil.l == 1).all())


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("regions: got 9, expected 1 to 8 ", lambda: find(randn(8, 2), 9)),
        ("regions: got 0, ", lambda: find(randn(8, 2), 0)),
        ("regions: got 'many'", lambda: find(randn(8, 2), "many")),
        ("x: got a value that is not finite", lambda: find(torch.full((8, 2), torch.nan), 2)),
        ("x: got 3 rows", lambda: find(randn(3, 2))),
        ("structure: got 'round'", lambda: find(randn(8, 2), 2, "round")),
        ("regions: got 3 for rows of fewer", lambda: find(torch.eye(2).repeat(9, 1), 3, rho=0.5, eps_floor=0.0)),
        ("x: got shape", lambda: Mixture(AdaptiveCovariance(3)).denoise(randn(2, 4), 1.0)),
    ],
)
def test_wrong_arguments_are_named(message: str, call: Any) -> None:
    with pytest.raises(ValueError) as error:
        call()
    assert str(error.value).startswith(message), str(error.value)


# -- what is learned online


def begun(kind: type[Structure] = STRUCTURES["dense"], **options: Any) -> Mixture:
    """Of a few rows."""
    return find(THREE.sample(90, seed=5), 3, kind, seed=1, **NONE | options)[0]  # type: ignore[arg-type]


def test_batches_come_to_what_all_rows_at_once_do() -> None:
    mixture, x = begun(), THREE.sample(6000, seed=6)
    for batch in x.split(50):
        assert mixture.update(batch, seed=3) is mixture
    mixture.covariance.freeze()
    whole, held = find(x, 3, "dense", seed=1, **NONE)[0], THREE.sample(2000, seed=7)
    assert abs(likelihood(mixture, held) - likelihood(whole, held)) < 0.02
    assert float(mixture.covariance.count.sum()) == pytest.approx(6090)
    before = [b.clone() for b in mixture.buffers()]
    mixture.update(x + 9.0)
    assert all(torch.equal(a, b) for a, b in zip(before, mixture.buffers(), strict=True))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_ranks_that_gather_apart_come_to_one(kind: type[Structure]) -> None:
    one, other = begun(kind), begun(kind)
    x = THREE.sample(80, seed=6)
    region = one.draw(x, seed=3)
    parts = [other.covariance.gathering() for _ in range(2)]
    for rank, part in enumerate(parts):
        part.update(x[rank::2], region[rank::2])
    one.covariance.moments.update(x, region)
    for part in parts:
        other.covariance.moments.merge(part)
    ours, theirs = one.covariance.moments.state_dict(), other.covariance.moments.state_dict()
    assert all(rms_ratio(ours[name].tril(), theirs[name].tril()) < 1e-12 for name in ours if ours[name].ndim > 1)
    assert rms_ratio(one.weights, other.weights) < 1e-12


def test_a_row_s_region_is_drawn_for_it_whatever_its_batch() -> None:
    mixture, x = begun(), 3.0 * randn(4000, 3)
    drawn = mixture.draw(x, seed=1, step=4)
    parts = [mixture.draw(part, seed=1, step=4, row=1000 * i) for i, part in enumerate(x.split(1000))]
    assert torch.equal(torch.cat(parts), drawn)
    for other in ({"seed": 2, "step": 4}, {"seed": 1, "step": 5}, {"seed": 1, "step": 4, "row": 1}):
        assert not torch.equal(mixture.draw(x, **other), drawn)
    shares = mixture.responsibilities(x)
    hit = torch.nn.functional.one_hot(drawn, 3) - shares
    assert bool((hit.sum(0).abs() < 5 * (shares * (1 - shares)).sum(0).sqrt() + 1e-9).all())


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_forgetting_forgets_the_prior_too(kind: type[Structure]) -> None:
    mixture = begun(kind, forgetting=0.5)
    pseudo, count = mixture.covariance.moments.pseudo.clone(), mixture.covariance.count
    x = THREE.sample(1, seed=8)
    region = mixture.draw(x, step=0)
    mixture.update(x, step=0)
    assert rms_ratio(mixture.covariance.moments.pseudo, 0.5 * pseudo) < 1e-12
    assert rms_ratio(mixture.covariance.count, 0.5 * count + torch.nn.functional.one_hot(region[0], 3)) < 1e-12


def test_a_state_that_is_saved_an_older_one_and_conversions() -> None:
    mixture, x = begun(), THREE.sample(20)
    loaded = Mixture(AdaptiveCovariance(3, 3, "dense", rho=0.0, **NONE))
    loaded.load_state_dict(mixture.state_dict())
    assert torch.equal(loaded.denoise(x, 0.3), mixture.denoise(x, 0.3))
    assert torch.equal(loaded.weights, mixture.weights)
    old = {name: v for name, v in mixture.covariance.state_dict().items() if name != "moments.pseudo"}
    older = AdaptiveCovariance(3, 3, "dense", rho=0.0, **NONE).track()
    older.load_state_dict(old)
    assert torch.equal(older.count, older.moments.weight)
    dtypes = [b.dtype for b in mixture.buffers()]
    assert [b.dtype for b in mixture.half().double().to("cpu").buffers()] == dtypes
