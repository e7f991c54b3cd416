"""Which back end runs: the choice, its scope, and the errors when a choice cannot run."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable

import pytest
import torch

from ansn import ops
from ansn.ops import _dispatch, native
from tests.ops.helpers import needs_native


def test_every_operation_has_its_oracle():
    assert set(ops.operations()) == {
        "apply_factor",
        "cholesky",
        "colored_step",
        "covariance_update_",
        "dsm_loss",
        "mixture",
        "separable_apply",
        "separable_step",
        "separable_update_",
    }
    for operation in ops.operations():
        assert "reference" in ops.registered(operation)


def test_the_choice_ends_with_its_block():
    start = ops.current_backend()
    with ops.backend("reference"):
        assert ops.current_backend() == "reference"
        with ops.backend("auto"):
            assert ops.current_backend() == "auto"
        assert ops.current_backend() == "reference"
    assert ops.current_backend() == start
    with pytest.raises(ZeroDivisionError), ops.backend("reference"):
        _ = 1 / 0
    assert ops.current_backend() == start


def test_called_as_a_function_it_stays():
    before = ops.backend("reference")
    assert ops.current_backend() == "reference"
    with before:
        pass
    assert ops.current_backend() == "auto"


def in_thread(function: Callable[[], None]) -> None:
    """Run in a thread, and raise here what it raises."""
    failed: list[BaseException] = []

    def guarded() -> None:
        try:
            function()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=guarded)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]


def test_a_choice_is_its_thread_s():
    def other() -> None:
        assert ops.current_backend() == "auto"
        ops.backend("native")
        assert ops.current_backend() == "native"

    with ops.backend("reference"):
        in_thread(other)
        assert ops.current_backend() == "reference"
    with ops.backend("triton"):
        in_thread(lambda: None if ops.current_backend() == "auto" else pytest.fail("seen"))
    assert ops.current_backend() == "auto"


def nested(generator: random.Random, depth: int, wait: Callable[[], None]) -> None:
    for _ in range(2):
        before, name = ops.current_backend(), generator.choice(ops.BACKENDS)
        with ops.backend(name):
            wait()
            assert ops.current_backend() == name
            if depth:
                nested(generator, depth - 1, wait)
            assert ops.current_backend() == name
        assert ops.current_backend() == before


def test_blocks_of_threads_that_overlap_do_not_meet():
    """Each waits for all the others within each of its blocks."""
    meet, failed = threading.Barrier(4, timeout=10), []

    def work(seed: int) -> None:
        try:
            nested(random.Random(seed), 3, meet.wait)
        except BaseException as error:
            failed.append(error)
            meet.abort()

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert ops.current_backend() == "auto"


def test_tasks_do_not_meet_either():
    """And begin with the choice of the one that starts them."""

    async def task(name: str) -> None:
        assert ops.current_backend() == "reference"
        with ops.backend(name):
            for _ in range(3):
                await asyncio.sleep(0)
                assert ops.current_backend() == name
            ops.backend("triton")
        ops.backend(name)

    async def main() -> None:
        with ops.backend("reference"):
            await asyncio.gather(*map(task, ops.BACKENDS * 3))
            assert ops.current_backend() == "reference"

    asyncio.run(main())
    assert ops.current_backend() == "auto"


class Deep(torch.autograd.Function):
    """Its backward runs one within it, and so on; torch takes another thread for those that lie deep."""

    @staticmethod
    def forward(ctx, x, depth, last):
        ctx.depth, ctx.last = depth, last
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        if ctx.depth:
            with torch.enable_grad():
                Deep.apply(torch.ones(1, requires_grad=True), ctx.depth - 1, ctx.last).backward()
        else:
            ctx.last()
        return g, None, None


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("depth", [0, 70])
def test_a_backward_in_another_thread_knows_the_choice(monkeypatch, compiled, depth):
    """As on a GPU, whose backward has threads of its own: an operation's is its forward's, a graph's the caller's."""
    seen: list[tuple[str, bool]] = []
    here, plain = threading.get_ident(), ops.reference.apply_factor
    factor = torch.eye(3).unsqueeze(0)

    def watched(*args):
        seen.append((ops.current_backend(), threading.get_ident() == here))
        return plain(*args)

    kernels = {name: (watched, lambda *_: None) for name in ("reference", "native")}
    monkeypatch.setitem(_dispatch._table, "apply_factor", kernels)

    def product(x: torch.Tensor) -> torch.Tensor:
        return ops.apply_factor(x, factor)

    graph = torch.compile(product, backend="aot_eager", fullgraph=True) if compiled else product
    for around in ("reference", "auto"):
        with ops.backend("native"):
            made = graph(torch.ones(4, 3, requires_grad=True)).sum()
        with ops.backend(around):
            Deep.apply(torch.ones(1, requires_grad=True), depth, made.backward).backward()
        assert seen == [("native", True), (around if compiled else "native", not depth)]
        assert ops.current_backend() == "auto"
        seen.clear()


def test_an_unknown_name_changes_nothing():
    with pytest.raises(ValueError, match="backend: got 'cuda', expected one of auto, reference, native, triton"):
        ops.backend("cuda")
    assert ops.current_backend() == "auto"


@needs_native
def test_an_explicit_back_end_that_cannot_run_raises():
    x = torch.zeros(2, 3, dtype=torch.float64)
    with ops.backend("native"):
        with pytest.raises(RuntimeError, match=r"colored_step: cannot run on back end 'native': .*float64"):
            ops.colored_step(x, b=1.0)
        with pytest.raises(RuntimeError, match="colored_step: cannot run on back end 'native': denoised is"):
            ops.colored_step(x.float(), x, c=1.0)


def test_a_back_end_without_the_kernel_says_which_have_it():
    assert "triton" not in ops.registered("cholesky")
    with (
        ops.backend("triton"),
        pytest.raises(RuntimeError, match="cholesky: no kernel on back end 'triton'; it has "),
    ):
        ops.cholesky(torch.eye(2).unsqueeze(0))


@pytest.mark.parametrize("index", [0, 1])
def test_a_kernel_is_launched_on_its_operands_device(monkeypatch, index):
    """Not on the device in force, which is in force again afterwards."""
    now, seen = [0], []

    class On:
        def __init__(self, device: torch.device) -> None:
            self.index = device.index

        def __enter__(self) -> None:
            self.before, now[0] = now[0], self.index

        def __exit__(self, *_: object) -> None:
            now[0] = self.before

    monkeypatch.setattr(torch.cuda, "current_device", lambda: now[0])
    monkeypatch.setattr(torch.cuda, "device", On)
    monkeypatch.setitem(_dispatch._table, "probe", {"reference": (lambda: seen.append(now[0]), lambda: None)})
    _dispatch.call("probe", torch.device("cuda", index))
    assert seen == [index]
    assert now == [0]


def test_auto_always_runs():
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        for factor in (None, torch.ones(1, 3), torch.eye(3).unsqueeze(0)):
            assert ops.colored_step(torch.zeros(2, 3, dtype=dtype), b=1.0, factor=factor).isfinite().all()


@needs_native
def test_auto_takes_the_native_kernel_where_it_runs():
    """Bit for bit its result, which is not the reference's."""
    x = torch.zeros(64, 784)
    automatic = ops.colored_step(x, b=1.0)
    with ops.backend("native"):
        assert torch.equal(automatic, ops.colored_step(x, b=1.0))
    with ops.backend("reference"):
        assert not torch.equal(automatic, ops.colored_step(x, b=1.0))


def test_without_the_module_auto_goes_on(monkeypatch):
    monkeypatch.setattr(native._module, "missing", "the C++ module ansn._native is not there (for this test)")
    x = torch.zeros(4, 5)
    with ops.backend("reference"):
        expected = ops.colored_step(x, b=1.0)
    assert torch.equal(ops.colored_step(x, b=1.0), expected)
    with ops.backend("native"), pytest.raises(RuntimeError, match=r"ansn\._native is not there"):
        ops.colored_step(x, b=1.0)


def test_autocast_leaves_the_operations_their_precision():
    x, factor = torch.randn(32, 16), torch.randn(1, 16, 16).tril()
    plain = ops.colored_step(x, b=8.0, factor=factor, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ops.colored_step(x, b=8.0, factor=factor, seed=1), plain)
