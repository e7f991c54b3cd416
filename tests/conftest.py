"""One thread, in the programs that tests start too: their tensors are tiny, and threads that wait for a core cost far
more."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

# Before anything that would start threads is imported.
os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")

import torch


@pytest.fixture(autouse=True)
def single_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
