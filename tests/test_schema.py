"""What of JSON fits a hint, and that everything else is one line."""

from __future__ import annotations

import dataclasses
import json
import os
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from ansn.errors import InputError
from ansn.schema import DEPTH, build, parse, read


@dataclass(frozen=True)
class Inner:
    at: tuple[float, int]
    names: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.at[0] < 0:
            raise ValueError(f"at: got {self.at[0]}, expected 0 or more")


@dataclass(frozen=True)
class Outer:
    many: tuple[Inner, ...]
    scores: dict[int, float]
    one: Inner | None = None
    word: Literal["a", "b", 1] = "a"
    free: Any = None
    flag: bool = False


INNER = Inner((0.5, 1), {"x": 2})
GOOD = Outer((INNER, Inner((1.0, 2))), {3: 1.5, -4: 0.0}, INNER, "b", {"any": [1, None]}, True)


def test_a_dataclass_comes_back_as_it_was() -> None:
    assert parse(json.dumps(dataclasses.asdict(GOOD)), Outer) == GOOD
    assert build(Outer, dataclasses.asdict(GOOD)) == GOOD
    assert parse(b'{"many": [], "scores": {}}', Outer) == Outer((), {})


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (int, [0, -(2**63), 2**63 - 1], [True, 1.0, "1", None, 2**63]),
        (float, [0, 1.5, -(2**63)], [True, "1", None, [1.0]]),
        (bool, [True, False], [0, 1, None, "true"]),
        (str, ["", "a\u00e9", "run\udcff"], [None, 1, ["a"], {}]),
        (Literal["a", 1], ["a", 1], [True, 1.0, "b", None, []]),
        (tuple[int, str], [[1, "a"]], [[1], ["a", 1], [1, "a", 2], {}, "1a", None]),
        (tuple[int, ...] | None, [[], [1, 2], None], [[1.5], [None], 1, {}]),
        (list[float], [[], [1, 2.5]], [[True], {}, None]),
        (dict[str, int], [{}, {"a": 1}], [{"a": "b"}, [], None]),
        (dict[int, int], [{}, {"1": 1, "-20": 2}], [{"a": 1}, {"01": 1}, {"1.0": 1}, {"": 1}, {"-": 1}]),
        (int | Literal["auto"], [3, "auto"], ["3", None, True]),
        (Any, [None, [1, {"a": []}], "x"], []),
    ],
)  # fmt: skip
def test_what_fits_a_hint(kind: Any, good: list[Any], bad: list[Any]) -> None:
    for value in good:
        found = parse(json.dumps(value), kind)
        assert json.loads(json.dumps(found)) == value
    for value in bad:
        with pytest.raises(InputError, match=r"^\S[^\n]*: got [^\n]+, expected [^\n]+$"):
            parse(json.dumps(value), kind)


def test_a_whole_number_serves_as_a_float() -> None:
    assert isinstance(parse("1", float), float)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "x: got a list, expected an object"),
        ({"scores": {}}, "x many: got nothing, expected a list"),
        ({"many": [], "scores": {}, "colour": 1}, "x colour: got an unknown name, expected one of many, scores, one,"),
        ({"many": [], "scores": {}, "a\nb": 1}, r"x 'a\nb': got an unknown name"),
        ({"many": [{"at": [0, 1]}, {"at": [0, "1"]}], "scores": {}}, "x many.1.at.1: got '1', expected a whole number"),
        ({"many": [], "scores": {"1": None}}, "x scores.1: got None, expected a number"),
        ({"many": [], "scores": {}, "one": {"at": [0, 1, 2]}}, "x one.at: got 3 values, expected 2"),
        ({"many": [], "scores": {}, "one": 3}, "x one: got 3, expected an object or null"),
        ({"many": [], "scores": {}, "one": {"at": [-1, 1]}}, "x one: at: got -1.0, expected 0 or more"),
        ({"many": [], "scores": {}, "word": "c" * 999}, "x word: got 'ccccccccc"),
    ],
)
def test_what_does_not_fit_is_named_by_its_path(values: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse(json.dumps(values), Outer, "x")
    assert str(caught.value).startswith(message)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "nul", "[1,]", "'a'", b"\xff", b"\xef\xbb\xbf1", "NaN", "-Infinity", "[1e999]", "1" + "0" * 5000,
        '{"a": 1, "a": 1}', r'"\ud800"', r'{"\udfff": 1}', str(2**63), "[" * 100_000, "[" * 500 + "]" * 500,
        '{"a":' * (DEPTH + 1) + "1" + "}" * (DEPTH + 1), "[" * 990,
    ],
)  # fmt: skip
def test_what_is_no_json_or_beyond_what_a_number_can_be(text: str | bytes) -> None:
    with pytest.raises(InputError, match=r"^x: .*got [^\n]+, expected [^\n]+$") as caught:
        parse(text, Any, "x")
    assert len(str(caught.value)) < 300


def test_values_may_lie_as_deep_as_is_said() -> None:
    parse("[" * DEPTH + "]" * DEPTH, Any)


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text("[1, 2]")
    assert read(path, list[int]) == [1, 2]
    assert read(path, list[int], most=6) == [1, 2]
    with pytest.raises(InputError, match=f"^{path}: got more than 5 bytes, expected at most as many$"):
        read(path, list[int], most=5)
    with pytest.raises(InputError, match=f"^{path} 0: got 1, expected text$"):
        read(path, list[str])
    with pytest.raises(OSError, match="No such file"):
        read(tmp_path / "y.json", Any)
    os.mkfifo(tmp_path / "pipe")
    for no_file in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(InputError, match="got no regular file, expected JSON"):
            read(no_file, Any)


def test_damage_gives_one_line_or_a_value_of_the_kind() -> None:
    text, chance = json.dumps(dataclasses.asdict(GOOD)).encode(), random.Random(0)
    refused = 0
    for _ in range(3000):
        damaged = bytearray(text)
        for _ in range(chance.randint(1, 3)):
            at = chance.randrange(len(damaged))
            damaged[at : at + chance.randint(0, 2)] = chance.choice(
                [b"", bytes([chance.randrange(256)]), b"null", b"1e400", b"{", b"[", b'"']
            )
        try:
            found = parse(bytes(damaged), Outer)
        except InputError:  # anything else is a failure
            refused += 1
        else:
            assert parse(json.dumps(dataclasses.asdict(found)), Outer) == found
    assert 2000 < refused < 3000
