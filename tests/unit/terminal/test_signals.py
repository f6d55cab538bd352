"""Which signals stop a sweep gently, and which processes outlive the terminal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import count
from threading import Event
from types import FrameType
from typing import Any, NoReturn

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


def test_a_signal_at_any_instruction_of_the_end_is_not_waited_for(survivable: list[int]) -> None:
    def late(*_: object) -> NoReturn:
        raise TimeoutError("it waits for ever")

    before = signal.signal(signal.SIGALRM, late)
    try:
        instruction = 1
        while _is_signalled_at(instruction):
            instruction += 1
        assert instruction > 100
    finally:
        signal.signal(signal.SIGALRM, before)


def _is_signalled_at(instruction: int) -> bool:
    """Whether the end has as many instructions, with a signal before this one."""
    instructions = count(1)

    def trace(frame: FrameType, event: str, _: object) -> Any:
        frame.f_trace_opcodes = True
        if event == "opcode" and next(instructions) == instruction:
            signal.raise_signal(signal.SIGINT)
        return trace

    try:
        with stopping_gently(lambda: None):
            signal.setitimer(signal.ITIMER_REAL, 10)
            sys.settrace(trace)
    finally:
        sys.settrace(None)
        signal.setitimer(signal.ITIMER_REAL, 0)
    return next(instructions) > instruction


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


@pytest.mark.parametrize("spared", [True, False])
def test_what_starts_meanwhile_outlives_the_terminal(spared: bool, survivable: list[int]) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    hang_up = "import os, signal; os.kill(os.getpid(), signal.SIGHUP)"
    with ignoring_hangup():
        spared_process = subprocess.Popen([sys.executable, "-c", hang_up])
    process = spared_process if spared else subprocess.Popen([sys.executable, "-c", hang_up])
    assert process.wait() == (0 if spared else -signal.SIGHUP)
    assert spared_process.wait() == 0
