"""What a checkpoint says beside its tensors: it comes back as it was, and sizes of no run are refused at once."""

from __future__ import annotations

import dataclasses
import json
import time
from typing import Any

import pytest
import torch

from ansn.config import TrainConfig, from_dict, to_dict
from ansn.covariance import Choice, Found
from ansn.data.units import Affine, Column, Table
from ansn.errors import InputError
from ansn.levels import Levels
from ansn.training import build
from ansn.training.build import DataInfo
from ansn.training.state import Running, State
from tests.training.helpers import change

TABLE = Table((Column("a", scale=2.0), Column("b", "category", words=("x", "y", "z"), shares=(0.5, 0.25, 0.25))))
UNITS = json.loads(json.dumps(TABLE.to_json()))
INFO = DataInfo("t", "table", (4,), 0.0, UNITS, 40, ("u", "v"), (30, 10), None, "abc", ("a table",))
STATE = State(
    5, 40, TrainConfig(), INFO, Levels((2.0, 1.0), start=1.5), Choice("dense", {"dense": -1.5}, {"cosine": "no"}, 40),
    Found(3, "diagonal", {1: -1.0, 2: -0.5}, 40), [{"lr": 0.1, "params": [0]}], Running(steps=7),
)  # fmt: skip


def stored(**other: Any) -> dict[str, Any]:
    """STATE's JSON with some of its values replaced: a name, or names joined by a double underscore."""
    made = json.loads(json.dumps(dataclasses.asdict(STATE)))
    for path, value in other.items():
        *above, name = path.split("__")
        at = made
        for key in above:
            at = at[key]
        at[name] = value
    return made


def test_it_comes_back_as_it_was() -> None:
    assert State.of(stored()) == STATE
    assert isinstance(State.of(stored()).data.numbers, Table)
    least = {key: value for key, value in stored().items() if key not in ("found", "groups", "running")}
    assert State.of(least) == dataclasses.replace(STATE, found=None, groups=[], running=Running())


def test_formats_before_3_name_the_structure_in_the_settings() -> None:
    old = stored(format=2, config__noise__structure="diagonal")
    del old["structure"]
    found = State.of(old)
    assert found.structure == Choice("diagonal")
    assert found.config.data.test_fraction == 0.0  # they held out nothing
    with pytest.raises(InputError, match=r"^state.json structure.structure: got 'auto', expected one of"):
        State.of({**old, "config": to_dict(TrainConfig())})


