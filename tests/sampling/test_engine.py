"""How the network is called: bfloat16, compiled, as a graph, without waiting for a GPU; the samples stay the same."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode

from ansn import AdaptiveCovariance, Denoiser, NoiseModel, levels, networks, sample
from ansn.sampling import METHODS, Draw
from ansn.sampling.engine import Engine, _tensors, cuda_graph, engaged
from tests.gpus import Gpus, OnGpu
from tests.tolerances import BATCH_INVARIANCE, rms_ratio

QUICK = {"langevin": 1, "paper": 1}


def trained(
    classes: int | None = None,
    regions: int = 1,
    conditioning: str = "log",
    structure: str = "dense",
    prediction: str = "denoiser",
) -> Denoiser:
    torch.manual_seed(0)
    network = networks.MLP((1, 2, 2), hidden=24, blocks=1, num_classes=classes, conditioning=conditioning)
    nn.init.normal_(network.output.weight, std=0.2)
    x = torch.rand(200, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    covariance = AdaptiveCovariance((1, 2, 2), regions, structure)
    covariance.update(x, torch.arange(200) % regions if regions > 1 else None).freeze()
    return Denoiser(network, NoiseModel(covariance, levels.karras(4.0, 0.05)), prediction).eval()


class Counting(nn.Module):
    """Tells the batch sizes that it is called with, and whether in inference mode."""

    conditioning = "log"

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.sizes, self.modes = network, [], []
        self.num_classes = getattr(network, "num_classes", None)

    def forward(self, x: Tensor, *args: Any, **extra: Any) -> Tensor:
        self.sizes.append(len(x))
        self.modes.append(torch.is_inference_mode_enabled())
        return self.network(x, *args, **extra)


def counted(model: Denoiser) -> tuple[Denoiser, Counting]:
    network = Counting(model.network).eval()
    model.network = network
    return model, network


# -- compile and padding -----------------------------------------------------------------------------------------


def batches(draw: Draw, blocks: list[tuple[int, int]], y: Tensor | None = None) -> Tensor:
    return torch.cat([x for _, x in draw.batches(blocks, y)])


BLOCKS = [(0, 6), (6, 6), (12, 3)]


@pytest.mark.parametrize("conditioning", ["log", "none"])
@pytest.mark.parametrize("classes", [None, 3])
def test_padding_changes_nothing(conditioning: str, classes: int | None) -> None:
    y = None if classes is None else torch.arange(15) % classes
    model, network = counted(trained(classes, conditioning=conditioning))
    model.conditioning = conditioning
    expected = batches(Draw(model, "heun", 3), BLOCKS, y)
    assert set(network.sizes) == {6, 3}
    network.sizes.clear()
    # "eager" is torch.compile's way of not compiling: what is left is the padding.
    found = batches(Draw(model, "heun", 3, compile="eager"), BLOCKS, y)
    assert float((found - expected).abs().max()) < BATCH_INVARIANCE


def test_a_batch_is_padded_to_the_smallest_size_that_holds_it() -> None:
    seen: list[int] = []

    def capture(call: Any, args: Any, extra: Any) -> Any:
        seen.append(len(args[0]))
        return call

    engine = Engine(networks.MLP((2,), hidden=8, blocks=1), capture=capture)
    with torch.no_grad():
        for rows, made in ((6, [6]), (3, [6]), (12, [6, 12]), (5, [6, 12]), (7, [6, 12]), (12, [6, 12])):
            x = torch.randn(rows, 2)
            assert engine(x, torch.zeros(rows)).shape == (rows, 2)
            assert seen == made


@pytest.mark.slow
def test_compiled_samples_are_the_same_and_one_graph_draws_them() -> None:
    model = trained()
    counter = CompileCounterWithBackend("inductor")
    torch._dynamo.reset()
    draw = Draw(model, "heun", 3)
    draw.model = engaged(model, Engine(model.network, compile=counter))  # type: ignore[arg-type]
    compiled = batches(draw, BLOCKS)
    assert counter.frame_count == 1, "the shorter last batch made no graph of its own"
    assert float((compiled - batches(Draw(model, "heun", 3), BLOCKS)).abs().max()) < BATCH_INVARIANCE


def test_what_cannot_be_compiled_is_one_line() -> None:
    def no_compiler(*_: Any) -> Any:
        raise RuntimeError("no C++ compiler\nand a long story")

    model = trained()
    draw = Draw(model)
    draw.model = engaged(model, Engine(model.network, compile=no_compiler))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"compile: got a network that cannot be compiled") as caught:
        draw.batch(0, 2)
    assert len(str(caught.value).splitlines()) == 1
    assert "no C++ compiler" in str(caught.value)


# -- bfloat16 ----------------------------------------------------------------------------------------------------


def test_bfloat16_rounds_the_network_and_nothing_else() -> None:
    """bfloat16 keeps 8 bits: each product of the network is rounded by 2^-9 relative, so its output G by about that
    of its size. ``D = m + (x - m)/v^2 + (tau/v) s G``, and each step of the flow takes a share of D: the samples
    move by ``s`` times a few roundings of G, far from zero and far from 2^-9 of the noisy state (tau = 4)."""
    model = trained()
    one, half = (sample(model, 64, "heun", 6, seed=3, dtype=t) for t in (torch.float32, torch.bfloat16))
    assert half.dtype == torch.float32
    ratio = rms_ratio(half - one.mean(0), one - one.mean(0))
    assert 1e-5 < ratio < 8 * 2**-9
    dtypes = []
    model.network.output.register_forward_hook(lambda _, __, out: dtypes.append(out.dtype))
    draw = Draw(model, "euler", 2, dtype=torch.bfloat16)
    steps = []
    draw.batch(0, 2, callback=lambda told: steps.append((told["x"].dtype, told["denoised"].dtype)))
    assert set(dtypes) == {torch.bfloat16}
    assert set(steps) == {(torch.float32, torch.float32)}


def test_another_dtype_is_refused() -> None:
    with pytest.raises(ValueError, match=r"dtype: got torch.float16, expected torch.float32 or torch.bfloat16"):
        Draw(trained(), dtype=torch.float16)


# -- where the engine stands -------------------------------------------------------------------------------------


class Doubled(Denoiser):
    """A denoiser around a denoiser, which calls the inner one."""

    def __init__(self, model: Denoiser) -> None:
        super().__init__(model.network, model.noise)
        self.model = model

    def forward(self, x: Tensor, sigma: float | Tensor, region: Tensor | None = None, **extra: Any) -> Tensor:
        return 2 * self.model(x, sigma, region, **extra)


def test_a_wrapped_denoiser_runs_on_the_engine_too() -> None:
    model = Doubled(Doubled(trained()))
    inner = model.model.network
    other = engaged(model, Engine(inner, torch.bfloat16))
    networks_of = [m.network for m in other.modules() if isinstance(m, Denoiser)]
    assert len(networks_of) == 3
    assert all(isinstance(n, Engine) for n in networks_of)
    assert all(m.network is inner for m in model.modules() if isinstance(m, Denoiser)), "the original is left alone"
    assert other.noise is model.noise
    x = torch.randn(3, 1, 2, 2)
    with torch.no_grad():
        assert 0 < rms_ratio(other(x, 1.0), model(x, 1.0)) < 2**-6


def test_inference_mode_but_where_gradients_are_wanted() -> None:
    model, network = counted(trained())
    x = Draw(model, "heun", 2).batch(0, 3)
    assert set(network.modes) == {True}
    assert not x.is_inference()
    network.modes.clear()
    inside = engaged(model, Engine(model.network))
    start = torch.randn(2, 1, 2, 2, requires_grad=True)
    (gradient,) = torch.autograd.grad(inside(start, 1.0).sum(), start)
    assert network.modes == [False]
    assert float(gradient.abs().max()) > 0


def test_a_draw_leaves_the_mode_of_the_model() -> None:
    model = trained()
    for training in (True, False):
        model.train(training)
        Draw(model, "euler", 1).batch(0, 1)
        assert all(m.training == training for m in model.modules())


def test_no_graph_without_a_gpu_is_one_warning_and_the_same_samples() -> None:
    model = trained()
    with pytest.warns(UserWarning, match="cuda_graph: the model is on cpu") as told:
        x = sample(model, 5, "heun", 2, cuda_graph=True)
    assert len(told) == 1
    assert torch.equal(x, sample(model, 5, "heun", 2))


# -- a captured call, with a graph that a CPU can replay ---------------------------------------------------------


def replaying(call: Any, args: tuple[Any, ...], extra: dict[str, Any]) -> Any:
    """Buffers as :func:`ansn.sampling.engine.cuda_graph` keeps them; its replay reads and writes them alone."""
    static = [v.clone() if isinstance(v, Tensor) else v for v in args]
    named = {name: v.clone() if isinstance(v, Tensor) else v for name, v in extra.items()}
    out = call(*static, **named)

    def replay(*new: Any, **renamed: Any) -> Tensor:
        for buffer, value in _tensors(static, named, new, renamed):
            buffer.copy_(value)
        out.copy_(call(*static, **named))
        return out.clone()

    return replay


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("classes", [None, 3])
def test_a_replayed_call_draws_the_same(method: str, classes: int | None) -> None:
    model = trained(classes)
    y = None if classes is None else torch.arange(15) % classes
    steps = QUICK.get(method, 3)
    draw = Draw(model, method, steps)
    expected = batches(draw, BLOCKS, y)
    engine = Engine(model.network, capture=replaying)
    draw.model = engaged(model, engine)
    assert float((batches(draw, BLOCKS, y) - expected).abs().max()) < BATCH_INVARIANCE
    assert len(engine.captured) == 1


def test_a_call_is_captured_on_the_gpu_of_its_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Warm-up and capture, also where another GPU is the current one."""
    captured: list[int] = []
    gpus = Gpus(monkeypatch)

    @contextlib.contextmanager
    def graph(_: Any, stream: Any = None) -> Iterator[None]:
        captured.append(0 if stream is None else stream.gpu)  # torch's default stream: the first capture's GPU
        yield

    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    called: list[int] = []

    def call(x: Tensor) -> Tensor:
        called.append(gpus.current)
        return x

    cuda_graph(call, (torch.zeros(2).as_subclass(OnGpu),), {})
    assert (captured, called, gpus.current) == ([1], [1] * 4, 0)


