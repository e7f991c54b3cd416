"""What the machine is, and the native module built on it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from typing import Any

import torch

from benchmarks import provenance
from benchmarks.gpu.step import ROOT, Step

PACKAGES = ("numpy", "scipy", "safetensors", "rich", "tensorboard", "psutil", "pybind11", "cmake", "ninja", "pytest")
"""Without a version of these, something below does not run: said at the start rather than found out."""


def run(step: Step) -> None:
    """Environment, then the build."""
    step.run("environment", lambda: _environment(step))
    step.run("build", lambda: _build(step))
    # In a process of its own: this one may hold the module as it was.
    step.run("import", _import)


def _command(*words: str, seconds: float = 30) -> str:
    """Its output, or one line that says why there is none."""
    if shutil.which(words[0]) is None:
        return f"{words[0]} is not on the PATH"
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=seconds)
    return " ".join((done.stdout if done.returncode == 0 else done.stdout + done.stderr).split())


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _environment(step: Step) -> dict[str, Any]:
    if step.device == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("torch sees no GPU; use --device cpu to try the script without one")
    query = "name,driver_version,memory.total,clocks.sm,clocks.mem"
    return provenance.provenance() | {
        "python": platform.python_version(),
        "triton": _version("triton"),
        "cuda of torch": torch.version.cuda or "none",
        "nvidia-smi": _command("nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"),
        "nvcc": _command("nvcc", "--version")[-60:],
        "compute-sanitizer": shutil.which("compute-sanitizer") or "not on the PATH",
        "packages": ", ".join(f"{name} {_version(name)}" for name in PACKAGES),
    }


def _build(step: Step) -> dict[str, Any]:
    """CMake into ``build/gpu_check``, the module into ``ansn/``; on a CPU only where there is none yet."""
    if step.device == "cpu":
        from ansn.ops import native

        if native.module is not None:
            return {"built": "no: this is a CPU, and the module is there"}
    if importlib.util.find_spec("pybind11") is None:
        raise RuntimeError("pybind11 is not installed: only the back ends that need no native module are checked")
    import pybind11

    build = ROOT / "build" / "gpu_check"
    configure = [
        "cmake", "-S", str(ROOT), "-B", str(build), "-DCMAKE_BUILD_TYPE=Release",
        f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={ROOT / 'ansn'}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        f"-DPython_EXECUTABLE={sys.executable}",
    ] + (["-G", "Ninja"] if shutil.which("ninja") else [])  # fmt: skip
    outcome: dict[str, Any] = {}
    # A failed CUDA build must not cost the CPU kernels, nor go unseen.
    compiling = ["cmake", "--build", str(build), "-j", str(os.cpu_count())]
    for cuda in ("ON", "OFF") if step.device == "cuda" else ("OFF",):
        commands = ([*configure, f"-DANSN_CUDA={cuda}"], compiling)
        if all(_quiet(command, outcome, cuda) for command in commands):
            return outcome | {"built": f"ANSN_CUDA={cuda}"}
    raise RuntimeError(f"the native module was not built: {outcome}")


def _quiet(command: list[str], outcome: dict[str, Any], cuda: str) -> bool:
    done = subprocess.run(command, capture_output=True, text=True)
    print(done.stdout, done.stderr, file=sys.stderr)
    if done.returncode:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if "rror" in line] or ["no message"]
        outcome[f"failed with ANSN_CUDA={cuda}"] = " | ".join(lines[:3])[:400]
    return done.returncode == 0


def _import() -> dict[str, Any]:
    code = "from ansn.ops.native import missing as m, module; print(module.build_info() if module else f'missing: {m}')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    text = (done.stdout or done.stderr).strip()
    if done.returncode or text.startswith("missing"):
        raise RuntimeError(text[-300:])
    return {"native module": text}
