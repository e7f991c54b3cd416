"""Puts another build of ``ansn._native`` in place of the installed one: that at ``ANSN_TEST_MODULE``, if it is set.

Imported before ansn, by ``pytest -p tests.native.instrumented`` or at the head of a script.
"""

from __future__ import annotations

import importlib.util
import os
import sys


def load(path: str) -> None:
    if "ansn" in sys.modules:
        raise RuntimeError("ansn was imported before tests.native.instrumented, expected after")
    spec = importlib.util.spec_from_file_location("ansn._native", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"ANSN_TEST_MODULE: {path} is no extension module")
    module = importlib.util.module_from_spec(spec)
    sys.modules["ansn._native"] = module
    spec.loader.exec_module(module)


if os.environ.get("ANSN_TEST_MODULE"):
    load(os.environ["ANSN_TEST_MODULE"])
