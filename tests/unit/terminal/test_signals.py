"""Which signals stop a sweep gently, and which processes outlive the terminal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from threading import Event

import pytest

from tune.process_signals import ignoring_hangup, interrupting, stopping_gently


@pytest.fixture
def survivable() -> Iterator[list[int]]:
    """Signals that came as they would without the command; none ends this process."""
    came: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {n: signal.signal(n, lambda number, frame: came.append(number)) for n in numbers}
    yield came
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_stops_gently(number: signal.Signals, survivable: list[int]) -> None:
    stopped = Event()
    with stopping_gently(stopped.set):
        os.kill(os.getpid(), number)
        assert stopped.wait(5)
        os.kill(os.getpid(), signal.SIGINT)
    assert survivable == [signal.SIGINT]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_before_there_is_a_trial_each_signal_interrupts(
    number: signal.Signals, survivable: list[int]
) -> None:
    with pytest.raises(KeyboardInterrupt), interrupting():
        os.kill(os.getpid(), number)
    os.kill(os.getpid(), number)
    assert survivable == ([number] if number == signal.SIGTERM else [])


def test_nohup_holds(survivable: list[int]) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    stopped = Event()
    with stopping_gently(stopped.set):
        os.kill(os.getpid(), signal.SIGHUP)
        assert not stopped.wait(0.2)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_processes_started_meanwhile_outlive_the_terminal(survivable: list[int]) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    hang_up = "import os, signal; os.kill(os.getpid(), signal.SIGHUP)"
    with ignoring_hangup():
        spared_process = subprocess.Popen([sys.executable, "-c", hang_up])
    later = subprocess.Popen([sys.executable, "-c", hang_up])
    assert (spared_process.wait(), later.wait()) == (0, -signal.SIGHUP)
