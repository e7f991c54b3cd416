"""Classifier-free guidance: the formula, its ends, its interval, regions, and who may ask for it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ansn import AdaptiveCovariance, Denoiser, NoiseModel, levels, networks, sample
from ansn.sampling import METHODS, Guided
from tests.tolerances import BATCH_INVARIANCE, rms_ratio

SHAPE, CLASSES = (1, 2, 2), 3
LABELS = torch.tensor([0, 1, 2, 1])


def model(prediction: str = "denoiser", regions: int = 1, label_dropout: float = 0.1, **options: Any) -> Denoiser:
    """A class-conditional network with weights that make the classes differ."""
    torch.manual_seed(0)
    network = networks.MLP(SHAPE, hidden=24, blocks=1, num_classes=CLASSES)
    for layer in (network.layers[0].film.linear, network.layers[0].linear2, network.output):
        nn.init.normal_(layer.weight, std=0.3)
    x = torch.rand(300, *SHAPE, generator=torch.Generator().manual_seed(0))
    region = torch.arange(300) % regions if regions > 1 else None
    covariance = AdaptiveCovariance(SHAPE, regions).update(x, region).freeze()
    noise = NoiseModel(covariance, levels.karras(4.0, 0.05))
    return Denoiser(network, noise, prediction, label_dropout=label_dropout, **options)


def points() -> Tensor:
    return torch.rand(4, *SHAPE, generator=torch.Generator().manual_seed(1))


def close(a: Tensor, b: Tensor) -> bool:
    return rms_ratio(a.detach(), b.detach()) < 1e-5  # float32, in batches of another size


@pytest.mark.parametrize("prediction", ["denoiser", "whitened"])
@pytest.mark.parametrize("sigma", [0.4, torch.tensor(0.4), torch.tensor([0.1, 0.4, 1.0, 3.0])], ids=["a", "b", "rows"])
def test_the_formula(prediction, sigma):
    """``D_null + w (D_y - D_null)``: w = 1 is conditional, w = 0 unconditional, 2 as far again."""
    denoiser, x = model(prediction), points()
    conditional, null = denoiser(x, sigma, y=LABELS), denoiser(x, sigma)
    assert not close(conditional, null)
    for weight in (1.0, 0.0, 2.0, -1.0):
        expected = weight * conditional + (1.0 - weight) * null
        assert close(Guided(denoiser, weight)(x, sigma, y=LABELS), expected)


def test_null_is_the_class_after_the_last():
    denoiser, x = model(), points()
    assert torch.equal(denoiser(x, 0.4), denoiser(x, 0.4, y=torch.full((4,), CLASSES)))


def test_it_acts_inside_its_interval():
    """Kynkaanniemi et al. 2024: outside, plain conditional; both ends belong to it; rows have levels of their own."""
    denoiser, x = model(), points()
    sigma = torch.tensor([0.2, 0.5, 1.0, 1.5])
    found = Guided(denoiser, 3.0, (0.5, 1.0))(x, sigma, y=LABELS)
    conditional, everywhere = denoiser(x, sigma, y=LABELS), Guided(denoiser, 3.0)(x, sigma, y=LABELS)
    inside = torch.tensor([False, True, True, False])
    assert close(found[inside], everywhere[inside])
    assert close(found[~inside], conditional[~inside])


def test_one_call_of_twice_the_rows_and_one_of_the_rows_outside():
    denoiser, seen = model(), []
    denoiser.network.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append((len(args[0]), kwargs["y"])), with_kwargs=True
    )
    guided = Guided(denoiser, 3.0, (0.5, 1.0))
    guided(points(), 0.7, y=LABELS)
    guided(points(), 2.0, y=LABELS)
    assert [n for n, _ in seen] == [8, 4]
    assert seen[0][1].tolist() == [*LABELS.tolist(), *[CLASSES] * 4]
    assert torch.equal(seen[1][1], LABELS)


def test_regions_shape_both_halves():
    denoiser, x = model(regions=2), points()
    region = torch.tensor([0, 1, 1, 0])
    conditional, null = denoiser(x, 0.4, region, y=LABELS), denoiser(x, 0.4, region)
    assert close(Guided(denoiser, 2.0)(x, 0.4, region, y=LABELS), 2.0 * conditional - null)


@pytest.mark.parametrize("method", METHODS)
def test_every_sampler_takes_it(method):
    """The weight 1 draws the class's samples, 0 unconditional ones, another weight others."""
    denoiser, steps = model(), METHODS[method].steps if METHODS[method].flow else 2
    draw = lambda **options: sample(denoiser, 4, method, steps, seed=1, **options)  # noqa: E731
    conditional, unconditional = draw(y=LABELS), draw()
    assert float((draw(y=LABELS, guidance=1.0) - conditional).abs().max()) < BATCH_INVARIANCE
    assert float((draw(y=LABELS, guidance=0.0) - unconditional).abs().max()) < BATCH_INVARIANCE
    assert torch.equal(draw(y=LABELS, guidance=2.0), sample(Guided(denoiser, 2.0), 4, method, steps, seed=1, y=LABELS))
    if method != "paper":  # whose steps of 2e-5 do not get anywhere in two
        assert float((draw(y=LABELS, guidance=2.0) - conditional).abs().max()) > 1e-3
        never = draw(y=LABELS, guidance=2.0, guidance_interval=(100.0, 200.0))
        assert float((never - conditional).abs().max()) < 1e-6


