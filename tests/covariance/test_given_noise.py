"""A fixed R beside a learned S: it stays what it is, and every consumer uses both, against closed forms in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ansn
from ansn import AdaptiveCovariance, Denoiser, NoiseModel, dsm_loss, levels, ops
from ansn.covariance import STRUCTURES, Structure
from ansn.sampling import METHODS, Mask, Posterior
from tests.covariance.exact import Rotated, root_of, rows_of
from tests.covariance.test_refresh import snapshot
from tests.oracles import ExactDenoiser, gaussian, randn, spd
from tests.tolerances import EXACT, rms_ratio

SHAPE, D, NOISE = (2, 3, 4), 24, 0.07
EYE = torch.eye(D, dtype=torch.float64)
SHAPES = {"variance": torch.tensor(NOISE, dtype=torch.float64), "variances": torch.linspace(0.01, 0.3, D).double(),
          "matrix": spd(D, 5, 0.01, 0.5)}  # fmt: skip
KINDS = [*STRUCTURES.values(), Rotated]


def given(form: str) -> tuple[Tensor, Tensor]:
    """R and a root of it, matrices."""
    r = SHAPES[form] * EYE if form != "matrix" else SHAPES[form]
    return r, torch.linalg.cholesky(r)


def made(kind: type[Structure], form: str = "variance") -> tuple[AdaptiveCovariance, Tensor, Tensor, Tensor]:
    """A covariance that learned rows, its mean, S and R as matrices."""
    r, root = given(form)
    x = rows_of(root_of(kind(SHAPE)), 200) @ root.T
    covariance = AdaptiveCovariance(SHAPE, 1, kind, noise=SHAPES[form], eps_floor=0.0, factor_dtype=torch.float64)
    covariance.orient(x)
    for part in x.split(60):
        covariance.update(part)
    return covariance.freeze().track(), x.mean(0), x.T.cov(), r


def whole(value: Tensor) -> Tensor:
    return value if value.ndim == 3 else torch.diag_embed(value)


@pytest.mark.parametrize("form", SHAPES)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_consumer_uses_both(kind: type[Structure], form: str):
    covariance, mean, s, r = made(kind, form)
    assert rms_ratio(whole(covariance.noise_shape())[0], r) < EXACT
    assert rms_ratio(whole(covariance.covariance())[0], s) < 1e-10
    x, tau = randn(7, D), torch.linspace(0.1, 9.0, 7, dtype=torch.float64)
    model = ExactDenoiser(NoiseModel(covariance, levels.Levels((40.0, 0.1))), gaussian(mean, s))
    sigma = model.sigma(tau, None)
    assert rms_ratio(covariance.filter(x, tau, center=covariance.center), gaussian(mean, s).denoised(x, sigma)) < 1e-10
    colored = covariance.color(EYE)
    assert rms_ratio(colored.T @ colored, r) < EXACT
    for back in (False, True):
        assert rms_ratio(covariance.whiten(covariance.color(x, transpose=back), transpose=back), x) < 1e-11
    noise = model.noise.perturb(x, tau=tau, step=3)[0] - x
    z = ops.colored_step(torch.zeros_like(x), b=1.0, step=3, stream=ops.PERTURB)
    assert rms_ratio(noise, covariance.color(z) * tau.unsqueeze(1)) < 1e-11
    pencil = covariance.pencil
    assert rms_ratio(pencil.outward(pencil.inward(x)), x) < 1e-11
    assert rms_ratio((pencil.dual(x) * pencil.outward(x)).sum(1), x.square().sum(1)) < 1e-11
    assert rms_ratio(pencil.adjoint(pencil.dual(x)), x) < 1e-11
    assert rms_ratio(pencil.log_volume(), 0.5 * torch.linalg.slogdet(r)[1].expand(1)) < EXACT
    assert rms_ratio(pencil.noise_diagonal()[0], r.diagonal()) < EXACT
    assert rms_ratio(covariance.scale.square(), s.diagonal().mean().expand(1)) < 1e-10
    assert rms_ratio(covariance.eigenvalues()[0], torch.linalg.eigvalsh(r)) < 1e-10
    values, vectors = torch.linalg.eigh(s)
    assert rms_ratio(covariance.pencil.variances()[0].sort().values, values) < 1e-10
    top = int(covariance.pencil.variances()[0].argmax())
    assert float((covariance.pencil.directions(EYE[top : top + 1])[0] @ vectors[:, -1]).abs()) > 1 - 1e-9
    start = covariance.pencil.start(torch.zeros(20000, D, dtype=torch.float64), 0.5)
    assert rms_ratio(start.T.cov(), s + 0.25 * r) < 0.06
    score = -torch.linalg.solve(s + sigma, (x - mean).unsqueeze(2)).squeeze(2)
    assert rms_ratio(model.score(x.reshape(7, *SHAPE), tau).flatten(1), score) < 1e-9
    found = ansn.log_likelihood(model, x.reshape(7, *SHAPE), steps=2, trace="exact").log_density
    assert rms_ratio(found, gaussian(mean, s).log_density(x, (0.1**2 * r).expand(7, -1, -1))) < 1e-8
    known = covariance.pencil.posterior(torch.tensor([2.0]))
    total = s + 4.0 * r
    assert rms_ratio(covariance.pencil.matrix(known)[0], s - s @ torch.linalg.solve(total, s)) < 1e-8


@pytest.mark.parametrize("form", SHAPES)
def test_samples_and_posteriors_of_a_structure_are_those_of_the_matrix(form: str):
    """The same rows, another structure in the same coordinates; starts and draws need no basis."""
    kind = STRUCTURES["separable"]
    x = rows_of(root_of(kind(SHAPE)), 200) @ given(form)[1].T
    operator = Mask(torch.arange(D).reshape(SHAPE) % 3 == 0, SHAPE)
    y = operator(x[:1].reshape(1, *SHAPE))[0]
    options: dict[str, Any] = {"noise": SHAPES[form], "eps_floor": 0.0, "factor_dtype": torch.float64}
    out: list[list[Tensor]] = []
    for structure in (kind, "dense"):
        known = {"root": "symmetric"} if form == "variance" else {}
        covariance = AdaptiveCovariance(SHAPE, 1, structure, **options, **known).orient(x).update(x).freeze()
        model = ExactDenoiser(NoiseModel(covariance, levels.karras(30.0, 0.1, n=8)), gaussian(x.mean(0), x.T.cov()))
        models = (model, Posterior(model, operator, y, 0.1))
        names = ("heun", "gaussian_2m", "langevin", "pc")
        out.append([ansn.sample(m, 4, name, 2, seed=1) for m in models for name in names if name in METHODS])
    for ours, dense in zip(*out, strict=True):
        assert rms_ratio(ours, dense) < 1e-8


@pytest.mark.parametrize("form", SHAPES)
def test_it_stays_while_s_is_learned_and_few_points_count_with_their_trace(form: str):
    r, root = given(form)
    options: dict[str, Any] = {"noise": SHAPES[form], "eps_floor": 0.0, "factor_dtype": torch.float64}
    covariance = AdaptiveCovariance(D, **options).track()
    x = 3.0 * randn(400, D) @ root.T
    for part in (x[:10], x[10:100], x[100:]):
        covariance.update(part)
        assert rms_ratio(covariance.noise_shape()[0], r) < EXACT
        if covariance.seen == 10:  # S counts as R, of the points' own trace in units of R
            level = torch.linalg.solve(r, part.T.cov()).trace() / D
            assert rms_ratio(covariance.filter(x[:3], 2.0), level / (level + 4.0) * x[:3]) < EXACT
    s = x.T.cov()
    assert rms_ratio(covariance.freeze().filter(x, 2.0), x @ torch.linalg.solve(s + 4.0 * r, s)) < 1e-10
    loaded = AdaptiveCovariance(D, **options)
    loaded.load_state_dict(covariance.state_dict())
    assert torch.equal(loaded.color(x[:3]), covariance.color(x[:3]))
    assert torch.equal(loaded.filter(x[:3], 2.0), covariance.filter(x[:3], 2.0))
    parts = [(merged := AdaptiveCovariance(D, **options)).gathering() for _ in range(2)]
    for i, part in enumerate(parts):
        part.update(x[i::2])
        merged.merge(part, points=200)
    assert rms_ratio(merged.mean[0], x.mean(0)) < EXACT
    if form != "variance":
        with pytest.raises(ValueError, match="noise: got a state of another noise shape"):
            AdaptiveCovariance(D, **options | {"noise": 2.0 * SHAPES[form]}).load_state_dict(covariance.state_dict())


@pytest.mark.parametrize("form", SHAPES)
def test_regions_in_float32_under_compile_and_with_gradients(form: str):
    r, root = given(form)
    x, region = (randn(300, D) * torch.linspace(0.5, 2.0, D)) @ root.T, torch.arange(300) % 2
    x[1::2] *= 2.0
    covariance = AdaptiveCovariance(D, 2, noise=SHAPES[form], eps_floor=0.0).update(x, region).freeze().track()
    v, owner = x[:6].float(), region[:6]

    def filtered(v: Tensor) -> Tensor:
        return covariance.pencil.filter(covariance.step(v, b=0.5, seed=1, region=owner), 0.7, owner)

    s = torch.stack([x[k::2].T.cov() for k in range(2)])
    noisy = covariance.step(v, b=0.5, seed=1, region=owner).double()
    exact = torch.stack([torch.linalg.solve(s[k] + 0.49 * r, row) @ s[k] for k, row in zip(owner, noisy, strict=True)])
    assert rms_ratio(filtered(v), exact) < 1e-5
    assert filtered(v).dtype == torch.float32
    assert rms_ratio(torch.compile(filtered, fullgraph=True, backend="aot_eager")(v), filtered(v)) < 1e-6
    one = covariance.pencil.one(1, torch.float64)
    row = x[:1].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda v: one.dual(one.filter(one.inward(v), 0.7)), (row,))
    with torch.autocast("cpu"):
        assert rms_ratio(filtered(v), exact) < 1e-5


def test_regions_that_are_found_need_isotropic_noise():
    covariance = AdaptiveCovariance(D, 2, noise=SHAPES["variances"])
    with pytest.raises(ValueError, match="covariance: got dense under a given noise, expected isotropic noise"):
        ansn.Mixture(covariance)


@pytest.mark.parametrize("form", SHAPES)
def test_an_s_and_an_r_that_are_both_given(form: str):
    s, r = spd(D, 7, 0.1, 30.0), given(form)[0]
    covariance = AdaptiveCovariance.fixed(torch.zeros(D), s, noise=SHAPES[form], factor_dtype=torch.float64)
    x = randn(5, D)
    assert rms_ratio(covariance.filter(x, 1.5), x @ torch.linalg.solve(s + 2.25 * r, s)) < 1e-10
    assert rms_ratio(covariance.covariance()[0], s) < EXACT


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise": 0.0}, r"noise: got 0.0, expected a variance > 0"),
        ({"noise": float("inf")}, r"noise: got inf, expected a variance > 0"),
        ({"noise": torch.tensor([1.0, 1.0, 0.0, 1.0])}, "noise: got variances that are not all finite and > 0"),
        ({"noise": torch.eye(4).flip(0)}, "noise: got a matrix that is no covariance, expected"),
        ({"noise": torch.ones(4, 4).triu() + 3 * torch.eye(4)}, "noise: got a matrix that is no covariance"),
        ({"noise": torch.full((4,), float("nan"))}, "noise: got variances that are not all finite"),
        ({"noise": torch.ones(3)}, r"noise: got shape \[3\], expected a variance, \[4\] or \[4, 4\]"),
        ({"noise": torch.ones(4), "initial": torch.ones(4)}, r"initial: got shape \[4\], expected a number"),
        ({"noise": 1.0, "rho": 0.5}, r"rho: got 0.5 beside noise, expected one of the two"),
        ({"noise": 1.0, "eps": 0.5}, r"eps: got 0.5 beside noise, expected one of the two"),
    ],
)
def test_wrong_arguments_are_named(options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        AdaptiveCovariance(4, **options)


@pytest.mark.parametrize(
    ("theirs", "ours", "name"),
    [({"rho": 1.0}, {"rho": 0.0}, "rho"), ({"gamma": 0.5}, {}, "rho"), ({"rho": 0.5, "eps": 0.1}, {}, "eps"),
     ({"eps_floor": 0.0}, {}, "eps_floor"), ({"noise": 2.0}, {"noise": 1.0}, "noise")],
)  # fmt: skip
def test_a_state_of_another_noise_is_refused(theirs, ours, name):
    """What is printed is what is there."""
    state = AdaptiveCovariance(3, **theirs).update(randn(50, 3)).state_dict()
    covariance = AdaptiveCovariance(3, **ours)
    before = snapshot(covariance)
    with pytest.raises(ValueError, match=rf"^{name}: got a state of {name} = .*, expected "):
        covariance.load_state_dict(state)
    assert snapshot(covariance) == before
    AdaptiveCovariance(3, **theirs).load_state_dict(state)
    del state["form"]  # a state of before
    covariance.load_state_dict(state)


@pytest.mark.parametrize("form", ["variances", "matrix"])
@pytest.mark.parametrize(("stored", "kept"), [(torch.float32, torch.float64), (torch.float64, torch.float32)])
def test_a_state_of_another_precision_is_of_the_same_noise(form: str, stored: torch.dtype, kept: torch.dtype):
    """R stays what is given, not what the state rounds it to; one that differs by more than rounding is refused."""
    x = randn(200, D) @ given(form)[1].T
    options: dict[str, Any] = {"noise": SHAPES[form], "eps_floor": 0.0}
    state = AdaptiveCovariance(D, **options, factor_dtype=stored).update(x).state_dict()
    before = {name: value.clone() for name, value in state.items()}
    covariance = AdaptiveCovariance(D, **options, factor_dtype=kept)
    exact = covariance.snapshot.factor.clone()
    covariance.load_state_dict(state)
    assert torch.equal(covariance.snapshot.factor, exact)
    assert all(torch.equal(state[name], before[name]) for name in state)
    other = AdaptiveCovariance(D, **options | {"noise": 1.001 * SHAPES[form]}, factor_dtype=kept)
    with pytest.raises(ValueError, match=r"^noise: got a state of another noise shape, expected the one"):
        other.load_state_dict(state)


@pytest.mark.parametrize("prediction", ["denoiser", "whitened"])
@pytest.mark.parametrize("noise", [1.0, [0.5, 1.5, 1.0], [[2.0, 0.5, 0.0], [0.5, 1.0, 0.0], [0.0, 0.0, 1.0]]])
def test_the_unit_of_the_noise_changes_nothing(noise, prediction):
    """R a hundred times larger and levels ten times smaller are the same noise: what the network sees, the loss and
    the levels that the data asks for are the same."""
    x = 3.0 * torch.randn(400, 3, generator=torch.Generator().manual_seed(0))
    found = []
    for factor in (1.0, 100.0):
        made = AdaptiveCovariance(3, noise=factor * torch.as_tensor(noise)).update(x).freeze()
        ladder = levels.flow(x, made)
        torch.manual_seed(0)
        model = Denoiser(nn.Linear(3, 3), NoiseModel(made, ladder), prediction)
        model.conditioning = "none"
        perturbed, level = model.noise.perturb(x, tau=2.0 / factor**0.5, step=0)
        tau = torch.tensor([ladder.maximum, ladder.minimum, ladder.start]) * factor**0.5
        found.append((tau, model(perturbed, level.tau), dsm_loss(model, x, perturbed, level)))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
