"""A list of choices exists once: in its registry, from which settings, help and errors take it."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterable
from pathlib import Path

import pytest

import ansn
from ansn import covariance, data, denoiser, loss, networks, noise, ops
from ansn.cli import train
from ansn.config import from_dict
from ansn.errors import InputError
from ansn.evaluation import evaluate, spaces
from ansn.presets import PRESETS
from ansn.sampling import METHODS, driver, inverse, schedules, stream
from ansn.sampling.annealed_langevin import CONVENTIONS
from ansn.sampling.schedules import SCHEDULES
from tests.cli.helpers import call, succeeded
from tests.training.helpers import trained

PACKAGE = Path(ansn.__file__).parent

REGISTRIES: dict[str, tuple[Iterable[str], str]] = {
    "METHODS": (METHODS, "sampling/driver.py"),
    "SCHEDULES": (schedules.names(), "sampling/schedules.py"),
    "STRUCTURES": (covariance.STRUCTURES, ""),
    "networks": (networks.NETWORKS, "networks/__init__.py"),
    "PRESETS": ([name for name in PRESETS if name not in data.NAMES], "presets.py"),
    "data sets": (data.NAMES, "data/__init__.py data/idx.py presets.py"),  # a preset is called as its data set
    "metrics of the loss": (loss.METRICS, "loss.py"),
    "metrics of an evaluation": (evaluate.METRICS, "evaluation/evaluate.py evaluation/compare.py"),
    "spaces": (spaces.NAMES, "evaluation/spaces.py"),
    "PREDICTIONS": (denoiser.PREDICTIONS, "denoiser.py"),
    "SKIPS": (denoiser.SKIPS, "denoiser.py"),
    "CONVENTIONS": (CONVENTIONS, "sampling/annealed_langevin.py"),
    "COVARIANCES": (inverse.COVARIANCES, "sampling/inverse.py"),
    "STARTS": (noise.STARTS, "noise.py"),
    "STORES": (stream.STORES, "sampling/stream.py"),
    "TRAINING": (ansn.levels.TRAINING, "levels.py"),
    "BACKENDS": (ops.BACKENDS, "ops/_dispatch.py"),
}
"""Names, and the files that may list them."""


@functools.cache
def collections(text: str) -> list[tuple[int, set[str]]]:
    """Line and words of each literal list, tuple, set, keys of a dictionary or Literal[...] in a source, but for
    ``__all__``, which names functions."""
    tree, found = ast.parse(text), []
    exports = [n.value for n in ast.walk(tree) if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "__all__"]
    for node in ast.walk(tree):
        if node in exports:
            continue
        elements = node.keys if isinstance(node, ast.Dict) else getattr(node, "elts", [])
        words = {e.value for e in elements if isinstance(e, ast.Constant) and isinstance(e.value, str)}
        if words:
            found.append((node.lineno, words))  # type: ignore[attr-defined]
    return found


def repeated(text: str, names: Iterable[str]) -> list[int]:
    """Lines of collections that hold two of the names or more."""
    return [line for line, words in collections(text) if len(words & set(names)) > 1]


@pytest.mark.parametrize("registry", REGISTRIES)
def test_no_list_is_typed_twice(registry: str) -> None:
    names, homes = REGISTRIES[registry]
    files = [file for file in PACKAGE.rglob("*.py") if str(file.relative_to(PACKAGE)) not in homes.split()]
    assert [f"{file}:{line}" for file in files for line in repeated(file.read_text(), names)] == []


def test_a_list_that_is_typed_twice_is_found() -> None:
    for text in ("x: Literal['heun', 'euler'] | None", "f(('heun', 'euler'))", "{'heun': 1, 'euler': 2}"):
        assert repeated(text, METHODS) == [1]
    assert repeated("x: Literal['heun', 'other'] = 'euler'", METHODS) == []


@pytest.fixture
def additions(monkeypatch: pytest.MonkeyPatch) -> None:
    """One more of each, which no command has heard of."""
    monkeypatch.setitem(covariance.STRUCTURES, "one-more", covariance.STRUCTURES["dense"])
    monkeypatch.setitem(METHODS, "one-more", driver.Method(ansn.sampling.euler, "a sampler that was added"))
    monkeypatch.setitem(SCHEDULES, "one-more", schedules.log_linear)
    monkeypatch.setitem(networks.NETWORKS, "one-more", networks.NETWORKS["mlp"])
    monkeypatch.setitem(PRESETS, "one-more", ("a preset that was added", PRESETS["digits"][1]))


@pytest.mark.usefixtures("additions")
def test_help_lists_what_was_added() -> None:
    words = {
        command: " ".join(succeeded(call(*command, "--help")).out.replace("│", " ").split())
        for command in (("train",), ("train", "digits"), ("sample",), ("evaluate",))
    }
    assert "a preset that was added" in words["train",]
    # The choices of --structure, --network and --method; of --method and --schedule; of --method and --sweep.
    for command, count in ((("train", "digits"), 3), (("sample",), 2), (("evaluate",), 2)):
        assert words[command].count("one-more,") + words[command].count("one-more}") == count
        assert "one-more: a sampler that was added" in words[command]


@pytest.mark.usefixtures("additions")
def test_commands_and_files_take_what_was_added(tmp_path: Path) -> None:
    config = train.parse(["one-more", *["--structure", "one-more", "--network", "one-more", "--method", "one-more"]])
    assert (config.noise.structure, config.network.network, config.sampling.method) == ("one-more",) * 3
    stored = {"noise": {"structure": "one-more"}, "network": {"network": "one-more"}}
    assert from_dict(stored | {"sampling": {"method": "one-more"}}) == config
    run = trained(tmp_path / "run", structure="one-more", steps=2)
    options = ("-n", 2, "--steps", 2, "--method", "one-more", "--schedule", "one-more", "--out", tmp_path / "x.npy")
    succeeded(call("sample", run, *options))


@pytest.mark.parametrize(
    ("group", "name", "expected"),
    [
        ("noise", "structure", (*covariance.STRUCTURES, "auto")), ("network", "network", networks.NETWORKS),
        ("network", "skip", (*denoiser.SKIPS, "None")), ("sampling", "method", METHODS),
    ],
)  # fmt: skip
def test_a_wrong_choice_is_a_line_with_the_choices(group: str, name: str, expected: Iterable[str]) -> None:
    message = f"{name}: got 'magic', expected one of {', '.join(expected)}"
    with pytest.raises(InputError, match=f"^config {group}.{message}$"):
        from_dict({group: {name: "magic"}})
    outcome = call("train", f"--{name}", "magic")
    assert (outcome.code, outcome.err) == (2, f"ansn-train: error: --{message}; see ansn-train digits --help\n")


def test_the_page_on_samplers_names_every_one() -> None:
    page = (PACKAGE.parent / "docs" / "samplers.md").read_text()
    assert [name for name in METHODS if name not in page.replace("`", " ").split()] == []
