"""``make sanitize``: the native kernels' tests on a build with AddressSanitizer and UndefinedBehaviorSanitizer.

Builds into build/sanitize (and build/sanitize-portable, the copy for other processors), shows that a read beyond a
tensor's end and a misaligned one are seen, then runs tests/native and what of tests/ops reaches the native back end on
every instruction set that this processor has. Exit status 0: nothing was found.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# In tests/ops everything that iterates the back ends; not what starts other interpreters or compilers, which would run
# under the preloaded sanitizer too, or compiles graphs.
SELECTED = ["tests/native", "tests/ops"]
LEFT_OUT = ("tests/ops/test_library.py", "tests/ops/test_dispatch.py", "tests/native/test_cuda_build.py")
PLANTED = {"read": "heap-buffer-overflow", "misaligned": "misaligned address"}


def build(folder: str, *options: str) -> Path:
    where = ROOT / "build" / folder
    hints = subprocess.run([sys.executable, "-m", "pybind11", "--cmakedir"], capture_output=True, text=True, check=True)
    binaries = Path(sys.executable).parent
    tools = {**os.environ, "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}"}
    configure = [
        "cmake", "-S", str(ROOT), "-B", str(where), "-G", "Ninja", "-DANSN_SANITIZE=ON", "-DANSN_CUDA=OFF",
        f"-Dpybind11_DIR={hints.stdout.strip()}", f"-DPython_EXECUTABLE={sys.executable}", *options,
    ]  # fmt: skip
    subprocess.run(configure, check=True, env=tools, stdout=subprocess.DEVNULL)
    subprocess.run(["cmake", "--build", str(where)], check=True, env=tools)
    (module,) = where.glob("_native*.so")
    return module


def environment(module: Path, isa: str) -> dict[str, str]:
    """Python itself is not instrumented: the sanitizer's library must be there before it, with C++'s, whose throw it
    wraps as it starts."""
    libraries = [
        subprocess.run(["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()
        for name in ("libasan.so", "libstdc++.so.6")
    ]
    return {
        **os.environ,
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=0:exitcode=99",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONMALLOC": "malloc",  # each object on its own, between red zones
        "ANSN_TEST_MODULE": str(module),
        "ANSN_CPU_ISA": isa,
    }


def prove(env: dict[str, str]) -> None:
    """Nothing found means something only where a fault is found."""
    for kind, message in PLANTED.items():
        command = [sys.executable, "-m", "tests.native.exercise", "--only-planted", "--planted", kind]
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
        if done.returncode == 0 or message not in done.stderr or "colored_step" not in done.stderr:
            raise SystemExit(f"the planted {kind} was not seen (exit status {done.returncode}):\n{done.stderr}")


def isas(module: Path) -> list[str]:
    code = "import tests.native.instrumented; from ansn import _native; print(*_native.supported_isas())"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment(module, ""), capture_output=True, text=True, check=True
    )
    return done.stdout.split()


def main() -> None:
    worst = 0
    for folder, options in (("sanitize", ()), ("sanitize-portable", ("-DANSN_PORTABLE=ON",))):
        module = build(folder, *options)
        # tests/native runs each instruction set itself; the operations take the one of the environment.
        for i, isa in enumerate(isas(module)):
            env = environment(module, isa)
            prove(env)
            print(f"-- {folder}, {isa}: the planted faults are seen", flush=True)
            selected = [*SELECTED[0 if i == 0 else 1 :], *(f"--ignore={path}" for path in LEFT_OUT)]
            command = [sys.executable, "-m", "pytest", "-q", "-m", "not slow", "-p", "tests.native.instrumented"]
            command.append("--capture=sys")  # what the sanitizer writes on its way out is not held back
            done = subprocess.run([*command, *selected, *sys.argv[1:]], cwd=ROOT, env=env, check=False)
            worst = max(worst, abs(done.returncode))
    sys.exit(worst)


if __name__ == "__main__":
    main()
