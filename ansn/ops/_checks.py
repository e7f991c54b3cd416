"""Argument checks shared by the operations: each failure is one line naming argument, value and expectation."""

from __future__ import annotations

import math
import operator

import torch
from torch import Tensor
from torch.autograd import forward_ad

_functions = torch._C._functorch.peek_interpreter_stack
_included, _GRADS_BATCHED = torch._C._dispatch_tls_is_dispatch_key_included, torch._C._dispatch_key_parse("VmapMode")
FLOATS = frozenset((torch.float32, torch.float64, torch.bfloat16, torch.float16))


def flat(value: Tensor) -> Tensor:
    """``[B, ...]`` to contiguous ``[B, d]``, copying only where it must."""
    if value.ndim == 2 and value.is_contiguous():
        return value
    return value.flatten(1).contiguous()


def needs_grad(*values: Tensor | None) -> bool:
    """Whether our own gradients are asked for: under a transform plain torch runs, which has all of them."""
    if torch.is_grad_enabled():
        for value in values:
            if value is not None and value.requires_grad:
                return not transformed()
    return False


def transformed() -> bool:
    """Whether torch.func, forward derivatives or autograd's own vmap (``is_grads_batched``) are at work, which see
    through plain torch alone."""
    return forward_ad._current_level >= 0 or _functions() is not None or _included(_GRADS_BATCHED)


# A constant of a compiled graph, which torch guards: torch.compiler.assume_constant_result, which imports the compiler.
transformed._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _one_set(value: Tensor) -> bool:
    """Whether it is one set of values: vmap hides several, and a tracer (linearize) asks for those to come."""
    func = torch._C._functorch
    while func.is_functorch_wrapped_tensor(value):
        if func.is_batchedtensor(value):
            return False
        value = func.get_unwrapped(value)
    return not torch._C._len_torch_dispatch_stack()


def readable(value: Tensor) -> bool:
    """Whether a value can be looked at here, and costs no waiting: a plain tensor on the CPU, that nothing traces."""
    plain = type(value) in (Tensor, torch.nn.Parameter) and value.is_cpu and not torch.compiler.is_compiling()
    return plain and not transformed() and not torch._C._len_torch_dispatch_stack()


def without_gradient(**values: object) -> None:
    """Raises ValueError for a tensor that autograd would follow into an argument that has no gradient."""
    for name, value in values.items():
        if isinstance(value, Tensor) and needs_grad(value):
            raise ValueError(f"{name}: got a tensor that requires grad, expected none: it has no gradient here")


def describe(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} tensor of shape {list(value.shape)} on {value.device}"
    shown = " ".join(repr(value).split())
    return f"{type(value).__name__} {shown if len(shown) <= 60 else shown[:60] + '...'}"


def floating(name: str, value: Tensor) -> None:
    if not isinstance(value, Tensor) or value.dtype not in FLOATS:
        raise TypeError(f"{name}: got {describe(value)}, expected a float32, float64, bfloat16 or float16 tensor")


def batched(name: str, value: Tensor) -> None:
    if not isinstance(value, Tensor) or value.dtype not in FLOATS:
        floating(name, value)
    if value.ndim < 2:
        raise ValueError(f"{name}: got shape {list(value.shape)}, expected [B, ...] with at least two dimensions")


def like(name: str, value: Tensor, x: Tensor, other: str = "x") -> None:
    if not isinstance(value, Tensor) or value.dtype not in FLOATS:
        floating(name, value)
    if value.shape != x.shape or value.device != x.device:
        raise ValueError(f"{name}: got {describe(value)}, expected {other}'s shape {list(x.shape)} on {x.device}")


def square(name: str, value: Tensor) -> None:
    if not isinstance(value, Tensor) or value.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{name}: got {describe(value)}, expected a float32 or float64 tensor")
    if value.ndim != 3 or value.shape[1] != value.shape[2]:
        raise ValueError(f"{name}: got shape {list(value.shape)}, expected [K, d, d]")


