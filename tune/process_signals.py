"""Ctrl-C: the first lets every trial save a checkpoint and end, the second ends at once.

SIGTERM does the same, as does the SIGHUP of a lost terminal. A SIGTERM to a process group, as by
`timeout`, also ends a Ray that the command has started: trials go on from their newest checkpoint.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def ignoring_hangup() -> Iterator[None]:
    """Let processes started within this context outlive the terminal, to save checkpoints."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


@contextmanager
def interrupting() -> Iterator[None]:
    """Within this context, SIGTERM and SIGHUP interrupt as Ctrl-C does; Ray's own handler aborts.

    A closing terminal sends SIGHUP twice; the second is ignored. Under `nohup` both are.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    numbers = {signal.SIGTERM, signal.SIGHUP}
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        numbers.remove(signal.SIGHUP)
    earlier = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in earlier.items():
            if signal.getsignal(number) is not signal.SIG_IGN:  # it came, and once is enough
                signal.signal(number, handler)


@contextmanager
def stopping_gently(stop: Callable[[], None]) -> Iterator[None]:
    """Within this context, call `stop` at the first Ctrl-C, SIGTERM or SIGHUP.

    `stop` runs in its own thread, because a signal may arrive anywhere, even inside Ray. Later
    signals have their usual effect, except SIGHUP, as in `interrupting`.
    """
    asked, ended = Event(), Event()
    earlier = {number: signal.getsignal(number) for number in _SIGNALS}
    if earlier[signal.SIGHUP] is signal.SIG_IGN:
        del earlier[signal.SIGHUP]

    def restore() -> None:
        for number, handler in earlier.items():
            signal.signal(number, handler)

    def ask(number: int, frame: FrameType | None) -> None:
        restore()
        if number == signal.SIGHUP:
            signal.signal(number, signal.SIG_IGN)
        asked.set()

    def wait() -> None:
        asked.wait()
        if not ended.is_set():
            stop()

    for number in earlier:
        signal.signal(number, ask)
    waiting = Thread(target=wait, name="stop", daemon=True)
    waiting.start()
    try:
        yield
    finally:
        restore()  # first: a signal that came within `asked.set()` would wait there for itself
        ended.set()
        asked.set()
