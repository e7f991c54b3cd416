"""Arrows go down only: no part of the package imports one above it, and no module one that imports it."""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

LAYERS = (
    "choices errors files hostread machine rest _native",
    "lock schema",
    "ops data networks",
    "covariance sample_figures",
    "levels figures distributed traces",
    "noise skips region_figures",
    "denoiser",
    "loss score_matching sampling likelihood",
    "config",
    "presets training",
    "evaluation",
    "ansn",
    "cli",
)
"""From the ground up. Parts of one row do not import each other; ``ansn`` is what a user imports."""

PART = {"kernels": "ops"}
"""Modules that stand beside the part to which they belong."""

HEIGHT = {part: height for height, row in enumerate(LAYERS) for part in row.split()}


def part_of(module: str) -> str:
    name = module.removeprefix("ansn.").split(".")[0]
    return PART.get(name, name)


def sources() -> Iterator[tuple[str, bool, str]]:
    """Each module's name, whether it is a package, and its text."""
    for folder, package in ((ROOT / "ansn", "ansn"), (ROOT / "kernels", "ansn.kernels")):
        for file in sorted(folder.rglob("*.py")):
            parts = [package, *file.relative_to(folder).with_suffix("").parts]
            inner = parts[-1] == "__init__"
            yield ".".join(parts[:-1] if inner else parts), inner, file.read_text()


def imports(module: str, package: bool, text: str, modules: set[str]) -> set[str]:
    """Modules of the package that this one imports, at its head or in a function."""
    here = module.split(".") if package else module.split(".")[:-1]
    found: set[str] = set()
    for node in _running(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = here[: len(here) + 1 - node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names = {f"{base}.{alias.name}" for alias in node.names}
            found |= {name if name in modules else base for name in names}
    return {name for name in found - {module} if name.split(".")[0] == "ansn"}


def _running(tree: ast.AST) -> Iterator[ast.AST]:
    """Nodes of what runs: a class and what it is made of may name each other in their types."""
    for node in ast.iter_child_nodes(tree):
        if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            yield node
            yield from _running(node)


def upward(graph: dict[str, set[str]]) -> list[str]:
    """Arrows between parts that do not go down, in words."""
    return [
        f"{module} imports {other}"
        for module, others in sorted(graph.items())
        for other in sorted(others)
        if part_of(module) != part_of(other) and HEIGHT[part_of(module)] <= HEIGHT[part_of(other)]
    ]


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    found = list(sources())
    modules = {name for name, _, _ in found} | {"ansn._native"}
    return {name: imports(name, package, text, modules) for name, package, text in found}


def test_every_part_has_a_layer(graph: dict[str, set[str]]) -> None:
    assert {part_of(module) for module in graph} <= set(HEIGHT)


def test_arrows_go_down(graph: dict[str, set[str]]) -> None:
    assert upward(graph) == []


def test_no_modules_import_each_other(graph: dict[str, set[str]]) -> None:
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_an_arrow_up_is_found() -> None:
    modules = {"ansn.noise", "ansn.training", "ansn.training.trainer", "ansn.levels"}
    inside = "def f():\n    from ansn.training import trainer"
    for text in (inside, "from .training import Run", "import ansn.training"):
        found = imports("ansn.noise", False, text, modules)
        assert len(upward({"ansn.noise": found})) == 1, text
    assert upward({"ansn.noise": imports("ansn.noise", False, "from ansn import levels", modules)}) == []
