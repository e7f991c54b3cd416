"""The denoiser: preconditioning written out, what the network is told, and the two predictions' common algebra."""

from __future__ import annotations

import copy
import types
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ansn
from ansn import AdaptiveCovariance, Denoiser, NoiseModel, levels, networks
from ansn.covariance import STRUCTURES, find
from ansn.skips import INPUTS, SKIPS, further_input, skip
from tests.oracles import fixed_covariance, gaussian, noise_model, randn, spd
from tests.tolerances import EXACT, rms_ratio

D = 4


class Recorder(nn.Module):
    """A fixed smooth map that remembers what it was given."""

    def __init__(self, conditioning: str | None = None) -> None:
        super().__init__()
        if conditioning is not None:
            self.conditioning = conditioning
        self.seen: list[tuple[Any, ...]] = []

    def forward(self, x: Tensor, level: Tensor | None = None, **extra: Any) -> Tensor:
        self.seen.append((x, level, extra))
        return torch.tanh(x.flip(-1)) + 0.1 * x


def covariance() -> AdaptiveCovariance:
    x = 2.0 + randn(60, D) @ torch.linalg.cholesky(spd(D)).T
    return AdaptiveCovariance(D, factor_dtype=torch.float64).update(x).freeze()


def test_preconditioning_is_the_formula():
    """``D = m + (x~ - m)/v^2 + (tau/v) s G((x~ - m)/(v s), ln(tau)/4)``, with the scalar skip."""
    shape, network = covariance(), Recorder()
    model = Denoiser(network, noise_model(shape), skip="scalar")
    x, tau = randn(6, D, seed=1), torch.linspace(0.1, 4.0, 6, dtype=torch.float64)
    out = model(x, tau)
    m, s, v = shape.center[0], shape.scale[0], (1 + tau**2).sqrt().unsqueeze(1)
    seen, level, _ = network.seen[0]
    assert rms_ratio(seen, (x - m) / (v * s)) < EXACT
    assert rms_ratio(level, tau.log() / 4) < EXACT
    assert rms_ratio(out, m + (x - m) / v**2 + tau.unsqueeze(1) / v * s * Recorder()((x - m) / (v * s))) < EXACT


def test_a_network_that_gives_zero_gives_the_denoiser_of_white_data():
    """Data ``N(m, R)``: the posterior mean is ``m + (x~ - m)/(1 + tau^2)``, in every direction at once."""
    shape = covariance()
    model = Denoiser(networks.MLP((D,), hidden=8).double(), noise_model(shape), skip="scalar")
    x = randn(5, D)
    assert rms_ratio(model(x, 2.0).detach(), shape.center[0] + (x - shape.center[0]) / 5) < EXACT


FAMILIES = [
    {"rho": 0.0}, {"rho": 0.5}, {"gamma": -0.5}, {"gamma": 0.5, "root": "symmetric"},
    *({"structure": name} for name in STRUCTURES if name != "dense"),
]  # fmt: skip


@pytest.mark.parametrize("options", FAMILIES, ids=str)
def test_a_wiener_skip_is_the_denoiser_of_gaussian_data(options):
    """``E[x | x~] = m + S (S + Sigma)^-1 (x~ - m)`` for every shape of the noise, where the network gives zero."""
    points = 2.0 + randn(60, D) @ torch.linalg.cholesky(spd(D)).T
    shape = AdaptiveCovariance((2, 2), factor_dtype=torch.float64, **options).update(points).freeze()
    model = Denoiser(networks.MLP((2, 2), hidden=8).double(), noise_model(shape), skip="wiener")
    x, tau = randn(5, D), torch.linspace(0.1, 4.0, 5, dtype=torch.float64)
    s, r = shape.covariance()[0], shape.noise_shape()[0]
    if "structure" not in options:
        assert rms_ratio(s, torch.cov(points.T)) < EXACT
    if r.ndim == 1:
        s, r = s.diag(), r.diag()
    exact = gaussian(points.mean(0), s).denoised(x, tau.square().reshape(-1, 1, 1) * r)
    assert rms_ratio(model(x.reshape(5, 2, 2), tau).detach(), exact.reshape(5, 2, 2)) < 1e-12


