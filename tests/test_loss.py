"""Denoising score matching: three metrics written out, and their gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ansn import AdaptiveCovariance, Denoiser, NoiseModel, dsm_loss, networks
from tests.oracles import five_sigma, fixed_covariance, noise_model, randn, spd
from tests.tolerances import rms_ratio

D = 4
METRICS = ("pixel", "whitened", "paper")


def network(dtype: torch.dtype = torch.float64, **options) -> networks.MLP:
    """One that does not give zero."""
    torch.manual_seed(0)
    out = networks.MLP((D,), hidden=16, blocks=1, **options)
    nn.init.normal_(out.output.weight, std=0.3)
    return out.to(dtype)


def written_out(model: Denoiser, x: Tensor, perturbed: Tensor, tau: Tensor, r: Tensor, metric: str, s: float) -> Tensor:
    """``w ||W (D - x)||^2 / d`` with explicit inverses, r the matrix R of each row ``[B, d, d]``."""
    away = model(perturbed, tau) - x
    wide = tau.unsqueeze(1)
    if metric == "pixel":
        weighted, w = away, (1 + tau**2) / (tau * s) ** 2
    else:
        root = torch.linalg.inv(torch.linalg.cholesky(r))
        matrix = root if metric == "whitened" else torch.linalg.inv(r)
        weighted = torch.einsum("bij,bj->bi", matrix, away) / (wide if metric == "whitened" else wide**2)
        w = 0.5
    return w * weighted.square().sum(1) / x.shape[1]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("prediction", ["denoiser", "whitened"])
@pytest.mark.parametrize("root", ["cholesky", "symmetric"])
def test_the_metrics_are_their_formulas(metric, prediction, root):
    """Value and gradient in every weight; ``whitened`` of a whitened network never sees x, only z's counters."""
    r = spd(D)
    model = Denoiser(network(), noise_model(fixed_covariance(r, root=root)), prediction)
    x = randn(6, D)
    perturbed, level = model.noise.perturb(x, tau=torch.linspace(0.2, 3.0, 6), step=3, row=2)
    got = dsm_loss(model, x, perturbed, level, metric, reduction="none")
    scale = float(model.noise.covariance.scale[0])
    expected = written_out(model, x, perturbed, level.tau, r.expand(6, -1, -1), metric, scale)
    assert got.shape == (6,)
    assert rms_ratio(got.detach(), expected.detach()) < 1e-10
    assert rms_ratio(dsm_loss(model, x, perturbed, level, metric).detach(), got.mean().detach()) < 1e-14
    ours = torch.autograd.grad(got.mean(), list(model.parameters()))
    theirs = torch.autograd.grad(expected.mean(), list(model.parameters()))
    for a, b in zip(ours, theirs, strict=True):
        assert rms_ratio(a, b) < 1e-9


def test_the_default_metric_is_the_prediction_s():
    for prediction, metric in (("denoiser", "pixel"), ("whitened", "whitened")):
        model = Denoiser(network(), noise_model(fixed_covariance(spd(D))), prediction)
        x = randn(6, D)
        perturbed, level = model.noise.perturb(x, step=0)
        assert torch.equal(dsm_loss(model, x, perturbed, level), dsm_loss(model, x, perturbed, level, metric))


def test_the_pixel_weight_does_not_know_the_data_s_units():
    """Data, shape and perturbed data times 10: the same loss."""
    x = randn(6, D)
    values = []
    for unit in (1.0, 10.0):
        model = Denoiser(network(), noise_model(fixed_covariance(unit**2 * spd(D))))
        perturbed, level = model.noise.perturb(unit * x, step=0)
        values.append(dsm_loss(model, unit * x, perturbed, level).item())
    assert values[0] == pytest.approx(values[1], rel=1e-12)


class Derived(Denoiser):
    """A user's, that changes nothing."""


