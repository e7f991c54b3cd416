"""The back end "triton" where there is no GPU and no interpreter: a reason in one line."""

from __future__ import annotations

import pytest
import torch

from ansn import ops
from ansn.ops import triton as back_end

OPERATIONS = (
    "apply_factor", "colored_step", "covariance_update_", "dsm_loss", "mixture", "separable_apply", "separable_step",
)  # fmt: skip


def test_it_holds_these_operations():
    assert {o for o in ops.operations() if "triton" in ops.registered(o)} == set(OPERATIONS)


@pytest.mark.skipif(back_end.interpreting(), reason="TRITON_INTERPRET=1: the CPU is a device then")
def test_a_cpu_tensor_is_refused():
    with ops.backend("triton"), pytest.raises(RuntimeError, match="x is on cpu, expected CUDA"):
        ops.colored_step(torch.zeros(2, 3), b=1.0)


def test_without_triton_the_reason_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(back_end.importlib.util, "find_spec", lambda name: None if name == "triton" else object())
    back_end.missing.cache_clear()
    assert "`pip install -e '.[gpu]'`" in str(back_end.missing())
    back_end.missing.cache_clear()


def test_without_a_compiler_the_reason_says_so(monkeypatch):
    monkeypatch.setattr(back_end.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(back_end.shutil, "which", lambda name: None)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    back_end.missing.cache_clear()
    assert "C compiler" in str(back_end.missing())
    back_end.missing.cache_clear()