def region(value: Tensor | None, rows: int, count: int, device: torch.device) -> None:
    """Shape, dtype and device; the values are looked at where the call runs (:func:`region_values`)."""
    if value is None:
        if count != 1:
            raise ValueError(f"region: got None, expected an int64 tensor [{rows}] because there are {count} regions")
        return
    if not isinstance(value, Tensor):
        raise TypeError(f"region: got {describe(value)}, expected an int64 tensor of shape [{rows}]")
    if value.dtype != torch.int64 or value.shape != (rows,) or value.device != device:
        raise ValueError(f"region: got {describe(value)}, expected an int64 tensor of shape [{rows}] on {device}")


def region_values(value: Tensor | None, count: int) -> None:
    """On the CPU, where reading them costs no synchronisation. For what runs, not for what is traced: a kernel in a
    compiled graph would read beyond its factors."""
    if value is None or not value.is_cpu or not value.numel() or not _one_set(value):
        return
    low, high = int(value.min()), int(value.max())
    if low < 0 or high >= count:
        raise ValueError(f"region: got values {low}..{high}, expected 0..{count - 1}")


def apart(weight: Tensor, weight2: Tensor) -> None:
    """Where they are at hand: two memories."""
    if weight.data_ptr() == weight2.data_ptr() and weight.numel():
        raise ValueError("weight2: got weight's memory, expected its own: both are updated in place")


def moments(
    weight: Tensor,
    weight2: Tensor,
    mean: Tensor,
    scatter: Tensor,
    x: Tensor,
    owner: Tensor | None,
    decay: float,
    diagonal: bool = False,
) -> None:
    """State, rows ``[B, d]``, regions of them and forgetting of an update of running moments."""
    (rows, dim), device = x.shape, x.device
    for name, value in (("weight", weight), ("weight2", weight2), ("mean", mean), ("scatter", scatter)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name}: got {describe(value)}, expected a tensor, which is updated in place")
    if mean.ndim != 2 or mean.shape[1] != dim or mean.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"mean: got {describe(mean)}, expected float32 or float64 [K, {dim}]")
    count = mean.shape[0]
    sizes = [(count, dim)] if diagonal else [(count, dim, dim), (count, dim)]
    if scatter.shape not in sizes or scatter.dtype != mean.dtype:
        shown = " or ".join(str(list(size)) for size in sizes)
        raise ValueError(f"scatter: got {describe(scatter)}, expected {str(mean.dtype).removeprefix('torch.')} {shown}")
    for name, value in (("weight", weight), ("weight2", weight2)):
        if value.shape != (count,) or value.dtype != torch.float64:
            raise ValueError(f"{name}: got {describe(value)}, expected float64 [{count}]")
    for name, value in (("weight", weight), ("weight2", weight2), ("mean", mean), ("scatter", scatter)):
        if value.device != device or not value.is_contiguous():
            raise ValueError(f"{name}: got {describe(value)}, expected a contiguous tensor on {device}")
    if not isinstance(decay, (int, float)) or not 0.0 < decay <= 1.0:
        raise ValueError(f"decay: got {decay!r}, expected a number in (0, 1]")
    region(owner, rows, count, device)
    summable(x, mean.dtype)


def summable(x: Tensor, dtype: torch.dtype, share: float = 2.0**-16) -> None:
    """Raises ValueError for finite values beyond ``share`` of the root of the largest number of ``dtype``, where a look
    is free: by default squares of 2^30 rows then have a sum."""
    largest = share * torch.finfo(dtype).max ** 0.5
    if not x.is_floating_point() or torch.finfo(x.dtype).max <= largest or not readable(x) or not x.numel():
        return
    low, high = (float(value) for value in torch.aminmax(x.detach()))
    size = max(-low, high)
    if largest < size < math.inf:
        name = str(dtype).removeprefix("torch.")
        raise ValueError(
            f"x: got a value of size {size:.3g}, expected at most {largest:.3g}, of which squares have a sum in {name};"
            " the covariance was left as it was"
        )


