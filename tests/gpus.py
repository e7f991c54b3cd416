"""Two GPUs that are not there: which one each stream, event and call would be on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor


class OnGpu(Tensor):
    """A tensor that says it is on the second GPU."""

    is_cuda = True
    device = torch.device("cuda", 1)  # type: ignore[assignment]
    __torch_function__ = torch._C._disabled_torch_function_impl


class Gpus:
    """In place of ``torch.cuda``: ``current``, the number of the current GPU, is 0 outside of every guard."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.current, gpus = 0, self

        class Stream:
            def __init__(self, device: Any = None) -> None:
                self.gpu = gpus.current if device is None else torch.device(device).index

            def wait_stream(self, other: Stream) -> None:
                assert other.gpu == self.gpu

        class Event:
            """As torch's: cannot be copied, and of the stream that it is recorded on."""

            def record(self, stream: Any = None) -> None:
                self.gpu = (Stream() if stream is None else stream).gpu
                assert self.gpu == gpus.current

            def query(self) -> bool:
                return False

            def synchronize(self) -> None:
                pass

            def __reduce__(self) -> Any:
                raise TypeError("cannot pickle 'Event' object")

        @contextlib.contextmanager
        def device(wanted: torch.device) -> Iterator[None]:
            before, self.current = self.current, wanted.index
            yield
            self.current = before

        @contextlib.contextmanager
        def stream(wanted: Stream) -> Iterator[None]:
            with device(torch.device("cuda", wanted.gpu)):
                yield

        empty = torch.empty
        monkeypatch.setattr(torch, "empty", lambda *size, pin_memory=False, **options: empty(*size, **options))
        stand_ins = {"Stream": Stream, "Event": Event, "device": device, "stream": stream, "current_stream": Stream}
        for name, stand_in in stand_ins.items():
            monkeypatch.setattr(torch.cuda, name, stand_in)
