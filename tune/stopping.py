"""Ctrl-C: the first lets every trial save a checkpoint and end, the second ends at once."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread, current_thread, main_thread
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stopping_gently(stop: Callable[[], None]) -> Iterator[None]:
    """While the context lasts, call `stop` at the first Ctrl-C or SIGTERM.

    It runs in a thread of its own, because a signal may arrive anywhere, also inside of Ray. The
    signals after the first do what they would have done.
    """
    if current_thread() is not main_thread():  # where Python takes no signals
        yield
        return
    asked, ended = Event(), Event()
    earlier = {number: signal.getsignal(number) for number in _SIGNALS}

    def restore() -> None:
        for number, handler in earlier.items():
            signal.signal(number, handler)

    def ask(number: int, frame: FrameType | None) -> None:
        restore()
        asked.set()

    def wait() -> None:
        asked.wait()
        if not ended.is_set():
            stop()

    for number in _SIGNALS:
        signal.signal(number, ask)
    waiting = Thread(target=wait, name="stop", daemon=True)
    waiting.start()
    try:
        yield
    finally:
        ended.set()
        asked.set()
        restore()
