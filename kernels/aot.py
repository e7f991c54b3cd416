"""What the compiler made of the kernels, found without a GPU: registers, spills, shared memory, width of accesses.

Each case of :mod:`ansn.kernels.production` calls a launcher with meta tensors. Its launches are recorded instead of
run, and every kernel is compiled for the architecture with the types, constants and alignment that its launch had.
``python -m ansn.kernels.aot --into docs/kernel-table.md`` writes the table of the Triton that it runs with.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia import compiler as nvidia
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

ARCHITECTURES = (90, 80)
_TYPES = {
    torch.float32: "fp32", torch.float64: "fp64", torch.bfloat16: "bf16", torch.float16: "fp16",
    torch.int64: "i64", torch.int32: "i32", torch.uint8: "u8", torch.bool: "i1",
}  # fmt: skip


@dataclass(frozen=True)
class Launch:
    """One launch as it would have happened: the kernel, its arguments by name, and the compiler's options."""

    kernel: JITFunction
    arguments: dict[str, Any]
    options: dict[str, Any]


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Launches inside the block are appended to the list, not run."""
    launches: list[Launch] = []

    def record(kernel: JITFunction, *args: Any, grid: Any, warmup: bool, **named: Any) -> None:
        names = [p.name for p in kernel.params]
        arguments = {p.name: p.default for p in kernel.params if p.has_default}
        arguments |= dict(zip(names, args, strict=False)) | {k: v for k, v in named.items() if k in names}
        launches.append(Launch(kernel, arguments, {k: v for k, v in named.items() if k not in names}))

    with mock.patch.object(JITFunction, "run", record):
        yield launches


def source(launch: Launch) -> ASTSource:
    """The launch's kernel specialised as Triton does it: by type, by None and 1, by divisibility by 16."""
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    for i, parameter in enumerate(launch.kernel.params):
        value, name = launch.arguments[parameter.name], parameter.name
        whole = isinstance(value, int) and not isinstance(value, bool) and not parameter.do_not_specialize
        if parameter.is_constexpr or value is None or (whole and value == 1):
            signature[name], constants[name] = "constexpr", value
        elif isinstance(value, Tensor):
            # A meta tensor has no address; torch's allocations are aligned, so are views at a multiple of 16 bytes.
            signature[name] = "*" + _TYPES[value.dtype]
            if value.storage_offset() * value.element_size() % 16 == 0:
                attributes[(i,)] = [["tt.divisibility", 16]]
        elif isinstance(value, float):
            signature[name] = "fp32"
        elif isinstance(value, bool):
            signature[name] = "u1"
        else:
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if whole and value % 16 == 0:
                attributes[(i,)] = [["tt.divisibility", 16]]
    return ASTSource(launch.kernel, signature, constants, attributes)


@dataclass(frozen=True)
class Row:
    """What one kernel became. Widths are counts by bits, of the instructions of one thread."""

    case: str
    kernel: str
    arch: int
    warps: int
    registers: int
    spills: int
    shared: int
    instructions: int
    loads: dict[int, int]
    stores: dict[int, int]

    def cells(self) -> list[str]:
        def widths(counts: dict[int, int]) -> str:
            return ", ".join(f"{n} x {bits}" for bits, n in sorted(counts.items(), reverse=True)) or "none"

        numbers = (self.arch, self.warps, self.registers, self.spills, self.shared, self.instructions)
        return [self.case, f"`{self.kernel}`", *map(str, numbers), widths(self.loads), widths(self.stores)]


def _tool(name: str) -> str:
    return str(Path(nvidia.__file__).parent / "bin" / name)


def _width(modifiers: str) -> int:
    for text, bits in ((".128", 128), (".64", 64), (".U16", 16), (".S16", 16), (".U8", 8), (".S8", 8)):
        if text in modifiers:
            return bits
    return 32