def test_a_wiener_skip_leaves_the_network_s_part_as_it_is():
    shape, x, tau = covariance(), randn(5, D), torch.linspace(0.1, 4.0, 5, dtype=torch.float64)
    scalar, wiener = (Denoiser(Recorder(), noise_model(shape), skip=skip) for skip in ("scalar", "wiener"))
    away = x - shape.center[0]
    difference = shape.pencil.filter(away, tau) - away / (1 + tau.square().unsqueeze(1))
    assert rms_ratio(wiener(x, tau) - scalar(x, tau), difference) < 1e-12
    assert torch.equal(scalar.network.seen[0][0], wiener.network.seen[0][0])


def test_a_wiener_skip_where_r_is_s_is_the_scalar_one():
    points = randn(60, D) @ torch.linalg.cholesky(spd(D)).T
    shape = AdaptiveCovariance(D, rho=1.0, eps=0.0, factor_dtype=torch.float64).update(points).freeze()
    x = randn(5, D)
    scalar, wiener = (Denoiser(Recorder(), noise_model(shape), skip=skip)(x, 0.7) for skip in ("scalar", "wiener"))
    assert rms_ratio(wiener, scalar) < 1e-12


def test_without_preconditioning_the_network_is_the_denoiser():
    network = Recorder()
    x = randn(5, D)
    out = Denoiser(network, noise_model(covariance()), precondition=False)(x, 0.7)
    assert torch.equal(network.seen[0][0], x)
    assert torch.equal(out, Recorder()(x))


@pytest.mark.parametrize("precondition", [False, True])
def test_a_whitened_network(precondition):
    """``D = x~ + tau L f``, f the network's output; its input is preconditioned or not."""
    shape, network = covariance(), Recorder()
    model = Denoiser(network, noise_model(shape), "whitened", precondition=precondition)
    x, tau = randn(5, D), torch.linspace(0.2, 2.0, 5, dtype=torch.float64)
    f = model.f(x, tau)
    v = (1 + tau**2).sqrt().unsqueeze(1)
    given = (x - shape.center[0]) / (v * shape.scale[0]) if precondition else x
    assert rms_ratio(f, Recorder()(given)) < EXACT
    assert rms_ratio(model(x, tau), x + tau.unsqueeze(1) * (f @ shape.snapshot.factor[0].T)) < EXACT


@pytest.mark.parametrize("prediction", ["denoiser", "whitened"])
@pytest.mark.parametrize("root", ["cholesky", "symmetric"])
def test_d_f_and_score_are_one_thing(prediction, root):
    """``D - x~ = tau L f = Sigma score`` for either prediction."""
    r = spd(D)
    model = Denoiser(Recorder(), noise_model(fixed_covariance(r, root=root)), prediction)
    factor = model.noise.covariance.snapshot.factor[0]
    x, tau = randn(5, D), torch.linspace(0.2, 2.0, 5, dtype=torch.float64)
    wide = tau.unsqueeze(1)
    away = model(x, tau) - x
    assert rms_ratio(wide * (model.f(x, tau) @ factor.T), away) < 1e-11
    assert rms_ratio(wide**2 * (model.score(x, tau) @ r), away) < 1e-11


def test_isotropic_is_preconditioned_at_r_identity():
    """EDM's own formula with unit data deviation."""
    model = Denoiser(Recorder(), noise_model(fixed_covariance(D)))
    x, tau = randn(5, D), 0.7
    skip, out, scale = 1 / (tau**2 + 1), tau / (tau**2 + 1) ** 0.5, 1 / (tau**2 + 1) ** 0.5
    assert rms_ratio(model(x, tau), skip * x + out * Recorder()(scale * x)) < EXACT


