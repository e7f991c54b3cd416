"""What every network must do: shape, independence of the batch, gradients, compilation, clear errors."""

from __future__ import annotations

from functools import partial
from typing import get_args, get_type_hints

import pytest
import torch

from ansn.choices import chosen_from
from ansn.config import NetworkConfig
from ansn.networks import MLP, NCSN, NETWORKS, NCSNv2, UNet, build
from tests.networks.helpers import TOL, awaken, inputs_for

IMAGE = (2, 8, 8)
CASES = {
    "ncsn": (partial(NCSN, 2, ngf=4, num_levels=3), IMAGE),
    "ncsn with classes": (partial(NCSN, 2, ngf=4, num_levels=3, num_classes=3), IMAGE),
    "ncsn unconditional": (partial(NCSN, 2, ngf=4, num_levels=None), IMAGE),
    "ncsnv2": (partial(NCSNv2, 2, ngf=4), IMAGE),
    "ncsnv2 with level and classes": (partial(NCSNv2, 2, ngf=4, conditioning="log", num_classes=3), IMAGE),
    "ncsnv2 with classes": (partial(NCSNv2, 2, ngf=4, num_classes=3), IMAGE),
    "unet": (partial(UNet, 2, width=8, stem_stride=1), IMAGE),
    "unet stem 2": (partial(UNet, 2, width=8, multipliers=(1, 2), stem_stride=2, num_classes=3), IMAGE),
    "unet unconditional": (partial(UNet, 2, width=8, multipliers=(1, 2), conditioning="none"), IMAGE),
    "unet line": (partial(UNet, 2, width=8, num_classes=3, axes=1), (2, 13)),
    "unet line stem 2": (partial(UNet, 2, width=8, multipliers=(1, 2), stem_stride=2, axes=1), (2, 13)),
    "unet volume": (partial(UNet, 2, width=8, multipliers=(1, 2), num_classes=3, axes=3), (2, 4, 5, 6)),
    "unet volume stem 2": (partial(UNet, 2, width=8, multipliers=(1, 2), stem_stride=2, axes=3), (2, 4, 5, 6)),
    "mlp": (partial(MLP, IMAGE, hidden=16), IMAGE),
    "mlp with classes": (partial(MLP, IMAGE, hidden=16, num_classes=3), IMAGE),
    "mlp unconditional": (partial(MLP, IMAGE, hidden=16, conditioning="none"), IMAGE),
}


@pytest.fixture(params=CASES, ids=lambda name: name.replace(" ", "-"))
def case(request):
    return CASES[request.param]


@pytest.fixture
def network(case):
    torch.manual_seed(0)
    return awaken(case[0]()).eval()


@pytest.fixture
def inputs(case, network):
    return inputs_for(network, case[1])


def test_output_has_the_shape_and_dtype_of_x(case, network):
    for batch in (1, 4):
        out = network(**inputs_for(network, case[1], batch))
        assert out.shape == (batch, *case[1])
        assert out.dtype == torch.float32
        assert torch.isfinite(out).all()


def test_a_sample_does_not_depend_on_its_batch(network, inputs):
    together = network(**inputs)
    assert together.abs().max() > 1e-3
    for i in range(4):
        alone = network(**{name: value[i : i + 1] for name, value in inputs.items()})
        torch.testing.assert_close(alone[0], together[i], **TOL["float32"])


def test_every_parameter_gets_a_finite_gradient(network, inputs):
    inputs["x"].requires_grad_()
    network(**inputs).square().sum().backward()
    assert torch.isfinite(inputs["x"].grad).all()
    assert inputs["x"].grad.any()
    for name, p in network.named_parameters():
        assert p.grad is not None, name
        assert torch.isfinite(p.grad).all(), name


def test_float64_works(network, inputs):
    single = network(**inputs)
    double = network.double()(**{n: v.double() if v.is_floating_point() else v for n, v in inputs.items()})
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), single, rtol=1e-3, atol=1e-3)


COMPILED = ("ncsn", "ncsnv2 with level and classes", "unet", "unet stem 2", "unet line", "unet volume stem 2")


@pytest.mark.parametrize(
    "name", [*(pytest.param(name, marks=pytest.mark.slow) for name in COMPILED[:2]), *COMPILED[2:], "mlp with classes"]
)
def test_compiles_as_one_graph(name):
    torch.compiler.reset()  # the case before would make sizes symbolic, which takes long
    torch.manual_seed(0)
    build_case, shape = CASES[name]
    network = awaken(build_case()).eval()
    inputs = inputs_for(network, shape)
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(**inputs), network(**inputs), **TOL["float32"])


def test_state_dict_round_trip(network, inputs):
    state = {name: value.clone() for name, value in network.state_dict().items()}
    before = network(**inputs)
    awaken(network, seed=5)
    assert not torch.equal(network(**inputs), before)
    network.load_state_dict(state)
    assert torch.equal(network(**inputs), before)


@pytest.mark.parametrize("name", CASES)
def test_construction_is_deterministic(name):
    states = []
    for options in ({}, {"inputs": 1}):
        torch.manual_seed(11)
        states.append(CASES[name][0](**options).state_dict())
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


# --- further inputs


@pytest.mark.parametrize("count", [2, 3])
def test_every_input_matters(case, count):
    torch.manual_seed(0)
    network = awaken(case[0](inputs=count)).eval()
    inputs = inputs_for(network, case[1])
    inputs["x"].requires_grad_()
    out = network(**inputs)
    assert out.shape == (4, *case[1])
    (out * torch.randn_like(out)).sum().backward()
    assert (inputs["x"].grad.flatten(2).norm(dim=2) > 1e-3).all()  # every channel of every input of every sample
    with pytest.raises(ValueError, match=rf"^x: got shape \[4, 2, .*\], expected \[B, {2 * count}, "):
        network(**{**inputs, "x": inputs["x"][:, :2]})
    with pytest.raises(ValueError, match=r"^inputs: got 0, expected a positive integer"):
        case[0](inputs=0)


