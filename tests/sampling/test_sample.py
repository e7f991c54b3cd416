"""``sample``: start, batches, seeds, labels, schedules and what it refuses; distribution with an exact denoiser."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ansn import AdaptiveCovariance, Denoiser, NoiseModel, levels, networks, sample
from ansn.covariance import STRUCTURES
from ansn.sampling import METHODS, Draw, heun, schedules
from tests.oracles import (
    ExactDenoiser,
    annealed_covariance,
    covariance_within_five_sigma,
    five_sigma,
    fixed_covariance,
    gaussian,
    noise_model,
    randn,
    spd,
)
from tests.tolerances import BATCH_INVARIANCE, rms_ratio

D = 4
QUICK = dict.fromkeys(METHODS, 5) | {"langevin": 2, "paper": 2}


def network(**options) -> networks.MLP:
    torch.manual_seed(0)
    out = networks.MLP((1, 2, 2), hidden=24, blocks=1, **options)
    nn.init.normal_(out.output.weight, std=0.2)
    return out


def trained(prediction: str = "denoiser", structure: str = "dense", **options) -> Denoiser:
    """A network with weights, on images in [0, 1]; its samples stay of that size."""
    x = torch.rand(200, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    covariance = AdaptiveCovariance((1, 2, 2), structure=structure).update(x).freeze()
    return Denoiser(network(**options), NoiseModel(covariance, levels.karras(4.0, 0.05)), prediction)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("structure", STRUCTURES)
def test_samples_do_not_depend_on_the_batch_size(method, structure):
    model = trained("whitened" if method == "paper" else "denoiser", structure)
    results = [sample(model, 20, method, QUICK[method], batch_size=size, seed=3) for size in (1, 7, 64)]
    assert results[0].shape == (20, 1, 2, 2)
    for other in results[1:]:
        assert float((other - results[0]).abs().max()) < BATCH_INVARIANCE
    assert float((sample(model, 5, method, QUICK[method], seed=3) - results[0][:5]).abs().max()) < BATCH_INVARIANCE


@pytest.mark.parametrize("method", METHODS)
def test_samples_are_a_function_of_the_seed(method):
    model = trained()
    one = sample(model, 6, method, QUICK[method], seed=3)
    assert torch.equal(sample(model, 6, method, QUICK[method], seed=3), one)
    assert not torch.equal(sample(model, 6, method, QUICK[method], seed=4), one)
    rows = one.flatten(1)
    assert float(torch.pdist(rows).min()) > 0, "two samples shared their noise"


@pytest.mark.parametrize("method", ["heun", "langevin"])
@pytest.mark.parametrize("prediction", ["denoiser", "whitened"])
def test_an_exact_denoiser_gives_the_data(method, prediction):
    """Mean and covariances within five standard errors of ``N(m, S)``; a short Langevin chain's, of what it must be."""
    mean, s = randn(D, seed=1), spd(D, 2)
    x = mean + randn(4000, D, seed=5) @ torch.linalg.cholesky(s).T
    covariance = AdaptiveCovariance(D, rho=0.5, factor_dtype=torch.float64).update(x).freeze()
    noise = NoiseModel(covariance, levels.karras(6.0, 0.02))
    target = gaussian(covariance.mean[0], covariance.covariance()[0])
    steps = 60 if method == "heun" else 6
    out = sample(ExactDenoiser(noise, target, prediction=prediction), 4000, method, steps, batch_size=4000, seed=2)
    centred = out - target.means[0]
    assert five_sigma(centred, 0.0)
    expected = target.covariances[0]
    if method == "langevin":
        taus = levels.geometric(6.0, 0.02, dim=D).tau
        expected = annealed_covariance(expected, covariance.noise_shape()[0], taus, steps)
    assert covariance_within_five_sigma(centred, expected)


def test_it_is_the_prior_and_the_sampler():
    model = ExactDenoiser(noise_model(fixed_covariance(spd(D))), gaussian(randn(D), spd(D, 2)))
    expected = heun(model, model.noise.prior(6, 3.0, seed=9), schedules.few_steps(3.0, 0.3, 8))
    assert rms_ratio(sample(model, 6, "heun", 8, seed=9), expected) < 1e-12


