"""How the network is called while sampling: inference mode, bfloat16, compiled, replayed as a CUDA graph.

:func:`engaged` puts an :class:`Engine` in the network's place, so that every denoiser, whatever it wraps, and every
sampler run on it unchanged; preconditioning, state and the sampler's arithmetic keep their dtype.
"""

from __future__ import annotations

import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ansn.denoiser import Denoiser, tensor_of

Call = Callable[..., Tensor]
Capture = Callable[[Call, tuple[Any, ...], dict[str, Any]], Call]

DTYPES = (torch.float32, torch.bfloat16)


class Engine(nn.Module):
    """A network as sampling calls it; same arguments, same output up to rounding.

    Where gradients are on (posterior sampling differentiates the denoiser) it is a plain call, under autocast if asked;
    else inference mode. Compiled or captured, a batch is padded with copies of its first row to the
    smallest size seen so far that holds it: the last, shorter batch makes no graph of its own. A row's output does not
    depend on the rest of its batch, so the padding changes nothing.

    Args:
        network: as :class:`ansn.Denoiser` calls it.
        dtype: float32 calls it as it is, bfloat16 under autocast (a float64 network stays float64).
        compile: compile once for each padded size, shapes static; a string names torch.compile's back end.
        capture: makes of a call one that is replayed, see :func:`cuda_graph`; None calls.

    Raises ValueError for another dtype, and when called if the network cannot be compiled or captured here.
    """

    def __init__(
        self,
        network: nn.Module,
        dtype: torch.dtype = torch.float32,
        compile: bool | str = False,
        capture: Capture | None = None,
    ) -> None:
        super().__init__()
        self.training = False
        if dtype not in DTYPES:
            raise ValueError(f"dtype: got {dtype}, expected torch.float32 or torch.bfloat16")
        self.network, self.dtype, self.capture = network, dtype, capture
        self.conditioning = getattr(network, "conditioning", "log")
        self.num_classes = getattr(network, "num_classes", None)
        self.call: Call = network
        if compile:
            self.call = torch.compile(network, dynamic=False, backend="inductor" if compile is True else compile)
        self.static = bool(compile) or capture is not None
        self.sharded = any(hasattr(p, "device_mesh") for p in network.parameters())
        self.sizes: list[int] = []
        self.captured: dict[tuple[Any, ...], Call] = {}

    def forward(self, *args: Any, **extra: Any) -> Tensor:
        """As the network's."""
        if torch.is_grad_enabled():
            return self._autocast(*args, **extra)
        if self.static:
            return self._static(args, extra)
        # A sharded network keeps what it gathers, which gradients could not be taken through later.
        with torch.no_grad() if self.sharded else torch.inference_mode():
            return self._autocast(*args, **extra)

    def _static(self, args: tuple[Any, ...], extra: dict[str, Any]) -> Tensor:
        rows = args[0].shape[0]
        size = self._size(rows)
        # Outside inference mode, whose own tensors would be another kind of input, and so another graph.
        args = tuple(_padded(v, rows, size) for v in args)
        extra = {name: _padded(v, rows, size) for name, v in extra.items()}
        with torch.inference_mode():
            return self._replayed(args, extra)[:rows]

    def _replayed(self, args: tuple[Any, ...], extra: dict[str, Any]) -> Tensor:
        try:
            if self.capture is None:
                return self._autocast(*args, **extra)
            key = tuple(_form(v) for v in (*args, *extra.items()))
            if key not in self.captured:
                self.captured[key] = self.capture(self._autocast, args, extra)
            return self.captured[key](*args, **extra)
        except RuntimeError as error:
            # By name: importing its class imports the compiler, a second or two.
            if not any(kind.__name__ == "TorchDynamoException" for kind in type(error).__mro__):
                raise
            told = str(getattr(error, "inner_exception", error)).strip().splitlines()
            reason = told[0] if told else type(error).__name__
            raise ValueError(f"compile: got a network that cannot be compiled ({reason}), expected False") from None

    def _autocast(self, *args: Any, **extra: Any) -> Tensor:
        if self.dtype == torch.float32:
            return tensor_of(self.call(*args, **extra))
        # No cache of cast weights: a captured graph would read it after it is gone.
        with torch.autocast(args[0].device.type, self.dtype, cache_enabled=self.capture is None):
            return tensor_of(self.call(*args, **extra))

    def _size(self, rows: int) -> int:
        fitting = [size for size in self.sizes if size >= rows]
        if not fitting:
            self.sizes.append(rows)
        return min(fitting, default=rows)


