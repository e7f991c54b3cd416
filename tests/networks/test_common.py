"""What every network must do: shape, independence of the batch, gradients, compilation, clear errors."""

from __future__ import annotations

import pytest
import torch

from ansn.networks import MLP, NAMES, NCSN, NCSNv2, UNet, build
from tests.networks.helpers import TOL, awaken, inputs_for

SHAPE = (2, 8, 8)
CASES = {
    "ncsn": lambda: NCSN(2, ngf=4, num_levels=3),
    "ncsn with classes": lambda: NCSN(2, ngf=4, num_levels=3, num_classes=3),
    "ncsn unconditional": lambda: NCSN(2, ngf=4, num_levels=None),
    "ncsnv2": lambda: NCSNv2(2, ngf=4),
    "ncsnv2 with level and classes": lambda: NCSNv2(2, ngf=4, conditioning="log", num_classes=3),
    "ncsnv2 with classes": lambda: NCSNv2(2, ngf=4, num_classes=3),
    "unet": lambda: UNet(2, width=8, stem_stride=1),
    "unet stem 2": lambda: UNet(2, width=8, multipliers=(1, 2), stem_stride=2, num_classes=3),
    "unet unconditional": lambda: UNet(2, width=8, multipliers=(1, 2), conditioning="none"),
    "mlp": lambda: MLP(SHAPE, hidden=16),
    "mlp with classes": lambda: MLP(SHAPE, hidden=16, num_classes=3),
    "mlp unconditional": lambda: MLP(SHAPE, hidden=16, conditioning="none"),
}


@pytest.fixture(params=CASES, ids=lambda name: name.replace(" ", "-"))
def network(request):
    torch.manual_seed(0)
    return awaken(CASES[request.param]()).eval()


def test_output_has_the_shape_and_dtype_of_x(network):
    for batch in (1, 4):
        out = network(**inputs_for(network, SHAPE, batch))
        assert out.shape == (batch, *SHAPE)
        assert out.dtype == torch.float32
        assert torch.isfinite(out).all()


def test_a_sample_does_not_depend_on_its_batch(network):
    inputs = inputs_for(network, SHAPE)
    together = network(**inputs)
    assert together.abs().max() > 1e-3
    for i in range(4):
        alone = network(**{name: value[i : i + 1] for name, value in inputs.items()})
        torch.testing.assert_close(alone[0], together[i], **TOL["float32"])


def test_every_parameter_gets_a_finite_gradient(network):
    inputs = inputs_for(network, SHAPE)
    inputs["x"].requires_grad_()
    network(**inputs).square().sum().backward()
    assert torch.isfinite(inputs["x"].grad).all()
    assert inputs["x"].grad.any()
    for name, p in network.named_parameters():
        assert p.grad is not None, name
        assert torch.isfinite(p.grad).all(), name


def test_float64_works(network):
    inputs = {n: v.double() if v.is_floating_point() else v for n, v in inputs_for(network, SHAPE).items()}
    single = network(**inputs_for(network, SHAPE))
    double = network.double()(**inputs)
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), single, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "name", ["ncsn", "ncsnv2 with level and classes", "unet", "unet stem 2", "mlp with classes"]
)
def test_compiles_as_one_graph(name):
    torch.manual_seed(0)
    network = awaken(CASES[name]()).eval()
    inputs = inputs_for(network, SHAPE)
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(**inputs), network(**inputs), **TOL["float32"])


def test_state_dict_round_trip(network):
    state = {name: value.clone() for name, value in network.state_dict().items()}
    inputs = inputs_for(network, SHAPE)
    before = network(**inputs)
    awaken(network, seed=5)
    assert not torch.equal(network(**inputs), before)
    network.load_state_dict(state)
    assert torch.equal(network(**inputs), before)


@pytest.mark.parametrize("name", CASES)
def test_construction_is_deterministic(name):
    states = []
    for _ in range(2):
        torch.manual_seed(11)
        states.append(CASES[name]().state_dict())
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


# --- errors


