"""Ctrl-C: the first lets every trial save a checkpoint and end, the second ends at once.

So do SIGTERM, and the SIGHUP of a terminal that is gone, as with the ssh of a closed laptop.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread, current_thread, main_thread
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def ignoring_hangup() -> Iterator[None]:
    """Processes that start while the context lasts outlive the terminal.

    The kernel tells all that belong to it when it goes; trials are to save their checkpoints then.
    """
    if current_thread() is not main_thread():
        yield
        return
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


@contextmanager
def stopping_gently(stop: Callable[[], None]) -> Iterator[None]:
    """While the context lasts, call `stop` at the first Ctrl-C, SIGTERM or SIGHUP.

    It runs in a thread of its own, because a signal may arrive anywhere, also inside of Ray. The
    signals after the first do what they would have done, except that a terminal may be gone twice:
    the kernel says so, and the shell as well. Where `nohup` has a SIGHUP ignored it is.
    """
    if current_thread() is not main_thread():  # where Python takes no signals
        yield
        return
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
        ended.set()
        asked.set()
        restore()