def test_schedules():
    """Flow: levels between the ladder's start and its end; Langevin: the ladder, or one whose rungs overlap."""

    def told(ladder: levels.Levels, method: str, steps: int, **options) -> list[float]:
        seen: list[float] = []
        model = ExactDenoiser(NoiseModel(fixed_covariance(D), ladder), gaussian(torch.zeros(D), spd(D)))
        sample(model, 2, method, steps, callback=lambda d: seen.append(float(d["sigma"])), **options)
        return seen

    ncsn, edm = levels.geometric(2.0, 0.1, n=6), levels.karras(2.0, 0.1, n=4)
    assert told(ncsn, "heun", 9) == pytest.approx(schedules.few_steps(2.0, 0.1, 9).tolist())
    assert told(ncsn, "heun", 9, schedule="karras") == pytest.approx(levels.karras(2.0, 0.1, n=9).tau)
    own = told(ncsn, "heun", 3, schedule=lambda top, bottom, n: torch.tensor([top, 1.0, bottom]))
    assert own == pytest.approx([2.0, 1.0, 0.1])
    lower = dataclasses.replace(ncsn, start=1.5)
    assert told(lower, "euler", 4) == pytest.approx(schedules.few_steps(1.5, 0.1, 4).tolist())
    assert told(lower, "langevin", 1) == pytest.approx(ncsn.tau)
    assert told(edm, "euler", 1) == pytest.approx([2.0])
    assert told(ncsn, "langevin", 1) == pytest.approx(ncsn.tau)
    assert told(edm, "langevin", 1) == pytest.approx(levels.geometric(2.0, 0.1, dim=D).tau)
    assert told(levels.paper(D), "heun", 20) == pytest.approx([1.2])
    assert told(ncsn, "heun", 3, taus=torch.tensor([1.0, 0.5])) == pytest.approx([1.0, 0.5])


def test_start_of_the_paper_is_uniform():
    """With levels too low to move it, the start is what comes out; elsewhere it is the Gaussian one."""
    x = 50.0 + randn(60, D)
    covariance = AdaptiveCovariance(D, factor_dtype=torch.float64).update(x).freeze()
    target = gaussian(covariance.mean[0], covariance.covariance()[0])
    model = ExactDenoiser(noise_model(covariance), target, prediction="whitened")
    tiny = {"taus": torch.tensor([1e-6], dtype=torch.float64), "eps": 1e-20}
    for method, options, uniform in (
        ("paper", {}, True), ("paper", {"start": "gaussian"}, False),
        ("langevin", {"denoise": False}, False), ("langevin", {"denoise": False, "start": "uniform"}, True),
    ):  # fmt: skip
        out = sample(model, 40, method, 1, **tiny, **options)
        assert bool(((out > -0.1) & (out < 1.1)).all()) == uniform, method


def test_labels():
    """A number for all, or one for each sample, sliced with the batches."""
    seen: list[Tensor] = []

    class Network(nn.Module):
        conditioning = "none"

        def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
            seen.append(y)
            return 0.0 * x

    model = Denoiser(Network(), noise_model(fixed_covariance(D)))
    sample(model, 5, "euler", 1, y=2)
    sample(model, 5, "euler", 1, y=torch.arange(5), batch_size=2)
    sample(model, 5, "euler", 1)
    assert [None if y is None else y.tolist() for y in seen] == [[2] * 5, [0, 1], [2, 3], [4], None]


def test_labels_change_a_class_conditional_network_s_samples():
    model = trained(num_classes=3)
    nn.init.normal_(model.network.layers[0].film.linear.weight)
    nn.init.normal_(model.network.layers[0].linear2.weight)
    one, two = (sample(model, 4, "heun", 4, y=k) for k in (0, 1))
    assert not torch.equal(one, two)
    mixed = sample(model, 4, "heun", 4, y=torch.tensor([0, 0, 1, 1]))
    assert float((mixed - torch.cat((one[:2], two[2:]))).abs().max()) < BATCH_INVARIANCE


def noisy() -> Denoiser:
    """With dropout, and a part that is frozen in evaluation mode, in a model that trains."""
    model = trained(dropout=0.5).train()
    nn.init.normal_(model.network.layers[0].linear2.weight)
    model.network.embedding.eval()
    return model