def test_wrong_images_are_named(network):
    inputs = inputs_for(network, SHAPE)
    for x in (inputs["x"][:, :1], inputs["x"][0], inputs["x"][:, None]):
        with pytest.raises(ValueError, match=r"^x: .*(expected|takes 2 channel)"):
            network(**{**inputs, "x": x})
    with pytest.raises(ValueError, match=r"^x: expected a floating dtype, got torch.uint8"):
        network(**{**inputs, "x": (255 * inputs["x"]).byte()})


def test_wrong_levels_are_named(network):
    inputs = inputs_for(network, SHAPE)
    if network.conditioning == "none":
        network(**inputs, level=None)
        return
    other = inputs["level"].double() if network.conditioning == "index" else inputs["level"].long()
    wrong = [
        (None, "got None"),
        (inputs["level"][:2], "expected shape"),
        (other, "expected"),
        (0.5, "tensor"),
    ]
    if network.conditioning == "index":
        wrong += [(inputs["level"] + 5, r"in 0\.\.2, got 5\.\.7"), (inputs["level"] - 1, r"got -1\.\.1")]
    for level, message in wrong:
        with pytest.raises(ValueError, match=f"^level: .*{message}"):
            network(**{**inputs, "level": level})


def test_wrong_labels_are_named(network):
    inputs = inputs_for(network, SHAPE)
    if network.num_classes is None:
        with pytest.raises(ValueError, match=r"^y: this network was built without num_classes"):
            network(**inputs, y=torch.zeros(4, dtype=torch.int64))
        return
    for y, message in [
        (torch.zeros(4), "expected int64"),
        (torch.zeros(3, dtype=torch.int64), "expected shape"),
        (torch.full((4,), 4), r"in 0\.\.3, got 4\.\.4"),
    ]:
        with pytest.raises(ValueError, match=f"^y: .*{message}"):
            network(**{**inputs, "y": y})


def test_no_label_is_the_last_row(network):
    if network.num_classes is None:
        assert not hasattr(network.embedding, "table") or network.embedding.table is None
        return
    assert network.embedding.table.weight.shape[0] == network.num_classes + 1
    inputs = inputs_for(network, SHAPE)
    inputs["y"] = torch.full((4,), network.num_classes)
    with_last = network(**inputs)
    del inputs["y"]
    assert torch.equal(network(**inputs), with_last)


# --- build


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("num_classes", [None, 10])
def test_build(name, num_classes):
    options = {"mlp": {"hidden": 16}, "unet": {"width": 8}}.get(name, {"ngf": 4})
    network = build(name, (3, 12, 10), num_classes=num_classes, **options)
    assert network.num_classes == num_classes
    assert network(**inputs_for(network, (3, 12, 10), 2)).shape == (2, 3, 12, 10)


def test_build_errors():
    with pytest.raises(
        ValueError, match=r"^name: expected one of 'ncsn', 'ncsnv2', 'unet', 'mlp', got 'resnet'"
    ):
        build("resnet", (1, 8, 8))
    for name in ("ncsn", "ncsnv2", "unet"):
        with pytest.raises(ValueError, match=r"^shape: .* takes images"):
            build(name, (2,))
    with pytest.raises(ValueError, match=r"^shape: images of 3x3 are too small for 'ncsn'"):
        build("ncsn", (1, 3, 3))
    with pytest.raises(ValueError, match=r"^image_size: 2x2 is too small"):
        build("unet", (1, 2, 2))
    with pytest.raises(ValueError, match=r"^num_levels: expected a positive integer, got -1"):
        build("ncsn", (1, 8, 8), num_levels=-1)
    with pytest.raises(ValueError, match=r"^ngf: expected a positive integer"):
        build("ncsnv2", (1, 8, 8), ngf=0)
    with pytest.raises(ValueError, match=r"^conditioning: expected one of 'none', 'log', got 'index'"):
        build("ncsnv2", (1, 8, 8), conditioning="index")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ncsnv2", "unet", "mlp"])
def test_compiles_with_inductor(name):
    torch.manual_seed(0)
    options = {"mlp": {"hidden": 16}, "unet": {"width": 8}, "ncsnv2": {"ngf": 4}}[name]
    network = awaken(build(name, SHAPE, **options))
    inputs = inputs_for(network, SHAPE)
    compiled = torch.compile(network, fullgraph=True)
    torch.testing.assert_close(compiled(**inputs), network(**inputs), rtol=1e-4, atol=1e-4)