def test_conditioning():
    """log: ln(tau)/4; index: the nearest rung in the logarithm; none: nothing. Extra arguments go through."""
    ladder, x = (4.0, 1.0, 0.25), randn(5, D)
    tau = torch.tensor([4.0, 2.1, 1.9, 0.26, 0.01], dtype=torch.float64)
    y = torch.arange(5)
    for kind, expected in (("log", tau.log() / 4), ("index", torch.tensor([0, 0, 1, 2, 2])), ("none", None)):
        network = Recorder(kind)
        Denoiser(network, noise_model(fixed_covariance(D), ladder))(x, tau, y=y)
        _, level, extra = network.seen[0]
        assert (level is None) if expected is None else torch.equal(level, expected)
        assert extra["y"] is y


def test_called_as_k_diffusion_does():
    """``model(x, sigma * x.new_ones(B))`` and a number, a scalar and a row of one agree."""
    model, x = Denoiser(Recorder(), noise_model(covariance())), randn(5, D)
    out = model(x, 0.7 * x.new_ones([x.shape[0]]))
    for sigma in (0.7, torch.tensor(0.7, dtype=torch.float64), torch.tensor([0.7], dtype=torch.float64)):
        assert torch.equal(model(x, sigma), out)


@pytest.mark.parametrize("prediction", ["denoiser", "whitened"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_output_has_the_input_s_dtype(prediction, dtype):
    model = Denoiser(Recorder(), noise_model(fixed_covariance(D, dtype=torch.float32)), prediction)
    x = randn(5, D, dtype=dtype)
    for value in (model(x, 0.5), model.f(x, 0.5), model.score(x, 0.5)):
        assert (value.dtype, value.shape) == (dtype, x.shape)


@pytest.mark.parametrize("skip", ["scalar", "wiener"])
def test_regions_have_their_own_center_and_scale(skip):
    """And rows are not confused with regions where there happen to be as many."""
    shape = AdaptiveCovariance(D, regions=3, factor_dtype=torch.float64)
    for k in range(3):
        shape.update(5.0 * k + (k + 1) * randn(40, D, seed=k), torch.full((40,), k))
    shape.freeze()
    model, x, region = Denoiser(Recorder(), noise_model(shape), skip=skip), randn(3, D), torch.tensor([2, 0, 2])
    out = model(x, 0.5, region)
    for row, k in enumerate(region.tolist()):
        single = (
            AdaptiveCovariance(D, factor_dtype=torch.float64).update(5.0 * k + (k + 1) * randn(40, D, seed=k)).freeze()
        )
        alone = Denoiser(Recorder(), noise_model(single), skip=skip)
        assert rms_ratio(out[row], alone(x[row : row + 1], 0.5)[0]) < 1e-10
    for rows in (1, 3, 5):
        with pytest.raises(ValueError, match=r"region: got None, expected int64 \[\d\] because there are 3 regions"):
            model(randn(rows, D), 0.5)


@pytest.mark.parametrize(
    "options", [{}, {"prediction": "whitened"}, {"skip": "scalar"}], ids=["denoiser", "whitened", "scalar skip"]
)
def test_gradients_reach_the_network_and_x(options):
    network = networks.MLP((D,), hidden=8).double()
    nn.init.normal_(network.output.weight, generator=torch.Generator().manual_seed(0))
    model = Denoiser(network, noise_model(covariance()), **options)
    x = randn(3, D).requires_grad_()
    for quantity in (model, model.f, model.score):
        assert torch.autograd.gradcheck(lambda x: quantity(x, 0.5), (x,))  # noqa: B023
    model(x, 0.5).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in network.parameters())


def test_the_default_skip_is_the_wiener_filter_where_there_can_be_one():
    assert model_of().skip == "wiener"
    assert model_of(prediction="whitened").skip == "scalar"
    assert model_of(precondition=False).skip == "scalar"


def model_of(**options) -> Denoiser:
    return Denoiser(Recorder(), noise_model(covariance()), **options)


# -- skips and further inputs


class Halves(Recorder):
    """Takes one further input, and says so."""

    inputs = 2

    def forward(self, x: Tensor, level: Tensor | None = None, **extra: Any) -> Tensor:
        first, second = super().forward(x, level, **extra).chunk(2, 1)
        return first - second


def two_modes() -> NoiseModel:
    """Isotropic noise and a mixture of two regions."""
    x = randn(200, 2, 2) + 3.0 * (torch.arange(200) % 2).reshape(-1, 1, 1)
    covariance = AdaptiveCovariance((2, 2), rho=0.0, factor_dtype=torch.float64).update(x).freeze()
    mixture = find(x, 2, "dense", factor_dtype=torch.float64)[0]
    return NoiseModel(covariance, levels.Levels((3.0, 1.0, 0.3)), mixture=mixture)


def test_where_there_is_a_mixture_its_denoiser_is_the_default_skip():
    noise, x, tau = two_modes(), randn(5, 2, 2), torch.linspace(0.1, 3.0, 5, dtype=torch.float64)
    model = Denoiser(networks.MLP((2, 2), 8, 1).double(), noise)
    assert model.skip == "mixture"
    assert noise.mixture is not None
    assert rms_ratio(model(x, tau).detach(), noise.mixture.denoise(x, tau * noise.deviation)) < EXACT
    assert noise.deviation.item() == pytest.approx(noise.covariance.noise_shape()[0, 0, 0].item() ** 0.5)
    scalar = Denoiser(Recorder(), noise, skip="scalar")
    rest = Denoiser(Recorder(), noise)(x, tau) - model(x, tau)
    skip = noise.covariance.center.reshape(1, 2, 2)
    skip = skip + (x - skip) / (1 + tau.square().reshape(-1, 1, 1))
    assert rms_ratio(scalar(x, tau) - skip, rest.detach()) < 1e-10


@pytest.mark.parametrize("skip", SKIPS)
def test_the_network_sees_the_skip_s_estimate(skip):
    """``[B, 2 C, ...]``: the noisy data as ever, then ``(D_skip - m) / s``."""
    noise, network, x = two_modes(), Halves(), randn(5, 2, 2)
    out = Denoiser(network, noise, skip=skip, inputs=("estimate",))(x, 0.7)
    seen, plain = network.seen[0][0], Recorder()
    assert seen.shape == (5, 4, 2)
    silent = Denoiser(networks.MLP((2, 2), 8, 1).double(), noise, skip=skip)(x, 0.7).detach()
    Denoiser(plain, noise, skip=skip)(x, 0.7)
    assert torch.equal(seen[:, :2], plain.seen[0][0])
    center, scale = noise.covariance.center.reshape(1, 2, 2), noise.covariance.scale
    assert rms_ratio(seen[:, 2:], (silent - center) / scale) < 1e-12
    assert rms_ratio(out - silent, 0.7 / (1 + 0.49) ** 0.5 * scale * Halves()(seen)) < 1e-12


def test_one_more_skip_and_one_more_input_are_a_function_each():
    @skip("the mean")
    def middle(seen):
        return seen.mean.expand_as(seen.x)

    @further_input
    def level(seen):
        return (seen.tau_column * seen.scale).expand_as(seen.x)

    try:
        network = Halves()
        x, tau = randn(3, 2, 2), torch.tensor([0.1, 1.0, 2.0]).double()
        noise = two_modes()
        out = Denoiser(network, noise, skip="middle", inputs=("level",))(x, tau)
        wide = tau.reshape(-1, 1, 1)
        assert rms_ratio(network.seen[0][0][:, 2:], (wide * noise.covariance.scale).expand(3, 2, 2)) < EXACT
        rest = wide / (1 + wide**2).sqrt() * noise.covariance.scale * Halves()(network.seen[0][0])
        assert rms_ratio(out, noise.covariance.center.reshape(1, 2, 2) + rest) < EXACT
    finally:
        del SKIPS["middle"], INPUTS["level"]


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("prediction", lambda: model_of(prediction="noise")),
        ("skip", lambda: model_of(skip="gaussian")),
        ("skip", lambda: model_of(skip="wiener", prediction="whitened")),
        ("skip", lambda: model_of(skip="wiener", precondition=False)),
        ("mixture", lambda: model_of(skip="mixture")),
        ("inputs", lambda: model_of(inputs=("guess",))),
        ("inputs", lambda: model_of(inputs=("estimate",), precondition=False)),
        ("inputs", lambda: model_of(inputs=("estimate",), prediction="whitened")),
        ("network.inputs", lambda: Denoiser(Halves(), noise_model(covariance()))),
        ("network.inputs", lambda: Denoiser(networks.MLP((D,), 8, 1), noise_model(covariance()), inputs=("estimate",))),
        ("network.conditioning", lambda: Denoiser(Recorder("sigma"), noise_model(covariance()))),
        ("x", lambda: model_of()(randn(3, D + 1), 0.5)),
        ("x", lambda: model_of()(randn(3, 2, 2), 0.5)),
        ("sigma", lambda: model_of()(randn(3, D), 0.0)),
        ("sigma", lambda: model_of()(randn(3, D), float("nan"))),
        ("sigma", lambda: model_of()(randn(3, D), torch.ones(2))),
        ("sigma", lambda: model_of()(randn(3, D), torch.ones(3, 1))),
    ],
)
def test_wrong_arguments_are_named(name, call):
    with pytest.raises(ValueError) as error:
        call()
    assert str(error.value).startswith(f"{name}:"), str(error.value)
    assert "\n" not in str(error.value)


