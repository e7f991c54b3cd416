"""The one error that means: what the user gave cannot be used."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import Any


class InputError(ValueError):
    """A user's bad input, told in one line: what was given, what came, what was expected.

    The commands print it without a traceback and exit with status 2. Line breaks in the message (from a
    file name, or from a library's own message) become spaces, so that it stays one line.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(str(message).splitlines()))


def whole(name: str, value: Any, least: int) -> int:
    """A whole number of any library as an int. Raises TypeError or ValueError naming it for others and below
    ``least``."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name}: got {value!r}, expected a whole number")
    try:
        number = operator.index(value)
    except TypeError:  # a tensor of floats
        raise TypeError(f"{name}: got {value!r}, expected a whole number") from None
    if number < least:
        raise ValueError(f"{name}: got {number}, expected at least {least}")
    return number


def sizes(name: str, value: Any) -> tuple[int, ...]:
    """A shape, of a whole number or a sequence of them. Raises TypeError or ValueError naming it unless each is one,
    and at least 1."""
    several = isinstance(value, Iterable) and getattr(value, "ndim", 1) > 0
    out = tuple(whole(name, size, 1) for size in (value if several else (value,)))
    if not out:
        raise ValueError(f"{name}: got {value!r}, expected at least one size")
    return out


def refuse(rules: Sequence[tuple[str, Any, bool, str]]) -> None:
    """The first ``(option, value, whether it is good, what was expected)`` that is not good, as InputError."""
    for name, value, good, expected in rules:
        if not good:
            raise InputError(f"--{name}: got {value}, expected {expected}")