def inspected(case: str, kernel: str, arch: int, warps: int, shared: int, cubin: bytes) -> Row:
    """A row from a cubin's resources and machine code."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = [
            subprocess.run([_tool("cuobjdump"), flag, file.name], capture_output=True, text=True, check=True).stdout
            for flag in ("-res-usage", "-sass")
        ]
    registers = re.search(r"\bREG:(\d+)", text[0])
    if registers is None:
        raise RuntimeError(f"cuobjdump -res-usage of {kernel} names no registers: {text[0]!r}")
    # "/*0a50*/  @!P0 LDG.E.128.CONSTANT R4, ..." gives LDG and .E.128.CONSTANT
    code = re.findall(r"^\s+/\*[0-9a-f]{4,5}\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9_]+)((?:\.[\w]+)*)", text[1], re.MULTILINE)
    widths = {
        kind: dict(Counter(_width(m) for name, m in code if name in names))
        for kind, names in (("loads", ("LDG", "LDGSTS")), ("stores", ("STG",)))
    }
    return Row(
        case, kernel, arch, warps, int(registers[1]), sum(name in ("STL", "LDL") for name, _ in code), shared,
        sum(name != "NOP" for name, _ in code), widths["loads"], widths["stores"],
    )  # fmt: skip


def rows(case: str, call: Callable[[], object], arch: int) -> list[Row]:
    """One row for each different kernel that ``call`` launches, compiled for ``sm_<arch>``."""
    with recorded() as launches:
        call()
    found: list[Row] = []
    for launch in launches:
        made = triton.compile(source(launch), target=GPUTarget("cuda", arch, 32), options=launch.options)
        name = launch.kernel.fn.__name__
        row = inspected(case, name, arch, made.metadata.num_warps, made.metadata.shared, made.asm["cubin"])
        if row not in found:
            found.append(row)
    return found


HEADER = [
    "case", "kernel", "sm", "warps", "registers", "spills", "shared bytes", "instructions", "loads", "stores"
]  # fmt: skip


def table(found: list[Row]) -> str:
    """The rows in Markdown."""
    lines = [HEADER, ["---"] * len(HEADER), *(row.cells() for row in found)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def sections(text: str) -> dict[str, str]:
    """The tables of ``docs/kernel-table.md`` by Triton's version."""
    return dict(re.findall(r"^## Triton (\S+)\n\n(.*?\n)(?=\n##|\Z)", text, re.MULTILINE | re.DOTALL))


def document(found: list[Row], text: str = "") -> str:
    """The whole of ``docs/kernel-table.md``: this version's table anew, of ``text`` those of other versions."""
    tables = sorted((sections(text) | {triton.__version__: table(found)}).items())
    return """# What the compiler made of the Triton kernels

Written by `python -m ansn.kernels.aot --into docs/kernel-table.md`, run once with each Triton; a test compares.
Nothing here was run on a GPU. Every case is a launch at production sizes (`kernels/production.py`). Spills are loads
and stores of local memory; instructions are those of the whole program; loads and stores are a thread's instructions
on global memory, number x width in bits.
""" + "".join(f"\n## Triton {version}\n\n{rows}" for version, rows in tables)


def _launches(call: Callable[[], object], text: str) -> bool:
    """Whether a kernel that ``call`` launches, or the module it is in, has the text in its name."""
    with recorded() as launches:
        call()
    return any(text in f"{each.kernel.fn.__module__}.{each.kernel.fn.__name__}" for each in launches)


def main() -> None:
    """Print the table, or the rows of the cases or kernels whose name contains a text; or put it into the document."""
    from ansn.kernels.production import CASES

    parser = argparse.ArgumentParser(description="Registers, spills and widths of the Triton kernels, without a GPU.")
    parser.add_argument(
        "--only", default="", metavar="TEXT", help="of the cases or kernels whose name contains TEXT"
    )
    parser.add_argument("--into", type=Path, metavar="FILE", help="the document whose table is written anew")
    arguments = parser.parse_args()
    only, into = arguments.only, arguments.into
    if only and into:
        parser.error("--into: the document has every case, so it does not go with --only")
    chosen = {case: call for case, call in CASES.items() if only in case or _launches(call, only)}
    if not chosen:
        parser.error(f"--only: got {only!r}, which no case and no kernel has in its name")
    found = [row for case, call in chosen.items() for arch in ARCHITECTURES for row in rows(case, call, arch)]
    if into is None:
        print(table(found), end="")
    else:
        into.write_text(document(found, into.read_text() if into.exists() else ""))


if __name__ == "__main__":
    main()