@pytest.mark.parametrize(
    "wrong",
    [
        {"config": None}, {"config__network__blocks": 2**31}, {"config__noise__rungs": 10**9}, {"data": None},
        {"data__shape": [2**20, 2**20]}, {"data__shape": []}, {"data__shape": [0]}, {"data__shape": [5]},
        {"data__kind": "sound"}, {"data__classes": ["a"]}, {"data__counts": [1, -1]}, {"data__rows": -1},
        {"data__units": {"offset": [0.0], "scale": [1.0, 1.0], "shape": [4]}}, {"data__units": 3},
        {"data__units": {"columns": [], "label": None}}, {"data__levels": 10**9}, {"data__quantisation": -1.0},
        {"levels__tau": [1.0, 2.0]}, {"levels__tau": [1.0 / (i + 1) for i in range(100_001)]}, {"levels__start": 9.0},
        {"structure__structure": "sparse"}, {"found__regions": 2**31}, {"found__regions": 0}, {"found": []},
        {"found__scores": {"x": 1.0}}, {"step": -1}, {"step": 2**60}, {"step": True}, {"groups": {}},
        {"running__steps": -1}, {"running": 1.0}, {"colour": 1},
    ],
)  # fmt: skip
def test_what_no_run_has_is_one_line(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"^.*[a-z]: got [^\n]+, expected [^\n]+$"):
        State.of(stored(**wrong))


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "colour"}, {"scale": 0.0}, {"scale": float("inf")}, {"limit": -1.0}, {"digits": 10**9},
        {"values": (2.0, 1.0)}, {"words": ("a",)}, {"shares": (0.5,)}, {"form": "%10000000000d"}, {"form": "%"},
        {"kind": "category", "words": ("a", "b")}, {"kind": "category"}, {"step": float("nan")},
        {"kind": "binary", "words": ("a", "b"), "values": (0.0, 7.0)},
    ],
)  # fmt: skip
def test_columns_that_no_table_has(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^'c', .*: got .*, expected "):
        Column("c", **wrong)


@pytest.mark.parametrize(
    ("offset", "scale"), [(0.0, 0.0), (0.0, float("nan")), (float("inf"), 1.0), ([0.0, 0.0], 1.0), ([[0.0]], 1.0)]
)
def test_units_that_no_field_has(offset: Any, scale: Any) -> None:
    with pytest.raises(ValueError, match=r"^[a-z, ]+: got .*, expected "):
        Affine(torch.tensor(offset), torch.tensor(scale), (3,))


@pytest.mark.parametrize(
    "settings",
    [
        {"network": "mlp", "width": 2**16, "blocks": 128}, {"network": "unet", "width": 2**16, "blocks": 128,
         "multipliers": (1,)}, {"network": "unet", "width": 2**12, "blocks": 10, "multipliers": (1,) * 11 + (16,)},
        {"network": "ncsn", "width": 2**16}, {"network": "ncsnv2-deepest", "width": 2**16},
    ],
)  # fmt: skip
def test_shapes_of_the_largest_networks_take_no_time_and_no_memory(settings: dict[str, Any]) -> None:
    config = from_dict(to_dict(change(TrainConfig(), class_conditional=True, **settings)))
    classes = tuple(map(str, range(2**16)))
    info = DataInfo("x", "image", (3, 2**14, 2**14), 0.0, None, 10, classes, (1,) * len(classes), None, "", ())
    began = time.process_time()
    found = build.shapes(config, info, 10_000)
    assert sum(shape.numel() for shape in found.values()) > 10**9
    assert time.process_time() - began < 5


def test_shapes_are_those_of_the_network() -> None:
    for name in ("mlp", "unet", "ncsn"):
        config = change(TrainConfig(), network=name, width=8)
        info = DataInfo("x", "image", (1, 8, 8), 0.0, None, 10, (), (), None, "", ())
        network = build.network(config, info, 7, 3)
        assert build.shapes(config, info, 7, 3) == {name: value.shape for name, value in network.state_dict().items()}


@pytest.mark.parametrize("skip", ["mixture", "scalar"])
def test_tensors_of_other_sizes_are_refused_before_a_model_is_made(skip: str) -> None:
    config = change(TrainConfig(), width=8, skip=skip, regions=3)
    info = DataInfo("x", "image", (1, 4, 4), 0.0, None, 99, (), (), None, "", ())
    found, levels = Found(3, "diagonal", {}, 99), Levels((2.0, 1.0))
    model = build.denoiser(config, info, "diagonal", levels, found=build.regions(config, info, found))
    tensors = {"network": model.network.state_dict()}
    tensors |= {name: covariance.state_dict() for name, covariance in build.covariances(model).items()}
    build.check_fits(config, info, 2, found, tensors)
    larger = dataclasses.replace(info, shape=(1, 2**14, 2**14))
    for other in (
        (change(config, width=2**15), info, found), (config, larger, found), (change(config, blocks=128), info, found),
        (config, info, Found(2**16, "diagonal", {}, 99)),
    ):  # fmt: skip
        with pytest.raises(InputError, match=r"^[a-z]+.safetensors [a-z0-9_.]+: got .*, expected "):
            build.check_fits(other[0], other[1], 2, other[2], tensors)
    with pytest.raises(InputError, match="expected none"):
        build.check_fits(config, info, 2, found, tensors | {"network": tensors["network"] | {"x": torch.ones(1)}})
