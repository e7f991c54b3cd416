"""Settings: what a file of them may hold, what may change on resuming, what is refused before anything starts."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from ansn.config import TrainConfig, differences, from_dict, to_dict, validate
from ansn.errors import InputError
from ansn.presets import PRESETS
from tests.training.helpers import change, group_of

FIELDS = [
    (g.name, f) for g in dataclasses.fields(TrainConfig) for f in dataclasses.fields(getattr(TrainConfig(), g.name))
]
NAMES = [f.name for _, f in FIELDS]

# How long, how fast, where to and what is drawn; everything else is what is trained.
MAY_CHANGE = {
    "steps", "data", "dataset",
    "method", "sample_steps", "step_eps", "sampler_levels", "start", "samples",
    "convention", "isotropic", "denoise",
    "out", "device", "autocast", "compile", "shard", "resume", "log_every", "checkpoint_every", "threads",
    "max_minutes",
}  # fmt: skip


def another(name: str) -> Any:
    """A value of the right type that is not the default."""
    given = {
        "structure": "diagonal", "root": "symmetric", "regions": "labels", "ladder": "paper", "network": "unet",
        "training_levels": "ladder", "prediction": "whitened", "skip": "wiener", "metric": "paper",
        "schedule": "cosine", "start": "uniform", "convention": "ncsn",
        "inputs": ("estimate",), "method": "paper", "blocks": 4, "multipliers": (1, 5), "sampler_levels": (2.0, 1.0, 3),
        "freeze_after": 77, "kind": "field", "standardise": "point", "header": True, "axes": "NHWC",
        "split_folders": ("train=a",), "ignore_columns": ("id",), "column_kinds": ("age=whole",),
    }  # fmt: skip
    if name in given:
        return given[name]
    default = getattr(getattr(TrainConfig(), group_of(name)), name)
    if isinstance(default, bool):
        return not default
    if isinstance(default, str) or name in ("data", "label_column"):
        return "other"
    if isinstance(default, float) or name in ("rho", "gamma", "eps", "tau_max", "step_eps", "max_minutes"):
        return 0.125
    return 3


def test_names_are_unique_because_options_have_no_prefix() -> None:
    assert len(set(NAMES)) == len(NAMES)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_trip_through_json(preset: str) -> None:
    config = PRESETS[preset][1]
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config
    validate(config)
    assert differences(config, config) == []


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_survives_json_and_counts_as_it_should(name: str) -> None:
    default = TrainConfig()
    config = change(default, **{name: another(name)})
    assert config != default
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config
    found = differences(default, config)
    if name in MAY_CHANGE:
        assert found == []
    else:
        (line,) = found
        assert line.startswith(f"{name}: ")
        assert line.endswith(f"-> {another(name)}")


def test_several_differences_are_all_told() -> None:
    config = change(TrainConfig(), width=7, seed=3, steps=9, rho=0.25)
    assert differences(TrainConfig(), config) == ["rho: None -> 0.25", "width: None -> 7", "seed: 0 -> 3"]


def test_missing_settings_take_their_defaults() -> None:
    assert from_dict({}) == TrainConfig()
    assert from_dict({"optim": {"steps": 5}}) == change(TrainConfig(), steps=5)


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ([], ("config: got a list", "an object")),
        ({"noise": 3}, ("config noise: got 3", "an object")),
        ({"colour": {}}, ("config colour", "unknown", "data, noise, network, optim, sampling, run")),
        ({"noise": {"colour": 1}}, ("config noise.colour", "unknown", "structure, rho")),
        ({"noise": {"rho": "much"}}, ("config noise.rho", "'much'")),
        ({"noise": {"structure": "sparse"}}, ("config noise.structure", "'sparse'")),
        (
            {"noise": {"regions": "many"}},
            ("config noise.regions", "'many'", "a whole number or one of none, labels, auto"),
        ),
        ({"network": {"inputs": ["twice"]}}, ("config network.inputs", "'twice'")),
        ({"optim": {"steps": 1.5}}, ("config optim.steps", "1.5")),
        ({"optim": {"steps": True}}, ("config optim.steps", "True")),
        ({"optim": {"lr": True}}, ("config optim.lr", "True")),
        ({"optim": {"steps": None}}, ("config optim.steps", "None")),
        ({"run": {"resume": 1}}, ("config run.resume", "1")),
        ({"network": {"multipliers": [1, "2"]}}, ("config network.multipliers",)),
        ({"network": {"multipliers": 2}}, ("config network.multipliers", "2")),
        ({"sampling": {"sampler_levels": [1.0, 0.1]}}, ("config sampling.sampler_levels",)),
    ],
)
def test_files_that_are_no_config(values: Any, parts: tuple[str, ...]) -> None:
    with pytest.raises(InputError) as caught:
        from_dict(values)
    for part in parts:
        assert part in str(caught.value)


def test_whole_numbers_serve_as_floats() -> None:
    assert from_dict({"optim": {"lr": 1}, "noise": {"rho": 0}}).optim.lr == 1


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("steps", [1], [0, -1]), ("batch_size", [1], [0]), ("lr", [1e-9], [0.0, -1.0, float("nan")]),
        ("adam_eps", [0.0], [-1e-9, float("nan")]), ("weight_decay", [0.0], [-1.0]), ("warmup", [0], [-1]),
        ("clip", [0.0], [-1.0, float("nan")]), ("ema", [0.0, 0.9999], [1.0, -0.1, float("nan")]),
        ("samples", [0], [-1]), ("sample_steps", [1, None], [0]), ("log_every", [1], [0]),
        ("checkpoint_every", [1], [0]), ("seed", [0, 2**63 - 1], [-1, 2**63]), ("threads", [1, None], [0]),
        ("max_minutes", [1e-3, None], [0.0, -1.0, float("nan")]),
        ("width", [1], [0]), ("regions", [2, "auto"], [1, 0, -1]),
        ("freeze_after", [2, None], [1, 0]), ("tau_max", [0.1, None], [0.0, float("nan")]),
        ("tau_min", [1e-5], [0.0, -1.0]), ("rungs", [2, None], [1, 0]),
        ("sampler_levels", [(2.0, 0.1, 2), None], [(0.1, 0.1, 3), (1.0, 0.0, 3), (1.0, 0.1, 1)]),
    ],
)  # fmt: skip
def test_numbers_at_the_edge(name: str, good: list[Any], bad: list[Any]) -> None:
    for value in good:
        validate(change(TrainConfig(), **{name: value}))
    for value in bad:
        with pytest.raises(InputError) as caught:
            validate(change(TrainConfig(), **{name: value}))
        assert f"--{name.replace('_', '-')}: got " in str(caught.value)
        assert "expected" in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"blocks": 2**31}, "blocks"), ({"width": 2**40}, "width"), ({"rungs": 10**9}, "rungs"),
        ({"network": "unet", "multipliers": (2,) * 40}, "multipliers"), ({"multipliers": (2**40,)}, "multipliers"),
        ({"network": "unet", "multipliers": ()}, "multipliers"), ({"regions": 10**8}, "regions"),
        ({"network": "unet", "multipliers": (1,) * 10, "blocks": 100}, "blocks"), ({"image_size": 10**9}, "image-size"),
        ({"network": "unet", "multipliers": (1, 1000), "width": 1000}, "width"), ({"samples": 10**9}, "samples"),
        ({"batch_size": 2**62}, "batch-size"), ({"steps": 2**62}, "steps"), ({"threads": 10**9}, "threads"),
        ({"sampler_levels": (2.0, 1.0, 10**9)}, "sampler-levels"), ({"lr": float("inf")}, "lr"),
        ({"clip": float("inf")}, "clip"), ({"weight_decay": float("nan")}, "weight-decay"),
    ],
)  # fmt: skip
def test_sizes_that_no_run_has_are_refused_in_stored_settings_too(settings: dict[str, Any], name: str) -> None:
    config = change(TrainConfig(), **settings)
    for check in (validate, lambda config: from_dict(to_dict(config))):
        with pytest.raises(InputError, match=f"{name.replace('-', '.')}: got .*, expected "):
            check(config)


def test_a_step_size_is_for_langevin() -> None:
    for method in ("langevin", "paper"):
        validate(change(TrainConfig(), method=method, step_eps=1e-5))
    for method in ("heun", "dpmpp_2m", "predictor_corrector"):
        with pytest.raises(InputError, match=f"--step-eps: got 1e-05 for {method}, expected no such option"):
            validate(change(TrainConfig(), method=method, step_eps=1e-5))


def test_settings_that_are_younger_than_a_checkpoint_are_what_it_was_trained_with() -> None:
    """A class-conditional run from before label dropout had none."""
    old = to_dict(change(TrainConfig(), class_conditional=True))
    del old["network"]["label_dropout"]
    assert from_dict(old).network.label_dropout == 0.0


@pytest.mark.parametrize("wrong", [{"prediction": "whitened"}, {"precondition": False}])
@pytest.mark.parametrize(("name", "given"), [("skip", "wiener"), ("skip", "mixture"), ("inputs", "estimate")])
def test_skip_and_inputs_need_a_preconditioned_denoiser(name: str, given: str, wrong: dict[str, Any]) -> None:
    value = (given,) if name == "inputs" else given
    with pytest.raises(
        InputError, match=f"^--{name}: got {given}, expected --prediction denoiser and --precondition with it$"
    ):
        validate(change(TrainConfig(), **{name: value}, **wrong))
    validate(change(TrainConfig(), skip="scalar", **wrong))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"skip": "mixture", "rho": 0.5}, "--skip: got mixture and --rho 0.5, expected --rho 0"),
        ({"skip": "mixture", "gamma": -1.0}, "--skip: got mixture and --gamma -1, expected --rho 0"),
        ({"inputs": ("estimate",) * 2}, "--inputs: got estimate estimate, expected each once"),
        ({"regions": "labels"}, "--regions: got labels, expected --class-conditional beside it"),
        ({"regions": 7, "class_conditional": True}, "--class-conditional: got it and --regions 7"),
        ({"regions": "auto", "class_conditional": True}, "--class-conditional: got it and --regions auto"),
        ({"skip": "mixture", "regions": 7, "label_dropout": 0.1}, "--label-dropout: got 0.1"),
    ],
)
def test_regions_that_do_not_fit_the_rest(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        validate(change(TrainConfig(), **settings))
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    "settings",
    [
        {"skip": "mixture", "rho": 0.0}, {"skip": "mixture", "gamma": 0.0}, {"skip": "mixture", "regions": "labels"},
        {"skip": "mixture", "regions": 3, "class_conditional": True}, {"regions": 3, "label_dropout": 0.1},
    ],
)  # fmt: skip
def test_regions_that_fit(settings: dict[str, Any]) -> None:
    validate(change(TrainConfig(), **settings))
