"""What a program that imports the package gets: types, and no import that it did not ask for."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import ansn

ROOT = Path(__file__).parent.parent
LEVELS = [name for name, v in vars(ansn.levels).items() if getattr(v, "__module__", "") == "ansn.levels"]
PUBLIC = {ansn: ansn.__all__, ansn.sampling: ansn.sampling.__all__, ansn.networks: ansn.networks.__all__}
REVEALED = {
    "data": "ansn.data.dataset.Dataset", "noise": "ansn.noise.NoiseModel", "noise.update(x)": "ansn.noise.NoiseModel",
    "perturbed": "torch._tensor.Tensor", "level.tau": "torch._tensor.Tensor", "loss": "torch._tensor.Tensor",
    "noise.prior(4)": "torch._tensor.Tensor", "images": "torch._tensor.Tensor",
    "model.score(images, 1.0)": "torch._tensor.Tensor", "ansn.load_run('runs/digits').model": "ansn.denoiser.Denoiser",
    "ansn.log_likelihood(model, images)": "ansn.likelihood.flow.LogLikelihood",
}  # fmt: skip


def test_importing_it_imports_little_else() -> None:
    """Beside torch: drawing, statistics and the command line are imported by what uses them."""
    code = "import sys, torch; before = set(sys.modules); import ansn; print(*set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    packages = {name.split(".")[0] for name in done.stdout.split()}
    assert "ansn" in packages
    assert packages - set(sys.stdlib_module_names) <= {"ansn", "numpy", "safetensors"}


def functions(module: ModuleType, names: list[str]) -> Iterator[tuple[str, Any]]:
    """Public functions, and the public methods and properties of public classes."""
    for name in names:
        value = getattr(module, name)
        if inspect.isclass(value):
            for part, method in vars(value).items():
                plain = getattr(method, "fget", None) or getattr(method, "__func__", method)
                if inspect.isfunction(plain) and (not part.startswith("_") or part in ("__init__", "__call__")):
                    yield f"{name}.{part}", plain
        elif inspect.isfunction(value):
            yield name, value


@pytest.mark.parametrize("module", [*PUBLIC, ansn.levels], ids=lambda module: module.__name__)
def test_public_names_have_types(module: ModuleType) -> None:
    found = dict(functions(module, PUBLIC.get(module, LEVELS)))
    assert found
    for name, function in found.items():
        if function.__name__ == "<lambda>":  # a default of a dataclass's field
            continue
        signature = inspect.signature(function)
        bare = [p.name for p in signature.parameters.values() if p.annotation is p.empty]
        assert [p for p in bare if p not in ("self", "cls")] == [], name
        assert signature.return_annotation not in (signature.empty, "Any"), name


@pytest.mark.slow
def test_a_program_of_a_user_passes_strict_checks(tmp_path: Path) -> None:
    """The README's, against what a wheel holds."""
    pytest.importorskip("mypy")
    site, program = tmp_path / "site", tmp_path / "program.py"
    build = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(tmp_path), "build_py", "--build-lib"]
    built = subprocess.run([*build, str(site)], cwd=ROOT, env=os.environ | {"ANSN_NATIVE": "OFF"}, timeout=120)
    assert built.returncode == 0
    assert (site / "ansn" / "py.typed").exists()
    found = re.search(r"```python\n(import torch, ansn\n.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert found is not None
    # torch's own method has no type.
    text = found.group(1).replace("loss.backward()", "loss.backward()  # type: ignore[no-untyped-call]")
    program.write_text(text + "".join(f"reveal_type({expression})\n" for expression in REVEALED))
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--no-error-summary"]
    done = subprocess.run(
        [*command, "--cache-dir", str(tmp_path / "cache"), str(program)],
        cwd=tmp_path, env=os.environ | {"MYPYPATH": str(site)}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    told = re.findall(r'Revealed type is "(.*)"', done.stdout)
    assert told == list(REVEALED.values())
