"""Blocks of rows of one region, made on the device without telling the host how many there are; and what tile kernels
are told of sizes.

A grouped kernel works on the batch in the order of ``ansn.ops._operands.sort_rows``.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _block_map_kernel(blocks, offsets, count, length, BLOCK_ROWS: tl.constexpr, CHUNK: tl.constexpr):
    """Program k fills the entries of region k; program K those that no region needs."""
    k = tl.program_id(0)
    lane = tl.arange(0, CHUNK)
    # First entry of region k: the blocks of all regions before it.
    before = tl.zeros((CHUNK,), tl.int64)
    for start in range(0, k, CHUNK):
        j = start + lane
        low = tl.load(offsets + j, mask=j < k, other=0)
        high = tl.load(offsets + j + 1, mask=j < k, other=0)
        before += (high - low + BLOCK_ROWS - 1) // BLOCK_ROWS
    first = tl.sum(before, 0).to(tl.int32)
    if k < count:
        position = tl.load(offsets + k)
        used = ((tl.load(offsets + k + 1) - position + BLOCK_ROWS - 1) // BLOCK_ROWS).to(tl.int32)
        for start in range(0, used, CHUNK):
            entry = start + lane
            tl.store(blocks + first + entry, k.to(tl.int64), mask=entry < used)
            tl.store(blocks + length + first + entry, position + entry.to(tl.int64) * BLOCK_ROWS, mask=entry < used)
    else:
        for start in range(first, length, CHUNK):
            entry = start + lane
            tl.store(blocks + entry, tl.full((CHUNK,), -1, tl.int64), mask=entry < length)


def block_map(offsets: Tensor, rows: int, block_rows: int) -> Tensor:
    """Blocks of at most ``block_rows`` positions of one region: int64 ``[2, P]``, region and first position.

    P is the bound that the host can know, ``ceil(B / block_rows) + min(K, B)``; entries left over have region -1.
    """
    count = offsets.shape[0] - 1
    length = triton.cdiv(rows, block_rows) + min(count, rows)
    blocks = torch.empty(2, length, dtype=torch.int64, device=offsets.device)
    _block_map_kernel[(count + 1,)](
        blocks, offsets, count, length, BLOCK_ROWS=block_rows, CHUNK=128, num_warps=1, enable_fp_fusion=True
    )
    return blocks


def alignment(dim: int) -> int:
    """The largest power of two, at most 8, that divides ``dim``.

    A kernel that is given ``dim // ALIGN`` and multiplies by the constant ALIGN lets the compiler prove that rows start
    on that many elements, which 16-byte accesses need; of an argument Triton knows only divisibility by 16.
    """
    align = 8
    while dim % align:
        align //= 2
    return align


def register_limit(warps: int, align: int, grouped: bool) -> int:
    """Registers a thread may have, for the ``maxnreg`` of a tile kernel.

    Left alone, ptxas spills a few registers to reach 96, a step of occupancy, and takes all 255 of a thread in the
    larger tiles under some versions. At 128 sixteen warps still fit; at 168, which the row indices of regions take in
    tiles of four warps, twelve. Rows that are not aligned take an address for each element.
    """
    return 255 if align < 4 else 168 if grouped and warps == 4 else 128
