"""Every operation once on the native back end, at sizes that leave a remainder everywhere; for memory checkers.

``python -m tests.native.exercise [--planted read|misaligned]``: the calls that a back end refuses are counted, not
hidden. ``--planted`` ends with a wrong call on purpose, so that whoever watches can show that it sees one.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import math
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import tests.native.instrumented  # noqa: F401 - before ansn: it may put another build in its place
from ansn import ops
from ansn.ops import native

DIMS = (1, 7, 33, 70)
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
Call = Callable[[], object]


def rand(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64).to(dtype)


def factors(regions: int, dim: int, dtype: torch.dtype) -> Iterator[Tensor | None]:
    yield None
    yield rand(regions, dim, dtype=dtype).abs() + 0.5
    yield (rand(regions, dim, dim) / dim + torch.eye(dim)).tril().to(dtype)


def owners(rows: int, regions: int) -> Tensor | None:
    return None if regions == 1 else (torch.arange(rows) * 5) % regions


def colored_step() -> Iterator[Call]:
    for dim, dtype, regions, rows in itertools.product(DIMS, DTYPES, (1, 3), (0, 1, 9)):
        x, d, f = (rand(rows + 1, dim, dtype=dtype)[k and 1 : rows + (k and 1)] for k in range(3))
        for factor in factors(regions, dim, torch.float64 if dtype == torch.float64 else torch.float32):
            region = None if factor is None else owners(rows, regions)
            shape = {"factor": factor, "region": region}
            b = torch.linspace(0.1, 1.0, rows)
            yield lambda x=x, s=shape: ops.colored_step(x, b=1.0, **s, seed=3)
            yield lambda x=x, d=d, f=f, s=shape, b=b: ops.colored_step(x, d, f, c=0.1, a=0.2, b=b, **s, row=2**32 - 3)


def apply_factor() -> Iterator[Call]:
    for dim, dtype, regions, inverse in itertools.product(DIMS, DTYPES, (1, 3), (False, True)):
        for factor in itertools.islice(factors(regions, dim, torch.float32), 1, None):
            v, region = rand(9, dim, dtype=dtype), owners(9, regions)
            yield lambda v=v, m=factor, k=region, i=inverse: ops.apply_factor(v, m, k, inverse=i)
            yield lambda v=v, m=factor, k=region, i=inverse: ops.apply_factor(v, m, k, inverse=i, transpose=True)


def covariance_update_() -> Iterator[Call]:
    for dim, dtype, x_dtype, regions in itertools.product(DIMS, DTYPES[:2], DTYPES, (1, 3)):
        for dense, rows in itertools.product((True, False), (0, 1, 3, 40)):
            scatter = torch.zeros(regions, dim, dim if dense else 1, dtype=dtype)
            weights = [torch.zeros(regions).double() for _ in range(2)]
            state = [*weights, torch.zeros(regions, dim, dtype=dtype)]
            state.append(scatter if dense else scatter.squeeze(2))
            for region in [owners(rows, regions)] + ([torch.zeros(rows, dtype=torch.int64)] if regions > 1 else []):
                x = rand(rows, dim, dtype=x_dtype)
                yield lambda s=state, x=x, k=region: ops.covariance_update_(*s, x, k, decay=0.9)
    # Rows are packed 192 at a time: those of the larger region in two parts, each shallower than the smaller's one.
    uneven, x = (torch.arange(370) < 180).long(), rand(370, 33)
    state = [torch.zeros(size).double() for size in ((2,), (2,), (2, 33), (2, 33, 33))]
    yield lambda: ops.covariance_update_(*state, x, uneven)


def cholesky() -> Iterator[Call]:
    for dim, dtype, regions in itertools.product(DIMS, DTYPES[:2], (0, 1, 3, 17)):
        root = rand(regions, dim, dim, dtype=dtype)
        matrix = root @ root.mT + torch.eye(dim, dtype=dtype)
        yield lambda m=matrix: ops.cholesky(m)
        yield lambda m=matrix: ops.cholesky(-m)


def dsm_loss() -> Iterator[Call]:
    for dim, dtype, rows in itertools.product(DIMS, DTYPES, (0, 1, 9)):
        p, w = rand(rows, dim, dtype=dtype), torch.linspace(0.5, 1.0, rows)
        yield lambda p=p: ops.dsm_loss(p, weight=0.5, seed=5)
        yield lambda p=p, w=w: ops.dsm_loss(p, p.roll(1), weight=w)


def by_axes(regions: int, dtype: torch.dtype = torch.float32) -> Iterator[ops.Axes]:
    for shape in ((1,), (70,), (5, 3), (2, 9, 1), (3, 17, 9), (2, 3, 4, 5)):
        axes = [a for a, n in enumerate(shape) if n > 1]
        yield ops.Axes([rand(regions, shape[a], shape[a], dtype=dtype) for a in axes], axes, shape)
    yield ops.Axes([rand(1, 7, 7, dtype=dtype)], [1], (3, 7, 5))


def separable_apply() -> Iterator[Call]:
    for dtype, regions, rows in itertools.product(DTYPES, (1, 3), (0, 1, 19)):
        for q in by_axes(regions, torch.float64 if dtype == torch.float64 else torch.float32):
            dim, region = math.prod(q.shape), owners(rows, regions)
            v, w = rand(rows, dim, dtype=dtype), rand(regions, dim).abs()
            yield lambda v=v, q=q, k=region: ops.separable_apply(v, q, outward=False, region=k)
            yield lambda v=v, q=q, k=region, w=w: ops.separable_apply(
                v, q, weights=w, tau=0.5, center=w, region=k, rest=True
            )


def separable_step() -> Iterator[Call]:
    for dtype, regions, rows in itertools.product(DTYPES, (1, 3), (0, 1, 19)):
        for q in by_axes(regions, torch.float64):
            dim, region, b = math.prod(q.shape), owners(rows, regions), torch.linspace(0.1, 1.0, rows)
            x, known = rand(rows, dim, dtype=dtype), {"q": q, "deviation": rand(regions, dim).abs(), "region": region}
            yield lambda x=x, o=known: ops.separable_step(x, b=1.0, **o, seed=3)
            yield lambda x=x, o=known, b=b: ops.separable_step(x, x, x, c=0.1, a=0.2, b=b, **o, row=2**32 - 3)


def separable_update_() -> Iterator[Call]:
    for dtype, x_dtype, regions, rows in itertools.product(DTYPES[:2], DTYPES, (1, 3), (0, 40)):
        for q in by_axes(regions, dtype):
            dim, region = math.prod(q.shape), owners(rows, regions)
            state = [torch.zeros(regions, dim, dtype=dtype) for _ in range(2)]
            state = [*(torch.zeros(regions).double() for _ in range(2)), *state]
            axes = [torch.zeros(regions, q.shape[a], q.shape[a], dtype=dtype) for a in q.axes]
            x = rand(rows, dim, dtype=x_dtype)
            for _ in range(2):  # at first there is no row for the change of the mean
                yield lambda s=state, a=axes, x=x, q=q, k=region: ops.separable_update_(*s, a, x, q, k, decay=0.9)
            yield lambda s=state, x=x, q=q, k=region: ops.separable_update_(*s, [], x, q, k)


def mixture() -> Iterator[Call]:
    for dtype, regions, rows in itertools.product(DTYPES, (1, 3), (0, 1, 19)):
        for q in by_axes(regions):
            dim, shares = math.prod(q.shape), torch.zeros(regions).double()
            x, known = rand(rows, dim, dtype=dtype), (q, rand(regions, dim), rand(regions, dim).abs(), shares)
            for denoise in (True, False):
                yield lambda x=x, o=known, d=denoise: ops.mixture(x, *o, torch.ones(()), d)


def levels() -> Iterator[Call]:
    for rows, law in itertools.product((0, 1, 70), (None, (-0.5, 1.2, 0.01, 5.0))):
        yield lambda n=rows, law=law: ops.levels(torch.rand(7), n, law, seed=3, row=2**32 - 3)


def beyond(dtype: Any, count: int, skip: int, memory: Tensor) -> Tensor:
    """A tensor of ``count`` numbers over ``memory``, ``skip`` bytes in, whether or not they fit."""
    return torch.frombuffer((dtype * count).from_address(memory.data_ptr() + skip), dtype=torch.float32)


def planted(kind: str) -> None:
    """One step whose x is a number short, or off a float's boundary, on a thread with a name to be told by."""
    ctypes.CDLL(None).prctl(15, b"planted", 0, 0, 0)  # PR_SET_NAME
    memory = torch.zeros(20 if kind == "read" else 32)
    x = beyond(ctypes.c_float, 21, 0 if kind == "read" else 1, memory).view(3, 7)
    with ops.backend("native"):
        torch.ops.ansn.colored_step(x, None, None, None, None, torch.ones(()), None, None, True, 0, 0, 0, 0)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--planted", choices=["read", "misaligned"])
    parser.add_argument("--only-planted", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if native.missing:
        raise SystemExit(native.missing)
    if not options.only_planted:
        for operation in (*ops.operations(), "levels"):  # a composition, of which the module has a call
            if operation != "levels" and "native" not in ops.registered(operation):
                print(f"{operation}: no native kernel")
                continue
            count: Counter[str] = Counter()
            with ops.backend("native"):
                for call in globals()[operation]():
                    try:
                        call()
                        count["ran"] += 1
                    except RuntimeError as error:
                        if "cannot run on back end" not in str(error):
                            raise
                        count["refused"] += 1
            print(f"{operation}: {count['ran']} calls ran, {count['refused']} were refused", flush=True)
            if not count["ran"]:
                raise SystemExit(f"{operation}: no call reached the native kernel")
    if options.planted:
        thread = threading.Thread(target=planted, args=(options.planted,))
        thread.start()
        thread.join()


if __name__ == "__main__":
    main()
