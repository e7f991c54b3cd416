"""What a mixture of Gaussians in separable bases says of a row under isotropic noise (math section 12), in one pass:

    logs_k = ln w_k - 1/2 sum_j (c_j^2 / t_j + ln t_j),   c = Q_k^T (x - m_k),  t = variances_k + sigma^2
    D = x - sum_k p_k Q_k (sigma^2 / t) c,   p = softmax(logs)

A program has a row, and keeps the sum of what it has seen of the regions for the largest logarithm so far. A region
whose share of it is below ``NOTHING`` is left out of the way back, which at low noise leaves about one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ansn.kernels.separable import Form, each, place, placed, turned
from ansn.ops._operands import stride

NOTHING = tl.constexpr(1e-12)


@triton.jit(do_not_specialize=["rows", "regions"])
def _mixture_kernel(
    out, logs, x, center, variances, log_weights, sigma2, qc, qh, qw, rows, regions, c_each, h_each, w_each, sigma_each,
    DENOISE: tl.constexpr,
    C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, CP: tl.constexpr, HP: tl.constexpr, WP: tl.constexpr,
):  # fmt: skip
    _, first, mask = place(rows, C, H, W, CP, HP, WP, False)
    column = first[:, None] + tl.arange(0, WP)[None, :]
    own = tl.program_id(0).to(tl.int64)
    here = own * (C * H * W) + column
    noise = tl.load(sigma2 + own * sigma_each)
    top = tl.full((), -3e38, tl.float64)  # finite: a region of weight 0 has the logarithm -inf
    total = tl.zeros((), tl.float32)
    back = tl.zeros((HP * CP, WP), tl.float32)
    for k in range(regions):
        of_region = tl.cast(k, tl.int64) * (C * H * W) + column
        # From the cache each time: registers do not suffice to keep it.
        away = tl.load(x + here, mask=mask, other=0.0).to(tl.float32)
        away -= tl.load(center + of_region, mask=mask, other=0.0)
        k_c = None if qc is None else qc + tl.cast(k, tl.int64) * c_each
        k_h = None if qh is None else qh + tl.cast(k, tl.int64) * h_each
        k_w = None if qw is None else qw + tl.cast(k, tl.int64) * w_each
        coordinates = turned(away, k_c, k_h, k_w, C, H, W, CP, HP, True)
        spread = tl.load(variances + of_region, mask=mask, other=1.0) + noise
        spread = tl.maximum(spread, 1.1754944e-38)  # the smallest normal number, rounded up: below it is a float64
        part = coordinates / spread
        misfit = tl.sum(part * coordinates + tl.where(mask, tl.log(spread), 0.0))
        log = tl.load(log_weights + k) - 0.5 * misfit.to(tl.float64)
        tl.store(logs + tl.cast(k, tl.int64) * rows + own, log)
        if DENOISE:
            higher = tl.maximum(top, log)
            kept = tl.exp((top - higher).to(tl.float32))
            share = tl.exp((log - higher).to(tl.float32))
            total = total * kept + share
            back *= kept
            top = higher
            if share > NOTHING:
                back += turned(share * noise * part, k_c, k_h, k_w, C, H, W, CP, HP, False)
    if DENOISE:
        value = tl.load(x + here, mask=mask, other=0.0).to(tl.float32)
        tl.store(out + here, (value - back / total).to(out.dtype.element_ty), mask=mask)


def mixture(
    x: Tensor,
    center: Tensor,
    variances: Tensor,
    log_weights: Tensor,
    sigma2: Tensor,
    denoise: bool,
    bases: Sequence[Tensor],
    found: Form,
) -> tuple[Tensor, Tensor]:
    """The arguments of ``ansn::mixture``, already checked, ``found`` the rows' form; new tensors."""
    center, variances, sigma2 = (t.float().contiguous() for t in (center, variances, sigma2))
    out = torch.empty_like(x) if denoise else x.new_empty(0)
    logs = torch.empty(len(center), len(x), dtype=torch.float64, device=x.device)
    if logs.numel() == 0 or x.numel() == 0:
        return out, logs
    q = placed(found, bases)
    channels, high, wide = row_block(found)
    c, h, w = found.sizes
    _mixture_kernel[(len(x),)](
        out, logs, x, center, variances, log_weights.double().contiguous(), sigma2, *q, *logs.shape[::-1],
        *each(*q), stride(sigma2), DENOISE=denoise, C=c, H=h, W=w, CP=channels, HP=high, WP=wide,
        num_warps=min(8, max(1, channels * high * wide // 256)), num_stages=1, enable_fp_fusion=True,
    )  # fmt: skip
    return out, logs


def row_block(found: Form) -> tuple[int, int, int]:
    """CP, HP and WP of a whole row."""
    fewest, high, wide = found.blocks()
    return max(fewest, triton.next_power_of_2(found.sizes[0])), high, wide
