"""Seeded damage of a file's bytes, and of the values of JSON."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from typing import Any

WORDS = (
    b"[" * 100_000, b'{"a":' * 5_000, b"NaN", b"-1", b"1e999", b"2147483648", b"-9223372036854775809", b"true", b"null",
    b'"\\ud800"', b"\xff\xfe", b"\x00" * 64, b"9" * 5_000, b'"' + b"k" * 100_000 + b'": 1, ', b",", b"}", b"]", b"\n",
    b"'", b"0x10", b"1e-400", b"-", b"inf",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 2**31, 2**31 - 1, 2**63, -(2**63) - 1, 10**30, 0.5, 1e-320, 1e308, -0.0,
    float("nan"), float("inf"), float("-inf"), "", "x", "\ud800", "\x00", "../../etc", "a" * 100_000, [], {}, [[]],
    [None], {"": None}, [0] * 10_000, {"a": {"b": {}}}, [1, "a"], "1", "nan",
)  # fmt: skip


def mutated(rng: random.Random, content: bytes) -> bytes:
    """One to three times damaged."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        content = rng.choice(_BYTES)(rng, content)
    return content


def mutated_json(rng: random.Random, content: bytes) -> bytes:
    """The bytes or, more often, the values."""
    if rng.random() < 0.35:
        return mutated(rng, content)
    value = json.loads(content)
    for _ in range(rng.choice((1, 1, 1, 2))):
        value = _edited(rng, value)
    text = json.dumps(value, indent=rng.choice((None, 1)))
    return text.encode("utf-8", "surrogatepass")


def _span(rng: random.Random, content: bytes) -> tuple[int, int]:
    start = rng.randrange(len(content) + 1)
    return start, min(len(content), start + rng.choice((1, 2, 4, 8, 64, 512)))


def _flipped(rng: random.Random, content: bytes) -> bytes:
    out = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8)) if out else 0):
        out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def _deleted(rng: random.Random, content: bytes) -> bytes:
    start, end = _span(rng, content)
    return content[:start] + content[end:]


def _doubled(rng: random.Random, content: bytes) -> bytes:
    start, end = _span(rng, content)
    return content[:end] + content[start:]


def _swapped(rng: random.Random, content: bytes) -> bytes:
    start, end = _span(rng, content)
    other = rng.randrange(end, len(content) + 1)
    last = min(len(content), other + end - start)
    return content[:start] + content[other:last] + content[end:other] + content[start:end] + content[last:]


def _cut(rng: random.Random, content: bytes) -> bytes:
    return content[: rng.randrange(len(content) + 1)]


def _inserted(rng: random.Random, content: bytes) -> bytes:
    start = rng.randrange(len(content) + 1)
    return content[:start] + rng.choice(WORDS) + content[start:]


def _head(rng: random.Random, content: bytes) -> bytes:
    """A byte of the first ones, where a format says what it is."""
    out = bytearray(content)
    if out:
        out[rng.randrange(min(len(out), 128))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
    return bytes(out)


def _renumbered(rng: random.Random, content: bytes) -> bytes:
    """A number in the text becomes its neighbour or an extreme."""
    found = list(re.finditer(rb"-?\d+(\.\d+)?", content[:200_000]))
    if not found:
        return _flipped(rng, content)
    at = rng.choice(found)
    near = str(int(float(at[0][:15])) + rng.choice((-1, 1))).encode()
    new = rng.choice((near, near, b"0", b"-" + at[0], at[0] * 2, b"2147483648", b"1e999", b"nan", b"4294967297"))
    return content[: at.start()] + new + content[at.end() :]


_BYTES: tuple[Callable[[random.Random, bytes], bytes], ...] = (
    _flipped, _flipped, _deleted, _doubled, _swapped, _cut, _inserted, _head, _renumbered
)  # fmt: skip


def _paths(root: Any) -> list[tuple[Any, ...]]:
    """Where each value is; a list of what is still to be looked into, for values may be nested deeply."""
    found: list[tuple[Any, ...]] = []
    left: list[tuple[tuple[Any, ...], Any]] = [((), root)]
    while left:
        path, value = left.pop()
        found.append(path)
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        left += [((*path, key), each) for key, each in items]
    return found


def _edited(rng: random.Random, root: Any) -> Any:
    """One value replaced by another of another kind or size, left out, doubled, or named otherwise."""
    paths = _paths(root)
    path = rng.choice(paths[1:] or paths)
    if not path:
        return rng.choice(VALUES)
    place = root
    for key in path[:-1]:
        place = place[key]
    key, value, way = path[-1], place[path[-1]], rng.random()
    if way < 0.15:
        del place[key]
    elif way < 0.25:
        if isinstance(place, list):
            place.insert(key, value)
        else:
            place[rng.choice((f"{key}x", "", "\ud800", "k" * 10_000))] = value
    elif way < 0.5 and isinstance(value, (int, float)):
        place[key] = value + rng.choice((-1, 1)) if rng.random() < 0.6 else rng.choice((-value, value * 1e6, value / 3))
    elif way < 0.6:
        for _ in range(rng.choice((1, 50, 300))):
            value = [value]
        place[key] = value
    else:
        place[key] = rng.choice(VALUES)
    return root