# -- label dropout


def conditional(label_dropout: float, num_classes: int | None = 3) -> Denoiser:
    network = networks.MLP((4,), hidden=8, blocks=1, num_classes=num_classes)
    return Denoiser(network, noise_model(fixed_covariance(4)), label_dropout=label_dropout)


def test_withheld_labels_are_a_share_and_a_function_of_seed_step_and_row():
    model, y = conditional(0.3), torch.arange(6000) % 3
    told = model.withhold(y, seed=1, step=5)
    hidden = told == 3
    assert torch.equal(told[~hidden], y[~hidden])
    share = hidden.double().mean()
    assert abs(float(share) - 0.3) < 5 * (0.3 * 0.7 / 6000) ** 0.5
    assert torch.equal(model.withhold(y[100:150], seed=1, step=5, row=100), told[100:150])
    for seed, step in ((2, 5), (1, 6)):
        other = model.withhold(y, seed=seed, step=step) == 3
        # Independent: both are hidden in 0.09 of the rows.
        assert abs(float((other & hidden).double().mean()) - 0.09) < 5 * (0.09 * 0.91 / 6000) ** 0.5
    # Whether a row's label is hidden has nothing to do with its level.
    tau = model.noise.draw_levels(6000, seed=1, step=5)
    assert abs(float(torch.corrcoef(torch.stack((tau.log().double(), hidden.double())))[0, 1])) < 5 / 6000**0.5