def modes(model: Denoiser) -> list[bool]:
    return [m.training for m in model.modules()]


def test_sampling_is_in_evaluation_mode_and_leaves_every_module_s_mode():
    model = noisy()
    before, weights = modes(model), [p.clone() for p in model.parameters()]
    first = sample(model, 3, "heun", 3)
    assert torch.equal(first, sample(model, 3, "heun", 3))
    with pytest.raises(ValueError, match=r"^taus"):
        sample(model, 1, taus=torch.tensor([1.0, 2.0]))
    assert modes(model) == before
    assert all(map(torch.equal, weights, model.parameters()))
    assert all(p.requires_grad for p in model.parameters())
    model.eval()
    assert torch.equal(first, sample(model, 3, "heun", 3))
    assert not any(modes(model))


def test_threads_share_a_model_that_trains():
    model = noisy()
    before, alone = modes(model), sample(model, 16, steps=8)
    with ThreadPoolExecutor(4) as pool:
        drawn = list(pool.map(lambda _: sample(model, 16, steps=8), range(8)))
    assert all(torch.equal(x, alone) for x in drawn)
    assert modes(model) == before


def test_a_draw_follows_what_the_model_learns_and_its_mode():
    model = trained(dropout=0.5).eval()
    draw = Draw(model, steps=3)
    for layer in model.train().network.layers:
        nn.init.normal_(layer.linear2.weight)
    wanted = sample(model, 4, steps=3)
    assert torch.equal(draw.batch(0, 4), wanted)
    with torch.no_grad():
        model.network.output.weight.mul_(2.0)
    assert not torch.equal(draw.batch(0, 4), wanted)
    assert torch.equal(draw.batch(0, 4), sample(model, 4, steps=3))


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel], ids=["compile", "parallel"])
def test_a_wrapped_model_is_drawn_from(wrap):
    model = trained().eval()
    assert torch.equal(sample(wrap(model), 3, steps=3), sample(model, 3, steps=3))
    with pytest.raises(TypeError, match=r"^model: got Linear, expected a Denoiser"):
        sample(nn.Linear(2, 2), 1)


def test_numbers_of_other_libraries():
    model, one = trained(), np.int64(1)
    wanted = sample(model, 3, steps=3, seed=1)
    assert torch.equal(sample(model, np.int64(3), steps=np.int32(3), seed=one, batch_size=np.int64(8)), wanted)
    levels = [4.0, 1.0, 0.1]
    assert torch.equal(sample(model, 3, taus=levels), sample(model, 3, taus=torch.tensor(levels, dtype=torch.float64)))
    told = trained(num_classes=3)
    assert torch.equal(sample(told, 3, y=[0, 2, 1]), sample(told, 3, y=torch.tensor([0, 2, 1])))
    assert torch.equal(sample(told, 3, y=np.int64(2)), sample(told, 3, y=2))
    for name, value in (("n", 2.5), ("seed", "1"), ("n", True)):
        with pytest.raises(TypeError, match=rf"^{name}: got .*, expected a whole number"):
            sample(model, **{"n": 1, name: value})


@pytest.mark.parametrize("y", [3, -1, [0, 1, 3]])
def test_a_class_that_was_never_learned_is_refused(y):
    with pytest.raises(ValueError, match=r"^y: got .*, expected labels 0\.\.2$"):
        sample(trained(num_classes=3), 3, y=y)
    model = trained(num_classes=3)
    model.label_dropout = 0.1
    assert sample(model, 3, y=3, steps=2).shape == (3, 1, 2, 2)
    with pytest.raises(ValueError, match=r"^y: got 4, expected labels 0\.\.2, or 3 for no class$"):
        sample(model, 3, y=4)


@pytest.mark.parametrize("taus", [[], 5.0, [1.0, np.nan], [np.inf, 1.0], [1.0, 2.0], [1.0, 0.0], [[1.0]], np.nan])
def test_levels_that_are_none_are_refused_when_a_draw_is_made(taus):
    for given in (taus, torch.tensor(taus)):
        with pytest.raises(ValueError, match=r"^taus: got .*, expected a tensor \[N\] of finite levels > 0"):
            Draw(trained(), taus=given)


