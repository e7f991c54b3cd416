"""A tensor on its way to the host, so that looking at it need not stop the device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class HostRead:
    """Starts copying ``value`` to the host; :meth:`arrived` never waits, :meth:`wait` does.

    On the CPU the value is there at once. On CUDA the copy goes to pinned memory behind what the current stream of the
    value's device has queued, and an event on that stream tells when it is done. A copy (``copy.deepcopy``, pickle) is
    of the value, which it waits for: an event cannot be copied.
    """

    def __init__(self, value: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        if value.is_cuda:
            with torch.cuda.device(value.device):
                self._host = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
                self._host.copy_(value, non_blocking=True)
                self._event = torch.cuda.Event()
                self._event.record(torch.cuda.current_stream(value.device))
        else:
            self._host = value

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.wait(),)

    def arrived(self) -> bool:
        """Whether the value can be read without waiting."""
        return self._event is None or self._event.query()

    def wait(self) -> Tensor:
        """The value, a CPU tensor, waiting for it if it must."""
        if self._event is not None:
            self._event.synchronize()
        return self._host