def test_a_network_that_returns_more_than_a_tensor_is_compiled_and_padded() -> None:
    class More(nn.Module):
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, *args: Any) -> tuple[Tensor, str]:
            return self.network(*args), "more"

    model = trained()
    wanted = sample(model, 5, "heun", 3, batch_size=3)
    model.network = More(model.network).eval()
    for options in ({}, {"compile": "eager"}):
        torch.testing.assert_close(sample(model, 5, "heun", 3, batch_size=3, **options), wanted)


# -- nothing waits for a GPU -------------------------------------------------------------------------------------


class Waiting(AssertionError):
    pass


class NoWaiting(TorchDispatchMode):
    """Raises, once the network was called, where a device's value is read or a tensor changes its device: on a GPU
    the host would stop there. Before the first step of a batch a reading gives 0.

    The device is torch's meta device: tensors with shapes and without values, for which none of the shortcuts is
    taken that a CPU is due.
    """

    def __init__(self) -> None:
        super().__init__()
        self.armed, self.moved = False, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            if self.armed:
                raise Waiting("a value is read on the host")
            return 0
        if func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default):
            target = (kwargs or {}).get("device") or args[0].device
            source = args[1] if func is torch.ops.aten.copy_.default else args[0]
            if torch.device(target).type != source.device.type:
                self.moved += 1
                if self.armed:
                    raise Waiting("a tensor is copied between the host and the device")
        return func(*args, **(kwargs or {}))


