"""A value on its way to the host: on its own device's stream, and copied as a value."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch

from ansn import AdaptiveCovariance
from ansn.hostread import HostRead
from tests.gpus import Gpus, OnGpu


def test_the_event_is_on_the_stream_of_the_values_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not on that of the current GPU, whose work says nothing of the copy."""
    gpus = Gpus(monkeypatch)
    read = HostRead(torch.arange(3.0).as_subclass(OnGpu))
    assert read._event is not None
    assert read._event.gpu == 1
    assert gpus.current == 0
    assert not read.arrived()
    assert read.wait().tolist() == [0, 1, 2]


@pytest.mark.parametrize("way", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_a_copy_is_of_the_value(way: Callable[[HostRead], HostRead], monkeypatch: pytest.MonkeyPatch) -> None:
    """Which it shares with no one: an event can be copied by no means."""
    Gpus(monkeypatch)
    read = HostRead(torch.zeros(3).as_subclass(OnGpu))
    found = way(read)
    assert found.arrived()
    read.wait().fill_(7)
    assert found.wait().tolist() == [0, 0, 0]


def test_a_covariance_is_copied_while_its_report_is_on_its_way(monkeypatch: pytest.MonkeyPatch) -> None:
    Gpus(monkeypatch)
    monkeypatch.setattr("ansn.covariance.adaptive.HostRead", lambda report: HostRead(report.as_subclass(OnGpu)))
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    covariance = AdaptiveCovariance(4).update(x)
    assert not covariance._report[0].arrived()
    found = copy.deepcopy(covariance)
    for each in (covariance, found):
        each.update(x + 1).freeze()
    assert torch.equal(found.noise_shape(), covariance.noise_shape())
