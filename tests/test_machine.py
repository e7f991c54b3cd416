"""The processor's name. Asked to end: every signal that means it, none that is ignored."""

from __future__ import annotations

import platform
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ansn import machine
from ansn.machine import asked_to_end

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("AMD EPYC", "AMD EPYC, family 25 model 17"),
        ("AMD EPYC 9654 96-Core Processor", "AMD EPYC 9654 96-Core Processor"),
    ],
)
def test_a_name_without_a_number_has_family_and_model(
    name: str, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "cpuinfo"
    core = f"vendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: {name}\nstepping\t: 1\n\n"
    info.write_text(core * 2)
    monkeypatch.setattr(machine, "_CPUINFO", info)
    assert machine.cpu_name() == shown
    info.write_text("processor: 0\n")
    assert machine.cpu_name() == (platform.processor() or platform.machine())


@pytest.fixture
def heeded() -> Iterator[None]:
    """Signals as a terminal has them, also where the tests run under nohup, which ignores one."""
    kept = {number: signal.getsignal(number) for number in SIGNALS}
    for number, handler in kept.items():
        signal.signal(number, signal.SIG_DFL if handler is signal.SIG_IGN else handler)
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("heeded")
@pytest.mark.parametrize("number", SIGNALS)
def test_each_signal_is_heard_and_handed_back(number: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    before, heard = [signal.getsignal(s) for s in SIGNALS], []
    for once, expected in ((60.0, [1]), (0.0, [1, 1, 1])):
        monkeypatch.setattr(machine, "_ONCE", once)
        with asked_to_end(lambda: heard.append(1)):
            signal.raise_signal(number)
            signal.raise_signal(number)
        assert heard == expected, "twice within a second is once"
    assert [signal.getsignal(s) for s in SIGNALS] == before


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1])
def test_what_is_ignored_stays_so(number: signal.Signals) -> None:
    before, heard = signal.signal(number, signal.SIG_IGN), []
    try:
        with asked_to_end(lambda: heard.append(1)):  # nohup
            signal.raise_signal(number)
    finally:
        signal.signal(number, before)
    assert heard == []


def test_another_thread_leaves_signals_alone() -> None:
    before, inside = signal.getsignal(signal.SIGTERM), []

    def work() -> None:
        with asked_to_end(lambda: None):
            inside.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert inside == [before]
