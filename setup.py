"""Packages, and the native module `ansn._native` built with CMake and Ninja (the rest is in pyproject.toml).

Environment: ANSN_NATIVE = AUTO (default: a failed native build installs the package without it), ON (failure
is an error) or OFF (do not build); ANSN_CUDA = AUTO, ON or OFF, passed to CMake.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
FALLBACK = "ansn runs without it, on its `reference` back end"


def choice(name: str) -> str:
    value = os.environ.get(name, "AUTO").upper()
    if value not in ("AUTO", "ON", "OFF"):
        raise SystemExit(f"{name} must be AUTO, ON or OFF, got {os.environ[name]!r}")
    return value


def program(name: str) -> str:
    """Path of cmake or ninja: the one of the build environment's package first, then whatever PATH has."""
    try:
        module = __import__(name)
        folder = module.CMAKE_BIN_DIR if name == "cmake" else module.BIN_DIR
    except (ImportError, AttributeError):
        folder = None
    found = shutil.which(name, path=folder) if folder else None
    found = found or shutil.which(name)
    if not found:
        raise RuntimeError(f"{name} was not found (pip install {name})")
    return found


class CMakeBuild(build_ext):
    """Runs CMake; unless ANSN_NATIVE=ON, a failure prints one line and the package still installs."""

    def build_extension(self, ext: Extension) -> None:
        required = choice("ANSN_NATIVE") == "ON"
        ext.optional = not required  # setuptools then copies the result only where there is one
        try:
            self.run_cmake(ext)
        except (RuntimeError, OSError, ImportError) as problem:
            line = f"ansn: the native module was not built: {problem}"
            if required:
                raise SystemExit(f"{line} (ANSN_NATIVE=ON)") from None
            print(f"{line}; {FALLBACK}", file=sys.stderr)

    def run_cmake(self, ext: Extension) -> None:
        import pybind11

        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = Path(self.build_temp).resolve() / "cmake"
        if not (os.environ.get("CXX") or any(map(shutil.which, ("c++", "g++", "clang++")))):
            raise RuntimeError("no C++ compiler was found (install g++ or clang++, or set CXX)")
        configure = [
            program("cmake"), "-S", str(ROOT), "-B", str(build), "-G", "Ninja", "--fresh",
            f"-DCMAKE_MAKE_PROGRAM={program('ninja')}",
            f"-DCMAKE_BUILD_TYPE={'Debug' if self.debug else 'Release'}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target.parent}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DANSN_CUDA={choice('ANSN_CUDA')}",
        ]  # fmt: skip
        target.parent.mkdir(parents=True, exist_ok=True)
        for step, command in (("cmake", configure), ("compiling", [program("cmake"), "--build", str(build)])):
            if subprocess.run(command).returncode != 0:
                raise RuntimeError(f"{step} failed, see the messages above")
        if not target.exists():
            raise RuntimeError(f"{step} did not produce {target.name}")


kernels = (ROOT / "kernels").is_dir()  # Triton kernels: installed as ansn.kernels
setup(
    packages=find_packages(include=["ansn", "ansn.*"]) + (["ansn.kernels"] if kernels else []),
    package_dir={"ansn.kernels": "kernels"} if kernels else {},
    ext_modules=[Extension("ansn._native", sources=[])] if choice("ANSN_NATIVE") != "OFF" else [],
    cmdclass={"build_ext": CMakeBuild},
)