class Arming(nn.Module):
    def __init__(self, network: nn.Module, mode: NoWaiting) -> None:
        super().__init__()
        self.network, self.mode, self.calls = network, mode, 0
        self.conditioning, self.num_classes = network.conditioning, network.num_classes

    def forward(self, *args: Any, **extra: Any) -> Tensor:
        self.mode.armed, self.calls = True, self.calls + 1
        return self.network(*args, **extra)


def on_a_device(model: Denoiser, mode: NoWaiting) -> Denoiser:
    model.network = Arming(model.network, mode).eval()
    for part in model.modules():
        for group in (part._parameters, part._buffers):
            for name, value in group.items():
                if value is not None:
                    moved = torch.empty_like(value, device="meta")
                    group[name] = nn.Parameter(moved) if isinstance(value, nn.Parameter) else moved
    return model


LEVELS = torch.tensor([3.0, 1.0, 0.3])
CASES: dict[str, dict[str, Any]] = {
    "plain": {}, "classes": {"classes": 3}, "regions": {"classes": 3, "regions": 3},
    "diagonal": {"structure": "diagonal"}, "whitened": {"prediction": "whitened"},
}  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", CASES)
def test_no_step_waits_for_a_gpu(method: str, case: str) -> None:
    with NoWaiting() as mode:
        bare = trained(**CASES[case])
        bare.noise.covariance.track()  # else it is decomposed before the first step, which waits
        model = on_a_device(bare, mode)
        draw = Draw(model, method, QUICK.get(method, 4), taus=LEVELS)
        x = draw.batch(0, 5, torch.zeros(5, dtype=torch.int64) if case == "classes" else None)
    assert (x.shape, x.device.type) == ((5, 1, 2, 2), "meta")
    assert model.network.calls >= len(LEVELS)
    assert mode.moved, "the levels went over before the first step"


WAITS: dict[str, Callable[[Tensor], Any]] = {
    "number": lambda x: float(x.sum()), "branch": lambda x: bool(x.sum() > 0),
    "constant": lambda x: x + torch.zeros(5, 1, 2, 2).to(x.device), "buffer": lambda x: x.copy_(torch.zeros(x.shape)),
}  # fmt: skip


@pytest.mark.parametrize("wait", WAITS)
def test_a_step_that_waits_is_seen(wait: str) -> None:
    with NoWaiting() as mode:
        draw = Draw(on_a_device(trained(), mode), "heun", taus=LEVELS)
        with pytest.raises(Waiting):
            draw.batch(0, 5, callback=lambda told: WAITS[wait](told["x"]))
