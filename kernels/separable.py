"""The step and the filter in a basis of one small matrix an axis, from memory to memory (math sections 3, 10, 11).

    apply:  out = y or v - y,  y = [Q] (w * [Q^T] (v - m)),  w given, or 1 / (l / tau^2 + 1) of given l
    step:   out = x + c (D - x) + Q (s * (a f + b z))

A row is channels x lines x points ``(C, H, W)``: axes without a basis are taken together, and the one in front of all
others is C, of any length. A program holds a block ``[HP * CP, WP]``, line h of channel c at ``h CP + c``, so that the
product along W and the one along H are large products of the same numbers in the same order: nothing is transposed.
Where C has no basis its channels are independent rows, and a program takes as many as still fill the machine.

Products are float32 in IEEE arithmetic, and no sum's order depends on the block.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ansn.kernels import philox
from ansn.kernels.colored_step import colored_step
from ansn.kernels.dense_step import PROGRAMS
from ansn.ops._operands import stride

LONGEST, CHANNELS, LARGEST = 64, 4, 4096
"""Points of an axis with H's or W's place, of C where it has a basis, and numbers of a block, padding included."""


@triton.jit
def _matrix(q, N: tl.constexpr, NP: tl.constexpr, TRANSPOSED: tl.constexpr, FIRST, EVERY: tl.constexpr):
    """Columns FIRST, FIRST + EVERY, ... of ``Q`` or ``Q^T``: ``[NP, NP / EVERY]`` in float32, zero beyond its edges."""
    i, j = tl.arange(0, NP)[:, None], FIRST + EVERY * tl.arange(0, NP // EVERY)[None, :]
    at = q + (j * N + i if TRANSPOSED else i * N + j)
    return tl.load(at, mask=(i < N) & (j < N), other=0.0).to(tl.float32)


@triton.jit
def _along_points(v, q, out, N: tl.constexpr, NP: tl.constexpr, INVERSE: tl.constexpr, FIRST, EVERY: tl.constexpr):
    """``out + v Q^T``, with INVERSE ``v Q``: the product along W of points FIRST, FIRST + EVERY, ... of lines.

    Halves are every other point, which a thread has already: with sixteen points the operands fit in the registers.
    """
    L: tl.constexpr = v.shape[0]
    P: tl.constexpr = v.shape[1]
    if P > 16:
        v0, v1 = tl.split(tl.reshape(v, (L, P // 2, 2)))
        out = _along_points(v0, q, out, N, NP, INVERSE, FIRST, 2 * EVERY)
        return _along_points(v1, q, out, N, NP, INVERSE, FIRST + EVERY, 2 * EVERY)
    else:
        return tl.dot(v, tl.trans(_matrix(q, N, NP, INVERSE, FIRST, EVERY)), out, input_precision="ieee")


@triton.jit
def _along_lines(v, q, out, N: tl.constexpr, NP: tl.constexpr, INVERSE: tl.constexpr, FIRST, EVERY: tl.constexpr):
    """``out + Q v``, with INVERSE ``Q^T v``: the product along H of ``[HP, CP * WP]``, as along W."""
    P: tl.constexpr = v.shape[0]
    M: tl.constexpr = v.shape[1]
    if P > 16:
        v0, v1 = tl.split(tl.permute(tl.reshape(v, (P // 2, 2, M)), (0, 2, 1)))
        out = _along_lines(v0, q, out, N, NP, INVERSE, FIRST, 2 * EVERY)
        return _along_lines(v1, q, out, N, NP, INVERSE, FIRST + EVERY, 2 * EVERY)
    else:
        return tl.dot(_matrix(q, N, NP, INVERSE, FIRST, EVERY), v, out, input_precision="ieee")


@triton.jit
def _entry(q, i: tl.constexpr, j: tl.constexpr, N: tl.constexpr, INVERSE: tl.constexpr):
    """``Q[i, j]``, of ``Q^T`` where INVERSE; 0 beyond its edge."""
    if i >= N or j >= N:
        return 0.0
    else:
        return tl.load(q + (j * N + i if INVERSE else i * N + j)).to(tl.float32)


@triton.jit
def _channels(v, q, N: tl.constexpr, CP: tl.constexpr, INVERSE: tl.constexpr):
    """The product along C, of 2 or 4 channels, which lie in the registers of one thread."""
    L: tl.constexpr = v.shape[0] // CP
    WP: tl.constexpr = v.shape[1]
    if CP == 2:
        v0, v1 = tl.split(tl.permute(tl.reshape(v, (L, 2, WP)), (0, 2, 1)))
        u0 = _entry(q, 0, 0, N, INVERSE) * v0 + _entry(q, 0, 1, N, INVERSE) * v1
        u1 = _entry(q, 1, 0, N, INVERSE) * v0 + _entry(q, 1, 1, N, INVERSE) * v1
        return tl.reshape(tl.permute(tl.join(u0, u1), (0, 2, 1)), (L * CP, WP))
    else:
        even, odd = tl.split(tl.permute(tl.reshape(v, (L, 2, 2, WP)), (0, 3, 1, 2)))
        v0, v2 = tl.split(even)
        v1, v3 = tl.split(odd)
        u0 = _entry(q, 0, 0, N, INVERSE) * v0 + _entry(q, 0, 1, N, INVERSE) * v1
        u0 += _entry(q, 0, 2, N, INVERSE) * v2 + _entry(q, 0, 3, N, INVERSE) * v3
        u1 = _entry(q, 1, 0, N, INVERSE) * v0 + _entry(q, 1, 1, N, INVERSE) * v1
        u1 += _entry(q, 1, 2, N, INVERSE) * v2 + _entry(q, 1, 3, N, INVERSE) * v3
        u2 = _entry(q, 2, 0, N, INVERSE) * v0 + _entry(q, 2, 1, N, INVERSE) * v1
        u2 += _entry(q, 2, 2, N, INVERSE) * v2 + _entry(q, 2, 3, N, INVERSE) * v3
        u3 = _entry(q, 3, 0, N, INVERSE) * v0 + _entry(q, 3, 1, N, INVERSE) * v1
        u3 += _entry(q, 3, 2, N, INVERSE) * v2 + _entry(q, 3, 3, N, INVERSE) * v3
        all = tl.join(tl.join(u0, u2), tl.join(u1, u3))  # [L, WP, 2, 2]
        return tl.reshape(tl.permute(all, (0, 2, 3, 1)), (L * CP, WP))


@triton.jit
def turned(
    v, qc, qh, qw, C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, CP: tl.constexpr, HP: tl.constexpr,
    INVERSE: tl.constexpr,
):  # fmt: skip
    """``Q v``, with INVERSE ``Q^T v``, of a block ``[HP * CP, WP]`` that is zero beyond its edges; so is the result."""
    WP: tl.constexpr = v.shape[1]
    if qw is not None:
        v = _along_points(v, qw, tl.zeros_like(v), W, WP, INVERSE, 0, 1)
    if qh is not None:
        planes = tl.reshape(v, (HP, CP * WP))
        planes = _along_lines(planes, qh, tl.zeros_like(planes), H, HP, INVERSE, 0, 1)
        v = tl.reshape(planes, (HP * CP, WP))
    if qc is not None:
        v = _channels(v, qc, C, CP, INVERSE)
    return v


@triton.jit
def place(
    rows, C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, CP: tl.constexpr, HP: tl.constexpr, WP: tl.constexpr,
    FLAT: tl.constexpr,
):  # fmt: skip
    """Of this program's block: the row of each line, int64; the column of each line's first point; which points are.

    FLAT: channels of all rows are one list; else a program has channels of one row.
    """
    line = tl.arange(0, HP * CP)
    h = line // CP
    if FLAT:
        item = tl.program_id(0).to(tl.int64) * CP + line % CP
        row = item // C
        c = (item - row * C).to(tl.int32)
        live = row < rows
        row = tl.where(live, row, 0)  # whose coefficients exist
    else:
        CHUNKS: tl.constexpr = (C + CP - 1) // CP
        row = (tl.program_id(0) // CHUNKS).to(tl.int64) + 0 * line
        c = tl.program_id(0) % CHUNKS * CP + line % CP
        live = c < C
    mask = (live & (h < H))[:, None] & (tl.arange(0, WP) < W)[None, :]
    return row, (c * H + h) * W, mask


@triton.jit
def _region(region, C: tl.constexpr, CP: tl.constexpr):
    """Of the row whose channels this program has."""
    return tl.load(region + tl.program_id(0).to(tl.int64) // ((C + CP - 1) // CP))


@triton.jit(do_not_specialize=["rows"])
def _apply_kernel(
    out, v, center, weights, tau2, region, qc, qh, qw, rows, center_each, weight_each, c_each, h_each, w_each, tau_each,
    INWARD: tl.constexpr, OUTWARD: tl.constexpr, REST: tl.constexpr,
    C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, CP: tl.constexpr, HP: tl.constexpr, WP: tl.constexpr,
    FLAT: tl.constexpr,
):  # fmt: skip
    row, first, mask = place(rows, C, H, W, CP, HP, WP, FLAT)
    column = first[:, None] + tl.arange(0, WP)[None, :]
    here = row[:, None] * (C * H * W) + column
    if region is not None:
        k = _region(region, C, CP)
        center = None if center is None else center + k * center_each
        weights = None if weights is None else weights + k * weight_each
        qc = None if qc is None else qc + k * c_each
        qh = None if qh is None else qh + k * h_each
        qw = None if qw is None else qw + k * w_each
    y = tl.load(v + here, mask=mask, other=0.0).to(tl.float32)
    if center is not None:
        y -= tl.load(center + column, mask=mask, other=0.0)
    if INWARD:
        y = turned(y, qc, qh, qw, C, H, W, CP, HP, True)
    if weights is not None:
        w = tl.load(weights + column, mask=mask, other=1.0)  # 0 / 0 beyond the edges would reach the row
        if tau2 is not None:
            y /= w * (1.0 / tl.load(tau2 + row * tau_each))[:, None] + 1.0
        else:
            y *= w
    if OUTWARD:
        y = turned(y, qc, qh, qw, C, H, W, CP, HP, False)
    if REST:
        y = tl.load(v + here, mask=mask, other=0.0).to(tl.float32) - y
    tl.store(out + here, y.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["rows", *philox.COUNTERS])
def _step_kernel(
    out, x, denoised, f, c, a, b, deviation, region, qc, qh, qw, rows, deviation_each, c_each, h_each, w_each,
    c_stride, a_stride, b_stride, seed_low, seed_high, row0, step, stream,
    C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, CP: tl.constexpr, HP: tl.constexpr, WP: tl.constexpr,
    FLAT: tl.constexpr,
):  # fmt: skip
    """b needs ``W % 4 == 0``: a quad of normals is of one line."""
    row, first, mask = place(rows, C, H, W, CP, HP, WP, FLAT)
    column = first[:, None] + tl.arange(0, WP)[None, :]
    here = row[:, None] * (C * H * W) + column
    if region is not None:
        k = _region(region, C, CP)
        deviation += k * deviation_each
        qc = None if qc is None else qc + k * c_each
        qh = None if qh is None else qh + k * h_each
        qw = None if qw is None else qw + k * w_each
    push = tl.zeros((HP * CP, WP), tl.float32)
    if f is not None:
        push = tl.load(f + here, mask=mask, other=0.0).to(tl.float32)
        if a is not None:
            push *= tl.load(a + row * a_stride)[:, None]
    if b is not None:
        quad = (first // 4)[:, None] + tl.arange(0, WP // 4)[None, :]
        z = philox.normals_block(quad, (row.to(tl.int32) + row0)[:, None], step, stream, seed_low, seed_high)
        push += tl.load(b + row * b_stride)[:, None] * tl.reshape(z, (HP * CP, WP))
    push *= tl.load(deviation + column, mask=mask, other=0.0)
    push = turned(push, qc, qh, qw, C, H, W, CP, HP, False)
    value = tl.load(x + here, mask=mask, other=0.0).to(tl.float32)
    if denoised is not None:
        target = tl.load(denoised + here, mask=mask, other=0.0).to(tl.float32)
        value += tl.load(c + row * c_stride)[:, None] * (target - value)
    tl.store(out + here, (value + push).to(out.dtype.element_ty), mask=mask)


class Form(NamedTuple):
    """Rows as ``(C, H, W)`` and the axis of ``bases`` that each place has, or None."""

    sizes: tuple[int, int, int]
    places: tuple[int | None, int | None, int | None]

    def blocks(self) -> tuple[int, int, int]:
        """CP of the fewest channels, HP and WP: a product's sides are 16 or more."""
        (c, h, w), (in_c, in_h, in_w) = self.sizes, self.places
        high = max(triton.next_power_of_2(h), 1 if in_h is None else 16)
        wide = max(triton.next_power_of_2(w), 1 if in_w is None else 16)
        fewest = max(1, 16 // high) if in_w is not None else 1
        return max(fewest, 1 if in_c is None else max(2, triton.next_power_of_2(c))), high, wide


@functools.cache
def form(axes: tuple[int, ...], shape: tuple[int, ...]) -> Form | None:
    """Axes of one point left out, neighbours without a basis taken together; None where they do not go into three, or
    are too long."""
    merged: list[tuple[int, int | None]] = []
    for axis, n in enumerate(shape):
        at = axes.index(axis) if axis in axes else None
        if at is None and merged and merged[-1][1] is None:
            merged[-1] = (n * merged[-1][0], None)
        elif at is not None or n > 1:
            merged.append((n, at))
    if merged and merged[0][1] is not None and len(merged) < 3:
        merged.insert(0, (1, None))
    while len(merged) < 3:
        merged.insert(1, (1, None))
    sizes, places = zip(*merged, strict=True)
    if len(merged) > 3 or max(sizes[1:]) > LONGEST or (places[0] is not None and sizes[0] > CHANNELS):
        return None
    found = Form(sizes, places)
    c, h, w = found.blocks()
    return found if c * h * w <= LARGEST else None


def blocks_of(found: Form, rows: int, grouped: bool) -> tuple[dict[str, Any], int]:
    """What the kernel is told of the block, and programs: the most channels that still fill the machine."""
    (c, h, w), (in_c, *_) = found.sizes, found.places
    fewest, high, wide = found.blocks()
    flat = in_c is None and not grouped
    channels = fewest
    if in_c is None:
        items = rows * c if flat else c
        machine = PROGRAMS if flat else max(1, PROGRAMS // rows)
        while 2 * channels * high * wide <= LARGEST and channels < items and items // (2 * channels) >= machine:
            channels *= 2
    programs = triton.cdiv(rows * c, channels) if flat else rows * triton.cdiv(c, channels)
    block = {"C": c, "H": h, "W": w, "CP": channels, "HP": high, "WP": wide, "FLAT": flat}
    return block, programs


def warps_of(numbers: int, programs: int) -> int:
    """Sixteen numbers a thread, eight where programs do not fill the machine; at most sixteen warps."""
    return min(16, max(1, numbers // (512 if programs > PROGRAMS else 256)))


def placed(found: Form, bases: Sequence[Tensor]) -> list[Tensor | None]:
    """The bases by place, contiguous."""
    return [None if at is None else bases[at].contiguous() for at in found.places]


def each(*values: Tensor | None) -> list[int]:
    """Elements from one region's to the next."""
    return [0 if value is None or len(value) == 1 else value[0].numel() for value in values]


def _number(value: Tensor | None) -> Tensor | None:
    return None if value is None else value.float().contiguous()


def separable_apply(
    v: Tensor,
    center: Tensor | None,
    weights: Tensor | None,
    tau2: Tensor | None,
    region: Tensor | None,
    inward: bool,
    outward: bool,
    rest: bool,
    bases: Sequence[Tensor],
    found: Form,
) -> Tensor:
    """The arguments of ``ansn::separable_apply``, already checked, ``found`` the rows' :func:`form`; a new tensor.

    v is contiguous float32, bfloat16 or float16 ``[B, d]``; bases are of any float dtype.
    """
    out = torch.empty_like(v)
    if v.numel() == 0:
        return out
    center, weights, tau2 = _number(center), _number(weights), _number(tau2)
    owners = (center, weights, *placed(found, bases))
    region = region if any(each(*owners)) else None
    block, programs = blocks_of(found, v.shape[0], region is not None)
    _apply_kernel[(programs,)](
        out, v, *owners[:2], tau2, region, *owners[2:], v.shape[0], *each(*owners), stride(tau2),
        INWARD=inward, OUTWARD=outward, REST=rest, **block,
        num_warps=warps_of(block["CP"] * block["HP"] * block["WP"], programs), num_stages=1, enable_fp_fusion=True,
    )  # fmt: skip
    return out


def separable_step(
    x: Tensor,
    denoised: Tensor | None,
    f: Tensor | None,
    c: Tensor | None,
    a: Tensor | None,
    b: Tensor | None,
    deviation: Tensor,
    region: Tensor | None,
    bases: Sequence[Tensor],
    found: Form,
    seed: int,
    row: int,
    step: int,
    stream: int,
) -> Tensor:
    """The arguments of ``ansn::separable_step``, already checked, ``found`` the rows' :func:`form`; a new tensor.

    x, D and f are contiguous float32, bfloat16 or float16 ``[B, d]``, coefficients float32 ``[]`` or ``[B]``.
    """
    counter = seed, row, step, stream
    denoised, c = (None, None) if denoised is None or c is None else (denoised, c)
    f, a = (None, None) if f is None or a is None else (f, a)
    deviation = deviation.float().contiguous()
    if not bases or (f is None and b is None):
        return colored_step(x, denoised, f, c, a, b, deviation, region, *counter)
    out = torch.empty_like(x)
    if x.numel() == 0:
        return out
    if b is not None and found.sizes[2] % 4:
        # Quads of normals cross the ends of lines: a f + b z is made before.
        zero = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
        f, a, b = colored_step(zero, None, f, None, a, b, None, None, *counter), None, None
    owners = (deviation, *placed(found, bases))
    region = region if any(each(*owners)) else None
    block, programs = blocks_of(found, x.shape[0], region is not None)
    _step_kernel[(programs,)](
        out, x, denoised, f, c, a, b, deviation, region, *owners[1:], x.shape[0], *each(*owners),
        stride(c), stride(a), stride(b), *philox.counters(*counter), **block,
        num_warps=warps_of(block["CP"] * block["HP"] * block["WP"], programs), num_stages=1, enable_fp_fusion=True,
    )  # fmt: skip
    return out
