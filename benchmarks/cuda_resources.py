"""What the CUDA kernels take of a multiprocessor: registers, spills, shared memory, as nvcc says. Needs nvcc, no GPU.

``python -m benchmarks.cuda_resources > docs/cuda-table.md`` writes the table for sm_80 and sm_90.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

CUDA = Path(__file__).parent.parent / "csrc" / "cuda"
REGISTERS = 65536
"""Of a multiprocessor, sm_80 and sm_90."""
SHARED = {80: 164 << 10, 90: 228 << 10}
"""Shared memory of a multiprocessor, bytes; a block takes 1 KB for itself."""


@dataclass(frozen=True)
class Kernel:
    """One instance of a kernel template for one architecture."""

    name: str
    arch: int
    size: int
    """Bytes of a number: 4 or 8."""
    lanes: int
    """Of a team, and the largest d."""
    teams: int
    registers: int
    spilled: int
    stack: int
    static_shared: int
    barriers: int

    @property
    def threads(self) -> int:
        """Of a block: lanes of a team times teams."""
        return self.lanes * self.teams


def nvcc() -> str | None:
    """Path of nvcc, or None."""
    return shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")


def compiled(source: Path, arch: int, *options: str) -> str:
    """nvcc's messages for one source and architecture. Raises RuntimeError with them where it fails."""
    compiler = nvcc()
    if compiler is None:
        raise RuntimeError("nvcc was not found on PATH")
    with tempfile.TemporaryDirectory() as folder:
        command = [compiler, "-std=c++17", "-O3", f"-gencode=arch=compute_{arch},code=sm_{arch}", *options]
        done = subprocess.run(
            [*command, "-c", str(source), "-o", f"{folder}/out.o"], capture_output=True, text=True, check=False
        )
    if done.returncode:
        raise RuntimeError(f"nvcc failed on {source.name}:\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def parsed(messages: str, arch: int) -> list[Kernel]:
    """The kernels of ``-Xptxas -v``'s messages."""
    found = []
    for part in messages.split("Compiling entry function '")[1:]:
        symbol = part.split("'", 1)[0]
        name, dtype = re.findall(r"\d+([a-z_]+_kernel)I([fd])", symbol)[0]
        lanes, teams = (int(v) for v in re.findall(r"Li(\d+)E", symbol)[:2])

        def number(pattern: str, text: str = part) -> int:
            match = re.search(pattern, text)
            return int(match[1]) if match else 0

        spilled = number(r"(\d+) bytes spill stores") + number(r"(\d+) bytes spill loads")
        registers, barriers = number(r"Used (\d+) registers"), number(r"used (\d+) barriers")
        stack, shared = number(r"(\d+) bytes stack frame"), number(r"(\d+) bytes smem")
        size = 4 if dtype == "f" else 8
        found.append(Kernel(name, arch, size, lanes, teams, registers, spilled, stack, shared, barriers))
    return sorted(found, key=lambda kernel: (kernel.size, kernel.lanes))


def kernels(arch: int) -> list[Kernel]:
    """The small Cholesky kernels compiled for one architecture: float32, then float64, smallest d first."""
    return parsed(compiled(CUDA / "cholesky.cu", arch, "-Xptxas", "-v"), arch)


def blocks_resident(kernel: Kernel, shared: int) -> int:
    """Blocks that fit a multiprocessor at once, by registers (given out in units of 256 a warp), shared memory and
    their number."""
    warps = (kernel.threads + 31) // 32
    a_warp = (kernel.registers * 32 + 255) // 256 * 256
    return min(32, 64 // warps, REGISTERS // (a_warp * warps), SHARED[kernel.arch] // (shared + 1024))


def rows(arch: int) -> list[dict[str, str | int]]:
    """One row a kernel, for a table; shared memory is that of a block at the kernel's largest d."""
    from ansn.ops.native import module

    out: list[dict[str, str | int]] = []
    for kernel in kernels(arch):
        shared = kernel.static_shared + kernel.teams * module.small_cholesky_shared_bytes(kernel.lanes, kernel.size)
        blocks = blocks_resident(kernel, shared)
        out.append(
            {
                "kernel": f"{kernel.name} float{8 * kernel.size} d <= {kernel.lanes}",
                "arch": f"sm_{arch}",
                "threads": kernel.threads,
                "registers": kernel.registers,
                "spilled bytes": kernel.spilled,
                "shared bytes": shared,
                "blocks resident": blocks,
                "matrices resident": blocks * kernel.teams,
            }
        )
    return out


def version() -> str:
    """Release of nvcc, such as "13.0"."""
    compiler = nvcc()
    if compiler is None:
        raise RuntimeError("nvcc was not found on PATH")
    told = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    return re.findall(r"release (\d+\.\d+)", told)[0]


def lines(arch: int) -> list[str]:
    """The Markdown rows of one architecture."""
    return ["| " + " | ".join(str(value) for value in row.values()) + " |" for row in rows(arch)]


def document() -> str:
    """The whole of ``docs/cuda-table.md``."""
    names = list(rows(90)[0])
    table = ["| " + " | ".join(names) + " |", "|" + " --- |" * len(names), *lines(90), *lines(80)]
    return f"""# What the compiler made of the CUDA kernels

Written by `python -m benchmarks.cuda_resources > docs/cuda-table.md` with nvcc {version()}; a test compares.
Nothing here was run on a GPU. Shared memory is a block's at the kernel's largest d; residency is a multiprocessor's.

""" + "\n".join(table)


if __name__ == "__main__":
    print(document())
