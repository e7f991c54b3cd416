"""Errors have one grammar, ``NAME: got X, expected Y``, wherever the package raises one."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import ansn
from ansn.errors import sizes

PACKAGE = Path(ansn.__file__).parent
GRAMMAR = re.compile(r".+: got .+, expected .+", re.DOTALL)
KINDS = {"ValueError", "TypeError", "IndexError", "FileNotFoundError", "MemoryError", "InputError"}
# What passes on the line of another error, with or without a word before it.
PASSED_ON = {"{error}", "{}: {error}", "--{error}"}


def template(node: ast.expr, values: dict[str, ast.expr]) -> str | None:
    """A message with ``{}`` for what is put in, ``{error}`` for another error's; None where it is not text that stands
    here. ``values``: the texts of names, as :func:`named` finds them."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(template(part, {}) or "{}" for part in node.values)
    if isinstance(node, ast.FormattedValue) or (isinstance(node, ast.Call) and ast.unparse(node.func) == "str"):
        inner = node.value if isinstance(node, ast.FormattedValue) else node.args[0]
        return "{error}" if ast.unparse(inner) == "error" else "{}"
    name = f"{ast.unparse(node.func)}()".rpartition(".")[2] if isinstance(node, ast.Call) else ast.unparse(node)
    return template(values[name], {}) if name in values else None


def messages(source: str, values: dict[str, ast.expr]) -> list[tuple[int, str]]:
    """Line and message of each error of :data:`KINDS` that is made; those without arguments say nothing."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in KINDS and node.args:
            text = template(node.args[0], values)
            found.append((node.lineno, ast.unparse(node.args[0]) if text is None else text))
    return found


def named(source: str) -> dict[str, ast.expr]:
    """The texts that a module's variables are, by name, and those that its functions return, by ``name()``."""
    found: dict[str, ast.expr] = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            found[node.targets[0].id] = node.value
        elif isinstance(node, ast.FunctionDef) and isinstance(node.body[-1], ast.Return) and node.body[-1].value:
            found[f"{node.name}()"] = node.body[-1].value
    return {name: value for name, value in found.items() if isinstance(value, (ast.Constant, ast.JoinedStr))}


def test_every_error_has_the_one_grammar() -> None:
    sources = {path: path.read_text() for path in sorted(PACKAGE.rglob("*.py")) if "kernels" not in path.parts}
    functions = {k: v for source in sources.values() for k, v in named(source).items() if k.endswith("()")}
    checked, wrong = 0, []
    for path, source in sources.items():
        for line, text in messages(source, functions | named(source)):
            checked += 1
            if text not in PASSED_ON and not GRAMMAR.fullmatch(text):
                wrong.append(f"{path.relative_to(PACKAGE.parent)}:{line}: {text}")
    assert checked > 100
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("code", ['InputError("no file")', 'ValueError(f"{a} is {b}; " "expected c")', "ValueError(a)"])
def test_another_grammar_is_found(code: str) -> None:
    (message,) = (text for _, text in messages(f"raise {code}", {}))
    assert not GRAMMAR.fullmatch(message)
    assert message not in PASSED_ON


@pytest.mark.parametrize("value", [4, np.int64(4), np.array(4), torch.tensor(4), (4,), [np.int32(4)], torch.Size([4])])
def test_a_shape_is_a_number_or_a_sequence(value: object) -> None:
    assert sizes("shape", value) == (4,)
    assert type(sizes("shape", value)[0]) is int
    assert sizes("shape", np.array([2, 3])) == sizes("shape", torch.tensor([2, 3])) == (2, 3)


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [(4.0, TypeError, "got 4.0, expected a whole number"), ((2, 3.0), TypeError, "got 3.0, expected a whole number"),
     ("4", TypeError, "got '4', expected a whole number"), (None, TypeError, "got None, expected a whole number"),
     (0, ValueError, "got 0, expected at least 1"), ((2, 0), ValueError, "got 0, expected at least 1"),
     ((), ValueError, r"got \(\), expected at least one size")],
)  # fmt: skip
def test_what_is_no_shape_is_named(value: object, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=f"^shape: {message}$"):
        sizes("shape", value)