def test_no_class_is_refused_where_the_class_is_the_region_too():
    covariance = AdaptiveCovariance((1, 2, 2), 3).update(torch.rand(90, 1, 2, 2), torch.arange(90) % 3).freeze()
    noise = NoiseModel(covariance, levels.karras(4.0, 0.05))
    model = Denoiser(network(num_classes=3), noise, label_dropout=0.1)
    for y in (3, [0, 3, 1]):
        with pytest.raises(ValueError, match=r"^y: got 3, expected labels 0\.\.2: the class is the region too$"):
            sample(model, 3, steps=2, y=y)
    assert torch.equal(sample(model, 3, steps=2, y=2), Draw(model, steps=2).batch(0, 3, torch.full((3,), 2)))


def test_levels_given_later_are_the_model_s():
    """The samples' spread is the data's, whatever ladder the model was made with."""
    x = torch.randn(4000, D, generator=torch.Generator().manual_seed(0))
    noise = NoiseModel(AdaptiveCovariance(D).update(x).freeze(), levels.karras(40.0, 0.01))
    model = Denoiser(networks.MLP((D,), hidden=8), noise)  # which gives 0 yet: the Wiener filter of the data
    noise.levels = levels.karras(4.0, 0.01)
    drawn = heun(model, noise.prior(4000))
    assert noise.tau.tolist() == pytest.approx(noise.levels.tau)
    assert 0.9 < float(drawn.std()) < 1.1
    with pytest.raises(AttributeError):
        noise.tau = torch.ones(3)


def test_a_progress_bar_changes_nothing():
    for batch_size in (2, 64):
        options = {"batch_size": batch_size, "seed": 1}
        shown = sample(trained(), 5, "heun", 3, progress=True, **options)
        assert torch.equal(shown, sample(trained(), 5, "heun", 3, **options))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("method", {"method": "ddim"}),
        ("n", {"n": 0}),
        ("batch_size", {"batch_size": 0}),
        ("y", {"y": [0, 1]}),
        ("steps", {"steps": 0}),
        ("schedule", {"schedule": "cosine"}),
        ("order", {"method": "exponential_ab", "order": 4}),
        ("eta", {"method": "dpmpp_2m_sde", "eta": -1.0}),
        ("s_churn", {"method": "heun_churn", "s_churn": float("nan")}),
        ("s_noise", {"method": "heun_churn", "s_noise": 0.0}),
        ("predictor", {"method": "predictor_corrector", "predictor": "heun"}),
        ("corrections", {"method": "predictor_corrector", "corrections": -1}),
        ("alpha", {"method": "predictor_corrector", "alpha": 4.0}),
        ("steps", {"method": "langevin", "steps": 0}),
        ("eps", {"method": "heun", "eps": 0.1}),
        ("x", {"x": torch.zeros(1)}),
        ("region", {"region": torch.zeros(1)}),
        ("row", {"method": "langevin", "row": 3}),
        ("extra", {"extra": 1}),
        ("start", {"start": "zeros"}),
        ("y", {"y": torch.zeros(3)}),
        ("y", {"y": torch.zeros(2, dtype=torch.int64)}),
    ],
)
def test_wrong_arguments_are_named(name, arguments):
    with pytest.raises(ValueError) as error:
        sample(trained(), **{"n": 3, **arguments})
    assert str(error.value).startswith(f"{name}:"), str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_option_is_told_what_there_is():
    with pytest.raises(
        ValueError, match=r"^epsilon: got an unknown option of 'langevin', expected eps, convention, precondition"
    ):
        sample(trained(), 1, "langevin", epsilon=0.1)


@pytest.mark.parametrize("method", METHODS)
def test_a_budget_of_evaluations_is_not_passed(method):
    model = trained("whitened" if method == "paper" else "denoiser")
    draw = Draw.within(model, method, 60)
    more = Draw(model, method, 1 + (len(draw.taus) if draw.method.flow else draw.options["steps"]))
    assert draw.evaluations <= 60 < more.evaluations
    with pytest.raises(ValueError, match=r"^evaluations: got 0, expected .* or more, one step of"):
        Draw.within(model, method, 0)