def test_guided_samples_do_not_depend_on_the_batch_size():
    whole = sample(model(), 4, "heun", 5, y=LABELS, guidance=2.0)
    parts = sample(model(), 4, "heun", 5, y=LABELS, guidance=2.0, batch_size=3)
    assert float((parts - whole).abs().max()) < BATCH_INVARIANCE


def test_where_regions_are_the_classes_the_class_is_drawn():
    """Without labels each sample is of a class in the data's proportions, guided towards it."""
    denoiser = model(regions=CLASSES)
    region = denoiser.noise.draw_regions(6, seed=3)
    drawn = sample(denoiser, 6, "heun", 4, seed=3, guidance=2.0)
    assert torch.equal(drawn, sample(denoiser, 6, "heun", 4, seed=3, guidance=2.0, y=region))


def test_unconditional_samples_need_label_dropout():
    assert sample(model(), 2, "heun", 2).shape == (2, *SHAPE)
    with pytest.raises(ValueError, match=r"^y: got None for a network of 3 classes trained without label dropout"):
        sample(model(label_dropout=0.0), 2, "heun", 2)


def test_mode_is_restored():
    denoiser = model().train()
    sample(denoiser, 2, "heun", 2, y=0, guidance=2.0)
    assert denoiser.training
    assert denoiser.network.training


WRONG: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "no dropout": ({"label_dropout": 0.0}, {"guidance": 2.0, "y": 1}, "guidance: got a model trained without label"),
    "no label": ({}, {"guidance": 2.0}, "y: got None, but guidance needs a class, expected int64 [2]"),
    "weight": ({}, {"guidance": float("nan"), "y": 1}, "guidance: got nan, expected a finite weight"),
    "interval": ({}, {"guidance": 2.0, "guidance_interval": (2.0, 1.0), "y": 1}, "guidance_interval: got 2.0, 1.0"),
    "negative": ({}, {"guidance": 2.0, "guidance_interval": (-1.0, 1.0), "y": 1}, "guidance_interval: got -1.0, 1.0"),
}


@pytest.mark.parametrize(("options", "arguments", "message"), WRONG.values(), ids=WRONG.keys())
def test_wrong_arguments_are_named(options, arguments, message):
    with pytest.raises(ValueError) as error:
        sample(model(**options), 2, "heun", 2, **arguments)
    assert str(error.value).startswith(message), str(error.value)
    assert "\n" not in str(error.value)
