"""The Triton kernels compiled ahead of time for sm_90 and sm_80: no spill, 16-byte accesses, and a true table."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

triton = pytest.importorskip("triton", reason="the package triton is not there")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("TRITON_INTERPRET=1: this process interprets, it cannot compile", allow_module_level=True)

from ansn.kernels import aot, dense_step  # noqa: E402 - needs triton
from ansn.kernels.colored_step import colored_step, colored_step_kernel  # noqa: E402
from ansn.kernels.covariance_update import covariance_update_  # noqa: E402
from ansn.kernels.dsm_loss import dsm_loss  # noqa: E402
from ansn.kernels.production import CASES  # noqa: E402

TABLE = Path(__file__).parents[2] / "docs" / "kernel-table.md"
# Compiled in the fast set: one kernel of each kind, for sm_90.
FAST = (
    "Langevin, f32, 128 x 3072",
    "loss, z again, bf16, 128 x 3072",
    "moments, 1024 regions, f32, 1024 x 64",
    "dense draw, f32, 128 x 3072",
)


def check(case: str, arch: int) -> None:
    rows = aot.rows(case, CASES[case], arch)
    assert rows, f"{case}: the launcher launched nothing"
    for row in rows:
        assert row.spills == 0, row
        assert row.registers <= 255, row
        assert row.shared <= 227 * 1024 if arch == 90 else 163 * 1024, row
    elementwise = {"colored_step_kernel", "dsm_loss_kernel"}
    if "odd rows" not in case and rows[0].kernel in elementwise:
        # What is narrower reads a coefficient, a weight, a region (64 bits) or writes a row's loss.
        assert rows[0].loads[128] >= 2, rows[0]
        assert rows[0].stores[128] >= 2, rows[0]
        assert 16 not in rows[0].loads, rows[0]
        assert 16 not in rows[0].stores, rows[0]
    for row in rows:
        if "odd rows" not in case and row.kernel in ("_scatter_kernel", "_product_kernel", "_push_kernel"):
            # Tiles and operands; what is narrower is a number for a row, an index, a weight (the 64-bit stores).
            assert row.kernel == "_push_kernel" or row.loads[128] >= 8, row
            assert row.stores[128] >= 2, row
            assert set(row.stores) <= {128, 64}, row
            assert 16 not in row.loads, row
    written = aot.sections(TABLE.read_text()).get(triton.__version__)
    for row in rows if written else ():
        line = aot.table([row]).splitlines()[-1]
        assert line in written, f"{line}\nis not in {TABLE.name}; write it anew, its first paragraph says how"


@pytest.mark.parametrize("case", FAST)
def test_compiles_well(case):
    check(case, 90)


@pytest.mark.slow
@pytest.mark.parametrize("arch", aot.ARCHITECTURES)
@pytest.mark.parametrize("case", CASES)
def test_every_case_compiles_well(case, arch):
    check(case, arch)


def test_the_table_holds_every_case_and_no_other():
    """Of the Triton that runs here and of the one of the GPU machine that is known of."""
    found = aot.sections(TABLE.read_text())
    assert "3.6.0" in found
    for rows in found.values():
        listed = [line for line in rows.splitlines() if line.startswith("| ")][2:]
        assert {line.split(" | ")[0].removeprefix("| ") for line in listed} == set(CASES)


def test_another_versions_table_is_kept():
    text = TABLE.read_text()
    fresh = aot.document([], text)
    assert aot.sections(fresh).keys() == aot.sections(text).keys() | {triton.__version__}
    for version, rows in aot.sections(text).items():
        assert (aot.sections(fresh)[version] == rows) == (version != triton.__version__)


def _meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _smallest_update(dim: int, regions: int) -> None:
    weights = [_meta(regions, dtype=torch.float64) for _ in range(2)]
    region = _meta(1, dtype=torch.int64) if regions > 1 else None
    covariance_update_(*weights, _meta(regions, dim), _meta(regions, dim, dim), _meta(1, dim), region, 0.5)


SMALLEST = {
    "step": lambda: colored_step(_meta(1, 1), _meta(1, 1), c=_meta(), b=_meta(1)),
    "step, one whole group": lambda: colored_step(_meta(1, 4), b=_meta()),
    "step, diagonals": lambda: colored_step(
        _meta(1, 1), b=_meta(), diagonal=_meta(2, 1), region=_meta(1, dtype=torch.int64)
    ),
    "loss": lambda: dsm_loss(_meta(1, 1), None, _meta(1)),
    "moments": lambda: _smallest_update(1, 1),
    "moments, regions": lambda: _smallest_update(1, 2),
    "dense step": lambda: dense_step.colored_step(
        _meta(1, 1), _meta(1, 1), None, _meta(), None, _meta(), _meta(1, 1, 1), None, True, 0, 0, 0, 0
    ),
    "dense step, regions": lambda: dense_step.colored_step(
        _meta(1, 1), None, None, None, None, _meta(), _meta(2, 1, 1), _meta(1, dtype=torch.int64), True, 0, 0, 0, 0
    ),
}


@pytest.mark.parametrize("case", SMALLEST)
def test_sizes_that_are_one_compile(case):
    """Triton makes an integer argument that is 1 a constant of the source, which its interpreter does not."""
    with aot.recorded() as launches:
        SMALLEST[case]()
    assert launches
    for launch in launches:
        triton.compile(aot.source(launch), target=aot.GPUTarget("cuda", 90, 32), options=launch.options)


def test_a_new_step_compiles_nothing():
    """Counters of any value specialise alike: the source, and so the cached kernel, is one."""
    sources = []
    for seed, row, step, stream in [(0, 0, 0, 0), (1, 1, 1, 1), (2**63 - 1, 2**33, 2**32 - 1, 4), (16, 16, 16, 0)]:
        x = torch.empty(64, 64, device="meta")
        with aot.recorded() as launches:
            colored_step(x, b=torch.empty((), device="meta"), seed=seed, row=row, step=step, stream=stream)
        assert launches[0].kernel is colored_step_kernel
        sources.append(aot.source(launches[0]))
    assert len({s.hash() for s in sources}) == 1


def test_a_spill_would_be_seen():
    """The machine-code reader finds local memory where a kernel is given too few registers for what it holds."""
    with aot.recorded() as launches:
        CASES["every term, 8 diagonal regions, f32, 128 x 3072"]()
    starved = aot.Launch(launches[0].kernel, launches[0].arguments, {**launches[0].options, "maxnreg": 24})
    target = aot.GPUTarget("cuda", 90, 32)
    made = triton.compile(aot.source(starved), target=target, options=starved.options)
    assert aot.inspected("starved", "colored_step_kernel", 90, 4, 0, made.asm["cubin"]).spills > 0
