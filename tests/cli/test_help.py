"""`--help` of each command documents every option."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import os
import subprocess
import sys
from types import ModuleType
from typing import Any

import pytest

from ansn import config
from ansn.cli import evaluate, export, info, sample
from ansn.presets import PRESETS
from tests.cli.helpers import call, succeeded


def field_docs(module: ModuleType, kind: Any) -> dict[str, str]:
    """The string under each field of a dataclass, read from the source."""
    (tree,) = [n for n in ast.parse(inspect.getsource(module)).body if getattr(n, "name", "") == kind.__name__]
    assert isinstance(tree, ast.ClassDef)
    docs = {}
    for field, below in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            assert isinstance(field.target, ast.Name)
            docs[field.target.id] = " ".join(str(below.value.value).split())
    return docs


def help_of(command: str, *arguments: str) -> str:
    outcome = succeeded(call(command, *arguments, "--help"))
    assert outcome.err == ""
    return " ".join(outcome.out.replace("│", " ").split())


GROUPS = [f.name for f in dataclasses.fields(config.TrainConfig)]


@pytest.mark.parametrize("group", GROUPS)
def test_every_setting_of_a_run(group: str) -> None:
    kind = type(getattr(config.TrainConfig(), group))
    told, docs = help_of("train", "digits"), field_docs(config, kind)
    for field in dataclasses.fields(kind):
        assert f"--{field.name.replace('_', '-')}" in told
        assert len(docs[field.name]) > 10, f"{field.name} has no help"
        assert docs[field.name] in told
    assert " ".join(str(kind.__doc__).split()) in told


@pytest.mark.parametrize("module", [evaluate, export, info, sample], ids=lambda module: module.__name__)
def test_every_option_of_the_other_commands(module: ModuleType) -> None:
    told, docs = help_of(module.__name__.rpartition(".")[2]), field_docs(module, module.Arguments)
    for field in dataclasses.fields(module.Arguments):
        assert docs[field.name] in told
        if field.name != "run" and (module, field.name) != (export, "out"):
            assert f"--{field.name.replace('_', '-')}" in told
    assert " ".join(module._DESCRIPTION.split()) in told


def test_train_lists_its_presets() -> None:
    told = help_of("train")
    for name, (text, _) in PRESETS.items():
        assert name in told
        assert text in told
    for code in ("0 done", "1 the loss diverged", "2 bad arguments", "130 interrupted"):
        assert code in told


def test_help_of_a_preset_has_its_defaults() -> None:
    told = help_of("train", "paper-mnist")
    assert "the paper's settings on MNIST (--data PATH), literally" in told
    assert "(default: 200000)" in told
    assert "(default: runs/paper-mnist)" in told


def test_imports_and_help_load_nothing_slow() -> None:
    """`import ansn`, then the commands, whose options need tyro and who may draw a bar."""
    slow = {"sklearn", "matplotlib", "torch.utils.tensorboard", "torch._dynamo", "jinja2.environment", "triton"}
    slow |= {"scipy", "PIL", "psutil", "ansn.kernels", "ansn.data.folder", "huggingface_hub"}
    told = "print(*sys.modules)"
    code = f"import sys, ansn; {told}; from ansn.cli import evaluate, export, info, sample, train; {told}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    package, commands = (set(line.split()) for line in done.stdout.splitlines())
    assert "ansn.training.trainer" in package
    assert not (slow | {"rich", "tyro"}) & package
    assert not slow & commands


@pytest.mark.parametrize(("command", "arguments"), [("sample", ["--help"]), ("info", [])])
def test_a_reader_that_goes_away_is_no_mistake(command: str, arguments: list[str]) -> None:
    """`ansn-sample --help | head -1`; closing stdout flushes it, as the interpreter's exit does."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as out:
        outcome = call(command, *arguments, out=out)
    assert (outcome.code, outcome.err) == (0, "")