class Fabric(nn.Module):
    """What accelerate, Fabric and DistributedDataParallel have in common: the module inside, which forward calls."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module, self.calls = module, 0

    def forward(self, *args, **extra):
        self.calls += 1
        return self.module(*args, **extra)


@pytest.mark.parametrize("metric", [None, *METRICS])
@pytest.mark.parametrize("prediction", ["denoiser", "whitened"])
@pytest.mark.parametrize("wrap", [Fabric, lambda m: torch.compile(m, backend="eager"), lambda m: Fabric(Fabric(m))])
def test_a_wrapped_model_has_the_model_s_loss_and_is_what_is_called(wrap, prediction, metric):
    model = Denoiser(network(), noise_model(fixed_covariance(spd(D))), prediction)
    x = randn(6, D)
    perturbed, level = model.noise.perturb(x, step=1)
    wrapped = wrap(model)
    value = dsm_loss(wrapped, x, perturbed, level, metric)
    assert value.item() == pytest.approx(dsm_loss(model, x, perturbed, level, metric).item(), rel=1e-9)
    assert getattr(wrapped, "calls", 1) == 1
    with pytest.raises(TypeError, match=r"^model: got Linear, expected a Denoiser, as it is or wrapped for training$"):
        dsm_loss(nn.Linear(D, D), x, perturbed, level)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("prediction", ["denoiser", "whitened"])
def test_a_region_s_rows_have_that_region_s_loss(metric, prediction):
    covariance = AdaptiveCovariance(D, regions=2, factor_dtype=torch.float64)
    singles = []
    for k in range(2):
        data = (k + 1.0) * randn(50, D, seed=k) + k
        covariance.update(data, torch.full((50,), k))
        singles.append(AdaptiveCovariance(D, factor_dtype=torch.float64).update(data).freeze())
    covariance.freeze()
    x, region = randn(6, D), torch.tensor([0, 1, 1, 0, 0, 1])
    model = Denoiser(network(num_classes=2), noise_model(covariance), prediction)
    perturbed, level = model.noise.perturb(x, region, tau=0.8, step=1)
    for of in (model, Derived(model.network, model.noise, prediction), torch.compile(model)):
        with pytest.raises(ValueError, match="region: got 2 regions and a network that is not told"):
            dsm_loss(of, x, perturbed, level, metric)
    rows = dsm_loss(model, x, perturbed, level, metric, reduction="none", y=region)
    for row, k in enumerate(region.tolist()):
        alone = Denoiser(model.network, noise_model(singles[k]), prediction)
        one, its = alone.noise.perturb(x[row : row + 1], tau=0.8, step=1, row=row)
        assert rms_ratio(one, perturbed[row : row + 1]) < 1e-10
        loss = dsm_loss(alone, x[row : row + 1], one, its, metric, y=region[row : row + 1])
        assert loss.item() == pytest.approx(rows[row].item(), rel=1e-9)


def test_class_labels_reach_the_network():
    model = Denoiser(network(num_classes=3), noise_model(fixed_covariance(D)))
    nn.init.normal_(model.network.layers[0].film.linear.weight)
    nn.init.normal_(model.network.layers[0].linear2.weight)
    x = randn(4, D)
    perturbed, level = model.noise.perturb(x, step=0)
    values = {dsm_loss(model, x, perturbed, level, y=torch.full((4,), k)).item() for k in range(3)}
    assert len(values) == 3


def test_a_label_that_there_is_none_of_is_refused():
    """Classes counted from 1, say: the last one would be learned as "no class"."""
    model = Denoiser(network(num_classes=3), noise_model(fixed_covariance(D)))
    x = randn(3, D)
    perturbed, level = model.noise.perturb(x, step=0)
    with pytest.raises(ValueError, match=r"^y: got 1\.\.3, expected labels 0\.\.2$"):
        dsm_loss(model, x, perturbed, level, y=torch.tensor([1, 2, 3]))
    model.label_dropout = 0.1
    assert dsm_loss(model, x, perturbed, level, y=torch.tensor([1, 2, 3])).isfinite()


@pytest.mark.parametrize("prediction", ["denoiser", "whitened"])
def test_half_precision_is_near(prediction):
    """bfloat16 data through a float32 loss."""
    model = Denoiser(network(torch.float32), noise_model(fixed_covariance(spd(D), dtype=torch.float32)), prediction)
    half = Denoiser(network(torch.bfloat16), noise_model(fixed_covariance(spd(D), dtype=torch.float32)), prediction)
    x = randn(64, D, dtype=torch.float32)
    exact = dsm_loss(model, x, *model.noise.perturb(x, step=0))
    rough = dsm_loss(half, x.bfloat16(), *half.noise.perturb(x.bfloat16(), step=0))
    assert rough.dtype == torch.float32
    assert rough.item() == pytest.approx(exact.item(), rel=0.03)


def test_wrong_arguments_are_named():
    model = Denoiser(network(), noise_model(fixed_covariance(D)))
    x = randn(3, D)
    perturbed, level = model.noise.perturb(x, step=0)
    for name, call in (
        ("metric", lambda: dsm_loss(model, x, perturbed, level, "l2")),
        ("reduction", lambda: dsm_loss(model, x, perturbed, level, reduction="sum")),
        ("x", lambda: dsm_loss(model, x[:2], perturbed, level)),
        ("x", lambda: dsm_loss(model, x, perturbed[:, :3], level)),
    ):
        with pytest.raises(ValueError) as error:
            call()
        assert str(error.value).startswith(f"{name}:"), str(error.value)
        assert "\n" not in str(error.value)


def test_a_network_of_classes_is_not_trained_without_them():
    model = Denoiser(network(num_classes=3), noise_model(fixed_covariance(D)))
    x = randn(3, D)
    perturbed, level = model.noise.perturb(x, step=0)
    with pytest.raises(ValueError, match=r"^y: got None for a network of 3 classes .*, expected int64 \[3\]$"):
        dsm_loss(model, x, perturbed, level)
    model.label_dropout = 0.1
    assert dsm_loss(model, x, perturbed, level).isfinite()


def test_arguments_in_another_order_are_named():
    model = Denoiser(network(), noise_model(fixed_covariance(D)))
    x = randn(3, D)
    perturbed, level = model.noise.perturb(x, step=0)
    for name, call in (
        ("level", lambda: dsm_loss(model, perturbed, level, x)),
        ("noise", lambda: Denoiser(model.noise, model.network)),
        ("covariance", lambda: NoiseModel(model.noise.levels, model.noise.covariance)),
        ("data", lambda: NoiseModel.for_data(x.numpy())), ("x", lambda: model(x.long(), 0.5)),
    ):  # fmt: skip
        with pytest.raises(TypeError, match=rf"^{name}: got .*, expected "):
            call()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("prediction", ["denoiser", "whitened"])
def test_what_is_not_known_has_no_part(metric, prediction):
    """Value and gradient are those of ``D - x`` with zeros there, whatever x holds; of all known, the plain loss's."""
    model = Denoiser(network(), noise_model(fixed_covariance(spd(D))), prediction)
    x, known = randn(6, D), randn(6, D, seed=1) > 0
    perturbed, level = model.noise.perturb(x, tau=torch.linspace(0.2, 3.0, 6), step=3)
    got = dsm_loss(model, x.where(known, torch.nan), perturbed, level, metric, known=known)
    away = model(perturbed, level.tau).detach() - x
    expected = dsm_loss(model, model(perturbed, level.tau).detach() - away * known, perturbed, level, metric,
                        known=torch.ones_like(known))  # fmt: skip
    assert got.item() == pytest.approx(expected.item(), rel=1e-9)
    assert not torch.isnan(torch.autograd.grad(got, model.network.output.weight)[0]).any()
    everything = dsm_loss(model, x, perturbed, level, metric, known=torch.ones_like(known))
    assert everything.item() == pytest.approx(dsm_loss(model, x, perturbed, level, metric).item(), rel=1e-9)


