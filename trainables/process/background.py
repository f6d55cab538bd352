"""Work in the background."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from threading import Lock

_running: set[Future[None]] = set()
_starting = Lock()


@contextmanager
def in_background(work: Callable[[], None]) -> Iterator[Callable[[], None]]:
    """Run `work` in a thread while the body runs; it is finished when the body is left.

    Yields a function that waits for the work and raises its error. An error in the body wins.
    """
    with ThreadPoolExecutor(max_workers=1) as thread:
        with _starting:  # nothing has begun that `finish` does not know of
            future = thread.submit(work)
            _running.add(future)
        future.add_done_callback(_running.discard)
        yield future.result
    future.result()


def finish() -> None:
    """Wait until no work runs in the background of this process, whatever its outcome."""
    with _starting:
        running = set(_running)
    wait(running)
