"""The one reader of JSON: what a file holds fits a type hint, whoever wrote it, or is refused in one line."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import reprlib
import stat
import types
import typing
from collections import Counter
from pathlib import Path
from typing import Any, Literal

from ansn.choices import chosen_from
from ansn.errors import InputError

DEPTH = 100
"""How deep values may lie in each other."""

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60
_WHOLE = re.compile("0|-?[1-9][0-9]{0,17}")
_LISTS: dict[Any, str] = {dict: "an object", list: "a list", tuple: "a list"}
_WORDS: dict[Any, str] = {
    **_LISTS, str: "text", int: "a whole number", float: "a number", bool: "true or false", type(None): "null",
}  # fmt: skip


class _Misfit(InputError):
    """A value that does not fit its hint; ``depth``: how deep it lies."""

    def __init__(self, name: str, keys: tuple[str, ...], told: str, deeper: int = 0) -> None:
        path = ".".join(key if key.isidentifier() or key.isdigit() else _SHORT.repr(key) for key in keys)
        super().__init__(f"{f'{name} {path}'.strip() or 'JSON'}: {told}")
        self.depth = len(keys) + deeper


def read(path: Path, kind: Any, most: int = 16 * 2**20) -> Any:
    """JSON of a file as ``kind``, see :func:`parse`. InputError also above ``most`` bytes; OSError as it comes."""
    if not stat.S_ISREG(path.stat().st_mode):  # a pipe has no end
        raise InputError(f"{path}: got no regular file, expected JSON")
    with path.open("rb") as file:
        text = file.read(most + 1)
    if len(text) > most:
        raise InputError(f"{path}: got more than {most:,} bytes, expected at most as many")
    return parse(text, kind, str(path))


def parse(text: str | bytes, kind: Any, name: str = "JSON") -> Any:
    """JSON as ``kind``, see :func:`build`. InputError in one line that begins with ``name`` for what does not fit, no
    JSON in UTF-8, numbers that are not finite or of more than 64 bits, a name twice in one object, and values nested
    deeper than :data:`DEPTH`."""
    try:
        values = json.loads(
            text if isinstance(text, str) else text.decode(),
            parse_int=_whole, parse_float=_finite, parse_constant=_finite, object_pairs_hook=_object,
        )  # fmt: skip
        _check(values)
    except RecursionError:
        raise InputError(f"{name}: got values nested deeper than {DEPTH}, expected fewer levels") from None
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
    except ValueError as error:
        raise InputError(f"{name}: got something else ({error}), expected JSON") from None
    return build(kind, values, name)


def build(kind: Any, values: Any, path: str = "") -> Any:
    """Values of JSON as ``kind``, a type hint: a dataclass (an object; no name is unknown, none without a default is
    missing), ``dict[str, X]`` or ``dict[int, X]``, ``list[X]``, ``tuple[X, Y]``, ``tuple[X, ...]``, ``Literal``, a
    union (the first that fits), ``int``, ``float`` (of a whole number too), ``str``, ``bool``, ``None``, ``Any``.

    InputError in one line that begins with ``path`` and names the value.
    """
    return _build(kind, values, path, ())


def _build(kind: Any, value: Any, name: str, keys: tuple[str, ...]) -> Any:
    kind = chosen_from(kind)
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _one_of(kind, value, name, keys)
    if isinstance(value, dict) and dataclasses.is_dataclass(kind):
        return _fill(kind, value, name, keys)
    if isinstance(value, dict) and origin is dict:
        if args[0] is int and not all(_WHOLE.fullmatch(str(key)) for key in value):
            raise _Misfit(name, keys, f"got {_SHORT.repr(list(value))}, expected the names to be whole numbers")
        return {args[0](key): _build(args[1], v, name, (*keys, str(key))) for key, v in value.items()}
    if isinstance(value, (list, tuple)) and origin in (list, tuple):
        kinds = [args[0]] * len(value) if origin is list or args[1:] == (...,) else list(args)
        if len(kinds) != len(value):
            raise _Misfit(name, keys, f"got {len(value)} values, expected {len(kinds)}")
        pairs = enumerate(zip(kinds, value, strict=True))
        return origin(_build(one, v, name, (*keys, str(i))) for i, (one, v) in pairs)
    if not _fits(kind, value):
        got = _LISTS.get(type(value)) or _SHORT.repr(value)
        raise _Misfit(name, keys, f"got {got}, expected {_expected(kind)}")
    return float(value) if kind is float else value


def _one_of(kind: Any, value: Any, name: str, keys: tuple[str, ...]) -> Any:
    misfits = []
    for one in typing.get_args(kind):
        try:
            return _build(one, value, name, keys)
        except _Misfit as misfit:
            misfits.append(misfit)
    inside = [misfit for misfit in misfits if misfit.depth > len(keys)]
    if len(inside) == 1:  # the one that is an object or a list, as the value
        raise inside[0]
    got = _LISTS.get(type(value)) or _SHORT.repr(value)
    raise _Misfit(name, keys, f"got {got}, expected {_expected(kind)}")


def _fill(kind: Any, values: dict[str, Any], name: str, keys: tuple[str, ...]) -> Any:
    hints = typing.get_type_hints(kind, include_extras=True)
    fields = {field.name: field for field in dataclasses.fields(kind) if field.init}
    for key in values:
        if key not in fields:
            raise _Misfit(name, (*keys, key), f"got an unknown name, expected one of {', '.join(fields)}")
    for key, field in fields.items():
        if key not in values and field.default is field.default_factory is dataclasses.MISSING:
            raise _Misfit(name, (*keys, key), f"got nothing, expected {_expected(hints[key])}")
    made = {key: _build(hints[key], value, name, (*keys, key)) for key, value in values.items()}
    try:
        return kind(**made)
    except ValueError as error:  # of its __post_init__
        raise _Misfit(name, keys, str(error), deeper=1) from None


def _fits(kind: Any, value: Any) -> bool:
    if typing.get_origin(kind) is Literal:
        return any(value == one and type(value) is type(one) for one in typing.get_args(kind))
    if kind is float:
        return _fits(int, value) or (isinstance(value, float) and math.isfinite(value))
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63
    return isinstance(value, type(None) if kind is None else typing.get_origin(kind) or kind)


def _expected(kind: Any) -> str:
    kind = chosen_from(kind)
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return f"one of {', '.join(map(str, args))}"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(_expected, args))
    return "an object" if dataclasses.is_dataclass(kind) else _WORDS.get(origin or kind, str(kind))


def _whole(text: str) -> int:
    if not -(2**63) <= int(text) < 2**63:
        raise InputError(f"{_SHORT.repr(text)}: got a whole number of more than 64 bits, expected a smaller one")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise InputError(f"{_SHORT.repr(text)}: got a number that is not finite, expected one that is")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        (twice, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise InputError(f"{_SHORT.repr(twice)}: got the name twice in one object, expected it once")
    return made


def _check(values: Any) -> None:
    """RecursionError for values that lie too deep, InputError for what is neither text nor a file's name."""
    level, depth = [values], 0
    while level:
        if depth > DEPTH:
            raise RecursionError
        inner: list[Any] = []
        for value in level:
            if isinstance(value, str) and not value.isascii():
                try:
                    value.encode("utf-8", "surrogateescape")
                except UnicodeEncodeError:
                    raise InputError(f"{_SHORT.repr(value)}: got half a character, expected text") from None
            elif isinstance(value, dict):
                inner += [*value, *value.values()]
            elif isinstance(value, list):
                inner += value
        level, depth = inner, depth + 1