def engaged(model: Denoiser, engine: Engine) -> Denoiser:
    """The model with ``engine`` in its network's place, also in the models that it wraps; the original is left as it
    is, and shares all else."""
    out = object.__new__(type(model))  # which a sharded one's copy.copy would initialise
    out.__dict__ = {
        name: types.MethodType(value.__func__, out) if getattr(value, "__self__", None) is model else value
        for name, value in vars(model).items()
    }
    # nn.Module keeps its parts in dictionaries, which the copy would share.
    out._modules, out._buffers = dict(model._modules), dict(model._buffers)
    for name, part in model._modules.items():
        if part is engine.network:
            out._modules[name] = engine
        elif isinstance(part, Denoiser):
            out._modules[name] = engaged(part, engine)
    return out


def graph_or_warning(device: torch.device) -> Capture | None:
    """:func:`cuda_graph` where the model is on a GPU; else None, with a warning that says why."""
    if device.type == "cuda":
        return cuda_graph
    warnings.warn(f"cuda_graph: the model is on {device.type}, so its network is called step by step", stacklevel=3)
    return None


def cuda_graph(call: Call, args: tuple[Any, ...], extra: dict[str, Any], warmup: int = 3) -> Call:
    """``call`` recorded once at these shapes; what is returned copies its arguments in, replays, and copies out.

    Not differentiable, and for arguments of the same shapes, dtypes and host values alone. Raises ValueError if the
    call cannot be recorded: it reads a value on the host, say.
    """
    device = next(v.device for v in args if isinstance(v, Tensor))  # may be another than the current one
    with torch.cuda.device(device):
        static = [v.clone() if isinstance(v, Tensor) else v for v in args]
        named = {name: v.clone() if isinstance(v, Tensor) else v for name, v in extra.items()}
        # A few calls on a stream of their own, as torch asks for: libraries allocate and compilers compile in them.
        side = torch.cuda.Stream(device)
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            for _ in range(warmup):
                call(*static, **named)
        torch.cuda.current_stream(device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        try:
            # The stream is given: torch's default is one of the device that it first captured on.
            with torch.cuda.graph(graph, stream=side):
                out = call(*static, **named)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(f"cuda_graph: got a network that cannot be captured ({reason}), expected False") from None

    def replay(*new: Any, **renamed: Any) -> Tensor:
        for buffer, value in _tensors(static, named, new, renamed):
            buffer.copy_(value)
        graph.replay()
        return out.clone()  # the next replay overwrites it

    return replay


def _tensors(
    static: list[Any], named: dict[str, Any], new: tuple[Any, ...], renamed: dict[str, Any]
) -> Iterator[tuple[Tensor, Tensor]]:
    pairs = [*zip(static, new, strict=True), *((named[name], value) for name, value in renamed.items())]
    return ((buffer, value) for buffer, value in pairs if isinstance(buffer, Tensor))


def _padded(value: Any, rows: int, size: int) -> Any:
    if not isinstance(value, Tensor) or value.ndim == 0 or value.shape[0] != rows or rows == size:
        return value
    return torch.cat((value, value[:1].expand(size - rows, *value.shape[1:])))


def _form(value: Any) -> Any:
    """What a captured call depends on: a tensor's shape and dtype, anything else itself."""
    if isinstance(value, tuple):
        return tuple(map(_form, value))
    return (value.shape, value.dtype, value.device) if isinstance(value, Tensor) else value