def update_values(x: Tensor, region: Tensor | None, count: int) -> None:
    """On the CPU, where reading values costs no synchronisation: the regions in range, x finite (one bad row would
    poison a covariance for good). The native kernel looks at both itself."""
    if not x.is_cpu:
        return
    region_values(region, count)
    finite = torch.isfinite(x)
    if not bool(finite.all()):
        raise ValueError(not_finite(int((~finite).any(1).nonzero()[0])))


def not_finite(row: int) -> str:
    return f"x: got a value that is not finite in row {row}, expected finite ones; the covariance was left as it was"


def factor(value: Tensor, rows: int, dim: int, regions: Tensor | None, device: torch.device) -> None:
    floating("factor", value)
    if value.requires_grad:
        without_gradient(factor=value)
    shape = value.shape
    dense = len(shape) == 3 and shape[1] == shape[2] == dim
    if not (dense or (len(shape) == 2 and shape[1] == dim)) or value.device != device:
        raise ValueError(
            f"factor: got {describe(value)}, expected [K, {dim}, {dim}] (dense) or [K, {dim}] (diagonal) on {device}"
        )
    if regions is None and not dense and shape[0] == dim > 1:
        raise ValueError(
            f"factor: got [{dim}, {dim}], {dim} diagonal factors, and no region, expected one, or"
            f" [1, {dim}, {dim}] (factor[None]) for a dense factor"
        )
    if regions is not None or shape[0] != 1:
        region(regions, rows, shape[0], device)


def term(name: str, value: float | Tensor | None, rows: int, x: Tensor) -> float | Tensor | None:
    """A coefficient: a number as it is, a tensor ``[]`` or ``[B]`` in the arithmetic's dtype; the number 0 is None."""
    if value is None or (type(value) is float and value != 0):
        return value
    if not isinstance(value, Tensor):
        if not isinstance(value, (int, float)):
            raise TypeError(f"{name}: got {describe(value)}, expected a number or a tensor of shape [] or [{rows}]")
        return None if value == 0 else float(value)
    if value.ndim > 1 or (value.ndim == 1 and value.shape[0] != rows):
        raise ValueError(f"{name}: got {describe(value)}, expected a number or a tensor of shape [] or [{rows}]")
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    # What needs no conversion takes no call: a small step is as short as its overhead.
    if value.requires_grad:
        without_gradient(**{name: value})
    return value if value.dtype == dtype and value.device == x.device else value.to(x.device, dtype)


def counter(rows: int, seed: int, row: int, step: int, stream: int) -> tuple[int, int, int, int]:
    """Counters of the RNG contract for so many rows, as plain integers; values that Python cannot know while compiling
    are taken as they are."""
    if torch.compiler.is_compiling():
        return seed, row, step, stream
    integers = type(seed) is type(row) is type(step) is type(stream) is int
    if integers and 0 <= seed < 2**63 and 0 <= row <= 2**32 - rows and 0 <= step < 2**32 and 0 <= stream < 2**32:
        return seed, row, step, stream
    known = []
    for name, value, bits in (("seed", seed, 63), ("row", row, 63), ("step", step, 32), ("stream", stream, 32)):
        try:
            if isinstance(value, bool) or getattr(value, "dtype", None) == torch.bool:
                raise TypeError
            known.append(operator.index(value))
        except TypeError:
            raise TypeError(f"{name}: got {describe(value)}, expected an int") from None
        if not 0 <= known[-1] < 2**bits:
            raise ValueError(f"{name}: got {known[-1]}, expected 0 <= {name} < 2^{bits}")
    seed, row, step, stream = known
    if row + rows > 2**32:
        raise ValueError(f"row: got {row}, expected row + {rows} <= 2^32: rows beyond repeat")
    return seed, row, step, stream
