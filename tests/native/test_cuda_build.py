"""The CUDA kernels as far as a machine without a GPU can tell: they compile, spill nothing, and are in the module."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import torch

from ansn.ops.native import missing, module
from benchmarks import cuda_resources

needs_nvcc = pytest.mark.skipif(cuda_resources.nvcc() is None, reason="no nvcc on PATH: nothing to compile CUDA with")
needs_cuda_build = pytest.mark.skipif(
    module is None or not module.build_info()["cuda"],
    reason=f"the native module holds no CUDA kernels ({missing or 'built without nvcc'})",
)

# What `nvcc -Xptxas -v` printed for two of the kernels, one of them spilling.
MESSAGES = """ptxas info    : Compiling entry function '_ZN4ansn4cuda44_GLOBAL__N__5a_11_cholesky_cu_a5f2df2815\
cholesky_kernelIdLi128ELi1ELi3EEEvNS_14small_cholesky4WorkIT_EE' for 'sm_90'
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 70 registers, used 1 barriers
ptxas info    : Compiling entry function '_ZN4ansn4cuda44_GLOBAL__N__5a_11_cholesky_cu_a5f2df2815\
cholesky_kernelIfLi16ELi4ELi16EEEvNS_14small_cholesky4WorkIT_EE' for 'sm_90'
    8 bytes stack frame, 16 bytes spill stores, 20 bytes spill loads
ptxas info    : Used 72 registers, used 0 barriers, 8 bytes cumulative stack size, 256 bytes smem
"""


def test_messages_are_read():
    small, large = cuda_resources.parsed(MESSAGES, 90)
    assert (small.size, small.lanes, small.threads) == (4, 16, 64)
    assert (small.registers, small.spilled, small.stack) == (72, 36, 8)
    assert (small.static_shared, small.barriers) == (256, 0)
    assert (large.size, large.lanes, large.threads) == (8, 128, 128)
    assert (large.registers, large.spilled, large.stack) == (70, 0, 0)
    assert large.barriers == 1


@needs_nvcc
@pytest.mark.skipif(module is None, reason=f"no native module: {missing}")
@pytest.mark.parametrize("arch", [pytest.param(80, marks=pytest.mark.slow), 90])
def test_no_spill_and_room_for_several_blocks(arch):
    kernels = cuda_resources.kernels(arch)
    assert [(kernel.size, kernel.lanes) for kernel in kernels] == [(n, d) for n in (4, 8) for d in (16, 32, 64, 128)]
    for kernel in kernels:
        assert kernel.spilled == kernel.stack == 0, kernel
        assert kernel.registers <= 96, kernel
        shared = kernel.teams * module.small_cholesky_shared_bytes(kernel.lanes, kernel.size)
        assert kernel.static_shared == 0
        # Enough warps to hide the latency of a step of one matrix.
        warps = cuda_resources.blocks_resident(kernel, shared) * kernel.threads // 32
        assert warps >= 8, kernel
        # A team wider than a warp needs the block's barrier, a narrower one must not use it.
        assert kernel.barriers == (1 if kernel.lanes > 32 else 0)


@needs_nvcc
@pytest.mark.skipif(module is None, reason=f"no native module: {missing}")
@pytest.mark.slow
def test_table():
    """docs/cuda-table.md is what the compiler says; another nvcc allots registers otherwise."""
    text = (Path(__file__).parents[2] / "docs" / "cuda-table.md").read_text()
    written = re.findall(r"with nvcc (\S+);", text)[0]
    if written != cuda_resources.version():
        pytest.skip(f"the table is of nvcc {written}, this is {cuda_resources.version()}")
    assert text.strip() == cuda_resources.document().strip()


@needs_cuda_build
def test_module_says_what_was_built():
    info = module.build_info()
    assert re.fullmatch(r"\d+\.\d", info["cuda_version"])
    assert info["cuda_architectures"] == ["sm_80", "sm_90", "compute_90"]


@needs_cuda_build
def test_module_holds_the_device_code():
    """Fat binary with every instance for every architecture; cudart inside, none of its symbols offered."""
    path = Path(module.__file__)
    data = path.read_bytes()
    for dtype in "fd":
        for lanes in (16, 32, 64, 128):
            assert f"cholesky_kernelI{dtype}Li{lanes}E".encode() in data
    linked = subprocess.run(["ldd", str(path)], capture_output=True, text=True, check=False).stdout
    assert "libcudart" not in linked
    assert "libcuda." not in linked


@needs_cuda_build
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_the_module_says_why():
    problem = module.cuda_problem(0)
    assert problem
    assert "\n" not in problem
    with pytest.raises(RuntimeError, match="cholesky on cuda:0"):
        module.small_cholesky_cuda("f64", 8, 1, 4, 8, 8, 0, 0)