@pytest.mark.parametrize("metric", METRICS)
def test_no_gradient_comes_from_what_is_not_known(metric):
    """Of the denoiser's own numbers, and so of what they are made of: those of a row of which nothing is known get none
    at all."""
    offset = nn.Parameter(torch.zeros(6, D, dtype=torch.float64))

    class Shifted(Denoiser):
        def forward(self, *args, **extra):
            return super().forward(*args, **extra) + offset

    model = Shifted(network(), noise_model(fixed_covariance(spd(D))))
    x, known = randn(6, D), randn(6, D, seed=1) > 0
    known[2] = False
    perturbed, level = model.noise.perturb(x, step=3)
    (gradient,) = torch.autograd.grad(dsm_loss(model, x, perturbed, level, metric, known=known), offset)
    assert (gradient[~known] == 0).all()
    assert (gradient[known] != 0).all()


def test_the_best_denoiser_stays_the_best_where_numbers_are_missing_by_chance():
    """Of Gaussian data, the untrained network's own skip: where it is, the loss has no slope."""
    s = spd(D, 2)
    model = Denoiser(networks.MLP((D,), 16, 1).double(), noise_model(fixed_covariance(D, s=s), (1.0, 0.5)))
    nn.init.zeros_(model.network.output.weight)
    slopes: dict[str, list[Tensor]] = {metric: [] for metric in METRICS}
    for step in range(40):
        x, known = randn(500, D, seed=step) @ torch.linalg.cholesky(s).T, randn(500, D, seed=100 + step) > 0
        perturbed, level = model.noise.perturb(x, step=step)
        for metric in METRICS:
            loss = dsm_loss(model, x, perturbed, level, metric, known=known)
            slopes[metric] += torch.autograd.grad(loss, model.network.output.bias)
    assert all(five_sigma(torch.stack(found), 0.0) for found in slopes.values())


def test_a_mask_of_another_shape_or_kind_is_named():
    model = Denoiser(network(), noise_model(fixed_covariance(D)))
    x = randn(3, D)
    perturbed, level = model.noise.perturb(x, step=0)
    for known in (torch.ones(3, D), torch.ones(3, 1, dtype=torch.bool)):
        with pytest.raises(ValueError, match=r"^known: got .*, expected bool \[3, 4\]$"):
            dsm_loss(model, x, perturbed, level, known=known)
