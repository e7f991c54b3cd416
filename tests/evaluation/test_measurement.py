"""A number carries what it takes to read it, and an evaluation comes back from its file as it was."""

from __future__ import annotations

import dataclasses
import json
import math
import random
import re

import pytest

from ansn.errors import InputError
from ansn.evaluation import Evaluation, Measurement

FULL = Measurement(
    "Frechet distance", 0.21, 450, "digits-mlp-128-32", "train", 1347, 0.17, 450, 0.19, 0.23, "lower", "40 halves",
    0.55,
)  # fmt: skip
EVALUATION = Evaluation(
    settings={"n": 450, "seed": 3, "features": ["classifier"]},
    command="ansn-evaluate runs/digits --seed 3",
    run={"run": {"seed": 0}},
    provenance={"torch": "2.13.0", "machine": "a processor"},
    measurements=(FULL, Measurement("bits/dim", -1.5, 20)),
    quality=({"name": "Frechet distance", "method": "heun", "steps": 5, "evaluations": 9, "value": 0.3},),
    neighbours={"index": [[3, 1]], "distance": [[0.5, 0.75]], "space": "Euclidean, in pixels"},
    left_out=("inception: is not on disk",),
)


def test_a_number_is_told_with_all_of_its_meaning() -> None:
    told = str(FULL)
    assert told.startswith("Frechet distance 0.21 (0.19 to 0.23)")
    for field in dataclasses.fields(Measurement):
        assert str(getattr(FULL, field.name)) in told, field.name


def test_what_is_not_known_is_not_told() -> None:
    told = str(Measurement("sliced distance", 0.5, 10))
    assert "None" not in told
    assert "floor" not in told
    assert " to " not in told


def test_an_evaluation_comes_back_as_it_was() -> None:
    assert Evaluation.from_json(EVALUATION.to_json()) == EVALUATION


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_json_has_no_number_that_is_not_finite(value: float) -> None:
    broken = dataclasses.replace(EVALUATION, measurements=(dataclasses.replace(FULL, value=value, low=value),),
                                 quality=({"method": "heun", "value": value},))  # fmt: skip

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    json.loads(broken.to_json(), parse_constant=refuse)
    back = Evaluation.from_json(broken.to_json())
    assert math.isnan(back.measurements[0].value)
    assert back.measurements[0].low is None
    assert back.quality[0]["value"] is None


def test_damage_is_one_line_or_an_evaluation_that_can_be_told() -> None:
    text, chance = EVALUATION.to_json(), random.Random(0)
    words = ["null", "[]", "{}", "true", "-1", "1e999", '"x"', "2.5", "[1, [2]]", '{"value": 1}', "1" + "0" * 30]
    tokens = [match.span() for match in re.finditer(r'"[^"]*"|-?[0-9][0-9.e+-]*|null|true|[\[\]{},:]', text)]
    refused = 0
    for _ in range(2000):
        start, stop = chance.choice(tokens)
        try:
            found = Evaluation.from_json(text[:start] + chance.choice([*words, ""]) + text[stop:])
        except InputError:  # anything else is a failure
            refused += 1
        else:
            told = [*map(str, found.measurements), found.to_json()]
            assert all(map(len, told))
    assert refused > 1000


@pytest.mark.parametrize("text", ["[]", "{}", '{"format": 99}', '{"format": 1, "measurements": [{"value": 1}]}', "no"])
def test_other_text_is_no_evaluation(text: str) -> None:
    with pytest.raises(ValueError):
        Evaluation.from_json(text)