def test_an_input_without_weights_changes_nothing(case, network, inputs):
    state = network.state_dict()
    first = "input.weight" if "input.weight" in state else "stem.weight"
    state[first] = torch.cat([state[first], torch.zeros_like(state[first])], dim=1)
    wider = case[0](inputs=2).eval()
    wider.load_state_dict(state)
    x = torch.cat([inputs["x"], torch.randn_like(inputs["x"])], dim=1)
    torch.testing.assert_close(wider(**{**inputs, "x": x}), network(**inputs), **TOL["float32"])


# --- errors


def test_wrong_inputs_are_named(network, inputs):
    for x in (inputs["x"][:, :1], inputs["x"][0], inputs["x"][:, None]):
        with pytest.raises(ValueError, match=r"^x: got shape \[.*\], expected \[B, 2, "):
            network(**{**inputs, "x": x})
    with pytest.raises(ValueError, match=r"^x: got torch.uint8, expected a floating dtype"):
        network(**{**inputs, "x": (255 * inputs["x"]).byte()})


def test_wrong_levels_are_named(network, inputs):
    if network.conditioning == "none":
        network(**inputs, level=None)
        return
    other = inputs["level"].double() if network.conditioning == "index" else inputs["level"].long()
    wrong = [
        (None, "got None"),
        (inputs["level"][:2], r"got shape \[2\], expected \[4\]"),
        (other, "expected"),
        (0.5, "got float, expected a tensor"),
    ]
    if network.conditioning == "index":
        wrong += [(inputs["level"] + 5, r"values 5\.\.7, expected 0\.\.2"), (inputs["level"] - 1, r"values -1\.\.1")]
    for level, message in wrong:
        with pytest.raises(ValueError, match=f"^level: .*{message}"):
            network(**{**inputs, "level": level})


def test_wrong_labels_are_named(network, inputs):
    if network.num_classes is None:
        with pytest.raises(ValueError, match=r"^y: got labels, expected None"):
            network(**inputs, y=torch.zeros(4, dtype=torch.int64))
        return
    for y, message in [
        (torch.zeros(4), "expected int64"),
        (torch.zeros(3, dtype=torch.int64), r"got shape \[3\]"),
        (torch.full((4,), 4), r"values 4\.\.4, expected 0\.\.3"),
    ]:
        with pytest.raises(ValueError, match=f"^y: .*{message}"):
            network(**{**inputs, "y": y})


def test_no_label_is_the_last_row(network, inputs):
    if network.num_classes is None:
        assert not hasattr(network.embedding, "table") or network.embedding.table is None
        return
    assert network.embedding.table.weight.shape[0] == network.num_classes + 1
    inputs["y"] = torch.full((4,), network.num_classes)
    with_last = network(**inputs)
    del inputs["y"]
    assert torch.equal(network(**inputs), with_last)


# --- build


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("shape", [(3, 18, 17), (3, 9), (3, 4, 6, 5)])
def test_build(name, shape):
    options = {"mlp": {"hidden": 16}, "unet": {"width": 8}}.get(name, {"ngf": 4})
    if name.startswith("ncsn") and len(shape) != 3:
        with pytest.raises(ValueError, match=r"^shape: got \(3, .*\), expected \(C, H, W\) for NCSN"):
            build(name, shape, **options)
        return
    for num_classes, count in ((None, 1), (10, 2)):
        network = build(name, shape, num_classes=num_classes, inputs=count, **options)
        assert network.num_classes == num_classes
        assert network(**inputs_for(network, shape, 2)).shape == (2, *shape)


def test_the_settings_know_every_network():
    assert get_args(chosen_from(get_type_hints(NetworkConfig, include_extras=True)["network"])) == tuple(NETWORKS)


def test_build_errors():
    with pytest.raises(
        ValueError, match=r"^name: got 'resnet', expected one of mlp, unet, ncsn, ncsnv2"
    ):
        build("resnet", (1, 8, 8))
    for name in ("ncsn", "ncsnv2", "unet"):
        with pytest.raises(ValueError, match=r"^shape: got \(2,\), expected .*\(C, H, W\).*; the MLP takes any"):
            build(name, (2,))
    with pytest.raises(ValueError, match=r"^shape: got 3x3, expected at least 4x4 for NCSN"):
        build("ncsn", (1, 3, 3))
    with pytest.raises(ValueError, match=r"^image_size: got 0x2, expected at least 1x1"):
        build("unet", (1, 0, 2))
    with pytest.raises(ValueError, match=r"^num_levels: got -1, expected a positive integer"):
        build("ncsn", (1, 8, 8), num_levels=-1)
    with pytest.raises(ValueError, match=r"^ngf: got 0, expected a positive integer"):
        build("ncsnv2", (1, 8, 8), ngf=0)
    with pytest.raises(ValueError, match=r"^conditioning: got 'index', expected one of none, log"):
        build("ncsnv2", (1, 8, 8), conditioning="index")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ncsnv2", "unet", "mlp"])
def test_compiles_with_inductor(name):
    torch.manual_seed(0)
    options = {"mlp": {"hidden": 16}, "unet": {"width": 8}, "ncsnv2": {"ngf": 4}}[name]
    network = awaken(build(name, IMAGE, **options))
    inputs = inputs_for(network, IMAGE)
    compiled = torch.compile(network, fullgraph=True)
    torch.testing.assert_close(compiled(**inputs), network(**inputs), rtol=1e-4, atol=1e-4)
