"""``make valgrind``: every native kernel once (tests/native/exercise.py) under valgrind's memcheck.

Python, torch and their libraries report much of their own; what counts is an error with a frame of ``ansn._native`` in
its stack. A planted read beyond a tensor's end, on a thread of its own, must be among them and be the only one.
valgrind knows no AVX-512, so the kernels are those of x86-64-v3. Takes some minutes. Exit status 0: nothing was found.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def describe(error: ElementTree.Element) -> str:
    what = error.findtext("what") or error.findtext("xwhat/text") or ""
    frames = [f"    {f.findtext('fn') or '?'} ({Path(f.findtext('obj') or '?').name})" for f in error.iter("frame")]
    return "\n".join([f"{error.findtext('kind')}: {what}", *frames[:12]])


def ours(error: ElementTree.Element) -> bool:
    """Leaks aside: Python frees little of a module when it ends."""
    stack = error.find("stack")
    if stack is None or (error.findtext("kind") or "").startswith("Leak_"):
        return False
    return any("_native" in Path(frame.findtext("obj") or "").name for frame in stack.iter("frame"))


def main() -> None:
    if shutil.which("valgrind") is None:
        sys.exit("valgrind is not installed: apt-get install valgrind")
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "memcheck.xml"
        command = [
            "valgrind", "--tool=memcheck", "--num-callers=24", "--xml=yes", f"--xml-file={report}",
            sys.executable, "-m", "tests.native.exercise", "--planted", "read",
        ]  # fmt: skip
        env = {**os.environ, "PYTHONMALLOC": "malloc", "ANSN_CPU_ISA": "v3", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=ROOT, env=env, check=False)
        if done.returncode:
            sys.exit(f"the exercise ended with status {done.returncode} under valgrind")
        errors = [error for error in ElementTree.parse(report).getroot().iter("error") if ours(error)]
    planted = [error for error in errors if error.findtext("threadname") == "planted"]
    found = [error for error in errors if error.findtext("threadname") != "planted"]
    print(*map(describe, found), sep="\n")
    if not planted:
        sys.exit("the planted read beyond a tensor's end was not seen: the check sees nothing")
    print(f"memcheck: {len(found)} errors in ansn._native; the planted one was seen")
    sys.exit(min(len(found), 1))


if __name__ == "__main__":
    main()