def test_without_dropout_nothing_is_withheld():
    y = torch.arange(50) % 3
    assert conditional(0.0).withhold(y, seed=1, step=5) is y


@pytest.mark.parametrize(
    ("share", "classes", "message"),
    [
        (1.0, 3, r"^label_dropout: got 1.0, expected a probability in \[0, 1\)"),
        (-0.1, 3, r"^label_dropout: got -0.1"),
        (0.1, None, r"^label_dropout: got 0.1 for a network without classes"),
    ],
)
def test_wrong_label_dropout_is_named(share, classes, message):
    with pytest.raises(ValueError, match=message):
        conditional(share, classes)


# -- other people's networks and numbers ----------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", ["denoiser", "whitened"])
@pytest.mark.parametrize("conditioning", ["log", "index", "none"])
@pytest.mark.parametrize("inner", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("outer", [torch.float32, torch.float64])
def test_a_network_is_called_in_its_dtype(outer, inner, conditioning, prediction):
    """x and the level are cast at its border, and the output back."""
    given = []

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.line, self.conditioning = nn.Linear(D, D), conditioning

        def forward(self, x, level=None):
            given.append((x.dtype, None if level is None else level.dtype))
            return self.line(x)

    shape = covariance()
    model = Denoiser(Net().to(inner), noise_model(shape), prediction)
    x = randn(3, D).to(outer)
    out = model(x, 0.5)
    level = {"log": inner, "index": torch.int64, "none": None}[conditioning]
    assert (out.dtype, given) == (outer, [(inner, level)])
    wide = Denoiser(copy.deepcopy(model.network).double(), model.noise, prediction)(x.double(), 0.5)
    assert rms_ratio(out.double(), wide) < (1e-6 if inner == torch.float64 else 0.02)


def test_a_network_of_several_dtypes_is_called_in_x_s():
    """Where a part of it has that one: the first is a table of half precision, or a number."""

    class Net(nn.Module):
        def __init__(self, first):
            super().__init__()
            self.first, self.line = nn.Parameter(torch.zeros((), dtype=first)), nn.Linear(D, D)

        def forward(self, x, level):
            return self.line(x) + self.first.to(x.dtype)

    for first in (torch.float64, torch.float16):
        assert Denoiser(Net(first), noise_model(covariance()))(randn(3, D).float(), 0.5).dtype == torch.float32


@pytest.mark.parametrize("skip", ["scalar", "wiener"])
@pytest.mark.parametrize("region", [-1, 2])
def test_a_region_that_there_is_none_of_is_refused(region, skip):
    shape = AdaptiveCovariance(D, 2).update(randn(60, D), torch.arange(60) % 2)
    with pytest.raises(ValueError, match=r"^region: got values .*, expected 0\.\.1"):
        Denoiser(Recorder(), noise_model(shape), skip=skip)(randn(3, D), 0.5, torch.tensor([0, 1, region]))


@pytest.mark.parametrize("default", [torch.float32, torch.float64])
def test_programs_in_double_precision(default):
    """Training, sampling and likelihood of ``model.double()``, and under a default dtype of float64."""
    torch.set_default_dtype(default)
    try:
        torch.manual_seed(0)
        x = torch.randn(64, D, dtype=torch.float32)
        noise = NoiseModel(AdaptiveCovariance(D).update(x), levels.karras(5.0, 0.01))
        model = Denoiser(networks.MLP((D,), hidden=8), noise).double()
        perturbed, level = noise.perturb(x, step=0)
        assert ansn.dsm_loss(model, x, perturbed, level).isfinite()
        assert ansn.sample(model, 4, steps=3).isfinite().all()
        assert ansn.log_likelihood(model, x[:2], steps=2).log_density.isfinite().all()
    finally:
        torch.set_default_dtype(torch.float32)


def test_an_output_that_is_no_tensor():
    shape, x = covariance(), randn(3, D)
    plain = Recorder()
    wanted = Denoiser(plain, noise_model(shape))(x, 0.5)
    made = (lambda y: (y, 1.0), lambda y: [y], lambda y: types.SimpleNamespace(sample=y))
    for make in made:
        net = Recorder()
        net.forward = lambda *args, make=make: make(plain(*args))
        assert torch.equal(Denoiser(net, noise_model(shape))(x, 0.5), wanted)
    for bad in (None, (), {"x": x}, torch.distributions.Normal(x, x.exp()), x.long(), x.cfloat()):
        net.forward = lambda *args, bad=bad: bad
        with pytest.raises(TypeError, match=r"^network: got an? .*, expected a tensor of real numbers; or wrap it:"):
            Denoiser(net, noise_model(shape))(x, 0.5)


@pytest.mark.parametrize("shape", [(3, 1), (1, D), (3, 2 * D), (3 * D,)])
def test_an_output_of_another_shape_is_refused(shape):
    """It would be broadcast in silence."""
    net = Recorder()
    net.forward = lambda *args: torch.zeros(shape)
    with pytest.raises(ValueError, match=rf"^network: got an output of shape .*, expected \[3, {D}\]$"):
        Denoiser(net, noise_model(covariance()))(randn(3, D), 0.5)


@pytest.mark.parametrize("sigma", [0.0, -1.0, float("nan"), float("inf")])
def test_levels_that_are_none_are_refused_as_tensors_too(sigma):
    model = Denoiser(Recorder(), noise_model(covariance()))
    for given in (sigma, torch.tensor(sigma), torch.tensor([1.0, sigma, 2.0])):
        with pytest.raises(ValueError, match=r"^sigma: got "):
            model(randn(3, D), given)
    assert model(randn(0, D), torch.ones(0)).shape == (0, D)
